//! The task adapter has the same bytes on 1, 2, 4 and 8 ranks.

use crate::users::{examples, lora, recipe};
use crate::world::{BASES, Composition, RULES, World, threads};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use trainer::comm::{Communicator, HostSync, Threads};
use trainer::prompt::Example;
use trainer::stage::individual::End;
use trainer::stage::population::{PopulationStep, Task, run};
use trainer::stage::sums::ByHost;

const SHARDS: u32 = 8;

struct Setting {
    ranks: usize,
    rows: usize,
    threads: usize,
    seed: u64,
}

const ONE: Setting = Setting { ranks: 1, rows: 4096, threads: 1, seed: 5 };

/// Ragged examples of seven users; the last batch of an epoch has fewer examples than there are shards.
fn everybody() -> Vec<Example> {
    (200..207).flat_map(|i| examples(i, 3 + i % 4, 3 + i % 9)).collect()
}

/// Bits of (loss, gradient norm) of each step.
type Steps = Vec<(u32, u32)>;
/// What each rank has in the end: parameters' bits, and its steps.
type Result = (End, Vec<u32>, Steps);

fn task<'a>(world: &World, examples: &'a [Example], seed: u64) -> Task<'a> {
    let lora = lora(world, 4);
    let mut recipe = recipe(&lora);
    recipe.batch_size = 13;
    Task { examples, recipe, lora, seed, num_shards: SHARDS }
}

fn train(
    world: &World,
    s: &Setting,
    stop: &(dyn Fn(usize, PopulationStep, &AtomicBool) + Sync),
) -> Vec<Result> {
    let all = everybody();
    let body = |comm: &Threads| {
        let c = Composition { slots: 1 + SHARDS, rows: s.rows, ..Composition::WIDE };
        let (mut steps, halt) = (Vec::new(), AtomicBool::new(false));
        let (end, params) = threads(s.threads).install(|| {
            let mut engine = world.engine(&c);
            let mut sums = ByHost::new(HostSync::new(SHARDS));
            let mut watch = |step: PopulationStep| {
                steps.push((step.loss.to_bits(), step.grad_norm.to_bits()));
                stop(comm.rank(), step, &halt);
            };
            let task = task(world, &all, s.seed);
            let ended =
                run(&mut engine, RULES, (comm, &mut sums), &task, &mut watch, &halt).unwrap();
            assert_eq!(engine.slabs.num_free(), c.slots as usize, "a slot was not given back");
            ended
        });
        Ok((end, params.iter().map(|p| p.to_bits()).collect(), steps))
    };
    Threads::run(s.ranks, body).unwrap().into_iter().map(std::result::Result::unwrap).collect()
}

#[test]
fn any_number_of_ranks_gives_the_same_bytes() {
    for name in BASES {
        let world = World::open(name);
        let settings = [
            ONE,
            Setting { threads: 4, rows: RULES.chunk_rows, ..ONE },
            Setting { ranks: 2, ..ONE },
            Setting { ranks: 3, rows: 90, ..ONE },
            Setting { ranks: 4, threads: 2, rows: 60, ..ONE },
            Setting { ranks: 8, ..ONE },
            Setting { ranks: 8, rows: RULES.chunk_rows, ..ONE },
        ];
        let mut distinct: BTreeSet<(Vec<u32>, Steps)> = BTreeSet::new();
        for setting in &settings {
            for (end, params, steps) in train(&world, setting, &|_, _, _| {}) {
                assert_eq!(end, End::Complete);
                assert_eq!(steps.len(), 2 * everybody().len().div_ceil(13));
                distinct.insert((params, steps));
            }
        }
        assert_eq!(distinct.len(), 1, "{name}: parameters and losses of {} worlds", settings.len());
        let (_, params, steps) =
            train(&world, &Setting { seed: 6, ..ONE }, &|_, _, _| {}).remove(0);
        assert!(!distinct.contains(&(params, steps)), "{name}: the seed does not matter");
    }
}

#[test]
fn losses_fall() {
    let world = World::open("llama_tied");
    let (_, _, steps) = train(&world, &ONE, &|_, _, _| {}).remove(0);
    let losses: Vec<f32> = steps.iter().map(|&(loss, _)| f32::from_bits(loss)).collect();
    assert!(losses.last() < losses.first(), "{losses:?}");
    assert!(losses.iter().all(|l| (2.0..7.0).contains(l)), "near ln 97 = 4.6: {losses:?}");
}

#[test]
fn a_stop_on_one_rank_stops_all_after_the_same_step() {
    let world = World::open("llama_tied");
    let stop = |rank: usize, step: PopulationStep, halt: &AtomicBool| {
        halt.store(rank == 2 && step.step == 3, Ordering::Relaxed);
    };
    let results = train(&world, &Setting { ranks: 4, ..ONE }, &stop);
    assert_eq!(results.len(), 4);
    for (end, _, steps) in results {
        assert_eq!((end, steps.len()), (End::Stopped, 3));
    }
}
