//! Norms: rows against the reference, gradients of the parameters as one chain.

use crate::harness::{PLACES, Subject, Window, caught, checked, fast, rounded, within_bf16};
use crate::naive::{Naive, download, numbers, upload};
use crate::tolerance::{same_bits, within};
use emulator::Mode;
use kernels::norm::{Backward, Forward, Norm, ParamGradient, Params};
use std::ops::Range;

const SMALL: f32 = 1e-5;

struct Case {
    bias: bool,
    window: Window,
    x: Vec<f32>,
    dy: Vec<f32>,
    weight: Vec<f32>,
    b: Vec<f32>,
}

impl Case {
    fn new((rows, dim): (usize, usize), place: (usize, usize), bias: bool) -> Self {
        let x: Vec<f32> = numbers(1, rows * dim).iter().map(|v| 3.0 * v + 0.7).collect();
        let weight = numbers(2, dim).iter().map(|v| v + 1.2).collect();
        let (x, dy) = (rounded(&x), rounded(&numbers(3, rows * dim)));
        let window = Window::new(rows, dim, place);
        Self { bias, window, x, dy, weight, b: numbers(4, dim) }
    }

    /// Most additions in a row of the sums of the statistics: a lane's elements and the tree over lanes.
    fn chain(&self) -> f64 {
        (self.window.width.div_ceil(256) * 8 + 5) as f64
    }

    /// Mean, its absolute size, and `1 / sqrt(variance + eps)` of a row.
    fn statistics(&self, x: &[f32]) -> (f64, f64, f64) {
        let d = x.len() as f64;
        let sum = |f: &dyn Fn(f64) -> f64| x.iter().map(|v| f(f64::from(*v))).sum::<f64>() / d;
        let (mean, size) = if self.bias { (sum(&|v| v), sum(&f64::abs)) } else { (0.0, 0.0) };
        (mean, size, 1.0 / (sum(&|v| (v - mean).powi(2)) + f64::from(SMALL)).sqrt())
    }

    /// Sizes of the terms of `Y` and `dX`, which begins as `x`.
    fn scales(&self) -> (Vec<f64>, Vec<f64>) {
        let dim = self.window.width.max(1);
        let (mut y, mut dx) = (Vec::new(), Vec::new());
        for (x, dy) in self.x.chunks(dim).zip(self.dy.chunks(dim)) {
            let (_, size, r) = self.statistics(x);
            let g: Vec<f64> =
                dy.iter().zip(&self.weight).map(|(a, b)| f64::from(a * b).abs()).collect();
            let hat: Vec<f64> = x.iter().map(|v| (f64::from(v.abs()) + size) * r).collect();
            let along = g.iter().zip(&hat).map(|(a, b)| a * b).sum::<f64>() / dim as f64;
            let mean_g = if self.bias { g.iter().sum::<f64>() / dim as f64 } else { 0.0 };
            for c in 0..dim {
                let bias = if self.bias { f64::from(self.b[c].abs()) } else { 0.0 };
                y.push(f64::from(self.weight[c].abs()) * hat[c] + bias);
                dx.push(r * (g[c] + mean_g + hat[c] * along) + f64::from(x[c].abs()));
            }
        }
        (y, dx)
    }
}

/// `(Y, dX)`.
fn run<B: Norm + Subject>(b: &B, case: &Case) -> (Vec<f32>, Vec<f32>) {
    let w = case.window;
    let (x, dy) = (w.input(b, &case.x), w.input(b, &case.dy));
    let (weight, bias) = (upload(b, &case.weight), upload(b, &case.b));
    let params = Params { weight: &weight, bias: case.bias.then_some(&bias), eps: SMALL };
    let (mut y, mut dx) = (w.output(b), w.updated(b, &case.x));
    let (rows, dim) = (w.rows, w.width);
    b.norm_forward(Forward { params, x: w.mat(&x), y: w.mat_mut(&mut y), rows, dim }).unwrap();
    let (view, to) = ((w.mat(&x), w.mat(&dy)), w.mat_mut(&mut dx));
    b.norm_backward(Backward { params, x: view.0, dy: view.1, dx: to, rows, dim }).unwrap();
    (w.result(b, &y), w.result(b, &dx))
}

/// `dw`, then `db`, on top of `before`; from the rows in `range`.
fn gradient<B: Norm + Subject>(
    b: &B,
    case: &Case,
    range: Range<usize>,
    before: &[f32],
) -> Vec<f32> {
    let (w, dim) = (case.window, case.window.width);
    let (x, dy) = (w.input(b, &case.x), w.input(b, &case.dy));
    let mut grads = upload(b, &[&[7.0], before, &[7.0]].concat());
    let at = |buf| kernels::Mat { start: w.start + range.start * w.stride, ..w.mat(buf) };
    b.norm_param_gradient(ParamGradient {
        centred: case.bias,
        eps: SMALL,
        x: at(&x),
        dy: at(&dy),
        rows: range.len(),
        dim,
        grads: &mut grads,
        weight_offset: 1,
        bias_offset: case.bias.then_some(1 + dim),
    })
    .unwrap();
    let grads = download(b, &grads);
    assert!(grads[0] == 7.0 && grads[grads.len() - 1] == 7.0, "written beside the gradients");
    grads[1..grads.len() - 1].to_vec()
}

