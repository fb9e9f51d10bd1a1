//! Every file in `configs/` resolves, to what its comments say.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trainer::config::{Arm, Config, Document, Recipe, ScheduleKind};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn variables() -> BTreeMap<String, String> {
    BTreeMap::from([("MYRIAD_CACHE".to_owned(), "/cache".to_owned())])
}

fn resolve(name: &str) -> Config {
    let document = Document::read(&folder().join(name)).unwrap();
    document.resolve(&variables()).unwrap_or_else(|e| panic!("{e}"))
}

/// The run of a file, or all cells of a study.
fn runs(name: &str) -> Vec<Config> {
    let document = Document::read(&folder().join(name)).unwrap();
    if !document.is_study() {
        return vec![resolve(name)];
    }
    let study = document.study(&variables()).unwrap_or_else(|e| panic!("{e}"));
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
fn every_file_resolves_to_itself_again() {
    let mut files = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "toml") {
            files += 1;
            for config in runs(path.file_name().unwrap().to_str().unwrap()) {
                let toml = config.to_toml().unwrap();
                let again = Document::parse(Path::new("/elsewhere/config.toml"), &toml).unwrap();
                assert_eq!(again.resolve(&BTreeMap::new()).unwrap(), config, "{toml}");
            }
        }
    }
    assert!(files >= 2, "{files} files in configs/");
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
    assert_eq!(limits, [24, 64, 20, 1500].map(Some));
    let (task, own) = (&config.population.training, &config.individual.training);
    let brief = |r: &Recipe| {
        let targets = r.targets.concat();
        (r.lora_rank, r.alpha, targets, r.learning_rate, r.epochs, r.batch_size)
    };
    assert_eq!(brief(task), (8, 16.0, "qkv".into(), 1e-3, 1, 8));
    assert_eq!(brief(own), (8, 16.0, "qv".into(), 2e-3, 4, 8));
    assert_eq!((own.schedule, own.warmup_ratio), (ScheduleKind::Linear, 0.1));
    assert_eq!(config.population.virtual_shards, 8);
}
