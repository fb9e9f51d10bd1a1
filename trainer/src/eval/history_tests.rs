//! Groups by history size and the users who move most, by hand.

use crate::eval::{
    Arm, Bootstrap, Comparison, EvalError, Metric, Options, Prediction, compare, csv, table,
};
use crate::ids::UserId;

/// One query a user, gold 3, answers by user.
fn arm(name: &str, answers: &[(&str, &str)]) -> Arm {
    let prediction = |(user, text): &(&str, &str)| Prediction {
        user: UserId::new(user),
        query: "q".to_owned(),
        gold: Some("3".to_owned()),
        text: (*text).to_owned(),
        label_probs: None,
        expected: None,
    };
    Arm { name: name.to_owned(), predictions: answers.iter().map(prediction).collect() }
}

fn options(sizes: &[(&str, usize)]) -> Options {
    Options {
        metrics: vec![Metric::Mae, Metric::MacroF1],
        labels: (1..=5).map(|l| l.to_string()).collect(),
        references: vec!["base".to_owned(), "own".to_owned()],
        bootstrap: Bootstrap { seed: 4, replicates: 200, confidence: 0.95 },
        history: sizes.iter().map(|(user, size)| (UserId::new(user), *size)).collect(),
        leak: None,
    }
}

fn near(value: f64, expected: f64) {
    assert!((value - expected).abs() < 1e-12, "{value} for {expected}");
}

const BASE: [(&str, &str); 6] =
    [("a", "5"), ("b", "5"), ("c", "4"), ("d", "3"), ("e", "4"), ("f", "5")];
const OWN: [(&str, &str); 6] =
    [("a", "3"), ("b", "4"), ("c", "4"), ("d", "5"), ("e", "3"), ("f", "4")];
const SIZES: [(&str, usize); 6] =
    [("a", 1), ("b", 2), ("c", 30), ("d", 40), ("e", 500), ("f", 600)];

fn compared(sizes: &[(&str, usize)]) -> Comparison {
    compare(&[arm("base", &BASE), arm("own", &OWN)], &options(sizes)).unwrap()
}

#[test]
fn thirds_by_hand() {
    let done = compared(&SIZES);
    let seen: Vec<_> = done
        .by_history
        .iter()
        .map(|g| (g.name.as_str(), g.from, g.to, g.rows[0].num_users))
        .collect();
    assert_eq!(seen, [("small", 1, 2, 2), ("medium", 30, 40, 2), ("large", 500, 600, 2)]);
    let gain = |group: usize| {
        let rows = &done.by_history[group].rows;
        let own = rows.iter().find(|r| r.arm == "own" && r.metric == Metric::Mae).unwrap();
        own.differences[0].over_users.unwrap()
    };
    for (group, value) in [-1.5, 1.0, -1.0].into_iter().enumerate() {
        assert!((gain(group).value - value).abs() < 1e-12);
    }
    // Both large users gain the same, so their interval has no width; it is not the whole crowd's.
    let interval = gain(2).interval;
    assert!((interval.lo + 1.0).abs() < 1e-12 && (interval.hi + 1.0).abs() < 1e-12);
    let shown = table::render(&done);
    assert!(
        shown.contains("small (1-2 items, 2 users)") && shown.contains("own - base"),
        "{shown}"
    );
    assert!(shown.lines().all(|l| l.chars().count() <= 130), "{shown}");
}

#[test]
fn users_of_one_size_stay_together() {
    let sizes = |list: [usize; 6]| -> Vec<(&str, usize)> {
        BASE.iter().map(|(user, _)| *user).zip(list).collect()
    };
    let seen = |list| {
        let done = compared(&sizes(list));
        done.by_history
            .iter()
            .map(|g| (g.name.clone(), g.from, g.to, g.rows[0].num_users))
            .collect::<Vec<_>>()
    };
    assert!(seen([7; 6]).is_empty());
    assert!(compared(&[]).by_history.is_empty());
    assert_eq!(
        seen([7, 7, 7, 7, 7, 9]),
        [("small".to_owned(), 7, 7, 5), ("large".to_owned(), 9, 9, 1)]
    );
    assert_eq!(
        seen([0, 7, 7, 7, 8, 9]),
        [("small".to_owned(), 0, 7, 4), ("large".to_owned(), 8, 9, 2)]
    );
    let arms = [arm("base", &BASE), arm("own", &OWN)];
    let refused = compare(&arms, &options(&SIZES[..5])).unwrap_err();
    assert!(matches!(refused, EvalError::NoHistory { user } if user.as_str() == "f"));
}

