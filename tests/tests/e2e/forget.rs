//! Forgetting a user: whatever a run or a study has of a person is gone from every byte of its folder.

use crate::process::Ended;
use crate::story::{Story, lines};
use serde_json::{Value, json};
use std::path::PathBuf;

/// No other user's id has it in it.
const USER: &str = "user 4";

/// What the user wrote and the other users did not.
fn title(user: usize, item: usize) -> String {
    format!("{} of {user} number {item}", ["zebra", "violet", "quartz"][user % 3])
}

fn user(number: usize) -> Value {
    let item =
        |i: usize| json!({"text": format!("report {i} {number}"), "title": title(number, i)});
    let history: Vec<Value> = (0..4).map(item).collect();
    let queries: Vec<Value> = (10..12).map(item).collect();
    json!({"id": format!("user {number}"), "history": history, "queries": queries})
}

/// A story of headlines and texts about users that the base writes, every key of a run that names users used.
fn story(section: &str) -> Story {
    let story = Story::new();
    let mut base = story.json("base/config.json");
    base["max_position_embeddings"] = 1024.into();
    story.put("base/config.json", base.to_string().as_bytes());
    story.put("personal.jsonl", &lines((0..6).map(user)));
    story.edit_config("population = \"population.jsonl\"\n", "");
    story.edit_config(
        "template = \"rating\"\nmax_length = 256",
        "template = \"headline\"\nmax_length = 700",
    );
    story.edit_config("[population]\n", "[population]\nenabled = false\n");
    story.edit_config("users = [\"user 3\", \"user 7\"]", "users = [\"user 3\", \"user 4\"]");
    story.edit_config("mode = \"label\"", "mode = \"generate\"\nmax_new_tokens = 8");
    story.edit_config("\"expected_mae\", \"mae\", \"accuracy\"", "\"rouge_1\"");
    let config = format!(
        "{section}\n{}\n[profile]\nsource = 'generate'\nmax_new_tokens = 16\nitems = 2\n",
        story.text("config.toml")
    );
    story.put("config.toml", config.as_bytes());
    story
}

fn forget(story: &Story, run: &str) -> Ended {
    story.launcher(&["forget", "--run", run, "--user", USER]).run()
}

/// Files below a folder that hold a text.
fn holding(story: &Story, folder: &str, text: &str) -> Vec<PathBuf> {
    let has = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        bytes.windows(text.len()).any(|w| w == text.as_bytes())
    };
    story.files(folder).into_keys().filter(has).collect()
}

/// The user's id, the golds and the text the base wrote about the user, as they stand in files.
fn traces(story: &Story, run: &str) -> Vec<String> {
    let texts = story.json(&format!("{run}/profiles.json"));
    let text = |id: &str| {
        let texts = texts.as_array().unwrap();
        texts.iter().find(|t| t["id"] == id).unwrap()["output"].to_string()
    };
    let about = text(USER);
    assert!((0..6).all(|n| n == 4 || text(&format!("user {n}")) != about), "{texts}");
    vec![USER.to_owned(), title(4, 10), title(4, 11), about.trim_matches('"').to_owned()]
}

/// Stops the test unless no byte of the folder is of the user, and the others' are there.
fn gone(story: &Story, folder: &str, traces: &[String]) {
    for trace in traces {
        assert_eq!(holding(story, folder, trace), Vec::<PathBuf>::new(), "{trace:?}");
    }
    assert!(!holding(story, folder, "user 3").is_empty(), "all users are gone");
}

const GRID: &str = "[study.axes]\n\"individual.epochs\" = [1, 2]\n\"prompt.retrieved\" = [0, 1]\n";

#[test]
fn a_study_forgets_in_every_cell_the_cache_and_its_tables() {
    let story = story(GRID);
    story.edit_config("\n[base]", "arms = [\"base\", \"rag\", \"pag\", \"personal\"]\n\n[base]");
    let start = || story.launcher(&["study", "--config", "config.toml"]).run();
    start().must(0);
    let cells: Vec<String> = std::fs::read_dir(story.path("run/cells"))
        .unwrap()
        .map(|e| format!("run/cells/{}", e.unwrap().file_name().into_string().unwrap()))
        .collect();
    assert_eq!(cells.len(), 4);
    let traces = traces(&story, &cells[0]);
    for trace in &traces {
        let files = holding(&story, "run", trace);
        assert!(
            files.iter().any(|f| f.starts_with(story.path("run/cache"))),
            "{trace:?} {files:?}"
        );
    }
    let others = |cell: &String| {
        let text = story.text(&format!("{cell}/predictions/personal.jsonl"));
        text.lines().filter(|l| !l.contains(USER)).map(str::to_owned).collect::<Vec<_>>()
    };
    let before: Vec<_> = cells.iter().map(others).collect();

    // One cell alone would be half of it, a stranger none; both leave everything as it was.
    let whole = story.files("run");
    forget(&story, &cells[0]).must(3).says(&["is a cell of the study", "hint: ", "whole study"]);
    let stranger = ["forget", "--run", "run", "--user", "user"];
    story.launcher(&stranger).run().must(3).says(&["nothing in run is of user user"]);
    assert_eq!(story.files("run"), whole);

    // What a crash leaves: a shared result without its list, a line cut in the middle, a file not renamed.
    std::fs::create_dir_all(story.path("run/cache/answers/half")).unwrap();
    story.put("run/cache/answers/half/base.jsonl", title(4, 10).as_bytes());
    let events = format!("{}/events/rank-0000.jsonl", cells[1]);
    let torn = story.text(&events) + "{\"event\":\"user_step\",\"user\":\"user 4";
    story.put(&events, torn.as_bytes());
    story.put(&format!("{}/predictions/.myr-1-1.tmp", cells[2]), USER.as_bytes());
    story.put("run/note.txt", b"she is \"user 4\"");
    forget(&story, "run").must(0).says(&["tables", "individual.override", "run/note.txt"]);
    std::fs::remove_file(story.path("run/note.txt")).unwrap();
    gone(&story, "run", &traces);
    for table in ["study.json", "study.txt", "study.csv", "plots"] {
        assert!(!story.path(&format!("run/{table}")).exists(), "{table} is left");
    }
    assert_eq!(cells.iter().map(others).collect::<Vec<_>>(), before);
    for cell in &cells {
        assert_eq!(story.adapters(cell).len(), 5);
        story.launcher(&["verify", "--run", cell]).run().must(0);
    }
    // Again finds a tombstone and nothing else.
    forget(&story, "run").must(0);
    gone(&story, "run", &traces);
}

