//! The index pass over a LaMP questions file: `[{id, input, profile: […], user_id?, output?}]`.
//!
//! Questions of one `user_id` make one user wherever they stand in the file; only their spans are
//! kept. A user of one question is summarised as it goes by; the others are read again at the end.

use super::LampTask;
use super::join::{Join, LeftOut, Matching};
use super::parse::{Question, Refusal};
use crate::data::elements::{Element, Elements, MAX_RECORD_BYTES};
use crate::data::pass::{Pass, span};
use crate::data::shelf::{Spans, read_span};
use crate::data::{DataError, Location, Problem, Span, UserSummary, What};
use crate::ids::{UserId, UserKey};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

/// The files of one set of users.
pub(in crate::data) struct Files<'a> {
    pub(in crate::data) task: LampTask,
    pub(in crate::data) questions: &'a Path,
    pub(in crate::data) outputs: Option<&'a Path>,
    pub(in crate::data) profiles: Option<&'a Path>,
}

/// A user while the file goes by.
struct Group {
    id: UserId,
    /// The file says whose questions these are; otherwise a second question of the id is refused.
    named: bool,
    spans: Spans,
    state: State,
}

enum State {
    /// One question, which is the whole user, and what was left out of it.
    Ready(Box<(UserSummary, LeftOut)>),
    /// One question, whose user does not qualify or fit.
    Left(Option<Box<What>>),
    /// Several questions, to be read again.
    Several,
}

struct Indexer<'a, 'b> {
    path: Arc<Path>,
    join: Join,
    pass: &'a mut Pass<'b>,
    asked: Matching,
    groups: Vec<Group>,
    by_key: BTreeMap<UserKey, usize>,
}

/// Reads the file once, and the questions of users with several of them a second time.
pub(in crate::data) fn index(
    files: &Files<'_>,
    pass: &mut Pass<'_>,
) -> Result<(Join, Vec<UserSummary>), DataError> {
    let join = Join::read(files.task, files.outputs, files.profiles, pass)?;
    let asked = Matching::new(join.answers.as_ref(), "questions without an answer");
    let path: Arc<Path> = Arc::from(files.questions);
    let (groups, by_key) = (Vec::new(), BTreeMap::new());
    let mut indexer = Indexer { path: path.clone(), join, pass, asked, groups, by_key };
    let mut elements = Elements::open(&path, None, MAX_RECORD_BYTES)?;
    loop {
        let element = elements.advance().map_err(DataError::io(&path))?;
        let place = span(elements.number, elements.start, elements.bytes);
        match element {
            Element::End => break,
            Element::Whole => indexer.question(elements.buffer(), place)?,
            Element::Broken(byte, reason) => {
                let what = What::Structure { byte, reason };
                indexer.refuse(Location::File, None, what)?;
            }
            Element::TooLong => {
                let what = What::RecordTooLong { limit_bytes: MAX_RECORD_BYTES };
                indexer.refuse(at(place), None, what)?;
            }
        }
    }
    let Indexer { join, pass, asked, groups, .. } = indexer;
    asked.finish(join.answers.as_ref(), "answers without a question", true, pass)?;
    let users = finish(&path, &join, groups, pass)?;
    match_profiles(&join, &users, pass)?;
    Ok((join, users))
}

fn at(span: Span) -> Location {
    Location::Record(span.number, span.start)
}

impl Indexer<'_, '_> {
    fn refuse(&mut self, at: Location, user: Option<UserId>, what: What) -> Result<(), DataError> {
        self.pass.refuse(Problem { file: self.path.clone(), at, user, what })
    }

