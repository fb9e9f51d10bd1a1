//! Rows in parallel; a row in a few passes over its classes.
//!
//! Start at [`Loss::row`], one arm for each kind. Bits depend on the row alone: sums are those of
//! [`crate::lanes::sum`].

use super::{ClassLoss, Classify, Kind, Row, Softmax};
use crate::cpu::{Cpu, ROWS_PER_TASK};
use crate::error::Result;
use crate::lanes::{self, Kernel, LANES, load, load_tail, store};
use crate::math::exp;
use pulp::Simd;
use rayon::prelude::*;
use std::cell::RefCell;

thread_local! {
    /// Exponentials of one row: `z`, `z/T`, teacher; grows once.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Classify for Cpu {
    fn class_loss(&self, args: ClassLoss<'_, Self>) -> Result<()> {
        args.check()?;
        let ClassLoss { logits, teacher, table, losses, dlogits, rows, classes } = args;
        Row::check_all(&table[..rows], classes, teacher.is_some())?;
        let task = |index: usize, losses: &mut [f32], dlogits: Option<&mut [f32]>| {
            let first = index * ROWS_PER_TASK;
            let from = |buf: &'_ [f32]| first * classes..buf.len().min(rows * classes);
            SCRATCH.with_borrow_mut(|scratch| {
                if scratch.len() < 3 * classes {
                    scratch.resize(3 * classes, 0.0);
                }
                lanes::run(Losses {
                    logits: &logits[from(logits)],
                    teacher: teacher.map(|t| &t[from(t)]),
                    table: &table[first..first + losses.len()],
                    losses,
                    dlogits,
                    scratch: &mut scratch[..3 * classes],
                });
            });
        };
        let losses = losses[..rows].par_chunks_mut(ROWS_PER_TASK).enumerate();
        match dlogits {
            Some(dlogits) => losses
                .zip(dlogits[..rows * classes].par_chunks_mut(ROWS_PER_TASK * classes))
                .for_each(|((index, losses), d)| task(index, losses, Some(d))),
            None => losses.for_each(|(index, losses)| task(index, losses, None)),
        }
        Ok(())
    }

    fn softmax(&self, args: Softmax<'_, Self>) -> Result<()> {
        args.check()?;
        let Softmax { logits, probabilities, rows, classes } = args;
        let len = ROWS_PER_TASK * classes;
        let tasks = probabilities[..rows * classes].par_chunks_mut(len);
        tasks.zip(logits[..rows * classes].par_chunks(len)).for_each(|(to, logits)| {
            lanes::run(Probabilities { logits, to, classes });
        });
        Ok(())
    }
}

/// Softmax of a row, as its exponentials and three numbers.
#[derive(Clone, Copy)]
struct Normal {
    /// Largest logit.
    max: f32,
    /// `ln Σ exp((z - max) / T)`.
    ln_total: f32,
    /// One over the sum.
    inverse: f32,
}

/// `e = exp((z - max) / T)`; the largest logit's own 1 stays out of the sum that the logarithm is
/// taken of, so that a total close to 1 keeps its digits.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, z: &[f32], temperature: f32, e: &mut [f32]) -> Normal {
    // NaN is never greater: it comes out of the exponentials below.
    let (top, max) = z.iter().enumerate().fold((None, f32::NEG_INFINITY), |(top, max), (i, &z)| {
        if z > max { (Some(i), z) } else { (top, max) }
    });
    let (m, t) = (simd.splat_f32s(max), simd.splat_f32s(temperature));
    let (vectors, tail) = z.as_chunks::<LANES>();
    let (to, to_tail) = e.as_chunks_mut::<LANES>();
    for (to, z) in to.iter_mut().zip(vectors) {
        let x = simd.div_f32s(simd.sub_f32s(load(simd, z), m), t);
        store(simd, to, exp(simd, x));
    }
    let mut last = [0.0; LANES];
    let x = simd.div_f32s(simd.sub_f32s(load_tail(simd, tail), m), t);
    store(simd, &mut last, exp(simd, x));
    to_tail.copy_from_slice(&last[..to_tail.len()]);
    let own = top.map_or(0.0, |top| std::mem::take(&mut e[top]));
    let (vectors, tail) = e.as_chunks::<LANES>();
    let mut sum = load_tail(simd, tail);
    for v in vectors {
        sum = simd.add_f32s(sum, load(simd, v));
    }
    let rest = lanes::sum(simd, sum);
    if let Some(top) = top {
        e[top] = own;
    }
    // No largest logit: every one is NaN or minus infinity, and `rest` is NaN.
    Normal { max, ln_total: rest.ln_1p(), inverse: 1.0 / (rest + 1.0) }
}

