//! Norms on a GPU: one warp a row, one warp a block of columns for the gradients of the parameters.

use super::{Backward, Forward, Norm, ParamGradient, Params};
use crate::error::Result;
use crate::gpu::{Arg, Device, Gpu, Launch, blocks, extent, window, window_mut};

/// Threads of a block.
const THREADS: u32 = 256;
/// Rows of a block, a warp each.
const ROWS: u32 = 8;
/// Columns of a block of the gradients.
const COLUMNS: u32 = 32;

impl<D: Device> Norm for Gpu<D> {
    fn norm_forward(&self, args: Forward<'_, Self>) -> Result<()> {
        args.check()?;
        let (op, Forward { params, x, y, rows, dim }) = ("norm_forward", args);
        let (rows, dim) = (extent(op, "rows", rows)?, extent(op, "dim", dim)?);
        self.rows(
            params.bias.map_or("norm_forward_rms", |_| "norm_forward_layer"),
            rows,
            &[
                window(&x),
                extent(op, "stride", x.stride)?.into(),
                params.weight.arg(),
                bias(&params),
                params.eps.into(),
                window_mut(&y),
                extent(op, "stride", y.stride)?.into(),
                rows.into(),
                dim.into(),
            ],
        )
    }

    fn norm_backward(&self, args: Backward<'_, Self>) -> Result<()> {
        args.check()?;
        let (op, Backward { params, x, dy, dx, rows, dim }) = ("norm_backward", args);
        let (rows, dim) = (extent(op, "rows", rows)?, extent(op, "dim", dim)?);
        self.rows(
            params.bias.map_or("norm_backward_rms", |_| "norm_backward_layer"),
            rows,
            &[
                window(&x),
                extent(op, "stride", x.stride)?.into(),
                window(&dy),
                extent(op, "stride", dy.stride)?.into(),
                params.weight.arg(),
                params.eps.into(),
                window_mut(&dx),
                extent(op, "stride", dx.stride)?.into(),
                rows.into(),
                dim.into(),
            ],
        )
    }

    fn norm_param_gradient(&self, args: ParamGradient<'_, Self>) -> Result<()> {
        args.check()?;
        let op = "norm_param_gradient";
        let (rows, dim) = (extent(op, "rows", args.rows)?, extent(op, "dim", args.dim)?);
        if rows == 0 {
            return Ok(());
        }
        // Mean and scale of each row.
        let statistics = self.workspace([args.rows * size_of::<[f32; 2]>()])?;
        let x = [window(&args.x), extent(op, "stride", args.x.stride)?.into()];
        self.rows(
            if args.centred { "norm_statistics_layer" } else { "norm_statistics_rms" },
            rows,
            &[x[0], x[1], args.eps.into(), statistics.arg(0), rows.into(), dim.into()],
        )?;
        self.launch(Launch {
            module: "norm",
            kernel: "norm_gradient",
            grid: [blocks(dim, COLUMNS), 1, 1],
            block: [THREADS, 1, 1],
            shared: 0,
            args: &[
                x[0],
                x[1],
                window(&args.dy),
                extent(op, "stride", args.dy.stride)?.into(),
                statistics.arg(0),
                args.grads.arg_at(args.weight_offset),
                args.bias_offset.map_or(Arg::Pointer(0), |at| args.grads.arg_at(at)),
                rows.into(),
                dim.into(),
            ],
        })
    }
}

impl<D: Device> Gpu<D> {
    /// Queues a kernel with a warp for each row.
    fn rows(&self, kernel: &str, rows: u32, args: &[Arg]) -> Result<()> {
        let (grid, block) = ([blocks(rows, ROWS), 1, 1], [THREADS, 1, 1]);
        self.launch(Launch { module: "norm", kernel, grid, block, shared: 0, args })
    }
}

/// The bias; null without one.
fn bias<D: Device>(params: &Params<'_, Gpu<D>>) -> Arg {
    params.bias.map_or(Arg::Pointer(0), |bias| bias.arg())
}
