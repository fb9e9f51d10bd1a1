//! Activations on every backend, against naive, finite differences and candle.
#![expect(clippy::unwrap_used, reason = "a test panics when wrong; its data is small and exact")]

mod naive;
mod tolerance;

use candle_core::{DType, Device, Tensor, Var};
use kernels::activation::{Activation, Backward, Forward, Kind};
use kernels::backend::{Backend, Mat, MatMut};
use kernels::{Cpu, Error};
use naive::{Naive, download, numbers, upload};
use tolerance::{differences, on_threads, same_bits, within};

const KINDS: [Kind; 2] = [Kind::SwiGlu, Kind::GeluNew];

/// `(H, dX)`, outputs beginning as NaN, rows two elements apart.
fn run<B: Activation + Backend<Act = f32>>(
    b: &B,
    kind: Kind,
    (rows, dim): (usize, usize),
    (x, dh): (&[f32], &[f32]),
) -> (Vec<f32>, Vec<f32>) {
    let width = kind.in_dim(dim);
    let spread = |x: &[f32], w: usize| -> Vec<f32> {
        x.chunks(w).flat_map(|row| [row, &[f32::NAN, f32::NAN]].concat()).collect()
    };
    let (x, dh) = (upload(b, &spread(x, width)), upload(b, &spread(dh, dim)));
    let mut h = upload(b, &vec![f32::NAN; rows * (dim + 2)]);
    let mut dx = upload(b, &vec![f32::NAN; rows * (width + 2)]);
    let (x, dh) = (Mat::new(&x, width + 2), Mat::new(&dh, dim + 2));
    let to = MatMut::new(&mut h, dim + 2);
    b.activation_forward(Forward { kind, x, h: to, rows, dim }).unwrap();
    let to = MatMut::new(&mut dx, width + 2);
    b.activation_backward(Backward { kind, x, dh, dx: to, rows, dim }).unwrap();
    let gather = |x: Vec<f32>, w: usize| -> Vec<f32> {
        assert!(x.chunks(w + 2).all(|row| row[w].is_nan() && row[w + 1].is_nan()), "wrote beside");
        x.chunks(w + 2).flat_map(|row| row[..w].to_vec()).collect()
    };
    (gather(download(b, &h), dim), gather(download(b, &dx), width))
}

