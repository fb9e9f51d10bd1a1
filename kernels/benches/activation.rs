//! SwiGLU and GELU.
#![expect(clippy::unwrap_used, reason = "a benchmark panics when wrong; its sizes are small")]

mod roofline;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::Cpu;
use kernels::activation::{Activation, Backward, Forward, Kind};
use kernels::backend::{Mat, MatMut};
use roofline::{F, T, Work, bench, filled};

fn activation(c: &mut Criterion) {
    for (name, kind) in [("swiglu", Kind::SwiGlu), ("gelu_new", Kind::GeluNew)] {
        let width = kind.in_dim(F);
        let (x, dh) = (filled(T * width), filled(T * F));
        let (mut h, mut dx) = (filled(T * F), filled(T * width));
        // About 20 operations for the sigmoid.
        let (flop, row) = (22.0 * (T * F) as f64, 4.0 * T as f64);
        let bytes = row * (width + F) as f64;
        bench(c, &format!("{name}_forward"), Work { flop, bytes }, || {
            let (x, h) = (Mat::new(&x, width), MatMut::new(&mut h, F));
            Cpu.activation_forward(Forward { kind, x, h, rows: T, dim: F }).unwrap();
        });
        let bytes = row * (2 * width + F) as f64;
        bench(c, &format!("{name}_backward"), Work { flop, bytes }, || {
            let (x, dh, dx) = (Mat::new(&x, width), Mat::new(&dh, F), MatMut::new(&mut dx, width));
            Cpu.activation_backward(Backward { kind, x, dh, dx, rows: T, dim: F }).unwrap();
        });
    }
}

criterion_group!(benches, activation);
criterion_main!(benches);
