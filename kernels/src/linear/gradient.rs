//! Weights that train, on the host's processors.

use super::cpu::CpuWeight;
use super::tile::PANEL;
use super::{Shape, Trainable, WeightGradient};
use crate::cpu::{Cpu, CpuBuf};
use crate::error::{Error, Result, check_len};
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
        forward.par_chunks_mut(d.max(1)).enumerate().for_each(|(panel, rows)| {
            for (i, values) in rows.iter_mut().enumerate() {
                for (o, value) in (panel * PANEL..n).zip(values) {
                    *value = src[o * d + i];
                }
            }
        });
        backward.par_chunks_mut(n.max(1)).enumerate().for_each(|(panel, rows)| {
            for (o, values) in rows.iter_mut().enumerate() {
                let from =
                    &src[o * d + panel * PANEL..(o * d + (panel + 1) * PANEL).min((o + 1) * d)];
                values[..from.len()].copy_from_slice(from);
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
        let dw = &mut grads[args.weight_offset..][..n * d];
        dw.par_chunks_mut(d.max(1)).enumerate().for_each(|(o, dw)| {
            for row in 0..rows {
                let x = &x.buf[x.start + row * x.stride..][..d];
                let dy = dy.buf[dy.start + row * dy.stride + o];
                dw.iter_mut().zip(x).for_each(|(dw, x)| *dw = dy.mul_add(*x, *dw));
            }
        });
        if let Some(at) = args.bias_offset {
            for row in 0..rows {
                let dy = &dy.buf[dy.start + row * dy.stride..][..n];
                grads[at..][..n].iter_mut().zip(dy).for_each(|(db, dy)| *db += dy);
            }
        }
        Ok(())
    }
}
