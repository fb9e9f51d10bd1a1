//! `launcher bench train`: users an hour, share of the machine's peak, LoRA's tax, memory against plan.

use super::workload::Workload;
use super::{peak_rss_bytes, report};
use crate::cli::BenchTrainArgs;
use crate::env::Env;
use crate::exit::Exit;
use crate::plan::{Bounds, choose};
use kernels::Cpu;
use kernels::lora::Segment;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use trainer::config::{Recipe, Recompute};
use trainer::ids::UserId;
use trainer::model::spec::BaseSpec;
use trainer::optim::Order;
use trainer::pack::{Packer, Piece, Share, rows_of};
use trainer::prompt::Example;
use trainer::stage::engine::Engine;
use trainer::stage::individual::{PackRules, Watch, run as train};
use trainer::stage::trainee::{Job, Outcome, Trainee};

/// Seed of initialisation, order and dropout.
const SEED: u64 = 1;
/// Steps of each kind that are timed for LoRA's tax.
const TAX_REPETITIONS: usize = 5;
/// Rows of a chunk, as in a run.
const CHUNK_ROWS: usize = 2048;

pub(super) fn run(args: &BenchTrainArgs, env: &Env) -> anyhow::Result<Exit> {
    let work = Workload::open(&args.common, env)?;
    let users = work.users()?;
    let rules = PackRules { chunk_rows: CHUNK_ROWS, share_prefixes: !args.no_shared_prefix };
    if let Some(path) = &args.dump_examples {
        dump(path, args, &work, &users)?;
    }
    let net = work.network()?;
    let lora_rank = args.common.lora_rank as usize;
    let bounds = Bounds {
        budget: usize::MAX,
        pack_rows: args.pack_tokens,
        chunk_rows: CHUNK_ROWS,
        slots: args.users_in_flight,
        users: users.len(),
        adapter_params: work.sites.params(lora_rank),
        layouts: 1,
        recompute: if args.recompute { Recompute::Always } else { Recompute::Never },
        gathered: 0,
    };
    let sizes = choose(&net, bounds)?;
    let mut engine =
        Engine::new(&net, &work.lists, sizes.step, (sizes.slots, bounds.adapter_params))?;
    let peak = kernels::linear::peak::product(work.threads)?;
    let tax = lora_tax(&work, &mut engine, args, &users)?;
    let recipe = recipe(args)?;
    let jobs = |work: &Workload| {
        let lora = work.adapter(args.common.lora_rank, args.dropout);
        let recipe = recipe.clone();
        users.clone().into_iter().map(move |(user, examples)| Job {
            user,
            examples,
            losses: Vec::new(),
            of_mean: false,
            unusable: None,
            lora: lora.clone(),
            recipe: recipe.clone(),
            seed: SEED,
            start: None,
        })
    };
    let mut watch = Totals::default();
    let started = Instant::now();
    train(&mut engine, rules, &mut jobs(&work), &mut watch, &AtomicBool::new(false))?;
    let seconds = started.elapsed().as_secs_f64();
    let flop = useful_flop(work.base.spec(), &users, args, rules);
    let planned = sizes.bytes + work.base.mapped_bytes();
    let mut result = json!({
        "users": users.len(),
        "users_in_flight": sizes.slots,
        "items_per_user": args.common.items,
        "threads": work.threads,
        "lora_rank": args.common.lora_rank,
        "pack_rows": sizes.step.rows,
        "shared_prefixes": rules.share_prefixes,
        "recompute": args.recompute,
        "seconds": seconds,
        "steps": watch.steps,
        "users_per_hour": per_second(users.len(), seconds) * 3600.0,
        "tokens_per_s": per_second(watch.unshared_rows + watch.examples(&users, args.epochs), seconds),
        "rows_per_s": per_second(watch.rows, seconds),
        "rows_without_sharing": watch.unshared_rows,
        "rows_computed": watch.rows,
        "useful_gflop_per_s": flop / seconds / 1e9,
        "sgemm_peak_gflop_per_s": peak,
        "useful_share": flop / seconds / 1e9 / peak,
        "lora_tax": tax,
        "adapter_state_bytes_per_param": Engine::<Cpu>::SLAB_BYTES_PER_PARAM,
        "planned_peak_bytes": planned,
        "peak_rss_bytes": peak_rss_bytes(),
        "vector_instructions": kernels::cpu::vector_instructions(),
    });
    result["final_losses"] = Value::Object(watch.final_losses);
    report(&result, args.common.json.as_deref())?;
    Ok(Exit::Done)
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn per_second(count: usize, seconds: f64) -> f64 {
    count as f64 / seconds
}

/// OPPU's recipe with the numbers of the command line.
fn recipe(args: &BenchTrainArgs) -> anyhow::Result<Recipe> {
    Ok(Recipe {
        lora_rank: args.common.lora_rank,
        dropout: args.dropout,
        learning_rate: args.learning_rate,
        epochs: args.epochs,
        batch_size: args.batch_size,
        ..Recipe::named("oppu-code")?
    })
}

/// Time of a step with adapters over one of the same pack without, less one: medians of steps taken in
/// turn. Without adapters the step is forward and dX down to the same depth, and no gradient of anything.
fn lora_tax(
    work: &Workload,
    engine: &mut Engine<'_, Cpu>,
    args: &BenchTrainArgs,
    users: &[(UserId, Vec<Example>)],
) -> anyhow::Result<f64> {
    let lora = work.adapter(args.common.lora_rank, args.dropout);
    let mut packs = [true, false].map(|_| Packer::new(!args.no_shared_prefix));
    let mut taken = Vec::new();
    for (user, examples) in users.iter().take(engine.slabs.num_slots() as usize) {
        let pieces: Vec<Piece<'_>> = examples
            .iter()
            .take(args.batch_size as usize)
            .map(|e| Piece::supervised(&e.tokens, e.prompt_len))
            .collect();
        if packs[0].rows() + rows_of(&pieces, !args.no_shared_prefix) > engine.rows() {
            break;
        }
        let slot = engine.slabs.take().ok_or_else(|| anyhow::anyhow!("no slot"))?;
        engine.load(slot, &super::workload::start(work, user, args.common.lora_rank, SEED)?)?;
        let template = engine.segment(slot, slot);
        let segment = Segment {
            lora_rank: lora.lora_rank,
            scale: lora.scale(),
            dropout: lora.dropout_f32(),
            key: user.key().random_key(SEED),
            ..template
        };
        let share =
            |adapter, pieces| Share { adapter, layout: 0, pieces, weight: 1.0, first_token: 0 };
        for (pack, adapter) in packs.iter_mut().zip([Some(segment), None]) {
            pack.add(&share(adapter, &pieces));
        }
        if taken.is_empty() {
            // Without rows: the backward then goes as deep as it does with adapters.
            packs[1].add(&share(Some(segment), &[]));
        }
        taken.push(slot);
    }
    let mut times = [Vec::new(), Vec::new()];
    for repetition in 0..1 + TAX_REPETITIONS {
        for (pack, times) in packs.iter().zip(&mut times) {
            let started = Instant::now();
            engine.train(pack)?;
            if repetition > 0 {
                times.push(started.elapsed().as_secs_f64());
            }
        }
    }
    for slot in taken {
        engine.slabs.release(slot)?;
    }
    let [with, without] = times.map(|mut t| {
        t.sort_by(f64::total_cmp);
        t[t.len() / 2]
    });
    Ok(with / without - 1.0)
}

/// `4 · P` for every row the step computes (forward and dX), with the last block's queries, output and MLP and
/// the head counted on output rows alone, and nothing below the lowest adapter: work that must be done.
/// With shared prefixes a prefix's rows count once.
#[expect(clippy::cast_precision_loss, reason = "a count of operations")]
fn useful_flop(
    spec: &BaseSpec,
    users: &[(UserId, Vec<Example>)],
    args: &BenchTrainArgs,
    rules: PackRules,
) -> f64 {
    let (d, q, kv, f) = (spec.hidden, spec.query_dim(), spec.kv_dim(), spec.intermediate);
    let mlp =
        if spec.family == trainer::model::spec::Family::Llama { 3 * d * f } else { 2 * d * f };
    let (key_value, rest) = (2 * d * kv, d * q + q * d + mlp);
    let (mut rows, mut outputs) = (0usize, 0usize);
    for (user, examples) in users {
        let (n, key) = (examples.len(), user.key().random_key(SEED));
        for epoch in 0..args.epochs {
            let order =
                Order::new(u32::try_from(n).unwrap_or(u32::MAX), args.batch_size, epoch, key);
            for batch in order.batches() {
                let pieces: Vec<Piece<'_>> = batch
                    .iter()
                    .map(|&i| {
                        Piece::supervised(
                            &examples[i as usize].tokens,
                            examples[i as usize].prompt_len,
                        )
                    })
                    .collect();
                rows += rows_of(&pieces, rules.share_prefixes);
                outputs += pieces.iter().map(|p| p.targets.len()).sum::<usize>();
            }
        }
    }
    // dX of the first block's queries, keys and values feeds nothing: one pass of their products less.
    let below_lowest = 2 * rows * (d * q + key_value);
    let blocks = (spec.layers - 1) * (key_value + rest) + key_value;
    (4 * rows * blocks + 4 * outputs * (rest + d * spec.vocab) - below_lowest) as f64
}

/// Every user's batches in order, for a trainer that takes one user after another.
fn dump(
    path: &Path,
    args: &BenchTrainArgs,
    work: &Workload,
    users: &[(UserId, Vec<Example>)],
) -> anyhow::Result<()> {
    let batches = |user: &UserId, examples: &[Example]| -> anyhow::Result<Vec<Value>> {
        let (n, key) = (u32::try_from(examples.len())?, user.key().random_key(SEED));
        let example = |&i: &u32| json!({"tokens": examples[i as usize].tokens, "prompt_len": examples[i as usize].prompt_len});
        let orders = (0..args.epochs).map(|epoch| Order::new(n, args.batch_size, epoch, key));
        Ok(orders
            .flat_map(|o| {
                o.batches().map(|b| b.iter().map(example).collect()).collect::<Vec<Value>>()
            })
            .collect())
    };
    let folder = path.with_extension("init");
    let mut list = Vec::new();
    for (user, examples) in users {
        let init = super::workload::write_start(work, user, args.common.lora_rank, SEED, &folder)?;
        list.push(json!({"id": user.as_str(), "batches": batches(user, examples)?, "init": init}));
    }
    let recipe = json!({
        "lora_rank": args.common.lora_rank, "lora_alpha": 8, "lora_dropout": args.dropout,
        "learning_rate": args.learning_rate, "weight_decay": 0.01, "clip_norm": 0.3, "warmup_ratio": 0.1,
        "epochs": args.epochs, "batch_size": args.batch_size, "targets": ["q_proj", "v_proj"],
    });
    let text = serde_json::to_string(&json!({"recipe": recipe, "users": list}))?;
    Ok(trainer::store::write_atomic(path, text.as_bytes())?)
}

#[derive(Default)]
struct Totals {
    rows: usize,
    unshared_rows: usize,
    steps: usize,
    final_losses: Map<String, Value>,
}

impl Totals {
    /// Examples trained on: each has one token more than rows.
    fn examples(&self, users: &[(UserId, Vec<Example>)], epochs: u32) -> usize {
        users.iter().map(|(_, e)| e.len()).sum::<usize>() * epochs as usize
    }
}

impl Watch for Totals {
    fn pack(&mut self, rows: usize, unshared_rows: usize, _: usize) {
        self.rows += rows;
        self.unshared_rows += unshared_rows;
    }

    fn step(&mut self, _: &Trainee, _: f32, _: f32) {
        self.steps += 1;
    }

    fn left(&mut self, outcome: Outcome) -> trainer::stage::Result<()> {
        if let Outcome::Trained { user, final_loss, .. } = outcome {
            self.final_losses.insert(user.as_str().to_owned(), json!(final_loss));
        }
        Ok(())
    }
}
