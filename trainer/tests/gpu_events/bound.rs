//! How far an event model in `bf16` may be from one in `f32`: the blocks' roundings ([`step_bound`]), and those of what
//! is below and above them.
//!
//! The head's parameters enter tensor cores as tf32, eleven bits of mantissa: three such roundings are less than one to
//! `bf16`, and are counted as one. Scores, logits and their losses are `f32`.

use crate::step_bound::{self, MARGIN, ROUNDING};
use trainer::model::event::{Combine, EventSpec, History, Prediction};

/// Roundings of the forward beside the blocks', the embedding and the final norm: positions are added to the columns,
/// each of which is added to the others; the mean; the head; scores on their way into a layer.
fn forward(spec: &EventSpec) -> f64 {
    let added = if spec.combine == Combine::Sum { spec.columns.len() - 1 } else { 0 };
    let mean = usize::from(spec.history == History::Mean);
    let linear = usize::from(spec.prediction == Prediction::Linear);
    f64::from(u32::try_from(1 + added + mean + 1 + linear).unwrap())
}

/// Roundings of the backward: the logits' gradient on its way into a layer, the head, the histories' gradient, the mean's.
const BACKWARD: f64 = 4.0;

fn together(blocks: f64, beside: f64) -> f64 {
    let unit = MARGIN * ROUNDING;
    unit * ((blocks / unit).powi(2) + beside).sqrt()
}

/// Of logits, relative to their norm.
pub(crate) fn logits(spec: &EventSpec) -> f64 {
    together(step_bound::loss(&spec.trunk()), forward(spec))
}

/// Of a gradient, relative to its norm.
pub(crate) fn gradient(spec: &EventSpec) -> f64 {
    together(step_bound::gradient(&spec.trunk()), forward(spec) + BACKWARD)
}

/// What the loss of a row moves by at most when each of its logits moves by one: the gradient's absolute sum, two for a
/// difference of distributions; times `alpha T² / T` and the rest of distilling, `1 + gamma · 0.37` of focal losses, or
/// beta, in the world of these tests.
pub(crate) const SLOPE: f64 = 4.0;

/// Of a probability by how far a logit is off: `p (1 - p)` twice.
pub(crate) const PROBABILITY: f64 = 0.5;
