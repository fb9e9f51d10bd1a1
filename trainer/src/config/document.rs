//! A config as it is written: the file's table, `--set` on top, and where every value stands.

use super::error::{Error, Place};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

/// A config as written. Nothing is checked beyond TOML's grammar until [`Document::resolve`].
#[derive(Debug, Clone)]
pub struct Document {
    pub(super) file: PathBuf,
    pub(super) table: Table,
    /// Place by path of the key, e.g. `individual.override[0].users`.
    places: BTreeMap<String, Place>,
}

impl Document {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, is not UTF-8 or not TOML.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let unreadable = |source| Error::Read { file: file.to_owned(), source };
        let whole = std::path::absolute(file).map_err(unreadable)?;
        let bytes = std::fs::read(&whole).map_err(unreadable)?;
        let text = std::str::from_utf8(&bytes).map_err(|e| {
            let before = bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
            Error::NotUtf8 { place: Place::File { file: whole.clone(), line: Some(before + 1) } }
        })?;
        Self::parse(&whole, text)
    }

    /// Takes the text of `file`; relative paths in it start at the file's folder, so give an absolute path where the
    /// resolved config is to be read again from elsewhere.
    ///
    /// # Errors
    /// Text that is not TOML.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Error> {
        let line = |at: usize| 1 + text[..at.min(text.len())].matches('\n').count();
        let place = |line| Place::File { file: file.to_owned(), line };
        let syntax = |e: toml::de::Error| {
            let line = e.span().map(|span| line(span.start));
            Error::Syntax { place: place(line), reason: e.message().to_owned() }
        };
        let spans = DeTable::parse(text).map_err(syntax)?;
        let table = text.parse::<Table>().map_err(syntax)?;
        let mut places = BTreeMap::new();
        walk(spans.get_ref(), "", &mut |path, at| {
            places.insert(path, place(Some(line(at))));
        });
        Ok(Self { file: file.to_owned(), table, places })
    }

    /// Applies one `section.key=value`. The value is TOML (`0.5`, `true`, `["q", "v"]`); what is no TOML value is
    /// taken as text.
    ///
    /// # Errors
    /// No `=`, an empty or quoted key, or a key below something that is not a table.
    pub fn set(&mut self, assignment: &str) -> Result<(), Error> {
        let malformed = || Error::Assignment { assignment: assignment.to_owned() };
        let (path, value) = assignment.split_once('=').ok_or_else(malformed)?;
        let path = path.trim();
        let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let names: Vec<&str> = path.split('.').collect();
        if names.len() < 2 || names.iter().any(|n| n.is_empty() || !n.chars().all(bare)) {
            return Err(malformed());
        }
        let (last, tables) = names.split_last().ok_or_else(malformed)?;
        let mut table = &mut self.table;
        for name in tables {
            let below = table.entry(*name).or_insert_with(|| Value::Table(Table::new()));
            table = below.as_table_mut().ok_or_else(malformed)?;
        }
        table.insert((*last).to_owned(), value_of(value.trim()));
        // What stood below the key is gone, with its places.
        self.places.retain(|at, _| {
            at.strip_prefix(path)
                .is_none_or(|rest| !rest.starts_with(['.', '[']) && !rest.is_empty())
        });
        self.places.insert(path.to_owned(), Place::Set { assignment: assignment.to_owned() });
        Ok(())
    }

    /// Puts a value at a key, as if it had been written at `place`.
    pub(super) fn put(&mut self, path: &str, value: Value, place: Place) -> Result<(), Error> {
        let (around, name) = path.rsplit_once('.').unwrap_or(("", path));
        let mut table = &mut self.table;
        let mut way = String::new();
        for part in around.split('.').filter(|part| !part.is_empty()) {
            way.push_str(if way.is_empty() { "" } else { "." });
            way.push_str(part);
            let below = table.entry(part).or_insert_with(|| {
                self.places.insert(way.clone(), place.clone());
                Value::Table(Table::new())
            });
            table = below.as_table_mut().ok_or_else(|| Error::Conflict {
                place: place.clone(),
                key: path.into(),
                reason: format!("`{part}` is no table"),
            })?;
        }
        table.insert(name.to_owned(), value);
        self.places.retain(|at, _| {
            at.strip_prefix(path)
                .is_none_or(|rest| !rest.starts_with(['.', '[']) && !rest.is_empty())
        });
        self.places.insert(path.to_owned(), place);
        Ok(())
    }

    /// Takes a key out, as if it had never been written.
    pub(super) fn drop(&mut self, path: &str) {
        let (around, name) = path.rsplit_once('.').unwrap_or(("", path));
        let mut parts = around.split('.').filter(|part| !part.is_empty());
        let table = parts.try_fold(&mut self.table, |table, part| {
            table.get_mut(part).and_then(Value::as_table_mut)
        });
        if let Some(table) = table {
            table.remove(name);
        }
    }

    /// Where a key stands; else where the table around it stands; else the file.
    pub(super) fn place(&self, path: &str) -> Place {
        let mut path = path;
        loop {
            if let Some(place) = self.places.get(path) {
                return place.clone();
            }
            match path.rfind(['.', '[']) {
                Some(at) => path = &path[..at],
                None => return Place::File { file: self.file.clone(), line: None },
            }
        }
    }
}

/// A `--set` value: TOML if it is exactly one TOML value, else text.
fn value_of(text: &str) -> Value {
    let parsed = format!("v = {text}").parse::<Table>();
    let one = parsed.ok().filter(|table| table.len() == 1 && !text.contains('\n'));
    one.and_then(|mut table| table.remove("v")).unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Calls `found(path, byte offset)` for every key below `table`.
fn walk(table: &DeTable<'_>, prefix: &str, found: &mut dyn FnMut(String, usize)) {
    for (key, value) in table {
        let name = key.get_ref();
        let path = if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") };
        found(path.clone(), key.span().start);
        walk_value(value, &path, found);
    }
}

fn walk_value(value: &Spanned<DeValue<'_>>, path: &str, found: &mut dyn FnMut(String, usize)) {
    match value.get_ref() {
        DeValue::Table(table) => walk(table, path, found),
        DeValue::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                let path = format!("{path}[{i}]");
                found(path.clone(), item.span().start);
                walk_value(item, &path, found);
            }
        }
        _ => {}
    }
}
