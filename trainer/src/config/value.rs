//! One value against its kind: type, range, variables, paths.

use super::document::Document;
use super::error::{Error, Place, Suggestion};
use super::keys::{Kind, Section};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use toml::Value;

/// Checks values of one document.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checker<'a> {
    pub(super) document: &'a Document,
    /// The sections that the document may have.
    pub(super) sections: &'static [Section],
    pub(super) variables: &'a BTreeMap<String, String>,
}

impl Checker<'_> {
    /// The value as meant, if it is of the kind: whole numbers become floats where floats are meant, variables are put
    /// in, paths joined to the file's folder.
    pub(super) fn value(&self, path: &str, kind: Kind, given: &Value) -> Result<Value, Error> {
        let ok = |good: bool| good.then(|| given.clone());
        let meant = match kind {
            Kind::Bool => ok(given.is_bool()),
            Kind::Int(from, to) => ok(given.as_integer().is_some_and(|n| from <= n && n <= to)),
            Kind::Float(from, to) => {
                number(given).filter(|x| from <= *x && *x <= to).map(Value::Float)
            }
            Kind::FloatBelow(from, to) => below(given, from, to),
            Kind::PairBelow(from, to) => given.as_array().and_then(|pair| {
                let pair: Option<Vec<Value>> = pair.iter().map(|x| below(x, from, to)).collect();
                pair.filter(|p| p.len() == 2).map(Value::Array)
            }),
            Kind::Text => match given.as_str() {
                Some(text) if !text.is_empty() => Some(self.expand(path, text)?.into()),
                _ => None,
            },
            Kind::Path => match given.as_str() {
                Some(text) => self.path(path, text)?,
                None => None,
            },
            Kind::NameOrPath => match given.as_str() {
                Some(text) if text.ends_with(".toml") => self.path(path, text)?,
                Some(text) => ok(!text.is_empty()),
                None => None,
            },
            Kind::OneOf(words) => ok(given.as_str().is_some_and(|w| words.contains(&w))),
            Kind::ListOf(words) => {
                ok(list(given).is_some_and(|l| l.iter().all(|w| words.contains(w))))
            }
            Kind::Texts => ok(list(given).is_some_and(|l| l.iter().all(|w| !w.is_empty()))),
            Kind::Recipe => {
                ok(given.as_str().is_some_and(|w| super::recipe_names().any(|n| n == w)))
            }
            Kind::EventRecipe => {
                ok(given.as_str().is_some_and(|w| super::pituning::recipe_names().any(|n| n == w)))
            }
            Kind::Paths => self.paths(path, given)?,
            Kind::Table => ok(given.is_table() && finite(given)),
        };
        meant.ok_or_else(|| self.wrong(path, kind, given))
    }

    fn wrong(&self, path: &str, kind: Kind, given: &Value) -> Error {
        let words: Vec<&str> = match kind {
            Kind::OneOf(words) | Kind::ListOf(words) => words.to_vec(),
            Kind::Recipe => super::recipe_names().collect(),
            Kind::EventRecipe => super::pituning::recipe_names().collect(),
            _ => Vec::new(),
        };
        let single = |v: &Value| v.as_str().map(str::to_owned);
        let bad = match given {
            Value::Array(items) => {
                items.iter().filter_map(single).find(|w| !words.contains(&w.as_str()))
            }
            other => single(other),
        };
        let suggestion = bad.map_or(Suggestion::Nothing, |w| nearest(&w, words.into_iter()));
        Error::Value {
            place: self.document.place(path),
            key: path.into(),
            given: given.to_string().into(),
            allowed: kind.to_string().into(),
            suggestion,
        }
    }

    /// The text with every `${NAME}` replaced; what is put in is not looked at again.
    fn expand(&self, path: &str, text: &str) -> Result<String, Error> {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, tail) = after.split_once('}').unwrap_or((after, ""));
            let known = after.contains('}').then(|| self.variables.get(name)).flatten();
            let value = known.ok_or_else(|| Error::Variable {
                place: self.document.place(path),
                key: path.into(),
                given: Value::from(text).to_string().into(),
                name: name.to_owned(),
                known: self.variables.keys().cloned().collect::<Vec<_>>().join(", ").into(),
            })?;
            out.push_str(before);
            out.push_str(value);
            rest = tail;
        }
        out.push_str(rest);
        Ok(out)
    }

    /// Every path of a list, each from the file that says it; none if one is no path or two are the same.
    fn paths(&self, path: &str, given: &Value) -> Result<Option<Value>, Error> {
        let Some(texts) = list(given) else { return Ok(None) };
        let each = texts.iter().enumerate();
        let meant = each.map(|(i, text)| self.path(&format!("{path}[{i}]"), text));
        let meant: Option<Vec<Value>> = meant.collect::<Result<_, _>>()?;
        let value = meant.map(Value::Array);
        Ok(value.filter(|value| list(value).is_some()))
    }

    /// The path with variables put in, joined to the folder of the file that says it (of the config for a `--set`), `.` and `x/..` taken out; none if it is empty,
    /// starts with `~` or holds a NUL.
    fn path(&self, path: &str, text: &str) -> Result<Option<Value>, Error> {
        let text = self.expand(path, text)?;
        if text.is_empty() || text == "~" || text.starts_with("~/") || text.contains('\0') {
            return Ok(None);
        }
        let place = self.document.place(path);
        let file = match &place {
            Place::File { file, .. } => file,
            Place::Set { .. } => &self.document.file,
        };
        let folder = file.parent().unwrap_or(Path::new(""));
        Ok(tidy(&folder.join(text)).to_str().map(Value::from))
    }
}

