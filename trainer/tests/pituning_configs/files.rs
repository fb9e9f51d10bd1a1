//! Every `configs/pituning_*.toml` resolves, with every variant, to what its comments say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use trainer::config::Document;
use trainer::config::pituning::{EventArm, EventConfig, EventSourceKind, Method, Tune};
use trainer::model::event::{Combine, EventSpec, History, Places, Prediction, Product};

const FILES: [&str; 5] = [
    "pituning_generated_cpu.toml",
    "pituning_genre_cpu.toml",
    "pituning_lsapp.toml",
    "pituning_studentlife_cpu.toml",
    "pituning_tsinghua.toml",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn variables() -> BTreeMap<String, String> {
    BTreeMap::from([("MYRIAD_CACHE".to_owned(), "/cache".to_owned())])
}

fn read(name: &str) -> Document {
    Document::read(&folder().join(name)).unwrap_or_else(|e| panic!("{e}"))
}

fn of_variants(name: &str, variants: &[&str]) -> EventConfig {
    let mut document = read(name);
    for variant in variants {
        document.choose(variant).unwrap_or_else(|e| panic!("{e}"));
    }
    document.resolve_events(&variables()).unwrap_or_else(|e| panic!("{name} {variants:?}: {e}"))
}

#[test]
fn the_list_of_files_is_whole() {
    let files = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name());
    let files = files.map(|name| name.into_string().unwrap());
    let mut ours: Vec<String> = files.filter(|name| name.starts_with("pituning_")).collect();
    ours.sort();
    assert_eq!(ours, FILES);
}

#[test]
fn every_file_and_variant_resolves_to_itself_again() {
    let mut folders = BTreeSet::new();
    for name in FILES {
        let document = read(name);
        assert_eq!(document.method().unwrap(), Some(Method::Pituning));
        let each = document.variants().map(|v| vec![v]);
        for variants in std::iter::once(Vec::new()).chain(each) {
            let config = of_variants(name, &variants);
            let toml = config.to_toml().unwrap();
            let again = Document::parse(Path::new("/elsewhere/config.toml"), &toml).unwrap();
            assert_eq!(again.resolve_events(&BTreeMap::new()).unwrap(), config, "{toml}");
            assert!(folders.insert(config.run.out_dir.clone()), "{name} {variants:?}: no folder");
            spec(&config).validate().unwrap_or_else(|e| panic!("{name} {variants:?}: {e}"));
        }
    }
    assert!(folders.len() > 80, "{} configs", folders.len());
}

/// Every variant does something to at least one key besides the run's name and folder, unless it is a size that the file
/// has already.
#[test]
fn no_variant_is_idle() {
    for name in FILES {
        let plain = of_variants(name, &[]);
        for variant in read(name).variants() {
            let changes = plain.differences(&of_variants(name, &[variant])).unwrap();
            let keys: Vec<String> = changes.into_iter().map(|d| d.key).collect();
            let size = ["small", "gpt2-small", "paper-student"].contains(&variant);
            let changed = keys.iter().any(|k| !["run.name", "run.out_dir"].contains(&k.as_str()));
            assert!(changed || size, "{name} {variant}: {keys:?}");
        }
    }
}

