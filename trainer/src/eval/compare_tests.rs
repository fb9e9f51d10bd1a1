//! Comparisons by hand-computed values, and what they refuse.

use super::*;
use crate::eval::{Prediction, per_user, table};
use crate::ids::UserId;
use proptest::prelude::*;

fn prediction(user: &str, query: usize, gold: &str, text: &str) -> Prediction {
    let (user, query) = (UserId::new(user), query.to_string());
    let expected = text.parse().ok();
    Prediction {
        user,
        query,
        gold: Some(gold.to_owned()),
        text: text.to_owned(),
        label_probs: None,
        expected,
    }
}

/// Users a (2 queries), b (1) and c (1), all golds 3.
fn arm(name: &str, answers: [&str; 4]) -> Arm {
    let places = [("a", 0), ("a", 1), ("b", 0), ("c", 0)];
    let predictions = places.iter().zip(answers).map(|((u, q), t)| prediction(u, *q, "3", t));
    Arm { name: name.to_owned(), predictions: predictions.collect() }
}

fn options(metrics: &[Metric]) -> Options {
    Options {
        metrics: metrics.to_vec(),
        labels: (1..=5).map(|l| l.to_string()).collect(),
        references: vec!["base".to_owned()],
        bootstrap: Bootstrap { seed: 4, replicates: 300, confidence: 0.9 },
        ..Options::default()
    }
}

const ALL: [Metric; 11] = Metric::ALL;

fn arms() -> Vec<Arm> {
    vec![arm("base", ["1", "2", "5", "3"]), arm("own", ["3", "2", "4", "4"])]
}

fn near(value: f64, expected: f64) {
    assert!((value - expected).abs() < 1e-12, "{value} for {expected}");
}

#[test]
fn values_by_hand() {
    let done = compare(&arms(), &options(&ALL)).unwrap();
    assert_eq!(done.rows.len(), 22);
    let own = |metric| done.rows.iter().find(|r| r.arm == "own" && r.metric == metric).unwrap();
    let mae = own(Metric::Mae);
    assert_eq!((mae.num_queries, mae.num_users, mae.differences.len()), (4, 3, 1));
    near(mae.over_queries, 0.75);
    near(mae.over_users.unwrap(), (0.5 + 1.0 + 1.0) / 3.0);
    let against = &mae.differences[0];
    assert_eq!(against.reference, "base");
    near(against.over_queries.value, 0.75 - 1.25);
    near(against.over_users.unwrap().value, 2.5 / 3.0 - (1.5 + 2.0 + 0.0) / 3.0);
    let users = against.users.unwrap();
    assert_eq!((users.better, users.worse, users.equal), (2, 1, 0));
    near(users.better_share, 2.0 / 3.0);
    near(users.sign_test_p, 1.0);
    near(own(Metric::Rmse).over_queries, 0.75_f64.sqrt());
    let accuracy = own(Metric::Accuracy);
    near(accuracy.over_queries, 0.25);
    // Higher is better: a gains, c loses, b stays wrong.
    let users = accuracy.differences[0].users.unwrap();
    assert_eq!((users.better, users.worse, users.equal), (1, 1, 1));
    let f1 = own(Metric::MacroF1);
    near(f1.over_queries, (2.0 / 5.0) / 5.0);
    assert!(f1.over_users.is_none() && f1.differences[0].users.is_none());
    assert!(done.rows.iter().filter(|r| r.arm == "base").all(|r| r.differences.is_empty()));
}

#[test]
fn intervals_are_of_the_extreme_resamples() {
    // Every user differs by the same amount, so every resample of users gives it.
    let arms = [arm("base", ["1", "1", "1", "1"]), arm("own", ["2", "2", "2", "2"])];
    let done = compare(&arms, &options(&[Metric::Mae])).unwrap();
    let d = &done.rows[1].differences[0];
    for interval in
        [d.over_queries.interval, d.over_queries_by_query, d.over_users.unwrap().interval]
    {
        near(interval.lo, -1.0);
        near(interval.hi, -1.0);
    }
    // Users a: -1, b: -1, c: +1; the widest resamples are all-c and none-c.
    let done = compare(&arms_mixed(), &options(&[Metric::Mae])).unwrap();
    let d = &done.rows[1].differences[0];
    assert!(d.over_users.unwrap().interval.lo < -0.9 && d.over_users.unwrap().interval.hi > 0.3);
    assert!(d.over_queries.interval.lo <= d.over_queries.value);
}

fn arms_mixed() -> [Arm; 2] {
    [arm("base", ["1", "1", "1", "2"]), arm("own", ["2", "2", "2", "1"])]
}

#[test]
fn the_order_of_records_does_not_count_and_json_reads_back() {
    let arms = arms();
    let done = compare(&arms, &options(&ALL)).unwrap();
    let mut turned = arms.clone();
    turned.iter_mut().for_each(|arm| arm.predictions.reverse());
    turned[0].predictions.rotate_left(1);
    assert_eq!(compare(&turned, &options(&ALL)).unwrap(), done);
    let text = serde_json::to_string(&done).unwrap();
    assert_eq!(serde_json::from_str::<Comparison>(&text).unwrap(), done);
}

#[test]
fn probabilities_decide_and_unlabelled_queries_are_left_out() {
    let mut arms = arms();
    for arm in &mut arms {
        let mut open = prediction("z", 0, "3", "3");
        open.gold = None;
        arm.predictions.push(open);
    }
    arms[1].predictions[0].label_probs = Some(vec![0.1, 0.1, 0.2, 0.5, 0.1]);
    let done = compare(&arms, &options(&[Metric::Mae])).unwrap();
    assert_eq!((done.unlabelled, done.rows[1].num_queries), (2, 4));
    near(done.rows[1].over_queries, 1.0);
    let shown = table::render(&done);
    assert!(
        shown.contains("own - base") && shown.contains("2 predictions without gold"),
        "{shown}"
    );
    let width = shown.lines().next().unwrap().chars().count();
    assert!(shown.lines().take(4).all(|l| l.chars().count() == width), "{shown}");
}

