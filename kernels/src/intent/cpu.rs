//! The head on the host's processors: tiles of rows in parallel, each row by the formulas of `row.rs`.
//!
//! Forward: a tile's rows one after another. Backward: blocks of rows; in a block every row's share of the
//! gradients is made in parallel ([`Tile::backward`]) and laid down in the workspace, then added into
//! the gradient buffers in row order, in parallel over their elements (`gradient.rs`). A row's share does
//! not depend on its tile or block, so neither size can change a bit. Start at the `impl Intent for Cpu`.

use super::chain::{Chain, Pair};
use super::gradient::Shares;
use super::row::{Dense, Hidden, Logits, Mix, Slopes, transpose};
use super::{Backward, Forward, Head, Intent, Product, Segment, Shape};
use crate::backend::Mat;
use crate::cpu::{Cpu, CpuBuf};
use crate::error::Result;
use crate::lanes::{self, LANES};
use crate::product::{Left, Rows};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Elements of a block's shares: they stay in the caches between the two passes.
const BLOCK: usize = 1 << 20;
/// Fewest rows of a block, whatever their size.
const BLOCK_ROWS: usize = 32;

impl Shape {
    /// Hidden units in whole vectors.
    fn padded(&self) -> usize {
        self.hidden.saturating_add(LANES - 1) / LANES * LANES
    }

    /// Rows of a task: with an outer product the rows share their passes over its weights.
    fn tile_rows(&self) -> usize {
        match self.product {
            Product::Elementwise => 8,
            Product::Outer => 16,
        }
    }

    /// Elements of the prepared parameters: `W1ᵀ [columns, k]`, `b1`, `slope`, `w2`, padded.
    fn prepared_len(&self) -> usize {
        self.padded().saturating_mul(self.columns().saturating_add(3))
    }

    /// Elements of a row's share of the gradients: see [`Shares`].
    pub(super) fn share_len(&self) -> usize {
        let products = self.hidden.saturating_add(self.intents).saturating_mul(self.dim);
        products.saturating_add(self.padded().saturating_mul(3))
    }

    /// Where the sums of a share begin, and where its `dV` does.
    pub(super) fn share_parts(&self) -> (usize, usize) {
        let sums = self.hidden * self.dim;
        (sums, sums + 3 * self.padded())
    }

    /// Rows of a block, a multiple of every tile's.
    fn block_rows(&self) -> usize {
        (BLOCK / self.share_len().max(1)).clamp(BLOCK_ROWS, 512) / 16 * 16
    }
}

impl Intent for Cpu {
    fn intent_workspace(&self, rows: usize, _segments: usize, shape: Shape) -> usize {
        let shares = rows.min(shape.block_rows()).saturating_mul(shape.share_len());
        shape.prepared_len().saturating_add(shares)
    }

    fn intent_forward(&self, args: Forward<'_, Self>) -> Result<()> {
        let (rows, shape) = (args.rows, args.head.shape);
        args.check(self.intent_workspace(rows, args.head.num_segments, shape))?;
        let Forward { head, h, logits, work, .. } = args;
        let pass = Pass::new(head, h, (rows, None), &mut work[..shape.prepared_len()])?;
        let tile = shape.tile_rows();
        let tasks = logits[..rows * shape.intents].par_chunks_mut(tile * shape.intents);
        tasks.enumerate().for_each(|(index, logits)| {
            let rows = index * tile..rows.min((index + 1) * tile);
            LOCAL.with_borrow_mut(|local| Tile::new(&pass, rows, local).forward(logits));
        });
        Ok(())
    }

