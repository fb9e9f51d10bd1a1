//! Rotary positions on a GPU: a thread rotates up to eight pairs of a head.

use super::{Rope, Rotate};
use crate::backend::Buffer;
use crate::error::Result;
use crate::gpu::{Device, Gpu, Launch, blocks, extent, window_mut};

/// Threads of a block.
const THREADS: u32 = 256;

impl<D: Device> Rope for Gpu<D> {
    fn rope(&self, args: Rotate<'_, Self>) -> Result<()> {
        args.check()?;
        let (op, Rotate { x, positions, table, heads, head_dim, inverse, rows }) = ("rope", args);
        if heads * head_dim == 0 {
            return Ok(());
        }
        let (heads, half) = (extent(op, "heads", heads)?, extent(op, "head_dim", head_dim / 2)?);
        let rows = extent(op, "rows", rows)?;
        let per_row = extent(op, "width", heads as usize * half.div_ceil(8) as usize)?;
        self.launch(Launch {
            module: "rope",
            kernel: "rope_rotate",
            grid: [rows, blocks(per_row, THREADS), 1],
            block: [THREADS.min(per_row.next_multiple_of(32)), 1, 1],
            shared: 0,
            args: &[
                window_mut(&x),
                extent(op, "stride", x.stride)?.into(),
                positions.arg(),
                table.arg(),
                extent(op, "positions", table.len() / head_dim)?.into(),
                heads.into(),
                half.into(),
                if inverse { -1.0f32 } else { 1.0 }.into(),
                rows.into(),
                self.refusal(),
            ],
        })
    }
}
