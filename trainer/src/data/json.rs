//! One JSON line -> one [`UserRecord`], strictly: typed visitors, so that nothing is built from
//! a line but the record, duplicate keys are seen, and nesting beyond the format's stops at once.

use super::{Item, UserRecord, What};
use crate::ids::UserId;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Longest user or item id in bytes.
pub(super) const ID_LIMIT_BYTES: usize = 4096;

/// Integers up to this are exact in a double; a float beyond it may have been an integer that lost digits.
const EXACT_LIMIT: f64 = 9_007_199_254_740_992.0;

/// What the visitors note on the way: serde's own errors can only carry text.
#[derive(Default)]
struct Notes {
    user: RefCell<Option<UserId>>,
    what: Cell<Option<What>>,
}

impl Notes {
    /// Notes the problem and gives serde something to stop with.
    fn refuse<E: Error>(&self, what: What) -> E {
        self.what.set(Some(what));
        E::custom("refused")
    }
}

/// Parses one line.
///
/// # Errors
/// The problem, and the user's id if it was read before the problem.
pub(super) fn parse_record(line: &[u8]) -> Result<UserRecord, (Option<UserId>, What)> {
    let text = match std::str::from_utf8(line) {
        Ok(text) => text,
        Err(e) => return Err((None, What::InvalidUtf8 { byte: e.valid_up_to() })),
    };
    let notes = Notes::default();
    let mut parser = serde_json::Deserializer::from_str(text);
    let parsed = RecordSeed(&notes).deserialize(&mut parser).and_then(|r| parser.end().map(|()| r));
    parsed.map_err(|e| {
        let json = || What::Json { column: e.column(), message: reason(&e) };
        (notes.user.take(), notes.what.take().unwrap_or_else(json))
    })
}

/// The parser's reason without the line and column it appends (the line is always 1 here).
fn reason(e: &serde_json::Error) -> String {
    let full = e.to_string();
    full.rsplit_once(" at line ").map_or(full.clone(), |(start, _)| start.to_owned())
}

/// Defines the `visit_*` of every JSON shape a place does not take.
macro_rules! refuse_shapes {
    ($expected:literal, $place:expr; $($shape:ident),*) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str($expected)
        }
        $(refuse_shapes!(@ $shape, $expected, $place);)*
    };
    (@ bool, $e:literal, $p:expr) => { refuse_shapes!(@fn visit_bool, bool, "a boolean", $e, $p); };
    (@ number, $e:literal, $p:expr) => {
        refuse_shapes!(@fn visit_i64, i64, "a number", $e, $p);
        refuse_shapes!(@fn visit_u64, u64, "a number", $e, $p);
        refuse_shapes!(@fn visit_f64, f64, "a number", $e, $p);
    };
    (@ string, $e:literal, $p:expr) => { refuse_shapes!(@fn visit_str, &str, "a string", $e, $p); };
    (@ null, $e:literal, $p:expr) => {
        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Err($p(&self).wrong($e, "null"))
        }
    };
    (@ array, $e:literal, $p:expr) => {
        fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
            Err($p(&self).wrong($e, "an array"))
        }
    };
    (@ object, $e:literal, $p:expr) => {
        fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
            Err($p(&self).wrong($e, "an object"))
        }
    };
    (@fn $name:ident, $t:ty, $found:literal, $e:literal, $p:expr) => {
        fn $name<E: Error>(self, _: $t) -> Result<Self::Value, E> {
            Err($p(&self).wrong($e, $found))
        }
    };
}

/// Where a visitor is, for messages, and where it notes problems.
#[derive(Clone, Copy)]
struct Place<'a> {
    notes: &'a Notes,
    list: Option<&'static str>,
    index: usize,
    key: Option<&'a str>,
}

impl Place<'_> {
    fn wrong<E: Error>(&self, expected: &'static str, found: &'static str) -> E {
        self.notes.refuse(What::WrongType { place: self.name(), expected, found })
    }

    fn name(&self) -> String {
        match (self.list, self.key) {
            (None, None) => "the record".to_owned(),
            (None, Some(key)) => format!("`{key}`"),
            (Some(list), None) => format!("{list}[{}]", self.index),
            (Some(list), Some(key)) => {
                let cut: String = key.chars().take(80).collect();
                format!("{list}[{}].{}", self.index, cut.escape_debug())
            }
        }
    }
}

/// A string, number or boolean, as text.
struct ScalarSeed<'a>(Place<'a>);

impl<'de> DeserializeSeed<'de> for ScalarSeed<'_> {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<String, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ScalarSeed<'_> {
    type Value = String;
    refuse_shapes!("a string, number or boolean", |v: &Self| v.0; null, array, object);