    fn intent_backward(&self, args: Backward<'_, Self>) -> Result<()> {
        let (rows, shape) = (args.rows, args.head.shape);
        args.check(self.intent_workspace(rows, args.head.num_segments, shape))?;
        let Backward { head, h, dlogits, mut dh, mut grads, mut delta_grads, work, .. } = args;
        let (prepared, work) = work.split_at_mut(shape.prepared_len());
        let slab = delta_grads.as_ref().map(|slab| slab.len());
        let pass = Pass::new(head, h, (rows, slab), prepared)?;
        if slab.is_some() {
            Shares::check_overlaps(&pass)?;
        }
        let (tile, len) = (shape.tile_rows(), shape.share_len());
        for first in (0..rows).step_by(shape.block_rows()) {
            let block = first..rows.min(first + shape.block_rows());
            let shares = &mut work[..block.len() * len];
            let wanted = Wanted { table: grads.is_some(), deltas: slab.is_some() };
            let task = |index: usize, shares: &mut [f32], dh: Option<(&mut [f32], usize)>| {
                let begin = first + index * tile;
                let rows = begin..begin + shares.len() / len;
                LOCAL.with_borrow_mut(|local| {
                    Tile::new(&pass, rows, local).backward(dlogits, shares, dh, wanted);
                });
            };
            let tasks = shares.par_chunks_mut(tile * len).enumerate();
            match &mut dh {
                Some(dh) => {
                    let begin = dh.start + first * dh.stride;
                    let end = begin + (block.len() - 1) * dh.stride + shape.dim;
                    let (stride, window) = (dh.stride, &mut dh.buf[begin..end]);
                    tasks
                        .zip(window.par_chunks_mut(tile * stride))
                        .for_each(|((index, shares), dh)| task(index, shares, Some((dh, stride))));
                }
                None => tasks.for_each(|(index, shares)| task(index, shares, None)),
            }
            let shares = Shares { pass: &pass, rows: block, shares, dlogits };
            if let Some(grads) = &mut grads {
                shares.add_head(grads);
            }
            if let Some(slab) = &mut delta_grads {
                shares.add_deltas(slab);
            }
        }
        Ok(())
    }
}

/// Which tables' gradients a call makes.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    table: bool,
    deltas: bool,
}

/// What every row reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) head: Head<'a, Cpu>,
    pub(super) h: Mat<'a, CpuBuf<f32>>,
    pub(super) segments: &'a [Segment],
    /// `W1ᵀ [columns, k]`, `b1`, `slope`, `w2`, padded.
    prepared: &'a [f32],
}

impl<'a> Pass<'a> {
    /// Checks the segments (gradients of deltas against a slab, if any) and prepares the parameters.
    fn new(
        head: Head<'a, Cpu>,
        h: Mat<'a, CpuBuf<f32>>,
        (rows, slab): (usize, Option<usize>),
        prepared: &'a mut [f32],
    ) -> Result<Self> {
        let (shape, at, params) = (head.shape, head.offsets, head.params);
        let segments = &head.segments[..head.num_segments];
        Segment::check_all(segments, rows, shape, (head.deltas.len(), slab))?;
        let (k, columns, width) = (shape.hidden, shape.columns(), shape.padded());
        prepared.fill(0.0);
        let (w1, hidden) = prepared.split_at_mut(columns * width);
        w1.par_chunks_mut(256 * width).enumerate().for_each(|(index, to)| {
            let first = index * 256;
            let from = Rows { data: &params[at.w1 + first..at.w1 + k * columns], stride: columns };
            transpose(from, (k, to.len() / width), to, width);
        });
        for (to, from) in hidden.chunks_exact_mut(width).zip([at.b1, at.slope, at.w2]) {
            to[..k].copy_from_slice(&params[from..from + k]);
        }
        Ok(Self { head, h, segments, prepared })
    }

