//! Several runs of one config: cells, what they share, what is left of one that fails, tables and pictures.

use crate::process::Ended;
use crate::story::Story;
use serde_json::Value;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A story whose config is a study.
fn study(section: &str) -> Story {
    let story = Story::new();
    let config = format!("{section}\n{}", story.text("config.toml"));
    story.put("study.toml", config.as_bytes());
    story
}

fn start(story: &Story, ranks: usize, more: &[&str]) -> Ended {
    let args: Vec<&str> = ["study", "--config", "study.toml"].iter().chain(more).copied().collect();
    crate::process::Start::new(story.root(), ranks, &args).run()
}

/// The folder of a cell, below the story.
fn cell(story: &Story, name: &str) -> String {
    let list = story.json("run/study.json");
    let cells = list["cells"].as_array().unwrap();
    let cell = cells.iter().find(|c| c["name"] == name);
    let cell = cell.unwrap_or_else(|| panic!("no cell {name} in {list}"));
    format!("run/{}", cell["folder"].as_str().unwrap())
}

fn inode(path: PathBuf) -> u64 {
    path.metadata().unwrap_or_else(|e| panic!("{}: {e}", path.display())).ino()
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// Stops the test unless the text is one element whose tags close in order and whose texts have no bare `<` or `&`.
pub(crate) fn well_formed(text: &str) {
    let (mut open, mut rest, mut elements) = (Vec::new(), text, 0);
    while let Some((before, after)) = rest.split_once('<') {
        for part in before.split('&').skip(1) {
            assert!(part.contains(';'), "a bare & in {before:?}");
        }
        let (tag, tail) = after.split_once('>').expect("a tag without an end");
        rest = tail;
        let name = |tag: &str| tag.split([' ', '\n', '/']).next().unwrap().to_owned();
        assert_eq!(tag.matches('"').count() % 2, 0, "an open quote in <{tag}>");
        match tag.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop().as_deref(), Some(name(closed).as_str())),
            None if tag.starts_with(['?', '!']) => {}
            None if tag.ends_with('/') => elements += 1,
            None => open.push(name(tag)),
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty() && elements > 10, "{open:?} {rest:?}");
}

const GRID: &str = "[study.axes]\n\"individual.epochs\" = [1, 2]\n\"prompt.retrieved\" = [0, 1]\n";

#[test]
fn cells_are_runs_of_their_own_and_share_what_is_alike() {
    let story = study(GRID);
    let ended = start(&story, 0, &[]).must(0).says(&["cell 4/4: epochs=2,retrieved=1"]);
    assert_eq!(story.text("run/study.txt").trim_end(), ended.stdout.trim_end());
    let grid = ["epochs=1,retrieved=0", "epochs=1,retrieved=1", "epochs=2,retrieved=0"];
    let [a, b, c] = grid.map(|name| cell(&story, name));
    let d = cell(&story, "epochs=2,retrieved=1");
    assert_eq!(names(&story.path("run/cells")).len(), 4);

    // A cell is what the ordinary run makes.
    let sets = ["--set", "individual.epochs=2", "--set", "prompt.retrieved=1"];
    story.run(&[&sets[..], &["--set", "run.out_dir=alone"]].concat()).must(0);
    assert_eq!(story.predictions(&d), story.predictions("alone"));
    assert_eq!(story.adapters(&d), story.adapters("alone"));
    story.launcher(&["verify", "--run", &d]).run().must(0);

    // Epochs of the personal stage change neither the base's answers nor the population stage.
    let of = |cell: &str, file: &str| inode(story.path(cell).join(file));
    for (one, other) in [(&a, &c), (&b, &d)] {
        for file in
            ["predictions/base.jsonl", "predictions/population.jsonl", "population/merged.myriad"]
        {
            assert_eq!(of(one, file), of(other, file), "{file} was made twice");
        }
        assert_ne!(story.adapters(one), story.adapters(other));
    }
    // Items in the prompt change what the population stage reads.
    for file in ["predictions/population.jsonl", "population/merged.myriad"] {
        assert_ne!(of(&a, file), of(&b, file), "{file} is shared by different prompts");
    }

    // One row a cell, arm and metric; values as in the cell's own table.
    let csv = story.text("run/study.csv");
    assert_eq!(csv.lines().count(), 1 + 4 * 3 * 3, "{csv}");
    let row =
        csv.lines().find(|l| l.contains("\"epochs=2,retrieved=1\",2,1,personal,personal,MAE,"));
    let fields: Vec<&str> = row.unwrap().rsplit(',').collect();
    let [hi, lo, value] = [0, 1, 2].map(|i| fields[i].parse::<f64>().unwrap());
    assert!(lo <= value && value <= hi, "{row:?}");
    let own = story.json(&format!("{d}/metrics.json"));
    let rows = own["rows"].as_array().unwrap();
    let own = rows.iter().find(|r| r["arm"] == "personal" && r["metric"] == "mae").unwrap();
    assert_eq!(own["over_queries"].as_f64(), Some(value));

    pictures(&story);
    margins(&story.json("run/study.json"));
}

