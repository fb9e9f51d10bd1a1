//! Walking everything and naming each damaged place.

use super::adapter::Adapter;
use super::error::{Error, Result};
use super::fs::{Fs, RealFs, is_temporary};
use super::index::{Entry, FILE_NAME, Index, Place, Status, absorb};
use super::rank::{folder_name, parse_folder_name, ranks, segment_path};
use super::record::{HEADER_LEN, Header, Kind, MAGIC, Record};
use super::segment::{self, Group, HEAD_LEN};
use crate::ids::UserKey;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A damaged place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// Whose record, if known.
    pub user: Option<UserKey>,
    /// What is wrong.
    pub what: String,
}

/// What a walk found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Users whose newest record is an adapter.
    pub num_done: usize,
    /// Users whose newest record is a quarantine.
    pub num_quarantined: usize,
    /// Users forgotten.
    pub num_forgotten: usize,
    /// Records read, of every generation.
    pub num_records: usize,
    /// Bytes read.
    pub num_bytes: u64,
    /// Damage. Empty means: everything that was committed is there.
    pub problems: Vec<Problem>,
    /// Remarks that are no damage: the tail of a commit that did not happen, temporary and foreign files.
    pub notes: Vec<String>,
}

/// Reads every byte of a store and checks every checksum, group, index entry and adapter; goes on after damage.
///
/// # Errors
/// Only when a folder or file cannot be read at all.
pub fn verify(store: &Path) -> Result<Report> {
    verify_in(&RealFs, store)
}

/// [`verify`] on any file system.
///
/// # Errors
/// As [`verify`].
pub fn verify_in(fs: &dyn Fs, store: &Path) -> Result<Report> {
    let mut walk = Walk { fs, report: Report::default(), newest: BTreeMap::new() };
    for rank in ranks(fs, store)? {
        walk.rank(&store.join(folder_name(rank)), rank)?;
    }
    if let Ok(names) = fs.list(store) {
        let foreign = names.iter().filter(|n| parse_folder_name(n).is_none());
        walk.report.notes.extend(foreign.map(|n| format!("{n:?} is not part of the store")));
    }
    for entry in walk.newest.values() {
        *match entry.status {
            Status::Done => &mut walk.report.num_done,
            Status::Quarantined { .. } => &mut walk.report.num_quarantined,
            Status::Forgotten => &mut walk.report.num_forgotten,
        } += 1;
    }
    Ok(walk.report)
}

struct Walk<'a> {
    fs: &'a dyn Fs,
    report: Report,
    newest: BTreeMap<UserKey, Entry>,
}

