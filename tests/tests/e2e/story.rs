//! A folder in which a story happens: base, users, config, run; and what can be read off it afterwards.

use crate::base::{self, Random};
use crate::process::{Ended, Start};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Users of a usual story.
pub(crate) const USERS: usize = 12;

const CONFIG: &str = r#"
[run]
name = "story"
out_dir = "run"

[base]
path = "base"

[data]
source = "jsonl"
personal = "personal.jsonl"
population = "population.jsonl"

[prompt]
template = "rating"
max_length = 256

[population]
recipe = "personal-small"
batch_size = 4
virtual_shards = 4

[individual]
recipe = "personal-small"
dropout = 0.1
epochs = 2
batch_size = 4

[[individual.override]]
users = ["user 3", "user 7"]
lora_rank = 3
epochs = 3

[engine]
threads = 1
memory_gb = 1.0

[predict]
mode = "label"

[evaluate]
metrics = ["expected_mae", "mae", "accuracy"]
bootstrap_samples = 200
"#;

/// Writes a file of a story.
#[expect(clippy::disallowed_methods, reason = "the test is the only reader, and it comes after")]
pub(crate) fn put(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}

/// A user's line: history of 3 to 10 items, two queries; a function of `number` alone.
pub(crate) fn user(number: usize) -> Value {
    let mut random = Random(number as u64 * 1000);
    let words =
        ["slow", "bright", "loud", "story", "ending", "cast", "music", "sad", "far", "long"];
    let mut item = || {
        let words: Vec<&str> =
            (0..2 + random.below(6)).map(|_| words[random.below(words.len())]).collect();
        json!({"text": words.join(" "), "score": 1 + random.below(5)})
    };
    let history: Vec<Value> = (0..3 + number * 5 % 8).map(|_| item()).collect();
    let queries: Vec<Value> = (0..2).map(|_| item()).collect();
    json!({"id": format!("user {number}"), "history": history, "queries": queries})
}

/// Lines of a users file.
pub(crate) fn lines(users: impl IntoIterator<Item = Value>) -> Vec<u8> {
    users.into_iter().flat_map(|u| format!("{u}\n").into_bytes()).collect()
}

/// Every adapter by its user: the bytes of the exported weights.
pub(crate) type Adapters = BTreeMap<String, Vec<u8>>;

/// The folder; gone afterwards, unless the test failed.
pub(crate) struct Story {
    folder: Option<tempfile::TempDir>,
}

impl Story {
    /// A tiny base, twelve users, four others for the population stage, a config.
    pub(crate) fn new() -> Self {
        let story = Self::of(CONFIG);
        base::write(&story.path("base"));
        story.put("personal.jsonl", &lines((0..USERS).map(user)));
        story.put("population.jsonl", &lines((100..104).map(user).map(queries_only)));
        story
    }

    /// A folder with a config and nothing else.
    pub(crate) fn of(config: &str) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let story = Self { folder: Some(folder) };
        story.put("config.toml", config.as_bytes());
        story
    }

    pub(crate) fn root(&self) -> &Path {
        self.folder.as_ref().unwrap().path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        put(&self.path(name), bytes);
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        let path = self.path(name);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    pub(crate) fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.read(name)).unwrap()
    }

    /// Puts `text` in the place of `old`, which the config must have.
    pub(crate) fn edit_config(&self, old: &str, text: &str) {
        let config = self.text("config.toml");
        assert!(config.contains(old), "the config has no {old:?}");
        self.put("config.toml", config.replacen(old, text, 1).as_bytes());
    }

    /// A command of the launcher, in one process.
    pub(crate) fn launcher(&self, args: &[&str]) -> Start {
        Start::new(self.root(), 0, args)
    }

    /// `launcher run` with more arguments; zero `ranks`: without mpirun.
    pub(crate) fn run_on(&self, ranks: usize, more: &[&str]) -> Start {
        let args: Vec<&str> =
            ["run", "--config", "config.toml"].iter().chain(more).copied().collect();
        Start::new(self.root(), ranks, &args)
    }

    pub(crate) fn run(&self, more: &[&str]) -> Ended {
        self.run_on(0, more).run()
    }

    /// The adapters of a run folder, through `launcher export`.
    pub(crate) fn adapters(&self, run: &str) -> Adapters {
        let out = tempfile::tempdir_in(self.root()).unwrap();
        let to = out.path().join("export");
        let to = to.to_str().unwrap();
        self.launcher(&["export", "--run", run, "--out", to]).run().must(0);
        exported(Path::new(to))
    }

    /// Every file below a folder: name to time of change and hash.
    pub(crate) fn files(
        &self,
        folder: &str,
    ) -> BTreeMap<PathBuf, (std::time::SystemTime, blake3::Hash)> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.path(folder)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let changed = path.metadata().unwrap().modified().unwrap();
                    let hash = blake3::hash(&std::fs::read(&path).unwrap());
                    files.insert(path, (changed, hash));
                }
            }
        }
        files
    }

    /// Bytes below a folder; zero before it is there. For looking at a run under way.
    pub(crate) fn size(&self, folder: &str) -> u64 {
        let mut size = 0;
        let mut folders = vec![self.path(folder)];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = std::fs::read_dir(folder) else { continue };
            for entry in entries.flatten() {
                match entry.metadata() {
                    Ok(data) if data.is_dir() => folders.push(entry.path()),
                    Ok(data) => size += data.len(),
                    Err(_) => {}
                }
            }
        }
        size
    }

    /// The events of all ranks of a run.
    pub(crate) fn events(&self, run: &str) -> Vec<Value> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(self.path(run).join("events"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        files.sort();
        let texts = files.iter().map(|f| std::fs::read_to_string(f).unwrap());
        let events = texts.flat_map(|t| t.lines().map(str::to_owned).collect::<Vec<_>>());
        events.map(|line| serde_json::from_str(&line).unwrap()).collect()
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            eprintln!("the story's folder is left for you: {}", folder.keep().display());
        }
    }
}