/// What each shared variant changes, and nothing else.
#[test]
fn ablations_change_one_thing() {
    let expected: [(&str, &[&str]); 16] = [
        ("adapters-only", &["individual.tune: \"adapters_and_head\" -> \"adapters\""]),
        (
            "all-parameters",
            &[
                "individual.learning_rate: 0.005 -> 0.0005",
                "individual.tune: \"adapters_and_head\" -> \"all\"",
                "unlearn.learning_rate: 0.002 -> 0.0002",
            ],
        ),
        ("forget-label", &["unlearn.forget: \"teacher_error\" -> \"label\""]),
        ("forget-distribution", &["unlearn.forget: \"teacher_error\" -> \"teacher_distribution\""]),
        ("forget-answer", &["unlearn.forget: \"teacher_error\" -> \"teacher_answer\""]),
        ("retain-label", &["unlearn.retain: \"teacher_distribution\" -> \"label\""]),
        ("difference", &["unlearn.rule: \"ratio\" -> \"difference\""]),
        ("teacher-error", &["unlearn.rule: \"ratio\" -> \"teacher_error\""]),
        ("adaptive", &["unlearn.adaptive: false -> true"]),
        (
            "no-reconstruction",
            &["population.lambda: 1.0 -> 0.0", "population.mask_ratio: 0.15 -> 0.0"],
        ),
        ("partial", &["population.frozen_blocks: 0 -> 2"]),
        ("outer", &["model.product: \"elementwise\" -> \"outer\""]),
        ("mean-history", &["model.history: \"last\" -> \"mean\""]),
        ("sum", &["model.combine: \"concat\" -> \"sum\""]),
        ("linear", &["model.prediction: \"scalar\" -> \"linear\""]),
        ("common", &["data.generator.own_share: (unset) -> 0.0"]),
    ];
    let name = "pituning_generated_cpu.toml";
    let plain = of_variants(name, &[]);
    for (variant, lines) in expected {
        let changed = of_variants(name, &[variant]);
        assert!(changed.run.name.ends_with(variant) && changed.run.name != plain.run.name);
        let differences = plain.differences(&changed).unwrap();
        let got: Vec<String> = differences
            .iter()
            .filter(|d| !["run.name", "run.out_dir"].contains(&d.key.as_str()))
            .map(ToString::to_string)
            .collect();
        assert_eq!(got, lines, "{variant}");
    }
}

#[test]
fn without_distilling_the_population_model_is_tuned_and_has_one_row() {
    for name in FILES {
        let (plain, alone) = (of_variants(name, &[]), of_variants(name, &["no-distilling"]));
        assert!(plain.distill.enabled && !alone.distill.enabled);
        let mut arms = plain.run.arms;
        arms.retain(|arm| *arm != EventArm::Teacher);
        assert_eq!(alone.run.arms, arms, "{name}");
        let truth = alone.run.arms.contains(&EventArm::Truth);
        assert_eq!(truth, alone.data.source == EventSourceKind::Generated);
        assert_eq!(truth, name == "pituning_generated_cpu.toml");
    }
}

#[test]
fn logs_are_where_scripts_and_comments_put_them() {
    let root = std::fs::canonicalize(folder().join("..")).unwrap();
    for (name, file, preset) in [
        ("studentlife_cpu", "/cache/studentlife/sl_activity.csv", "studentlife-activity"),
        ("genre_cpu", "/cache/ml-100k", "ml100k-genre"),
        ("lsapp", "data/lsapp/lsapp.tsv", "lsapp"),
        ("tsinghua", "data/tsinghua/App_usage_trace.txt", "tsinghua-app-usage"),
    ] {
        let data = of_variants(&format!("pituning_{name}.toml"), &[]).data;
        assert_eq!(data.preset.as_deref(), Some(preset));
        let [path] = &data.files[..] else { panic!("{:?}", data.files) };
        assert!(path.is_absolute() && path.ends_with(file.trim_start_matches('/')), "{path:?}");
        assert_eq!(path.starts_with("/cache"), file.starts_with('/'), "{path:?}");
        let ours = path.starts_with(std::path::absolute(folder().join("..")).unwrap());
        assert!(path.starts_with("/cache") || ours || path.starts_with(&root), "{path:?}");
    }
    let generated = of_variants("pituning_generated_cpu.toml", &[]);
    assert_eq!(generated.data.source, EventSourceKind::Generated);
    let options = |config: &EventConfig, key: &str| config.data.generator.get(key).cloned();
    assert_eq!(options(&generated, "users"), Some(300.into()));
    let thousand = of_variants("pituning_generated_cpu.toml", &["thousand"]);
    assert_eq!(options(&thousand, "users"), Some(1000.into()));
    assert_eq!(options(&thousand, "intents"), Some(48.into()), "the rest stays");
}

