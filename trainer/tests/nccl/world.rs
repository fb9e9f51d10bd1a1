//! A tiny base on the emulator, and the population stage on it.

use crate::job::Ended;
use crate::rank::say;
use emulator::{Emulator, Memory, Mode};
use kernels::gpu::{Device, Gpu, Launch, Product, Work};
use kernels::random::philox;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use trainer::comm::Communicator;
use trainer::config::{EarlyStop, Recipe};
use trainer::lora::{AdapterSpec, SiteLists, Target};
use trainer::model::activations::StepSize;
use trainer::model::cache::MappedBase;
use trainer::model::network::Network;
use trainer::prompt::Example;
use trainer::stage::engine::Engine;
use trainer::stage::individual::{End, PackRules};
use trainer::stage::population::{Task, run};
use trainer::stage::sums::ShardSums;

/// What a step of the stage launches.
const MODULES: [&str; 13] = [
    "activation",
    "attention",
    "attention_backward",
    "embedding",
    "linear",
    "loss",
    "lora_expand",
    "lora_gradient",
    "lora_shrink",
    "norm",
    "optim",
    "rope",
    "shards",
];

/// Of the adapter.
const LORA_RANK: u32 = 4;

/// A way to add gradients on the device of these tests.
pub(crate) type Way = dyn ShardSums<Gpu<Watched>>;

/// The emulator; launches are lines of the fake libraries' log.
#[derive(Debug)]
pub(crate) struct Watched {
    emulator: Emulator,
    log: PathBuf,
    /// After such a line of the log the next launch fails.
    fails_after: Mutex<Option<String>>,
}

fn log_of_rank(rank: usize) -> PathBuf {
    PathBuf::from(std::env::var_os("FAKE_NCCL_LOG").unwrap()).join(rank.to_string())
}

