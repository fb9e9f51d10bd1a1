//! Head and cross-entropy over one and several chunks of the vocabulary.

use crate::harness::{
    Emulated, HALF_ULP, PLACES, Subject, Window, caught, checked, fast, own, rounded,
    within_rounding,
};
use crate::naive::{Naive, numbers, upload};
use crate::tolerance::{EPS, same_bits};
use emulator::Mode;
use kernels::Error;
use kernels::linear::{HostStorage, Layout, Shape};
use kernels::loss::{HeadLoss, Loss};
use std::sync::Arc;

#[derive(Clone)]
struct Case {
    window: Window,
    vocab: usize,
    /// `[vocab, dim]`.
    head: Vec<f32>,
    x: Vec<f32>,
    targets: Vec<u32>,
    weights: Vec<f32>,
}

impl Case {
    fn new((rows, dim, vocab): (usize, usize, usize), place: (usize, usize)) -> Self {
        // Later columns are larger: the largest logit so far changes from chunk to chunk.
        let grown = |(i, v): (usize, &f32)| v * (1.0 + 2.0 * i as f32 / (vocab * dim) as f32);
        let head: Vec<f32> = numbers(1, vocab * dim).iter().enumerate().map(grown).collect();
        let x: Vec<f32> = numbers(2, rows * dim).iter().map(|x| 2.0 * x).collect();
        Self {
            window: Window::new(rows, dim, place),
            vocab,
            head: rounded(&head),
            x: rounded(&x),
            targets: (0..rows).map(|i| ((i * 7919 + vocab - 1) % vocab) as u32).collect(),
            weights: numbers(3, rows).iter().map(|w| w.abs() + 0.01).collect(),
        }
    }

    fn row(&self, i: usize, place: (usize, usize)) -> Self {
        let dim = self.window.width;
        Self {
            window: Window::new(1, dim, place),
            x: self.x[i * dim..][..dim].to_vec(),
            targets: vec![self.targets[i]],
            weights: vec![self.weights[i]],
            ..self.clone()
        }
    }

    /// Absolute errors, before the last rounding, of the losses and of `dX`.
    ///
    /// A logit is off by a chain over `d`. An exponential is off by that of two logits (its own and the largest), by the
    /// rounding of their difference, by its own and by those of the shrinking (two a chunk), relatively; in `dX` by
    /// one rounding to `bf16` more. Sums of exponentials are chains of a thread's sixteen, the tree's eight and one a
    /// chunk; sums of `dX` chains over the vocabulary.
    fn errors(&self) -> (Vec<f64>, Vec<f64>) {
        let dim = self.window.width;
        let chunks = self.vocab.div_ceil(4096) as f64;
        let (mut losses, mut dx) = (Vec::new(), Vec::new());
        for (row, x) in self.x.chunks(dim).enumerate() {
            let terms: Vec<(f64, f64)> = (self.head.chunks(dim))
                .map(|w| {
                    let terms = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()))
                })
                .collect();
            let top = terms.iter().fold(f64::NEG_INFINITY, |m, (l, _)| m.max(*l));
            let low = terms.iter().fold(f64::INFINITY, |m, (l, _)| m.min(*l));
            let size = terms.iter().fold(0.0f64, |m, (_, s)| m.max(*s));
            let total: f64 = terms.iter().map(|(l, _)| (l - top).exp()).sum();
            let logit = dim as f64 * EPS * size;
            let exponential = 2.0 * logit + EPS * (top - low + 2.0 + 3.0 * chunks);
            let sum = exponential + EPS * (24.0 + chunks);
            let target = self.targets[row] as usize;
            let loss = total.ln() + top - terms[target].0;
            losses.push(2.0 * logit + sum + EPS * (total.ln() + 2.0 * loss + 1.0));
            let relative = HALF_ULP + exponential + sum + EPS * (self.vocab as f64 + 6.0);
            dx.extend((0..dim).map(|i| {
                let p = |v: usize| (terms[v].0 - top).exp() / total;
                let w = |v: usize| f64::from(self.head[v * dim + i].abs());
                let others = (0..self.vocab).filter(|v| *v != target);
                let pull: f64 = others.map(|v| p(v) * (w(v) + w(target))).sum();
                f64::from(self.weights[row]) * pull * relative
            }));
        }
        (losses, dx)
    }
}

