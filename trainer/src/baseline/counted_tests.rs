//! Counts by hand, strangers, later parts, nonsense.

use super::*;
use crate::data::events::generator;
use crate::data::events::{Column, Vocabulary};

const A: u32 = 0;
const B: u32 = 1;
const C: u32 = 2;

/// A log of intents with the hours of its events; six training targets at most.
fn user(name: &str, cold: bool, events: &[(u32, u32)], train: usize) -> EventUser {
    EventUser {
        id: UserId::new(name),
        times: (0..).take(events.len()).collect(),
        rows: events.iter().flat_map(|&(intent, hour)| [hour, 0, intent + 1]).collect(),
        intents: events.iter().map(|&(intent, _)| Some(intent)).collect(),
        first: Vec::new(),
        parts: [0..train, train..train, train..events.len()],
        cold,
    }
}

fn data(users: Vec<EventUser>) -> EventData {
    let column = |name: &str, size| Column { name: name.to_owned(), size, values: Vec::new() };
    EventData {
        vocabulary: Vocabulary {
            columns: vec![column("time", 24), column("weekday", 7), column("event", 4)],
            intents: ["a", "b", "c"].map(str::to_owned).to_vec(),
        },
        users,
    }
}

fn close(got: &[f64], expected: [f64; 3]) {
    assert!(got.iter().zip(expected).all(|(g, e)| (g - e).abs() < 1e-12), "{got:?} {expected:?}");
}

/// u does a b a b a | c; v, cold, does c c | a; targets of u's training part are b a b a.
fn small() -> EventData {
    let u = [(A, 1), (B, 9), (A, 2), (B, 10), (A, 3), (C, 3)];
    let v = [(C, 8), (C, 8), (A, 8)];
    data(vec![user("u", false, &u, 5), user("v", true, &v, 2)])
}

#[test]
fn counts_by_hand() {
    let data = small();
    let options = Options { smoothing: 1.0, backoff: 2.0, day_parts: 6 };
    let fitted = Baselines::fit(&data, options).unwrap();
    let of = |baseline, user: usize| {
        let user = &data.users[user];
        let window = user.windows(Part::Test, 4).next().unwrap();
        fitted.predict(baseline, user, &window).unwrap()
    };
    // Warm targets: a 2, b 2; smoothed 3, 3, 1 of 7.
    let p = [3.0 / 7.0, 3.0 / 7.0, 1.0 / 7.0];
    close(&of(Baseline::MostFrequent, 0), p);
    close(&of(Baseline::MostFrequent, 1), p);
    let onto = |counts: [f64; 3], prior: [f64; 3]| {
        let total: f64 = counts.iter().sum();
        [0, 1, 2].map(|i| (counts[i] + 2.0 * prior[i]) / (total + 2.0))
    };
    let u = onto([2.0, 2.0, 0.0], p);
    close(&of(Baseline::PersonalFrequency, 0), u);
    // v's only training target is a c, which the population does not count.
    close(&of(Baseline::PersonalFrequency, 1), onto([0.0, 0.0, 1.0], p));
    // u's test window ends at 3 h: after events of 0 to 4 h came b and b.
    close(&of(Baseline::PersonalTime, 0), onto([0.0, 2.0, 0.0], u));
    // After a, always b.
    let m = onto([0.0, 2.0, 0.0], p);
    close(&of(Baseline::Markov, 0), m);
    close(&of(Baseline::PersonalMarkov, 0), onto([0.0, 2.0, 0.0], onto([2.0, 2.0, 0.0], m)));
    // Nothing is known of what follows c but by v.
    close(&of(Baseline::Markov, 1), p);
    let v = onto([0.0, 0.0, 1.0], p);
    close(&of(Baseline::PersonalMarkov, 1), onto([0.0, 0.0, 1.0], v));
}

#[test]
fn strangers_get_the_population() {
    let data = small();
    let fitted = Baselines::fit(&data, Options::default()).unwrap();
    let stranger = user("w", false, &[(A, 1), (B, 1)], 0);
    let window = stranger.windows(Part::Test, 4).next().unwrap();
    let of = |baseline| fitted.predict(baseline, &stranger, &window).unwrap();
    assert_eq!(of(Baseline::PersonalFrequency), of(Baseline::MostFrequent));
    assert_eq!(of(Baseline::PersonalTime), of(Baseline::MostFrequent));
    assert_eq!(of(Baseline::PersonalMarkov), of(Baseline::Markov));
    let empty = Window { rows: &[], intent: 0, target: 3 };
    let refused = fitted.predict(Baseline::MostFrequent, &stranger, &empty);
    assert!(matches!(refused, Err(BaselineError::Window { target: 3, .. })));
}

#[test]
fn later_parts_and_other_orders_change_nothing() {
    let options = generator::Options { users: 12, events: [30, 40], ..Default::default() };
    let (data, _) = generator::generate(&options).unwrap();
    let fitted = Baselines::fit(&data, Options::default()).unwrap();
    let mut other = data.clone();
    other.users.reverse();
    for user in &mut other.users {
        for event in user.parts[1].start..user.times.len() {
            user.intents[event] = Some(0);
        }
    }
    assert_eq!(Baselines::fit(&other, Options::default()).unwrap(), fitted);
    for user in &data.users {
        for window in user.windows(Part::Test, 8) {
            for baseline in Baseline::ALL {
                let shares = fitted.predict(baseline, user, &window).unwrap();
                assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
                assert!(shares.len() == 48 && shares.iter().all(|p| *p > 0.0));
            }
        }
    }
}

#[test]
fn nonsense_is_refused() {
    let data = small();
    let key = |options| match Baselines::fit(&data, options) {
        Err(BaselineError::Parameter { key, .. }) => key,
        other => panic!("{other:?}"),
    };
    let good = Options::default();
    assert_eq!(key(Options { smoothing: 0.0, ..good }), "smoothing");
    assert_eq!(key(Options { backoff: f64::NAN, ..good }), "backoff");
    assert_eq!(key(Options { day_parts: 0, ..good }), "day_parts");
    let mut bad = small();
    bad.users[0].intents[2] = Some(3);
    let refused = Baselines::fit(&bad, good);
    assert!(matches!(refused, Err(BaselineError::Event { event: 2, .. })), "{refused:?}");
    // Parts finer than the column: every value is a part of its own.
    assert!(Baselines::fit(&data, Options { day_parts: 1000, ..good }).is_ok());
    assert!(Baseline::ALL.iter().all(|b| serde_json::to_value(b).unwrap() == b.key()));
}
