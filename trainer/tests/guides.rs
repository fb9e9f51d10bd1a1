//! What the guides show works: their examples are read, their table of keys is the program's.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use trainer::config::{Default, Document, Kind, SECTIONS};
use trainer::data::events::{Format, PRESETS, Split};
use trainer::prompt::{Task, Template};

fn guide(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guides").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// The code blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let start = format!("```{language}\n");
    let parts = text.split(&start).skip(1);
    parts.map(|part| part.split("\n```").next().unwrap().to_owned() + "\n").collect()
}

fn variables() -> BTreeMap<String, String> {
    BTreeMap::from([("MYRIAD_CACHE".to_owned(), "/cache".to_owned())])
}

#[test]
fn the_format_of_the_events_guide_is_sound() {
    let blocks = blocks(&guide("events.md"), "toml");
    let [log] = &blocks[..] else { panic!("{} blocks", blocks.len()) };
    let mut keys: toml::Table = log.parse().unwrap();
    let split: Split = keys.remove("split").unwrap().try_into().unwrap();
    split.check().unwrap();
    let format = Format::resolve(None, &keys).unwrap();
    assert_eq!((format.min_events, split.cold_share.to_string()), (20, "0.1".to_owned()));
    assert!(PRESETS.iter().all(|name| guide("events.md").contains(&format!("| `{name}` |"))));
}

#[test]
fn the_template_of_the_data_guide_and_its_config_are_sound() {
    let blocks = blocks(&guide("data.md"), "toml");
    let [template, config] = &blocks[..] else { panic!("{} blocks", blocks.len()) };
    let task = Task::new(Template::from_toml(template).unwrap()).unwrap();
    let labels = task.labels().unwrap().to_vec();
    let document = Document::parse(Path::new("/dir/tickets.toml"), config).unwrap();
    let config = document.resolve(&variables()).unwrap();
    assert_eq!(config.prompt.template, format!("/dir/{}.toml", task.template().name));
    let users = guide("data.md");
    let (_, users) = users.split_once("with users such as").unwrap();
    let answers: BTreeSet<&str> =
        users.split("\"team\": \"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert_eq!(answers, labels.iter().map(String::as_str).collect());
}

#[test]
fn the_study_guides_section_is_a_study() {
    let blocks = blocks(&guide("study.md"), "toml");
    let section = blocks.first().unwrap();
    let data = guide("data.md");
    let (_, run) = data.split_once("[run]").unwrap();
    let run = run.split("\n```").next().unwrap();
    let text = format!("{section}\n[run]{run}\n");
    let document = Document::parse(Path::new("/dir/study.toml"), &text).unwrap();
    let study = document.study(&variables()).unwrap_or_else(|e| panic!("{e}"));
    let axes: Vec<&str> = study.axes.iter().map(|axis| axis.short.as_str()).collect();
    assert_eq!(axes, ["retriever", "retrieved", "order", "retrieval_seed", "task"]);
    // One or two items are shown in one order alone: 2 retrievers x (2 x 3 + 2 x 1) x 3 seeds x 2 tasks.
    assert_eq!(study.cells.len(), 2 * (2 * 3 + 2) * 3 * 2);
}

/// The rows of the data guide's table of keys: key and the cell `without it`.
fn rows(text: &str) -> BTreeMap<String, String> {
    let (_, keys) = text.split_once("\n## Keys\n").unwrap();
    let lines = keys.lines().filter(|line| line.starts_with("| `"));
    lines
        .map(|line| {
            let cells: Vec<&str> = line.split(" | ").collect();
            (cells[0].trim_matches(['|', ' ', '`']).to_owned(), cells[2].to_owned())
        })
        .collect()
}

#[test]
fn the_data_guide_has_every_key_with_its_default() {
    let text = guide("data.md");
    let rows = rows(&text);
    for section in SECTIONS
        .iter()
        .filter(|s| ["data", "prompt", "profile", "predict", "evaluate"].contains(&s.name))
    {
        for key in section.keys {
            let name = format!("{}.{}", section.name, key.name);
            let without = rows.get(&name).unwrap_or_else(|| panic!("no row for {name}"));
            match key.default {
                Default::Required => assert_eq!(without, "must be there", "{name}"),
                Default::Unset => assert!(without.starts_with("unset"), "{name}: {without}"),
                Default::Is(value) => assert_eq!(without, &format!("`{value}`"), "{name}"),
                Default::FromRecipe => panic!("{name} is no recipe's"),
            }
            if let Kind::OneOf(words) = key.kind {
                let line = text.lines().find(|l| l.starts_with(&format!("| `{name}`"))).unwrap();
                let same = line.contains("| the same |");
                for word in words {
                    assert!(same || line.contains(&format!("`\"{word}\"`")), "{name}: {word}");
                }
            }
        }
    }
}
