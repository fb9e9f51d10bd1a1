//! From a config's recipe to what the kernels and the adapters take.

use crate::config::Recipe;
use crate::ids::Step;
use crate::lora::{AdapterSpec, Target};
use crate::optim::Schedule;
use kernels::optim::Update;

/// AdamW's numbers for the step after `steps` finished ones of `total`; offset and length left open.
///
/// The rate is computed in `f64` and rounded once, like every other number here.
#[expect(clippy::cast_possible_truncation, reason = "rounded once to the kernels' f32")]
pub(super) fn update(recipe: &Recipe, steps: u32, total: u32) -> Update {
    Update {
        offset: 0,
        len: 0,
        step: steps + 1,
        learning_rate: Schedule::new(recipe, total).rate(Step(steps)) as f32,
        beta1: recipe.betas[0] as f32,
        beta2: recipe.betas[1] as f32,
        eps: recipe.eps as f32,
        weight_decay: recipe.weight_decay as f32,
        clip_norm: recipe.clip_norm as f32,
    }
}

/// The adapter's shape.
pub fn adapter(recipe: &Recipe, targets: &[Target]) -> AdapterSpec {
    AdapterSpec {
        lora_rank: recipe.lora_rank,
        alpha: recipe.alpha,
        rslora: recipe.rslora,
        dropout: recipe.dropout,
        targets: targets.to_vec(),
    }
}
