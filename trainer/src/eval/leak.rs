//! Is a gain personal? Adapters applied to other users' queries must lose it.

use super::compare::{Estimate, Options, paired};
use super::panel::Panel;
use super::{Arm, EvalError, Metric};
use serde::{Deserialize, Serialize};

/// Names of the three arms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeakArms {
    /// Every user's queries under the user's own adapter.
    pub personal: String,
    /// The same queries without a personal adapter.
    pub population: String,
    /// The same queries, each user's under another user's adapter.
    pub permuted: String,
}

impl Default for LeakArms {
    /// `personal`, `population`, `permuted`.
    fn default() -> Self {
        let [personal, population, permuted] =
            ["personal", "population", "permuted"].map(str::to_owned);
        Self { personal, population, permuted }
    }
}

/// What the leak check found, under one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeakCheck {
    /// The metric.
    pub metric: Metric,
    /// Whether the estimates are over users; macro-F1 has them over queries alone.
    pub over_users: bool,
    /// personal - population.
    pub gain: Estimate,
    /// personal - permuted: what is lost with other users' adapters.
    pub lost: Estimate,
    /// permuted - population: what other users' adapters give too.
    pub kept: Estimate,
    /// The finding.
    pub finding: Finding,
    /// The finding in words: `gain is personal …` or `gain is not personal: …`.
    pub verdict: String,
}

/// A leak check's result. "Better" means that the whole interval lies on the better side of zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Personal is better than population, and better than permuted.
    Personal,
    /// Personal is better than population, yet not better than permuted: any user's adapter would do.
    Shared,
    /// Personal is not better than population: there is no gain to be lost.
    NoGain,
}

/// Whether the gain of `personal` over `population` is lost under permutation, by paired differences with
/// `options.bootstrap`'s intervals; uses nothing else of `options` but the labels.
///
/// # Errors
/// An arm that is not there, and as [`super::compare()`].
pub fn leak_check(
    arms: &[Arm],
    names: &LeakArms,
    metric: Metric,
    options: &Options,
) -> Result<LeakCheck, EvalError> {
    let find = |name: &String| {
        arms.iter().find(|arm| arm.name == *name).cloned().ok_or_else(|| EvalError::Arm {
            name: name.clone(),
            what: "is needed by the leak check",
        })
    };
    let three = [find(&names.personal)?, find(&names.population)?, find(&names.permuted)?];
    let sorted = paired(&three)?;
    let panel = Panel::new(metric, &sorted, options)?;
    let apart = |own, other| {
        let difference = panel.difference(own, other, "");
        difference.over_users.unwrap_or(difference.over_queries)
    };
    let (gain, lost, kept) = (apart(0, 1), apart(0, 2), apart(2, 1));
    let better = |e: Estimate| {
        if metric.lower_is_better() { e.interval.hi < 0.0 } else { e.interval.lo > 0.0 }
    };
    let finding = match (better(gain), better(lost)) {
        (false, _) => Finding::NoGain,
        (true, true) => Finding::Personal,
        (true, false) => Finding::Shared,
    };
    let text =
        |e: Estimate| format!("{:+.4} [{:+.4}, {:+.4}]", e.value, e.interval.lo, e.interval.hi);
    let verdict = match finding {
        // No gain, no share of it: the difference is then not of one sign.
        Finding::Personal => format!(
            "gain is personal ({} - {}: {}; other users' adapters keep {:.0} % of the gain)",
            names.personal,
            names.permuted,
            text(lost),
            100.0 * (kept.value / gain.value).max(0.0)
        ),
        Finding::Shared => format!(
            "gain is not personal: it is not lost with other users' adapters ({} - {}: {})",
            names.personal,
            names.permuted,
            text(lost)
        ),
        Finding::NoGain => format!(
            "gain is not personal: there is none ({} - {}: {})",
            names.personal,
            names.population,
            text(gain)
        ),
    };
    Ok(LeakCheck { metric, over_users: metric.per_user(), gain, lost, kept, finding, verdict })
}

#[cfg(test)]
#[path = "leak_tests.rs"]
mod tests;
