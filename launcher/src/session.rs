//! Everything a run stands on: config, folder, base, tokenizer, data, task. The same on every rank.

use crate::cli::RunArgs;
use crate::device::Device;
use crate::env::Env;
use crate::exit::Fails;
use crate::ground::{Ground, Purpose};
use crate::labels::Labels;
use crate::plan::room::Room;
use crate::shown::{Everybody, Shown};
use anyhow::Context;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use trainer::comm::Communicator;
use trainer::config::{
    Arm, Config, DeviceKind, Document, PredictMode, ProfileSource, Recipe, Text, read_layers,
};
use trainer::data::{Dataset, Index, Item, OnBad, Source, UserRecord};
use trainer::ids::{UserId, UserKey};
use trainer::lora::{AdapterSpec, SiteLists, Target};
use trainer::model::cache::MappedBase;
use trainer::model::spec::BaseSpec;
use trainer::model::tokenizer::Tokenizer;
use trainer::prompt::{Builder, Example, PromptError, Query, Task, Template};
use trainer::retrieval::{Pool, Retrieval};
use trainer::stage::individual::PackRules;
use trainer::store::Manifest;

/// Rows of a chunk of a user's micro-batch, unless an example may be longer: part of the arithmetic, so
/// never derived from memory or machine.
const CHUNK_ROWS: usize = 2048;

const DATA_HINT: &str = "docs/guides/data.md says what every reader expects";

/// A run that may begin.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) config: Config,
    pub(crate) folder: PathBuf,
    purpose: Purpose,
    ground: Ground,
    /// How much of its GPU the rank may take; none without one.
    pub(crate) room: Option<Room>,
    pub(crate) base: MappedBase,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) data: Dataset,
    pub(crate) task: Task,
    /// What queries are answered with, unless answers are written.
    pub(crate) labels: Option<Labels>,
    pub(crate) rules: PackRules,
    retrieval: Retrieval,
    /// The number of every user a pool may draw from; empty if none is needed.
    numbers: BTreeMap<UserKey, usize>,
    /// The texts the base wrote about users, once it has.
    pub(crate) profiles: OnceLock<BTreeMap<UserKey, String>>,
    /// Sites of the personal adapters, for every list of targets that some user has.
    pub(crate) lists: SiteLists,
    /// The adapter of each of the config's recipes: the common one, then the overrides'.
    adapters: Vec<AdapterSpec>,
}

/// What decides device, with or without graphs, and base.
type GroundOf = (trainer::config::Base, (DeviceKind, bool), Purpose);

/// What a session may take over from the one before it instead of reading it again.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    base: Option<(GroundOf, Ground, MappedBase, Tokenizer)>,
    data: Option<(Source, bool, Dataset)>,
}

/// The config that a document means.
pub(crate) fn config(document: Document, args: &RunArgs, env: &Env) -> anyhow::Result<Config> {
    if document.is_study() {
        return Err(anyhow::anyhow!("{} is a study of several runs", args.config.display()))
            .input("launcher study --config FILE runs its cells");
    }
    document
        .resolve(&env.variables())
        .input("launcher run --config FILE --print-config shows every key")
}

/// The config as written, with the command line's variants and settings: read by rank 0 and the same on all ranks.
pub(crate) fn document(args: &RunArgs, comm: &dyn Communicator) -> anyhow::Result<Document> {
    let mut text = Vec::new();
    if comm.rank() == 0 {
        let hint = "give a good file with --config; the repository's are in configs/";
        text = serde_json::to_vec(&read_layers(&args.config).input(hint)?)?;
    }
    comm.broadcast_bytes(0, &mut text)?;
    let layers: Vec<Text> = serde_json::from_slice(&text)?;
    let mut document = Document::of_layers(&layers).input("the line says what TOML expected")?;
    for name in &args.variants {
        document.choose(name).input("--variant takes a name of a [variant.NAME] in the config")?;
    }
    for set in &args.sets {
        document.set(set).input("write --set section.key=value")?;
    }
    Ok(document)
}

impl Session {
    /// Opens base, tokenizer and data, and checks them against each other.
    pub(crate) fn open(
        config: Config,
        purpose: Purpose,
        env: &Env,
        comm: &dyn Communicator,
    ) -> anyhow::Result<Self> {
        Self::open_with((config, purpose), env, comm, Loaded::default())
    }

