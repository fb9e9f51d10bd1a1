//! Parts of the vocabulary in parallel, chunks of a part in order, a running maximum in each part.
//!
//! A part reads its share of the weight once in each direction and keeps, for every row, the largest
//! logit, the sum of exponentials and `Σ exp(l - max)·W_v`. The parts are then added in order. Sizes of
//! parts and chunks are constants, so a row's bits depend on that row and the weight alone. The logit of
//! the target is the one that went into the softmax.

use super::{HeadLoss, Loss};
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::lanes::{self, Kernel, LANES, load, load_tail, store};
use crate::linear::Linear;
use crate::linear::cpu::Outputs;
use crate::linear::operand::Rows;
use crate::math::exp;
use pulp::Simd;
use rayon::prelude::*;

/// Vocabulary of a part: a part is the unit of parallelism.
const PART: usize = 4096;
/// Vocabulary of a chunk: its logits and its weights stay in the second-level cache.
const CHUNK: usize = 512;
/// Rows taken together; with so many the products are bound by arithmetic, and the workspace is bounded.
const ROWS: usize = 256;

/// Numbers of one row in one part besides its vector: largest logit, sum, target's logit.
const NUMBERS: usize = 3;

impl Loss for Cpu {
    fn head_loss_workspace(&self, rows: usize, dim: usize, vocab: usize) -> usize {
        vocab.div_ceil(PART) * part_len(rows.min(ROWS), dim)
    }

    fn head_loss(&self, args: HeadLoss<'_, Self>) -> Result<()> {
        let shape = self.shape(args.head);
        let (dim, vocab) = (shape.in_dim, shape.out_dim);
        args.check(dim, self.head_loss_workspace(args.rows, dim, vocab))?;
        let HeadLoss { x, head, targets, weights, losses, mut dx, work, rows } = args;
        let head = head.outputs("head_loss")?;
        if let Some(row) = targets[..rows].iter().position(|&y| y as usize >= vocab) {
            let what = format!("row {row}: target {} of {vocab}", targets[row]);
            return Err(Error::Routing { op: "head_loss", what });
        }
        for first in (0..rows).step_by(ROWS) {
            let block = Block {
                head,
                x: Rows { data: x.buf, start: x.start + first * x.stride, stride: x.stride },
                targets: &targets[first..rows.min(first + ROWS)],
                weights: &weights[first..rows.min(first + ROWS)],
                dim,
                vocab,
                gradient: dx.is_some(),
            };
            let parts = &mut work[..vocab.div_ceil(PART) * block.part_len()];
            block.parts(parts);
            let dx = dx.as_mut().map(|dx| {
                let (start, stride) = (dx.start + first * dx.stride, dx.stride);
                (&mut dx.buf[start..], stride)
            });
            block.combine(parts, &mut losses[first..rows.min(first + ROWS)], dx);
        }
        Ok(())
    }
}

/// Workspace of a part: vectors, logits of a chunk, numbers.
fn part_len(rows: usize, dim: usize) -> usize {
    rows * (dim + CHUNK + NUMBERS)
}

/// At most [`ROWS`] rows.
struct Block<'a> {
    head: Outputs<'a>,
    x: Rows<'a>,
    targets: &'a [u32],
    weights: &'a [f32],
    dim: usize,
    vocab: usize,
    gradient: bool,
}

impl Block<'_> {
    fn rows(&self) -> usize {
        self.targets.len()
    }

    fn part_len(&self) -> usize {
        part_len(self.rows(), self.dim)
    }

    /// Every part into its own workspace.
    fn parts(&self, work: &mut [f32]) {
        work.par_chunks_exact_mut(self.part_len()).enumerate().for_each(|(part, work)| {
            let rows = self.rows();
            let (sums, work) = work.split_at_mut(rows * self.dim);
            let (logits, numbers) = work.split_at_mut(rows * CHUNK);
            let (numbers, _) = numbers.as_chunks_mut::<NUMBERS>();
            sums.fill(0.0);
            numbers.fill([f32::NEG_INFINITY, 0.0, 0.0]);
            let end = self.vocab.min((part + 1) * PART);
            for begin in (part * PART..end).step_by(CHUNK) {
                let columns = begin..end.min(begin + CHUNK);
                self.head.forward(self.x, (rows, columns.clone()), (&mut *logits, CHUNK));
                for (row, numbers) in numbers.iter_mut().enumerate() {
                    let target = self.targets[row] as usize;
                    let logits = &mut logits[row * CHUNK..][..columns.len()];
                    if columns.contains(&target) {
                        numbers[2] = logits[target - begin];
                    }
                    let sums = &mut sums[row * self.dim..][..self.dim];
                    lanes::run(RunningRow { logits, sums, numbers });
                }
                if self.gradient {
                    let e = Rows { data: logits, start: 0, stride: CHUNK };
                    self.head.backward(e, (rows, columns), (&mut *sums, self.dim));
                }
            }
        });
    }

    /// Adds the parts in order: `loss = lse - l_y`, `dx = w (Σ_v p_v W_v - W_y)`.
    fn combine(&self, parts: &[f32], losses: &mut [f32], dx: Option<(&mut [f32], usize)>) {
        let part = |i: usize| &parts[i * self.part_len()..][..self.part_len()];
        let num_parts = self.vocab.div_ceil(PART);
        let numbers = |i: usize, row: usize| {
            let at = self.rows() * (self.dim + CHUNK) + row * NUMBERS;
            let n = &part(i)[at..at + NUMBERS];
            (n[0], n[1], n[2])
        };
        for (row, loss) in losses.iter_mut().enumerate() {
            let (maximum, total) = (0..num_parts).fold((f32::NEG_INFINITY, 0.0), |(m, s), i| {
                let (part_m, part_s, _) = numbers(i, row);
                merge((m, s), (part_m, part_s))
            });
            *loss = maximum + total.ln() - numbers(self.targets[row] as usize / PART, row).2;
        }
        let Some((dx, stride)) = dx else { return };
        let last = (self.rows() - 1) * stride + self.dim;
        dx[..last].par_chunks_mut(stride).enumerate().for_each(|(row, dx)| {
            let dx = &mut dx[..self.dim];
            dx.fill(0.0);
            let (mut maximum, mut total) = (f32::NEG_INFINITY, 0.0);
            for i in 0..num_parts {
                let (part_m, part_s, _) = numbers(i, row);
                let (before, after) = factors(maximum, part_m);
                (maximum, total) = merge((maximum, total), (part_m, part_s));
                let sums = &part(i)[row * self.dim..][..self.dim];
                lanes::run(Blend { to: dx, before, x: sums, after });
            }
            let scale = self.weights[row] / total;
            let mut at = 0;
            for w in self.head.column(self.targets[row] as usize) {
                for (dx, w) in dx[at..].iter_mut().zip(w) {
                    *dx = *dx * scale - self.weights[row] * w;
                }
                at += w.len();
            }
        });
    }
}

