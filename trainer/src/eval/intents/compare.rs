//! Arms against references, slice by slice, with paired intervals.

use super::Outcome;
use super::slice::Slice;
use super::tally::{IntentMetric, Tally};
use crate::eval::bootstrap::Rows;
use crate::eval::panel::user_counts;
use crate::eval::{Bootstrap, Estimate, EvalError, Interval, Metric, UserCounts};
use crate::ids::UserId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One way of guessing and all its outcomes.
#[derive(Debug, Clone, PartialEq)]
pub struct IntentArm {
    /// Name in tables.
    pub name: String,
    /// People, in any order, each once.
    pub users: Vec<UserOutcomes>,
}

/// The outcomes of one person's targets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserOutcomes {
    /// Who.
    pub user: UserId,
    /// By target, each once.
    pub outcomes: Vec<Outcome>,
}

/// What to compare.
#[derive(Debug, Clone, PartialEq)]
pub struct IntentOptions {
    /// Number of intents.
    pub intents: usize,
    /// Which targets, in the table's order.
    pub slices: Vec<Slice>,
    /// Names of the arms that the others are held against.
    pub references: Vec<String>,
    /// How intervals are made; people are drawn.
    pub bootstrap: Bootstrap,
}

/// All rows, slice by slice, arms in the order given, metrics in the order of [`IntentMetric::ALL`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IntentComparison {
    /// How the intervals were made.
    pub bootstrap: Bootstrap,
    /// The slices.
    pub slices: Vec<SliceRows>,
}

/// One slice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SliceRows {
    /// Its name.
    pub slice: String,
    /// Targets in it.
    pub num_targets: usize,
    /// People with targets in it.
    pub num_users: usize,
    /// A row an arm and metric; none where there are no targets.
    pub rows: Vec<IntentRow>,
}

/// One arm under one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IntentRow {
    /// The arm.
    pub arm: String,
    /// The metric.
    pub metric: IntentMetric,
    /// Over all targets of the slice.
    pub over_samples: Estimate,
    /// Mean over its people.
    pub over_users: Estimate,
    /// Against each reference but itself, in the order of the references.
    pub differences: Vec<IntentDifference>,
}

/// An arm minus a reference, paired by target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IntentDifference {
    /// The reference arm.
    pub reference: String,
    /// Over all targets.
    pub over_samples: Estimate,
    /// Of the means over people.
    pub over_users: Estimate,
    /// People: better, worse, equal, sign test.
    pub users: UserCounts,
}

/// Compares arms that answer the same targets.
///
/// *Order*: independent of the order of people, targets and threads; every arm and slice meets the same draws of people.
///
/// # Errors
/// Arms with equal names, a reference that is no arm, a person or target twice, targets not answered by all, golds
/// that differ, no targets at all, and what the tallies and the bootstrap refuse.
pub fn compare(arms: &[IntentArm], options: &IntentOptions) -> Result<IntentComparison, EvalError> {
    let sorted = paired(arms)?;
    let missing = |name: &&String| arms.iter().all(|arm| arm.name != **name);
    if let Some(name) = options.references.iter().find(missing) {
        return Err(EvalError::Arm { name: name.clone(), what: "is a reference and no arm" });
    }
    let slices = options.slices.iter().map(|slice| rows(slice, &sorted, options));
    let slices = slices.collect::<Result<_, _>>()?;
    Ok(IntentComparison { bootstrap: options.bootstrap.clone(), slices })
}

/// An arm in canonical order: people by id, targets by number; people without targets left out.
struct Sorted<'a> {
    name: &'a str,
    users: Vec<(&'a UserId, Vec<Outcome>)>,
}

fn paired(arms: &[IntentArm]) -> Result<Vec<Sorted<'_>>, EvalError> {
    let mut names = BTreeSet::new();
    if let Some(arm) = arms.iter().find(|arm| !names.insert(arm.name.as_str())) {
        return Err(EvalError::Arm { name: arm.name.clone(), what: "is there twice" });
    }
    let sorted = arms.iter().map(canonical).collect::<Result<Vec<_>, _>>()?;
    if let Some((first, others)) = sorted.split_first() {
        others.iter().try_for_each(|other| same_targets(first, other))?;
    }
    Ok(sorted)
}

