//! Weights that train: their gradients and their renewal, on every backend against `f64`, finite
//! differences and candle; then the bits that the CPU promises.
#![expect(clippy::unwrap_used, reason = "a test panics when wrong; its numbers are small")]

mod naive;
mod tolerance;

use candle_core::{DType, Device, Tensor, Var};
use kernels::linear::cpu::aligned_storage;
use kernels::linear::{Backward, Forward, Layout, Linear, Shape, Trainable, WeightGradient};
use kernels::{Cpu, Error, Mat, MatMut};
use naive::{Naive, download, numbers, upload};
use std::ops::Range;
use tolerance::{differences, on_threads, same_bits, within};

/// Shapes `(d, n, rows)`: odd ones, whole panels, several blocks of rows of `W` and of `t`.
const SHAPES: [(usize, usize, usize); 8] = [
    (1, 1, 1),
    (7, 33, 3),
    (33, 7, 13),
    (64, 32, 12),
    (97, 64, 0),
    (40, 300, 25),
    (31, 50, 900),
    (65, 100, 1600),
];

/// One gradient; `grads` holds `dW`, then `db`, then what must not change.
#[derive(Clone)]
struct Case {
    shape: Shape,
    rows: usize,
    x: Vec<f32>,
    dy: Vec<f32>,
    before: Vec<f32>,
    bias: bool,
}

impl Case {
    fn new((d, n, rows): (usize, usize, usize)) -> Self {
        let seed = (d * 1009 + n * 31 + rows) as u64;
        Self {
            shape: Shape { in_dim: d, out_dim: n },
            rows,
            x: numbers(seed, rows * d),
            dy: numbers(seed + 1, rows * n),
            before: numbers(seed + 2, n * d + n),
            bias: true,
        }
    }

    /// `dW` and `db` after the gradient of rows `rows` on top of `before`.
    fn rows<B: Trainable<Act = f32>>(&self, b: &B, rows: Range<usize>, before: &[f32]) -> Vec<f32> {
        let Shape { in_dim: d, out_dim: n } = self.shape;
        let spread = |rows: &[f32], width: usize, extra: usize| -> Vec<f32> {
            let poison = vec![f32::NAN; extra];
            let row = |row: &[f32]| [row, &poison[..]].concat();
            [vec![f32::NAN; 2], rows.chunks(width).flat_map(row).collect()].concat()
        };
        let x = upload(b, &spread(&self.x[rows.start * d..rows.end * d], d, 3));
        let dy = upload(b, &spread(&self.dy[rows.start * n..rows.end * n], n, 1));
        // The bias lies before the weight; all around is poison.
        let (db_at, dw_at, poison) = (5, 5 + n + 4, [-77.5; 6]);
        let mut held = [&poison[..5], &before[n * d..], &poison[..4]].concat();
        held.extend([&before[..n * d], &poison[..]].concat());
        let mut grads = upload(b, &held);
        b.linear_weight_gradient(WeightGradient {
            shape: self.shape,
            x: Mat::at(&x, 2, d + 3),
            dy: Mat::at(&dy, 2, n + 1),
            rows: rows.len(),
            grads: &mut grads,
            weight_offset: dw_at,
            bias_offset: self.bias.then_some(db_at),
        })
        .unwrap();
        let grads = download(b, &grads);
        let inside =
            |i: usize| (db_at..db_at + n).contains(&i) || (dw_at..dw_at + n * d).contains(&i);
        for (i, v) in grads.iter().enumerate() {
            assert!(inside(i) || v.to_bits() == held[i].to_bits(), "element {i} was written");
        }
        [&grads[dw_at..dw_at + n * d], &grads[db_at..db_at + n]].concat()
    }

    fn run<B: Trainable<Act = f32>>(&self, b: &B) -> Vec<f32> {
        self.rows(b, 0..self.rows, &self.before)
    }

    /// The terms of element `e` of `dW`, then `db`, in the order of the contract.
    fn terms(&self, e: usize) -> Vec<(f32, f32)> {
        let Shape { in_dim: d, out_dim: n } = self.shape;
        let term = |t: usize| match e < n * d {
            true => (self.dy[t * n + e / d], self.x[t * d + e % d]),
            false => (self.dy[t * n + e - n * d], 1.0),
        };
        (0..self.rows).map(term).collect()
    }
}

