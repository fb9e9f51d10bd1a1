//! The few file operations the store is made of, behind a trait so that tests can stop at each of them.
//!
//! Rule of the house: after a failed `fsync` the kernel may have marked the lost pages clean, so a second
//! `fsync` of the same file proves nothing (Rebello et al., ATC 2020). A file whose write or sync failed
//! refuses every later call; whoever holds it gives the commit up.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Prefix and suffix of files being written; what a crash leaves of them is removed when a folder is opened.
const TEMPORARY: (&str, &str) = (".myr-", ".tmp");

/// File operations; paths are the caller's, nothing is resolved or created on the way except by `create_dir`.
pub trait Fs: fmt::Debug + Send + Sync {
    /// Makes a folder and those above it, durably; no error when it is there.
    ///
    /// # Errors
    /// Of the system.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes a new, empty file; an error when the name is taken. The name is durable after `sync_dir`.
    ///
    /// # Errors
    /// Of the system.
    fn create(&self, path: &Path) -> io::Result<Box<dyn FsFile>>;
    /// Opens an existing file for appending.
    ///
    /// # Errors
    /// Of the system.
    fn append(&self, path: &Path) -> io::Result<Box<dyn FsFile>>;
    /// Cuts a file to `len` bytes, durably.
    ///
    /// # Errors
    /// Of the system.
    fn truncate(&self, path: &Path, len: u64) -> io::Result<()>;
    /// Moves a file over another in the same folder, atomically; durable after `sync_dir`.
    ///
    /// # Errors
    /// Of the system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// Of the system.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Removes a file; durable after `sync_dir`.
    ///
    /// # Errors
    /// Of the system.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Names in a folder, sorted; names that are not UTF-8 are not ours and are left out.
    ///
    /// # Errors
    /// Of the system.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Length of a file in bytes.
    ///
    /// # Errors
    /// Of the system.
    fn len(&self, path: &Path) -> io::Result<u64>;
    /// Exactly `len` bytes from `offset` on.
    ///
    /// # Errors
    /// Of the system; `UnexpectedEof` when the file is shorter.
    fn read_at(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>>;
    /// Takes an exclusive advisory lock, held until the value is dropped or the process ends; `None` when another
    /// holds it. Makes the lock file if it is not there.
    ///
    /// # Errors
    /// Of the system.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>>;

    /// The whole file.
    ///
    /// # Errors
    /// Of the system.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.len(path)?).map_err(io::Error::other)?;
        self.read_at(path, 0, len)
    }
}

/// A file being appended to.
pub trait FsFile: fmt::Debug + Send {
    /// Appends all of `bytes`, or fails for good.
    ///
    /// # Errors
    /// Of the system; always after an earlier failure.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything written so far durable, or fails for good.
    ///
    /// # Errors
    /// Of the system; always after an earlier failure.
    fn sync(&mut self) -> io::Result<()>;
}

/// A held lock.
pub trait Lock: fmt::Debug + Send {}

/// The file system of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFs;

#[derive(Debug)]
struct RealFile {
    file: File,
    failed: bool,
}

impl RealFile {
    fn guard(&mut self, f: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write or sync of this file failed"));
        }
        let result = f(&mut self.file);
        self.failed = result.is_err();
        result
    }
}

impl FsFile for RealFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.guard(|f| f.write_all(bytes))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.guard(|f| f.sync_data())
    }
}

#[derive(Debug)]
struct RealLock(#[expect(dead_code, reason = "held for its drop, which unlocks")] File);

impl Lock for RealLock {}

impl Fs for RealFs {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let parent = match dir.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        self.create_dir(parent)?;
        match fs::create_dir(dir) {
            // Another MPI rank may have been faster.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            other => other?,
        }
        self.sync_dir(parent)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        let file = OpenOptions::new().append(true).create_new(true).open(path)?;
        Ok(Box::new(RealFile { file, failed: false }))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        let file = OpenOptions::new().append(true).open(path)?;
        Ok(Box::new(RealFile { file, failed: false }))
    }

    fn truncate(&self, path: &Path, len: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(len)?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        rustix::fs::fsync(File::open(dir)?).map_err(io::Error::from)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn read_at(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        // Before the allocation: a length out of a damaged file must not become memory.
        let end = offset
            .checked_add(len as u64)
            .filter(|end| file.metadata().is_ok_and(|m| *end <= m.len()));
        if end.is_none() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; len];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(RealLock(file)))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

/// A file that appears under its name whole or not at all; dropped before [`Self::commit`] it leaves nothing.
#[derive(Debug)]
pub struct AtomicFile<'a> {
    fs: &'a dyn Fs,
    target: PathBuf,
    temporary: PathBuf,
    file: Option<Box<dyn FsFile>>,
}