#[test]
fn a_study_goes_on_without_the_user() {
    let story = story("[study.axes]\n\"prompt.retrieved\" = [0, 1]\n");
    story.edit_config("\n[base]", "arms = [\"rag\", \"personal\"]\n\n[base]");
    story.edit_config("users = [\"user 3\", \"user 4\"]", "users = [\"user 3\"]");
    let start = || story.launcher(&["study", "--config", "config.toml"]).run().must(0).stdout;
    let first = start();
    let cells = story.files("run/cells");
    let (cell, _) = cells.iter().find(|(f, _)| f.ends_with("profiles.json")).unwrap();
    let cell = cell.parent().unwrap().strip_prefix(story.root()).unwrap();
    let traces = traces(&story, cell.to_str().unwrap());
    forget(&story, "run").must(0);
    assert_ne!(start(), first, "the table has the user");
    gone(&story, "run", &traces);
    let rows = &story.json("run/study.json")["results"]["cells"];
    assert!(rows.as_array().unwrap().iter().all(|r| r["num_users"] == 5), "{rows}");
}

#[test]
fn a_run_forgets_an_override_and_goes_on_with_the_config_without_it() {
    let story = story("");
    story.edit_config("\n[base]", "arms = [\"base\", \"pag\", \"personal\"]\n\n[base]");
    story.run(&[]).must(0);
    let traces = traces(&story, "run");
    assert!(holding(&story, "run", USER).contains(&story.path("run/config.toml")));
    assert!(holding(&story, "run", USER).contains(&story.path("run/manifest.json")));
    let config = story.text("run/config.toml");
    forget(&story, "run").must(0).says(&["individual.override"]);
    gone(&story, "run", &traces);
    // Nothing but the name is another.
    let now = story.text("run/config.toml");
    assert_eq!(now, config.replace("\"user 3\", \"user 4\"", "\"user 3\""));
    story.launcher(&["verify", "--run", "run"]).run().must(0);

    // The config that still names the user is another one; without it the run is whole but for its tables.
    story.run(&[]).must(3).says(&["individual.override"]);
    gone(&story, "run", &traces);
    story.edit_config("users = [\"user 3\", \"user 4\"]", "users = [\"user 3\"]");
    let store = story.files("run/store");
    story.run(&[]).must(0);
    gone(&story, "run", &traces);
    assert!(story.path("run/metrics.json").exists());
    let kept = |files: std::collections::BTreeMap<PathBuf, _>| {
        files
            .into_iter()
            .filter(|(f, _)| f.extension().is_some_and(|e| e == "myr"))
            .collect::<Vec<_>>()
    };
    assert_eq!(kept(store), kept(story.files("run/store")), "adapters were made again");

    // A user alone in an override takes it along.
    let other = ["forget", "--run", "run", "--user", "user 3"];
    story.launcher(&other).run().must(0);
    assert!(!story.text("run/config.toml").contains("[[individual.override]]"));
    assert!(story.json("run/manifest.json")["config"]["individual"].get("override").is_none());
    story.edit_config(
        "[[individual.override]]\nusers = [\"user 3\"]\nlora_rank = 3\nepochs = 3\n",
        "",
    );
    story.run(&[]).must(0);
}

#[test]
fn a_run_without_adapters_forgets_answers() {
    let story = story("");
    story.edit_config("\n[base]", "arms = [\"base\", \"pag\"]\n\n[base]");
    story.run(&[]).must(0);
    let traces = traces(&story, "run");
    forget(&story, "run").must(0);
    gone(&story, "run", &traces);
    // Nothing marks the user here: there is nothing left to forget.
    forget(&story, "run").must(3).says(&["nothing in run is of user"]);
    forget(&story, "nowhere").must(3).says(&["hint:"]);
    // What cannot be rewritten is refused before anything is touched.
    let user = ["forget", "--run", "run", "--user", "user 3"];
    let manifest = story.text("run/manifest.json");
    story.put("run/manifest.json", manifest.replace("\"template\"", "\"letter\"").as_bytes());
    let whole = story.files("run");
    story.launcher(&user).run().must(3).says(&["manifest cannot be written", "by hand"]);
    assert_eq!(story.files("run"), whole);
    story.put("run/manifest.json", manifest.as_bytes());
    story.put("run/profiles.json", b"{}");
    story.launcher(&user).run().must(3).says(&["not what a run writes"]);
}
