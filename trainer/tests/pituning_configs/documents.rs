//! What a PITuning config may say, what it may not, and the message each fault gets.

use super::{GOOD, document, everything, good, resolve, set, with};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trainer::config::pituning::{EventArm, Method};
use trainer::config::{DeviceKind, Document, Effect};

#[test]
fn a_run_says_what_it_is() {
    assert_eq!(document(GOOD).method().unwrap(), Some(Method::Pituning));
    assert_eq!(good().run.method, Method::Pituning);
    // Other runs have no method, and their sections are not these.
    let other = document("[run]\nname = 'x'\nout_dir = 'y'\n");
    assert_eq!(other.method().unwrap(), None);
    let message = resolve(&other).unwrap_err();
    assert_eq!(
        message,
        "/dir/c.toml:1: `run.method` must be set: what kind of run this is (one of \"pituning\")"
    );
    let message = document(GOOD).resolve(&BTreeMap::new()).unwrap_err().to_string();
    assert_eq!(
        message,
        "/dir/c.toml:2: `run.method`: is \"pituning\"; here a run without a method is expected"
    );
    for (given, expected) in [
        ("'pituing'", "\"pituing\": allowed is one of \"pituning\"; did you mean `pituning`?"),
        ("7", "7: allowed is one of \"pituning\""),
    ] {
        let document = document(&GOOD.replace("\"pituning\"", given));
        let expected = format!("/dir/c.toml:2: `run.method` = {expected}");
        assert_eq!(document.method().unwrap_err().to_string(), expected);
        assert_eq!(resolve(&document).unwrap_err(), expected);
        assert_eq!(document.resolve(&BTreeMap::new()).unwrap_err().to_string(), expected);
    }
}

#[test]
fn messages_name_file_key_line_and_a_guess() {
    for (section, line, expected) in [
        ("run", "sed = 1", "/dir/c.toml:2: unknown key `run.sed`; did you mean `seed`?"),
        ("run", "tune = 1", "/dir/c.toml:2: unknown key `run.tune`; it belongs in [individual]"),
        ("model", "tau = 1", "/dir/c.toml:8: unknown key `model.tau`; it belongs in [unlearn]"),
        ("unlern", "", "/dir/c.toml:7: unknown key `unlern`; did you mean `unlearn`?"),
        ("base", "", "/dir/c.toml:7: unknown key `base`"),
        ("individual", "override = []", "/dir/c.toml:8: unknown key `individual.override`"),
        (
            "individual",
            "early_stop.patince = 4",
            "/dir/c.toml:8: unknown key `individual.early_stop.patince`; did you mean `patience`?",
        ),
        (
            "unlearn",
            "forget = 'labels'",
            "/dir/c.toml:8: `unlearn.forget` = \"labels\": allowed is one of \"teacher_error\", \"teacher_answer\", \"teacher_distribution\", \"label\"; did you mean `label`?",
        ),
        (
            "individual",
            "recipe = 'pituning-smal'",
            "/dir/c.toml:8: `individual.recipe` = \"pituning-smal\": allowed is a recipe's name: \"pituning\", \"pituning-small\"; did you mean `pituning-small`?",
        ),
        (
            "individual",
            "recipe = 'oppu-code'",
            "/dir/c.toml:8: `individual.recipe` = \"oppu-code\": allowed is a recipe's name: \"pituning\", \"pituning-small\"",
        ),
        (
            "data",
            "generator = 3",
            "/dir/c.toml:6: `data.generator` = 3: allowed is a table; its numbers are finite",
        ),
        ("study", "", "/dir/c.toml:7: `study`: makes this a study of several runs, not a run"),
    ] {
        assert_eq!(with(section, line), expected, "[{section}] {line}");
    }
}

#[test]
fn keys_that_do_not_go_together_are_named() {
    for (section, line, expected) in [
        (
            "data",
            "files = ['x']",
            "/dir/c.toml:6: `data.files`: has no meaning with source = \"generated\"",
        ),
        (
            "data",
            "preset = 'x'",
            "/dir/c.toml:6: `data.preset`: has no meaning with source = \"generated\"",
        ),
        (
            "data",
            "format.header = true",
            "/dir/c.toml:6: `data.format`: has no meaning with source = \"generated\"",
        ),
        ("data", "generator.cold = 0.1", "/dir/c.toml:6: `data.generator.cold`: is data.cold"),
        (
            "data",
            "generator.split = [0.5, 0.5]",
            "/dir/c.toml:6: `data.generator.split`: is data.train and data.validation",
        ),
        (
            "data",
            "train = 0.9",
            "/dir/c.toml:6: `data.train`: and data.validation leave no events for the test",
        ),
        (
            "run",
            "arms = ['permuted']",
            "/dir/c.toml:2: `run.arms`: has \"permuted\", but not \"personal\", whose tuned parts it takes",
        ),
        (
            "unlearn",
            "rule = 'teacher_error'\nmin_count = 0",
            "/dir/c.toml:9: `unlearn.min_count`: = 0, but there is no recall of nothing",
        ),
        (
            "distill",
            "max_length = 8",
            "/dir/c.toml:8: `distill.max_length`: has no meaning: a window has model.window events",
        ),
        (
            "individual",
            "targets = ['c_fc', 'q']",
            "/dir/c.toml:8: `individual.targets`: has \"q\", but a GPT-2 block has c_attn, attn_c_proj, c_fc, mlp_c_proj",
        ),
        (
            "population",
            "lora_rank = 4",
            "/dir/c.toml:8: `population.lora_rank`: has no meaning: every parameter is trained",
        ),
        (
            "distill",
            "dropout = 0.5",
            "/dir/c.toml:8: `distill.dropout`: has no meaning: every parameter is trained",
        ),
        (
            "unlearn",
            "alpha = 4",
            "/dir/c.toml:8: `unlearn.alpha`: is the same as in [individual]: both train one adapter",
        ),
    ] {
        assert_eq!(with(section, line), expected, "[{section}] {line}");
    }
}

