//! One data set of a run: an index pass over its sources, then users by stream or by number.

use super::jsonl::{Limits, Reader};
use super::lamp::{LampTask, QuestionFiles, UserFiles, index_oppu, index_questions};
use super::ml100k;
use super::pass::Pass;
use super::shelf::{Form, Shelf, Spans};
use super::source::{LampSet, OnBad, Source};
use super::{
    DataError, Fingerprint, Problem, Role, Selection, UserRecord, fingerprint, user_fingerprint,
};
use crate::ids::{UserId, UserKey};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

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
    /// Whether there is a text about the user.
    pub has_profile: bool,
    /// Bytes of the texts of all items, fields and their names, and of the profile text.
    pub bytes: u64,
    /// Hash of the record.
    pub fingerprint: Fingerprint,
    /// Where the record is, for sources that are read again.
    pub(super) spans: Spans,
}

/// What was left out of good records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Values of unknown keys that are no scalars (`null`, arrays, objects), and all unknown keys of
    /// an OPPU user.
    pub dropped_values: u64,
    /// History items that were twice in one profile, the same.
    pub repeated_items: u64,
    /// Items left out of the history of a LaMP user because a question of this user asks about them.
    pub leaked_items: u64,
    /// Items of LaMP's and OPPU's profiles without an id or a field that their task needs, as often as
    /// they stand in the questions of a user.
    pub unusable_items: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.dropped_values += other.dropped_values;
        self.repeated_items += other.repeated_items;
        self.leaked_items += other.leaked_items;
        self.unusable_items += other.unusable_items;
    }
}

/// The result of the index pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Personal users in file order.
    pub personal: Vec<UserSummary>,
    /// Population users in file order.
    pub population: Vec<UserSummary>,
    /// Bad records that were skipped, as they were found, personal files first.
    pub quarantined: Vec<Problem>,
    /// What was left out of good records.
    pub tally: Tally,
    /// For each user with [`Tally::unusable_items`] the first, with what it lacks, in file order,
    /// personal files first.
    pub unusable: Vec<Problem>,
    /// Hash of all good records; independent of their order.
    pub fingerprint: Fingerprint,
}

/// A stream of users in file order; bad records were dealt with by the index pass and do not appear.
pub type Records<'a> = Box<dyn Iterator<Item = Result<UserRecord, DataError>> + 'a>;

#[derive(Debug)]
enum Held {
    Files { personal: Box<Shelf>, population: Option<Box<Shelf>> },
    Memory { personal: Vec<UserRecord>, population: Vec<UserRecord> },
}

/// An indexed data set. Records stay in their files; ml-100k (2 MB) is held.
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
/// The system's; under [`OnBad::Stop`] the first bad record; a bad table, a file of another task, a
/// selection of nothing or of more users than there are.
pub fn load(source: &Source, on_bad: OnBad) -> Result<Dataset, DataError> {
    let (mut quarantined, mut tally, mut unusable) = (Vec::new(), Tally::default(), Vec::new());
    let (records, personal, population) = if let Source::Ml100k { path, selection } = source {
        let ml100k::Chosen { personal, population } = ml100k::read(path, selection)?;
        let summaries = |users: &[UserRecord]| -> Vec<_> {
            users.iter().map(|u| UserSummary::new(u, Spans::Nowhere)).collect()
        };
        let (ours, others) = (summaries(&personal), summaries(&population));
        (Held::Memory { personal, population }, ours, others)
    } else {
        let selection = selection(source);
        selection.check()?;
        let mut pass = Pass {
            quarantined: &mut quarantined,
            tally: &mut tally,
            unusable: &mut unusable,
            on_bad,
            role: Role::Personal,
            part: selection.part(Role::Personal),
            excluded: Arc::default(),
        };
        let (personal, ours) = index_personal(source, &mut pass)?;
        pass.role = Role::Population;
        pass.part = selection.part(Role::Population);
        pass.excluded = Arc::new(ours.iter().map(|u| u.key).collect::<BTreeSet<_>>());
        let (population, others) = match index_population(source, &mut pass)? {
            Some((shelf, others)) => (Some(Box::new(shelf)), others),
            None => (None, Vec::new()),
        };
        (Held::Files { personal: Box::new(personal), population }, ours, others)
    };
    let pairs = |users: &[UserSummary]| -> Vec<_> {
        users.iter().map(|u| (u.key, u.fingerprint)).collect()
    };
    let fingerprint = fingerprint(&pairs(&personal), &pairs(&population));
    let index = Index { personal, population, quarantined, tally, unusable, fingerprint };
    Ok(Dataset { index, records })
}

