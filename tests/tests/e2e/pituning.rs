//! PITuning from a config to a table, and its promise: what a person has is a function of the config and of the logs,
//! whoever computes it.
//!
//! Owns the tiny config of all its stories and what is compared of two runs ([`Results`]).

use crate::story::{Story, exported, numbers};
use crate::study::well_formed;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;

/// Twelve people, some of them cold; every kind of arm.
const CONFIG: &str = r#"
[run]
method = "pituning"
name = "events"
out_dir = "run"
arms = [
    "most_frequent", "personal_markov", "teacher", "population", "finetune", "focal", "oversample", "unlearned",
    "personal", "permuted", "truth",
]

[data]
source = "generated"
train = 0.6
validation = 0.1
cold = 0.2

[data.generator]
users = 12
events = [40, 60]
intents = 12
own_intents = 2
locations = 3

[model]
window = 8
hidden = 24
layers = 2
heads = 2
intermediate = 48
head_hidden = 8

[population]
recipe = "pituning-small"
batch_size = 32
epochs = 3
virtual_shards = 4

[distill]
recipe = "pituning-small"
hidden = 16
layers = 1
heads = 2
intermediate = 32
head_hidden = 8
batch_size = 32
epochs = 4

[unlearn]
recipe = "pituning-small"
forget = "teacher_answer"
epochs = 1

[individual]
recipe = "pituning-small"
dropout = 0.1
epochs = 2

[engine]
threads = 1
memory_gb = 1.0

[evaluate]
bootstrap_samples = 100
"#;

/// People of the story.
pub(crate) const PEOPLE: usize = 12;
/// The arms for which people are tuned.
pub(crate) const TUNED: [&str; 5] = ["finetune", "focal", "oversample", "unlearned", "personal"];
const OTHERS: [&str; 6] =
    ["most_frequent", "personal_markov", "teacher", "population", "permuted", "truth"];

/// A folder with the config.
pub(crate) fn story() -> Story {
    Story::of(CONFIG)
}

/// The id of a person.
pub(crate) fn person(number: usize) -> String {
    format!("person-{number:07}")
}

/// `launcher COMMAND --config config.toml` must end well.
#[track_caller]
pub(crate) fn stage(story: &Story, command: &str) {
    story.launcher(&[command, "--config", "config.toml"]).run().must(0);
}

/// `--set` before each.
pub(crate) fn sets<'a>(keys: &[&'a str]) -> Vec<&'a str> {
    keys.iter().flat_map(|key| ["--set", *key]).collect()
}

/// What a run makes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Results {
    /// Files of the models, by name.
    models: BTreeMap<&'static str, Vec<u8>>,
    /// What people have, by arm and id: the bytes of the exported weights.
    pub(crate) parts: BTreeMap<(String, String), Vec<u8>>,
    /// Lines of every arm.
    predictions: BTreeMap<String, String>,
}

impl Results {
    /// Of a finished run with these tuned arms.
    pub(crate) fn of(story: &Story, run: &str, tuned: &[&str]) -> Self {
        let models = ["population/model.safetensors", "student/model.safetensors"];
        let there = models.into_iter().filter(|name| story.path(run).join(name).exists());
        let mut parts = BTreeMap::new();
        for arm in tuned {
            for (id, bytes) in export(story, run, arm) {
                parts.insert(((*arm).to_owned(), id), bytes);
            }
        }
        Self {
            models: there.map(|name| (name, story.read(&format!("{run}/{name}")))).collect(),
            parts,
            predictions: story.answers(run),
        }
    }

    /// Stops the test unless the other run made the same bytes.
    #[track_caller]
    pub(crate) fn same(&self, other: &Self, what: &str) {
        fn differing<K: Ord + Clone, V: PartialEq>(
            a: &BTreeMap<K, V>,
            b: &BTreeMap<K, V>,
        ) -> Vec<K> {
            let keys: BTreeSet<K> = a.keys().chain(b.keys()).cloned().collect();
            keys.into_iter().filter(|key| a.get(key) != b.get(key)).collect()
        }
        let models = differing(&self.models, &other.models);
        assert!(models.is_empty(), "{what}: other models: {models:?}");
        let parts = differing(&self.parts, &other.parts);
        assert!(parts.is_empty(), "{what}: other parts: {parts:?}");
        let predictions = differing(&self.predictions, &other.predictions);
        assert!(predictions.is_empty(), "{what}: other predictions: {predictions:?}");
    }
}

