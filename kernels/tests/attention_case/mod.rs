//! Problems for the tests of attention: groups with prefixes, queries that are all or only the last, and
//! what both directions give on any backend.
//!
//! Owns [`Case`] and the yardstick of its exactness. Start at [`Case::new`], then [`run`].
#![allow(clippy::unwrap_used, reason = "a test panics when wrong; its data is small and exact")]
#![allow(unreachable_pub, reason = "seen by one test binary, exported by none")]

use crate::naive::{Naive, download, numbers, upload};
use crate::tolerance::no_worse;
use kernels::Cpu;
use kernels::attention::{
    Attention, Backward, Forward, Grads, Heads, QueryGrads, Routing, Sequence,
};
use kernels::backend::{Backend, Mat, MatMut};

/// One problem; `q`, `k`, `v` are rows of their own buffers.
#[derive(Clone)]
pub struct Case {
    pub heads: Heads,
    pub sequences: Vec<Sequence>,
    pub groups: Vec<u32>,
    pub limits: Vec<u32>,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub dout: Vec<f32>,
}

#[derive(Debug)]
pub struct Output {
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
    pub dq: Vec<f32>,
    pub dk: Vec<f32>,
    pub dv: Vec<f32>,
}

impl Output {
    pub fn parts(&self) -> [(&'static str, &[f32]); 5] {
        [
            ("out", &self.out),
            ("lse", &self.lse),
            ("dq", &self.dq),
            ("dk", &self.dk),
            ("dv", &self.dv),
        ]
    }
}

pub fn heads(h: usize, g: usize, e: usize) -> Heads {
    Heads { heads: h, kv_heads: g, head_dim: e, scale: round((e as f64).powf(-0.5)) }
}

pub fn round(x: f64) -> f32 {
    crate::naive::round(x)
}

/// A group: the length of its prefix, then `(own keys, supervised last queries)` of each sequence.
pub type Group<'a> = (u32, &'a [(u32, u32)]);