fn canonical(arm: &IntentArm) -> Result<Sorted<'_>, EvalError> {
    let duplicate = |user: &UserId, query: String| EvalError::Duplicate {
        arm: arm.name.clone(),
        user: user.clone(),
        query,
    };
    let kept = arm.users.iter().filter(|u| !u.outcomes.is_empty());
    let mut users: Vec<(&UserId, Vec<Outcome>)> =
        kept.map(|u| (&u.user, u.outcomes.clone())).collect();
    users.sort_by_key(|(user, _)| *user);
    if let Some(pair) = users.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(duplicate(pair[0].0, pair[1].1[0].target.to_string()));
    }
    for (user, outcomes) in &mut users {
        outcomes.sort_by_key(|o| o.target);
        if let Some(pair) = outcomes.windows(2).find(|pair| pair[0].target == pair[1].target) {
            return Err(duplicate(user, pair[0].target.to_string()));
        }
    }
    if users.is_empty() {
        return Err(EvalError::Empty { what: format!("arm `{}`", arm.name) });
    }
    Ok(Sorted { name: &arm.name, users })
}

/// Refuses arms that do not answer the same targets with the same golds.
fn same_targets(first: &Sorted<'_>, second: &Sorted<'_>) -> Result<(), EvalError> {
    let flat = |arm: &Sorted<'_>| -> Vec<(UserId, usize, u32)> {
        let user = |(user, outcomes): &(&UserId, Vec<Outcome>)| {
            let user = (*user).clone();
            outcomes.iter().map(move |o| (user.clone(), o.target, o.gold)).collect::<Vec<_>>()
        };
        arm.users.iter().flat_map(user).collect()
    };
    let (mine, theirs) = (flat(first), flat(second));
    let at = (0..mine.len().max(theirs.len())).find(|&i| mine.get(i) != theirs.get(i));
    let Some(at) = at else { return Ok(()) };
    let key = |x: &(UserId, usize, u32)| (x.0.clone(), x.1);
    let (a, b) = (mine.get(at), theirs.get(at));
    match (a, b) {
        (Some(a), Some(b)) if key(a) == key(b) => Err(EvalError::GoldDiffers {
            first: first.name.to_owned(),
            second: second.name.to_owned(),
            user: a.0.clone(),
            query: a.1.to_string(),
        }),
        // Both are sorted: the smaller key is the one the other arm lacks.
        _ => {
            let mine = match (a, b) {
                (Some(a), Some(b)) => key(a) < key(b),
                (a, _) => a.is_some(),
            };
            let (present, absent) = if mine { (first, second) } else { (second, first) };
            let Some((user, target, _)) = (if mine { a } else { b }) else { return Ok(()) };
            Err(EvalError::Unpaired {
                present: present.name.to_owned(),
                absent: absent.name.to_owned(),
                user: user.clone(),
                query: target.to_string(),
            })
        }
    }
}

/// A metric's value of the whole, of every person with targets, and of every resample.
struct Values {
    over_samples: f64,
    of_users: Vec<f64>,
    samples_drawn: Vec<f64>,
    users_drawn: Vec<f64>,
}

impl Values {
    fn over_users(&self) -> f64 {
        self.of_users.iter().sum::<f64>() / self.of_users.len() as f64
    }
}