fn data(kind: Kind, rows: usize, dim: usize) -> (Vec<f32>, Vec<f32>) {
    let mut x: Vec<f32> = numbers(5, rows * kind.in_dim(dim)).iter().map(|v| v * 6.0).collect();
    for (x, edge) in
        x.iter_mut().step_by(7).zip([0.0, -0.0, 1e-30, -1e-30, 20.0, -20.0, 60.0, -60.0])
    {
        *x = edge;
    }
    (x, numbers(6, rows * dim))
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// Sizes of the terms of `H` and `dX`.
fn scales(kind: Kind, dim: usize, x: &[f32], dh: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let (mut h, mut dx) = (Vec::new(), Vec::new());
    for (x, dh) in x.chunks(kind.in_dim(dim)).zip(dh.chunks(dim)) {
        let (x, dh) = (widen(x), widen(dh));
        let mut second = Vec::new();
        for c in 0..dim {
            match kind {
                Kind::SwiGlu => {
                    let s = sigmoid(x[c]);
                    let complement = sigmoid(-x[c]);
                    h.push((x[c] * s * x[dim + c]).abs());
                    dx.push((dh[c] * x[dim + c]).abs() * s * (1.0 + x[c].abs() * complement));
                    second.push((dh[c] * x[c]).abs() * s);
                }
                Kind::GeluNew => {
                    // The argument is off by a few units; the sigmoid multiplies that by its size.
                    let z = 1.595_769_121_605_731 * (x[c] + 0.044_715 * x[c].powi(3));
                    let slope = 1.595_769_121_605_731 * (1.0 + 3.0 * 0.044_715 * x[c] * x[c]);
                    let (s, wide) = (sigmoid(z), 1.0 + z.abs());
                    h.push(x[c].abs() * s * wide);
                    dx.push(dh[c].abs() * s * (1.0 + x[c].abs() * sigmoid(-z) * slope) * wide);
                }
            }
        }
        dx.extend(second);
    }
    (h, dx)
}

#[test]
fn cpu_is_within_the_derived_bound_of_naive() {
    for kind in KINDS {
        for (rows, dim) in [(0, 4), (1, 1), (3, 15), (17, 16), (40, 33), (2, 1536)] {
            let (x, dh) = data(kind, rows, dim);
            let at = (x.as_slice(), dh.as_slice());
            let (ours, theirs) =
                (run(&Cpu, kind, (rows, dim), at), run(&Naive, kind, (rows, dim), at));
            let scale = scales(kind, dim, &x, &dh);
            // The sigmoid is within 4 units (math.rs); then at most 6 roundings, 10 in the backward.
            within("h", 10.0, &ours.0, &widen(&theirs.0), &scale.0);
            within("dx", 14.0, &ours.1, &widen(&theirs.1), &scale.1);
        }
    }
}

#[test]
fn rows_do_not_see_each_other_nor_the_threads() {
    for kind in KINDS {
        let (rows, dim) = (50, 21);
        let (mut x, dh) = data(kind, rows, dim);
        let all = on_threads(|| run(&Cpu, kind, (rows, dim), (&x, &dh)));
        for other in &all[1..] {
            same_bits("h", &all[0].0, &other.0);
            same_bits("dx", &all[0].1, &other.1);
        }
        let width = kind.in_dim(dim);
        x[20 * width] = f32::NAN;
        let poisoned = run(&Cpu, kind, (rows, dim), (&x, &dh));
        assert!(poisoned.0[20 * dim].is_nan() && poisoned.1[20 * width].is_nan());
        for i in (0..rows).filter(|i| *i != 20) {
            let one = (&x[i * width..][..width], &dh[i * dim..][..dim]);
            let alone = run(&Cpu, kind, (1, dim), one);
            for other in [&poisoned, &all[0]] {
                same_bits("h alone", &alone.0, &other.0[i * dim..][..dim]);
                same_bits("dx alone", &alone.1, &other.1[i * width..][..width]);
            }
        }
    }
}

#[test]
fn far_out_values_stay_finite() {
    for kind in KINDS {
        let x: Vec<f32> = [1e4, -1e4, 300.0, -300.0, 88.0, -88.0, 104.0, -104.0]
            .into_iter()
            .chain(vec![1.0; kind.in_dim(8) - 8])
            .collect();
        let (h, dx) = run(&Cpu, kind, (1, 8), (&x, &[1.0; 8]));
        assert!(h.iter().chain(&dx).all(|v| v.is_finite()), "{h:?} {dx:?}");
        assert_eq!(h[..2], [1e4, 0.0]);
    }
}

#[test]
fn naive_gradient_agrees_with_differences() {
    for kind in KINDS {
        let (dim, dh) = (9, numbers(6, 18));
        let x: Vec<f32> = numbers(5, 2 * kind.in_dim(dim)).iter().map(|v| v * 3.0).collect();
        let (_, dx) = run(&Naive, kind, (2, dim), (&x, &dh));
        differences("dx", &dx, &x, |x| {
            let rows = x.chunks(kind.in_dim(dim)).zip(dh.chunks(dim));
            rows.map(|(x, dh)| {
                (0..dim)
                    .map(|c| {
                        let root = (2.0 / std::f64::consts::PI).sqrt();
                        let h = match kind {
                            Kind::SwiGlu => x[c] / (1.0 + (-x[c]).exp()) * x[dim + c],
                            Kind::GeluNew => {
                                0.5 * x[c]
                                    * (1.0 + (root * (x[c] + 0.044_715 * x[c].powi(3))).tanh())
                            }
                        };
                        h * f64::from(dh[c])
                    })
                    .sum::<f64>()
            })
            .sum()
        });
    }
}

#[test]
fn candle_agrees() {
    for kind in KINDS {
        let (rows, dim) = (6, 30);
        let (x, dh) = data(kind, rows, dim);
        let tensor = |v: &[f32], w: usize| {
            let t = Tensor::new(v, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
            t.reshape((rows, w)).unwrap()
        };
        let at = Var::from_tensor(&tensor(&x, kind.in_dim(dim))).unwrap();
        let h = match kind {
            Kind::SwiGlu => {
                let gate = at.narrow(1, 0, dim).unwrap().silu().unwrap();
                (gate * at.narrow(1, dim, dim).unwrap()).unwrap()
            }
            Kind::GeluNew => at.gelu().unwrap(),
        };
        let loss = (&h * tensor(&dh, dim)).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let (ours, scale) = (run(&Cpu, kind, (rows, dim), (&x, &dh)), scales(kind, dim, &x, &dh));
        // candle's own `1 + tanh` cancels in f64 far out, by 1e-16 of the factor beside it.
        let slack = |s: &[f64]| s.iter().map(|s| s + 1e-9).collect::<Vec<_>>();
        within("h", 10.0, &ours.0, &flat(&h), &slack(&scale.0));
        within("dx", 14.0, &ours.1, &flat(grads.get(&at).unwrap()), &slack(&scale.1));
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let (x, mut h) = (upload(&Cpu, &[0.0f32; 7]), upload(&Cpu, &[0.0f32; 4]));
    let (x, h) = (Mat::new(&x, 4), MatMut::new(&mut h, 2));
    let result = Cpu.activation_forward(Forward { kind: Kind::SwiGlu, x, h, rows: 2, dim: 2 });
    assert!(matches!(result, Err(Error::Length { what: "x", expected: 8, got: 7, .. })));
}
