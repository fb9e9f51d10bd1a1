//! What is generated, and which numbers make sense.

use super::population::DAY_PARTS;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The process's parameters; the module's head has the formulas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// People.
    pub users: u32,
    /// Events of a person: fewest and most, both possible, all numbers between equally likely.
    pub events: [u32; 2],
    /// Kinds of events.
    pub intents: u32,
    /// Places.
    pub locations: u32,
    /// Components of the population.
    pub components: u32,
    /// How much of a person's population part is one component, 0 to 1.
    pub purity: f64,
    /// Exponent of popularity over kinds; 0 makes all alike.
    pub zipf: f64,
    /// How much components differ in what is popular: standard deviation of log weights.
    pub spread: f64,
    /// Share of the kinds, the least popular, that is the population's long tail.
    pub tail: f64,
    /// Kinds of the long tail that a person has made his own.
    pub own_intents: u32,
    /// Mean over people of the share of events that come from own intents; a person's lies within half to one and a
    /// half of it. At most 0.6.
    pub own_share: f64,
    /// How much contexts change what is done, in log weights; 0 not at all.
    pub context_effect: f64,
    /// Share of the population part that follows from the last kind of event instead of the context, 0 to 1.
    pub markov: f64,
    /// How fast own intents are given up for others: the old ones' weight after 100 events is exp(-drift).
    pub drift: f64,
    /// Share of events drawn evenly from all kinds, 0 to 1.
    pub noise: f64,
    /// Probability that a person is kept out of the population stage; person 0 never is.
    pub cold: f64,
    /// Shares of a log that are training and validation part; the rest is the test part.
    pub split: [f64; 2],
    /// Seed of everything.
    pub seed: u64,
}

impl Default for Options {
    /// 1,000 people of 200 to 300 events, 48 kinds of which 36 are long tail, three own ones with 40 % of the events.
    fn default() -> Self {
        Self {
            users: 1000,
            events: [200, 300],
            intents: 48,
            locations: 6,
            components: 4,
            purity: 0.6,
            zipf: 1.5,
            spread: 0.5,
            tail: 0.75,
            own_intents: 3,
            own_share: 0.4,
            context_effect: 2.0,
            markov: 0.3,
            drift: 0.0,
            noise: 0.02,
            cold: 0.2,
            split: [0.6, 0.2],
            seed: 0,
        }
    }
}

/// An option out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("generator: {key} is {got}, expected {expected}")]
pub struct OptionsError {
    /// The option.
    pub key: &'static str,
    /// Its value.
    pub got: String,
    /// What it may be.
    pub expected: &'static str,
}

/// Cells of the population's tables: 4,096 kinds with 8 components would be 1 GiB.
const MOST_CELLS: u64 = 1 << 27;

impl Options {
    /// # Errors
    /// The first option that is out of its range.
    pub(super) fn check(&self) -> Result<(), OptionsError> {
        let wrong = |key, got: String, expected| Err(OptionsError { key, got, expected });
        let counts: [(&'static str, u32, u32, &'static str); 5] = [
            ("users", self.users, 10_000_000, "1 to 10000000"),
            ("intents", self.intents, 65_536, "2 to 65536"),
            ("locations", self.locations, 65_536, "1 to 65536"),
            ("components", self.components, 256, "1 to 256"),
            ("events", self.events[1], 10_000_000, "1 to 10000000"),
        ];
        for (key, got, most, expected) in counts {
            let least = if key == "intents" { 2 } else { 1 };
            if !(least..=most).contains(&got) {
                return wrong(key, got.to_string(), expected);
            }
        }
        if !(1..=self.events[1]).contains(&self.events[0]) {
            return wrong(
                "events",
                format!("{:?}", self.events),
                "[fewest, most], fewest at least 1",
            );
        }
        let kinds = u64::from(self.intents);
        let contexts = u64::from(DAY_PARTS) * 2 * u64::from(self.locations);
        if u64::from(self.components) * kinds * (kinds + contexts) > MOST_CELLS {
            let got = format!("{kinds} with {} locations", self.locations);
            return wrong("intents", got, "components * intents * (intents + 8 locations) <= 2^27");
        }
        let (share, size) = ("0 to 1", "0 to 20");
        let numbers: [(&'static str, f64, f64, &'static str); 11] = [
            ("purity", self.purity, 1.0, share),
            ("zipf", self.zipf, 20.0, size),
            ("spread", self.spread, 20.0, size),
            ("tail", self.tail, 1.0, share),
            ("own_share", self.own_share, 0.6, "0 to 0.6"),
            ("context_effect", self.context_effect, 20.0, size),
            ("markov", self.markov, 1.0, share),
            ("drift", self.drift, 1e6, "0 to 1000000"),
            ("noise", self.noise, 1.0, share),
            ("cold", self.cold, 1.0, share),
            ("split", self.split[0].max(self.split[1]), 1.0, "two shares with a sum of at most 1"),
        ];
        for (key, got, most, expected) in numbers {
            if !(0.0..=most).contains(&got) {
                return wrong(key, got.to_string(), expected);
            }
        }
        let [train, validation] = self.split;
        if !(train >= 0.0 && validation >= 0.0 && train + validation <= 1.0 + 1e-9) {
            return wrong(
                "split",
                format!("{:?}", self.split),
                "two shares with a sum of at most 1",
            );
        }
        let tail = self.tail();
        if self.own_share > 0.0 && self.own_intents == 0 {
            return wrong("own_intents", "0".to_owned(), "at least 1 where own_share is not 0");
        }
        if self.own_intents > tail.end - tail.start {
            let got = self.own_intents.to_string();
            return wrong("own_intents", got, "no more than the long tail has kinds");
        }
        Ok(())
    }

    /// The kinds of the population's long tail.
    pub(super) fn tail(&self) -> Range<u32> {
        rounded(self.tail.mul_add(-f64::from(self.intents), f64::from(self.intents)))..self.intents
    }

    /// Training, validation and test part of a log.
    pub(super) fn parts(&self, events: u32) -> [Range<usize>; 3] {
        let [train, validation] = self.split;
        let at = |share: f64| rounded(share * f64::from(events)).min(events) as usize;
        let (first, second) = (at(train), at(train + validation));
        [0..first, first..second, second..events as usize]
    }
}

/// The nearest whole number of a count that is in range.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= x <= u32::MAX")]
fn rounded(x: f64) -> u32 {
    x.round() as u32
}
