//! One JSON line -> one [`UserRecord`], strictly (`visit.rs` has the parts).

use super::visit::{Notes, Place, ScalarSeed, checked_id, parse_with, refuse_shapes};
use super::{Item, UserRecord, What};
use crate::ids::UserId;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};

/// Parses one line.
///
/// # Errors
/// The problem, and the user's id if it was read before the problem.
pub(super) fn parse_record(line: &[u8]) -> Result<UserRecord, (Option<UserId>, What)> {
    let notes = Notes::default();
    parse_with(line, &notes, RecordSeed(&notes))
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
        Place::record(self.0)
    }
}

impl<'de> Visitor<'de> for RecordSeed<'_> {
    type Value = UserRecord;
    refuse_shapes!("an object", |v: &Self| Place::record(v.0);
        bool, number, string, null, array);

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UserRecord, A::Error> {
        let (mut id, mut history, mut queries, mut profile) = (None, None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let place = Place { key: Some(&key), ..self.place() };
            let twice = match key.as_str() {
                "id" => id.is_some(),
                "history" => history.is_some(),
                "queries" => queries.is_some(),
                "profile" => profile.is_some(),
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
                "profile" => profile = Some(map.next_value_seed(ScalarSeed(place))?),
                _ => queries = Some(map.next_value_seed(ItemsSeed(place))?),
            }
        }
        let id = id.ok_or_else(|| self.0.refuse(What::MissingId))?;
        Ok(UserRecord {
            id,
            history: history.unwrap_or_default(),
            queries: queries.unwrap_or_default(),
            profile,
        })
    }
}
