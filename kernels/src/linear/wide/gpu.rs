//! Products with `f32` results on a GPU: the device's product writes them itself, on top of the bias.

use super::{Backward, Forward, Wide};
use crate::backend::Buffer;
use crate::error::{Result, check_len};
use crate::gpu::{
    Arg, Device, Gpu, GpuBuf, Launch, Operand, Output, OutputType, Product, blocks, extent,
};
use crate::linear::gpu::rows_operand;
use half::bf16;

/// Threads of a block.
const THREADS: u32 = 128;

impl<D: Device> Wide for Gpu<D> {
    fn act_room(&self, len: usize) -> usize {
        len
    }

    fn as_act<'a>(
        &self,
        src: &'a GpuBuf<D, f32>,
        room: &'a mut GpuBuf<D, bf16>,
        len: usize,
    ) -> Result<&'a GpuBuf<D, bf16>> {
        let op = "as_act";
        check_len(op, "src", len, src.len())?;
        check_len(op, "room", len, room.len())?;
        self.launch(Launch {
            module: "linear",
            kernel: "linear_round",
            grid: [extent(op, "blocks", len.div_ceil(8 * THREADS as usize))?, 1, 1],
            block: [THREADS, 1, 1],
            shared: 0,
            args: &[src.arg(), room.arg(), (len as u64).into()],
        })?;
        Ok(room)
    }

    fn wide_forward(&self, args: Forward<'_, Self>) -> Result<()> {
        let shape = args.weight.shape();
        args.check(shape)?;
        let Forward { x, weight, bias, y, rows } = args;
        let accumulate = bias.is_some() || shape.in_dim == 0;
        if accumulate {
            self.wide_start(y, (rows, shape.out_dim), bias)?;
        }
        let factors = (rows_operand(&x), weight.operand(0, true));
        self.wide((rows, shape.out_dim, shape.in_dim), factors, y, accumulate)
    }

    fn wide_backward(&self, args: Backward<'_, Self>) -> Result<()> {
        let shape = args.weight.shape();
        args.check(shape)?;
        let Backward { dy, weight, dx, rows } = args;
        if shape.out_dim == 0 {
            self.wide_start(dx, (rows, shape.in_dim), None)?;
        }
        let factors = (rows_operand(&dy), weight.operand(0, false));
        self.wide((rows, shape.in_dim, shape.out_dim), factors, dx, false)
    }
}

impl<D: Device> Gpu<D> {
    /// `Y = bias`, or zero.
    fn wide_start(
        &self,
        y: &GpuBuf<D, f32>,
        (rows, width): (usize, usize),
        bias: Option<&GpuBuf<D, f32>>,
    ) -> Result<()> {
        let op = "wide_forward";
        let elements = extent(op, "elements", rows.saturating_mul(width))?;
        self.launch(Launch {
            module: "linear",
            kernel: "linear_wide_start",
            grid: [blocks(elements, THREADS), 1, 1],
            block: [THREADS, 1, 1],
            shared: 0,
            args: &[
                bias.map_or(Arg::Pointer(0), GpuBuf::arg),
                y.arg(),
                elements.into(),
                extent(op, "width", width)?.into(),
            ],
        })
    }

    /// `D [m, n] (=|+=) A [m, k] · B [k, n]`; a sum of nothing adds nothing.
    fn wide(
        &self,
        (m, n, k): (usize, usize, usize),
        (a, b): (Operand, Operand),
        out: &GpuBuf<D, f32>,
        accumulate: bool,
    ) -> Result<()> {
        if k == 0 {
            return Ok(());
        }
        let out = Output { address: out.address_at(0), stride: n, element: OutputType::F32 };
        self.product(&Product { m, n, k, a, b, out, accumulate, c: None, invariant: true })
    }
}
