//! The pass over adapters: `dA += dS'ᵀ·drop(X)` and `dB += dYᵀ·S'`.
//!
//! Owns the split of the gradient slab into parts that no two tasks share, and the sums over the rows
//! of a segment: one chain along its rows from the first to the last, so neither pack mates nor threads
//! can change a bit. Start at [`in_slab_order`], then [`add_gradients`].

use super::block::Matrix;
use super::cpu::{LOCAL, Pack, Rows, offset};
use super::{Segment, Site, SiteOutput};
use crate::error::{Error, Result};
use crate::linear::tile::copy;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// Multiply-adds below which a segment is not cut further.
const TASK_WORK: usize = 1 << 18;

/// Rows of all sites' `dA` up to which they share a product: more would leave its packed rows of `dS'`
/// no room in the second-level cache, and gain little.
const SHARED_ROWS: usize = 64;

/// How `S'` and `dS'` of all sites lie in one row of the sums.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) stride: usize,
}

impl Row {
    /// Room for the largest rank of the pack at each site.
    pub(super) fn new(num_sites: usize, segments: &[Segment]) -> Self {
        let lora_rank = segments.iter().map(Segment::r).max().unwrap_or(0);
        Self { stride: 2 * num_sites * lora_rank }
    }

    /// Where `S'` of site `k` of an adapter of rank `r` begins: all sites' side by side.
    #[expect(clippy::unused_self, reason = "the layout is this type's alone")]
    pub(super) fn s(self, k: usize, r: usize) -> usize {
        k * r
    }

    /// Where `dS'` of site `k` of an adapter of rank `r` begins: side by side after all `S'`.
    pub(super) fn ds(self, k: usize, r: usize) -> usize {
        self.stride / 2 + k * r
    }

    /// Stores `values [rows, r]` at element `at` of each row of `sums`.
    pub(super) fn store(&self, sums: &mut [f32], at: usize, r: usize, values: &[f32]) {
        for (row, values) in sums.chunks_mut(self.stride).zip(values.chunks(r)) {
            copy(values, &mut row[at..at + r]);
        }
    }
}

thread_local! {
    /// Segments in the order of their gradients, taken out while a backward runs.
    static ORDER: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// What the pass reads.
#[derive(Clone, Copy)]
struct Pass<'a> {
    pack: &'a Pack<'a>,
    dy: &'a Rows<'a>,
    sums: &'a [f32],
    row: Row,
    /// Tasks that a segment is cut into.
    pieces: usize,
}

/// The part of the gradient slab that the sites of a segment write.
fn region(pack: &Pack<'_>, index: u32) -> Range<usize> {
    let segment = &pack.segments[index as usize];
    let (start, r) = (offset(segment.grad_offset), segment.r());
    let sites = || pack.sites.iter().map(|s| s.site);
    let first = sites().map(|s| s.unit_offset).min().unwrap_or(0);
    let end = sites().map(|s| s.unit_offset + s.in_dim + s.out_dim).max().unwrap_or(0);
    start + r * first..start + r * end
}

/// Segments with rows, in the order of their gradients in the slab.
///
/// # Errors
/// [`Error::Routing`] when the gradients of two segments overlap.
pub(super) fn in_slab_order(pack: &Pack<'_>) -> Result<Vec<u32>> {
    let mut order = ORDER.take();
    order.clear();
    order.extend((0u32..).zip(pack.segments).filter(|(_, s)| s.rows > 0).map(|(i, _)| i));
    order.sort_unstable_by_key(|&i| region(pack, i).start);
    let overlaps = |w: &&[u32]| region(pack, w[0]).end > region(pack, w[1]).start;
    match order.windows(2).find(overlaps) {
        Some(w) => Err(Error::Routing {
            op: "lora_backward",
            what: format!("the gradients of segments {} and {} overlap", w[0], w[1]),
        }),
        None => Ok(order),
    }
}

/// Calls `add` for each piece of `grads` of `len` elements, in parallel where there are several.
fn each_piece(grads: &mut [f32], len: usize, add: impl Fn((usize, &mut [f32])) + Send + Sync) {
    if grads.len() <= len {
        add((0, grads));
    } else {
        grads.par_chunks_mut(len.max(1)).enumerate().for_each(add);
    }
}

/// Adds every segment's gradient into the slab; `order` is [`in_slab_order`]'s.
pub(super) fn add_gradients(
    pack: &Pack<'_>,
    dy: &Rows<'_>,
    (sums, row): (&[f32], Row),
    order: Vec<u32>,
    grads: &mut [f32],
) {
    let pieces = (2 * rayon::current_num_threads()).div_ceil(order.len().max(1));
    Pass { pack, dy, sums, row, pieces }.split(&order, grads, 0);
    ORDER.set(order);
}

