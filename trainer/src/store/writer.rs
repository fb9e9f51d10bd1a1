//! Appending to one rank's archive.

use super::adapter::AdapterRef;
use super::error::{Error, Result};
use super::fs::{Fs, FsFile, Lock, RealFs, remove_temporary, write_atomic_in};
use super::index::{Entry, FILE_NAME, Index, Place, absorb};
use super::rank::{folder_name, load, segment_path};
use super::record::{Kind, MAX_ID, MAX_REASON, Record};
use super::segment::{self, Group};
use crate::ids::{UserId, UserKey};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is to be recorded of a user.
#[derive(Debug, Clone, Copy)]
pub enum Outcome<'a> {
    /// The finished adapter.
    Adapter(AdapterRef<'a>),
    /// Training was given up.
    Quarantined {
        /// Why; at most 64 KiB.
        reason: &'a str,
    },
}

/// One user's commit.
#[derive(Debug, Clone, Copy)]
pub struct Commit<'a> {
    /// The user.
    pub user: &'a UserId,
    /// [`super::Store::next_generation`] of the user: 1 for one never committed.
    pub generation: u64,
    /// What became of the user.
    pub outcome: Outcome<'a>,
}

/// Sizes of an archive.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// A segment is closed once it is this long; forgetting a user rewrites whole segments.
    pub segment_bytes: u64,
    /// The index is rewritten after this many commits, or a quarter of what it holds if that is more.
    pub index_every: usize,
}

impl Default for Options {
    /// 256 MiB, 64 commits.
    fn default() -> Self {
        Self { segment_bytes: 256 << 20, index_every: 64 }
    }
}

/// The one writer of a rank's archive; holds its lock.
#[derive(Debug)]
pub struct Writer {
    pub(crate) fs: Arc<dyn Fs>,
    pub(crate) dir: PathBuf,
    pub(crate) rank: u32,
    pub(crate) index: Index,
    file: Option<Box<dyn FsFile>>,
    options: Options,
    num_unindexed: usize,
    failed: bool,
    _lock: Box<dyn Lock>,
}

impl Writer {
    /// Opens rank `rank`'s archive in a store folder, making both if needed, and puts it in order: a commit that did
    /// not happen is cut off, an interrupted forgetting finished, a lost index rebuilt.
    ///
    /// # Errors
    /// [`Error::Locked`] when another holds it; [`Error::Corrupt`] when something committed is damaged.
    pub fn open(store: &Path, rank: u32) -> Result<Self> {
        Self::open_in(Arc::new(RealFs), store, rank, Options::default())
    }

