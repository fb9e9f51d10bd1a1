//! What can be done with people's own parts in the folder of a PITuning run: export, verify.
//!
//! Reads the run folder alone: neither logs nor a base of somebody else's are needed.

use super::{models, session, tune};
use crate::adapters::Found;
use crate::cli::ExportArgs;
use crate::exit::{Exit, Fails};
use crate::watch::print;
use anyhow::Context;
use serde_json::json;
use std::path::{Path, PathBuf};
use trainer::config::pituning::{EventArm, EventConfig, Tune};
use trainer::ids::{UserId, UserKey};
use trainer::lora::WholeTensor;
use trainer::store::peft::{ExportOptions, Exported, Naming};
use trainer::store::{ModelFile, Status, Store, write_atomic};

/// What says in an export how its files are to be read.
const README: &str = "README.json";

/// Below a name that ends so lies what is added to the tensor whose name is the beginning.
const CHANGE: &str = ".change";

/// The stores of a run, once each, with what to call them.
fn stores(run: &Path, config: &EventConfig) -> Vec<(EventArm, PathBuf)> {
    tune::arms(config).map(|arm| (arm, tune::folder(run, arm))).collect()
}

/// The file of the model that people's parts belong to.
fn student_file(config: &EventConfig) -> &'static str {
    if config.distill.enabled { models::STUDENT } else { models::POPULATION }
}

/// Writes people's parts as PEFT folders, with a description of what PEFT does not know.
pub(crate) fn export(args: &ExportArgs, config: &EventConfig) -> anyhow::Result<Exit> {
    let hint = "launcher individual --config FILE makes people's own parts";
    let arm = chosen(args.arm.as_deref(), config)?;
    let store = Store::open(&tune::folder(&args.run, arm)).input(hint)?;
    let file = args.run.join(student_file(config));
    let student = ModelFile::load(&file).input(hint)?;
    let base = args.base_name.clone().unwrap_or_else(|| file.display().to_string());
    let options = ExportOptions {
        base_name_or_path: base.clone(),
        num_layers: u32::try_from(student.spec.layers)?,
        naming: Naming::Key,
    };
    let keys: Vec<UserKey> = args.users.iter().map(|u| UserId::new(u).key()).collect();
    let users = (!keys.is_empty()).then_some(keys.as_slice());
    let exported = trainer::store::peft::export(&store, users, &args.out, &options)
        .input("people must be tuned, the folder must not exist")?;
    let text = json!({
        "format_version": 1,
        "run": config.run.name,
        "arm": arm.name(),
        "base": {
            "name": base,
            "file": student_file(config),
            "hash": student.hash(),
            "what": "the run's own event model: GPT-2 blocks over rows of events, no words, no tokenizer",
            "model": student.spec,
        },
        "adapters": adapters(config),
        "whole_tensors": whole_tensors(&store, &exported)?,
    });
    write_atomic(&args.out.join(README), &serde_json::to_vec_pretty(&text)?)?;
    print(&format!(
        "{} people's parts in {}, people in users.json, what they belong to in {README}",
        exported.len(),
        args.out.display()
    ));
    Ok(Exit::Done)
}

/// The arm whose parts are meant: the one named, or PITuning's own, or the first that there is.
fn chosen(name: Option<&str>, config: &EventConfig) -> anyhow::Result<EventArm> {
    let tuned: Vec<EventArm> = tune::arms(config).collect();
    let found = match name {
        Some(name) => tuned.iter().find(|arm| arm.name() == name),
        None => tuned.iter().find(|arm| **arm == EventArm::Personal).or(tuned.first()),
    };
    let names: Vec<&str> = tuned.iter().map(|arm| arm.name()).collect();
    found
        .copied()
        .with_context(|| {
            let asked = name.map_or_else(String::new, |name| format!(" {name:?}"));
            format!("no tuned arm{asked} in this run; there are: {}", names.join(", "))
        })
        .input("--arm names one of run.arms for which people are tuned")
}

