//! How an event log is written and what is taken from it.

use super::clock::{TimeFormat, TimeZone};
use super::error::EventsError;
use super::presets;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a file is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Commas, RFC 4180: quotes, doubled quotes, line breaks within quotes.
    #[default]
    Csv,
    /// Tabs; quotes as in CSV.
    Tsv,
    /// Runs of spaces and tabs; a quote is a character like others.
    Spaced,
    /// One JSON object a line; columns are keys of it, `null` and missing keys are empty cells.
    Jsonl,
    /// The folder of MovieLens 100k as `recbole` carries it; an event is a rating's genre. The columns, the header and
    /// the times are the folder's own.
    Ml100kGenre,
}

/// A column: its name in the header (or key), or its number from 0.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ColumnRef {
    /// By name.
    Name(String),
    /// By number, from 0.
    Number(usize),
}

impl ColumnRef {
    /// For messages.
    pub(super) fn label(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::Number(number) => number.to_string(),
        }
    }
}

impl From<&str> for ColumnRef {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

/// Where things stand in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// Whose event.
    pub user: ColumnRef,
    /// When.
    pub time: ColumnRef,
    /// What.
    pub event: ColumnRef,
    /// What else is known of an event, such as the location: the name a model knows it by, and the column. An empty
    /// cell is an unknown value. They stand in the order of this list in every row.
    pub contexts: Vec<(String, ColumnRef)>,
    /// The event's intent as a target, for [`Intent::Column`]; an empty cell is no intent.
    pub intent: Option<ColumnRef>,
}

impl Default for Columns {
    fn default() -> Self {
        let [user, time, event] = ["user", "time", "event"].map(ColumnRef::from);
        Self { user, time, event, contexts: Vec::new(), intent: None }
    }
}

/// What is to be predicted of the next event.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Intent {
    /// The event itself.
    #[default]
    Event,
    /// The column of intents.
    Column,
    /// A name for groups of events.
    Map {
        /// Event -> intent.
        names: BTreeMap<String, String>,
        /// What of the events that it does not have.
        #[serde(default)]
        unmapped: Unmapped,
    },
}

/// What an event that a map of intents does not have means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unmapped {
    /// Its own name.
    #[default]
    OwnName,
    /// No intent: the event stays in windows and is no target.
    Dropped,
}

/// What of two events of a user with one time and one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duplicates {
    /// Both stay.
    #[default]
    Keep,
    /// The first in the order of the files stays; moments are compared, to the millisecond.
    DropExact,
}

/// Rows to take: those with one of some values in a column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keep {
    /// The column.
    pub column: ColumnRef,
    /// Its values.
    pub values: Vec<String>,
}

/// How a log is written and what is taken from it; a config's keys, with these defaults.
///
/// The order of the steps: rows that [`Format::keep`] refuses go; every user's events are sorted by moment, ties in the
/// order of the files; duplicates go; repeats are collapsed; users with fewer than `min_events` go; gaps are marked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Format {
    /// What the files are made of.
    pub kind: Kind,
    /// Whether the first row names the columns; without it they go by number. JSONL has none.
    pub header: bool,
    /// Where things stand.
    pub columns: Columns,
    /// Rows must meet all of these.
    pub keep: Vec<Keep>,
    /// How times are written.
    pub time: TimeFormat,
    /// Which clock the time of day and the weekday are read from.
    pub time_zone: TimeZone,
    /// What is predicted.
    pub intent: Intent,
    /// What of exact duplicates.
    pub duplicates: Duplicates,
    /// An event of the same name as the one before it in the log, at most so many seconds later, is left out; chains
    /// of such events leave their first.
    pub collapse_seconds: Option<u64>,
    /// Where an event is more than so many seconds later than the one before it, no window reaches back over the
    /// place: the event is no target, and the later ones have it as their first.
    pub gap_seconds: Option<u64>,
    /// A user with fewer events is left out, and counted.
    pub min_events: usize,
    /// Minutes of a bucket of the time of day; a divisor of 1440.
    pub bucket_minutes: u32,
    /// An event's name or a context's value that occurs less often in the training parts is unknown.
    pub min_count: u64,
    /// An intent that the training parts have less often as a target is none.
    pub min_intent_count: u64,
    /// Longest row in bytes; a longer one is bad, and never held in memory.
    pub max_row_bytes: usize,
}

