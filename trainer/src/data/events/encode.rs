//! From names to numbers: vocabularies, parts, rows.

use super::error::EventsError;
use super::format::Format;
use super::log::{CONTEXTS, Column, EVENT, EventData, EventUser, UNKNOWN, Vocabulary};
use super::raw::{Names, RawEvent, RawLog, Tally, later};
use super::split::Split;
use crate::data::DataError;
use crate::ids::UserId;
use std::collections::BTreeMap;
use std::ops::Range;

const DAY_SECONDS: i64 = 86_400;
/// 1970-01-01 was a Thursday; Monday is 0.
const WEEKDAY_OF_1970: i64 = 3;

/// A person whose names are not numbered yet.
struct Person<'a> {
    id: &'a UserId,
    events: &'a [RawEvent],
    times: Vec<i64>,
    first: Vec<usize>,
    parts: [Range<usize>; 3],
    cold: bool,
}

impl Person<'_> {
    /// Whether an event has one before it that a window may hold.
    fn has_window(&self, target: usize) -> bool {
        self.first.get(target).copied().unwrap_or(0) < target
    }
}

impl RawLog {
    /// Numbers a log.
    ///
    /// Without a vocabulary it is made of the training parts of the users who are not cold: names of events and
    /// values of contexts of all events there, intents of those that are targets, each sorted by name. A cold user
    /// counts for nothing, training part included: the population stage must not have met them.
    ///
    /// With a vocabulary, of a model trained before, that one holds.
    ///
    /// # Errors
    /// Values without sense, a listed cold user who is not there, no target to make a vocabulary of, a vocabulary of
    /// other columns.
    pub fn encode(
        &self,
        format: &Format,
        split: &Split,
        vocabulary: Option<&Vocabulary>,
        tally: &mut Tally,
    ) -> Result<EventData, DataError> {
        format.check()?;
        let people = self.people(format, split, tally)?;
        let vocabulary = match vocabulary {
            Some(given) => given.clone(),
            None => self.vocabulary(&people, format)?,
        };
        let numbers = Numbers::new(self, &vocabulary, format)?;
        let users = people.into_iter().map(|person| numbers.user(person, tally)).collect();
        Ok(EventData { vocabulary, users })
    }

    fn people(
        &self,
        format: &Format,
        split: &Split,
        tally: &mut Tally,
    ) -> Result<Vec<Person<'_>>, EventsError> {
        let cuts = split.cuts()?;
        let absent = |user: &&String| !self.users.contains_key(&UserId::new(user));
        if let Some(user) = split.cold_users.iter().find(absent) {
            return Err(EventsError::NoColdUser { user: user.clone() });
        }
        let mut people = Vec::with_capacity(self.users.len());
        for (id, events) in &self.users {
            let times: Vec<i64> = events.iter().map(|e| e.moment.local_seconds()).collect();
            let parts = cuts.parts(&times);
            let first = first(events, format.gap_seconds, &mut tally.gaps);
            people.push(Person { id, events, times, first, parts, cold: split.is_cold(id) });
        }
        Ok(people)
    }

    fn vocabulary(
        &self,
        people: &[Person<'_>],
        format: &Format,
    ) -> Result<Vocabulary, EventsError> {
        let mut events = vec![0u64; self.events.len()];
        let mut intents = vec![0u64; self.intents.len()];
        let mut values: Vec<Vec<u64>> = self.values.iter().map(|n| vec![0; n.len()]).collect();
        let count = |counts: &mut Vec<u64>, number: u32| {
            usize::try_from(number).ok().and_then(|n| counts.get_mut(n)).map(|n| *n += 1)
        };
        for person in people.iter().filter(|person| !person.cold) {
            for at in person.parts[0].clone() {
                let event = &person.events[at];
                count(&mut events, event.event);
                if let Some(intent) = event.intent.filter(|_| person.has_window(at)) {
                    count(&mut intents, intent);
                }
                for (counts, value) in values.iter_mut().zip(&event.contexts) {
                    value.and_then(|value| count(counts, value));
                }
            }
        }
        let intents = often(&self.intents, &intents, format.min_intent_count);
        if intents.is_empty() {
            return Err(EventsError::NoTraining);
        }
        let named = |name: &str, names: &Names, counts: &[u64]| {
            let mut values = vec![UNKNOWN.to_owned()];
            values.extend(often(names, counts, format.min_count));
            Column { name: name.to_owned(), size: size(values.len()), values }
        };
        let numbers = |name: &str, size| Column { name: name.to_owned(), size, values: Vec::new() };
        let mut columns = vec![
            numbers("time", 1440 / format.bucket_minutes),
            numbers("weekday", 7),
            named("event", &self.events, &events),
        ];
        for ((name, names), counts) in self.contexts.iter().zip(&self.values).zip(&values) {
            columns.push(named(name, names, counts));
        }
        Ok(Vocabulary { columns, intents })
    }
}

