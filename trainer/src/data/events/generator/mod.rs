//! People who never lived: event logs drawn from laws that are known, so that a test can state what a perfect model
//! scores on them.
//!
//! Owns the process ([`Options`], [`generate`]), its laws ([`Truth`]) and how both are written for a person to look at
//! ([`write_csv`], [`write_truth`]). Must never know: models, metrics, ranks.
//!
//! # The process
//!
//! Event `n` of person `u` is (time, weekday, location, event); the event `y_n` is one of `intents` kinds, and the intent
//! of a target is its event. With `s` = the last event before the target (its kind `y'`, and its context `c` = part of the
//! day, weekend or not, location):
//!
//! ```text
//! P(y | u, s, n) = (1 - noise) [ (1 - r_u) sum_k theta_uk C_k(y | s) + r_u O_u(y | c, n) ] + noise / intents
//! C_k(y | s)     = (1 - markov) A_k(y | c) + markov T_k(y | y')           component k of the population
//! A_k(y | c)     ~ exp(-zipf ln(y + 1) + spread z + context_effect (a + b + l) / sqrt 3)
//! T_k(y | y')    ~ exp(-zipf ln(y + 1) + 2 z)
//! O_u(y | c, n)  = old(n) E_u(y | c) + (1 - old(n)) L_u(y | c),           old(n) = exp(-drift n / 100)
//! E_u, L_u(y|c)  ~ v_y exp(context_effect * how many of (part of day, weekend, location) of c are those of y)
//! ```
//!
//! where `~` is "proportional over y", every letter `z, a, b, l` a number of the component and its places with mean 0 and
//! variance 1, `theta_u = purity * one component + (1 - purity) * Dirichlet(1)`, `r_u` is uniform in
//! `own_share * (1/2 .. 3/2)` and the two lists E_u (early) and L_u (late) hold `own_intents` kinds each, drawn from the
//! population's long tail: its last `tail` share of kinds, counted from the most popular, number 0.
//!
//! Times and locations are drawn without looking at the person or at intents: a gap of 10 minutes to 6 hours, then
//! with probability 1/2 the same location, else one by the part of the day and weekend. So contexts say nothing of who
//! somebody is, the next intent depends on nothing but the last event's row, the person and (if there is drift) the
//! event's number, and both perfect models can be computed ([`Model`]).
//!
//! *Order*: every number is Philox of (seed, person's id, event, purpose): a person's log does not depend on how many
//! people or threads there are, and a log with more events begins with the shorter one.
//!
//! Start reading at [`generate`].

mod draw;
mod law;
mod options;
mod population;
mod truth;
mod write;

pub use law::Own;
pub use options::{Options, OptionsError};
pub use truth::{Model, Moment, Truth};
pub use write::{write_csv, write_truth};

use super::{CONTEXTS, Column, EventData, EventUser, Vocabulary};
use crate::ids::UserId;
use draw::{Draws, Purpose};
use law::Law;
use population::{Context, DAY_PARTS, HOURS, Population, State};
use rayon::prelude::*;

/// Monday, 1 January 2024, midnight, in seconds since 1970.
const START: i64 = 1_704_067_200;
const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Draws all logs, and the laws that they were drawn from.
///
/// *Order*: a function of the options alone; see the module's head for what does not depend on what.
///
/// # Errors
/// An option out of its range.
pub fn generate(options: &Options) -> Result<(EventData, Truth), OptionsError> {
    options.check()?;
    let population = Population::new(options);
    let people: Vec<(EventUser, Law)> =
        (0..options.users).into_par_iter().map(|u| person(options, &population, u)).collect();
    let (users, laws) = people.into_iter().unzip();
    let vocabulary = vocabulary(options);
    let truth = Truth { options: options.clone(), population, laws };
    Ok((EventData { vocabulary, users }, truth))
}

/// The same for any number of people and events: what can occur, not what did.
fn vocabulary(options: &Options) -> Vocabulary {
    let names = |kind: &str, count: u32| -> Vec<String> {
        (0..count).map(|i| format!("{kind}{i:03}")).collect()
    };
    let known = |kind: &str, count: u32| -> Vec<String> {
        std::iter::once("unknown".to_owned()).chain(names(kind, count)).collect()
    };
    let plain = |name: &str, size: u32| Column { name: name.to_owned(), size, values: Vec::new() };
    let named = |name: &str, size: u32, values: Vec<String>| Column {
        name: name.to_owned(),
        size: size + 1,
        values,
    };
    Vocabulary {
        columns: vec![
            plain("time", HOURS),
            plain("weekday", 7),
            named("event", options.intents, known("do", options.intents)),
            named("location", options.locations, known("place", options.locations)),
        ],
        intents: names("do", options.intents),
    }
}

/// One person's log and law.
fn person(options: &Options, population: &Population, number: u32) -> (EventUser, Law) {
    let id = UserId::new(&format!("person-{number:07}"));
    let draws = Draws::person(&id, options.seed);
    let mut law = Law::new(options, population, &draws);
    let [least, most] = options.events;
    let events = least + draws.below(most - least + 1, Purpose::Length, [0, 0]);
    let mut user = EventUser {
        id,
        times: Vec::new(),
        rows: Vec::new(),
        intents: Vec::new(),
        first: Vec::new(),
        parts: options.parts(events),
        // Somebody must be left for the population stage.
        cold: number > 0 && draws.uniform(Purpose::Cold, [0, 0]) < options.cold,
    };
    let mut time = START + i64::from(draws.below(7 * 24 * 60, Purpose::Gap, [0, 0])) * MINUTE;
    let mut last: Option<State> = None;
    let mut mean = vec![0.0; population.intents];
    for n in 0..events {
        if n > 0 {
            time += (10 + i64::from(draws.below(351, Purpose::Gap, [n, 0]))) * MINUTE;
        }
        let days = (time - START) / DAY;
        let [hour, weekday] = [(time - START) % DAY / HOUR, days % 7].map(small);
        let stays = draws.uniform(Purpose::Location, [n, 0]) < 0.5;
        let (part, weekend) = (hour / (HOURS / DAY_PARTS), weekday >= 5);
        let location = match last {
            Some(last) if stays => last.context.location,
            _ => population.location(part, weekend, draws.uniform(Purpose::Location, [n, 1])),
        };
        let context = Context { part, weekend, location };
        let shares = match last {
            Some(last) => law.distribution(population, last, n as usize),
            None => law.first(population, context),
        };
        shares.iter().zip(&mut mean).for_each(|(p, sum)| *sum += p / f64::from(events));
        let intent = draw::pick(&shares, draws.uniform(Purpose::Event, [n, 0]));
        user.times.push(time);
        user.rows.extend([hour, weekday, intent + 1, location + 1]);
        user.intents.push(Some(intent));
        last = Some(State { intent, context });
    }
    law.mean = mean;
    (user, law)
}

/// A number of a clock or a calendar, below 24.
fn small(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

/// Columns of a generated row: time, weekday, event, location.
const WIDTH: usize = CONTEXTS + 1;

#[cfg(test)]
#[path = "generator_tests.rs"]
mod tests;
