//! Means over ranges of rows on a GPU: a thread owns up to eight columns of a range.

use super::{Mean, MeanBackward, Pool};
use crate::error::Result;
use crate::gpu::{Arg, Device, Gpu, Launch, blocks, extent, window, window_mut};

/// Threads of a block.
const THREADS: u32 = 128;
/// Blocks that share the rows of a range in the backward.
const SPLITS: u32 = 8;

impl<D: Device> Pool for Gpu<D> {
    fn pool_mean(&self, args: Mean<'_, Self>) -> Result<()> {
        args.check()?;
        let (op, Mean { x, ranges, y, num_ranges, rows, dim }) = ("pool_mean", args);
        let (dim, rows) = (extent(op, "dim", dim)?, extent(op, "rows", rows)?);
        let args = [
            window(&x),
            extent(op, "stride", x.stride)?.into(),
            ranges.arg(),
            window_mut(&y),
            extent(op, "stride", y.stride)?.into(),
            rows.into(),
            dim.into(),
            self.refusal(),
        ];
        self.ranges("pool_mean", [extent(op, "num_ranges", num_ranges)?, dim, 1], &args)
    }

    fn pool_mean_backward(&self, args: MeanBackward<'_, Self>) -> Result<()> {
        args.check()?;
        let op = "pool_mean_backward";
        let MeanBackward { dy, ranges, dx, accumulate, num_ranges, rows, dim } = args;
        let (dim, rows) = (extent(op, "dim", dim)?, extent(op, "rows", rows)?);
        let args = [
            window(&dy),
            extent(op, "stride", dy.stride)?.into(),
            ranges.arg(),
            window_mut(&dx),
            extent(op, "stride", dx.stride)?.into(),
            accumulate.into(),
            rows.into(),
            dim.into(),
            self.refusal(),
        ];
        self.ranges(op, [extent(op, "num_ranges", num_ranges)?, dim, SPLITS], &args)
    }
}

impl<D: Device> Gpu<D> {
    /// Queues a kernel with a thread for each eight columns of a range, `splits` times.
    fn ranges(&self, kernel: &str, [ranges, dim, splits]: [u32; 3], args: &[Arg]) -> Result<()> {
        let threads = dim.div_ceil(8);
        let grid = [ranges, blocks(threads, THREADS), splits];
        let block = [threads.next_multiple_of(32).clamp(32, THREADS), 1, 1];
        self.launch(Launch { module: "pool", kernel, grid, block, shared: 0, args })
    }
}
