//! Event logs: what people did and when, as rows of small numbers, and the windows a model learns from.
//!
//! Owns the types that every source of events gives ([`EventData`]) and every model, baseline and statistic takes, and
//! the way there from files, or from nothing ([`generator`]): [`read`] goes from rows of text (`rows.rs`) to sorted, cleaned names ([`RawLog`]) to
//! numbers (`encode.rs`). Knows nothing of models. Start reading at [`EventData`], then [`Format`] and [`Split`].
//!
//! What is decided where data are unclear:
//! - *Order*: by moment, to the millisecond; ties in the order of the files. Rows may come in any order, and how rows
//!   of different people stand to each other changes nothing.
//! - *Time zones*: time of day and weekday are read from the clock that was written down, or from one zone for all
//!   ([`TimeZone`]).
//! - *Duplicates, repeats, gaps, people with few events*: [`Format`], in the order that it gives.
//! - *Unknown names* (not in the training parts of the people who are not cold): events and contexts are number 0; an
//!   intent is none, so that the event is no target. All are counted by part ([`Tally`]).
//! - *Bad rows* stop, or are skipped and counted ([`crate::data::OnBad`]); a header without the columns always stops.

mod clock;
mod csv_rows;
mod encode;
mod error;
mod format;
pub mod generator;
mod genre;
mod json_row;
mod log;
mod presets;
mod raw;
mod rows;
mod split;
mod statistics;
mod write;

pub use clock::{TimeFormat, TimeZone};
pub use error::{BadEvent, EventsError};
pub use format::{ColumnRef, Columns, Duplicates, Format, Intent, Keep, Kind, Unmapped};
pub use log::{
    CONTEXTS, Column, EVENT, EventData, EventUser, Part, TIME, UNKNOWN, Vocabulary, WEEKDAY, Window,
};
pub use presets::{PRESETS, preset};
pub use raw::{RawLog, Tally, open};
pub use split::Split;
pub use statistics::{PartStatistics, Spread, Statistics, statistics};
pub use write::write;

use super::{DataError, OnBad};
use std::path::PathBuf;

/// Reads a log: [`open`], then [`RawLog::encode`] with a vocabulary of its own.
///
/// # Errors
/// Theirs.
pub fn read(
    paths: &[PathBuf],
    format: &Format,
    split: &Split,
    on_bad: OnBad,
) -> Result<(EventData, Tally), DataError> {
    read_with(paths, format, split, None, on_bad)
}

/// Reads a log for a model that has a vocabulary already.
///
/// # Errors
/// Those of [`open`] and [`RawLog::encode`].
pub fn read_with(
    paths: &[PathBuf],
    format: &Format,
    split: &Split,
    vocabulary: Option<&Vocabulary>,
    on_bad: OnBad,
) -> Result<(EventData, Tally), DataError> {
    let (log, mut tally) = open(paths, format, on_bad)?;
    let data = log.encode(format, split, vocabulary, &mut tally)?;
    Ok((data, tally))
}
#[cfg(test)]
#[path = "fixture_tests.rs"]
mod fixture_tests;
#[cfg(test)]
#[path = "hostile_tests.rs"]
mod hostile_tests;
#[cfg(test)]
#[path = "property_tests.rs"]
mod property_tests;
