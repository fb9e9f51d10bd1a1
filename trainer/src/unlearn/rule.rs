//! The rules of the forget set, from shares of the population and of the person.

use serde::{Deserialize, Serialize};

/// Which intents of a person are forgotten.
///
/// With the smoothed shares `p(n) = (count(n) + smoothing) / (total + smoothing * intents)`, `p_pop` of the population's and
/// `p_i` of the person's training targets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// `p_i(n) / p_pop(n) > tau` and `count_i(n) >= min_count`: what the person does far more than others.
    Ratio {
        /// The threshold, above 0.
        tau: f64,
        /// Fewest training targets of the person.
        min_count: u64,
    },
    /// The `top` intents with the largest `p_i(n) - p_pop(n)` above 0 and `count_i(n) >= min_count`; equal ones
    /// by number.
    Difference {
        /// How many at most.
        top: usize,
        /// Fewest training targets of the person.
        min_count: u64,
    },
    /// `hits(n) / count_i(n) < recall_below` and `count_i(n) >= min_count`: what the teacher gets wrong on the person's
    /// training part.
    TeacherError {
        /// The threshold, above 0, at most 1.
        recall_below: f64,
        /// Fewest training targets of the person, at least 1.
        min_count: u64,
    },
}

/// What the rules look at: numbers of training targets, one place an intent.
#[derive(Debug, Clone, Copy)]
pub struct Counts<'a> {
    /// Of all people of the population stage.
    pub population: &'a [u64],
    /// Of the person.
    pub person: &'a [u64],
    /// Of the person's targets, those that the teacher ranks first. Only [`Rule::TeacherError`] looks at it, others take
    /// an empty slice.
    pub hits: &'a [u64],
}

/// A person's forget set; every other intent is retained.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Split {
    /// The forget set, by number.
    pub forget: Vec<u32>,
    /// beta of every intent of the forget set, in its order.
    pub weights: Vec<f64>,
}

/// What cannot be split.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RuleError {
    /// A parameter out of its range.
    #[error("forget rule: {key} is {got}, expected {expected}")]
    Parameter {
        /// Which.
        key: &'static str,
        /// Its value.
        got: f64,
        /// What it may be.
        expected: &'static str,
    },
    /// Counts of different numbers of intents.
    #[error("forget rule: {what} counts {got} intents, the population counts {expected}")]
    Lengths {
        /// Whose counts.
        what: &'static str,
        /// Intents counted.
        got: usize,
        /// Intents there are.
        expected: usize,
    },
    /// A teacher that is right more often than there are targets.
    #[error("forget rule: the teacher hits {hits} of {count} targets of intent {intent}")]
    Hits {
        /// The intent.
        intent: usize,
        /// Targets that the teacher ranks first.
        hits: u64,
        /// Targets.
        count: u64,
    },
}

