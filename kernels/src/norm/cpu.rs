//! Rows in parallel, columns for the gradients of the parameters; the sums of a row in the order of
//! [`crate::lanes::fold`].

use super::{Backward, Forward, Norm, ParamGradient};
use crate::columns::{self, Normalised};
use crate::cpu::{Cpu, ROWS_PER_TASK, rows_mut};
use crate::error::Result;
use crate::lanes::{self, Kernel, dot, fold};
use crate::linear::operand::Rows;
use pulp::Simd;
use rayon::prelude::*;
use std::cell::Cell;

impl Norm for Cpu {
    fn norm_forward(&self, args: Forward<'_, Self>) -> Result<()> {
        args.check()?;
        let Forward { params, x, y, rows, dim } = args;
        rows_mut(y.buf, (y.start, y.stride), rows).enumerate().for_each(|(task, y_rows)| {
            let row = task * ROWS_PER_TASK;
            lanes::run(ForwardRows {
                x: &x.buf[x.start + row * x.stride..],
                x_stride: x.stride,
                weight: &params.weight[..dim],
                bias: params.bias.map(|b| &b[..dim]),
                eps: params.eps,
                y: y_rows,
                y_stride: y.stride,
            });
        });
        Ok(())
    }

    fn norm_backward(&self, args: Backward<'_, Self>) -> Result<()> {
        args.check()?;
        let Backward { params, x, dy, dx, rows, dim } = args;
        rows_mut(dx.buf, (dx.start, dx.stride), rows).enumerate().for_each(|(task, dx_rows)| {
            let row = task * ROWS_PER_TASK;
            lanes::run(BackwardRows {
                x: &x.buf[x.start + row * x.stride..],
                x_stride: x.stride,
                dy: &dy.buf[dy.start + row * dy.stride..],
                dy_stride: dy.stride,
                weight: &params.weight[..dim],
                centred: params.bias.is_some(),
                eps: params.eps,
                dx: dx_rows,
                dx_stride: dx.stride,
            });
        });
        Ok(())
    }

    fn norm_param_gradient(&self, args: ParamGradient<'_, Self>) -> Result<()> {
        args.check()?;
        let ParamGradient { centred, eps, x, dy, rows, dim, grads, .. } = args;
        let x = Rows { data: x.buf, start: x.start, stride: x.stride };
        let dy = Rows { data: dy.buf, start: dy.start, stride: dy.stride };
        let mut statistics = STATISTICS.take();
        statistics.clear();
        statistics.resize(rows, [0.0; 2]);
        statistics.par_chunks_mut(ROWS_PER_TASK).enumerate().for_each(|(task, statistics)| {
            let first = task * ROWS_PER_TASK;
            lanes::run(StatisticsOf { x, first, dim, centred, eps, statistics });
        });
        let times = Some(Normalised { x, statistics: &statistics });
        columns::add(dy, times, rows, &mut grads[args.weight_offset..][..dim]);
        if let Some(at) = args.bias_offset {
            columns::add(dy, None, rows, &mut grads[at..at + dim]);
        }
        STATISTICS.set(statistics);
        Ok(())
    }
}

thread_local! {
    /// Mean and scale of each row, taken out while a gradient runs; grows once.
    static STATISTICS: Cell<Vec<[f32; 2]>> = const { Cell::new(Vec::new()) };
}

/// The statistics of some rows, from row `first` on.
struct StatisticsOf<'a> {
    x: Rows<'a>,
    first: usize,
    dim: usize,
    centred: bool,
    eps: f32,
    statistics: &'a mut [[f32; 2]],
}

impl Kernel for StatisticsOf<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (row, to) in (self.first..).zip(self.statistics) {
            *to = statistics(simd, self.x.row(row, 0..self.dim), self.centred, self.eps).into();
        }
    }
}

