//! The event model against the same model in candle: logits, losses, and the gradient of every parameter, of adapters
//! and of the users' changes of the intent table.
//!
//! The truth is candle in `f64`. What is allowed is what `f32` itself costs: the error of candle in `f32` on the same
//! numbers, times [`FACTOR`].
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![expect(clippy::cast_precision_loss, reason = "small counts")]
#![expect(clippy::cast_possible_truncation, reason = "an oracle's numbers rounded once")]

mod case;
mod hostile;
mod oracle;
mod partly;
#[path = "../../../kernels/tests/tolerance/mod.rs"]
mod tolerance;
mod users;

use candle_core::DType;
use case::{Model, Sample, noise, pack, plain, samples, specs, widen};
use kernels::cpu::CpuBuf;
use kernels::{Backend, Cpu};
use oracle::Window;
use std::ops::Range;
use tolerance::{EPS, no_worse, on_threads, same_bits};
use trainer::model::activations::StepSize;
use trainer::model::event::{Adapted, EventSpec, EventStepper, Goal, Place};
use trainer::pack::Packer;

/// Another order of additions than candle's.
const FACTOR: f64 = 2.0;
/// The same for one tensor of one window, where a single rounding far below is in every element.
const PART: f64 = 10.0;

fn stepper(model: &Model, rows: usize, stored_blocks: usize) -> EventStepper<Cpu> {
    EventStepper::new(&model.net, StepSize { rows, stored_blocks, backward: true }).unwrap()
}

fn bare(model: &Model) -> Adapted<'_, Cpu> {
    Adapted { adapters: model.net.trunk().bare(), head_after: &[] }
}

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

/// Asserts that a gradient is as near the truth as candle's in `f32`: each part, up to [`PART`], and all together, each
/// part weighed by its size.
///
/// Some parts are nothing but what rounding leaves of a sum that is zero (a softmax does not see a bias of all keys; the
/// logits' gradients add up to zero): there a few roundings of the largest gradient are allowed.
fn parts(what: &str, parts: &[(String, Range<usize>)], [got, naive, want]: [&[f64]; 3]) {
    let largest = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let mut joint: [Vec<f64>; 3] = Default::default();
    for (name, range) in parts {
        let [got, naive, want] = [got, naive, want].map(|x| &x[range.clone()]);
        let what = format!("{what}, {name}");
        let rms = (want.iter().map(|w| w * w).sum::<f64>() / want.len() as f64).sqrt();
        if rms < 1e-12 * largest {
            let allowed = 4.0 * EPS * largest;
            assert!(got.iter().all(|g| g.abs() <= allowed), "{what}: {got:?} for nothing");
            continue;
        }
        no_worse(&what, PART, &narrow(got), &narrow(naive), want);
        for (to, from) in joint.iter_mut().zip([got, naive, want]) {
            to.extend(from.iter().zip(want).map(|(x, w)| (x - w) / rms));
        }
    }
    let [got, naive, none] = joint;
    no_worse(&format!("{what}, all"), FACTOR, &narrow(&got), &narrow(&naive), &none);
}

fn tensors(places: &[Place]) -> Vec<(String, Range<usize>)> {
    places.iter().map(|p| (p.name.clone(), p.range())).collect()
}

/// Losses and the gradient of every parameter.
fn whole(model: &Model, packer: &Packer, goal: Goal, stored_blocks: usize) -> (Vec<f32>, Vec<f32>) {
    let mut grads = CpuBuf::from(vec![0.0; model.params.len()]);
    let losses = add_whole(model, packer, (goal, stored_blocks), &mut grads);
    (losses, read(&grads))
}

fn read(buffer: &CpuBuf<f32>) -> Vec<f32> {
    let mut values = vec![0.0; buffer.len()];
    Cpu.read(buffer, 0, &mut values).unwrap();
    values
}

fn add_whole(
    model: &Model,
    packer: &Packer,
    (goal, stored_blocks): (Goal, usize),
    grads: &mut CpuBuf<f32>,
) -> Vec<f32> {
    let pack = (packer.batch(), &model.table);
    let mut stepper = stepper(model, packer.rows(), stored_blocks);
    stepper.train_whole(&model.net, pack, goal, grads).unwrap().to_vec()
}

/// Windows of both goals.
fn goals(model: &Model) -> Vec<(Goal, Vec<Sample>)> {
    let events =
        (0..9).filter_map(|i| Sample::events(model, 700 + i, 1 + i as usize % model.spec.window));
    vec![(Goal::Intents, samples(model, 31, 18, true)), (Goal::Events, events.collect())]
}

fn windows(model: &Model, samples: &[Sample], weight: f32) -> Vec<Window> {
    samples.iter().map(|s| s.window(model, weight, None)).collect()
}

#[test]
fn logits_and_probabilities() {
    for (name, spec) in specs() {
        let model = Model::new(&spec, 1);
        let samples = samples(&model, 3, 12, false);
        let packer = pack(&model, &samples, 0.0);
        let mut stepper = stepper(&model, packer.rows(), 0);
        let pack = (packer.batch(), &model.table);
        let ours = stepper.logits(&model.net, pack, bare(&model)).unwrap().to_vec();
        let windows = windows(&model, &samples, 1.0);
        let want = model.oracle(DType::F64).all_logits(&windows);
        let naive = narrow(&model.oracle(DType::F32).all_logits(&windows));
        assert!(want.iter().any(|z| z.abs() > 0.05), "{name}: the model says nothing");
        no_worse(name, PART, &ours, &naive, &want);
        let ours = stepper.probabilities(&model.net, pack, bare(&model)).unwrap();
        for (p, z) in ours.chunks(spec.intents).zip(want.chunks(spec.intents)) {
            let sum: f64 = z.iter().map(|z| z.exp()).sum();
            for (p, z) in p.iter().zip(z) {
                let want = z.exp() / sum;
                assert!((f64::from(*p) - want).abs() < 1e-5, "{name}: {p} for {want}");
            }
        }
    }
}

