//! What a test program has run, for `scripts/check-launches`.
//!
//! A process writes `FOLDER/PROGRAM-PID`: a line `MODE MODULE.KERNEL SHAPE` for each different launch that found nothing
//! wrong, and `fault NAME 0` for each seeded bug that was compiled in. SHAPE is a hash of the geometry and of all arguments
//! but addresses.

use crate::emulator::Mode;
use crate::error::{Error, Result};
use kernels::gpu::{Arg, Launch};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Shapes of one kernel that are written down; more say nothing new.
const MOST: usize = 64;

/// The file of this process, in the first folder it was given, and what is in it.
struct Log {
    path: PathBuf,
    file: File,
    shapes: BTreeMap<String, BTreeSet<u64>>,
}

/// Notes a launch.
///
/// # Errors
/// [`Error::File`].
pub(crate) fn launched(folder: &Path, mode: Mode, launch: &Launch<'_>) -> Result<()> {
    let kernel = format!("{} {}.{}", mode.name(), launch.module, launch.kernel);
    note(folder, kernel, shape(launch))
}

/// Notes a seeded bug.
///
/// # Errors
/// [`Error::File`].
pub(crate) fn seeded(folder: &Path, name: &str) -> Result<()> {
    note(folder, format!("fault {name}"), 0)
}

fn note(folder: &Path, what: String, shape: u64) -> Result<()> {
    static LOG: Mutex<Option<Log>> = Mutex::new(None);
    let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    if log.is_none() {
        *log = Some(Log::open(folder)?);
    }
    log.as_mut().map_or(Ok(()), |log| log.add(what, shape))
}

impl Log {
    fn open(folder: &Path) -> Result<Self> {
        let program = std::env::current_exe().unwrap_or_default();
        let program = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let path = folder.join(format!("{program}-{}", std::process::id()));
        let file = fs::create_dir_all(folder).and_then(|()| File::create(&path));
        match file {
            Ok(file) => Ok(Self { path, file, shapes: BTreeMap::new() }),
            Err(error) => Err(Error::File { path, error }),
        }
    }

    fn add(&mut self, what: String, shape: u64) -> Result<()> {
        let shapes = self.shapes.entry(what.clone()).or_default();
        if shapes.len() == MOST || !shapes.insert(shape) {
            return Ok(());
        }
        writeln!(self.file, "{what} {shape:016x}")
            .map_err(|error| Error::File { path: self.path.clone(), error })
    }
}

fn shape(launch: &Launch<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (launch.grid, launch.block, launch.shared).hash(&mut hasher);
    let numbers = launch.args.iter().filter(|arg| !matches!(arg, Arg::Pointer(_)));
    numbers.for_each(|arg| arg.hash(&mut hasher));
    hasher.finish()
}
