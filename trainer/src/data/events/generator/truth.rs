//! What is true of the logs, and what perfect models say.

use super::law::{Law, Mixture, Own};
use super::population::{Context, DAY_PARTS, HOURS, Population, State};
use super::{Options, WIDTH};
use crate::data::events::{CONTEXTS, EVENT, EventData, EventUser, Part, TIME, WEEKDAY, Window};
use std::collections::BTreeSet;
use std::ops::Range;

/// The laws that logs were drawn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Truth {
    pub(super) options: Options,
    pub(super) population: Population,
    pub(super) laws: Vec<Law>,
}

/// A model that cannot be better, given what it may know. Both know the process with all its numbers, and the target's
/// place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// Knows who the person is: the law itself.
    Personal,
    /// Is not told who the person is, knows the laws of everybody who is not cold, each as likely as the other, and weighs
    /// them by the last `window` events (at least one): by the person's mean share of the first of them, and
    /// the probability of each further one.
    ///
    /// No model that takes such windows, and learnt from the people who are not cold, is better in the mean over people.
    Population {
        /// Events before the target that it sees.
        window: usize,
        /// Whether it has met the target's person too. False leaves that person's law out: what can be known of somebody
        /// by knowing everybody else.
        met: bool,
    },
}

/// A target, its true distribution and a model's.
#[derive(Debug, Clone, PartialEq)]
pub struct Moment {
    /// Number of the target event in the person's log.
    pub target: usize,
    /// What came.
    pub intent: u32,
    /// The distribution that it was drawn from.
    pub law: Vec<f64>,
    /// The model's.
    pub predicted: Vec<f64>,
}

impl Truth {
    /// What was asked for.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The kinds of the population's long tail, which own intents come from.
    pub fn tail(&self) -> Range<u32> {
        self.options.tail()
    }

    /// The own intents of person `user` (place in [`EventData::users`]), sorted, each once: the early ones, and with drift
    /// the late ones too. Empty for nobody's number.
    pub fn own_intents(&self, user: usize) -> Vec<u32> {
        let own: BTreeSet<u32> = self.own(user).map(|own| own.intent).collect();
        own.into_iter().collect()
    }

    /// The same with their places: early ones, then, with drift, late ones.
    pub fn own(&self, user: usize) -> impl Iterator<Item = &Own> {
        let late = self.options.drift > 0.0;
        self.laws.get(user).into_iter().flat_map(move |law| {
            let late = if late { law.late.own.as_slice() } else { &[] };
            law.early.own.iter().chain(late)
        })
    }

    /// The share of own intents in what person `user` does, and the shares of the components in the rest.
    pub fn mixture(&self, user: usize) -> Option<(f64, &[f64])> {
        let law = self.laws.get(user)?;
        Some((law.own_share, &law.components))
    }

    /// The distribution of event `event` of person `user` over intents, when `row` is the row of the event before.
    /// None for nobody's number, and for a row that is none of a generated log.
    pub fn law(&self, user: usize, row: &[u32], event: usize) -> Option<Vec<f64>> {
        let state = self.state(row)?;
        Some(self.laws.get(user)?.distribution(&self.population, state, event))
    }

