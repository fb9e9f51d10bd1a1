//! The leak check on gains that are personal, shared, or none.

use super::*;
use crate::eval::{Bootstrap, Prediction, compare, table};
use crate::ids::UserId;

/// Twenty users with two queries each, gold 3, answers by user and arm.
fn arm(name: &str, answer: &dyn Fn(usize) -> &'static str) -> Arm {
    let prediction = |n: usize| Prediction {
        user: UserId::new(&format!("u{}", n / 2)),
        query: n.to_string(),
        gold: Some("3".to_owned()),
        text: answer(n / 2).to_owned(),
        label_probs: None,
        expected: None,
    };
    Arm { name: name.to_owned(), predictions: (0..40).map(prediction).collect() }
}

fn options(metric: Metric) -> Options {
    Options {
        metrics: vec![metric],
        labels: (1..=5).map(|l| l.to_string()).collect(),
        references: vec!["population".to_owned()],
        bootstrap: Bootstrap { seed: 1, replicates: 400, confidence: 0.95 },
        leak: Some(LeakArms::default()),
        ..Options::default()
    }
}

/// `personal` and `permuted` are right for the users below the numbers; `population` for those below 5.
fn check(metric: Metric, personal: usize, permuted: usize) -> LeakCheck {
    let right = |below: usize| move |user: usize| if user < below { "3" } else { "5" };
    let arms = [
        arm("population", &right(5)),
        arm("permuted", &right(permuted)),
        arm("personal", &right(personal)),
    ];
    let check = leak_check(&arms, &LeakArms::default(), metric, &options(metric)).unwrap();
    // In a comparison it is the same, and shown.
    let done = compare(&arms, &options(metric)).unwrap();
    assert_eq!(done.leak.as_ref(), Some(&check));
    assert!(table::render(&done).contains(&check.verdict));
    let text = serde_json::to_string(&done).unwrap();
    assert_eq!(serde_json::from_str::<crate::eval::Comparison>(&text).unwrap(), done);
    check
}

#[test]
fn findings() {
    for metric in [Metric::Mae, Metric::Accuracy, Metric::MacroF1, Metric::Rouge1] {
        let personal = check(metric, 15, 5);
        assert_eq!((personal.finding, personal.over_users), (Finding::Personal, metric.per_user()));
        assert!(personal.verdict.starts_with("gain is personal (personal - permuted: "));
        assert!(personal.verdict.ends_with("keep 0 % of the gain)"), "{}", personal.verdict);
        let shared = check(metric, 15, 15);
        assert_eq!(shared.finding, Finding::Shared);
        assert!(shared.verdict.starts_with("gain is not personal: it is not lost"));
        for permuted in [0, 5, 15] {
            let none = check(metric, 5, permuted);
            assert_eq!(none.finding, Finding::NoGain);
            assert!(none.verdict.starts_with("gain is not personal: there is none"));
        }
        // Worse than population, but permuted is worse still: nothing was gained.
        assert_eq!(check(metric, 2, 0).finding, Finding::NoGain);
    }
    let half = check(Metric::Mae, 15, 10);
    assert_eq!(half.finding, Finding::Personal);
    assert!(half.verdict.ends_with("keep 50 % of the gain)"), "{}", half.verdict);
    let [gain, lost, kept] = [half.gain, half.lost, half.kept].map(|e| e.value);
    assert!((gain + 1.0).abs() < 1e-12 && (lost + 0.5).abs() < 1e-12 && (kept + 0.5).abs() < 1e-12);
}

#[test]
fn arms_that_are_not_there_are_named() {
    let arms = [arm("population", &|_| "3"), arm("personal", &|_| "3")];
    let refused = compare(&arms, &options(Metric::Mae)).unwrap_err().to_string();
    assert_eq!(refused, "arm `permuted` is needed by the leak check");
}
