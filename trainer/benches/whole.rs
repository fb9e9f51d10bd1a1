//! The population stage of the event model: events/s of `WholeTrainer` on windows made of random numbers, one rank.
//!
//! Prints one JSON line. `--dump DIR` writes the model, the parameters at the start and every step's windows and hidden
//! events, so that `scripts/compare/pituning_torch.py` can train the same steps from the same start.
//!
//! `cargo bench -p trainer --bench whole -- --shape small`
#![expect(clippy::unwrap_used, reason = "a benchmark panics when wrong; its sizes are small")]
#![expect(clippy::print_stdout, reason = "the result goes to standard output")]
#![expect(clippy::cast_precision_loss, reason = "counts")]

use kernels::Cpu;
use kernels::random::{philox, uniform_f32};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use trainer::comm::{HostSync, Solo};
use trainer::config::{EarlyStop, Recipe, ScheduleKind};
use trainer::model::event::{
    Combine, EventNetwork, EventSpec, EventTable, History, Places, Prediction, Product,
};
use trainer::optim::Order;
use trainer::prompt::Example;
use trainer::stage::population::PopulationStep;
use trainer::stage::sums::ByHost;
use trainer::stage::whole::{Keep, Reconstruction, State, WholeTask, WholeTrainer, whole_key};

const MASK_RATIO: f64 = 0.15;

/// Sizes by name: a small model as the generated log has it, the paper's student (10.86 M), GPT-2 small's blocks.
fn shape(name: &str) -> EventSpec {
    let (hidden, layers, heads, window) = match name {
        "small" => (128, 4, 4, 16),
        "student" => (384, 6, 6, 32),
        "gpt2" => (768, 12, 12, 32),
        _ => panic!("a shape is small, student or gpt2, not {name}"),
    };
    EventSpec {
        columns: vec![48, 7, 200, 30],
        intents: 40,
        window,
        hidden,
        layers,
        heads,
        intermediate: 4 * hidden,
        combine: Combine::Concat,
        history: History::Last,
        product: Product::Elementwise,
        head_hidden: 64,
        prediction: Prediction::Scalar,
        norm_eps: 1e-5,
    }
}

fn recipe(batch_size: u32) -> Recipe {
    Recipe {
        lora_rank: 1,
        alpha: 1.0,
        rslora: false,
        dropout: 0.0,
        targets: Vec::new(),
        learning_rate: 1e-3,
        weight_decay: 0.01,
        betas: [0.9, 0.999],
        eps: 1e-8,
        clip_norm: 1.0,
        schedule: ScheduleKind::Constant,
        warmup_ratio: 0.0,
        epochs: 1,
        batch_size,
        max_length: 0,
        early_stop: EarlyStop { enabled: false, held_out: 0.0, patience: 1 },
    }
}

/// Distinct events and full windows of them.
fn log(spec: &EventSpec, count: u32) -> (EventTable, Vec<Example>) {
    let draw = |stream: u32, i: u32, n: u32| philox([stream, 1], [i, 0, 0, 0])[0] % n;
    let (mut table, events) = (EventTable::new(spec.columns.len()), 5000);
    for i in 0..events {
        let row: Vec<u32> = (0..).zip(&spec.columns).map(|(c, &n)| draw(c, i, n)).collect();
        table.add(&row).unwrap();
    }
    let window = u32::try_from(spec.window).unwrap();
    let one = |w: u32| {
        let mut tokens: Vec<u32> = (0..window).map(|i| draw(100, w * window + i, events)).collect();
        tokens.push(draw(101, w, u32::try_from(spec.intents).unwrap()));
        Example { tokens, prompt_len: spec.window }
    };
    (table, (0..count).map(one).collect())
}

/// When each step ended, the processors' time until then in seconds, and its loss.
struct Clock(Vec<(Instant, f64, f32)>);

/// Seconds that all threads of the process have had of the processors: fields 14 and 15 of Linux's `stat`, in hundredths.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

impl Keep for Clock {
    fn step(&mut self, step: PopulationStep) {
        self.0.push((Instant::now(), cpu_seconds(), step.loss));
    }
    fn epoch(&mut self, _: u32, _: Option<f64>) {}
    fn every(&self) -> u32 {
        0
    }
    fn checkpoint(&mut self, _: &State) -> trainer::stage::Result<()> {
        Ok(())
    }
}

