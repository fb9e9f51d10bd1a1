//! Logits and probabilities of many people's windows, each with the own part.

use crate::bound;
use crate::step_bound::{distance, norm};
use crate::users::answers;
use crate::world::{Emulated, Model, ROWS, World, bits, emulated, pack, specs};
use emulator::Mode;
use trainer::model::activations::StepSize;
use trainer::model::event::{Adapted, EventNetwork, EventStepper};
use trainer::stage::foresee::Form;

#[test]
fn answers_are_those_of_the_cpu_and_the_same_alone() {
    let device: Emulated = emulated(Mode::Fast, &[]);
    for (name, spec) in specs() {
        let world = World::new(&spec);
        let (cpu, gpu) = (world.model.cpu(), world.model.net(device.clone()));
        let who = world.everybody();
        let of = |form| (answers(&world, &gpu, (&who, form)), answers(&world, &cpu, (&who, form)));
        let ((a, b), (p, q)) = (of(Form::Logits), of(Form::Probabilities));
        let (off, allowed) =
            (distance(&a.concat(), &b.concat()), bound::logits(&spec) * norm(&b.concat()));
        assert!(off <= allowed, "{name}: logits off by {off}, allowed {allowed}");
        let (moved, near) = (distance(&p.concat(), &q.concat()), bound::PROBABILITY * off + 1e-5);
        assert!(moved <= near, "{name}: probabilities off by {moved}, allowed {near}");
        for row in p.concat().chunks_exact(spec.intents) {
            let sum: f32 = row.iter().sum();
            assert!((sum - 1.0).abs() < 1e-5, "{name}: probabilities add up to {sum}");
        }
        for &i in &who {
            let [alone] = answers(&world, &gpu, (&[i], Form::Logits)).try_into().unwrap();
            assert_eq!(bits(&alone), bits(&a[i]), "{name}, user {i}");
        }
        assert!(norm(&b.concat()) > 1.0, "{name}: the model says something");
    }
}

/// An own part of zeros is nothing: a student that begins as a copy has its teacher's logits to the bit, and what
/// unlearning holds it to is where it is.
#[test]
fn a_copy_has_its_teachers_bits() {
    let device: Emulated = emulated(Mode::Fast, &[]);
    for (name, spec) in specs() {
        let mut world = World::new(&spec);
        for user in &mut world.users {
            user.params.fill(0.0);
            user.samples = world.model.same_windows();
        }
        let net = world.model.net(device.clone());
        let all = answers(&world, &net, (&world.everybody(), Form::Logits));
        let bare = bare(&world.model, &net);
        for (i, own) in all.iter().enumerate() {
            assert_eq!(bits(own), bits(&bare), "{name}, user {i}");
        }
    }
}

/// Logits of the same windows by the model alone.
fn bare(model: &Model, net: &EventNetwork<Emulated>) -> Vec<f32> {
    let packer = pack(model, &model.same_windows());
    let size = StepSize { rows: ROWS, stored_blocks: 0, backward: false };
    let mut stepper = EventStepper::new(net, size).unwrap();
    let adapted = Adapted { adapters: net.trunk().bare(), head_after: &[] };
    stepper.logits(net, (packer.batch(), &model.table), adapted).unwrap().to_vec()
}
