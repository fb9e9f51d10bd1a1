//! All six arms on OPPU's files: who is asked, what is measured, and the same bytes however the work is laid out.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

const ARMS: [&str; 6] = ["base", "pag", "permuted", "personal", "population", "rag"];

/// Stops the test unless every arm answers every query once, and no two arms answer alike.
fn complete(answers: &BTreeMap<String, String>) {
    assert_eq!(answers.keys().collect::<Vec<_>>(), ARMS);
    let expected: Vec<(String, String)> = PEOPLE
        .flat_map(|n| (0..QUERIES).map(move |i| (n.to_string(), format!("{n}9{i}"))))
        .collect();
    for (arm, text) in answers {
        assert_eq!(asked(text), expected, "{arm}");
    }
    let distinct: BTreeSet<&String> = answers.values().collect();
    assert_eq!(distinct.len(), ARMS.len(), "two arms have the same answers");
}

/// Stops the test unless table, CSV and JSON have every arm under every metric, and the leak check.
fn measured(story: &Story, ended: &Ended, metrics: &[(&str, &str)]) {
    let json = story.json("run/metrics.json");
    let csv = story.text("run/metrics.csv");
    let table = story.text("run/table.txt");
    assert_eq!(table.trim_end(), ended.stdout.trim_end());
    for (key, name) in metrics {
        for arm in ARMS {
            let rows = json["rows"].as_array().unwrap().iter();
            let row: Vec<_> = rows.filter(|r| r["arm"] == arm && r["metric"] == *key).collect();
            assert_eq!(row.len(), 1, "{key} of {arm}");
            let queries = PEOPLE.len() * QUERIES;
            assert_eq!(
                (&row[0]["num_queries"], &row[0]["num_users"]),
                (&queries.into(), &PEOPLE.len().into())
            );
            let cells = |l: &str| l.split('|').map(|c| c.trim().to_owned()).collect::<Vec<_>>();
            let there =
                table.lines().map(cells).any(|c| c.len() > 6 && c[1] == *name && c[2] == arm);
            assert!(there, "{name} of {arm} is not in\n{table}");
            let there = csv.lines().any(|l| {
                let fields: Vec<&str> = l.split(',').collect();
                fields.contains(&arm) && fields.iter().any(|f| f == key || f == name)
            });
            assert!(there, "{name} of {arm} is not in\n{csv}");
        }
    }
    assert!(
        table.lines().any(|l| l.starts_with("Leak check, ") && l.contains("gain is ")),
        "{table}"
    );
    assert!(json["leak"]["verdict"].is_string(), "{json}");
}

#[test]
fn tags_of_several_tokens_with_profile_texts_of_a_file() {
    let story = world(MOVIE, "[profile]\nsource = 'file'\n");
    let ended = run(&story, "run", 0, &[]).must(0);
    let answers = story.answers("run");
    complete(&answers);
    measured(&story, &ended, &[("accuracy", "accuracy"), ("macro_f1", "macro-F1")]);
    for prediction in answers.values().flat_map(|text| predictions(text)) {
        let sum: f64 =
            prediction["label_probs"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-4, "{prediction}");
        assert_eq!(prediction["label_probs"].as_array().unwrap().len(), 15);
    }
    for (ranks, keys) in [
        (1, &["engine.threads=2", "engine.users_in_flight=1"][..]),
        (2, &["predict.batch_queries=1"]),
        (3, &["engine.users_in_flight=3"]),
    ] {
        let folder = format!("run{ranks}");
        run(&story, &folder, ranks, keys).must(0);
        assert!(story.answers(&folder) == answers, "other answers on {ranks} ranks");
    }
}

