//! Norms on every backend, against naive, finite differences and candle.
#![expect(
    clippy::unwrap_used,
    clippy::float_cmp,
    reason = "a test panics when wrong; its data is small and exact"
)]

mod naive;
mod tolerance;

use candle_core::{D, DType, Device, Tensor, Var};
use kernels::backend::{Backend, Mat, MatMut};
use kernels::norm::{Backward, Forward, Norm, ParamGradient, Params};
use kernels::{Cpu, Error};
use naive::{Naive, download, numbers, upload};
use std::ops::Range;
use tolerance::{differences, lane_chain, on_threads, same_bits, within};

const WIDTH_EPS: f32 = 1e-5;

/// One problem; rows lie `dim + 3` apart from element 2 on, so that windows are tested too.
#[derive(Clone)]
struct Case {
    rows: usize,
    dim: usize,
    bias: bool,
    x: Vec<f32>,
    dy: Vec<f32>,
    weight: Vec<f32>,
    b: Vec<f32>,
}

impl Case {
    fn new(rows: usize, dim: usize, bias: bool) -> Self {
        let x = numbers(1, rows * dim).iter().map(|v| 3.0 * v + 0.7).collect();
        let weight = numbers(2, dim).iter().map(|v| v + 1.2).collect();
        Self { rows, dim, bias, x, dy: numbers(3, rows * dim), weight, b: numbers(4, dim) }
    }

    fn stride(&self) -> usize {
        self.dim + 3
    }

    fn spread(&self, x: &[f32], fill: f32) -> Vec<f32> {
        let mut out = vec![fill; 2 + self.rows * self.stride()];
        for (i, row) in x.chunks(self.dim).enumerate() {
            out[2 + i * self.stride()..][..self.dim].copy_from_slice(row);
        }
        out
    }

    fn gather(&self, x: &[f32]) -> Vec<f32> {
        let rows = (0..self.rows).map(|i| &x[2 + i * self.stride()..][..self.dim]);
        rows.flatten().copied().collect()
    }
}

/// `(Y, dX)`; `Y`'s buffer begins as NaN, `dX` as `x`.
fn run<B: Norm + Backend<Act = f32>>(b: &B, case: &Case) -> (Vec<f32>, Vec<f32>) {
    let (x, dy) = (case.spread(&case.x, f32::NAN), case.spread(&case.dy, f32::NAN));
    let (x, dy) = (upload(b, &x), upload(b, &dy));
    let (weight, bias) = (upload(b, &case.weight), upload(b, &case.b));
    let params = Params { weight: &weight, bias: case.bias.then_some(&bias), eps: WIDTH_EPS };
    let (rows, dim, stride) = (case.rows, case.dim, case.stride());
    let mut y = upload(b, &case.spread(&vec![f32::NAN; rows * dim], 7.0));
    let view = |buf| Mat { buf, start: 2, stride };
    let to = MatMut { buf: &mut y, start: 2, stride };
    b.norm_forward(Forward { params, x: view(&x), y: to, rows, dim }).unwrap();
    let mut dx = upload(b, &case.spread(&case.x, 7.0));
    let to = MatMut { buf: &mut dx, start: 2, stride };
    b.norm_backward(Backward { params, x: view(&x), dy: view(&dy), dx: to, rows, dim }).unwrap();
    let (y, dx) = (download(b, &y), download(b, &dx));
    for out in [&y, &dx] {
        assert!(out[..2].iter().all(|v| *v == 7.0), "written before the window");
        assert!((0..rows).all(|i| out[2 + i * stride + dim..][..3].iter().all(|v| *v == 7.0)));
    }
    (case.gather(&y), case.gather(&dx))
}

