//! One data set of a run: an index pass over its sources, then users by stream or by number.

use super::jsonl::{Limits, Reader, Span};
use super::ml100k::{self, Ml100k};
use super::{DataError, Fingerprint, Problem, Role, UserRecord, fingerprint, user_fingerprint};
use crate::ids::{UserId, UserKey};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the users come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// Myriad JSONL files.
    Jsonl {
        /// Users who get adapters.
        personal: PathBuf,
        /// Other users, for the population stage.
        population: Option<PathBuf>,
        /// Longest line in bytes.
        max_line_bytes: usize,
    },
    /// MovieLens 100k as the `recbole` package carries it.
    Ml100k {
        /// The folder; [`ml100k::read`] says which are tried.
        path: PathBuf,
        /// Which users and items.
        selection: Ml100k,
    },
}

/// What to do with a bad record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBad {
    /// The first one ends the load with its error.
    Stop,
    /// Skip it and list it in [`Index::quarantined`].
    Quarantine,
}

/// What planning needs to know of a user without holding the records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSummary {
    /// The id.
    pub id: UserId,
    /// Its key.
    pub key: UserKey,
    /// Items of the history.
    pub num_history: usize,
    /// Queries.
    pub num_queries: usize,
    /// Bytes of the texts of all items: fields and their names.
    pub bytes: u64,
    /// Hash of the record.
    pub fingerprint: Fingerprint,
    /// Where the record is, for sources that are read again.
    span: Option<Span>,
}

/// The result of the index pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Personal users in file order.
    pub personal: Vec<UserSummary>,
    /// Population users in file order.
    pub population: Vec<UserSummary>,
    /// Bad records that were skipped, in file order, personal file first.
    pub quarantined: Vec<Problem>,
    /// Hash of all good records; independent of their order.
    pub fingerprint: Fingerprint,
}

/// A stream of users in file order; bad records were dealt with by the index pass and do not appear.
pub type Records<'a> = Box<dyn Iterator<Item = Result<UserRecord, DataError>> + 'a>;

#[derive(Debug)]
enum Held {
    Files { personal: PathBuf, population: Option<PathBuf> },
    Memory { personal: Vec<UserRecord>, population: Vec<UserRecord> },
}

/// An indexed data set. JSONL records stay in their files; ml-100k (2 MB) is held.
#[derive(Debug)]
pub struct Dataset {
    index: Index,
    records: Held,
}

/// Indexes a source.
///
/// Population users that are also personal users are refused: the population stage must not see them.
///
/// # Errors
/// The system's; under [`OnBad::Stop`] the first bad record; for ml-100k a bad table or selection.
pub fn load(source: &Source, on_bad: OnBad) -> Result<Dataset, DataError> {
    let mut quarantined = Vec::new();
    let (records, personal, population) = match source {
        Source::Ml100k { path, selection } => {
            let chosen = ml100k::read(path, selection)?;
            let summaries = |users: &[UserRecord]| users.iter().map(|u| summary(u, None)).collect();
            let (personal, population) =
                (summaries(&chosen.personal), summaries(&chosen.population));
            let ml100k::Chosen { personal: ours, population: others } = chosen;
            (Held::Memory { personal: ours, population: others }, personal, population)
        }
        Source::Jsonl { personal, population, max_line_bytes } => {
            let mut limits =
                Limits { max_line_bytes: *max_line_bytes, ..Limits::new(Role::Personal) };
            let ours = index_file(personal, limits.clone(), on_bad, &mut quarantined)?;
            limits.role = Role::Population;
            limits.excluded = Arc::new(ours.iter().map(|u| u.key).collect::<BTreeSet<_>>());
            let others = match population {
                Some(path) => index_file(path, limits, on_bad, &mut quarantined)?,
                None => Vec::new(),
            };
            let (personal, population) = (personal.clone(), population.clone());
            (Held::Files { personal, population }, ours, others)
        }
    };
    let pairs = |users: &[UserSummary]| -> Vec<_> {
        users.iter().map(|u| (u.key, u.fingerprint)).collect()
    };
    let fingerprint = fingerprint(&pairs(&personal), &pairs(&population));
    Ok(Dataset { index: Index { personal, population, quarantined, fingerprint }, records })
}

fn index_file(
    path: &Path,
    limits: Limits,
    on_bad: OnBad,
    quarantined: &mut Vec<Problem>,
) -> Result<Vec<UserSummary>, DataError> {
    let mut reader = Reader::open(path, limits)?;
    let mut users = Vec::new();
    while let Some(record) = reader.next() {
        match record {
            Ok(user) => users.push(summary(&user, Some(reader.span()))),
            Err(DataError::Bad(problem)) if on_bad == OnBad::Quarantine => {
                quarantined.push(problem)
            }
            Err(other) => return Err(other),
        }
    }
    Ok(users)
}

