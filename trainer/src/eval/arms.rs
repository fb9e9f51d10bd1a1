//! Predictions of an arm, checked, in canonical order, and their values per user.

use super::metric::Pair;
use super::{EvalError, Metric, Prediction};
use crate::ids::UserId;
use serde::Serialize;

/// One way of answering: its name and all its predictions, in any order.
#[derive(Debug, Clone)]
pub struct Arm {
    /// Name in tables.
    pub name: String,
    /// Predictions; those without gold are left out of all metrics.
    pub predictions: Vec<Prediction>,
}

/// A metric's value for one user.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UserValue {
    /// The user.
    pub user: UserId,
    /// Labelled queries.
    pub num_queries: usize,
    /// The metric over them.
    pub value: f64,
}

/// An arm's labelled predictions by user and query id.
pub(super) struct Sorted<'a> {
    pub(super) name: &'a str,
    pub(super) predictions: Vec<&'a Prediction>,
    /// Where each user's predictions start, and the end.
    pub(super) bounds: Vec<usize>,
}

/// A metric's sums of one arm.
pub(super) struct Sums {
    pub(super) columns: usize,
    /// `[queries, columns]`.
    pub(super) by_query: Vec<f64>,
    /// `[users, columns]`.
    pub(super) by_user: Vec<f64>,
    /// `[columns]`.
    pub(super) all: Vec<f64>,
}

impl<'a> Sorted<'a> {
    /// # Errors
    /// No labelled predictions; a query twice.
    pub(super) fn new(arm: &'a Arm) -> Result<Self, EvalError> {
        let labelled = arm.predictions.iter().filter(|p| p.gold.is_some());
        let mut predictions: Vec<&Prediction> = labelled.collect();
        predictions.sort_by_key(|p| p.key());
        if predictions.is_empty() {
            return Err(EvalError::Empty { what: format!("arm `{}`", arm.name) });
        }
        if let Some(twice) = predictions.windows(2).find(|pair| pair[0].key() == pair[1].key()) {
            let (user, query) = (twice[0].user.clone(), twice[0].query.clone());
            return Err(EvalError::Duplicate { arm: arm.name.clone(), user, query });
        }
        let starts = (0..predictions.len())
            .filter(|&i| i == 0 || predictions[i].user != predictions[i - 1].user);
        let mut bounds: Vec<usize> = starts.collect();
        bounds.push(predictions.len());
        Ok(Self { name: &arm.name, predictions, bounds })
    }

    /// The users, in the order of `bounds`.
    pub(super) fn users(&self) -> impl Iterator<Item = &'a UserId> {
        self.bounds.windows(2).map(|b| &self.predictions[b[0]].user)
    }

    /// The users that `inside` says true for, one place a user.
    pub(super) fn only(&self, inside: &[bool]) -> Self {
        let (mut predictions, mut bounds) = (Vec::new(), vec![0]);
        for (own, _) in self.bounds.windows(2).zip(inside).filter(|(_, inside)| **inside) {
            predictions.extend_from_slice(&self.predictions[own[0]..own[1]]);
            bounds.push(predictions.len());
        }
        Self { name: self.name, predictions, bounds }
    }

    /// The sums of a metric, added in canonical order.
    ///
    /// # Errors
    /// Labels or numbers that the metric needs and does not find.
    pub(super) fn sums(&self, metric: Metric, labels: &[String]) -> Result<Sums, EvalError> {
        let columns = metric.columns(labels)?;
        let mut by_query = vec![0.0; self.predictions.len() * columns];
        for (prediction, sums) in self.predictions.iter().zip(by_query.chunks_exact_mut(columns)) {
            let numbers = |what: String| EvalError::Numbers {
                arm: self.name.to_owned(),
                user: prediction.user.clone(),
                query: prediction.query.clone(),
                what,
            };
            let answer = prediction.answer(labels).map_err(numbers)?;
            let expected = prediction.expected.map(f64::from).filter(|e| e.is_finite());
            if metric == Metric::ExpectedMae && expected.is_none() {
                return Err(numbers("no expected rating".to_owned()));
            }
            let gold = prediction.gold.as_deref().unwrap_or_default();
            metric.add(Pair { gold, answer, expected }, labels, sums)?;
        }
        let total = |rows: &[f64]| {
            let mut sums = vec![0.0; columns];
            for row in rows.chunks_exact(columns) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            sums
        };
        let users = self.bounds.windows(2);
        let by_user: Vec<f64> =
            users.flat_map(|b| total(&by_query[b[0] * columns..b[1] * columns])).collect();
        let all = total(&by_user);
        Ok(Sums { columns, by_query, by_user, all })
    }
}

impl Sums {
    /// The metric per user.
    pub(super) fn user_values(&self, metric: Metric) -> Vec<f64> {
        self.by_user.chunks_exact(self.columns).map(|sums| metric.value(sums)).collect()
    }
}

/// A metric for each user of an arm, by user id.
///
/// # Errors
/// No labelled predictions, a query twice, labels or numbers that the metric needs and does not find.
pub fn per_user(arm: &Arm, metric: Metric, labels: &[String]) -> Result<Vec<UserValue>, EvalError> {
    let sorted = Sorted::new(arm)?;
    let values = sorted.sums(metric, labels)?.user_values(metric);
    let users = sorted.bounds.windows(2).zip(values);
    let user_value = |(bounds, value): (&[usize], f64)| UserValue {
        user: sorted.predictions[bounds[0]].user.clone(),
        num_queries: bounds[1] - bounds[0],
        value,
    };
    Ok(users.map(user_value).collect())
}