/// The case as files: `case.json`, and `params.bin`, little-endian `f32` tensor after tensor.
fn dump(
    folder: &Path,
    (spec, table): (&EventSpec, &EventTable),
    task: &WholeTask<'_>,
    params: &[f32],
) {
    std::fs::create_dir_all(folder).unwrap();
    let order =
        Order::new(u32::try_from(task.windows.len()).unwrap(), task.recipe.batch_size, 0, task.key);
    let hidden = |i: u32| -> Vec<u32> {
        let is = |p: &u32| f64::from(uniform_f32(task.key, [i, 0, *p, 0x4d41_534b])) < MASK_RATIO;
        (0..u32::try_from(spec.window).unwrap()).filter(is).collect()
    };
    let window = |&i: &u32| {
        let example = &task.windows[i as usize];
        let rows: Vec<&[u32]> =
            example.tokens[..spec.window].iter().map(|&row| table.row(row).unwrap()).collect();
        json!({ "events": rows, "intent": example.tokens[spec.window], "hidden": hidden(i) })
    };
    let steps: Vec<Vec<Value>> = order.batches().map(|b| b.iter().map(window).collect()).collect();
    let places = Places::new(spec);
    let tensors: Vec<Value> =
        places.tensors().iter().map(|p| json!({ "name": p.name, "dims": p.dims })).collect();
    let recipe = task.recipe;
    let case = json!({
        "spec": spec, "tensors": tensors, "steps": steps, "recipe": recipe,
        "lambda": task.reconstruction.map(|r| r.lambda),
    });
    serde_json::to_writer(BufWriter::new(File::create(folder.join("case.json")).unwrap()), &case)
        .unwrap();
    let mut file = BufWriter::new(File::create(folder.join("params.bin")).unwrap());
    params.iter().for_each(|x| file.write_all(&x.to_le_bytes()).unwrap());
}

fn main() {
    let mut options: BTreeMap<String, String> = BTreeMap::new();
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(name) = words.next() {
        options.insert(name, words.next().unwrap());
    }
    let mut take = |name: &str, default: &str| options.remove(name).unwrap_or(default.to_owned());
    let name = take("--shape", "small");
    let steps: u32 = take("--steps", "12").parse().unwrap();
    let batch: u32 = take("--batch", "128").parse().unwrap();
    let threads: usize = take("--threads", "2").parse().unwrap();
    let num_shards: u32 = take("--shards", "8").parse().unwrap();
    let pack_rows: usize = take("--pack-rows", "2048").parse().unwrap();
    let folder = take("--dump", "");
    assert!(options.is_empty(), "unknown: {options:?}");

    let spec = shape(&name);
    let (table, windows) = log(&spec, steps * batch);
    let recipe = recipe(batch);
    let task = WholeTask {
        windows: &windows,
        losses: &[],
        validation: &[],
        recipe: &recipe,
        reconstruction: Some(Reconstruction { mask_ratio: MASK_RATIO, lambda: 1.0 }),
        key: whole_key(1, "population"),
        num_shards,
    };
    let places = Places::new(&spec);
    let mut params = vec![0.0; places.len()];
    places.initialise([1, 2], &mut params);
    if !folder.is_empty() {
        dump(&PathBuf::from(folder), (&spec, &table), &task, &params);
    }

    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let mut clock = Clock(Vec::new());
    pool.install(|| {
        let mut net = EventNetwork::new(Cpu, spec.clone()).unwrap();
        let mut trainer = WholeTrainer::new(&mut net, &table, pack_rows).unwrap();
        let mut sums = ByHost::new(HostSync::new(num_shards));
        let (state, stop) = (State::new(params), AtomicBool::new(false));
        trainer.run((&Solo::new(), &mut sums), &task, state, &mut clock, &stop).unwrap();
    });
    // The first step pays for cold memory; so does the other loop's.
    let (first, last) = (&clock.0[0], &clock.0[clock.0.len() - 1]);
    let (seconds, cpu_seconds) = ((last.0 - first.0).as_secs_f64(), last.1 - first.1);
    let events = (clock.0.len() - 1) * batch as usize * spec.window;
    let losses: Vec<f32> = clock.0.iter().map(|c| c.2).collect();
    let result = json!({
        "events_per_s": events as f64 / seconds, "seconds_per_step": seconds / (losses.len() - 1) as f64,
        "events_per_cpu_s": events as f64 / cpu_seconds,
        "steps": losses.len(), "batch": batch, "window": spec.window, "parameters": places.len(),
        "threads": threads, "shards": num_shards, "pack_rows": pack_rows, "shape": name,
        "losses": losses,
    });
    println!("{result}");
}
