//! What no single key of a PITuning config can say.

use super::super::document::Document;
use super::super::error::Error;
use super::super::recipe::Recipe;
use super::resolve::recipe;
use super::resolved::{EventArm, EventConfig, EventSourceKind, Tune};
use serde_json::Value;

/// A key and what does not fit.
type Fault = (String, String);

/// The keys of a recipe that are an adapter's shape.
const SHAPE: [&str; 4] = ["lora_rank", "alpha", "rslora", "targets"];
/// Those that are of no use where every parameter is trained.
const ADAPTER: [&str; 5] = ["lora_rank", "alpha", "rslora", "targets", "dropout"];
/// The products of a GPT-2 block.
const PRODUCTS: [&str; 4] = ["c_attn", "attn_c_proj", "c_fc", "mlp_c_proj"];

impl Document {
    /// Holds the keys against each other, and gives unlearning the individual stage's adapters.
    pub(super) fn fitting_events(&self, config: &mut EventConfig) -> Result<(), Error> {
        let faults = [data, parts, models, arms, unlearning, stages];
        let fault = faults.into_iter().find_map(|check| check(config));
        let fault = match fault {
            None => self.adapters(config)?,
            found => found,
        };
        if let Some((key, reason)) = fault {
            return Err(Error::Conflict { place: self.place(&key), key: key.into(), reason });
        }
        Ok(())
    }

    /// Adapters are described in `[individual]` alone.
    fn adapters(&self, config: &mut EventConfig) -> Result<Option<Fault>, Error> {
        let whole = [
            ("population", &config.population.recipe, &config.population.training),
            ("distill", &config.distill.recipe, &config.distill.training),
        ];
        for (section, name, training) in whole {
            // A resolved config says what the recipe says, and that is no fault.
            let named = recipe(name, section)?;
            if let Some(key) = self.differs(section, &ADAPTER, training, &named)? {
                let reason = "has no meaning: every parameter is trained".to_owned();
                return Ok(Some((key, reason)));
            }
        }
        let own = &config.individual.training;
        if let Some(key) = self.differs("unlearn", &SHAPE, &config.unlearn.training, own)? {
            let reason = "is the same as in [individual]: both train one adapter".to_owned();
            return Ok(Some((key, reason)));
        }
        let (lora_rank, alpha, rslora) = (own.lora_rank, own.alpha, own.rslora);
        let targets = own.targets.clone();
        let unlearn = config.unlearn.training.clone();
        config.unlearn.training = Recipe { lora_rank, alpha, rslora, targets, ..unlearn };
        Ok(None)
    }

    /// The first of some keys of a section that is written and is not as `other` has it.
    fn differs(
        &self,
        section: &str,
        keys: &[&str],
        training: &Recipe,
        other: &Recipe,
    ) -> Result<Option<String>, Error> {
        let json = |recipe: &Recipe| {
            serde_json::to_value(recipe).map_err(|e| Error::Unsayable { reason: e.to_string() })
        };
        let (training, other): (Value, Value) = (json(training)?, json(other)?);
        let mut written = keys.iter().map(|key| (key, format!("{section}.{key}")));
        let differing =
            written.find(|(key, path)| self.at(path).is_some() && training[key] != other[key]);
        Ok(differing.map(|(_, path)| path))
    }
}

fn fault(key: &str, reason: &str) -> Option<Fault> {
    Some((key.to_owned(), reason.to_owned()))
}

/// The first key of `[data]` that its source needs and lacks, or has and does not know.
fn data(config: &EventConfig) -> Option<Fault> {
    let data = &config.data;
    let (source, log) = match data.source {
        EventSourceKind::Log => ("log", true),
        EventSourceKind::Generated => ("generated", false),
    };
    // Key, whether it is set, whether it must be, whether it may be.
    let rules = [
        ("data.files", !data.files.is_empty(), log, log),
        ("data.preset", data.preset.is_some(), false, log),
        ("data.format", !data.format.is_empty(), false, log),
        ("data.generator", !data.generator.is_empty(), false, !log),
    ];
    rules.into_iter().find_map(|(key, set, must, may)| match (set, must, may) {
        (false, true, _) => fault(key, &format!("must be set with source = \"{source}\"")),
        (true, _, false) => fault(key, &format!("has no meaning with source = \"{source}\"")),
        _ => None,
    })
}

