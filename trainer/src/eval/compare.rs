//! Arms against references, metric by metric, with paired intervals.

use super::arms::Sorted;
use super::history::{self, HistoryGroup};
use super::leak::{LeakArms, LeakCheck, leak_check};
use super::movers::Movers;
use super::panel::Panel;
use super::{Arm, Bootstrap, EvalError, Interval, Metric};
use crate::ids::UserId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What to compare.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Metrics, in the table's order; the first is the primary one.
    pub metrics: Vec<Metric>,
    /// The task's labels; may be empty for ratings and texts.
    pub labels: Vec<String>,
    /// Names of the arms that the others are held against.
    pub references: Vec<String>,
    /// How intervals are made.
    pub bootstrap: Bootstrap,
    /// History items of every user with labelled queries, for [`Comparison::by_history`]; empty: not known.
    #[serde(default)]
    pub history: BTreeMap<UserId, usize>,
    /// The arms of the leak check; none: it is not made.
    #[serde(default)]
    pub leak: Option<LeakArms>,
}

/// All rows, metric by metric, arms in the order given; what `metrics.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// How the intervals were made.
    pub bootstrap: Bootstrap,
    /// Predictions without gold, left out; over all arms.
    pub unlabelled: usize,
    /// The rows.
    pub rows: Vec<Row>,
    /// The same rows over the users with small, medium and large histories; empty if sizes are unknown or all alike.
    #[serde(default)]
    pub by_history: Vec<HistoryGroup>,
    /// Who gains and loses most, for every metric that users have and every arm against the references before it.
    #[serde(default)]
    pub movers: Vec<Movers>,
    /// Whether the gain is personal, under the primary metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leak: Option<LeakCheck>,
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
    /// Its interval; users are drawn.
    pub interval_over_queries: Interval,
    /// The mean of the users' values: each user counts the same. None for macro-F1.
    pub over_users: Option<f64>,
    /// Its interval; users are drawn.
    pub interval_over_users: Option<Interval>,
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
/// differ, a user without history size where there are any, and what the metrics and the bootstrap refuse.
pub fn compare(arms: &[Arm], options: &Options) -> Result<Comparison, EvalError> {
    let sorted = paired(arms)?;
    let missing = |name: &&String| sorted.iter().all(|arm| arm.name != name.as_str());
    if let Some(name) = options.references.iter().find(missing) {
        return Err(EvalError::Arm { name: name.clone(), what: "is a reference and no arm" });
    }
    let (rows, movers) = rows(&sorted, options)?;
    let unlabelled = arms.iter().flat_map(|a| &a.predictions).filter(|p| p.gold.is_none()).count();
    Ok(Comparison {
        bootstrap: options.bootstrap.clone(),
        unlabelled,
        rows,
        by_history: history::groups(&sorted, options)?,
        movers,
        leak: match (&options.leak, options.metrics.first()) {
            (Some(names), Some(&metric)) => Some(leak_check(arms, names, metric, options)?),
            _ => None,
        },
    })
}

/// The arms in canonical order, sure to answer the same queries.
///
/// # Errors
/// As [`compare()`].
pub(super) fn paired(arms: &[Arm]) -> Result<Vec<Sorted<'_>>, EvalError> {
    let mut names = BTreeSet::new();
    if let Some(arm) = arms.iter().find(|arm| !names.insert(arm.name.as_str())) {
        return Err(EvalError::Arm { name: arm.name.clone(), what: "is there twice" });
    }
    let sorted = arms.iter().map(Sorted::new).collect::<Result<Vec<_>, _>>()?;
    if let Some((first, others)) = sorted.split_first() {
        others.iter().try_for_each(|other| same_queries(first, other))?;
    }
    Ok(sorted)
}

/// Rows of every metric and arm, and the users behind their differences.
pub(super) fn rows(
    sorted: &[Sorted<'_>],
    options: &Options,
) -> Result<(Vec<Row>, Vec<Movers>), EvalError> {
    let (mut rows, mut movers) = (Vec::new(), Vec::new());
    for &metric in &options.metrics {
        let panel = Panel::new(metric, sorted, options)?;
        for (own, arm) in sorted.iter().enumerate() {
            let against = options.references.iter().filter(|name| *name != arm.name);
            let places = against.filter_map(|name| sorted.iter().position(|a| a.name == name));
            let places: Vec<usize> = places.collect();
            let differences = places.iter().map(|&o| panel.difference(own, o, sorted[o].name));
            rows.push(panel.row(own, arm, differences.collect()));
            // Against earlier arms only: the mirror of a change says nothing new.
            for &other in places.iter().filter(|&&other| other < own && metric.per_user()) {
                movers.push(Movers::new(&panel, sorted, (own, other), &options.history));
            }
        }
    }
    Ok((rows, movers))
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

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
