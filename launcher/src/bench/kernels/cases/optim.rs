//! Grouped AdamW.

use super::super::model::{Unit, Work};
use super::super::sizes::Sizes;
use super::{Op, Run, Subject, elements, filled, no_rivals, number, real, table, values};
use kernels::Result;
use kernels::optim::{AdamW, Update};

/// Adapters on q and v of every layer, rank 16 (SmolLM2: 30 layers, Llama 7B: 32).
const PRESETS: &[(&str, &str)] = &[
    ("smollm2", "slots=1,params=921600"),
    ("smollm2", "slots=16,params=921600"),
    ("smollm2", "slots=64,params=921600"),
    ("llama7b", "slots=16,params=8388608"),
];

pub(super) fn ops<B: Subject>() -> Vec<Op<B>> {
    vec![Op { name: "adamw", family: "optim", presets: PRESETS, work, build, rivals: no_rivals }]
}

/// Gradients read for the norm, then everything read and written, the gradients as zeros.
fn work(sizes: &Sizes, _: f64) -> Work {
    let [slots, params] = sizes.counts(["slots", "params"]).map(real);
    Work { bytes: 36.0 * slots * params, flop: 16.0 * slots * params, unit: Unit::F32 }
}

fn build<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [slots, len] = sizes.counts(["slots", "params"]);
    // Gradients are zero from the second call on; moments that halve slowly stay far from the slow denormal numbers.
    let updates: Vec<Update> = (0..slots)
        .map(|slot| Update {
            offset: elements([slot, len]) as u64,
            len: number(len),
            step: 3,
            learning_rate: 1e-6,
            beta1: 0.9999,
            beta2: 0.9999,
            eps: 1e-8,
            weight_decay: 0.01,
            clip_norm: 0.3,
        })
        .collect();
    let (b, all, updates) = (b.clone(), elements([slots, len]), table(b, &updates)?);
    let (mut params, mut grads, mut m) = (values(&b, all)?, values(&b, all)?, values(&b, all)?);
    let (mut v, mut norms) = (filled(&b, all, f32::abs)?, b.alloc(slots)?);
    Ok(Box::new(move || {
        b.adamw(AdamW {
            updates: &updates,
            num_updates: slots,
            params: &mut params,
            grads: &mut grads,
            m: &mut m,
            v: &mut v,
            norms: &mut norms,
        })
    }))
}