/// `Σ_n q_n · x(n)` over classes with `q_n > 0` or NaN: a probability of zero meets no infinity.
#[inline(always)]
fn expectation<S: Simd>(simd: S, q: &[f32], x: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    for (first, q) in (0..).step_by(LANES).zip(q.chunks(LANES)) {
        for (i, (sum, &q)) in sums.iter_mut().zip(q).enumerate() {
            if q != 0.0 {
                *sum += q * x(first + i);
            }
        }
    }
    lanes::sum(simd, load(simd, &sums))
}

/// One row and the room for its exponentials.
struct Loss<'a> {
    entry: &'a Row,
    z: &'a [f32],
    /// Empty where there is none.
    teacher: &'a [f32],
    p: &'a mut [f32],
    warm: &'a mut [f32],
    q: &'a mut [f32],
}

impl Loss<'_> {
    /// The loss without its weight; its weighted gradient into `dz`.
    #[inline(always)]
    fn row<S: Simd>(&mut self, simd: S, dz: Option<&mut [f32]>) -> f32 {
        let entry = self.entry;
        match Kind::from_code(entry.kind) {
            None | Some(Kind::Hard) => self.hard(simd, dz, |ce| (ce, 1.0)),
            Some(Kind::Focal) => self.hard(simd, dz, |ce| focal(ce, entry.gamma)),
            Some(Kind::Distill) => self.distill(simd, dz),
            Some(Kind::Retain) if entry.soft == 0 => self.hard(simd, dz, |ce| (ce, 1.0)),
            Some(Kind::Retain) => self.soft(simd, dz, |ce| (ce, 1.0)),
            Some(Kind::Forget) if entry.soft == 0 => self.hard(simd, dz, |ce| forget(ce, entry)),
            Some(Kind::Forget) => self.soft(simd, dz, |ce| forget(ce, entry)),
        }
    }

    /// A function of the label's cross-entropy; `f` gives its value and derivative.
    #[inline(always)]
    fn hard<S: Simd>(
        &mut self,
        simd: S,
        dz: Option<&mut [f32]>,
        f: impl Fn(f32) -> (f32, f32),
    ) -> f32 {
        let y = self.entry.target as usize;
        let normal = exponentials(simd, self.z, 1.0, self.p);
        let ce = normal.ln_total + (normal.max - self.z[y]);
        let (loss, slope) = f(ce);
        let Some(dz) = dz else { return loss };
        let scale = self.entry.weight * slope;
        if scale == 0.0 {
            dz.fill(0.0);
            return loss;
        }
        for (dz, e) in dz.iter_mut().zip(&*self.p) {
            *dz = scale * (e * normal.inverse);
        }
        // p_y - 1 without cancellation.
        dz[y] = scale * (-ce).exp_m1();
        loss
    }

    /// A function of the cross-entropy against the teacher.
    #[inline(always)]
    fn soft<S: Simd>(
        &mut self,
        simd: S,
        dz: Option<&mut [f32]>,
        f: impl Fn(f32) -> (f32, f32),
    ) -> f32 {
        let p = exponentials(simd, self.z, 1.0, self.p);
        let q = exponentials(simd, self.teacher, 1.0, self.q);
        self.q.iter_mut().for_each(|e| *e *= q.inverse);
        let ce = p.ln_total + expectation(simd, self.q, |n| p.max - self.z[n]);
        let (loss, slope) = f(ce);
        let Some(dz) = dz else { return loss };
        let scale = self.entry.weight * slope;
        if scale == 0.0 {
            dz.fill(0.0);
            return loss;
        }
        for ((dz, e), q) in dz.iter_mut().zip(&*self.p).zip(&*self.q) {
            *dz = scale * (e * p.inverse - q);
        }
        loss
    }

    /// The label, and the teacher at a temperature.
    #[inline(always)]
    fn distill<S: Simd>(&mut self, simd: S, dz: Option<&mut [f32]>) -> f32 {
        let Row { weight, alpha, temperature: t, target, .. } = *self.entry;
        let y = target as usize;
        let p = exponentials(simd, self.z, 1.0, self.p);
        let warm = exponentials(simd, self.z, t, self.warm);
        let q = exponentials(simd, self.teacher, t, self.q);
        self.q.iter_mut().for_each(|e| *e *= q.inverse);
        let ce = p.ln_total + (p.max - self.z[y]);
        // Both logarithms are made alike: for equal rows every difference is exactly zero.
        let divergence = expectation(simd, self.q, |n| {
            let of_teacher = (self.teacher[n] - q.max) / t - q.ln_total;
            of_teacher - ((self.z[n] - warm.max) / t - warm.ln_total)
        });
        // It is not negative but for rounding; NaN stays.
        let divergence = if divergence < 0.0 { 0.0 } else { divergence };
        if let Some(dz) = dz {
            let (hard, soft) = (weight * (1.0 - alpha), weight * alpha * t);
            let classes = dz.iter_mut().zip(&*self.p).zip(&*self.warm).zip(&*self.q);
            for (n, (((dz, e), w), q)) in classes.enumerate() {
                let label = if n == y { (-ce).exp_m1() } else { e * p.inverse };
                *dz = hard.mul_add(label, soft * (w * warm.inverse - q));
            }
        }
        (1.0 - alpha).mul_add(ce, alpha * t * t * divergence)
    }
}

