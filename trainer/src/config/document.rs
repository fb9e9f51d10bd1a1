//! A config as it is written: the files it extends, the file, its chosen variants, `--set` on top, and where every
//! value stands.

use super::error::{Error, Place};
use super::study::STUDY;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

/// The key that names the files a config goes on from.
const EXTENDS: &str = "extends";
/// The table of named changes.
pub(super) const VARIANT: &str = "variant";
/// Files that may stand behind one another.
const MAX_LAYERS: usize = 16;

/// A config as written. Nothing is checked beyond TOML's grammar until [`Document::resolve`].
///
/// Layers lie on one another, the later over the earlier: the files named by `extends`, the file, the chosen
/// `[variant.NAME]`s, every `--set`. A table is merged key by key; anything else is replaced whole, and so is `[study]`
/// by a variant's.
#[derive(Debug, Clone)]
pub struct Document {
    pub(super) file: PathBuf,
    pub(super) table: Table,
    /// Place by path of the key, e.g. `individual.override[0].users`.
    places: BTreeMap<String, Place>,
    /// The variants laid on, in order.
    pub(super) chosen: Vec<String>,
}

/// The text of a config file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Text {
    /// The file; absolute, so that its relative paths mean the same everywhere.
    pub file: PathBuf,
    /// What it says.
    pub text: String,
}

/// Reads a config file and those it extends, each before the one that extends it.
///
/// # Errors
/// A file that cannot be read, is not UTF-8 or not TOML; `extends` that is no text or list of texts, or leads in a
/// circle.
pub fn read_layers(file: &Path) -> Result<Vec<Text>, Error> {
    let mut layers = Vec::new();
    read_layer(file, &mut Vec::new(), &mut layers)?;
    Ok(layers)
}

fn read_layer(file: &Path, above: &mut Vec<PathBuf>, layers: &mut Vec<Text>) -> Result<(), Error> {
    let unreadable = |source| Error::Read { file: file.to_owned(), source };
    let whole = super::value::tidy(&std::path::absolute(file).map_err(unreadable)?);
    let bytes = std::fs::read(&whole).map_err(unreadable)?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        let before = e.as_bytes()[..valid].iter().filter(|&&b| b == b'\n').count();
        Error::NotUtf8 { place: Place::File { file: whole.clone(), line: Some(before + 1) } }
    })?;
    let document = Document::parse(&whole, &text)?;
    let wrong = |reason: &str| Error::Conflict {
        place: document.place(EXTENDS),
        key: EXTENDS.into(),
        reason: reason.to_owned(),
    };
    if above.contains(&whole) || above.len() >= MAX_LAYERS {
        return Err(wrong("leads in a circle, or over more than 16 files"));
    }
    let named = match document.table.get(EXTENDS) {
        None => Vec::new(),
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(list)) => list
            .iter()
            .map(|v| v.as_str().map(str::to_owned).ok_or_else(|| wrong("must name files")))
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(wrong("must be a file's name or a list of them")),
    };
    above.push(whole.clone());
    let folder = whole.parent().unwrap_or(Path::new("/"));
    named.iter().try_for_each(|name| read_layer(&folder.join(name), above, layers))?;
    above.pop();
    layers.push(Text { file: whole, text });
    Ok(())
}

impl Document {
    /// Reads a file and those it extends.
    ///
    /// # Errors
    /// As [`read_layers`].
    pub fn read(file: &Path) -> Result<Self, Error> {
        Self::of_layers(&read_layers(file)?)
    }

    /// The document of texts, the last one being the file itself.
    ///
    /// # Errors
    /// Text that is not TOML.
    pub fn of_layers(layers: &[Text]) -> Result<Self, Error> {
        let mut whole = Self {
            file: PathBuf::new(),
            table: Table::new(),
            places: BTreeMap::new(),
            chosen: Vec::new(),
        };
        for layer in layers {
            let mut document = Self::parse(&layer.file, &layer.text)?;
            document.table.remove(EXTENDS);
            whole.file = document.file;
            whole.lay(&document.table, "", &document.places, "");
        }
        Ok(whole)
    }

    /// Takes the text of `file` alone; relative paths in it start at the file's folder, so give an absolute path where
    /// the resolved config is to be read again from elsewhere.
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
        Ok(Self { file: file.to_owned(), table, places, chosen: Vec::new() })
    }

    /// The names of the variants.
    pub fn variants(&self) -> impl Iterator<Item = &str> {
        let table = self.table.get(VARIANT).and_then(Value::as_table);
        table.into_iter().flat_map(|t| t.keys().map(String::as_str))
    }

    /// Lays `[variant.NAME]` over the rest. The name is put behind `run.name` and `run.out_dir`, unless a `--set` says
    /// what they are: variants do not meet in one folder. A variant's `[study]` takes the place of the one there is: axes
    /// of two grids do not multiply.
    ///
    /// # Errors
    /// No variant of this name.
    pub fn choose(&mut self, name: &str) -> Result<(), Error> {
        let variant = self.table.get(VARIANT).and_then(|t| t.get(name)).and_then(Value::as_table);
        let Some(variant) = variant.cloned() else {
            let known: Vec<&str> = self.variants().collect();
            return Err(Error::NoVariant {
                file: self.file.clone(),
                name: name.to_owned(),
                known: known.join(", ").into(),
                suggestion: super::value::nearest(name, known.into_iter()),
            });
        };
        let places = self.places.clone();
        if variant.contains_key(STUDY) {
            self.table.remove(STUDY);
            self.forget(STUDY);
        }
        self.lay(&variant, "", &places, &format!("{VARIANT}.{name}."));
        self.chosen.push(name.to_owned());
        Ok(())
    }

    /// Lays a table over what is at `path`; its places are found in `places` behind `prefix`.
    fn lay(&mut self, table: &Table, path: &str, places: &BTreeMap<String, Place>, prefix: &str) {
        for (name, value) in table {
            let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            if let (Some(inner), Some(Value::Table(_))) = (value.as_table(), self.at(&at)) {
                self.lay(inner, &at, places, prefix);
                continue;
            }
            self.forget(&at);
            let from = format!("{prefix}{at}");
            for (key, place) in places.range(from.clone()..) {
                let Some(rest) = key.strip_prefix(&from) else { break };
                if rest.is_empty() || rest.starts_with(['.', '[']) {
                    self.places.insert(format!("{at}{rest}"), place.clone());
                }
            }
            if let Some(around) = self.around(path) {
                around.insert(name.clone(), value.clone());
            }
        }
    }

    /// The value at a key, if it is written.
    pub(super) fn at(&self, path: &str) -> Option<&Value> {
        let (first, rest) = path.split_once('.').map_or((path, None), |(a, b)| (a, Some(b)));
        let mut value = self.table.get(first)?;
        for name in rest.into_iter().flat_map(|r| r.split('.')) {
            value = value.get(name)?;
        }
        Some(value)
    }

    fn around(&mut self, path: &str) -> Option<&mut Table> {
        let mut table = &mut self.table;
        for name in path.split('.').filter(|n| !n.is_empty()) {
            table = table.get_mut(name)?.as_table_mut()?;
        }
        Some(table)
    }

    /// Drops the places of a key and of all below it.
    fn forget(&mut self, path: &str) {
        self.places.retain(|at, _| {
            at.strip_prefix(path)
                .is_none_or(|rest| !rest.starts_with(['.', '[']) && !rest.is_empty())
        });
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
        self.forget(path);
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