    /// Rows of `W1ᵀ` from column `first` of `W1` on.
    fn transposed(&self, first: usize) -> Rows<'a> {
        let width = self.head.shape.padded();
        Rows { data: &self.prepared[first * width..], stride: width }
    }

    /// Rows of `W1` from column `first` on.
    fn w1(&self, first: usize) -> Rows<'a> {
        let (shape, at) = (self.head.shape, self.head.offsets.w1);
        let end = at + shape.hidden * shape.columns();
        Rows { data: &self.head.params[at + first..end], stride: shape.columns() }
    }

    fn hidden(&self) -> Hidden<'a> {
        let width = self.head.shape.padded();
        let at = self.head.shape.columns() * width;
        let part = |i: usize| &self.prepared[at + i * width..][..width];
        Hidden { b1: part(0), slope: part(1), w2: part(2) }
    }

    /// `h` of a row.
    pub(super) fn history(&self, row: usize) -> &'a [f32] {
        let buf: &'a [f32] = self.h.buf;
        &buf[self.h.start + row * self.h.stride..][..self.head.shape.dim]
    }

    /// `h` of the rows from `first` on.
    pub(super) fn histories(&self, first: usize) -> Rows<'a> {
        let buf: &'a [f32] = self.h.buf;
        Rows { data: &buf[self.h.start + first * self.h.stride..], stride: self.h.stride }
    }

    /// The segment that holds a row.
    fn segment(&self, row: usize) -> Option<&'a Segment> {
        let after = |s: &Segment| s.row_start as usize + s.rows as usize <= row;
        let segment = self.segments.get(self.segments.partition_point(after))?;
        (segment.row_start as usize <= row).then_some(segment)
    }

    /// `ΔV` and `Δc` of a segment.
    fn delta(&self, segment: Option<&Segment>) -> Option<(&'a [f32], &'a [f32])> {
        let at = segment.filter(|s| s.delta_offset != Segment::NONE)?.delta_offset;
        let deltas: &'a [f32] = self.head.deltas;
        let delta = &deltas[usize::try_from(at).ok()?..][..self.head.shape.delta_len()];
        Some(delta.split_at(self.head.shape.intents * self.head.shape.dim))
    }
}

thread_local! {
    static LOCAL: RefCell<Local> = const { RefCell::new(Local::new()) };
}

/// Memory of a tile, reused; grows once.
#[derive(Debug)]
struct Local {
    /// `V + ΔV`.
    table: Vec<f32>,
    /// `c + Δc`.
    bias: Vec<f32>,
    /// `W_h h + b1` of each row.
    q: Vec<f32>,
    /// `Mᵀ [d, k]` of one row; with an outer product of every row.
    m: Vec<f32>,
    /// `M [k, d]` of one row.
    m_rows: Vec<f32>,
    /// `Z [N, k]`, then `dZ`.
    z: Vec<f32>,
}

impl Local {
    const fn new() -> Self {
        Self {
            table: Vec::new(),
            bias: Vec::new(),
            q: Vec::new(),
            m: Vec::new(),
            m_rows: Vec::new(),
            z: Vec::new(),
        }
    }
}

/// The first `len` elements of a vector that grows where it must.
fn sized(v: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if v.len() < len {
        v.resize(len, 0.0);
    }
    &mut v[..len]
}

/// Some rows, by one thread.
struct Tile<'a, 'b> {
    pass: &'b Pass<'a>,
    rows: Range<usize>,
    /// Segment whose table is at hand, by its delta.
    at_hand: Option<u64>,
    local: &'b mut Local,
}

