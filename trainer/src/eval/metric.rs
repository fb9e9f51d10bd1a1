//! Metrics by the rules of LaMP's evaluation script, and the user-profile study's variants of them, as sums over queries.
//!
//! Every metric is a function of a few sums ([`Metric::add`], [`Metric::value`]), so means over all
//! queries, over one user and over a resample are one thing.

use super::EvalError;
use super::rouge::{rouge_1, rouge_l};

pub use crate::config::Metric;

/// One query as metrics see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) gold: &'a str,
    pub(super) answer: &'a str,
    pub(super) expected: Option<f64>,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Self; 11] = [
        Self::Accuracy,
        Self::MacroF1,
        Self::Mae,
        Self::Rmse,
        Self::ExpectedMae,
        Self::Rouge1,
        Self::RougeL,
        Self::CompatAccuracy,
        Self::CompatMacroF1,
        Self::CompatMae,
        Self::CompatRmse,
    ];

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::MacroF1 => "macro-F1",
            Self::Mae => "MAE",
            Self::Rmse => "RMSE",
            Self::ExpectedMae => "MAE (expected)",
            Self::Rouge1 => "ROUGE-1",
            Self::RougeL => "ROUGE-L",
            Self::CompatAccuracy => "accuracy (compat)",
            Self::CompatMacroF1 => "macro-F1 (compat)",
            Self::CompatMae => "MAE (compat)",
            Self::CompatRmse => "RMSE (compat)",
        }
    }

    /// Name in configs, on the command line, in JSON and CSV.
    pub fn key(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::MacroF1 => "macro_f1",
            Self::Mae => "mae",
            Self::Rmse => "rmse",
            Self::ExpectedMae => "expected_mae",
            Self::Rouge1 => "rouge_1",
            Self::RougeL => "rouge_l",
            Self::CompatAccuracy => "compat_accuracy",
            Self::CompatMacroF1 => "compat_macro_f1",
            Self::CompatMae => "compat_mae",
            Self::CompatRmse => "compat_rmse",
        }
    }

    /// The metric of a [`Metric::key`].
    ///
    /// # Errors
    /// [`EvalError::UnknownMetric`].
    pub fn from_key(key: &str) -> Result<Self, EvalError> {
        let found = Self::ALL.into_iter().find(|metric| metric.key() == key);
        found.ok_or_else(|| EvalError::UnknownMetric { name: key.to_owned() })
    }

    /// The user-profile study's variant of an official metric; none where it has none of its own.
    pub fn compat(self) -> Option<Self> {
        match self {
            Self::Accuracy => Some(Self::CompatAccuracy),
            Self::MacroF1 => Some(Self::CompatMacroF1),
            Self::Mae => Some(Self::CompatMae),
            Self::Rmse => Some(Self::CompatRmse),
            _ => None,
        }
    }

    /// True for errors, false for shares.
    pub fn lower_is_better(self) -> bool {
        use Metric::{CompatMae, CompatRmse, ExpectedMae, Mae, Rmse};
        matches!(self, Mae | Rmse | ExpectedMae | CompatMae | CompatRmse)
    }

    /// Whether a single user's value means something: macro-F1 over the few labels of a user does not.
    pub fn per_user(self) -> bool {
        !matches!(self, Self::MacroF1 | Self::CompatMacroF1)
    }

    /// The metric of (gold, answer) pairs.
    ///
    /// # Errors
    /// No pairs, no labels, a gold that is not a number; always for [`Metric::ExpectedMae`], which needs more than texts.
    pub fn of_pairs(self, pairs: &[(&str, &str)], labels: &[String]) -> Result<f64, EvalError> {
        if pairs.is_empty() || self == Self::ExpectedMae {
            return Err(EvalError::Empty { what: self.name().to_owned() });
        }
        let mut sums = vec![0.0; self.columns(labels)?];
        for &(gold, answer) in pairs {
            self.add(Pair { gold, answer, expected: None }, labels, &mut sums)?;
        }
        Ok(self.value(&sums))
    }

    /// Number of sums: (total, count), or (tp, predicted, true) per class.
    pub(super) fn columns(self, labels: &[String]) -> Result<usize, EvalError> {
        use Metric::{Accuracy, CompatMacroF1, MacroF1};
        match self {
            Accuracy | MacroF1 | CompatMacroF1 if labels.is_empty() => {
                Err(EvalError::NoLabels { metric: self.name() })
            }
            MacroF1 => Ok(3 * labels.len()),
            // One more for every text that is no label.
            CompatMacroF1 => Ok(3 * (labels.len() + 1)),
            _ => Ok(2),
        }
    }

    /// sums += this query. `pair.expected` must be there for [`Metric::ExpectedMae`].
    ///
    /// # Errors
    /// [`EvalError::GoldNotANumber`].
    pub(super) fn add(
        self,
        pair: Pair<'_>,
        labels: &[String],
        sums: &mut [f64],
    ) -> Result<(), EvalError> {
        let label = |text: &str| labels.iter().position(|l| strip(l) == strip(text));
        let as_is = |text: &str| labels.iter().position(|l| l == text).unwrap_or(labels.len());
        let value = match self {
            Self::MacroF1 => {
                count(label(pair.gold), label(pair.answer), sums);
                return Ok(());
            }
            Self::CompatMacroF1 => {
                count(Some(as_is(pair.gold)), Some(as_is(pair.answer)), sums);
                return Ok(());
            }
            Self::Accuracy => f64::from(u8::from(label(pair.gold) == label(pair.answer))),
            Self::CompatAccuracy => f64::from(u8::from(pair.gold == pair.answer)),
            Self::Mae => rating_error(pair)?.abs(),
            Self::Rmse => rating_error(pair)?.powi(2),
            Self::CompatMae => compat_error(pair)?.abs(),
            Self::CompatRmse => compat_error(pair)?.powi(2),
            Self::ExpectedMae => {
                (pair.expected.unwrap_or(f64::NAN) - gold_number(pair.gold)?).abs()
            }
            Self::Rouge1 => rouge_1(pair.gold, pair.answer),
            Self::RougeL => rouge_l(pair.gold, pair.answer),
        };
        sums[0] += value;
        sums[1] += 1.0;
        Ok(())
    }

    /// The metric of its sums; NaN for no queries.
    pub(super) fn value(self, sums: &[f64]) -> f64 {
        let f1s = || {
            sums.chunks_exact(3).map(|class| {
                let both = class[1] + class[2];
                (both > 0.0).then(|| 2.0 * class[0] / both)
            })
        };
        match self {
            Self::MacroF1 => f1s().map(|f1| f1.unwrap_or(0.0)).sum::<f64>() / f1s().count() as f64,
            Self::CompatMacroF1 => f1s().flatten().sum::<f64>() / f1s().flatten().count() as f64,
            Self::Rmse | Self::CompatRmse => (sums[0] / sums[1]).sqrt(),
            _ => sums[0] / sums[1],
        }
    }
}

