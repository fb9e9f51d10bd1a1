//! What can be done with the adapters of a run folder: export, import, verify.

use crate::cli::{ExportArgs, FolderArgs, ImportArgs};
use crate::env::Env;
use crate::exit::{Exit, Fails};
use crate::pituning;
use crate::watch::{print, say};
use anyhow::Context;
use kernels::Cpu;
use std::path::{Path, PathBuf};
use trainer::config::pituning::{EventConfig, Method};
use trainer::config::{Config, Document};
use trainer::ids::{UserId, UserKey};
use trainer::lora::{SiteList, Target};
use trainer::model::cache::MappedBase;
use trainer::store::peft::{ExportOptions, Naming};
use trainer::store::{AdapterRef, Commit, Manifest, Outcome, Provenance, Store, Writer};

pub(crate) const NO_RUN: &str = "give the folder of a run, the one its last line names";

/// The config a run folder was made with.
enum RunConfig {
    /// Of a language model's adapters.
    Language(Box<Config>),
    /// Of a PITuning run.
    Events(Box<EventConfig>),
}

impl RunConfig {
    fn read(run: &Path, env: &Env) -> anyhow::Result<Self> {
        let document = Document::read(&run.join("config.toml")).input(NO_RUN)?;
        Ok(match document.method().input(NO_RUN)? {
            Some(Method::Pituning) => {
                Self::Events(Box::new(document.resolve_events(&env.variables()).input(NO_RUN)?))
            }
            None => Self::Language(Box::new(document.resolve(&env.variables()).input(NO_RUN)?)),
        })
    }
}

/// The config of a run of a language model's adapters.
pub(crate) fn config(run: &Path, env: &Env) -> anyhow::Result<Config> {
    match RunConfig::read(run, env)? {
        RunConfig::Language(config) => Ok(*config),
        RunConfig::Events(_) => anyhow::bail!("{} is a PITuning run", run.display()),
    }
}

/// The frozen base of a run: the merged one where there was a population stage.
fn base(run: &Path, config: &Config, env: &Env) -> anyhow::Result<MappedBase> {
    let cache = config.base.cache_dir.clone().unwrap_or_else(|| env.cache.join("prepared"));
    let source =
        trainer::model::weights::open(&config.base.path).input("the run's base is gone")?;
    let base = MappedBase::load(&Cpu, source.as_ref(), &cache)?;
    let overlay = run.join("population/merged.myriad");
    Ok(if overlay.exists() { base.with_overlay(&overlay)? } else { base })
}

pub(crate) fn export(args: &ExportArgs, env: &Env) -> anyhow::Result<Exit> {
    let config = match RunConfig::read(&args.run, env)? {
        RunConfig::Language(config) => config,
        RunConfig::Events(config) => return pituning::parts::export(args, &config),
    };
    if let Some(arm) = &args.arm {
        return Err(anyhow::anyhow!("--arm {arm}: this run has one arm of personal adapters"))
            .input("leave --arm away; it is for PITuning runs");
    }
    let store = Store::open(&args.run.join("store")).input(NO_RUN)?;
    let keys: Vec<UserKey> = args.users.iter().map(|u| UserId::new(u).key()).collect();
    let base = base(&args.run, &config, env)?;
    let options = ExportOptions {
        base_name_or_path: args
            .base_name
            .clone()
            .unwrap_or_else(|| config.base.path.display().to_string()),
        num_layers: u32::try_from(base.spec().layers)?,
        naming: Naming::Key,
    };
    let users = (!keys.is_empty()).then_some(keys.as_slice());
    let exported = trainer::store::peft::export(&store, users, &args.out, &options)
        .input("users must be trained, the folder must not exist")?;
    if config.population.enabled {
        say(
            "these adapters belong to the base with the population adapter merged in; the run's population/ has it",
        );
    }
    print(&format!("{} adapters in {}, users in users.json", exported.len(), args.out.display()));
    Ok(Exit::Done)
}

pub(crate) fn import(args: &ImportArgs, env: &Env) -> anyhow::Result<Exit> {
    let RunConfig::Language(config) = RunConfig::read(&args.run, env)? else {
        return Err(anyhow::anyhow!("{} is a PITuning run", args.run.display()))
            .input("what a person has of an event model is no plain LoRA, and is not imported");
    };
    let base = base(&args.run, &config, env)?;
    let family = base.spec().family;
    let targets: Vec<Target> = Target::ALL.into_iter().filter(|t| t.family() == family).collect();
    let all = SiteList::of_base(base.spec(), &targets)?;
    let available: Vec<_> = all.entries().iter().map(|e| e.spec).collect();
    let imported = trainer::store::peft::import(&args.adapter, &available)
        .input("the adapter must be plain LoRA for this base")?;
    check_base(imported.base_hash.as_deref(), &base.hash().to_string(), args.any_base)?;
    let user = UserId::new(&args.user);
    let folder = args.run.join("store");
    let generation = Store::open(&folder).input(NO_RUN)?.next_generation(&user.key());
    let provenance = Provenance {
        base_hash: base.hash().to_string(),
        config_hash: "imported".to_owned(),
        steps: 0,
        final_loss: None,
    };
    let adapter = AdapterRef {
        spec: &imported.spec,
        sites: &imported.sites,
        params: &imported.params,
        provenance: &provenance,
    };
    let mut writer = Writer::open(&folder, 0).input("another process is writing this run")?;
    writer.commit(Commit { user: &user, generation, outcome: Outcome::Adapter(adapter) })?;
    writer.close()?;
    let targets = Target::names(&imported.spec.targets).join(", ");
    print(&format!("user {user}: imported, LoRA rank {}, {targets}", imported.spec.lora_rank));
    Ok(Exit::Done)
}

