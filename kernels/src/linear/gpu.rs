//! Dense products on a GPU: the device's library for products with a weight, own kernels around them and for the
//! gradient of a weight that trains. Device code: `cu/linear.cu`; figures: `docs/kernels/linear.md`.
//!
//! A weight lies on the device once, `bf16 [n, d]`, and serves both directions. What is added to a product is read by
//! the product: a residual where it lies, `bias + residual`, an earlier `dX` or what adapters wrote
//! ([`crate::adapted`]) in the output. Beside the product, a bias costs one write of `Y`, where a pass afterwards would
//! read and write it; `bias + residual` is rounded to `bf16` on the way, once.
//!
//! Row invariance: every product is asked for with [`Product::invariant`]. On the emulator that is exact; on CUDA
//! it is what the device's batch-invariant mode gives (`docs/kernels/linear.md`), for windows of equal alignment.

use super::{
    Backward, Forward, HostStorage, Layout, Linear, Shape, Trainable, WeightGradient, check_prepare,
};
use crate::backend::{Backend, Buffer, Mat, MatMut};
use crate::error::{Error, Result, check_len};
use crate::gpu::{
    Addend, Arg, Device, Gpu, GpuBuf, Launch, Operand, Output, OutputType, Product, blocks, extent,
    window, window_mut,
};
use half::bf16;
use half::slice::HalfFloatSliceExt;

/// Threads of a block of the kernels that take eight elements a thread.
const THREADS: u32 = 128;
/// Elements that are converted on the host at a time.
const UPLOAD: usize = 1 << 20;
/// Tiles of 128 by 128 from which on they fill a device (an A100 has 108 multiprocessors).
const ENOUGH_TILES: u64 = 108;
/// Token rows of a stage of the gradient, and stages in shared memory.
const STAGE_ROWS: u32 = 32;
const STAGES: u32 = 3;

/// A weight on the device, `bf16 [n, d]` row-major.
#[derive(Debug)]
pub struct GpuWeight<D: Device> {
    shape: Shape,
    values: GpuBuf<D, bf16>,
    trains: bool,
}

impl<D: Device> GpuWeight<D> {
    /// Widths.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// `[n, d]`, row-major.
    pub fn values(&self) -> &GpuBuf<D, bf16> {
        &self.values
    }

    /// Rows `first..` as the `[n, d]` factor of a product, transposed or not.
    pub(crate) fn operand(&self, first: usize, transposed: bool) -> Operand {
        let stride = self.shape.in_dim;
        Operand { address: self.values.address_at(first * stride), stride, transposed }
    }
}

/// A window of activations as the left factor of a product.
pub(crate) fn rows_operand<D: Device>(mat: &Mat<'_, GpuBuf<D, bf16>>) -> Operand {
    Operand { address: mat.buf.address_at(mat.start), stride: mat.stride, transposed: false }
}

impl<D: Device> Linear for Gpu<D> {
    type Weight = GpuWeight<D>;

