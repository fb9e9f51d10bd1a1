//! Rows by index on a GPU. An index out of range is refused by the next read ([`crate::gpu::refusal`]); until then
//! its row alone is left unwritten.

use super::{Embed, Embedding, Gather, Lookup, LookupGradient, Scatter};
use crate::backend::Buffer;
use crate::error::Result;
use crate::gpu::{Arg, Device, Gpu, Launch, blocks, extent, window, window_mut};

/// Threads of a block that moves rows, eight columns each.
const THREADS: u32 = 128;
/// Columns of a warp of the table's gradient.
const COLUMNS: u32 = 256;

impl<D: Device> Embedding for Gpu<D> {
    fn embed(&self, args: Embed<'_, Self>) -> Result<()> {
        let (op, shape) = ("embed", args.table.shape());
        args.check(shape.in_dim)?;
        let Embed { table, ids, positions, x, rows } = args;
        let (rows, dim) = (extent(op, "rows", rows)?, extent(op, "dim", shape.in_dim)?);
        let null = Arg::Pointer(0);
        let (places, known, at) = match positions {
            None => (null, 0, null),
            Some((places, at)) => {
                let known = places.len() / shape.in_dim.max(1);
                (places.arg(), extent(op, "positions", known)?, at.arg())
            }
        };
        let args = [
            table.values().arg(),
            extent(op, "values", shape.out_dim)?.into(),
            ids.arg(),
            places,
            known.into(),
            at,
            window_mut(&x),
            extent(op, "stride", x.stride)?.into(),
            dim.into(),
            self.refusal(),
        ];
        self.move_rows("embedding_embed", (rows, dim), &args)
    }

    fn gather(&self, args: Gather<'_, Self>) -> Result<()> {
        args.check()?;
        let (op, Gather { x, index, y, rows, dim }) = ("gather", args);
        let known = rows_of(op, (x.start, x.stride, dim), x.buf.len())?;
        let (rows, dim) = (extent(op, "rows", rows)?, extent(op, "dim", dim)?);
        let args = [
            window(&x),
            extent(op, "stride", x.stride)?.into(),
            known.into(),
            index.arg(),
            window_mut(&y),
            extent(op, "stride", y.stride)?.into(),
            dim.into(),
            self.refusal(),
        ];
        self.move_rows("embedding_gather", (rows, dim), &args)
    }

    fn scatter(&self, args: Scatter<'_, Self>) -> Result<()> {
        args.check()?;
        let (op, Scatter { x, index, y, accumulate, rows, dim }) = ("scatter", args);
        let known = rows_of(op, (y.start, y.stride, dim), y.buf.len())?;
        let (rows, dim) = (extent(op, "rows", rows)?, extent(op, "dim", dim)?);
        let args = [
            window(&x),
            extent(op, "stride", x.stride)?.into(),
            index.arg(),
            window_mut(&y),
            extent(op, "stride", y.stride)?.into(),
            known.into(),
            dim.into(),
            self.refusal(),
        ];
        let kernel = if accumulate { "embedding_scatter_add" } else { "embedding_scatter" };
        self.move_rows(kernel, (rows, dim), &args)
    }

    fn lookup(&self, args: Lookup<'_, Self>) -> Result<()> {
        args.check()?;
        let op = "lookup";
        let Lookup { params, offset, values, dim, ids, x, accumulate, rows } = args;
        let (rows, dim) = (extent(op, "rows", rows)?, extent(op, "dim", dim)?);
        let args = [
            params.arg_at(offset),
            extent(op, "values", values)?.into(),
            window(&ids),
            extent(op, "stride", ids.stride)?.into(),
            window_mut(&x),
            extent(op, "stride", x.stride)?.into(),
            dim.into(),
            self.refusal(),
        ];
        let kernel = if accumulate { "embedding_lookup_add" } else { "embedding_lookup" };
        self.move_rows(kernel, (rows, dim), &args)
    }

    fn lookup_gradient(&self, args: LookupGradient<'_, Self>) -> Result<()> {
        args.check()?;
        let op = "lookup_gradient";
        let LookupGradient { dx, ids, grads, offset, values, dim, rows } = args;
        let (rows, dim) = (extent(op, "rows", rows)?, extent(op, "dim", dim)?);
        self.launch(Launch {
            module: "embedding",
            kernel: "embedding_lookup_gradient",
            grid: [rows, blocks(dim, COLUMNS), 1],
            block: [32, 1, 1],
            shared: 0,
            args: &[
                window(&dx),
                extent(op, "stride", dx.stride)?.into(),
                window(&ids),
                extent(op, "stride", ids.stride)?.into(),
                grads.arg_at(offset),
                extent(op, "values", values)?.into(),
                rows.into(),
                dim.into(),
                self.refusal(),
            ],
        })
    }
}

impl<D: Device> Gpu<D> {
    /// Queues a kernel with a thread for each eight columns of a row.
    fn move_rows(&self, kernel: &str, (rows, dim): (u32, u32), args: &[Arg]) -> Result<()> {
        let threads = dim.div_ceil(8);
        let grid = [rows, blocks(threads, THREADS), 1];
        let block = [threads.next_multiple_of(32).clamp(32, THREADS), 1, 1];
        self.launch(Launch { module: "embedding", kernel, grid, block, shared: 0, args })
    }
}

/// Rows of `dim` columns that a window has in a buffer of `len` elements.
fn rows_of(
    op: &'static str,
    (start, stride, dim): (usize, usize, usize),
    len: usize,
) -> Result<u32> {
    let rows = match len.checked_sub(start.saturating_add(dim)) {
        None => 0,
        Some(rest) => rest.checked_div(stride).map_or(1, |more| more + 1),
    };
    extent(op, "rows", rows)
}
