//! A tiny event model, a log with a rule in it, and ways to train on it.

use kernels::Cpu;
use kernels::random::philox;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use trainer::comm::{Communicator, HostSync, Threads};
use trainer::config::{EarlyStop, Recipe, ScheduleKind};
use trainer::model::event::{
    Combine, EventNetwork, EventSpec, EventTable, History, Places, Prediction, Product,
};
use trainer::prompt::Example;
use trainer::stage;
use trainer::stage::individual::End;
use trainer::stage::population::PopulationStep;
use trainer::stage::sums::ByHost;
use trainer::stage::whole::{Keep, Reconstruction, State, WholeTask, WholeTrainer, whole_key};

pub(crate) const SHARDS: u32 = 8;

/// Number `i` of a stream, in `0..n`.
pub(crate) fn draw(stream: u32, i: u32, n: u32) -> u32 {
    philox([stream, 0x3403], [i, 0, 0, 0])[0] % n
}

pub(crate) fn spec() -> EventSpec {
    EventSpec {
        columns: vec![4, 7, 12],
        intents: 6,
        window: 6,
        hidden: 24,
        layers: 2,
        heads: 2,
        intermediate: 48,
        combine: Combine::Concat,
        history: History::Last,
        product: Product::Elementwise,
        head_hidden: 12,
        prediction: Prediction::Scalar,
        norm_eps: 1e-5,
    }
}

/// Distinct events, and windows of them: the intent is the last event's, but where the event before it has the first
/// weekday it is that one's. A column tells of each event half of what it is.
pub(crate) struct Log {
    pub(crate) table: EventTable,
    pub(crate) windows: Vec<Example>,
}

impl Log {
    pub(crate) fn new(spec: &EventSpec, count: u32, seed: u32) -> Self {
        let mut table = EventTable::new(3);
        let rows = (0..60).flat_map(|i| [i % 12 / 3, i / 12, i % 12]);
        table.add(&rows.collect::<Vec<u32>>()).unwrap();
        let longest = u32::try_from(spec.window).unwrap();
        let intents = u32::try_from(spec.intents).unwrap();
        let window = |i: u32| {
            let len = if draw(seed, 9 * i, 4) == 0 {
                1 + draw(seed, 9 * i + 1, longest)
            } else {
                longest
            };
            let mut tokens: Vec<u32> =
                (0..len).map(|k| draw(seed + 1, i * longest + k, 60)).collect();
            let row = |back: u32| {
                let at = tokens[(len - back) as usize];
                table.row(at).unwrap()
            };
            let by = if len > 1 && row(2)[1] == 0 { 2 } else { 1 };
            let intent = row(by)[2] % intents;
            tokens.push(intent);
            Example { tokens, prompt_len: len as usize }
        };
        let windows = (0..count).map(window).collect();
        Self { table, windows }
    }
}

pub(crate) fn recipe() -> Recipe {
    Recipe {
        lora_rank: 1,
        alpha: 1.0,
        rslora: false,
        dropout: 0.0,
        targets: Vec::new(),
        learning_rate: 0.01,
        weight_decay: 0.01,
        betas: [0.9, 0.999],
        eps: 1e-8,
        clip_norm: 1.0,
        schedule: ScheduleKind::Linear,
        warmup_ratio: 0.1,
        epochs: 2,
        batch_size: 13,
        max_length: 0,
        early_stop: EarlyStop { enabled: false, held_out: 0.0, patience: 1 },
    }
}

pub(crate) fn task<'a>(log: &'a Log, recipe: &'a Recipe) -> WholeTask<'a> {
    WholeTask {
        windows: &log.windows,
        losses: &[],
        validation: &[],
        recipe,
        reconstruction: Some(Reconstruction { mask_ratio: 0.3, lambda: 0.5 }),
        key: whole_key(5, "population"),
        num_shards: SHARDS,
    }
}

pub(crate) fn fresh(spec: &EventSpec) -> State {
    partly_fresh(spec, 0)
}

/// The same with the lowest `frozen` blocks to stay.
pub(crate) fn partly_fresh(spec: &EventSpec, frozen: usize) -> State {
    let places = Places::partly(spec, frozen);
    let mut params = vec![0.0; places.len()];
    places.initialise([1, 2], &mut params);
    State::partly(params, places.frozen())
}

