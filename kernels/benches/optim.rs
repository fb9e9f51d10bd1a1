//! Grouped AdamW over adapters of rank 8 on q and v of SmolLM2.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a benchmark panics when wrong; its sizes are small"
)]

mod roofline;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::Cpu;
use kernels::cpu::CpuBuf;
use kernels::optim::{AdamW, Optim, Update};
use roofline::{Work, bench, filled};

/// `30 layers · 8 · (576 + 576 + 576 + 192)`.
const ADAPTER: usize = 30 * 8 * (576 + 576 + 576 + 192);

fn adamw(c: &mut Criterion) {
    for slots in [1usize, 16] {
        let updates: CpuBuf<Update> = (0..slots)
            .map(|i| Update {
                offset: (i * ADAPTER) as u64,
                len: ADAPTER as u32,
                step: 3,
                learning_rate: 1e-6,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.01,
                clip_norm: 0.3,
            })
            .collect::<Vec<_>>()
            .into();
        let len = slots * ADAPTER;
        let (mut params, mut grads) = (filled(len), filled(len));
        let (mut m, mut v, mut norms) = (filled(len), filled(len), filled(slots));
        v.iter_mut().for_each(|v| *v = v.abs());
        // The norm reads the gradients; the step reads and writes all four.
        let work = Work { flop: 16.0 * len as f64, bytes: 4.0 * 9.0 * len as f64 };
        bench(c, &format!("adamw_{slots}"), work, || {
            Cpu.adamw(AdamW {
                updates: &updates,
                num_updates: slots,
                params: &mut params,
                grads: &mut grads,
                m: &mut m,
                v: &mut v,
                norms: &mut norms,
            })
            .unwrap();
        });
    }
}

criterion_group!(benches, adamw);
criterion_main!(benches);
