//! Grouped LoRA on the host's processors.
//!
//! Owns the two passes over rows, split into blocks of rows: `Y` in the forward, `S`, `dS` and `dX` in
//! the backward; the pass over adapters is in `gradient.rs`, the arithmetic in `block.rs`. A row's
//! result depends on that row and its adapter alone, so blocks and threads cannot change a bit.
//! `S` is recomputed, dropout masks are drawn again from their counters: nothing is kept between calls
//! but scratch. Start at [`Pack`], then the `impl Lora for Cpu`.
//!
//! Order, bit for bit: `S' = scale · S` with `S` a chain along `d`; `Y += B·S'`, the chain along `r`
//! from zero, then one addition; `dS' = scale · dS` with `dS` a chain along the outputs;
//! `dX += undrop(dS'·A)`, the chain along `r`, then one addition for each site, in the order of `sites`;
//! `dA += dS'ᵀ·drop(X)` and `dB += dYᵀ·S'`, chains along the rows of the segment, then one addition.

use super::block::{Matrix, Scratch};
use super::gradient::{Row, add_gradients, in_slab_order};
use super::{Backward, Forward, Lora, Segment, Site, SiteOutput, check_sites, check_tables};
use crate::backend::Buffer;
use crate::cpu::Cpu;
use crate::error::{Result, check_len};
use crate::random::Dropout;
use rayon::prelude::*;
use std::cell::{Cell, RefCell};
use std::ops::Range;

/// Rows of a task.
const BLOCK_ROWS: usize = 64;

/// What both directions read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pack<'a> {
    pub(super) x: Matrix<'a>,
    pub(super) sites: &'a [SiteOutput],
    pub(super) segments: &'a [Segment],
    pub(super) row_token: &'a [u32],
    pub(super) params: &'a [f32],
}

/// A 64-bit offset of a slab that fits in memory, checked by [`Segment::check_all`].
pub(super) fn offset(v: u64) -> usize {
    usize::try_from(v).unwrap_or(usize::MAX)
}

impl Segment {
    /// LoRA rank.
    pub(super) fn r(&self) -> usize {
        self.lora_rank as usize
    }

    /// Its rows inside `block`.
    fn rows_in(&self, block: &Range<usize>) -> Range<usize> {
        let start = self.row_start as usize;
        let end = start + self.rows as usize;
        start.max(block.start)..end.min(block.end)
    }

    /// Its masks at `site`, if it drops anything.
    pub(super) fn dropout_at(&self, site: &Site) -> Option<Dropout> {
        (self.dropout > 0.0).then(|| Dropout::new(self.key, self.step, site.id, self.dropout))
    }
}

