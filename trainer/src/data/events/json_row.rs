//! One JSON object -> the texts of the keys asked for.

use crate::data::What;
use crate::data::visit::{Notes, Place, ScalarSeed, parse_with, refuse_shapes};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// Writes the values of `keys` over `cells`: scalars as text, empty for `null` and keys that are not there.
pub(super) fn parse_row(line: &[u8], keys: &[String], cells: &mut [String]) -> Result<(), What> {
    cells.iter_mut().for_each(String::clear);
    let notes = Notes::default();
    let seed = RowSeed { notes: &notes, wanted: Some((keys, cells)), seen: Vec::new() };
    parse_with(line, &notes, seed).map(drop).map_err(|(_, what)| what)
}

/// The keys of an object in its order.
pub(super) fn keys(line: &[u8]) -> Result<Vec<String>, What> {
    let notes = Notes::default();
    let seed = RowSeed { notes: &notes, wanted: None, seen: Vec::new() };
    parse_with(line, &notes, seed).map_err(|(_, what)| what)
}

struct RowSeed<'a> {
    notes: &'a Notes,
    wanted: Option<(&'a [String], &'a mut [String])>,
    seen: Vec<String>,
}

impl<'de> DeserializeSeed<'de> for RowSeed<'_> {
    type Value = Vec<String>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Vec<String>, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RowSeed<'_> {
    type Value = Vec<String>;
    refuse_shapes!("an object", |v: &Self| Place::record(v.notes);
        bool, number, string, null, array);

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Vec<String>, A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            // Of the few that are asked for: a row may have any number of others.
            if self.wanted.is_some() && self.seen.contains(&key) {
                let place = Place::record(self.notes).name();
                return Err(self.notes.refuse(What::DuplicateKey { place, key }));
            }
            // Two columns may be one key.
            let place = Place { key: Some(&key), ..Place::record(self.notes) };
            match &mut self.wanted {
                Some((keys, cells)) if keys.contains(&key) => {
                    let text = map.next_value_seed(OptionSeed(place))?.unwrap_or_default();
                    for (_, cell) in keys.iter().zip(&mut **cells).filter(|(k, _)| **k == key) {
                        cell.push_str(&text);
                    }
                    self.seen.push(key);
                }
                Some(_) => drop(map.next_value::<IgnoredAny>()?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                    self.seen.push(key);
                }
            }
        }
        Ok(self.seen)
    }
}

/// A scalar or `null`.
struct OptionSeed<'a>(Place<'a>);

impl<'de> DeserializeSeed<'de> for OptionSeed<'_> {
    type Value = Option<String>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Option<String>, D::Error> {
        d.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for OptionSeed<'_> {
    type Value = Option<String>;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string, number, boolean or null")
    }
    fn visit_none<E: Error>(self) -> Result<Option<String>, E> {
        Ok(None)
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Option<String>, D::Error> {
        ScalarSeed(self.0).deserialize(d).map(Some)
    }
}