fn rows(
    slice: &Slice,
    arms: &[Sorted<'_>],
    options: &IntentOptions,
) -> Result<SliceRows, EvalError> {
    let mut empty =
        SliceRows { slice: slice.name.clone(), num_targets: 0, num_users: 0, rows: Vec::new() };
    let mut values = Vec::new();
    for arm in arms {
        let (targets, people, of_arm) = arm_values(slice, arm, options)?;
        (empty.num_targets, empty.num_users) = (targets, people);
        if targets == 0 {
            return Ok(empty);
        }
        values.push(of_arm);
    }
    let references = options.references.iter();
    let references: Vec<usize> =
        references.filter_map(|name| arms.iter().position(|a| a.name == name)).collect();
    for (own, arm) in arms.iter().enumerate() {
        for (place, metric) in IntentMetric::ALL.into_iter().enumerate() {
            let of = |arm: usize| &values[arm][place];
            let others = references.iter().filter(|&&other| other != own);
            let differences = others.map(|&other| IntentDifference {
                reference: arms[other].name.to_owned(),
                ..difference(&options.bootstrap, of(own), of(other))
            });
            let v = of(own);
            let alone = |value: f64, drawn: &[f64]| Estimate {
                value,
                interval: interval(&options.bootstrap, value, drawn.iter().copied()),
            };
            empty.rows.push(IntentRow {
                arm: arm.name.to_owned(),
                metric,
                over_samples: alone(v.over_samples, &v.samples_drawn),
                over_users: alone(v.over_users(), &v.users_drawn),
                differences: differences.collect(),
            });
        }
    }
    Ok(empty)
}

/// Targets and people of a slice, and an arm's values there, one place a metric.
fn arm_values(
    slice: &Slice,
    arm: &Sorted<'_>,
    options: &IntentOptions,
) -> Result<(usize, usize, Vec<Values>), EvalError> {
    let mut tallies = Vec::with_capacity(arm.users.len());
    let mut whole = Tally::new(options.intents);
    let mut targets = 0;
    for (user, outcomes) in &arm.users {
        let inside = slice.classes.inside(user, options.intents);
        let within = |intent: u32| inside.get(intent as usize).copied().unwrap_or(false);
        let mut tally = Tally::new(options.intents);
        outcomes.iter().try_for_each(|outcome| tally.add(outcome, within))?;
        targets += outcomes.iter().filter(|o| within(o.gold)).count();
        whole.merge(&tally)?;
        tallies.push(tally);
    }
    let people = tallies.iter().filter(|t| t.targets() > 0.0).count();
    if people == 0 {
        return Ok((0, 0, Vec::new()));
    }
    let averaged = slice.classes.averaged();
    let width = whole.sums().len();
    let sums: Vec<f64> = tallies.iter().flat_map(|t| t.sums()).copied().collect();
    let drawn = options.bootstrap.resample(&Rows { unit: "user", sums: &sums, width })?;
    // A person's metrics and whether he has any: means over drawn people leave out those without targets.
    let metrics = IntentMetric::ALL;
    let of_user = |tally: &Tally| {
        let here = tally.targets() > 0.0;
        let value = |m: IntentMetric| if here { m.of(tally.sums(), averaged) } else { 0.0 };
        let mut row = metrics.map(value).to_vec();
        row.push(f64::from(u8::from(here)));
        row
    };
    let rows: Vec<f64> = tallies.iter().flat_map(of_user).collect();
    let width = metrics.len() + 1;
    let means = options.bootstrap.resample(&Rows { unit: "user", sums: &rows, width })?;
    let values = metrics.into_iter().enumerate().map(|(place, metric)| Values {
        over_samples: metric.of(whole.sums(), averaged),
        of_users: rows
            .chunks_exact(width)
            .filter(|row| row[width - 1] > 0.0)
            .map(|row| row[place])
            .collect(),
        samples_drawn: drawn.iter().map(|sums| metric.of(sums, averaged)).collect(),
        users_drawn: means.iter().map(|row| row[place] / row[width - 1]).collect(),
    });
    Ok((targets, people, values.collect()))
}

/// Without the reference's name.
fn difference(bootstrap: &Bootstrap, own: &Values, other: &Values) -> IntentDifference {
    let apart = |a: f64, b: f64, drawn: (&[f64], &[f64])| Estimate {
        value: a - b,
        interval: interval(bootstrap, a - b, drawn.0.iter().zip(drawn.1).map(|(a, b)| a - b)),
    };
    let over_users = (own.over_users(), other.over_users());
    IntentDifference {
        reference: String::new(),
        over_samples: apart(
            own.over_samples,
            other.over_samples,
            (&own.samples_drawn, &other.samples_drawn),
        ),
        over_users: apart(over_users.0, over_users.1, (&own.users_drawn, &other.users_drawn)),
        // As of accuracy: higher is better.
        users: user_counts(Metric::Accuracy, &own.of_users, &other.of_users),
    }
}

/// The percentile interval; resamples without any target in the slice say nothing and are left out.
fn interval(bootstrap: &Bootstrap, value: f64, drawn: impl Iterator<Item = f64>) -> Interval {
    let drawn: Vec<f64> = drawn.filter(|x| x.is_finite()).collect();
    if drawn.is_empty() {
        return Interval { lo: value, hi: value };
    }
    bootstrap.interval(drawn.into_iter())
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
