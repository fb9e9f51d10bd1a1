//! The users whom an arm helps and harms most.

use super::Metric;
use super::arms::Sorted;
use super::panel::Panel;
use crate::ids::UserId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Users named on either side.
const MOST: usize = 10;

/// Who gains and who loses most under an arm against a reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Movers {
    /// The arm.
    pub arm: String,
    /// The reference arm.
    pub reference: String,
    /// The metric.
    pub metric: Metric,
    /// At most ten users who gain, most first; equal gains by user id.
    pub gained: Vec<UserChange>,
    /// At most ten users who lose, most first; equal losses by user id.
    pub lost: Vec<UserChange>,
}

/// One user under both arms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserChange {
    /// The user.
    pub user: UserId,
    /// Labelled queries.
    pub num_queries: usize,
    /// History items, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<usize>,
    /// The user's value under the arm.
    pub value: f64,
    /// The user's value under the reference.
    pub reference_value: f64,
    /// How much better the arm is: the difference, its sign turned where lower is better.
    pub gain: f64,
}

impl Movers {
    /// The users of `panel` under arm `.0` against arm `.1` of `arms`.
    pub(super) fn new(
        panel: &Panel<'_>,
        arms: &[Sorted<'_>],
        (own, other): (usize, usize),
        history: &BTreeMap<UserId, usize>,
    ) -> Self {
        let sign = if panel.metric.lower_is_better() { -1.0 } else { 1.0 };
        let values = panel.values[own].iter().zip(&panel.values[other]);
        let users = arms[own].users().zip(arms[own].bounds.windows(2));
        let change =
            |((user, bounds), (&value, &reference_value)): ((&UserId, &[usize]), _)| UserChange {
                user: user.clone(),
                num_queries: bounds[1] - bounds[0],
                history: history.get(user).copied(),
                value,
                reference_value,
                gain: sign * (value - reference_value),
            };
        let mut changes: Vec<UserChange> = users.zip(values).map(change).collect();
        // Stable, from the order of user ids.
        changes.sort_by(|a, b| b.gain.total_cmp(&a.gain));
        let gained = changes.iter().filter(|c| c.gain > 0.0).take(MOST).cloned().collect();
        changes.sort_by(|a, b| a.gain.total_cmp(&b.gain).then_with(|| a.user.cmp(&b.user)));
        let lost = changes.iter().filter(|c| c.gain < 0.0).take(MOST).cloned().collect();
        Self {
            arm: arms[own].name.to_owned(),
            reference: arms[other].name.to_owned(),
            metric: panel.metric,
            gained,
            lost,
        }
    }
}
