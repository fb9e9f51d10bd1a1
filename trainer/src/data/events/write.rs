//! The canonical form of a log, which every other form can be turned into.
//!
//! CSV or JSONL with the columns `user`, `time`, `event`, the contexts, `intent`, in this order; users by id, their
//! events by moment, ties in their order. Times are ISO 8601 with the offset they were read with, or none. An empty
//! cell (in JSONL `null`, or no key `intent`) is no value and no intent. What is read back is the same log.

use super::format::{ColumnRef, Columns, Format, Intent, Kind};
use super::raw::{RawEvent, RawLog};
use super::rows::first_names;
use crate::data::DataError;
use crate::ids::UserId;
use serde_json::{Map, Value};
use std::io::{self, Write};
use std::path::Path;

impl Format {
    /// The canonical form with these contexts. Nothing is left out of it on reading but people with one event.
    ///
    /// `kind` is [`Kind::Csv`] or [`Kind::Jsonl`]; the others that have a header do as well.
    pub fn canonical(kind: Kind, contexts: &[String]) -> Self {
        let contexts = contexts.iter().map(|name| (name.clone(), ColumnRef::Name(name.clone())));
        let columns = Columns {
            contexts: contexts.collect(),
            intent: Some("intent".into()),
            ..Columns::default()
        };
        Self { kind, columns, intent: Intent::Column, min_events: 2, ..Self::default() }
    }

    /// The canonical form of a file, with the contexts that its header has, or that its first object has.
    ///
    /// # Errors
    /// The system's; an empty file, a first line that is none.
    pub fn canonical_of(kind: Kind, path: &Path) -> Result<Self, DataError> {
        let mut contexts = first_names(path, kind)?;
        contexts.retain(|name| !["user", "time", "event", "intent"].contains(&name.as_str()));
        let format = Self::canonical(kind, &contexts);
        format.check()?;
        Ok(format)
    }
}

/// Writes a log in its canonical form, read back by [`Format::canonical`]; returns the number of events.
///
/// # Errors
/// The output's; a kind that is neither CSV nor JSONL.
pub fn write(log: &RawLog, kind: Kind, out: &mut dyn Write) -> io::Result<u64> {
    match kind {
        Kind::Csv => {
            let ends = ["user", "time", "event"].into_iter();
            let names = ends.chain(log.contexts.iter().map(String::as_str)).chain(["intent"]);
            csv_row(names, out)?;
        }
        Kind::Jsonl => {}
        Kind::Tsv | Kind::Spaced | Kind::Ml100kGenre => {
            let refused = "event logs are written as CSV or as JSONL";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, refused));
        }
    }
    let mut written = 0;
    for (user, events) in &log.users {
        for event in events {
            if kind == Kind::Csv {
                csv_event(log, user, event, out)?;
            } else {
                json_event(log, user, event, out)?;
            }
            written += 1;
        }
    }
    Ok(written)
}

/// The values of an event's contexts; none where the cell was empty.
fn values<'a>(
    log: &'a RawLog,
    event: &'a RawEvent,
) -> impl Iterator<Item = (&'a str, Option<&'a str>)> {
    let names = log.contexts.iter().map(String::as_str);
    let values = log.values.iter().zip(&event.contexts);
    names.zip(values.map(|(names, value)| value.map(|value| names.text(value))))
}

fn csv_event(log: &RawLog, user: &UserId, event: &RawEvent, out: &mut dyn Write) -> io::Result<()> {
    let time = event.moment.written();
    let start = [user.as_str(), &time, log.events.text(event.event)].into_iter();
    let contexts = values(log, event).map(|(_, value)| value.unwrap_or_default());
    let intent = event.intent.map(|intent| log.intents.text(intent)).unwrap_or_default();
    csv_row(start.chain(contexts).chain([intent]), out)
}

/// RFC 4180 but for the line's end, which is `\n`.
fn csv_row<'a>(cells: impl Iterator<Item = &'a str>, out: &mut dyn Write) -> io::Result<()> {
    for (at, cell) in cells.enumerate() {
        if at > 0 {
            out.write_all(b",")?;
        }
        if cell.contains(['"', ',', '\n', '\r']) {
            write!(out, "\"{}\"", cell.replace('"', "\"\""))?;
        } else {
            out.write_all(cell.as_bytes())?;
        }
    }
    out.write_all(b"\n")
}

fn json_event(
    log: &RawLog,
    user: &UserId,
    event: &RawEvent,
    out: &mut dyn Write,
) -> io::Result<()> {
    let text = |text: &str| Value::String(text.to_owned());
    let mut row = Map::new();
    row.insert("user".to_owned(), text(user.as_str()));
    row.insert("time".to_owned(), Value::String(event.moment.written()));
    row.insert("event".to_owned(), text(log.events.text(event.event)));
    for (name, value) in values(log, event) {
        // Even where it is empty, so that the first line names all contexts.
        row.insert(name.to_owned(), value.map_or(Value::Null, text));
    }
    if let Some(intent) = event.intent {
        row.insert("intent".to_owned(), text(log.intents.text(intent)));
    }
    serde_json::to_writer(&mut *out, &Value::Object(row))?;
    out.write_all(b"\n")
}