/// What everybody has in an arm, through `launcher export`.
pub(crate) fn export(story: &Story, run: &str, arm: &str) -> BTreeMap<String, Vec<u8>> {
    let out = tempfile::tempdir_in(story.root()).unwrap();
    let to = out.path().join("export");
    let to = to.to_str().unwrap();
    story.launcher(&["export", "--run", run, "--out", to, "--arm", arm]).run().must(0);
    exported(Path::new(to))
}

/// The story, run once in one process, one thread.
pub(crate) fn reference() -> &'static Results {
    static REFERENCE: OnceLock<Results> = OnceLock::new();
    REFERENCE.get_or_init(|| {
        let story = story();
        story.run(&[]).must(0);
        let results = Results::of(&story, "run", &TUNED);
        assert_eq!(results.models.len(), 2);
        for arm in TUNED {
            let own = results.parts.iter().filter(|((of, _), _)| of == arm);
            let distinct: BTreeSet<&[u8]> = own.map(|(_, part)| numbers(part)).collect();
            assert_eq!(distinct.len(), PEOPLE, "{arm}: two people have the same part");
        }
        results
    })
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Person and number of an answered event.
fn asked(line: &Value) -> (String, u64, u64) {
    let number = |key: &str| line[key].as_u64().unwrap();
    (line["user"].as_str().unwrap().to_owned(), number("target"), number("gold"))
}

#[test]
fn a_run_ends_with_a_table_pictures_and_a_folder_that_holds_everything() {
    let story = story();
    let run = story.run(&[]).must(0).says(&["run folder: "]);
    // The terminal has the file's means over samples, and says where the rest is.
    let whole = story.text("run/table.txt");
    let means: Vec<&str> = run.stdout.lines().filter(|l| l.contains("| samples |")).collect();
    assert_eq!(means.len(), 2 * (TUNED.len() + OTHERS.len()), "{}", run.stdout);
    assert!(means.iter().all(|line| whole.lines().any(|l| l == *line)), "{}", run.stdout);
    assert!(run.stdout.trim_end().ends_with("table.txt"), "{}", run.stdout);
    let predictions = story.answers("run");
    let arms: BTreeSet<&str> = TUNED.into_iter().chain(OTHERS).collect();
    assert_eq!(predictions.keys().map(String::as_str).collect::<BTreeSet<_>>(), arms);
    let expected: Vec<_> = lines(&predictions["population"]).iter().map(asked).collect();
    let people: BTreeSet<&String> = expected.iter().map(|(user, ..)| user).collect();
    assert_eq!(people.len(), PEOPLE);
    for (arm, text) in &predictions {
        let lines = lines(text);
        assert_eq!(lines.iter().map(asked).collect::<Vec<_>>(), expected, "{arm}");
        for line in lines {
            let shares: Vec<f64> = line["top"]
                .as_array()
                .unwrap()
                .iter()
                .map(|pair| pair[1].as_f64().unwrap())
                .collect();
            assert_eq!(shares.len(), 5, "{arm}: {line}");
            assert!(shares.is_sorted_by(|a, b| a >= b), "{arm}: {line}");
            assert!(shares.iter().sum::<f64>() < 1.0 + 1e-5, "{arm}: {line}");
            let (p, rank) = (line["p"].as_f64().unwrap(), line["rank"].as_u64().unwrap());
            assert!((0.0..=1.0).contains(&p) && (1..=12).contains(&rank), "{arm}: {line}");
            assert_eq!(rank == 1, line["gold"] == line["answer"], "{arm}: {line}");
        }
    }
    let texts: BTreeSet<&String> = predictions.values().collect();
    assert_eq!(texts.len(), arms.len(), "two arms answer alike");
    let head = format!("all: {} targets of {PEOPLE} people", expected.len());
    assert!(run.stdout.starts_with(&head), "{head:?} is not the head of\n{}", run.stdout);
    table(&story.json("run/metrics.json"), &arms);
    for name in ["long_tail", "confusion_population", "confusion_finetune", "confusion_personal"] {
        let text = story.text(&format!("run/plots/{name}.svg"));
        assert!(text.starts_with("<svg") && !text.contains("NaN"), "{name}");
        well_formed(&text);
    }
    let mut left: Vec<String> = std::fs::read_dir(story.root())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.retain(|name| !["config.toml", "run"].contains(&name.as_str()));
    assert!(left.is_empty(), "written outside the run folder: {left:?}");
    assert!(!story.path("run/population/checkpoint.safetensors").exists());
}

