//! Sizes of a run: rows of a pack, users in flight, stored blocks, from the memory budget; and the
//! forecast people see before anything starts.
//!
//! On processors the budget is `engine.memory_gb` and formulas say what is taken ([`choose`]). On a GPU it is the device's
//! memory ([`room`]), and what is taken is counted on a device that computes nothing ([`gpu`]).

pub(crate) mod gpu;
pub(crate) mod room;

use crate::exit::{Exit, Fails};
use crate::run::{Until, population, predict};
use crate::session::Session;
use crate::watch::print;
use gpu::Choice;
use kernels::{Cpu, Ops};
use room::Room;
use trainer::comm::Communicator;
use trainer::config::Recompute;
use trainer::lora::SiteLists;
use trainer::model::activations::StepSize;
use trainer::model::network::Network;
use trainer::model::spec::BaseSpec;
use trainer::stage::engine::Engine;
use trainer::stage::forecast::Forecast;

/// Packs need not be larger than this to keep the products at full speed on CPUs.
const AUTO_PACK_ROWS: usize = 2048;
/// Users in flight beyond this gain nothing: a pack takes only so many.
const AUTO_USERS: usize = 64;

/// The sizes chosen for one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) step: StepSize,
    pub(crate) slots: u32,
    /// Bytes of buffers and slabs.
    pub(crate) bytes: usize,
}

/// What bounds a plan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes for buffers and slabs.
    pub(crate) budget: usize,
    /// Rows asked for; zero for automatic.
    pub(crate) pack_rows: usize,
    /// The smallest pack the rules allow.
    pub(crate) chunk_rows: usize,
    /// Slots asked for; zero for automatic.
    pub(crate) slots: usize,
    /// More users than this never exist.
    pub(crate) users: usize,
    /// Parameters of the largest adapter.
    pub(crate) adapter_params: usize,
    /// Lists of sites that adapters have.
    pub(crate) layouts: usize,
    pub(crate) recompute: Recompute,
    /// Bytes that sums between GPUs gather; no processor has them.
    pub(crate) gathered: usize,
}

/// Chooses sizes within the bounds: first rows and slots, then as many stored blocks as fit.
///
/// # Errors
/// When even the smallest plan does not fit, with the numbers.
pub(crate) fn choose<B: Ops>(net: &Network<B>, bounds: Bounds) -> anyhow::Result<Sizes> {
    let rows = if bounds.pack_rows == 0 { AUTO_PACK_ROWS } else { bounds.pack_rows }
        .max(bounds.chunk_rows);
    let layers = net.spec().layers;
    let bytes = |stored_blocks, slots| {
        Engine::bytes(
            net,
            StepSize { rows, stored_blocks, backward: true },
            (slots, bounds.adapter_params),
            bounds.layouts,
        )
    };
    let wanted = if bounds.slots == 0 { AUTO_USERS } else { bounds.slots }.min(bounds.users.max(1));
    let mut slots = wanted;
    while slots > 1 && bounds.slots == 0 && bytes(0, slots) > bounds.budget {
        slots /= 2;
    }
    let stored = match bounds.recompute {
        Recompute::Always => 0,
        Recompute::Never => layers,
        Recompute::Auto => {
            (0..=layers).rev().find(|&s| bytes(s, slots) <= bounds.budget).unwrap_or(0)
        }
    };
    let total = bytes(stored, slots);
    anyhow::ensure!(
        total <= bounds.budget,
        "{slots} users in flight and packs of {rows} rows need {:.2} GB, the budget is {:.2} GB",
        gigabytes(total),
        gigabytes(bounds.budget)
    );
    let step = StepSize { rows, stored_blocks: stored, backward: true };
    Ok(Sizes { step, slots: u32::try_from(slots)?, bytes: total })
}

/// Sizes for a stage of a session's run on the backend of `net`: [`choose`] on processors, with the hint where nothing
/// fits; on a GPU what its memory holds.
///
/// # Errors
/// When even the smallest plan does not fit, with the numbers.
pub(crate) fn fit<B: Ops>(
    session: &Session,
    net: &Network<B>,
    (lists, bounds): (&SiteLists, Bounds),
    hint: &'static str,
) -> anyhow::Result<Sizes> {
    match session.room {
        None => choose(net, bounds).input(hint),
        Some(room) => {
            let base = (net.spec(), net.max_positions());
            Ok(gpu::choose(base, (lists, bounds), room)?.sizes)
        }
    }
}

