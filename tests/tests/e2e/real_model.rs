//! SmolLM2-135M and real people's film ratings, as `scripts/setup` fetches them.

use crate::process::root;
use crate::story::Story;
use std::collections::BTreeSet;
use std::path::PathBuf;

#[expect(clippy::disallowed_methods, reason = "tests read where set-up put the model")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(variable("HOME").unwrap()).join(".cache/myriad");
    variable("MYRIAD_CACHE").map_or_else(home, PathBuf::from)
}

#[test]
fn three_people_on_one_and_two_ranks() {
    if variable("MYRIAD_TEST_QUICK").is_some() {
        eprintln!("SKIPPED: MYRIAD_TEST_QUICK leaves out the real model");
        return;
    }
    let cache = cache();
    for file in ["smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "ml-100k/ml-100k.inter"] {
        assert!(
            cache.join(file).is_file(),
            "{file} is not in {}: run scripts/setup",
            cache.display()
        );
    }
    let story = Story::new();
    let config = root().join("configs/oppu_ml100k_cpu.toml");
    let mut adapters = Vec::new();
    for ranks in [2, 0] {
        let folder = story.path(&format!("run{ranks}"));
        let out = format!("run.out_dir={}", folder.display());
        let mut args = vec!["run", "--config", config.to_str().unwrap(), "--set", &out];
        for set in [
            "data.personal_users=3",
            "data.min_history=8",
            "data.max_history=8",
            "data.max_queries=3",
            "data.population_examples=24",
            "individual.epochs=1",
        ] {
            args.extend(["--set", set]);
        }
        let start =
            || crate::process::Start::new(story.root(), ranks, &args).env("MYRIAD_CACHE", &cache);
        let table = start().run().must(0).stdout;
        assert!(table.contains("personal - population"), "{table}");
        let to = story.path(&format!("export{ranks}"));
        let export = ["export", "--run", folder.to_str().unwrap(), "--out", to.to_str().unwrap()];
        story.launcher(&export).env("MYRIAD_CACHE", &cache).run().must(0);
        let mine = crate::story::exported(&to);
        assert_eq!(mine.len(), 3);
        assert_eq!(mine.values().collect::<BTreeSet<_>>().len(), 3, "two people have one adapter");
        adapters.push((mine, story.predictions(&format!("run{ranks}"))));
    }
    assert!(adapters[0] == adapters[1], "one rank and two ranks give different bytes");
}

#[test]
fn a_benchmark_of_training_ends_with_its_numbers() {
    if variable("MYRIAD_TEST_QUICK").is_some() {
        eprintln!("SKIPPED: MYRIAD_TEST_QUICK leaves out the real model");
        return;
    }
    let (story, cache) = (Story::new(), cache());
    let base = cache.join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").display().to_string();
    let data = format!("ml-100k={}", cache.join("ml-100k").display());
    let args = ["bench", "train", "--base", &base, "--data", &data, "--users", "2", "--items", "4"];
    let few = ["--batch-size", "4", "--epochs", "1", "--json", "out.json"];
    let start = crate::process::Start::new(story.root(), 0, &[&args[..], &few].concat());
    start.env("MYRIAD_CACHE", &cache).run().must(0);
    let json = std::fs::read(story.path("out.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!((&json["users"], &json["steps"]), (&2.into(), &2.into()), "{json}");
    for number in ["seconds", "users_per_hour", "useful_share"] {
        assert!(json[number].as_f64() > Some(0.0), "{number}: {json}");
    }
    assert!(json["lora_tax"].as_f64().is_some_and(f64::is_finite), "{json}");
}
