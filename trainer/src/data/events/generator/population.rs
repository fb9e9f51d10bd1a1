//! What all people share: components, transitions, places.

use super::draw::{Draws, Purpose, pick, shares};
use super::options::Options;

/// Values of the column of the time.
pub(super) const HOURS: u32 = 24;
/// Parts of a day, of equal length from midnight: night, morning, afternoon, evening.
pub(super) const DAY_PARTS: u32 = 4;
/// Standard deviation of the log weights of transitions.
const AFTER: f64 = 2.0;
/// Standard deviation of the log weights of places.
const PLACES: f64 = 1.5;

/// When and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) part: u32,
    pub(super) weekend: bool,
    pub(super) location: u32,
}

/// All that the next event depends on, but the person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    /// The last event.
    pub(super) intent: u32,
    /// Its context.
    pub(super) context: Context,
}

/// The components' tables.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Population {
    pub(super) intents: usize,
    pub(super) locations: u32,
    /// A: `[components, contexts, intents]`.
    at: Vec<f64>,
    /// T: `[components, intents, intents]`.
    after: Vec<f64>,
    /// Where people are: `[day parts * 2, locations]`.
    place: Vec<f64>,
}

impl Population {
    /// The tables of checked options.
    pub(super) fn new(options: &Options) -> Self {
        let draws = Draws::population(options.seed);
        let (intents, locations) = (options.intents, options.locations);
        let mut population = Self {
            intents: intents as usize,
            locations,
            at: Vec::new(),
            after: Vec::new(),
            place: Vec::new(),
        };
        for kind in 0..DAY_PARTS * 2 {
            let log = |l| PLACES * draws.unit(Purpose::Place, [kind, l]);
            population.place.extend(normalised((0..locations).map(log)));
        }
        let effect = options.context_effect / 3.0_f64.sqrt();
        for k in 0..options.components {
            let own = |y: u32| {
                let popular = -options.zipf * f64::from(y + 1).ln();
                (popular, options.spread * draws.unit(Purpose::Popularity, [k, y]))
            };
            // Three words pick a number, two are counted: component and kind share one.
            let pair = |y: u32| k * intents + y;
            for context in contexts(locations) {
                let log = |y: u32| {
                    let (popular, spread) = own(y);
                    let places = draws.unit(Purpose::ByPart, [pair(y), context.part])
                        + draws.unit(Purpose::ByWeekend, [pair(y), u32::from(context.weekend)])
                        + draws.unit(Purpose::ByLocation, [pair(y), context.location]);
                    popular + spread + effect * places
                };
                population.at.extend(normalised((0..intents).map(log)));
            }
            for before in 0..intents {
                let log = |y: u32| own(y).0 + AFTER * draws.unit(Purpose::After, [pair(before), y]);
                population.after.extend(normalised((0..intents).map(log)));
            }
        }
        population
    }

    /// Number of a context.
    pub(super) fn context(&self, context: Context) -> usize {
        let day = context.part as usize * 2 + usize::from(context.weekend);
        day * self.locations as usize + context.location as usize
    }

    /// A_k(y | c) over y.
    pub(super) fn at(&self, component: usize, context: Context) -> &[f64] {
        let contexts = DAY_PARTS as usize * 2 * self.locations as usize;
        let row = component * contexts + self.context(context);
        &self.at[row * self.intents..(row + 1) * self.intents]
    }

    /// T_k(y | y') over y.
    pub(super) fn after(&self, component: usize, intent: u32) -> &[f64] {
        let row = component * self.intents + intent as usize;
        &self.after[row * self.intents..(row + 1) * self.intents]
    }

    /// A location by part of the day and weekend.
    pub(super) fn location(&self, part: u32, weekend: bool, at: f64) -> u32 {
        let row = part as usize * 2 + usize::from(weekend);
        let width = self.locations as usize;
        pick(&self.place[row * width..(row + 1) * width], at)
    }
}

/// All contexts, in the order of [`Population::context`].
pub(super) fn contexts(locations: u32) -> impl Iterator<Item = Context> {
    (0..DAY_PARTS).flat_map(move |part| {
        [false, true].into_iter().flat_map(move |weekend| {
            (0..locations).map(move |location| Context { part, weekend, location })
        })
    })
}

fn normalised(logs: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut row: Vec<f64> = logs.collect();
    shares(&mut row);
    row
}