#[test]
fn losses_and_the_gradient_of_every_parameter() {
    for (name, spec) in specs() {
        let model = Model::new(&spec, 2);
        for (goal, samples) in goals(&model) {
            let weight = 1.0 / samples.len() as f32;
            let packer = pack(&model, &samples, weight);
            let windows = windows(&model, &samples, weight);
            let (losses, want, _) = model.oracle(DType::F64).gradient(&windows);
            let (naive_losses, naive, _) = model.oracle(DType::F32).gradient(&windows);
            for stored_blocks in [spec.layers, 0] {
                let what = format!("{name}, {goal:?}, {stored_blocks} stored");
                let (ours, gradient) = whole(&model, &packer, goal, stored_blocks);
                no_worse(
                    &format!("{what}, losses"),
                    FACTOR,
                    &ours,
                    &narrow(&naive_losses),
                    &losses,
                );
                let tensors = tensors(model.net.places().tensors());
                parts(&what, &tensors, [&widen(&gradient), &naive, &want]);
            }
        }
    }
}

#[test]
fn the_gradient_is_the_slope_of_the_loss() {
    for (name, spec) in specs() {
        let model = Model::new(&spec, 3);
        for (goal, samples) in goals(&model) {
            let packer = pack(&model, &samples, 0.1);
            let windows = windows(&model, &samples, 0.1);
            let gradient = widen(&whole(&model, &packer, goal, spec.layers).1);
            for seed in 0..3 {
                let direction = widen(&noise(90_000 + seed, gradient.len(), 1.0));
                let h = 1e-6;
                let at = |h: f64| {
                    let moved =
                        model.params.iter().zip(&direction).map(|(&x, v)| f64::from(x) + h * v);
                    let moved: Vec<f64> = moved.collect();
                    model.oracle_at(&moved, DType::F64).objective(&windows)
                };
                let slope = (at(h) - at(-h)) / (2.0 * h);
                let terms = || gradient.iter().zip(&direction).map(|(g, v)| g * v);
                // Chains of a few hundred roundings lie behind each element.
                let bound = 128.0 * EPS * terms().map(f64::abs).sum::<f64>() + 1e-7;
                let ours: f64 = terms().sum();
                assert!(
                    (ours - slope).abs() < bound,
                    "{name}, {goal:?}: {ours} for {slope}, allowed {bound:e}"
                );
            }
        }
    }
}

/// Windows cut into several packs, and threads, do not matter to a bit.
#[test]
fn gradients_are_chains_over_windows() {
    for (name, spec) in specs() {
        let model = Model::new(&spec, 4);
        for (goal, samples) in goals(&model) {
            let (_, one) = whole(&model, &pack(&model, &samples, 0.1), goal, spec.layers);
            for cut in [1, 2, 5] {
                let mut grads = CpuBuf::from(vec![0.0; model.params.len()]);
                for samples in samples.chunks(cut) {
                    add_whole(&model, &pack(&model, samples, 0.1), (goal, spec.layers), &mut grads);
                }
                same_bits(&format!("{name}, {goal:?}, packs of {cut}"), &read(&grads), &one);
            }
            let packer = pack(&model, &samples, 0.1);
            for threads in on_threads(|| whole(&model, &packer, goal, 0).1) {
                same_bits(&format!("{name}, {goal:?}, threads"), &threads, &one);
            }
        }
    }
}

/// A new model is a function of its key, and GPT-2's: so wide as the names say.
#[test]
fn a_new_model() {
    let spec = EventSpec { layers: 2, ..plain() };
    let model = Model::new(&spec, 1);
    let of = |key| {
        let mut params = vec![f32::NAN; model.params.len()];
        model.net.places().initialise(key, &mut params);
        params
    };
    same_bits("equal keys", &of([1, 2]), &of([1, 2]));
    let (params, other) = (of([1, 2]), of([1, 3]));
    for place in model.net.places().tensors() {
        let values = &params[place.range()];
        let name = place.name.as_str();
        let rms = (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
        let want = match name {
            _ if name.contains("norm") && name.ends_with("weight") => 1.0,
            "intent.slope" => 0.25,
            _ if name.ends_with("bias") || name.ends_with("b1") || name.ends_with("b2") => 0.0,
            "intent.table" => 0.25,
            "intent.w1" => 1.0 / (48.0f32).sqrt(),
            "intent.w2" => 1.0 / 3.0,
            _ if name.ends_with(".o.weight") || name.ends_with(".proj.weight") => 0.01,
            _ => 0.02,
        };
        let drawn = place.dims.len() == 2 || name == "intent.w2";
        // Five standard errors of an estimate from so many numbers.
        let slack = if drawn { 5.0 * want / (2.0 * values.len() as f32).sqrt() } else { 0.0 };
        assert!((rms - want).abs() <= slack, "{name}: {rms} for {want}");
        assert_eq!(drawn, values != &other[place.range()], "{name}: the key");
    }
}