fn agrees_with_f64<B: Trainable<Act = f32>>(b: &B) {
    for of in SHAPES {
        let case = Case::new(of);
        let (mut want, mut scale) = (Vec::new(), Vec::new());
        for (e, before) in case.before.iter().enumerate() {
            let terms = case.terms(e).into_iter().map(|(a, b)| f64::from(a) * f64::from(b));
            let terms: Vec<f64> = terms.chain([f64::from(*before)]).collect();
            want.push(terms.iter().sum());
            scale.push(terms.iter().map(|t| t.abs()).sum());
        }
        within(&format!("{of:?}"), case.rows as f64 + 1.0, &case.run(b), &want, &scale);
    }
}

#[test]
fn every_backend_agrees_with_f64() {
    agrees_with_f64(&Naive);
    agrees_with_f64(&Cpu);
}

fn is_exact_on_small_integers<B: Trainable<Act = f32>>(b: &B) {
    let mut case = Case::new((67, 45, 190));
    for v in [&mut case.x, &mut case.dy, &mut case.before] {
        v.iter_mut().for_each(|v| *v = (*v * 8.0).floor());
    }
    let sum =
        |(e, before): (usize, &f32)| before + case.terms(e).iter().map(|t| t.0 * t.1).sum::<f32>();
    let want: Vec<f32> = case.before.iter().enumerate().map(sum).collect();
    same_bits("integers", &case.run(b), &want);
}

#[test]
fn every_backend_is_exact_on_small_integers() {
    is_exact_on_small_integers(&Naive);
    is_exact_on_small_integers(&Cpu);
}

#[test]
fn without_a_bias_only_the_weight_moves() {
    let mut case = Case::new((20, 9, 30));
    let both = case.run(&Cpu);
    case.bias = false;
    let weight = case.run(&Cpu);
    same_bits("dW", &weight[..180], &both[..180]);
    same_bits("db", &weight[180..], &case.before[180..]);
}

#[test]
fn naive_gradient_agrees_with_differences() {
    // L = Σ tanh(x·Wᵀ + b), whose dY is 1 - tanh².
    let (d, n, rows) = (5, 3, 4);
    let mut case = Case::new((d, n, rows));
    let params = numbers(9, n * d + n);
    let y = |p: &[f64], x: &[f32], o: usize| {
        (0..d).map(|i| p[o * d + i] * f64::from(x[i])).sum::<f64>() + p[n * d + o]
    };
    let at: Vec<f64> = params.iter().map(|v| f64::from(*v)).collect();
    for (t, x) in case.x.chunks(d).enumerate() {
        for o in 0..n {
            case.dy[t * n + o] = naive::round(1.0 - y(&at, x, o).tanh().powi(2));
        }
    }
    case.before.fill(0.0);
    differences("dW, db", &case.run(&Naive), &params, |p| {
        case.x.chunks(d).map(|x| (0..n).map(|o| y(p, x, o).tanh()).sum::<f64>()).sum()
    });
}

#[test]
fn candle_agrees() {
    let (d, n, rows) = (48, 65, 70);
    let case = Case::new((d, n, rows));
    let tensor = |v: &[f32], shape: (usize, usize)| {
        let t = Tensor::new(v, &Device::Cpu).unwrap().reshape(shape).unwrap();
        t.to_dtype(DType::F64).unwrap()
    };
    let w = Var::from_tensor(&tensor(&numbers(1, n * d), (n, d))).unwrap();
    let b = Var::from_tensor(&tensor(&numbers(2, n), (1, n))).unwrap();
    let y = tensor(&case.x, (rows, d)).matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
    let loss = (y * tensor(&case.dy, (rows, n))).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    let flat = |v: &Var| grads.get(v).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let mut want = flat(&w);
    want.extend(flat(&b));
    let scale =
        |e: usize| 1.0 + case.terms(e).iter().map(|t| f64::from(t.0 * t.1).abs()).sum::<f64>();
    let scale: Vec<f64> = (0..want.len()).map(scale).collect();
    want.iter_mut().zip(&case.before).for_each(|(w, b)| *w += f64::from(*b));
    within("candle", rows as f64 + 1.0, &case.run(&Cpu), &want, &scale);
}

