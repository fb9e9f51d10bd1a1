//! Means over ranges of rows, one element at a time.

use super::Naive;
use kernels::error::{Error, Result};
use kernels::pool::{Mean, MeanBackward, Pool};

fn outside(op: &'static str, range: usize) -> Result<()> {
    Err(Error::Routing { op, what: format!("range {range}") })
}

impl Pool for Naive {
    fn pool_mean(&self, a: Mean<'_, Self>) -> Result<()> {
        a.check()?;
        for j in 0..a.num_ranges {
            let (start, len) = (a.ranges.get(j).start as usize, a.ranges.get(j).len as usize);
            if start + len > a.rows {
                return outside("pool_mean", j);
            }
            for c in 0..a.dim {
                let x = |row| a.x.buf.at(a.x.start + row * a.x.stride + c);
                let sum: f64 = (start..start + len).map(x).sum();
                let mean = if len == 0 { 0.0 } else { sum / len as f64 };
                a.y.buf.put(a.y.start + j * a.y.stride + c, mean);
            }
        }
        Ok(())
    }

    fn pool_mean_backward(&self, a: MeanBackward<'_, Self>) -> Result<()> {
        a.check()?;
        let mut free = 0;
        for j in 0..a.num_ranges {
            let (start, len) = (a.ranges.get(j).start as usize, a.ranges.get(j).len as usize);
            if start < free || start + len > a.rows {
                return outside("pool_mean_backward", j);
            }
            free = start + len;
        }
        for j in 0..a.num_ranges {
            let (start, len) = (a.ranges.get(j).start as usize, a.ranges.get(j).len as usize);
            for row in start..start + len {
                for c in 0..a.dim {
                    let v = a.dy.buf.at(a.dy.start + j * a.dy.stride + c) / len as f64;
                    let to = a.dx.start + row * a.dx.stride + c;
                    a.dx.buf.put(to, if a.accumulate { a.dx.buf.at(to) + v } else { v });
                }
            }
        }
        Ok(())
    }
}
