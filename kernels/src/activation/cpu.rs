//! Rows in parallel; sixteen lanes at a time.

use super::{Activation, Backward, Forward, Kind};
use crate::cpu::{Cpu, ROWS_PER_TASK, rows_mut};
use crate::error::Result;
use crate::lanes::{self, Kernel, LANES, load, load_tail, store};
use crate::math::sigmoids;
use pulp::Simd;
use rayon::prelude::*;

/// `2 sqrt(2/pi)`: `gelu_new(u) = u σ(2 z)` with `z` its argument of `tanh`, since `1 + tanh z = 2 σ(2 z)`.
const TWICE_ROOT: f32 = 1.595_769_2;
/// Factor of `u³`.
const CUBIC: f32 = 0.044_715;

impl Activation for Cpu {
    fn activation_forward(&self, args: Forward<'_, Self>) -> Result<()> {
        args.check()?;
        let Forward { kind, x, h, rows, dim } = args;
        rows_mut(h.buf, (h.start, h.stride), rows).enumerate().for_each(|(task, h_rows)| {
            let first = x.start + task * ROWS_PER_TASK * x.stride;
            let x_rows = x.buf[first..].chunks(x.stride);
            for (x, h) in x_rows.zip(h_rows.chunks_mut(h.stride)) {
                lanes::run(ForwardRow { kind, x: &x[..kind.in_dim(dim)], h: &mut h[..dim] });
            }
        });
        Ok(())
    }

    fn activation_backward(&self, args: Backward<'_, Self>) -> Result<()> {
        args.check()?;
        let Backward { kind, x, dh, dx, rows, dim } = args;
        let width = kind.in_dim(dim);
        rows_mut(dx.buf, (dx.start, dx.stride), rows).enumerate().for_each(|(task, dx_rows)| {
            let row = task * ROWS_PER_TASK;
            let x_rows = x.buf[x.start + row * x.stride..].chunks(x.stride);
            let dh_rows = dh.buf[dh.start + row * dh.stride..].chunks(dh.stride);
            for ((x, dh), dx) in x_rows.zip(dh_rows).zip(dx_rows.chunks_mut(dx.stride)) {
                let (x, dh, dx) = (&x[..width], &dh[..dim], &mut dx[..width]);
                lanes::run(BackwardRow { kind, x, dh, dx });
            }
        });
        Ok(())
    }
}

/// `g σ(g) u`.
#[inline(always)]
fn swiglu<S: Simd>(simd: S, g: S::f32s, u: S::f32s) -> S::f32s {
    let (sigmoid, _) = sigmoids(simd, g);
    simd.mul_f32s(simd.mul_f32s(g, sigmoid), u)
}

/// `(dg, du)`: `du = dh g σ`, `dg = dh u σ (1 + g σ(-g))`.
#[inline(always)]
fn swiglu_backward<S: Simd>(
    simd: S,
    (g, u): (S::f32s, S::f32s),
    dh: S::f32s,
) -> (S::f32s, S::f32s) {
    let (sigmoid, complement) = sigmoids(simd, g);
    let slope = simd.mul_add_f32s(g, complement, simd.splat_f32s(1.0));
    let by_sigmoid = simd.mul_f32s(dh, sigmoid);
    let dg = simd.mul_f32s(simd.mul_f32s(by_sigmoid, u), slope);
    (dg, simd.mul_f32s(by_sigmoid, g))
}

/// `2 z = 2 sqrt(2/pi) (u + 0.044715 u³)` and `u²`.
#[inline(always)]
fn gelu_argument<S: Simd>(simd: S, u: S::f32s) -> (S::f32s, S::f32s) {
    let square = simd.mul_f32s(u, u);
    let factor = simd.mul_add_f32s(square, simd.splat_f32s(CUBIC), simd.splat_f32s(1.0));
    (simd.mul_f32s(simd.mul_f32s(u, factor), simd.splat_f32s(TWICE_ROOT)), square)
}

/// `u σ(2 z)`.
#[inline(always)]
fn gelu_new<S: Simd>(simd: S, u: S::f32s) -> S::f32s {
    let (sigmoid, _) = sigmoids(simd, gelu_argument(simd, u).0);
    simd.mul_f32s(u, sigmoid)
}

