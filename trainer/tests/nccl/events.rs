//! The population stage of an event model, whose every parameter trains, on GPUs: gradients summed where they lie.
//!
//! As in [`crate::stage`], with the same device, fake NCCL and log.

use crate::job::{Ended, is_rank};
use crate::rank::{run, sync};
use crate::stage::{gathers, order};
use crate::world::{Watched, Way, compile, gpu, mark};
use kernels::gpu::{Gpu, GpuBuf};
use kernels::random::philox;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use trainer::comm::nccl::NcclOptions;
use trainer::comm::{Communicator, HostSync};
use trainer::config::{EarlyStop, Recipe};
use trainer::model::event::{
    Combine, EventNetwork, EventSpec, EventTable, History, Places, Prediction, Product,
};
use trainer::prompt::Example;
use trainer::stage::Result;
use trainer::stage::individual::End;
use trainer::stage::population::PopulationStep;
use trainer::stage::sums::{BetweenGpus, ByHost, OnGpu, Part, ShardSums};
use trainer::stage::whole::{Keep, Reconstruction, State, WholeTask, WholeTrainer, whole_key};

const LIMIT: Duration = Duration::from_secs(30);

/// What a step launches.
const MODULES: [&str; 13] = [
    "activation",
    "attention",
    "attention_backward",
    "classify",
    "embedding",
    "intent",
    "intent_gradient",
    "intent_outer",
    "linear",
    "norm",
    "optim",
    "pool",
    "shards",
];

/// [`crate::job::job`] of ranks that find the device code compiled.
#[track_caller]
fn job(name: &str, ranks: usize, fault: &str) -> Ended {
    static COMPILED: OnceLock<()> = OnceLock::new();
    COMPILED.get_or_init(|| compile(&MODULES));
    crate::job::job(name, ranks, fault)
}

fn draw(stream: u32, i: u32, n: u32) -> u32 {
    philox([stream, 0x3403], [i, 0, 0, 0])[0] % n
}

/// A model whose number of parameters no four divides, so that shards lie at any 8 bytes.
fn spec() -> EventSpec {
    EventSpec {
        columns: vec![4, 7, 12],
        intents: 6,
        window: 6,
        hidden: 24,
        layers: 2,
        heads: 2,
        intermediate: 48,
        combine: Combine::Concat,
        history: History::Mean,
        product: Product::Elementwise,
        head_hidden: 12,
        prediction: Prediction::Linear,
        norm_eps: 1e-5,
    }
}

/// Optimiser steps: two epochs of batches of seven of twelve windows, so that every second has five.
const STEPS: usize = 4;

struct World {
    gpu: Gpu<Watched>,
    spec: EventSpec,
    table: EventTable,
    windows: Vec<Example>,
    num_shards: u32,
    /// Lowest blocks that stay.
    frozen: usize,
}

struct Told<'a> {
    steps: Vec<(u32, u32)>,
    epochs: Vec<u64>,
    stop: &'a AtomicBool,
    at: Option<u32>,
}

impl Keep for Told<'_> {
    fn step(&mut self, step: PopulationStep) {
        self.steps.push((step.loss.to_bits(), step.grad_norm.to_bits()));
        self.stop.store(self.at == Some(step.step), Ordering::Relaxed);
    }
    fn epoch(&mut self, _: u32, validation_loss: Option<f64>) {
        self.epochs.extend(validation_loss.map(f64::to_bits));
    }
    fn every(&self) -> u32 {
        0
    }
    fn checkpoint(&mut self, _: &State) -> Result<()> {
        Ok(())
    }
}

/// What the stage left.
#[derive(Debug, PartialEq)]
struct Trained {
    end: End,
    state: State,
    steps: Vec<(u32, u32)>,
    epochs: Vec<u64>,
}

impl Trained {
    /// A line that tells its bits.
    fn said(&self) -> String {
        let best = self.state.best.iter().map(|best| &best.params);
        let mut hash = blake3::Hasher::new();
        for values in [&self.state.params, &self.state.m, &self.state.v].into_iter().chain(best) {
            hash.update(bytemuck::cast_slice(values));
        }
        format!("{} {:?} {:?}", hash.finalize().to_hex(), self.steps, self.epochs)
    }
}

impl World {
    fn open(comm: &dyn Communicator, num_shards: u32, frozen: usize) -> Self {
        Self::on(gpu(comm, 0), num_shards, frozen)
    }