impl<'a, 'b> Tile<'a, 'b> {
    /// Makes `q` of every row, and with an outer product `Mᵀ`.
    fn new(pass: &'b Pass<'a>, rows: Range<usize>, local: &'b mut Local) -> Self {
        let Shape { dim: d, product, .. } = pass.head.shape;
        let width = pass.head.shape.padded();
        let h = pass.histories(rows.start);
        let q = sized(&mut local.q, rows.len() * width);
        for q in q.chunks_exact_mut(width) {
            q.copy_from_slice(pass.hidden().b1);
        }
        let w_h = pass.transposed(d + pass.head.shape.product_dim());
        let sizes = (rows.len(), width, d);
        let left = Left::AsIs;
        Dense { left, a: h, b: w_h, c: q, c_stride: width, sizes, accumulate: true }.run();
        if product == Product::Outer {
            let m = sized(&mut local.m, rows.len() * d * width);
            for m in m.chunks_exact_mut(d * width) {
                m.copy_from_slice(&pass.transposed(0).data[..d * width]);
            }
            for i in 0..d {
                let (b, c) = (pass.transposed(d + i * d), &mut m[i * width..]);
                Dense { left, a: h, b, c, c_stride: d * width, sizes, accumulate: true }.run();
            }
        }
        Self { pass, rows, at_hand: None, local }
    }

    /// Makes the table and the bias of a row's segment, unless they are at hand.
    fn enter(&mut self, row: usize) {
        let (shape, at) = (self.pass.head.shape, self.pass.head.offsets);
        let params: &[f32] = self.pass.head.params;
        let segment = self.pass.segment(row);
        let delta = segment.map_or(Segment::NONE, |s| s.delta_offset);
        if self.at_hand == Some(delta) {
            return;
        }
        self.at_hand = Some(delta);
        let shared = &params[at.table..][..shape.intents * shape.dim];
        let table = sized(&mut self.local.table, shared.len());
        table.copy_from_slice(shared);
        let bias = sized(&mut self.local.bias, shape.intents);
        match at.bias {
            Some(at) => bias.copy_from_slice(&params[at..at + shape.intents]),
            None => bias.fill(0.0),
        }
        if let Some((of_table, of_bias)) = self.pass.delta(segment) {
            table.iter_mut().zip(of_table).for_each(|(v, d)| *v += d);
            bias.iter_mut().zip(of_bias).for_each(|(c, d)| *c += d);
        }
    }

    /// `V·Mᵀ` of the tile's row `i` into `z`; `q` stays apart.
    fn hidden_layer(&mut self, i: usize) {
        let Shape { intents, dim: d, product, .. } = self.pass.head.shape;
        let width = self.pass.head.shape.padded();
        let row = self.rows.start + i;
        self.enter(row);
        let m = match product {
            Product::Elementwise => {
                let m = sized(&mut self.local.m, d * width);
                let (w, v) = (self.pass.transposed(d), self.pass.transposed(0));
                let h = self.pass.history(row);
                lanes::run(Mix { w, v, h, to: &mut *m, width, by_row: true });
                &*m
            }
            Product::Outer => &self.local.m[i * d * width..][..d * width],
        };
        let a = Rows { data: &self.local.table, stride: d };
        let (b, sizes) = (Rows { data: m, stride: width }, (intents, width, d));
        let c = sized(&mut self.local.z, intents * width);
        Dense { left: Left::AsIs, a, b, c, c_stride: width, sizes, accumulate: false }.run();
    }

    /// Every row's logits.
    fn forward(mut self, logits: &mut [f32]) {
        let width = self.pass.head.shape.padded();
        for (i, logits) in logits.chunks_exact_mut(self.pass.head.shape.intents).enumerate() {
            self.hidden_layer(i);
            lanes::run(Logits {
                hidden: self.pass.hidden(),
                q: &self.local.q[i * width..][..width],
                z: &self.local.z[..logits.len() * width],
                b2: self.pass.head.params[self.pass.head.offsets.b2],
                bias: &self.local.bias[..logits.len()],
                logits,
            });
        }
    }