impl<'a> AtomicFile<'a> {
    /// Begins to write what shall become `target`, in a temporary file beside it.
    ///
    /// # Errors
    /// Of the system.
    pub fn begin(fs: &'a dyn Fs, target: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let (prefix, suffix) = TEMPORARY;
        let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let temporary = folder(target).join(format!("{prefix}{process}-{number}{suffix}"));
        let file = Some(fs.create(&temporary)?);
        Ok(Self { fs, target: target.to_owned(), temporary, file })
    }

    /// Appends.
    ///
    /// # Errors
    /// Of the system.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |f| f.write(bytes))
    }

    /// Sync, rename, sync the folder: after this the file is durable under its name.
    ///
    /// # Errors
    /// Of the system. After a failed last sync either the old file or the new one survives a crash, never a mix.
    pub fn commit(mut self) -> io::Result<()> {
        if let Some(file) = self.file.as_mut() {
            file.sync()?;
        }
        self.fs.rename(&self.temporary, &self.target)?;
        self.file = None;
        self.fs.sync_dir(folder(&self.target))
    }
}

impl Drop for AtomicFile<'_> {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Best effort: what stays is removed when the folder is opened next.
            let _ = self.fs.remove(&self.temporary);
        }
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Writes a whole file atomically and durably: temporary file, write, sync, rename, sync of the folder.
///
/// # Errors
/// Of the system; the file under `path` is then the old one or the new one, never a mix.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomic_in(&RealFs, path, bytes)
}

/// [`write_atomic`] on any file system.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_atomic_in(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::begin(fs, path)?;
    file.write(bytes)?;
    file.commit()
}

/// Removes what interrupted atomic writes left in a folder.
pub(crate) fn remove_temporary(fs: &dyn Fs, dir: &Path) -> io::Result<()> {
    let left: Vec<String> = fs.list(dir)?.into_iter().filter(|n| is_temporary(n)).collect();
    for name in &left {
        fs.remove(&dir.join(name))?;
    }
    if left.is_empty() { Ok(()) } else { fs.sync_dir(dir) }
}

/// Whether a name is that of a file being written.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_atomic_replaces_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"old").unwrap();
        write_atomic(&path, b"new").unwrap();
        assert_eq!(RealFs.read(&path).unwrap(), b"new");
        assert!(write_atomic(&dir.path().join("no/such/folder"), b"x").is_err());
        // A folder stands in the way: the rename fails and the temporary file goes.
        RealFs.create_dir(&dir.path().join("b/c")).unwrap();
        assert!(write_atomic(&dir.path().join("b"), b"x").is_err());
        assert_eq!(RealFs.list(dir.path()).unwrap(), ["a", "b"]);
    }

    #[test]
    fn bounds_and_taken_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"12345").unwrap();
        assert_eq!(RealFs.read_at(&path, 1, 3).unwrap(), b"234");
        for (offset, len) in [(0, 6), (5, 1), (u64::MAX, 1), (1, usize::MAX)] {
            let e = RealFs.read_at(&path, offset, len).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
        }
        assert_eq!(RealFs.create(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_failed_file_stays_failed() {
        // Writing to a full device fails.
        let Ok(mut file) = RealFs.append(Path::new("/dev/full")) else { return };
        assert!(file.write(b"x").is_err());
        assert!(file.write(b"").is_err());
        assert!(file.sync().is_err());
    }

    #[test]
    fn one_lock_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = RealFs.lock(&path).unwrap();
        assert!(held.is_some());
        assert!(RealFs.lock(&path).unwrap().is_none());
        drop(held);
        assert!(RealFs.lock(&path).unwrap().is_some());
    }
}