fn pictures(story: &Story) {
    let plots = names(&story.path("run/plots"));
    for name in
        ["mae-personal-by-individual.epochs.svg", "accuracy-population-by-prompt.retrieved.svg"]
    {
        assert!(plots.contains(name), "{name} is not in {plots:?}");
    }
    for name in plots {
        let text = story.text(&format!("run/plots/{name}"));
        assert!(text.starts_with("<svg") && !text.contains("NaN"), "{name}");
        well_formed(&text);
    }
}

/// A value of an axis is the mean of its cells; against the first, the mean of the differences.
fn margins(study: &Value) {
    let rows = |list: &str, of: &dyn Fn(&Value) -> bool| -> Vec<Value> {
        let rows = study["results"][list].as_array().unwrap().iter();
        rows.filter(|r| r["arm"] == "personal" && r["metric"] == "mae" && of(r)).cloned().collect()
    };
    let number = |v: &Value| v.as_f64().unwrap();
    let mean = |retrieved: &str| {
        let cells = rows("cells", &|r| r["at"][1] == retrieved);
        assert_eq!(cells.len(), 2);
        cells.iter().map(|r| number(&r["value"])).sum::<f64>() / 2.0
    };
    let axis = rows("axes", &|r| r["axis"] == "prompt.retrieved");
    assert_eq!(axis.len(), 2);
    for (row, label) in axis.iter().zip(["0", "1"]) {
        assert_eq!(row["value_label"], label);
        assert!((number(&row["value"]) - mean(label)).abs() < 1e-12, "{row}");
    }
    let against = &axis[1]["against_first"];
    assert_eq!((&against["first"], &against["num_cells"]), (&"0".into(), &2.into()));
    let difference = number(&against["difference"]["value"]);
    assert!((difference - (mean("1") - mean("0"))).abs() < 1e-12, "{against}");
    assert!(axis[0]["against_first"].is_null());
}

#[test]
fn the_same_command_again_redoes_nothing_and_mends_what_is_gone() {
    let story = study(GRID);
    let first = start(&story, 2, &[]).must(0).stdout;
    let made = |story: &Story, cell: &str| {
        ["store", "population", "predictions"].map(|part| story.files(&format!("{cell}/{part}")))
    };
    let [a, b] = ["epochs=1,retrieved=0", "epochs=2,retrieved=1"].map(|name| cell(&story, name));
    let before = (made(&story, &a), made(&story, &b));
    assert_eq!(start(&story, 0, &[]).must(0).stdout, first);
    assert_eq!(before, (made(&story, &a), made(&story, &b)), "a finished cell was touched");

    // A cell that is gone comes back the same; one that was renamed is known by its id.
    let lost = story.predictions(&a);
    std::fs::remove_dir_all(story.path(&a)).unwrap();
    let renamed = format!("run/cells/x-{}", b.rsplit('-').next().unwrap());
    std::fs::rename(story.path(&b), story.path(&renamed)).unwrap();
    start(&story, 0, &[])
        .must(0)
        .says(&["answers        as in another cell", "population     as in"]);
    assert_eq!(lost, story.predictions(&a));
    assert!(!story.path(&b).exists(), "a renamed cell was made again");
    assert_eq!(cell(&story, "epochs=2,retrieved=1"), renamed);

    // What a study has made is never overwritten by another one's cells.
    let other = story.text("personal.jsonl").replacen("slow", "fast", 1);
    story.put("personal.jsonl", other.as_bytes());
    start(&story, 0, &[]).must(5).says(&["data_fingerprint", "failed"]);
    assert_eq!(lost, story.predictions(&a));
}

#[test]
fn a_cell_that_fails_is_reported_and_the_others_go_on() {
    let section = "[study.axes]\n\"prompt.retriever\" = ['random', 'recency']\n\
                   \"prompt.max_length\" = [100000, 256]\n";
    let story = study(section);
    for ranks in [0, 2] {
        let ended = start(&story, ranks, &[]).must(5).says(&[
            "cell retriever=random,max_length=100000 failed: prompt.max_length is 100000",
            "hint: lower prompt.max_length",
        ]);
        let table = ended.stdout;
        for part in [
            "failed: retriever=random,max_length=100000: ",
            "retriever=recency,max_length=256 is the same run as retriever=random,max_length=256",
            "| retriever=random,max_length=256 ",
        ] {
            assert!(table.contains(part), "{part:?} is not in\n{table}");
        }
        // Nothing is retrieved, so retrievers are one; the failed cell left no folder.
        assert_eq!(names(&story.path("run/cells")).len(), 1);
    }
}

