//! The head on a GPU: rows in groups of four, gradients as chains with one owner each (`cu/intent.cuh`).
//!
//! A backward goes by blocks of rows, so that what passes between the kernels (`dZ`, with an outer product `M`
//! and `R`) stays in the GPU's cache; chains go on from block to block, so the blocks' size changes no bit.
//! Segments are checked on the device: a wrong one is refused by the next read, its rows are computed with the
//! shared table and no gradient of a delta is written for it. Start at the `impl Intent for Gpu`.

use super::{Backward, Forward, Head, Intent, Product, Shape};
use crate::backend::{Buffer, Mat, MatMut};
use crate::error::Result;
use crate::gpu::{Arg, Device, Gpu, GpuBuf, Launch, MAX_ARGS, blocks, extent};
use half::bf16;
use std::ops::Range;

/// Elements that pass between the kernels of a block of rows: 16 MiB, well inside the L2 of an A100.
const BLOCK: usize = 1 << 22;
/// Fewest rows of a block, whatever their size.
const BLOCK_ROWS: usize = 64;
/// Elements that pieces of the workspace are aligned to: 256 bytes.
const ALIGN: usize = 64;

/// Tiles of the kernels: threads of a block with and without tiles; rows, hidden units, columns and intents.
const TILED: u32 = 128;
const FLAT: u32 = 256;
const ROWS: u32 = 4;
const UNITS: u32 = 64;
const WIDTH: u32 = 16;
const INTENTS: u32 = 24;
/// Side of a tile of `intent_outer.cu`.
const SIDE: u32 = 64;

/// The workspace, in elements.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Rows of a block.
    block: usize,
    /// Hidden units in whole sixteens.
    pitch: usize,
    /// For each segment whether its gradient may be written: at first, and after overlaps are known.
    writes: usize,
    apart: usize,
    dz: usize,
    sums: usize,
    /// `M` and `R [block, k, d]` of an outer product.
    mix: usize,
    r: usize,
    len: usize,
}

impl Layout {
    /// The rows' deltas come first, two elements each.
    fn new(rows: usize, segments: usize, shape: Shape) -> Self {
        let pitch = shape.hidden.saturating_add(15) / 16 * 16;
        let dz = shape.intents.saturating_mul(pitch);
        let sums = pitch.saturating_mul(3).saturating_add(4);
        let mix = match shape.product {
            Product::Elementwise => 0,
            Product::Outer => shape.hidden.saturating_mul(shape.dim),
        };
        let row = mix.saturating_mul(2).saturating_add(dz).saturating_add(sums);
        let block = rows.min((BLOCK / row.max(1)).max(BLOCK_ROWS));
        let mut end = 0usize;
        let mut piece = |elements: usize| {
            let start = end;
            end =
                end.saturating_add(elements).checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX);
            start
        };
        piece(rows.saturating_mul(2));
        let (writes, apart) = (piece(segments), piece(segments));
        let [dz, sums, mix, r] = [dz, sums, mix, mix].map(|n| piece(n.saturating_mul(block)));
        Self { block, pitch, writes, apart, dz, sums, mix, r, len: end }
    }
}

impl<D: Device> Intent for Gpu<D> {
    fn intent_workspace(&self, rows: usize, segments: usize, shape: Shape) -> usize {
        Layout::new(rows, segments, shape).len
    }

    fn intent_forward(&self, args: Forward<'_, Self>) -> Result<()> {
        let (op, rows, shape) = ("intent_forward", args.rows, args.head.shape);
        let layout = Layout::new(rows, args.head.num_segments, shape);
        args.check(layout.len)?;
        let Forward { head, h, logits, work, .. } = args;
        let pass = Pass { op, gpu: self, head, h, work, layout };
        pass.places(rows, None)?;
        // Without a product made before them the rows need no workspace of their own.
        let block = if pass.is_outer() { layout.block } else { rows };
        for first in (0..rows).step_by(block.max(1)) {
            let rows = first..rows.min(first + block);
            pass.mix(&rows)?;
            let to = [logits.arg_at(first * shape.intents), NULL, NULL, NULL];
            pass.hidden(["intent_forward_elementwise", "intent_forward_outer"], to, &rows)?;
        }
        Ok(())
    }

