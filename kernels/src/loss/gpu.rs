//! The head on a GPU, one chunk of the vocabulary after the other: logits by the device's product, exponentials by an
//! own kernel, their product with the weight added to sums in `f32`. Device code: `cu/loss.cu`; figures and what
//! was weighed: `docs/kernels/loss.md`.
//!
//! Two products a chunk, not three: the exponentials are taken against the largest logit so far, and the sums
//! shrink when it grows, so no second sweep has to make the logits again. A target outside the vocabulary is refused
//! by the next read ([`crate::gpu::refusal`]); until then its row alone is left unwritten.

use super::{HeadLoss, Loss};
use crate::backend::MatMut;
use crate::error::Result;
use crate::gpu::{
    Arg, Device, Gpu, GpuBuf, Launch, Operand, Output, OutputType, Product, extent, window_mut,
};
use crate::linear::gpu::{GpuWeight, rows_operand};
use half::bf16;

/// Vocabulary of a chunk: a constant, so that a row's bits do not depend on the other rows.
const CHUNK: usize = 4096;
/// Rows taken together; the workspace is bounded by them, the bits do not depend on them.
const ROWS: usize = 2048;
/// Threads of a block of `loss_chunk` and `loss_finish`.
const CHUNK_THREADS: u32 = 256;
const FINISH_THREADS: u32 = 128;
/// Alignment of a piece of the workspace in elements.
const ALIGN: usize = 64;
/// Elements of a row's state.
const STATE: usize = 4;

/// Where the pieces lie in the workspace, in elements of `f32`.
struct Layout {
    /// Elements of a row of logits and of exponentials.
    width: usize,
    /// Elements of a row of sums.
    sums_stride: usize,
    exponentials: usize,
    sums: usize,
    states: usize,
    len: usize,
}

impl Layout {
    fn new(rows: usize, dim: usize, vocab: usize) -> Self {
        let (rows, width) = (rows.min(ROWS), vocab.next_multiple_of(8).min(CHUNK));
        let sums_stride = dim.next_multiple_of(8);
        let exponentials = (rows * width).next_multiple_of(ALIGN);
        let sums = exponentials + (rows * width / 2).next_multiple_of(ALIGN);
        let states = sums + (rows * sums_stride).next_multiple_of(ALIGN);
        Self { width, sums_stride, exponentials, sums, states, len: states + rows * STATE }
    }
}

/// What all launches of a call share.
struct Call<'a, D: Device> {
    gpu: &'a Gpu<D>,
    head: &'a GpuWeight<D>,
    layout: Layout,
    work: &'a GpuBuf<D, f32>,
    gradient: bool,
}

impl<D: Device> Loss for Gpu<D> {
    fn head_loss_workspace(&self, rows: usize, dim: usize, vocab: usize) -> usize {
        Layout::new(rows, dim, vocab).len
    }

    fn head_loss(&self, args: HeadLoss<'_, Self>) -> Result<()> {
        let shape = args.head.shape();
        let layout = Layout::new(args.rows, shape.in_dim, shape.out_dim);
        args.check(shape.in_dim, layout.len)?;
        let HeadLoss { x, head, targets, weights, losses, mut dx, work, rows } = args;
        let call = Call { gpu: self, head, layout, work, gradient: dx.is_some() };
        for first in (0..rows).step_by(ROWS) {
            let count = ROWS.min(rows - first);
            let x = Operand {
                address: x.buf.address_at(x.start + first * x.stride),
                ..rows_operand(&x)
            };
            for begin in (0..shape.out_dim).step_by(CHUNK) {
                call.chunk((x, targets.arg_at(first)), count, begin)?;
            }
            let [targets, weights] = [targets.arg_at(first), weights.arg_at(first)];
            call.finish([targets, weights, losses.arg_at(first)], dx.as_mut(), (first, count))?;
        }
        Ok(())
    }
}

impl<D: Device> Call<'_, D> {
    /// Columns `begin..` of the vocabulary for `rows` rows.
    fn chunk(&self, (x, targets): (Operand, Arg), rows: usize, begin: usize) -> Result<()> {
        let (op, shape, at) = ("head_loss", self.head.shape(), &self.layout);
        let columns = CHUNK.min(shape.out_dim - begin);
        let output = |offset: usize, stride: usize| Output {
            address: self.work.address_at(offset),
            stride,
            element: OutputType::F32,
        };
        self.gpu.product(&Product {
            m: rows,
            n: columns,
            k: shape.in_dim,
            a: x,
            b: self.head.operand(begin, true),
            out: output(0, at.width),
            accumulate: false,
            c: None,
            invariant: true,
        })?;
        let wanted = |offset: usize| {
            if self.gradient { self.work.arg_at(offset) } else { Arg::Pointer(0) }
        };
        self.gpu.launch(Launch {
            module: "loss",
            kernel: "loss_chunk",
            grid: [extent(op, "rows", rows)?, 1, 1],
            block: [CHUNK_THREADS, 1, 1],
            shared: 0,
            args: &[
                self.work.arg(),
                extent(op, "width", at.width)?.into(),
                extent(op, "vocabulary", begin)?.into(),
                extent(op, "columns", columns)?.into(),
                targets,
                self.work.arg_at(at.states),
                wanted(at.exponentials),
                wanted(at.sums),
                extent(op, "dim", at.sums_stride)?.into(),
                extent(op, "dim", shape.in_dim)?.into(),
            ],
        })?;
        if !self.gradient {
            return Ok(());
        }
        let e = self.work.address_at(at.exponentials);
        self.gpu.product(&Product {
            m: rows,
            n: shape.in_dim,
            k: columns,
            a: Operand { address: e, stride: at.width, transposed: false },
            b: self.head.operand(begin, false),
            out: output(at.sums, at.sums_stride),
            accumulate: begin > 0,
            c: None,
            invariant: true,
        })
    }

    /// The results of rows `first..first + rows`, whose targets, weights and losses are given.
    fn finish(
        &self,
        [targets, weights, losses]: [Arg; 3],
        dx: Option<&mut MatMut<'_, GpuBuf<D, bf16>>>,
        (first, rows): (usize, usize),
    ) -> Result<()> {
        let (op, shape, at) = ("head_loss", self.head.shape(), &self.layout);
        let (dx, stride) = dx.map_or((Arg::Pointer(0), 0), |dx| {
            let start = dx.start + first * dx.stride;
            (window_mut(&MatMut { buf: &mut *dx.buf, start, stride: dx.stride }), dx.stride)
        });
        self.gpu.launch(Launch {
            module: "loss",
            kernel: "loss_finish",
            grid: [extent(op, "rows", rows)?, 1, 1],
            block: [FINISH_THREADS, 1, 1],
            shared: 0,
            args: &[
                self.work.arg_at(at.states),
                targets,
                weights,
                self.head.values().arg(),
                extent(op, "vocabulary", shape.out_dim)?.into(),
                self.work.arg_at(at.sums),
                extent(op, "dim", at.sums_stride)?.into(),
                losses,
                dx,
                extent(op, "stride", stride)?.into(),
                extent(op, "dim", shape.in_dim)?.into(),
                extent(op, "rows", first)?.into(),
                self.gpu.refusal(),
            ],
        })
    }
}
