//! Real users on a real base, the same for every measurement.

use crate::cli::BenchArgs;
use crate::env::Env;
use crate::exit::Fails;
use anyhow::Context;
use kernels::Cpu;
use std::path::{Path, PathBuf};
use trainer::data::{Dataset, Ml100k, OnBad, Selection, Source};
use trainer::ids::UserId;
use trainer::lora::{AdapterSpec, SiteList, SiteLists, Target};
use trainer::model::cache::MappedBase;
use trainer::model::network::Network;
use trainer::model::tokenizer::Tokenizer;
use trainer::prompt::{Ablation, Builder, Example, Task, Template};
use trainer::retrieval::Retrieval;
use trainer::store::peft::{ExportOptions, Naming, export};
use trainer::store::{AdapterRef, Commit, Outcome, Provenance, Writer};

/// Longest example.
const MAX_LENGTH: usize = 512;

/// Base, tokenizer and users of a benchmark.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) base: MappedBase,
    pub(super) tokenizer: Tokenizer,
    task: Task,
    data: Dataset,
    users: usize,
    items: usize,
    pub(super) targets: Vec<Target>,
    pub(super) sites: SiteList,
    pub(super) lists: SiteLists,
    pub(super) threads: usize,
}

impl Workload {
    pub(super) fn open(args: &BenchArgs, env: &Env) -> anyhow::Result<Self> {
        crate::threads(args.threads, env)?;
        let source =
            trainer::model::weights::open(&args.base).input("scripts/setup fetches a base")?;
        let base = MappedBase::load(&Cpu, source.as_ref(), &env.cache.join("prepared"))?;
        let tokenizer = Tokenizer::open(&args.base, base.spec())?;
        let data = trainer::data::load(&source_of(args)?, OnBad::Quarantine)
            .input("docs/guides/data.md")?;
        let names = match base.spec().family {
            trainer::model::spec::Family::Llama => &["q", "v"][..],
            trainer::model::spec::Family::Gpt2 => &["c_attn"],
        };
        let targets = Target::parse_all(names)?;
        let sites = SiteList::of_base(base.spec(), &targets)?;
        let lists = SiteLists::of_targets(base.spec(), [targets.as_slice()])?;
        let threads = rayon::current_num_threads();
        let task =
            Task::new(Template::builtin("rating").context("the template `rating` is shipped")?)?;
        Ok(Self {
            base,
            tokenizer,
            task,
            data,
            users: args.users,
            items: args.items,
            targets,
            sites,
            lists,
            threads,
        })
    }

    pub(super) fn network(&self) -> anyhow::Result<Network<Cpu>> {
        Ok(Network::new(Cpu, &self.base, MAX_LENGTH)?)
    }

    /// `r`, alpha 8 as in OPPU, on q and v.
    pub(super) fn adapter(&self, lora_rank: u32, dropout: f64) -> AdapterSpec {
        AdapterSpec { lora_rank, alpha: 8.0, rslora: false, dropout, targets: self.targets.clone() }
    }

    /// The users' examples; where there are fewer users than asked for, they come again under other ids.
    pub(super) fn users(&self) -> anyhow::Result<Vec<(UserId, Vec<Example>)>> {
        let builder = Builder {
            task: &self.task,
            tokenizer: &self.tokenizer,
            retrieval: Retrieval::NONE,
            pool: None,
            ablation: Ablation::Both,
            seed: 0,
            max_len: MAX_LENGTH,
            cut_questions: false,
        };
        let mut real = Vec::new();
        for record in self.data.users().take(self.users) {
            let record = record?;
            let mut examples: Vec<Example> =
                builder.history_examples(&record, None).into_iter().collect::<Result<_, _>>()?;
            examples.truncate(self.items);
            real.push((record.id, examples));
        }
        anyhow::ensure!(!real.is_empty(), "the data have no users");
        Ok((0..self.users)
            .map(|i| {
                let (id, examples) = &real[i % real.len()];
                let id = if i < real.len() {
                    id.clone()
                } else {
                    UserId::new(&format!("{}#{}", id.as_str(), i / real.len()))
                };
                (id, examples.clone())
            })
            .collect())
    }
}

fn source_of(args: &BenchArgs) -> anyhow::Result<Source> {
    let hint = "write --data ml-100k=FOLDER or --data jsonl=FILE";
    let (kind, path) = args.data.split_once('=').context("--data has no `=`").input(hint)?;
    let path = PathBuf::from(path);
    match kind {
        "ml-100k" => {
            let selection = Ml100k {
                // Of 943 people 568 have 40 ratings of history or more; larger counts repeat them.
                personal_users: args.users.min(500),
                population_users: Some(0),
                min_history: args.items.min(40),
                max_history: args.items,
                max_queries: usize::MAX,
                max_population_items: usize::MAX,
                seed: 1,
            };
            Ok(Source::Ml100k { path, selection })
        }
        "jsonl" => Ok(Source::Jsonl {
            personal: path,
            population: None,
            max_line_bytes: 64 << 20,
            selection: Selection::default(),
        }),
        _ => Err(anyhow::anyhow!("unknown kind of data {kind:?}")).input(hint),
    }
}

/// A user's fresh adapter.
pub(super) fn start(
    work: &Workload,
    user: &UserId,
    lora_rank: u32,
    seed: u64,
) -> anyhow::Result<Vec<f32>> {
    let mut params = vec![0.0; work.sites.params(lora_rank as usize)];
    trainer::lora::initialise(
        &work.sites,
        lora_rank as usize,
        user.key().random_key(seed),
        &mut params,
    )?;
    Ok(params)
}

/// Writes a user's fresh adapter as a PEFT folder, so that another trainer starts from the same numbers.
pub(super) fn write_start(
    work: &Workload,
    user: &UserId,
    lora_rank: u32,
    seed: u64,
    folder: &Path,
) -> anyhow::Result<PathBuf> {
    let (params, spec) = (start(work, user, lora_rank, seed)?, work.adapter(lora_rank, 0.0));
    let (store, out) = (folder.join("store"), folder.join(&user.key().hex()[..16]));
    let provenance = Provenance {
        base_hash: work.base.hash().to_string(),
        config_hash: String::new(),
        steps: 0,
        final_loss: None,
    };
    let adapter =
        AdapterRef { spec: &spec, sites: &work.sites, params: &params, provenance: &provenance };
    let mut writer = Writer::open(&store, 0)?;
    let generation = trainer::store::Store::open(&store)?.next_generation(&user.key());
    writer.commit(Commit { user, generation, outcome: Outcome::Adapter(adapter) })?;
    writer.close()?;
    let options = ExportOptions {
        base_name_or_path: String::new(),
        num_layers: u32::try_from(work.base.spec().layers)?,
        naming: Naming::Ordinal,
    };
    if !out.exists() {
        export(&trainer::store::Store::open(&store)?, Some(&[user.key()]), &out, &options)?;
    }
    Ok(std::path::absolute(out.join("000000"))?)
}
