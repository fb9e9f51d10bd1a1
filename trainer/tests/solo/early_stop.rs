//! Early stopping on a user's own newest items keeps the best step's adapter, whoever else is there.

use crate::users::{examples, lora, recipe};
use crate::world::{BASES, Composition, RULES, World, alone_in, differing};
use trainer::config::{EarlyStop, ScheduleKind};
use trainer::ids::{Slot, UserId};
use trainer::pack::{Packer, Piece, Share};
use trainer::prompt::Example;
use trainer::stage::trainee::{Job, Outcome, Trainee};

const ITEMS: usize = 10;
const HELD_OUT: usize = 4;
const EPOCHS: u32 = 6;
/// A rate at which both bases' held-out losses fall, then rise.
const WORSENS: f64 = 0.05;

/// A user whose items have nothing in common, so that what is learnt by heart does not carry over. A level rate: the
/// parameters after an epoch do not depend on the number of epochs.
fn forgetful(world: &World, rate: f64, patience: u32) -> Job {
    let lora = lora(world, 4);
    let mut recipe = recipe(&lora);
    (recipe.learning_rate, recipe.warmup_ratio, recipe.clip_norm) = (rate, 0.0, 0.0);
    (recipe.schedule, recipe.epochs, recipe.batch_size) = (ScheduleKind::Constant, EPOCHS, 3);
    recipe.early_stop = EarlyStop { enabled: true, held_out: 0.4, patience };
    let examples = examples(77, u32::try_from(ITEMS).unwrap(), 9);
    Job {
        user: UserId::new("f"),
        examples,
        lora,
        losses: Vec::new(),
        of_mean: false,
        unusable: None,
        recipe,
        seed: 3,
        start: None,
    }
}

/// The same without early stopping, on the items that are not held out.
fn plain(job: &Job, epochs: u32) -> Job {
    let mut plain = job.clone();
    plain.examples.truncate(ITEMS - HELD_OUT);
    plain.recipe.epochs = epochs;
    plain.recipe.early_stop.enabled = false;
    plain
}

struct Trained {
    params: Vec<f32>,
    steps: u32,
    held_out_loss: Option<f64>,
}

fn train(world: &World, job: Job, c: &Composition) -> Trained {
    match world.outcomes(vec![job], c).pop().unwrap() {
        Outcome::Trained { params, steps, held_out_loss, .. } => {
            Trained { params, steps, held_out_loss }
        }
        Outcome::Quarantined { reason, .. } => panic!("{reason}"),
    }
}

/// Mean loss over the held-out tokens, one example at a time and without the stage.
fn held_out_loss(world: &World, job: &Job, params: &[f32]) -> f64 {
    let mut engine = world.engine(&Composition::NARROW);
    engine.load(Slot(0), params).unwrap();
    let (trainee, _) = Trainee::new(job.clone(), &world.lists, RULES).unwrap();
    let segment = trainee.without_dropout(engine.segment(Slot(0), Slot(0)));
    let losses = job.examples[ITEMS - HELD_OUT..].iter().flat_map(|e: &Example| {
        let pieces = [Piece::supervised(&e.tokens, e.prompt_len)];
        let mut packer = Packer::new(false);
        let (adapter, layout) = (Some(segment), trainee.layout());
        packer.add(&Share { adapter, layout, pieces: &pieces, weight: 0.0, first_token: 0 });
        engine.losses(&packer).unwrap().to_vec()
    });
    let losses: Vec<f64> = losses.map(f64::from).collect();
    losses.iter().sum::<f64>() / f64::from(u32::try_from(losses.len()).unwrap())
}

/// Held-out losses after each epoch of plain training.
fn curve(world: &World, job: &Job) -> Vec<(f64, Trained)> {
    let after = |epochs| train(world, plain(job, epochs), &Composition::NARROW);
    let of = |t: Trained| (held_out_loss(world, job, &t.params), t);
    (1..=EPOCHS).map(|epochs| of(after(epochs))).collect()
}

fn bits(params: &[f32]) -> Vec<u32> {
    params.iter().map(|p| p.to_bits()).collect()
}

#[test]
fn the_best_epochs_adapter_is_kept_to_the_byte() {
    for name in BASES {
        let world = World::open(name);
        for (rate, gets_worse) in [(WORSENS, true), (0.0005, false)] {
            let job = forgetful(&world, rate, EPOCHS);
            let curve = curve(&world, &job);
            let losses: Vec<f64> = curve.iter().map(|(loss, _)| *loss).collect();
            let best = (0..losses.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b])).unwrap();
            assert_eq!(best + 1 < losses.len(), gets_worse, "{name}, rate {rate}: {losses:?}");
            let kept = train(&world, job.clone(), &Composition::NARROW);
            assert_eq!(kept.steps, curve[best].1.steps);
            assert_eq!(bits(&kept.params), bits(&curve[best].1.params), "{name}, rate {rate}");
            let difference = (kept.held_out_loss.unwrap() - losses[best]).abs();
            assert!(difference < 1e-5 * losses[best], "{name}: off by {difference}");
            let last = &curve.last().unwrap().1;
            assert_eq!(bits(&kept.params) != bits(&last.params), gets_worse);
        }
    }
}

/// The epoch after which training ends: `patience` epochs after the best so far.
fn last_epoch(losses: &[f64], patience: usize) -> usize {
    let (mut best, mut since) = (f64::INFINITY, 0);
    for (epoch, &loss) in losses.iter().enumerate() {
        (best, since) = if loss < best { (loss, 0) } else { (best, since + 1) };
        if since == patience {
            return epoch + 1;
        }
    }
    losses.len()
}

#[test]
fn patience_ends_the_training() {
    for name in BASES {
        let world = World::open(name);
        let curve = curve(&world, &forgetful(&world, WORSENS, EPOCHS));
        let losses: Vec<f64> = curve.into_iter().map(|(loss, _)| loss).collect();
        for patience in [1, 2] {
            let job = forgetful(&world, WORSENS, patience);
            let last = last_epoch(&losses, patience as usize);
            // Six items in batches of three.
            assert_eq!(world.steps(job, &Composition::NARROW), 2 * last, "{name}: {losses:?}");
            assert!(last < losses.len(), "{name}: never stopped: {losses:?}");
        }
    }
}

#[test]
fn off_means_off() {
    let world = World::open("llama_tied");
    let job = plain(&forgetful(&world, 0.01, 1), 2);
    let mut other = job.clone();
    other.recipe.early_stop = EarlyStop { enabled: false, held_out: 0.9, patience: 7 };
    assert_eq!(differing(&alone_in(&world, &[job]), &alone_in(&world, &[other.clone()])), []);
    let trained = train(&world, other.clone(), &Composition::NARROW);
    assert_eq!((trained.steps, trained.held_out_loss), (4, None));
    other.recipe.early_stop.enabled = true;
    assert_eq!(world.steps(other, &Composition::NARROW), 2, "one item is left to learn from");
}

#[test]
fn held_out_items_are_never_learnt_from() {
    let world = World::open("gpt2");
    let job = forgetful(&world, 0.01, EPOCHS);
    let before = train(&world, job.clone(), &Composition::NARROW);
    let mut changed = job;
    for (new, old) in examples(78, 4, 9).into_iter().zip(&mut changed.examples[6..]) {
        *old = new;
    }
    let after = train(&world, changed, &Composition::NARROW);
    assert_ne!(before.held_out_loss, after.held_out_loss);
    if before.steps == after.steps {
        assert_eq!(bits(&before.params), bits(&after.params));
    }
}
