//! How far a step in `bf16` may be from one in `f32`, from the roundings on the way.
//!
//! Both paths start from the same numbers and sum in `f32`, so what differs is what the device rounds to `bf16`:
//! each rounding changes an element by at most `2^-8` of it. The products between mix many elements, so roundings of
//! different tensors are independent and add as a root of squares: after `n` of them a tensor has changed by about
//! `2^-8 · sqrt(n)` of its norm. [`MARGIN`] is for what that leaves out: differences of large numbers (residual
//! streams, softmax gradients) are smaller than what was rounded.

use trainer::model::spec::BaseSpec;

/// Half the distance from one to the next number of `bf16`, eight bits of significand.
pub(crate) const ROUNDING: f64 = 1.0 / 256.0;
pub(crate) const MARGIN: f64 = 2.0;

/// A, B and S of an adapted product as they enter shared memory, and what is added to the product.
const LORA: u32 = 4;

/// Roundings of the forward: embedding; of each block norm, product, LoRA, rotation, probabilities, attention, `o`
/// with LoRA, norm, MLP product with LoRA, activation, `down` with LoRA; the final norm. Biases are rounded into four
/// outputs.
fn forward(spec: &BaseSpec) -> u32 {
    let rotation = u32::from(spec.rope.is_some());
    let biases = 2 * u32::from(spec.attention_bias) + 2 * u32::from(spec.mlp_bias);
    let block = (1 + 1 + LORA + rotation) + 2 + (1 + LORA) + (1 + 1 + LORA) + 1 + (1 + LORA);
    2 + (block + biases) * u32::try_from(spec.layers).unwrap()
}

/// Roundings of the backward: of the head its probabilities and product, the final norm; of each block `down`, the
/// activation with its input, two products into one gradient, norm, `o`, probabilities and their gradient, `dQ`, `dK`
/// or `dV`, rotation, three products into one gradient, norm, each product with LoRA; X, S and dY of the adapter.
fn backward(spec: &BaseSpec) -> u32 {
    let rotation = u32::from(spec.rope.is_some());
    let block = (1 + LORA) + 2 + (2 + LORA) + 1 + (1 + LORA) + 3 + rotation + (3 + LORA) + 1;
    3 + block * u32::try_from(spec.layers).unwrap() + 3
}

/// Of a loss: relative to how far losses are from those of equal logits.
pub(crate) fn loss(spec: &BaseSpec) -> f64 {
    MARGIN * ROUNDING * f64::from(forward(spec) + 1).sqrt()
}

/// Of a gradient: relative to its norm.
pub(crate) fn gradient(spec: &BaseSpec) -> f64 {
    MARGIN * ROUNDING * f64::from(forward(spec) + backward(spec)).sqrt()
}

pub(crate) fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// Norm of the difference, infinite for any NaN.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "elements compared");
    let sum: f64 = a.iter().zip(b).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum();
    if sum.is_nan() { f64::INFINITY } else { sum.sqrt() }
}
