//! Counts of training targets, smoothed towards what is known more widely.

use crate::data::events::{EVENT, EventData, EventUser, Part, TIME, Window};
use crate::ids::UserId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A way to guess the next intent.
///
/// `D(counts | prior) = (count(n) + backoff * prior(n)) / (total + backoff)` below: a prior worth `backoff` observations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The population's shares: `P(n) = (count + smoothing) / (total + smoothing * intents)`.
    MostFrequent,
    /// The person's shares: `U = D(person's counts | P)`.
    PersonalFrequency,
    /// The person's shares after events of the same part of the day: `D(person's counts in that part | U)`.
    PersonalTime,
    /// What follows an event in the population: `M(. | e) = D(counts after e | P)`.
    Markov,
    /// What follows an event with the person: `D(person's counts after e | D(person's counts | M(. | e)))`.
    PersonalMarkov,
}

impl Baseline {
    /// Every baseline, in the tables' order.
    pub const ALL: [Self; 5] = [
        Self::MostFrequent,
        Self::PersonalFrequency,
        Self::PersonalTime,
        Self::Markov,
        Self::PersonalMarkov,
    ];

    /// Name in configs and in the names of files.
    pub fn key(self) -> &'static str {
        match self {
            Self::MostFrequent => "most_frequent",
            Self::PersonalFrequency => "personal_frequency",
            Self::PersonalTime => "personal_time",
            Self::Markov => "markov",
            Self::PersonalMarkov => "personal_markov",
        }
    }

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::MostFrequent => "most frequent",
            Self::PersonalFrequency => "personal frequency",
            Self::PersonalTime => "personal frequency by time",
            Self::Markov => "Markov",
            Self::PersonalMarkov => "personal Markov",
        }
    }
}

/// How counts become shares.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Added to every count of the population (Laplace); above 0.
    pub smoothing: f64,
    /// Observations that the wider prior is worth; above 0.
    pub backoff: f64,
    /// Equal parts of the day of [`Baseline::PersonalTime`], at least 1; more than the time column has values are as
    /// many as it has.
    pub day_parts: u32,
}

impl Default for Options {
    /// Laplace, a prior worth two observations, six parts of four hours.
    fn default() -> Self {
        Self { smoothing: 1.0, backoff: 2.0, day_parts: 6 }
    }
}

/// What cannot be fitted, or asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BaselineError {
    /// A parameter out of its range.
    #[error("baselines: {key} is {got}, expected {expected}")]
    Parameter {
        /// Which.
        key: &'static str,
        /// Its value.
        got: f64,
        /// What it may be.
        expected: &'static str,
    },
    /// A log whose numbers are outside the vocabulary.
    #[error("baselines: event {event} of user {user} is outside the vocabulary")]
    Event {
        /// Whose.
        user: UserId,
        /// Which.
        event: usize,
    },
    /// A window without events.
    #[error("baselines: a window of no whole event before target {target} of user {user}")]
    Window {
        /// Whose.
        user: UserId,
        /// The target.
        target: usize,
    },
}

/// Counts by place: sums and, by intent, what is not zero. Sparse: a person meets few of all pairs.
type Table = BTreeMap<u32, Tally>;

#[derive(Debug, Clone, Default, PartialEq)]
struct Tally {
    total: f64,
    by_intent: BTreeMap<u32, f64>,
}

impl Tally {
    fn add(&mut self, intent: u32) {
        self.total += 1.0;
        *self.by_intent.entry(intent).or_default() += 1.0;
    }