    fn prepared_form(&self) -> &'static str {
        "f32-nd"
    }

    fn prepared_len(&self, shape: Shape) -> usize {
        shape.in_dim * shape.out_dim
    }

    fn prepare(&self, shape: Shape, layout: Layout, src: &[f32], dst: &mut [f32]) -> Result<()> {
        let len = self.prepared_len(shape);
        check_prepare("prepare", (len, src.len()), (len, dst.len()))?;
        match layout {
            Layout::OutIn => dst[..len].copy_from_slice(src),
            Layout::InOut => transpose((shape.in_dim, shape.out_dim), src, &mut dst[..len]),
        }
        Ok(())
    }

    fn unprepare(&self, shape: Shape, layout: Layout, src: &[f32], dst: &mut [f32]) -> Result<()> {
        let len = self.prepared_len(shape);
        check_prepare("unprepare", (len, dst.len()), (len, src.len()))?;
        match layout {
            Layout::OutIn => dst.copy_from_slice(&src[..len]),
            Layout::InOut => transpose((shape.out_dim, shape.in_dim), &src[..len], dst),
        }
        Ok(())
    }

    fn weight(&self, shape: Shape, storage: &HostStorage, offset: usize) -> Result<GpuWeight<D>> {
        let (all, len) = ((**storage).as_ref(), self.prepared_len(shape));
        let end = offset.saturating_add(len);
        check_len("weight", "storage", end, all.len())?;
        let mut values = self.alloc::<bf16>(len)?;
        let mut rounded = vec![bf16::ZERO; len.min(UPLOAD)];
        for (i, part) in all[offset..end].chunks(UPLOAD).enumerate() {
            let rounded = &mut rounded[..part.len()];
            rounded.convert_from_f32_slice(part);
            self.write(&mut values, i * UPLOAD, rounded)?;
        }
        Ok(GpuWeight { shape, values, trains: false })
    }

    fn shape(&self, weight: &GpuWeight<D>) -> Shape {
        weight.shape
    }

    fn linear_forward(&self, args: Forward<'_, Self>) -> Result<()> {
        let Shape { in_dim: d, out_dim: n } = args.weight.shape;
        args.check(args.weight.shape)?;
        let Forward { x, weight, bias, residual, mut y, rows } = args;
        let added = match (bias, residual) {
            (None, None) if d > 0 => Added::Nothing,
            (None, Some(c)) if d > 0 => {
                Added::Matrix(Addend { address: c.buf.address_at(c.start), stride: c.stride })
            }
            _ => {
                self.start(&mut y, (rows, n), bias, residual)?;
                Added::Output
            }
        };
        self.dense((rows, n, d), (rows_operand(&x), weight.operand(0, true)), &y, added)
    }

    fn linear_backward(&self, args: Backward<'_, Self>) -> Result<()> {
        let Shape { in_dim: d, out_dim: n } = args.weight.shape;
        args.check(args.weight.shape)?;
        let Backward { dy, weight, mut dx, accumulate, rows } = args;
        if n == 0 && !accumulate {
            self.start(&mut dx, (rows, d), None, None)?;
        }
        let added = if accumulate { Added::Output } else { Added::Nothing };
        self.dense((rows, d, n), (rows_operand(&dy), weight.operand(0, false)), &dx, added)
    }
}

/// What a product adds to its sums.
enum Added {
    Nothing,
    /// What the output holds.
    Output,
    Matrix(Addend),
}

impl<D: Device> Gpu<D> {
    /// `Y += X·W`: bias and residual of the arguments are in `Y` already.
    pub(crate) fn linear_onto(&self, args: Forward<'_, Self>) -> Result<()> {
        let Shape { in_dim: d, out_dim: n } = args.weight.shape;
        args.check(args.weight.shape)?;
        let factors = (rows_operand(&args.x), args.weight.operand(0, true));
        self.dense((args.rows, n, d), factors, &args.y, Added::Output)
    }

    /// `Y = bias + residual`.
    fn start(
        &self,
        y: &mut MatMut<'_, GpuBuf<D, bf16>>,
        (rows, width): (usize, usize),
        bias: Option<&GpuBuf<D, f32>>,
        residual: Option<Mat<'_, GpuBuf<D, bf16>>>,
    ) -> Result<()> {
        let op = "linear_forward";
        let (rows, width) = (extent(op, "rows", rows)?, extent(op, "width", width)?);
        let null = Arg::Pointer(0);
        let (residual, stride) = residual.map_or((null, 0), |r| (window(&r), r.stride));
        let threads = width.div_ceil(8);
        self.launch(Launch {
            module: "linear",
            kernel: "linear_start",
            grid: [rows, blocks(threads, THREADS), 1],
            block: [THREADS, 1, 1],
            shared: 0,
            args: &[
                bias.map_or(null, GpuBuf::arg),
                residual,
                extent(op, "stride", stride)?.into(),
                window_mut(y),
                extent(op, "stride", y.stride)?.into(),
                width.into(),
            ],
        })
    }

