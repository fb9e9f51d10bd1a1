//! Training loops that couple users, so that the comparison is known to notice.
//!
//! [`drive`] is a plain training loop over the product's parts. Without a fault it gives the product's bytes; with
//! one, A beside others must differ from A alone under the very same loop.

use crate::users::jobs;
use crate::world::{Composition, RULES, Records, World, alone_in, differing};
use kernels::optim::Update;
use std::collections::BTreeMap;
use trainer::ids::{Slot, UserId};
use trainer::pack::{Packer, Share};
use trainer::prompt::Example;
use trainer::stage::engine::Engine;
use trainer::stage::trainee::{Job, Outcome, Trainee};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// One dropout stream, used up row by row through the pack.
    DropoutStream,
    /// Everybody's dropout key is the same.
    DropoutKey,
    /// The loss is a mean over the supervised rows of the whole pack.
    PackMean,
    /// Clipping outside of the kernel, each user by the own norm: no fault, but the control of the next.
    OwnClip,
    /// Clipping by the norm over all users whose step is due.
    JointClip,
    /// Warm-up and decay follow the number of users' steps done by anybody.
    SharedStepCount,
}

/// Trains users that are all in flight from the start.
fn drive(world: &World, jobs: &[Job], fault: Fault) -> Vec<Outcome> {
    let mut engine = world.engine(&Composition::WIDE);
    let mut seats: BTreeMap<Slot, Trainee> = BTreeMap::new();
    for job in jobs {
        let (trainee, adapter) = Trainee::new(job.clone(), &world.lists, RULES).unwrap();
        let slot = engine.slabs.take().unwrap();
        engine.load(slot, &adapter).unwrap();
        seats.insert(slot, trainee);
    }
    let (mut outcomes, mut packer, mut steps_of_all) =
        (Vec::new(), Packer::new(RULES.share_prefixes), 0);
    while !seats.is_empty() {
        pack(&engine, &seats, &mut packer, fault);
        let losses = engine.train(&packer).unwrap();
        for (share, trainee) in seats.values_mut().enumerate() {
            trainee.chunk_queued();
            trainee.chunk_done(&losses[packer.outputs(share)]);
        }
        let due: Vec<Slot> = seats
            .iter()
            .filter(|(_, trainee)| trainee.micro_batch_complete())
            .map(|(&slot, _)| slot)
            .collect();
        let mut updates: Vec<Update> =
            due.iter().map(|s| seats[s].update(engine.slabs.offset(*s) as u64)).collect();
        if fault == Fault::SharedStepCount {
            updates.iter_mut().for_each(|u| u.step += steps_of_all);
            steps_of_all += u32::try_from(due.len().saturating_sub(1)).unwrap();
        }
        if matches!(fault, Fault::OwnClip | Fault::JointClip) {
            clip_outside(&mut engine, &due, &mut updates, fault == Fault::JointClip);
        }
        let mut norms = vec![0.0; updates.len()];
        engine.update(&updates, &mut norms).unwrap();
        for (slot, norm) in due.into_iter().zip(norms) {
            let trainee = seats.get_mut(&slot).unwrap();
            trainee.step_done(norm);
            assert_eq!(trainee.failure(), None);
            if trainee.finished() {
                let mut params = vec![0.0; trainee.num_params()];
                engine.read(slot, &mut params).unwrap();
                outcomes.push(trainee.outcome(params));
                seats.remove(&slot);
                engine.slabs.release(slot).unwrap();
            }
        }
    }
    outcomes
}

fn pack(
    engine: &Engine<'_, kernels::Cpu>,
    seats: &BTreeMap<Slot, Trainee>,
    packer: &mut Packer,
    fault: Fault,
) {
    packer.clear();
    let supervised: usize =
        seats.values().flat_map(Trainee::due_pieces).map(|p| p.targets.len()).sum();
    for (&slot, trainee) in seats {
        let mut segment = trainee.segment(engine.segment(slot, slot));
        let (mut weight, mut first_token) = (trainee.weight(), trainee.first_token());
        match fault {
            Fault::DropoutStream => {
                segment.key = [7, 7];
                first_token = u32::try_from(packer.rows()).unwrap();
            }
            Fault::DropoutKey => segment.key = [7, 7],
            Fault::PackMean => weight = 1.0 / f32::from(u16::try_from(supervised).unwrap()),
            _ => {}
        }
        let pieces = trainee.due_pieces();
        let (adapter, layout) = (Some(segment), trainee.layout());
        packer.add(&Share { adapter, layout, pieces: &pieces, weight, first_token });
    }
}

/// Scales the due gradients to their norm's bound, then switches the kernel's own clipping off.
#[expect(clippy::cast_possible_truncation, reason = "a factor rounded once")]
fn clip_outside(
    engine: &mut Engine<'_, kernels::Cpu>,
    due: &[Slot],
    updates: &mut [Update],
    jointly: bool,
) {
    let mut gradients: Vec<Vec<f32>> = Vec::new();
    for (&slot, update) in due.iter().zip(updates.iter()) {
        let mut gradient = vec![0.0; update.len as usize];
        engine.read_gradient(slot, &mut gradient).unwrap();
        gradients.push(gradient);
    }
    let square = |g: &[f32]| g.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    let joint: f64 = gradients.iter().map(|g| square(g)).sum();
    for ((gradient, update), &slot) in gradients.iter_mut().zip(updates).zip(due) {
        let norm = if jointly { joint } else { square(gradient) }.sqrt();
        let factor = (f64::from(update.clip_norm) / norm).min(1.0) as f32;
        gradient.iter_mut().for_each(|x| *x *= factor);
        engine.write_gradient(slot, gradient).unwrap();
        update.clip_norm = 0.0;
    }
}

