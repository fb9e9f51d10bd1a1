//! Perfect models and baselines on generated people: what must be better is.

use super::*;
use crate::baseline::{Baseline, Baselines};
use crate::data::events::generator::{Model, Options, Truth, generate};
use crate::data::events::{EventData, Part};
use crate::eval::Bootstrap;
use crate::eval::intents::Detail;
use crate::unlearn::{Counts, Rule, Split};
use std::collections::BTreeMap;

fn arm(name: &str, data: &EventData, of: impl Fn(usize) -> Vec<Outcome>) -> IntentArm {
    let users = data.users.iter().enumerate();
    let users = users.map(|(u, user)| UserOutcomes { user: user.id.clone(), outcomes: of(u) });
    IntentArm { name: name.to_owned(), users: users.collect() }
}

fn perfect(name: &str, data: &EventData, truth: &Truth, model: Model) -> IntentArm {
    arm(name, data, |u| {
        let moments = truth.optimal(data, u, Part::Test, model);
        moments.iter().map(|m| Outcome::new(m.target, m.intent, &m.predicted).unwrap()).collect()
    })
}

fn counted(data: &EventData, fitted: &Baselines, baseline: Baseline) -> IntentArm {
    arm(baseline.name(), data, |u| {
        let user = &data.users[u];
        let outcome = |window: crate::data::events::Window<'_>| {
            let shares = fitted.predict(baseline, user, &window).unwrap();
            Outcome::new(window.target, window.intent, &shares).unwrap()
        };
        user.windows(Part::Test, 16).map(outcome).collect()
    })
}

fn train_counts(data: &EventData, of: impl Fn(usize) -> bool) -> Vec<u64> {
    let mut counts = vec![0; data.vocabulary.intents.len()];
    for (_, user) in data.users.iter().enumerate().filter(|(u, _)| of(*u)) {
        user.windows(Part::Train, 1).for_each(|w| counts[w.intent as usize] += 1);
    }
    counts
}

#[test]
fn knowing_the_person_wins_on_his_long_tail() {
    let options = Options { users: 80, events: [200, 250], seed: 5, ..Options::default() };
    let (data, truth) = generate(&options).unwrap();
    let population = train_counts(&data, |u| !data.users[u].cold);
    let rule = Rule::Ratio { tau: 2.0, min_count: 3 };
    let (mut ruled, mut true_own) = (BTreeMap::new(), BTreeMap::new());
    let (mut found, mut own_total) = (0, 0);
    for (u, user) in data.users.iter().enumerate() {
        let person = train_counts(&data, |other| other == u);
        let counts = Counts { population: &population, person: &person, hits: &[] };
        let split = Split::new(rule, counts, 1.0, true).unwrap();
        let own = truth.own_intents(u);
        found += own.iter().filter(|y| split.weight(**y).is_some()).count();
        own_total += own.len();
        ruled.insert(user.id.clone(), split.forget);
        true_own.insert(user.id.clone(), own);
    }
    // The rule finds nearly all intents that the truth knows as own.
    assert!(found * 10 > own_total * 8, "{found} of {own_total}");
    let fitted = Baselines::fit(&data, Default::default()).unwrap();
    let blind = Model::Population { window: 1, met: false };
    let mut arms = vec![
        perfect("population", &data, &truth, blind),
        perfect("last event", &data, &truth, Model::Population { window: 1, met: true }),
        perfect("window", &data, &truth, Model::Population { window: 16, met: true }),
        perfect("personal", &data, &truth, Model::Personal),
    ];
    arms.extend(Baseline::ALL.map(|baseline| counted(&data, &fitted, baseline)));
    let slice = |name: &str, classes| Slice { name: name.to_owned(), classes };
    let done = compare(
        &arms,
        &IntentOptions {
            intents: 48,
            slices: vec![
                slice("all", Classes::All),
                slice("own by rule", Classes::PerUser(ruled)),
                slice("own in truth", Classes::PerUser(true_own)),
                slice("long tail", Classes::Listed(long_tail(&population, 0.3))),
            ],
            references: vec!["population".to_owned()],
            bootstrap: Bootstrap { seed: 0, replicates: 200, confidence: 0.95 },
        },
    )
    .unwrap();
    let row = |slice: usize, arm: &str, metric| {
        let rows = &done.slices[slice].rows;
        rows.iter().find(|r| r.arm == arm && r.metric == metric).unwrap()
    };
    let text = table(&done, Detail::Whole);
    for slice in [1, 2] {
        // By a wide margin: three times the recall, and the interval far from 0.
        let [personal, population] =
            ["personal", "population"].map(|a| row(slice, a, IntentMetric::RecM));
        assert!(
            personal.over_samples.value > 3.0 * population.over_samples.value
                && personal.over_users.value > 3.0 * population.over_users.value,
            "{text}"
        );
        let difference = &personal.differences[0];
        assert!(difference.over_users.interval.lo > 0.15, "{text}");
        assert!(difference.users.better > 10 * difference.users.worse, "{text}");
    }
    let accuracy = |arm: &str| row(0, arm, IntentMetric::RecW).over_samples.value;
    for arm in &arms {
        assert!(accuracy("personal") >= accuracy(&arm.name) - 0.01, "{text}");
    }
    assert!(accuracy("window") > accuracy("population") + 0.05, "{text}");
    let [frequent, own, time, markov] = [
        Baseline::MostFrequent,
        Baseline::PersonalFrequency,
        Baseline::PersonalTime,
        Baseline::Markov,
    ]
    .map(|b| accuracy(b.name()));
    assert!(frequent < own && own < time && frequent < markov, "{text}");
    // Counts of what follows what know of the last event, and have met the person: so has this bound.
    assert!(accuracy("last event") >= markov - 0.01, "{text}");
}

/// What came is, in the mean, what the laws say a model would score.
#[test]
fn scores_lie_where_the_truth_puts_them() {
    let options = Options { users: 60, events: [200, 250], seed: 6, ..Options::default() };
    let (data, truth) = generate(&options).unwrap();
    for model in [Model::Personal, Model::Population { window: 8, met: true }] {
        let (mut came, mut expected) = (Tally::new(48), Tally::new(48));
        for u in 0..data.users.len() {
            for part in [Part::Train, Part::Validation, Part::Test] {
                for m in truth.optimal(&data, u, part, model) {
                    let outcome = Outcome::new(m.target, m.intent, &m.predicted).unwrap();
                    came.add(&outcome, |_| true).unwrap();
                    expected.add_expected(&m.predicted, &m.law, |_| true).unwrap();
                }
            }
        }
        assert!((came.targets() - expected.targets()).abs() < 1e-6);
        // A share of n independent targets has a standard deviation of at most 1 / sqrt(4 n).
        let bound = 4.0 * (0.25 / came.targets()).sqrt();
        for metric in [IntentMetric::RecW, IntentMetric::Ndcg3, IntentMetric::Ndcg5] {
            let of = |tally: &Tally| tally.value(metric, Averaged::Gold).unwrap();
            let (a, b) = (of(&came), of(&expected));
            assert!((a - b).abs() < bound, "{} {a} {b}", metric.name());
        }
        let of = |tally: &Tally| tally.value(IntentMetric::RecM, Averaged::Gold).unwrap();
        assert!((of(&came) - of(&expected)).abs() < 0.03);
    }
}