#[test]
fn prompts_at_the_limit_leave_room_for_the_longest_label() {
    let story = world(MOVIE, "[profile]\nsource = 'file'\n");
    // One token a byte: the bare question and its longest label just fit, nothing else does.
    let longest = PEOPLE.flat_map(|n| {
        let person = MOVIE.person(n);
        let queries = person["query"].as_array().unwrap().clone();
        queries.into_iter().map(|q| q["input"].as_str().unwrap().len() - MOVIE.question.len())
    });
    let longest = longest.max().unwrap();
    for (limit, folder) in [(360 + longest, "near"), (345 + longest, "nearer"), (330, "cut")] {
        let keys = [format!("prompt.max_length={limit}"), "prompt.retrieved=3".to_owned()];
        run(&story, folder, 0, &keys.each_ref().map(String::as_str)).must(0);
        for (arm, text) in story.answers(folder) {
            assert_eq!(asked(&text).len(), PEOPLE.len() * QUERIES, "{arm} with {limit} tokens");
        }
    }
}

#[test]
fn headlines_with_profile_texts_the_base_writes() {
    let story = world(HEADLINE, "[profile]\nsource = 'generate'\nmax_new_tokens = 24\nitems = 2\n");
    let ended = run(&story, "run", 0, &[]).must(0);
    let answers = story.answers("run");
    complete(&answers);
    measured(&story, &ended, &[("rouge_1", "ROUGE-1"), ("rouge_l", "ROUGE-L")]);
    let written = story.read("run/profiles.json");
    let texts = story.json("run/profiles.json");
    let ids: Vec<&str> =
        texts.as_array().unwrap().iter().map(|t| t["id"].as_str().unwrap()).collect();
    let everybody: Vec<String> = OTHERS.chain(PEOPLE).map(|n| n.to_string()).collect();
    assert_eq!(ids, everybody);
    let distinct: BTreeSet<&str> =
        texts.as_array().unwrap().iter().map(|t| t["output"].as_str().unwrap()).collect();
    assert!(distinct.len() > everybody.len() / 2, "nearly all have one text: {texts}");

    for (ranks, threads) in
        [(1, "engine.threads=2"), (2, "engine.threads=1"), (3, "engine.users_in_flight=2")]
    {
        let folder = format!("run{ranks}");
        run(&story, &folder, ranks, &[threads]).must(0);
        assert!(
            story.read(&format!("{folder}/profiles.json")) == written,
            "{ranks} ranks wrote other texts"
        );
        assert!(story.answers(&folder) == answers, "other answers on {ranks} ranks");
    }

    // What is there is not written again; what is gone is written the same.
    let before = story.files("run")[&story.path("run/profiles.json")];
    std::fs::remove_dir_all(story.path("run/predictions")).unwrap();
    run(&story, "run", 2, &[]).must(0);
    assert_eq!(story.files("run")[&story.path("run/profiles.json")], before);
    assert!(story.answers("run") == answers, "other answers after a rerun");
    std::fs::remove_file(story.path("run/profiles.json")).unwrap();
    run(&story, "run", 0, &[]).must(0);
    assert!(story.read("run/profiles.json") == written);

    // The file serves another run, which asks the same questions.
    let file = [
        "profile.source=file",
        "data.personal_profiles=run/profiles.json",
        "data.population_profiles=run/profiles.json",
    ];
    run(&story, "file", 0, &file).must(0);
    assert!(story.answers("file") == answers, "the same texts in a file give other answers");

    // Who is forgotten is in no text any more, and the same command does not bring the text back.
    let user = PEOPLE.start.to_string();
    story.launcher(&["forget", "--run", "run", "--user", &user]).run().must(0).says(&["tables"]);
    let texts = story.json("run/profiles.json");
    assert_eq!(texts.as_array().unwrap().len(), everybody.len() - 1);
    assert!(texts.as_array().unwrap().iter().all(|t| t["id"] != user.as_str()), "{texts}");
    assert!(!story.path("run/predictions/base.json").exists(), "answers in LaMP's form are left");
    run(&story, "run", 0, &[]).must(0);
    assert_eq!(story.json("run/profiles.json"), texts);
    let lines = story.text("run/predictions/base.jsonl").lines().count();
    let lamp = story.json("run/predictions/base.json");
    assert_eq!(
        (lamp["task"].as_str(), lamp["golds"].as_array().unwrap().len()),
        (Some("LaMP_4"), lines)
    );
    assert!(!story.text("run/metrics.json").contains(&format!("\"{user}\"")));
}
