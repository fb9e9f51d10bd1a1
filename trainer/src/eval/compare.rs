//! Arms against references, metric by metric, with paired intervals.

use super::arms::{Sorted, Sums};
use super::bootstrap::Rows;
use super::{Arm, Bootstrap, EvalError, Interval, Metric, sign_test};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What to compare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Metrics, in the table's order.
    pub metrics: Vec<Metric>,
    /// The task's labels; may be empty for ratings.
    pub labels: Vec<String>,
    /// Names of the arms that the others are held against.
    pub references: Vec<String>,
    /// How intervals are made.
    pub bootstrap: Bootstrap,
}

/// All rows, metric by metric, arms in the order given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// How the intervals were made.
    pub bootstrap: Bootstrap,
    /// Predictions without gold, left out; over all arms.
    pub unlabelled: usize,
    /// The rows.
    pub rows: Vec<Row>,
}

/// One arm under one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The arm.
    pub arm: String,
    /// The metric.
    pub metric: Metric,
    /// Labelled queries.
    pub num_queries: usize,
    /// Users with labelled queries.
    pub num_users: usize,
    /// The metric over all queries: heavy users count more.
    pub over_queries: f64,
    /// The mean of the users' values: each user counts the same. None for macro-F1.
    pub over_users: Option<f64>,
    /// Against each reference but itself, in the order of the references.
    pub differences: Vec<Difference>,
}

/// An arm minus a reference, paired by query.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The reference arm.
    pub reference: String,
    /// Difference of the values over all queries.
    pub over_queries: Estimate,
    /// Its interval when queries, not users, are drawn: too narrow where a user's queries are alike.
    pub over_queries_by_query: Interval,
    /// Difference of the means over users. None for macro-F1.
    pub over_users: Option<Estimate>,
    /// Users: better, worse, equal, sign test. None for macro-F1.
    pub users: Option<UserCounts>,
}

/// A value with its interval; users are drawn, with all their queries.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Arm minus reference.
    pub value: f64,
    /// Percentile interval.
    pub interval: Interval,
}

/// How users fare under an arm against the reference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct UserCounts {
    /// Users with a better value.
    pub better: u64,
    /// Users with a worse value.
    pub worse: u64,
    /// Users with an equal value.
    pub equal: u64,
    /// Share of users better, of all.
    pub better_share: f64,
    /// Share of users worse, of all.
    pub worse_share: f64,
    /// Two-sided exact sign test over the users that differ.
    pub sign_test_p: f64,
}

/// Compares arms over the queries they all answer.
///
/// *Order*: independent of the order of predictions and of threads.
///
/// # Errors
/// Arms with equal names, a reference that is no arm, labelled queries not answered by all, golds that
/// differ, and what the metrics and the bootstrap refuse.
pub fn compare(arms: &[Arm], options: &Options) -> Result<Comparison, EvalError> {
    let mut names = BTreeSet::new();
    if let Some(arm) = arms.iter().find(|arm| !names.insert(arm.name.as_str())) {
        return Err(EvalError::Arm { name: arm.name.clone(), what: "is there twice" });
    }
    if let Some(name) = options.references.iter().find(|name| !names.contains(name.as_str())) {
        return Err(EvalError::Arm { name: name.clone(), what: "is a reference and no arm" });
    }
    let sorted = arms.iter().map(Sorted::new).collect::<Result<Vec<_>, _>>()?;
    if let Some((first, others)) = sorted.split_first() {
        others.iter().try_for_each(|other| same_queries(first, other))?;
    }
    let mut rows = Vec::new();
    for &metric in &options.metrics {
        let sums = sorted.iter().map(|arm| arm.sums(metric, &options.labels));
        let panel = Panel::new(metric, sums.collect::<Result<_, _>>()?, &options.bootstrap)?;
        for (own, arm) in sorted.iter().enumerate() {
            let against = options.references.iter().filter(|name| *name != arm.name);
            let places = against.filter_map(|name| sorted.iter().position(|a| a.name == name));
            let differences =
                places.map(|other| panel.difference(own, other, sorted[other].name)).collect();
            rows.push(panel.row(own, arm, differences));
        }
    }
    let unlabelled = arms.iter().flat_map(|a| &a.predictions).filter(|p| p.gold.is_none()).count();
    Ok(Comparison { bootstrap: options.bootstrap.clone(), unlabelled, rows })
}

/// Refuses arms that do not answer the same labelled queries with the same golds.
fn same_queries(first: &Sorted<'_>, second: &Sorted<'_>) -> Result<(), EvalError> {
    let (mut a, mut b) = (first.predictions.iter(), second.predictions.iter());
    loop {
        let (mine, other) = (a.next(), b.next());
        // Both are sorted: at the first unequal pair the smaller key is the one the other arm lacks.
        let (prediction, present, absent) = match (mine, other) {
            (None, None) => return Ok(()),
            (Some(x), Some(y)) if x.key() == y.key() => {
                let gold = |p: &super::Prediction| p.gold.as_deref().map(|g| g.trim().to_owned());
                if gold(x) == gold(y) {
                    continue;
                }
                return Err(EvalError::GoldDiffers {
                    first: first.name.to_owned(),
                    second: second.name.to_owned(),
                    user: x.user.clone(),
                    query: x.query.clone(),
                });
            }
            (Some(x), Some(y)) if y.key() < x.key() => (y, second.name, first.name),
            (Some(x), _) => (x, first.name, second.name),
            (None, Some(y)) => (y, second.name, first.name),
        };
        return Err(EvalError::Unpaired {
            present: present.to_owned(),
            absent: absent.to_owned(),
            user: prediction.user.clone(),
            query: prediction.query.clone(),
        });
    }
}

