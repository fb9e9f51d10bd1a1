//! Sums of many rows of numbers, element by element: `to[i] (=|+=) Σ_l term_l(i)`.
//!
//! Every element is one chain in the order of the terms, whatever the width. Four vectors at a time rest
//! in registers while the terms pass. Knows no operation. Start at [`Chain`].

use crate::lanes::{Kernel, LANES, load, store};
use pulp::Simd;

/// One row of addends.
pub(super) trait Term: Copy {
    /// `sum` and the sixteen addends from element `at` on.
    fn lanes<S: Simd>(self, simd: S, at: usize, sum: S::f32s) -> S::f32s;
    /// `sum` and addend `at`.
    fn one(self, at: usize, sum: f32) -> f32;
}

/// `x_i`.
#[derive(Clone, Copy)]
pub(super) struct Plain<'a>(pub(super) &'a [f32]);

/// `factor · x_i`, fused.
#[derive(Clone, Copy)]
pub(super) struct Scaled<'a>(pub(super) f32, pub(super) &'a [f32]);

/// `x_i · y_i`, fused.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a>(pub(super) &'a [f32], pub(super) &'a [f32]);

/// The sixteen elements from `at` on, which are there.
#[inline(always)]
fn vector<S: Simd>(simd: S, x: &[f32], at: usize) -> S::f32s {
    x[at..].first_chunk().map_or(simd.splat_f32s(f32::NAN), |x| load(simd, x))
}

impl Term for Plain<'_> {
    #[inline(always)]
    fn lanes<S: Simd>(self, simd: S, at: usize, sum: S::f32s) -> S::f32s {
        simd.add_f32s(sum, vector(simd, self.0, at))
    }
    #[inline(always)]
    fn one(self, at: usize, sum: f32) -> f32 {
        sum + self.0[at]
    }
}

impl Term for Scaled<'_> {
    #[inline(always)]
    fn lanes<S: Simd>(self, simd: S, at: usize, sum: S::f32s) -> S::f32s {
        simd.mul_add_f32s(simd.splat_f32s(self.0), vector(simd, self.1, at), sum)
    }
    #[inline(always)]
    fn one(self, at: usize, sum: f32) -> f32 {
        self.0.mul_add(self.1[at], sum)
    }
}

impl Term for Pair<'_> {
    #[inline(always)]
    fn lanes<S: Simd>(self, simd: S, at: usize, sum: S::f32s) -> S::f32s {
        simd.mul_add_f32s(vector(simd, self.0, at), vector(simd, self.1, at), sum)
    }
    #[inline(always)]
    fn one(self, at: usize, sum: f32) -> f32 {
        self.0[at].mul_add(self.1[at], sum)
    }
}

/// `to (=|+=) Σ terms`, each term at least as long as `to`.
pub(super) struct Chain<'a, I> {
    pub(super) to: &'a mut [f32],
    pub(super) terms: I,
    /// `+=`: the chains begin at what `to` holds instead of at zero.
    pub(super) accumulate: bool,
}

impl<T: Term, I: Iterator<Item = T> + Clone> Kernel for Chain<'_, I> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        if !self.accumulate {
            self.to.fill(0.0);
        }
        let vectors = self.to.len() / LANES;
        let mut v = 0;
        while v < vectors {
            v += if vectors - v >= 4 {
                self.part::<S, 4>(simd, v)
            } else {
                self.part::<S, 1>(simd, v)
            };
        }
        for at in vectors * LANES..self.to.len() {
            self.to[at] = self.terms.clone().fold(
                self.to[at],
                #[inline(always)]
                |sum, term| term.one(at, sum),
            );
        }
    }
}

impl<T: Term, I: Iterator<Item = T> + Clone> Chain<'_, I> {
    /// `V` vectors from vector `v` on; returns `V`.
    #[inline(always)]
    fn part<S: Simd, const V: usize>(&mut self, simd: S, v: usize) -> usize {
        let first = v * LANES;
        let mut sums = [simd.splat_f32s(0.0); V];
        let (to, _) = self.to[first..].as_chunks_mut::<LANES>();
        for (sum, to) in sums.iter_mut().zip(&*to) {
            *sum = load(simd, to);
        }
        for term in self.terms.clone() {
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = term.lanes(simd, first + j * LANES, *sum);
            }
        }
        for (sum, to) in sums.into_iter().zip(to) {
            store(simd, to, sum);
        }
        V
    }
}
