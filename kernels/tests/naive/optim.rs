//! AdamW, one slot and one element at a time, in `f64`.

use super::{Naive, round};
use kernels::backend::Buffer;
use kernels::error::{Error, Result};
use kernels::optim::{AdamW, Optim};

impl Optim for Naive {
    fn adamw(&self, a: AdamW<'_, Self>) -> Result<()> {
        a.check()?;
        for i in 0..a.num_updates {
            let u = a.updates.get(i);
            let begin = usize::try_from(u.offset).unwrap_or(usize::MAX / 2);
            let end = begin + u.len as usize;
            if end > a.params.len() || u.step == 0 {
                return Err(Error::Routing { op: "adamw", what: format!("update {i}") });
            }
            let norm = (begin..end).map(|k| a.grads.at(k).powi(2)).sum::<f64>().sqrt();
            a.norms.set(i, round(norm));
            let f = |x: f32| f64::from(x);
            let clip =
                if u.clip_norm > 0.0 { (f(u.clip_norm) / (norm + 1e-6)).min(1.0) } else { 1.0 };
            let (b1, b2, t) = (f(u.beta1), f(u.beta2), f64::from(u.step));
            for k in begin..end {
                let g = a.grads.at(k) * clip;
                a.grads.put(k, 0.0);
                if !round(norm).is_finite() {
                    continue;
                }
                let p = a.params.at(k) * (1.0 - f(u.learning_rate) * f(u.weight_decay));
                let m = b1 * a.m.at(k) + (1.0 - b1) * g;
                let v = b2 * a.v.at(k) + (1.0 - b2) * g * g;
                a.m.put(k, m);
                a.v.put(k, v);
                let denominator = v.sqrt() / (1.0 - b2.powf(t)).sqrt() + f(u.eps);
                a.params.put(k, p - f(u.learning_rate) / (1.0 - b1.powf(t)) * m / denominator);
            }
        }
        Ok(())
    }
}
