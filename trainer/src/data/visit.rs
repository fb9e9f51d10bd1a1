//! What strict JSON reading is made of: places for messages, notes, scalars as text, ids.
//!
//! Typed visitors build nothing from a record but the record, see duplicate keys, and stop nesting
//! beyond a format's own at its first bracket. Formats: `json.rs` (JSONL), `lamp/parse.rs`.

use super::What;
use crate::ids::UserId;
use serde::de::{DeserializeSeed, Deserializer, Error, Visitor};
use std::cell::{Cell, RefCell};

/// Longest user or item id in bytes.
pub(super) const ID_LIMIT_BYTES: usize = 4096;

/// Integers up to this are exact in a double; a float beyond it may have been an integer that lost digits.
const EXACT_LIMIT: f64 = 9_007_199_254_740_992.0;

/// What the visitors note on the way: serde's own errors can only carry text.
#[derive(Default)]
pub(super) struct Notes {
    /// The user of the record, once read.
    pub(super) user: RefCell<Option<UserId>>,
    what: Cell<Option<What>>,
    /// Values that were left out because a field cannot hold them.
    pub(super) dropped: Cell<u64>,
}

impl Notes {
    /// Notes the problem and gives serde something to stop with.
    pub(super) fn refuse<E: Error>(&self, what: What) -> E {
        self.what.set(Some(what));
        E::custom("refused")
    }
}

/// Parses bytes as one value of the seed.
///
/// # Errors
/// The problem, and the user's id if it was read before the problem.
pub(super) fn parse_with<'l, S: DeserializeSeed<'l>>(
    bytes: &'l [u8],
    notes: &Notes,
    seed: S,
) -> Result<S::Value, (Option<UserId>, What)> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => return Err((None, What::InvalidUtf8 { byte: e.valid_up_to() })),
    };
    let mut parser = serde_json::Deserializer::from_str(text);
    let parsed = seed.deserialize(&mut parser).and_then(|r| parser.end().map(|()| r));
    parsed.map_err(|e| {
        let json = || What::Json { column: column(text, &e), message: reason(&e) };
        (notes.user.take(), notes.what.take().unwrap_or_else(json))
    })
}

/// Where the parser stopped, counted from the start of the record.
fn column(text: &str, e: &serde_json::Error) -> usize {
    let before = text.split_inclusive('\n').take(e.line().saturating_sub(1));
    before.map(str::len).sum::<usize>() + e.column()
}

/// The parser's reason without the line and column it appends.
fn reason(e: &serde_json::Error) -> String {
    let full = e.to_string();
    full.rsplit_once(" at line ").map_or(full.clone(), |(start, _)| start.to_owned())
}

/// Defines the `visit_*` of every JSON shape a place does not take.
macro_rules! refuse_shapes {
    ($expected:literal, $place:expr; $($shape:ident),*) => {
        fn expecting(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
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
        fn visit_unit<E: ::serde::de::Error>(self) -> Result<Self::Value, E> {
            Err($p(&self).wrong($e, "null"))
        }
    };
    (@ array, $e:literal, $p:expr) => {
        fn visit_seq<A: ::serde::de::SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
            Err($p(&self).wrong($e, "an array"))
        }
    };
    (@ object, $e:literal, $p:expr) => {
        fn visit_map<A: ::serde::de::MapAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
            Err($p(&self).wrong($e, "an object"))
        }
    };
    (@fn $name:ident, $t:ty, $found:literal, $e:literal, $p:expr) => {
        fn $name<E: ::serde::de::Error>(self, _: $t) -> Result<Self::Value, E> {
            Err($p(&self).wrong($e, $found))
        }
    };
}

pub(super) use refuse_shapes;

/// Where a visitor is, for messages, and where it notes problems.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) notes: &'a Notes,
    pub(super) list: Option<&'static str>,
    pub(super) index: usize,
    pub(super) key: Option<&'a str>,
}

impl<'a> Place<'a> {
    /// The whole record.
    pub(super) fn record(notes: &'a Notes) -> Self {
        Self { notes, list: None, index: 0, key: None }
    }

    pub(super) fn wrong<E: Error>(&self, expected: &'static str, found: &'static str) -> E {
        self.notes.refuse(What::WrongType { place: self.name(), expected, found })
    }

    pub(super) fn name(&self) -> String {
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
pub(super) struct ScalarSeed<'a>(pub(super) Place<'a>);

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
pub(super) fn checked_id<E: Error>(place: Place<'_>, id: String) -> Result<String, E> {
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
