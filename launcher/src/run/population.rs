//! The population stage of a run: examples of the other users, the task adapter, the merged base.

use super::Run;
use crate::device::on;
use crate::exit::Fails;
use crate::plan::{Bounds, fit};
use crate::session::Session;
use crate::sums::{Adds, explained};
use crate::watch::Progress;
use anyhow::Context;
use std::path::Path;
use std::time::Instant;
use trainer::comm::Communicator;
use trainer::config::GradientSum;
use trainer::ids::{UserId, UserKey};
use trainer::lora::{AdapterSpec, Merge, SiteList, SiteLists, Target};
use trainer::model::cache::MappedBase;
use trainer::model::network::Network;
use trainer::model::overlay::merge;
use trainer::prompt::Example;
use trainer::report::{Event, Stage};
use trainer::stage::engine::Engine;
use trainer::stage::forecast::gathered;
use trainer::stage::individual::End;
use trainer::stage::population::{Task, run as train};
use trainer::store::{AdapterRef, Commit, Manifest, Outcome, Provenance, Store, Writer};

/// Name the task adapter has in its own store.
const TASK: &str = "population";

/// Trains and merges the task adapter, or finds it done; `None` when stopped by a signal.
pub(super) fn run(run: &Run<'_>) -> anyhow::Result<Option<MappedBase>> {
    let session = run.session;
    if !session.config.population.enabled {
        return Ok(Some(session.base.clone()));
    }
    let (folder, overlay) = (run.path("population"), run.path("population/merged.myriad"));
    if !overlay.exists() {
        let (sites, lora) = adapter(session)?;
        let key = UserId::new(TASK).key();
        let store = folder.join("store");
        let done = store.exists() && Store::open(&store)?.done().contains_key(&key);
        // Ranks agree on what rank 0 saw before it writes.
        run.comm.barrier()?;
        if !done {
            let Some(params) = trained(run, &sites, &lora)? else { return Ok(None) };
            if run.leads() {
                commit(run, &store, (&sites, &lora, &params))?;
            }
        }
        run.comm.barrier()?;
        if run.leads() {
            write_overlay(run, &store, key, &overlay)?;
        }
        run.comm.barrier()?;
    }
    let merged = session.base.with_overlay(&overlay)?;
    if run.leads() {
        record(run, &merged)?;
    }
    run.comm.barrier()?;
    Ok(Some(merged))
}

/// The manifest's note of the merged base: written when it is missing (a run can be cut off between the merge and the
/// note), compared when it is there.
fn record(run: &Run<'_>, merged: &MappedBase) -> anyhow::Result<()> {
    let folder = &run.session.folder;
    let Some(mut manifest) = Manifest::load(folder)? else { return Ok(()) };
    let hash = merged.hash().to_string();
    match &manifest.merged_hash {
        Some(before) if *before == hash => Ok(()),
        Some(before) => Err(anyhow::anyhow!("the merged base has the hash {hash}, not {before}"))
            .input("population/ of the run folder was changed: start a new run"),
        None => {
            manifest.merged_hash = Some(hash);
            Ok(manifest.save(folder)?)
        }
    }
}

/// Examples of the population users, in their order; unusable ones are left out and counted.
pub(super) fn examples(run: &Run<'_>) -> anyhow::Result<Vec<Example>> {
    let (session, limit) =
        (run.session, run.session.config.data.population_examples.unwrap_or(usize::MAX));
    let (mut examples, mut bad) = (Vec::new(), 0usize);
    for record in session.data.population() {
        for example in session.population_examples(&record?) {
            match example {
                Ok(example) if examples.len() < limit => examples.push(example),
                Ok(_) => break,
                Err(_) => bad += 1,
            }
        }
        if examples.len() >= limit {
            break;
        }
    }
    if bad > 0 {
        run.say(&format!("population: {bad} items without a usable example were left out"));
    }
    Ok(examples)
}

fn trained(
    run: &Run<'_>,
    sites: &SiteList,
    lora: &AdapterSpec,
) -> anyhow::Result<Option<Vec<f32>>> {
    let (session, config) = (run.session, &run.session.config.population);
    let examples = examples(run)?;
    if examples.is_empty() {
        return Err(trainer::stage::Error::NoPopulation)
            .input("give data.population users of their own, or set population.enabled = false");
    }
    let started = Instant::now();
    let tokens: usize =
        examples.iter().map(|e| e.tokens.len()).sum::<usize>() * config.training.epochs as usize;
    run.events.emit(Event::StageStarted {
        stage: Stage::Population,
        users: 0,
        tokens: tokens as u64,
    })?;
    let task = Task {
        examples: &examples,
        lora: lora.clone(),
        recipe: config.training.clone(),
        seed: session.config.run.seed,
        num_shards: config.virtual_shards,
    };
    let trained = on!(*session.device()?, backend => {
        train_on(run, &run.network(backend, &session.base)?, (sites, &task))
    })?;
    run.events.emit(Event::StageFinished {
        stage: Stage::Population,
        seconds: started.elapsed().as_secs_f64(),
    })?;
    Ok(trained)
}