#[test]
fn shapes_that_cannot_be_are_named() {
    for (section, line, expected) in [
        (
            "model",
            "heads = 7",
            "/dir/c.toml:8: `model.heads`: = 7 does not divide model.hidden = 768",
        ),
        (
            "model",
            "hidden = 100",
            "/dir/c.toml:7: `model.heads`: = 12 does not divide model.hidden = 100",
        ),
        (
            "population",
            "frozen_blocks = 13",
            "/dir/c.toml:8: `population.frozen_blocks`: = 13, but model.layers = 12",
        ),
        (
            "distill",
            "heads = 5",
            "/dir/c.toml:8: `distill.heads`: = 5 does not divide distill.hidden = 384",
        ),
    ] {
        assert_eq!(with(section, line), expected, "[{section}] {line}");
    }
}

#[test]
fn logs_and_their_arms() {
    let log = ["data.source=log", "data.files=['a.csv', '../b.csv']"];
    let sets = |more: &[&'static str]| [&log[..], more].concat();
    let config = set(&log).unwrap();
    assert_eq!(config.data.files, ["/dir/a.csv", "/b.csv"].map(PathBuf::from));
    for (more, expected) in [
        (&["data.generator.users=3"][..], "`data.generator`: has no meaning with source = \"log\""),
        (&["run.arms=['truth']"], "has \"truth\", but data.source = \"log\": nobody knows it"),
        (
            &["run.arms=['teacher']", "distill.enabled=false"],
            "has \"teacher\", but distill.enabled = false: it is \"population\"",
        ),
        (
            &["data.validation=0"],
            "`population.early_stop.enabled`: = true, but data.validation = 0 leaves nothing to choose by",
        ),
        (
            &["individual.tune=all", "individual.early_stop.enabled=true"],
            "`individual.early_stop.enabled`: = true, but nothing is held out where individual.tune = \"all\"",
        ),
    ] {
        let message = set(&sets(more)).unwrap_err();
        assert!(message.ends_with(expected), "{message}");
    }
    let message = set(&["data.source=log"]).unwrap_err();
    assert!(message.ends_with("`data.files`: must be set with source = \"log\""), "{message}");
    let off = ["population.early_stop.enabled=false", "distill.early_stop.enabled=false"];
    let none = set(&[&off[..], &["data.validation=0"]].concat()).unwrap();
    assert_eq!((none.data.validation, none.data.train), (0.0, 0.7));
    // A student that is not trained need not be possible; nor an adapter that nobody has.
    assert!(set(&["distill.enabled=false", "distill.heads=5"]).is_ok());
    assert!(set(&["individual.tune=all", "individual.targets=['q']"]).is_ok());
    assert_eq!(set(&["engine.device=cuda"]).unwrap().engine.device, DeviceKind::Cuda);
    // Everything else goes with everything else.
    let arms = EventArm::ALL.map(|arm| format!("'{}'", arm.name())).join(", ");
    assert_eq!(set(&[&format!("run.arms=[{arms}]")]).unwrap().run.arms, EventArm::ALL);
}

#[test]
fn paths_start_at_the_file_that_says_them() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::io::Write::write_all(&mut std::fs::File::create(path).unwrap(), text.as_bytes())
            .unwrap();
    };
    write(
        "parts/log.toml",
        "data = { source = 'log', files = ['a.csv', '${D}/b.csv'], format = { header = false, columns.user = 0 } }\n",
    );
    write(
        "c.toml",
        "extends = 'parts/log.toml'\n[run]\nmethod = 'pituning'\nname = 'n'\nout_dir = 'o'\n[data.format]\ncolumns.time = 1\n[variant.v.data.format]\nheader = true\n",
    );
    let read = || Document::read(&folder.path().join("c.toml")).unwrap();
    let variables = BTreeMap::from([("D".to_owned(), "/d".to_owned())]);
    let config = read().resolve_events(&variables).unwrap();
    assert_eq!(config.data.files, [folder.path().join("parts/a.csv"), "/d/b.csv".into()]);
    assert_eq!(config.run.out_dir, folder.path().join("o"));
    // Free tables are merged key by key like others.
    let text = config.data.format.to_string();
    let expected: toml::Table = "header = false\ncolumns = { user = 0, time = 1 }".parse().unwrap();
    assert_eq!(config.data.format, expected, "{text}");
    let mut document = read();
    document.choose("v").unwrap();
    document.set("data.files=['a.csv']").unwrap();
    let config = document.resolve_events(&BTreeMap::new()).unwrap();
    assert_eq!(config.data.files, [folder.path().join("a.csv")], "a --set's is the config's");
    assert_eq!(config.data.format.get("header").and_then(toml::Value::as_bool), Some(true));
    assert_eq!(config.run.name, "n-v");
    assert_eq!(config.run.out_dir, folder.path().join("o-v"));
    let message = read().resolve_events(&BTreeMap::new()).unwrap_err().to_string();
    assert!(
        message.contains("parts/log.toml:1: ") && message.contains("no variable `D`"),
        "{message}"
    );
}

