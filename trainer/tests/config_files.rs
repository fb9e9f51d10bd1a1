//! Every file in `configs/` resolves, to what its comments say.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trainer::config::{Arm, Config, Document, ProfileSource, Recipe, ScheduleKind};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn variables() -> BTreeMap<String, String> {
    BTreeMap::from([("MYRIAD_CACHE".to_owned(), "/cache".to_owned())])
}

fn resolve(name: &str) -> Config {
    of_variants(name, &[])
}

fn of_variants(name: &str, variants: &[&str]) -> Config {
    let mut document = Document::read(&folder().join(name)).unwrap();
    for variant in variants {
        document.choose(variant).unwrap_or_else(|e| panic!("{e}"));
    }
    document.resolve(&variables()).unwrap_or_else(|e| panic!("{name} {variants:?}: {e}"))
}

fn names() -> Vec<String> {
    let files = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let tomls = files.filter(|path| path.extension().is_some_and(|e| e == "toml"));
    tomls.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

/// The run of a file with variants, or all cells of a study.
fn runs(name: &str, variants: &[&str]) -> Vec<Config> {
    let mut document = Document::read(&folder().join(name)).unwrap();
    if !document.is_study() {
        return vec![of_variants(name, variants)];
    }
    variants.iter().for_each(|variant| document.choose(variant).unwrap());
    let study = document.study(&variables()).unwrap_or_else(|e| panic!("{name}: {e}"));
    study.cells.into_iter().map(|cell| cell.config).collect()
}

#[test]
fn the_study_is_what_it_says() {
    let document = Document::read(&folder().join("study_ml100k_cpu.toml")).unwrap();
    let study = document.study(&variables()).unwrap();
    let names: Vec<&str> = study.axes.iter().map(|a| a.name.as_str()).collect();
    assert_eq!(names, ["prompt.retriever", "prompt.retrieved"]);
    assert_eq!(study.cells.len(), 15);
    let runs: Vec<_> = study.cells.iter().filter(|c| c.same_as.is_none()).collect();
    assert_eq!(runs.len(), 13, "nothing retrieved is one cell");
    for cell in &study.cells {
        let shown = cell.config.prompt.retrieved > 0;
        let rag = if shown { Arm::Rag } else { Arm::Base };
        assert_eq!(cell.rows, [(Arm::Base, Arm::Base), (Arm::Rag, rag)]);
        assert!(!cell.config.population.enabled);
    }
}

#[test]
fn every_file_and_variant_resolves_to_itself_again() {
    let mut configs = 0;
    for name in names() {
        let document = Document::read(&folder().join(&name)).unwrap();
        let each = document.variants().map(|v| vec![v]);
        for variants in std::iter::once(Vec::new()).chain(each) {
            for config in runs(&name, &variants) {
                configs += 1;
                let toml = config.to_toml().unwrap();
                let again = Document::parse(Path::new("/elsewhere/config.toml"), &toml).unwrap();
                assert_eq!(again.resolve(&BTreeMap::new()).unwrap(), config, "{toml}");
            }
        }
    }
    assert!(configs > 50, "{configs} configs in configs/");
}

/// Methods 1.1 and 1.2: what each variant of OPPU is, for every task of its repository.
#[test]
fn oppu_configs_are_the_papers_variants() {
    let tasks: Vec<String> = names()
        .into_iter()
        .filter(|n| n.starts_with("oppu_") && !n.ends_with("_cpu.toml"))
        .collect();
    assert_eq!(tasks.len(), 7, "{tasks:?}");
    let mut folders = std::collections::BTreeSet::new();
    for name in &tasks {
        for recipe in ["code", "paper"] {
            for base in ["smollm2", "llama2-7b"] {
                for (variant, shown, profile) in [
                    ("k0", 0, ProfileSource::None),
                    ("k1", 1, ProfileSource::None),
                    ("k1-profile", 1, ProfileSource::File),
                ] {
                    let mut variants = vec![variant];
                    variants.extend((recipe == "paper").then_some("paper"));
                    variants.extend((base == "llama2-7b").then_some(base));
                    let config = of_variants(name, &variants);
                    let (task, own) = (&config.population.training, &config.individual.training);
                    let (rate, own_epochs) = if recipe == "code" { (1e-4, 2) } else { (1e-5, 3) };
                    assert_eq!((task.learning_rate, task.epochs), (rate, 3));
                    assert_eq!((own.learning_rate, own.epochs), (rate, own_epochs));
                    assert_eq!((own.lora_rank, own.alpha, own.batch_size), (8, 8.0, 16));
                    assert_eq!(own.targets, ["q", "v"]);
                    assert_eq!(config.prompt.max_length, 2048);
                    assert_eq!((config.prompt.retrieved, config.profile.source), (shown, profile));
                    assert!(config.run.arms.contains(&Arm::Permuted));
                    assert_eq!(config.run.arms.contains(&Arm::Rag), shown > 0);
                    assert_eq!(config.run.arms.contains(&Arm::Pag), profile != ProfileSource::None);
                    assert!(
                        config
                            .base
                            .path
                            .to_str()
                            .unwrap()
                            .to_lowercase()
                            .contains(if base == "smollm2" { "smollm2" } else { "llama-2-7b" })
                    );
                    assert!(folders.insert(config.run.out_dir), "a folder of its own");
                }
            }
        }
    }
}

#[test]
fn the_demo_is_what_it_says() {
    let config = resolve("oppu_ml100k_cpu.toml");
    let path = "/cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    assert_eq!(config.base.path, Path::new(path));
    assert_eq!(config.data.path.as_deref(), Some(Path::new("/cache/ml-100k")));
    let root = std::fs::canonicalize(folder().join("..")).unwrap();
    assert!(config.run.out_dir.ends_with("runs/oppu_ml100k_cpu"));
    let parent = std::fs::canonicalize(config.run.out_dir.ancestors().nth(2).unwrap()).unwrap();
    assert_eq!(parent, root);
    assert_eq!(config.run.arms, [Arm::Base, Arm::Population, Arm::Personal]);
    let data = &config.data;
    let limits =
        [data.personal_users, data.max_history, data.max_queries, data.population_examples];
    assert_eq!(limits, [48, 64, 20, 1500].map(Some));
    let (task, own) = (&config.population.training, &config.individual.training);
    let brief = |r: &Recipe| {
        let targets = r.targets.concat();
        (r.lora_rank, r.alpha, targets, r.learning_rate, r.epochs, r.batch_size)
    };
    assert_eq!(brief(task), (8, 16.0, "qkv".into(), 1e-3, 1, 8));
    assert_eq!(brief(own), (8, 16.0, "qv".into(), 2e-3, 2, 8));
    assert_eq!((own.schedule, own.warmup_ratio), (ScheduleKind::Linear, 0.1));
    assert_eq!(config.population.virtual_shards, 8);
}
