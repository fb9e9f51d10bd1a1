//! Grouped LoRA on a GPU: which kernels of `cu/lora_*.cu` run, on what grid, with which arguments.
//!
//! Owns the order of the launches; the numbers are chosen in `gpu/plan.rs`. What the device alone can see
//! (ranks above 64, segments that leave the pack or the slabs, that overlap or are out of order) it notes in
//! the backend's refusal word and leaves out; that gradients of different segments do not overlap is the
//! caller's promise. Adapters that come before their product are in `gpu/first.rs`. Start at [`Call`], then the `impl Lora for Gpu`; `docs/kernels/lora.md` has the
//! pictures. Never run on a GPU so far.

pub(crate) mod first;
mod plan;

use super::{Backward, Forward, Lora, Segment, SiteOutput, check_sites, check_tables};
use crate::backend::{Buffer, Mat, MatMut};
use crate::error::Result;
use crate::gpu::{Arg, Device, Gpu, GpuBuf, Launch, MAX_ARGS, blocks, extent, window, window_mut};
use first::Begins;
use half::bf16;
use plan::{
    CHUNK, EXPAND, Group, INPUT, MAX_RANK, Panels, SHRINK, by_height, per_output, shrink_shared,
    tile_rows,
};

/// Columns that a block of `lora_da` owns.
const IN_STRIP: u32 = 128;
/// Columns of a block of `lora_expand` and `lora_input`.
const EXPAND_COLUMNS: u32 = 256;
/// Words of masks, rows and threads of a block of `lora_mask`.
const MASK_WORDS: u32 = 64;
const MASK_ROWS: usize = 64;
/// Threads of a block.
const THREADS: u32 = 256;
const EXPAND_THREADS: u32 = 128;
/// Shared memory of `lora_output` (rank class 64, two stages and `B`) and `lora_da` (class 32, four stages).
const OUTPUT_SHARED: u32 = 2 * 32 * (264 + 72) * 2 + 256 * 72 * 2;
const DA_SHARED: u32 = 4 * 32 * (136 + 104) * 2;
/// Workspace of a panel of the backward, unless one chunk needs more.
const PANEL_BYTES: usize = 96 << 20;

/// Arguments of a launch, in order.
#[derive(Clone, Copy)]
struct Args {
    list: [Arg; MAX_ARGS],
    len: usize,
}

impl Args {
    const NONE: Self = Self { list: [Arg::U32(0); MAX_ARGS], len: 0 };

    fn with(mut self, args: &[Arg]) -> Self {
        for arg in args {
            if let Some(to) = self.list.get_mut(self.len) {
                *to = *arg;
                self.len += 1;
            }
        }
        self
    }
}

/// The fields that both directions have.
struct Pack<'a, D: Device> {
    x: Mat<'a, GpuBuf<D, bf16>>,
    sites: &'a [SiteOutput],
    segments: &'a GpuBuf<D, Segment>,
    num_segments: usize,
    row_token: &'a GpuBuf<D, u32>,
    params: &'a GpuBuf<D, f32>,
    rows: usize,
}

/// A call whose shapes have been checked.
struct Call<'a, D: Device> {
    op: &'static str,
    gpu: &'a Gpu<D>,
    pack: Pack<'a, D>,
    groups: Vec<Group>,
    /// Input width.
    d: u32,
    /// The parameters `PACK_PARAMS`.
    head: Args,
}

