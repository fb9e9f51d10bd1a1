//! Every parameter of a model: one step of both goals, of the optimiser, and twenty steps of the population stage.

use crate::bound;
use crate::step_bound::{ROUNDING, distance, norm};
use crate::world::{Emulated, Model, ROWS, Sample, bits, emulated, pack, specs, upload};
use emulator::Mode;
use kernels::backend::Buffer;
use kernels::optim::{AdamW, Update};
use kernels::{Cpu, Ops};
use std::sync::atomic::AtomicBool;
use trainer::comm::{HostSync, Solo};
use trainer::config::{EarlyStop, Recipe, ScheduleKind};
use trainer::model::activations::StepSize;
use trainer::model::event::{Adapted, EventNetwork, EventStepper, Goal};
use trainer::prompt::Example;
use trainer::stage;
use trainer::stage::individual::End;
use trainer::stage::population::PopulationStep;
use trainer::stage::sums::{ByHost, OnGpu, ShardSums};
use trainer::stage::whole::{Keep, Reconstruction, State, WholeTask, WholeTrainer};

/// Losses and the gradient of every parameter that trains, and for intents the logits.
pub(crate) struct Step {
    pub(crate) losses: Vec<f32>,
    pub(crate) gradient: Vec<f32>,
    pub(crate) logits: Vec<f32>,
}

pub(crate) fn step<B: Ops>(
    model: &Model,
    net: &EventNetwork<B>,
    (samples, goal): (&[Sample], Goal),
    stored_blocks: usize,
) -> stage::Result<Step> {
    let packer = pack(model, samples);
    let size = StepSize { rows: ROWS, stored_blocks, backward: true };
    let mut stepper = EventStepper::new(net, size)?;
    let backend = net.trunk().backend();
    let mut grads = backend.alloc(net.places().trained())?;
    let pack = (packer.batch(), &model.table);
    let losses = stepper.train_whole(net, pack, goal, &mut grads)?.to_vec();
    let mut gradient = vec![f32::NAN; grads.len()];
    backend.read(&grads, 0, &mut gradient)?;
    let logits = match goal {
        Goal::Intents => {
            let adapted = Adapted { adapters: net.trunk().bare(), head_after: &[] };
            stepper.logits(net, pack, adapted)?.to_vec()
        }
        Goal::Events => Vec::new(),
    };
    Ok(Step { losses, gradient, logits })
}

/// What is summed over all rows and all but cancels: a softmax does not see what is added to all keys of a row or to all
/// logits of a row; with a query's and a key's gradient it is a difference of larger terms.
fn cancelled(name: &str) -> f64 {
    match name {
        "intent.b2" => 1.0 / 1_048_576.0,
        _ if name.contains(".q.") || name.contains(".k.") => ROUNDING,
        _ => 0.0,
    }
}

/// What is further from the CPU's step than allowed.
pub(crate) fn differing(model: &Model, frozen: usize, ours: &Step, theirs: &Step) -> Vec<String> {
    let (spec, mut out) = (&model.spec, Vec::new());
    let off = distance(&ours.logits, &theirs.logits);
    let allowed = bound::logits(spec) * norm(&theirs.logits);
    if off.is_nan() || off > allowed {
        out.push(format!("logits off by {off}, allowed {allowed}"));
    }
    let off = distance(&ours.losses, &theirs.losses);
    let allowed = if theirs.logits.is_empty() {
        let equal = f64::from(spec.columns[2]).ln();
        let far: f64 = theirs.losses.iter().map(|&l| (f64::from(l) - equal).powi(2)).sum();
        bound::SLOPE * bound::logits(spec) * far.sqrt()
    } else {
        bound::SLOPE * distance(&ours.logits, &theirs.logits) + 1e-5 * norm(&theirs.losses)
    };
    if off.is_nan() || off > allowed {
        out.push(format!("losses off by {off}, allowed {allowed}"));
    }
    let places = trainer::model::event::Places::partly(spec, frozen);
    let whole = norm(&theirs.gradient);
    for place in places.tensors().iter().filter(|place| place.offset >= places.frozen()) {
        let range = place.offset - places.frozen()..place.range().end - places.frozen();
        let (a, b) = (&ours.gradient[range.clone()], &theirs.gradient[range]);
        let (off, norm) = (distance(a, b), norm(b));
        let allowed = bound::gradient(spec) * norm + cancelled(&place.name) * whole;
        if off.is_nan() || off > allowed {
            out.push(format!("{}: off by {off:e} of {norm:e}, {whole:e} in all", place.name));
        }
    }
    out
}

