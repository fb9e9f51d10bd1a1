//! Scratch, packing of columns, and the two softmax kernels of a tile.

use super::{COLUMNS, Head, KEYS};
use crate::lanes::{self, Kernel, LANES};
use crate::math::exp;
use crate::product::Rows;
use bytemuck::{Pod, Zeroable};
use pulp::Simd;

/// A cache line, so that a vector never lies in two.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(super) struct Line([f32; LANES]);

/// The first `len` elements of a scratch that only grows.
pub(super) fn floats(scratch: &mut Vec<Line>, len: usize) -> &mut [f32] {
    if scratch.len() * LANES < len {
        scratch.resize(len.div_ceil(LANES), Line::zeroed());
    }
    &mut bytemuck::cast_slice_mut(scratch)[..len]
}

/// A thread's scratch for one tile.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// `Qᵀ [e][columns]`, scaled.
    pub(super) q_columns: Vec<Line>,
    /// `Q [columns][e]`, scaled (backward).
    pub(super) q_rows: Vec<Line>,
    /// `dOᵀ` and `dO` (backward).
    pub(super) dout_columns: Vec<Line>,
    /// `dO [columns][e]`.
    pub(super) dout_rows: Vec<Line>,
    /// Scores, then probabilities: `[keys][columns]`.
    pub(super) scores: Vec<Line>,
    /// `dP`, then `dS`: `[keys][columns]` (backward).
    pub(super) dscores: Vec<Line>,
    /// `O` or `dQ`: `[columns][e]`.
    pub(super) sums: Vec<Line>,
    /// Values or keys whose width is no multiple of sixteen: `[keys][e]`, padded with zeros.
    pub(super) padded: Vec<Line>,
}

/// Some columns of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    /// First row of the sequence in the pack.
    pub(super) q_start: usize,
    /// First column, counted from the sequence's first row.
    pub(super) first: usize,
    /// At most [`COLUMNS`].
    pub(super) count: usize,
}

impl Columns {
    /// Vectors that hold them.
    pub(super) fn vectors(&self) -> usize {
        self.count.div_ceil(LANES)
    }

    /// Row in the pack of column `c`.
    pub(super) fn row(&self, head: &Head<'_>, c: usize) -> usize {
        self.q_start + (self.first + c) / head.per_row()
    }

    /// Columns of `Q` or `O` that hold the head of column `c`.
    fn at(&self, head: &Head<'_>, c: usize) -> usize {
        head.q_offset() + (self.first + c) % head.per_row() * head.width()
    }

    /// Elements of column `c` in a buffer of rows shaped as `Q`.
    pub(super) fn slice<'a>(&self, head: &Head<'_>, x: Rows<'a>, c: usize) -> &'a [f32] {
        &x.data[self.row(head, c) * x.stride + self.at(head, c)..][..head.width()]
    }

    /// How many own keys each column sees; missing columns as the last, so that they mask nothing more.
    pub(super) fn limits(&self, head: &Head<'_>) -> [u32; COLUMNS] {
        std::array::from_fn(|c| head.limits[self.row(head, c.min(self.count - 1))])
    }

    /// `factor · X` of these columns, transposed to `[e][16 · vectors]`; missing columns are zero.
    ///
    /// Plain loops: blocks of 4 by 4 and shuffles of 16 by 16 measured no better, the reads being the cost.
    pub(super) fn transpose(&self, head: &Head<'_>, x: Rows<'_>, factor: f32, to: &mut [f32]) {
        let width = self.vectors() * LANES;
        if self.count < width {
            to.fill(0.0);
        }
        for c in 0..self.count {
            let column = self.slice(head, x, c);
            for (to, x) in to[c..].iter_mut().step_by(width).zip(column) {
                *to = x * factor;
            }
        }
    }

    /// `factor · X` of these columns as rows `[columns][padded e]`.
    pub(super) fn gather(&self, head: &Head<'_>, x: Rows<'_>, factor: f32, to: &mut [f32]) {
        let padded = head.width().next_multiple_of(LANES);
        for (c, to) in to.chunks_exact_mut(padded).take(self.count).enumerate() {
            let (to, rest) = to.split_at_mut(head.width());
            for (to, x) in to.iter_mut().zip(self.slice(head, x, c)) {
                *to = x * factor;
            }
            rest.fill(0.0);
        }
    }
}

/// `rows` rows of width `e` as rows that can be read in whole vectors: as they lie where `e` is a
/// multiple of sixteen, else copied and padded.
pub(super) fn whole_vectors<'a>(
    x: Rows<'a>,
    width: usize,
    rows: usize,
    scratch: &'a mut Vec<Line>,
) -> Rows<'a> {
    if width.is_multiple_of(LANES) {
        return x;
    }
    let padded = width.next_multiple_of(LANES);
    let to = floats(scratch, KEYS * padded);
    for (to, x) in to.chunks_exact_mut(padded).zip(x.data.chunks(x.stride)).take(rows) {
        to[..width].copy_from_slice(&x[..width]);
        to[width..].fill(0.0);
    }
    Rows { data: to, stride: padded }
}

/// One step of the running softmax over a tile `[keys][16 · vectors]` of scores.
pub(super) struct Running<'a> {
    pub(super) vectors: usize,
    /// Scores, replaced by `exp(score - maximum)`.
    pub(super) scores: &'a mut [f32],
    /// Index of the tile's first key, and how many own keys each column sees; `None`: all.
    pub(super) limits: Option<(usize, &'a [u32; COLUMNS])>,
    /// Maximum so far, updated.
    pub(super) maximum: &'a mut [f32; COLUMNS],
    /// Sum of exponentials so far, updated.
    pub(super) total: &'a mut [f32; COLUMNS],
    /// Written: the factor that makes what was summed before count from the new maximum.
    pub(super) factor: &'a mut [f32; COLUMNS],
}

