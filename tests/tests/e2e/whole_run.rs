//! One command from a base and two files of users to a table.

use crate::story::{Story, USERS};

#[test]
fn a_run_ends_with_a_table_and_a_folder_that_holds_everything() {
    let story = Story::new();
    let base = story.files("base");
    let run = story.run(&[]).must(0).says(&["run folder: "]);
    for arm in ["base", "population", "personal"] {
        for metric in ["MAE (expected)", "MAE", "accuracy"] {
            let cells = |l: &str| l.split('|').map(|c| c.trim().to_owned()).collect::<Vec<_>>();
            let mut rows = run.stdout.lines().map(cells);
            let row = rows.find(|c| c.len() > 6 && c[1] == metric && c[2] == arm);
            let row = row.unwrap_or_else(|| panic!("no {metric} of {arm} in\n{}", run.stdout));
            assert_eq!((row[3].as_str(), row[4].as_str()), ("24", "12"), "queries and users");
            let value: f64 = row[5].parse().unwrap();
            assert!((0.0..=4.0).contains(&value), "{metric} of {arm} is {value}");
        }
    }
    for name in
        ["config.toml", "manifest.json", "metrics.json", "table.txt", "events/rank-0000.jsonl"]
    {
        assert!(!story.read(&format!("run/{name}")).is_empty(), "{name} is empty");
    }
    assert!(story.path("run/store/rank-0000").is_dir());
    assert_eq!(story.text("run/table.txt").trim_end(), run.stdout.trim_end());
    assert_eq!(story.adapters("run").len(), USERS);
    // Two queries a user, in every arm; the answer is one of the labels, the labels' probabilities sum to one.
    for (arm, text) in story.predictions("run") {
        let lines: Vec<serde_json::Value> =
            text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 2 * USERS, "{arm}");
        for line in lines {
            assert!(["1", "2", "3", "4", "5"].contains(&line["text"].as_str().unwrap()), "{line}");
            let sum: f64 =
                line["label_probs"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).sum();
            assert!((sum - 1.0).abs() < 1e-5, "{line}");
        }
    }
    let predictions = story.predictions("run");
    assert_ne!(predictions["base"], predictions["population"]);
    assert_ne!(predictions["population"], predictions["personal"]);
    assert_eq!(story.files("base"), base, "the base was touched");
    let outside: Vec<String> = std::fs::read_dir(story.root())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| {
            !["base", "cache", "config.toml", "personal.jsonl", "population.jsonl", "run"]
                .contains(&n.as_str())
        })
        .collect();
    assert!(outside.is_empty(), "written outside the run folder: {outside:?}");
}

#[test]
fn losses_fall_for_every_user() {
    let story = Story::new();
    story.run(&["--set", "individual.epochs=8", "--set", "individual.learning_rate=0.02"]).must(0);
    let events = story.events("run");
    let losses = |n: usize| -> Vec<f64> {
        let of =
            |e: &&serde_json::Value| e["event"] == "user_step" && e["user"] == format!("user {n}");
        events.iter().filter(of).map(|e| e["loss"].as_f64().unwrap()).collect()
    };
    for n in 0..USERS {
        let losses = losses(n);
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(losses.len() >= 3, "user {n} made {} steps", losses.len());
        assert!(last < 0.9 * first, "user {n}: loss {first} -> {last}");
    }
}