/// `u^gamma · ce` and its derivative by `ce`, `u = 1 - exp(-ce)`: `u^gamma (1 + gamma · p · ce / u)`.
fn focal(ce: f32, gamma: f32) -> (f32, f32) {
    let u = -(-ce).exp_m1();
    let power = u.powf(gamma);
    let ratio = if u == 0.0 { 1.0 } else { ce / u };
    (power * ce, power * (gamma * (-ce).exp()).mul_add(ratio, 1.0))
}

/// `beta · max(0, margin - ce)` and its derivative; `-beta · ce` for an infinite margin; NaN stays.
fn forget(ce: f32, entry: &Row) -> (f32, f32) {
    if entry.margin == f32::INFINITY {
        (-entry.beta * ce, -entry.beta)
    } else if ce >= entry.margin {
        (0.0, 0.0)
    } else {
        (entry.beta * (entry.margin - ce), -entry.beta)
    }
}

/// The rows of a task.
struct Losses<'a> {
    logits: &'a [f32],
    teacher: Option<&'a [f32]>,
    table: &'a [Row],
    losses: &'a mut [f32],
    dlogits: Option<&'a mut [f32]>,
    scratch: &'a mut [f32],
}

impl Kernel for Losses<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let n = self.scratch.len() / 3;
        let (p, rest) = self.scratch.split_at_mut(n);
        let (warm, q) = rest.split_at_mut(n);
        for (i, (entry, loss)) in self.table.iter().zip(self.losses).enumerate() {
            let row = i * n..(i + 1) * n;
            let mut of = Loss {
                entry,
                z: &self.logits[row.clone()],
                teacher: self.teacher.map_or(&[], |t| &t[row.clone()]),
                p: &mut *p,
                warm: &mut *warm,
                q: &mut *q,
            };
            *loss = of.row(simd, self.dlogits.as_mut().map(|d| &mut d[row]));
        }
    }
}

/// Probabilities of the rows of a task.
struct Probabilities<'a> {
    logits: &'a [f32],
    to: &'a mut [f32],
    classes: usize,
}

impl Kernel for Probabilities<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (z, to) in self.logits.chunks(self.classes).zip(self.to.chunks_mut(self.classes)) {
            let normal = exponentials(simd, z, 1.0, to);
            to.iter_mut().for_each(|e| *e *= normal.inverse);
        }
    }
}