fn selection(source: &Source) -> Selection {
    match source {
        Source::Jsonl { selection, .. }
        | Source::Lamp { selection, .. }
        | Source::Oppu { selection, .. } => selection.clone(),
        // Its selection is its own.
        Source::Ml100k { .. } => Selection::default(),
    }
}

type Indexed = Result<(Shelf, Vec<UserSummary>), DataError>;

fn index_personal(source: &Source, pass: &mut Pass<'_>) -> Indexed {
    match source {
        Source::Jsonl { personal, max_line_bytes, .. } => jsonl(personal, *max_line_bytes, pass),
        Source::Lamp { task, personal, .. } => lamp(*task, personal, pass),
        Source::Oppu { task, personal, labels, profiles, .. } => {
            oppu(*task, personal, labels.as_deref(), profiles.as_deref(), pass)
        }
        Source::Ml100k { path, .. } => Err(DataError::NoMl100k { tried: vec![path.clone()] }),
    }
}

fn index_population(
    source: &Source,
    pass: &mut Pass<'_>,
) -> Result<Option<(Shelf, Vec<UserSummary>)>, DataError> {
    if pass.part.is_full(0) {
        return Ok(None);
    }
    match source {
        Source::Jsonl { population: Some(path), max_line_bytes, .. } => {
            jsonl(path, *max_line_bytes, pass).map(Some)
        }
        Source::Lamp { task, population: Some(set), .. } => lamp(*task, set, pass).map(Some),
        Source::Oppu { task, population: Some(path), population_profiles, .. } => {
            oppu(*task, path, None, population_profiles.as_deref(), pass).map(Some)
        }
        _ => pass.part.check(0).map(|()| None),
    }
}

fn jsonl(path: &Path, max_line_bytes: usize, pass: &mut Pass<'_>) -> Indexed {
    let (role, excluded) = (pass.role, pass.excluded.clone());
    let mut reader = Reader::open(path, Limits { role, max_line_bytes, excluded })?;
    let mut users = Vec::new();
    while !pass.part.is_full(users.len()) {
        match reader.next() {
            None => break,
            Some(Ok(user)) => users.extend(pass.select(user, Spans::One(reader.span()))),
            Some(Err(DataError::Bad(problem))) => pass.refuse(problem)?,
            Some(Err(other)) => return Err(other),
        }
    }
    pass.part.check(users.len())?;
    Ok((Shelf::new(path, Form::Jsonl, pass), users))
}

fn lamp(task: LampTask, set: &LampSet, pass: &mut Pass<'_>) -> Indexed {
    let (outputs, profiles) = (set.outputs.as_deref(), set.profiles.as_deref());
    let files = QuestionFiles { task, questions: &set.questions, outputs, profiles };
    let (join, users) = index_questions(&files, pass)?;
    Ok((Shelf::new(&set.questions, Form::Lamp(join), pass), users))
}

fn oppu(
    task: LampTask,
    path: &Path,
    answers: Option<&Path>,
    profiles: Option<&Path>,
    pass: &mut Pass<'_>,
) -> Indexed {
    let (join, users) = index_oppu(&UserFiles { task, users: path, answers, profiles }, pass)?;
    Ok((Shelf::new(path, Form::Oppu(join), pass), users))
}

impl UserSummary {
    pub(super) fn new(user: &UserRecord, spans: Spans) -> Self {
        let items = user.history.iter().chain(&user.queries);
        let fields = items.flat_map(|i| &i.fields).map(|(k, v)| (k.len() + v.len()) as u64);
        Self {
            id: user.id.clone(),
            key: user.id.key(),
            num_history: user.history.len(),
            num_queries: user.queries.len(),
            has_profile: user.profile.is_some(),
            bytes: fields.sum::<u64>() + user.profile.as_ref().map_or(0, |p| p.len() as u64),
            fingerprint: user_fingerprint(user),
            spans,
        }
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

    fn shelf(&self, role: Role) -> Option<&Shelf> {
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
        let Some(shelf) = self.shelf(role) else {
            return Box::new(self.held(role).iter().cloned().map(Ok));
        };
        let mut file = match shelf.open() {
            Ok(file) => file,
            Err(e) => return Box::new(std::iter::once(Err(e))),
        };
        let summaries = self.summaries(role).iter();
        Box::new(summaries.map(move |user| shelf.read(&mut file, user)))
    }

    fn read(&self, role: Role, index: usize) -> Result<UserRecord, DataError> {
        let users = self.summaries(role);
        let none = DataError::NoSuchUser { index, len: users.len() };
        let Some(user) = users.get(index) else { return Err(none) };
        match self.shelf(role) {
            Some(shelf) => shelf.read(&mut shelf.open()?, user),
            None => self.held(role).get(index).cloned().ok_or(none),
        }
    }
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
