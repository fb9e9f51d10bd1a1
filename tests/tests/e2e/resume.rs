//! The same command again; another one in the same folder.

use crate::story::{Story, USERS, lines, user};

#[test]
fn a_finished_run_is_not_touched_again() {
    let story = Story::new();
    story.run(&[]).must(0);
    let before =
        (story.files("run/store"), story.files("run/population"), story.files("run/predictions"));
    let steps =
        |story: &Story| story.events("run").iter().filter(|e| e["event"] == "user_step").count();
    let trained = steps(&story);
    assert!(trained > 0);
    let again = story.run(&[]).must(0);
    let after =
        (story.files("run/store"), story.files("run/population"), story.files("run/predictions"));
    assert_eq!(before, after);
    assert_eq!(steps(&story), trained, "something was trained again");
    assert!(again.stdout.contains("personal"), "no table");
}

#[test]
fn layout_of_the_work_may_change() {
    let story = Story::new();
    story.run(&[]).must(0);
    let before = story.files("run/store");
    let sets = ["--set", "engine.threads=2", "--set", "engine.users_in_flight=3"];
    story.run(&sets).must(0);
    story.run_on(2, &sets).run().must(0);
    assert_eq!(before, story.files("run/store"));
}

#[test]
fn another_config_is_refused_with_the_difference() {
    let story = Story::new();
    story.run(&[]).must(0);
    let before = story.files("run");
    story.run(&["--set", "individual.learning_rate=0.005"]).must(3).says(&[
        "individual.learning_rate",
        "0.002",
        "0.005",
        "hint:",
    ]);
    story.run_on(2, &["--set", "individual.learning_rate=0.005"]).run().must(3).says(&[
        "individual.learning_rate",
        "0.002",
        "0.005",
    ]);
    assert_eq!(before, story.files("run"), "a refused run left something");
}

#[test]
fn other_data_and_another_base_are_refused() {
    let story = Story::new();
    story.run(&[]).must(0);
    let before = story.files("run");
    let users = story.read("personal.jsonl");
    let mut other: Vec<_> = (0..USERS).map(user).collect();
    other[4]["history"][0]["score"] =
        (other[4]["history"][0]["score"].as_i64().unwrap() % 5 + 1).into();
    story.put("personal.jsonl", &lines(other));
    story.run(&[]).must(3).says(&["data_fingerprint"]);
    story.put("personal.jsonl", &users);
    let mut weights = story.read("base/model.safetensors");
    // The lowest bit of the last weight.
    let last = weights.len() - 4;
    weights[last] ^= 1;
    story.put("base/model.safetensors", &weights);
    story.run(&[]).must(3).says(&["base_hash"]);
    assert_eq!(before, story.files("run"), "a refused run left something");
}