pub(crate) fn goals(model: &Model) -> [(Goal, Vec<Sample>); 2] {
    [
        (Goal::Intents, Sample::intents(model, 300, 18)),
        (Goal::Events, Sample::hidden(model, 400, 16)),
    ]
}

#[test]
fn one_step_of_all_parameters_is_that_of_the_cpu() {
    let device: Emulated = emulated(Mode::Fast, &[]);
    for (name, spec) in specs() {
        let model = Model::new(&spec, 1);
        for frozen in [0, 1] {
            let (cpu, gpu) = (model.partly(Cpu, frozen), model.partly(device.clone(), frozen));
            for (goal, samples) in goals(&model) {
                let theirs = step(&model, &cpu, (&samples, goal), 2).unwrap();
                for stored in [2, 0] {
                    let ours = step(&model, &gpu, (&samples, goal), stored).unwrap();
                    let found = differing(&model, frozen, &ours, &theirs);
                    let what = format!("{name}, {goal:?}, {frozen} frozen, {stored} stored");
                    assert_eq!(found, Vec::<String>::new(), "{what}");
                }
            }
        }
    }
}

fn update(len: usize) -> Update {
    Update {
        offset: 0,
        len: u32::try_from(len).unwrap(),
        step: 1,
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        clip_norm: 1.0,
    }
}

/// A step with this gradient; the parameters after it.
fn updated<B: Ops>(net: &mut EventNetwork<B>, gradient: &[f32]) -> Vec<f32> {
    let backend = net.trunk().backend();
    let mut grads = upload(backend, gradient);
    let [mut m, mut v] = [(); 2].map(|()| backend.alloc(gradient.len()).unwrap());
    let (mut updates, mut norms) = (backend.alloc(1).unwrap(), backend.alloc(1).unwrap());
    backend.write(&mut updates, 0, &[update(gradient.len())]).unwrap();
    net.adamw(|backend, params| {
        backend.adamw(AdamW {
            updates: &updates,
            num_updates: 1,
            params,
            grads: &mut grads,
            m: &mut m,
            v: &mut v,
            norms: &mut norms,
        })
    })
    .unwrap();
    let mut params = vec![f32::NAN; net.places().len()];
    net.read(&mut params).unwrap();
    params
}

/// Roundings to `f32` of a parameter in one step, `2^-24` each, doubled.
const OPTIMISER: f64 = 2.0 * 12.0 / 16_777_216.0;

/// From the device's own gradient the CPU's step, and a model on the device that is the one of its new parameters.
#[test]
fn a_step_makes_the_model_anew() {
    let device: Emulated = emulated(Mode::Fast, &[]);
    for (name, spec) in specs() {
        let model = Model::new(&spec, 1);
        for frozen in [0, 1] {
            let (mut cpu, mut gpu) =
                (model.partly(Cpu, frozen), model.partly(device.clone(), frozen));
            for (goal, samples) in goals(&model) {
                let before = step(&model, &gpu, (&samples, goal), 2).unwrap();
                let (a, b) =
                    (updated(&mut gpu, &before.gradient), updated(&mut cpu, &before.gradient));
                let (off, allowed) = (distance(&a, &b), OPTIMISER * norm(&b));
                assert!(off <= allowed, "{name}, {goal:?}: off by {off:e}, allowed {allowed:e}");
                let after = step(&model, &gpu, (&samples, goal), 2).unwrap();
                let anew = Model { params: a, ..Model::new(&spec, 1) };
                let own = anew.partly(device.clone(), frozen);
                let made = step(&anew, &own, (&samples, goal), 2).unwrap();
                for (a, b) in [(&after.losses, &made.losses), (&after.gradient, &made.gradient)] {
                    assert_eq!(bits(a), bits(b), "{name}, {goal:?}, {frozen} frozen");
                }
                assert_ne!(bits(&after.losses), bits(&before.losses), "{name}, {goal:?}");
            }
        }
    }
}

#[derive(Default)]
struct Told(Vec<f64>);

