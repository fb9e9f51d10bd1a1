//! What a log holds, in numbers for a person.

use super::log::{CONTEXTS, EventData, EventUser, Part};
use serde::Serialize;
use std::collections::BTreeMap;

/// Of the training targets of the population this share is the head; intents beyond it are the long tail.
const HEAD_SHARE: f64 = 0.8;
/// A person's own intents: a share of the training targets at least so many times the population's ...
const OWN_RATIO: f64 = 2.0;
/// ... with so many of them. Both are the defaults proposed for the forget set.
const OWN_COUNT: u64 = 3;

/// How a number spreads over the users; zeros of none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// A tenth is not above it (nearest rank, as the others).
    pub p10: f64,
    /// The median.
    pub median: f64,
    /// Nine tenths are not above it.
    pub p90: f64,
    /// The largest.
    pub max: f64,
    /// The mean over users.
    pub mean: f64,
}

/// One part of everybody's time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PartStatistics {
    /// Events.
    pub events: u64,
    /// Windows: events with a known intent and an event before them.
    pub windows: u64,
    /// Windows shorter than asked for, at the start of a log or after a gap.
    pub short_windows: u64,
    /// Windows whose intent is of the long tail.
    pub tail_windows: u64,
    /// Users with a window.
    pub users: u64,
}

/// What a log holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Statistics {
    /// Length of windows that the numbers below are for.
    pub window: usize,
    /// Users.
    pub users: u64,
    /// Of them cold.
    pub cold_users: u64,
    /// Events.
    pub events: u64,
    /// Names of events, unknown apart.
    pub event_names: u64,
    /// Intents.
    pub intents: u64,
    /// Values of each context, unknown apart.
    pub contexts: BTreeMap<String, u64>,
    /// Seconds since 1970 on the local clocks, of the first event and of the last.
    pub times: Option<[i64; 2]>,
    /// Training part.
    pub train: PartStatistics,
    /// Validation part.
    pub validation: PartStatistics,
    /// Test part.
    pub test: PartStatistics,
    /// Events of a user.
    pub events_per_user: Spread,
    /// Events of a user over the days from their first to their last, both counted.
    pub events_per_day: Spread,
    /// Different intents among a user's windows, all parts.
    pub intents_per_user: Spread,
    /// Entropy in bits of a user's intents over windows of all parts.
    pub intent_entropy: Spread,
    /// Share of a user's most frequent intent.
    pub top_share: Spread,
    /// Entropy in bits of the intents of all training windows of the users who are not cold.
    pub population_entropy: f64,
    /// Share of the most frequent of those intents.
    pub population_top_share: f64,
    /// Its name.
    pub population_top: String,
    /// Intents of the long tail: those beyond the most frequent ones that make up 80 % of those training windows.
    pub tail_intents: u64,
    /// A user's own intents: at least 3 training windows and at least twice the population's share.
    pub own_intents: Spread,
    /// Users with such an intent.
    pub users_with_own_intents: u64,
    /// Share of the test windows whose intent is one of the user's own.
    pub own_test_share: f64,
}

/// Counts a log, for windows of at most `window` events.
pub fn statistics(data: &EventData, window: usize) -> Statistics {
    let columns = &data.vocabulary.columns;
    let named = |column: &super::Column| u64::from(column.size.saturating_sub(1));
    let population = population(data, window);
    let tail = tail(&population);
    let mut out = Statistics {
        window,
        users: data.users.len() as u64,
        event_names: columns.get(super::EVENT).map_or(0, named),
        intents: data.vocabulary.intents.len() as u64,
        contexts: columns.iter().skip(CONTEXTS).map(|c| (c.name.clone(), named(c))).collect(),
        population_entropy: entropy(&population),
        population_top_share: top_share(&population),
        tail_intents: tail.iter().filter(|tail| **tail).count() as u64,
        ..Statistics::default()
    };
    if let Some(top) = top(&population) {
        out.population_top = data.vocabulary.intents.get(top).cloned().unwrap_or_default();
    }
    let mut users = PerUser::default();
    let (mut own_tests, mut tests) = (0, 0);
    for user in &data.users {
        out.events += user.times.len() as u64;
        out.cold_users += u64::from(user.cold);
        let span = user.times.iter().min().zip(user.times.iter().max());
        if let Some((first, last)) = span {
            let [low, high] = out.times.unwrap_or([*first, *last]);
            out.times = Some([low.min(*first), high.max(*last)]);
        }
        let counts = Part::ALL.map(|part| {
            let numbers = match part {
                Part::Train => &mut out.train,
                Part::Validation => &mut out.validation,
                Part::Test => &mut out.test,
            };
            count_part(user, part, window, &tail, numbers, population.len())
        });
        let own = own(&counts[0], &population);
        let of_test = counts[2].iter().zip(&own).filter(|(_, own)| **own);
        own_tests += of_test.map(|(n, _)| n).sum::<u64>();
        tests += counts[2].iter().sum::<u64>();
        users.add(user, &counts, own.iter().filter(|own| **own).count());
    }
    out.users_with_own_intents = users.own.iter().filter(|n| **n > 0.0).count() as u64;
    out.own_test_share = ratio(own_tests, tests);
    out.events_per_user = spread(users.events);
    out.events_per_day = spread(users.per_day);
    out.intents_per_user = spread(users.intents);
    out.intent_entropy = spread(users.entropy);
    out.top_share = spread(users.top_share);
    out.own_intents = spread(users.own);
    out
}

