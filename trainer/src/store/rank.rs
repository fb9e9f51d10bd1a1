//! One rank's archive as found on disk: index, segments, and what a crash left after them.

use super::error::{Error, Result};
use super::fs::Fs;
use super::index::{self, Index};
use super::segment;
use crate::ids::UserKey;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Name of a rank's folder.
pub(crate) fn folder_name(rank: u32) -> String {
    format!("rank-{rank:04}")
}

/// The rank in a folder's name; `None` for any other.
pub(crate) fn parse_folder_name(name: &str) -> Option<u32> {
    let rank = name.strip_prefix("rank-")?.parse().ok()?;
    (folder_name(rank) == name).then_some(rank)
}

/// Ranks with a folder in a store, rising; none when there is no store yet.
pub(crate) fn ranks(fs: &dyn Fs, store: &Path) -> Result<Vec<u32>> {
    let names = match fs.list(store) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io(store))?,
    };
    let mut ranks: Vec<u32> = names.iter().filter_map(|n| parse_folder_name(n)).collect();
    ranks.sort_unstable();
    Ok(ranks)
}

/// What lies in a rank's folder.
#[derive(Debug, Default)]
pub(crate) struct RankState {
    /// Everything committed, in the index or after it.
    pub(crate) index: Index,
    /// Records found beyond what the index file knew.
    pub(crate) num_unindexed: usize,
    /// Whether there is an index file.
    pub(crate) has_index: bool,
    /// The segment with a torn tail, which can only be the last.
    pub(crate) torn: Option<u32>,
    /// Users with a tombstone whose earlier records are still there: forgetting was interrupted.
    pub(crate) half_forgotten: BTreeSet<UserKey>,
}

/// Reads a rank's folder, changing nothing.
///
/// # Errors
/// [`Error::Corrupt`] where something committed is missing or damaged.
pub(crate) fn load(fs: &dyn Fs, dir: &Path, rank: u32) -> Result<RankState> {
    let names = fs.list(dir).map_err(Error::io(dir))?;
    let numbers: BTreeSet<u32> = names.iter().filter_map(|n| segment::parse_file_name(n)).collect();
    let mut state = RankState::default();
    let index_path = dir.join(index::FILE_NAME);
    if names.iter().any(|n| n == index::FILE_NAME) {
        let bytes = fs.read(&index_path).map_err(Error::io(&index_path))?;
        state.index = Index::decode(&index_path, &bytes, rank)?;
        state.has_index = true;
    }
    // Segments are numbered from 1 without gaps, so a missing one shows even without the index.
    let last = numbers.last().max(state.index.segments.keys().last()).copied().unwrap_or(0);
    if let Some(missing) = (1..=last).find(|n| !numbers.contains(n)) {
        let what = "the segment is missing";
        return Err(Error::corrupt(&segment_path(dir, missing), 0, None, what));
    }
    for number in &numbers {
        let path = segment_path(dir, *number);
        let known = state.index.segments.get(number).copied();
        let from = known.unwrap_or(segment::HEAD_LEN);
        let len = fs.len(&path).map_err(Error::io(&path))?;
        if len < from {
            let what = "the segment ends before what was committed";
            return Err(Error::corrupt(&path, len, None, what));
        }
        let scan = segment::scan(fs, &path, (rank, *number), from)?;
        if scan.torn_bytes > 0 {
            if numbers.last() != Some(number) {
                let what = "uncommitted bytes in a segment that is not the last";
                return Err(Error::corrupt(&path, scan.end, None, what));
            }
            state.torn = Some(*number);
        }
        state.index.segments.insert(*number, scan.end);
        state.num_unindexed += scan.entries.len();
        for entry in scan.entries {
            let key = entry.key;
            if index::absorb(&mut state.index.entries, entry)? {
                state.half_forgotten.insert(key);
            }
        }
    }
    Ok(state)
}

/// Path of a segment in a rank's folder.
pub(crate) fn segment_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(segment::file_name(number))
}