/// Compares the base an adapter says it was trained on with the one it would be used on.
fn check_base(recorded: Option<&str>, ours: &str, any_base: bool) -> anyhow::Result<()> {
    match recorded {
        Some(theirs) if theirs == ours => Ok(()),
        Some(theirs) if any_base => {
            say(&format!("the adapter was trained on the base {theirs}, this run's is {ours}"));
            Ok(())
        }
        Some(theirs) => Err(anyhow::anyhow!(
            "the adapter was trained on the base {theirs}, this run's is {ours}"
        ))
        .input("an adapter means nothing on another base; --any-base takes it all the same"),
        None => {
            say("the adapter does not say which base it was trained on; taken as of this run's");
            Ok(())
        }
    }
}

/// What a verification found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Damaged places, for people.
    pub(crate) problems: Vec<String>,
    notes: Vec<String>,
    done: usize,
    quarantined: usize,
    forgotten: usize,
    records: usize,
    bytes: u64,
}

impl Found {
    /// Adds what there is to say of a store.
    pub(crate) fn store(&mut self, folder: &Path) -> anyhow::Result<()> {
        let report = trainer::store::verify(folder).input(NO_RUN)?;
        // Ids for people; a store too damaged to open still has the keys.
        let users = Store::open(folder).map(|s| s.users().clone()).unwrap_or_default();
        let owner = |key: UserKey| {
            let id = users.get(&key).and_then(|entry| entry.user.as_ref());
            id.map_or_else(|| format!(", user key {key:?}"), |id| format!(", user {id}"))
        };
        self.problems.extend(report.problems.iter().map(|p| {
            let user = p.user.map_or_else(String::new, owner);
            format!("{} at byte {}{user}: {}", p.path.display(), p.offset, p.what)
        }));
        self.notes.extend(report.notes);
        self.done += report.num_done;
        self.quarantined += report.num_quarantined;
        self.forgotten += report.num_forgotten;
        self.records += report.num_records;
        self.bytes += report.num_bytes;
        Ok(())
    }

    fn tell(&self) -> anyhow::Result<Exit> {
        self.notes.iter().chain(&self.problems).for_each(|line| say(line));
        print(&format!(
            "{} adapters, {} users put aside, {} forgotten, {} records, {:.1} MB read, {} problems",
            self.done,
            self.quarantined,
            self.forgotten,
            self.records,
            crate::plan::gigabytes(usize::try_from(self.bytes)?) * 1e3,
            self.problems.len()
        ));
        Ok(if self.problems.is_empty() { Exit::Done } else { Exit::Verification })
    }
}

pub(crate) fn verify(args: &FolderArgs, env: &Env) -> anyhow::Result<Exit> {
    let config = RunConfig::read(&args.run, env)?;
    let manifest =
        Manifest::load(&args.run).input(NO_RUN)?.context("no manifest.json").input(NO_RUN)?;
    let config = match config {
        RunConfig::Events(config) => {
            return pituning::parts::verify(&args.run, &config, &manifest.base_hash)?.tell();
        }
        RunConfig::Language(config) => config,
    };
    let mut found = Found::default();
    found.store(&args.run.join("store"))?;
    match base(&args.run, &config, env).and_then(|b| Ok(b.verify().map(|()| b)?)) {
        Ok(base) => {
            let expected = manifest.merged_hash.as_ref().unwrap_or(&manifest.base_hash);
            if base.hash().to_string() != *expected {
                let what =
                    format!("the base's hash is {}, the manifest says {expected}", base.hash());
                found.problems.push(what);
            }
        }
        Err(error) => found.problems.push(format!("{error:#}")),
    }
    found.tell()
}

/// The stores of a run: the personal adapters', and those of the other arms of a PITuning run.
pub(crate) fn stores(run: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut stores = vec![run.join("store")];
    let arms = run.join("arms");
    if arms.exists() {
        let entries = std::fs::read_dir(&arms).with_context(|| arms.display().to_string())?;
        for entry in entries {
            stores.push(entry?.path().join("store"));
        }
    }
    stores.retain(|store| store.exists());
    stores.sort();
    Ok(stores)
}
