//! Every file in `configs/` resolves, to what its comments say.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trainer::config::{
    AblationKind, Arm, Config, Document, Metric, PredictMode, ProfileSource, Recipe, RetrieverKind,
    ScheduleKind, Source,
};
use trainer::prompt::Template;

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
    let names = tomls.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
    // Those have sections and tests of their own.
    names.filter(|name| !name.starts_with("pituning_")).collect()
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

/// Paths as they stand in the files: the folder of the tree left off.
fn below_data(path: Option<&PathBuf>) -> String {
    let text = path.unwrap().to_str().unwrap().to_owned();
    text.split_once("/data/").unwrap().1.to_owned()
}

/// Our names of the LaMP tasks, and the folders of their files.
const LAMP: [(&str, &str); 8] = [
    ("citation", "LaMP_1"),
    ("movie_tag", "LaMP_2"),
    ("news_category", "LaMP_2N"),
    ("rating", "LaMP_3"),
    ("headline", "LaMP_4"),
    ("scholarly_title", "LaMP_5"),
    ("email_subject", "LaMP_6"),
    ("tweet_paraphrase", "LaMP_7"),
];

/// LaMP's files of a task and split.
fn lamp_files(folder: &str, split: &str, part: &str) -> [String; 2] {
    let lines = if (folder, split, part) == ("LaMP_3", "user", "train") { "l" } else { "" };
    [("questions", lines), ("outputs", "")]
        .map(|(what, lines)| format!("lamp/{split}/{folder}/{part}_{what}.json{lines}"))
}

/// Methods 4.4: the official metrics, the primary one first.
fn official(task: &str) -> (PredictMode, Vec<Metric>) {
    match task {
        "citation" | "movie_tag" | "news_category" => {
            (PredictMode::Label, vec![Metric::Accuracy, Metric::MacroF1])
        }
        "rating" => (
            PredictMode::Label,
            vec![Metric::Mae, Metric::Rmse, Metric::ExpectedMae, Metric::Accuracy],
        ),
        _ => (PredictMode::Generate, vec![Metric::Rouge1, Metric::RougeL]),
    }
}

/// Methods 4.5: LaMP's per-user LoRA, for every task of the benchmark.
#[test]
fn lamp_configs_are_its_per_user_lora() {
    for (task, folder) in LAMP {
        let name = format!("lamp_{task}.toml");
        let config = resolve(&name);
        let own = &config.individual.training;
        assert_eq!((own.lora_rank, own.alpha, own.dropout, own.rslora), (8, 32.0, 0.1, false));
        assert_eq!(own.targets.concat(), "qkv");
        assert_eq!((own.learning_rate, own.weight_decay, own.epochs), (5e-5, 1e-4, 30));
        assert_eq!((own.batch_size, own.warmup_ratio), (16, 0.05));
        assert_eq!((own.schedule, own.clip_norm), (ScheduleKind::Linear, 1.0));
        assert!(!config.population.enabled && config.individual.overrides.is_empty());
        assert_eq!((config.prompt.max_length, config.prompt.retrieved), (512, 0));
        assert_eq!(config.prompt.template, format!("lamp/{task}"));
        assert_eq!(config.data.source, Source::Lamp);
        assert_eq!(config.data.task.as_deref(), Some(task));
        assert_eq!((config.predict.mode, config.evaluate.metrics.clone()), official(task));
        assert_eq!((config.predict.temperature, config.predict.top_k), (0.0, 0));
        let data = &config.data;
        let files = [&data.personal, &data.personal_outputs].map(|p| below_data(p.as_ref()));
        assert_eq!(files, lamp_files(folder, "time", "dev"));
        assert_eq!(config.run.arms, [Arm::Base, Arm::Personal, Arm::Permuted]);

        let rag = of_variants(&name, &["rag"]);
        assert_eq!((rag.prompt.retrieved, rag.prompt.retriever), (4, RetrieverKind::Bm25Lamp));
        let newest = of_variants(&name, &["recency"]);
        assert_eq!((newest.prompt.retrieved, newest.prompt.retriever), (4, RetrieverKind::Recency));
        assert!(rag.run.arms.contains(&Arm::Rag) && newest.run.arms.contains(&Arm::Rag));

        // The fine-tuning script's values, on users who are not the ones to personalise.
        let shared = of_variants(&name, &["task-adapter"]);
        let task_adapter = &shared.population.training;
        assert!(shared.population.enabled);
        assert_eq!((task_adapter.learning_rate, task_adapter.weight_decay), (5e-5, 1e-4));
        assert_eq!((task_adapter.epochs, task_adapter.batch_size), (10, 16));
        let data = &shared.data;
        let files = [&data.personal, &data.personal_outputs].map(|p| below_data(p.as_ref()));
        assert_eq!(files, lamp_files(folder, "user", "dev"));
        let files = [&data.population, &data.population_outputs].map(|p| below_data(p.as_ref()));
        assert_eq!(files, lamp_files(folder, "user", "train"));
    }
}

