//! Arms against references, metric by metric, with paired intervals.

use super::arms::{Sorted, Sums};
use super::bootstrap::Paired;
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
        let sums = sorted
            .iter()
            .map(|arm| arm.sums(metric, &options.labels))
            .collect::<Result<Vec<_>, _>>()?;
        for (arm, own) in sorted.iter().zip(&sums) {
            let mut differences = Vec::new();
            for name in options.references.iter().filter(|name| *name != arm.name) {
                let others = sorted.iter().zip(&sums).filter(|(other, _)| other.name == name);
                for (_, reference) in others {
                    differences.push(difference(name, metric, own, reference, &options.bootstrap)?);
                }
            }
            rows.push(row(arm, metric, own, differences));
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

fn row(arm: &Sorted<'_>, metric: Metric, sums: &Sums, differences: Vec<Difference>) -> Row {
    let values = sums.user_values(metric);
    let num_users = values.len();
    Row {
        arm: arm.name.to_owned(),
        metric,
        num_queries: arm.predictions.len(),
        num_users,
        over_queries: metric.value(&sums.all),
        over_users: metric.per_user().then(|| mean(&values)),
        differences,
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn difference(
    name: &str,
    metric: Metric,
    arm: &Sums,
    reference: &Sums,
    bootstrap: &Bootstrap,
) -> Result<Difference, EvalError> {
    let columns = arm.columns;
    let value = |sums: &[f64]| metric.value(sums);
    let users = Paired { arm: &arm.by_user, reference: &reference.by_user, columns };
    let queries = Paired { arm: &arm.by_query, reference: &reference.by_query, columns };
    let over_queries = Estimate {
        value: value(&arm.all) - value(&reference.all),
        interval: bootstrap.difference("user", &users, value)?,
    };
    let over_queries_by_query = bootstrap.difference("query", &queries, value)?;
    let (mut over_users, mut counts) = (None, None);
    if metric.per_user() {
        let (own, other) = (arm.user_values(metric), reference.user_values(metric));
        let paired = Paired { arm: &own, reference: &other, columns: 1 };
        let of_mean = |sums: &[f64]| sums[0] / own.len() as f64;
        over_users = Some(Estimate {
            value: mean(&own) - mean(&other),
            interval: bootstrap.difference("user", &paired, of_mean)?,
        });
        counts = Some(user_counts(metric, &own, &other));
    }
    let (reference, users) = (name.to_owned(), counts);
    Ok(Difference { reference, over_queries, over_queries_by_query, over_users, users })
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
