//! The second pass of the backward: rows' shares of the gradients are added in row order.
//!
//! Owns the way from a block's shares to the head's gradients and to the slab of the deltas' gradients.
//! Every element is one chain over rows, ascending, from what the buffer holds; tasks own elements that
//! do not overlap. Start at [`Shares`].

use super::chain::{Chain, Pair, Plain, Scaled};
use super::cpu::Pass;
use super::row::Dense;
use super::{Product, Segment};
use crate::error::{Error, Result};
use crate::lanes;
use crate::product::{Left, Rows};
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

thread_local! {
    /// Segments in the order of their gradients, taken out while a backward runs.
    static ORDER: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// The shares of a block's rows, one after another: `R = dM [k, d]`, the sums over intents of `db1`,
/// `dslope`, `dw2` (`[3, k]`, padded), `dV [N, d]`.
#[derive(Clone, Copy)]
struct Part<'a> {
    shares: &'a [f32],
    len: usize,
}

impl<'a> Part<'a> {
    /// `width` elements from `at` on of each row's share.
    fn columns(self, at: usize, width: usize) -> impl Iterator<Item = &'a [f32]> + Clone {
        self.shares.chunks_exact(self.len).map(move |share| &share[at..at + width])
    }
}

/// A block of rows with their shares.
#[derive(Debug)]
pub(super) struct Shares<'a, 'b> {
    pub(super) pass: &'b Pass<'a>,
    pub(super) rows: Range<usize>,
    pub(super) shares: &'b [f32],
    pub(super) dlogits: &'b [f32],
}

/// `to += Σ rows`, in order.
fn add<'r>(to: &mut [f32], rows: impl Iterator<Item = &'r [f32]> + Clone) {
    lanes::run(Chain { to, terms: rows.map(Plain), accumulate: true });
}