/// `dw`, then `db`, of rows `rows` on top of `before`; both lie in a poisoned buffer.
fn gradient<B: Norm + Backend<Act = f32>>(
    b: &B,
    case: &Case,
    rows: Range<usize>,
    before: &[f32],
) -> Vec<f32> {
    let (x, dy) = (case.spread(&case.x, f32::NAN), case.spread(&case.dy, f32::NAN));
    let (x, dy) = (upload(b, &x), upload(b, &dy));
    let (dim, stride) = (case.dim, case.stride());
    let mut held = vec![-77.5; 2 * dim + 9];
    held[3..3 + dim].copy_from_slice(&before[..dim]);
    held[5 + dim..5 + 2 * dim].copy_from_slice(&before[dim..]);
    let mut grads = upload(b, &held);
    let view = |buf| Mat { buf, start: 2 + rows.start * stride, stride };
    b.norm_param_gradient(ParamGradient {
        centred: case.bias,
        eps: WIDTH_EPS,
        x: view(&x),
        dy: view(&dy),
        rows: rows.len(),
        dim,
        grads: &mut grads,
        weight_offset: 3,
        bias_offset: case.bias.then_some(5 + dim),
    })
    .unwrap();
    let grads = download(b, &grads);
    let (dw, db) = (&grads[3..3 + dim], &grads[5 + dim..5 + 2 * dim]);
    let around = [&grads[..3], &grads[3 + dim..5 + dim], &grads[5 + 2 * dim..]].concat();
    assert!(around.iter().all(|v| *v == -77.5), "written beside the gradients");
    assert!(case.bias || db == &before[dim..], "written to a bias that is not there");
    [dw, db].concat()
}

