//! A file system in memory that can die: it keeps what a program sees apart from what would survive, and fails at
//! a chosen call. For the crash tests of this crate and of those above it.

use super::fs::{Fs, FsFile, Lock};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// When calls that change something fail; they are counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Never.
    None,
    /// The k-th and all after it: the process is dead. A write that dies leaves half of its bytes.
    StopAt(u64),
    /// The k-th alone: an I/O error or a full disk. A failed sync forgets its pages, as Linux does.
    FailAt(u64),
}

/// What of the names survives a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// Only what a folder's sync made durable.
    Synced,
    /// All creations, renames and removals: the system wrote them out early.
    All,
}

/// What of unsynced bytes survives a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bytes {
    /// Nothing.
    Synced,
    /// Everything.
    All,
    /// A prefix of what was appended.
    Torn,
    /// The length, but zeros for the bytes.
    Zeros,
    /// The length and the last write; zeros for those before: the disk does not keep order.
    Reordered,
}

impl Bytes {
    /// Every one of them.
    pub const EACH: [Self; 5] = [Self::Synced, Self::All, Self::Torn, Self::Zeros, Self::Reordered];
}

#[derive(Debug, Default, Clone)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    dirty: Vec<Range<usize>>,
}

#[derive(Debug)]
struct State {
    inodes: Vec<Inode>,
    live: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    dirs: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    calls: u64,
    fault: Fault,
}

/// The file system; clones share it.
#[derive(Debug, Clone)]
pub struct CrashFs(Arc<Mutex<State>>);

impl Default for CrashFs {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            inodes: Vec::new(),
            live: BTreeMap::new(),
            durable: BTreeMap::new(),
            dirs: BTreeSet::new(),
            locks: BTreeSet::new(),
            calls: 0,
            fault: Fault::None,
        })))
    }
}

impl State {
    /// Counts a call; an error when it shall fail.
    fn call(&mut self) -> io::Result<()> {
        self.calls += 1;
        match self.fault {
            Fault::StopAt(k) if self.calls >= k => Err(io::Error::other("stopped")),
            Fault::FailAt(k) if self.calls == k => Err(io::Error::other("injected fault")),
            _ => Ok(()),
        }
    }

    fn at(&self, path: &Path) -> io::Result<usize> {
        self.live.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl CrashFs {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the fault and counts calls from 1 again.
    pub fn set_fault(&self, fault: Fault) {
        let mut state = self.state();
        state.fault = fault;
        state.calls = 0;
    }

    /// Calls counted since the last [`Self::set_fault`].
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// What a machine finds after the power came back: a new file system, all of it durable, no lock held.
    pub fn crash(&self, names: Names, bytes: Bytes) -> Self {
        let old = self.state();
        let after = Self::default();
        let mut new = after.state();
        new.dirs.clone_from(&old.dirs);
        let surviving = if names == Names::All { &old.live } else { &old.durable };
        for (path, &inode) in surviving {
            let Inode { live, durable, dirty } = &old.inodes[inode];
            let mut content = match bytes {
                Bytes::All => live.clone(),
                _ => durable.clone(),
            };
            if let (Bytes::Torn, Some(tail)) = (bytes, live.get(durable.len()..)) {
                content.extend_from_slice(&tail[..tail.len() / 2]);
            }
            if matches!(bytes, Bytes::Zeros | Bytes::Reordered) {
                content.resize(live.len(), 0);
            }
            if let (Bytes::Reordered, Some(last)) = (bytes, dirty.last()) {
                content[last.clone()].copy_from_slice(&live[last.clone()]);
            }
            let number = new.inodes.len();
            new.inodes.push(Inode { durable: content.clone(), live: content, dirty: vec![] });
            new.live.insert(path.clone(), number);
            new.durable.insert(path.clone(), number);
        }
        drop(new);
        after
    }

    /// Every file and its bytes, as the program sees them.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.state();
        state.live.iter().map(|(p, &i)| (p.clone(), state.inodes[i].live.clone())).collect()
    }

    /// Puts a file there, durably, over what there was: damage done from outside.
    pub fn put(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state();
        let number = state.inodes.len();
        state.inodes.push(Inode { live: bytes.to_vec(), durable: bytes.to_vec(), dirty: vec![] });
        state.live.insert(path.to_owned(), number);
        state.durable.insert(path.to_owned(), number);
    }
}

#[derive(Debug)]
struct CrashFile {
    fs: CrashFs,
    inode: usize,
    failed: bool,
}

impl FsFile for CrashFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write or sync of this file failed"));
        }
        let mut state = self.fs.state();
        let result = state.call();
        self.failed = result.is_err();
        let written = if self.failed { bytes.len() / 2 } else { bytes.len() };
        let inode = &mut state.inodes[self.inode];
        let start = inode.live.len();
        inode.live.extend_from_slice(&bytes[..written]);
        inode.dirty.push(start..start + written);
        result
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write or sync of this file failed"));
        }
        let mut state = self.fs.state();
        let result = state.call();
        self.failed = result.is_err();
        // A dead process's pages may still reach the disk; those of a failed sync never do.
        let dead = self.failed && matches!(state.fault, Fault::StopAt(_));
        let Inode { live, durable, dirty } = &mut state.inodes[self.inode];
        if !self.failed {
            durable.resize(live.len(), 0);
            for range in dirty.iter().filter(|r| r.end <= live.len()) {
                durable[range.clone()].copy_from_slice(&live[range.clone()]);
            }
        }
        if !dead {
            dirty.clear();
        }
        result
    }
}

