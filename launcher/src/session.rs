//! Everything a run stands on: config, folder, base, tokenizer, data, task. The same on every rank.

use crate::cli::RunArgs;
use crate::env::Env;
use crate::exit::Fails;
use anyhow::Context;
use kernels::Cpu;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use trainer::comm::Communicator;
use trainer::config::{Config, Document, PredictMode, RetrieverKind, Source as SourceKind};
use trainer::data::{Dataset, Index, OnBad, Source, UserRecord, ml100k::Ml100k};
use trainer::ids::UserId;
use trainer::lora::{AdapterSpec, SiteList, Target};
use trainer::model::cache::MappedBase;
use trainer::model::tokenizer::Tokenizer;
use trainer::prompt::{Builder, Example, Query, Task, Template};
use trainer::retrieval::{Retrieval, Retriever};
use trainer::stage::individual::PackRules;
use trainer::store::Manifest;

/// Rows of a chunk of a user's micro-batch, unless an example may be longer: part of the arithmetic, so
/// never derived from memory or machine.
const CHUNK_ROWS: usize = 2048;

/// A run that may begin.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) config: Config,
    pub(crate) folder: PathBuf,

    pub(crate) base: MappedBase,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) data: Dataset,
    pub(crate) task: Task,
    pub(crate) rules: PackRules,
    /// Sites of the personal adapters.
    pub(crate) sites: SiteList,
    pub(crate) targets: Vec<Target>,
}

/// What a session may take over from the one before it instead of reading it again.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    base: Option<(trainer::config::Base, MappedBase, Tokenizer)>,
    data: Option<(Source, bool, Dataset)>,
}

/// The config, read by rank 0 and the same on all ranks.
pub(crate) fn config(args: &RunArgs, env: &Env, comm: &dyn Communicator) -> anyhow::Result<Config> {
    let document = document(args, comm)?;
    if document.is_study() {
        return Err(anyhow::anyhow!("{} is a study of several runs", args.config.display()))
            .input("launcher study --config FILE runs its cells");
    }
    document
        .resolve(&env.variables())
        .input("launcher run --config FILE --print-config shows every key")
}

/// The config as written, with the command line's settings.
pub(crate) fn document(args: &RunArgs, comm: &dyn Communicator) -> anyhow::Result<Document> {
    let mut text = Vec::new();
    if comm.rank() == 0 {
        text = std::fs::read(&args.config)
            .with_context(|| format!("config {}", args.config.display()))
            .input("give an existing file with --config; the repository's are in configs/")?;
    }
    comm.broadcast_bytes(0, &mut text)?;
    let path = std::path::absolute(&args.config)?;
    let text =
        String::from_utf8(text).context("the config is not UTF-8").input("save it as UTF-8")?;
    let mut document = Document::parse(&path, &text).input("the line says what TOML expected")?;
    for set in &args.sets {
        document.set(set).input("write --set section.key=value")?;
    }
    Ok(document)
}

impl Session {
    /// Opens base, tokenizer and data, and checks them against each other.
    pub(crate) fn open(config: Config, env: &Env, comm: &dyn Communicator) -> anyhow::Result<Self> {
        Self::open_with(config, env, comm, Loaded::default())
    }

