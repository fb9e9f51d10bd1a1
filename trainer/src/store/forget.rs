//! Forgetting one user: a tombstone, then every segment that held a record of the user is rewritten without it.
//!
//! Interrupted anywhere, the tombstone stays and whoever opens the archive next finishes. The order: tombstone
//! (committed), index removed (its offsets are about to be wrong, and it holds the id), segments replaced one by one,
//! index written. The disk may keep old blocks that no file refers to; only the device can erase those.

use super::error::{Error, Result};
use super::fs::{AtomicFile, Fs, RealFs};
use super::index::{FILE_NAME, Status};
use super::rank::{ranks, segment_path};
use super::record::{Kind, Record};
use super::segment::{self, Group, HEAD_LEN};
use super::writer::{Options, Writer};
use crate::ids::UserKey;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forgotten {
    /// Ranks whose archive held the user.
    pub num_ranks: usize,
    /// Bytes by which the segments shrank.
    pub bytes: u64,
}

/// Removes every record of a user from a store, of every generation and rank, and leaves a tombstone: its key, a
/// generation, nothing else.
///
/// # Errors
/// [`Error::UnknownUser`] when no record is there; [`Error::Locked`] while a run writes.
pub fn forget(store: &Path, key: &UserKey) -> Result<Forgotten> {
    forget_in(&(Arc::new(RealFs) as Arc<dyn Fs>), store, key, Options::default())
}

/// [`forget`] on any file system.
///
/// # Errors
/// As [`forget`].
pub fn forget_in(
    fs: &Arc<dyn Fs>,
    store: &Path,
    key: &UserKey,
    options: Options,
) -> Result<Forgotten> {
    // All locks first: half of the ranks forgotten and half refused would be worse than a refusal.
    let writers = holding(fs, store, key, options)?;
    let entries = || writers.iter().filter_map(|w| w.users().get(key));
    let newest = entries().map(|e| e.generation).max().ok_or(Error::UnknownUser { key: *key })?;
    if entries().all(|e| e.status == Status::Forgotten) {
        return Ok(Forgotten { num_ranks: 0, bytes: 0 });
    }
    let mut result = Forgotten { num_ranks: writers.len(), bytes: 0 };
    for mut writer in writers {
        let tombstone = Record::new(Kind::Tombstone, *key, newest + 1, "", &[]);
        writer.append(std::iter::once(tombstone))?;
        result.bytes += writer.purge(&BTreeSet::from([*key]))?;
    }
    Ok(result)
}

/// Whether a store has a record of a user, a tombstone too; a store that is not there has none.
///
/// # Errors
/// [`Error::Locked`] while a run writes: [`forget`] would be refused.
pub fn may_forget(store: &Path, key: &UserKey) -> Result<bool> {
    let fs = Arc::new(RealFs) as Arc<dyn Fs>;
    Ok(!holding(&fs, store, key, Options::default())?.is_empty())
}

/// The archives with a record of a user, locked.
fn holding(fs: &Arc<dyn Fs>, store: &Path, key: &UserKey, options: Options) -> Result<Vec<Writer>> {
    let mut writers = Vec::new();
    for rank in ranks(&**fs, store)? {
        writers.push(Writer::open_in(Arc::clone(fs), store, rank, options)?);
    }
    writers.retain(|w| w.users().contains_key(key));
    Ok(writers)
}

/// Removes the index, then all records of `keys` but tombstones from the segments that have any; the bytes removed.
pub(crate) fn rewrite_segments(fs: &dyn Fs, dir: &Path, keys: &BTreeSet<UserKey>) -> Result<u64> {
    let names = fs.list(dir).map_err(Error::io(dir))?;
    if names.iter().any(|n| n == FILE_NAME) {
        fs.remove(&dir.join(FILE_NAME)).map_err(Error::io(dir))?;
        fs.sync_dir(dir).map_err(Error::io(dir))?;
    }
    let mut removed = 0;
    for number in names.iter().filter_map(|n| segment::parse_file_name(n)) {
        let path = segment_path(dir, number);
        let len = fs.len(&path).map_err(Error::io(&path))?;
        let mut holds = false;
        walk(fs, &path, len, &mut |_, record| {
            holds |= is_void(record, keys);
            Ok(())
        })?;
        if holds {
            rewrite(fs, &path, number, len, keys)?;
            removed += len - fs.len(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(removed)
}

fn is_void(record: &Record, keys: &BTreeSet<UserKey>) -> bool {
    let user = matches!(record.header.kind, Kind::Adapter | Kind::Quarantine);
    user && keys.contains(&record.header.key)
}

fn rewrite(
    fs: &dyn Fs,
    path: &Path,
    number: u32,
    len: u64,
    keys: &BTreeSet<UserKey>,
) -> Result<()> {
    let mut new = AtomicFile::begin(fs, path).map_err(Error::io(path))?;
    new.write(&segment::head(number)).map_err(Error::io(path))?;
    let (mut old, mut kept) = (Group::default(), Group::default());
    walk(fs, path, len, &mut |at, record| {
        if record.header.kind == Kind::Commit {
            if !std::mem::take(&mut old).is_committed_by(record) {
                let what = "the commit record does not match the records before it";
                return Err(Error::corrupt(path, at, None, what));
            }
            let group = std::mem::take(&mut kept);
            if group.len() == 0 {
                return Ok(());
            }
            return new.write(&group.commit()?.bytes).map_err(Error::io(path));
        }
        old.add(record);
        if is_void(record, keys) {
            return Ok(());
        }
        kept.add(record);
        new.write(&record.bytes).map_err(Error::io(path))
    })?;
    new.commit().map_err(Error::io(path))
}

/// Calls `f` with the place of each record of a segment that has no torn tail.
fn walk(
    fs: &dyn Fs,
    path: &Path,
    len: u64,
    f: &mut dyn FnMut(u64, &Record) -> Result<()>,
) -> Result<()> {
    let mut at = HEAD_LEN;
    while at < len {
        let record = Record::read(fs, path, at, len)?;
        let record = record.map_err(|(what, key)| Error::corrupt(path, at, key, what))?;
        f(at, &record)?;
        at += record.bytes.len() as u64;
    }
    Ok(())
}
