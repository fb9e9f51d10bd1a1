//! Attention by kernels that a device brings along: a plain one that keeps their contract, and holds callers to it.
//!
//! It shows that a call is right, and says nothing of the kernels of a GPU.

use crate::emulator::Emulator;
use crate::error::{Error, Result};
use crate::product::element;
use half::bf16;
use kernels::gpu::Flash;
use std::sync::atomic::Ordering;

/// A row's window: where it begins, and elements from one row to the next.
type Rows = (u64, u32);

impl Emulator {
    /// What [`Flash`] says. As FlashAttention does, rounds each `P` before its product with `V`, and divides at the end.
    pub(crate) fn attend(&self, call: &Flash) -> Result<()> {
        let wrong = |what: String| Err(Error::Flash(what));
        let Some(calls) = &self.flash else { return wrong("no such kernels".into()) };
        calls.fetch_add(1, Ordering::Relaxed);
        let Flash { heads, kv_heads, head_dim, sequences, .. } = *call;
        if !call.is_aligned() || head_dim as usize > Flash::MAX_WIDTH {
            return wrong("heads or windows that no kernel takes".into());
        }
        if sequences == 0 || sequences as usize > Flash::MAX_SEQUENCES || heads % kv_heads != 0 {
            return wrong(format!("{sequences} sequences, {heads} of {kv_heads} heads"));
        }
        let q_starts = self.starts("query starts", call.q_starts, sequences)?;
        let k_starts = self.starts("key starts", call.k_starts, sequences)?;
        for (q, k) in q_starts.windows(2).zip(k_starts.windows(2)) {
            let (q_len, k_len) = (q[1] - q[0], k[1] - k[0]);
            if q_len > k_len || q_len > call.longest_q || k_len > call.longest_k {
                return wrong(format!("{q_len} queries on {k_len} keys"));
            }
            if q[1] > call.q_rows {
                return wrong(format!("query {} of {}", q[1], call.q_rows));
            }
            for head in 0..heads {
                let keys = self.keys(call, head / (heads / kv_heads), k[0]..k[1])?;
                for row in 0..q_len {
                    self.query(
                        call,
                        (head, q[0] + row),
                        &keys[..(k_len - q_len + row + 1) as usize],
                    )?;
                }
            }
        }
        // What the kernels leave there is no log-sum-exp that anybody may read.
        let scratch = vec![0xff; 4 * (heads as usize) * (call.q_rows as usize)];
        let at = usize::try_from(call.scratch).unwrap_or(0);
        self.store(at, &scratch).map_err(|_| Error::Flash("scratch leaves its allocation".into()))
    }

    fn starts(&self, name: &str, address: u64, sequences: u32) -> Result<Vec<u32>> {
        let mut bytes = vec![0; 4 * (sequences as usize + 1)];
        self.fetch(name, element(address, 0, 4), &mut bytes)?;
        let words = bytes.chunks_exact(4).filter_map(|word| word.try_into().ok());
        let starts: Vec<u32> = words.map(u32::from_le_bytes).collect();
        let ascend = starts.windows(2).all(|w| w[0] <= w[1]);
        if ascend && starts.iter().all(|&start| i32::try_from(start).is_ok()) {
            return Ok(starts);
        }
        Err(Error::Flash(format!("{name} do not ascend below 2^31: {starts:?}")))
    }

    /// One head's columns of a row.
    fn row(&self, name: &str, (address, stride): Rows, at: (u32, u32, u32)) -> Result<Vec<f32>> {
        let (row, head, width) = at;
        let mut bytes = vec![0; 2 * width as usize];
        let index = row as usize * stride as usize + (head * width) as usize;
        self.fetch(name, element(address, index, 2), &mut bytes)?;
        let pairs = bytes.chunks_exact(2).filter_map(|pair| pair.try_into().ok());
        Ok(pairs.map(|pair| bf16::from_le_bytes(pair).to_f32()).collect())
    }

    /// Keys and values of a key/value head.
    fn keys(
        &self,
        call: &Flash,
        head: u32,
        rows: std::ops::Range<u32>,
    ) -> Result<Vec<(Vec<f32>, Vec<f32>)>> {
        let one = |row| {
            let at = (row, head, call.head_dim);
            let k = self.row("K", (call.k, call.k_stride), at)?;
            Ok((k, self.row("V", (call.v, call.v_stride), at)?))
        };
        rows.map(one).collect()
    }

    /// One query and head on the keys that it sees, at least one.
    fn query(
        &self,
        call: &Flash,
        (head, row): (u32, u32),
        keys: &[(Vec<f32>, Vec<f32>)],
    ) -> Result<()> {
        let q = self.row("Q", (call.q, call.q_stride), (row, head, call.head_dim))?;
        let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>();
        let scores: Vec<f32> = keys.iter().map(|(k, _)| call.scale * dot(k)).collect();
        let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (mut total, mut sums) = (0.0, vec![0.0; q.len()]);
        for (score, (_, v)) in scores.iter().zip(keys) {
            let p = (score - top).exp();
            total += p;
            let p = bf16::from_f32(p).to_f32();
            sums.iter_mut().zip(v).for_each(|(sum, v)| *sum += p * v);
        }
        let bytes: Vec<u8> =
            sums.iter().flat_map(|sum| bf16::from_f32(sum / total).to_le_bytes()).collect();
        let index = row as usize * call.out_stride as usize + head as usize * q.len();
        self.store(element(call.out, index, 2), &bytes)
            .map_err(|_| Error::Flash("O leaves its allocation".into()))
    }
}
