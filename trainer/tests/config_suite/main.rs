//! What a config may say: its keys and their faults, and the files it lies over.

#![expect(clippy::unwrap_used, reason = "test code")]

mod documents;
mod layers;

use std::path::Path;
use trainer::config::Document;

/// The shortest config that resolves.
pub(crate) const GOOD: &str = r#"[run]
name = "t"
out_dir = "out"
[base]
path = "base.gguf"
[data]
source = "jsonl"
personal = "a.jsonl"
population = "b.jsonl"
[prompt]
template = "plain"
[predict]
mode = "label"
[evaluate]
metrics = ["mae"]
"#;

pub(crate) fn document(text: &str) -> Document {
    Document::parse(Path::new("/dir/c.toml"), text).unwrap()
}