/// Every slice has every arm; values are shares, the interval holds the value.
fn table(metrics: &Value, arms: &BTreeSet<&str>) {
    let slices = metrics["slices"].as_array().unwrap();
    let names: Vec<&str> = slices.iter().map(|s| s["slice"].as_str().unwrap()).collect();
    for slice in ["all", "population long tail", "own long tail", "true own intents"] {
        assert!(names.contains(&slice), "{slice} is not in {names:?}");
    }
    let rows = slices[0]["rows"].as_array().unwrap();
    let named: BTreeSet<&str> = rows.iter().map(|r| r["arm"].as_str().unwrap()).collect();
    assert_eq!(named, *arms);
    for row in rows {
        let value = row["over_samples"]["value"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&value), "{row}");
    }
}

#[test]
fn any_number_of_threads_and_people_in_flight() {
    let story = story();
    for (folder, keys) in [
        ("two", ["engine.threads=2", "engine.users_in_flight=3"]),
        ("one", ["engine.users_in_flight=1", "engine.pack_tokens=4096"]),
    ] {
        let out = format!("run.out_dir={folder}");
        story.run(&sets(&[&keys[..], &[&out]].concat())).must(0);
        reference().same(&Results::of(&story, folder, &TUNED), &keys.join(", "));
    }
}

#[test]
fn any_number_of_ranks() {
    let story = story();
    for ranks in [2, 3] {
        let (folder, out) = (format!("run{ranks}"), format!("run.out_dir=run{ranks}"));
        story.run_on(ranks, &sets(&[&out])).run().must(0);
        reference().same(&Results::of(&story, &folder, &TUNED), &format!("{ranks} ranks"));
        let folders = std::fs::read_dir(story.path(&folder).join("store")).unwrap().count();
        assert_eq!(folders, ranks, "every rank has people, so every rank has an archive");
    }
}

