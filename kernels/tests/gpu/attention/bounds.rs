//! How far the kernels may be from the truth, element by element, derived from what they round.
//!
//! `P`, `dS` and results are rounded to `bf16`, everything else is `f32` arithmetic on `bf16` inputs: a product
//! over the head width is off by `e · EPS` of the sum of its absolute terms, a sum over `n` keys or queries by
//! `n · EPS`, and `2^x` by what its argument is off. Start at [`bounds`].

use crate::attention_case::Case;
use crate::tolerance::EPS;

/// Largest relative error of a rounding to `bf16`, whose numbers have eight bits: 2^-8.
const ROUNDING: f64 = 1.0 / 256.0;

/// How far off one element may be: at most, and by the variance of independent roundings.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Off {
    pub(super) most: f64,
    pub(super) variance: f64,
}

/// The variance of a rounding to `bf16`: an error of `ROUNDING · |x|` at most, all alike.
fn variance(x: f64) -> f64 {
    (ROUNDING * x).powi(2) / 3.0
}

impl Off {
    fn add(&mut self, most: f64, variance: f64) {
        self.most += most;
        self.variance += variance;
    }

    /// With the result's own rounding on top.
    fn rounded(self, value: f64) -> Self {
        Self {
            most: self.most * (1.0 + ROUNDING) + ROUNDING * value.abs() + 1e-30,
            variance: self.variance + variance(value) + 1e-60,
        }
    }
}

/// Of each element of the outputs.
pub(super) struct Bounds {
    pub(super) out: Vec<Off>,
    pub(super) lse: Vec<Off>,
    pub(super) dq: Vec<Off>,
    pub(super) dk: Vec<Off>,
    pub(super) dv: Vec<Off>,
}

/// One query and head against its keys, in `f64`.
struct Row<'a> {
    q: &'a [f32],
    dout: &'a [f32],
    /// First elements of the keys' rows of this head.
    keys: Vec<usize>,
    p: Vec<f64>,
    lse: f64,
    /// Relative error of a `P` before it is rounded to `bf16`.
    eta: f64,
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn dot_abs(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a).abs() * f64::from(*b).abs()).sum()
}

impl<'a> Row<'a> {
    fn new(case: &'a Case, q_at: usize, keys: Vec<usize>) -> Self {
        let (e, scale) = (case.heads.head_dim, f64::from(case.heads.scale));
        let (q, dout) = (&case.q[q_at..][..e], &case.dout[q_at..][..e]);
        let scores: Vec<f64> = keys.iter().map(|k| scale * dot(q, &case.k[*k..][..e])).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln();
        let p = scores.iter().map(|s| (s - lse).exp()).collect();
        let size = keys.iter().map(|k| scale * dot_abs(q, &case.k[*k..][..e]));
        let size = size.fold(0.0, f64::max);
        // Score and maximum; `2^x` itself is good to 2^-22.
        let eta = 2.0 * (e as f64 + 6.0) * EPS * size + 4.0 * EPS;
        Self { q, dout, keys, p, lse, eta }
    }

    /// `Σ p · v` of column `c`, the sum of its absolute terms, and how far off the output is.
    fn value(&self, case: &Case, c: usize, per_term: f64) -> (f64, f64, Off) {
        let (mut sum, mut size, mut off) = (0.0, 0.0, Off::default());
        for (k, p) in self.keys.iter().zip(&self.p) {
            let x = p * f64::from(case.v[k + c]);
            sum += x;
            size += x.abs();
            off.add(ROUNDING * x.abs(), variance(x));
        }
        off.add(per_term * size, (per_term * size).powi(2));
        (sum, size, off.rounded(sum))
    }
}

