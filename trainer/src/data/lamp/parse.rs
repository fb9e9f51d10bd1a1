//! One record of a LaMP or OPPU file -> its parts, before questions meet answers.
//!
//! Stricter than the released programs where data would be lost in silence (a missing field, a key
//! twice), laxer than JSONL where the files vary: unknown keys are kept as fields if they are
//! scalars, and dropped and counted otherwise. An item of a profile that lacks something is told apart
//! from the good ones ([`Items`]); whether it ends the record is not decided here.

use super::LampTask;
use super::shape::{AnySeed, ListSeed, ObjectSeed, Shape};
use crate::data::visit::{Notes, Place, ScalarSeed, checked_id, parse_with};
use crate::data::{Item, What};
use crate::ids::UserId;
use serde::de::{IgnoredAny, MapAccess};
use std::collections::BTreeMap;

/// A question (LaMP) or one of a user's queries (OPPU).
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: String,
    pub(super) input: String,
    pub(super) answer: Option<String>,
    pub(super) extra: BTreeMap<String, String>,
}

/// The items of a profile.
#[derive(Debug)]
pub(super) struct Items {
    /// Those with an id and all fields of the task.
    pub(super) usable: Vec<Item>,
    /// How many others there are.
    pub(super) num_unusable: u64,
    /// What the first of them lacks.
    pub(super) lacks: Option<What>,
}

/// A record of a LaMP questions file.
#[derive(Debug)]
pub(super) struct Question {
    /// Whose question it is, where the release says so.
    pub(super) user: Option<UserId>,
    pub(super) asked: Asked,
    pub(super) profile: Items,
}

/// A record of an OPPU users file.
#[derive(Debug)]
pub(super) struct User {
    pub(super) id: UserId,
    pub(super) profile: Items,
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

/// A scalar of an unknown key; anything else is dropped and counted.
fn extra<'de, A: MapAccess<'de>>(
    place: Place<'_>,
    map: &mut A,
) -> Result<Option<String>, A::Error> {
    let text = map.next_value_seed(AnySeed(place))?.ok();
    if text.is_none() {
        place.notes.dropped.set(place.notes.dropped.get() + 1);
    }
    Ok(text)
}

/// The value of `profile`, in questions and users alike.
fn items<'de, A: MapAccess<'de>>(
    task: LampTask,
    place: Place<'_>,
    map: &mut A,
) -> Result<Items, A::Error> {
    let shape = || ItemShape { task, id: None, fields: BTreeMap::new(), lacks: None };
    let list = map.next_value_seed(ListSeed { place, list: "profile", shape })?;
    let mut items = Items { usable: Vec::with_capacity(list.len()), num_unusable: 0, lacks: None };
    for item in list {
        match item {
            Ok(item) => items.usable.push(item),
            Err(what) => {
                items.num_unusable += 1;
                items.lacks.get_or_insert(what);
            }
        }
    }
    Ok(items)
}

struct ItemShape {
    task: LampTask,
    id: Option<String>,
    fields: BTreeMap<String, String>,
    /// The first required field whose value is none.
    lacks: Option<What>,
}

impl Shape for ItemShape {
    /// The item, or what it lacks: its own fault, not the record's.
    type Out = Result<Item, What>;
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
            match map.next_value_seed(AnySeed(place))? {
                Ok(text) => drop(self.fields.insert(key.to_owned(), text)),
                Err(found) => {
                    let (place, expected) = (place.name(), "a string, number or boolean");
                    self.lacks.get_or_insert(What::WrongType { place, expected, found });
                }
            }
        } else if let Some(text) = extra(place, map)? {
            self.fields.insert(key.to_owned(), text);
        }
        Ok(())
    }
    fn finish(self, place: Place<'_>) -> Result<Self::Out, What> {
        let mut required = self.task.required_fields().iter();
        let absent = required.find(|field| !self.fields.contains_key(**field));
        let missing = |key| What::MissingKey { place: place.name(), key };
        Ok(match (self.id, self.lacks.or_else(|| absent.map(|key| missing(key)))) {
            (None, _) => Err(missing("id")),
            (Some(_), Some(what)) => Err(what),
            (Some(id), None) => Ok(Item { id, fields: self.fields }),
        })
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
            "gold" | "output" => self.answer = extra(place, map)?,
            _ => {
                if let Some(text) = extra(place, map)? {
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
    profile: Option<Items>,
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
            "profile" => self.profile = Some(items(self.task, place, map)?),
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
    profile: Option<Items>,
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
            "profile" => self.profile = Some(items(self.task, place, map)?),
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