/// A model of the shape, for 18 intents as in the paper's figure: hours, weekdays, events, 20 locations.
fn spec(config: &EventConfig) -> EventSpec {
    let word = |text: &str, of: [&str; 2]| of.iter().position(|w| *w == text).unwrap();
    let model = &config.model;
    EventSpec {
        columns: vec![24, 7, 19, 20],
        intents: 18,
        window: model.window,
        hidden: model.hidden,
        layers: model.layers,
        heads: model.heads,
        intermediate: model.intermediate,
        combine: [Combine::Concat, Combine::Sum][word(&model.combine, ["concat", "sum"])],
        history: [History::Last, History::Mean][word(&model.history, ["last", "mean"])],
        product: [Product::Elementwise, Product::Outer]
            [word(&model.product, ["elementwise", "outer"])],
        head_hidden: model.head_hidden,
        prediction: [Prediction::Scalar, Prediction::Linear]
            [word(&model.prediction, ["scalar", "linear"])],
        norm_eps: 1e-5,
    }
}

/// The student beside the teacher.
fn student(config: &EventConfig) -> EventSpec {
    let small = &config.distill;
    EventSpec {
        hidden: small.hidden,
        layers: small.layers,
        heads: small.heads,
        intermediate: small.intermediate,
        head_hidden: small.head_hidden,
        ..spec(config)
    }
}

/// Methods 2.1 and 2.4: GPT-2 small's blocks teach; the paper's student has 10.86 million parameters.
#[test]
fn sizes_are_the_papers_or_small() {
    let sizes = |spec: &EventSpec| (spec.hidden, spec.layers, spec.heads, spec.intermediate);
    for name in ["pituning_lsapp.toml", "pituning_tsinghua.toml"] {
        let paper = of_variants(name, &[]);
        assert_eq!(sizes(&spec(&paper)), (768, 12, 12, 3072));
        assert_eq!(sizes(&student(&paper)), (384, 6, 6, 1536));
        assert_eq!(paper.individual.recipe, "pituning");
        assert_eq!(paper.individual.tune, Tune::AdaptersAndHead);
        // By hand: 12 blocks of 7,087,872 and 6 of 1,774,464; tables, norms and heads are the rest.
        let counts = [spec(&paper), student(&paper)].map(|s| Places::new(&s).len());
        assert_eq!(counts, [85_270_310, 10_754_822], "as parts/pituning.toml says");
        assert!(counts[1].abs_diff(10_860_000) < 10_860_000 / 100, "the paper's student");
        let partial = of_variants(name, &["partial"]);
        let trained = Places::partly(&spec(&partial), partial.population.frozen_blocks).trained();
        // Five blocks, final norm, 19 events, an intent table and the network on it: methods 2.4 has 39 of 138 million.
        let head = 18 * 768 + (3 * 768 + 3) * 64 + 1 + 18;
        assert_eq!(trained, 5 * 7_087_872 + 2 * 768 + 769 * 19 + head);

        let small = of_variants(name, &["small"]);
        let cpu = of_variants("pituning_genre_cpu.toml", &[]);
        assert_eq!((spec(&small), student(&small)), (spec(&cpu), student(&cpu)));
        let recipes = |c: &EventConfig| {
            [&c.population.recipe, &c.distill.recipe, &c.unlearn.recipe, &c.individual.recipe]
                .map(Clone::clone)
        };
        assert_eq!(recipes(&small), recipes(&cpu));
        let back = of_variants("pituning_genre_cpu.toml", &["gpt2-small", "paper-student"]);
        assert_eq!(
            (sizes(&spec(&back)), sizes(&student(&back))),
            (sizes(&spec(&paper)), sizes(&student(&paper)))
        );
        assert_eq!(recipes(&back), recipes(&paper));
    }
    let days = of_variants("pituning_studentlife_cpu.toml", &[]);
    assert_eq!(days.model.window, 24);
}
