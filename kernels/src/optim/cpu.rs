//! Slots in parallel, and pieces of a slot: every element has one owner, every norm one tree of sums.

use super::{AdamW, Optim, Update};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::lanes::{self, Kernel, LANES};
use pulp::Simd;

/// Elements of a leaf of the norm's tree and of a task of the update; a constant, so that the order of
/// the sum depends on the slot's length alone.
const PIECE: usize = 1 << 14;

impl Optim for Cpu {
    fn adamw(&self, args: AdamW<'_, Self>) -> Result<()> {
        args.check()?;
        let AdamW { updates, num_updates, params, grads, m, v, norms } = args;
        let updates = &updates[..num_updates];
        Update::check_all(updates, params.len())?;
        let slabs = Slabs { params, grads, m, v };
        each_slot(updates, &mut norms[..num_updates], 0, slabs);
        Ok(())
    }
}

/// The same range of the four slabs.
struct Slabs<'a> {
    params: &'a mut [f32],
    grads: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl Slabs<'_> {
    fn split_at(self, mid: usize) -> (Self, Self) {
        let (p, g) = (self.params.split_at_mut(mid), self.grads.split_at_mut(mid));
        let (m, v) = (self.m.split_at_mut(mid), self.v.split_at_mut(mid));
        (
            Slabs { params: p.0, grads: g.0, m: m.0, v: v.0 },
            Slabs { params: p.1, grads: g.1, m: m.1, v: v.1 },
        )
    }
}

/// Halves the list of slots down to one; `base` is the slabs' first element in the whole slabs.
fn each_slot(updates: &[Update], norms: &mut [f32], base: u64, slabs: Slabs<'_>) {
    if let [update] = updates {
        let (_, slabs) = slabs.split_at(index(update.offset - base));
        let (slabs, _) = slabs.split_at(update.len as usize);
        norms[0] = one_slot(update, slabs);
    } else if updates.len() > 1 {
        let mid = updates.len() / 2;
        let cut = updates[mid].offset;
        let (left, right) = slabs.split_at(index(cut - base));
        let (left_norms, right_norms) = norms.split_at_mut(mid);
        rayon::join(
            || each_slot(&updates[..mid], left_norms, base, left),
            || each_slot(&updates[mid..], right_norms, cut, right),
        );
    }
}

/// An offset that was checked to lie in a slab.
fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Norm, clip, update; returns the norm before clipping.
fn one_slot(update: &Update, slabs: Slabs<'_>) -> f32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "torch's norm is f32; overflow is infinite"
    )]
    let norm = square_sum(slabs.grads).sqrt() as f32;
    if norm.is_finite() {
        pieces(&Factors::new(update, norm), slabs);
    } else {
        slabs.grads.fill(0.0);
    }
    norm
}

/// `Σ g²` in `f64`: sixteen running sums a leaf of [`PIECE`] elements, then halves pairwise.
fn square_sum(g: &[f32]) -> f64 {
    if g.len() <= PIECE {
        return lanes::run(SquareSum(g));
    }
    let (left, right) = g.split_at(g.len().div_ceil(PIECE) / 2 * PIECE);
    let (left, right) = rayon::join(|| square_sum(left), || square_sum(right));
    left + right
}

struct SquareSum<'a>(&'a [f32]);

impl Kernel for SquareSum<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f64 {
        let mut acc = [0.0f64; LANES];
        let (vectors, tail) = self.0.as_chunks::<LANES>();
        for v in vectors {
            for (acc, g) in acc.iter_mut().zip(v) {
                let g = f64::from(*g);
                *acc += g * g;
            }
        }
        for (acc, g) in acc.iter_mut().zip(tail) {
            *acc += f64::from(*g) * f64::from(*g);
        }
        acc.iter().sum()
    }
}

/// The numbers of one slot's step, computed once in `f64` as torch computes them on the host.
#[derive(Clone, Copy)]
struct Factors {
    clip: f32,
    decay: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    root_correction2: f32,
    eps: f32,
    step_size: f32,
}

impl Factors {
    #[expect(clippy::cast_possible_truncation, reason = "torch rounds its scalars to f32 here")]
    fn new(u: &Update, norm: f32) -> Self {
        let (beta1, beta2) = (f64::from(u.beta1), f64::from(u.beta2));
        let step = f64::from(u.step);
        let lr = f64::from(u.learning_rate);
        let clip = if u.clip_norm > 0.0 { (u.clip_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        Self {
            clip,
            decay: (1.0 - lr * f64::from(u.weight_decay)) as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: u.beta2,
            one_minus_beta2: (1.0 - beta2) as f32,
            root_correction2: (1.0 - beta2.powf(step)).sqrt() as f32,
            eps: u.eps,
            step_size: (lr / (1.0 - beta1.powf(step))) as f32,
        }
    }
}

/// Halves a slot down to pieces.
fn pieces(factors: &Factors, slabs: Slabs<'_>) {
    let len = slabs.params.len();
    if len <= PIECE {
        return lanes::run(Step { factors: *factors, slabs });
    }
    let (left, right) = slabs.split_at(len.div_ceil(PIECE) / 2 * PIECE);
    rayon::join(|| pieces(factors, left), || pieces(factors, right));
}

struct Step<'a> {
    factors: Factors,
    slabs: Slabs<'a>,
}

impl Kernel for Step<'_> {
    type Output = ();
    /// The order of operations is that of torch's single-tensor AdamW: `mul_`, `lerp_`,
    /// `mul_().addcmul_`, `sqrt / root + eps`, `addcdiv_`.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Step { factors: f, slabs } = self;
        let parameters = slabs.params.iter_mut().zip(slabs.grads);
        for ((p, grad), (m, v)) in parameters.zip(slabs.m.iter_mut().zip(slabs.v)) {
            let g = *grad * f.clip;
            *grad = 0.0;
            *m = (g - *m).mul_add(f.one_minus_beta1, *m);
            *v = (g * g).mul_add(f.one_minus_beta2, *v * f.beta2);
            let denominator = v.sqrt() / f.root_correction2 + f.eps;
            *p = (*m / denominator).mul_add(-f.step_size, *p * f.decay);
        }
    }
}