fn summary(user: &UserRecord, span: Option<Span>) -> UserSummary {
    let items = user.history.iter().chain(&user.queries);
    let bytes = items.flat_map(|i| &i.fields).map(|(k, v)| (k.len() + v.len()) as u64).sum();
    UserSummary {
        id: user.id.clone(),
        key: user.id.key(),
        num_history: user.history.len(),
        num_queries: user.queries.len(),
        bytes,
        fingerprint: user_fingerprint(user),
        span,
    }
}

impl Dataset {
    /// The index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Personal users, streamed in file order.
    pub fn users(&self) -> Records<'_> {
        self.stream(Role::Personal)
    }

    /// Population users, streamed in file order.
    pub fn population(&self) -> Records<'_> {
        self.stream(Role::Population)
    }

    /// One personal user by its number in [`Index::personal`]: a rank reads only the users it owns.
    ///
    /// # Errors
    /// The system's; [`DataError::Changed`] if the record's hash is not the index's.
    pub fn user(&self, index: usize) -> Result<UserRecord, DataError> {
        self.read(Role::Personal, index)
    }

    /// One population user by its number in [`Index::population`].
    ///
    /// # Errors
    /// As [`Dataset::user`].
    pub fn population_user(&self, index: usize) -> Result<UserRecord, DataError> {
        self.read(Role::Population, index)
    }

    fn summaries(&self, role: Role) -> &[UserSummary] {
        match role {
            Role::Personal => &self.index.personal,
            Role::Population => &self.index.population,
        }
    }

    fn path(&self, role: Role) -> Option<&Path> {
        match (&self.records, role) {
            (Held::Files { personal, .. }, Role::Personal) => Some(personal),
            (Held::Files { population, .. }, Role::Population) => population.as_deref(),
            (Held::Memory { .. }, _) => None,
        }
    }

    fn held(&self, role: Role) -> &[UserRecord] {
        match (&self.records, role) {
            (Held::Memory { personal, .. }, Role::Personal) => personal,
            (Held::Memory { population, .. }, Role::Population) => population,
            (Held::Files { .. }, _) => &[],
        }
    }

    fn stream(&self, role: Role) -> Records<'_> {
        let Some(path) = self.path(role) else {
            return Box::new(self.held(role).iter().cloned().map(Ok));
        };
        let mut file = match open(path) {
            Ok(file) => file,
            Err(e) => return Box::new(std::iter::once(Err(e))),
        };
        let summaries = self.summaries(role).iter();
        Box::new(summaries.map(move |user| read_at(&mut file, path, user)))
    }

    fn read(&self, role: Role, index: usize) -> Result<UserRecord, DataError> {
        let users = self.summaries(role);
        let none = DataError::NoSuchUser { index, len: users.len() };
        let Some(user) = users.get(index) else { return Err(none) };
        match self.path(role) {
            Some(path) => read_at(&mut open(path)?, path, user),
            None => self.held(role).get(index).cloned().ok_or(none),
        }
    }
}

fn open(path: &Path) -> Result<BufReader<File>, DataError> {
    let file = File::open(path).map_err(DataError::io(path))?;
    Ok(BufReader::with_capacity(1 << 18, file))
}

/// Reads the record of a summary again and proves that it is the same.
fn read_at(
    file: &mut BufReader<File>,
    path: &Path,
    user: &UserSummary,
) -> Result<UserRecord, DataError> {
    let changed = || DataError::Changed { path: path.to_owned(), user: user.id.clone() };
    let span = user.span.ok_or_else(changed)?;
    // Going relative keeps the buffer when users are read in file order.
    let here = file.stream_position().map_err(DataError::io(path))?;
    match i64::try_from(i128::from(span.start) - i128::from(here)) {
        Ok(distance) => file.seek_relative(distance).map_err(DataError::io(path))?,
        Err(_) => drop(file.seek(SeekFrom::Start(span.start)).map_err(DataError::io(path))?),
    }
    let mut line = Vec::new();
    file.take(span.bytes).read_to_end(&mut line).map_err(DataError::io(path))?;
    let record = super::json::parse_record(&line).map_err(|_| changed())?;
    if user_fingerprint(&record) != user.fingerprint {
        return Err(changed());
    }
    Ok(record)
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