/// `(exp(a - m), exp(b - m))`, `m` the larger.
fn factors(a: f32, b: f32) -> (f32, f32) {
    let m = if b > a { b } else { a };
    // Nothing seen on either side: all is NaN or minus infinity, and the sums say which.
    if m == f32::NEG_INFINITY {
        return (0.0, 1.0);
    }
    ((a - m).exp(), (b - m).exp())
}

/// Running maximum and sum of exponentials of two runs.
fn merge((a_max, a): (f32, f32), (b_max, b): (f32, f32)) -> (f32, f32) {
    let (before, after) = factors(a_max, b_max);
    (if b_max > a_max { b_max } else { a_max }, a.mul_add(before, b * after))
}

/// One row's logits of a chunk become exponentials; its sums shrink to the new maximum.
struct RunningRow<'a> {
    logits: &'a mut [f32],
    sums: &'a mut [f32],
    /// Largest logit, sum of exponentials.
    numbers: &'a mut [f32; NUMBERS],
}

impl Kernel for RunningRow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let low = simd.splat_f32s(f32::NEG_INFINITY);
        let (vectors, tail) = self.logits.as_chunks_mut::<LANES>();
        let mut largest = [low; 4];
        for (i, v) in vectors.iter().enumerate() {
            let l = load(simd, v);
            let m = &mut largest[i % 4];
            // NaN is never greater: it comes out of the exponential below.
            *m = simd.select_f32s(simd.greater_than_f32s(l, *m), l, *m);
        }
        let mut lanes_of = [[0.0; LANES]; 4];
        for (to, v) in lanes_of.iter_mut().zip(largest) {
            store(simd, to, v);
        }
        let all = lanes_of.as_flattened().iter().chain(tail.iter());
        let maximum = all.fold(self.numbers[0], |m, l| if *l > m { *l } else { m });
        let from = if maximum == f32::NEG_INFINITY { 0.0 } else { maximum };
        let m = simd.splat_f32s(from);
        let mut total = [simd.splat_f32s(0.0); 2];
        for (i, v) in vectors.iter_mut().enumerate() {
            let e = exp(simd, simd.sub_f32s(load(simd, v), m));
            total[i % 2] = simd.add_f32s(total[i % 2], e);
            store(simd, v, e);
        }
        let mut last = [0.0; LANES];
        store(simd, &mut last, exp(simd, simd.sub_f32s(load_tail(simd, tail), m)));
        tail.copy_from_slice(&last[..tail.len()]);
        let sum = lanes::sum(simd, simd.add_f32s(total[0], total[1]));
        let sum = tail.iter().fold(sum, |sum, e| sum + e);
        if maximum > self.numbers[0] {
            let mut factor = [0.0; LANES];
            store(simd, &mut factor, exp(simd, simd.splat_f32s(self.numbers[0] - from)));
            self.numbers[1] *= factor[0];
            self.sums.iter_mut().for_each(|sum| *sum *= factor[0]);
        }
        self.numbers[0] = maximum;
        self.numbers[1] += sum;
    }
}

/// `to = before · to + after · x`.
struct Blend<'a> {
    to: &'a mut [f32],
    before: f32,
    x: &'a [f32],
    after: f32,
}

impl Kernel for Blend<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (to, x) in self.to.iter_mut().zip(self.x) {
            *to = to.mul_add(self.before, x * self.after);
        }
    }
}