/// Adds one query to (tp, predicted, true) of its classes; none is no class.
fn count(gold: Option<usize>, answer: Option<usize>, sums: &mut [f64]) {
    if let Some(class) = answer {
        sums[3 * class + 1] += 1.0;
    }
    if let Some(class) = gold {
        sums[3 * class + 2] += 1.0;
        sums[3 * class] += if answer == gold { 1.0 } else { 0.0 };
    }
}

/// Python's `strip()`: what Unicode calls white space, and the four ASCII separators.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

fn number(text: &str) -> Option<f64> {
    strip(text).parse().ok().filter(|value: &f64| value.is_finite())
}

fn gold_number(gold: &str) -> Result<f64, EvalError> {
    number(gold).ok_or_else(|| EvalError::GoldNotANumber { gold: gold.to_owned() })
}

/// answer - gold, the answer replaced by the farther extreme when it is no number.
fn rating_error(pair: Pair<'_>) -> Result<f64, EvalError> {
    let gold = gold_number(pair.gold)?;
    let farther = if (1.0 - gold).abs() > (5.0 - gold).abs() { 1.0 } else { 5.0 };
    Ok(number(pair.answer).unwrap_or(farther) - gold)
}

/// answer - gold, the answer replaced by gold - 5 when it is no number.
fn compat_error(pair: Pair<'_>) -> Result<f64, EvalError> {
    let gold = gold_number(pair.gold)?;
    Ok(number(pair.answer).map_or(-5.0, |answer| answer - gold))
}

#[cfg(test)]
#[path = "metric_tests.rs"]
mod tests;