    fn intent_backward(&self, args: Backward<'_, Self>) -> Result<()> {
        let (op, rows, shape) = ("intent_backward", args.rows, args.head.shape);
        let layout = Layout::new(rows, args.head.num_segments, shape);
        args.check(layout.len)?;
        let Backward { head, h, dlogits, dh, grads, delta_grads, work, .. } = args;
        let pass = Pass { op, gpu: self, head, h, work, layout };
        pass.places(rows, delta_grads.as_ref().map(|slab| slab.len()))?;
        for first in (0..rows).step_by(layout.block.max(1)) {
            let rows = first..rows.min(first + layout.block);
            let da = dlogits.arg_at(first * shape.intents);
            pass.mix(&rows)?;
            let to = [NULL, da, pass.work(layout.dz), pass.work(layout.sums)];
            pass.hidden(["intent_backward_elementwise", "intent_backward_outer"], to, &rows)?;
            if grads.is_some() || (dh.is_some() && pass.is_outer()) {
                pass.weights(grads.as_deref(), &rows)?;
            }
            if let Some(MatMut { buf, start, stride }) = &dh {
                let (buf, start, stride) = (&**buf, start + first * stride, *stride);
                pass.history([buf.arg_at(start), pass.size("stride", stride)?.into()], &rows)?;
            }
            if let Some(grads) = grads.as_deref() {
                pass.head_gradients(grads, da, &rows)?;
            }
            if let Some(slab) = delta_grads.as_deref() {
                pass.delta_gradients(slab, da, &rows)?;
            }
        }
        Ok(())
    }
}

const NULL: Arg = Arg::Pointer(0);

/// A list of arguments.
struct Args {
    list: [Arg; MAX_ARGS],
    len: usize,
}

impl Args {
    fn new<const N: usize>(args: [Arg; N]) -> Self {
        Self { list: [NULL; MAX_ARGS], len: 0 }.with(args)
    }

    fn with<const N: usize>(mut self, more: [Arg; N]) -> Self {
        self.list[self.len..self.len + N].copy_from_slice(&more);
        self.len += N;
        self
    }
}

/// Where a kernel is: the source, the entry.
type Entry<'n> = (&'static str, &'n str);

/// What every kernel of a call reads.
struct Pass<'a, D: Device> {
    op: &'static str,
    gpu: &'a Gpu<D>,
    head: Head<'a, Gpu<D>>,
    h: Mat<'a, GpuBuf<D, bf16>>,
    work: &'a GpuBuf<D, f32>,
    layout: Layout,
}

