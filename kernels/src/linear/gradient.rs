//! Weights that train, on the host's processors.
//!
//! The gradient of a weight is a product like the others, whose left factor is `dY` transposed and whose
//! `k` are the rows: tasks pack both factors as they go. The value of an element of `dW` is, on every
//! processor and for any number of threads, the chain `s = fma(dY[t, o], X[t, i], s)` from what `dW` holds
//! over `t` ascending; of `db` the chain `s = s + dY[t, o]`. Start at the `impl Trainable for Cpu`.

use super::cpu::CpuWeight;
use super::operand::{Left, Right, Rows, transpose};
use super::product::Product;
use super::tile::PANEL;
use super::{Shape, Trainable, WeightGradient};
use crate::columns;
use crate::cpu::{Cpu, CpuBuf};
use crate::error::{Error, Result, check_len};
use crate::lanes::{self, Kernel};
use pulp::{Arch, Simd};
use rayon::prelude::*;

impl Trainable for Cpu {
    fn trainable(&self, shape: Shape) -> Result<CpuWeight> {
        CpuWeight::own("trainable", shape)
    }

    fn refresh(&self, weight: &mut CpuWeight, src: &CpuBuf<f32>, offset: usize) -> Result<()> {
        let not_own = || Error::Routing {
            op: "refresh",
            what: "the weight lies in a storage that others may read".to_owned(),
        };
        let (Shape { in_dim: d, out_dim: n }, [forward, backward]) =
            weight.own_panels().ok_or_else(not_own)?;
        let end = offset.saturating_add(n * d);
        check_len("refresh", "src", end, src.len())?;
        let src = &src[offset..end];
        let rows = Rows { data: src, start: 0, stride: d };
        forward.par_chunks_mut(d.max(1)).enumerate().for_each(|(panel, values)| {
            let first = panel * PANEL;
            let from = Rows { start: first * d, ..rows };
            let size = (PANEL.min(n - first), d);
            lanes::run(Turned { from, size, dst: values.as_flattened_mut(), dst_stride: PANEL });
        });
        backward.par_chunks_mut(n.max(1)).enumerate().for_each(|(panel, values)| {
            let columns = panel * PANEL..d.min((panel + 1) * PANEL);
            for (o, values) in values.iter_mut().enumerate() {
                values[..columns.len()].copy_from_slice(rows.row(o, columns.clone()));
            }
        });
        Ok(())
    }

    fn refresh_vector(
        &self,
        dst: &mut CpuBuf<f32>,
        src: &CpuBuf<f32>,
        offset: usize,
    ) -> Result<()> {
        let end = offset.saturating_add(dst.len());
        check_len("refresh_vector", "src", end, src.len())?;
        dst.copy_from_slice(&src[offset..end]);
        Ok(())
    }

    fn linear_weight_gradient(&self, args: WeightGradient<'_, Self>) -> Result<()> {
        args.check()?;
        let WeightGradient { shape: Shape { in_dim: d, out_dim: n }, x, dy, rows, grads, .. } =
            args;
        if rows == 0 {
            return Ok(());
        }
        let dy = Rows { data: dy.buf, start: dy.start, stride: dy.stride };
        let product = Product {
            x: Left::Transposed(dy),
            w: Right::Rows(Rows { data: x.buf, start: x.start, stride: x.stride }),
            rows: n,
            k: rows,
            n: d,
            accumulate: true,
            bias: None,
            residual: None,
        };
        product.run(Arch::new(), &mut grads[args.weight_offset..], d);
        if let Some(at) = args.bias_offset {
            columns::add(dy, None, rows, &mut grads[at..at + n]);
        }
        Ok(())
    }
}

/// [`transpose`] with the best instructions.
struct Turned<'a> {
    from: Rows<'a>,
    size: (usize, usize),
    dst: &'a mut [f32],
    dst_stride: usize,
}

impl Kernel for Turned<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        if self.size.1 > 0 {
            transpose(self.from, self.size, self.dst, self.dst_stride);
        }
    }
}
