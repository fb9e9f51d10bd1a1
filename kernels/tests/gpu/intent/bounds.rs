//! How far the head on a GPU may be from the truth, element by element.
//!
//! Parameters and `dZ` enter products as tf32, each off by at most [`TF`] of itself (history vectors are bf16, exact in
//! it); every sum is f32, off by [`EPS`] a term. Where `z` lies so near to PReLU's bend that its own error may put it on
//! the other side, `dz` is off by the whole bend. First-order sums of these, of absolute values, by plain loops.

use crate::intent_case::Case;
use crate::naive::real::wide;
use crate::tolerance::EPS;
use kernels::intent::{Product, Segment};

/// Half a unit in the last place of tf32, and a little for what was rounded to f32 before.
const TF: f64 = 1.01 / 2048.0;

/// Largest errors.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    pub(super) logits: Vec<f64>,
    /// Before the rounding to bf16.
    pub(super) dh: Vec<f64>,
    pub(super) params: Vec<f64>,
    pub(super) deltas: Vec<f64>,
}

/// A number's largest absolute value (the sum of those of its terms) and its largest error.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    abs: f64,
    error: f64,
}

impl Size {
    fn new(abs: f64, error: f64) -> Self {
        Self { abs, error }
    }

    fn exact(v: f64) -> Self {
        Self::new(v.abs(), 0.0)
    }

    fn tf32(self) -> Self {
        Self::new(self.abs, self.error + TF * (self.abs + self.error))
    }

    fn times(self, other: Self) -> Self {
        let error = self.error * (other.abs + other.error) + self.abs * other.error;
        Self::new(self.abs * other.abs, error)
    }

    /// A sum of `terms` numbers in f32, in whatever order.
    fn sum(all: impl Iterator<Item = Self>, terms: usize) -> Self {
        let mut total =
            all.fold(Self::default(), |a, b| Self::new(a.abs + b.abs, a.error + b.error));
        total.error += (terms + 8) as f64 * EPS * (total.abs + total.error);
        total
    }
}

/// One row's part of [`Bounds`].
struct Row<'a> {
    case: &'a Case,
    params: &'a [f64],
    h: &'a [f64],
    /// Of the row's delta, `[N, d]` then `[N]`.
    delta: Option<&'a [f64]>,
}

