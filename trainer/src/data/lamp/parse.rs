//! One record of a LaMP or OPPU file -> its parts, before questions meet answers.
//!
//! Stricter than the released programs where data would be lost in silence (a missing field, a key
//! twice), laxer than JSONL where the files vary: unknown keys are kept as fields if they are
//! scalars, and dropped and counted otherwise.

use super::LampTask;
use crate::data::visit::{Notes, Place, ScalarSeed, checked_id, parse_with, refuse_shapes};
use crate::data::{Item, What};
use crate::ids::UserId;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// A question (LaMP) or one of a user's queries (OPPU).
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: String,
    pub(super) input: String,
    pub(super) answer: Option<String>,
    pub(super) extra: BTreeMap<String, String>,
}

/// A record of a LaMP questions file.
#[derive(Debug)]
pub(super) struct Question {
    /// Whose question it is, where the release says so.
    pub(super) user: Option<UserId>,
    pub(super) asked: Asked,
    pub(super) profile: Vec<Item>,
}

/// A record of an OPPU users file.
#[derive(Debug)]
pub(super) struct User {
    pub(super) id: UserId,
    pub(super) profile: Vec<Item>,
    pub(super) asked: Vec<Asked>,
}

/// An answer or a profile text.
#[derive(Debug)]
pub(super) struct Gold {
    pub(super) id: String,
    pub(super) output: String,
}

/// The problem, and the user's id if it was read before the problem.
pub(super) type Refusal = (Option<UserId>, What);

/// A record and how many values of it were dropped.
pub(super) type Parsed<T> = Result<(T, u64), Refusal>;

pub(super) fn question(bytes: &[u8], task: LampTask) -> Parsed<Question> {
    parse(bytes, QuestionShape { task, asked: AskedShape::default(), user: None, profile: None })
}

pub(super) fn user(bytes: &[u8], task: LampTask) -> Parsed<User> {
    parse(bytes, UserShape { task, id: None, profile: None, asked: None })
}

pub(super) fn gold(bytes: &[u8]) -> Parsed<Gold> {
    parse(bytes, GoldShape::default())
}

/// The `user_id` of an OPPU user; nothing behind it is read.
pub(super) fn user_id_of(bytes: &[u8]) -> Option<String> {
    let (id, _) = parse(bytes, IdShape).err()?;
    Some(id?.as_str().to_owned())
}

fn parse<T: Shape>(bytes: &[u8], shape: T) -> Parsed<T::Out> {
    let notes = Notes::default();
    let place = Place::record(&notes);
    let parsed = parse_with(bytes, &notes, ObjectSeed { place, shape })?;
    Ok((parsed, notes.dropped.get()))
}

/// What an object's keys are for.
trait Shape: Sized {
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

struct ObjectSeed<'a, T> {
    place: Place<'a>,
    shape: T,
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
struct ListSeed<'a, F> {
    place: Place<'a>,
    list: &'static str,
    shape: F,
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

/// A scalar as text; anything else is read over, dropped and counted.
struct ExtraSeed<'a>(Place<'a>);

impl ExtraSeed<'_> {
    fn drop(&self) {
        let dropped = &self.0.notes.dropped;
        dropped.set(dropped.get() + 1);
    }
}

impl<'de> DeserializeSeed<'de> for ExtraSeed<'_> {
    type Value = Option<String>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Option<String>, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ExtraSeed<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_str<E: Error>(self, v: &str) -> Result<Self::Value, E> {
        Ok(Some(v.to_owned()))
    }
    fn visit_bool<E: Error>(self, v: bool) -> Result<Self::Value, E> {
        Ok(Some(v.to_string()))
    }
    fn visit_i64<E: Error>(self, v: i64) -> Result<Self::Value, E> {
        Ok(Some(v.to_string()))
    }
    fn visit_u64<E: Error>(self, v: u64) -> Result<Self::Value, E> {
        Ok(Some(v.to_string()))
    }
    fn visit_f64<E: Error>(self, v: f64) -> Result<Self::Value, E> {
        ScalarSeed(self.0).visit_f64(v).map(Some)
    }
    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        self.drop();
        Ok(None)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        self.drop();
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        self.drop();
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