/// Takes out `.` and `x/..` without looking at the file system (so a link's `..` is that of its name).
pub(super) fn tidy(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        let last = out.components().next_back();
        match (part, last) {
            (Component::CurDir, _) => {}
            (Component::ParentDir, Some(Component::Normal(_))) => {
                out.pop();
            }
            (Component::ParentDir, Some(Component::RootDir)) => {}
            _ => out.push(part),
        }
    }
    if out.as_os_str().is_empty() { PathBuf::from(".") } else { out }
}

fn number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|n| n as f64)).filter(|x| x.is_finite())
}

fn below(value: &Value, from: f64, to: f64) -> Option<Value> {
    number(value).filter(|x| from <= *x && *x < to).map(Value::Float)
}

/// Whether no number in a value is infinite or not a number.
fn finite(value: &Value) -> bool {
    match value {
        Value::Float(x) => x.is_finite(),
        Value::Array(items) => items.iter().all(finite),
        Value::Table(table) => table.values().all(finite),
        _ => true,
    }
}

/// The texts of a list that is not empty and repeats nothing.
fn list(value: &Value) -> Option<Vec<&str>> {
    let items: Vec<&str> = value.as_array()?.iter().map(Value::as_str).collect::<Option<_>>()?;
    let distinct: std::collections::BTreeSet<&str> = items.iter().copied().collect();
    (!items.is_empty() && distinct.len() == items.len()).then_some(items)
}

/// The candidate that takes the fewest edits from `word`, if those are few for its length; the first of equals.
pub(super) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Suggestion {
    let limit = 1 + word.chars().count() / 3;
    let best = candidates.map(|c| (edits(word, c), c)).min_by_key(|(n, _)| *n);
    match best {
        Some((n, candidate)) if n <= limit => Suggestion::Name(candidate.to_owned()),
        _ => Suggestion::Nothing,
    }
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance() {
        for (a, b, n) in
            [("", "abc", 3), ("kitten", "sitting", 3), ("abc", "abc", 0), ("é", "e", 1)]
        {
            assert_eq!((edits(a, b), edits(b, a)), (n, n), "{a} {b}");
        }
        let words = ["lora_rank", "alpha", "epochs"];
        assert_eq!(nearest("lora_rnak", words.into_iter()), Suggestion::Name("lora_rank".into()));
        assert_eq!(nearest("zzz", words.into_iter()), Suggestion::Nothing);
    }

    #[test]
    fn paths_are_tidied_by_name() {
        for (given, expected) in [
            ("/a/./b/../c", "/a/c"),
            ("/../a", "/a"),
            ("../a/..", ".."),
            ("a/..", "."),
            ("a/../../b", "../b"),
        ] {
            assert_eq!(tidy(Path::new(given)), Path::new(expected), "{given}");
        }
    }
}
