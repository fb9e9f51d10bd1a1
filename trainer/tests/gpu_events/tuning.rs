//! Whole lives on the device: personal unlearning, then tuning, of many people at once; a person's own whole model.

use crate::bound;
use crate::step_bound::norm;
use crate::whole::recipe;
use crate::world::{Emulated, ROWS, Sample, World, bits, emulated, specs};
use emulator::Mode;
use kernels::classify::Row;
use kernels::{Cpu, Ops};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use trainer::ids::UserId;
use trainer::model::activations::StepSize;
use trainer::model::event::{EventNetwork, History};
use trainer::pack::ClassLoss;
use trainer::prompt::Example;
use trainer::stage;
use trainer::stage::engine::Engine;
use trainer::stage::events::Events;
use trainer::stage::individual::{End, PackRules, Watch};
use trainer::stage::own;
use trainer::stage::trainee::{Outcome, Trainee};
use trainer::stage::tune::{Lesson, Person, Tuning, run as tune};
use trainer::store::ModelFile;

/// Who left with what: parameters, steps, the last loss.
#[derive(Debug, Default)]
struct Left(BTreeMap<UserId, (Vec<f32>, u32, f32)>);

impl Left {
    fn add(&mut self, outcome: Outcome) {
        let Outcome::Trained { user, params, steps, final_loss, .. } = outcome else {
            panic!("{outcome:?}");
        };
        self.0.insert(user, (params, steps, final_loss));
    }

    fn bits(&self) -> Vec<(&UserId, Vec<u32>, u32)> {
        self.0.iter().map(|(user, (params, steps, _))| (user, bits(params), *steps)).collect()
    }
}

impl Watch for Left {
    fn pack(&mut self, _: usize, _: usize, _: usize) {}
    fn step(&mut self, _: &Trainee, _: f32, _: f32) {}
    fn left(&mut self, outcome: Outcome) -> stage::Result<()> {
        self.add(outcome);
        Ok(())
    }
}

/// Four windows: two that are to leave what the teacher says, two that stay; then the labels.
fn person(world: &World, i: u32) -> Person {
    let windows: Vec<Example> =
        Sample::intents(&world.model, 700 + 10 * i, 4).iter().map(Sample::example).collect();
    let teacher = crate::world::noise(800 + i, world.model.spec.intents, 2.0);
    let forget = ClassLoss { row: Row::forget(Some(1 + i), 1.0, 1.0, 6.0), teacher: Vec::new() };
    let retain = ClassLoss { row: Row::retain(None, 1.0), teacher };
    Person {
        user: UserId::new(&format!("person {i}")),
        unlearn: Lesson {
            windows: windows.clone(),
            losses: [&forget, &retain, &forget, &retain].map(Clone::clone).to_vec(),
        },
        learn: Lesson { windows, losses: Vec::new() },
        unusable: None,
    }
}

fn tuning(world: &World) -> Tuning {
    let recipe = trainer::config::Recipe { epochs: 3, batch_size: 3, dropout: 0.1, ..recipe() };
    Tuning {
        lora: trainer::lora::AdapterSpec { dropout: 0.1, ..world.users[0].lora.clone() },
        unlearn: recipe.clone(),
        learn: recipe,
        of_mean: world.model.spec.history == History::Mean,
        seed: 5,
    }
}

fn tuned<B: Ops>(world: &World, net: &EventNetwork<B>, who: &[u32], slots: u32) -> Left {
    let size = StepSize { rows: ROWS, stored_blocks: 2, backward: true };
    let events = Events::new((net, &world.model.table), &world.lists, size).unwrap();
    let mut engine = Engine::of(events, &world.lists, (slots, world.most())).unwrap();
    let mut people = who.iter().map(|&i| person(world, i));
    let rules = PackRules { chunk_rows: 24, share_prefixes: false };
    let (tuning, mut left, stop) = (tuning(world), Left::default(), AtomicBool::new(false));
    let end = tune(&mut engine, rules, (&tuning, &mut people), &mut left, &stop).unwrap();
    assert_eq!(end, End::Complete);
    left
}

/// The bytes of a tuned person do not depend on who is tuned beside, nor on the number of slots.
#[test]
fn people_are_tuned_alike_alone_and_together() {
    let device: Emulated = emulated(Mode::Fast, &[]);
    let (_, spec) = specs()[0].clone();
    let world = World::new(&spec);
    let net = world.model.net(device);
    let mut alone = Left::default();
    for i in 0..3 {
        alone.0.extend(tuned(&world, &net, &[i], 1).0);
    }
    assert_eq!(alone.bits(), tuned(&world, &net, &[2, 0, 1], 3).bits());
    // Twelve steps in two passes on the CPU end at nearly the same loss.
    for (user, (_, steps, loss)) in &alone.0 {
        let cpu = tuned(&world, &world.model.cpu(), &[0, 1, 2], 3);
        let (_, theirs, end) = &cpu.0[user];
        let allowed = (bound::logits(&spec) + bound::gradient(&spec)) * f64::from(end.max(1.0));
        assert_eq!((steps, theirs), (&12, &12));
        assert!(f64::from((loss - end).abs()) <= allowed, "{user:?}: {loss} and {end}");
    }
}

fn own_models<B: Ops + Clone>(world: &World, backend: &B) -> Left {
    let student = ModelFile { spec: world.model.spec.clone(), params: world.model.params.clone() };
    let how = Tuning { lora: own::whole_spec(), ..tuning(world) };
    let (mut people, mut left) = ((0..2).map(|i| person(world, i)), Left::default());
    let of: (&Tuning, &mut dyn Iterator<Item = Person>) = (&how, &mut people);
    let end = own::run(
        (&student, &world.model.table, ROWS),
        of,
        (backend, 2),
        &mut |outcome| {
            left.add(outcome);
            Ok(())
        },
        &AtomicBool::new(false),
    );
    assert_eq!(end.unwrap(), End::Complete);
    left
}

/// Each person a whole model: as far from the student as on the CPU, up to what gradients are off by.
#[test]
fn whole_models_are_tuned_as_on_the_cpu() {
    let device: Emulated = emulated(Mode::Fast, &[]);
    let (_, spec) = specs()[0].clone();
    let world = World::new(&spec);
    let (ours, theirs) = (own_models(&world, &device), own_models(&world, &Cpu));
    assert_eq!(ours.0.len(), 2);
    for (user, (params, steps, loss)) in &ours.0 {
        let (cpu, of_cpu, end) = &theirs.0[user];
        assert_eq!((steps, of_cpu), (&12, &12));
        let moved = |p: &[f32]| -> Vec<f32> {
            p.iter().zip(&world.model.params).map(|(a, b)| a - b).collect()
        };
        let sizes = [norm(&moved(params)), norm(&moved(cpu))];
        let off = (sizes[0] - sizes[1]).abs();
        assert!(off <= bound::gradient(&spec) * sizes[1], "{user:?}: moved by {sizes:?}");
        let allowed = (bound::logits(&spec) + bound::gradient(&spec)) * f64::from(end.max(1.0));
        assert!(f64::from((loss - end).abs()) <= allowed, "{user:?}: {loss} and {end}");
    }
}
