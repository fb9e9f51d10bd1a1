//! Steps and answers as graphs: the bits of launch by launch.

use crate::device::TestDevice;
use crate::optimiser::updates;
use crate::prediction::{GREEDY, askers, oracle};
use crate::world::{Emulated, World, emulated, everybody, gradients};
use emulator::Mode;
use kernels::gpu::Gpu;
use std::collections::BTreeSet;
use trainer::ids::Slot;

fn with_graphs() -> Emulated {
    Gpu::with_graphs(TestDevice::open(Mode::Fast, &[]), 16).unwrap()
}

/// Bits of losses, gradients, norms and parameters of four steps on packs of one shape, from ever new tokens, dropout
/// masks, rates and parameters.
fn steps(name: &str, gpu: &Emulated) -> Vec<Vec<u32>> {
    let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
    let (world, mut inputs) = (World::open(name), World::open(name));
    let (net, who) = (world.gpu(gpu), everybody(&world));
    let mut engine = world.engine(&net, 0);
    let mut all = Vec::new();
    for step in 0..4u32 {
        let packer = inputs.pack(&engine, &who, (0.1, step));
        all.push(bits(engine.train(&packer).unwrap()));
        all.extend(gradients(&engine).iter().map(|g| bits(g)));
        let updates = updates(&world, &engine, step);
        let mut norms = vec![0.0; updates.len()];
        engine.update(&updates, &mut norms).unwrap();
        all.push(bits(&norms));
        for slot in (0..engine.slabs.num_slots()).map(Slot) {
            let mut params = vec![0.0; engine.slabs.capacity()];
            engine.read(slot, &mut params).unwrap();
            all.push(bits(&params));
        }
        for example in inputs.users.iter_mut().flat_map(|user| &mut user.examples) {
            // The last token alone: prefixes stay shared, and so the shape of the pack.
            if let Some(last) = example.tokens.last_mut() {
                *last = 3 + (*last + 1) % 90;
            }
        }
    }
    all
}

#[test]
fn a_step_that_repeats_has_the_bits_of_its_launches() {
    for name in ["llama_tied", "gpt2"] {
        let (plain, graphs) = (emulated(Mode::Fast, &[]), with_graphs());
        let ours = steps(name, &graphs);
        assert!(ours == steps(name, &plain), "{name}");
        let distinct: BTreeSet<&Vec<u32>> =
            ours.iter().filter(|x| x.iter().any(|&b| b != 0)).collect();
        assert!(distinct.len() > ours.len() / 2, "{name}: other inputs, other numbers");
        let counts = graphs.graph_counts();
        assert!(counts.captured > 0 && counts.replayed >= 2 * counts.captured, "{counts:?}");
        assert_eq!(plain.graph_counts().replayed, 0);
    }
}

#[test]
fn tokens_after_the_first_are_replayed() {
    let (plain, graphs) = (emulated(Mode::Fast, &[]), with_graphs());
    let world = World::open("llama_tied");
    let answers = |gpu: &Emulated| {
        oracle(&world.gpu(gpu), 192).generate(&askers(&world), &GREEDY, &[]).unwrap()
    };
    assert_eq!(answers(&graphs), answers(&plain));
    let counts = graphs.graph_counts();
    // Of five tokens the first comes from the prompts, the second is plain, the third makes the graph.
    assert!(counts.captured >= 1 && counts.replayed >= 2, "{counts:?}");
}
