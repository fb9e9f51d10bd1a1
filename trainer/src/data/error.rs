//! What can be wrong with data, by name, with the place.

use super::events::{BadEvent, EventsError};
use super::lamp::{LampTask, NoMarker};
use crate::ids::UserId;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An error of this module.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The system refused a read or a write; reading cannot go on.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// One record is bad; the records after it can still be read.
    #[error(transparent)]
    Bad(#[from] Problem),
    /// A file changed between the index pass and a later read.
    #[error("{}: user {user} is not what the index pass saw: the file was changed during the run", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// The user looked for.
        user: UserId,
    },
    /// A user is asked for that the data set does not have.
    #[error("no user number {index}: the data set has {len}")]
    NoSuchUser {
        /// The number asked for.
        index: usize,
        /// Users there are.
        len: usize,
    },
    /// No folder tried holds the ml-100k files.
    #[error("ml-100k.inter and ml-100k.item not found; tried: {}", tried.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    NoMl100k {
        /// The folders tried.
        tried: Vec<PathBuf>,
    },
    /// No place tried holds the files of a corpus.
    #[error("{what} not found; tried: {}", tried.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    NotThere {
        /// The files looked for.
        what: &'static str,
        /// The places tried.
        tried: Vec<PathBuf>,
    },
    /// A line of a ml-100k table is not what its header promises.
    #[error("{}:{line}: {what}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
    /// Fewer users meet the conditions than the selection asks for.
    #[error(
        "the selection asks for {wanted} users with at least {min_history} history items, {found} qualify"
    )]
    NotEnoughUsers {
        /// Users asked for: personal and population in ml-100k, of one file otherwise.
        wanted: usize,
        /// Users that qualify.
        found: usize,
        /// The condition.
        min_history: usize,
    },
    /// A selection parameter makes no sense.
    #[error("selection: {0}")]
    Selection(&'static str),
    /// An option of an event log makes no sense, or nothing is left of the log.
    #[error(transparent)]
    Events(#[from] EventsError),
}

impl DataError {
    /// Wraps a system error with its file.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// A line, from 1.
    Line(u64),
    /// A record of a JSON file: its number, from 1, and the byte offset at which it starts.
    Record(u64, u64),
    /// The file as a whole.
    File,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "on line {line}"),
            Self::Record(number, byte) => write!(f, "record {number} at byte {byte}"),
            Self::File => write!(f, "in the file"),
        }
    }
}

/// One bad record: where, whose, what. Printed as `file:line: user ID: what`, or
/// `file: record N at byte B: user ID: what`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: Arc<Path>,
    /// The place.
    pub at: Location,
    /// The user, when the record could be read that far.
    pub user: Option<UserId>,
    /// What is wrong.
    pub what: What,
}

impl std::error::Error for Problem {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        match self.at {
            Location::Line(line) => write!(f, ":{line}: ")?,
            Location::Record(..) => write!(f, ": {}: ", self.at)?,
            Location::File => write!(f, ": ")?,
        }
        if let Some(user) = &self.user {
            write!(f, "user {user}: ")?;
        }
        write!(f, "{}", self.what)
    }
}

