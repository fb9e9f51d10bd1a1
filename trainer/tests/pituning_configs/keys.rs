//! The table of keys: in step with the structs, every bound held, the defaults and recipes those that were argued.

use super::{GOOD, document, everything, good, resolve, set};
use trainer::config::pituning::{EventArm, EventSourceKind, SECTIONS, Tune, recipe_names};
use trainer::config::{Default, Kind, RECIPE, Recipe, ScheduleKind};

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

#[test]
fn every_word_of_a_choice_is_understood_and_every_bound_is_held() {
    for section in SECTIONS {
        let recipe: &[_] = if section.recipe { RECIPE } else { &[] };
        for key in section.keys.iter().chain(recipe) {
            let path = format!("{}.{}", section.name, key.name);
            let (inside, outside) = examples(key.kind);
            for value in inside {
                // Other keys may not go with this one; the value itself must never be at fault.
                if let Err(e) = set(&[&format!("{path}={value}")]) {
                    assert!(!e.contains("allowed is"), "{e}");
                    assert!(e.starts_with("--set") || e.starts_with("/dir/c.toml"), "{e}");
                }
            }
            for value in outside {
                let message = set(&[&format!("{path}={value}")]).unwrap_err();
                let start = format!("--set {path}={value}: `{path}` = ");
                assert!(message.starts_with(&start), "{message}");
                assert!(message.contains(&format!("allowed is {}", key.kind)), "{message}");
            }
        }
    }
}

/// Values of a kind, and values that are not.
fn examples(kind: Kind) -> (Vec<String>, Vec<String>) {
    let texts = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    match kind {
        Kind::Bool => (texts(&["true", "false"]), texts(&["1", "yes"])),
        Kind::Int(a, b) => (
            vec![a.to_string(), b.to_string()],
            vec![(i128::from(a) - 1).to_string(), (i128::from(b) + 1).to_string(), "1.5".into()],
        ),
        Kind::Float(a, b) => {
            let outside = [a - a.abs() - 1e-3, b * 2.0, f64::NAN, f64::INFINITY];
            let outside = outside.map(|x| format!("{x:?}").to_lowercase());
            (vec![format!("{a:?}"), format!("{b:?}")], outside.into())
        }
        Kind::FloatBelow(a, b) => (vec![format!("{a:?}")], vec![format!("{b:?}"), "-1".into()]),
        Kind::PairBelow(a, b) => {
            let outside = vec![format!("[{a:?}]"), format!("[{a:?}, {b:?}]"), format!("{a:?}")];
            (vec![format!("[{a:?}, {a:?}]")], outside)
        }
        Kind::OneOf(words) => (texts(words), texts(&["nonsense", "7"])),
        Kind::ListOf(words) => {
            let twice = format!("['{0}', '{0}']", words[0]);
            let outside = vec!["[]".into(), "['nonsense']".into(), twice, words[0].into()];
            (words.iter().map(|w| format!("['{w}']")).collect(), outside)
        }
        Kind::Text => (texts(&["x"]), texts(&["", "7"])),
        Kind::Path => (texts(&["x"]), texts(&["", "~/x", "7"])),
        Kind::Paths => (
            texts(&["['x']", "['x', '../y']"]),
            texts(&["", "x", "[]", "['']", "['~/x']", "[7]", "['x', 'x']", "['x', 'y/../x']"]),
        ),
        Kind::Table => (
            texts(&["{}", "{ a = 1, b = { c = [1.5, 'x'] } }"]),
            texts(&["", "1", "[]", "{ a = nan }", "{ a = { b = [1, inf] } }"]),
        ),
        Kind::EventRecipe => {
            (recipe_names().map(Into::into).collect(), texts(&["nonsense", "oppu-code"]))
        }
        Kind::Texts | Kind::NameOrPath | Kind::Recipe => panic!("{kind:?} is in no section"),
    }
}