impl Pass<'_> {
    /// Halves the segments, and the slab between them; `slab` begins at element `begin`.
    fn split(&self, order: &[u32], slab: &mut [f32], begin: usize) {
        match order {
            [] => {}
            [index] => self.segment(&self.pack.segments[*index as usize], slab, begin),
            _ => {
                let (left, right) = order.split_at(order.len() / 2);
                let cut = region(self.pack, right[0]).start;
                let (low, high) = slab.split_at_mut(cut - begin);
                rayon::join(|| self.split(left, low, begin), || self.split(right, high, cut));
            }
        }
    }

    /// Every site of one segment.
    fn segment(&self, segment: &Segment, slab: &mut [f32], begin: usize) {
        let (r, sites) = (segment.r(), self.pack.sites);
        let start = |site: &Site| offset(segment.grad_offset) + r * site.unit_offset - begin;
        let pieces =
            |width: usize| self.pieces.min(segment.rows as usize * r * width / TASK_WORK).max(1);
        let d = sites.first().map_or(0, |s| s.site.in_dim);
        let shared = segment.dropout <= 0.0 && pieces(d) == 1 && sites.len() * r <= SHARED_ROWS;
        if shared {
            self.add_every_a(segment, slab, start);
        }
        for (k, output) in sites.iter().enumerate() {
            let (n, a) = (output.out_len, start(&output.site));
            let b = a + r * (d + output.out_begin);
            if !shared {
                let js = r.div_ceil(pieces(d));
                let add = |(i, g): (usize, &mut _)| self.add_a(segment, (k, output), i * js, g);
                each_piece(&mut slab[a..a + r * d], js * d, add);
            }
            let os = n.div_ceil(pieces(n));
            let add = |(i, g): (usize, &mut _)| self.add_b(segment, (k, output), i * os, g);
            each_piece(&mut slab[b..b + n * r], os * r, add);
        }
    }

    /// The column of the sums that begins at element `at` of each row of the segment.
    fn sums_of(&self, segment: &Segment, at: usize) -> Matrix<'_> {
        let start = segment.row_start as usize * self.row.stride + at;
        Matrix { data: self.sums, start, stride: self.row.stride }
    }

    /// `dA += dS'ᵀ·X` of all sites in one product, so that `X` is read once; for segments without
    /// dropout. A site's gradients begin at element `start` of `slab`.
    fn add_every_a(&self, s: &Segment, slab: &mut [f32], start: impl Fn(&Site) -> usize) {
        let (r, sites) = (s.r(), self.pack.sites);
        let d = sites.first().map_or(0, |s| s.site.in_dim);
        let ds = self.sums_of(s, self.row.ds(0, r));
        let x = self.pack.x;
        let x = Matrix { start: x.start + s.row_start as usize * x.stride, ..x };
        LOCAL.with_borrow_mut(|local| {
            let result = local.scratch.product(
                (sites.len() * r, s.rows as usize, d),
                |j, rows, dst| ds.copy_column(rows, j, dst),
                |rows, columns, dst| x.copy_panel(rows, columns, dst),
            );
            for (output, result) in sites.iter().zip(result.chunks((r * d).max(1))) {
                let grads = &mut slab[start(&output.site)..][..result.len()];
                for (grad, v) in grads.iter_mut().zip(result) {
                    *grad += *v;
                }
            }
        });
    }

    /// `dA[first.., :] += dS'ᵀ·drop(X)` for as many rows of `A` as `grad` holds.
    fn add_a(
        &self,
        s: &Segment,
        (k, output): (usize, &SiteOutput),
        first: usize,
        grad: &mut [f32],
    ) {
        let d = output.site.in_dim;
        if d == 0 {
            return;
        }
        let ds = self.sums_of(s, self.row.ds(k, s.r()) + first);
        let dropout = s.dropout_at(&output.site);
        LOCAL.with_borrow_mut(|local| {
            let result = local.scratch.product(
                (grad.len() / d, s.rows as usize, d),
                |j, rows, dst| ds.copy_column(rows, j, dst),
                |rows, columns, dst| {
                    for (row, dst) in rows.zip(dst) {
                        let (row, dst) = (s.row_start as usize + row, &mut dst[..columns.len()]);
                        self.pack.dropped(dropout.as_ref(), row, columns.clone(), dst);
                    }
                },
            );
            for (grad, v) in grad.iter_mut().zip(result) {
                *grad += *v;
            }
        });
    }

    /// `dB[first.., :] += dYᵀ·S'` for as many rows of `B` as `grad` holds.
    fn add_b(
        &self,
        s: &Segment,
        (k, output): (usize, &SiteOutput),
        first: usize,
        grad: &mut [f32],
    ) {
        let r = s.r();
        let outs = grad.len() / r;
        let sums = self.sums_of(s, self.row.s(k, r));
        let dy = self.dy.of(output);
        let dy = Matrix { start: dy.start + s.row_start as usize * dy.stride + first, ..dy };
        LOCAL.with_borrow_mut(|local| {
            let result = local.scratch.product(
                (r, s.rows as usize, outs),
                |j, rows, dst| sums.copy_column(rows, j, dst),
                |rows, columns, dst| dy.copy_panel(rows, columns, dst),
            );
            for (o, grad) in grad.chunks_mut(r).enumerate() {
                for (grad, row) in grad.iter_mut().zip(result.chunks(outs)) {
                    *grad += row[o];
                }
            }
        });
    }
}