    /// [`Self::open`] on any file system, with sizes of one's own.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_in(fs: Arc<dyn Fs>, store: &Path, rank: u32, options: Options) -> Result<Self> {
        let dir = store.join(folder_name(rank));
        fs.create_dir(&dir).map_err(Error::io(&dir))?;
        let path = dir.join("lock");
        let lock = fs.lock(&path).map_err(Error::io(&path))?.ok_or(Error::Locked { path })?;
        remove_temporary(&*fs, &dir).map_err(Error::io(&dir))?;
        let state = load(&*fs, &dir, rank)?;
        // A segment may be there whose name is not durable yet: its maker failed between rename and sync.
        fs.sync_dir(&dir).map_err(Error::io(&dir))?;
        if let Some(torn) = state.torn {
            let (path, end) = (segment_path(&dir, torn), state.index.segments[&torn]);
            fs.truncate(&path, end).map_err(Error::io(&path))?;
        }
        let mut writer = Self {
            fs,
            dir,
            rank,
            file: None,
            options,
            num_unindexed: state.num_unindexed,
            failed: false,
            _lock: lock,
            index: state.index,
        };
        if !state.half_forgotten.is_empty() {
            writer.purge(&state.half_forgotten)?;
        } else if state.num_unindexed > 0 || (!state.has_index && !writer.index.segments.is_empty())
        {
            writer.write_index()?;
        }
        Ok(writer)
    }

    /// The MPI rank.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Each user's newest record in this rank's archive.
    pub fn users(&self) -> &BTreeMap<UserKey, Entry> {
        &self.index.entries
    }

    /// Commits one user; see [`Self::commit_batch`].
    ///
    /// # Errors
    /// As [`Self::commit_batch`].
    pub fn commit(&mut self, commit: Commit<'_>) -> Result<()> {
        self.commit_batch(&[commit])
    }

    /// Commits users together: all of them or none. When this returns `Ok` they survive any crash.
    ///
    /// *Order*: the records' bytes are a pure function of (user, generation, outcome).
    ///
    /// # Errors
    /// A wrong adapter, id or generation, before anything is written. After an error of the system the batch is wholly
    /// there or wholly absent for whoever opens the store next, and this writer takes nothing more.
    pub fn commit_batch(&mut self, batch: &[Commit<'_>]) -> Result<()> {
        let mut newest = BTreeMap::new();
        for c in batch {
            let key = c.user.key();
            let known = self.index.entries.get(&key).map_or(0, |e| e.generation);
            let newest = newest.insert(key, c.generation).unwrap_or(0).max(known);
            if c.generation <= newest {
                let (user, got) = (c.user.clone(), c.generation);
                return Err(Error::Generation { user, got, newest });
            }
            let len = c.user.as_str().len();
            if len > MAX_ID {
                return Err(Error::TooLong { what: "a user's id", got: len, max: MAX_ID });
            }
            match c.outcome {
                Outcome::Adapter(adapter) => adapter.check()?,
                Outcome::Quarantined { reason } if reason.len() > MAX_REASON => {
                    let (what, got) = ("the reason of a quarantine", reason.len());
                    return Err(Error::TooLong { what, got, max: MAX_REASON });
                }
                Outcome::Quarantined { .. } => {}
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        let records = batch.iter().map(|c| {
            let (key, id) = (c.user.key(), c.user.as_str());
            match c.outcome {
                Outcome::Adapter(adapter) => {
                    Record::new(Kind::Adapter, key, c.generation, id, &adapter.encode(&key)?)
                }
                Outcome::Quarantined { reason } => {
                    Record::new(Kind::Quarantine, key, c.generation, id, reason.as_bytes())
                }
            }
        });
        self.append(records)?;
        if self.num_unindexed >= self.options.index_every.max(self.index.entries.len() / 4) {
            self.guarded(Self::write_index)?;
        }
        Ok(())
    }

    /// Writes the index and releases the lock. Not needed for safety, only for a quick next opening.
    ///
    /// # Errors
    /// Of the system.
    pub fn close(mut self) -> Result<()> {
        if self.num_unindexed > 0 { self.guarded(Self::write_index) } else { Ok(()) }
    }

    /// Appends a group and commits it.
    pub(crate) fn append(&mut self, records: impl Iterator<Item = Result<Record>>) -> Result<()> {
        let entries = self.guarded(|w| {
            let (number, end) = w.room()?;
            let path = segment_path(&w.dir, number);
            let result = w.write_group(records, (number, end), &path);
            if result.is_err() {
                w.file = None;
                // So that the next to open finds the end it was told of; if this fails too, it cuts the tail itself.
                let _ = w.fs.truncate(&path, end);
            }
            result
        })?;
        self.num_unindexed += entries.len();
        for entry in entries {
            absorb(&mut self.index.entries, entry)?;
        }
        Ok(())
    }

    fn write_group(
        &mut self,
        records: impl Iterator<Item = Result<Record>>,
        (number, end): (u32, u64),
        path: &Path,
    ) -> Result<Vec<Entry>> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(self.fs.append(path).map_err(Error::io(path))?),
        };
        let (mut group, mut entries) = (Group::default(), Vec::new());
        for record in records {
            let record = record?;
            let place = Place { rank: self.rank, segment: number, offset: end + group.len() };
            entries.push(segment::entry(&record, place, path)?);
            file.write(&record.bytes).map_err(Error::io(path))?;
            group.add(&record);
        }
        if entries.is_empty() {
            return Ok(entries);
        }
        // The records first, then the statement that they are there: see `segment.rs`.
        file.sync().map_err(Error::io(path))?;
        let commit = group.commit()?;
        file.write(&commit.bytes).map_err(Error::io(path))?;
        file.sync().map_err(Error::io(path))?;
        self.index.segments.insert(number, end + group.len() + commit.bytes.len() as u64);
        Ok(entries)
    }

    /// The segment to append to and its end; a new one when the last is full.
    fn room(&mut self) -> Result<(u32, u64)> {
        let last = self.index.segments.last_key_value().map(|(n, end)| (*n, *end));
        if let Some((number, end)) = last
            && end < self.options.segment_bytes
        {
            return Ok((number, end));
        }
        if self.num_unindexed > 0 {
            self.write_index()?;
        }
        let number = last.map_or(1, |(n, _)| n + 1);
        let path = segment_path(&self.dir, number);
        write_atomic_in(&*self.fs, &path, &segment::head(number)).map_err(Error::io(&path))?;
        self.file = None;
        self.index.segments.insert(number, segment::HEAD_LEN);
        Ok((number, segment::HEAD_LEN))
    }

    /// Replaces the index file by what is committed now.
    pub(crate) fn write_index(&mut self) -> Result<()> {
        // What a killed process appended may be readable and yet not durable: the index must not vouch for it first.
        if let (None, Some(last)) = (&self.file, self.index.segments.keys().last()) {
            let path = segment_path(&self.dir, *last);
            let mut file = self.fs.append(&path).map_err(Error::io(&path))?;
            file.sync().map_err(Error::io(&path))?;
            self.file = Some(file);
        }
        let path = self.dir.join(FILE_NAME);
        let bytes = self.index.encode()?;
        write_atomic_in(&*self.fs, &path, &bytes).map_err(Error::io(&path))?;
        self.num_unindexed = 0;
        Ok(())
    }

    /// Removes every record of users that have a tombstone, then writes the index.
    pub(crate) fn purge(&mut self, keys: &BTreeSet<UserKey>) -> Result<u64> {
        self.guarded(|w| {
            w.file = None;
            let removed = super::forget::rewrite_segments(&*w.fs, &w.dir, keys)?;
            w.index = load(&*w.fs, &w.dir, w.rank)?.index;
            w.write_index()?;
            Ok(removed)
        })
    }

    /// Runs a step that writes; after its first failure nothing runs any more.
    fn guarded<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.failed {
            return Err(Error::Failed { rank: self.rank });
        }
        let result = step(self);
        self.failed = result.is_err();
        result
    }
}