fn compare<B: Norm + Subject>(b: &B, case: &Case) {
    let what = format!("{:?} bias {}", case.window, case.bias);
    let (ours, theirs, scale) = (run(b, case), run(&Naive, case), case.scales());
    let k = 2.0 * case.chain() + 10.0;
    within_bf16(&format!("y {what}"), k, &ours.0, &theirs.0, &scale.0);
    within_bf16(&format!("dx {what}"), 2.0 * k, &ours.1, &theirs.1, &scale.1);
}

fn compare_gradient<B: Norm + Subject>(b: &B, case: &Case) {
    let (rows, dim) = (case.window.rows, case.window.width);
    let before = numbers(7, 2 * dim);
    let want = gradient(&Naive, case, 0..rows, &before);
    let mut scale: Vec<f64> = before.iter().map(|v| f64::from(v.abs())).collect();
    for (x, dy) in case.x.chunks(dim).zip(case.dy.chunks(dim)) {
        let (_, size, r) = case.statistics(x);
        for c in 0..dim {
            let dy = f64::from(dy[c].abs());
            scale[c] += (f64::from(x[c].abs()) + size) * r * dy;
            scale[dim + c] += dy;
        }
    }
    // The row's statistics, the term, a chain over the rows; the reference was rounded once.
    let k = 2.0 * case.chain() + 10.0 + rows as f64;
    let want: Vec<f64> = want.into_iter().map(f64::from).collect();
    let what = format!("gradient {:?} bias {}", case.window, case.bias);
    within(&what, k, &gradient(b, case, 0..rows, &before), &want, &scale);
}

#[test]
fn rows_are_within_the_derived_bound() {
    for bias in [false, true] {
        for shape in [(0, 8), (1, 1), (3, 15), (8, 16), (9, 100), (17, 264), (5, 576), (2, 2049)] {
            PLACES.iter().for_each(|&place| compare(fast(), &Case::new(shape, place, bias)));
        }
    }
}

#[test]
fn rows_do_not_see_each_other_nor_their_alignment() {
    for bias in [false, true] {
        let case = Case::new((11, 72), PLACES[0], bias);
        let whole = run(fast(), &case);
        let shifted = run(fast(), &Case::new((11, 72), PLACES[2], bias));
        same_bits("y elsewhere", &shifted.0, &whole.0);
        same_bits("dx elsewhere", &shifted.1, &whole.1);
        let at = 4 * 72..5 * 72;
        let (x, dy) = (case.x[at.clone()].to_vec(), case.dy[at.clone()].to_vec());
        let window = Window::new(1, 72, PLACES[1]);
        let alone = run(fast(), &Case { window, x, dy, ..Case::new((1, 72), PLACES[0], bias) });
        same_bits("y alone", &alone.0, &whole.0[at.clone()]);
        same_bits("dx alone", &alone.1, &whole.1[at]);
    }
}

#[test]
fn gradients_of_the_parameters_are_one_chain() {
    for bias in [false, true] {
        for shape in [(0, 8), (1, 1), (63, 31), (64, 32), (65, 33), (200, 70)] {
            compare_gradient(fast(), &Case::new(shape, PLACES[1], bias));
        }
        let case = Case::new((130, 40), PLACES[2], bias);
        let before = numbers(7, 80);
        let whole = gradient(fast(), &case, 0..130, &before);
        for cut in [0, 1, 64, 65, 129, 130] {
            let first = gradient(fast(), &case, 0..cut, &before);
            let both = gradient(fast(), &case, cut..130, &first);
            same_bits(&format!("cut at {cut}"), &both, &whole);
        }
    }
}

#[test]
fn every_access_is_checked() {
    for (shape, place) in [((0, 4), 0), ((9, 24), 1), ((3, 300), 2), ((5, 40), 0)] {
        let place = PLACES[place];
        for bias in [false, true] {
            compare(checked(), &Case::new(shape, place, bias));
            compare_gradient(checked(), &Case::new((shape.0, shape.1.min(40)), place, bias));
        }
    }
    compare_gradient(checked(), &Case::new((130, 33), PLACES[1], true));
}

#[test]
fn seeded_faults_are_caught() {
    caught(Mode::Checked, "NORM_TAIL", |b| compare(b, &Case::new((2, 13), PLACES[2], true)));
    let case = Case::new((130, 33), PLACES[0], true);
    caught(Mode::Checked, "NORM_SYNC", |b| compare_gradient(b, &case));
}
