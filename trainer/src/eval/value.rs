//! One arm's value with an interval of its own.

use super::arms::Sorted;
use super::bootstrap::Rows;
use super::{Arm, Bootstrap, Estimate, EvalError, Metric};

/// The metric over all labelled queries of an arm; the interval draws users, with all their queries.
///
/// *Order*: independent of the order of predictions and of threads.
///
/// # Errors
/// No labelled predictions, a query twice, what the metric and the bootstrap refuse.
pub fn estimate(
    arm: &Arm,
    metric: Metric,
    labels: &[String],
    bootstrap: &Bootstrap,
) -> Result<Estimate, EvalError> {
    let sums = Sorted::new(arm)?.sums(metric, labels)?;
    let rows = Rows { unit: "user", sums: &sums.by_user, width: sums.columns };
    let resamples = bootstrap.resample(&rows)?;
    let interval = bootstrap.interval(resamples.iter().map(|sums| metric.value(sums)));
    Ok(Estimate { value: metric.value(&sums.all), interval })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Prediction;
    use crate::ids::UserId;

    fn arm(users: &[(&str, &[bool])]) -> Arm {
        let predictions = users.iter().flat_map(|(user, right)| {
            right.iter().enumerate().map(move |(i, right)| Prediction {
                user: UserId::new(user),
                query: i.to_string(),
                gold: Some("a".to_owned()),
                text: if *right { "a" } else { "b" }.to_owned(),
                label_probs: None,
                expected: None,
            })
        });
        Arm { name: "x".to_owned(), predictions: predictions.collect() }
    }

    #[test]
    fn users_are_drawn_with_all_their_queries() {
        let labels = ["a".to_owned(), "b".to_owned()];
        let of = |arm| estimate(&arm, Metric::Accuracy, &labels, &Bootstrap::default()).unwrap();
        // Two users, one all right, one all wrong: a resample is 0, 1/2 or 1, each end a quarter of the time.
        let two = of(arm(&[("u", &[true; 8]), ("v", &[false; 8])]));
        assert_eq!((two.value, two.interval.lo, two.interval.hi), (0.5, 0.0, 1.0));
        let one = of(arm(&[("u", &[true, false])]));
        assert_eq!((one.value, one.interval.lo, one.interval.hi), (0.5, 0.5, 0.5));
        let none = estimate(&arm(&[]), Metric::Accuracy, &labels, &Bootstrap::default());
        assert!(matches!(none, Err(EvalError::Empty { .. })));
    }
}
