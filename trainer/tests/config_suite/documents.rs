//! What a config may say, what it may not, and the message each fault gets.

use crate::{GOOD, document};
use std::collections::BTreeMap;
use std::path::Path;
use trainer::config::{
    Config, Default, Document, Effect, Error, Kind, OVERRIDE, RECIPE, Recipe, SECTIONS,
    recipe_names,
};
use trainer::ids::UserId;

fn good() -> Config {
    document(GOOD).resolve(&BTreeMap::new()).unwrap()
}

/// The message of `GOOD` with `sets` applied.
fn set(sets: &[&str]) -> Result<Config, String> {
    let mut document = document(GOOD);
    for assignment in sets {
        document.set(assignment).map_err(|e| e.to_string())?;
    }
    document.resolve(&BTreeMap::new()).map_err(|e| e.to_string())
}

/// The message of `GOOD` with `line` put into its section.
fn with(section: &str, line: &str) -> String {
    let header = format!("[{section}]\n");
    let text = match GOOD.contains(&header) {
        true => GOOD.replace(&header, &format!("{header}{line}\n")),
        false => format!("{GOOD}{header}{line}\n"),
    };
    document(&text).resolve(&BTreeMap::new()).unwrap_err().to_string()
}

#[test]
fn keys_and_structs_are_the_same() {
    // A config with everything set, as JSON: its leaves must be the keys of the table, and all of them.
    let config = set(&[
        "base.cache_dir=x",
        "data.personal_users=1",
        "data.population_users=1",
        "data.population_examples=1",
        "data.max_history=1",
        "data.max_population_items=1",
        "data.max_queries=1",
        "data.seed=1",
        "predict.max_new_tokens=1",
        "profile.items=1",
        "profile.max_new_tokens=1",
        "prompt.pool_items=1",
        "prompt.retrieval_seed=1",
        "individual.override=[{ users = ['u'] }]",
    ])
    .unwrap();
    let json = serde_json::to_value(&config).unwrap();
    let mut expected: Vec<String> = Vec::new();
    for section in SECTIONS {
        let recipe: &[_] = if section.recipe { RECIPE } else { &[] };
        expected.extend(
            section.keys.iter().chain(recipe).map(|k| format!("{}.{}", section.name, k.name)),
        );
    }
    // These belong to other sources.
    let foreign = ["path", "task", "personal_outputs", "personal_profiles", "population_outputs"];
    expected.retain(|k| {
        let other = k.strip_prefix("data.");
        !other.is_some_and(|k| foreign.contains(&k) || k == "population_profiles")
    });
    let over = OVERRIDE.iter().chain(RECIPE);
    expected.extend(over.map(|k| format!("individual.override.{}", k.name)));
    expected.sort();
    let mut got = Vec::new();
    leaves(&json, "", &mut got);
    got.sort();
    assert_eq!(got, expected);
}

fn leaves(value: &serde_json::Value, path: &str, out: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (k, v) in map {
                let path = if path.is_empty() { k.clone() } else { format!("{path}.{k}") };
                leaves(v, &path, out);
            }
        }
        serde_json::Value::Array(items) if items.iter().any(|i| i.is_object()) => {
            items.iter().for_each(|i| leaves(i, path, out));
        }
        _ => out.push(path.to_owned()),
    }
}

