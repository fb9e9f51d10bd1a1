//! Head loss on every backend, against naive, finite differences and candle.
#![expect(clippy::unwrap_used, reason = "a test panics when wrong; its data is small and exact")]

mod naive;
mod tolerance;

use candle_core::{D, DType, Device, Tensor, Var};
use kernels::backend::{Backend, Mat, MatMut};
use kernels::linear::{HostStorage, Layout, Shape};
use kernels::loss::{HeadLoss, Loss};
use kernels::{Cpu, Error};
use naive::{Naive, download, numbers, upload};
use std::sync::Arc;
use tolerance::{differences, no_worse, on_threads, same_bits};

#[derive(Clone)]
struct Case {
    dim: usize,
    vocab: usize,
    /// `[vocab, dim]`.
    head: Vec<f32>,
    x: Vec<f32>,
    targets: Vec<u32>,
    weights: Vec<f32>,
}

impl Case {
    fn new(rows: usize, dim: usize, vocab: usize) -> Self {
        let target = |i: usize| u32::try_from((i * 7919 + vocab - 1) % vocab).unwrap();
        Self {
            dim,
            vocab,
            head: numbers(1, vocab * dim),
            x: numbers(2, rows * dim).iter().map(|x| 3.0 * x).collect(),
            targets: (0..rows).map(target).collect(),
            weights: numbers(3, rows).iter().map(|w| w.abs() + 0.01).collect(),
        }
    }

    fn row(&self, i: usize) -> Self {
        Self {
            x: self.x[i * self.dim..][..self.dim].to_vec(),
            targets: vec![self.targets[i]],
            weights: vec![self.weights[i]],
            ..self.clone()
        }
    }
}

/// `(losses, dX)`; outputs and workspace begin as NaN.
fn try_run<B: Loss + Backend<Act = f32>>(
    b: &B,
    case: &Case,
    gradient: bool,
) -> Result<(Vec<f32>, Vec<f32>), Error> {
    let shape = Shape { in_dim: case.dim, out_dim: case.vocab };
    let mut prepared = vec![0.0; b.prepared_len(shape)];
    b.prepare(shape, Layout::OutIn, &case.head, &mut prepared).unwrap();
    let storage: HostStorage = Arc::new(prepared);
    let head = b.weight(shape, &storage, 0).unwrap();
    let rows = case.targets.len();
    let x = upload(b, &case.x);
    let mut losses = upload(b, &vec![f32::NAN; rows]);
    let mut dx = upload(b, &vec![f32::NAN; rows * case.dim]);
    let mut work = upload(b, &vec![f32::NAN; b.head_loss_workspace(rows, case.dim, case.vocab)]);
    b.head_loss(HeadLoss {
        x: Mat::new(&x, case.dim),
        head: &head,
        targets: &upload(b, &case.targets),
        weights: &upload(b, &case.weights),
        losses: &mut losses,
        dx: gradient.then(|| MatMut::new(&mut dx, case.dim)),
        work: &mut work,
        rows,
    })?;
    Ok((download(b, &losses), download(b, &dx)))
}

fn run<B: Loss + Backend<Act = f32>>(b: &B, case: &Case) -> (Vec<f32>, Vec<f32>) {
    try_run(b, case, true).unwrap()
}