/// The bounds of a case whose inputs are `bf16`.
pub(super) fn bounds(case: &Case) -> Bounds {
    let (h, e) = (case.heads.heads, case.heads.head_dim);
    let (per, kd) = (h / case.heads.kv_heads, case.heads.kv_dim());
    let none = |len| vec![Off::default(); len];
    let (q, k) = (case.q.len(), case.k.len());
    let mut b = Bounds { out: none(q), lse: none(q / e), dq: none(q), dk: none(k), dv: none(k) };
    let (mut dk, mut dv) = (vec![0.0; case.k.len()], vec![0.0; case.k.len()]);
    for s in &case.sequences {
        for row in s.q_start as usize..(s.q_start + s.q_len) as usize {
            for head in 0..h {
                let prefix = s.p_start..s.p_start + s.p_len;
                let own = s.k_start..s.k_start + case.limits[row];
                let keys = prefix.chain(own).map(|k| k as usize * kd + head / per * e).collect();
                let at = (row * h + head) * e;
                add_row(
                    case,
                    &Row::new(case, at, keys),
                    (at, row * h + head),
                    &mut b,
                    &mut dk,
                    &mut dv,
                );
            }
        }
    }
    for (bounds, values) in [(&mut b.dk, &dk), (&mut b.dv, &dv)] {
        for (bound, value) in bounds.iter_mut().zip(values) {
            *bound = bound.rounded(*value);
        }
    }
    b
}

/// Adds one query and head; `dk`, `dv` gather the values themselves.
fn add_row(
    case: &Case,
    r: &Row<'_>,
    (at, pair): (usize, usize),
    b: &mut Bounds,
    dk: &mut [f64],
    dv: &mut [f64],
) {
    let (e, n) = (case.heads.head_dim, (r.keys.len() as f64 + 24.0) * EPS);
    let (scale, chain) = (f64::from(case.heads.scale), (e as f64 + 4.0) * EPS);
    b.lse[pair].most = r.eta + n + 8.0 * EPS * r.lse.abs();
    b.lse[pair].variance = b.lse[pair].most.powi(2);
    let (mut delta, mut delta_off) = (0.0, Off::default()); // D, whose O is bf16
    for c in 0..e {
        let (value, size, off) = r.value(case, c, 2.0 * r.eta + n);
        b.out[at + c] = off;
        let dout = f64::from(r.dout[c]);
        delta += dout * value;
        delta_off.add(dout.abs() * (off.most + chain * size), dout.powi(2) * off.variance);
    }
    // The log-sum-exp takes the place of maximum and total.
    let eta = 2.0 * r.eta + b.lse[pair].most;
    let queries = (case.rows().0 * case.heads.heads) as f64 * EPS;
    let mut dq = vec![(0.0, Off::default(), 0.0); e]; // value, without D's error, what that is multiplied by
    for (key, p) in r.keys.iter().zip(&r.p) {
        let value = &case.v[*key..][..e];
        let product = chain * dot_abs(r.dout, value);
        let ds = p * (dot(r.dout, value) - delta);
        let fine = p * product + (eta + 4.0 * EPS) * (ds.abs() + p * (product + delta_off.most));
        let own = variance(ds) + fine.powi(2);
        let most = fine + p * delta_off.most + ROUNDING * (ds.abs() + p * delta_off.most);
        for c in 0..e {
            let (k, q) = (scale * f64::from(case.k[key + c]), scale * f64::from(r.q[c]));
            dq[c].0 += ds * k;
            dq[c].1.add(k.abs() * (most + n * ds.abs()), k.powi(2) * own);
            dq[c].2 += p * k;
            dk[key + c] += ds * q;
            let all = own + p.powi(2) * delta_off.variance;
            b.dk[key + c].add(q.abs() * (most + queries * ds.abs()), q.powi(2) * all);
            let dv_part = p * f64::from(r.dout[c]);
            dv[key + c] += dv_part;
            let fine = (eta + queries) * dv_part;
            b.dv[key + c]
                .add(ROUNDING * dv_part.abs() + fine.abs(), variance(dv_part) + fine.powi(2));
        }
    }
    for (c, (value, mut off, of_delta)) in dq.into_iter().enumerate() {
        off.variance += of_delta.powi(2) * delta_off.variance;
        b.dq[at + c] = off.rounded(value);
    }
}