/// Methods 2.2: what is proposed where the paper is silent, and the paper's sizes.
#[test]
fn defaults_are_the_argued_ones() {
    let config = good();
    let population = &config.population;
    assert_eq!(
        (population.mask_ratio, population.lambda, population.virtual_shards),
        (0.15, 1.0, 8)
    );
    let distill = &config.distill;
    assert_eq!((distill.soft_weight, distill.temperature, distill.enabled), (0.5, 2.0, true));
    let unlearn = &config.unlearn;
    assert_eq!((unlearn.tau, unlearn.min_count, unlearn.smoothing), (1.5, 3, 1.0));
    assert_eq!((unlearn.rule.as_str(), unlearn.beta, unlearn.adaptive), ("ratio", 1.0, false));
    let teacher = "teacher_distribution";
    assert_eq!(unlearn.forget, "teacher_error");
    assert_eq!(unlearn.retain, teacher);
    let model = &config.model;
    assert_eq!((model.hidden, model.layers, model.heads, model.intermediate), (768, 12, 12, 3072));
    assert_eq!((model.combine.as_str(), model.history.as_str()), ("concat", "last"));
    assert_eq!((model.product.as_str(), model.prediction.as_str()), ("elementwise", "scalar"));
    assert_eq!((distill.hidden, distill.layers, distill.heads), (384, 6, 6));
    assert_eq!((distill.intermediate, model.pretrained.is_none()), (1536, true));
    assert_eq!(config.individual.tune, Tune::AdaptersAndHead);
    assert_eq!((config.data.train, config.data.validation, config.data.cold), (0.7, 0.1, 0.0));
    assert_eq!((config.data.source, config.run.seed), (EventSourceKind::Generated, 42));
    assert_eq!(config.evaluate.top_k, 5);
}

#[test]
fn recipes_have_every_stage() {
    let names: Vec<&str> = recipe_names().collect();
    assert_eq!(names, ["pituning", "pituning-small"]);
    let of = |name: &str| {
        let stages = ["population", "distill", "unlearn", "individual"];
        let sets = stages.map(|stage| format!("{stage}.recipe={name}"));
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        let config = set(&sets).unwrap();
        [
            config.population.training,
            config.distill.training,
            config.unlearn.training,
            config.individual.training,
        ]
    };
    for name in names {
        let stages = of(name);
        for training in &stages {
            assert_eq!(training.targets, ["c_attn", "attn_c_proj", "c_fc", "mlp_c_proj"]);
            assert_eq!((training.lora_rank, training.alpha, training.max_length), (8, 16.0, 0));
            assert!(training.learning_rate > 0.0 && training.clip_norm > 0.0);
        }
        let brief = |r: &Recipe| (r.schedule, r.epochs, r.early_stop.enabled);
        let [population, _, unlearn, own] = &stages;
        assert_eq!(brief(unlearn), (ScheduleKind::Constant, 1, false));
        assert_eq!(
            (brief(population).0, brief(own).0),
            (ScheduleKind::Cosine, ScheduleKind::Linear)
        );
        assert!(unlearn.learning_rate < own.learning_rate, "unlearning loosens, tuning decides");
    }
    let [paper, _, _, _] = of("pituning");
    assert_eq!((paper.epochs, paper.early_stop.enabled), (25, true));
    assert_ne!(of("pituning")[0], of("pituning-small")[0]);
    let mixed = set(&["individual.recipe=pituning-small", "individual.epochs=9"]).unwrap();
    assert_eq!((mixed.individual.training.epochs, mixed.individual.training.batch_size), (9, 16));
}

#[test]
fn required_keys_are_asked_for_by_name() {
    for section in SECTIONS {
        for key in section.keys.iter().filter(|k| k.default == Default::Required) {
            let kept = GOOD.lines().filter(|l| !l.starts_with(&format!("{} =", key.name)));
            let text = kept.fold(String::new(), |all, l| all + l + "\n");
            let message = resolve(&document(&text)).unwrap_err();
            let expected = format!("`{}.{}` must be set: {}", section.name, key.name, key.help);
            assert!(message.contains(&expected), "{message}");
        }
    }
}
