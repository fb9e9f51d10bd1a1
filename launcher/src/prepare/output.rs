//! Users written to a folder that appears whole or not at all.

use crate::cli::PrepareArgs;
use crate::exit::Fails;
use anyhow::Context;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use trainer::data::{Role, UserRecord, jsonl};
use trainer::store::fs::{AtomicFile, RealFs};

/// The files of `--to jsonl`: personal users, population users. One without users is not written.
pub(super) const JSONL: [&str; 2] = ["personal.jsonl", "population.jsonl"];

/// Bytes gathered before they are written.
const GATHERED_BYTES: usize = 1 << 18;

/// Where users go.
pub(super) struct Output {
    // Closed before the folder goes.
    personal: Option<File>,
    population: Option<File>,
    part: Part,
}

impl Output {
    /// Prepares `--to KIND --out DIR`; nothing without them.
    ///
    /// # Errors
    /// An unknown kind, a folder that is there already.
    pub(super) fn begin(args: &PrepareArgs) -> anyhow::Result<Option<Self>> {
        // The command line lets neither through alone.
        let (Some(kind), Some(out)) = (&args.to, &args.out) else { return Ok(None) };
        if kind != "jsonl" {
            return Err(anyhow::anyhow!("cannot write {kind:?}")).input("kinds: jsonl");
        }
        Ok(Some(Self { personal: None, population: None, part: Part::begin(out)? }))
    }

    /// Writes one user.
    pub(super) fn put(&mut self, role: Role, record: &UserRecord) -> anyhow::Result<()> {
        let (place, name) = match role {
            Role::Personal => (&mut self.personal, JSONL[0]),
            Role::Population => (&mut self.population, JSONL[1]),
        };
        let file = match place {
            Some(file) => file,
            None => place.insert(File::begin(&self.part.folder.join(name))?),
        };
        jsonl::write_user(&mut file.0, record).with_context(|| format!("{name} cannot be written"))
    }

    /// Puts the folder under its name and says which.
    pub(super) fn commit(self) -> anyhow::Result<PathBuf> {
        for file in [self.personal, self.population].into_iter().flatten() {
            file.commit()?;
        }
        self.part.commit()
    }
}

/// A file that appears when it is whole.
struct File(io::BufWriter<Bytes>);

struct Bytes(AtomicFile<'static>);

impl io::Write for Bytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl File {
    fn begin(path: &Path) -> anyhow::Result<Self> {
        let file = AtomicFile::begin(&RealFs, path)
            .with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(Self(io::BufWriter::with_capacity(GATHERED_BYTES, Bytes(file))))
    }

    fn commit(mut self) -> anyhow::Result<()> {
        self.0.flush()?;
        let bytes = self.0.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(bytes.0.commit()?)
    }
}

/// A folder beside the one asked for, which takes its name at the end; dropped before, it goes.
struct Part {
    folder: PathBuf,
    out: PathBuf,
    done: bool,
}

impl Part {
    fn begin(out: &Path) -> anyhow::Result<Self> {
        let out = std::path::absolute(out)?;
        let (Some(parent), Some(name)) = (out.parent(), out.file_name()) else {
            return Err(anyhow::anyhow!("{} is no new folder", out.display()))
                .input("--out names a folder that does not exist yet");
        };
        if out.symlink_metadata().is_ok() {
            return Err(anyhow::anyhow!("{} exists already", out.display()))
                .input("nothing is overwritten: remove it or name another folder");
        }
        let folder =
            parent.join(format!(".{}.part-{}", name.to_string_lossy(), std::process::id()));
        fs::create_dir_all(parent)
            .and_then(|()| fs::create_dir(&folder))
            .map_err(|e| anyhow::anyhow!("{}: {e}", folder.display()))
            .input("--out names a folder where one may write")?;
        Ok(Self { folder, out, done: false })
    }

    fn commit(mut self) -> anyhow::Result<PathBuf> {
        let renamed = fs::rename(&self.folder, &self.out);
        renamed.with_context(|| format!("{} cannot be put there", self.out.display()))?;
        self.done = true;
        Ok(self.out.clone())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.done {
            // Best effort: the command has failed already and says why.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}