    /// [`Self::open`] that keeps of `loaded` what this config names too.
    pub(crate) fn open_with(
        config: Config,
        env: &Env,
        comm: &dyn Communicator,
        loaded: Loaded,
    ) -> anyhow::Result<Self> {
        let before = loaded.base.filter(|(base, ..)| *base == config.base);
        let (base, tokenizer) = match before {
            Some((_, base, tokenizer)) => (base, tokenizer),
            None => base_of(&config, env)?,
        };
        let data_hint = "docs/guides/data.md says what every reader expects";
        let (source, strict) = (source_of(&config)?, config.data.strict);
        let data = match loaded.data.filter(|(s, on, _)| *s == source && *on == strict) {
            Some((.., data)) => data,
            None => {
                let on_bad = if strict { OnBad::Stop } else { OnBad::Quarantine };
                trainer::data::load(&source, on_bad).input(data_hint)?
            }
        };
        let task =
            Task::new(template(&config)?).input("docs/guides/data.md has the template's fields")?;
        let targets = Target::parse_all(&config.individual.training.targets)
            .input("targets are q, k, v, o, gate, up, down, or GPT-2's c_attn, c_proj, c_fc")?;
        let sites =
            SiteList::of_base(base.spec(), &targets).input("choose targets the base has")?;
        let (asked, there) = (config.prompt.max_length, base.spec().max_positions);
        if asked > there {
            return Err(anyhow::anyhow!(
                "prompt.max_length is {asked}, the base has {there} positions"
            ))
            .input("lower prompt.max_length");
        }
        let chunk_rows = CHUNK_ROWS.max(asked);
        let rules = PackRules { chunk_rows, share_prefixes: config.engine.shared_prefix };
        if data.index().personal.is_empty() {
            return Err(nobody(&config, data.index())).input(data_hint);
        }
        comm.barrier()?;
        let folder = config.run.out_dir.clone();
        let session = Self { folder, base, tokenizer, data, task, rules, sites, targets, config };
        if session.config.data.strict {
            session.refuse_unusable().input("data.strict = false puts such users aside")?;
        }
        Ok(session)
    }

    /// What the next session may take over.
    pub(crate) fn into_loaded(self) -> Loaded {
        let source = source_of(&self.config).ok();
        Loaded {
            data: source.map(|source| (source, self.config.data.strict, self.data)),
            base: Some((self.config.base, self.base, self.tokenizer)),
        }
    }