fn append(log: &PathBuf, line: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(log).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// A line of this rank's log.
pub(crate) fn mark(comm: &dyn Communicator, line: &str) {
    append(&log_of_rank(comm.rank()), &format!("mark {line}"));
}

impl Watched {
    /// The first launch after a line of the log that begins with `call` fails.
    pub(crate) fn fail_after_call(&self, call: &str) {
        *self.fails_after.lock().unwrap() = Some(call.to_owned());
    }

    fn fails(&self) -> bool {
        let asked = self.fails_after.lock().unwrap();
        asked.as_ref().is_some_and(|call| {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            log.lines().any(|line| line.starts_with(call))
        })
    }
}

impl Device for Watched {
    type Memory = Memory;

    fn alloc(&self, bytes: usize) -> kernels::Result<Memory> {
        self.emulator.alloc(bytes)
    }

    fn address(&self, memory: &Memory) -> u64 {
        Device::address(&self.emulator, memory)
    }

    fn write(&self, dst: &Memory, offset: usize, src: &[u8]) -> kernels::Result<()> {
        self.emulator.write(dst, offset, src)
    }

    fn read(&self, src: &Memory, offset: usize, dst: &mut [u8]) -> kernels::Result<()> {
        self.emulator.read(src, offset, dst)
    }

    fn zero(&self, dst: &Memory, offset: usize, len: usize) -> kernels::Result<()> {
        self.emulator.zero(dst, offset, len)
    }

    fn copy(
        &self,
        dst: (&Memory, usize),
        src: (&Memory, usize),
        len: usize,
    ) -> kernels::Result<()> {
        self.emulator.copy(dst, src, len)
    }

    fn launch(&self, launch: &Launch<'_>) -> kernels::Result<()> {
        if launch.module == "attention_backward" {
            append(&self.log, &format!("launch {}", launch.kernel));
        }
        if launch.module == "lora_gradient" {
            if self.fails() {
                let what = "the launch failed, as the test asked".to_owned();
                return Err(kernels::Error::Backend { op: "lora_gradient", what });
            }
            append(&self.log, &format!("launch {}", launch.kernel));
        }
        self.emulator.launch(launch)
    }

    fn product(&self, product: &Product) -> kernels::Result<()> {
        self.emulator.product(product)
    }

    fn capture(&self, number: u64, list: &[Work]) -> kernels::Result<bool> {
        self.emulator.capture(number, list)
    }

    fn replay(&self, number: u64) -> kernels::Result<()> {
        self.emulator.replay(number)
    }

    fn forget(&self, number: u64) -> kernels::Result<()> {
        self.emulator.forget(number)
    }
}

/// [`crate::job::job`] of ranks that find the device code compiled: that may take longer than a job.
#[track_caller]
pub(crate) fn job(name: &str, ranks: usize, fault: &str) -> Ended {
    static COMPILED: OnceLock<()> = OnceLock::new();
    COMPILED.get_or_init(|| compile(&MODULES));
    crate::job::job(name, ranks, fault)
}

/// Compiles device code of these names.
#[track_caller]
pub(crate) fn compile(modules: &[&str]) {
    let emulator = Emulator::open(Mode::Fast, &[]).unwrap_or_else(|error| panic!("{error}"));
    for module in modules {
        emulator.load(module).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// What is trained on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    num_shards: u32,
}

impl Setting {
    /// Optimiser steps: batches of seven of nine examples, so the second has two, fewer than there are shards.
    pub(crate) const STEPS: usize = 2;
    const BATCH: u32 = 7;
    const EXAMPLES: u32 = 9;

    pub(crate) fn new(num_shards: u32) -> Self {
        Self { num_shards }
    }
}

/// What the stage left.
#[derive(Debug, Clone)]
pub(crate) struct Trained {
    params: Vec<f32>,
    /// Loss and gradient norm.
    pub(crate) steps: Vec<(f32, f32)>,
}

impl Trained {
    /// A line that tells its bits.
    pub(crate) fn said(&self) -> String {
        let hash = blake3::hash(bytemuck::cast_slice(&self.params));
        let steps = self.steps.iter().map(|(l, n)| format!(" {:x} {:x}", l.to_bits(), n.to_bits()));
        format!("{}{}", hash.to_hex(), steps.collect::<String>())
    }
}

impl PartialEq for Trained {
    fn eq(&self, other: &Self) -> bool {
        self.said() == other.said()
    }
}

pub(crate) struct World {
    pub(crate) gpu: Gpu<Watched>,
    net: Network<Gpu<Watched>>,
    lists: SiteLists,
    targets: Vec<Target>,
    examples: Vec<Example>,
}

fn tokens(i: u32, len: u32) -> Vec<u32> {
    (0..len).map(|t| 3 + philox([i, 0x6e], [t, 0, 0, 0])[0] % 94).collect()
}

/// The device of a rank, with up to `graphs` graphs.
pub(crate) fn gpu(comm: &dyn Communicator, graphs: usize) -> Gpu<Watched> {
    let emulator = Emulator::open(Mode::Fast, &[]).unwrap_or_else(|error| panic!("{error}"));
    let log = log_of_rank(comm.rank());
    Gpu::with_graphs(Watched { emulator, log, fails_after: Mutex::new(None) }, graphs).unwrap()
}

impl World {
    /// A golden base of two blocks.
    pub(crate) fn open(comm: &dyn Communicator) -> Self {
        Self::on(gpu(comm, 0))
    }

    /// The same on this device.
    pub(crate) fn on(gpu: Gpu<Watched>) -> Self {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/llama_tied/base");
        let folder = tempfile::tempdir().unwrap();
        let source = trainer::model::weights::open(golden.as_ref()).unwrap();
        let base = MappedBase::load(&gpu, source.as_ref(), folder.path()).unwrap();
        let net = Network::new(gpu.clone(), &base, 64).unwrap();
        assert_eq!(base.spec().layers, 2, "what the tests say of buckets");
        let targets = Target::parse_all(&["q", "v", "down"]).unwrap();
        let lists = SiteLists::of_targets(base.spec(), [targets.as_slice()]).unwrap();
        let example = |i: u32| Example { tokens: tokens(i, 8 + i % 5), prompt_len: 5 };
        Self { gpu, net, lists, targets, examples: (0..Setting::EXAMPLES).map(example).collect() }
    }

    /// Parameters of the adapter.
    pub(crate) fn params(&self) -> usize {
        self.lists.find(&self.targets).unwrap().1.params(LORA_RANK as usize)
    }

    /// The stage; every slot must be free afterwards.
    pub(crate) fn train(
        &self,
        comm: &dyn Communicator,
        sums: &mut Way,
        setting: Setting,
    ) -> trainer::stage::Result<Trained> {
        let lora = AdapterSpec {
            lora_rank: LORA_RANK,
            alpha: 8.0,
            rslora: false,
            dropout: 0.1,
            targets: self.targets.clone(),
        };
        let recipe = Recipe {
            lora_rank: lora.lora_rank,
            alpha: lora.alpha,
            rslora: false,
            dropout: lora.dropout,
            targets: Vec::new(),
            learning_rate: 0.01,
            epochs: 1,
            batch_size: Setting::BATCH,
            early_stop: EarlyStop { enabled: false, held_out: 0.3, patience: 1 },
            ..Recipe::named("oppu-code").unwrap()
        };
        let params = self.params();
        // Room for two or three examples: a rank alone has several packs in a batch.
        let size = StepSize { rows: 32, stored_blocks: 2, backward: true };
        let slots = 1 + setting.num_shards;
        let mut engine = Engine::new(&self.net, &self.lists, size, (slots, params)).unwrap();
        let rules = PackRules { chunk_rows: 32, share_prefixes: true };
        let num_shards = setting.num_shards;
        let task = Task { examples: &self.examples, recipe, lora, seed: 3, num_shards };
        let (mut steps, stop) = (Vec::new(), AtomicBool::new(false));
        let mut watch = |step: trainer::stage::population::PopulationStep| {
            steps.push((step.loss, step.grad_norm));
            stop.store(false, Ordering::Relaxed);
        };
        let ended = run(&mut engine, rules, (comm, sums), &task, &mut watch, &stop);
        if engine.slabs.num_free() != slots as usize {
            say(comm, "a slot was not given back");
        }
        let (end, params) = ended?;
        assert_eq!((end, steps.len()), (End::Complete, Setting::STEPS));
        Ok(Trained { params, steps })
    }
}
