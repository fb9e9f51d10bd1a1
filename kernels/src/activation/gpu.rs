//! Activations on a GPU: a thread computes up to eight columns of a row.

use super::{Activation, Backward, Forward, Kind};
use crate::error::Result;
use crate::gpu::{Arg, Device, Gpu, Launch, blocks, extent, window, window_mut};

/// Threads of a block.
const THREADS: u32 = 256;

impl<D: Device> Activation for Gpu<D> {
    fn activation_forward(&self, args: Forward<'_, Self>) -> Result<()> {
        args.check()?;
        let (op, Forward { kind, x, h, rows, dim }) = ("activation_forward", args);
        let (rows, dim) = (extent(op, "rows", rows)?, extent(op, "dim", dim)?);
        let kernel = match kind {
            Kind::SwiGlu => "activation_forward_swiglu",
            Kind::GeluNew => "activation_forward_gelu",
        };
        let x = [window(&x), extent(op, "stride", x.stride)?.into()];
        let h = [window_mut(&h), extent(op, "stride", h.stride)?.into()];
        self.columns(kernel, (rows, dim), &[x[0], x[1], h[0], h[1], rows.into(), dim.into()])
    }

    fn activation_backward(&self, args: Backward<'_, Self>) -> Result<()> {
        args.check()?;
        let (op, Backward { kind, x, dh, dx, rows, dim }) = ("activation_backward", args);
        let (rows, dim) = (extent(op, "rows", rows)?, extent(op, "dim", dim)?);
        let kernel = match kind {
            Kind::SwiGlu => "activation_backward_swiglu",
            Kind::GeluNew => "activation_backward_gelu",
        };
        let x = [window(&x), extent(op, "stride", x.stride)?.into()];
        let dh = [window(&dh), extent(op, "stride", dh.stride)?.into()];
        let dx = [window_mut(&dx), extent(op, "stride", dx.stride)?.into()];
        let args = [x[0], x[1], dh[0], dh[1], dx[0], dx[1], rows.into(), dim.into()];
        self.columns(kernel, (rows, dim), &args)
    }
}

impl<D: Device> Gpu<D> {
    /// Queues a kernel with a thread for each eight columns of a row.
    fn columns(&self, kernel: &str, (rows, dim): (u32, u32), args: &[Arg]) -> Result<()> {
        let threads = dim.div_ceil(8);
        let grid = [rows, blocks(threads, THREADS), 1];
        let block = [threads.next_multiple_of(32).clamp(32, THREADS), 1, 1];
        self.launch(Launch { module: "activation", kernel, grid, block, shared: 0, args })
    }
}
