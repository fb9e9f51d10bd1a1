//! Products of SmolLM2-135M for several numbers of rows, forward and backward, beside the `gemm` crate, one
//! group a shape; and of small bases that train whole, with the gradient of the weight and its renewal.
#![expect(clippy::unwrap_used, reason = "a benchmark panics when wrong; its sizes are small")]

mod roofline;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::linear::cpu::aligned_storage;
use kernels::linear::{Backward, Forward, Layout, Linear, Shape, Trainable, WeightGradient};
use kernels::{Cpu, Mat, MatMut};
use roofline::{D, F, G, Group, T, THREADS, V, Work, filled};

const KV: usize = G * roofline::E;
const SHAPES: [(usize, usize); 5] = [(D, D), (D, KV), (D, F), (F, D), (D, V)];
const ROWS: [usize; 6] = [1, 16, 64, 256, 1024, 2048];

fn linear(c: &mut Criterion) {
    for (d, n) in SHAPES {
        let shape = Shape { in_dim: d, out_dim: n };
        let plain = filled(d * n);
        let storage = aligned_storage(Cpu.prepared_len(shape), |dst| {
            Cpu.prepare(shape, Layout::InOut, &plain, dst).unwrap();
        });
        let weight = Cpu.weight(shape, &storage, 0).unwrap();
        let mut group = Group::new(c, format!("linear_{d}x{n}"));
        for rows in ROWS {
            let (x, dy) = (filled(rows * d), filled(rows * n));
            let (mut y, mut dx, mut theirs) =
                (filled(rows * n), filled(rows * d), filled(rows * n));
            let flop = 2.0 * (rows * d * n) as f64;
            let bytes = 4.0 * (d * n + rows * (d + n)) as f64;
            let (work, of) = (Work { flop, bytes }, rows.to_string());
            for threads in THREADS {
                let ours = group.bench(("forward", &of, threads), work, || {
                    let (x, y, weight) = (Mat::new(&x, d), MatMut::new(&mut y, n), &weight);
                    let (bias, residual) = (None, None);
                    Cpu.linear_forward(Forward { x, weight, bias, residual, y, rows }).unwrap();
                });
                group.bench(("backward", &of, threads), work, || {
                    let (dy, dx, weight) = (Mat::new(&dy, n), MatMut::new(&mut dx, d), &weight);
                    let accumulate = false;
                    Cpu.linear_backward(Backward { dy, weight, dx, accumulate, rows }).unwrap();
                });
                let gemm = group.bench(("gemm_crate", &of, threads), work, || {
                    gemm_crate((rows, d, n), &x, &plain, &mut theirs, threads);
                });
                if let (Some(ours), Some(gemm)) = (ours, gemm) {
                    let (name, ratio) = (&group.name, gemm / ours);
                    eprintln!(
                        "{name}/{of}/{threads}: forward at {ratio:.2} of the gemm crate's speed"
                    );
                }
            }
        }
    }
}

/// Widths of students and small bases.
const TRAINED: [(usize, usize); 4] = [(128, 128), (384, 384), (384, 1536), (1536, 384)];

fn weight_gradient(c: &mut Criterion) {
    let rows = T;
    for (d, n) in TRAINED {
        let shape = Shape { in_dim: d, out_dim: n };
        let mut weight = Cpu.trainable(shape).unwrap();
        let params = filled(d * n);
        Cpu.refresh(&mut weight, &params, 0).unwrap();
        let mut group = Group::new(c, format!("trained_{d}x{n}"));
        let (x, dy) = (filled(rows * d), filled(rows * n));
        let (mut y, mut dx, mut grads) = (filled(rows * n), filled(rows * d), filled(n * d + n));
        let (work, of) = (
            Work {
                flop: 2.0 * (rows * d * n) as f64,
                bytes: 4.0 * (d * n + rows * (d + n)) as f64,
            },
            rows.to_string(),
        );
        for threads in THREADS {
            group.bench(("forward", &of, threads), work, || {
                let (x, y, weight) = (Mat::new(&x, d), MatMut::new(&mut y, n), &weight);
                let (bias, residual) = (None, None);
                Cpu.linear_forward(Forward { x, weight, bias, residual, y, rows }).unwrap();
            });
            let backward = group.bench(("backward", &of, threads), work, || {
                let (dy, dx, weight) = (Mat::new(&dy, n), MatMut::new(&mut dx, d), &weight);
                let accumulate = false;
                Cpu.linear_backward(Backward { dy, weight, dx, accumulate, rows }).unwrap();
            });
            let gradient = group.bench(("gradient", &of, threads), work, || {
                let (x, dy, grads) = (Mat::new(&x, d), Mat::new(&dy, n), &mut grads);
                let (weight_offset, bias_offset) = (0, Some(n * d));
                Cpu.linear_weight_gradient(WeightGradient {
                    shape,
                    x,
                    dy,
                    rows,
                    grads,
                    weight_offset,
                    bias_offset,
                })
                .unwrap();
            });
            let bytes = 12.0 * (d * n) as f64;
            group.bench(("refresh", &of, threads), Work { flop: 0.0, bytes }, || {
                Cpu.refresh(&mut weight, &params, 0).unwrap();
            });
            if let (Some(backward), Some(gradient)) = (backward, gradient) {
                let (name, ratio) = (&group.name, gradient / backward);
                eprintln!("{name}/{of}/{threads}: gradient takes {ratio:.2} of backward's time");
            }
        }
    }
}

/// `y = x·w` by the `gemm` crate, all row-major.
#[expect(unsafe_code, reason = "the comparator's interface takes pointers")]
fn gemm_crate(
    (rows, d, n): (usize, usize, usize),
    x: &[f32],
    w: &[f32],
    y: &mut [f32],
    threads: usize,
) {
    assert!(x.len() >= rows * d && w.len() >= d * n && y.len() >= rows * n);
    let (xs, ys) = (d.cast_signed(), n.cast_signed());
    let parallel =
        if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    // SAFETY: the three matrices lie inside their slices, as asserted, and `y` overlaps neither.
    unsafe {
        gemm::gemm(
            rows,
            n,
            d,
            y.as_mut_ptr(),
            1,
            ys,
            false,
            x.as_ptr(),
            1,
            xs,
            w.as_ptr(),
            1,
            ys,
            0.0,
            1.0,
            false,
            false,
            false,
            parallel,
        );
    }
}

criterion_group!(benches, linear, weight_gradient);
criterion_main!(benches);
