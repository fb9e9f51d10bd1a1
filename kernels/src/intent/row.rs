//! The arithmetic of one row.
//!
//! For a given history the head is a network of two layers on the table: with
//! `M = W_v + W_p (.) h` (for the outer product `M[k, i] = W_v[k, i] + Σ_j W_p[k, i, j] h_j`) and
//! `q = W_h h + b1`, `Z = V·Mᵀ + q`. Everything costs one product of `N · k · d`; backward needs `Z` again,
//! `R = dZᵀ·V = dM`, from which all of `W1` and `dh` follow, and `dV = dZ·M`.
//!
//! Hidden units lie in lanes, padded to whole vectors with zero weights. Knows no segment, thread or
//! buffer. Every sum of a product is the chain of [`crate::product`].

use crate::lanes::{self, Kernel, LANES, load, load_tail, store};
use crate::product::{Left, Product, Rows};
use pulp::Simd;

/// `C [rows, cols] (=|+=) A·B`, any number of columns: those beyond whole vectors by the same chains.
/// `depth >= 1`, `cols <= b.stride`, `cols <= c_stride`.
#[derive(Debug)]
pub(super) struct Dense<'a> {
    pub(super) left: Left,
    pub(super) a: Rows<'a>,
    pub(super) b: Rows<'a>,
    pub(super) c: &'a mut [f32],
    pub(super) c_stride: usize,
    /// `(rows, cols, depth)`.
    pub(super) sizes: (usize, usize, usize),
    pub(super) accumulate: bool,
}

impl Dense<'_> {
    pub(super) fn run(self) {
        let Self { left, a, b, c, c_stride, sizes: (rows, cols, depth), accumulate } = self;
        let vectors = cols / LANES;
        for i in 0..rows {
            for j in vectors * LANES..cols {
                let first = if accumulate { c[i * c_stride + j] } else { 0.0 };
                c[i * c_stride + j] = (0..depth).fold(first, |sum, l| {
                    let a = match left {
                        Left::AsIs => a.data[i * a.stride + l],
                        Left::Transposed => a.data[l * a.stride + i],
                    };
                    a.mul_add(b.data[l * b.stride + j], sum)
                });
            }
        }
        if vectors > 0 {
            Product { left, a, b, c, c_stride, rows, vectors, depth, accumulate }.run();
        }
    }
}

/// `to = rows of w · h + v`, row `i` with `h_i` (lanes are hidden units) or element by element.
pub(super) struct Mix<'a> {
    pub(super) w: Rows<'a>,
    pub(super) v: Rows<'a>,
    pub(super) h: &'a [f32],
    /// Rows of `width` elements, one after another.
    pub(super) to: &'a mut [f32],
    pub(super) width: usize,
    /// `h` belongs to rows; otherwise to columns.
    pub(super) by_row: bool,
}

impl Kernel for Mix<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let rows = self.to.chunks_exact_mut(self.width);
        let sources = self.w.data.chunks(self.w.stride).zip(self.v.data.chunks(self.v.stride));
        for (i, (to, (w, v))) in rows.zip(sources).enumerate() {
            let (w, v) = (&w[..to.len()], &v[..to.len()]);
            if self.by_row {
                let h = self.h[i];
                for ((to, w), v) in to.iter_mut().zip(w).zip(v) {
                    *to = w.mul_add(h, *v);
                }
            } else {
                for (((to, w), v), h) in to.iter_mut().zip(w).zip(v).zip(self.h) {
                    *to = w.mul_add(*h, *v);
                }
            }
        }
    }
}

/// What the hidden layer is made of, in whole vectors.
#[derive(Clone, Copy)]
pub(super) struct Hidden<'a> {
    pub(super) b1: &'a [f32],
    pub(super) slope: &'a [f32],
    pub(super) w2: &'a [f32],
}