/// `mean` (zero without centring) and `1 / sqrt(variance + eps)` of a row.
#[inline(always)]
fn statistics<S: Simd>(simd: S, x: &[f32], centred: bool, eps: f32) -> (f32, f32) {
    #[expect(clippy::cast_precision_loss, reason = "widths are far below 2^24")]
    let inv = 1.0 / x.len() as f32;
    if !centred {
        return (0.0, 1.0 / dot(simd, x, x).mul_add(inv, eps).sqrt());
    }
    let mean = inv
        * fold(
            simd,
            (x, x),
            #[inline(always)]
            |acc, x, _| simd.add_f32s(acc, x),
        );
    let m = simd.splat_f32s(mean);
    let whole = x.len() / lanes::LANES * lanes::LANES;
    let squares = fold(
        simd,
        (&x[..whole], &x[..whole]),
        #[inline(always)]
        |acc, x, _| {
            let c = simd.sub_f32s(x, m);
            simd.mul_add_f32s(c, c, acc)
        },
    );
    // The last lanes apart: a missing element is not an element of value zero here.
    let squares = x[whole..].iter().fold(squares, |acc, x| (x - mean).mul_add(x - mean, acc));
    (mean, 1.0 / squares.mul_add(inv, eps).sqrt())
}

struct ForwardRows<'a> {
    x: &'a [f32],
    x_stride: usize,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    y: &'a mut [f32],
    y_stride: usize,
}

impl Kernel for ForwardRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let dim = self.weight.len();
        for (x, y) in self.x.chunks(self.x_stride).zip(self.y.chunks_mut(self.y_stride)) {
            let (x, y) = (&x[..dim], &mut y[..dim]);
            let (mean, scale) = statistics(simd, x, self.bias.is_some(), self.eps);
            match self.bias {
                None => {
                    for ((y, x), w) in y.iter_mut().zip(x).zip(self.weight) {
                        *y = x * scale * w;
                    }
                }
                Some(bias) => {
                    for (((y, x), w), b) in y.iter_mut().zip(x).zip(self.weight).zip(bias) {
                        *y = ((x - mean) * scale).mul_add(*w, *b);
                    }
                }
            }
        }
    }
}

struct BackwardRows<'a> {
    x: &'a [f32],
    x_stride: usize,
    dy: &'a [f32],
    dy_stride: usize,
    weight: &'a [f32],
    centred: bool,
    eps: f32,
    dx: &'a mut [f32],
    dx_stride: usize,
}

impl Kernel for BackwardRows<'_> {
    type Output = ();
    /// With `x̂ = (x - mean) r` and `g = w dy`: `dx += r (g - [mean(g)] - x̂ mean(g x̂))`.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let dim = self.weight.len();
        #[expect(clippy::cast_precision_loss, reason = "widths are far below 2^24")]
        let inv = 1.0 / dim as f32;
        // Rows are short: `g` of a row fits in a small block on the stack at a time.
        let rows = self.x.chunks(self.x_stride).zip(self.dy.chunks(self.dy_stride));
        for ((x, dy), dx) in rows.zip(self.dx.chunks_mut(self.dx_stride)) {
            let (x, dy, dx) = (&x[..dim], &dy[..dim], &mut dx[..dim]);
            let (mean, r) = statistics(simd, x, self.centred, self.eps);
            let sum_g = if self.centred { dot(simd, dy, self.weight) } else { 0.0 };
            let sum_gx = weighted_dot(simd, (x, mean), dy, self.weight);
            let (mean_g, along) = (sum_g * inv, sum_gx * inv * r * r);
            for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(self.weight) {
                let inner = (mean - x).mul_add(along, dy.mul_add(*w, -mean_g));
                *dx = inner.mul_add(r, *dx);
            }
        }
    }
}

/// `Σ (x - mean) · dy · w`, sixteen lanes then the tree of [`lanes::sum`].
#[inline(always)]
fn weighted_dot<S: Simd>(simd: S, (x, mean): (&[f32], f32), dy: &[f32], w: &[f32]) -> f32 {
    let m = simd.splat_f32s(mean);
    let mut acc = [simd.splat_f32s(0.0); 2];
    let ((xs, x_tail), (dys, dy_tail), (ws, w_tail)) =
        (x.as_chunks(), dy.as_chunks(), w.as_chunks());
    for (i, ((x, dy), w)) in xs.iter().zip(dys).zip(ws).enumerate() {
        let g = simd.mul_f32s(lanes::load(simd, dy), lanes::load(simd, w));
        let c = simd.sub_f32s(lanes::load(simd, x), m);
        acc[i % 2] = simd.mul_add_f32s(g, c, acc[i % 2]);
    }
    let total = lanes::sum(simd, simd.add_f32s(acc[0], acc[1]));
    let tail = x_tail.iter().zip(dy_tail).zip(w_tail);
    tail.fold(total, |acc, ((x, dy), w)| (dy * w).mul_add(x - mean, acc))
}
