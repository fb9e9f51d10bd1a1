//! What is drawn against the laws it is drawn from; what knowing them is worth; the same bytes as ever.

use super::*;
use crate::data::events::{EVENT, Part, TIME, WEEKDAY};

fn options(users: u32, events: u32) -> Options {
    Options { users, events: [events, events], seed: 11, ..Options::default() }
}

/// Sum over cells (last event, part of the day) and intents of (observed - expected)^2 / expected where at least 5
/// are expected, in standard deviations of chi-square; the laws are those of person `u + shift`.
fn deviation(data: &EventData, truth: &Truth, shift: usize) -> f64 {
    let kinds = data.vocabulary.intents.len();
    let cells = kinds * DAY_PARTS as usize;
    let (mut expected, mut seen) = (vec![0.0; cells * kinds], vec![0.0; cells * kinds]);
    for (u, user) in data.users.iter().enumerate() {
        for n in 1..user.times.len() {
            let row = user.row(n - 1);
            let law = truth.law((u + shift) % data.users.len(), row, n).unwrap();
            let cell = (row[EVENT] - 1) as usize * DAY_PARTS as usize + (row[TIME] / 6) as usize;
            let cells = &mut expected[cell * kinds..(cell + 1) * kinds];
            cells.iter_mut().zip(&law).for_each(|(e, p)| *e += p);
            seen[cell * kinds + user.intents[n].unwrap() as usize] += 1.0;
        }
    }
    let enough: Vec<(f64, f64)> =
        expected.into_iter().zip(seen).filter(|(e, _)| *e >= 5.0).collect();
    let statistic: f64 = enough.iter().map(|(e, o)| (o - e).powi(2) / e).sum();
    assert!(enough.len() > 300, "{}", enough.len());
    (statistic - enough.len() as f64) / (2.0 * enough.len() as f64).sqrt()
}

#[test]
fn frequencies_are_those_of_the_laws() {
    for drift in [0.0, 3.0] {
        let (data, truth) = generate(&Options { drift, ..options(120, 250) }).unwrap();
        let (own, anothers) = (deviation(&data, &truth, 0), deviation(&data, &truth, 1));
        assert!(own.abs() < 4.0, "{own}");
        assert!(anothers > 8.0, "somebody else's law fits as well: {anothers}");
        // A law with the wrong drift does not fit: late events are compared with early laws.
        let (still, _) = generate(&Options { drift: 3.0 - drift, ..options(120, 250) }).unwrap();
        let wrong = deviation(&still, &truth, 0);
        assert!(wrong > 8.0, "{wrong}");
    }
}

