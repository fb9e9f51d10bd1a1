//! `evaluate` on files that no run of ours wrote: LaMP's form from anywhere, joined by LaMP's rule.

use crate::process::{Ended, Start};
use crate::story::put;
use serde_json::{Value, json};
use std::path::Path;

/// A folder of files.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    fn put(&self, name: &str, value: &Value) {
        put(&self.0.path().join(name), value.to_string().as_bytes());
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.path().join(name)).unwrap()
    }

    fn evaluate(&self, args: &[&str]) -> Ended {
        let args: Vec<&str> = ["evaluate"].iter().chain(args).copied().collect();
        Start::new(self.0.path(), 0, &args).run()
    }
}

fn outputs(list: &[(&str, &str)]) -> Value {
    list.iter().map(|(id, output)| json!({"id": id, "output": output})).collect()
}

/// Four ratings: MAE .5 and 1.25 (one answer is no number).
fn ratings() -> Files {
    let files = Files::new();
    let golds = outputs(&[("1", "4"), ("2", "1"), ("3", "5"), ("4", "3")]);
    files.put("golds.json", &json!({"task": "LaMP_3", "golds": golds}));
    files.put("ours.json", &outputs(&[("4", "3"), ("3", " 4\n"), ("2", "2"), ("1", "4")]));
    let base = outputs(&[("1", "4"), ("2", "no idea"), ("3", "5"), ("4", "4")]);
    files.put("base.json", &json!({"task": "product_rating", "golds": base, "model": "x"}));
    files
}

fn row<'a>(metrics: &'a Value, arm: &str, metric: &str) -> &'a Value {
    let rows = metrics["rows"].as_array().unwrap();
    rows.iter().find(|r| r["arm"] == arm && r["metric"] == metric).unwrap()
}

fn near(value: &Value, expected: f64) {
    assert!((value.as_f64().unwrap() - expected).abs() < 1e-12, "{value} for {expected}");
}

const USUAL: [&str; 6] =
    ["--golds", "golds.json", "--predictions", "base.json", "--predictions", "own=ours.json"];

#[test]
fn two_files_are_compared_by_the_official_rules() {
    let files = ratings();
    let extra = ["--task", "LaMP_3", "--compat", "--json", "out.json", "--csv", "out.csv"];
    let ended = files.evaluate(&[&USUAL[..], &extra].concat()).must(0);
    assert!(ended.stdout.contains("own - base") && ended.stdout.contains("MAE (compat)"));
    let ended = ended.says(&["every query counts as a user"]);
    assert!(!ended.stderr.contains("ROUGE"));
    let metrics: Value = serde_json::from_str(&files.text("out.json")).unwrap();
    near(&row(&metrics, "own", "mae")["over_queries"], 0.5);
    near(&row(&metrics, "own", "rmse")["over_queries"], 0.5_f64.sqrt());
    // 2: the farther extreme of gold 1 is 5; the study takes an error of 5.
    near(&row(&metrics, "base", "mae")["over_queries"], 1.25);
    near(&row(&metrics, "base", "compat_mae")["over_queries"], 1.5);
    near(&row(&metrics, "own", "mae")["differences"][0]["over_queries"]["value"], -0.75);
    assert_eq!(metrics["by_history"], json!([]));
    let csv = files.text("out.csv");
    assert!(csv.lines().any(|l| l.starts_with("all,own,base,mae,users,-0.75,")), "{csv}");
    assert_eq!(csv.lines().count(), 1 + 2 * 4 * 4);
    // The same again is the same, on standard output too, and the task is the golds'.
    let again = files.evaluate(&[&USUAL[..], &["--compat", "--json", "-"]].concat()).must(0);
    assert_eq!(serde_json::from_str::<Value>(&again.stdout).unwrap(), metrics);
    let csv_out = files.evaluate(&[&USUAL[..], &["--compat", "--csv", "-"]].concat()).must(0);
    assert_eq!(csv_out.stdout, csv);
}