#[test]
fn every_word_of_a_choice_is_understood_and_every_bound_is_held() {
    for section in SECTIONS {
        let recipe: &[_] = if section.recipe { RECIPE } else { &[] };
        for key in section.keys.iter().chain(recipe) {
            let path = format!("{}.{}", section.name, key.name);
            let (inside, outside): (Vec<String>, Vec<String>) = match key.kind {
                Kind::Bool => (vec!["true".into(), "false".into()], vec!["1".into(), "yes".into()]),
                Kind::Int(a, b) => {
                    let out = [i128::from(a) - 1, i128::from(b) + 1].map(|n| n.to_string());
                    (vec![a.to_string(), b.to_string()], [&out[..], &["1.5".into()]].concat())
                }
                Kind::Float(a, b) => {
                    let out = [a - a.abs() - 1e-3, b * 2.0, f64::NAN, f64::INFINITY];
                    (
                        vec![format!("{a:?}"), format!("{b:?}")],
                        out.map(|x| format!("{x:?}").to_lowercase()).into(),
                    )
                }
                Kind::FloatBelow(a, b) => {
                    (vec![format!("{a:?}")], vec![format!("{b:?}"), "-1".into()])
                }
                Kind::PairBelow(a, b) => {
                    let bad = [format!("[{a:?}]"), format!("[{a:?}, {b:?}]"), format!("{a:?}")];
                    (vec![format!("[{a:?}, {a:?}]")], bad.into())
                }
                Kind::OneOf(words) => (
                    words.iter().map(|w| (*w).into()).collect(),
                    vec!["nonsense".into(), "7".into()],
                ),
                Kind::ListOf(words) => {
                    let one = |w: &&str| format!("['{w}']");
                    let twice = format!("['{0}', '{0}']", words[0]);
                    let bad = vec!["[]".into(), "['nonsense']".into(), twice, words[0].into()];
                    (words.iter().map(one).collect(), bad)
                }
                Kind::Text => (vec!["x".into()], vec![String::new(), "7".into()]),
                Kind::Texts => (vec!["['x']".into()], vec!["['']".into(), "x".into()]),
                Kind::Path => (vec!["x".into()], vec![String::new(), "~/x".into(), "7".into()]),
                Kind::NameOrPath => {
                    (vec!["x".into(), "a/b".into()], vec![String::new(), "~/x.toml".into()])
                }
                Kind::Recipe => (recipe_names().map(Into::into).collect(), vec!["nonsense".into()]),
                Kind::EventRecipe | Kind::Paths | Kind::Table => panic!("{path} is PITuning's"),
            };
            for value in inside {
                // Other keys may not go with this one; the value itself must never be at fault.
                if let Err(e) = set(&[&format!("{path}={value}")]) {
                    assert!(!e.contains("allowed is"), "{e}");
                    assert!(e.starts_with("--set") || e.starts_with("/dir/c.toml"), "{e}");
                }
            }
            for value in outside {
                let message = set(&[&format!("{path}={value}")]).unwrap_err();
                assert!(
                    message.starts_with(&format!("--set {path}={value}: `{path}` = ")),
                    "{message}"
                );
                assert!(message.contains(&format!("allowed is {}", key.kind)), "{message}");
            }
        }
    }
}

#[test]
fn defaults_and_recipes() {
    let config = good();
    assert_eq!((config.run.seed, config.engine.memory_gb), (42, 4.0));
    assert_eq!(config.individual.recipe, "oppu-code");
    let own = &config.individual.training;
    // The OPPU code's numbers.
    assert_eq!((own.lora_rank, own.alpha, own.dropout, own.epochs), (8, 8.0, 0.05, 2));
    assert_eq!((own.learning_rate, own.weight_decay, own.clip_norm), (1e-4, 1e-2, 0.3));
    assert_eq!((own.batch_size, own.betas, own.eps), (16, [0.9, 0.999], 1e-8));
    assert_eq!(own.targets, ["q", "v"]);
    let task = &config.population.training;
    assert_eq!((task.epochs, task.targets.concat()), (3, "qkv".into()));
    let paper = set(&["individual.recipe=oppu-paper"]).unwrap().individual.training;
    assert_eq!((paper.learning_rate, paper.epochs), (1e-5, 3));
    let lamp = set(&["individual.recipe=lamp-peft"]).unwrap().individual.training;
    assert_eq!((lamp.alpha, lamp.dropout, lamp.epochs), (32.0, 0.1, 30));
    assert_eq!(
        (lamp.weight_decay, lamp.warmup_ratio, lamp.targets.concat()),
        (1e-4, 0.05, "qkv".into())
    );
    for name in recipe_names() {
        let config = set(&[&format!("individual.recipe={name}")]).unwrap();
        assert_eq!(Recipe::named(name).unwrap(), config.individual.training, "{name}");
    }
    let message = Recipe::named("oppu-cod").unwrap_err().to_string();
    assert_eq!(message, "no recipe is called \"oppu-cod\"; did you mean `oppu-code`?");
    let mixed = set(&["individual.recipe=personal-small", "individual.alpha=4"]).unwrap();
    assert_eq!((mixed.individual.training.alpha, mixed.individual.training.epochs), (4.0, 4));
}