fn id<'de, A: MapAccess<'de>>(place: Place<'_>, map: &mut A) -> Result<String, A::Error> {
    checked_id(place, map.next_value_seed(ScalarSeed(place))?)
}

/// An id of a user, noted for the messages about the rest of the record.
fn user_id<'de, A: MapAccess<'de>>(place: Place<'_>, map: &mut A) -> Result<UserId, A::Error> {
    let user = UserId::new(&id(place, map)?);
    place.notes.user.replace(Some(user.clone()));
    Ok(user)
}

fn needed<T>(value: Option<T>, place: Place<'_>, key: &'static str) -> Result<T, What> {
    value.ok_or_else(|| What::MissingKey { place: place.name(), key })
}

struct ItemShape {
    task: LampTask,
    id: Option<String>,
    fields: BTreeMap<String, String>,
}

impl ItemShape {
    fn of(task: LampTask) -> impl Fn() -> Self {
        move || Self { task, id: None, fields: BTreeMap::new() }
    }
}

impl Shape for ItemShape {
    type Out = Item;
    fn has(&self, key: &str) -> bool {
        (key == "id" && self.id.is_some()) || self.fields.contains_key(key)
    }
    fn entry<'de, A: MapAccess<'de>>(
        &mut self,
        place: Place<'_>,
        key: &str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        if key == "id" {
            self.id = Some(id(place, map)?);
        } else if self.task.required_fields().contains(&key) {
            self.fields.insert(key.to_owned(), map.next_value_seed(ScalarSeed(place))?);
        } else if let Some(text) = map.next_value_seed(ExtraSeed(place))? {
            self.fields.insert(key.to_owned(), text);
        }
        Ok(())
    }
    fn finish(self, place: Place<'_>) -> Result<Item, What> {
        let id = needed(self.id, place, "id")?;
        let lacks = self.task.required_fields().iter().find(|f| !self.fields.contains_key(**f));
        match lacks {
            Some(key) => Err(What::MissingKey { place: place.name(), key }),
            None => Ok(Item { id, fields: self.fields }),
        }
    }
}

#[derive(Default)]
struct AskedShape {
    id: Option<String>,
    input: Option<String>,
    answer: Option<String>,
    extra: BTreeMap<String, String>,
}

impl AskedShape {
    fn question_id(&self) -> Option<&str> {
        self.id.as_deref()
    }
}

impl Shape for AskedShape {
    type Out = Asked;
    fn has(&self, key: &str) -> bool {
        match key {
            "id" => self.id.is_some(),
            "input" => self.input.is_some(),
            "gold" | "output" => self.answer.is_some(),
            _ => self.extra.contains_key(key),
        }
    }
    fn entry<'de, A: MapAccess<'de>>(
        &mut self,
        place: Place<'_>,
        key: &str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        match key {
            "id" => self.id = Some(id(place, map)?),
            "input" => self.input = Some(map.next_value_seed(ScalarSeed(place))?),
            "gold" | "output" => self.answer = map.next_value_seed(ExtraSeed(place))?,
            _ => {
                if let Some(text) = map.next_value_seed(ExtraSeed(place))? {
                    self.extra.insert(key.to_owned(), text);
                }
            }
        }
        Ok(())
    }
    fn finish(self, place: Place<'_>) -> Result<Asked, What> {
        let id = needed(self.id, place, "id")?;
        let input = needed(self.input, place, "input")?;
        Ok(Asked { id, input, answer: self.answer, extra: self.extra })
    }
}

struct QuestionShape {
    task: LampTask,
    asked: AskedShape,
    user: Option<UserId>,
    profile: Option<Vec<Item>>,
}

