//! Norms and rotary positions.
#![expect(clippy::unwrap_used, reason = "a benchmark panics when wrong; its sizes are small")]

mod roofline;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::backend::{Backend, Mat, MatMut};
use kernels::norm::{Backward, Forward, Norm, Params};
use kernels::rope::{Rope, Rotate, table};
use kernels::{Cpu, cpu::CpuBuf};
use roofline::{D, E, H, T, Work, bench, filled};

fn norm(c: &mut Criterion) {
    let (x, dy, weight, bias) = (filled(T * D), filled(T * D), filled(D), filled(D));
    let (mut y, mut dx) = (filled(T * D), filled(T * D));
    for (name, bias) in [("rms", None), ("layer", Some(&bias))] {
        let params = Params { weight: &weight, bias, eps: 1e-5 };
        let (n, size) = ((T * D) as f64, (4 * T * D) as f64);
        bench(c, &format!("{name}_forward"), Work { flop: 5.0 * n, bytes: 2.0 * size }, || {
            let (x, y) = (Mat::new(&x, D), MatMut::new(&mut y, D));
            Cpu.norm_forward(Forward { params, x, y, rows: T, dim: D }).unwrap();
        });
        bench(c, &format!("{name}_backward"), Work { flop: 11.0 * n, bytes: 4.0 * size }, || {
            dx.fill(0.0);
            let (x, dy, dx) = (Mat::new(&x, D), Mat::new(&dy, D), MatMut::new(&mut dx, D));
            Cpu.norm_backward(Backward { params, x, dy, dx, rows: T, dim: D }).unwrap();
        });
    }
}

fn rope(c: &mut Criterion) {
    let mut x = filled(T * D);
    let frequencies: Vec<f32> = (0..E / 2).map(|i| 1.0 / (1.0 + i as f32)).collect();
    let table: CpuBuf<f32> = table(&frequencies, 256).into();
    let mut positions: CpuBuf<u32> = Cpu.alloc(T).unwrap();
    positions.iter_mut().zip((0..256).cycle()).for_each(|(p, i)| *p = i);
    let work = Work { flop: (3 * T * D) as f64, bytes: (8 * T * D) as f64 };
    bench(c, "rope", work, || {
        let x = MatMut::new(&mut x, D);
        let (positions, table) = (&positions, &table);
        Cpu.rope(Rotate { x, positions, table, heads: H, head_dim: E, inverse: false, rows: T })
            .unwrap();
    });
}

criterion_group!(benches, norm, rope);
criterion_main!(benches);
