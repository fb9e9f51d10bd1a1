//! What can be wrong with an event log, by name.

use crate::data::error::quoted;

/// Why a row of a log is refused, or the header of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadEvent {
    /// A file that should start with a header is empty.
    #[error("the file is empty: it has no header")]
    NoHeader,
    /// A column asked for that the header does not have, or has twice.
    #[error("the header has the column {} {found} times: {}", quoted(column), listed(header))]
    Column {
        /// The column.
        column: String,
        /// How often it is there.
        found: usize,
        /// The header, at most 32 columns of it.
        header: Vec<String>,
    },
    /// A column asked for by number that is not there.
    #[error("column number {number} (from 0) is asked for, rows have {width} columns")]
    ColumnNumber {
        /// The number, from 0.
        number: usize,
        /// Columns there are.
        width: usize,
    },
    /// A row that is wider or narrower than the header, or than the first row where there is no header.
    #[error("the row has {found} columns, not {expected}")]
    Width {
        /// Columns of the header or of the first row.
        expected: usize,
        /// Columns of the row.
        found: usize,
    },
    /// A cell that is not UTF-8.
    #[error("column {}: not UTF-8 at byte {byte} of the cell", quoted(column))]
    NotUtf8 {
        /// The column.
        column: String,
        /// Offset in the cell, from 0.
        byte: usize,
    },
    /// A cell that must not be empty.
    #[error("column {} is empty or missing", quoted(column))]
    Empty {
        /// The column.
        column: String,
    },
    /// A name beyond the cap.
    #[error("column {} has {bytes} bytes, at most {limit_bytes} are allowed", quoted(column))]
    TooLong {
        /// The column.
        column: String,
        /// Its length.
        bytes: usize,
        /// The cap.
        limit_bytes: usize,
    },
    /// A time that is not written as the format says, or beyond the years 1 to 9999.
    #[error("column {}: {} is no time, written as {expected}", quoted(column), quoted(text))]
    Time {
        /// The column.
        column: String,
        /// The cell.
        text: String,
        /// How times are written.
        expected: &'static str,
    },
}

fn listed(header: &[String]) -> String {
    header.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
}

/// Why a log as a whole gives no data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventsError {
    /// An option without sense.
    #[error("{key}: {reason}")]
    Option {
        /// The option's key.
        key: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// Keys that are no [`super::Format`].
    #[error("{0}")]
    Keys(String),
    /// A preset that is none.
    #[error("no preset is called {}; there are {}", quoted(name), super::PRESETS.join(", "))]
    Preset {
        /// The name asked for.
        name: String,
    },
    /// Nobody has events enough.
    #[error("no user is left: {short_users} have fewer than {min_events} events")]
    NoUsers {
        /// Users left out.
        short_users: u64,
        /// Events a user must have.
        min_events: usize,
    },
    /// The training parts of users who are not cold hold no window.
    #[error(
        "nothing to learn: the training parts of the users who are not cold hold no event with an intent and one before it"
    )]
    NoTraining,
    /// A user is listed as cold who is not in the log, or has too few events.
    #[error("the cold user {} is not in the log, or has too few events", quoted(user))]
    NoColdUser {
        /// The id.
        user: String,
    },
    /// A vocabulary from elsewhere has other columns than the log.
    #[error("the vocabulary has the columns {}, the log {}", listed(expected), listed(found))]
    OtherColumns {
        /// Those of the vocabulary.
        expected: Vec<String>,
        /// Those of the log.
        found: Vec<String>,
    },
}
