//! A user's trouble stays with that user.

use crate::users::{job, jobs};
use crate::world::{BASES, Composition, RULES, Record, World, alone, differing};
use trainer::ids::UserId;
use trainer::prompt::Example;
use trainer::stage::trainee::Job;

const VICTIM: &str = "victim";

/// Ways to go wrong; the words that the reason must have.
fn troubles(world: &World) -> Vec<(&'static str, &'static str, Job)> {
    let well = Job { user: UserId::new(VICTIM), ..job(world, 5) };
    let start = |value: f32, from: usize| {
        let n = world.sites.params(well.lora.lora_rank as usize);
        let mut params = vec![0.01; n];
        params[from..].fill(value);
        Job { start: Some(params), ..well.clone() }
    };
    let last = world.sites.params(well.lora.lora_rank as usize) - 1;
    let mut explodes = well.clone();
    explodes.recipe.learning_rate = 1e30;
    explodes.recipe.warmup_ratio = 0.0;
    let one_step = |job: &Job| {
        let mut job = job.clone();
        (job.recipe.epochs, job.recipe.batch_size) = (1, 64);
        (job.recipe.warmup_ratio, job.recipe.early_stop.enabled) = (0.0, false);
        job
    };
    let mut last_step = one_step(&well);
    last_step.recipe.learning_rate = 1e20;
    let mut no_batch = well.clone();
    no_batch.recipe.batch_size = 0;
    let mut foreign = well.clone();
    foreign.examples[0].tokens[0] = 1_000_000;
    let mut long = well.clone();
    long.examples[0].tokens = vec![1; 100_000];
    let cut = |e: &Example| Example { prompt_len: e.tokens.len(), ..e.clone() };
    vec![
        ("NaN everywhere", "loss NaN", start(f32::NAN, 0)),
        ("one NaN", "loss NaN", start(f32::NAN, last)),
        ("infinity", "loss", start(f32::INFINITY, 0)),
        ("finite, but too large", "loss", start(1e38, 0)),
        ("explodes on the way", "loss", explodes),
        ("a last step that is not finite", "step 1: loss", one_step(&start(1e38, 0))),
        ("one NaN in the last step", "step 1: loss NaN", one_step(&start(f32::NAN, last))),
        ("a last step into the far", "after its last step: loss", last_step),
        (
            "no supervised token",
            "loss NaN",
            Job { examples: well.examples.iter().map(cut).collect(), ..well.clone() },
        ),
        ("empty history", "no usable item", Job { examples: Vec::new(), ..well.clone() }),
        (
            "unusable",
            "line 3 is bad",
            Job { unusable: Some("line 3 is bad".into()), ..well.clone() },
        ),
        ("another's adapter", "parameters", Job { start: Some(vec![0.0; 3]), ..well.clone() }),
        ("no batch", "batch size", no_batch),
        ("an id of another tokenizer", "outside the vocabulary", foreign),
        ("longer than the base's positions", "positions", long),
    ]
}

#[test]
fn a_poisoned_user_is_put_aside_and_nobody_else_notices() {
    for name in BASES {
        let (world, reference) = (World::open(name), alone(name));
        for (what, words, poisoned) in troubles(&world) {
            for (slots, rows, at) in [(1, RULES.chunk_rows, 0), (3, 100, 1), (64, 4096, 4)] {
                let mut all = jobs(&world, 8);
                all.insert(at, poisoned.clone());
                let c = Composition { slots, rows, ..Composition::WIDE };
                let mut records = world.train(&all, &c);
                let victim = records.remove(&UserId::new(VICTIM));
                match &victim {
                    Some(Record::Aside(reason)) if reason.contains(words) => {}
                    other => panic!("{name}, {what}, {c:?}: {other:?}"),
                }
                let others = differing(&records, reference);
                assert!(others.is_empty(), "{name}, {what}, {c:?}: {others:?} noticed");
            }
        }
    }
}

#[test]
fn everybody_poisoned_but_one() {
    for name in BASES {
        let (world, reference) = (World::open(name), alone(name));
        let mut all: Vec<Job> = Vec::new();
        for (i, (_, _, job)) in troubles(&world).into_iter().enumerate() {
            all.push(Job { user: UserId::new(&format!("{VICTIM} {i}")), ..job });
        }
        all.insert(6, job(&world, 0));
        for slots in [1, 4, 64] {
            let mut records = world.train(&all, &Composition { slots, ..Composition::WIDE });
            records.retain(|_, r| matches!(r, Record::Done(_)));
            assert_eq!(records.len(), 1);
            assert_eq!(differing(&records, reference), [], "{name}, {slots} slots");
        }
    }
}

/// The same slot, poisoned again and again, before every user.
#[test]
fn a_slot_forgets_its_last_user() {
    let (world, reference) = (World::open("llama_tied"), alone("llama_tied"));
    let (_, _, poison) = troubles(&world).swap_remove(0);
    let mut all = Vec::new();
    for (i, job) in jobs(&world, 6).into_iter().enumerate() {
        all.push(Job { user: UserId::new(&format!("{VICTIM} {i}")), ..poison.clone() });
        all.push(job);
    }
    let mut records = world.train(&all, &Composition { stored_blocks: 2, ..Composition::NARROW });
    records.retain(|user, _| !user.as_str().starts_with(VICTIM));
    assert_eq!(records.len(), 6);
    assert_eq!(differing(&records, reference), []);
}

/// A user whose only step leads to finite parameters of 1e20: only the held-out loss tells.
#[test]
fn a_held_out_loss_that_is_not_finite_puts_aside() {
    for name in BASES {
        let (world, reference) = (World::open(name), alone(name));
        let mut wild = Job { user: UserId::new(VICTIM), ..job(&world, 3) };
        let recipe = &mut wild.recipe;
        (recipe.learning_rate, recipe.warmup_ratio, recipe.epochs) = (1e20, 0.0, 1);
        (recipe.batch_size, recipe.early_stop.enabled) = (64, true);
        let mut all = jobs(&world, 4);
        all.insert(1, wild);
        let mut records = world.train(&all, &Composition::WIDE);
        match records.remove(&UserId::new(VICTIM)) {
            Some(Record::Aside(reason)) if reason.contains("held-out loss") => {}
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(differing(&records, reference), [], "{name}");
    }
}
