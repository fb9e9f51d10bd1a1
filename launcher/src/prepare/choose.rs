//! Which users are personal, which train the population, which are left out.

use super::source::{Candidate, Opened};
use crate::cli::PrepareArgs;
use crate::exit::Fails;
use anyhow::Context;
use std::collections::BTreeMap;
use trainer::data::{Role, UserRecord};
use trainer::ids::UserKey;

/// The users taken, by key.
pub(super) struct Choice {
    roles: BTreeMap<UserKey, Role>,
    max_history: usize,
    max_queries: usize,
}

/// `--split-population`: so many users, or this share of those who qualify.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Others {
    Number(usize),
    Share(f64),
}

impl Others {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let number = text.parse().ok().map(Self::Number);
        let share = text.parse().ok().filter(|share| 0.0 < *share && *share < 1.0);
        number
            .or(share.map(Self::Share))
            .with_context(|| {
                format!("--split-population {text:?} is no number of users and no share")
            })
            .input("write a whole number such as 100 or a share such as 0.3")
    }

    /// Of so many users who qualify; a share is rounded down.
    fn of(self, qualified: usize) -> usize {
        match self {
            Self::Number(number) => number,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a share below 1 of a number of users that fits in memory"
            )]
            Self::Share(share) => (share * qualified as f64) as usize,
        }
    }
}

impl Choice {
    /// Chooses among the users who qualify.
    ///
    /// They are ordered by their random keys under the seed, then by user key: personal users are the
    /// first, population users the last, so the personal ones stay the same whatever the share.
    pub(super) fn of(source: &Opened, args: &PrepareArgs) -> anyhow::Result<Self> {
        let others = args.split_population.as_deref().map(Others::parse).transpose()?;
        if others.is_some() && source.has_population() {
            let error = anyhow::anyhow!("the population is a file of its own");
            return Err(error).input("leave --split-population out");
        }
        let min_queries = args.min_queries.unwrap_or(usize::from(source.has_events()));
        let qualifies = |user: &Candidate| {
            user.num_history >= args.min_history && user.num_queries >= min_queries
        };
        let mut order: Vec<([u32; 2], UserKey)> = source
            .candidates()
            .iter()
            .filter(|user| qualifies(user))
            .map(|user| (user.key.random_key(args.seed), user.key))
            .collect();
        order.sort_unstable();
        let num_others = others.map_or(0, |others| others.of(order.len()));
        let left = order.len().checked_sub(num_others);
        let wanted = args.users.or(left);
        let enough = matches!((left, wanted), (Some(left), Some(wanted)) if wanted <= left);
        let (true, Some(wanted)) = (enough, wanted) else {
            let asked = args.users.unwrap_or(0).saturating_add(num_others);
            let error = anyhow::anyhow!("{asked} users are asked for, {} qualify", order.len());
            return Err(error).input("--min-history and --min-queries say who qualifies");
        };
        let first_other = order.len() - num_others;
        let personal = order.iter().take(wanted).map(|(_, key)| (*key, Role::Personal));
        let population = order.iter().skip(first_other).map(|(_, key)| (*key, Role::Population));
        Ok(Self {
            roles: personal.chain(population).collect(),
            max_history: args.max_history.unwrap_or(usize::MAX),
            max_queries: args.max_queries.unwrap_or(usize::MAX),
        })
    }

    /// What a user is taken for.
    pub(super) fn role(&self, user: &UserKey) -> Option<Role> {
        self.roles.get(user).copied()
    }

    /// The record of a user of this role with the newest history items and the first queries that are
    /// asked for; a population user keeps its queries and must have one.
    pub(super) fn take(&self, role: Role, mut record: UserRecord) -> Option<UserRecord> {
        if self.role(&record.id.key()) != Some(role) {
            return None;
        }
        let older = record.history.len().saturating_sub(self.max_history);
        record.history.drain(..older);
        if role == Role::Personal {
            record.queries.truncate(self.max_queries);
        }
        (role == Role::Personal || !record.queries.is_empty()).then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_numbers() {
        assert_eq!(Others::parse("12").unwrap(), Others::Number(12));
        assert_eq!(Others::parse("0.25").unwrap().of(10), 2);
        assert_eq!(Others::parse("0.999").unwrap().of(1), 0);
        for wrong in ["", "1.0", "1.5", "-1", "-0.5", "nan", "inf", "half", "0.0"] {
            assert!(Others::parse(wrong).is_err(), "{wrong}");
        }
    }
}