impl<'a, D: Device> Call<'a, D> {
    /// Checks the shapes; `None` where there is nothing to do. `grads` is the length of the gradient slab.
    fn new(
        op: &'static str,
        gpu: &'a Gpu<D>,
        pack: Pack<'a, D>,
        (y_stride, y_len): (usize, usize),
        grads: usize,
    ) -> Result<Option<Self>> {
        let Pack { sites, segments, num_segments, row_token, rows, .. } = pack;
        check_tables(op, (segments, num_segments), (row_token, rows))?;
        check_sites(op, sites, (rows, y_stride, y_len))?;
        let Some(first) = sites.first() else { return Ok(None) };
        let d = first.site.in_dim;
        pack.x.check(op, "x", rows, d)?;
        let groups = Group::split(op, sites)?;
        if rows == 0 || num_segments == 0 || d == 0 || groups.is_empty() {
            return Ok(None);
        }
        extent(op, "largest A", MAX_RANK * d)?;
        let reach = |s: &SiteOutput| s.site.unit_offset + s.site.in_dim + s.site.out_dim;
        let reach = sites.iter().map(reach).max().unwrap_or(0);
        let head = Args::NONE.with(&[
            segments.arg(),
            extent(op, "segments", num_segments)?.into(),
            extent(op, "rows", rows)?.into(),
            extent(op, "units", reach)?.into(),
            Arg::U64(pack.params.len() as u64),
            Arg::U64(grads as u64),
        ]);
        let d = extent(op, "input width", d)?;
        Ok(Some(Self { op, gpu, pack, groups, d, head }))
    }

    /// Slots of tiles of `height` rows, one block each: `lora.cuh` says why these are enough.
    fn slots(&self, height: usize) -> Result<u32> {
        extent(self.op, "tiles", self.pack.rows / height + self.pack.num_segments)
    }

    /// Words of a row of masks.
    fn words(&self) -> u32 {
        self.d.div_ceil(32)
    }

    fn mask_bytes(&self, group: &Group) -> usize {
        group.len as usize * self.pack.rows * self.words() as usize * size_of::<u32>()
    }

    /// Bytes of `S'` or `dS'`.
    fn sums_bytes(&self, group: &Group) -> usize {
        group.len as usize * self.pack.rows * MAX_RANK * size_of::<bf16>()
    }

    fn launch(
        &self,
        (module, kernel): (&'static str, &'static str),
        grid: [u32; 3],
        (threads, shared): (u32, u32),
        args: Args,
    ) -> Result<()> {
        let args = &args.list[..args.len];
        self.gpu.launch(Launch { module, kernel, grid, block: [threads, 1, 1], shared, args })
    }

    fn stride(&self, what: &'static str, stride: usize) -> Result<Arg> {
        Ok(extent(self.op, what, stride)?.into())
    }

    /// Masks, then `S'`.
    fn shrink(&self, group: &Group, masks: Arg, sums: Arg) -> Result<()> {
        let (pack, words) = (&self.pack, self.words());
        let mask = self
            .head
            .with(&[pack.row_token.arg(), masks, words.into()])
            .with(&per_output(group.site))
            .with(&[self.gpu.refusal()]);
        let grid = [self.slots(MASK_ROWS)?, group.len, blocks(words, MASK_WORDS)];
        self.launch(("lora_shrink", "lora_mask"), grid, (THREADS, 0), mask)?;
        let height = tile_rows(pack.rows, pack.num_segments, 64);
        let args = self
            .head
            .with(&[window(&pack.x), self.stride("x stride", pack.x.stride)?, self.d.into()])
            .with(&[group.len.into(), pack.params.arg()])
            .with(&per_output(group.a_unit))
            .with(&[masks, words.into(), sums]);
        let kernel = ("lora_shrink", by_height(height, SHRINK));
        let shape = (THREADS, shrink_shared(height, group.len)?);
        self.launch(kernel, [self.slots(height)?, 1, 1], shape, args)
    }

    /// `Y += S' · Bᵀ`.
    fn expand(&self, group: &Group, sums: Arg, y: (Arg, usize)) -> Result<()> {
        let pack = &self.pack;
        let height = tile_rows(pack.rows, pack.num_segments, 64);
        let args = self
            .head
            .with(&[sums, group.len.into(), pack.params.arg()])
            .with(&per_output(group.b_unit))
            .with(&per_output(group.out_len))
            .with(&per_output(group.y_start))
            .with(&[y.0, self.stride("y stride", y.1)?]);
        let grid = [self.slots(height)?, blocks(group.longest(), EXPAND_COLUMNS), group.len];
        self.launch(("lora_expand", by_height(height, EXPAND)), grid, (EXPAND_THREADS, 0), args)
    }

