//! Attention, one query, head and key at a time, the whole softmax at once.

use super::{Naive, NaiveBuf};
use kernels::Mat;
use kernels::attention::{Attention, Backward, Forward, Heads, QueryGrads, Routing, Sequence};
use kernels::error::Result;

/// Rows of the keys that query `row` of sequence `s` sees, in order.
fn seen(s: &Sequence, limit: u32) -> impl Iterator<Item = usize> + use<> {
    let prefix = s.p_start..s.p_start + s.p_len;
    prefix.chain(s.k_start..s.k_start + limit).map(|r| r as usize)
}

/// `Σ x[i, head]·y[j, head']` over the head's width.
fn dot(
    e: usize,
    (x, i, hx): (Mat<'_, NaiveBuf<f32>>, usize, usize),
    (y, j, hy): (Mat<'_, NaiveBuf<f32>>, usize, usize),
) -> f64 {
    let x_at = |c| x.buf.at(x.start + i * x.stride + hx * e + c);
    (0..e).map(|c| x_at(c) * y.buf.at(y.start + j * y.stride + hy * e + c)).sum()
}

/// Calls `f` with sequence, query row, query head and its key/value head.
fn each(
    routing: Routing<'_, Naive>,
    heads: Heads,
    mut f: impl FnMut(Sequence, usize, usize, usize),
) {
    for i in 0..routing.num_sequences {
        let s = routing.sequences.get(i);
        for row in s.q_start..s.q_start + s.q_len {
            for head in 0..heads.heads {
                f(s, row as usize, head, head / (heads.heads / heads.kv_heads));
            }
        }
    }
}

impl Attention for Naive {
    fn attention_forward(&self, a: Forward<'_, Self>) -> Result<()> {
        a.check()?;
        let (e, scale) = (a.heads.head_dim, f64::from(a.heads.scale));
        for row in 0..a.q_rows {
            for c in 0..a.heads.q_dim() {
                a.out.buf.put(a.out.start + row * a.out.stride + c, 0.0);
            }
            for head in 0..a.heads.heads {
                a.lse.put(row * a.heads.heads + head, 0.0);
            }
        }
        each(a.routing, a.heads, |s, row, head, kv| {
            let keys = || seen(&s, a.routing.limits.get(row));
            let scores: Vec<f64> =
                keys().map(|key| scale * dot(e, (a.q, row, head), (a.k, key, kv))).collect();
            let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|x| (x - maximum).exp()).sum();
            let lse = maximum + total.ln();
            a.lse.put(row * a.heads.heads + head, lse);
            for c in 0..e {
                let v = |key| a.v.buf.at(a.v.start + key * a.v.stride + kv * e + c);
                let sum: f64 = keys().zip(&scores).map(|(key, x)| (x - lse).exp() * v(key)).sum();
                a.out.buf.put(a.out.start + row * a.out.stride + head * e + c, sum);
            }
        });
        Ok(())
    }

    fn attention_backward(&self, a: Backward<'_, Self>) -> Result<()> {
        a.check()?;
        let (e, scale, kv_dim) = (a.heads.head_dim, f64::from(a.heads.scale), a.heads.kv_dim());
        let mut dq = vec![0.0; a.q_rows * a.heads.q_dim()];
        let mut dk = vec![0.0; a.k_rows * kv_dim];
        let mut dv = vec![0.0; a.k_rows * kv_dim];
        each(a.routing, a.heads, |s, row, head, kv| {
            let keys = || seen(&s, a.routing.limits.get(row));
            let scores: Vec<f64> =
                keys().map(|key| scale * dot(e, (a.q, row, head), (a.k, key, kv))).collect();
            let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = maximum + scores.iter().map(|x| (x - maximum).exp()).sum::<f64>().ln();
            let p: Vec<f64> = scores.iter().map(|x| (x - lse).exp()).collect();
            let dp: Vec<f64> =
                keys().map(|key| dot(e, (a.dout, row, head), (a.v, key, kv))).collect();
            let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for (i, key) in keys().enumerate() {
                let ds = p[i] * (dp[i] - delta) * scale;
                for c in 0..e {
                    let at = |x: Mat<'_, NaiveBuf<f32>>, r: usize, h: usize| {
                        x.buf.at(x.start + r * x.stride + h * e + c)
                    };
                    dq[row * a.heads.q_dim() + head * e + c] += ds * at(a.k, key, kv);
                    dk[key * kv_dim + kv * e + c] += ds * at(a.q, row, head);
                    dv[key * kv_dim + kv * e + c] += p[i] * at(a.dout, row, head);
                }
            }
        });
        let mut g = a.grads;
        for (i, x) in dq.iter().enumerate() {
            let (row, c) = (i / a.heads.q_dim(), i % a.heads.q_dim());
            match &mut g.dq {
                QueryGrads::Beside(column) => {
                    g.rows.buf.put(g.rows.start + row * g.rows.stride + *column + c, *x);
                }
                QueryGrads::Apart(dq) => dq.buf.put(dq.start + row * dq.stride + c, *x),
            }
        }
        for (i, (dk, dv)) in dk.iter().zip(&dv).enumerate() {
            let (row, c) = (i / kv_dim, i % kv_dim);
            let at = g.rows.start + row * g.rows.stride + c;
            g.rows.buf.put(at + g.dk, *dk);
            g.rows.buf.put(at + g.dv, *dv);
        }
        Ok(())
    }
}