/// `dh (σ + u σ σ(-2z) · 2 sqrt(2/pi) (1 + 3 · 0.044715 u²))`.
#[inline(always)]
fn gelu_new_backward<S: Simd>(simd: S, u: S::f32s, dh: S::f32s) -> S::f32s {
    let (twice_z, square) = gelu_argument(simd, u);
    let (sigmoid, complement) = sigmoids(simd, twice_z);
    let slope = simd.mul_add_f32s(
        square,
        simd.splat_f32s(3.0 * CUBIC * TWICE_ROOT),
        simd.splat_f32s(TWICE_ROOT),
    );
    let inner = simd.mul_f32s(simd.mul_f32s(u, complement), slope);
    let factor = simd.mul_add_f32s(sigmoid, inner, sigmoid);
    simd.mul_f32s(dh, factor)
}

struct ForwardRow<'a> {
    kind: Kind,
    x: &'a [f32],
    h: &'a mut [f32],
}

impl Kernel for ForwardRow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let dim = self.h.len();
        let (first, second) = self.x.split_at(dim);
        match self.kind {
            Kind::SwiGlu => map2(
                simd,
                first,
                second,
                self.h,
                #[inline(always)]
                |g, u| swiglu(simd, g, u),
            ),
            Kind::GeluNew => map2(
                simd,
                first,
                first,
                self.h,
                #[inline(always)]
                |u, _| gelu_new(simd, u),
            ),
        }
    }
}

struct BackwardRow<'a> {
    kind: Kind,
    x: &'a [f32],
    dh: &'a [f32],
    dx: &'a mut [f32],
}

impl Kernel for BackwardRow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (g, u) = self.x.split_at(self.dh.len());
        let (dg, du) = self.dx.split_at_mut(self.dh.len());
        if self.kind == Kind::GeluNew {
            return map2(
                simd,
                g,
                self.dh,
                dg,
                #[inline(always)]
                |u, dh| gelu_new_backward(simd, u, dh),
            );
        }
        let ((gs, g_tail), (us, u_tail)) = (g.as_chunks::<LANES>(), u.as_chunks::<LANES>());
        let (dhs, dh_tail) = self.dh.as_chunks::<LANES>();
        let (dgs, dg_tail) = dg.as_chunks_mut::<LANES>();
        let (dus, du_tail) = du.as_chunks_mut::<LANES>();
        for (((g, u), dh), (dg, du)) in gs.iter().zip(us).zip(dhs).zip(dgs.iter_mut().zip(dus)) {
            let (a, b) = swiglu_backward(simd, (load(simd, g), load(simd, u)), load(simd, dh));
            store(simd, dg, a);
            store(simd, du, b);
        }
        if !g_tail.is_empty() {
            let inputs = (load_tail(simd, g_tail), load_tail(simd, u_tail));
            let (a, b) = swiglu_backward(simd, inputs, load_tail(simd, dh_tail));
            let mut last = [[0.0; LANES]; 2];
            store(simd, &mut last[0], a);
            store(simd, &mut last[1], b);
            dg_tail.copy_from_slice(&last[0][..g_tail.len()]);
            du_tail.copy_from_slice(&last[1][..g_tail.len()]);
        }
    }
}

/// `out = f(a, b)`, elementwise.
#[inline(always)]
fn map2<S: Simd>(
    simd: S,
    a: &[f32],
    b: &[f32],
    out: &mut [f32],
    f: impl Fn(S::f32s, S::f32s) -> S::f32s,
) {
    let ((avs, a_tail), (bvs, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let (outs, out_tail) = out.as_chunks_mut::<LANES>();
    for ((a, b), out) in avs.iter().zip(bvs).zip(outs) {
        store(simd, out, f(load(simd, a), load(simd, b)));
    }
    if !out_tail.is_empty() {
        let mut last = [0.0; LANES];
        store(simd, &mut last, f(load_tail(simd, a_tail), load_tail(simd, b_tail)));
        out_tail.copy_from_slice(&last[..out_tail.len()]);
    }
}
