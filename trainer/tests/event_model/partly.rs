//! A model whose lowest blocks do not train: the gradient of the others is the whole model's, to the bit, and there is no
//! other.

use crate::case::{Model, pack, samples, specs};
use crate::tolerance::{on_threads, same_bits};
use crate::{bare, goals, read, whole};
use kernels::Cpu;
use kernels::backend::Buffer as _;
use kernels::cpu::CpuBuf;
use trainer::model::Adapters;
use trainer::model::activations::StepSize;
use trainer::model::event::{Adapted, EventNetwork, EventSpec, EventStepper, Goal, Places};
use trainer::pack::Packer;

fn partly(model: &Model, frozen: usize) -> EventNetwork<Cpu> {
    let mut net = EventNetwork::partly(Cpu, model.spec.clone(), frozen).unwrap();
    net.load(&model.params).unwrap();
    net
}

fn train(
    (model, net): (&Model, &EventNetwork<Cpu>),
    packer: &Packer,
    (goal, stored_blocks): (Goal, usize),
) -> (Vec<f32>, Vec<f32>) {
    let size = StepSize { rows: packer.rows(), stored_blocks, backward: true };
    let mut stepper = EventStepper::new(net, size).unwrap();
    let mut grads = CpuBuf::from(vec![0.0; net.places().trained()]);
    let pack = (packer.batch(), &model.table);
    let losses = stepper.train_whole(net, pack, goal, &mut grads).unwrap().to_vec();
    (losses, read(&grads))
}

/// The whole model's gradient is held to candle's in `losses_and_the_gradient_of_every_parameter`.
#[test]
fn what_trains_has_the_gradient_that_it_has_in_the_whole() {
    for (name, spec) in specs() {
        let model = Model::new(&spec, 8);
        for (goal, samples) in goals(&model) {
            let packer = pack(&model, &samples, 0.1);
            let (losses, all) = whole(&model, &packer, goal, spec.layers);
            for frozen in 0..=spec.layers {
                let net = partly(&model, frozen);
                let first = net.places().frozen();
                for stored_blocks in [0, 1, spec.layers] {
                    let what = format!("{name}, {goal:?}, {frozen} frozen, {stored_blocks} stored");
                    for (own, some) in
                        on_threads(|| train((&model, &net), &packer, (goal, stored_blocks)))
                    {
                        same_bits(&format!("{what}, losses"), &own, &losses);
                        same_bits(&what, &some, &all[first..]);
                        assert!(some.iter().any(|&g| g != 0.0), "{what}");
                    }
                }
            }
        }
    }
}

/// Counted by hand: tables, positions and the sixteen tensors of each block above them.
#[test]
fn what_is_frozen_is_one_part_the_first() {
    let spec = EventSpec { layers: 3, ..crate::plain() };
    let places = Places::new(&spec);
    assert_eq!((places.frozen(), places.trained()), (0, places.len()));
    let (d, f) = (spec.hidden, spec.intermediate);
    let tables: usize =
        (0..spec.columns.len()).map(|c| spec.table_rows(c) * spec.column_span(c).1).sum::<usize>()
            + spec.window * d;
    let block = 4 * (d * d + d) + 2 * 2 * d + (d * f + f) + (f * d + d);
    for frozen in 1..=3 {
        let partly = Places::partly(&spec, frozen);
        assert_eq!(partly.frozen(), tables + frozen * block);
        assert_eq!(partly.frozen() + partly.trained(), places.len());
        // In files nothing is cut.
        assert_eq!(partly.tensors(), places.tensors());
        let kept = partly.tensors().iter().filter(|p| p.offset < partly.frozen());
        let above = |name: &str| {
            let layer = name.strip_prefix("layers.").and_then(|n| n.split('.').next());
            layer.is_some_and(|l| l.parse::<usize>().unwrap() >= frozen)
        };
        let mut count = 0;
        for place in kept {
            let embeds = place.name.starts_with("columns.") || place.name == "positions";
            let block = place.name.starts_with("layers.") && !above(&place.name);
            assert!(embeds || block, "{} is frozen with {frozen}", place.name);
            count += 1;
        }
        assert_eq!(count, spec.columns.len() + 1 + 16 * frozen);
    }
    assert_eq!(Places::partly(&spec, 9), Places::partly(&spec, 3));
}

/// Answers do not depend on it, and loading and reading go over both parts.
#[test]
fn answers_and_parameters_are_the_whole_models() {
    for (name, spec) in specs() {
        let model = Model::new(&spec, 9);
        let packer = pack(&model, &samples(&model, 3, 12, false), 0.0);
        let logits = |net: &EventNetwork<Cpu>| {
            let size = StepSize { rows: packer.rows(), stored_blocks: 0, backward: false };
            let mut stepper = EventStepper::new(net, size).unwrap();
            let pack = (packer.batch(), &model.table);
            stepper.logits(net, pack, bare(&model)).unwrap().to_vec()
        };
        for frozen in 1..=spec.layers {
            let net = partly(&model, frozen);
            let mut params = vec![0.0; model.params.len()];
            net.read(&mut params).unwrap();
            same_bits(name, &params, &model.params);
            same_bits(name, &logits(&net), &logits(&model.net));
        }
    }
}

/// Adapters of blocks whose activations are not kept, and more blocks than there are.
#[test]
fn what_cannot_be_is_refused() {
    let model = Model::new(&EventSpec { layers: 2, ..crate::plain() }, 7);
    let people = crate::case::People::new(&model, 1);
    let packer = people.pack(&model, &[0], false);
    let slab = people.slab(&[0]);
    let adapters = Adapters { layouts: people.lists.layouts(), params: &slab };
    let adapted = Adapted { adapters, head_after: &people.head_after };
    let mut grads = CpuBuf::from(vec![0.0; slab.len()]);
    let size = StepSize { rows: packer.rows(), stored_blocks: 2, backward: true };
    for frozen in [0, 1] {
        let net = partly(&model, frozen);
        let mut stepper = EventStepper::new(&net, size).unwrap();
        let pack = (packer.batch(), &model.table);
        let got = stepper.train(&net, pack, adapted, &mut grads).map(<[f32]>::len);
        match frozen {
            0 => assert!(got.unwrap() > 0),
            _ => assert!(got.unwrap_err().to_string().contains("block 0 is frozen")),
        }
    }
    let error = EventNetwork::partly(Cpu, model.spec.clone(), 3).unwrap_err().to_string();
    assert!(error.contains("frozen_blocks") && error.contains("3 of 2 blocks"), "{error}");
}