#[test]
fn set_reaches_into_free_tables() {
    let config = set(&["data.generator.users=100", "data.generator.events=[5, 9]"]).unwrap();
    let expected: toml::Table = "users = 100\nevents = [5, 9]".parse().unwrap();
    assert_eq!(config.data.generator, expected);
    let message = set(&["data.generator=3", "data.generator.users=1"]).unwrap_err();
    assert_eq!(message, "--set data.generator.users=1: expected section.key=value");
    // Numbers stay as they are written: what is a float is the reader's to say.
    let config = set(&["data.generator.own_share=0"]).unwrap();
    assert_eq!(config.data.generator.get("own_share"), Some(&toml::Value::Integer(0)));
}

#[test]
fn unlearning_begins_the_adapter_that_is_tuned() {
    let sets = ["individual.lora_rank=2", "individual.targets=['c_fc']", "unlearn.dropout=0.1"];
    let config = set(&sets).unwrap();
    let (unlearn, own) = (&config.unlearn.training, &config.individual.training);
    assert_eq!((unlearn.lora_rank, &unlearn.targets[..]), (2, &["c_fc".to_owned()][..]));
    assert_eq!((unlearn.dropout, own.dropout), (0.1, 0.0));
    assert_eq!((unlearn.alpha, unlearn.rslora), (own.alpha, own.rslora));
    assert!(unlearn.learning_rate < own.learning_rate, "the rest is its own");
    // What is resolved says so, and resolves.
    let again = document(&config.to_toml().unwrap());
    assert_eq!(resolve(&again).unwrap(), config);
    // Saying the same twice is no fault.
    assert!(set(&["individual.lora_rank=2", "unlearn.lora_rank=2"]).is_ok());
}

#[test]
fn whole_configs_resolve_to_themselves() {
    for config in everything() {
        let toml = config.to_toml().unwrap();
        let again = Document::parse(Path::new("/elsewhere/c.toml"), &toml).unwrap();
        assert_eq!(resolve(&again).unwrap(), config, "{toml}");
    }
}

#[test]
fn hashes_follow_what_they_are_of() {
    let base = good();
    assert_eq!(base.hash().unwrap(), good().hash().unwrap());
    let placement = [
        "run.name=other",
        "run.out_dir=/else",
        "engine.threads=3",
        "engine.memory_gb=1",
        "population.checkpoint_steps=5",
    ];
    for change in placement {
        let moved = set(&[change]).unwrap();
        assert_ne!(moved.hash().unwrap(), base.hash().unwrap(), "{change}");
        assert_eq!(moved.result_hash().unwrap(), base.result_hash().unwrap(), "{change}");
    }
    for change in [
        "run.seed=1",
        "data.generator.users=5",
        "model.pretrained=x",
        "unlearn.beta=0.5",
        "individual.alpha=9",
        "distill.temperature=3",
        "evaluate.tail_share=0.3",
    ] {
        let changed = set(&[change]).unwrap();
        assert_ne!(changed.result_hash().unwrap(), base.result_hash().unwrap(), "{change}");
    }
    let log = |file: &str| {
        set(&["data.source=log", &format!("data.files=['{file}']")]).unwrap().result_hash().unwrap()
    };
    assert_eq!(log("a"), log("b"), "the bytes are hashed by their reader");
    let other = set(&["run.seed=1", "population.checkpoint_steps=3", "data.generator.a.b=5"]);
    let differences = base.differences(&other.unwrap()).unwrap();
    let lines: Vec<String> = differences.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "data.generator.a.b: (unset) -> 5",
            "population.checkpoint_steps: 0 -> 3",
            "run.seed: 42 -> 1"
        ]
    );
    let effects: Vec<Effect> = differences.iter().map(|d| d.effect).collect();
    assert_eq!(effects, [Effect::Result, Effect::Placement, Effect::Result]);
}