impl Row<'_> {
    fn w1(&self, unit: usize, column: usize) -> Size {
        let at = self.case.offsets.w1 + unit * self.case.shape.columns() + column;
        Size::exact(self.params[at])
    }

    fn w_p(&self, unit: usize, i: usize, j: usize) -> Size {
        let d = self.case.shape.dim;
        self.w1(unit, if self.case.shape.product == Product::Outer { d + i * d + j } else { d + i })
    }

    fn w_h(&self, unit: usize, i: usize) -> Size {
        self.w1(unit, self.case.shape.columns() - self.case.shape.dim + i)
    }

    /// `(value, size)` of an embedding's number.
    fn v(&self, n: usize, i: usize) -> (f64, Size) {
        let at = n * self.case.shape.dim + i;
        let shared = self.params[self.case.offsets.table + at];
        let own = self.delta.map_or(0.0, |delta| delta[at]);
        let abs = shared.abs() + own.abs();
        (shared + own, Size::new(abs, EPS * abs))
    }

    /// `(value, size)` of `M[unit, i]`.
    fn m(&self, unit: usize, i: usize) -> (f64, Size) {
        let outer = self.case.shape.product == Product::Outer;
        let d = self.case.shape.dim;
        let column =
            |c: usize| self.params[self.case.offsets.w1 + unit * self.case.shape.columns() + c];
        let mut value = column(i);
        let mut abs = value.abs();
        for j in if outer { 0..d } else { i..i + 1 } {
            let term = column(if outer { d + i * d + j } else { d + i }) * self.h[j];
            value += term;
            abs += term.abs();
        }
        (value, Size::new(abs, (d + 1) as f64 * EPS * abs))
    }

    fn add(&self, row: usize, da: &[f64], grad: Option<usize>, to: &mut Bounds) {
        let (shape, at) = (self.case.shape, self.case.offsets);
        let (n, d, k) = (shape.intents, shape.dim, shape.hidden);
        let m: Vec<(f64, Size)> = (0..k * d).map(|x| self.m(x / d, x % d)).collect();
        let q: Vec<(f64, Size)> = (0..k)
            .map(|u| {
                let b1 = self.params[at.b1 + u];
                let of_h = |i: usize| self.w_h(u, i).tf32().times(Size::exact(self.h[i]));
                let w = &self.params[at.w1 + (u + 1) * shape.columns() - d..][..d];
                let value = w.iter().zip(self.h).map(|(w, h)| w * h).sum::<f64>() + b1;
                (value, Size::sum((0..d).map(of_h).chain([Size::exact(b1)]), d))
            })
            .collect();
        let mut dz = vec![Size::default(); n * k];
        for intent in 0..n {
            let v: Vec<(f64, Size)> = (0..d).map(|i| self.v(intent, i)).collect();
            let mut logit = vec![Size::exact(self.params[at.b2])];
            logit.extend(at.bias.map(|at| Size::exact(self.params[at + intent])));
            logit.extend(self.delta.map(|delta| Size::exact(delta[n * d + intent])));
            for u in 0..k {
                let of_v = |i: usize| m[u * d + i].1.tf32().times(v[i].1.tf32());
                let z = Size::sum((0..d).map(of_v).chain([q[u].1]), d);
                let value = (0..d).map(|i| m[u * d + i].0 * v[i].0).sum::<f64>() + q[u].0;
                let (slope, w2) = (self.params[at.slope + u], self.params[at.w2 + u]);
                let steep = slope.abs().max(1.0);
                let y = Size::new(z.abs * steep, z.error * steep);
                logit.push(y.times(Size::exact(w2)));
                let dy = Size::exact(da[intent] * w2);
                let bend = if value.abs() <= z.error { (1.0 - slope).abs() } else { 0.0 };
                let gain = if value > z.error { 1.0 } else { slope.abs() };
                let abs = dy.abs * gain;
                dz[intent * k + u] = Size::new(abs, dy.abs * bend + 3.0 * EPS * abs);
                let mut head = |at: usize, x: Size| {
                    to.params[at] += x.error + (n + 8) as f64 * EPS * (x.abs + x.error);
                };
                head(at.b1 + u, dz[intent * k + u]);
                head(at.slope + u, dy.times(z));
                head(at.w2 + u, Size::exact(da[intent]).times(y));
            }
            let terms = logit.len();
            to.logits[row * n + intent] = Size::sum(logit.into_iter(), terms).error;
            to.params[at.b2] += n as f64 * EPS * da[intent].abs();
            for i in 0..d {
                let of_m = |u: usize| dz[intent * k + u].tf32().times(m[u * d + i].1.tf32());
                let dv = Size::sum((0..k).map(of_m), k).error;
                to.params[at.table + intent * d + i] += dv;
                grad.into_iter().for_each(|at| to.deltas[at + intent * d + i] += dv);
            }
        }
        self.add_weights(row, &dz, to);
    }

    /// What comes from `R = dZᵀ V` and the sums of `dZ`.
    fn add_weights(&self, row: usize, dz: &[Size], to: &mut Bounds) {
        let (shape, at) = (self.case.shape, self.case.offsets);
        let (n, d, k, columns) = (shape.intents, shape.dim, shape.hidden, shape.columns());
        let outer = shape.product == Product::Outer;
        let mut dh = vec![Size::default(); d];
        let mut of_history = |i: usize, x: Size| {
            dh[i] = Size::new(dh[i].abs + x.abs, dh[i].error + x.error);
        };
        for u in 0..k {
            let s = Size::sum((0..n).map(|i| dz[i * k + u]), n);
            for i in 0..d {
                let of_v = |x: usize| dz[x * k + u].tf32().times(self.v(x, i).1.tf32());
                let r = Size::sum((0..n).map(of_v), n);
                let row_of_w1 = &mut to.params[at.w1 + u * columns..][..columns];
                row_of_w1[i] += r.error;
                row_of_w1[columns - d + i] += s.times(Size::exact(self.h[i])).error;
                of_history(i, s.tf32().times(self.w_h(u, i).tf32()));
                for j in if outer { 0..d } else { i..i + 1 } {
                    let column = if outer { d + i * d + j } else { d + i };
                    row_of_w1[column] += r.times(Size::exact(self.h[j])).error;
                    // In the element-wise form the sums are over units first, then over intents: the same terms.
                    of_history(j, r.times(self.w_p(u, i, j).tf32()));
                }
            }
        }
        let terms = if outer { k * d + k } else { n + 2 * k };
        for (i, dh) in dh.into_iter().enumerate() {
            to.dh[row * d + i] = dh.error + (terms + 8) as f64 * EPS * (dh.abs + dh.error);
        }
    }
}

impl Bounds {
    /// Errors of one forward and of one backward from zero; the chains' own come on top.
    pub(super) fn new(case: &Case) -> Self {
        let (shape, input) = (case.shape, case.input::<f64>());
        let (da, mut to) = (
            wide::<f64>(&case.da),
            Self {
                logits: vec![0.0; case.rows * shape.intents],
                dh: vec![0.0; case.rows * shape.dim],
                params: vec![0.0; case.params.len()],
                deltas: vec![0.0; case.delta_grads.len()],
            },
        );
        for (row, h) in input.h.chunks(shape.dim).enumerate() {
            let segment = case
                .segments
                .iter()
                .find(|s| (s.row_start as usize..(s.row_start + s.rows) as usize).contains(&row));
            let place = |at: u64| (at != Segment::NONE).then_some(at as usize);
            let delta = segment.and_then(|s| place(s.delta_offset));
            let delta = delta.map(|at| &input.deltas[at..at + shape.delta_len()]);
            let grad = segment.and_then(|s| place(s.delta_grad_offset));
            let da = &da[row * shape.intents..][..shape.intents];
            Row { case, params: &input.params, h, delta }.add(row, da, grad, &mut to);
        }
        to
    }
}
