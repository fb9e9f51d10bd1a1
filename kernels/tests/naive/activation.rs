//! Activations, one element at a time.

use super::Naive;
use kernels::activation::{Activation, Backward, Forward, Kind};
use kernels::error::Result;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Argument of `tanh` and its slope.
fn argument(u: f64) -> (f64, f64) {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    (root * (u + 0.044_715 * u.powi(3)), root * (1.0 + 3.0 * 0.044_715 * u * u))
}

impl Activation for Naive {
    fn activation_forward(&self, a: Forward<'_, Self>) -> Result<()> {
        a.check()?;
        for i in 0..a.rows {
            for c in 0..a.dim {
                let x = a.x.buf.at(a.x.start + i * a.x.stride + c);
                let h = match a.kind {
                    Kind::SwiGlu => {
                        x * sigmoid(x) * a.x.buf.at(a.x.start + i * a.x.stride + a.dim + c)
                    }
                    Kind::GeluNew => 0.5 * x * (1.0 + argument(x).0.tanh()),
                };
                a.h.buf.put(a.h.start + i * a.h.stride + c, h);
            }
        }
        Ok(())
    }

    fn activation_backward(&self, a: Backward<'_, Self>) -> Result<()> {
        a.check()?;
        for i in 0..a.rows {
            for c in 0..a.dim {
                let x = a.x.buf.at(a.x.start + i * a.x.stride + c);
                let dh = a.dh.buf.at(a.dh.start + i * a.dh.stride + c);
                let to = a.dx.start + i * a.dx.stride + c;
                match a.kind {
                    Kind::SwiGlu => {
                        let u = a.x.buf.at(a.x.start + i * a.x.stride + a.dim + c);
                        let s = sigmoid(x);
                        a.dx.buf.put(to, dh * u * s * (1.0 + x * (1.0 - s)));
                        a.dx.buf.put(to + a.dim, dh * x * s);
                    }
                    Kind::GeluNew => {
                        let (z, slope) = argument(x);
                        let t = z.tanh();
                        let dx = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope;
                        a.dx.buf.put(to, dh * dx);
                    }
                }
            }
        }
        Ok(())
    }
}