#[test]
fn who_gains_and_loses() {
    let done = compared(&SIZES);
    // Macro-F1 has no users, and the mirror of a pair is left out.
    assert_eq!(done.movers.len(), 1);
    let m = &done.movers[0];
    assert_eq!((m.arm.as_str(), m.reference.as_str(), m.metric), ("own", "base", Metric::Mae));
    let ids = |list: &[crate::eval::UserChange]| {
        list.iter().map(|c| c.user.as_str().to_owned()).collect::<String>()
    };
    assert_eq!((ids(&m.gained), ids(&m.lost)), ("abef".to_owned(), "d".to_owned()));
    let a = &m.gained[0];
    assert_eq!((a.num_queries, a.history), (1, Some(1)));
    near(a.value, 0.0);
    near(a.reference_value, 2.0);
    near(a.gain, 2.0);
    near(m.lost[0].gain, -2.0);
    let shown = table::render(&done);
    assert!(
        shown.contains("* own - base: gain a 2.0000, b 1.0000, e 1.0000; lose d 2.0000\n"),
        "{shown}"
    );
}

#[test]
fn at_most_ten_on_a_side() {
    let users: Vec<String> =
        (0..25).map(|n| format!("user {n:02}\u{1b}{}", "x".repeat(4000))).collect();
    let answers = |text| users.iter().map(|u| (u.as_str(), text)).collect::<Vec<_>>();
    let arms = [arm("base", &answers("5")), arm("own", &answers("3"))];
    let done = compare(&arms, &Options { history: [].into(), ..options(&[]) }).unwrap();
    let m = &done.movers[0];
    assert_eq!((m.gained.len(), m.lost.len(), m.gained[0].history), (10, 0, None));
    assert!(m.gained[9].user.as_str().starts_with("user 09"));
    let shown = table::render(&done);
    assert!(shown.contains("; lose nobody") && !shown.contains('\u{1b}'), "{shown}");
    assert!(shown.lines().all(|l| l.chars().count() <= 130), "{shown}");
}

/// Every estimate of the JSON is a line of the CSV, with the same bits.
#[test]
fn csv_is_tidy_and_whole() {
    let done = compared(&SIZES);
    let text = csv::render(&done);
    let mut lines = text.lines().map(|l| l.split(',').collect::<Vec<_>>());
    assert_eq!(lines.next().unwrap().join(","), csv::HEAD);
    let lines: Vec<Vec<&str>> = lines.collect();
    assert!(lines.iter().all(|l| l.len() == 15), "{text}");
    // 4 sets of users x 2 arms x (MAE: value and difference, over queries and users; macro-F1: over queries).
    assert_eq!(lines.len(), 4 * 2 * (2 * 2 + 2));
    let own = |group: &str, reference: &str, aggregation: &str| {
        let wanted = [group, "own", reference, "mae", aggregation];
        lines.iter().find(|l| l[..5] == wanted).unwrap().clone()
    };
    let row = done.rows.iter().find(|r| r.arm == "own" && r.metric == Metric::Mae).unwrap();
    let number = |text: &str| text.parse::<f64>().unwrap();
    let line = own("all", "base", "users");
    let over = row.differences[0].over_users.unwrap();
    let written = [5, 6, 7].map(|c| number(line[c]).to_bits());
    assert_eq!(written, [over.value, over.interval.lo, over.interval.hi].map(f64::to_bits));
    let users = row.differences[0].users.unwrap();
    let counts = [users.better, users.worse, users.equal].map(|n| n.to_string());
    assert_eq!(line[8..14], ["0.95", "6", "6", &counts[0], &counts[1], &counts[2]]);
    let line = own("all", "", "queries");
    assert_eq!(number(line[5]).to_bits(), row.over_queries.to_bits());
    assert!(number(line[6]) <= row.over_queries && row.over_queries <= number(line[7]));
    assert_eq!(line[11..], ["", "", "", ""]);
    assert_eq!(own("large", "base", "queries")[9..11], ["2", "2"]);
}