/// The other things that a person can have, and people who tune the population model itself.
#[test]
fn other_parts_of_the_model_are_as_independent() {
    let story = story();
    let arms = r#"run.arms=["population", "finetune", "personal", "permuted"]"#;
    let tuned = ["finetune", "personal"];
    // Keys, and what a part's tensors are: some of low rank, some whole.
    for (number, (key, low, whole)) in [
        (r#"individual.tune="all""#, false, true),
        (r#"individual.tune="adapters""#, true, false),
        ("distill.enabled=false", true, true),
        (r#"model.history="mean""#, true, true),
        ("population.frozen_blocks=1", true, true),
    ]
    .into_iter()
    .enumerate()
    {
        let run = |ranks: usize, more: &[&str]| {
            let folder = format!("run{number}-{ranks}");
            let out = format!("run.out_dir={folder}");
            story.run_on(ranks, &sets(&[&[arms, key, &out], more].concat())).run().must(0);
            Results::of(&story, &folder, &tuned)
        };
        let alone = run(0, &[]);
        let ranks = if whole && !low { 2 } else { 1 };
        alone.same(&run(ranks, &["engine.threads=2", "engine.users_in_flight=5"]), key);
        let bytes = &alone.parts[&("personal".to_owned(), person(3))];
        let tensors = safetensors::SafeTensors::deserialize(bytes).unwrap();
        let has = |part: &str| tensors.names().iter().any(|name| name.contains(part));
        assert_eq!((has("lora_A"), has("myriad.whole.")), (low, whole), "{key}");
        let answers = story.answers(&format!("run{number}-0"));
        assert_ne!(answers["population"], answers["personal"], "{key}");
        assert_ne!(answers["permuted"], answers["personal"], "{key}");
        story.launcher(&["verify", "--run", &format!("run{number}-0")]).run().must(0);
    }
}

#[test]
fn stages_stop_where_they_should() {
    let story = story();
    let there = |name: &str| story.path("run").join(name).exists();
    let (teacher, student) = ("population/model.safetensors", "student/model.safetensors");
    stage(&story, "population");
    assert!(there(teacher) && !there("student"));
    let population = story.files("run/population");
    stage(&story, "distill");
    assert!(there(student) && !there("arms") && !there("store"));
    stage(&story, "individual");
    for arm in TUNED {
        assert_eq!(export(&story, "run", arm).len(), PEOPLE);
    }
    assert!(!there("predictions"));
    let stores = story.files("run/arms");
    stage(&story, "predict");
    assert!(there("predictions/permuted.jsonl") && !there("table.txt") && !there("plots"));
    stage(&story, "evaluate");
    assert!(there("table.txt") && there("metrics.json") && there("plots/long_tail.svg"));
    assert_eq!(story.files("run/population"), population, "trained again");
    assert_eq!(story.files("run/arms"), stores, "tuned again");
    reference().same(&Results::of(&story, "run", &TUNED), "stage by stage");
}

#[test]
fn a_finished_run_is_not_touched_again() {
    let story = story();
    story.run(&[]).must(0);
    let made = || {
        ["population", "student", "arms", "store", "predictions"]
            .map(|f| story.files(&format!("run/{f}")))
    };
    let steps = || story.events("run").iter().filter(|e| e["event"] == "user_step").count();
    let (before, trained) = (made(), steps());
    assert!(trained > 0);
    let again = story.run(&[]).must(0);
    story.run_on(2, &sets(&["engine.threads=2", "population.checkpoint_steps=5"])).run().must(0);
    assert_eq!(before, made());
    assert_eq!(steps(), trained, "something was trained again");
    assert!(again.stdout.contains("| personal "), "no table");
}

/// On people whose own intents can be learned: unlearning and tuning bring what the population lacks, and with the next
/// person's part it is lost; nobody does better than the truth.
#[test]
fn own_intents_are_learned_and_lost_with_the_part_of_another() {
    let story = story();
    story
        .run(&sets(&[
            r#"run.arms=["population", "personal", "permuted", "truth"]"#,
            "data.generator.users=24",
            "data.generator.events=[160, 160]",
            "population.epochs=8",
            "distill.epochs=8",
            "individual.epochs=8",
            "individual.dropout=0",
        ]))
        .must(0);
    let metrics = story.json("run/metrics.json");
    let recall = |slice: &str, arm: &str, metric: &str| -> f64 {
        let slices = metrics["slices"].as_array().unwrap();
        let slice = slices.iter().find(|s| s["slice"] == slice).unwrap();
        let rows = slice["rows"].as_array().unwrap();
        let row = rows.iter().find(|r| r["arm"] == arm && r["metric"] == metric).unwrap();
        row["over_samples"]["value"].as_f64().unwrap()
    };
    let own = |arm| recall("true own intents", arm, "rec_w");
    let (population, personal, permuted) = (own("population"), own("personal"), own("permuted"));
    // Measured: population 0.11, personal 0.32, permuted 0.09; the truth 0.50.
    assert!(personal > population + 0.1, "nothing was learned: {population} -> {personal}");
    assert!(permuted < population + 0.05, "another's part helps: {population} -> {permuted}");
    let all = |arm| recall("all", arm, "ndcg_5");
    for arm in ["population", "personal", "permuted"] {
        assert!(all(arm) < all("truth"), "{arm} knows more than there is to know");
    }
    assert!(all("permuted") < all("personal"));
}
