//! What a person did, in time order, before anybody decided what is held out.
//!
//! Owns: the form in which corpora that are no benchmark end ([`Corpus`], [`Timeline`]) and the cut of
//! a timeline into history and queries ([`Cut`]). Must never know: which corpus it was.
//! Start reading at [`Cut::record`].

use super::{Item, UserRecord};
use crate::ids::UserId;
use std::collections::BTreeMap;

/// One thing a person did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// As the history has it.
    pub item: Item,
    /// As a question with its answer; `None` where it makes none.
    pub query: Option<Item>,
}

/// A person's events, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    /// The person.
    pub id: UserId,
    /// Oldest first.
    pub events: Vec<Event>,
}

/// How a timeline becomes a user: which part is held out, how much is kept, who has enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Per cent of the events, the latest ones, that are held out: rounded down, at least one event.
    pub held_out_percent: u8,
    /// Left out with fewer history items than this (before `max_history` cuts).
    pub min_history: usize,
    /// The most recent this many history items are kept.
    pub max_history: usize,
    /// Left out with fewer queries than this (before `max_queries` cuts).
    pub min_queries: usize,
    /// The first this many queries are kept: those next to the history.
    pub max_queries: usize,
}

impl Cut {
    /// Where the held-out part of so many events begins.
    fn split(&self, n: usize) -> usize {
        let percent = usize::from(self.held_out_percent.min(100));
        n - (n / 100 * percent + n % 100 * percent / 100).max(1).min(n)
    }

    /// History items and queries there are, before anything is cut off or left out.
    pub fn sizes(&self, timeline: &Timeline) -> (usize, usize) {
        let (history, later) = timeline.events.split_at(self.split(timeline.events.len()));
        (history.len(), later.iter().filter(|event| event.query.is_some()).count())
    }

    /// The user, or `None` where the person has too little.
    ///
    /// History: the events before the held-out part. Queries: the held-out events that make one.
    pub fn record(&self, timeline: Timeline) -> Option<UserRecord> {
        let (num_history, num_queries) = self.sizes(&timeline);
        if num_history < self.min_history || num_queries < self.min_queries {
            return None;
        }
        let Timeline { id, events: mut history } = timeline;
        let later = history.split_off(num_history);
        let queries = later.into_iter().filter_map(|event| event.query);
        let queries = queries.take(self.max_queries).collect();
        history.drain(..history.len().saturating_sub(self.max_history));
        let history = history.into_iter().map(|e| e.item).collect();
        Some(UserRecord { id, history, queries, profile: None })
    }
}

/// A whole corpus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Corpus {
    /// People with at least one event, by their hashed ids.
    pub timelines: Vec<Timeline>,
    /// What the corpus' own rules leave out: rule -> how often. No error.
    pub left_out: BTreeMap<&'static str, u64>,
    /// What could not be read as the format says, the first [`Corpus::MAX_LISTED`] of it.
    pub unreadable: Vec<Unreadable>,
    /// How many there are, listed or not.
    pub num_unreadable: u64,
}

impl Corpus {
    /// Unreadable records kept in full.
    pub const MAX_LISTED: usize = 1000;

    pub(super) fn leave_out(&mut self, rule: &'static str) {
        *self.left_out.entry(rule).or_default() += 1;
    }

    pub(super) fn unreadable(&mut self, place: String, what: String) {
        self.num_unreadable += 1;
        if self.unreadable.len() < Self::MAX_LISTED {
            self.unreadable.push(Unreadable { place, what });
        }
    }
}

/// A record that is not what its format says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct Unreadable {
    /// File and record.
    pub place: String,
    /// What is wrong.
    pub what: String,
}

/// A person's id: 16 hexadecimal digits of BLAKE3 of what the corpus calls the person, under `domain`.
///
/// It keeps a name out of files and logs. It is no secret: who has the name can compute it.
pub(super) fn hashed(domain: &str, person: &str) -> UserId {
    let hash = blake3::derive_key(domain, person.as_bytes());
    UserId::new(&hash[..8].iter().map(|b| format!("{b:02x}")).collect::<String>())
}

/// An item of `fields`.
pub(super) fn item<const N: usize>(id: String, fields: [(&str, &str); N]) -> Item {
    Item { id, fields: fields.map(|(name, text)| (name.to_owned(), text.to_owned())).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events `0..n`; odd ones make no query.
    fn timeline(n: usize) -> Timeline {
        let event = |i: usize| Event {
            item: item(i.to_string(), [("text", "t")]),
            query: i.is_multiple_of(2).then(|| item(i.to_string(), [("text", "t"), ("gold", "g")])),
        };
        Timeline { id: UserId::new("u"), events: (0..n).map(event).collect() }
    }

    const ALL: Cut = Cut {
        held_out_percent: 20,
        min_history: 1,
        max_history: usize::MAX,
        min_queries: 1,
        max_queries: usize::MAX,
    };

    fn ids(items: &[Item]) -> Vec<&str> {
        items.iter().map(|i| i.id.as_str()).collect()
    }

    #[test]
    fn the_latest_part_is_held_out() {
        let user = ALL.record(timeline(11)).unwrap();
        assert_eq!(ids(&user.history), ["0", "1", "2", "3", "4", "5", "6", "7", "8"]);
        assert_eq!(ids(&user.queries), ["10"]);
        let half = Cut { held_out_percent: 50, max_history: 2, max_queries: 1, ..ALL };
        let user = half.record(timeline(10)).unwrap();
        assert_eq!((ids(&user.history), ids(&user.queries)), (vec!["3", "4"], vec!["6"]));
        // All of them, and more than all.
        for held_out_percent in [100, 255] {
            let user = Cut { held_out_percent, min_history: 0, ..ALL }.record(timeline(3)).unwrap();
            assert_eq!((user.history.len(), ids(&user.queries)), (0, vec!["0", "2"]));
        }
    }

    #[test]
    fn who_has_too_little_is_left_out() {
        assert!(ALL.record(timeline(0)).is_none());
        assert!(ALL.record(timeline(1)).is_none(), "one event leaves no history");
        assert!(ALL.record(timeline(2)).is_none(), "the held-out one makes no query");
        assert!(ALL.record(timeline(3)).is_some());
        let short = Cut { min_history: 8, max_history: 2, ..ALL };
        assert!(short.record(timeline(9)).is_some(), "max_history cuts after min_history looks");
        assert!(Cut { min_history: 9, ..ALL }.record(timeline(9)).is_none());
        assert!(Cut { min_queries: 2, ..ALL }.record(timeline(9)).is_none());
    }

    #[test]
    fn ids_are_hashes_under_a_domain() {
        let id = hashed("a", "Jane Doe <jane@example.org>");
        assert_eq!(id.as_str().len(), 16);
        assert!(id.as_str().bytes().all(|b| b.is_ascii_hexdigit()));
        assert_ne!(id, hashed("b", "Jane Doe <jane@example.org>"));
    }
}
