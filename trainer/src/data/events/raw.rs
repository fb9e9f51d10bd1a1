//! A log as it was written: people, moments, names; sorted, cleaned, not yet numbered.

use super::clock::Moment;
use super::error::{BadEvent, EventsError};
use super::format::{Duplicates, Format, Intent, Kind, Unmapped};
use super::genre;
use super::rows::Rows;
use crate::data::visit::ID_LIMIT_BYTES;
use crate::data::{DataError, OnBad, Problem, What};
use crate::ids::UserId;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Problems kept in full; a broken file of any size must not fill the memory.
const MAX_LISTED: usize = 1000;

/// What was read and what was left out on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Rows of the files, headers apart.
    pub rows: u64,
    /// Bad rows, listed or not.
    pub bad_rows: u64,
    /// The first 1000 of them, in the order of the files.
    #[serde(skip)]
    pub problems: Vec<Problem>,
    /// Rows that `keep` refuses.
    pub not_kept: u64,
    /// Exact duplicates left out.
    pub duplicates: u64,
    /// Repeats collapsed into the event before them.
    pub collapsed: u64,
    /// Users with too few events, and their events.
    pub short_users: u64,
    /// Events of these users.
    pub short_events: u64,
    /// Users whose training part has no window, by fractions too small or dates too early.
    pub users_without_training: u64,
    /// Places that no window reaches back over.
    pub gaps: u64,
    /// Events that are no target because they have no intent: training, validation, test part.
    pub without_intent: [u64; 3],
    /// Events that are no target because the training data do not have their intent, or not often enough.
    pub unseen_intents: [u64; 3],
    /// Events whose name is unknown.
    pub unknown_events: [u64; 3],
    /// Values of contexts that are unknown, empty cells included.
    pub unknown_contexts: [u64; 3],
}

/// One event as written; names by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawEvent {
    pub(super) moment: Moment,
    pub(super) event: u32,
    pub(super) intent: Option<u32>,
    /// One for each context; `None` is an empty cell.
    pub(super) contexts: Box<[Option<u32>]>,
}

/// Texts by number, in the order in which they were met.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    numbers: BTreeMap<Arc<str>, u32>,
    texts: Vec<Arc<str>>,
}

impl Names {
    pub(super) fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let text: Arc<str> = Arc::from(text);
        // Every name takes more than 4 bytes of memory: there cannot be so many.
        let number = u32::try_from(self.texts.len()).unwrap_or(u32::MAX);
        self.texts.push(text.clone());
        self.numbers.insert(text, number);
        number
    }

    pub(super) fn text(&self, number: u32) -> &str {
        usize::try_from(number).ok().and_then(|n| self.texts.get(n)).map_or("", |text| text)
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }
}

/// The events of all people, as written: what [`RawLog::encode`] numbers and [`super::write`] writes.
#[derive(Debug, Clone, Default)]
pub struct RawLog {
    /// The names of the contexts.
    pub contexts: Vec<String>,
    pub(super) events: Names,
    pub(super) intents: Names,
    /// One for each context.
    pub(super) values: Vec<Names>,
    /// By id; the events of each in order of their moments, ties in the order of the files.
    pub(super) users: BTreeMap<UserId, Vec<RawEvent>>,
}

/// One row of texts.
pub(super) struct Row<'a> {
    pub(super) user: &'a str,
    pub(super) moment: Moment,
    pub(super) event: &'a str,
    /// An empty one is none.
    pub(super) intent: &'a str,
    pub(super) contexts: &'a [&'a str],
}

impl RawLog {
    pub(super) fn new(contexts: Vec<String>) -> Self {
        let values = vec![Names::default(); contexts.len()];
        Self { contexts, values, ..Self::default() }
    }

    /// Who is in the log, with the number of events.
    pub fn users(&self) -> impl Iterator<Item = (&UserId, usize)> {
        self.users.iter().map(|(id, events)| (id, events.len()))
    }

    /// How many events there are.
    pub fn num_events(&self) -> usize {
        self.users.values().map(Vec::len).sum()
    }

    pub(super) fn push(&mut self, row: &Row<'_>, intent: &Intent) {
        let event = self.events.number(row.event);
        let meant = match intent {
            Intent::Event => Some(row.event),
            Intent::Column => Some(row.intent).filter(|text| !text.is_empty()),
            Intent::Map { names, unmapped } => {
                let own = Some(row.event).filter(|_| *unmapped == Unmapped::OwnName);
                names.get(row.event).map(String::as_str).or(own)
            }
        };
        let meant = meant.map(|text| self.intents.number(text));
        let contexts = self.values.iter_mut().zip(row.contexts);
        let contexts =
            contexts.map(|(names, text)| (!text.is_empty()).then(|| names.number(text))).collect();
        let raw = RawEvent { moment: row.moment, event, intent: meant, contexts };
        match self.users.get_mut(&UserId::new(row.user)) {
            Some(events) => events.push(raw),
            None => drop(self.users.insert(UserId::new(row.user), vec![raw])),
        }
    }

    /// Sorts, drops, collapses, leaves out.
    fn clean(&mut self, format: &Format, tally: &mut Tally) {
        for events in self.users.values_mut() {
            events.sort_by_key(|event| event.moment.ms);
            if format.duplicates == Duplicates::DropExact {
                tally.duplicates += drop_duplicates(events);
            }
            if let Some(seconds) = format.collapse_seconds {
                tally.collapsed += collapse(events, seconds);
            }
        }
        self.users.retain(|_, events| {
            let enough = events.len() >= format.min_events;
            if !enough {
                tally.short_users += 1;
                tally.short_events += events.len() as u64;
            }
            enough
        });
    }
}