/// The grid of a study file: axes with their labels, cells, and runs that are left of them.
fn grid(name: &str, variants: &[&str]) -> (Vec<(String, Vec<String>)>, usize, usize) {
    let mut document = Document::read(&folder().join(name)).unwrap();
    variants.iter().for_each(|variant| document.choose(variant).unwrap());
    let study = document.study(&variables()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let runs = study.cells.iter().filter(|cell| cell.same_as.is_none()).count();
    let axes = study.axes.into_iter().map(|axis| (axis.short, axis.labels)).collect();
    (axes, study.cells.len(), runs)
}

fn axis(name: &str, labels: &str) -> (String, Vec<String>) {
    (name.to_owned(), labels.split(' ').map(str::to_owned).collect())
}

/// Methods 3.1, 3.3 and 3.5: the grids of the user-profile study.
#[test]
fn the_studys_grids_are_what_their_comments_say() {
    for (task, _) in LAMP.into_iter().filter(|(task, _)| *task != "email_subject") {
        let name = format!("study_{task}.toml");
        let four = axis("retriever", "full_random ranbm25 random bm25-study");
        let seeds = axis("retrieval_seed", "1 2 3");
        // Nothing shown is one run; three retrievers draw, at three numbers with three seeds; BM25 runs once a number.
        let expected = vec![four, axis("retrieved", "0 1 2 4"), seeds.clone()];
        assert_eq!(grid(&name, &[]), (expected, 48, 1 + 3 * 3 * 3 + 3), "{name}");

        let order = vec![
            axis("retrieved_share", "0.1 0.2 0.3 0.4 0.5"),
            axis("order", "start end middle random"),
        ];
        assert_eq!(grid(&name, &["order"]), (order, 20, 20));
        let offset = vec![axis("offset", "0.0 0.2 0.4 0.6 0.8"), axis("retrieved", "1 4")];
        assert_eq!(grid(&name, &["offset"]), (offset, 10, 10));

        let numbers = axis("retrieved", "0 1 2 3 4 16 32 48 64 80");
        if ["citation", "tweet_paraphrase"].contains(&task) {
            assert_eq!(grid(&name, &["numbers"]), (vec![numbers], 10, 10));
            let document = Document::read(&folder().join(&name)).unwrap();
            assert!(document.variants().all(|v| v != "ablation" && v != "mixed"));
            continue;
        }
        let sides = vec![numbers, axis("ablation", "both only_output")];
        assert_eq!(grid(&name, &["numbers"]), (sides, 20, 19));
        let ablation = vec![
            axis("ablation", "both only_input only_output decouple"),
            axis("retrieved", "1 2 4 8"),
        ];
        assert_eq!(grid(&name, &["ablation"]), (ablation, 16, 16));
        let by = "full_random random bm25-study";
        let mixed = vec![axis("input_retriever", by), axis("output_retriever", by), seeds];
        assert_eq!(grid(&name, &["mixed"]), (mixed, 27, 8 * 3 + 1));
    }
}

#[test]
fn the_studys_cells_have_its_settings() {
    for (task, lamp) in LAMP.into_iter().filter(|(task, _)| *task != "email_subject") {
        let name = format!("study_{task}.toml");
        let template = Template::builtin(&format!("study/{task}")).unwrap();
        for variant in [None, Some("numbers"), Some("order"), Some("mixed"), Some("ablation")] {
            let variants: Vec<&str> = variant.into_iter().collect();
            let document = Document::read(&folder().join(&name)).unwrap();
            if variants.iter().any(|v| document.variants().all(|known| known != *v)) {
                continue;
            }
            for config in runs(&name, &variants) {
                assert_eq!(config.prompt.template, template.name);
                assert_eq!(config.data.task.as_deref(), template.task.as_deref());
                assert_eq!(config.prompt.max_length, 1024 + 128);
                assert!(!config.population.enabled && config.predict.first_line);
                assert_eq!((config.predict.mode, config.evaluate.metrics.clone()), official(task));
                let whole = config.prompt.ablation == AblationKind::Both;
                assert!(whole || template.ablation.is_some(), "{name}: no form for the ablation");
                let drawn = config.prompt.retriever == RetrieverKind::Mixed;
                assert!(!drawn || template.output_field.is_some());
                let data = &config.data;
                let files =
                    [&data.personal, &data.personal_outputs].map(|p| below_data(p.as_ref()));
                assert_eq!(files, lamp_files(lamp, "user", "dev"));
                assert_eq!(data.population, None);
            }
        }
        for config in runs(&name, &["time"]) {
            let data = &config.data;
            let files = [&data.personal, &data.personal_outputs].map(|p| below_data(p.as_ref()));
            assert_eq!(files, lamp_files(lamp, "time", "dev"));
        }
        for variant in ["train-users", "trained"] {
            for config in runs(&name, &[variant]) {
                let data = &config.data;
                let files =
                    [&data.population, &data.population_outputs].map(|p| below_data(p.as_ref()));
                assert_eq!(files, lamp_files(lamp, "user", "train"));
                let trained = &config.population;
                assert_eq!(trained.enabled, variant == "trained");
                // Methods 3.2.
                let training = &trained.training;
                assert_eq!((training.learning_rate, training.weight_decay), (5e-5, 1e-3));
                assert_eq!((training.epochs, training.batch_size), (10, 6));
                assert_eq!(
                    (training.warmup_ratio, training.schedule),
                    (0.05, ScheduleKind::Linear)
                );
                assert_eq!(config.run.arms.contains(&Arm::Population), trained.enabled);
            }
        }
    }
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
                    assert_eq!(
                        (own.targets.concat(), task.targets.concat()),
                        ("qv".into(), "qkv".into())
                    );
                    for stage in [task, own] {
                        assert_eq!((stage.lora_rank, stage.alpha, stage.batch_size), (8, 8.0, 16));
                        assert_eq!((stage.dropout, stage.weight_decay), (0.05, 1e-2));
                        assert_eq!(
                            (stage.betas, stage.eps, stage.clip_norm),
                            ([0.9, 0.999], 1e-8, 0.3)
                        );
                        assert_eq!(
                            (stage.schedule, stage.warmup_ratio),
                            (ScheduleKind::Linear, 0.1)
                        );
                        assert!(!stage.rslora && !stage.early_stop.enabled);
                    }
                    let sampling =
                        (config.predict.temperature, config.predict.top_k, config.predict.top_p);
                    assert_eq!(sampling, (0.1, 10, 0.9));
                    assert_eq!(config.prompt.retriever, RetrieverKind::Bm25Okapi);
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