    /// `dX += undrop(dS' · A)`.
    fn input(
        &self,
        group: &Group,
        (masks, ds): (Arg, Arg),
        dx: &MatMut<'_, GpuBuf<D, bf16>>,
    ) -> Result<()> {
        let pack = &self.pack;
        let height = tile_rows(pack.rows, pack.num_segments, 32);
        let args = self
            .head
            .with(&[ds, group.len.into(), pack.params.arg()])
            .with(&per_output(group.a_unit))
            .with(&[masks, self.words().into(), self.d.into()])
            .with(&[window_mut(dx), self.stride("dx stride", dx.stride)?]);
        let grid = [self.slots(height)?, blocks(self.d, EXPAND_COLUMNS), 1];
        self.launch(("lora_expand", by_height(height, INPUT)), grid, (EXPAND_THREADS, 0), args)
    }
}

/// What the backward of a group reads and writes on the device.
struct Gradients {
    masks: Arg,
    /// `S'`.
    s: Arg,
    /// `dS'`.
    ds: Arg,
    /// Partial sums of `dS`, by strip.
    ds_partial: Arg,
    /// Gradients of the chunks of long segments.
    chunks: Arg,
    dy: (Arg, usize),
    grads: Arg,
}

impl<D: Device> Call<'_, D> {
    /// `dS'`, `dB` and `dA` of the chunks that begin in `from .. from + panels.rows`.
    fn panel(&self, group: &Group, g: &Gradients, panels: Panels, from: usize) -> Result<()> {
        let pack = &self.pack;
        let slots = self.slots(CHUNK)?;
        let (width, da_at) = group.partials(self.d);
        let panel: [Arg; 2] =
            [extent(self.op, "panel", from)?.into(), extent(self.op, "panel", panels.rows)?.into()];
        let partials = [g.chunks, Arg::U64(width as u64)];
        let len: Arg = group.len.into();
        let args = self
            .head
            .with(&[g.s, len, pack.params.arg()])
            .with(&per_output(group.b_unit))
            .with(&per_output(group.out_len))
            .with(&per_output(group.y_start))
            .with(&[g.dy.0, self.stride("dy stride", g.dy.1)?, g.grads, g.ds_partial])
            .with(&partials)
            .with(&panel);
        let grid = [slots, group.strips(), 1];
        self.launch(("lora_gradient", "lora_output"), grid, (THREADS, OUTPUT_SHARED), args)?;
        let args = self
            .head
            .with(&per_output(group.out_len))
            .with(&[len, g.ds_partial])
            .with(&panel)
            .with(&[g.ds]);
        self.launch(("lora_gradient", "lora_ds"), [slots, group.len, 1], (THREADS, 0), args)?;
        let args = self
            .head
            .with(&[window(&pack.x), self.stride("x stride", pack.x.stride)?, self.d.into()])
            .with(&[g.ds, len])
            .with(&per_output(group.a_unit))
            .with(&[g.masks, self.words().into(), g.grads])
            .with(&partials)
            .with(&[Arg::U64(da_at as u64)])
            .with(&panel);
        let grid = [slots, blocks(self.d, IN_STRIP), group.len];
        self.launch(("lora_gradient", "lora_da"), grid, (THREADS, DA_SHARED), args)?;
        if panels.chunk_bytes == 0 {
            return Ok(());
        }
        let args = self
            .head
            .with(&per_output(group.b_unit))
            .with(&per_output(group.out_len))
            .with(&per_output(group.a_unit))
            .with(&[self.d.into(), len, g.grads])
            .with(&partials)
            .with(&panel);
        // A block adds some 16 elements a thread at rank 16.
        let grid = [slots, blocks(group.longest().max(self.d), THREADS), 2 * group.len];
        self.launch(("lora_gradient", "lora_chunks"), grid, (THREADS, 0), args)
    }
}