#[test]
fn values_per_user() {
    let values = per_user(&arms()[1], Metric::Mae, &[]).unwrap();
    let seen: Vec<_> = values.iter().map(|v| (v.user.as_str(), v.num_queries)).collect();
    assert_eq!(seen, [("a", 2), ("b", 1), ("c", 1)]);
    near(values[0].value, 0.5);
}

#[test]
fn what_cannot_be_compared_is_refused_by_name() {
    let refused = |arms: &[Arm], options: &Options| compare(arms, options).unwrap_err().to_string();
    let mae = options(&[Metric::Mae]);
    let mut short = arms();
    short[1].predictions.remove(1);
    let text = refused(&short, &mae);
    assert!(
        text.contains("query \"1\" of user a is answered by arm `base`, not by arm `own`"),
        "{text}"
    );
    short.reverse();
    assert_eq!(refused(&short, &mae), text);
    let mut twice = arms();
    let again = twice[0].predictions[3].clone();
    twice[0].predictions.push(again);
    assert!(refused(&twice, &mae).contains("two predictions for query \"0\" of user c"));
    let mut golds = arms();
    golds[1].predictions[2].gold = Some("4".to_owned());
    assert!(refused(&golds, &mae).contains("gold answers of arms `base` and `own` differ"));
    let mut names = arms();
    names[1].name = "base".to_owned();
    assert!(refused(&names, &mae).contains("arm `base` is there twice"));
    let other = Options { references: vec!["x".to_owned()], ..mae.clone() };
    assert!(refused(&arms(), &other).contains("arm `x` is a reference and no arm"));
    let mut numbers = arms();
    numbers[1].predictions[0].expected = Some(f32::NAN);
    let text = refused(&numbers, &options(&[Metric::ExpectedMae]));
    assert!(text.contains("arm `own`, query \"0\" of user a: no expected rating"), "{text}");
    let empty = [Arm { name: "none".to_owned(), predictions: vec![] }];
    assert!(refused(&empty, &Options { references: vec![], ..mae }).contains("arm `none`"));
}

/// The values have intervals of their own, around them.
#[test]
fn values_lie_in_their_intervals() {
    for row in compare(&arms(), &options(&ALL)).unwrap().rows {
        let over = row.interval_over_queries;
        assert!(over.lo <= over.hi && over.lo >= 0.0, "{row:?}");
        assert_eq!(row.over_users.is_some(), row.interval_over_users.is_some());
        if let (Some(value), Some(over)) = (row.over_users, row.interval_over_users) {
            assert!(over.lo <= value && value <= over.hi, "{row:?}");
        }
    }
    // All users alike: no width.
    let same = [arm("base", ["1", "1", "1", "1"])];
    let done = compare(&same, &options(&[Metric::Mae])).unwrap();
    let row = &done.rows[0];
    for interval in [row.interval_over_queries, row.interval_over_users.unwrap()] {
        near(interval.lo, 2.0);
        near(interval.hi, 2.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// a - b is minus b - a, values, intervals and counts, for every metric; the order of arms changes no value.
    #[test]
    fn differences_are_antisymmetric(
        answers in proptest::collection::vec(("[1-5]", "[1-5]|x|"), 4..5), seed: u64,
    ) {
        let pick = |second: bool| {
            let text = |n: usize| if second { answers[n].1.as_str() } else { answers[n].0.as_str() };
            [text(0), text(1), text(2), text(3)]
        };
        let arms = [arm("a", pick(false)), arm("b", pick(true))];
        let metrics: Vec<Metric> = ALL.into_iter().filter(|m| *m != Metric::ExpectedMae).collect();
        let options = Options {
            references: vec!["a".to_owned(), "b".to_owned()],
            bootstrap: Bootstrap { seed, replicates: 50, confidence: 0.9 },
            ..options(&metrics)
        };
        let done = compare(&arms, &options).unwrap();
        for pair in done.rows.chunks(2) {
            let (ab, ba) = (&pair[0].differences[0], &pair[1].differences[0]);
            let mirrored = |x: &Estimate, y: &Estimate| {
                (x.value + y.value).abs() < 1e-12
                    && (x.interval.lo + y.interval.hi).abs() < 1e-9
                    && (x.interval.hi + y.interval.lo).abs() < 1e-9
            };
            prop_assert!(mirrored(&ab.over_queries, &ba.over_queries), "{:?}", pair);
            prop_assert_eq!(ab.over_users.is_some(), pair[0].metric.per_user());
            if let (Some(x), Some(y), Some(u), Some(v)) = (ab.over_users, ba.over_users, ab.users, ba.users) {
                prop_assert!(mirrored(&x, &y));
                prop_assert_eq!((u.better, u.worse, u.equal), (v.worse, v.better, v.equal));
            }
        }
        let turned = compare(&[arms[1].clone(), arms[0].clone()], &options).unwrap();
        for row in &done.rows {
            let other = turned.rows.iter().find(|r| r.arm == row.arm && r.metric == row.metric).unwrap();
            prop_assert_eq!((row.over_queries, row.over_users), (other.over_queries, other.over_users));
            prop_assert_eq!(row.interval_over_queries, other.interval_over_queries);
        }
    }
}