#[test]
fn paths_start_at_the_file() {
    let config = good();
    assert_eq!(config.base.path, Path::new("/dir/base.gguf"));
    let template = |t: &str| set(&[&format!("prompt.template={t}")]).unwrap().prompt.template;
    assert_eq!(template("plain"), "plain");
    assert_eq!(template("../mine.toml"), "/mine.toml");
    assert_eq!(set(&["base.path=/abs/x"]).unwrap().base.path, Path::new("/abs/x"));
}

#[test]
fn variables_come_from_the_map_only() {
    let variables =
        BTreeMap::from([("A".to_owned(), "/a".to_owned()), ("N".to_owned(), "${A}".to_owned())]);
    let mut doc = document(GOOD);
    doc.set("base.path=${A}/x").unwrap();
    doc.set("run.name=n ${N} ${A}").unwrap();
    let config = doc.resolve(&variables).unwrap();
    assert_eq!(config.base.path, Path::new("/a/x"));
    assert_eq!(config.run.name, "n ${A} /a", "what is put in is not expanded again");
    let message = doc.resolve(&BTreeMap::new()).unwrap_err().to_string();
    assert!(
        message.contains("no variable `N`") || message.contains("no variable `A`"),
        "{message}"
    );
    doc.set("base.path=${HOME/x").unwrap();
    let message = doc.resolve(&variables).unwrap_err().to_string();
    assert!(message.contains("no variable `HOME/x`; known are A, N"), "{message}");
}

#[test]
fn messages_name_file_key_line_and_a_guess() {
    for (section, line, expected) in [
        ("run", "sed = 1", "/dir/c.toml:2: unknown key `run.sed`; did you mean `seed`?"),
        ("run", "threads = 1", "/dir/c.toml:2: unknown key `run.threads`; it belongs in [engine]"),
        ("run", "zzzzzz = 1", "/dir/c.toml:2: unknown key `run.zzzzzz`"),
        (
            "individual",
            "lora_rnak = 4",
            "/dir/c.toml:17: unknown key `individual.lora_rnak`; did you mean `lora_rank`?",
        ),
        (
            "individual",
            "early_stop.patince = 4",
            "/dir/c.toml:17: unknown key `individual.early_stop.patince`; did you mean `patience`?",
        ),
        ("indvidual", "", "/dir/c.toml:16: unknown key `indvidual`; did you mean `individual`?"),
        (
            "individual",
            "lora_rank = 0",
            "/dir/c.toml:17: `individual.lora_rank` = 0: allowed is a whole number from 1 to 1024",
        ),
        (
            "individual",
            "schedule = 'linera'",
            "/dir/c.toml:17: `individual.schedule` = \"linera\": allowed is one of \"linear\", \"constant\", \"cosine\"; did you mean `linear`?",
        ),
        (
            "individual",
            "recipe = 'oppu-cod'",
            "/dir/c.toml:17: `individual.recipe` = \"oppu-cod\": allowed is a recipe's name: \"oppu-code\", \"oppu-paper\", \"lamp-peft\", \"personal-small\"; did you mean `oppu-code`?",
        ),
        (
            "individual",
            "early_stop = true",
            "/dir/c.toml:17: `individual.early_stop` = true: allowed is a table",
        ),
        (
            "individual",
            "override = 3",
            "/dir/c.toml:17: `individual.override` = 3: allowed is a list of tables: [[individual.override]]",
        ),
        (
            "individual",
            "[[individual.override]]\nepochs = 3",
            "/dir/c.toml:17: `individual.override[0].users` must be set: ids it applies to (a list, without repeats, of texts that are not empty)",
        ),
        (
            "data",
            "max_history = 0",
            "/dir/c.toml:7: `data.max_history` = 0: allowed is a whole number from 1 to 1099511627776",
        ),
        (
            "data",
            "path = 'x'",
            "/dir/c.toml:7: `data.path`: has no meaning with source = \"jsonl\"",
        ),
        (
            "data",
            "task = 'LaMP_3'",
            "/dir/c.toml:7: `data.task`: has no meaning with source = \"jsonl\"",
        ),
        (
            "run",
            "arms = ['base', 'rag']",
            "/dir/c.toml:2: `run.arms`: has \"rag\", but prompt.retrieved = 0",
        ),
        (
            "run",
            "arms = ['pag']",
            "/dir/c.toml:2: `run.arms`: has \"pag\", but profile.source = \"none\"",
        ),
        (
            "population",
            "enabled = false",
            "/dir/c.toml: `run.arms`: has \"population\", but population.enabled = false",
        ),
    ] {
        let message = with(section, line);
        // The place of a default is the section it belongs to.
        let expected = expected.replace("/dir/c.toml: `run.arms`", "/dir/c.toml:1: `run.arms`");
        assert_eq!(message, expected, "[{section}] {line}");
    }
}