impl Case {
    /// Packs groups; with `last`, only the last queries of a sequence are there and the prefix has none.
    pub fn new(heads: Heads, groups: &[Group<'_>], last: bool) -> Self {
        let (mut sequences, mut starts, mut limits) = (Vec::new(), vec![0], Vec::new());
        let (mut q_end, mut k_end) = (0, 0);
        for &(prefix, members) in groups {
            let p_start = k_end;
            let first = (prefix, if last { 0 } else { prefix });
            let own = std::iter::once(&first);
            for (i, &(k_len, supervised)) in own.chain(members).enumerate() {
                let q_len = if last { supervised } else { k_len };
                let p_len = if i == 0 { 0 } else { prefix };
                let p_start = if p_len == 0 { 0 } else { p_start };
                sequences.push(Sequence {
                    q_start: q_end,
                    q_len,
                    k_start: k_end,
                    k_len,
                    p_start,
                    p_len,
                });
                limits.extend(k_len - q_len + 1..=k_len);
                q_end += q_len;
                k_end += k_len;
            }
            starts.push(u32::try_from(sequences.len()).unwrap());
        }
        let (q_rows, k_rows) = (q_end as usize, k_end as usize);
        Self {
            heads,
            sequences,
            groups: starts,
            limits,
            q: numbers(11, q_rows * heads.q_dim()).iter().map(|x| 2.0 * x).collect(),
            k: numbers(12, k_rows * heads.kv_dim()).iter().map(|x| 2.0 * x).collect(),
            v: numbers(13, k_rows * heads.kv_dim()),
            dout: numbers(14, q_rows * heads.q_dim()),
        }
    }

    pub fn rows(&self) -> (usize, usize) {
        (self.q.len() / self.heads.q_dim(), self.k.len() / self.heads.kv_dim())
    }

    pub fn queries_are_keys(&self) -> bool {
        self.sequences.iter().all(|s| (s.q_start, s.q_len) == (s.k_start, s.k_len))
    }

    /// The group alone, its rows moved to the front.
    pub fn only(&self, group: usize) -> (Self, std::ops::Range<usize>, std::ops::Range<usize>) {
        let range = self.groups[group] as usize..self.groups[group + 1] as usize;
        let mut sequences = self.sequences[range].to_vec();
        let (q0, k0) = (sequences[0].q_start, sequences[0].k_start);
        let last = sequences[sequences.len() - 1];
        for s in &mut sequences {
            s.q_start -= q0;
            s.k_start -= k0;
            s.p_start = s.p_start.saturating_sub(k0);
        }
        let q = q0 as usize..(last.q_start + last.q_len) as usize;
        let k = k0 as usize..(last.k_start + last.k_len) as usize;
        let cut = |x: &[f32], r: &std::ops::Range<usize>, width: usize| {
            x[r.start * width..r.end * width].to_vec()
        };
        let (qd, kd) = (self.heads.q_dim(), self.heads.kv_dim());
        let case = Self {
            heads: self.heads,
            groups: vec![0, u32::try_from(sequences.len()).unwrap()],
            sequences,
            limits: self.limits[q.clone()].to_vec(),
            q: cut(&self.q, &q, qd),
            k: cut(&self.k, &k, kd),
            v: cut(&self.v, &k, kd),
            dout: cut(&self.dout, &q, qd),
        };
        (case, q, k)
    }
}

/// Runs both directions. `K` and `V` lie side by side in rows with a gap, and so do their gradients and,
/// unless `apart` or the queries are other rows, `dQ`; all outputs begin as NaN, and gaps keep theirs.
pub fn run<B: Attention + Backend<Act = f32>>(b: &B, case: &Case, apart: bool) -> Output {
    let (heads, (q_rows, k_rows)) = (case.heads, case.rows());
    let (qd, kd) = (heads.q_dim(), heads.kv_dim());
    Sequence::check_all(&case.sequences, &case.groups, &case.limits, (q_rows, k_rows)).unwrap();
    let (sequences, groups, limits) =
        (upload(b, &case.sequences), upload(b, &case.groups), upload(b, &case.limits));
    let routing = Routing {
        sequences: &sequences,
        num_sequences: case.sequences.len(),
        groups: &groups,
        num_groups: case.groups.len() - 1,
        limits: &limits,
    };
    let stride = 2 * kd + 5;
    let mut kv = vec![f32::NAN; k_rows * stride];
    for row in 0..k_rows {
        kv[row * stride..][..kd].copy_from_slice(&case.k[row * kd..][..kd]);
        kv[row * stride + kd..][..kd].copy_from_slice(&case.v[row * kd..][..kd]);
    }
    let (q, kv, dout) = (upload(b, &case.q), upload(b, &kv), upload(b, &case.dout));
    let mut out = upload(b, &vec![f32::NAN; q_rows * qd]);
    let mut lse = upload(b, &vec![f32::NAN; q_rows * heads.heads]);
    let (q, dout) = (Mat::new(&q, qd), Mat::new(&dout, qd));
    let (k, v) = (Mat::at(&kv, 0, stride), Mat::at(&kv, kd, stride));
    let to = MatMut::new(&mut out, qd);
    b.attention_forward(Forward {
        heads,
        routing,
        q,
        k,
        v,
        out: to,
        lse: &mut lse,
        q_rows,
        k_rows,
    })
    .unwrap();
    let beside = !apart && case.queries_are_keys();
    let mut apart = upload(b, &vec![f32::NAN; q_rows * qd]);
    // Beside: dV, two, dQ, one, dK, four. Apart: one, dK, dV, four.
    let (dk, dv, dq, stride) =
        if beside { (kd + qd + 3, 0, kd + 2, 2 * kd + qd + 7) } else { (1, 1 + kd, 0, 2 * kd + 5) };
    let start = 3;
    let mut rows = upload(b, &vec![f32::NAN; start + k_rows * stride]);
    let grads = Grads {
        rows: MatMut { buf: &mut rows, start, stride },
        dq: if beside {
            QueryGrads::Beside(dq)
        } else {
            QueryGrads::Apart(MatMut::new(&mut apart, qd))
        },
        dk,
        dv,
    };
    let from = Mat::new(&out, qd);
    let args =
        Backward { heads, routing, q, k, v, out: from, lse: &lse, dout, grads, q_rows, k_rows };
    b.attention_backward(args).unwrap();
    let rows = download(b, &rows);
    let pick = |column: usize, width: usize| -> Vec<f32> {
        let rows = rows[start..].chunks_exact(stride.max(1));
        rows.flat_map(|row| &row[column..][..width]).copied().collect()
    };
    let of_dq = if beside { dq..dq + qd } else { 0..0 };
    for (i, x) in rows[start..].iter().enumerate() {
        let c = i % stride;
        let ours = [dk..dk + kd, dv..dv + kd, of_dq.clone()].iter().any(|r| r.contains(&c));
        assert!(ours || x.is_nan(), "written beside the gradients, column {c}");
    }
    Output {
        out: download(b, &out),
        lse: download(b, &lse),
        dq: if beside { pick(dq, qd) } else { download(b, &apart) },
        dk: pick(dk, kd),
        dv: pick(dv, kd),
    }
}

/// The same in `f64` arithmetic that a careful `f32` program would do: naive with every product and
/// sum rounded. Its error is the yardstick of [`no_worse`].
pub fn rounded_naive(case: &Case) -> Output {
    let (h, e, per) =
        (case.heads.heads, case.heads.head_dim, case.heads.heads / case.heads.kv_heads);
    let (qd, kd) = (case.heads.q_dim(), case.heads.kv_dim());
    let zeros = |x: &[f32]| vec![0.0f32; x.len()];
    let (mut out, mut dq) = (zeros(&case.q), zeros(&case.q));
    let (mut dk, mut dv) = (zeros(&case.k), zeros(&case.v));
    let mut lse = vec![0.0f32; case.rows().0 * h];
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0.0f32, |s, (a, b)| s + a * b);
    for s in &case.sequences {
        for row in s.q_start as usize..(s.q_start + s.q_len) as usize {
            let prefix = s.p_start..s.p_start + s.p_len;
            let keys: Vec<usize> = prefix
                .chain(s.k_start..s.k_start + case.limits[row])
                .map(|key| key as usize)
                .collect();
            for head in 0..h {
                let q_at = row * qd + head * e..row * qd + head * e + e;
                let at = |key: usize| key * kd + head / per * e..key * kd + head / per * e + e;
                let (q, d) = (&case.q[q_at.clone()], &case.dout[q_at.clone()]);
                let scores: Vec<f32> =
                    keys.iter().map(|k| dot(q, &case.k[at(*k)]) * case.heads.scale).collect();
                let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let total = scores.iter().fold(0.0f32, |s, x| s + (x - top).exp());
                lse[row * h + head] = top + total.ln();
                let p: Vec<f32> = scores.iter().map(|x| (x - top).exp() / total).collect();
                let dp: Vec<f32> = keys.iter().map(|k| dot(d, &case.v[at(*k)])).collect();
                let delta = dot(&p, &dp);
                for (i, key) in keys.iter().enumerate() {
                    let ds = p[i] * (dp[i] - delta) * case.heads.scale;
                    for c in 0..e {
                        out[q_at.start + c] += p[i] * case.v[at(*key).start + c];
                        dq[q_at.start + c] += ds * case.k[at(*key).start + c];
                        dk[at(*key).start + c] += ds * q[c];
                        dv[at(*key).start + c] += p[i] * d[c];
                    }
                }
            }
        }
    }
    Output { out, lse, dq, dk, dv }
}

pub fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// Ours is at most twice (forward) or thrice (backward) as far from `f64` as plain `f32` loops are.
pub fn judge(case: &Case, label: &str) {
    let (truth, plain) = (run(&Naive, case, false), rounded_naive(case));
    for apart in [false, true] {
        let ours = run(&Cpu, case, apart);
        let triples = ours.parts().into_iter().zip(plain.parts()).zip(truth.parts());
        for (((what, ours), (_, plain)), (_, truth)) in triples {
            let factor = if what == "out" || what == "lse" { 2.0 } else { 3.0 };
            no_worse(&format!("{label} {what}"), factor, ours, plain, &widen(truth));
        }
    }
}
