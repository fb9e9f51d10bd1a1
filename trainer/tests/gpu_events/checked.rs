//! Every access of a small step looked at, with the same bits as without; and a device that is wrong is found out.

use crate::device::skipped_on_gpu;
use crate::users::answers;
use crate::whole::{differing, goals, step};
use crate::world::{Model, Sample, World, bits, emulated, measure, specs};
use emulator::Mode;
use kernels::Cpu;
use trainer::model::event::Goal;
use trainer::stage::foresee::Form;

#[test]
fn checked_mode_finds_nothing() {
    if skipped_on_gpu("checked mode") {
        return;
    }
    let devices = [emulated(Mode::Fast, &[]), emulated(Mode::Checked, &[])];
    for (name, spec) in specs() {
        let model = Model::new(&spec, 1);
        let nets = devices.each_ref().map(|device| model.net(device.clone()));
        for (goal, samples) in [
            (Goal::Intents, Sample::intents(&model, 300, 5)),
            (Goal::Events, Sample::hidden(&model, 400, 3)),
        ] {
            let ran = nets.each_ref().map(|net| {
                let step = step(&model, net, (&samples, goal), 2).unwrap();
                [bits(&step.losses), bits(&step.gradient), bits(&step.logits)]
            });
            assert_eq!(ran[0], ran[1], "{name}, {goal:?}");
        }
        let world = World::new(&spec);
        let nets = devices.each_ref().map(|device| world.model.net(device.clone()));
        let ran = nets.each_ref().map(|net| {
            let measured = measure(&world, net, &[0, 1, 2], (0.25, 0)).unwrap();
            (measured, answers(&world, net, (&[1, 0], Form::Probabilities)))
        });
        assert!(ran[0] == ran[1], "{name}");
    }
}

/// Logits of hidden events begin at their bias in every row, a table's row has one owner, distilling has a temperature: a
/// device that gets one of these wrong is found out.
#[test]
fn seeded_faults_are_seen() {
    if skipped_on_gpu("seeded faults") {
        return;
    }
    let (_, spec) = specs()[1].clone();
    let model = Model::new(&spec, 1);
    for (fault, at) in [("LINEAR_WIDE_START", 1), ("LOOKUP_OWNER", 0), ("CLASSIFY_TEMPERATURE", 0)]
    {
        let (goal, samples) = goals(&model)[at].clone();
        let theirs = step(&model, &model.net(Cpu), (&samples, goal), 2).unwrap();
        let ours = step(&model, &model.net(emulated(Mode::Fast, &[fault])), (&samples, goal), 2);
        let found = ours
            .map_or_else(|error| vec![error.to_string()], |o| differing(&model, 0, &o, &theirs));
        assert!(!found.is_empty(), "{fault}");
    }
}