impl<D: Device> Pass<'_, D> {
    fn launch(&self, entry: Entry<'_>, grid: [u32; 3], threads: u32, args: &Args) -> Result<()> {
        let ((module, kernel), args) = (entry, &args.list[..args.len]);
        self.gpu.launch(Launch { module, kernel, grid, block: [threads, 1, 1], shared: 0, args })
    }

    fn size(&self, what: &'static str, n: usize) -> Result<u32> {
        extent(self.op, what, n)
    }

    /// `[intents, dim, hidden, columns]`.
    fn sizes(&self) -> Result<[u32; 4]> {
        let Shape { intents, dim, hidden, .. } = self.head.shape;
        // What the kernels compute of them fits as well.
        self.size("hidden", hidden.saturating_add(16).saturating_mul(4).saturating_add(intents))?;
        self.size("M", hidden.saturating_mul(dim.saturating_add(1)))?;
        Ok([
            self.size("intents", intents)?,
            self.size("dim", dim)?,
            self.size("hidden", hidden)?,
            self.size("columns", self.head.shape.columns())?,
        ])
    }

    /// The workspace from an element on.
    fn work(&self, at: usize) -> Arg {
        self.work.arg_at(at)
    }

    /// The head as it is given to every kernel with tiles, for rows from `first` on.
    fn head_args(&self, first: usize) -> Result<Args> {
        let (params, at) = (self.head.params, self.head.offsets);
        let [intents, dim, units, columns] = self.sizes()?.map(Arg::from);
        Ok(Args::new([
            params.arg_at(at.table),
            params.arg_at(at.w1),
            params.arg_at(at.b1),
            params.arg_at(at.slope),
            params.arg_at(at.w2),
            params.arg_at(at.b2),
            at.bias.map_or(NULL, |at| params.arg_at(at)),
            self.head.deltas.arg(),
            self.work(2 * first),
            intents,
            dim,
            units,
            columns,
        ]))
    }

    /// `W1` (or its gradient) and its sizes, as the kernels of outer products take it.
    fn w1_args(&self, of: &GpuBuf<D, f32>) -> Result<Args> {
        let [_, dim, units, columns] = self.sizes()?.map(Arg::from);
        Ok(Args::new([of.arg_at(self.head.offsets.w1), dim, units, columns]))
    }

    /// `H` from row `first` on, and its stride.
    fn h_args(&self, first: usize) -> Result<[Arg; 2]> {
        let h = self.h;
        Ok([h.buf.arg_at(h.start + first * h.stride), self.size("stride", h.stride)?.into()])
    }

    fn pitch(&self) -> Result<Arg> {
        Ok(self.size("hidden", self.layout.pitch)?.into())
    }

    fn is_outer(&self) -> bool {
        self.head.shape.product == Product::Outer
    }

    /// Of the entries for both products the one of this head.
    fn entry<'n>(&self, module: &'static str, names: [&'n str; 2]) -> Entry<'n> {
        (module, names[usize::from(self.is_outer())])
    }

    /// The deltas of rows, and of segments whether their gradients in a slab of that length are written.
    fn places(&self, rows: usize, slab: Option<usize>) -> Result<()> {
        let (head, layout) = (self.head, self.layout);
        let [writes, apart] = [layout.writes, layout.apart].map(|at| self.work(at));
        let segments = self.size("segments", head.num_segments)?;
        let (rows, delta) = (self.size("rows", rows)?, Arg::U64(head.shape.delta_len() as u64));
        let args = Args::new([head.segments.arg(), segments.into()]);
        let args = args.with([
            rows.into(),
            delta,
            Arg::U64(head.deltas.len() as u64),
            Arg::U64(slab.unwrap_or(0) as u64),
            slab.is_some().into(),
            self.work(0),
            writes,
            self.gpu.refusal(),
        ]);
        let grid = [blocks(rows.max(segments), FLAT), 1, 1];
        self.launch(("intent", "intent_places"), grid, FLAT, &args)?;
        if slab.is_none() {
            return Ok(());
        }
        let args = Args::new([head.segments.arg(), segments.into(), delta, writes, apart]);
        let (args, grid) = (args.with([self.gpu.refusal()]), [blocks(segments, FLAT / 32), 1, 1]);
        self.launch(("intent", "intent_overlaps"), grid, FLAT, &args)
    }

    /// `M` of an outer product.
    fn mix(&self, rows: &Range<usize>) -> Result<()> {
        if !self.is_outer() {
            return Ok(());
        }
        let ([_, dim, units, _], count) = (self.sizes()?, self.size("rows", rows.len())?);
        let args = self.w1_args(self.head.params)?.with(self.h_args(rows.start)?);
        let args = args.with([self.work(self.layout.mix), count.into()]);
        let grid = [blocks(count, SIDE), blocks(units * dim, SIDE), 1];
        self.launch(("intent_outer", "intent_mix"), grid, FLAT, &args)
    }

    /// Logits, or `dZ` and its sums; `to` is `[logits, dlogits, dz, sums]`.
    fn hidden(&self, names: [&str; 2], to: [Arg; 4], rows: &Range<usize>) -> Result<()> {
        let count = self.size("rows", rows.len())?;
        let args = self.head_args(rows.start)?.with(self.h_args(rows.start)?);
        let args = args.with([self.work(self.layout.mix)]).with(to);
        let args = args.with([self.pitch()?, count.into()]);
        self.launch(self.entry("intent", names), [blocks(count, ROWS), 1, 1], TILED, &args)
    }

    /// The chains of `W1`; writes `R` of an outer product.
    fn weights(&self, grads: Option<&GpuBuf<D, f32>>, rows: &Range<usize>) -> Result<()> {
        let Layout { dz, sums, r, .. } = self.layout;
        let ([_, dim, units, _], count) = (self.sizes()?, self.size("rows", rows.len())?);
        let to = grads.map_or(NULL, |grads| grads.arg_at(self.head.offsets.w1));
        let args = self.head_args(rows.start)?.with(self.h_args(rows.start)?);
        let args = args.with([self.work(dz), self.work(sums), self.pitch()?]);
        let args = args.with([self.work(r), to, count.into()]);
        let names = ["intent_weights_elementwise", "intent_weights_outer"];
        let grid = [blocks(dim, WIDTH), blocks(units, UNITS), 1];
        self.launch(self.entry("intent_gradient", names), grid, TILED, &args)?;
        let Some(grads) = grads.filter(|_| self.is_outer()) else { return Ok(()) };
        let args = self.w1_args(grads)?.with([self.work(r)]).with(self.h_args(rows.start)?);
        let grid = [blocks(units * dim, SIDE), blocks(dim, SIDE), 1];
        let entry = ("intent_outer", "intent_outer_product");
        self.launch(entry, grid, FLAT, &args.with([count.into()]))
    }

    /// `dH`; `to` is its first row of these and its stride.
    fn history(&self, to: [Arg; 2], rows: &Range<usize>) -> Result<()> {
        let Layout { dz, sums, r, .. } = self.layout;
        let ([_, dim, ..], count) = (self.sizes()?, self.size("rows", rows.len())?);
        let from = |piece: usize| -> Result<[Arg; 3]> {
            Ok([self.work(piece), self.work(sums), self.pitch()?])
        };
        if self.is_outer() {
            let args = self.w1_args(self.head.params)?.with(from(r)?).with(to);
            let grid = [blocks(count, SIDE), blocks(dim, SIDE), 1];
            let entry = ("intent_outer", "intent_outer_history");
            return self.launch(entry, grid, FLAT, &args.with([count.into()]));
        }
        let args = self.head_args(rows.start)?.with(from(dz)?).with(to).with([count.into()]);
        let grid = [blocks(count, ROWS), blocks(dim, WIDTH * TILED / 32), 1];
        self.launch(("intent_gradient", "intent_history"), grid, TILED, &args)
    }

    /// The chains of the tables of `groups` groups of rows: the segments, if there are any, or all rows.
    fn table(&self, groups: usize, from: [Arg; 3], rows: &Range<usize>) -> Result<()> {
        let ([intents, dim, ..], count) = (self.sizes()?, self.size("rows", rows.len())?);
        let args = self.head_args(rows.start)?.with(self.h_args(rows.start)?);
        let args = args.with([self.work(self.layout.mix), self.work(self.layout.dz)]);
        let args = args.with([self.pitch()?]).with(from);
        let args = args.with([self.size("rows", rows.start)?.into(), count.into()]);
        let grid = [self.size("segments", groups)?, blocks(dim, WIDTH), blocks(intents, INTENTS)];
        let names = ["intent_table_elementwise", "intent_table_outer"];
        self.launch(self.entry("intent_gradient", names), grid, TILED, &args)
    }

    /// The chains of the head's parameters but `W1`.
    fn head_gradients(&self, grads: &GpuBuf<D, f32>, da: Arg, rows: &Range<usize>) -> Result<()> {
        let at = self.head.offsets;
        let ([intents, _, units, _], count) = (self.sizes()?, self.size("rows", rows.len())?);
        self.table(1, [NULL, NULL, grads.arg_at(at.table)], rows)?;
        let args = Args::new([self.work(self.layout.sums), self.pitch()?, da]);
        let args = args.with([at.b1, at.slope, at.w2, at.b2].map(|at| grads.arg_at(at)));
        let args = args.with([
            at.bias.map_or(NULL, |at| grads.arg_at(at)),
            intents.into(),
            units.into(),
            count.into(),
        ]);
        let grid = [blocks(3 * units + 1 + intents, TILED), 1, 1];
        self.launch(("intent_gradient", "intent_sums"), grid, TILED, &args)
    }

    /// The chains of the segments' deltas.
    fn delta_gradients(&self, slab: &GpuBuf<D, f32>, da: Arg, rows: &Range<usize>) -> Result<()> {
        let ([intents, dim, ..], count) = (self.sizes()?, self.size("rows", rows.len())?);
        let (groups, apart) = (self.head.num_segments, self.work(self.layout.apart));
        let from = [self.head.segments.arg(), apart, slab.arg()];
        self.table(groups, from, rows)?;
        let args = Args::new([da]).with(from).with([intents.into(), dim.into()]);
        let args = args.with([self.size("rows", rows.start)?.into(), count.into()]);
        let grid = [self.size("segments", groups)?, blocks(intents, TILED), 1];
        self.launch(("intent_gradient", "intent_delta_bias"), grid, TILED, &args)
    }
}
