//! The index pass over an OPPU users file: `[{user_id, profile: […], query: [{id, input, gold}]}]`.

use super::LampTask;
use super::golds::Golds;
use super::join::{Join, Matching};
use crate::data::elements::{Element, Elements, MAX_RECORD_BYTES};
use crate::data::pass::{Pass, span};
use crate::data::shelf::Spans;
use crate::data::{DataError, Location, Problem, UserSummary, What};
use crate::ids::UserKey;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The files of one set of users.
pub(in crate::data) struct Files<'a> {
    pub(in crate::data) task: LampTask,
    pub(in crate::data) users: &'a Path,
    pub(in crate::data) answers: Option<&'a Path>,
    pub(in crate::data) profiles: Option<&'a Path>,
}

/// Reads the file once (twice with profile texts) and keeps a summary of every user.
pub(in crate::data) fn index(
    files: &Files<'_>,
    pass: &mut Pass<'_>,
) -> Result<(Join, Vec<UserSummary>), DataError> {
    let path: Arc<Path> = Arc::from(files.users);
    let mut join = Join::read(files.task, files.answers, files.profiles, pass)?;
    match_profiles(&mut join, &path, pass)?;
    let mut elements = Elements::open(&path, None, MAX_RECORD_BYTES)?;
    let mut asked = Matching::new(join.answers.as_ref(), "questions without an answer");
    let mut seen: BTreeMap<UserKey, Location> = BTreeMap::new();
    let mut users = Vec::new();
    let mut whole = false;
    while !pass.part.is_full(users.len()) {
        let element = elements.advance().map_err(DataError::io(&path))?;
        let at = Location::Record(elements.number, elements.start);
        let bad = |user, what| Problem { file: path.clone(), at, user, what };
        match element {
            Element::End => {
                whole = true;
                break;
            }
            Element::Broken(byte, reason) => {
                let (at, what) = (Location::File, What::Structure { byte, reason });
                pass.refuse(Problem { file: path.clone(), at, user: None, what })?;
                continue;
            }
            Element::TooLong => {
                let what = What::RecordTooLong { limit_bytes: MAX_RECORD_BYTES };
                pass.refuse(bad(None, what))?;
                continue;
            }
            Element::Whole => {}
        }
        let (record, left) = match join.oppu(elements.buffer(), elements.number) {
            Ok(joined) => joined,
            Err((user, what)) => {
                pass.refuse(bad(user, what))?;
                continue;
            }
        };
        let (id, key) = (record.id.clone(), record.id.key());
        // Asked for even by a record that is refused below: it is its user that does not fit.
        let golds = join.answers.as_ref();
        let twice = record.queries.iter().filter(|q| asked.ask(golds, &q.id)).map(|q| &q.id);
        let twice = twice.last().cloned();
        let what = match seen.get(&key) {
            Some(first) => Some(What::DuplicateUser { first: *first }),
            None => {
                twice.map(|id| What::DuplicateQuestion { id }).or_else(|| left.unfit(&record, pass))
            }
        };
        if let Some(what) = what {
            pass.refuse(bad(Some(id), what))?;
            continue;
        }
        seen.insert(key, at);
        let place = span(elements.number, elements.start, elements.bytes);
        if let Some(summary) = pass.select(record, Spans::One(place)) {
            pass.left_out(left.tally, left.lacks.map(|(_, what)| bad(Some(id), what)));
            users.push(summary);
        }
    }
    asked.finish(join.answers.as_ref(), "answers without a question", whole, pass)?;
    pass.part.check(users.len())?;
    Ok((join, users))
}

/// Decides how users find their profile texts: by id if every user's id has one, by the position of
/// the record if no id has one and there are as many texts as records. Otherwise the ids are listed
/// and users without a text go without.
fn match_profiles(join: &mut Join, path: &Path, pass: &mut Pass<'_>) -> Result<(), DataError> {
    let Some(profiles) = &mut join.profiles else { return Ok(()) };
    let golds: &Golds = &profiles.golds;
    let mut elements = Elements::open(path, None, MAX_RECORD_BYTES)?;
    let mut matching = Matching::new(Some(golds), "users without a profile text");
    let (mut users, mut matched) = (0u64, 0u64);
    loop {
        match elements.advance().map_err(DataError::io(path))? {
            Element::Whole => {}
            Element::TooLong => continue,
            Element::Broken(..) | Element::End => break,
        }
        // A record without an id is refused by the index pass.
        let Some(id) = super::parse::user_id_of(elements.buffer()) else { continue };
        users += 1;
        matched += u64::from(golds.number(&id).is_some());
        matching.ask(Some(golds), &id);
    }
    if matched == 0 && elements.number == golds.len() as u64 {
        profiles.by_index = users > 0;
        return Ok(());
    }
    if matched == users {
        return Ok(());
    }
    matching.finish(Some(golds), "profile texts without a user", true, pass)
}