impl<'a> Pack<'a> {
    /// `A [r, d]` of a segment.
    fn a(&self, segment: &Segment, site: &Site) -> Matrix<'a> {
        let start = offset(segment.param_offset) + segment.r() * site.unit_offset;
        Matrix { data: self.params, start, stride: site.in_dim }
    }

    /// `B [outs, r]` of a segment.
    fn b(&self, segment: &Segment, output: &SiteOutput) -> Matrix<'a> {
        let r = segment.r();
        let before = output.site.unit_offset + output.site.in_dim + output.out_begin;
        Matrix { data: self.params, start: offset(segment.param_offset) + r * before, stride: r }
    }

    /// `dst = drop(X)[row, columns]`.
    pub(super) fn dropped(
        &self,
        dropout: Option<&Dropout>,
        row: usize,
        columns: Range<usize>,
        dst: &mut [f32],
    ) {
        let first = u32::try_from(columns.start).unwrap_or(u32::MAX);
        self.x.copy_row(row, columns, dst);
        if let Some(dropout) = dropout {
            dropout.apply(self.row_token[row], first, dst);
        }
    }

    /// Calls `part` for each segment with rows in the block.
    fn parts(&self, block: &Range<usize>, mut part: impl FnMut(&Segment, Range<usize>)) {
        let first = self
            .segments
            .partition_point(|s| s.row_start as usize + s.rows as usize <= block.start);
        for segment in &self.segments[first..] {
            if segment.row_start as usize >= block.end {
                break;
            }
            let rows = segment.rows_in(block);
            if !rows.is_empty() {
                part(segment, rows);
            }
        }
    }

    /// `S' = scale · drop(X)·Aᵀ` of some rows of a segment, all sites side by side: `[rows, sites · r]`.
    ///
    /// Without dropout the sites share one product, so that `X` is read once; masks are each site's own.
    fn down(&self, segment: &Segment, rows: &Range<usize>, Local { scratch, sums }: &mut Local) {
        let (r, d) = (segment.r(), self.sites.first().map_or(0, |s| s.site.in_dim));
        let width = self.sites.len() * r;
        sums.clear();
        if segment.dropout > 0.0 {
            sums.resize(rows.len() * width, 0.0);
            for (k, SiteOutput { site, .. }) in self.sites.iter().enumerate() {
                let (a, dropout) = (self.a(segment, site), segment.dropout_at(site));
                let s = scratch.product(
                    (rows.len(), d, r),
                    |row, ks, dst| self.dropped(dropout.as_ref(), rows.start + row, ks, dst),
                    |ks, columns, dst| a.copy_transposed(ks, columns, (dst, 0)),
                );
                for (sums, s) in sums.chunks_mut(width).zip(s.chunks(r)) {
                    sums[k * r..][..r].copy_from_slice(s);
                }
            }
        } else {
            let s = scratch.product(
                (rows.len(), d, width),
                |row, ks, dst| self.x.copy_row(rows.start + row, ks, dst),
                |ks, columns, dst| {
                    for (k, SiteOutput { site, .. }) in self.sites.iter().enumerate() {
                        let own = columns.start.max(k * r)..columns.end.min((k + 1) * r);
                        if !own.is_empty() {
                            let (a, first) = (self.a(segment, site), own.start - columns.start);
                            let own = own.start - k * r..own.end - k * r;
                            a.copy_transposed(ks.clone(), own, (&mut *dst, first));
                        }
                    }
                },
            );
            sums.extend_from_slice(s);
        }
        scale(sums, segment.scale);
    }

    /// The forward of one block of rows; `y` begins at its first row.
    fn forward_block(&self, block: &Range<usize>, y: &mut [f32], stride: usize, base: usize) {
        LOCAL.with_borrow_mut(|local| {
            self.parts(block, |segment, rows| {
                self.down(segment, &rows, local);
                let Local { scratch, sums } = &mut *local;
                for (k, output) in self.sites.iter().enumerate() {
                    let r = segment.r();
                    let s = Matrix { data: sums, start: k * r, stride: self.sites.len() * r };
                    let b = self.b(segment, output);
                    let result = scratch.product(
                        (rows.len(), r, output.out_len),
                        |row, ks, dst| s.copy_row(row, ks, dst),
                        |ks, columns, dst| b.copy_transposed(ks, columns, (dst, 0)),
                    );
                    for (row, result) in rows.clone().zip(result.chunks(output.out_len.max(1))) {
                        let start = (row - block.start) * stride + (output.y_start - base);
                        add(&mut y[start..start + output.out_len], result);
                    }
                }
            });
        });
    }

    /// `S'`, `dS'` and `dX` of one block of rows; `sums` and `dx` begin at its first row.
    fn backward_block(
        &self,
        block: &Range<usize>,
        dy: &Rows<'_>,
        (sums, row): (&mut [f32], Row),
        mut dx: Option<(&mut [f32], usize)>,
    ) {
        LOCAL.with_borrow_mut(|local| {
            self.parts(block, |segment, rows| {
                let (r, first) = (segment.r(), rows.start - block.start);
                self.down(segment, &rows, local);
                let Local { scratch, sums: s } = &mut *local;
                row.store(&mut sums[first * row.stride..], row.s(0, r), self.sites.len() * r, s);
                for (k, output) in self.sites.iter().enumerate() {
                    let (a, b) = (self.a(segment, &output.site), self.b(segment, output));
                    let dy = dy.of(output);
                    let ds = scratch.product(
                        (rows.len(), output.out_len, r),
                        |row, ks, dst| dy.copy_row(rows.start + row, ks, dst),
                        |ks, columns, dst| b.copy_panel(ks, columns, dst),
                    );
                    scale(ds, segment.scale);
                    row.store(&mut sums[first * row.stride..], row.ds(k, r), r, ds);
                    let Some((dx, stride)) = &mut dx else { continue };
                    let ds = Matrix {
                        data: sums,
                        start: first * row.stride + row.ds(k, r),
                        stride: row.stride,
                    };
                    let d = output.site.in_dim;
                    let result = scratch.product(
                        (rows.len(), r, d),
                        |row, ks, dst| ds.copy_row(row, ks, dst),
                        |ks, columns, dst| a.copy_panel(ks, columns, dst),
                    );
                    let dropout = segment.dropout_at(&output.site);
                    for (row, result) in rows.clone().zip(result.chunks_mut(d.max(1))) {
                        if let Some(dropout) = &dropout {
                            dropout.apply(self.row_token[row], 0, result);
                        }
                        let start = (row - block.start) * *stride;
                        add(&mut dx[start..start + d], result);
                    }
                }
            });
        });
    }
}

/// `dY`, which holds the outputs of all sites.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
}

impl<'a> Rows<'a> {
    /// The outputs of one site.
    pub(super) fn of(&self, output: &SiteOutput) -> Matrix<'a> {
        Matrix { data: self.data, start: output.y_start, stride: self.stride }
    }
}