/// Names that are there often enough, sorted.
fn often(names: &Names, counts: &[u64], least: u64) -> Vec<String> {
    let numbered = (0u32..).zip(counts);
    let kept = numbered.filter(|(_, count)| **count >= least.max(1));
    let mut kept: Vec<String> = kept.map(|(number, _)| names.text(number).to_owned()).collect();
    kept.sort_unstable();
    kept
}

/// A number of names; names take more memory than that each.
fn size(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Where windows may begin, for each event as a target; empty without gaps.
fn first(events: &[RawEvent], gap_seconds: Option<u64>, gaps: &mut u64) -> Vec<usize> {
    let Some(seconds) = gap_seconds else { return Vec::new() };
    let (mut start, mut first) = (0, Vec::with_capacity(events.len()));
    for (at, event) in events.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| events[at].moment.ms);
        if before.is_some_and(|then| later(then, event.moment.ms, seconds)) {
            (start, *gaps) = (at, *gaps + 1);
        }
        first.push(start);
    }
    if start == 0 { Vec::new() } else { first }
}

/// The numbers of a vocabulary by the numbers of a raw log.
struct Numbers {
    bucket_seconds: i64,
    /// Events, then contexts: 0 is unknown.
    columns: Vec<Vec<u32>>,
    intents: Vec<Option<u32>>,
}

impl Numbers {
    fn new(log: &RawLog, vocabulary: &Vocabulary, format: &Format) -> Result<Self, EventsError> {
        let fixed = ["time", "weekday", "event"].map(str::to_owned);
        let found: Vec<String> = fixed.into_iter().chain(log.contexts.iter().cloned()).collect();
        let expected: Vec<String> = vocabulary.columns.iter().map(|c| c.name.clone()).collect();
        if expected != found {
            return Err(EventsError::OtherColumns { expected, found });
        }
        if vocabulary.columns[super::TIME].size != 1440 / format.bucket_minutes {
            let reason = "the vocabulary has buckets of another length";
            return Err(EventsError::Option { key: "bucket_minutes", reason });
        }
        let known = |names: &Names, values: &[String]| -> Vec<Option<u32>> {
            let by_name: BTreeMap<&str, u32> = values.iter().map(String::as_str).zip(0..).collect();
            (0..size(names.len())).map(|n| by_name.get(names.text(n)).copied()).collect()
        };
        // Value 0 has a name that is no value's.
        let column = |names: &Names, at: usize| -> Vec<u32> {
            let values = vocabulary.columns[at].values.get(1..).unwrap_or_default();
            known(names, values).into_iter().map(|n| n.map_or(0, |n| n + 1)).collect()
        };
        let mut columns = vec![column(&log.events, EVENT)];
        columns.extend((CONTEXTS..).zip(&log.values).map(|(at, names)| column(names, at)));
        let intents = known(&log.intents, &vocabulary.intents);
        Ok(Self { bucket_seconds: i64::from(format.bucket_minutes) * 60, columns, intents })
    }

    fn user(&self, person: Person<'_>, tally: &mut Tally) -> EventUser {
        let of = |numbers: &[u32], at: u32| {
            usize::try_from(at).ok().and_then(|at| numbers.get(at)).copied().unwrap_or(0)
        };
        let mut rows = Vec::with_capacity(person.events.len() * (2 + self.columns.len()));
        let mut intents = Vec::with_capacity(person.events.len());
        let mut trained = false;
        for (part, range) in person.parts.iter().enumerate() {
            for at in range.clone() {
                let (event, time) = (&person.events[at], person.times[at]);
                rows.push(small(time.rem_euclid(DAY_SECONDS) / self.bucket_seconds));
                rows.push(small((time.div_euclid(DAY_SECONDS) + WEEKDAY_OF_1970).rem_euclid(7)));
                let number = of(&self.columns[0], event.event);
                tally.unknown_events[part] += u64::from(number == 0);
                rows.push(number);
                for (numbers, value) in self.columns[1..].iter().zip(&event.contexts) {
                    let number = value.map_or(0, |value| of(numbers, value));
                    tally.unknown_contexts[part] += u64::from(number == 0);
                    rows.push(number);
                }
                let meant = event.intent.and_then(|n| usize::try_from(n).ok());
                let intent = meant.and_then(|n| self.intents.get(n).copied().flatten());
                if intent.is_none() && person.has_window(at) {
                    let unseen = u64::from(event.intent.is_some());
                    tally.unseen_intents[part] += unseen;
                    tally.without_intent[part] += 1 - unseen;
                }
                trained |= part == 0 && intent.is_some() && person.has_window(at);
                intents.push(intent);
            }
        }
        tally.users_without_training += u64::from(!trained);
        let Person { id, times, first, parts, cold, .. } = person;
        EventUser { id: id.clone(), times, rows, intents, first, parts, cold }
    }
}

/// A time bucket or a weekday.
fn small(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(0)
}