/// Golden values of rouge-score, through the binary; users and history sizes from OPPU's file.
#[test]
fn texts_and_users() {
    let files = Files::new();
    let golds = [
        ("1", "The quick brown fox jumps"),
        ("2", "COVID-19: what's next?"),
        ("3", "Élan vital"),
        ("4", "10 Ways To Cook"),
    ];
    let answers = [
        ("1", "the brown quick fox"),
        ("2", "What is next for COVID 19"),
        ("3", "elan vital"),
        ("4", "Ways to Cook 10 Eggs"),
    ];
    files.put("golds.json", &json!({"task": "LaMP_4", "golds": outputs(&golds)}));
    files.put("p.json", &json!({"task": "LaMP_4", "golds": outputs(&answers)}));
    files.put("gold.json", &outputs(&golds));
    let item = || json!({"id": 1, "text": "t", "title": "t", "date": 2020});
    let user = |id: i32, items: usize, queries: &[i32]| {
        let profile: Vec<Value> = (0..items).map(|_| item()).collect();
        let query: Vec<Value> = queries.iter().map(|q| json!({"id": q, "input": "i"})).collect();
        json!({"user_id": id, "profile": profile, "query": query})
    };
    let users = json!([user(7, 1, &[1, 2]), user(8, 20, &[3]), user(9, 300, &[4, 5])]);
    files.put("users.json", &users);
    let extra = ["--task", "news_headline", "--questions", "users.json", "--json", "out.json"];
    let files_of =
        ["--golds", "golds.json", "--predictions", "p.json", "--predictions", "gold.json"];
    let ended = files.evaluate(&[&files_of[..], &extra].concat()).must(0).says(&["plain mean"]);
    assert!(ended.stdout.contains("small (1-1 items, 1 users)"), "{}", ended.stdout);
    assert!(ended.stdout.contains("* gold - p: gain 8 0.5000, 7 0.1919, 9 0.1111; lose nobody"));
    let metrics: Value = serde_json::from_str(&files.text("out.json")).unwrap();
    let (one, l) = (row(&metrics, "p", "rouge_1"), row(&metrics, "p", "rouge_l"));
    let [a, b, c, d] = [8.0 / 9.0, 8.0 / 11.0, 0.5, 8.0 / 9.0];
    near(&one["over_queries"], (a + b + c + d) / 4.0);
    near(&one["over_users"], ((a + b) / 2.0 + c + d) / 3.0);
    near(&l["over_queries"], (2.0 / 3.0 + 4.0 / 11.0 + 0.5 + 2.0 / 3.0) / 4.0);
    assert_eq!((&one["num_users"], &one["num_queries"]), (&json!(3), &json!(4)));
    let moved = &metrics["movers"][0]["gained"];
    assert_eq!((&moved[0]["user"], &moved[0]["history"]), (&json!("8"), &json!(20)));
    // Golds whose users are not known.
    files.put("users.json", &json!([user(7, 1, &[1, 2])]));
    let refused = files.evaluate(&[&files_of[..], &extra].concat()).must(3);
    refused.says(&["no question has the id \"3\"", "2 of 4 golds"]);
}

#[test]
fn labels_are_official_and_the_ambiguous_name_is_refused() {
    let files = Files::new();
    let golds = outputs(&[("1", "comedy"), ("2", "action"), ("3", "classic")]);
    files.put("golds.json", &json!({"task": "LaMP_2", "golds": golds}));
    files.put("p.json", &outputs(&[("1", " comedy "), ("2", "action"), ("3", "zzz")]));
    let usual = ["--golds", "golds.json", "--predictions", "p.json", "--json", "-"];
    files.evaluate(&usual).must(3).says(&["LaMP_2N or LaMP_2M", "--task"]);
    let extra = ["--task", "movie_tagging", "--compat"];
    let ended = files.evaluate(&[&usual[..], &extra].concat()).must(0);
    let metrics: Value = serde_json::from_str(&ended.stdout).unwrap();
    for (metric, value) in [
        ("accuracy", 2.0 / 3.0),
        ("macro_f1", 2.0 / 15.0),
        ("compat_accuracy", 1.0 / 3.0),
        ("compat_macro_f1", 1.0 / 4.0),
    ] {
        near(&row(&metrics, "p", metric)["over_queries"], value);
    }
    let chosen = ["--task", "LaMP_2M", "--metrics", "rouge_l,accuracy"];
    let ended = files.evaluate(&[&usual[..], &chosen].concat()).must(0);
    let metrics: Value = serde_json::from_str(&ended.stdout).unwrap();
    let rows: Vec<_> = metrics["rows"].as_array().unwrap().iter().map(|r| &r["metric"]).collect();
    assert_eq!(rows, ["rouge_l", "accuracy"]);
}