#[test]
fn an_element_is_one_chain_that_calls_continue() {
    for of in SHAPES {
        let case = Case::new(of);
        let whole = case.run(&Cpu);
        for (e, before) in case.before.iter().enumerate() {
            let chain = case.terms(e).iter().fold(*before, |s, (dy, x)| dy.mul_add(*x, s));
            assert_eq!(whole[e].to_bits(), chain.to_bits(), "{of:?}: element {e}");
        }
        for cut in [0, 1, case.rows / 3, case.rows] {
            let cut = cut.min(case.rows);
            let first = case.rows(&Cpu, 0..cut, &case.before);
            let both = case.rows(&Cpu, cut..case.rows, &first);
            same_bits(&format!("{of:?} cut at {cut}"), &both, &whole);
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for of in [(384, 384, 200), (70, 1000, 77), (1000, 5, 300), (128, 128, 1024)] {
        let case = Case::new(of);
        let [one, two, four] = on_threads(|| case.run(&Cpu));
        same_bits("two threads", &two, &one);
        same_bits("four threads", &four, &one);
    }
}

#[test]
fn a_bad_column_spoils_no_other() {
    let (d, n, rows) = (40, 50, 30);
    let clean = Case::new((d, n, rows));
    let mut bad = clean.clone();
    bad.dy[7 * n + 3] = f32::INFINITY;
    bad.x[9 * d + 5] = f32::INFINITY;
    let (clean, bad) = (clean.run(&Cpu), bad.run(&Cpu));
    for e in 0..n * d + n {
        let hit = if e < n * d { e / d == 3 || e % d == 5 } else { e - n * d == 3 };
        assert_eq!(clean[e].to_bits() == bad[e].to_bits(), !hit, "element {e}");
    }
}

fn refuses_what_does_not_fit<B: Trainable<Act = f32>>(b: &B) {
    let shape = Shape { in_dim: 5, out_dim: 4 };
    let (x, dy) = (upload(b, &[1.0f32; 10]), upload(b, &[1.0f32; 8]));
    let gradient = |len: usize, rows, weight_offset, bias_offset| {
        let mut grads = upload(b, &vec![0.0f32; len]);
        let result = b.linear_weight_gradient(WeightGradient {
            shape,
            x: Mat::new(&x, 5),
            dy: Mat::new(&dy, 4),
            rows,
            grads: &mut grads,
            weight_offset,
            bias_offset,
        });
        assert!(result.is_ok() || download(b, &grads).iter().all(|g| *g == 0.0), "written");
        result
    };
    let short = |r: Result<(), Error>| assert!(matches!(r, Err(Error::Length { .. })), "{r:?}");
    assert_eq!(gradient(24, 2, 0, Some(20)), Ok(()));
    assert_eq!(gradient(24, 2, 4, Some(0)), Ok(()));
    assert_eq!(gradient(20, 0, 0, None), Ok(()));
    short(gradient(24, 3, 0, None));
    short(gradient(19, 2, 0, None));
    short(gradient(24, 2, 5, None));
    short(gradient(24, 0, 5, None));
    short(gradient(24, 2, usize::MAX, None));
    short(gradient(24, 2, 0, Some(21)));
    short(gradient(24, 2, 0, Some(usize::MAX - 1)));
    for bias in [0, 1, 19] {
        let result = gradient(48, 2, 0, Some(bias));
        assert!(matches!(result, Err(Error::Routing { .. })), "{result:?}");
    }
    let result = gradient(48, 2, 10, Some(7));
    assert!(matches!(result, Err(Error::Routing { .. })), "{result:?}");
}

#[test]
fn every_backend_refuses_what_does_not_fit() {
    refuses_what_does_not_fit(&Naive);
    refuses_what_does_not_fit(&Cpu);
}

/// `Y` and `dX` of a weight.
fn products<B: Linear<Act = f32>>(b: &B, weight: &B::Weight) -> [Vec<f32>; 2] {
    let (Shape { in_dim: d, out_dim: n }, rows) = (b.shape(weight), 5);
    let (x, dy) = (upload(b, &numbers(1, rows * d)), upload(b, &numbers(2, rows * n)));
    let (mut y, mut dx) = (b.alloc(rows * n).unwrap(), b.alloc(rows * d).unwrap());
    let to = MatMut::new(&mut y, n);
    let (bias, residual) = (None, None);
    b.linear_forward(Forward { x: Mat::new(&x, d), weight, bias, residual, y: to, rows }).unwrap();
    let (from, to) = (Mat::new(&dy, n), MatMut::new(&mut dx, d));
    b.linear_backward(Backward { dy: from, weight, dx: to, accumulate: false, rows }).unwrap();
    [download(b, &y), download(b, &dx)]
}

fn refreshed_weight_is_the_prepared_one<B: Trainable<Act = f32>>(b: &B) {
    for (d, n) in [(1, 1), (7, 33), (33, 7), (64, 96), (100, 31), (31, 100)] {
        let shape = Shape { in_dim: d, out_dim: n };
        let mut weight = b.trainable(shape).unwrap();
        assert_eq!(b.shape(&weight), shape);
        assert!(products(b, &weight).iter().flatten().all(|v| *v == 0.0), "begins as zeros");
        for seed in [3, 4] {
            let params = numbers(seed, 11 + n * d + 2);
            b.refresh(&mut weight, &upload(b, &params), 11).unwrap();
            let storage = aligned_storage(b.prepared_len(shape), |dst| {
                b.prepare(shape, Layout::OutIn, &params[11..11 + n * d], dst).unwrap();
            });
            let prepared = b.weight(shape, &storage, 0).unwrap();
            let (ours, theirs) = (products(b, &weight), products(b, &prepared));
            same_bits("y", &ours[0], &theirs[0]);
            same_bits("dx", &ours[1], &theirs[1]);
        }
    }
}

#[test]
fn a_refreshed_weight_is_the_prepared_one_bit_for_bit() {
    refreshed_weight_is_the_prepared_one(&Naive);
    refreshed_weight_is_the_prepared_one(&Cpu);
}

fn refresh_refuses<B: Trainable<Act = f32>>(b: &B) {
    let shape = Shape { in_dim: 5, out_dim: 4 };
    let params = upload(b, &[1.0f32; 22]);
    let storage = aligned_storage(b.prepared_len(shape), |dst| dst.fill(2.0));
    let mut shared = b.weight(shape, &storage, 0).unwrap();
    let result = b.refresh(&mut shared, &params, 0);
    assert!(matches!(result, Err(Error::Routing { op: "refresh", .. })), "{result:?}");
    assert!(
        (*storage).as_ref().iter().all(|v| v.to_bits() == 2.0f32.to_bits()),
        "the storage changed"
    );
    let mut own = b.trainable(shape).unwrap();
    for offset in [3, 22, usize::MAX] {
        let result = b.refresh(&mut own, &params, offset);
        assert!(matches!(result, Err(Error::Length { op: "refresh", .. })), "{result:?}");
    }
    assert!(products(b, &own).iter().flatten().all(|v| *v == 0.0));
    b.refresh(&mut own, &params, 2).unwrap();
    assert!(products(b, &own).iter().flatten().any(|v| *v != 0.0));
}

#[test]
fn refresh_refuses_shared_memory_and_ranges_outside() {
    refresh_refuses(&Naive);
    refresh_refuses(&Cpu);
}

#[test]
fn a_clone_is_a_weight_of_its_own() {
    let shape = Shape { in_dim: 40, out_dim: 33 };
    let params = upload(&Cpu, &numbers(5, 40 * 33));
    let mut weight = Cpu.trainable(shape).unwrap();
    let before = weight.clone();
    Cpu.refresh(&mut weight, &params, 0).unwrap();
    assert!(products(&Cpu, &before).iter().flatten().all(|v| *v == 0.0));
}

fn vectors<B: Trainable>(b: &B) {
    let params = upload(b, &numbers(1, 20));
    let mut dst: B::Buf<f32> = b.alloc(7).unwrap();
    b.refresh_vector(&mut dst, &params, 13).unwrap();
    same_bits("vector", &download(b, &dst), &numbers(1, 20)[13..]);
    for offset in [14, usize::MAX] {
        let result = b.refresh_vector(&mut dst, &params, offset);
        assert!(matches!(result, Err(Error::Length { op: "refresh_vector", .. })));
    }
}

#[test]
fn a_vector_is_copied_out_of_the_parameters() {
    vectors(&Naive);
    vectors(&Cpu);
}