    /// The first user who cannot be trained or asked as written is an error.
    fn refuse_unusable(&self) -> anyhow::Result<()> {
        for record in self.data.users() {
            let record = record?;
            let reason = match self.examples(&record) {
                Ok(_) => self.queries(&record).1.into_iter().next(),
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

    pub(crate) fn builder(&self) -> Builder<'_> {
        let prompt = &self.config.prompt;
        let retriever = match prompt.retriever {
            RetrieverKind::Recency => Retriever::Recency,
            RetrieverKind::Random => Retriever::Random,
            _ => Retriever::Bm25,
        };
        Builder {
            task: &self.task,
            tokenizer: &self.tokenizer,
            retrieval: Retrieval { retriever, k: prompt.retrieved, seed: self.config.run.seed },
            max_len: prompt.max_length,
        }
    }

    /// The adapter of one user.
    pub(crate) fn adapter_of(&self, user: &UserId) -> AdapterSpec {
        trainer::stage::recipe::adapter(self.config.individual.training_of(user), &self.targets)
    }

    /// Largest LoRA rank of any user.
    pub(crate) fn max_lora_rank(&self) -> usize {
        let individual = &self.config.individual;
        let overrides = individual.overrides.iter().map(|o| o.training.lora_rank);
        overrides.chain([individual.training.lora_rank]).max().unwrap_or(1) as usize
    }

    /// A user's training examples; the reason when none is usable or one is not.
    pub(crate) fn examples(&self, record: &UserRecord) -> Result<Vec<Example>, String> {
        let examples = self.builder().history_examples(record);
        let all: Result<Vec<Example>, _> = examples.into_iter().collect();
        match all {
            Ok(examples) if examples.is_empty() => Err("its history is empty".to_owned()),
            Ok(examples) => Ok(examples),
            Err(e) => Err(e.to_string()),
        }
    }

    /// A user's usable queries; unusable ones are left out and said.
    pub(crate) fn queries(&self, record: &UserRecord) -> (Vec<Query>, Vec<String>) {
        // A label is scored after the prompt; only written answers need room.
        let reserve = match self.config.predict.mode {
            PredictMode::Label => 1,
            PredictMode::Generate => self.config.predict.max_new_tokens,
        };
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for query in self.builder().queries(record, reserve) {
            match query {
                Ok(query) => good.push(query),
                Err(e) => bad.push(e.to_string()),
            }
        }
        (good, bad)
    }

    /// Hash of what can change results: the config's, and the template's words, which may lie in a file of
    /// their own.
    pub(crate) fn result_hash(&self) -> anyhow::Result<String> {
        let template = serde_json::to_string(self.task.template())?;
        let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 results");
        hasher.update(&self.config.result_hash()?.0).update(template.as_bytes());
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// What the run is made of, for resume and for the reader of the folder.
    pub(crate) fn manifest(&self, env: &Env, comm: &dyn Communicator) -> anyhow::Result<Manifest> {
        let environment = BTreeMap::from([
            ("launcher".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("ranks".to_owned(), comm.size().to_string()),
            ("threads_per_rank".to_owned(), rayon::current_num_threads().to_string()),
            ("vector_instructions".to_owned(), kernels::cpu::vector_instructions().to_owned()),
            ("processors".to_owned(), env.processors.to_string()),
        ]);
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

/// Base and tokenizer. The ranks of a node take turns: the first converts, the others find the file.
fn base_of(config: &Config, env: &Env) -> anyhow::Result<(MappedBase, Tokenizer)> {
    let cache = config.base.cache_dir.clone().unwrap_or_else(|| env.cache.join("prepared"));
    let hint = "scripts/setup fetches the model the shipped configs use";
    let source = trainer::model::weights::open(&config.base.path).input(hint)?;
    let base = MappedBase::load(&Cpu, source.as_ref(), &cache).input(hint)?;
    let tokenizer = Tokenizer::open(&config.base.path, base.spec()).input(hint)?;
    Ok((base, tokenizer))
}

/// Takes out what may change between two starts of one run: where things lie and how work is laid out.
fn remove_placement(config: &mut serde_json::Value) {
    for (section, keys) in [
        ("run", &["name", "out_dir"][..]),
        ("base", &["path", "cache_dir"]),
        ("data", &["path", "personal", "population"]),
        ("engine", &["memory_gb", "users_in_flight", "pack_tokens", "threads", "recompute"]),
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
        .input("builtin templates: rating")?;
    toml::from_str(&text)
        .with_context(|| format!("template {name}"))
        .input("docs/guides/data.md has the template's fields")
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

/// A JSONL file is taken as it is: keys that select from a known data set would be ignored.
fn refuse_selection(config: &Config) -> anyhow::Result<()> {
    let d = &config.data;
    let keys = [
        ("personal_users", d.personal_users),
        ("population_users", d.population_users),
        ("max_population_items", d.max_population_items),
        ("max_history", d.max_history),
        ("max_queries", d.max_queries),
    ];
    match keys.iter().find(|(_, value)| value.is_some()) {
        None => Ok(()),
        Some((key, _)) => Err(anyhow::anyhow!("data.{key} selects from ml-100k, not from JSONL"))
            .input("leave the key out and put the wanted users and items into the file"),
    }
}

/// The data set a config names.
fn source_of(config: &Config) -> anyhow::Result<Source> {
    let data = &config.data;
    Ok(match data.source {
        SourceKind::Jsonl => {
            refuse_selection(config)?;
            Source::Jsonl {
                personal: data
                    .personal
                    .clone()
                    .context("data.personal is not set")
                    .input("name the JSONL file of the users")?,
                population: data.population.clone(),
                max_line_bytes: 64 << 20,
            }
        }
        SourceKind::Lamp | SourceKind::Oppu => anyhow::bail!("not read yet"),
        SourceKind::Ml100k => {
            let path = data
                .path
                .clone()
                .context("data.path is not set")
                .input("scripts/setup fetches ml-100k")?;
            let selection = Ml100k {
                personal_users: data.personal_users.unwrap_or(usize::MAX),
                population_users: data.population_users,
                min_history: data.min_history,
                max_history: data.max_history.unwrap_or(usize::MAX),
                max_queries: data.max_queries.unwrap_or(usize::MAX),
                max_population_items: data.max_population_items.unwrap_or(usize::MAX),
                seed: config.run.seed,
            };
            if data.personal_users.is_none() {
                return Err(anyhow::anyhow!("data.personal_users is not set"))
                    .input("ml-100k needs to know how many users are personal");
            }
            Source::Ml100k { path, selection }
        }
    })
}
