//! Configs of PITuning runs: what they may say, and that every file of them resolves.

#![expect(clippy::unwrap_used, reason = "test code")]

mod documents;
mod files;
mod keys;

use std::collections::BTreeMap;
use std::path::Path;
use trainer::config::Document;
use trainer::config::pituning::EventConfig;

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
