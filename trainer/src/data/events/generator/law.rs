//! What one person does, given the last event.

use super::draw::{Draws, Purpose, shares};
use super::options::Options;
use super::population::{Context, DAY_PARTS, Population, State, contexts};
use serde::{Deserialize, Serialize};

/// An intent that a person has made his own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Own {
    /// The intent.
    pub intent: u32,
    /// Its weight among the person's own ones, 1 to 2, where contexts favour none.
    pub weight: f64,
    /// The part of the day after which it comes, 0 from midnight to 3 from 18 h.
    pub part: u32,
    /// Whether it comes on weekends.
    pub weekend: bool,
    /// The location after which it comes, from 0.
    pub location: u32,
}

/// One list of own intents, and how they share the contexts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tastes {
    pub(super) own: Vec<Own>,
    /// `[contexts, own]`.
    shares: Vec<f64>,
}

/// A person's law.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Law {
    /// theta: a share a component.
    pub(super) components: Vec<f64>,
    /// r.
    pub(super) own_share: f64,
    pub(super) early: Tastes,
    pub(super) late: Tastes,
    /// The mean of the distributions that the person's events were drawn from.
    pub(super) mean: Vec<f64>,
    markov: f64,
    noise: f64,
    drift: f64,
}

impl Law {
    /// The law of the person whose numbers these are; `mean` is left empty.
    pub(super) fn new(options: &Options, population: &Population, draws: &Draws) -> Self {
        let main = draws.below(options.components, Purpose::Component, [0, 0]);
        // Exponential numbers over their sum: Dirichlet(1).
        let mixture: Vec<f64> = (0..options.components)
            .map(|k| -(1.0 - draws.uniform(Purpose::Mixture, [k, 0])).ln() + f64::MIN_POSITIVE)
            .collect();
        let sum: f64 = mixture.iter().sum();
        let share = |(k, x): (u32, f64)| {
            let main = if k == main { options.purity } else { 0.0 };
            main + (1.0 - options.purity) * x / sum
        };
        Self {
            components: (0..).zip(mixture).map(share).collect(),
            own_share: options.own_share * (0.5 + draws.uniform(Purpose::Share, [0, 0])),
            early: Tastes::new(options, population, draws, 0),
            late: Tastes::new(options, population, draws, 1),
            mean: Vec::new(),
            markov: options.markov,
            noise: options.noise,
            drift: options.drift,
        }
    }

    /// P(y | u, s, n) over y; sums to 1.
    pub(super) fn distribution(
        &self,
        population: &Population,
        state: State,
        event: usize,
    ) -> Vec<f64> {
        let mut mixture = Mixture::new(population.intents, self.components.len());
        mixture.add(self, population, state, event, 1.0);
        mixture.finish(population, state, self)
    }

    /// The distribution of a first event, which none is before: the components at its own context.
    pub(super) fn first(&self, population: &Population, context: Context) -> Vec<f64> {
        let mut out = vec![0.0; population.intents];
        for (k, share) in self.components.iter().enumerate() {
            out.iter_mut().zip(population.at(k, context)).for_each(|(o, a)| *o += share * a);
        }
        out
    }

    /// P(y | u, s, n) of one y.
    pub(super) fn probability(
        &self,
        population: &Population,
        state: State,
        intent: u32,
        event: usize,
    ) -> f64 {
        let y = intent as usize;
        let component = |(k, share): (usize, &f64)| {
            let at = population.at(k, state.context)[y];
            share * ((1.0 - self.markov) * at + self.markov * population.after(k, state.intent)[y])
        };
        let shared: f64 = self.components.iter().enumerate().map(component).sum();
        let context = population.context(state.context);
        let own = self.own(context, event).filter(|(own, _)| *own == intent);
        let own: f64 = own.map(|(_, share)| share).sum();
        let ruled = (1.0 - self.own_share) * shared + self.own_share * own;
        (1.0 - self.noise) * ruled + self.noise / population.intents as f64
    }

    /// O(y | c, n): own intents, perhaps twice, with shares that sum to 1 (or nothing, where there are none).
    fn own(&self, context: usize, event: usize) -> impl Iterator<Item = (u32, f64)> {
        let old = (-self.drift * event as f64 / 100.0).exp();
        [(&self.early, old), (&self.late, 1.0 - old)].into_iter().flat_map(
            move |(tastes, share)| {
                let width = tastes.own.len();
                let row = &tastes.shares[context * width..(context + 1) * width];
                tastes.own.iter().zip(row).map(move |(own, s)| (own.intent, share * s))
            },
        )
    }
}

/// A weighted sum of people's laws at one state.
pub(super) struct Mixture {
    components: Vec<f64>,
    own: Vec<f64>,
    total: f64,
}

impl Mixture {
    pub(super) fn new(intents: usize, components: usize) -> Self {
        Self { components: vec![0.0; components], own: vec![0.0; intents], total: 0.0 }
    }

    /// += weight * law.
    pub(super) fn add(
        &mut self,
        law: &Law,
        population: &Population,
        state: State,
        event: usize,
        weight: f64,
    ) {
        let shared = weight * (1.0 - law.own_share);
        self.components.iter_mut().zip(&law.components).for_each(|(c, s)| *c += shared * s);
        for (intent, share) in law.own(population.context(state.context), event) {
            self.own[intent as usize] += weight * law.own_share * share;
        }
        self.total += weight;
    }

    /// The sum over its weight; `any` is one of the laws, for what all have in common.
    pub(super) fn finish(self, population: &Population, state: State, any: &Law) -> Vec<f64> {
        let mut out = self.own;
        for (k, share) in self.components.iter().enumerate() {
            let at = population.at(k, state.context).iter();
            for ((o, a), t) in out.iter_mut().zip(at).zip(population.after(k, state.intent)) {
                *o += share * ((1.0 - any.markov) * a + any.markov * t);
            }
        }
        let even = any.noise / population.intents as f64;
        let rule = (1.0 - any.noise) / self.total;
        out.iter_mut().for_each(|o| *o = rule * *o + even);
        out
    }
}

impl Tastes {
    /// List `list` (0 early, 1 late) of the person whose numbers these are.
    fn new(options: &Options, population: &Population, draws: &Draws, list: u32) -> Self {
        // Nobody without own events has own intents.
        let count = if options.own_share > 0.0 { options.own_intents } else { 0 };
        let mut tail: Vec<u32> = options.tail().collect();
        let mut own = Vec::new();
        for j in 0..count {
            let left = u32::try_from(tail.len()).unwrap_or(u32::MAX);
            let intent =
                tail.swap_remove(draws.below(left, Purpose::OwnIntent, [list, j]) as usize);
            let place = |which| [2 * j + list, which];
            let part = draws.below(DAY_PARTS, Purpose::OwnPlace, place(0));
            let weekend = draws.below(7, Purpose::OwnPlace, place(1)) >= 5;
            let at = draws.uniform(Purpose::OwnPlace, place(2));
            let location = population.location(part, weekend, at);
            let weight = 1.0 + draws.uniform(Purpose::OwnWeight, [list, j]);
            own.push(Own { intent, weight, part, weekend, location });
        }
        let mut all = Vec::new();
        for context in contexts(options.locations) {
            let mut row: Vec<f64> = own
                .iter()
                .map(|o| {
                    let same = u8::from(o.part == context.part)
                        + u8::from(o.weekend == context.weekend)
                        + u8::from(o.location == context.location);
                    o.weight.ln() + options.context_effect * f64::from(same)
                })
                .collect();
            shares(&mut row);
            all.extend(row);
        }
        Self { own, shares: all }
    }
}
