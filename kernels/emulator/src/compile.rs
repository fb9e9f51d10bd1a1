//! Compiles the runtime and the modules when they are first needed, into a folder shared by all test processes.
//!
//! A library's name ends in the hash of all that goes into it: compiler, flags, sources, headers included. So
//! an old one is never wrong, and one that is there is complete: it is linked elsewhere and renamed. Modules
//! are libraries of their own because two may use one name for different things, as they may on the GPU.

use crate::emulator::Mode;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The C++ sources of the runtime.
pub(crate) const RUNTIME: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/runtime");
/// The device code of the workspace.
pub(crate) const DEVICE_CODE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../cu");
/// No fused multiply-adds of the compiler's own choice: results are the same on every machine and in both modes.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-DCUDA_CPU",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-Wall",
    "-Wno-unknown-pragmas",
];
const RUNTIME_COMMON: &[&str] =
    &["fibers.cpp", "warp.cpp", "copies.cpp", "memory.cpp", "findings.cpp", "launch.cpp"];
const RUNTIME_FAST: &[&str] = &["fast.cpp"];
const RUNTIME_CHECKED: &[&str] = &["shadow.cpp", "hooks.cpp"];

/// Where sources are read and libraries kept, and what is defined.
#[derive(Debug)]
pub(crate) struct Builder {
    pub(crate) mode: Mode,
    pub(crate) sources: PathBuf,
    pub(crate) cache: PathBuf,
    pub(crate) faults: Vec<String>,
}

/// A compiler that answers, with its version.
struct Compiler {
    program: &'static str,
    version: String,
}

fn compiler() -> Result<&'static Compiler> {
    static FOUND: OnceLock<Compiler> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found);
    }
    let ask = |program| {
        let output = Command::new(program).args(["-v"]).output()?;
        let version = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Compiler { program, version })
    };
    let found = ask("g++").or_else(|_| ask("c++")).map_err(Error::NoCompiler)?;
    Ok(FOUND.get_or_init(|| found))
}

/// `<target>/emulator`, found from the running program, which cargo puts below the target folder.
pub(crate) fn default_cache() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let target = program.ancestors().skip(1).find(|folder| folder.join("CACHEDIR.TAG").is_file());
    target.map_or_else(|| std::env::temp_dir().join("emulator-libraries"), |t| t.join("emulator"))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| Error::File { path: path.into(), error })
}

/// `path` and every file it includes by `#include "name"` from the given folders, by path.
fn with_includes(path: &Path, folders: &[&Path]) -> Result<BTreeMap<PathBuf, String>> {
    let mut texts = BTreeMap::new();
    let mut open = vec![path.to_path_buf()];
    while let Some(path) = open.pop() {
        if texts.contains_key(&path) {
            continue;
        }
        let text = read(&path)?;
        for name in text.lines().filter_map(|line| line.trim().strip_prefix("#include \"")) {
            let name = name.split('"').next().unwrap_or_default();
            open.extend(
                folders.iter().map(|folder| folder.join(name)).find(|there| there.is_file()),
            );
        }
        texts.insert(path, text);
    }
    Ok(texts)
}