    /// [`Self::open`] that keeps of `loaded` what this config names too.
    pub(crate) fn open_with(
        (config, purpose): (Config, Purpose),
        env: &Env,
        comm: &dyn Communicator,
        loaded: Loaded,
    ) -> anyhow::Result<Self> {
        let place = (config.engine.device, config.engine.graphs);
        let of = (config.base.clone(), place, purpose);
        let (ground, base, tokenizer) = match loaded.base.filter(|(before, ..)| *before == of) {
            Some((_, ground, base, tokenizer)) => (ground, base, tokenizer),
            None => Ground::open(&config, purpose, env, comm)?,
        };
        let room = ground.room(&config.engine, purpose, (env, comm))?;
        let (source, strict) = (crate::source::of(&config)?, config.data.strict);
        let data = match loaded.data.filter(|(s, on, _)| *s == source && *on == strict) {
            Some((.., data)) => data,
            None => {
                let on_bad = if strict { OnBad::Stop } else { OnBad::Quarantine };
                trainer::data::load(&source, on_bad).input(DATA_HINT)?
            }
        };
        check_users(&config, data.index())?;
        let task =
            Task::new(template(&config)?).input("docs/guides/data.md has the template's fields")?;
        let labels = match config.predict.mode {
            PredictMode::Label => Some(Labels::new(&task, &tokenizer)?),
            PredictMode::Generate => None,
        };
        let (adapters, lists) = adapters(&config, base.spec())?;
        let (asked, there) = (config.prompt.max_length, base.spec().max_positions);
        if asked > there {
            return Err(anyhow::anyhow!(
                "prompt.max_length is {asked}, the base has {there} positions"
            ))
            .input("lower prompt.max_length");
        }
        let chunk_rows = CHUNK_ROWS.max(asked);
        let rules = PackRules { chunk_rows, share_prefixes: config.engine.shared_prefix };
        let retrieval = crate::shown::retrieval(&config)?;
        let numbers =
            if retrieval.needs_pool() { Everybody::numbers(&data) } else { BTreeMap::new() };
        comm.barrier()?;
        let folder = config.run.out_dir.clone();
        let session = Self {
            folder,
            purpose,
            ground,
            room,
            base,
            tokenizer,
            data,
            task,
            labels,
            rules,
            retrieval,
            numbers,
            profiles: OnceLock::new(),
            lists,
            adapters,
            config,
        };
        if session.config.data.strict {
            session.refuse_unusable().input("data.strict = false puts such users aside")?;
        }
        Ok(session)
    }

    /// What the next session may take over.
    pub(crate) fn into_loaded(self) -> Loaded {
        let source = crate::source::of(&self.config).ok();
        let place = (self.config.engine.device, self.config.engine.graphs);
        let of = (self.config.base, place, self.purpose);
        Loaded {
            data: source.map(|source| (source, self.config.data.strict, self.data)),
            base: Some((of, self.ground, self.base, self.tokenizer)),
        }
    }

    /// What computes.
    ///
    /// # Errors
    /// In a plan for a GPU.
    pub(crate) fn device(&self) -> anyhow::Result<&Device> {
        self.ground.device()
    }

    /// The first user who cannot be trained or asked as written is an error.
    fn refuse_unusable(&self) -> anyhow::Result<()> {
        for record in self.data.users() {
            let record = record?;
            let reason = match self.examples(&record) {
                Ok((_, left_out)) => {
                    let unusable = self.queries(&record, Shown::ALL).1;
                    left_out.into_iter().chain(unusable).next()
                }
                Err(reason) => Some(reason),
            };
            if let Some(reason) = reason {
                anyhow::bail!("user {}: {reason}", record.id);
            }
        }
        Ok(())
    }

    pub(crate) fn index(&self) -> &Index {
        self.data.index()
    }

