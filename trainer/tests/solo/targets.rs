//! Users of one pack who adapt different products: each gets the bytes of a run that knows no other targets.

use crate::users::{MAX_LORA_RANK, jobs};
use crate::world::{BASES, Composition, Record, Records, World, alone_in, differing, sets};
use safetensors::SafeTensors;
use std::collections::BTreeSet;
use trainer::ids::UserId;
use trainer::lora::{Half, SiteList, SiteLists, Target};
use trainer::model::activations::StepSize;
use trainer::stage::engine::Engine;
use trainer::stage::trainee::Job;

/// Users `0..n` of all sets of targets in turn, with early stopping and dropout as they come.
fn mixed(world: &World, n: u32) -> Vec<Job> {
    let sets = sets(&world.targets);
    let mut all = jobs(world, n);
    for (i, job) in all.iter_mut().enumerate() {
        job.lora.targets.clone_from(&sets[i % sets.len()]);
    }
    all
}

/// The same base in a run that has these targets alone.
fn with_only(name: &'static str, targets: &[Target]) -> World {
    let mut world = World::open(name);
    world.sites = SiteList::of_base(world.base.spec(), targets).unwrap();
    world.lists = SiteLists::of_targets(world.base.spec(), [targets]).unwrap();
    world
}

/// Every user's record from a run of that user's own targets.
fn own_runs(name: &'static str, all: &[Job]) -> Records {
    let one = |job: &Job| {
        alone_in(&with_only(name, &job.lora.targets), std::slice::from_ref(job)).into_iter()
    };
    all.iter().flat_map(one).collect()
}

#[test]
fn other_users_targets_do_not_matter() {
    for name in BASES {
        let world = World::open(name);
        let all = mixed(&world, 16);
        let reference = own_runs(name, &all);
        let compositions = [
            Composition::WIDE,
            Composition { stored_blocks: 0, ..Composition::WIDE },
            Composition { slots: 5, rows: 120, threads: 4, ..Composition::WIDE },
            Composition { ranks: 3, slots: 2, ..Composition::WIDE },
            Composition::NARROW,
        ];
        for c in compositions {
            assert_eq!(differing(&world.train(&all, &c), &reference), [], "{name}, {c:?}");
        }
        let mut backwards = all.clone();
        backwards.reverse();
        let records = world.train(&backwards, &Composition::WIDE);
        assert_eq!(differing(&records, &reference), [], "{name}, the other way round");
        // The comparison can fail: with other targets, everybody's record is another.
        let mut moved = all.clone();
        moved
            .iter_mut()
            .zip(&all[1..])
            .for_each(|(a, b)| a.lora.targets.clone_from(&b.lora.targets));
        moved.pop();
        let records = world.train(&moved, &Composition::WIDE);
        assert_eq!(differing(&records, &reference).len(), moved.len(), "{name}");
    }
}

#[test]
fn a_record_holds_the_users_own_sites_and_no_other() {
    for name in BASES {
        let world = World::open(name);
        let mut all = mixed(&world, 4);
        // The first step of the warm-up has no rate: enough steps that it is not the last.
        all.iter_mut().for_each(|j| j.recipe.early_stop.enabled = false);
        all.iter_mut().for_each(|j| j.recipe.epochs = 3);
        let records = world.train(&all, &Composition::WIDE);
        for job in &all {
            let Record::Done(payload) = &records[&job.user] else { panic!("{name}: {records:?}") };
            let tensors = SafeTensors::deserialize(payload).unwrap();
            let names: BTreeSet<&str> = tensors.names().into_iter().collect();
            let sites = SiteList::of_base(world.base.spec(), &job.lora.targets).unwrap();
            let own: BTreeSet<String> = sites
                .entries()
                .iter()
                .flat_map(|e| [e.spec.peft_key(Half::A), e.spec.peft_key(Half::B)])
                .collect();
            assert!(names.iter().copied().eq(own.iter().map(String::as_str)), "{name}: {names:?}");
            // Trained: B is not where it began, at any of the user's sites.
            for (key, tensor) in tensors.tensors().iter().filter(|(key, _)| key.contains("lora_B"))
            {
                assert!(tensor.data().iter().any(|&b| b != 0), "{name}: {key} was not trained");
            }
        }
    }
}

/// Slots need room for the largest adapter there is, not for every target at the largest rank.
#[test]
fn slots_are_as_large_as_the_largest_adapter() {
    let world = World::open("llama_tied");
    let few = sets(&world.targets)[1].clone();
    let lists = SiteLists::of_targets(world.base.spec(), [few.as_slice()]).unwrap();
    let (_, own) = lists.find(&few).unwrap();
    let (most, whole) = (own.params(MAX_LORA_RANK), world.sites.params(MAX_LORA_RANK));
    assert!(3 * most < whole, "{most} of {whole}");
    let size = StepSize { rows: 40, stored_blocks: 0, backward: true };
    let engine = Engine::new(&world.net, &lists, size, (3, most)).unwrap();
    assert_eq!(engine.slabs.slab_len(), 3 * most);
}

#[test]
fn targets_that_the_run_does_not_know_put_aside() {
    let world = World::open("llama_tied");
    let mut all = mixed(&world, 5);
    let reference = own_runs("llama_tied", &all);
    all[2].lora.targets = vec![Target::Gate];
    let user = all[2].user.clone();
    let mut records = world.train(&all, &Composition::WIDE);
    match records.remove(&user) {
        Some(Record::Aside(reason)) if reason.contains("gate_proj") => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(differing(&records, &reference), Vec::<UserId>::new());
}
