//! Head and cross-entropy, all logits of a row at once.

use super::Naive;
use kernels::error::{Error, Result};
use kernels::linear::Linear;
use kernels::loss::{HeadLoss, Loss};

impl Loss for Naive {
    fn head_loss_workspace(&self, _rows: usize, _dim: usize, _vocab: usize) -> usize {
        0
    }

    fn head_loss(&self, a: HeadLoss<'_, Self>) -> Result<()> {
        let shape = self.shape(a.head);
        a.check(shape.in_dim, 0)?;
        let mut dx = a.dx;
        for row in 0..a.rows {
            let y = a.targets.get(row) as usize;
            if y >= shape.out_dim {
                return Err(Error::Routing { op: "head_loss", what: format!("row {row}") });
            }
            let x = |i| a.x.buf.at(a.x.start + row * a.x.stride + i);
            let logits: Vec<f64> = (0..shape.out_dim)
                .map(|v| (0..shape.in_dim).map(|i| x(i) * a.head.at(i, v)).sum())
                .collect();
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = top + logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
            a.losses.put(row, lse - logits[y]);
            let Some(dx) = dx.as_mut() else { continue };
            for i in 0..shape.in_dim {
                let mean: f64 =
                    logits.iter().enumerate().map(|(v, l)| (l - lse).exp() * a.head.at(i, v)).sum();
                let gradient = a.weights.at(row) * (mean - a.head.at(i, y));
                dx.buf.put(dx.start + row * dx.stride + i, gradient);
            }
        }
        Ok(())
    }
}