/// The parts of a person's time.
fn parts(config: &EventConfig) -> Option<Fault> {
    let data = &config.data;
    if data.train + data.validation >= 1.0 {
        return fault("data.train", "and data.validation leave no events for the test");
    }
    for (key, instead) in [("split", "data.train and data.validation"), ("cold", "data.cold")] {
        if data.generator.contains_key(key) {
            return fault(&format!("data.generator.{key}"), &format!("is {instead}"));
        }
    }
    None
}

fn models(config: &EventConfig) -> Option<Fault> {
    let (model, student) = (&config.model, &config.distill);
    let uneven = |section: &str, hidden: usize, heads: usize| {
        let reason = format!("= {heads} does not divide {section}.hidden = {hidden}");
        (!hidden.is_multiple_of(heads)).then(|| (format!("{section}.heads"), reason))
    };
    let frozen = config.population.frozen_blocks;
    if frozen > model.layers {
        let reason = format!("= {frozen}, but model.layers = {}", model.layers);
        return fault("population.frozen_blocks", &reason);
    }
    let teacher = uneven("model", model.hidden, model.heads);
    let student = || uneven("distill", student.hidden, student.heads);
    teacher.or_else(|| student().filter(|_| config.distill.enabled))
}

fn arms(config: &EventConfig) -> Option<Fault> {
    let has = |arm: EventArm| config.run.arms.contains(&arm);
    let without = |arm: EventArm, reason: &str| {
        fault("run.arms", &format!("has \"{}\", but {reason}", arm.name()))
    };
    if has(EventArm::Truth) && config.data.source != EventSourceKind::Generated {
        return without(EventArm::Truth, "data.source = \"log\": nobody knows it");
    }
    if has(EventArm::Teacher) && !config.distill.enabled {
        return without(EventArm::Teacher, "distill.enabled = false: it is \"population\"");
    }
    if has(EventArm::Permuted) && !has(EventArm::Personal) {
        return without(EventArm::Permuted, "not \"personal\", whose tuned parts it takes");
    }
    None
}

fn unlearning(config: &EventConfig) -> Option<Fault> {
    let unlearn = &config.unlearn;
    if unlearn.rule == "teacher_error" && unlearn.min_count == 0 {
        return fault("unlearn.min_count", "= 0, but there is no recall of nothing");
    }
    None
}

/// What recipes say that event models do not have.
fn stages(config: &EventConfig) -> Option<Fault> {
    let stages = [
        ("population", &config.population.training),
        ("distill", &config.distill.training),
        ("unlearn", &config.unlearn.training),
        ("individual", &config.individual.training),
    ];
    for (section, training) in stages {
        if training.max_length != 0 {
            let reason = "has no meaning: a window has model.window events";
            return fault(&format!("{section}.max_length"), reason);
        }
    }
    for (section, training) in stages.into_iter().take(2) {
        if training.early_stop.enabled && config.data.validation == 0.0 {
            let reason = "= true, but data.validation = 0 leaves nothing to choose by";
            return fault(&format!("{section}.early_stop.enabled"), reason);
        }
    }
    let whole = config.individual.tune == Tune::All;
    if let Some((section, _)) =
        stages[2..].iter().find(|(_, training)| whole && training.early_stop.enabled)
    {
        let reason = "= true, but nothing is held out where individual.tune = \"all\"";
        return fault(&format!("{section}.early_stop.enabled"), reason);
    }
    let strange = |target: &&String| !PRODUCTS.contains(&target.as_str());
    match config.individual.training.targets.iter().find(strange) {
        Some(target) if !whole => {
            let reason = format!("has \"{target}\", but a GPT-2 block has {}", PRODUCTS.join(", "));
            fault("individual.targets", &reason)
        }
        _ => None,
    }
}