impl Shares<'_, '_> {
    fn part(&self) -> Part<'_> {
        Part { shares: self.shares, len: self.pass.head.shape.share_len() }
    }

    /// Adds the gradients of the head's own parameters.
    pub(super) fn add_head(&self, grads: &mut [f32]) {
        let (shape, at) = (self.pass.head.shape, self.pass.head.offsets);
        let (k, d, n) = (shape.hidden, shape.dim, shape.intents);
        let (sums_at, table_at) = shape.share_parts();
        let padded = (table_at - sums_at) / 3;
        grads[at.w1..][..k * shape.columns()]
            .par_chunks_mut(shape.columns())
            .enumerate()
            .for_each(|(unit, grad)| self.add_unit(unit, sums_at, grad));
        grads[at.table..][..n * d].par_chunks_mut(d).enumerate().for_each(|(intent, grad)| {
            add(grad, self.part().columns(table_at + intent * d, d));
        });
        for (i, at) in [at.b1, at.slope, at.w2].into_iter().enumerate() {
            let rows = self.part().columns(sums_at + i * padded, k);
            add(&mut grads[at..at + k], rows);
        }
        for da in self.dlogits(self.rows.clone()) {
            grads[at.b2] += da.iter().sum::<f32>();
        }
        if let Some(at) = at.bias {
            add(&mut grads[at..at + n], self.dlogits(self.rows.clone()));
        }
    }

    /// One row of `dW1`, columns for `v`, the product, `h`.
    fn add_unit(&self, unit: usize, sums_at: usize, grad: &mut [f32]) {
        let shape = self.pass.head.shape;
        let d = shape.dim;
        let r = self.part().columns(unit * d, d);
        let h = self.rows.clone().map(|row| self.pass.history(row));
        let (of_v, grad) = grad.split_at_mut(d);
        let (of_product, of_h) = grad.split_at_mut(shape.product_dim());
        add(of_v, r.clone());
        match shape.product {
            Product::Elementwise => {
                let terms = r.zip(h.clone()).map(|(r, h)| Pair(r, h));
                lanes::run(Chain { to: of_product, terms, accumulate: true });
            }
            Product::Outer => Dense {
                left: Left::Transposed,
                a: Rows { data: &self.shares[unit * d..], stride: shape.share_len() },
                b: self.pass.histories(self.rows.start),
                c: of_product,
                c_stride: d,
                sizes: (d, d, self.rows.len()),
                accumulate: true,
            }
            .run(),
        }
        let terms = self.part().columns(sums_at + unit, 1).zip(h).map(|(s, h)| Scaled(s[0], h));
        lanes::run(Chain { to: of_h, terms, accumulate: true });
    }

    /// `da` of some rows of the pack.
    fn dlogits(&self, rows: Range<usize>) -> std::slice::ChunksExact<'_, f32> {
        let n = self.pass.head.shape.intents;
        self.dlogits[rows.start * n..rows.end * n].chunks_exact(n)
    }

    /// Refuses segments whose gradients overlap in the slab.
    ///
    /// # Errors
    /// [`Error::Routing`].
    pub(super) fn check_overlaps(pass: &Pass<'_>) -> Result<()> {
        let order = in_slab_order(pass, pass.segments, 0);
        let size = pass.head.shape.delta_len();
        let overlaps = |w: &&[u32]| place(pass, w[1]) - place(pass, w[0]) < size;
        let found = order.windows(2).find(overlaps).map(|w| (w[0], w[1]));
        ORDER.set(order);
        found.map_or(Ok(()), |(a, b)| {
            let what = format!("the gradients of segments {a} and {b} overlap");
            Err(Error::Routing { op: "intent_backward", what })
        })
    }

    /// Adds the gradients of the deltas of every segment with rows in the block.
    pub(super) fn add_deltas(&self, slab: &mut [f32]) {
        let segments = self.pass.segments;
        let before = |s: &Segment| s.row_start as usize + s.rows as usize <= self.rows.start;
        let first = segments.partition_point(before);
        let count = segments[first..].partition_point(|s| (s.row_start as usize) < self.rows.end);
        let order = in_slab_order(self.pass, &segments[first..first + count], first);
        self.split(&order, slab, 0);
        ORDER.set(order);
    }

    /// Halves the segments, and the slab between them; `slab` begins at element `begin`.
    fn split(&self, order: &[u32], slab: &mut [f32], begin: usize) {
        match order {
            [] => {}
            [index] => {
                let place = place(self.pass, *index) - begin;
                let len = self.pass.head.shape.delta_len();
                self.add_delta(&self.pass.segments[*index as usize], &mut slab[place..place + len]);
            }
            _ => {
                let (left, right) = order.split_at(order.len() / 2);
                let cut = place(self.pass, right[0]);
                let (low, high) = slab.split_at_mut(cut - begin);
                rayon::join(|| self.split(left, low, begin), || self.split(right, high, cut));
            }
        }
    }

    /// `dΔV` and `dΔc` of a segment's rows in the block.
    fn add_delta(&self, segment: &Segment, grad: &mut [f32]) {
        let shape = self.pass.head.shape;
        let (d, (_, table_at), len) = (shape.dim, shape.share_parts(), shape.share_len());
        let start = (segment.row_start as usize).max(self.rows.start);
        let end = (segment.row_start as usize + segment.rows as usize).min(self.rows.end);
        let rows = (start - self.rows.start) * len..(end - self.rows.start) * len;
        let part = Part { shares: &self.shares[rows], len };
        let (of_table, of_bias) = grad.split_at_mut(shape.intents * d);
        let piece = PIECE.div_ceil(d) * d;
        of_table.par_chunks_mut(piece).enumerate().for_each(|(index, grad)| {
            let width = grad.len();
            add(grad, part.columns(table_at + index * piece, width));
        });
        add(of_bias, self.dlogits(start..end));
    }
}

/// Elements of a delta's gradient that a task adds.
const PIECE: usize = 4096;

/// Where a segment's gradient lies; checked when the pass was made.
fn place(pass: &Pass<'_>, index: u32) -> usize {
    usize::try_from(pass.segments[index as usize].delta_grad_offset).unwrap_or(usize::MAX)
}

/// Those of `segments` (the first is number `first` of the pack) with rows and a gradient, in the order
/// of their gradients in the slab.
fn in_slab_order(pass: &Pass<'_>, segments: &[Segment], first: usize) -> Vec<u32> {
    let mut order = ORDER.take();
    order.clear();
    let wanted = |s: &Segment| s.rows > 0 && s.delta_grad_offset != Segment::NONE;
    let numbers = u32::try_from(first).unwrap_or(u32::MAX)..;
    order.extend(numbers.zip(segments).filter(|(_, s)| wanted(s)).map(|(i, _)| i));
    order.sort_unstable_by_key(|&i| place(pass, i));
    order
}
