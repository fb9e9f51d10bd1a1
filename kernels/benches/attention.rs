//! Attention over packs of short sequences, with shared prefixes, long, and decoding.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a benchmark panics when wrong; its sizes are small"
)]

mod roofline;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::Cpu;
use kernels::attention::{
    Attention, Backward, Forward, Grads, Heads, QueryGrads, Routing, Sequence,
};
use kernels::backend::{Mat, MatMut};
use kernels::cpu::CpuBuf;
use roofline::{D, E, G, H, Work, bench, filled};

/// Groups of a prefix and some sequences of equal length.
struct Pack {
    sequences: Vec<Sequence>,
    groups: Vec<u32>,
    limits: Vec<u32>,
    rows: usize,
    /// Query-key pairs of one head.
    pairs: f64,
}

impl Pack {
    fn new(groups: u32, prefix: u32, sequences: u32, len: u32) -> Self {
        let mut pack =
            Self { sequences: vec![], groups: vec![0], limits: vec![], rows: 0, pairs: 0.0 };
        for _ in 0..groups {
            let p_start = pack.rows as u32;
            if prefix > 0 {
                pack.push(prefix, (0, 0));
            }
            (0..sequences).for_each(|_| pack.push(len, (p_start, prefix)));
            pack.groups.push(pack.sequences.len() as u32);
        }
        pack
    }

    fn push(&mut self, len: u32, (p_start, p_len): (u32, u32)) {
        let start = self.rows as u32;
        self.sequences.push(Sequence {
            q_start: start,
            q_len: len,
            k_start: start,
            k_len: len,
            p_start,
            p_len,
        });
        self.limits.extend(1..=len);
        self.rows += len as usize;
        self.pairs += f64::from(len) * (f64::from(len + 1) / 2.0 + f64::from(p_len));
    }
}

fn run(c: &mut Criterion, name: &str, pack: Pack, q_rows: usize, backward: bool) {
    let heads = Heads { heads: H, kv_heads: G, head_dim: E, scale: 0.125 };
    let (rows, kv) = (pack.rows, G * E);
    let (q, k, v, dout) =
        (filled(q_rows * D), filled(rows * kv), filled(rows * kv), filled(q_rows * D));
    let (mut out, mut lse) = (filled(q_rows * D), filled(q_rows * H));
    let qkv = D + 2 * kv;
    let mut grads = filled(rows * qkv);
    let num_sequences = pack.sequences.len();
    let num_groups = pack.groups.len() - 1;
    let sequences: CpuBuf<Sequence> = pack.sequences.into();
    let (groups, limits): (CpuBuf<u32>, CpuBuf<u32>) = (pack.groups.into(), pack.limits.into());
    let routing = Routing::<Cpu> {
        sequences: &sequences,
        num_sequences,
        groups: &groups,
        num_groups,
        limits: &limits,
    };
    let (qm, km, vm) = (Mat::new(&q, D), Mat::new(&k, kv), Mat::new(&v, kv));
    let flop = 4.0 * (H * E) as f64 * pack.pairs;
    let bytes = 4.0 * (2 * q_rows * D + 2 * rows * kv) as f64;
    bench(c, &format!("{name}_forward"), Work { flop, bytes }, || {
        Cpu.attention_forward(Forward {
            heads,
            routing,
            q: qm,
            k: km,
            v: vm,
            out: MatMut::new(&mut out, D),
            lse: &mut lse,
            q_rows,
            k_rows: rows,
        })
        .unwrap();
    });
    if !backward {
        return;
    }
    bench(c, &format!("{name}_backward"), Work { flop: 2.5 * flop, bytes: 2.0 * bytes }, || {
        Cpu.attention_backward(Backward {
            heads,
            routing,
            q: qm,
            k: km,
            v: vm,
            out: Mat::new(&out, D),
            lse: &lse,
            dout: Mat::new(&dout, D),
            grads: Grads {
                rows: MatMut::new(&mut grads, qkv),
                dq: QueryGrads::Beside(0),
                dk: D,
                dv: D + kv,
            },
            q_rows,
            k_rows: rows,
        })
        .unwrap();
    });
}

fn attention(c: &mut Criterion) {
    run(c, "attention_16x64", Pack::new(16, 0, 1, 64), 1024, true);
    run(c, "attention_8x128", Pack::new(8, 0, 1, 128), 1024, true);
    run(c, "attention_4x256", Pack::new(4, 0, 1, 256), 1024, true);
    run(c, "attention_prefix_4x(64+8x24)", Pack::new(4, 64, 8, 24), 1024, true);
    run(c, "attention_1x2048", Pack::new(1, 0, 1, 2048), 2048, true);
    let mut decode = Pack::new(64, 0, 1, 256);
    for (i, s) in (0u32..).zip(&mut decode.sequences) {
        (s.q_start, s.q_len) = (i, 1);
    }
    decode.limits = vec![256; 64];
    decode.pairs = 64.0 * 256.0;
    run(c, "attention_decode_64x256", decode, 64, false);
}

criterion_group!(benches, attention);
criterion_main!(benches);