impl Bounds {
    /// The bounds of a session's individual stage for `users` users of this rank.
    pub(crate) fn of(session: &Session, users: usize) -> Self {
        let engine = &session.config.engine;
        Self {
            budget: budget(session),
            pack_rows: engine.pack_tokens,
            chunk_rows: session.rules.chunk_rows,
            slots: engine.users_in_flight,
            users,
            adapter_params: session.adapter_params(),
            layouts: session.lists.lists().len(),
            recompute: engine.recompute,
            gathered: 0,
        }
    }
}

/// Bytes left of the budget once the base is mapped.
pub(crate) fn budget(session: &Session) -> usize {
    bytes(session.config.engine.memory_gb).saturating_sub(session.base.mapped_bytes())
}

/// A number of 10^9 bytes.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked positive by whoever read it"
)]
fn bytes(gigabytes: f64) -> usize {
    (gigabytes * 1e9) as usize
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn gigabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e9
}

/// Work of the individual stage, counted from the users' own examples.
#[derive(Debug, Default)]
struct Work {
    items: usize,
    steps: u64,
    tokens: u64,
    unusable: usize,
}

fn count(session: &Session) -> anyhow::Result<Work> {
    let mut work = Work::default();
    for record in session.data.users() {
        let record = record?;
        let recipe = session.config.individual.training_of(&record.id);
        let Ok((examples, _)) = session.examples(&record) else {
            work.unusable += 1;
            continue;
        };
        let epochs = u64::from(recipe.epochs);
        work.items += examples.len();
        work.steps += examples.len().div_ceil(recipe.batch_size as usize) as u64 * epochs;
        work.tokens += examples.iter().map(|e| e.tokens.len() as u64).sum::<u64>() * epochs;
    }
    Ok(work)
}

/// What the stages of a run take of a GPU.
struct Needs {
    individual: Choice,
    population: Option<Choice>,
    prediction: Forecast,
}

/// The base's form and the positions that are used of it.
fn form(session: &Session) -> (&BaseSpec, usize) {
    let spec = session.base.spec();
    (spec, session.config.prompt.max_length.min(spec.max_positions))
}

fn individual(session: &Session, comm: &dyn Communicator, room: Room) -> anyhow::Result<Choice> {
    let mine = session.index().personal.len().div_ceil(comm.size());
    gpu::choose(form(session), (&session.lists, Bounds::of(session, mine)), room)
}

fn shared(session: &Session, comm: &dyn Communicator, room: Room) -> anyhow::Result<Choice> {
    let (sites, lora) = population::adapter(session)?;
    let (lists, bounds) = population::bounds(session, (&sites, &lora), comm)?;
    gpu::choose(form(session), (&lists, bounds), room)
}

fn prediction(session: &Session, room: Room) -> anyhow::Result<Forecast> {
    let adapted = session.config.run.arms.iter().any(|arm| arm.adapted());
    let adapters = if adapted { u32::try_from(predict::GROUP)? } else { 0 };
    let asked = (predict::rows(session), (adapters, session.adapter_params()));
    gpu::predicting(form(session), &session.lists, asked, room)
}

/// Refuses a run up to a stage whose GPU cannot hold it, before anything is trained; on processors each stage does so
/// when it begins.
///
/// # Errors
/// What does not fit, with the numbers.
pub(crate) fn check(
    session: &Session,
    until: Until,
    comm: &dyn Communicator,
) -> anyhow::Result<()> {
    let Some(room) = session.room else { return Ok(()) };
    let arms = &session.config.run.arms;
    let trains = until <= Until::Individual || arms.iter().any(|arm| arm.merged());
    if trains && session.config.population.enabled {
        shared(session, comm, room)?;
    }
    if until == Until::Individual
        || (until > Until::Individual && arms.iter().any(|arm| arm.adapted()))
    {
        individual(session, comm, room)?;
    }
    if until >= Until::Predict {
        prediction(session, room)?;
    }
    Ok(())
}

impl Needs {
    fn of(session: &Session, comm: &dyn Communicator, room: Room) -> anyhow::Result<Self> {
        let enabled = session.config.population.enabled;
        Ok(Self {
            individual: individual(session, comm, room)?,
            population: enabled.then(|| shared(session, comm, room)).transpose()?,
            prediction: prediction(session, room)?,
        })
    }