impl<D: Device> Gpu<D> {
    /// [`Lora::lora_backward`] with another bound on the bytes of partial sums: the same bits, in as many
    /// panels of rows as it takes.
    ///
    /// # Errors
    /// As [`Lora::lora_backward`].
    pub fn lora_backward_within(&self, args: Backward<'_, Self>, bytes: usize) -> Result<()> {
        self.lora_backward_by(args, bytes, None)
    }

    /// The backward; `first` where it begins `dX`, else it adds to it.
    fn lora_backward_by(
        &self,
        args: Backward<'_, Self>,
        bytes: usize,
        mut first: Option<Begins>,
    ) -> Result<()> {
        let op = "lora_backward";
        let Backward { x, sites, segments, num_segments, row_token, params, rows, .. } = args;
        if let (Some(dx), Some(first)) = (&args.dx, sites.first()) {
            dx.check(op, "dx", rows, first.site.in_dim)?;
        }
        let pack = Pack { x, sites, segments, num_segments, row_token, params, rows };
        let y = (args.dy.stride, Buffer::len(args.dy.buf));
        let Some(call) = Call::new(op, self, pack, y, Buffer::len(args.grads))? else {
            return Ok(());
        };
        for group in &call.groups {
            let panels = Panels::new(rows, group, call.d, bytes);
            let sums = call.sums_bytes(group);
            let sizes = [call.mask_bytes(group), sums, sums, panels.ds_bytes, panels.chunk_bytes];
            let space = self.workspace(sizes)?;
            let g = Gradients {
                masks: space.arg(0),
                s: space.arg(1),
                ds: space.arg(2),
                ds_partial: space.arg(3),
                chunks: space.arg(4),
                dy: (args.dy.buf.arg(), args.dy.stride),
                grads: args.grads.arg(),
            };
            call.shrink(group, g.masks, g.s)?;
            for from in (0..rows).step_by(panels.rows) {
                call.panel(group, &g, panels, from)?;
            }
            let Some(dx) = &args.dx else { continue };
            match first.take() {
                Some(begins) => call.input_first(group, (g.masks, g.ds), dx, begins)?,
                None => call.input(group, (g.masks, g.ds), dx)?,
            }
        }
        Ok(())
    }

    /// The forward with `expand` for its last step: group, `S'`, `Y` and its stride.
    fn lora_forward_by<'a>(
        &'a self,
        args: Forward<'a, Self>,
        expand: impl Fn(&Call<'a, D>, &Group, Arg, (Arg, usize)) -> Result<()>,
    ) -> Result<()> {
        let Forward { x, sites, segments, num_segments, row_token, params, rows, y } = args;
        let pack = Pack { x, sites, segments, num_segments, row_token, params, rows };
        let shape = (y.stride, Buffer::len(y.buf));
        let Some(call) = Call::new("lora_forward", self, pack, shape, usize::MAX)? else {
            return Ok(());
        };
        for group in &call.groups {
            let space = self.workspace([call.mask_bytes(group), call.sums_bytes(group)])?;
            call.shrink(group, space.arg(0), space.arg(1))?;
            expand(&call, group, space.arg(1), (y.buf.arg(), y.stride))?;
        }
        Ok(())
    }
}

impl<D: Device> Lora for Gpu<D> {
    fn lora_forward(&self, args: Forward<'_, Self>) -> Result<()> {
        self.lora_forward_by(args, Call::expand)
    }

    fn lora_backward(&self, args: Backward<'_, Self>) -> Result<()> {
        self.lora_backward_within(args, PANEL_BYTES)
    }
}
