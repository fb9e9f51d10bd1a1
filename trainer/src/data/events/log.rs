//! The event logs of many people in one form, whatever they were read from.

use crate::ids::UserId;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Column of the time of day, in buckets from midnight, local time.
pub const TIME: usize = 0;
/// Column of the weekday, Monday is 0, local time.
pub const WEEKDAY: usize = 1;
/// Column of the event.
pub const EVENT: usize = 2;
/// The first column of context (location and others), if there is one.
pub const CONTEXTS: usize = 3;

/// The name of value 0 of the event and of every context.
pub const UNKNOWN: &str = "<unknown>";

/// One column of an event's row: its name and how many values it takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// `time`, `weekday`, `event`, then the contexts under their names.
    pub name: String,
    /// Rows hold numbers below this.
    pub size: u32,
    /// Names of the values; empty for time and weekday. Value 0 of the event and of every context is [`UNKNOWN`]:
    /// not seen in the data that vocabularies are made from.
    pub values: Vec<String>,
}

/// What the numbers of all rows mean; the same on every rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vocabulary {
    /// The columns, in the order of a row: [`TIME`], [`WEEKDAY`], [`EVENT`], contexts.
    pub columns: Vec<Column>,
    /// Names of the intents by number. There is no unknown intent: a target whose intent was never seen in the
    /// training data is no target, and counted.
    pub intents: Vec<String>,
}

/// One person's events in order of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventUser {
    /// Who.
    pub id: UserId,
    /// Seconds since 1970, local time of the person: in the order of the moments, so that a clock set back for
    /// winter steps back here.
    pub times: Vec<i64>,
    /// One row of [`Vocabulary::columns`] numbers for each event, row-major.
    pub rows: Vec<u32>,
    /// Intent of each event as a target, by number; `None` where it is none of the known ones.
    pub intents: Vec<Option<u32>>,
    /// The first event that the window of each event as a target may hold, or empty where that is always event 0:
    /// windows do not reach back over a gap ([`super::Format::gap_seconds`]). Never falls, never beyond the target.
    pub first: Vec<usize>,
    /// Targets of the training part, of the validation part and of the test part: ranges of event numbers, in order
    /// of time, one after another.
    pub parts: [Range<usize>; 3],
    /// Whether the person is kept out of the population stage, and met only as an individual.
    pub cold: bool,
}

/// A part of a person's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The earliest.
    Train,
    /// In between.
    Validation,
    /// The latest.
    Test,
}

impl Part {
    /// All, in order of time.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];
}

/// What a model sees, and what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window<'a> {
    /// The rows of the events before the target, oldest first: at least one, at most the window's length.
    pub rows: &'a [u32],
    /// The intent that follows.
    pub intent: u32,
    /// Number of the target event in its person's log.
    pub target: usize,
}

/// The logs of all people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventData {
    /// What the numbers mean.
    pub vocabulary: Vocabulary,
    /// The people, in order of their ids.
    pub users: Vec<EventUser>,
}

impl EventUser {
    /// The row of an event.
    pub fn row(&self, event: usize) -> &[u32] {
        let width = self.width();
        &self.rows[event * width..(event + 1) * width]
    }

    fn width(&self) -> usize {
        self.rows.len() / self.times.len().max(1)
    }

    /// The first event that the window of a target may hold, however long windows are.
    pub fn first(&self, target: usize) -> usize {
        self.first.get(target).copied().unwrap_or(0)
    }

    /// The windows of a part, of at most `length` events each, in order of time. The first event of a log or after a
    /// gap is no target, and neither is one whose intent is not known.
    pub fn windows(&self, part: Part, length: usize) -> impl Iterator<Item = Window<'_>> {
        let width = self.width();
        self.parts[part as usize].clone().filter_map(move |target| {
            let intent = self.intents[target]?;
            let start = target.saturating_sub(length).max(self.first(target));
            (start < target).then(|| Window {
                rows: &self.rows[start * width..target * width],
                intent,
                target,
            })
        })
    }
}