    /// `shares` = D(self | shares).
    fn onto(&self, shares: &mut [f64], backoff: f64) {
        let scale = 1.0 / (self.total + backoff);
        shares.iter_mut().for_each(|p| *p *= backoff * scale);
        for (&intent, count) in &self.by_intent {
            shares[intent as usize] += count * scale;
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Person {
    all: Tally,
    by_part: Table,
    after: Table,
}

/// All baselines, fitted.
#[derive(Debug, Clone, PartialEq)]
pub struct Baselines {
    options: Options,
    /// Values of the time column in a part of the day.
    hours: u32,
    width: usize,
    /// P.
    population: Vec<f64>,
    after: Table,
    people: BTreeMap<UserId, Person>,
}

impl Baselines {
    /// Counts the training targets: the population's of people who are not cold, and everybody's own.
    ///
    /// *Order*: sums of whole numbers, so nothing depends on the order of people.
    ///
    /// # Errors
    /// A parameter out of its range; a number outside the vocabulary.
    pub fn fit(data: &EventData, options: Options) -> Result<Self, BaselineError> {
        for (key, got) in [("smoothing", options.smoothing), ("backoff", options.backoff)] {
            if !(got > 0.0 && got.is_finite()) {
                let expected = "a finite number above 0";
                return Err(BaselineError::Parameter { key, got, expected });
            }
        }
        if options.day_parts == 0 {
            let expected = "at least 1";
            return Err(BaselineError::Parameter { key: "day_parts", got: 0.0, expected });
        }
        let intents = data.vocabulary.intents.len();
        let times = data.vocabulary.columns.get(TIME).map_or(1, |c| c.size);
        let mut fitted = Self {
            options,
            hours: times.div_ceil(options.day_parts.min(times.max(1))).max(1),
            width: data.vocabulary.columns.len(),
            population: vec![options.smoothing; intents],
            after: Table::new(),
            people: BTreeMap::new(),
        };
        for user in &data.users {
            let mut person = Person::default();
            for window in user.windows(Part::Train, 1) {
                let last = fitted.last(user, &window)?;
                let outside =
                    || BaselineError::Event { user: user.id.clone(), event: window.target };
                let place =
                    fitted.population.get_mut(window.intent as usize).ok_or_else(outside)?;
                person.all.add(window.intent);
                person.by_part.entry(last[TIME] / fitted.hours).or_default().add(window.intent);
                person.after.entry(last[EVENT]).or_default().add(window.intent);
                if !user.cold {
                    *place += 1.0;
                    fitted.after.entry(last[EVENT]).or_default().add(window.intent);
                }
            }
            fitted.people.insert(user.id.clone(), person);
        }
        let total: f64 = fitted.population.iter().sum();
        fitted.population.iter_mut().for_each(|p| *p /= total);
        Ok(fitted)
    }

    /// Probabilities of the next intent, `[intents]`, all above 0, with sum 1. Of a person never met, the wider prior.
    ///
    /// # Errors
    /// A window without a whole event of the fitted data's columns.
    pub fn predict(
        &self,
        baseline: Baseline,
        user: &EventUser,
        window: &Window<'_>,
    ) -> Result<Vec<f64>, BaselineError> {
        let last = self.last(user, window)?;
        let backoff = self.options.backoff;
        let mut shares = self.population.clone();
        let mut onto = |tally: Option<&Tally>| {
            if let Some(tally) = tally {
                tally.onto(&mut shares, backoff);
            }
        };
        let person = self.people.get(&user.id);
        if matches!(baseline, Baseline::Markov | Baseline::PersonalMarkov) {
            onto(self.after.get(&last[EVENT]));
        }
        if !matches!(baseline, Baseline::MostFrequent | Baseline::Markov) {
            onto(person.map(|p| &p.all));
        }
        match baseline {
            Baseline::PersonalTime => {
                onto(person.and_then(|p| p.by_part.get(&(last[TIME] / self.hours))));
            }
            Baseline::PersonalMarkov => onto(person.and_then(|p| p.after.get(&last[EVENT]))),
            _ => {}
        }
        Ok(shares)
    }

    /// The row of the last event that a window shows.
    fn last<'a>(&self, user: &EventUser, window: &Window<'a>) -> Result<&'a [u32], BaselineError> {
        let row = window.rows.len().checked_sub(self.width).map(|start| &window.rows[start..]);
        let none = || BaselineError::Window { user: user.id.clone(), target: window.target };
        row.filter(|row| row.len() > EVENT).ok_or_else(none)
    }
}

#[cfg(test)]
#[path = "counted_tests.rs"]
mod tests;