/// Memory of one thread's task; a task never waits for another while it holds it.
#[derive(Debug, Default)]
pub(super) struct Local {
    pub(super) scratch: Scratch,
    sums: Vec<f32>,
}

thread_local! {
    pub(super) static LOCAL: RefCell<Local> = RefCell::default();
    /// `S'` and `dS'` of the whole pack, taken out by the calling thread while a backward runs.
    static SUMS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

fn scale(values: &mut [f32], by: f32) {
    for v in values {
        *v *= by;
    }
}

fn add(to: &mut [f32], values: &[f32]) {
    for (to, v) in to.iter_mut().zip(values) {
        *to += v;
    }
}

impl<'a> Pack<'a> {
    /// Checks what the tables say against the buffers.
    fn check(&self, op: &'static str, rows: usize, grads: usize) -> Result<()> {
        let d = self.sites.first().map_or(0, |s| s.site.in_dim);
        let reach = |s: &SiteOutput| s.site.unit_offset + s.site.in_dim + s.site.out_dim;
        let units = self.sites.iter().map(reach).max().unwrap_or(0);
        check_len(op, "x", d, self.x.stride)?;
        Segment::check_all(self.segments, rows, units, (self.params.len(), grads))
    }

    /// The rows of block `index`.
    fn block(index: usize, rows: usize) -> Range<usize> {
        index * BLOCK_ROWS..rows.min((index + 1) * BLOCK_ROWS)
    }
}

impl Lora for Cpu {
    fn lora_forward(&self, args: Forward<'_, Self>) -> Result<()> {
        let op = "lora_forward";
        let (rows, stride) = (args.rows, args.y.stride);
        check_tables(op, (args.segments, args.num_segments), (args.row_token, rows))?;
        check_sites(op, args.sites, (rows, stride, Buffer::len(args.y.buf)))?;
        let Some(first) = args.sites.first() else { return Ok(()) };
        args.x.check(op, "x", rows, first.site.in_dim)?;
        let pack = Pack {
            x: Matrix { data: args.x.buf, start: args.x.start, stride: args.x.stride },
            sites: args.sites,
            segments: &args.segments[..args.num_segments],
            row_token: args.row_token,
            params: args.params,
        };
        pack.check(op, rows, usize::MAX)?;
        if rows == 0 || stride == 0 {
            return Ok(());
        }
        let base = args.sites.iter().map(|s| s.y_start).min().unwrap_or(0);
        let len = args.y.buf.len().min(base + rows * stride);
        args.y.buf[base..len]
            .par_chunks_mut(BLOCK_ROWS * stride)
            .enumerate()
            .for_each(|(index, y)| pack.forward_block(&Pack::block(index, rows), y, stride, base));
        Ok(())
    }

    fn lora_backward(&self, args: Backward<'_, Self>) -> Result<()> {
        let op = "lora_backward";
        let rows = args.rows;
        check_tables(op, (args.segments, args.num_segments), (args.row_token, rows))?;
        check_sites(op, args.sites, (rows, args.dy.stride, Buffer::len(args.dy.buf)))?;
        let Some(first) = args.sites.first() else { return Ok(()) };
        args.x.check(op, "x", rows, first.site.in_dim)?;
        if let Some(dx) = &args.dx {
            dx.check(op, "dx", rows, first.site.in_dim)?;
        }
        let pack = Pack {
            x: Matrix { data: args.x.buf, start: args.x.start, stride: args.x.stride },
            sites: args.sites,
            segments: &args.segments[..args.num_segments],
            row_token: args.row_token,
            params: args.params,
        };
        pack.check(op, rows, Buffer::len(args.grads))?;
        if rows == 0 || pack.segments.is_empty() {
            return Ok(());
        }
        let order = in_slab_order(&pack)?;
        let dy = Rows { data: args.dy.buf, stride: args.dy.stride };
        let row = Row::new(pack.sites.len(), pack.segments);
        let mut sums = SUMS.take();
        if sums.len() < rows * row.stride {
            sums.resize(rows * row.stride, 0.0);
        }
        let blocks = sums[..rows * row.stride].par_chunks_mut(BLOCK_ROWS * row.stride).enumerate();
        match args.dx {
            Some(dx) if dx.stride > 0 => {
                let stride = dx.stride;
                let dx = dx.buf[dx.start..].par_chunks_mut(BLOCK_ROWS * stride);
                blocks.zip(dx).for_each(|((index, sums), dx)| {
                    let block = Pack::block(index, rows);
                    pack.backward_block(&block, &dy, (sums, row), Some((dx, stride)));
                });
            }
            _ => blocks.for_each(|(index, sums)| {
                pack.backward_block(&Pack::block(index, rows), &dy, (sums, row), None);
            }),
        }
        add_gradients(&pack, &dy, (&sums, row), order, args.grads);
        SUMS.set(sums);
        Ok(())
    }
}