/// The weights of every user of an export.
pub(crate) fn exported(folder: &Path) -> Adapters {
    let users: Value =
        serde_json::from_slice(&std::fs::read(folder.join("users.json")).unwrap()).unwrap();
    let users = users.as_array().or_else(|| users["users"].as_array()).unwrap();
    let text = |user: &Value, key: &str| user[key].as_str().unwrap().to_owned();
    users
        .iter()
        .map(|user| {
            let weights = folder.join(text(user, "folder")).join("adapter_model.safetensors");
            (text(user, "id"), std::fs::read(weights).unwrap())
        })
        .collect()
}

/// The numbers of exported weights, without the head that says whose and from where they are.
pub(crate) fn numbers(weights: &[u8]) -> &[u8] {
    let (head, _) = safetensors::SafeTensors::read_metadata(weights).unwrap();
    &weights[8 + head..]
}

/// A user of the population file: what was history is asked.
fn queries_only(mut user: Value) -> Value {
    user["queries"] = user["history"].take();
    user["history"] = json!([]);
    user
}

/// Adapters and predictions of the usual story, run once in one process, one thread.
pub(crate) struct Reference {
    pub(crate) adapters: Adapters,
    /// By name of the arm.
    pub(crate) predictions: BTreeMap<&'static str, String>,
}

/// What every variation of the usual story is compared with.
pub(crate) fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| {
        let story = Story::new();
        story.run(&[]).must(0);
        let adapters = story.adapters("run");
        assert_eq!(adapters.len(), USERS);
        let distinct: std::collections::BTreeSet<&Vec<u8>> = adapters.values().collect();
        assert_eq!(
            distinct.len(),
            USERS,
            "two users have one adapter: nothing personal was learned"
        );
        Reference { adapters, predictions: story.predictions("run") }
    })
}

impl Story {
    /// The prediction files of a finished run.
    pub(crate) fn predictions(&self, run: &str) -> BTreeMap<&'static str, String> {
        ["base", "population", "personal"]
            .map(|arm| (arm, self.text(&format!("{run}/predictions/{arm}.jsonl"))))
            .into()
    }

    /// The predictions of every arm of a run, by its name.
    pub(crate) fn answers(&self, run: &str) -> BTreeMap<String, String> {
        let files = std::fs::read_dir(self.path(run).join("predictions")).unwrap();
        let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
        let records = |path: &PathBuf| path.extension().is_some_and(|e| e == "jsonl");
        let files = files.map(|file| file.unwrap().path()).filter(records);
        files.map(|path| (name(&path), std::fs::read_to_string(&path).unwrap())).collect()
    }

    /// Stops the test unless this run has the reference's adapters of its users, and all of `users`.
    #[track_caller]
    pub(crate) fn same_adapters(&self, run: &str, users: &[usize], what: &str) {
        let adapters = self.adapters(run);
        let names: Vec<String> = users.iter().map(|n| format!("user {n}")).collect();
        assert_eq!(
            adapters.keys().cloned().collect::<std::collections::BTreeSet<_>>(),
            names.into_iter().collect(),
            "{what}: other users"
        );
        for (user, bytes) in &adapters {
            assert!(*bytes == reference().adapters[user], "{what}: another adapter for {user}");
        }
    }

    /// [`Self::same_adapters`] of all users, and the same predictions.
    #[track_caller]
    pub(crate) fn same_results(&self, run: &str, what: &str) {
        self.same_adapters(run, &(0..USERS).collect::<Vec<_>>(), what);
        for (arm, text) in self.predictions(run) {
            assert!(text == reference().predictions[arm], "{what}: other predictions of {arm}");
        }
    }
}