/// Plain `f32` loops: their error is the yardstick.
fn plain(case: &Case) -> (Vec<f32>, Vec<f32>) {
    let (mut losses, mut gradient) = (Vec::new(), Vec::new());
    for ((x, &y), w) in case.x.chunks(case.dim).zip(&case.targets).zip(&case.weights) {
        let rows = || case.head.chunks(case.dim);
        let logits: Vec<f32> =
            rows().map(|h| h.iter().zip(x).fold(0.0f32, |s, (h, x)| s + h * x)).collect();
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total = logits.iter().fold(0.0f32, |s, l| s + (l - top).exp());
        losses.push(top + total.ln() - logits[y as usize]);
        let mut dx = vec![0.0f32; case.dim];
        for (v, (h, l)) in rows().zip(&logits).enumerate() {
            let p = (l - top).exp() / total - if v == y as usize { 1.0 } else { 0.0 };
            dx.iter_mut().zip(h).for_each(|(d, h)| *d += w * p * h);
        }
        gradient.extend(dx);
    }
    (losses, gradient)
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

#[test]
fn cpu_is_as_exact_as_plain_loops() {
    for (rows, dim, vocab) in [
        (0, 8, 10),
        (1, 8, 1),
        (3, 16, 40),
        (20, 33, 513),
        (9, 20, 4097),
        (300, 8, 9000),
        (5, 100, 600),
    ] {
        let case = Case::new(rows, dim, vocab);
        let (ours, theirs, plain) = (run(&Cpu, &case), run(&Naive, &case), plain(&case));
        let label = format!("{rows} {dim} {vocab}");
        no_worse(&format!("{label} loss"), 2.0, &ours.0, &plain.0, &widen(&theirs.0));
        no_worse(&format!("{label} dx"), 3.0, &ours.1, &plain.1, &widen(&theirs.1));
        let (losses, untouched) = try_run(&Cpu, &case, false).unwrap();
        same_bits("losses alone", &losses, &ours.0);
        assert!(untouched.iter().all(|x| x.is_nan()));
    }
}

#[test]
fn rows_do_not_see_each_other_nor_the_threads() {
    let mut case = Case::new(270, 24, 8200);
    let all = on_threads(|| run(&Cpu, &case));
    for other in &all[1..] {
        same_bits("losses", &all[0].0, &other.0);
        same_bits("dx", &all[0].1, &other.1);
    }
    case.x[100 * 24 + 3] = f32::NAN;
    case.x[101 * 24] = f32::INFINITY;
    let poisoned = run(&Cpu, &case);
    for i in 0..270 {
        let at = i * 24..(i + 1) * 24;
        if i == 100 || i == 101 {
            assert!(!poisoned.0[i].is_finite() && poisoned.1[at].iter().all(|d| d.is_nan()));
            continue;
        }
        assert_eq!(all[0].0[i].to_bits(), poisoned.0[i].to_bits());
        same_bits("beside NaN", &all[0].1[at.clone()], &poisoned.1[at.clone()]);
        if i % 13 == 0 {
            let alone = run(&Cpu, &case.row(i));
            assert_eq!(all[0].0[i].to_bits(), alone.0[0].to_bits());
            same_bits("alone", &all[0].1[at], &alone.1);
        }
    }
}

#[test]
fn far_out_logits_and_weight_zero() {
    let mut case = Case::new(4, 8, 5000);
    case.x.iter_mut().for_each(|x| *x *= 1e4);
    case.weights[1] = 0.0;
    let (losses, dx) = run(&Cpu, &case);
    assert!(losses.iter().chain(&dx).all(|x| x.is_finite()), "{losses:?}");
    assert!(dx[8..16].iter().all(|d| *d == 0.0));
    // One logit far above all others, in the last chunk: it takes all the probability.
    case.head.fill(0.0);
    case.head[4999 * 8] = 1.0;
    case.x.iter_mut().step_by(8).for_each(|x| *x = 200.0);
    case.targets.fill(4999);
    let (losses, dx) = run(&Cpu, &case);
    assert!(losses.iter().chain(&dx).all(|x| *x == 0.0), "{losses:?} {dx:?}");
    case.targets.fill(0);
    assert_eq!(run(&Cpu, &case).0, [200.0; 4]);
}

#[test]
fn naive_gradient_agrees_with_differences() {
    let case = Case::new(3, 5, 11);
    let (_, dx) = run(&Naive, &case);
    differences("dx", &dx, &case.x, |x| {
        let rows = x.chunks(5).zip(&case.targets).zip(&case.weights);
        rows.map(|((x, y), w)| {
            let logit =
                |v: usize| (0..5).map(|i| x[i] * f64::from(case.head[v * 5 + i])).sum::<f64>();
            let total: f64 = (0..11).map(|v| logit(v).exp()).sum();
            f64::from(*w) * (total.ln() - logit(*y as usize))
        })
        .sum()
    });
}

#[test]
fn candle_agrees() {
    let case = Case::new(12, 20, 700);
    let dev = Device::Cpu;
    let tensor = |v: &[f32], shape: (usize, usize)| {
        Tensor::new(v, &dev).unwrap().to_dtype(DType::F64).unwrap().reshape(shape).unwrap()
    };
    let x = Var::from_tensor(&tensor(&case.x, (12, 20))).unwrap();
    let logits = x.matmul(&tensor(&case.head, (700, 20)).t().unwrap()).unwrap();
    let log_p = candle_nn::ops::log_softmax(&logits, D::Minus1).unwrap();
    let targets = Tensor::new(case.targets.as_slice(), &dev).unwrap().unsqueeze(1).unwrap();
    let losses = log_p.gather(&targets, 1).unwrap().neg().unwrap();
    let total = (&losses * tensor(&case.weights, (12, 1))).unwrap().sum_all().unwrap();
    let grads = total.backward().unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (ours, plain) = (run(&Cpu, &case), plain(&case));
    no_worse("losses", 2.0, &ours.0, &plain.0, &flat(&losses));
    no_worse("dx", 3.0, &ours.1, &plain.1, &flat(grads.get(&x).unwrap()));
}

#[test]
fn a_target_outside_the_vocabulary_is_refused() {
    fn refused<B: Loss + Backend<Act = f32>>(b: &B) {
        let mut case = Case::new(3, 4, 10);
        case.targets[1] = 10;
        assert!(matches!(try_run(b, &case, true), Err(Error::Routing { op: "head_loss", .. })));
    }
    refused(&Cpu);
    refused(&Naive);
}