/// `(losses, dX)`; outputs and workspace begin as poison.
fn try_run<B: Loss + Subject>(
    b: &B,
    case: &Case,
    gradient: bool,
) -> Result<(Vec<f32>, Vec<f32>), Error> {
    run_and(b, case, gradient, || Ok(()))
}

/// What a refused call leaves behind.
fn run_refused(b: &Emulated, case: &Case) -> (Vec<f32>, Vec<f32>) {
    let then = || {
        assert!(b.check_refusal().is_err(), "nothing was refused");
        Ok(())
    };
    run_and(b, case, true, then).unwrap()
}

/// Calls `then` before it reads the results.
fn run_and<B: Loss + Subject>(
    b: &B,
    case: &Case,
    gradient: bool,
    then: impl FnOnce() -> Result<(), Error>,
) -> Result<(Vec<f32>, Vec<f32>), Error> {
    let shape = Shape { in_dim: case.window.width, out_dim: case.vocab };
    let mut prepared = vec![0.0; b.prepared_len(shape)];
    b.prepare(shape, Layout::OutIn, &case.head, &mut prepared).unwrap();
    let storage: HostStorage = Arc::new(prepared);
    let head = b.weight(shape, &storage, 0).unwrap();
    let rows = case.window.rows;
    let x = case.window.input(b, &case.x);
    let mut losses = b.alloc::<f32>(rows).unwrap();
    b.poison(&mut losses, 0, rows);
    let mut dx = case.window.output(b);
    let len = b.head_loss_workspace(rows, shape.in_dim, shape.out_dim);
    let mut work = b.alloc::<f32>(len).unwrap();
    b.poison(&mut work, 0, len);
    b.head_loss(HeadLoss {
        x: case.window.mat(&x),
        head: &head,
        targets: &upload(b, &case.targets),
        weights: &upload(b, &case.weights),
        losses: &mut losses,
        dx: gradient.then(|| case.window.mat_mut(&mut dx)),
        work: &mut work,
        rows,
    })?;
    then()?;
    let mut got = vec![0.0; rows];
    b.read(&losses, 0, &mut got)?;
    Ok((got, case.window.result(b, &dx)))
}

fn run<B: Loss + Subject>(b: &B, case: &Case) -> (Vec<f32>, Vec<f32>) {
    try_run(b, case, true).unwrap()
}

fn compare(b: &Emulated, case: &Case) {
    let what = format!("{:?} of {}", case.window, case.vocab);
    let (ours, theirs, errors) = (run(b, case), run(&Naive, case), case.errors());
    for (i, ((got, want), allowed)) in ours.0.iter().zip(&theirs.0).zip(errors.0).enumerate() {
        let error = f64::from((got - want).abs());
        assert!(error <= allowed, "loss {what}[{i}]: {got} for {want}: allowed {allowed:e}");
    }
    within_rounding(&format!("dx {what}"), &ours.1, &theirs.1, &errors.1);
}

#[test]
fn losses_and_gradients_are_within_the_derived_bound() {
    let shapes = [(0, 8, 16), (1, 1, 1), (3, 15, 7), (5, 24, 100), (2, 300, 30), (4, 16, 4096)];
    for shape in shapes.into_iter().chain([(3, 24, 4097), (4, 13, 9001)]) {
        PLACES.iter().for_each(|&place| compare(fast(), &Case::new(shape, place)));
    }
    // More rows than are taken together.
    compare(fast(), &Case::new((2051, 3, 9), PLACES[1]));
}