    /// Puts a question to its user.
    fn question(&mut self, bytes: &[u8], place: Span) -> Result<(), DataError> {
        let (question, dropped_values) = match self.join.question(bytes) {
            Ok(parsed) => parsed,
            Err((user, what)) => return self.refuse(at(place), user, what),
        };
        let named = question.user.is_some();
        let id = question.user.clone().unwrap_or_else(|| UserId::new(&question.asked.id));
        if self.asked.ask(self.join.answers.as_ref(), &question.asked.id) {
            let what = What::DuplicateQuestion { id: question.asked.id };
            return self.refuse(at(place), Some(id), what);
        }
        let key = id.key();
        let Some(&index) = self.by_key.get(&key) else {
            // What is wrong inside a question is its own; the user may have others.
            let state = match self.single(question, dropped_values, place) {
                Ok(state) => state,
                Err((user, what)) => return self.refuse(at(place), user, what),
            };
            self.by_key.insert(key, self.groups.len());
            self.groups.push(Group { id, named, spans: Spans::One(place), state });
            return Ok(());
        };
        let group = &mut self.groups[index];
        if !(named && group.named) {
            let first = group.spans.first().map_or(Location::File, at);
            return self.refuse(at(place), Some(id), What::DuplicateUser { first });
        }
        // Parsed into a record of its own first, so that a bad question is refused by its place.
        if let Err((user, what)) = self.join.questions(vec![question]) {
            return self.refuse(at(place), user, what);
        }
        let group = &mut self.groups[index];
        group.spans.push(place);
        group.state = State::Several;
        Ok(())
    }

    /// A user of this question alone.
    fn single(
        &mut self,
        question: Question,
        dropped_values: u64,
        place: Span,
    ) -> Result<State, Refusal> {
        let (record, mut left) = self.join.questions(vec![question])?;
        left.tally.dropped_values += dropped_values;
        if let Some(what) = left.unfit(&record, self.pass) {
            return Ok(State::Left(Some(Box::new(what))));
        }
        let selected = self.pass.select(record, Spans::One(place));
        Ok(selected.map_or(State::Left(None), |user| State::Ready(Box::new((user, left)))))
    }
}

/// Reads users of several questions again and takes those that are selected, by first question.
fn finish(
    path: &Arc<Path>,
    join: &Join,
    groups: Vec<Group>,
    pass: &mut Pass<'_>,
) -> Result<Vec<UserSummary>, DataError> {
    let file = File::open(path).map_err(DataError::io(path))?;
    let mut file = BufReader::with_capacity(1 << 18, file);
    let mut users = Vec::new();
    for group in groups {
        if pass.part.is_full(users.len()) {
            break;
        }
        let first = group.spans.first().map_or(Location::File, at);
        let refusal = |user, what| Problem { file: path.clone(), at: first, user, what };
        let unusable = |user: &UserSummary, lacks: Option<(usize, What)>| {
            let (question, what) = lacks?;
            let at = user.spans.iter().nth(question).map_or(first, |span| at(*span));
            Some(Problem { file: path.clone(), at, user: Some(user.id.clone()), what })
        };
        match group.state {
            State::Ready(ready) => {
                let (user, left) = *ready;
                pass.left_out(left.tally, unusable(&user, left.lacks));
                users.push(user);
            }
            State::Left(None) => {}
            State::Left(Some(what)) => pass.refuse(refusal(Some(group.id), *what))?,
            State::Several => {
                let spans = group.spans.iter();
                let bytes = spans.map(|span| read_span(&mut file, path, *span));
                let bytes = bytes.collect::<Result<Vec<_>, _>>()?;
                match join.lamp(&bytes) {
                    Err((user, what)) => pass.refuse(refusal(user, what))?,
                    Ok((record, left)) => match left.unfit(&record, pass) {
                        Some(what) => pass.refuse(refusal(Some(group.id), what))?,
                        None => {
                            if let Some(user) = pass.select(record, group.spans) {
                                pass.left_out(left.tally, unusable(&user, left.lacks));
                                users.push(user);
                            }
                        }
                    },
                }
            }
        }
    }
    pass.part.check(users.len())?;
    Ok(users)
}

/// Every user that was taken must have its profile text, if there is a file of them.
fn match_profiles(
    join: &Join,
    users: &[UserSummary],
    pass: &mut Pass<'_>,
) -> Result<(), DataError> {
    let golds = join.profiles.as_ref().map(|p| &p.golds);
    let mut matching = Matching::new(golds, "users without a profile text");
    for user in users {
        // Two users cannot share an id.
        matching.ask(golds, user.id.as_str());
    }
    matching.finish(golds, "profile texts without a user", false, pass)
}