#[test]
fn what_does_not_match_ends_with_3_and_is_listed() {
    let files = ratings();
    let many: Vec<String> = (0..30).map(|n| format!("new {n}")).collect();
    let mut more: Vec<(&str, &str)> = many.iter().map(|id| (id.as_str(), "3")).collect();
    more.push(("1", "4"));
    files.put("ours.json", &outputs(&more));
    let ended = files.evaluate(&USUAL).must(3).says(&[
        "the ids of predictions `own` and golds differ",
        "3 golds without a prediction: \"2\", \"3\", \"4\"",
        "30 predictions without a gold: \"new 0\", ",
        "\"new 19\", …",
        "hint: LaMP's rule",
    ]);
    assert!(!ended.stderr.contains("new 20") && ended.stdout.is_empty());
    let refused = |value: &[u8], said: &[&str]| {
        put(&files.0.path().join("ours.json"), value);
        let ended = files.evaluate(&[&USUAL[..], &["--json", "never.json"]].concat());
        ended.must(3).says(said).says(&["hint: "]);
        assert!(!files.0.path().join("never.json").exists());
    };
    refused(b"", &["ours.json: ", "EOF"]);
    refused(b"\xff\xfe{}", &["ours.json: "]);
    refused("[".repeat(100_000).as_bytes(), &["ours.json: "]);
    refused(
        b"[{\"id\": \"1\", \"output\": \"4\"}, {\"id\": 1, \"output\": 5}]",
        &["\"1\" is there twice"],
    );
    refused(b"[{\"id\": \"1\", \"output\": null}]", &["a string or an integer"]);
    refused(b"{\"task\": \"LaMP_4\", \"golds\": []}", &["of task `LaMP_4`, not of LaMP_3"]);
    let base = ["--golds", "golds.json", "--predictions", "base.json"];
    let with = |more: &[&str]| files.evaluate(&[&base[..], more].concat()).must(3);
    with(&["--predictions", "gone.json"]).says(&["gone.json: No such file"]);
    with(&["--predictions", "base=base.json"]).says(&["arm `base` is there twice"]);
    with(&["--task", "LaMP_9"]).says(&["`LaMP_9` is not known", "LaMP_5 (scholarly_title)"]);
    with(&["--metrics", "bleu"]).says(&["no metric is called `bleu`", "rouge_l"]);
    with(&["--metrics", "expected_mae"]).says(&["no expected rating"]);
    with(&["--json", "no/such/folder/x.json"]).says(&["no/such/folder/x.json"]);
    with(&["--json", "-", "--csv", "-"]).says(&["cannot both"]);
    files.put("golds.json", &outputs(&[("1", "4")]));
    with(&[]).says(&["do not name their task", "--task"]);
    files.put("golds.json", &json!([]));
    files.put("base.json", &json!([]));
    with(&["--task", "rating"]).says(&["no labelled predictions"]);
}

#[test]
fn config_and_files_exclude_each_other() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for (args, said) in [
        (&[][..], "<--config <FILE>|--predictions <[NAME=]FILE>>"),
        (&["--config", "c", "--predictions", "p", "--golds", "g"], "cannot be used with"),
        (&["--predictions", "p"], "--golds <FILE>"),
        (&["--golds", "g"], "--predictions <[NAME=]FILE>"),
        (&["--config", "c", "--golds", "g"], "cannot be used with"),
        (&["--config", "c", "--json", "j"], "cannot be used with"),
        (&["--config", "c", "--compat"], "cannot be used with"),
        (&["--predictions", "p", "--golds", "g", "--set", "a=b"], "cannot be used with"),
        (&["--predictions", "p", "--golds", "g", "--dry-run"], "cannot be used with"),
    ] {
        let args: Vec<&str> = ["evaluate"].iter().chain(args).copied().collect();
        Start::new(folder, 0, &args).run().must(2).says(&[said, "Usage"]);
    }
}
