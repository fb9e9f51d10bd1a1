//! Rows and comparisons by hand-computed values, orders, threads, and what is refused.

use super::*;
use crate::eval::intents::{Classes, Detail, table};
use std::collections::BTreeMap;

/// (person, targets as (gold, answer, rank)).
type People<'a> = &'a [(&'a str, &'a [(u32, u32, u32)])];

fn arm(name: &str, people: People<'_>) -> IntentArm {
    let user = |(user, targets): &(&str, &[(u32, u32, u32)])| {
        let targets = targets.iter().enumerate();
        let outcome =
            |(target, &(gold, answer, rank))| Outcome { target: target + 1, gold, answer, rank };
        UserOutcomes { user: UserId::new(user), outcomes: targets.map(outcome).collect() }
    };
    IntentArm { name: name.to_owned(), users: people.iter().map(user).collect() }
}

fn options(slices: Vec<(&str, Classes)>, references: &[&str]) -> IntentOptions {
    let slice = |(name, classes): (&str, Classes)| Slice { name: name.to_owned(), classes };
    IntentOptions {
        intents: 3,
        slices: slices.into_iter().map(slice).collect(),
        references: references.iter().map(|r| (*r).to_owned()).collect(),
        bootstrap: Bootstrap { seed: 1, replicates: 500, confidence: 0.9 },
    }
}

const GOOD: People<'_> = &[("u", &[(0, 0, 1), (1, 1, 1), (2, 0, 2)]), ("v", &[(0, 0, 1)])];
const POOR: People<'_> = &[("u", &[(0, 0, 1), (1, 0, 2), (2, 0, 3)]), ("v", &[(0, 1, 2)])];

fn find<'a>(rows: &'a SliceRows, arm: &str, metric: IntentMetric) -> &'a IntentRow {
    rows.rows.iter().find(|r| r.arm == arm && r.metric == metric).unwrap()
}

#[test]
fn values_by_hand() {
    let own = BTreeMap::from([(UserId::new("u"), vec![1, 2])]);
    let slices = vec![
        ("all", Classes::All),
        ("own", Classes::PerUser(own)),
        ("rare", Classes::Listed(vec![2])),
        ("none", Classes::Listed(vec![])),
    ];
    let arms = [arm("poor", POOR), arm("good", GOOD)];
    let done = compare(&arms, &options(slices, &["poor"])).unwrap();
    let [all, own, rare, none] = &done.slices[..] else { panic!() };
    assert_eq!((all.num_targets, all.num_users), (4, 2));
    assert_eq!((own.num_targets, own.num_users), (2, 1));
    assert_eq!((rare.num_targets, rare.num_users), (1, 1));
    assert_eq!((none.num_targets, none.num_users, none.rows.len()), (0, 0, 0));
    assert_eq!(all.rows.len(), 12);
    let good = find(all, "good", IntentMetric::RecW);
    assert!((good.over_samples.value - 0.75).abs() < 1e-15);
    assert!((good.over_users.value - (2.0 / 3.0 + 1.0) / 2.0).abs() < 1e-15);
    let [against] = &good.differences[..] else { panic!() };
    assert!((against.over_samples.value - 0.5).abs() < 1e-15);
    assert!((against.over_users.value - (1.0 / 3.0 + 1.0) / 2.0).abs() < 1e-15);
    assert_eq!((against.users.better, against.users.worse), (2, 0));
    // Two people: a resample is u u, u v or v v, so the ends are those of u alone and of v alone.
    assert!((against.over_users.interval.lo - 1.0 / 3.0).abs() < 1e-12);
    assert!((against.over_users.interval.hi - 1.0).abs() < 1e-12);
    // Macro recall of all: good 1, 1, 0 of intents 0, 1, 2; of the own slice intents 1 and 2 of u alone.
    let macro_recall = |rows, arm| find(rows, arm, IntentMetric::RecM).over_samples.value;
    assert!((macro_recall(all, "good") - 2.0 / 3.0).abs() < 1e-15);
    assert!((macro_recall(all, "poor") - 0.5 / 3.0).abs() < 1e-15);
    assert!((macro_recall(own, "good") - 0.5).abs() < 1e-15);
    assert!(macro_recall(own, "poor").abs() < 1e-15);
    // Resamples of v alone have no own targets and are left out: only u is there.
    let of_own = find(own, "good", IntentMetric::RecM).over_users;
    assert_eq!((of_own.value, of_own.interval.lo, of_own.interval.hi), (0.5, 0.5, 0.5));
    assert!(find(all, "poor", IntentMetric::RecM).differences.is_empty());
    let text = table(&done, Detail::Whole);
    for part in
        ["all: 4 targets of 2 people", "| good ", "0.7500", "good - poor", "none: 0 targets"]
    {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    let json = serde_json::to_string(&done).unwrap();
    assert_eq!(serde_json::from_str::<IntentComparison>(&json).unwrap(), done);
}

#[test]
fn order_and_threads_change_nothing() {
    let slices = || vec![("all", Classes::All), ("rare", Classes::Listed(vec![1, 2]))];
    let mut shuffled = [arm("poor", POOR), arm("good", GOOD)];
    for arm in &mut shuffled {
        arm.users.reverse();
        arm.users.iter_mut().for_each(|u| u.outcomes.reverse());
        arm.users.push(UserOutcomes { user: UserId::new("w"), outcomes: Vec::new() });
    }
    let run = |arms: &[IntentArm], threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| compare(arms, &options(slices(), &["poor", "good"]))).unwrap()
    };
    let plain = [arm("poor", POOR), arm("good", GOOD)];
    assert_eq!(run(&plain, 1), run(&shuffled, 3));
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let of = |arms: &[IntentArm], references: &[&str]| {
        compare(arms, &options(vec![("all", Classes::All)], references)).unwrap_err()
    };
    let (good, poor) = (arm("good", GOOD), arm("poor", POOR));
    let both = [good.clone(), poor.clone()];
    assert!(matches!(of(&both, &["x"]), EvalError::Arm { .. }));
    assert!(matches!(of(&[good.clone(), good.clone()], &[]), EvalError::Arm { .. }));
    assert!(matches!(of(&[arm("none", &[("u", &[])])], &[]), EvalError::Empty { .. }));
    let mut twice = good.clone();
    twice.users[0].outcomes[1].target = 1;
    assert!(matches!(of(&[twice], &[]), EvalError::Duplicate { .. }));
    let mut double = good.clone();
    double.users[1].user = UserId::new("u");
    assert!(matches!(of(&[double], &[]), EvalError::Duplicate { .. }));
    let mut other = poor.clone();
    other.users[0].outcomes[1].gold = 2;
    assert!(matches!(of(&[good.clone(), other], &[]), EvalError::GoldDiffers { .. }));
    for (first, second) in [(false, true), (true, false)] {
        let (mut a, mut b) = (good.clone(), poor.clone());
        for (arm, cut) in [(&mut a, first), (&mut b, second)] {
            if cut {
                arm.users[0].outcomes.remove(1);
            }
        }
        match of(&[a, b], &[]) {
            EvalError::Unpaired { present, absent, user, query } => {
                let expected = if first { ("poor", "good") } else { ("good", "poor") };
                assert_eq!((present.as_str(), absent.as_str()), expected);
                assert_eq!((user.as_str(), query.as_str()), ("u", "2"));
            }
            other => panic!("{other}"),
        }
    }
    let mut outside = good.clone();
    outside.users[0].outcomes[0].answer = 3;
    assert!(matches!(of(&[outside], &[]), EvalError::Intent(_)));
}