/// One metric: the sums of all arms and their resamples.
struct Panel<'a> {
    metric: Metric,
    bootstrap: &'a Bootstrap,
    sums: Vec<Sums>,
    /// Per arm: the users' values.
    values: Vec<Vec<f64>>,
    /// Resamples by users, `[arms, columns]` each.
    by_user: Vec<Vec<f64>>,
    /// Resamples by queries, `[arms, columns]` each.
    by_query: Vec<Vec<f64>>,
    /// Resampled sums of the users' values, `[arms]` each; the users drawn are those of `by_user`.
    of_values: Vec<Vec<f64>>,
}

impl<'a> Panel<'a> {
    fn new(metric: Metric, sums: Vec<Sums>, bootstrap: &'a Bootstrap) -> Result<Self, EvalError> {
        let values: Vec<Vec<f64>> = sums.iter().map(|s| s.user_values(metric)).collect();
        let resample = |unit, matrices: Vec<&[f64]>, columns| {
            let (sums, width) = side_by_side(&matrices, columns);
            bootstrap.resample(&Rows { unit, sums: &sums, width })
        };
        let columns = sums.first().map_or(1, |s| s.columns);
        let (by_user, by_query, of_values) = if sums.is_empty() {
            Default::default()
        } else {
            (
                resample("user", sums.iter().map(|s| s.by_user.as_slice()).collect(), columns)?,
                resample("query", sums.iter().map(|s| s.by_query.as_slice()).collect(), columns)?,
                resample("user", values.iter().map(Vec::as_slice).collect(), 1)?,
            )
        };
        Ok(Self { metric, bootstrap, sums, values, by_user, by_query, of_values })
    }

    fn row(&self, own: usize, arm: &Sorted<'_>, differences: Vec<Difference>) -> Row {
        Row {
            arm: arm.name.to_owned(),
            metric: self.metric,
            num_queries: arm.predictions.len(),
            num_users: self.values[own].len(),
            over_queries: self.metric.value(&self.sums[own].all),
            over_users: self.metric.per_user().then(|| mean(&self.values[own])),
            differences,
        }
    }

    fn difference(&self, own: usize, other: usize, name: &str) -> Difference {
        let metric = self.metric;
        let columns = self.sums[own].columns;
        let apart = |resample: &Vec<f64>| {
            let of = |arm: usize| metric.value(&resample[arm * columns..(arm + 1) * columns]);
            of(own) - of(other)
        };
        let (mine, theirs) = (&self.values[own], &self.values[other]);
        let of_means = |resample: &Vec<f64>| (resample[own] - resample[other]) / mine.len() as f64;
        Difference {
            reference: name.to_owned(),
            over_queries: Estimate {
                value: metric.value(&self.sums[own].all) - metric.value(&self.sums[other].all),
                interval: self.bootstrap.interval(self.by_user.iter().map(apart)),
            },
            over_queries_by_query: self.bootstrap.interval(self.by_query.iter().map(apart)),
            over_users: metric.per_user().then(|| Estimate {
                value: mean(mine) - mean(theirs),
                interval: self.bootstrap.interval(self.of_values.iter().map(of_means)),
            }),
            users: metric.per_user().then(|| user_counts(metric, mine, theirs)),
        }
    }
}

/// Matrices `[units, columns]` as one `[units, matrices * columns]`, and its width.
fn side_by_side(matrices: &[&[f64]], columns: usize) -> (Vec<f64>, usize) {
    let units = matrices.first().map_or(0, |m| m.len() / columns);
    let rows = (0..units).flat_map(|unit| {
        matrices.iter().flat_map(move |m| &m[unit * columns..(unit + 1) * columns]).copied()
    });
    (rows.collect(), matrices.len() * columns)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn user_counts(metric: Metric, arm: &[f64], reference: &[f64]) -> UserCounts {
    let count = |wanted: fn(&f64, &f64) -> bool| {
        arm.iter().zip(reference).filter(|(a, r)| wanted(a, r)).count() as u64
    };
    let (less, more) = (count(|a, r| a < r), count(|a, r| a > r));
    let (better, worse) = if metric.lower_is_better() { (less, more) } else { (more, less) };
    let all = arm.len() as u64;
    UserCounts {
        better,
        worse,
        equal: all - better - worse,
        better_share: better as f64 / all as f64,
        worse_share: worse as f64 / all as f64,
        sign_test_p: sign_test(better, worse),
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