#[derive(Debug)]
struct CrashLock(CrashFs, PathBuf);

impl Lock for CrashLock {}

impl Drop for CrashLock {
    fn drop(&mut self) {
        self.0.state().locks.remove(&self.1);
    }
}

impl Fs for CrashFs {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        if !state.dirs.contains(dir) {
            state.call()?;
            state.dirs.extend(dir.ancestors().map(Path::to_owned));
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        let mut state = self.state();
        state.call()?;
        if !path.parent().is_some_and(|p| state.dirs.contains(p)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if state.live.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.live.insert(path.to_owned(), inode);
        Ok(Box::new(CrashFile { fs: self.clone(), inode, failed: false }))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        let inode = self.state().at(path)?;
        Ok(Box::new(CrashFile { fs: self.clone(), inode, failed: false }))
    }

    fn truncate(&self, path: &Path, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.call()?;
        let at = state.at(path)?;
        let inode = &mut state.inodes[at];
        inode.live.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        inode.durable.clone_from(&inode.live);
        inode.dirty.clear();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.call()?;
        let inode = state.at(from)?;
        state.live.remove(from);
        state.live.insert(to.to_owned(), inode);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.call()?;
        let inside = |path: &Path| path.parent() == Some(dir);
        let State { live, durable, .. } = &mut *state;
        durable.retain(|path, _| !inside(path));
        durable.extend(live.iter().filter(|(p, _)| inside(p)).map(|(p, &i)| (p.clone(), i)));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.call()?;
        state.at(path)?;
        state.live.remove(path);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let children = state.live.keys().chain(&state.dirs).filter(|p| p.parent() == Some(dir));
        let names = children.filter_map(|p| p.file_name()?.to_str().map(str::to_owned));
        let names: BTreeSet<String> = names.collect();
        Ok(names.into_iter().collect())
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        let state = self.state();
        Ok(state.inodes[state.at(path)?].live.len() as u64)
    }

    fn read_at(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let state = self.state();
        let live = &state.inodes[state.at(path)?].live;
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|s| Some(s..s.checked_add(len)?));
        let bytes = range.and_then(|r| live.get(r));
        bytes.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let mut state = self.state();
        if !state.locks.insert(path.to_owned()) {
            return Ok(None);
        }
        Ok(Some(Box::new(CrashLock(self.clone(), path.to_owned()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fs::write_atomic_in;

    fn fs() -> (CrashFs, PathBuf) {
        let fs = CrashFs::default();
        fs.create_dir(Path::new("/d")).unwrap();
        (fs, PathBuf::from("/d/a"))
    }

    #[test]
    fn only_what_was_synced_survives() {
        let (fs, path) = fs();
        let mut file = fs.create(&path).unwrap();
        file.write(b"12").unwrap();
        file.sync().unwrap();
        file.write(b"3456").unwrap();
        // The name was not synced.
        assert!(fs.crash(Names::Synced, Bytes::All).read(&path).is_err());
        fs.sync_dir(Path::new("/d")).unwrap();
        let after = |bytes| fs.crash(Names::Synced, bytes).read(&path).unwrap();
        assert_eq!(after(Bytes::Synced), b"12");
        assert_eq!(after(Bytes::All), b"123456");
        assert_eq!(after(Bytes::Torn), b"1234");
        assert_eq!(after(Bytes::Zeros), b"12\0\0\0\0");
        file.write(b"78").unwrap();
        assert_eq!(after(Bytes::Reordered), b"12\0\0\0\x0078");
    }

    #[test]
    fn a_failed_sync_loses_its_pages_for_good() {
        let (fs, path) = fs();
        fs.set_fault(Fault::FailAt(3));
        let mut file = fs.create(&path).unwrap();
        file.write(b"12").unwrap();
        assert!(file.sync().is_err());
        assert!(file.sync().is_err());
        let mut again = fs.append(&path).unwrap();
        again.write(b"3").unwrap();
        again.sync().unwrap();
        fs.sync_dir(Path::new("/d")).unwrap();
        assert_eq!(fs.crash(Names::Synced, Bytes::Synced).read(&path).unwrap(), b"\0\x003");
    }

    /// The claim of `write_atomic`, at each call and in each image.
    #[test]
    fn write_atomic_is_old_or_new() {
        let mut k = 0;
        loop {
            k += 1;
            let (fs, path) = fs();
            write_atomic_in(&fs, &path, b"old").unwrap();
            fs.set_fault(Fault::StopAt(k));
            let done = write_atomic_in(&fs, &path, b"newer").is_ok();
            for names in [Names::Synced, Names::All] {
                for bytes in Bytes::EACH {
                    let found = fs.crash(names, bytes).read(&path).unwrap();
                    assert!(found == b"newer" || (found == b"old" && !done), "{k} {found:?}");
                }
            }
            if done {
                break;
            }
        }
        assert_eq!(k, 6, "create, write, sync, rename, sync of the folder, then none fails");
    }
}
