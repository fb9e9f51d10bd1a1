//! Six metrics as sums over targets.

use super::Outcome;
use crate::eval::EvalError;
use serde::{Deserialize, Serialize};

/// A metric; the module's head has the formulas. Higher is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntentMetric {
    /// Precision, intents weighted by their targets.
    PrecW,
    /// Recall, intents weighted by their targets: accuracy.
    RecW,
    /// Precision, plain mean over intents.
    PrecM,
    /// Recall, plain mean over intents.
    RecM,
    /// Discounted gain of the first three.
    #[serde(rename = "ndcg_3")]
    Ndcg3,
    /// Discounted gain of the first five.
    #[serde(rename = "ndcg_5")]
    Ndcg5,
}

/// Which intents macro averages go over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Averaged {
    /// Those of targets or of answers: scikit-learn's default.
    GoldOrAnswered,
    /// Those of targets: the same for every arm.
    Gold,
}

/// Sums after the classes': targets, gains within 3, within 5.
const TAIL: usize = 3;

impl IntentMetric {
    /// Every metric, in the tables' order.
    pub const ALL: [Self; 6] =
        [Self::PrecW, Self::RecW, Self::PrecM, Self::RecM, Self::Ndcg3, Self::Ndcg5];

    /// Name in tables, the paper's.
    pub fn name(self) -> &'static str {
        match self {
            Self::PrecW => "Prec_w",
            Self::RecW => "Rec_w",
            Self::PrecM => "Prec_m",
            Self::RecM => "Rec_m",
            Self::Ndcg3 => "N@3",
            Self::Ndcg5 => "N@5",
        }
    }

    /// Name in configs, in JSON and in the names of files.
    pub fn key(self) -> &'static str {
        match self {
            Self::PrecW => "prec_w",
            Self::RecW => "rec_w",
            Self::PrecM => "prec_m",
            Self::RecM => "rec_m",
            Self::Ndcg3 => "ndcg_3",
            Self::Ndcg5 => "ndcg_5",
        }
    }

    /// The metric of a [`Tally`]'s sums; NaN for no targets.
    pub(super) fn of(self, sums: &[f64], averaged: Averaged) -> f64 {
        let (classes, tail) = sums.split_at(sums.len() - TAIL);
        let (classes, targets) = (classes.chunks_exact(3), tail[0]);
        if targets <= 0.0 {
            return f64::NAN;
        }
        let quotient = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        let macro_mean = |of: fn(&[f64]) -> (f64, f64)| {
            let (mut sum, mut count) = (0.0, 0.0_f64);
            for class in classes.clone() {
                if class[2] > 0.0 || (averaged == Averaged::GoldOrAnswered && class[1] > 0.0) {
                    let (a, b) = of(class);
                    sum += quotient(a, b);
                    count += 1.0;
                }
            }
            sum / count
        };
        match self {
            Self::PrecW => classes.map(|c| c[2] * quotient(c[0], c[1])).sum::<f64>() / targets,
            Self::RecW => classes.map(|c| c[0]).sum::<f64>() / targets,
            Self::PrecM => macro_mean(|c| (c[0], c[1])),
            Self::RecM => macro_mean(|c| (c[0], c[2])),
            Self::Ndcg3 => tail[1] / targets,
            Self::Ndcg5 => tail[2] / targets,
        }
    }
}

impl std::str::FromStr for IntentMetric {
    type Err = EvalError;

    fn from_str(key: &str) -> Result<Self, EvalError> {
        let found = Self::ALL.into_iter().find(|metric| metric.key() == key);
        found.ok_or_else(|| EvalError::Intent(format!("no metric of intents is called `{key}`")))
    }
}

/// The sums that all metrics are made of: (hits, answers, targets) of each intent, and gains. Targets arrive one by one.
#[derive(Debug, Clone, PartialEq)]
pub struct Tally {
    sums: Vec<f64>,
}