/// The task adapter and its sites.
pub(crate) fn adapter(session: &Session) -> anyhow::Result<(SiteList, AdapterSpec)> {
    let recipe = &session.config.population.training;
    let targets = Target::parse_all(&recipe.targets)
        .input("targets are q, k, v, o, gate, up, down, or GPT-2's")?;
    let sites =
        SiteList::of_base(session.base.spec(), &targets).input("choose targets the base has")?;
    Ok((sites, trainer::stage::recipe::adapter(recipe, &targets)))
}

/// What bounds its training on this rank.
pub(crate) fn bounds(
    session: &Session,
    (sites, lora): (&SiteList, &AdapterSpec),
    comm: &dyn Communicator,
) -> anyhow::Result<(SiteLists, Bounds)> {
    let lists = SiteLists::of_targets(session.base.spec(), [lora.targets.as_slice()])?;
    let num_shards = session.config.population.virtual_shards;
    let shards = trainer::comm::shards_of(comm.rank(), comm.size(), num_shards).len();
    let ranks = comm.size();
    let gathers = session.config.engine.gradient_sum == GradientSum::Device && ranks > 1;
    let of = (sites, lora.lora_rank as usize);
    let bounds = Bounds {
        gathered: if gathers { gathered(of, (num_shards, ranks)) } else { 0 },
        slots: shards + 1,
        users: shards + 1,
        adapter_params: sites.params(lora.lora_rank as usize),
        layouts: 1,
        ..Bounds::of(session, shards + 1)
    };
    Ok((lists, bounds))
}

/// Parameters of the task adapter, trained on the backend of `net`; `None` when stopped.
fn train_on<B: Adds>(
    run: &Run<'_>,
    net: &Network<B>,
    (sites, task): (&SiteList, &Task<'_>),
) -> anyhow::Result<Option<Vec<f32>>> {
    let (session, config) = (run.session, &run.session.config.population);
    let (lists, bounds) = bounds(session, (sites, &task.lora), run.comm)?;
    let hint = "raise engine.memory_gb, or lower engine.pack_tokens";
    let sizes = fit(session, net, (&lists, bounds), hint)?;
    let mut engine = Engine::new(net, &lists, sizes.step, (sizes.slots, bounds.adapter_params))?;
    // After the engine, so dropped before it: on an error it may still be at work on the engine's memory.
    let place = session.config.engine.gradient_sum;
    let mut sums = net.backend().sums(run.comm, place, config.virtual_shards)?;
    let steps = task.examples.len().div_ceil(config.training.batch_size as usize)
        * config.training.epochs as usize;
    let mut progress = Progress::new("population", steps as u64, run.leads());
    let trained = train(
        &mut engine,
        session.rules,
        (run.comm, &mut *sums),
        task,
        &mut |step| {
            progress.advance(
                1,
                (step.rows * run.comm.size()) as u64,
                &format!("loss {:.3}", step.loss),
            )
        },
        run.stop,
    );
    let (end, params) = match trained {
        Err(error @ trainer::stage::Error::PopulationDiverged { .. }) => {
            return Err(error).input("lower population.learning_rate, or set population.clip_norm");
        }
        other => explained(run.comm, other)?,
    };
    explained(run.comm, sums.close())?;
    progress.finish();
    Ok((end == End::Complete).then_some(params))
}

fn commit(
    run: &Run<'_>,
    store: &Path,
    (sites, spec, params): (&SiteList, &AdapterSpec, &[f32]),
) -> anyhow::Result<()> {
    let provenance = Provenance {
        base_hash: run.session.base.hash().to_string(),
        config_hash: run.session.result_hash()?,
        steps: 0,
        final_loss: None,
    };
    let user = UserId::new(TASK);
    let outcome = Outcome::Adapter(AdapterRef { spec, sites, params, provenance: &provenance });
    let mut writer = Writer::open(store, 0)?;
    writer.commit(Commit { user: &user, generation: 1, outcome })?;
    Ok(writer.close()?)
}

/// `W' = W + scale · B·A`, read back from the store so that a resumed merge is the same.
fn write_overlay(run: &Run<'_>, store: &Path, key: UserKey, overlay: &Path) -> anyhow::Result<()> {
    let adapter = Store::open(store)?.get(&key)?;
    let base = &run.session.base;
    let changes = Merge::new(base.spec(), &adapter.sites, &adapter.spec, &adapter.params)?;
    on!(*run.session.device()?, backend => merge(&backend, base, changes.deltas(), overlay))
        .context("merging the task adapter")?;
    Ok(())
}