    fn visit_str<E: Error>(self, v: &str) -> Result<String, E> {
        Ok(v.to_owned())
    }
    fn visit_string<E: Error>(self, v: String) -> Result<String, E> {
        Ok(v)
    }
    fn visit_bool<E: Error>(self, v: bool) -> Result<String, E> {
        Ok(v.to_string())
    }
    fn visit_i64<E: Error>(self, v: i64) -> Result<String, E> {
        Ok(v.to_string())
    }
    fn visit_u64<E: Error>(self, v: u64) -> Result<String, E> {
        Ok(v.to_string())
    }
    fn visit_f64<E: Error>(self, v: f64) -> Result<String, E> {
        if v.abs() > EXACT_LIMIT {
            return Err(self.0.notes.refuse(What::InexactNumber { place: self.0.name() }));
        }
        // Display gives the shortest text that reads back, and `4` for 4.0: labels are compared as text.
        // Adding 0.0 turns -0.0 into 0.
        Ok((v + 0.0).to_string())
    }
}

/// An id: a scalar, not empty, of bounded length.
fn checked_id<E: Error>(place: Place<'_>, id: String) -> Result<String, E> {
    let (name, bytes) = (place.name(), id.len());
    if bytes == 0 {
        return Err(place.notes.refuse(What::EmptyId { place: name }));
    }
    if bytes > ID_LIMIT_BYTES {
        let limit_bytes = ID_LIMIT_BYTES;
        return Err(place.notes.refuse(What::IdTooLong { place: name, bytes, limit_bytes }));
    }
    Ok(id)
}

/// One object of `history` or `queries`.
struct ItemSeed<'a>(Place<'a>);

impl<'de> DeserializeSeed<'de> for ItemSeed<'_> {
    type Value = Item;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Item, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ItemSeed<'_> {
    type Value = Item;
    refuse_shapes!("an object", |v: &Self| v.0; bool, number, string, null, array);

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item, A::Error> {
        let place = self.0;
        let mut id = None;
        let mut fields = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            let here = Place { key: Some(&key), ..place };
            let is_id = key == "id";
            if (is_id && id.is_some()) || fields.contains_key(&key) {
                return Err(place.notes.refuse(What::DuplicateKey { place: place.name(), key }));
            }
            let value = map.next_value_seed(ScalarSeed(here))?;
            if is_id {
                id = Some(checked_id(here, value)?);
            } else {
                fields.insert(key, value);
            }
        }
        if fields.is_empty() {
            return Err(place.notes.refuse(What::NoFields { place: place.name() }));
        }
        let prefix = if place.list == Some("history") { 'h' } else { 'q' };
        Ok(Item { id: id.unwrap_or_else(|| format!("{prefix}{}", place.index)), fields })
    }
}

/// The array of `history` or `queries`.
struct ItemsSeed<'a>(Place<'a>);

impl<'de> DeserializeSeed<'de> for ItemsSeed<'_> {
    type Value = Vec<Item>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Vec<Item>, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ItemsSeed<'_> {
    type Value = Vec<Item>;
    refuse_shapes!("an array", |v: &Self| v.0; bool, number, string, null, object);

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Item>, A::Error> {
        let list = if self.0.key == Some("history") { "history" } else { "queries" };
        let mut place = Place { notes: self.0.notes, list: Some(list), index: 0, key: None };
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(ItemSeed(place))? {
            items.push(item);
            place.index += 1;
        }
        let mut ids = BTreeSet::new();
        if let Some(twice) = items.iter().find(|item| !ids.insert(item.id.as_str())) {
            return Err(place.notes.refuse(What::DuplicateItem { list, id: twice.id.clone() }));
        }
        Ok(items)
    }
}

/// The object of a line.
struct RecordSeed<'a>(&'a Notes);

impl<'de> DeserializeSeed<'de> for RecordSeed<'_> {
    type Value = UserRecord;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<UserRecord, D::Error> {
        d.deserialize_any(self)
    }
}

impl RecordSeed<'_> {
    fn place(&self) -> Place<'_> {
        Place { notes: self.0, list: None, index: 0, key: None }
    }
}

impl<'de> Visitor<'de> for RecordSeed<'_> {
    type Value = UserRecord;
    refuse_shapes!("an object", |v: &Self| Place { notes: v.0, list: None, index: 0, key: None };
        bool, number, string, null, array);

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UserRecord, A::Error> {
        let (mut id, mut history, mut queries) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let place = Place { key: Some(&key), ..self.place() };
            let twice = match key.as_str() {
                "id" => id.is_some(),
                "history" => history.is_some(),
                "queries" => queries.is_some(),
                _ => return Err(self.0.refuse(What::UnknownKey { key })),
            };
            if twice {
                let place = self.place().name();
                return Err(self.0.refuse(What::DuplicateKey { place, key }));
            }
            match key.as_str() {
                "id" => {
                    let text = checked_id(place, map.next_value_seed(ScalarSeed(place))?)?;
                    let user = UserId::new(&text);
                    self.0.user.replace(Some(user.clone()));
                    id = Some(user);
                }
                "history" => history = Some(map.next_value_seed(ItemsSeed(place))?),
                _ => queries = Some(map.next_value_seed(ItemsSeed(place))?),
            }
        }
        let id = id.ok_or_else(|| self.0.refuse(What::MissingId))?;
        Ok(UserRecord {
            id,
            history: history.unwrap_or_default(),
            queries: queries.unwrap_or_default(),
        })
    }
}
