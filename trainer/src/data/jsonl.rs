//! Myriad JSONL, one user a line: `{"id": …, "history": [item, …],
//! "queries": [item, …]}`, and optionally `"profile"`, a text about the user.
//!
//! Owns: the streaming [`Reader`] and [`write_user`]. An item is an object of strings, numbers and
//! booleans; `id` is its id (`h<index>`, `q<index>` when absent), the rest are fields. Numbers become
//! text: integers as written, other numbers in the shortest form that reads back, `4.0` as `4`.
//! Memory: one line and its record, and 40 bytes a user to know an id again.

use super::json::parse_record;
use super::lines::{Line, Lines};
use super::{DataError, Item, Location, Problem, Role, UserRecord, What};
use crate::ids::UserKey;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Arc;

/// The cap on a line when none is configured: 64 MiB.
pub const MAX_LINE_BYTES: usize = 64 << 20;

/// What a reader accepts.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Which lists may be empty.
    pub role: Role,
    /// Longest line in bytes, without its newline.
    pub max_line_bytes: usize,
    /// Users refused as [`What::InBothSets`].
    pub excluded: Arc<BTreeSet<UserKey>>,
}

impl Limits {
    /// The default limits for a role.
    pub fn new(role: Role) -> Self {
        Self { role, max_line_bytes: MAX_LINE_BYTES, excluded: Arc::default() }
    }
}

/// Where a record stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Line or record, from 1.
    pub number: u64,
    /// Byte offset of its first byte.
    pub start: u64,
    /// Its bytes; a line's with its newline.
    pub bytes: u64,
}

/// Iterates over the users of one input; goes on after a bad record, stops after a system error.
pub struct Reader<R> {
    lines: Lines<R>,
    file: Arc<Path>,
    limits: Limits,
    seen: BTreeMap<UserKey, u64>,
    failed: bool,
}

impl<R> std::fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("file", &self.file)
            .field("line", &self.lines.number)
            .finish()
    }
}

impl Reader<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn open(path: &Path, limits: Limits) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io(path))?;
        Ok(Self::new(BufReader::with_capacity(1 << 18, file), path, limits))
    }
}

impl<R: BufRead> Reader<R> {
    /// Reads from any input; `name` stands for the file in messages.
    pub fn new(input: R, name: &Path, limits: Limits) -> Self {
        let lines = Lines::new(input, limits.max_line_bytes);
        Self { lines, file: Arc::from(name), limits, seen: BTreeMap::new(), failed: false }
    }

    /// Where the record last returned stands.
    pub fn span(&self) -> Span {
        let (start, end) = (self.lines.start, self.lines.end);
        Span { number: self.lines.number, start, bytes: end - start }
    }

    /// The record of the line in the buffer.
    fn record(&mut self, too_long: bool) -> Result<UserRecord, DataError> {
        let line = self.lines.number;
        let at = Location::Line(line);
        let problem =
            |user, what| DataError::Bad(Problem { file: self.file.clone(), at, user, what });
        let bytes = self.lines.buffer.as_slice();
        if too_long {
            let limit_bytes = self.limits.max_line_bytes;
            return Err(problem(None, What::LineTooLong { limit_bytes }));
        }
        if line == 1 && bytes.starts_with(b"\xEF\xBB\xBF") {
            return Err(problem(None, What::ByteOrderMark));
        }
        let record = parse_record(bytes).map_err(|(user, what)| problem(user, what))?;
        let key = record.id.key();
        let what = match self.limits.role {
            _ if self.seen.contains_key(&key) => {
                Some(What::DuplicateUser { first: Location::Line(self.seen[&key]) })
            }
            _ if self.limits.excluded.contains(&key) => Some(What::InBothSets),
            Role::Personal if record.history.is_empty() => Some(What::EmptyHistory),
            Role::Population if record.queries.is_empty() => Some(What::NoQueries),
            _ => None,
        };
        if let Some(what) = what {
            return Err(problem(Some(record.id), what));
        }
        self.seen.insert(key, line);
        Ok(record)
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<UserRecord, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.failed {
                return None;
            }
            let too_long = match self.lines.advance() {
                Ok(Line::End) => return None,
                Ok(Line::Whole) => false,
                Ok(Line::TooLong) => true,
                Err(source) => {
                    self.failed = true;
                    return Some(Err(DataError::Io { path: self.file.to_path_buf(), source }));
                }
            };
            let blank = self.lines.buffer.iter().all(u8::is_ascii_whitespace);
            if too_long || !blank {
                return Some(self.record(too_long));
            }
        }
    }
}

/// Writes one user as one line; reading it back gives an equal record.
///
/// # Errors
/// The writer's.
pub fn write_user(out: &mut dyn Write, record: &UserRecord) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &RecordLine(record))?;
    out.write_all(b"\n")
}

struct RecordLine<'a>(&'a UserRecord);

impl Serialize for RecordLine<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("id", &self.0.id)?;
        if let Some(profile) = &self.0.profile {
            map.serialize_entry("profile", profile)?;
        }
        map.serialize_entry("history", &ItemLines(&self.0.history))?;
        map.serialize_entry("queries", &ItemLines(&self.0.queries))?;
        map.end()
    }
}

struct ItemLines<'a>(&'a [Item]);

impl Serialize for ItemLines<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.0.iter().map(ItemLine))
    }
}

struct ItemLine<'a>(&'a Item);

impl Serialize for ItemLine<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(1 + self.0.fields.len()))?;
        map.serialize_entry("id", &self.0.id)?;
        for (key, value) in &self.0.fields {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
#[path = "jsonl_tests.rs"]
mod tests;
