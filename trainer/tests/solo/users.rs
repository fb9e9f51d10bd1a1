//! Users made of counter-based random numbers: ragged histories, mixed LoRA ranks and targets, profiles to share or not.

use crate::world::{World, sets};
use kernels::random::philox;
use trainer::config::{EarlyStop, Recipe};
use trainer::ids::UserId;
use trainer::lora::AdapterSpec;
use trainer::prompt::Example;
use trainer::stage::trainee::Job;

/// The largest LoRA rank of any user here.
pub(crate) const MAX_LORA_RANK: usize = 8;
const VOCAB: u32 = 97;

/// A number in `0..n` for the `k`-th question about user `i`.
pub(crate) fn draw(i: u32, k: u32, n: u32) -> u32 {
    philox([i, 0x50_10], [k, 0, 0, 0])[0] % n
}

/// Order of `0..n` by random keys of `seed`.
pub(crate) fn shuffled(n: usize, seed: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|&i| philox([seed, 1], [u32::try_from(i).unwrap(), 0, 0, 0]));
    order
}

pub(crate) fn tokens(i: u32, k: u32, len: u32) -> Vec<u32> {
    (0..len).map(|t| 3 + philox([i, k], [t, 0, 0, 7])[0] % (VOCAB - 3)).collect()
}

/// `count` examples behind one profile of `profile` tokens.
pub(crate) fn examples(i: u32, count: u32, profile: u32) -> Vec<Example> {
    let front = tokens(i, u32::MAX, profile);
    let one = |e: u32| {
        let (body, answer) = (2 + draw(i, 100 + 2 * e, 13), 1 + draw(i, 101 + 2 * e, 4));
        let mut all = front.clone();
        all.extend(tokens(i, e, body + answer));
        Example { prompt_len: (profile + body) as usize, tokens: all }
    };
    (0..count).map(one).collect()
}

/// How everybody trains unless a test says otherwise: two epochs, warm-up, clipping.
pub(crate) fn recipe(lora: &AdapterSpec) -> Recipe {
    Recipe {
        lora_rank: lora.lora_rank,
        alpha: lora.alpha,
        rslora: lora.rslora,
        dropout: lora.dropout,
        targets: Vec::new(),
        learning_rate: 0.01,
        epochs: 2,
        batch_size: 4,
        early_stop: EarlyStop { enabled: false, held_out: 0.3, patience: 1 },
        ..Recipe::named("oppu-code").unwrap()
    }
}

pub(crate) fn lora(world: &World, lora_rank: u32) -> AdapterSpec {
    AdapterSpec {
        lora_rank,
        alpha: 2.0 * f64::from(lora_rank),
        rslora: false,
        dropout: 0.1,
        targets: world.targets.clone(),
    }
}

fn name(i: u32) -> String {
    match i {
        0 => "A".to_owned(),
        1 => "../../x".to_owned(),
        2 => "line\nbreak \u{202e}".to_owned(),
        _ => format!("user {i}"),
    }
}

/// User `i`; user 0 is A, whose micro-batches take several chunks.
pub(crate) fn job(world: &World, i: u32) -> Job {
    let (count, profile) = if i == 0 { (9, 11) } else { (1 + draw(i, 0, 6), draw(i, 1, 15)) };
    let mut lora = lora(world, [4, 1, 8, 2, 3][i as usize % 5]);
    if i % 4 == 2 {
        lora.targets = sets(&world.targets)[1 + i as usize / 4 % 3].clone();
    }
    let mut recipe = recipe(&lora);
    recipe.early_stop.enabled = i % 7 == 3;
    recipe.batch_size = if i.is_multiple_of(4) { 8 } else { 4 };
    Job {
        user: UserId::new(&name(i)),
        examples: examples(i, count, profile),
        lora,
        losses: Vec::new(),
        of_mean: false,
        unusable: None,
        recipe,
        seed: 11,
        start: None,
    }
}

/// Users `0..n`.
pub(crate) fn jobs(world: &World, n: u32) -> Vec<Job> {
    (0..n).map(|i| job(world, i)).collect()
}