impl Keep for Told {
    fn step(&mut self, step: PopulationStep) {
        self.0.push(f64::from(step.loss));
    }
    fn epoch(&mut self, _: u32, _: Option<f64>) {}
    fn every(&self) -> u32 {
        0
    }
    fn checkpoint(&mut self, _: &State) -> stage::Result<()> {
        Ok(())
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
        schedule: ScheduleKind::Constant,
        warmup_ratio: 0.0,
        epochs: 20,
        batch_size: 12,
        max_length: 0,
        early_stop: EarlyStop { enabled: false, held_out: 0.0, patience: 1 },
    }
}

/// The population stage with these sums: loss of each step, and the state in the end.
fn trained<B: Ops>(
    (model, frozen): (&Model, usize),
    backend: B,
    (sums, num_shards): (&mut dyn ShardSums<B>, u32),
    recipe: &Recipe,
) -> (Vec<f64>, State) {
    let mut net = model.partly(backend, frozen);
    let windows: Vec<Example> =
        Sample::intents(model, 500, 12).iter().map(Sample::example).collect();
    let (stop, mut told) = (AtomicBool::new(false), Told::default());
    let task = WholeTask {
        windows: &windows,
        losses: &[],
        validation: &[],
        recipe,
        reconstruction: Some(Reconstruction { mask_ratio: 0.3, lambda: 0.5 }),
        key: [5, 6],
        num_shards,
    };
    let state = State::partly(model.params.clone(), net.places().frozen());
    let (end, state) = WholeTrainer::new(&mut net, &model.table, ROWS)
        .unwrap()
        .run((&Solo::new(), sums), &task, state, &mut told, &stop)
        .unwrap();
    assert_eq!(end, End::Complete);
    (told.0, state)
}

/// Loss of each step.
fn curve<B: Ops>(model: &Model, backend: B, num_shards: u32) -> Vec<f64> {
    let mut sums = ByHost::new(HostSync::new(num_shards));
    trained((model, 0), backend, (&mut sums, num_shards), &recipe()).0
}

/// A rank alone adds its shards on the GPU to the bytes that the host adds them to.
#[test]
fn sums_on_the_gpu_are_those_of_the_host() {
    let device: Emulated = emulated(Mode::Fast, &[]);
    let recipe = Recipe { epochs: 2, batch_size: 7, ..recipe() };
    for (name, spec) in specs() {
        let model = Model::new(&spec, 2);
        // One shard, as many as a batch has windows or fewer, more.
        for (shards, frozen) in [(1, 0), (3, 0), (3, 2), (9, 1)] {
            let mut host = ByHost::new(HostSync::new(shards));
            let by_host = trained((&model, frozen), device.clone(), (&mut host, shards), &recipe);
            let mut on_gpu = OnGpu::new(shards);
            let got = trained((&model, frozen), device.clone(), (&mut on_gpu, shards), &recipe);
            assert_eq!(got.0.len(), 4);
            assert_eq!(got.0, by_host.0, "{name}, {shards} shards, {frozen} frozen");
            for (a, b) in [(&got.1.params, &by_host.1.params), (&got.1.m, &by_host.1.m)] {
                assert_eq!(bits(a), bits(b), "{name}, {shards} shards, {frozen} frozen");
            }
            assert_eq!(got.1, by_host.1, "{name}, {shards} shards, {frozen} frozen");
        }
    }
}

/// A loss is off by its own roundings, and by those of the gradients that led there: what was descended so far is a
/// sum of gradient times step, and each of them is off by as much as a gradient. One shard stays on the device, two are
/// added by the host.
#[test]
fn the_loss_falls_as_on_the_cpu() {
    let device: Emulated = emulated(Mode::Fast, &[]);
    for ((name, spec), shards) in specs().into_iter().zip([2, 1]) {
        let model = Model::new(&spec, 2);
        let (ours, theirs) = (curve(&model, device.clone(), shards), curve(&model, Cpu, shards));
        assert_eq!((ours.len(), theirs.len()), (20, 20));
        for (step, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            let descended = (theirs[0] - b).abs();
            let allowed = bound::logits(&spec) * theirs[0] + bound::gradient(&spec) * descended;
            let off = (a - b).abs();
            assert!(off <= allowed, "{name}, step {step}: {a} and {b}, allowed {allowed}");
        }
        assert!(ours[19] < 0.6 * ours[0], "{name}: {} to {}", ours[0], ours[19]);
    }
}