    /// The end of a plan, from the line on memory on.
    fn lines(&self, session: &Session, room: Room, users: usize) -> String {
        let layers = session.base.spec().layers;
        let whole = |forecast: &Forecast| gigabytes(forecast.total().saturating_add(gpu::RESERVE));
        let mut text = gpu::lines(&self.individual, layers, room);
        if let Some(Choice { sizes, forecast }) = &self.population {
            let (rows, gb) = (sizes.step.rows, whole(forecast));
            let (slots, stored) = (sizes.slots, sizes.step.stored_blocks.min(layers));
            text += &format!(
                "population stage  {gb:.2} GB of it, packs of {rows} rows, {slots} gradients, {stored} of {layers} blocks stored\n"
            );
            if forecast.sums > 0 {
                let sums = gigabytes(forecast.sums);
                text += &format!(
                    "  gradient sums   {sums:>8.2} GB of that, gathered between GPUs; NCCL's own buffers are in the reserve\n"
                );
            }
        }
        let (rows, cache) = predict::rows(session);
        let gb = whole(&self.prediction);
        text += &format!(
            "predictions       {gb:.2} GB of it, packs of {rows} rows, {cache} of keys and values\n"
        );
        let adapter = session.adapter_params() * size_of::<f32>();
        let (mapped, tables) =
            (gigabytes(session.base.mapped_bytes()), self.individual.forecast.tables + adapter);
        text += &format!(
            "host memory       {mapped:.2} GB of base mapped, shared by the ranks of a node; {:.0} MB a rank of tables and an \
             adapter on its way, besides data and page-locked buffers; adapters not in flight lie in the store on disk, \
             {:.2} GB a rank",
            gigabytes(tables) * 1e3,
            gigabytes(users * adapter)
        );
        text
    }
}

/// What the run would do, on standard output of rank 0.
pub(crate) fn print_plan(session: &Session, comm: &dyn Communicator) -> anyhow::Result<Exit> {
    if comm.rank() > 0 {
        return Ok(Exit::Done);
    }
    let (config, index, spec) = (&session.config, session.index(), session.base.spec());
    let work = count(session)?;
    let users = index.personal.len();
    let mine = users.div_ceil(comm.size());
    let bounds = Bounds::of(session, mine);
    let (sizes, needs) = match session.room {
        None => {
            let hint =
                "raise engine.memory_gb, or lower engine.users_in_flight or engine.pack_tokens";
            let (_, positions) = form(session);
            (choose(&Network::new(Cpu, &session.base, positions)?, bounds).input(hint)?, None)
        }
        Some(room) => {
            let needs = Needs::of(session, comm, room)?;
            (needs.individual.sizes, Some((needs, room)))
        }
    };
    let base = session.base.describe();
    let queries: usize = index.personal.iter().map(|u| u.num_queries).sum();
    let (mapped, adapter) = (gigabytes(session.base.mapped_bytes()), bounds.adapter_params);
    let megabytes = |bytes: usize| gigabytes(bytes) * 1e3;
    let Work { items, steps, tokens, unusable } = work;
    let (aside, others) = (index.quarantined.len(), index.population.len());
    let (parameters, products) = (base.parameters, base.block_matmul_parameters);
    let (ranks, threads) = (comm.size(), rayon::current_num_threads());
    let stored = sizes.step.stored_blocks.min(spec.layers);
    let (slots, rows, layers) = (sizes.slots, sizes.step.rows, spec.layers);
    let (state, size) = (megabytes(adapter * 16), megabytes(adapter * 4));
    let (buffers, budget) = (gigabytes(sizes.bytes), config.engine.memory_gb);
    let memory = match needs {
        Some((needs, room)) => needs.lines(session, room, mine),
        None => format!(
            "memory            {buffers:.2} GB of buffers and adapters a rank; budget {budget:.2} GB with the base"
        ),
    };
    print(&format!(
        "base              {parameters} parameters, {products} in block products, \
         {mapped:.2} GB mapped, shared by the ranks of a node\n\
         users             {users} to personalise ({unusable} unusable, {aside} put aside), \
         {others} in the population\n\
         examples          {items} history items, {queries} queries\n\
         individual stage  {steps} optimiser steps, {tokens} tokens before shared prefixes\n\
         adapter           {adapter} parameters, {size:.2} MB, {state:.2} MB of state in flight\n\
         ranks             {ranks} with {threads} threads, up to {mine} users each\n\
         in flight         {slots} users a rank, packs of {rows} rows, {stored} of {layers} blocks stored\n\
         {memory}"
    ));
    Ok(Exit::Done)
}