const TEMPLATE: &str = r#"
name = "own"
version = 1
instruction = "Give a score from 1 to 5."
prompt = "text: {text}\nscore:"
answer = "{score}"
labels = ["1", "2", "3", "4", "5"]
history_line = "{text}: {score}"
max_new_tokens = 4
"#;

#[test]
fn another_template_or_another_gold_is_no_hit() {
    let story = study(
        "[[study.axes.what]]\nlabel = 'plain'\nset = { 'prompt.template' = './a.toml' }\n\
         [[study.axes.what]]\nlabel = 'template'\nset = { 'prompt.template' = './b.toml' }\n\
         [[study.axes.what]]\nlabel = 'gold'\nset = { 'prompt.template' = './a.toml', 'data.personal' = 'other.jsonl' }\n\
         [[study.axes.what]]\nlabel = 'path'\nset = { 'prompt.template' = './a.toml', 'data.personal' = 'copy.jsonl' }\n",
    );
    story.put("a.toml", TEMPLATE.as_bytes());
    story.put("b.toml", TEMPLATE.replace("text: {text}", "words: {text}").as_bytes());
    story.put("copy.jsonl", &story.read("personal.jsonl"));
    let mut users: Vec<Value> = (0..crate::story::USERS).map(crate::story::user).collect();
    let score = &mut users[0]["queries"][0]["score"];
    *score = (score.as_i64().unwrap() % 5 + 1).into();
    story.put("other.jsonl", &crate::story::lines(users));
    start(&story, 0, &[]).must(0);
    let base = |name: &str| {
        let folder = cell(&story, name);
        (inode(story.path(&folder).join("predictions/base.jsonl")), folder)
    };
    let [plain, template, gold, path] =
        ["what=plain", "what=template", "what=gold", "what=path"].map(base);
    assert_ne!(plain.0, template.0, "another template's answers");
    assert_ne!(plain.0, gold.0, "another gold's answers");
    assert_eq!(plain.0, path.0, "equal users in another file");
    let text =
        |(_, folder): &(u64, String)| story.text(&format!("{folder}/predictions/base.jsonl"));
    assert_ne!(text(&plain), text(&template));
    // Cells with other golds are not compared with the rest.
    let panels = story.json("run/study.json")["results"]["panels"].as_array().unwrap().len();
    assert_eq!(panels, 2);
}

#[test]
fn texts_about_users_are_written_once() {
    let story = study(
        "[study.axes]\n'prompt.retrieved' = [0, 1]\n\
         [[study.axes.what]]\nlabel = 'plain'\nset = { 'data.personal' = 'personal.jsonl' }\n\
         [[study.axes.what]]\nlabel = 'path'\nset = { 'data.personal' = 'copy.jsonl' }\n\
         [[study.axes.what]]\nlabel = 'data'\nset = { 'data.personal' = 'other.jsonl' }\n\
         [[study.axes.what]]\nlabel = 'seed'\nset = { 'run.seed' = 7 }\n\
         [[study.axes.what]]\nlabel = 'items'\nset = { 'profile.items' = 1 }\n\
         [[study.axes.what]]\nlabel = 'length'\nset = { 'profile.max_new_tokens' = 11 }\n\
         [[study.axes.what]]\nlabel = 'sampling'\nset = { 'profile.temperature' = 0.9 }\n",
    );
    let mut base = story.json("base/config.json");
    base["max_position_embeddings"] = 1024.into();
    story.put("base/config.json", base.to_string().as_bytes());
    story.put("copy.jsonl", &story.read("personal.jsonl"));
    let mut users: Vec<Value> = (0..crate::story::USERS).map(crate::story::user).collect();
    // Every item: the base is shown two of them.
    for item in users[3]["history"].as_array_mut().unwrap() {
        item["text"] = "something else".into();
    }
    story.put("other.jsonl", &crate::story::lines(users));
    let text = story.text("study.toml");
    let text = text
        .replace("max_length = 256", "max_length = 800")
        .replace("[population]\n", "[population]\nenabled = false\n")
        .replace("out_dir = \"run\"", "out_dir = \"run\"\narms = ['pag']");
    let profile = "[profile]\nsource = 'generate'\nitems = 2\nmax_new_tokens = 12\n";
    story.put("study.toml", format!("{text}\n{profile}").as_bytes());
    start(&story, 0, &[]).must(0).says(&["profiles       as in another cell"]);
    let of = |what: &str, retrieved: usize| {
        let folder = cell(&story, &format!("retrieved={retrieved},what={what}"));
        format!("{folder}/profiles.json")
    };
    let texts = |what: &str| inode(story.path(&of(what, 0)));
    let mut seen = BTreeSet::new();
    for what in ["plain", "data", "seed", "items", "length", "sampling"] {
        assert_eq!(texts(what), inode(story.path(&of(what, 1))), "{what}: written twice");
        assert!(seen.insert(texts(what)), "{what}: another cell's texts");
        let all = story.json(&of(what, 0));
        assert_eq!(all.as_array().unwrap().len(), crate::story::USERS, "{what}");
    }
    assert_eq!(texts("plain"), texts("path"), "equal users in another file");
    assert_ne!(story.text(&of("plain", 0)), story.text(&of("length", 0)));

    // A cell that is gone gets them back, on any number of ranks, and they are those of a run alone.
    let lost = of("plain", 1);
    let text = story.text(&lost);
    std::fs::remove_dir_all(story.path(&lost).parent().unwrap()).unwrap();
    start(&story, 2, &[]).must(0);
    assert_eq!(inode(story.path(&lost)), texts("plain"));
    std::fs::remove_dir_all(story.path("run")).unwrap();
    start(&story, 2, &[]).must(0);
    assert_eq!(story.text(&of("plain", 0)), text);
}

