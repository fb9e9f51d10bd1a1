//! Head product and cross-entropy, and the embedding's rows.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a benchmark panics when wrong; its sizes are small"
)]

mod roofline;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::Cpu;
use kernels::backend::{Backend, Mat, MatMut};
use kernels::cpu::CpuBuf;
use kernels::embedding::{Embed, Embedding};
use kernels::linear::cpu::aligned_storage;
use kernels::linear::{Layout, Linear, Shape};
use kernels::loss::{HeadLoss, Loss};
use roofline::{D, T, V, Work, bench, filled};

fn loss(c: &mut Criterion) {
    let shape = Shape { in_dim: D, out_dim: V };
    let src = filled(D * V);
    let storage = aligned_storage(Cpu.prepared_len(shape), |dst| {
        Cpu.prepare(shape, Layout::OutIn, &src, dst).unwrap();
    });
    let head = Cpu.weight(shape, &storage, 0).unwrap();
    let mut ids: CpuBuf<u32> = Cpu.alloc(T).unwrap();
    ids.iter_mut().enumerate().for_each(|(i, t)| *t = (i * 7919 % V) as u32);
    let mut x = filled(T * D);
    let work = Work { flop: 0.0, bytes: (8 * T * D) as f64 };
    bench(c, "embed", work, || {
        let x = MatMut::new(&mut x, D);
        Cpu.embed(Embed { table: &head, ids: &ids, positions: None, x, rows: T }).unwrap();
    });
    for rows in [1, 16, 64, 256] {
        let (x, weights) = (filled(rows * D), filled(rows));
        let (mut losses, mut dx) = (filled(rows), filled(rows * D));
        let mut work = filled(Cpu.head_loss_workspace(rows, D, V));
        let cost = Work { flop: (4 * rows * D * V) as f64, bytes: (8 * D * V) as f64 };
        bench(c, &format!("head_loss_{rows}"), cost, || {
            Cpu.head_loss(HeadLoss {
                x: Mat::new(&x, D),
                head: &head,
                targets: &ids,
                weights: &weights,
                losses: &mut losses,
                dx: Some(MatMut::new(&mut dx, D)),
                work: &mut work,
                rows,
            })
            .unwrap();
        });
    }
}

criterion_group!(benches, loss);
criterion_main!(benches);