/// `logits_n = Σ_k w2_k PReLU(Z_nk + q_k) + b2 + c_n`, lanes in the tree of [`lanes::sum`].
pub(super) struct Logits<'a> {
    pub(super) hidden: Hidden<'a>,
    /// `W_h h + b1`.
    pub(super) q: &'a [f32],
    /// `V·Mᵀ [N, k]`.
    pub(super) z: &'a [f32],
    pub(super) b2: f32,
    /// `c`; may be empty.
    pub(super) bias: &'a [f32],
    pub(super) logits: &'a mut [f32],
}

impl Kernel for Logits<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.q.len();
        let zero = simd.splat_f32s(0.0);
        let (q, _) = self.q.as_chunks::<LANES>();
        let (slope, _) = self.hidden.slope.as_chunks::<LANES>();
        let (w2, _) = self.hidden.w2.as_chunks::<LANES>();
        for (n, (logit, z)) in self.logits.iter_mut().zip(self.z.chunks_exact(width)).enumerate() {
            let mut sum = zero;
            for (((z, q), slope), w2) in z.as_chunks().0.iter().zip(q).zip(slope).zip(w2) {
                let z = simd.add_f32s(load(simd, z), load(simd, q));
                let down = simd.mul_f32s(z, load(simd, slope));
                let y = simd.select_f32s(simd.greater_than_f32s(z, zero), z, down);
                sum = simd.mul_add_f32s(y, load(simd, w2), sum);
            }
            *logit = lanes::sum(simd, sum) + self.b2 + self.bias.get(n).copied().unwrap_or(0.0);
        }
    }
}

/// `Z` becomes `dZ`; sums over the intents, ascending, of `dZ`, `da · w2 · min(Z, 0)` and `da · PReLU(Z)`.
pub(super) struct Slopes<'a> {
    pub(super) hidden: Hidden<'a>,
    pub(super) q: &'a [f32],
    pub(super) da: &'a [f32],
    pub(super) z: &'a mut [f32],
    /// `db1`, `dslope`, `dw2` of the row, `[3, k]`, written `=`.
    pub(super) sums: &'a mut [f32],
}

impl Kernel for Slopes<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.q.len();
        let zero = simd.splat_f32s(0.0);
        let vector = |x: &[f32], j: usize| load_tail(simd, &x[j..j + LANES]);
        for j in (0..width).step_by(LANES) {
            let q = vector(self.q, j);
            let (slope, w2) = (vector(self.hidden.slope, j), vector(self.hidden.w2, j));
            let mut sums = [zero; 3];
            for (da, z) in self.da.iter().zip(self.z.chunks_exact_mut(width)) {
                let Some(to) = z[j..].first_chunk_mut::<LANES>() else { continue };
                let (da, z) = (simd.splat_f32s(*da), simd.add_f32s(load(simd, to), q));
                let up = simd.greater_than_f32s(z, zero);
                let dy = simd.mul_f32s(da, w2);
                let dz = simd.select_f32s(up, dy, simd.mul_f32s(dy, slope));
                let below = simd.select_f32s(up, zero, z);
                let y = simd.select_f32s(up, z, simd.mul_f32s(z, slope));
                sums[0] = simd.add_f32s(sums[0], dz);
                sums[1] = simd.mul_add_f32s(dy, below, sums[1]);
                sums[2] = simd.mul_add_f32s(da, y, sums[2]);
                store(simd, to, dz);
            }
            for (to, sum) in self.sums.chunks_exact_mut(width).zip(sums) {
                if let Some(to) = to[j..].first_chunk_mut() {
                    store(simd, to, sum);
                }
            }
        }
    }
}

/// `to [cols, to_stride]` is the transpose of `from [rows, from.stride]`, what is beyond `rows` stays.
pub(super) fn transpose(
    from: Rows<'_>,
    (rows, cols): (usize, usize),
    to: &mut [f32],
    stride: usize,
) {
    for first in (0..rows).step_by(LANES) {
        let last = rows.min(first + LANES);
        for (c, to) in to.chunks_mut(stride).take(cols).enumerate() {
            for (row, to) in (first..last).zip(&mut to[first..]) {
                *to = from.data[row * from.stride + c];
            }
        }
    }
}
