//! What a PITuning config may say, what it may not, and the message each fault gets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trainer::config::pituning::{
    EventArm, EventConfig, EventSourceKind, Method, SECTIONS, Tune, recipe_names,
};
use trainer::config::{Default, Document, Effect, Kind, RECIPE, Recipe, ScheduleKind};

const GOOD: &str = r#"[run]
method = "pituning"
name = "t"
out_dir = "out"
[data]
source = "generated"
"#;

fn document(text: &str) -> Document {
    Document::parse(Path::new("/dir/c.toml"), text).unwrap()
}

fn resolve(document: &Document) -> Result<EventConfig, String> {
    document.resolve_events(&BTreeMap::new()).map_err(|e| e.to_string())
}

/// `GOOD` with `sets` applied.
fn set(sets: &[&str]) -> Result<EventConfig, String> {
    let mut document = document(GOOD);
    for assignment in sets {
        document.set(assignment).map_err(|e| e.to_string())?;
    }
    resolve(&document)
}

fn good() -> EventConfig {
    set(&[]).unwrap()
}

/// The message of `GOOD` with `line` put into its section.
fn with(section: &str, line: &str) -> String {
    let header = format!("[{section}]\n");
    let text = match GOOD.contains(&header) {
        true => GOOD.replace(&header, &format!("{header}{line}\n")),
        false => format!("{GOOD}{header}{line}\n"),
    };
    resolve(&document(&text)).unwrap_err()
}

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
        "/dir/c.toml:2: `run.method`: is \"pituning\"; what is asked for takes other runs alone"
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

/// A config with everything set, of a log; then of the generator.
fn everything() -> [EventConfig; 2] {
    let both = ["data.users=1", "data.max_windows=1", "data.max_test_windows=1"];
    let log = [
        "data.source=log",
        "data.files=['a.csv']",
        "data.preset=lsapp",
        "data.format={ bucket_minutes = 30 }",
        "model.pretrained=gpt2",
    ];
    let generated = ["data.generator={ users = 3 }", "model.pretrained=gpt2"];
    [[&both[..], &log].concat(), [&both[..], &generated].concat()].map(|sets| set(&sets).unwrap())
}

#[test]
fn keys_and_structs_are_the_same() {
    let mut got: Vec<String> = Vec::new();
    for config in everything() {
        leaves(&serde_json::to_value(&config).unwrap(), "", &mut got);
    }
    got.sort();
    got.dedup();
    let mut expected: Vec<String> = Vec::new();
    for section in SECTIONS {
        let recipe: &[_] = if section.recipe { RECIPE } else { &[] };
        let keys = section.keys.iter().chain(recipe);
        expected.extend(keys.map(|k| format!("{}.{}", section.name, k.name)));
        assert!(section.keys.iter().chain(recipe).all(|k| !k.help.is_empty()));
    }
    expected.sort();
    assert_eq!(got, expected);
}

/// The paths of all that is no table; free tables count as one.
fn leaves(value: &serde_json::Value, path: &str, out: &mut Vec<String>) {
    match value.as_object() {
        Some(map) if !["data.format", "data.generator"].contains(&path) => {
            for (k, v) in map {
                let path = if path.is_empty() { k.clone() } else { format!("{path}.{k}") };
                leaves(v, &path, out);
            }
        }
        _ => out.push(path.to_owned()),
    }
}

#[test]
fn arms_have_the_names_of_their_words() {
    let key = SECTIONS[0].keys.iter().find(|k| k.name == "arms").unwrap();
    let Kind::ListOf(words) = key.kind else { panic!("{:?}", key.kind) };
    let names: Vec<&str> = EventArm::ALL.iter().map(|arm| arm.name()).collect();
    assert_eq!(names, words);
    for arm in EventArm::ALL {
        assert_eq!(serde_json::to_value(arm).unwrap(), arm.name());
    }
}