impl Split {
    /// The forget set of a person by `rule`, with weights
    ///
    /// ```text
    /// beta_n = ln(p_i(n) / p_pop(n))+ / c,   c so that sum over F of count_i(n) beta_n = sum over F of count_i(n)
    /// ```
    ///
    /// if `adaptive`: the mean weight of the person's forgotten targets is 1, so the strength of unlearning a pass is what it
    /// is without weights, and shared out by how peculiar an intent is. Where no ratio is above 1 (the teacher's
    /// errors alone chose them), and if not `adaptive`, all weights are 1.
    ///
    /// *Order*: deterministic; the set is sorted.
    ///
    /// # Errors
    /// A parameter out of its range, counts that do not fit one another. `smoothing` must be above 0: without it an
    /// intent new to the population has no ratio.
    pub fn new(
        rule: Rule,
        counts: Counts<'_>,
        smoothing: f64,
        adaptive: bool,
    ) -> Result<Self, RuleError> {
        check(rule, counts, smoothing)?;
        let (population, person) =
            (shares(counts.population, smoothing), shares(counts.person, smoothing));
        let all = || 0..population.len();
        let enough = |n: &usize, least: u64| counts.person[*n] >= least;
        let chosen: Vec<usize> = match rule {
            Rule::Ratio { tau, min_count } => all()
                .filter(|n| person[*n] / population[*n] > tau && enough(n, min_count))
                .collect(),
            Rule::Difference { top, min_count } => {
                let apart = |n: usize| person[n] - population[n];
                let mut most: Vec<usize> =
                    all().filter(|n| apart(*n) > 0.0 && enough(n, min_count)).collect();
                // Stable: equal differences stay by number.
                most.sort_by(|a, b| apart(*b).total_cmp(&apart(*a)));
                most.truncate(top);
                most.sort_unstable();
                most
            }
            Rule::TeacherError { recall_below, min_count } => {
                let recall = |n: usize| counts.hits[n] as f64 / counts.person[n] as f64;
                all().filter(|n| enough(n, min_count) && recall(*n) < recall_below).collect()
            }
        };
        let mut weights: Vec<f64> =
            chosen.iter().map(|&n| (person[n] / population[n]).ln().max(0.0)).collect();
        let targets = || chosen.iter().map(|&n| counts.person[n] as f64);
        let sum: f64 = targets().zip(&weights).map(|(count, w)| count * w).sum();
        if adaptive && sum > 0.0 {
            let scale = targets().sum::<f64>() / sum;
            weights.iter_mut().for_each(|w| *w *= scale);
        } else {
            weights.fill(1.0);
        }
        // Intents are numbered in 32 bits everywhere; `check` has seen that these are.
        let forget = chosen.into_iter().filter_map(|n| u32::try_from(n).ok()).collect();
        Ok(Self { forget, weights })
    }

    /// The weight of an intent of the forget set; none where it is retained.
    pub fn weight(&self, intent: u32) -> Option<f64> {
        self.forget.binary_search(&intent).ok().and_then(|at| self.weights.get(at)).copied()
    }
}

fn shares(counts: &[u64], smoothing: f64) -> Vec<f64> {
    let total: f64 = counts.iter().map(|&c| c as f64 + smoothing).sum();
    counts.iter().map(|&c| (c as f64 + smoothing) / total).collect()
}

fn check(rule: Rule, counts: Counts<'_>, smoothing: f64) -> Result<(), RuleError> {
    let positive = |key, got: f64| {
        let fits = got > 0.0 && got.is_finite();
        let expected = "a finite number above 0";
        fits.then_some(()).ok_or(RuleError::Parameter { key, got, expected })
    };
    positive("smoothing", smoothing)?;
    let expected = counts.population.len();
    let length = |what, got: usize| {
        let fits = got == expected && u32::try_from(got).is_ok();
        fits.then_some(()).ok_or(RuleError::Lengths { what, got, expected })
    };
    length("the person", counts.person.len())?;
    match rule {
        Rule::Ratio { tau, .. } => positive("tau", tau),
        Rule::Difference { .. } => Ok(()),
        Rule::TeacherError { recall_below, min_count } => {
            length("the teacher", counts.hits.len())?;
            if !(recall_below > 0.0 && recall_below <= 1.0) {
                let expected = "above 0, at most 1";
                return Err(RuleError::Parameter {
                    key: "recall_below",
                    got: recall_below,
                    expected,
                });
            }
            if min_count == 0 {
                let expected = "at least 1: there is no recall of nothing";
                return Err(RuleError::Parameter { key: "min_count", got: 0.0, expected });
            }
            let pairs = counts.hits.iter().zip(counts.person).enumerate();
            match pairs.into_iter().find(|(_, (hits, count))| hits > count) {
                Some((intent, (&hits, &count))) => Err(RuleError::Hits { intent, hits, count }),
                None => Ok(()),
            }
        }
    }
}

#[cfg(test)]
#[path = "rule_tests.rs"]
mod tests;