#[test]
fn a_row_that_is_almost_certain_keeps_its_gradient() {
    // The target's logit is the largest by about ten: its probability is 1 - 1e-4 or so.
    let mut case = Case::new((6, 32, 4100), PLACES[0]);
    for (x, target) in case.x.chunks_mut(32).zip(&case.targets) {
        let w = &case.head[*target as usize * 32..][..32];
        let size: f32 = w.iter().map(|w| w * w).sum();
        x.iter_mut().zip(w).for_each(|(x, w)| *x = w * 60.0 / size);
    }
    case.x = rounded(&case.x);
    compare(fast(), &case);
    let largest = run(fast(), &case).0.into_iter().fold(0.0, f32::max);
    assert!(largest < 0.1, "the case is not certain: {largest}");
}

#[test]
fn rows_do_not_see_each_other() {
    let case = Case::new((5, 24, 4200), PLACES[1]);
    let (losses, dx) = run(fast(), &case);
    for row in 0..5 {
        let (loss, alone) = run(fast(), &case.row(row, PLACES[row % 3]));
        same_bits("loss alone", &loss, &losses[row..=row]);
        same_bits("dx alone", &alone, &dx[row * 24..][..24]);
    }
}

#[test]
fn losses_alone_have_the_same_bits() {
    let case = Case::new((5, 24, 4200), PLACES[0]);
    let with = run(fast(), &case).0;
    let (alone, dx) = try_run(fast(), &case, false).unwrap();
    same_bits("losses", &alone, &with);
    assert!(dx.iter().all(|v| v.is_nan()), "a gradient that nobody asked for");
}

#[test]
fn the_order_of_warps_changes_nothing() {
    let (b, case) = (own(), Case::new((3, 24, 4200), PLACES[0]));
    let plain = run(&b, &case);
    for seed in [1, 2, 3] {
        b.device().set_order(seed);
        let (losses, dx) = run(&b, &case);
        same_bits("losses in another order", &losses, &plain.0);
        same_bits("dx in another order", &dx, &plain.1);
    }
}

#[test]
fn a_target_outside_the_vocabulary_is_refused_and_its_row_left_alone() {
    let b = own();
    for vocab in [50, 4100] {
        let mut case = Case::new((4, 16, vocab), PLACES[0]);
        let whole = run(&b, &case);
        case.targets[2] = vocab as u32;
        let told = |error: Error| error.to_string();
        let error = try_run(&b, &case, true).map(|_| ()).map_err(told);
        assert_eq!(error, Err(format!("head_loss: row 2: target {vocab} is out of range")));
        // The rows beside it are what they were, it is still poison.
        let (losses, dx) = run_refused(&b, &case);
        for row in [0, 1, 3] {
            same_bits("loss beside", &losses[row..=row], &whole.0[row..=row]);
            same_bits("dx beside", &dx[row * 16..][..16], &whole.1[row * 16..][..16]);
        }
        assert!(losses[2].is_nan() && dx[32..48].iter().all(|v| v.is_nan()));
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    let case = Case::new((4, 16, 4100), PLACES[0]);
    let (losses, dx) = run(fast(), &case);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut sick = case.clone();
        sick.x[16 + 3] = bad;
        let (l, d) = run(fast(), &sick);
        assert!(l[1].is_nan() && d[16..32].iter().any(|v| v.is_nan()), "{bad} was lost");
        for row in [0, 2, 3] {
            same_bits("loss", &l[row..=row], &losses[row..=row]);
            same_bits("dx", &d[row * 16..][..16], &dx[row * 16..][..16]);
        }
    }
}

#[test]
fn every_access_is_checked() {
    for (shape, place) in [((0, 4, 4), 0), ((3, 13, 20), 2), ((5, 8, 33), 0), ((2, 24, 4099), 1)] {
        compare(checked(), &Case::new(shape, PLACES[place]));
    }
}

#[test]
fn seeded_faults_are_caught() {
    for (mode, fault) in [(Mode::Fast, "LOSS_SHRINK"), (Mode::Checked, "LOSS_SYNC")] {
        caught(mode, fault, |b| compare(b, &Case::new((3, 24, 4200), PLACES[0])));
    }
}