impl Default for Format {
    fn default() -> Self {
        Self {
            kind: Kind::Csv,
            header: true,
            columns: Columns::default(),
            keep: Vec::new(),
            time: TimeFormat::Iso,
            time_zone: TimeZone::AsWritten,
            intent: Intent::Event,
            duplicates: Duplicates::Keep,
            collapse_seconds: None,
            gap_seconds: None,
            min_events: 10,
            bucket_minutes: 60,
            min_count: 1,
            min_intent_count: 1,
            max_row_bytes: 1 << 20,
        }
    }
}

impl Format {
    /// A format from a config's keys, over those of a preset or over the defaults.
    ///
    /// Tables are merged key by key; anything else replaces what the preset has.
    ///
    /// # Errors
    /// No such preset, unknown keys, values without sense.
    pub fn resolve(preset: Option<&str>, keys: &toml::Table) -> Result<Self, EventsError> {
        let base = preset.map_or_else(|| Ok(Self::default()), presets::preset)?;
        let wrong = |text: String| EventsError::Keys(text.trim_end().to_owned());
        let mut table = toml::Table::try_from(base).map_err(|e| wrong(e.to_string()))?;
        // Of a one-of-several key the new choice replaces the old one whole.
        overlay(&mut table, keys);
        let format: Self = table.try_into().map_err(|e| wrong(e.to_string()))?;
        format.check()?;
        Ok(format)
    }

    /// Refuses values without sense.
    ///
    /// # Errors
    /// The key and the reason.
    pub fn check(&self) -> Result<(), EventsError> {
        let refuse = |wrong: bool, key, reason| {
            if wrong { Err(EventsError::Option { key, reason }) } else { Ok(()) }
        };
        let by_number = |column: &ColumnRef| matches!(column, ColumnRef::Number(_));
        let mut numbers = self.wanted().into_iter().map(by_number);
        let names_needed = self.kind == Kind::Jsonl;
        refuse(names_needed && numbers.any(|n| n), "columns", "JSONL has keys, no column numbers")?;
        let nameless = !self.header && !matches!(self.kind, Kind::Jsonl | Kind::Ml100kGenre);
        let mut names = self.wanted().into_iter().map(|column| !by_number(column));
        refuse(nameless && names.any(|n| n), "columns", "without a header columns go by number")?;
        refuse(
            self.intent == Intent::Column
                && self.columns.intent.is_none()
                && self.kind != Kind::Ml100kGenre,
            "columns.intent",
            "the intent is a column, but none is named",
        )?;
        let divides = self.bucket_minutes > 0 && 1440 % self.bucket_minutes == 0;
        refuse(!divides, "bucket_minutes", "it must divide the 1440 minutes of a day")?;
        refuse(self.min_events < 2, "min_events", "a window and its target need 2 events")?;
        refuse(self.max_row_bytes == 0, "max_row_bytes", "it must be at least 1")?;
        let contexts = self.columns.contexts.iter().map(|(name, _)| name.as_str());
        let mut seen = ["user", "time", "weekday", "event", "intent"].map(str::to_owned).to_vec();
        for name in contexts {
            let taken = name.is_empty() || seen.iter().any(|other| other == name);
            refuse(taken, "columns.contexts", "a context needs a name that no other column has")?;
            seen.push(name.to_owned());
        }
        Ok(())
    }

    /// The columns a row is asked for: user, time, event, contexts, intent if it is one, those of `keep`.
    pub(super) fn wanted(&self) -> Vec<&ColumnRef> {
        let columns = &self.columns;
        let fixed = [&columns.user, &columns.time, &columns.event];
        let contexts = columns.contexts.iter().map(|(_, column)| column);
        let intent = columns.intent.as_ref().filter(|_| self.intent == Intent::Column);
        let keep = self.keep.iter().map(|keep| &keep.column);
        fixed.into_iter().chain(contexts).chain(intent).chain(keep).collect()
    }
}

/// Puts the keys of `over` into `table`.
fn overlay(table: &mut toml::Table, over: &toml::Table) {
    for (key, value) in over {
        match (table.get_mut(key), value) {
            // `intent = { map = ... }` is one value, not keys side by side.
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) if key != "intent" => {
                overlay(old, new);
            }
            _ => {
                table.insert(key.clone(), value.clone());
            }
        }
    }
}
