//! What an index pass over a file of users carries along: problems, counts, who was seen.

use super::selection::Part;
use super::shelf::Spans;
use super::{DataError, OnBad, Problem, Role, Span, Tally, UserRecord, UserSummary, What};
use crate::ids::UserKey;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The state that the files of one load share.
pub(super) struct Pass<'a> {
    /// Bad records so far, in the order of their discovery.
    pub(super) quarantined: &'a mut Vec<Problem>,
    /// What was left out of good records.
    pub(super) tally: &'a mut Tally,
    /// The first unusable item of each user that has some.
    pub(super) unusable: &'a mut Vec<Problem>,
    pub(super) on_bad: OnBad,
    /// What this file's users are for.
    pub(super) role: Role,
    /// Which of them are taken.
    pub(super) part: Part,
    /// Users refused as [`What::InBothSets`].
    pub(super) excluded: Arc<BTreeSet<UserKey>>,
}

impl Pass<'_> {
    /// Lists a problem, or ends the load with it.
    pub(super) fn refuse(&mut self, problem: Problem) -> Result<(), DataError> {
        match self.on_bad {
            OnBad::Stop => Err(DataError::Bad(problem)),
            OnBad::Quarantine => {
                self.quarantined.push(problem);
                Ok(())
            }
        }
    }

    /// Counts what was left out of the record of a user who is taken, and lists its first unusable item.
    pub(super) fn left_out(&mut self, tally: Tally, unusable: Option<Problem>) {
        self.tally.add(&tally);
        self.unusable.extend(unusable);
    }

    /// Why a record's user cannot be one of this file's, if so.
    pub(super) fn unfit(&self, record: &UserRecord) -> Option<What> {
        if self.excluded.contains(&record.id.key()) {
            return Some(What::InBothSets);
        }
        unfit(self.role, record)
    }

    /// The summary of what is selected of a record, or nothing if the user does not qualify.
    pub(super) fn select(&self, record: UserRecord, spans: Spans) -> Option<UserSummary> {
        self.part.cut(record).map(|record| UserSummary::new(&record, spans))
    }
}

/// Why a record's lists do not fit its role, if so.
pub(super) fn unfit(role: Role, record: &UserRecord) -> Option<What> {
    match role {
        Role::Personal if record.history.is_empty() => Some(What::EmptyHistory),
        Role::Population if record.queries.is_empty() => Some(What::NoQueries),
        _ => None,
    }
}

/// The place of the record an iterator stands at.
pub(super) fn span(number: u64, start: u64, bytes: u64) -> Span {
    Span { number, start, bytes }
}
