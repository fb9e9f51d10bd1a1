//! Activations against the reference.

use crate::harness::{PLACES, Subject, Window, caught, checked, fast, rounded, within_bf16};
use crate::naive::{Naive, numbers};
use emulator::Mode;
use kernels::activation::{Activation, Backward, Forward, Kind};

struct Case {
    kind: Kind,
    /// Windows of the input and of the output.
    wide: Window,
    narrow: Window,
    x: Vec<f32>,
    dh: Vec<f32>,
}

impl Case {
    fn new(kind: Kind, (rows, dim): (usize, usize), place: (usize, usize)) -> Self {
        let wide = Window::new(rows, kind.in_dim(dim), place);
        let x: Vec<f32> = numbers(1, rows * wide.width).iter().map(|v| 9.0 * v).collect();
        let narrow = Window::new(rows, dim, place);
        Self { kind, wide, narrow, x: rounded(&x), dh: rounded(&numbers(2, rows * dim)) }
    }

    /// Sizes of the terms of `H` and `dX`.
    fn scales(&self) -> (Vec<f64>, Vec<f64>) {
        let (rows, dim) = (self.narrow.rows, self.narrow.width);
        let (mut h, mut dx) = (Vec::new(), vec![0.0; self.x.len()]);
        for i in 0..rows {
            for c in 0..dim {
                let at = |c: usize| f64::from(self.x[i * self.wide.width + c].abs());
                let dh = f64::from(self.dh[i * dim + c].abs());
                match self.kind {
                    Kind::SwiGlu => {
                        h.push(at(c) * at(dim + c));
                        dx[i * 2 * dim + c] = dh * at(dim + c) * (1.0 + at(c));
                        dx[i * 2 * dim + dim + c] = dh * at(c);
                    }
                    Kind::GeluNew => {
                        let u = at(c);
                        // The argument of sigma is off by a few roundings of itself, and sigma' <= sigma there.
                        let argument = 1.6 * u * (1.0 + 0.045 * u * u);
                        h.push(u * (1.0 + argument));
                        dx[i * dim + c] =
                            dh * (1.0 + argument) * (1.0 + 1.6 * u * (1.0 + 0.14 * u * u));
                    }
                }
            }
        }
        (h, dx)
    }
}

/// `(H, dX)`.
fn run<B: Activation + Subject>(b: &B, case: &Case) -> (Vec<f32>, Vec<f32>) {
    let (kind, rows, dim) = (case.kind, case.narrow.rows, case.narrow.width);
    let (x, dh) = (case.wide.input(b, &case.x), case.narrow.input(b, &case.dh));
    let (mut h, mut dx) = (case.narrow.output(b), case.wide.output(b));
    let (from, to) = (case.wide.mat(&x), case.narrow.mat_mut(&mut h));
    b.activation_forward(Forward { kind, x: from, h: to, rows, dim }).unwrap();
    let (dh, dx_to) = (case.narrow.mat(&dh), case.wide.mat_mut(&mut dx));
    b.activation_backward(Backward { kind, x: from, dh, dx: dx_to, rows, dim }).unwrap();
    (case.narrow.result(b, &h), case.wide.result(b, &dx))
}

fn compare<B: Activation + Subject>(b: &B, case: &Case) {
    let what = format!("{:?} {:?}", case.kind, case.narrow);
    let (ours, theirs, scale) = (run(b, case), run(&Naive, case), case.scales());
    // exp within 2 units, then at most ten roundings.
    within_bf16(&format!("h {what}"), 12.0, &ours.0, &theirs.0, &scale.0);
    within_bf16(&format!("dx {what}"), 16.0, &ours.1, &theirs.1, &scale.1);
}

#[test]
fn rows_are_within_the_derived_bound() {
    for kind in [Kind::SwiGlu, Kind::GeluNew] {
        for shape in [(0, 8), (1, 1), (3, 7), (2, 8), (5, 100), (3, 1536), (1, 2056)] {
            PLACES.iter().for_each(|&place| compare(fast(), &Case::new(kind, shape, place)));
        }
    }
}

#[test]
fn extreme_inputs_stay_finite() {
    for kind in [Kind::SwiGlu, Kind::GeluNew] {
        let mut case = Case::new(kind, (1, 8), PLACES[0]);
        case.x[..6].copy_from_slice(&rounded(&[1e4, -1e4, 100.0, -100.0, 0.0, -0.0]));
        compare(fast(), &case);
    }
}

#[test]
fn every_access_is_checked() {
    for kind in [Kind::SwiGlu, Kind::GeluNew] {
        for (shape, place) in [((1, 1), 2), ((3, 24), 0), ((2, 100), 1), ((2, 13), 2)] {
            compare(checked(), &Case::new(kind, shape, PLACES[place]));
        }
    }
}

#[test]
fn seeded_faults_are_caught() {
    let case = Case::new(Kind::SwiGlu, (2, 16), PLACES[0]);
    caught(Mode::Fast, "ACTIVATION_HALF", |b| compare(b, &case));
}
