//! Metrics by the rules of LaMP's evaluation script, as sums over queries.
//!
//! Every metric is a function of a few sums ([`Metric::add`], [`Metric::value`]), so means over all
//! queries, over one user and over a resample are one thing.

use super::EvalError;

pub use crate::config::Metric;

/// One query as metrics see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) gold: &'a str,
    pub(super) answer: &'a str,
    pub(super) expected: Option<f64>,
}

impl Metric {
    /// Name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::MacroF1 => "macro-F1",
            Self::Mae => "MAE",
            Self::Rmse => "RMSE",
            Self::ExpectedMae => "MAE (expected)",
        }
    }

    /// True for errors, false for shares.
    pub fn lower_is_better(self) -> bool {
        matches!(self, Self::Mae | Self::Rmse | Self::ExpectedMae)
    }

    /// Whether a single user's value means something: macro-F1 over the few labels of a user does not.
    pub fn per_user(self) -> bool {
        self != Self::MacroF1
    }

    /// Number of sums: (total, count), or (tp, predicted, true) per label.
    pub(super) fn columns(self, labels: &[String]) -> Result<usize, EvalError> {
        match self {
            Self::Accuracy | Self::MacroF1 if labels.is_empty() => {
                Err(EvalError::NoLabels { metric: self.name() })
            }
            Self::MacroF1 => Ok(3 * labels.len()),
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
        let label = |text: &str| labels.iter().position(|l| l.trim() == text.trim());
        let value = match self {
            Self::MacroF1 => {
                let (gold, answer) = (label(pair.gold), label(pair.answer));
                if let Some(class) = answer {
                    sums[3 * class + 1] += 1.0;
                }
                if let Some(class) = gold {
                    sums[3 * class + 2] += 1.0;
                    sums[3 * class] += if answer == gold { 1.0 } else { 0.0 };
                }
                return Ok(());
            }
            Self::Accuracy => f64::from(u8::from(label(pair.gold) == label(pair.answer))),
            Self::Mae => rating_error(pair.gold, pair.answer)?.abs(),
            Self::Rmse => rating_error(pair.gold, pair.answer)?.powi(2),
            Self::ExpectedMae => {
                (pair.expected.unwrap_or(f64::NAN) - gold_number(pair.gold)?).abs()
            }
        };
        sums[0] += value;
        sums[1] += 1.0;
        Ok(())
    }

    /// The metric of its sums; NaN for no queries.
    pub(super) fn value(self, sums: &[f64]) -> f64 {
        match self {
            Self::MacroF1 => {
                let f1 = |class: &[f64]| {
                    let both = class[1] + class[2];
                    if both > 0.0 { 2.0 * class[0] / both } else { 0.0 }
                };
                let classes = sums.chunks_exact(3);
                let count = classes.len() as f64;
                classes.map(f1).sum::<f64>() / count
            }
            Self::Rmse => (sums[0] / sums[1]).sqrt(),
            _ => sums[0] / sums[1],
        }
    }

    fn of(self, pairs: &[(&str, &str)], labels: &[String]) -> Result<f64, EvalError> {
        if pairs.is_empty() {
            return Err(EvalError::Empty { what: self.name().to_owned() });
        }
        let mut sums = vec![0.0; self.columns(labels)?];
        for &(gold, answer) in pairs {
            self.add(Pair { gold, answer, expected: None }, labels, &mut sums)?;
        }
        Ok(self.value(&sums))
    }
}

/// [`Metric::Accuracy`] of (gold, answer) pairs.
///
/// # Errors
/// No pairs, no labels.
pub fn accuracy(pairs: &[(&str, &str)], labels: &[String]) -> Result<f64, EvalError> {
    Metric::Accuracy.of(pairs, labels)
}

/// [`Metric::MacroF1`] of (gold, answer) pairs.
///
/// # Errors
/// No pairs, no labels.
pub fn macro_f1(pairs: &[(&str, &str)], labels: &[String]) -> Result<f64, EvalError> {
    Metric::MacroF1.of(pairs, labels)
}

/// [`Metric::Mae`] of (gold, answer) pairs.
///
/// # Errors
/// No pairs, a gold that is not a number.
pub fn mae(pairs: &[(&str, &str)]) -> Result<f64, EvalError> {
    Metric::Mae.of(pairs, &[])
}

/// [`Metric::Rmse`] of (gold, answer) pairs.
///
/// # Errors
/// No pairs, a gold that is not a number.
pub fn rmse(pairs: &[(&str, &str)]) -> Result<f64, EvalError> {
    Metric::Rmse.of(pairs, &[])
}

fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|value: &f64| value.is_finite())
}

fn gold_number(gold: &str) -> Result<f64, EvalError> {
    number(gold).ok_or_else(|| EvalError::GoldNotANumber { gold: gold.to_owned() })
}

/// answer - gold, the answer replaced by the farther extreme when it is no number.
fn rating_error(gold: &str, answer: &str) -> Result<f64, EvalError> {
    let gold = gold_number(gold)?;
    let farther = if (1.0 - gold).abs() > (5.0 - gold).abs() { 1.0 } else { 5.0 };
    Ok(number(answer).unwrap_or(farther) - gold)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    fn close(value: Result<f64, EvalError>, expected: f64) {
        let value = value.unwrap();
        assert!((value - expected).abs() < 1e-12, "{value} for {expected}");
    }

    /// Values of LaMP's script (scikit-learn).
    #[test]
    fn golden_labels() {
        let abcd = labels(&["a", "b", "c", "d"]);
        let pairs = [("a", "a"), ("b", " b\n"), ("b", "a"), ("c", "zzz")];
        close(accuracy(&pairs, &abcd), 0.5);
        close(macro_f1(&pairs, &abcd), 1.0 / 3.0);
    }

    #[test]
    fn unknown_is_one_label_and_no_class() {
        let ab = labels(&["a", "b"]);
        close(accuracy(&[("x", "y"), ("a", "y")], &ab), 0.5);
        close(macro_f1(&[("x", "y"), ("a", "y")], &ab), 0.0);
        close(macro_f1(&[("a", "a")], &ab), 0.5);
        // Case counts.
        close(accuracy(&[("a", "A")], &ab), 0.0);
    }

    #[test]
    fn ratings_and_the_farther_extreme() {
        close(mae(&[("4", " 5 "), ("2", "2.5")]), 0.75);
        close(rmse(&[("4", "5"), ("2", "5")]), 5.0_f64.sqrt());
        for (gold, error) in [("1", 4.0), ("2", 3.0), ("3", 2.0), ("4", 3.0), ("5", 4.0)] {
            for nonsense in ["", "good", "4 stars", "nan", "-inf"] {
                close(mae(&[(gold, nonsense)]), error);
                close(rmse(&[(gold, nonsense)]), error);
            }
        }
        assert!(matches!(mae(&[("?", "1")]), Err(EvalError::GoldNotANumber { .. })));
        assert!(matches!(mae(&[("inf", "1")]), Err(EvalError::GoldNotANumber { .. })));
    }

    #[test]
    fn nothing_is_an_error() {
        assert!(matches!(mae(&[]), Err(EvalError::Empty { .. })));
        assert!(matches!(macro_f1(&[("a", "a")], &[]), Err(EvalError::NoLabels { .. })));
    }
}