/// Of events with one moment and one name the first stays.
fn drop_duplicates(events: &mut Vec<RawEvent>) -> u64 {
    let before = events.len();
    let mut seen = std::collections::BTreeSet::new();
    let mut now = None;
    events.retain(|event| {
        if now != Some(event.moment.ms) {
            now = Some(event.moment.ms);
            seen.clear();
        }
        seen.insert(event.event)
    });
    (before - events.len()) as u64
}

/// Of runs of one name, each at most `seconds` after the one before, the first stays.
fn collapse(events: &mut Vec<RawEvent>, seconds: u64) -> u64 {
    let before = events.len();
    let mut last: Option<(u32, i64)> = None;
    events.retain(|event| {
        let (name, ms) = (event.event, event.moment.ms);
        let repeats = last.is_some_and(|(other, then)| other == name && !later(then, ms, seconds));
        last = Some((name, ms));
        !repeats
    });
    (before - events.len()) as u64
}

/// Whether a moment is more than so many seconds after another one, both in milliseconds.
pub(super) fn later(then: i64, now: i64, seconds: u64) -> bool {
    now.abs_diff(then) > seconds.saturating_mul(1000)
}

/// Reads and cleans a log.
///
/// *Order*: the result does not depend on how rows of different users stand to each other, within a file or between
/// files; rows of one user with one moment stay in the order of `paths` and of their file.
///
/// # Errors
/// The system's; a header without the columns; under [`OnBad::Stop`] the first bad row; options without sense; nobody
/// with events enough.
pub fn open(
    paths: &[PathBuf],
    format: &Format,
    on_bad: OnBad,
) -> Result<(RawLog, Tally), DataError> {
    format.check()?;
    let mut tally = Tally::default();
    let mut log = if format.kind == Kind::Ml100kGenre {
        genre::read(paths, format, &mut tally)?
    } else {
        let names = format.columns.contexts.iter().map(|(name, _)| name.clone());
        let mut log = RawLog::new(names.collect());
        for path in paths {
            read_file(path, format, on_bad, &mut log, &mut tally)?;
        }
        log
    };
    log.clean(format, &mut tally);
    if log.users.is_empty() {
        let (short_users, min_events) = (tally.short_users, format.min_events);
        return Err(EventsError::NoUsers { short_users, min_events }.into());
    }
    Ok((log, tally))
}

fn read_file(
    path: &Path,
    format: &Format,
    on_bad: OnBad,
    log: &mut RawLog,
    tally: &mut Tally,
) -> Result<(), DataError> {
    let mut rows = Rows::open(path, format)?;
    loop {
        let problem = match rows.advance() {
            Ok(false) => return Ok(()),
            Ok(true) => match take(&rows.cells, format, log) {
                Ok(kept) => {
                    tally.rows += 1;
                    tally.not_kept += u64::from(!kept);
                    continue;
                }
                Err(bad) => {
                    let user = Some(&rows.cells[0]).filter(|user| !user.is_empty());
                    let user = user.filter(|user| user.len() <= ID_LIMIT_BYTES);
                    Problem { user: user.map(|user| UserId::new(user)), ..rows.problem(bad) }
                }
            },
            Err(DataError::Bad(problem)) => problem,
            Err(other) => return Err(other),
        };
        // A column that is not there is so in every row.
        let hopeless = matches!(problem.what, What::Event(BadEvent::ColumnNumber { .. }));
        if on_bad == OnBad::Stop || hopeless {
            return Err(DataError::Bad(problem));
        }
        tally.rows += 1;
        tally.bad_rows += 1;
        if tally.problems.len() < MAX_LISTED {
            tally.problems.push(problem);
        }
    }
}

/// Takes a row into the log; `false` if `keep` refuses it.
fn take(cells: &[String], format: &Format, log: &mut RawLog) -> Result<bool, BadEvent> {
    let columns = &format.columns;
    let num_contexts = columns.contexts.len();
    let has_intent = format.intent == Intent::Column;
    let (user, time, event) = (&cells[0], &cells[1], &cells[2]);
    let (contexts, rest) = cells[3..].split_at(num_contexts);
    let (intents, kept) = rest.split_at(usize::from(has_intent));
    let keeps = |(keep, cell): (&super::format::Keep, &String)| keep.values.contains(cell);
    if !format.keep.iter().zip(kept).all(keeps) {
        return Ok(false);
    }
    for (column, text) in [(&columns.user, user), (&columns.time, time), (&columns.event, event)] {
        if text.is_empty() {
            return Err(BadEvent::Empty { column: column.label() });
        }
    }
    let texts = [(&columns.user, user), (&columns.event, event)].into_iter();
    let texts = texts
        .chain(columns.contexts.iter().map(|(_, column)| column).zip(contexts))
        .chain(columns.intent.iter().zip(intents));
    for (column, text) in texts {
        let (bytes, limit_bytes) = (text.len(), ID_LIMIT_BYTES);
        if bytes > limit_bytes {
            return Err(BadEvent::TooLong { column: column.label(), bytes, limit_bytes });
        }
    }
    let moment = Moment::parse(time.trim(), format.time, format.time_zone);
    let moment = moment.ok_or_else(|| BadEvent::Time {
        column: columns.time.label(),
        text: time.clone(),
        expected: format.time.example(),
    })?;
    let contexts: Vec<&str> = contexts.iter().map(String::as_str).collect();
    let intent = intents.first().map_or("", String::as_str);
    log.push(&Row { user, moment, event, intent, contexts: &contexts }, &format.intent);
    Ok(true)
}