/// Nine users without early stopping, A in their midst.
fn some_users(world: &World) -> Vec<Job> {
    let mut all = jobs(world, 9);
    all.iter_mut().for_each(|j| j.recipe.early_stop.enabled = false);
    all.swap(0, 4);
    assert_eq!(all[4].user.as_str(), "A");
    all
}

fn records(world: &World, jobs: &[Job], fault: Fault) -> Records {
    world.store(&[drive(world, jobs, fault)])
}

/// Everybody's record under `fault`, each alone.
fn solo(world: &World, jobs: &[Job], fault: Fault) -> Records {
    let one = |job: &Job| drive(world, std::slice::from_ref(job), fault);
    world.store(&[jobs.iter().flat_map(one).collect()])
}

/// Whether the comparison notices `fault`: A beside others against A alone.
fn noticed(world: &World, fault: Fault) -> bool {
    let all = some_users(world);
    let different = differing(&records(world, &all, fault), &solo(world, &all, fault));
    let a = different.contains(&UserId::new("A"));
    assert!(a || different.is_empty(), "{fault:?} hits {different:?} but not A");
    a
}

#[test]
fn without_a_fault_the_plain_loop_gives_the_products_bytes() {
    for name in crate::world::BASES {
        let world = World::open(name);
        let all = some_users(&world);
        let product = alone_in(&world, &all);
        assert_eq!(differing(&records(&world, &all, Fault::None), &product), [], "{name}");
        assert!(!noticed(&world, Fault::None), "{name}");
        assert!(!noticed(&world, Fault::OwnClip), "{name}");
    }
}

#[test]
fn a_shared_dropout_stream_is_noticed() {
    assert!(noticed(&World::open("llama_tied"), Fault::DropoutStream));
    assert!(noticed(&World::open("gpt2"), Fault::DropoutStream));
}

#[test]
fn a_loss_mean_over_the_pack_is_noticed() {
    assert!(noticed(&World::open("llama_tied"), Fault::PackMean));
    assert!(noticed(&World::open("gpt2"), Fault::PackMean));
}

#[test]
fn a_joint_clip_norm_is_noticed() {
    assert!(noticed(&World::open("llama_tied"), Fault::JointClip));
    assert!(noticed(&World::open("gpt2"), Fault::JointClip));
}

#[test]
fn a_shared_step_count_is_noticed() {
    assert!(noticed(&World::open("llama_tied"), Fault::SharedStepCount));
}

/// OPPU's published code appends every user's examples to one list that it never empties.
fn one_list_for_all(jobs: &[Job]) -> Vec<Job> {
    let mut list: Vec<Example> = Vec::new();
    let one = |job: &Job| {
        list.extend(job.examples.iter().cloned());
        Job { examples: list.clone(), ..job.clone() }
    };
    jobs.iter().map(one).collect()
}

#[test]
fn a_shared_example_list_is_noticed() {
    for name in crate::world::BASES {
        let world = World::open(name);
        let all = some_users(&world);
        let alone: Vec<Job> =
            all.iter().flat_map(|j| one_list_for_all(std::slice::from_ref(j))).collect();
        let beside = world.train(&one_list_for_all(&all), &Composition::WIDE);
        let different = differing(&beside, &alone_in(&world, &alone));
        // The first user of the list is the only one who gets what is theirs.
        assert_eq!(different.len(), all.len() - 1, "{name}");
        assert!(different.contains(&UserId::new("A")) && !different.contains(&all[0].user));
    }
}

/// One key for all gives everybody the same bytes alone and together, so twins show it: two users who differ in
/// nothing but the id, from one start, must part through dropout alone.
#[test]
fn a_shared_dropout_key_is_noticed_by_twins() {
    let world = World::open("llama_tied");
    let twins = |dropout: f64| -> Vec<Job> {
        let mut jobs = some_users(&world);
        jobs.truncate(1);
        jobs[0].examples.truncate(1);
        jobs[0].lora.dropout = dropout;
        let n = world.sites.params(jobs[0].lora.lora_rank as usize);
        let value =
            |i: u32| f32::from(u16::try_from(crate::users::draw(5, i, 99)).unwrap()) / 900.0;
        jobs[0].start = Some((0..u32::try_from(n).unwrap()).map(value).collect());
        jobs.push(Job { user: UserId::new("twin"), ..jobs[0].clone() });
        jobs
    };
    // Parameters alone: a record's metadata may name its user.
    let alike = |dropout, fault| {
        let outcomes = drive(&world, &twins(dropout), fault);
        let params = |o: &Outcome| match o {
            Outcome::Trained { params, .. } => params.iter().map(|p| p.to_bits()).collect(),
            Outcome::Quarantined { reason, .. } => panic!("{reason}"),
        };
        let bits: Vec<Vec<u32>> = outcomes.iter().map(params).collect();
        bits[0] == bits[1]
    };
    assert!(alike(0.0, Fault::None), "without dropout nothing tells twins apart");
    assert!(!alike(0.1, Fault::None));
    assert!(alike(0.1, Fault::DropoutKey), "the fault is one");
}