    /// What the best possible model says to every target of a part of person `user`, in order of time.
    ///
    /// Ranked by these probabilities, accuracy (= weighted recall) and NDCG are the best that the model's knowledge allows,
    /// in expectation; precision and macro averages are what a calibrated model ranked by probability gets, and can be raised at
    /// accuracy's cost. Scoring against [`Moment::law`] instead of what came takes the luck out of it.
    ///
    /// *Order*: deterministic. *Cost*: personal O(targets * intents), population O(events * people).
    ///
    /// `data` must be what came with this truth; of other logs, windows that cannot be are left out.
    pub fn optimal(&self, data: &EventData, user: usize, part: Part, model: Model) -> Vec<Moment> {
        let (Some(log), Some(law)) = (data.users.get(user), self.laws.get(user)) else {
            return Vec::new();
        };
        let length = match model {
            Model::Personal => 1,
            Model::Population { window, .. } => window.max(1),
        };
        let others = self.others(data, user, model);
        let seen = Seen::new(self, log, &others);
        let moment = |window: Window<'_>| {
            let state = self.state(window.rows.get(window.rows.len().checked_sub(WIDTH)?..)?)?;
            let truth = law.distribution(&self.population, state, window.target);
            let predicted = match model {
                Model::Personal => truth.clone(),
                Model::Population { .. } => {
                    seen.predict(&self.population, state, window.target, length)?
                }
            };
            Some(Moment { target: window.target, intent: window.intent, law: truth, predicted })
        };
        log.windows(part, length).filter_map(moment).collect()
    }

    /// The laws that a model knows, but the person's own where it is told.
    fn others(&self, data: &EventData, user: usize, model: Model) -> Vec<&Law> {
        let Model::Population { met, .. } = model else { return Vec::new() };
        let known = |number: usize| {
            let warm = data.users.get(number).is_some_and(|log| !log.cold);
            warm && (met || number != user)
        };
        let laws = self.laws.iter().enumerate().filter(|(number, _)| known(*number));
        laws.map(|(_, law)| law).collect()
    }

    /// The state that a row is; none where no generated row is like it.
    pub(super) fn state(&self, row: &[u32]) -> Option<State> {
        if row.len() != WIDTH || row[TIME] >= HOURS || row[WEEKDAY] >= 7 {
            return None;
        }
        let intent = row[EVENT].checked_sub(1).filter(|y| *y < self.options.intents)?;
        let location = row[CONTEXTS].checked_sub(1).filter(|l| *l < self.options.locations)?;
        let part = row[TIME] / (HOURS / DAY_PARTS);
        Some(State { intent, context: Context { part, weekend: row[WEEKDAY] >= 5, location } })
    }
}

/// One log under the laws of many people.
struct Seen<'a> {
    laws: &'a [&'a Law],
    intents: Vec<usize>,
    /// ln P(event | law) summed over the events up to one, from the second: `[events, laws]`.
    sums: Vec<f64>,
}

impl<'a> Seen<'a> {
    fn new(truth: &Truth, log: &EventUser, laws: &'a [&'a Law]) -> Self {
        let states: Vec<Option<State>> =
            (0..log.times.len()).map(|n| truth.state(log.row(n))).collect();
        let mut sums = vec![0.0; laws.len()];
        for (n, pair) in (1..).zip(states.windows(2)).filter(|_| !laws.is_empty()) {
            let before = sums[(n - 1) * laws.len()..].to_vec();
            // What no law can give tells no two laws apart.
            let ln = |law: &&Law| match pair {
                [Some(a), Some(b)] => law.probability(&truth.population, *a, b.intent, n).ln(),
                _ => 0.0,
            };
            sums.extend(laws.iter().zip(before).map(|(law, sum)| sum + ln(law)));
        }
        let intents = states.iter().map(|s| s.map_or(0, |s| s.intent as usize)).collect();
        Self { laws, intents, sums }
    }

    /// The mean law at `state`, laws weighed by the `length` events before `target`.
    fn predict(
        &self,
        population: &Population,
        state: State,
        target: usize,
        length: usize,
    ) -> Option<Vec<f64>> {
        let any = self.laws.first()?;
        let (first, last) = (target.saturating_sub(length), target.checked_sub(1)?);
        let at = |event: usize, law: usize| self.sums[event * self.laws.len() + law];
        let log = |(v, law): (usize, &&Law)| {
            law.mean[self.intents[first]].max(f64::MIN_POSITIVE).ln() + at(last, v) - at(first, v)
        };
        let logs: Vec<f64> = self.laws.iter().enumerate().map(log).collect();
        let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut mixture = Mixture::new(population.intents, any.components.len());
        for (law, log) in self.laws.iter().zip(logs) {
            let weight = if most > f64::NEG_INFINITY { (log - most).exp() } else { 1.0 };
            // Laws this unlikely change no digit that is left.
            if weight > 1e-18 {
                mixture.add(law, population, state, target, weight);
            }
        }
        Some(mixture.finish(population, state, any))
    }
}