    /// `D [m, n] = A [m, k] · B [k, n]` and what is added; a sum of nothing is not formed.
    fn dense(
        &self,
        (m, n, k): (usize, usize, usize),
        (a, b): (Operand, Operand),
        out: &MatMut<'_, GpuBuf<D, bf16>>,
        added: Added,
    ) -> Result<()> {
        if k == 0 {
            return Ok(());
        }
        let (accumulate, c) = match added {
            Added::Nothing => (false, None),
            Added::Output => (true, None),
            Added::Matrix(c) => (true, Some(c)),
        };
        let address = out.buf.address_at(out.start);
        let out = Output { address, stride: out.stride, element: OutputType::Bf16 };
        self.product(&Product { m, n, k, a, b, out, accumulate, c, invariant: true })
    }
}

impl<D: Device> Trainable for Gpu<D> {
    fn trainable(&self, shape: Shape) -> Result<GpuWeight<D>> {
        Ok(GpuWeight { shape, values: self.alloc(self.prepared_len(shape))?, trains: true })
    }

    fn refresh(&self, w: &mut GpuWeight<D>, src: &GpuBuf<D, f32>, offset: usize) -> Result<()> {
        let op = "refresh";
        if !w.trains {
            let what = "the weight is a copy of a storage, not one that trains".to_owned();
            return Err(Error::Routing { op, what });
        }
        let len = w.values.len();
        check_len(op, "src", offset.saturating_add(len), src.len())?;
        self.launch(Launch {
            module: "linear",
            kernel: "linear_round",
            grid: [extent(op, "blocks", len.div_ceil(8 * THREADS as usize))?, 1, 1],
            block: [THREADS, 1, 1],
            shared: 0,
            args: &[src.arg_at(offset), w.values.arg(), (len as u64).into()],
        })
    }

    fn refresh_vector(
        &self,
        dst: &mut GpuBuf<D, f32>,
        src: &GpuBuf<D, f32>,
        offset: usize,
    ) -> Result<()> {
        let len = dst.len();
        check_len("refresh_vector", "src", offset.saturating_add(len), src.len())?;
        self.copy((dst, 0), (src, offset), len)
    }

    fn linear_weight_gradient(&self, args: WeightGradient<'_, Self>) -> Result<()> {
        args.check()?;
        let op = "linear_weight_gradient";
        let WeightGradient { shape, x, dy, rows, grads, weight_offset, bias_offset } = args;
        let (rows, outs) = (extent(op, "rows", rows)?, extent(op, "n", shape.out_dim)?);
        let ins = extent(op, "d", shape.in_dim)?;
        // One column of blocks at least, so that db has an owner where d is zero.
        let tiles = |side: u32| [blocks(ins, side).max(1), blocks(outs, side), 1];
        let [across, down, _] = tiles(128);
        let large = u64::from(across) * u64::from(down) >= ENOUGH_TILES;
        let (kernel, side, threads) =
            if large { ("linear_gradient_128", 128, 256) } else { ("linear_gradient_64", 64, 128) };
        if rows == 0 {
            return Ok(());
        }
        self.launch(Launch {
            module: "linear",
            kernel,
            grid: tiles(side),
            block: [threads, 1, 1],
            shared: STAGES * STAGE_ROWS * 2 * side * 2,
            args: &[
                window(&dy),
                extent(op, "stride", dy.stride)?.into(),
                window(&x),
                extent(op, "stride", x.stride)?.into(),
                grads.arg_at(weight_offset),
                bias_offset.map_or(Arg::Pointer(0), |at| grads.arg_at(at)),
                rows.into(),
                outs.into(),
                ins.into(),
            ],
        })
    }
}

/// `dst [columns, rows] = src [rows, columns]` transposed, in squares that stay in the cache.
fn transpose((rows, columns): (usize, usize), src: &[f32], dst: &mut [f32]) {
    const SIDE: usize = 32;
    for row in (0..rows).step_by(SIDE) {
        for column in (0..columns).step_by(SIDE) {
            for c in column..columns.min(column + SIDE) {
                for r in row..rows.min(row + SIDE) {
                    dst[c * rows + r] = src[r * columns + c];
                }
            }
        }
    }
}