impl Tally {
    /// Nothing yet, of `intents` intents.
    pub fn new(intents: usize) -> Self {
        Self { sums: vec![0.0; 3 * intents + TAIL] }
    }

    /// += a target, as far as it lies inside.
    ///
    /// # Errors
    /// An intent that there is not, a rank of 0.
    pub fn add(
        &mut self,
        outcome: &Outcome,
        inside: impl Fn(u32) -> bool,
    ) -> Result<(), EvalError> {
        let [gold, answer] = [self.place(outcome.gold)?, self.place(outcome.answer)?];
        if outcome.rank == 0 {
            return Err(EvalError::Intent("a rank of 0: ranks are from 1".to_owned()));
        }
        if inside(outcome.answer) {
            self.sums[answer + 1] += 1.0;
        }
        if inside(outcome.gold) {
            self.sums[gold + 2] += 1.0;
            self.sums[gold] += f64::from(u8::from(gold == answer));
            self.gain(outcome.rank, 1.0);
        }
        Ok(())
    }

    /// += the expected sums of a target whose true distribution is known: every intent as gold, by its probability.
    /// Metrics of such sums have no luck in them; precision and macro averages are quotients of expectations.
    ///
    /// # Errors
    /// Numbers of intents that differ, a score that is not a number.
    pub fn add_expected(
        &mut self,
        scores: &[f64],
        law: &[f64],
        inside: impl Fn(u32) -> bool,
    ) -> Result<(), EvalError> {
        let intents = self.sums.len() / 3 - 1;
        if scores.len() != intents || law.len() != intents || intents == 0 {
            let lengths = format!("{} scores, a law of {}", scores.len(), law.len());
            return Err(EvalError::Intent(format!("{lengths}, {intents} intents")));
        }
        let order = super::ranked(scores, intents)?;
        let answer = order[0].0;
        if inside(answer) {
            self.sums[3 * answer as usize + 1] += 1.0;
        }
        for (rank, (intent, _)) in (1..).zip(order).filter(|(_, (intent, _))| inside(*intent)) {
            let (place, share) = (3 * intent as usize, law[intent as usize]);
            self.sums[place + 2] += share;
            self.sums[place] += if rank == 1 { share } else { 0.0 };
            self.gain(rank, share);
        }
        Ok(())
    }

    /// += another's sums.
    ///
    /// # Errors
    /// Other numbers of intents.
    pub fn merge(&mut self, other: &Self) -> Result<(), EvalError> {
        if other.sums.len() != self.sums.len() {
            return Err(EvalError::Intent("tallies of different numbers of intents".to_owned()));
        }
        self.sums.iter_mut().zip(&other.sums).for_each(|(a, b)| *a += b);
        Ok(())
    }

    /// Targets inside.
    pub fn targets(&self) -> f64 {
        self.sums[self.sums.len() - TAIL]
    }

    /// A metric; none for no targets.
    pub fn value(&self, metric: IntentMetric, averaged: Averaged) -> Option<f64> {
        (self.targets() > 0.0).then(|| metric.of(&self.sums, averaged))
    }

    pub(super) fn sums(&self) -> &[f64] {
        &self.sums
    }

    fn gain(&mut self, rank: u32, share: f64) {
        let at = self.sums.len() - TAIL;
        let gain = share / (1.0 + f64::from(rank)).log2();
        self.sums[at] += share;
        self.sums[at + 1] += if rank <= 3 { gain } else { 0.0 };
        self.sums[at + 2] += if rank <= 5 { gain } else { 0.0 };
    }

    /// Where an intent's sums start.
    fn place(&self, intent: u32) -> Result<usize, EvalError> {
        let intents = self.sums.len() / 3 - 1;
        let place = intent as usize;
        let none = || EvalError::Intent(format!("intent {intent} of {intents}"));
        (place < intents).then_some(3 * place).ok_or_else(none)
    }
}

#[cfg(test)]
#[path = "tally_tests.rs"]
mod tests;