/// How many blocks a state leaves as they are; none for a state of another model.
fn frozen_blocks(spec: &EventSpec, state: &State) -> usize {
    let trains = |&n: &usize| Places::partly(spec, n).trained() == state.m.len();
    (0..=spec.layers).find(trains).unwrap_or(0)
}

/// What must not matter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) ranks: usize,
    pub(crate) threads: usize,
    pub(crate) pack_rows: usize,
}

pub(crate) const ONE: Setting = Setting { ranks: 1, threads: 1, pack_rows: 4096 };

/// When a run is told to stop, and by which rank.
pub(crate) type Stop = Option<(usize, u32)>;

/// What a rank has told and kept in the end.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Bits of (loss, gradient norm) of each step.
    pub(crate) steps: Vec<(u32, u32)>,
    pub(crate) epochs: Vec<(u32, Option<f64>)>,
    pub(crate) kept: Vec<State>,
    every: u32,
}

struct Keeper<'a> {
    told: Told,
    stop: &'a AtomicBool,
    at: Option<u32>,
}

impl Keep for Keeper<'_> {
    fn step(&mut self, step: PopulationStep) {
        self.told.steps.push((step.loss.to_bits(), step.grad_norm.to_bits()));
        self.stop.store(self.at == Some(step.step), Ordering::Relaxed);
    }
    fn epoch(&mut self, epoch: u32, validation_loss: Option<f64>) {
        self.told.epochs.push((epoch, validation_loss));
    }
    fn every(&self) -> u32 {
        self.told.every
    }
    fn checkpoint(&mut self, state: &State) -> stage::Result<()> {
        self.told.kept.push(state.clone());
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct Trained {
    pub(crate) end: End,
    pub(crate) state: State,
    pub(crate) told: Told,
    /// The parameters on the backend.
    pub(crate) model: Vec<f32>,
}

impl Trained {
    pub(crate) fn losses(&self) -> Vec<f32> {
        self.told.steps.iter().map(|&(loss, _)| f32::from_bits(loss)).collect()
    }
}

/// Everything in a state, as bits.
pub(crate) fn bits(state: &State) -> (u32, Vec<u32>, Option<(u64, u32)>) {
    let best = state.best.as_ref();
    let all = [&state.params, &state.m, &state.v];
    let values = all.into_iter().chain(best.map(|b| &b.params)).flatten();
    let values = values.map(|x| x.to_bits()).collect();
    (state.step, values, best.map(|b| (b.loss.to_bits(), b.epochs_since)))
}

/// What each rank has in the end, or the stage's error.
pub(crate) fn attempt(
    (spec, table, task): (&EventSpec, &EventTable, &WholeTask<'_>),
    setting: &Setting,
    (from, every, stop): (&State, u32, Stop),
) -> Vec<stage::Result<Trained>> {
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    let body = |comm: &Threads| {
        Ok(pool(setting.threads).install(|| {
            let frozen = frozen_blocks(spec, from);
            let mut net = EventNetwork::partly(Cpu, spec.clone(), frozen).unwrap();
            let halt = AtomicBool::new(false);
            let at = stop.filter(|&(rank, _)| rank == comm.rank()).map(|(_, step)| step);
            let told = Told { every, ..Told::default() };
            let mut keeper = Keeper { told, stop: &halt, at };
            let mut sums = ByHost::new(HostSync::new(task.num_shards));
            let ended = WholeTrainer::new(&mut net, table, setting.pack_rows)?.run(
                (comm, &mut sums),
                task,
                from.clone(),
                &mut keeper,
                &halt,
            );
            let mut model = vec![0.0; net.places().len()];
            net.read(&mut model)?;
            ended.map(|(end, state)| Trained { end, state, told: keeper.told, model })
        }))
    };
    Threads::run(setting.ranks, body).unwrap().into_iter().map(Result::unwrap).collect()
}

/// What the ranks have in the end, one and the same.
pub(crate) fn train(
    of: (&EventSpec, &EventTable, &WholeTask<'_>),
    setting: &Setting,
    from: (&State, u32, Stop),
) -> Trained {
    let mut ranks: Vec<Trained> =
        attempt(of, setting, from).into_iter().map(Result::unwrap).collect();
    let all = ranks.iter().map(|t| (bits(&t.state), t.told.steps.clone(), t.end == End::Complete));
    let distinct: BTreeSet<_> = all.collect();
    assert_eq!(distinct.len(), 1, "{} ranks agree", setting.ranks);
    ranks.swap_remove(0)
}
