//! Precision, recall and NDCG by hand-computed values; slices, merging, expected sums.

use super::IntentMetric::{Ndcg3, Ndcg5, PrecM, PrecW, RecM, RecW};
use super::*;

fn tally(intents: usize, outcomes: &[(u32, u32, u32)], inside: impl Fn(u32) -> bool) -> Tally {
    let mut tally = Tally::new(intents);
    for (target, &(gold, answer, rank)) in outcomes.iter().enumerate() {
        tally.add(&Outcome { target, gold, answer, rank }, &inside).unwrap();
    }
    tally
}

fn all(tally: &Tally, averaged: Averaged) -> [f64; 6] {
    IntentMetric::ALL.map(|metric| tally.value(metric, averaged).unwrap())
}

/// gold 0 0 0 1 1 2, answers 0 0 1 1 3 0, five intents: 3 is only answered, 4 never seen.
const OUTCOMES: [(u32, u32, u32); 6] =
    [(0, 0, 1), (0, 0, 1), (0, 1, 2), (1, 1, 1), (1, 3, 4), (2, 0, 6)];

/// By the definitions of `precision_score` and `recall_score` with `zero_division=0`, worked out by hand.
#[test]
fn scikit_learns_rules_by_hand() {
    let tally = tally(5, &OUTCOMES, |_| true);
    let [prec_w, rec_w, prec_m, rec_m, ndcg3, ndcg5] = all(&tally, Averaged::GoldOrAnswered);
    // TP/A: 2/3, 1/2, 0/0, 0/1.
    assert!((prec_w - (3.0 * (2.0 / 3.0) + 2.0 * 0.5) / 6.0).abs() < 1e-15);
    assert!((rec_w - 0.5).abs() < 1e-15);
    assert!((prec_m - (2.0 / 3.0 + 0.5) / 4.0).abs() < 1e-15);
    // TP/G: 2/3, 1/2, 0/1, 0/0.
    assert!((rec_m - (2.0 / 3.0 + 0.5) / 4.0).abs() < 1e-15);
    let [second, fourth] = [1.0 / 3.0_f64.log2(), 1.0 / 5.0_f64.log2()];
    assert!((ndcg3 - (3.0 + second) / 6.0).abs() < 1e-15);
    assert!((ndcg5 - (3.0 + second + fourth) / 6.0).abs() < 1e-15);
    // Without the intent that is only answered.
    let [.., prec_m, rec_m, _, _] = all(&tally, Averaged::Gold);
    assert!((prec_m - (2.0 / 3.0 + 0.5) / 3.0).abs() < 1e-15);
    assert!((rec_m - (2.0 / 3.0 + 0.5) / 3.0).abs() < 1e-15);
}

#[test]
fn a_slice_counts_its_own_targets_and_answers() {
    let tally = tally(5, &OUTCOMES, |n| n == 1 || n == 2);
    assert!((tally.targets() - 3.0).abs() < 1e-15);
    let [prec_w, rec_w, prec_m, rec_m, ndcg3, _] = all(&tally, Averaged::Gold);
    // Intent 1: one hit of two answers and two targets; intent 2: one target, never answered.
    assert!((prec_w - 2.0 * 0.5 / 3.0).abs() < 1e-15);
    assert!((rec_w - 1.0 / 3.0).abs() < 1e-15);
    assert!((prec_m - 0.25).abs() < 1e-15 && (rec_m - 0.25).abs() < 1e-15);
    assert!((ndcg3 - 1.0 / 3.0).abs() < 1e-15);
}

#[test]
fn parts_merge_to_the_whole_and_nothing_is_no_value() {
    let mut merged = tally(5, &OUTCOMES[..2], |_| true);
    merged.merge(&tally(5, &OUTCOMES[2..], |_| true)).unwrap();
    assert_eq!(merged, tally(5, &OUTCOMES, |_| true));
    assert!(merged.merge(&Tally::new(4)).is_err());
    assert_eq!(Tally::new(5).value(RecW, Averaged::Gold), None);
    assert_eq!(tally(5, &OUTCOMES, |n| n == 4).value(PrecM, Averaged::Gold), None);
}

/// A law that is certain gives what the outcome gives; one that is not, the mixture.
#[test]
fn expected_sums_are_mixtures_of_outcomes() {
    let scores = [0.2, 0.5, 0.3];
    let mut certain = Tally::new(3);
    certain.add_expected(&scores, &[0.0, 0.0, 1.0], |_| true).unwrap();
    assert_eq!(certain, tally(3, &[(2, 1, 2)], |_| true));
    let mut expected = Tally::new(3);
    expected.add_expected(&scores, &[0.5, 0.25, 0.25], |n| n != 2).unwrap();
    let value = |metric| expected.value(metric, Averaged::Gold).unwrap();
    assert!((expected.targets() - 0.75).abs() < 1e-15);
    assert!((value(RecW) - 0.25 / 0.75).abs() < 1e-15);
    assert!((value(RecM) - 0.5).abs() < 1e-15);
    assert!((value(PrecW) - 0.25 * 0.25 / 0.75).abs() < 1e-15);
    assert!((value(PrecM) - 0.125).abs() < 1e-15);
    assert!((value(Ndcg3) - (0.25 + 0.5 * 0.5) / 0.75).abs() < 1e-15);
    assert!((value(Ndcg5) - value(Ndcg3)).abs() < 1e-15);
    assert!((value(PrecW) - value(PrecM)).abs() > 0.01);
}

#[test]
fn impossible_outcomes_are_refused() {
    let mut tally = Tally::new(3);
    let outcome = |gold, answer, rank| Outcome { target: 0, gold, answer, rank };
    for bad in [outcome(3, 0, 1), outcome(0, 3, 1), outcome(0, 0, 0)] {
        assert!(tally.add(&bad, |_| true).is_err(), "{bad:?}");
    }
    assert!(tally.add_expected(&[0.1; 2], &[0.1; 3], |_| true).is_err());
    assert!(tally.add_expected(&[0.1; 3], &[0.1; 2], |_| true).is_err());
    assert!(tally.add_expected(&[f64::NAN; 3], &[0.1; 3], |_| true).is_err());
    assert!(Tally::new(0).add_expected(&[], &[], |_| true).is_err());
    assert_eq!(tally, Tally::new(3));
    for metric in IntentMetric::ALL {
        assert_eq!(metric.key().parse::<IntentMetric>().unwrap(), metric);
    }
    assert!("Rec_m".parse::<IntentMetric>().is_err());
}