#[test]
fn required_keys_are_asked_for_by_name() {
    for section in SECTIONS {
        for key in section.keys.iter().filter(|k| k.default == Default::Required) {
            let dropped: String = GOOD
                .lines()
                .filter(|l| !l.starts_with(&format!("{} =", key.name)))
                .fold(String::new(), |all, l| all + l + "\n");
            let error = document(&dropped).resolve(&BTreeMap::new()).unwrap_err();
            assert!(matches!(&error, Error::Missing { .. }), "{error}");
        }
    }
    let message = document("").resolve(&BTreeMap::new()).unwrap_err().to_string();
    assert!(message.starts_with("/dir/c.toml: `run.name` must be set"), "{message}");
}

#[test]
fn hostile_text_is_an_error() {
    let parse = |t: &str| Document::parse(Path::new("c.toml"), t).map(|_| ());
    for (text, start) in [
        ("[run]\nname = \n", "c.toml:2: "),
        ("[run]\nname = 'a'\nname = 'b'\n", "c.toml:3: "),
        ("[run\n", "c.toml:1: "),
        ("a = 99999999999999999999\n", "c.toml:"),
        ("a = [[[[", "c.toml:1: "),
    ] {
        let message = parse(text).unwrap_err().to_string();
        assert!(message.starts_with(start), "{text:?}: {message}");
    }
    let deep = format!("a = {}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(parse(&deep).is_err());
    let wrong = document("run = 3\n").resolve(&BTreeMap::new()).unwrap_err().to_string();
    assert_eq!(wrong, "/dir/c.toml:1: `run` = 3: allowed is a section: [run]");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    std::io::Write::write_all(&mut std::fs::File::create(&file).unwrap(), b"[run]\n\xff").unwrap();
    let message = Document::read(&file).unwrap_err().to_string();
    assert!(message.ends_with("c.toml:2: not UTF-8 text"), "{message}");
    assert!(matches!(Document::read(Path::new("/nowhere/c.toml")), Err(Error::Read { .. })));
}

#[test]
fn set_takes_toml_or_text() {
    let config =
        set(&["run.name=two words = ok", "individual.targets=[\"q\"]", "run.seed = 7"]).unwrap();
    assert_eq!(config.run.name, "two words = ok");
    assert_eq!((config.individual.training.targets, config.run.seed), (vec!["q".into()], 7));
    let sneaky = set(&["run.name=1\nseed = 9"]).unwrap();
    assert_eq!((sneaky.run.name, sneaky.run.seed), ("1\nseed = 9".into(), 42));
    for bad in ["", "a", "=1", "run=1", "run.=1", ".run=1", "run..a=1", "run.'a'=1", "run.name.x=1"]
    {
        let message = set(&[bad]).unwrap_err();
        assert_eq!(message, format!("--set {bad}: expected section.key=value"));
    }
    let message = set(&["individual.lora_rnk=1"]).unwrap_err();
    assert!(message.starts_with("--set individual.lora_rnk=1: unknown key"), "{message}");
    // A later --set replaces what stood below the key, and its faults are its own.
    let sets = ["individual.early_stop.held_out=9", "individual.early_stop={ patience = 3 }"];
    assert_eq!(set(&sets).unwrap().individual.training.early_stop.patience, 3);
}

#[test]
fn overrides_are_whole_recipes_of_their_users() {
    let config = set(&[
        "individual.epochs=5",
        "individual.override=[{ users = ['b', 'a'], lora_rank = 2 }, { users = ['c'], epochs = 1, max_length = 64 }]",
    ])
    .unwrap();
    let most = |id: &str| config.individual.training_of(&UserId::new(id)).max_length;
    assert_eq!([most("a"), most("c"), most("d")], [0, 64, 0]);
    let of = |id: &str| {
        let recipe = config.individual.training_of(&UserId::new(id));
        (recipe.lora_rank, recipe.epochs)
    };
    assert_eq!([of("a"), of("b"), of("c"), of("d")], [(2, 5), (2, 5), (8, 1), (8, 5)]);
    let again = Document::parse(Path::new("/x/c.toml"), &config.to_toml().unwrap()).unwrap();
    assert_eq!(again.resolve(&BTreeMap::new()).unwrap(), config);
    let twice = "individual.override=[{ users = ['a'] }, { users = ['b', 'a'] }]";
    let message = set(&[twice]).unwrap_err();
    assert!(message.ends_with("user \"a\" is in an earlier override"), "{message}");
}

#[test]
fn hashes_follow_what_they_are_of() {
    let base = good();
    assert_eq!(base.hash().unwrap(), good().hash().unwrap());
    let moved = set(&["engine.threads=3", "run.out_dir=/else", "base.path=/b"]).unwrap();
    assert_ne!(moved.hash().unwrap(), base.hash().unwrap());
    assert_eq!(moved.result_hash().unwrap(), base.result_hash().unwrap());
    for change in
        ["run.seed=1", "engine.shared_prefix=false", "individual.alpha=9", "data.min_history=2"]
    {
        let changed = set(&[change]).unwrap();
        assert_ne!(changed.result_hash().unwrap(), base.result_hash().unwrap(), "{change}");
    }
    let differences = base
        .differences(&set(&["run.seed=1", "engine.threads=3", "data.max_queries=5"]).unwrap())
        .unwrap();
    let lines: Vec<String> = differences.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        ["data.max_queries: (unset) -> 5", "engine.threads: 0 -> 3", "run.seed: 42 -> 1"]
    );
    let effects: Vec<Effect> = differences.iter().map(|d| d.effect).collect();
    assert_eq!(effects, [Effect::Result, Effect::Placement, Effect::Result]);
    assert!(base.differences(&base).unwrap().is_empty());
}

#[test]
fn benchmark_files_need_their_task() {
    let message = set(&["data.source=lamp"]).unwrap_err();
    assert!(message.ends_with("`data.task`: must be set with source = \"lamp\""), "{message}");
    let lamp = ["data.source=lamp", "data.task=LaMP_2M", "data.personal_outputs=o.json"];
    let data = set(&lamp).unwrap().data;
    assert_eq!(data.personal_outputs.unwrap(), Path::new("/dir/o.json"));
    let oppu = ["data.source=oppu", "data.task=movie_tagging", "data.personal_profiles=p.json"];
    assert!(set(&oppu).is_ok());
    let outputs = set(&[&oppu[..], &["data.population_outputs=p.json"]].concat()).unwrap_err();
    assert!(outputs.ends_with("has no meaning with source = \"oppu\""), "{outputs}");
    // Profile texts come with the files, or not at all; a JSONL record may have one.
    let file = "profile.source=file";
    assert!(set(&[&oppu[..], &[file]].concat()).is_ok() && set(&[file]).is_ok());
    let message = set(&[&lamp[..], &[file]].concat()).unwrap_err();
    let expected = "`profile.source`: is \"file\", but data.personal_profiles is not set";
    assert_eq!(message, format!("--set {file}: {expected}"));
}