#[test]
fn a_study_is_checked_whole_before_it_starts_and_is_no_run() {
    let story = study("[study.axes]\n\"run.seed\" = [1, 2]\n\"prompt.retrieved\" = [1, -1]\n");
    start(&story, 0, &[]).must(3).says(&["cell seed=1,retrieved=-1: ", "study.toml:3: ", "hint:"]);
    start(&story, 2, &[]).must(3).says(&["cell seed=1,retrieved=-1: "]);
    let run = |story: &Story| story.launcher(&["run", "--config", "study.toml"]).run();
    run(&story).must(3).says(&["is a study", "hint: launcher study --config FILE"]);
    story.launcher(&["study", "--config", "config.toml"]).run().must(3).says(&["study", "hint:"]);
    let text = story.text("study.toml").replace(", -1]", "]");
    let missing = text.replace("personal.jsonl", "nobody.jsonl");
    story.put("study.toml", missing.as_bytes());
    start(&story, 0, &[])
        .must(3)
        .says(&["cell seed=1,retrieved=1: data.personal: ", "nobody.jsonl"]);
    story.put("study.toml", text.as_bytes());
    let printed = start(&story, 0, &["--print-config"]).must(0).stdout;
    assert_eq!(printed.matches("# cell seed=").count(), 2, "{printed}");
    assert!(!story.path("cache").exists(), "printing prepared the base");
    let plan = start(&story, 0, &["--dry-run"]).must(0).stdout;
    for part in ["cell seed=2,retrieved=1: new", "optimiser steps", "2 cells, 2 runs in "] {
        assert!(plan.contains(part), "{part:?} is not in\n{plan}");
    }
    assert!(!story.path("run").exists());
}

#[test]
fn a_signal_stops_a_study_and_the_same_command_goes_on() {
    let story = study("[study.axes]\n\"individual.learning_rate\" = [1e-3, 2e-3]\n");
    let text = story.text("study.toml").replacen("epochs = 2", "epochs = 30", 1);
    story.put("study.toml", text.as_bytes());
    let args = ["study", "--config", "study.toml"];
    let mut run = story.launcher(&args).start();
    let second = |story: &Story| {
        let cells = story.path("run/cells");
        cells.exists()
            && names(&cells).iter().any(|n| {
                n.starts_with("learning_rate=0.002") && cells.join(n).join("store").exists()
            })
    };
    assert!(run.until(&|| second(&story)), "the second cell was not seen");
    run.signal("TERM");
    let ended = run.end();
    assert!(!story.path("run/study.json").exists(), "a table of half a study");
    ended.must(75).says(&["the same command goes on"]);
    let plan = start(&story, 0, &["--dry-run"]).must(0).stdout;
    assert!(plan.contains("learning_rate=0.001: finished"), "{plan}");
    assert!(plan.contains("learning_rate=0.002: begun"), "{plan}");
    start(&story, 0, &[]).must(0);
    let one = cell(&story, "learning_rate=0.002");
    let sets = ["--set", "individual.learning_rate=0.002", "--set", "individual.epochs=30"];
    story.run(&[&sets[..], &["--set", "run.out_dir=alone"]].concat()).must(0);
    assert_eq!(story.predictions(&one), story.predictions("alone"));
}