    /// Every row's share of the gradients, and `dh` (rows and stride) if it is wanted.
    fn backward(
        mut self,
        dlogits: &[f32],
        shares: &mut [f32],
        mut dh: Option<(&mut [f32], usize)>,
        wanted: Wanted,
    ) {
        let shape = self.pass.head.shape;
        let Shape { intents, dim: d, hidden: k, product } = shape;
        let (width, (sums_at, table_at)) = (shape.padded(), shape.share_parts());
        for (i, share) in shares.chunks_exact_mut(shape.share_len()).enumerate() {
            let row = self.rows.start + i;
            let da = &dlogits[row * intents..][..intents];
            self.hidden_layer(i);
            let (r, rest) = share.split_at_mut(sums_at);
            let (sums, dv) = rest.split_at_mut(table_at - sums_at);
            let q = &self.local.q[i * width..][..width];
            let z = &mut self.local.z[..intents * width];
            lanes::run(Slopes { hidden: self.pass.hidden(), q, da, z: &mut *z, sums });
            let dz = Rows { data: z, stride: width };
            if wanted.table || dh.is_some() {
                let b = Rows { data: &self.local.table, stride: d };
                let (left, sizes) = (Left::Transposed, (k, d, intents));
                let c = &mut *r;
                Dense { left, a: dz, b, c, c_stride: d, sizes, accumulate: false }.run();
            }
            if let (Some((dh, stride)), Product::Elementwise) = (&mut dh, product) {
                let dh = &mut dh[i * *stride..][..d];
                let w = self.pass.w1(d);
                let terms = w.data.chunks(w.stride).zip(r.chunks(d)).map(|(w, r)| Pair(w, r));
                lanes::run(Chain { to: dh, terms, accumulate: false });
            }
            let trained = |s: &Segment| s.delta_grad_offset != Segment::NONE;
            if wanted.table || (wanted.deltas && self.pass.segment(row).is_some_and(trained)) {
                self.table_share(i, dv);
            }
        }
        if let Some((dh, stride)) = dh {
            self.history_share(shares, dh, stride);
        }
    }

    /// `dV = dZ·M [N, d]` of the tile's row `i`.
    fn table_share(&mut self, i: usize, dv: &mut [f32]) {
        let Shape { intents, dim: d, hidden: k, product } = self.pass.head.shape;
        let width = self.pass.head.shape.padded();
        let m = sized(&mut self.local.m_rows, k * d);
        match product {
            Product::Elementwise => {
                let (w, v) = (self.pass.w1(d), self.pass.w1(0));
                let h = self.pass.history(self.rows.start + i);
                lanes::run(Mix { w, v, h, to: &mut *m, width: d, by_row: false });
            }
            Product::Outer => {
                let data = &self.local.m[i * d * width..][..d * width];
                transpose(Rows { data, stride: width }, (d, k), m, d);
            }
        }
        let (a, b) = (Rows { data: &self.local.z, stride: width }, Rows { data: m, stride: d });
        let sizes = (intents, d, k);
        Dense { left: Left::AsIs, a, b, c: dv, c_stride: d, sizes, accumulate: false }.run();
    }

    /// What reaches every row's `dh` through `W_h`, and with an outer product through `W_p`.
    fn history_share(&self, shares: &[f32], dh: &mut [f32], stride: usize) {
        let shape = self.pass.head.shape;
        let Shape { dim: d, hidden: k, product, .. } = shape;
        let (sums_at, len) = (shape.share_parts().0, shape.share_len());
        let rows = self.rows.len();
        let left = Left::AsIs;
        if product == Product::Outer {
            dh.chunks_mut(stride).for_each(|dh| dh[..d].fill(0.0));
            for unit in 0..k {
                let a = Rows { data: &shares[unit * d..], stride: len };
                let data = &self.pass.w1(d).data[unit * shape.columns()..];
                let (b, c, sizes) = (Rows { data, stride: d }, &mut *dh, (rows, d, d));
                Dense { left, a, b, c, c_stride: stride, sizes, accumulate: true }.run();
            }
        }
        let a = Rows { data: &shares[sums_at..], stride: len };
        let (b, sizes) = (self.pass.w1(d + shape.product_dim()), (rows, d, k));
        Dense { left, a, b, c: dh, c_stride: stride, sizes, accumulate: true }.run();
    }
}
