//! Which users and items of files a run takes.

use super::{DataError, Role, UserRecord};
use serde::{Deserialize, Serialize};

/// Which users and items are taken; what is unset takes all.
///
/// *Order*: file order. The rest of the program sees only what is selected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// The first this many personal users that qualify.
    pub personal_users: Option<usize>,
    /// The first this many population users.
    pub population_users: Option<usize>,
    /// A personal user qualifies with at least this many history items, counted before `max_history`.
    pub min_history: Option<usize>,
    /// Of a personal user's history the newest this many.
    pub max_history: Option<usize>,
    /// Of a personal user's queries the first this many, those next to the history.
    pub max_queries: Option<usize>,
    /// Of a population user's queries the newest this many; the history before them stays whole.
    pub max_population_items: Option<usize>,
}

impl Selection {
    /// Refuses what selects nothing.
    pub(super) fn check(&self) -> Result<(), DataError> {
        let refuse = |none, why| if none { Err(DataError::Selection(why)) } else { Ok(()) };
        refuse(self.max_history == Some(0), "max_history must be at least 1")?;
        refuse(self.max_population_items == Some(0), "max_population_items must be at least 1")?;
        refuse(
            self.personal_users == Some(0) && self.population_users == Some(0),
            "no users are asked for",
        )
    }

    /// The part that is about the users of one role.
    pub(super) fn part(&self, role: Role) -> Part {
        let all = usize::MAX;
        match role {
            Role::Personal => Part {
                users: self.personal_users,
                min_history: self.min_history.unwrap_or(0),
                history: self.max_history.unwrap_or(all),
                first_queries: self.max_queries.unwrap_or(all),
                last_queries: all,
            },
            Role::Population => Part {
                users: self.population_users,
                min_history: 0,
                history: all,
                first_queries: all,
                last_queries: self.max_population_items.unwrap_or(all),
            },
        }
    }
}

/// A selection as it is for one file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Users at most.
    pub(super) users: Option<usize>,
    /// History items at least.
    pub(super) min_history: usize,
    history: usize,
    first_queries: usize,
    last_queries: usize,
}

impl Part {
    /// Whether so many users are all that are asked for.
    pub(super) fn is_full(&self, users: usize) -> bool {
        self.users.is_some_and(|most| users >= most)
    }

    /// The record's selected items, or nothing if the user does not qualify.
    pub(super) fn cut(&self, mut record: UserRecord) -> Option<UserRecord> {
        if record.history.len() < self.min_history {
            return None;
        }
        let (history, queries) = (&mut record.history, &mut record.queries);
        history.drain(..history.len().saturating_sub(self.history));
        queries.truncate(self.first_queries);
        queries.drain(..queries.len().saturating_sub(self.last_queries));
        Some(record)
    }

    /// Refuses fewer users than were asked for.
    pub(super) fn check(&self, found: usize) -> Result<(), DataError> {
        match self.users {
            Some(wanted) if found < wanted => {
                Err(DataError::NotEnoughUsers { wanted, found, min_history: self.min_history })
            }
            _ => Ok(()),
        }
    }
}