    fn on(gpu: Gpu<Watched>, num_shards: u32, frozen: usize) -> Self {
        let mut table = EventTable::new(3);
        let rows = (0..60).flat_map(|i| [i % 12 / 3, i / 12, i % 12]);
        table.add(&rows.collect::<Vec<u32>>()).unwrap();
        let window = |i: u32| {
            let len = 1 + draw(1, i, 6);
            let mut tokens: Vec<u32> = (0..len).map(|k| draw(2, i * 6 + k, 60)).collect();
            tokens.push(draw(3, i, 6));
            Example { tokens, prompt_len: len as usize }
        };
        let windows = (0..15).map(window).collect();
        Self { gpu, spec: spec(), table, windows, num_shards, frozen }
    }

    fn fresh(&self) -> State {
        let places = Places::partly(&self.spec, self.frozen);
        assert!(!places.trained().is_multiple_of(4), "what is said of the model");
        let mut params = vec![0.0; places.len()];
        places.initialise([1, 2], &mut params);
        State::partly(params, places.frozen())
    }

    /// The stage from `from` on, stopped by the last rank after so many steps in all.
    fn train(
        &self,
        comm: &dyn Communicator,
        sums: &mut Way,
        (from, at): (State, Option<u32>),
    ) -> Result<Trained> {
        let recipe = Recipe {
            learning_rate: 0.01,
            epochs: 2,
            batch_size: 7,
            early_stop: EarlyStop { enabled: true, held_out: 0.3, patience: 5 },
            ..Recipe::named("oppu-code").unwrap()
        };
        let task = WholeTask {
            windows: &self.windows[..12],
            losses: &[],
            validation: &self.windows[12..],
            recipe: &recipe,
            reconstruction: Some(Reconstruction { mask_ratio: 0.3, lambda: 0.5 }),
            key: whole_key(5, "population"),
            num_shards: self.num_shards,
        };
        let (stop, at) = (AtomicBool::new(false), at.filter(|_| comm.rank() + 1 == comm.size()));
        let mut told = Told { steps: Vec::new(), epochs: Vec::new(), stop: &stop, at };
        let mut net = EventNetwork::partly(self.gpu.clone(), self.spec.clone(), self.frozen)?;
        // Rows for two windows or three: a shard may have several packs.
        let mut trainer = WholeTrainer::new(&mut net, &self.table, 12)?;
        let (end, state) = trainer.run((comm, sums), &task, from, &mut told, &stop)?;
        Ok(Trained { end, state, steps: told.steps, epochs: told.epochs })
    }

    fn between(&self, comm: &dyn Communicator, bucket_bytes: usize) -> Box<Way> {
        let options = NcclOptions { buffer_bytes: 1 << 14, ..NcclOptions::new(self.num_shards) };
        let sync = sync(comm, options, LIMIT).unwrap();
        let sums = BetweenGpus::new(self.gpu.clone(), sync, self.num_shards);
        Box::new(sums.with_bucket_bytes(bucket_bytes))
    }
}

/// Ends each bucket as soon as it has begun, however late the fake's stream is: what is added to it later would show.
#[derive(Debug)]
struct AtOnce(Box<Way>);

impl ShardSums<Gpu<Watched>> for AtOnce {
    fn agree(&mut self, comm: &dyn Communicator, ids: &[u32]) -> Result<()> {
        self.0.agree(comm, ids)
    }

    fn bucket_bytes(&self) -> Option<usize> {
        self.0.bucket_bytes()
    }

    fn begin(
        &mut self,
        comm: &dyn Communicator,
        of: (&Gpu<Watched>, &mut GpuBuf<Watched, f32>),
        part: Part<'_>,
    ) -> Result<()> {
        self.0.begin(comm, of, part)?;
        self.0.finish()
    }

    fn finish(&mut self) -> Result<()> {
        self.0.finish()
    }

    fn scalars(&self, comm: &dyn Communicator, values: &[f64]) -> Result<f64> {
        self.0.scalars(comm, values)
    }
}