#[test]
fn laws_sum_to_one_and_give_each_part_its_share() {
    let (data, truth) = generate(&options(20, 60)).unwrap();
    for (u, user) in data.users.iter().enumerate() {
        let own = truth.own_intents(u);
        assert_eq!(own.len(), 3);
        assert!(own.iter().all(|y| truth.tail().contains(y)));
        let (share, components) = truth.mixture(u).unwrap();
        assert!((components.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        for n in 1..60 {
            let law = truth.law(u, user.row(n - 1), n).unwrap();
            assert!((law.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            assert!(law.iter().all(|p| *p >= 0.02 / 48.0));
            let of_own: f64 = own.iter().map(|&y| law[y as usize]).sum();
            assert!(of_own >= 0.98 * share, "{of_own} {share}");
            // Both ways to a probability agree.
            let state = truth.state(user.row(n - 1)).unwrap();
            for y in [0, own[0], 47] {
                let one = truth.laws[u].probability(&truth.population, state, y, n);
                assert!((one - law[y as usize]).abs() < 1e-14);
            }
        }
    }
    assert_eq!(truth.own_intents(20), [0_u32; 0]);
}

#[test]
fn contexts_matter_to_own_intents() {
    let (data, truth) = generate(&options(10, 50)).unwrap();
    let bare = Options { context_effect: 0.0, ..options(10, 50) };
    let (_, flat) = generate(&bare).unwrap();
    let own = truth.own(3).next().unwrap().clone();
    let row = |part: u32, weekend: bool, location: u32| {
        [part * 6, if weekend { 6 } else { 2 }, 1, location + 1]
    };
    let there = row(own.part, own.weekend, own.location);
    let elsewhere = row((own.part + 1) % 4, !own.weekend, (own.location + 1) % 6);
    let of = |truth: &Truth, row: &[u32]| truth.law(3, row, 1).unwrap()[own.intent as usize];
    assert!(of(&truth, &there) > 3.0 * of(&truth, &elsewhere));
    assert!((of(&flat, &there) - of(&flat, &elsewhere)).abs() < 1e-12);
    assert_eq!(data.vocabulary.columns.len(), 4);
}

#[test]
fn drift_exchanges_own_intents() {
    let (data, truth) = generate(&Options { drift: 2.0, ..options(6, 400) }).unwrap();
    for u in 0..data.users.len() {
        let own: Vec<u32> = truth.own(u).map(|o| o.intent).collect();
        assert_eq!(own.len(), 6);
        let share = |n: usize, list: &[u32]| -> f64 {
            let law = truth.law(u, data.users[u].row(0), n).unwrap();
            list.iter().map(|&y| law[y as usize]).sum()
        };
        let (early, late) = own.split_at(3);
        if early.iter().all(|y| !late.contains(y)) {
            assert!(share(1, early) > 2.0 * share(1, late));
            assert!(share(399, late) > 2.0 * share(399, early));
        }
    }
}

#[test]
fn a_person_depends_on_nobody_and_a_log_grows_at_its_end() {
    let (few, _) = generate(&options(3, 90)).unwrap();
    let (many, truth) = generate(&options(40, 90)).unwrap();
    assert_eq!(few.users[..], many.users[..3]);
    assert_eq!(few.vocabulary, many.vocabulary);
    assert!(many.users.windows(2).all(|w| w[0].id < w[1].id));
    let (longer, longer_truth) = generate(&options(3, 140)).unwrap();
    for (short, long) in few.users.iter().zip(&longer.users) {
        assert_eq!(short.rows[..], long.rows[..short.rows.len()]);
        assert_eq!(short.times[..], long.times[..90]);
    }
    let row = few.users[0].row(5);
    assert_eq!(truth.law(2, row, 6), longer_truth.law(2, row, 6));
    let (other, _) = generate(&Options { seed: 12, ..options(3, 90) }).unwrap();
    assert_ne!(few.users, other.users);
}

#[test]
fn logs_keep_the_types_promises() {
    let options = Options { events: [20, 60], ..options(200, 0) };
    let (data, _) = generate(&options).unwrap();
    let mut lengths = [0_u32; 61];
    for user in &data.users {
        let n = user.times.len();
        lengths[n] += 1;
        assert!(user.times.windows(2).all(|w| (600..=6 * 3600).contains(&(w[1] - w[0]))));
        for (event, &time) in user.times.iter().enumerate() {
            let row = user.row(event);
            assert!(row.iter().zip(&data.vocabulary.columns).all(|(v, c)| *v < c.size));
            assert!(row[EVENT] > 0 && row[CONTEXTS] > 0, "unknown never occurs");
            assert_eq!(user.intents[event], Some(row[EVENT] - 1));
            // 1 January 1970 was a Thursday.
            assert_eq!(i64::from(row[WEEKDAY]), (time.div_euclid(86_400) + 3) % 7);
            assert_eq!(i64::from(row[TIME]), time.rem_euclid(86_400) / 3600);
        }
        let [train, validation, test] = user.parts.clone();
        assert_eq!((train.start, test.end), (0, n));
        assert_eq!((train.end, validation.end), (validation.start, test.start));
        assert!((train.len() as f64 - 0.6 * n as f64).abs() <= 0.5);
    }
    assert!(lengths[20] > 0 && lengths[60] > 0 && lengths[..20].iter().all(|c| *c == 0));
    let cold = data.users.iter().filter(|u| u.cold).count();
    assert!((20..=60).contains(&cold), "{cold}");
    let all = generate(&Options { cold: 1.0, ..options }).unwrap().0;
    assert_eq!(all.users.iter().filter(|u| !u.cold).count(), 1);
}

/// Expected accuracy of the answers with the highest probability.
fn accuracy(truth: &Truth, data: &EventData, model: Model) -> f64 {
    let moments: Vec<Moment> =
        (0..data.users.len()).flat_map(|u| truth.optimal(data, u, Part::Test, model)).collect();
    let right = moments.iter().map(|m| {
        assert!((m.predicted.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let best =
            (0..m.predicted.len()).max_by(|a, b| m.predicted[*a].total_cmp(&m.predicted[*b]));
        m.law[best.unwrap()]
    });
    right.sum::<f64>() / moments.len() as f64
}

#[test]
fn who_knows_more_is_better() {
    let (data, truth) = generate(&Options { cold: 0.0, ..options(60, 150) }).unwrap();
    let of = |model| accuracy(&truth, &data, model);
    let population = |window, met| of(Model::Population { window, met });
    let personal = of(Model::Personal);
    let [one, sixteen, all] = [1, 16, 150].map(|window| population(window, true));
    assert!(personal >= all && all > sixteen && sixteen > one, "{personal} {all} {sixteen} {one}");
    // With the whole log to see, a model that knows everybody knows who it is.
    assert!(all > personal - 0.01, "{all} {personal}");
    // Who has not met the person does not get there, however long the window.
    assert!(population(150, false) < 0.8 * personal);
    assert!(population(1, false) < 0.7 * personal);
}

/// With one person in the population and no drift a population model that has met him knows all there is.
#[test]
fn a_population_of_one_is_that_person() {
    let (data, truth) = generate(&options(1, 50)).unwrap();
    let met = truth.optimal(&data, 0, Part::Test, Model::Population { window: 4, met: true });
    assert_eq!(met.len(), 10);
    for moment in &met {
        assert!(moment.predicted.iter().zip(&moment.law).all(|(p, l)| (p - l).abs() < 1e-14));
    }
    // Nobody else is there to learn from.
    let stranger = truth.optimal(&data, 0, Part::Test, Model::Population { window: 4, met: false });
    assert!(stranger.is_empty());
    assert!(truth.optimal(&data, 1, Part::Test, Model::Personal).is_empty());
}

#[test]
fn the_same_bytes_as_ever_for_any_number_of_threads() {
    let options = Options { drift: 0.5, ..options(12, 60) };
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (data, truth) = pool.install(|| generate(&options)).unwrap();
        let (mut log, mut laws) = (Vec::new(), Vec::new());
        write_csv(&data, &mut log).unwrap();
        write_truth(&data, &truth, &mut laws).unwrap();
        (log, laws)
    };
    let (log, laws) = run(1);
    assert_eq!((&log, &laws), (&run(3).0, &run(3).1));
    assert_eq!(&blake3::hash(&log).to_hex()[..16], "6346100c5ed8f24d");
    let text = String::from_utf8(log).unwrap();
    assert_eq!(text.lines().count(), 1 + 12 * 60);
    assert!(
        text.starts_with("user,time,event,location,intent\nperson-0000000,2024-01-0"),
        "{text:.99}"
    );
    let laws = String::from_utf8(laws).unwrap();
    let lines: Vec<serde_json::Value> =
        laws.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 13);
    assert_eq!(lines[0]["long_tail"], serde_json::json!([12, 48]));
    assert_eq!(lines[1]["early"].as_array().unwrap().len(), 3);
}

#[test]
fn impossible_options_and_rows_are_refused() {
    let good = options(2, 10);
    let refused = |change: &dyn Fn(&mut Options)| {
        let mut bad = good.clone();
        change(&mut bad);
        generate(&bad).unwrap_err().key
    };
    assert_eq!(refused(&|o| o.users = 0), "users");
    assert_eq!(refused(&|o| o.events = [0, 5]), "events");
    assert_eq!(refused(&|o| o.events = [6, 5]), "events");
    assert_eq!(refused(&|o| o.intents = 1), "intents");
    assert_eq!(refused(&|o| o.intents = 60_000), "intents");
    assert_eq!(refused(&|o| o.own_share = 0.61), "own_share");
    assert_eq!(refused(&|o| o.noise = f64::NAN), "noise");
    assert_eq!(refused(&|o| o.cold = -0.1), "cold");
    assert_eq!(refused(&|o| o.split = [0.7, 0.4]), "split");
    assert_eq!(refused(&|o| o.split = [0.7, f64::NAN]), "split");
    assert_eq!(refused(&|o| o.split = [0.7, -0.1]), "split");
    assert_eq!(refused(&|o| o.own_intents = 37), "own_intents");
    assert_eq!(refused(&|o| o.own_intents = 0), "own_intents");
    let nobody_own = Options { own_share: 0.0, own_intents: 0, tail: 0.0, ..good.clone() };
    let (_, truth) = generate(&nobody_own).unwrap();
    assert!(truth.own_intents(0).is_empty() && truth.tail().is_empty());
    let (_, truth) = generate(&good).unwrap();
    for row in
        [&[0, 0, 0, 1][..], &[0, 0, 1, 0], &[24, 0, 1, 1], &[0, 7, 1, 1], &[0, 0, 49, 1], &[]]
    {
        assert_eq!(truth.law(0, row, 1), None, "{row:?}");
    }
}

#[test]
fn written_options_are_read_back() {
    let options = options(5, 9);
    let text = toml::to_string(&options).unwrap();
    assert_eq!(toml::from_str::<Options>(&text).unwrap(), options);
    assert!(toml::from_str::<Options>("user = 3").is_err());
}