impl Walk<'_> {
    fn problem(&mut self, path: &Path, offset: u64, user: Option<UserKey>, what: impl ToString) {
        let (path, what) = (path.to_owned(), what.to_string());
        self.report.problems.push(Problem { path, offset, user, what });
    }

    fn error(&mut self, error: Error) -> Result<()> {
        match error {
            Error::Corrupt { path, offset, owner, what } => {
                self.problem(&path, offset, owner.0, what);
                Ok(())
            }
            other => Err(other),
        }
    }

    fn rank(&mut self, dir: &Path, rank: u32) -> Result<()> {
        let names = self.fs.list(dir).map_err(Error::io(dir))?;
        let path = dir.join(FILE_NAME);
        let mut index = None;
        let mut last = 0;
        for name in &names {
            if name == FILE_NAME {
                let bytes = self.fs.read(&path).map_err(Error::io(&path))?;
                self.report.num_bytes += bytes.len() as u64;
                match Index::decode(&path, &bytes, rank) {
                    Ok(read) => index = Some(read),
                    Err(e) => self.error(e)?,
                }
            } else if let Some(number) = segment::parse_file_name(name) {
                last = last.max(number);
            } else if is_temporary(name) {
                self.report
                    .notes
                    .push(format!("rank {rank}: {name:?} was left by an interrupted write"));
            } else if name != "lock" {
                self.report.notes.push(format!("rank {rank}: {name:?} is not part of the store"));
            }
        }
        let known = index.as_ref().and_then(|i| i.segments.keys().last().copied()).unwrap_or(0);
        let mut here = BTreeMap::new();
        for number in 1..=last.max(known) {
            let path = segment_path(dir, number);
            if names.contains(&segment::file_name(number)) {
                let committed = index.as_ref().and_then(|i| i.segments.get(&number).copied());
                self.segment(&path, (rank, number), committed, &mut here)?;
            } else {
                self.problem(&path, 0, None, "the segment is missing");
            }
        }
        if let Some(index) = index {
            self.compare(&path, &index, &here);
        }
        for entry in here.into_values() {
            self.newest(dir, entry)?;
        }
        Ok(())
    }

    fn newest(&mut self, dir: &Path, entry: Entry) -> Result<()> {
        let (path, place, key) = (segment_path(dir, entry.place.segment), entry.place, entry.key);
        match absorb(&mut self.newest, entry) {
            Err(e @ Error::Conflict { .. }) => self.problem(&path, place.offset, Some(key), e),
            other => {
                other?;
            }
        }
        Ok(())
    }

    /// Walks a segment; `committed` is how far the index says it goes.
    fn segment(
        &mut self,
        path: &Path,
        (rank, number): (u32, u32),
        committed: Option<u64>,
        here: &mut BTreeMap<UserKey, Entry>,
    ) -> Result<()> {
        if let Err(e) = segment::check_head(self.fs, path, number) {
            self.error(e)?;
        }
        let len = self.fs.len(path).map_err(Error::io(path))?;
        self.report.num_bytes += len;
        let committed = committed.unwrap_or(HEAD_LEN);
        if len < committed {
            self.problem(path, len, None, "the segment ends before what was committed");
        }
        // Damage is put down only once it is clear that it was committed: nothing after the last commit record was.
        let (mut at, mut end, mut group) = (HEAD_LEN, HEAD_LEN, Some(Group::default()));
        let mut held: Vec<Problem> = Vec::new();
        let mut pending: Vec<Entry> = Vec::new();
        while at < len {
            let record = match Record::read(self.fs, path, at, len)? {
                Ok(record) => record,
                Err((what, user)) => {
                    let (path, what) = (path.to_owned(), what.to_owned());
                    held.push(Problem { path: path.clone(), offset: at, user, what });
                    group = None;
                    at = next_header(self.fs, &path, at + 1, len)?;
                    continue;
                }
            };
            let next = at + record.bytes.len() as u64;
            self.report.num_records += 1;
            if record.header.kind == Kind::Commit {
                if group.take().is_some_and(|g| !g.is_committed_by(&record)) {
                    self.problem(path, at, None, "the commit record does not match its records");
                }
                self.report.problems.append(&mut held);
                for entry in pending.drain(..) {
                    if let Err(e) = absorb(here, entry) {
                        self.problem(path, at, None, e);
                    }
                }
                (group, end) = (Some(Group::default()), next);
            } else {
                let place = Place { rank, segment: number, offset: at };
                match segment::entry(&record, place, path) {
                    Ok(entry) => pending.push(entry),
                    Err(e) => self.error(e)?,
                }
                if let Some(group) = &mut group {
                    group.add(&record);
                }
                let Header { kind, key, .. } = record.header;
                if kind == Kind::Adapter
                    && let Err(what) = Adapter::decode(&key, record.payload())
                {
                    let path = path.to_owned();
                    held.push(Problem { path, offset: at, user: Some(key), what });
                }
            }
            at = next;
        }
        if end < committed {
            self.report.problems.append(&mut held);
            self.problem(path, end, None, "the last commit the index knows of is not there");
        } else if end < len {
            let (file, bytes) = (path.display(), len - end);
            self.report
                .notes
                .push(format!("{file}: {bytes} bytes of a commit that did not happen"));
        }
        Ok(())
    }

    /// Every entry of the index must be the newest record found, except for newer ones the index does not know yet.
    fn compare(&mut self, path: &Path, index: &Index, here: &BTreeMap<UserKey, Entry>) {
        for (key, entry) in &index.entries {
            let found = here.get(key);
            let same = found.is_some_and(|f| f == entry || f.generation > entry.generation);
            if !same {
                let what = "the index names a record that is not in the segments";
                self.problem(path, entry.place.offset, Some(*key), what);
            }
        }
        for (key, entry) in here {
            let end = index.segments.get(&entry.place.segment).copied().unwrap_or(0);
            if entry.place.offset < end && !index.entries.contains_key(key) {
                let what = "a committed record is not in the index";
                self.problem(path, entry.place.offset, Some(*key), what);
            }
        }
    }
}

/// Where the next plausible record begins, or the file's end.
fn next_header(fs: &dyn Fs, path: &Path, from: u64, len: u64) -> Result<u64> {
    const WINDOW: u64 = 1 << 20;
    let mut start = from;
    while start + HEADER_LEN as u64 <= len {
        let bytes =
            usize::try_from((len - start).min(WINDOW + HEADER_LEN as u64)).unwrap_or(HEADER_LEN);
        let window = fs.read_at(path, start, bytes).map_err(Error::io(path))?;
        for i in 0..=window.len() - HEADER_LEN {
            if window[i..i + 4] == MAGIC && Header::decode(&window[i..]).is_ok() {
                return Ok(start + i as u64);
            }
        }
        start += (window.len() - HEADER_LEN + 1) as u64;
    }
    Ok(len)
}