fn every_way(comm: &dyn Communicator, num_shards: u32, frozen: usize) -> String {
    let world = World::open(comm, num_shards, frozen);
    let fresh = || (world.fresh(), None);
    let host = || ByHost::new(HostSync::new(num_shards));
    let by_host = world.train(comm, &mut host(), fresh()).unwrap();
    assert_eq!((by_host.end, by_host.steps.len()), (End::Complete, STEPS));
    assert_eq!(by_host.epochs.len(), 2);
    for bucket_bytes in [0, usize::MAX] {
        mark(comm, &format!("buckets of {bucket_bytes}"));
        let mut sums = world.between(comm, bucket_bytes);
        let got = world.train(comm, &mut *sums, fresh()).unwrap();
        assert_eq!(got.said(), by_host.said(), "buckets of {bucket_bytes} bytes");
        assert_eq!(got.state, by_host.state);
        sums.close().unwrap();
    }
    mark(comm, "more ways");
    let mut sums = AtOnce(world.between(comm, 0));
    let got = world.train(comm, &mut sums, fresh()).unwrap();
    assert_eq!(got.said(), by_host.said(), "buckets ended at once");
    sums.0.close().unwrap();
    if comm.size() == 1 {
        let got = world.train(comm, &mut OnGpu::new(num_shards), fresh()).unwrap();
        assert_eq!(got.said(), by_host.said(), "on one GPU");
    }
    by_host.said()
}

#[test]
fn same_bytes_on_every_number_of_ranks_and_as_by_the_host() {
    if is_rank() {
        return run(|comm| every_way(comm, 5, 0));
    }
    let mut said = Vec::new();
    for ranks in 1..=4 {
        let name = "events::same_bytes_on_every_number_of_ranks_and_as_by_the_host";
        let ended = job(name, ranks, if ranks == 2 { "slow=1:3" } else { "" });
        for rank in 0..ranks {
            said.push(ended.said(rank).to_owned());
            assert_eq!(ended.count(rank, "error"), 0, "{:?}", ended.calls[rank]);
            assert_eq!(ended.count(rank, "ncclCommAbort"), 0);
            assert_eq!(gathers(&ended, rank), gathers(&ended, 0), "the same buckets on all ranks");
        }
        // Steps of two blocks: the first bucket goes off before the backward of the other block.
        assert_eq!(order(&ended, 0, 0), "LGLG".repeat(STEPS), "{ranks} ranks");
        assert_eq!(order(&ended, 0, usize::MAX), "LG".repeat(STEPS), "{ranks} ranks");
    }
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
}

#[test]
fn a_rank_without_a_shard_takes_part_and_frozen_blocks_stay() {
    if is_rank() {
        return run(|comm| every_way(comm, 2, 1));
    }
    let name = "events::a_rank_without_a_shard_takes_part_and_frozen_blocks_stay";
    let (alone, three) = (job(name, 1, ""), job(name, 3, ""));
    for rank in 0..3 {
        assert_eq!(three.said(rank), alone.said(0));
    }
    assert_eq!(three.count(2, "launch"), 0, "rank 2 holds none of two shards");
    assert_eq!(gathers(&three, 2), gathers(&three, 0));
}

/// A run cut in two by a stop after each of its steps, with work held back for graphs in the second part.
fn cut_in_two(comm: &dyn Communicator) -> String {
    let (world, held_back) = (World::open(comm, 5, 0), World::on(gpu(comm, 8), 5, 0));
    let whole = {
        let mut sums = ByHost::new(HostSync::new(5));
        world.train(comm, &mut sums, (world.fresh(), None)).unwrap()
    };
    for at in [1, 2, 3] {
        let mut sums = world.between(comm, 0);
        let first = world.train(comm, &mut *sums, (world.fresh(), Some(at))).unwrap();
        sums.close().unwrap();
        assert_eq!((first.end, first.steps.len()), (End::Stopped, at as usize));
        let mut sums = held_back.between(comm, 0);
        let rest = held_back.train(comm, &mut *sums, (first.state, None)).unwrap();
        sums.close().unwrap();
        assert_eq!(rest.state, whole.state, "stopped after step {at}");
        assert_eq!([first.steps, rest.steps].concat(), whole.steps);
    }
    whole.said()
}

#[test]
fn a_run_that_stops_goes_on_to_the_same_bytes() {
    if is_rank() {
        return run(cut_in_two);
    }
    let name = "events::a_run_that_stops_goes_on_to_the_same_bytes";
    let (one, two) = (job(name, 1, ""), job(name, 2, ""));
    assert_eq!([two.said(0), two.said(1)], [one.said(0); 2]);
}
