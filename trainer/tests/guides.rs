//! What the guides show works: their examples are read, their table of keys is the program's.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use trainer::config::pituning::{self, EventArm, EventSourceKind};
use trainer::config::{Default, Document, Kind, Recipe, SECTIONS, Section, Text, read_layers};
use trainer::data::events::generator::Options;
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

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
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
fn every_key_of_a_log_is_in_the_events_guide() {
    let text = guide("events.md");
    let format = Format {
        collapse_seconds: Some(1),
        gap_seconds: Some(1),
        ..Format::resolve(Some("lsapp"), &toml::Table::new()).unwrap()
    };
    let dates = Some("2024-01-01".to_owned());
    let split = Split { validation_from: dates.clone(), test_from: dates, ..Split::default() };
    let format = toml::Table::try_from(format).unwrap();
    assert!(format.len() >= 15, "{format:?}");
    let mentioned = |name: &str| {
        let written = [format!("`{name}`"), format!("`{name} = "), format!("\n{name} = ")];
        written.iter().any(|form| text.contains(form)) || text.contains(&format!("[{name}."))
    };
    let missing: Vec<&String> = format.keys().filter(|name| !mentioned(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let split = toml::Table::try_from(split).unwrap();
    let named = |name: &str| mentioned(name) || mentioned(&format!("split.{name}"));
    let missing: Vec<&String> = split.keys().filter(|name| !named(name)).collect();
    assert!(missing.is_empty(), "split: {missing:?}");
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

/// The rows of a table under a heading: first cell and all cells, until the next heading.
fn rows(text: &str, heading: &str) -> BTreeMap<String, Vec<String>> {
    let (_, part) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    let part = part.split("\n## ").next().unwrap();
    let lines = part.lines().filter(|line| line.starts_with("| `"));
    lines
        .map(|line| {
            let cells = line.trim_matches('|').split(" | ");
            let cells: Vec<String> = cells.map(|c| c.trim().to_owned()).collect();
            (cells[0].trim_matches('`').to_owned(), cells)
        })
        .collect()
}

/// Holds a guide's table of keys against the program's: every key, its default, every word it may be.
fn has_every_key<'a>(text: &str, sections: impl Iterator<Item = &'a Section>) -> BTreeSet<String> {
    let rows = rows(text, "Keys");
    let mut known = BTreeSet::new();
    for (section, key) in sections.flat_map(|s| s.keys.iter().map(move |key| (s, key))) {
        let name = format!("{}.{}", section.name, key.name);
        let row = rows.get(&name).unwrap_or_else(|| panic!("no row for {name}"));
        let without = &row[2];
        match key.default {
            Default::Required => assert_eq!(without, "must be there", "{name}"),
            Default::Unset => assert!(without.starts_with("unset"), "{name}: {without}"),
            Default::Is(value) => assert_eq!(without, &format!("`{value}`"), "{name}"),
            Default::FromRecipe => panic!("{name} is no recipe's"),
        }
        if let Kind::OneOf(words) | Kind::ListOf(words) = key.kind {
            let listed: BTreeSet<&str> =
                row[1].split('`').skip(1).step_by(2).map(|word| word.trim_matches('"')).collect();
            let same = row[1] == "the same" || listed == words.iter().copied().collect();
            assert!(same, "{name}: {listed:?} for {words:?}");
        }
        known.insert(name);
    }
    let unknown: Vec<&String> = rows.keys().filter(|name| !known.contains(*name)).collect();
    assert!(unknown.is_empty(), "no such keys: {unknown:?}");
    known
}

#[test]
fn the_data_guide_has_every_key_with_its_default() {
    let ours = ["data", "prompt", "profile", "predict", "evaluate"];
    let known = has_every_key(
        &guide("data.md"),
        SECTIONS.iter().filter(|section| ours.contains(&section.name)),
    );
    assert!(known.len() > 40, "{}", known.len());
}

#[test]
fn the_pituning_guide_has_every_key_with_its_default() {
    let text = guide("pituning.md");
    let known = has_every_key(&text, pituning::SECTIONS.iter());
    assert!(known.contains("unlearn.forget") && known.contains("engine.threads"), "{known:?}");
    let row = |name: &str| rows(&text, "Keys")[name][1].clone();
    assert!(PRESETS.iter().all(|preset| row("data.preset").contains(&format!("`{preset}`"))));
    for section in pituning::SECTIONS.iter().filter(|section| section.recipe) {
        let listed = row(&format!("{}.recipe", section.name));
        assert!(pituning::recipe_names().all(|name| listed.contains(&format!("`{name}`"))));
    }
    let arms = rows(&text, "6. The table");
    assert_eq!(
        arms.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        EventArm::ALL.into_iter().map(EventArm::name).collect()
    );
}

/// Where section 2 names a default beside a choice, it is the one of the table of keys.
#[test]
fn the_choices_of_the_pituning_guide_are_the_defaults() {
    let text = guide("pituning.md");
    let (choices, _) = text.split_once("\n## 3. ").unwrap();
    let (_, choices) = choices.split_once("| choice | here |").unwrap();
    let keys = rows(&text, "Keys");
    let mut held = 0;
    for line in choices.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.split(" | ").collect();
        let here = cells.get(1).copied().unwrap_or("");
        for code in here.split('`').skip(1).step_by(2) {
            let Some((name, value)) = code.split_once(" = ") else { continue };
            let Some(row) = keys.get(name) else { continue };
            let (said, meant) = (toml_value(value), toml_value(row[2].trim_matches('`')));
            let number = |v: &toml::Value| v.as_float().or(v.as_integer().map(|i| i as f64));
            let equal = said == meant || number(&said).is_some_and(|n| number(&meant) == Some(n));
            assert!(equal, "{name}: {value} in section 2, {} in the table", row[2]);
            held += 1;
        }
    }
    assert!(held >= 12, "{held}");
}

fn toml_value(text: &str) -> toml::Value {
    let table: toml::Table =
        format!("x = {text}").parse().unwrap_or_else(|e| panic!("{text}: {e}"));
    table["x"].clone()
}

#[test]
fn the_recipes_of_the_pituning_guide_are_the_programs() {
    let table = rows(&guide("pituning.md"), "Recipes");
    let names: Vec<&str> = pituning::recipe_names().collect();
    assert_eq!(names, ["pituning", "pituning-small"], "the order of a cell");
    let stages = ["population", "distill", "unlearn", "individual"];
    for (at, name) in names.into_iter().enumerate() {
        let recipes: String =
            stages.iter().map(|stage| format!("[{stage}]\nrecipe = \"{name}\"\n")).collect();
        let text = format!(
            "[run]\nmethod = \"pituning\"\nname = \"x\"\nout_dir = \"x\"\n\
             [data]\nsource = \"generated\"\n{recipes}"
        );
        let document = Document::parse(Path::new("/dir/x.toml"), &text).unwrap();
        let config = document.resolve_events(&variables()).unwrap();
        let of: [&Recipe; 4] = [
            &config.population.training,
            &config.distill.training,
            &config.unlearn.training,
            &config.individual.training,
        ];
        for (stage, recipe) in of.into_iter().enumerate() {
            let mut values = toml::Table::try_from(recipe).unwrap();
            let early = values.remove("early_stop").unwrap();
            for (key, value) in early.as_table().unwrap() {
                values.insert(format!("early_stop.{key}"), value.clone());
            }
            assert_eq!(values.remove("max_length"), Some(toml::Value::Integer(0)));
            for (key, value) in values {
                let cell =
                    &table.get(&key).unwrap_or_else(|| panic!("no row for {key}"))[1 + stage];
                if cell == "-" {
                    continue;
                }
                let said = cell.split(" / ").nth(at).unwrap();
                let same = match (&value, said) {
                    (toml::Value::Array(targets), "all four") => targets.len() == 4,
                    (toml::Value::String(text), said) => text == said,
                    (value, said) => toml_value(said) == *value,
                };
                assert!(same, "{key} of {name} in [{}]: {said} for {value}", stages[stage]);
            }
        }
    }
}

#[test]
fn the_pituning_guides_own_log_is_a_config() {
    let blocks = blocks(&guide("pituning.md"), "toml");
    let [format, config] = &blocks[..] else { panic!("{} blocks", blocks.len()) };
    let keys: toml::Table = format.parse().unwrap();
    let format = Format::resolve(None, &keys).unwrap();
    let mut layers = read_layers(&configs().join("parts/pituning_small.toml")).unwrap();
    assert!(config.contains("extends = \"parts/pituning_small.toml\""));
    layers.push(Text { file: configs().join("visits.toml"), text: config.clone() });
    let config = Document::of_layers(&layers).unwrap().resolve_events(&variables()).unwrap();
    assert_eq!(config.data.source, EventSourceKind::Log);
    assert_eq!(Format::resolve(None, &config.data.format).unwrap(), format);
    let split = Split { cold_share: config.data.cold, ..Split::default() };
    split.check().unwrap();
    assert!(config.population.training.early_stop.enabled);
}

#[test]
fn the_generators_options_are_in_the_pituning_guide() {
    let table = rows(&guide("pituning.md"), "7. The generator");
    let options = toml::Table::try_from(Options::default()).unwrap();
    // Those of the run itself.
    let elsewhere = ["cold", "split"];
    assert_eq!(table.len() + elsewhere.len(), options.len());
    assert_eq!(table["seed"][1], "`run.seed`");
    for (name, value) in options.iter().filter(|(name, _)| !elsewhere.contains(&name.as_str())) {
        let said = table.get(name).unwrap_or_else(|| panic!("no row for {name}"))[1].clone();
        if name != "seed" {
            assert_eq!(toml_value(said.trim_matches('`')), *value, "{name}");
        }
    }
}

#[test]
fn every_variant_and_config_of_pituning_is_in_its_guide() {
    let text = guide("pituning.md");
    let (_, variants) = text.split_once("\n## 8. Variants\n").unwrap();
    let variants = variants.split("\n## ").next().unwrap();
    let mut named = BTreeSet::new();
    for entry in std::fs::read_dir(configs()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.starts_with("pituning_") {
            continue;
        }
        assert!(text.contains(&format!("| `configs/{name}` |")), "{name}");
        let document = Document::read(&configs().join(&name)).unwrap();
        for variant in document.variants() {
            assert!(variants.contains(&format!("`{variant}`")), "{name}: {variant}");
            named.insert(variant.to_owned());
        }
    }
    assert!(named.len() > 15, "{named:?}");
    let rows = rows(&text, "8. Variants");
    let listed = rows.values().flat_map(|cells| cells[0].split('`').skip(1).step_by(2));
    let gone: Vec<&str> = listed.filter(|variant| !named.contains(*variant)).collect();
    assert!(gone.is_empty(), "no such variants: {gone:?}");
}