/// Sizes of the terms of `Y` and `dX`, for the derived bound.
fn scales(case: &Case) -> (Vec<f64>, Vec<f64>) {
    let d = case.dim as f64;
    let (mut y, mut dx) = (Vec::new(), Vec::new());
    for (x, dy) in case.x.chunks(case.dim).zip(case.dy.chunks(case.dim)) {
        let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
        let mean = if case.bias { x.iter().sum::<f64>() / d } else { 0.0 };
        let size = if case.bias { x.iter().map(|v| v.abs()).sum::<f64>() / d } else { 0.0 };
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d;
        let r = 1.0 / (variance + f64::from(WIDTH_EPS)).sqrt();
        let g: Vec<f64> =
            dy.iter().zip(&case.weight).map(|(a, b)| f64::from(a * b).abs()).collect();
        let hat: Vec<f64> = x.iter().map(|v| (v.abs() + size) * r).collect();
        let along = g.iter().zip(&hat).map(|(a, b)| a * b).sum::<f64>() / d;
        let mean_g = if case.bias { g.iter().sum::<f64>() / d } else { 0.0 };
        for c in 0..case.dim {
            y.push(f64::from(case.weight[c].abs()) * hat[c] + f64::from(case.b[c].abs()));
            dx.push(r * (g[c] + mean_g + hat[c] * along) + x[c].abs());
        }
    }
    (y, dx)
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

#[test]
fn cpu_is_within_the_derived_bound_of_naive() {
    for bias in [false, true] {
        for (rows, dim) in [(0, 8), (1, 1), (3, 15), (17, 16), (33, 100), (5, 576), (2, 2049)] {
            let case = Case::new(rows, dim, bias);
            let (ours, theirs, scale) = (run(&Cpu, &case), run(&Naive, &case), scales(&case));
            // Statistics: a sum and the variance's sum, each within its chain; then at most 8 roundings.
            let k = 2.0 * lane_chain(dim) + 8.0;
            within("y", k, &ours.0, &widen(&theirs.0), &scale.0);
            within("dx", 2.0 * k, &ours.1, &widen(&theirs.1), &scale.1);
        }
    }
}

#[test]
fn rows_do_not_see_each_other_nor_the_threads() {
    for bias in [false, true] {
        let case = Case::new(37, 70, bias);
        let [a, b, c] = on_threads(|| run(&Cpu, &case));
        for other in [&b, &c] {
            same_bits("y by threads", &a.0, &other.0);
            same_bits("dx by threads", &a.1, &other.1);
        }
        let mut poisoned = case.clone();
        poisoned.x[19 * 70 + 4] = f32::NAN;
        let p = run(&Cpu, &poisoned);
        for i in 0..case.rows {
            let at = i * 70..(i + 1) * 70;
            if i == 19 {
                assert!(
                    p.0[at.clone()].iter().all(|v| v.is_nan())
                        && p.1[at].iter().all(|v| v.is_nan())
                );
                continue;
            }
            let alone = Case {
                rows: 1,
                x: case.x[at.clone()].to_vec(),
                dy: case.dy[at.clone()].to_vec(),
                ..case.clone()
            };
            let alone = run(&Cpu, &alone);
            same_bits("y alone", &a.0[at.clone()], &alone.0);
            same_bits("dx alone", &a.1[at.clone()], &alone.1);
            same_bits("y beside NaN", &a.0[at.clone()], &p.0[at.clone()]);
            same_bits("dx beside NaN", &a.1[at.clone()], &p.1[at]);
        }
    }
}

#[test]
fn naive_gradient_agrees_with_differences() {
    for bias in [false, true] {
        let case = Case::new(2, 13, bias);
        let (_, dx) = run(&Naive, &case);
        // The window held `x` before: `+=`.
        let gradient: Vec<f32> = dx.iter().zip(&case.x).map(|(d, x)| d - x).collect();
        differences("dx", &gradient, &case.x, |x| {
            let row = |(x, dy): (&[f64], &[f32])| {
                let mean = if bias { x.iter().sum::<f64>() / 13.0 } else { 0.0 };
                let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 13.0;
                let r = 1.0 / (variance + f64::from(WIDTH_EPS)).sqrt();
                let y = |c: usize| f64::from(case.weight[c]) * (x[c] - mean) * r;
                (0..13).map(|c| f64::from(dy[c]) * y(c)).sum::<f64>()
            };
            x.chunks(13).zip(case.dy.chunks(13)).map(row).sum()
        });
    }
}

#[test]
fn candle_agrees() {
    for bias in [false, true] {
        let case = Case::new(9, 48, bias);
        let (dev, shape) = (Device::Cpu, (case.rows, case.dim));
        let tensor = |v: &[f32]| Tensor::new(v, &dev).unwrap().to_dtype(DType::F64).unwrap();
        let x = Var::from_tensor(&tensor(&case.x).reshape(shape).unwrap()).unwrap();
        // Written out, since candle's fused norms drop the gradient without a word.
        let centred = if bias {
            x.broadcast_sub(&x.mean_keepdim(D::Minus1).unwrap()).unwrap()
        } else {
            x.as_tensor().clone()
        };
        let variance = centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let root = (variance + f64::from(WIDTH_EPS)).unwrap().sqrt().unwrap();
        let mut y = centred.broadcast_div(&root).unwrap();
        y = y.broadcast_mul(&tensor(&case.weight)).unwrap();
        if bias {
            y = y.broadcast_add(&tensor(&case.b)).unwrap();
        }
        let loss = (&y * tensor(&case.dy).reshape(shape).unwrap()).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let (ours, scale) = (run(&Cpu, &case), scales(&case));
        let k = 2.0 * lane_chain(case.dim) + 8.0;
        within("y", k, &ours.0, &flat(&y), &scale.0);
        let dx: Vec<f64> = flat(grads.get(&x).unwrap())
            .iter()
            .zip(&case.x)
            .map(|(g, x)| g + f64::from(*x))
            .collect();
        within("dx", 2.0 * k, &ours.1, &dx, &scale.1);
    }
}

/// Gradients `dw`, `db` on top of `before`, and the sizes of their terms, from `f64` loops.
fn gradient_in_f64(case: &Case, before: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let (d, mut want) = (case.dim as f64, widen(before));
    let mut scale: Vec<f64> = want.iter().map(|v| v.abs()).collect();
    for (x, dy) in case.x.chunks(case.dim).zip(case.dy.chunks(case.dim)) {
        let (x, dy) = (widen(x), widen(dy));
        let mean = if case.bias { x.iter().sum::<f64>() / d } else { 0.0 };
        let size = if case.bias { x.iter().map(|v| v.abs()).sum::<f64>() / d } else { 0.0 };
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d;
        let r = 1.0 / (variance + f64::from(WIDTH_EPS)).sqrt();
        for c in 0..case.dim {
            want[c] += (x[c] - mean) * r * dy[c];
            scale[c] += (x[c].abs() + size) * r * dy[c].abs();
            if case.bias {
                want[case.dim + c] += dy[c];
                scale[case.dim + c] += dy[c].abs();
            }
        }
    }
    (want, scale)
}

#[test]
fn parameter_gradients_are_within_the_derived_bound() {
    for bias in [false, true] {
        for (rows, dim) in [(0, 8), (1, 1), (3, 15), (17, 16), (100, 33), (70, 150), (65, 576)] {
            let case = Case::new(rows, dim, bias);
            let before = numbers(7, 2 * dim);
            let (want, scale) = gradient_in_f64(&case, &before);
            // The row's statistics as in the forward, then a chain over the rows.
            let k = 2.0 * lane_chain(dim) + 8.0 + rows as f64;
            within("cpu", k, &gradient(&Cpu, &case, 0..rows, &before), &want, &scale);
            within("naive", 1.0, &gradient(&Naive, &case, 0..rows, &before), &want, &scale);
        }
    }
}

#[test]
fn parameter_gradients_agree_with_differences() {
    for bias in [false, true] {
        let (rows, dim) = (4, 7);
        let case = Case::new(rows, dim, bias);
        let params = [&case.weight[..], &case.b[..]].concat();
        let got = gradient(&Naive, &case, 0..rows, &vec![0.0; 2 * dim]);
        differences("dw, db", &got, &params, |p| {
            let row = |(x, dy): (&[f32], &[f32])| {
                let x = widen(x);
                let mean = if bias { x.iter().sum::<f64>() / 7.0 } else { 0.0 };
                let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 7.0;
                let r = 1.0 / (variance + f64::from(WIDTH_EPS)).sqrt();
                let shift = |c: usize| if bias { p[dim + c] } else { 0.0 };
                let y = |c: usize| p[c] * (x[c] - mean) * r + shift(c);
                (0..dim).map(|c| f64::from(dy[c]) * y(c)).sum::<f64>()
            };
            case.x.chunks(dim).zip(case.dy.chunks(dim)).map(row).sum()
        });
    }
}

#[test]
fn calls_continue_a_parameters_chain_on_any_threads() {
    for bias in [false, true] {
        let case = Case::new(90, 150, bias);
        let before = numbers(7, 300);
        let [whole, two, four] = on_threads(|| gradient(&Cpu, &case, 0..90, &before));
        same_bits("two threads", &two, &whole);
        same_bits("four threads", &four, &whole);
        for cut in [0, 1, 30, 89, 90] {
            let first = gradient(&Cpu, &case, 0..cut, &before);
            let both = gradient(&Cpu, &case, cut..90, &first);
            same_bits(&format!("cut at {cut}"), &both, &whole);
        }
    }
}

#[test]
fn parameter_gradients_outside_are_refused() {
    fn refused<B: Norm + Backend<Act = f32>>(b: &B) {
        let x = upload(b, &[1.0f32; 8]);
        let run = |len: usize, rows, weight_offset, bias_offset| {
            let mut grads: B::Buf<f32> = b.alloc(len).unwrap();
            b.norm_param_gradient(ParamGradient {
                centred: true,
                eps: 1e-5,
                x: Mat::new(&x, 4),
                dy: Mat::new(&x, 4),
                rows,
                dim: 4,
                grads: &mut grads,
                weight_offset,
                bias_offset,
            })
        };
        assert_eq!(run(8, 2, 4, Some(0)), Ok(()));
        assert!(matches!(run(8, 3, 0, None), Err(Error::Length { what: "x", .. })));
        assert!(matches!(run(8, 2, 5, None), Err(Error::Length { .. })));
        assert!(matches!(run(8, 2, usize::MAX, None), Err(Error::Length { .. })));
        assert!(matches!(run(8, 2, 0, Some(5)), Err(Error::Length { .. })));
        assert!(matches!(run(8, 2, 0, Some(3)), Err(Error::Routing { .. })));
    }
    refused(&Cpu);
    refused(&Naive);
}

#[test]
fn wrong_shapes_are_refused() {
    fn refused<B: Norm + Backend<Act = f32>>(b: &B) {
        let w: B::Buf<f32> = b.alloc(3).unwrap();
        let mut y: B::Buf<B::Act> = b.alloc(8).unwrap();
        let source: B::Buf<B::Act> = b.alloc(8).unwrap();
        let params = Params { weight: &w, bias: None, eps: 1e-5 };
        let args =
            Forward { params, x: Mat::new(&source, 4), y: MatMut::new(&mut y, 4), rows: 2, dim: 4 };
        assert!(matches!(b.norm_forward(args), Err(Error::Shape { what: "weight", .. })));
        let w: B::Buf<f32> = b.alloc(4).unwrap();
        let params = Params { weight: &w, bias: None, eps: 1e-5 };
        let (x, y) = (Mat::new(&source, 4), MatMut::new(&mut y, 4));
        let result = b.norm_forward(Forward { params, x, y, rows: 3, dim: 4 });
        assert!(matches!(result, Err(Error::Length { what: "x", .. })));
    }
    refused(&Cpu);
    refused(&Naive);
    assert_eq!(Backend::alloc::<f32>(&Cpu, 0).unwrap().len(), 0);
}