impl Kernel for Running<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.vectors {
            1 => self.vectors::<S, 1>(simd),
            2 => self.vectors::<S, 2>(simd),
            _ => self.vectors::<S, 3>(simd),
        }
    }
}

impl Running<'_> {
    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(self, simd: S) {
        if let Some((first, limits)) = self.limits {
            mask::<S, N>(simd, self.scores, (first, limits), f32::NEG_INFINITY);
        }
        let old: [S::f32s; N] = each(simd, self.maximum);
        let mut maximum = old;
        for key in self.scores.as_chunks::<LANES>().0.as_chunks::<N>().0 {
            for (m, score) in maximum.iter_mut().zip(key) {
                let score = lanes::load(simd, score);
                // NaN is never greater: it comes out of the exponential below.
                *m = simd.select_f32s(simd.greater_than_f32s(score, *m), score, *m);
            }
        }
        // A column that has seen nothing yet: its scores are all -inf and its exponentials all 0.
        let low = simd.splat_f32s(f32::NEG_INFINITY);
        let from: [S::f32s; N] = std::array::from_fn(|j| {
            let nothing = simd.equal_f32s(maximum[j], low);
            simd.select_f32s(nothing, simd.splat_f32s(0.0), maximum[j])
        });
        let mut total = [simd.splat_f32s(0.0); N];
        for key in self.scores.as_chunks_mut::<LANES>().0.as_chunks_mut::<N>().0 {
            for j in 0..N {
                let p = exp(simd, simd.sub_f32s(lanes::load(simd, &key[j]), from[j]));
                total[j] = simd.add_f32s(total[j], p);
                lanes::store(simd, &mut key[j], p);
            }
        }
        let before: [S::f32s; N] = each(simd, self.total);
        for j in 0..N {
            let factor = exp(simd, simd.sub_f32s(old[j], from[j]));
            put(simd, self.factor, j, factor);
            put(simd, self.maximum, j, maximum[j]);
            put(simd, self.total, j, simd.mul_add_f32s(before[j], factor, total[j]));
        }
    }
}

/// Probabilities from the kept log-sum-exp, and the gradient of the scores:
/// `P = exp(S - lse)`, `dS = P (dP - D)`.
pub(super) struct Recomputed<'a> {
    pub(super) vectors: usize,
    /// Scores, replaced by `P`.
    pub(super) scores: &'a mut [f32],
    /// `dP`, replaced by `dS`.
    pub(super) dscores: &'a mut [f32],
    /// As in [`Running`].
    pub(super) limits: Option<(usize, &'a [u32; COLUMNS])>,
    /// Log-sum-exp of each column; infinite for missing columns.
    pub(super) lse: &'a [f32; COLUMNS],
    /// `D = Σ dO · O` of each column.
    pub(super) delta: &'a [f32; COLUMNS],
}

impl Kernel for Recomputed<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.vectors {
            1 => self.vectors::<S, 1>(simd),
            2 => self.vectors::<S, 2>(simd),
            _ => self.vectors::<S, 3>(simd),
        }
    }
}

impl Recomputed<'_> {
    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(self, simd: S) {
        if let Some((first, limits)) = self.limits {
            mask::<S, N>(simd, self.scores, (first, limits), f32::NEG_INFINITY);
            mask::<S, N>(simd, self.dscores, (first, limits), 0.0);
        }
        let lse: [S::f32s; N] = each(simd, self.lse);
        let delta: [S::f32s; N] = each(simd, self.delta);
        let scores = self.scores.as_chunks_mut::<LANES>().0.as_chunks_mut::<N>().0;
        let dscores = self.dscores.as_chunks_mut::<LANES>().0.as_chunks_mut::<N>().0;
        for (p, ds) in scores.iter_mut().zip(dscores) {
            for j in 0..N {
                let value = exp(simd, simd.sub_f32s(lanes::load(simd, &p[j]), lse[j]));
                let d = simd.sub_f32s(lanes::load(simd, &ds[j]), delta[j]);
                lanes::store(simd, &mut p[j], value);
                lanes::store(simd, &mut ds[j], simd.mul_f32s(value, d));
            }
        }
    }
}

/// Scores of unseen keys become `with`.
#[inline(always)]
fn mask<S: Simd, const N: usize>(
    simd: S,
    scores: &mut [f32],
    (first, limits): (usize, &[u32; COLUMNS]),
    with: f32,
) {
    let limits = limits.as_chunks::<LANES>().0;
    let first = u32::try_from(first).unwrap_or(u32::MAX);
    for (key, row) in (first..).zip(scores.as_chunks_mut::<LANES>().0.as_chunks_mut::<N>().0) {
        for j in 0..N {
            let seen = simd.less_than_u32s(simd.splat_u32s(key), pulp::cast(limits[j]));
            let score = lanes::load(simd, &row[j]);
            lanes::store(simd, &mut row[j], simd.select_f32s(seen, score, simd.splat_f32s(with)));
        }
    }
}

/// The vectors of some columns' numbers.
#[inline(always)]
fn each<S: Simd, const N: usize>(simd: S, x: &[f32; COLUMNS]) -> [S::f32s; N] {
    let x = x.as_chunks::<LANES>().0;
    std::array::from_fn(|j| lanes::load(simd, &x[j]))
}

/// Writes vector `j` of some columns' numbers.
#[inline(always)]
fn put<S: Simd>(simd: S, to: &mut [f32; COLUMNS], j: usize, x: S::f32s) {
    lanes::store(simd, &mut to.as_chunks_mut::<LANES>().0[j], x);
}
