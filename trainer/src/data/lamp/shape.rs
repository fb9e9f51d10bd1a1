//! Objects, lists of objects and any values of a record, read key by key into what a [`Shape`] makes of them.

use crate::data::What;
use crate::data::visit::{Place, ScalarSeed, refuse_shapes};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// What an object's keys are for.
pub(super) trait Shape: Sized {
    type Out;
    /// Whether a key that may stand once has been read.
    fn has(&self, key: &str) -> bool;
    /// Reads the value of a key; `place` names it.
    fn entry<'de, A: MapAccess<'de>>(
        &mut self,
        place: Place<'_>,
        key: &str,
        map: &mut A,
    ) -> Result<(), A::Error>;
    /// The object, or what it lacks.
    fn finish(self, place: Place<'_>) -> Result<Self::Out, What>;
}

pub(super) struct ObjectSeed<'a, T> {
    pub(super) place: Place<'a>,
    pub(super) shape: T,
}

impl<'de, T: Shape> DeserializeSeed<'de> for ObjectSeed<'_, T> {
    type Value = T::Out;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<T::Out, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de, T: Shape> Visitor<'de> for ObjectSeed<'_, T> {
    type Value = T::Out;
    refuse_shapes!("an object", |v: &Self| v.place; bool, number, string, null, array);

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<T::Out, A::Error> {
        let place = self.place;
        while let Some(key) = map.next_key::<String>()? {
            if self.shape.has(&key) {
                return Err(place.notes.refuse(What::DuplicateKey { place: place.name(), key }));
            }
            self.shape.entry(Place { key: Some(&key), ..place }, &key, &mut map)?;
        }
        self.shape.finish(place).map_err(|what| place.notes.refuse(what))
    }
}

/// An array of objects; `list` names it in messages.
pub(super) struct ListSeed<'a, F> {
    pub(super) place: Place<'a>,
    pub(super) list: &'static str,
    pub(super) shape: F,
}

impl<'de, T: Shape, F: Fn() -> T> DeserializeSeed<'de> for ListSeed<'_, F> {
    type Value = Vec<T::Out>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Vec<T::Out>, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de, T: Shape, F: Fn() -> T> Visitor<'de> for ListSeed<'_, F> {
    type Value = Vec<T::Out>;
    refuse_shapes!("an array", |v: &Self| v.place; bool, number, string, null, object);

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T::Out>, A::Error> {
        let mut place = Place { list: Some(self.list), ..Place::record(self.place.notes) };
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(ObjectSeed { place, shape: (self.shape)() })? {
            items.push(item);
            place.index += 1;
        }
        Ok(items)
    }
}

/// A scalar as text; anything else is read over, and what it was is told.
pub(super) struct AnySeed<'a>(pub(super) Place<'a>);

impl<'de> DeserializeSeed<'de> for AnySeed<'_> {
    type Value = Result<String, &'static str>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnySeed<'_> {
    type Value = Result<String, &'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_str<E: Error>(self, v: &str) -> Result<Self::Value, E> {
        Ok(Ok(v.to_owned()))
    }
    fn visit_bool<E: Error>(self, v: bool) -> Result<Self::Value, E> {
        Ok(Ok(v.to_string()))
    }
    fn visit_i64<E: Error>(self, v: i64) -> Result<Self::Value, E> {
        Ok(Ok(v.to_string()))
    }
    fn visit_u64<E: Error>(self, v: u64) -> Result<Self::Value, E> {
        Ok(Ok(v.to_string()))
    }
    fn visit_f64<E: Error>(self, v: f64) -> Result<Self::Value, E> {
        ScalarSeed(self.0).visit_f64(v).map(Ok)
    }
    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Err("null"))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Err("an array"))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Err("an object"))
    }
}