impl Shape for QuestionShape {
    type Out = Question;
    fn has(&self, key: &str) -> bool {
        match key {
            "user_id" => self.user.is_some(),
            "profile" => self.profile.is_some(),
            _ => self.asked.has(key),
        }
    }
    fn entry<'de, A: MapAccess<'de>>(
        &mut self,
        place: Place<'_>,
        key: &str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        match key {
            "user_id" => self.user = Some(user_id(place, map)?),
            "profile" => {
                let shape = ItemShape::of(self.task);
                self.profile =
                    Some(map.next_value_seed(ListSeed { place, list: "profile", shape })?);
            }
            _ => {
                self.asked.entry(place, key, map)?;
                // Without a user the question's id is the user's.
                if self.user.is_none() && key == "id" {
                    place.notes.user.replace(self.asked.question_id().map(UserId::new));
                }
            }
        }
        Ok(())
    }
    fn finish(self, place: Place<'_>) -> Result<Question, What> {
        let asked = self.asked.finish(place)?;
        Ok(Question { user: self.user, asked, profile: needed(self.profile, place, "profile")? })
    }
}

struct UserShape {
    task: LampTask,
    id: Option<UserId>,
    profile: Option<Vec<Item>>,
    asked: Option<Vec<Asked>>,
}

impl Shape for UserShape {
    type Out = User;
    fn has(&self, key: &str) -> bool {
        match key {
            "user_id" => self.id.is_some(),
            "profile" => self.profile.is_some(),
            "query" => self.asked.is_some(),
            _ => false,
        }
    }
    fn entry<'de, A: MapAccess<'de>>(
        &mut self,
        place: Place<'_>,
        key: &str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        match key {
            "user_id" => self.id = Some(user_id(place, map)?),
            "profile" => {
                let shape = ItemShape::of(self.task);
                self.profile =
                    Some(map.next_value_seed(ListSeed { place, list: "profile", shape })?);
            }
            "query" => {
                let shape = AskedShape::default;
                self.asked = Some(map.next_value_seed(ListSeed { place, list: "query", shape })?);
            }
            _ => {
                // A record has no place for further texts about the user.
                map.next_value::<IgnoredAny>()?;
                place.notes.dropped.set(place.notes.dropped.get() + 1);
            }
        }
        Ok(())
    }
    fn finish(self, place: Place<'_>) -> Result<User, What> {
        let id = needed(self.id, place, "user_id")?;
        let profile = needed(self.profile, place, "profile")?;
        Ok(User { id, profile, asked: needed(self.asked, place, "query")? })
    }
}

#[derive(Default)]
struct GoldShape {
    id: Option<String>,
    output: Option<String>,
}

impl Shape for GoldShape {
    type Out = Gold;
    fn has(&self, key: &str) -> bool {
        match key {
            "id" => self.id.is_some(),
            "output" => self.output.is_some(),
            _ => false,
        }
    }
    fn entry<'de, A: MapAccess<'de>>(
        &mut self,
        place: Place<'_>,
        key: &str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        match key {
            "id" => self.id = Some(id(place, map)?),
            "output" => self.output = Some(map.next_value_seed(ScalarSeed(place))?),
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
    fn finish(self, place: Place<'_>) -> Result<Gold, What> {
        let id = needed(self.id, place, "id")?;
        Ok(Gold { id, output: needed(self.output, place, "output")? })
    }
}

/// Ends with an error in any case: the id is in the notes.
struct IdShape;

impl Shape for IdShape {
    type Out = ();
    fn has(&self, _: &str) -> bool {
        false
    }
    fn entry<'de, A: MapAccess<'de>>(
        &mut self,
        place: Place<'_>,
        key: &str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        if key == "user_id" {
            user_id(place, map)?;
            return Err(place.notes.refuse(What::MissingId));
        }
        map.next_value::<IgnoredAny>().map(|_| ())
    }
    fn finish(self, _: Place<'_>) -> Result<(), What> {
        Err(What::MissingId)
    }
}