/// One number of each user.
#[derive(Default)]
struct PerUser {
    events: Vec<f64>,
    per_day: Vec<f64>,
    intents: Vec<f64>,
    entropy: Vec<f64>,
    top_share: Vec<f64>,
    own: Vec<f64>,
}

impl PerUser {
    fn add(&mut self, user: &EventUser, counts: &[Vec<u64>; 3], own: usize) {
        let all: Vec<u64> =
            (0..counts[0].len()).map(|i| counts.iter().map(|c| c[i]).sum()).collect();
        let days = user.times.iter().map(|time| time.div_euclid(86_400));
        let days = days.clone().max().unwrap_or(0) - days.min().unwrap_or(0) + 1;
        self.events.push(float(user.times.len() as u64));
        self.per_day.push(ratio(user.times.len() as u64, days.unsigned_abs()));
        self.own.push(float(own as u64));
        // Without a window there are no shares to speak of.
        if all.iter().any(|n| *n > 0) {
            self.intents.push(float(all.iter().filter(|n| **n > 0).count() as u64));
            self.entropy.push(entropy(&all));
            self.top_share.push(top_share(&all));
        }
    }
}

/// Counts the windows of a part, and returns them by intent.
fn count_part(
    user: &EventUser,
    part: Part,
    window: usize,
    tail: &[bool],
    out: &mut PartStatistics,
    num_intents: usize,
) -> Vec<u64> {
    let mut counts = vec![0; num_intents];
    let width = user.rows.len() / user.times.len().max(1);
    out.events += user.parts[part as usize].len() as u64;
    for seen in user.windows(part, window) {
        out.windows += 1;
        out.short_windows += u64::from(seen.rows.len() < window.saturating_mul(width));
        let intent = usize::try_from(seen.intent).unwrap_or(usize::MAX);
        out.tail_windows += u64::from(tail.get(intent).copied().unwrap_or(false));
        counts.get_mut(intent).map(|n| *n += 1).unwrap_or_default();
    }
    out.users += u64::from(counts.iter().any(|n| *n > 0));
    counts
}

/// The training windows of the users who are not cold, by intent.
fn population(data: &EventData, window: usize) -> Vec<u64> {
    let mut counts = vec![0; data.vocabulary.intents.len()];
    for user in data.users.iter().filter(|user| !user.cold) {
        for seen in user.windows(Part::Train, window) {
            let intent = usize::try_from(seen.intent).ok().and_then(|i| counts.get_mut(i));
            intent.map(|n| *n += 1).unwrap_or_default();
        }
    }
    counts
}

/// Whether each intent is of the long tail; ties by number.
fn tail(counts: &[u64]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(counts[*i]), *i));
    let all = float(counts.iter().sum());
    let (mut tail, mut before) = (vec![false; counts.len()], 0);
    for intent in order {
        tail[intent] = float(before) >= HEAD_SHARE * all;
        before += counts[intent];
    }
    tail
}

/// Whether each intent is a person's own.
fn own(counts: &[u64], population: &[u64]) -> Vec<bool> {
    let (all, everybody) = (counts.iter().sum(), population.iter().sum());
    let is_own = |(mine, theirs): (&u64, &u64)| {
        *mine >= OWN_COUNT && ratio(*mine, all) >= OWN_RATIO * ratio(*theirs, everybody)
    };
    counts.iter().zip(population).map(is_own).collect()
}

/// The most frequent intent, the first of several; `None` of none.
fn top(counts: &[u64]) -> Option<usize> {
    let most = counts.iter().copied().max().filter(|n| *n > 0)?;
    counts.iter().position(|n| *n == most)
}

fn top_share(counts: &[u64]) -> f64 {
    ratio(counts.iter().copied().max().unwrap_or(0), counts.iter().sum())
}

/// `-sum p log2 p`.
fn entropy(counts: &[u64]) -> f64 {
    let all = counts.iter().sum();
    let shares = counts.iter().filter(|n| **n > 0).map(|n| ratio(*n, all));
    // 0.0 - x: of one intent alone it is 0, not -0.
    0.0 - shares.map(|p| p * p.log2()).sum::<f64>()
}

fn spread(mut values: Vec<f64>) -> Spread {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return Spread::default() };
    // Nearest rank: the smallest value that so many per cent are not above.
    let at = |per_cent: usize| values[(per_cent * values.len()).div_ceil(100).saturating_sub(1)];
    Spread {
        min: values[0],
        p10: at(10),
        median: at(50),
        p90: at(90),
        max: values[last],
        mean: values.iter().sum::<f64>() / float(values.len() as u64),
    }
}

fn ratio(part: u64, of: u64) -> f64 {
    float(part) / float(of.max(1))
}

#[expect(clippy::cast_precision_loss, reason = "counts of events for a person to read")]
fn float(count: u64) -> f64 {
    count as f64
}
