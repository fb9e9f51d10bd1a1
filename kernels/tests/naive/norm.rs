//! Norms, one row and one element at a time.

use super::{Naive, NaiveBuf};
use kernels::Mat;
use kernels::error::Result;
use kernels::norm::{Backward, Forward, Norm, ParamGradient, Params};

/// `mean` (zero for RMSNorm) and `1 / sqrt(mean((x - mean)²) + eps)` of row `i`.
fn statistics(p: Params<'_, Naive>, x: Mat<'_, NaiveBuf<f32>>, i: usize, dim: usize) -> (f64, f64) {
    row_statistics((p.bias.is_some(), p.eps), x, i, dim)
}

fn row_statistics(
    (centred, eps): (bool, f32),
    x: Mat<'_, NaiveBuf<f32>>,
    i: usize,
    dim: usize,
) -> (f64, f64) {
    let at = |c| x.buf.at(x.start + i * x.stride + c);
    let d = dim as f64;
    let mean = if centred { (0..dim).map(at).sum::<f64>() / d } else { 0.0 };
    let variance = (0..dim).map(|c| (at(c) - mean).powi(2)).sum::<f64>() / d;
    (mean, 1.0 / (variance + f64::from(eps)).sqrt())
}

impl Norm for Naive {
    fn norm_forward(&self, a: Forward<'_, Self>) -> Result<()> {
        a.check()?;
        for i in 0..a.rows {
            let (mean, r) = statistics(a.params, a.x, i, a.dim);
            for c in 0..a.dim {
                let x = a.x.buf.at(a.x.start + i * a.x.stride + c);
                let bias = a.params.bias.map_or(0.0, |b| b.at(c));
                let y = a.params.weight.at(c) * (x - mean) * r + bias;
                a.y.buf.put(a.y.start + i * a.y.stride + c, y);
            }
        }
        Ok(())
    }

    fn norm_backward(&self, a: Backward<'_, Self>) -> Result<()> {
        a.check()?;
        let d = a.dim as f64;
        for i in 0..a.rows {
            let (mean, r) = statistics(a.params, a.x, i, a.dim);
            let hat = |c| (a.x.buf.at(a.x.start + i * a.x.stride + c) - mean) * r;
            let g = |c| a.params.weight.at(c) * a.dy.buf.at(a.dy.start + i * a.dy.stride + c);
            let centred = a.params.bias.is_some();
            let mean_g = if centred { (0..a.dim).map(g).sum::<f64>() / d } else { 0.0 };
            let along = (0..a.dim).map(|c| g(c) * hat(c)).sum::<f64>() / d;
            for c in 0..a.dim {
                let dx = r * (g(c) - mean_g - hat(c) * along);
                a.dx.buf.add(a.dx.start + i * a.dx.stride + c, dx);
            }
        }
        Ok(())
    }

    fn norm_param_gradient(&self, a: ParamGradient<'_, Self>) -> Result<()> {
        a.check()?;
        let row = |t| row_statistics((a.centred, a.eps), a.x, t, a.dim);
        let rows: Vec<(f64, f64)> = (0..a.rows).map(row).collect();
        for c in 0..a.dim {
            let dy = |t: usize| a.dy.buf.at(a.dy.start + t * a.dy.stride + c);
            let hat =
                |t: usize| (a.x.buf.at(a.x.start + t * a.x.stride + c) - rows[t].0) * rows[t].1;
            a.grads.add(a.weight_offset + c, (0..a.rows).map(|t| dy(t) * hat(t)).sum());
            if let Some(at) = a.bias_offset {
                a.grads.add(at + c, (0..a.rows).map(dy).sum());
            }
        }
        Ok(())
    }
}