impl Builder {
    /// Refuses a fault that no source knows.
    pub(crate) fn check_faults(&self) -> Result<()> {
        let list = fs::read_dir(&self.sources)
            .map_err(|error| Error::File { path: self.sources.clone(), error })?;
        let texts: Vec<String> = list
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "cu" || e == "cuh"))
            .map(|path| read(&path))
            .collect::<Result<_>>()?;
        let known = |fault: &str| texts.iter().any(|text| mentions(text, fault));
        match self.faults.iter().find(|fault| !known(fault)) {
            Some(fault) => Err(Error::UnknownFault(fault.clone())),
            None => Ok(()),
        }
    }

    /// The runtime's library.
    pub(crate) fn runtime(&self) -> Result<PathBuf> {
        let own = match self.mode {
            Mode::Fast => RUNTIME_FAST,
            Mode::Checked => RUNTIME_CHECKED,
        };
        let folder = Path::new(RUNTIME);
        let files: Vec<PathBuf> =
            RUNTIME_COMMON.iter().chain(own).map(|n| folder.join(n)).collect();
        let mut texts = BTreeMap::new();
        for file in &files {
            texts.extend(with_includes(file, &[folder])?);
        }
        let flags: Vec<String> = FLAGS
            .iter()
            .map(ToString::to_string)
            .chain(["-O3".into(), "-fvisibility=default".into()])
            .collect();
        let inputs = Inputs { files: &files, texts: &texts, flags: &flags, link: &["-ldl".into()] };
        self.library("runtime", &inputs)
    }

    /// The library of `<sources>/<module>.cu`, linked to the runtime.
    pub(crate) fn module(&self, module: &str, runtime: &Path) -> Result<PathBuf> {
        let folder = Path::new(RUNTIME);
        let file = self.sources.join(format!("{module}.cu"));
        let support = folder.join("module.cpp");
        let mut texts = with_includes(&file, &[&self.sources, Path::new(DEVICE_CODE), folder])?;
        texts.insert(support.clone(), read(&support)?);
        let mut flags: Vec<String> = FLAGS.iter().map(ToString::to_string).collect();
        for folder in [&self.sources, Path::new(DEVICE_CODE), folder] {
            flags.push(format!("-I{}", folder.display()));
        }
        flags.extend(self.mode_flags());
        let used = |fault: &&String| texts.values().any(|text| mentions(text, fault));
        flags.extend(self.faults.iter().filter(used).map(|fault| format!("-DFAULT_{fault}")));
        let mut link = vec!["-Wl,-rpath,$ORIGIN".to_owned(), format!("-L{}", self.cache.display())];
        let name = runtime.file_name().unwrap_or_default().to_string_lossy();
        link.push(format!("-l:{name}"));
        let inputs = Inputs { files: &[file, support], texts: &texts, flags: &flags, link: &link };
        self.library(module, &inputs)
    }

    fn mode_flags(&self) -> Vec<String> {
        let flags: &[&str] = match self.mode {
            Mode::Fast => &["-O2", "-g1"],
            Mode::Checked => {
                &["-O1", "-g", "-fsanitize=thread,alignment,bounds,signed-integer-overflow"]
            }
        };
        flags.iter().map(ToString::to_string).collect()
    }

    /// Builds `<cache>/<name>-<mode>-<hash>.so` unless it is there.
    fn library(&self, name: &str, inputs: &Inputs<'_>) -> Result<PathBuf> {
        let compiler = compiler()?;
        let mut hash = blake3::Hasher::new();
        let mut add = |text: &str| {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        add(include_str!("compile.rs")); // how all of it is put together
        add(&compiler.version);
        inputs.flags.iter().chain(inputs.link).for_each(|flag| add(flag));
        for (path, text) in inputs.texts {
            add(&path.to_string_lossy());
            add(text);
        }
        let hash = &hash.finalize().to_hex()[..16];
        let stem = format!("{name}-{}-{hash}", self.mode.name());
        let library = self.cache.join(format!("{stem}.so"));
        if library.is_file() {
            return Ok(library);
        }
        let at = |path: &Path, error| Error::File { path: path.into(), error };
        fs::create_dir_all(&self.cache).map_err(|error| at(&self.cache, error))?;
        // One builder at a time; who waited finds the library made.
        let lock_path = self.cache.join(format!("{stem}.lock"));
        let lock = File::create(&lock_path).map_err(|error| at(&lock_path, error))?;
        lock.lock().map_err(|error| at(&lock_path, error))?;
        if library.is_file() {
            return Ok(library);
        }
        let unfinished = self.cache.join(format!("{stem}.{}.unfinished", std::process::id()));
        let mut objects = Vec::new();
        for (i, file) in inputs.files.iter().enumerate() {
            let object = unfinished.with_extension(format!("{i}.o"));
            let mut command = Command::new(compiler.program);
            command.args(inputs.flags).args(["-xc++", "-c"]).arg(file).arg("-o").arg(&object);
            objects.push(object);
            finish(&mut command, file)?;
        }
        // Without the flags of the sanitizers: hooks.cpp stands in for their libraries.
        let mut command = Command::new(compiler.program);
        command.arg("-shared").arg(format!("-Wl,-soname,{stem}.so")).args(&objects);
        command.args(inputs.link).arg("-o").arg(&unfinished);
        finish(&mut command, &inputs.files[0])?;
        for object in &objects {
            fs::remove_file(object).map_err(|error| at(object, error))?;
        }
        fs::rename(&unfinished, &library).map_err(|error| at(&library, error))?;
        Ok(library)
    }
}

/// What goes into a library.
struct Inputs<'a> {
    files: &'a [PathBuf],
    texts: &'a BTreeMap<PathBuf, String>,
    flags: &'a [String],
    link: &'a [String],
}

/// Runs a compiler to its end.
fn finish(command: &mut Command, source_file: &Path) -> Result<()> {
    let output = command.output().map_err(Error::NoCompiler)?;
    if output.status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::Compile { source_file: source_file.into(), output })
}

/// Whether `FAULT_<fault>` stands in `text` as a whole word.
fn mentions(text: &str, fault: &str) -> bool {
    let word = format!("FAULT_{fault}");
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(&word)
        .any(|(at, _)| !text[at + word.len()..].starts_with(part) && !text[..at].ends_with(part))
}