fn adapters(config: &EventConfig) -> &'static str {
    match config.individual.tune {
        Tune::All => "none: everybody has the whole model, under the names of the base's tensors",
        Tune::Adapters | Tune::AdaptersAndHead => {
            "adapter_config.json and lora_A, lora_B, as PEFT has them, on the products of the GPT-2 blocks"
        }
    }
}

/// The tensors that a person has beside the adapters, and what each stands for.
fn whole_tensors(store: &Store, exported: &[Exported]) -> anyhow::Result<Vec<serde_json::Value>> {
    let Some(one) = exported.first() else { return Ok(Vec::new()) };
    let about = |tensor: &WholeTensor| match tensor.name.strip_suffix(CHANGE) {
        Some(of) => json!({"key": tensor.key(), "dims": tensor.dims, "added_to": of}),
        None => json!({"key": tensor.key(), "dims": tensor.dims, "instead_of": tensor.name}),
    };
    Ok(store.get(&one.entry.key)?.sites.whole().iter().map(about).collect())
}

/// Reads every model and every store of a run and checks them against their checksums and against each other.
pub(crate) fn verify(run: &Path, config: &EventConfig, manifest: &str) -> anyhow::Result<Found> {
    let mut found = Found::default();
    let models = check_models(run, config, &mut found.problems);
    if let Some(student) = &models.student
        && session::forms_hash(
            models.teacher.as_ref().map_or(&student.spec, |t| &t.spec),
            &student.spec,
        )? != manifest
    {
        found.problems.push("the models are not of the form that the manifest says".to_owned());
    }
    let hash = models.student.as_ref().map(ModelFile::hash);
    for (arm, store) in stores(run, config) {
        if store.exists() {
            found.store(&store)?;
            check_owners(&store, hash.as_deref(), &mut found.problems);
        } else if answered(run, arm) {
            found.problems.push(format!(
                "{}: missing, but {} is answered",
                store.display(),
                arm.name()
            ));
        }
    }
    Ok(found)
}

/// Whether an arm has its predictions.
fn answered(run: &Path, arm: EventArm) -> bool {
    run.join("predictions").join(format!("{}.jsonl", arm.name())).exists()
}

struct Models {
    teacher: Option<ModelFile>,
    /// The population model where there is no other.
    student: Option<ModelFile>,
}

fn check_models(run: &Path, config: &EventConfig, problems: &mut Vec<String>) -> Models {
    let later = |from: &str| -> bool {
        let begun = stores(run, config).iter().any(|(_, store)| store.exists());
        begun || from == models::POPULATION && run.join(models::STUDENT).exists()
    };
    let mut load = |name: &str| -> Option<ModelFile> {
        let path = run.join(name);
        if !path.exists() {
            if later(name) {
                problems
                    .push(format!("{}: missing, and what is made of it is there", path.display()));
            }
            return None;
        }
        ModelFile::load(&path).map_err(|error| problems.push(error.to_string())).ok()
    };
    let teacher = load(models::POPULATION);
    if !config.distill.enabled {
        return Models { teacher: None, student: teacher };
    }
    let student = load(models::STUDENT);
    Models { student: student.filter(|_| teacher.is_some()), teacher }
}

/// Names the people whose part belongs to another student; a store too damaged to read has been named before.
fn check_owners(folder: &Path, student: Option<&str>, problems: &mut Vec<String>) {
    let (Some(student), Ok(store)) = (student, Store::open(folder)) else { return };
    for entry in store.users().values().filter(|e| e.status == Status::Done) {
        let Ok(adapter) = store.get(&entry.key) else { continue };
        if adapter.provenance.base_hash != student {
            let user = entry.user.as_ref().map_or_else(|| entry.key.hex(), ToString::to_string);
            problems.push(format!("{}: user {user}: of another student", folder.display()));
        }
    }
}
