//! Metrics against the reference libraries (`tests/golden/lamp_metrics`), by hand, and as properties.

use super::*;
use proptest::prelude::*;
use serde::Deserialize;

fn labels(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

fn close(value: Result<f64, EvalError>, expected: f64) {
    let value = value.unwrap();
    assert!((value - expected).abs() < 1e-12, "{value} for {expected}");
}

#[derive(Deserialize)]
struct Golden {
    rouge: Vec<(String, String, f64, f64)>,
    labels: Vec<LabelCase>,
    ratings: Vec<RatingCase>,
}

#[derive(Deserialize)]
struct LabelCase {
    labels: Vec<String>,
    golds: Vec<String>,
    answers: Vec<String>,
    accuracy: f64,
    macro_f1: f64,
    compat_accuracy: f64,
    compat_macro_f1: f64,
}

#[derive(Deserialize)]
struct RatingCase {
    golds: Vec<String>,
    answers: Vec<String>,
    mae: f64,
    rmse: f64,
    compat_mae: f64,
    compat_rmse: f64,
}

fn golden() -> Golden {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/lamp_metrics/cases.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn pairs<'a>(golds: &'a [String], answers: &'a [String]) -> Vec<(&'a str, &'a str)> {
    golds.iter().map(String::as_str).zip(answers.iter().map(String::as_str)).collect()
}

/// rouge-score's, bit for bit.
#[test]
fn golden_rouge() {
    let cases = golden().rouge;
    assert_eq!(cases.len(), 400);
    for (gold, answer, one, l) in &cases {
        let got = [rouge_1(gold, answer), rouge_l(gold, answer)].map(f64::to_bits);
        assert_eq!(got, [one.to_bits(), l.to_bits()], "{gold:?} {answer:?}");
    }
    let alike = cases.iter().filter(|c| c.2 > c.3).count();
    assert!(alike > 50, "only {alike} cases tell ROUGE-1 from ROUGE-L");
}

/// The same four as everywhere in the literature of this project, to six digits.
#[test]
fn golden_rouge_by_hand() {
    for (gold, answer, one, l) in [
        ("The quick brown fox jumps", "the brown quick fox", 0.888_889, 0.666_667),
        ("COVID-19: what's next?", "What is next for COVID 19", 0.727_273, 0.363_636),
        ("Élan vital", "elan vital", 0.5, 0.5),
        ("10 Ways To Cook", "Ways to Cook 10 Eggs", 0.888_889, 0.666_667),
    ] {
        for (metric, expected) in [(Metric::Rouge1, one), (Metric::RougeL, l)] {
            let got = metric.of_pairs(&[(gold, answer)], &[]).unwrap();
            assert!((got - expected).abs() < 5e-7, "{metric:?} {gold:?}: {got}");
        }
    }
    // The plain mean over queries.
    let two = [("Élan vital", "elan vital"), ("a", "b")];
    close(Metric::Rouge1.of_pairs(&two, &[]), 0.25);
}

#[test]
fn golden_labels() {
    let first = &golden().labels[0];
    assert_eq!(first.answers, ["a", "b", "a", "zzz"]);
    for case in golden().labels {
        let pairs = pairs(&case.golds, &case.answers);
        for (metric, expected) in [
            (Metric::Accuracy, case.accuracy),
            (Metric::MacroF1, case.macro_f1),
            (Metric::CompatAccuracy, case.compat_accuracy),
            (Metric::CompatMacroF1, case.compat_macro_f1),
        ] {
            close(metric.of_pairs(&pairs, &case.labels), expected);
        }
    }
    let abcd = labels(&["a", "b", "c", "d"]);
    let pairs = [("a", "a"), ("b", " b\n"), ("b", "a"), ("c", "zzz")];
    close(Metric::Accuracy.of_pairs(&pairs, &abcd), 0.5);
    close(Metric::MacroF1.of_pairs(&pairs, &abcd), 1.0 / 3.0);
    close(Metric::CompatAccuracy.of_pairs(&pairs, &abcd), 0.25);
    // a 2/3, b 0, c 0, and the class of what is no label 0.
    close(Metric::CompatMacroF1.of_pairs(&pairs, &abcd), (2.0 / 3.0) / 4.0);
}

#[test]
fn golden_ratings() {
    for case in golden().ratings {
        let pairs = pairs(&case.golds, &case.answers);
        for (metric, expected) in [
            (Metric::Mae, case.mae),
            (Metric::Rmse, case.rmse),
            (Metric::CompatMae, case.compat_mae),
            (Metric::CompatRmse, case.compat_rmse),
        ] {
            close(metric.of_pairs(&pairs, &[]), expected);
        }
    }
}

#[test]
fn unknown_is_one_label_and_no_class() {
    let ab = labels(&["a", "b"]);
    let unknown = [("x", "y"), ("a", "y")];
    close(Metric::Accuracy.of_pairs(&unknown, &ab), 0.5);
    close(Metric::CompatAccuracy.of_pairs(&unknown, &ab), 0.0);
    close(Metric::MacroF1.of_pairs(&unknown, &ab), 0.0);
    // The study's class -1 is hit once in two answers and one gold: F1 = 2/3; a = 0; b never occurs.
    close(Metric::CompatMacroF1.of_pairs(&unknown, &ab), 1.0 / 3.0);
    close(Metric::MacroF1.of_pairs(&[("a", "a")], &ab), 0.5);
    close(Metric::CompatMacroF1.of_pairs(&[("a", "a")], &ab), 1.0);
    // Case counts.
    close(Metric::Accuracy.of_pairs(&[("a", "A")], &ab), 0.0);
}

#[test]
fn ratings_and_the_farther_extreme() {
    let (mae, rmse) = (Metric::Mae, Metric::Rmse);
    close(mae.of_pairs(&[("4", " 5 "), ("2", "2.5")], &[]), 0.75);
    close(rmse.of_pairs(&[("4", "5"), ("2", "5")], &[]), 5.0_f64.sqrt());
    for (gold, error) in [("1", 4.0), ("2", 3.0), ("3", 2.0), ("4", 3.0), ("5", 4.0)] {
        for nonsense in ["", "good", "4 stars", "nan", "-inf", "1e999"] {
            close(mae.of_pairs(&[(gold, nonsense)], &[]), error);
            close(rmse.of_pairs(&[(gold, nonsense)], &[]), error);
            close(Metric::CompatMae.of_pairs(&[(gold, nonsense)], &[]), 5.0);
            close(Metric::CompatRmse.of_pairs(&[(gold, nonsense)], &[]), 5.0);
        }
    }
    for bad in ["?", "inf", ""] {
        for metric in [mae, rmse, Metric::CompatMae, Metric::CompatRmse] {
            let refused = metric.of_pairs(&[(bad, "1")], &[]);
            assert!(matches!(refused, Err(EvalError::GoldNotANumber { .. })));
        }
    }
}

#[test]
fn nothing_is_an_error() {
    for metric in Metric::ALL {
        let none = metric.of_pairs(&[], &labels(&["a"]));
        assert!(matches!(none, Err(EvalError::Empty { .. })));
    }
    for metric in [Metric::Accuracy, Metric::MacroF1, Metric::CompatMacroF1] {
        let refused = metric.of_pairs(&[("a", "a")], &[]);
        assert!(matches!(refused, Err(EvalError::NoLabels { .. })));
    }
}

/// One spelling in configs, JSON and on the command line.
#[test]
fn keys_are_the_words_of_configs() {
    for metric in Metric::ALL {
        let quoted = serde_json::to_string(&metric).unwrap();
        assert_eq!(quoted, format!("\"{}\"", metric.key()));
        assert_eq!(Metric::from_key(metric.key()).unwrap(), metric);
    }
    let sections = crate::config::SECTIONS.iter();
    let key = sections.flat_map(|s| s.keys).find(|k| k.name == "metrics").unwrap();
    let crate::config::Kind::ListOf(words) = key.kind else { panic!("{:?}", key.kind) };
    assert_eq!(words, Metric::ALL.map(Metric::key));
    let refused = Metric::from_key("bleu").unwrap_err().to_string();
    assert!(refused.contains("bleu") && refused.contains("rouge_l"), "{refused}");
}

proptest! {
    /// Whatever the texts: shares lie in [0, 1], errors are at least 0, a perfect answer is perfect, and the order
    /// of queries does not count beyond rounding.
    #[test]
    fn values_are_in_range_and_orderless(
        queries in proptest::collection::vec(("[1-5]", "([1-5]|\\PC{0,12}|[ \n]?[1-5] )"), 1..12),
        turn in 0_usize..12,
    ) {
        let five = labels(&["1", "2", "3", "4", "5"]);
        let pairs: Vec<(&str, &str)> = queries.iter().map(|(g, a)| (g.as_str(), a.as_str())).collect();
        let same: Vec<(&str, &str)> = pairs.iter().map(|(g, _)| (*g, *g)).collect();
        for metric in Metric::ALL.into_iter().filter(|m| *m != Metric::ExpectedMae) {
            let value = metric.of_pairs(&pairs, &five).unwrap();
            prop_assert!(value >= 0.0 && value.is_finite());
            let best = metric.of_pairs(&same, &five).unwrap();
            if metric.lower_is_better() {
                prop_assert!(best.abs() < 1e-15);
            } else {
                prop_assert!(value <= 1.0 + 1e-15);
                prop_assert!(best >= value - 1e-15 || metric == Metric::MacroF1);
                // Macro-F1 over the full list is at most the share of classes that occur.
                prop_assert!((best - 1.0).abs() < 1e-15 || metric == Metric::MacroF1);
            }
            let mut turned = pairs.clone();
            turned.rotate_left(turn % pairs.len());
            prop_assert!((metric.of_pairs(&turned, &five).unwrap() - value).abs() < 1e-12);
        }
    }

    /// ROUGE of any two texts: symmetric, in range, L at most 1.
    #[test]
    fn rouge_is_symmetric(a in "\\PC{0,40}", b in "([a-c] ){0,12}\\PC{0,10}") {
        for (x, y) in [(&a, &b), (&b, &b), (&b, &a)] {
            let (one, l) = (rouge_1(x, y), rouge_l(x, y));
            prop_assert!((0.0..=1.0).contains(&one) && l <= one + 1e-15 && l >= 0.0);
            prop_assert!((one - rouge_1(y, x)).abs() < 1e-15 && (l - rouge_l(y, x)).abs() < 1e-15);
        }
    }
}