    /// Does some work with the builder of prompts that show what `shown` says, in `most` tokens where that is less than
    /// the run's limit and not 0.
    pub(crate) fn prompts<T>(
        &self,
        shown: Shown,
        most: u32,
        work: impl FnOnce(&Builder<'_>) -> T,
    ) -> T {
        let max_len = self.config.prompt.max_length;
        let retrieval = if shown.items { self.retrieval } else { Retrieval::NONE };
        let ablation = crate::shown::ablation(&self.config);
        let everybody = Everybody { data: &self.data, numbers: &self.numbers };
        let document = |item: &Item| self.task.shown_document(item, ablation);
        let pool = retrieval.needs_pool().then(|| Pool::new(&everybody, &document));
        work(&Builder {
            task: &self.task,
            tokenizer: &self.tokenizer,
            retrieval,
            pool: pool.as_ref(),
            ablation,
            seed: self.config.run.seed,
            max_len: if most == 0 { max_len } else { max_len.min(most as usize) },
            cut_questions: self.config.prompt.cut_questions,
        })
    }

    /// The text about a user, where the config wants one and there is one.
    pub(crate) fn profile<'r>(&'r self, record: &'r UserRecord) -> Option<&'r str> {
        match self.config.profile.source {
            ProfileSource::None => None,
            ProfileSource::File => record.profile.as_deref(),
            ProfileSource::Generate => {
                self.profiles.get()?.get(&record.id.key()).map(String::as_str)
            }
        }
    }

    /// A population user's training examples, each whole or with the reason why not.
    pub(crate) fn population_examples(
        &self,
        record: &UserRecord,
    ) -> Vec<Result<Example, PromptError>> {
        let most = self.config.population.training.max_length;
        self.prompts(Shown::ALL, most, |b| b.query_examples(record, self.profile(record)))
    }

    /// The adapter of one user.
    pub(crate) fn adapter_of(&self, user: &UserId) -> AdapterSpec {
        let overrides = &self.config.individual.overrides;
        let own = overrides.iter().position(|o| o.users.binary_search(user).is_ok());
        self.adapters[own.map_or(0, |i| i + 1)].clone()
    }

    /// Parameters of the largest adapter of any user.
    pub(crate) fn adapter_params(&self) -> usize {
        let params = |lora: &AdapterSpec| {
            let (_, sites) = self.lists.find(&lora.targets).ok()?;
            Some(sites.params(lora.lora_rank as usize))
        };
        self.adapters.iter().filter_map(params).max().unwrap_or(0)
    }

    /// A user's training examples, and why items were left out; the reason when none is usable or one is too long.
    pub(crate) fn examples(
        &self,
        record: &UserRecord,
    ) -> Result<(Vec<Example>, Vec<String>), String> {
        let most = self.config.individual.training_of(&record.id).max_length;
        let examples =
            self.prompts(Shown::ALL, most, |b| b.history_examples(record, self.profile(record)));
        let (mut good, mut left_out) = (Vec::new(), Vec::new());
        for example in examples {
            match example {
                Ok(example) => good.push(example),
                Err(e) if e.is_of_item() => left_out.push(e.to_string()),
                Err(e) => return Err(e.to_string()),
            }
        }
        match (good.is_empty(), left_out.first()) {
            (false, _) => Ok((good, left_out)),
            (true, None) => Err("its history is empty".to_owned()),
            (true, Some(first)) => Err(format!("no item is usable; the first: {first}")),
        }
    }

    /// A user's usable queries; unusable ones are left out and said.
    pub(crate) fn queries(&self, record: &UserRecord, shown: Shown) -> (Vec<Query>, Vec<String>) {
        let reserve = self.labels.as_ref().map_or_else(|| self.max_new_tokens(), Labels::reserve);
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        let profile = self.profile(record).filter(|_| shown.profile);
        for query in self.prompts(shown, 0, |b| b.queries(record, profile, reserve)) {
            match query {
                Ok(query) => good.push(query),
                Err(e) => bad.push(e.to_string()),
            }
        }
        (good, bad)
    }

    /// Tokens of a written answer at most.
    pub(crate) fn max_new_tokens(&self) -> usize {
        let own = self.task.template().max_new_tokens as usize;
        self.config.predict.max_new_tokens.unwrap_or(own)
    }

    /// [`result_hash`] of this run.
    pub(crate) fn result_hash(&self) -> anyhow::Result<String> {
        result_hash(&self.config, self.task.template())
    }

    /// What the run is made of, for resume and for the reader of the folder.
    pub(crate) fn manifest(&self, env: &Env, comm: &dyn Communicator) -> anyhow::Result<Manifest> {
        let environment = environment(env, comm);
        let config: toml::Table = self.config.to_toml()?.parse()?;
        let mut binding = json!(config);
        remove_placement(&mut binding);
        binding["template"] = json!(self.task.template());
        Ok(Manifest {
            format_version: trainer::store::manifest::FORMAT_VERSION,
            run_id: self.config.run.name.clone(),
            config_hash: self.result_hash()?,
            config: binding,
            base_hash: self.base.hash().to_string(),
            merged_hash: None,
            data_fingerprint: self.index().fingerprint.to_string(),
            tokenizer_hash: self.tokenizer.hash().iter().map(|b| format!("{b:02x}")).collect(),
            environment,
        })
    }
}

/// Hash of what can change results: the config's, and the template's words, which may lie in a file of
/// their own.
pub(crate) fn result_hash(config: &Config, template: &Template) -> anyhow::Result<String> {
    let template = serde_json::to_string(template)?;
    let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 results");
    hasher.update(&config.result_hash()?.0).update(template.as_bytes());
    Ok(hasher.finalize().to_hex().to_string())
}

/// The adapter of each recipe for personal adapters, and the sites they have.
fn adapters(config: &Config, base: &BaseSpec) -> anyhow::Result<(Vec<AdapterSpec>, SiteLists)> {
    let individual = &config.individual;
    let recipes = individual.overrides.iter().map(|o| &o.training);
    let adapter = |recipe: &Recipe| -> anyhow::Result<AdapterSpec> {
        let targets = Target::parse_all(&recipe.targets)
            .input("targets are q, k, v, o, gate, up, down, or GPT-2's c_attn, c_proj, c_fc")?;
        Ok(trainer::stage::recipe::adapter(recipe, &targets))
    };
    let adapters: Vec<AdapterSpec> = std::iter::once(&individual.training)
        .chain(recipes)
        .map(adapter)
        .collect::<anyhow::Result<_>>()?;
    let lists = SiteLists::of_targets(base, adapters.iter().map(|a| a.targets.as_slice()))
        .input("choose targets the base has, in [individual] and in every override")?;
    Ok((adapters, lists))
}

/// Where data lies; its bytes are hashed apart.
const DATA_FILES: &[&str] = &[
    "path",
    "personal",
    "personal_outputs",
    "personal_profiles",
    "population",
    "population_outputs",
    "population_profiles",
];

/// Takes out what may change between two starts of one run: where things lie and how work is laid out.
fn remove_placement(config: &mut serde_json::Value) {
    for (section, keys) in [
        ("run", &["name", "out_dir"][..]),
        ("base", &["path", "cache_dir"]),
        ("data", DATA_FILES),
        (
            "engine",
            &[
                "memory_gb",
                "gpu_memory_gb",
                "users_in_flight",
                "pack_tokens",
                "threads",
                "recompute",
            ],
        ),
        ("predict", &["batch_queries"]),
    ] {
        if let Some(table) = config.get_mut(section).and_then(serde_json::Value::as_object_mut) {
            table.retain(|key, _| !keys.contains(&key.as_str()));
        }
    }
}

fn template(config: &Config) -> anyhow::Result<Template> {
    let name = &config.prompt.template;
    if let Some(template) = Template::builtin(name) {
        return Ok(template);
    }
    let text = std::fs::read_to_string(name)
        .with_context(|| {
            format!("prompt.template: {name:?} is neither a builtin template nor a readable file")
        })
        .input("trainer/templates has the builtin ones: rating, oppu/movie_tag, lamp/headline, study/rating …")?;
    toml::from_str(&text)
        .with_context(|| format!("template {name}"))
        .input("docs/guides/data.md has the template's fields")
}

/// Refuses a config that asks for more than its users have.
fn check_users(config: &Config, index: &Index) -> anyhow::Result<()> {
    let users = &index.personal;
    if users.is_empty() {
        return Err(nobody(config, index)).input(DATA_HINT);
    }
    if config.run.arms.contains(&Arm::Permuted) && users.len() < 2 {
        return Err(anyhow::anyhow!("the arm `permuted` swaps adapters; there is 1 user"))
            .input("leave \"permuted\" out of run.arms, or give more users");
    }
    if config.profile.source == ProfileSource::File && users.iter().all(|user| !user.has_profile) {
        return Err(anyhow::anyhow!("profile.source is \"file\", but no user has a profile text"))
            .input("give texts with data.personal_profiles (JSONL: \"profile\"), or set profile.source");
    }
    Ok(())
}

/// Why there is no user to personalise.
fn nobody(config: &Config, index: &Index) -> anyhow::Error {
    let data = &config.data;
    let place = data.personal.as_ref().or(data.path.as_ref());
    let place = place.map_or_else(String::new, |p| p.display().to_string());
    match index.quarantined.first() {
        None => anyhow::anyhow!("{place}: no user to personalise"),
        Some(problem) => anyhow::anyhow!(
            "{place}: no user to personalise; {} bad records, the first is {problem}",
            index.quarantined.len()
        ),
    }
}

/// Where a run was made, for the reader of its folder.
pub(crate) fn environment(env: &Env, comm: &dyn Communicator) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("launcher".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("ranks".to_owned(), comm.size().to_string()),
        ("threads_per_rank".to_owned(), rayon::current_num_threads().to_string()),
        ("vector_instructions".to_owned(), kernels::cpu::vector_instructions().to_owned()),
        ("processors".to_owned(), env.processors.to_string()),
    ])
}