/// Why a record is refused. Texts taken from the data are escaped and cut when printed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum What {
    /// The file starts with a byte order mark.
    #[error("the file starts with a byte order mark; save it as UTF-8 without one")]
    ByteOrderMark,
    /// Bytes that are not UTF-8.
    #[error("not UTF-8 at byte {byte} of the record")]
    InvalidUtf8 {
        /// Offset in the record, from 0.
        byte: usize,
    },
    /// A line beyond the cap; it is skipped without being held in memory.
    #[error("the line is longer than {limit_bytes} bytes")]
    LineTooLong {
        /// The cap.
        limit_bytes: usize,
    },
    /// Not JSON: syntax, a number such as 1e999, a lone surrogate, text after the record.
    #[error("not valid JSON at column {column}: {message}")]
    Json {
        /// Where the parser stopped: bytes from the start of the line or record, from 1.
        column: usize,
        /// The parser's reason.
        message: String,
    },
    /// JSON of another shape at a place that needs this one.
    #[error("{place} must be {expected}, found {found}")]
    WrongType {
        /// The place, such as `history[3]`.
        place: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// The same key twice in one object.
    #[error("{place} has the key {} twice", quoted(key))]
    DuplicateKey {
        /// The object.
        place: String,
        /// The key.
        key: String,
    },
    /// A key of a record other than `id`, `history`, `queries`, `profile`.
    #[error(
        "unknown key {} in the record; it has `id`, `history`, `queries` and `profile`",
        quoted(key)
    )]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A record without an id.
    #[error("the record has no `id`")]
    MissingId,
    /// An id that is the empty text.
    #[error("{place} is empty")]
    EmptyId {
        /// The id's place.
        place: String,
    },
    /// An id beyond the cap.
    #[error("{place} has {bytes} bytes, at most {limit_bytes} are allowed")]
    IdTooLong {
        /// The id's place.
        place: String,
        /// Its length.
        bytes: usize,
        /// The cap.
        limit_bytes: usize,
    },
    /// A number whose value a double cannot hold exactly enough to be turned into text.
    #[error("{place} is a number too large to keep exactly; write it as a string")]
    InexactNumber {
        /// The number's place.
        place: String,
    },
    /// An item with an id at most.
    #[error("{place} has no field besides its id")]
    NoFields {
        /// The item.
        place: String,
    },
    /// Two items of one list with one id.
    #[error("two items of `{list}` have the id {}", quoted(id))]
    DuplicateItem {
        /// `history` or `queries`.
        list: &'static str,
        /// The id.
        id: String,
    },
    /// A personal user without history.
    #[error("the history is empty: there is nothing to train on")]
    EmptyHistory,
    /// A population user without queries.
    #[error("a population user without queries: there is nothing to train on")]
    NoQueries,
    /// A second record of a user; never merged with the first.
    #[error("a second record of this user (the first is {first}); it is refused, not merged")]
    DuplicateUser {
        /// The record that counts.
        first: Location,
    },
    /// A user among both the personal and the population users.
    #[error("the user is also among the personal users; population users must be others")]
    InBothSets,
    /// A JSON file whose records can be told apart no further.
    #[error("at byte {byte}: {reason}; nothing from there on can be read")]
    Structure {
        /// Offset in the file.
        byte: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A record beyond the cap; it is skipped without being held in memory.
    #[error("the record is longer than {limit_bytes} bytes")]
    RecordTooLong {
        /// The cap.
        limit_bytes: usize,
    },
    /// A record or item without a key that it must have.
    #[error("{place} has no `{key}`")]
    MissingKey {
        /// The record or item.
        place: String,
        /// The key.
        key: &'static str,
    },
    /// A question that does not have its task's form.
    #[error("question {}: {reason}; is the task right?", quoted(id))]
    Question {
        /// The question's id.
        id: String,
        /// What its text lacks.
        reason: NoMarker,
    },
    /// A question of the population without its answer.
    #[error("question {} has no answer: the population stage has nothing to train on", quoted(id))]
    NoAnswer {
        /// The question's id.
        id: String,
    },
    /// A second question with one id, though answers are found by ids.
    #[error("a second question with the id {}; answers are found by ids", quoted(id))]
    DuplicateQuestion {
        /// The id.
        id: String,
    },
    /// One id with two texts in a file of answers or profile texts.
    #[error("a second text for the id {}", quoted(id))]
    DuplicateText {
        /// The id.
        id: String,
    },
    /// An answer file of another task.
    #[error("`task` is {}, not {expected}", quoted(found))]
    WrongTask {
        /// The task of the run.
        expected: LampTask,
        /// What the file says.
        found: String,
    },
    /// A row of an event log that is none.
    #[error(transparent)]
    Event(#[from] BadEvent),
    /// Ids of questions (or users) and of the file with their texts differ.
    #[error("ids do not match: {}", sides.iter().filter(|s| s.count > 0).map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Unmatched {
        /// Those without a text, and texts without an owner.
        sides: Box<[Unmatched; 2]>,
    },
}

/// Ids on one side of a mismatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmatched {
    /// What the ids are.
    pub kind: &'static str,
    /// How many there are.
    pub count: u64,
    /// The first of them, at most [`Unmatched::MAX_LISTED`].
    pub first: Vec<String>,
}

impl Unmatched {
    /// Ids kept.
    pub const MAX_LISTED: usize = 10;

    /// None yet.
    pub(crate) fn new(kind: &'static str) -> Self {
        Self { kind, count: 0, first: Vec::new() }
    }

    /// One more.
    pub(crate) fn add(&mut self, id: &str) {
        self.count += 1;
        if self.first.len() < Self::MAX_LISTED {
            self.first.push(id.to_owned());
        }
    }
}

impl fmt::Display for Unmatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<String> = self.first.iter().map(|id| quoted(id)).collect();
        let more = if self.count > self.first.len() as u64 { ", …" } else { "" };
        write!(f, "{} {}: {}{more}", self.count, self.kind, ids.join(", "))
    }
}

/// Data in a message: in quotes, control characters escaped, cut at 80 characters.
pub(super) fn quoted(text: &str) -> String {
    let mut cut: String = text.chars().take(80).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}
