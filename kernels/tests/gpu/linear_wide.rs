//! Products with `f32` results, and `f32` numbers rounded on their way into one.

use crate::harness::{Emulated, PLACES, Subject, Window, caught, checked, fast, rounded};
use crate::naive::{Naive, download, numbers, upload};
use crate::tolerance::{same_bits, within};
use emulator::Mode;
use half::bf16;
use kernels::Error;
use kernels::backend::Backend;
use kernels::linear::wide::{Backward, Forward, Wide};
use kernels::linear::{self, HostStorage, Layout, Linear, Shape};
use std::sync::Arc;

struct Case {
    x: Window,
    dy: Window,
    shape: Shape,
    /// `[n, d]`.
    weight: Vec<f32>,
    values: Vec<f32>,
    gradient: Vec<f32>,
    bias: Option<Vec<f32>>,
}

/// Marks after a result.
const AFTER: usize = 9;

impl Case {
    fn new((rows, d, n): (usize, usize, usize), place: usize, bias: bool) -> Self {
        Self {
            x: Window::new(rows, d, PLACES[place]),
            dy: Window::new(rows, n, PLACES[place]),
            shape: Shape { in_dim: d, out_dim: n },
            weight: rounded(&numbers(1, n * d)),
            values: rounded(&numbers(2, rows * d)),
            gradient: rounded(&numbers(3, rows * n)),
            bias: bias.then(|| numbers(4, n)),
        }
    }

    fn weight<B: Linear>(&self, b: &B) -> B::Weight {
        let mut prepared = vec![f32::NAN; b.prepared_len(self.shape)];
        b.prepare(self.shape, Layout::OutIn, &self.weight, &mut prepared).unwrap();
        let storage: HostStorage = Arc::new(prepared);
        b.weight(self.shape, &storage, 0).unwrap()
    }

    /// Sizes of the terms of `Y` and of `dX`.
    fn scales(&self) -> [Vec<f64>; 2] {
        let Shape { in_dim: d, out_dim: n } = self.shape;
        let size = |a: f32, b: f32| f64::from(a * b).abs();
        let y = |(row, o): (usize, usize)| {
            let x = &self.values[row * d..][..d];
            let terms = x.iter().zip(&self.weight[o * d..][..d]);
            let bias = self.bias.as_ref().map_or(0.0, |b| f64::from(b[o].abs()));
            terms.map(|(&x, &w)| size(x, w)).sum::<f64>() + bias
        };
        let dx = |(row, i): (usize, usize)| {
            let dy = self.gradient[row * n..][..n].iter().enumerate();
            dy.map(|(o, &dy)| size(dy, self.weight[o * d + i])).sum()
        };
        let all = |width: usize| (0..self.x.rows * width).map(move |k| (k / width, k % width));
        [all(n).map(y).collect(), all(d).map(dx).collect()]
    }
}

/// A result of `len` elements that nobody has written, marks after it.
fn poisoned(b: &Emulated, len: usize) -> <Emulated as Backend>::Buf<f32> {
    let mut buf = upload(b, &vec![7.0; len + AFTER]);
    b.poison(&mut buf, 0, len);
    buf
}

fn result(b: &Emulated, buf: &<Emulated as Backend>::Buf<f32>) -> Vec<f32> {
    let mut all = download(b, buf);
    let after = all.split_off(all.len() - AFTER);
    assert_eq!(after, [7.0; AFTER], "written after the result");
    all
}

/// `Y` and `dX`.
fn run(b: &Emulated, case: &Case) -> [Vec<f32>; 2] {
    let (rows, Shape { in_dim: d, out_dim: n }) = (case.x.rows, case.shape);
    let weight = &case.weight(b);
    let bias = case.bias.as_ref().map(|values| upload(b, values));
    let (x, dy) = (case.x.input(b, &case.values), case.dy.input(b, &case.gradient));
    let (mut y, mut dx) = (poisoned(b, rows * n), poisoned(b, rows * d));
    let (x, bias) = (case.x.mat(&x), bias.as_ref());
    b.wide_forward(Forward { x, weight, bias, y: &mut y, rows }).unwrap();
    let dy = case.dy.mat(&dy);
    b.wide_backward(Backward { dy, weight, dx: &mut dx, rows }).unwrap();
    [result(b, &y), result(b, &dx)]
}

/// By the reference's products.
fn reference(case: &Case) -> [Vec<f32>; 2] {
    let (b, rows) = (&Naive, case.x.rows);
    let weight = &case.weight(b);
    let bias = case.bias.as_ref().map(|values| upload(b, values));
    let (x, dy) = (case.x.input(b, &case.values), case.dy.input(b, &case.gradient));
    let (mut y, mut dx) = (case.dy.output(b), case.x.output(b));
    b.linear_forward(linear::Forward {
        x: case.x.mat(&x),
        weight,
        bias: bias.as_ref(),
        residual: None,
        y: case.dy.mat_mut(&mut y),
        rows,
    })
    .unwrap();
    b.linear_backward(linear::Backward {
        dy: case.dy.mat(&dy),
        weight,
        dx: case.x.mat_mut(&mut dx),
        accumulate: false,
        rows,
    })
    .unwrap();
    [case.dy.result(b, &y), case.x.result(b, &dx)]
}

fn compare(b: &Emulated, case: &Case) {
    let Shape { in_dim: d, out_dim: n } = case.shape;
    let what = format!("{:?} to {n}, bias {}", case.x, case.bias.is_some());
    let (ours, want, scales) = (run(b, case), reference(case), case.scales());
    for (i, k) in [d, n].into_iter().enumerate() {
        let want: Vec<f64> = want[i].iter().map(|&v| f64::from(v)).collect();
        within(&format!("{} {what}", ["y", "dx"][i]), k as f64 + 3.0, &ours[i], &want, &scales[i]);
    }
}

#[test]
fn results_are_within_the_derived_bound() {
    let shapes = [(0, 8, 8), (1, 1, 1), (2, 0, 5), (2, 5, 0), (3, 15, 17), (9, 24, 300)];
    for shape in shapes {
        for place in 0..PLACES.len() {
            for bias in [false, true] {
                compare(fast(), &Case::new(shape, place, bias));
            }
        }
    }
}

#[test]
fn rows_do_not_see_each_other() {
    let case = Case::new((11, 40, 23), 1, true);
    let [y, dx] = run(fast(), &case);
    for row in [0, 4, 10] {
        let part = |x: &[f32], width: usize| x[row * width..][..width].to_vec();
        let (values, gradient) = (part(&case.values, 40), part(&case.gradient, 23));
        let alone = Case { values, gradient, ..Case::new((1, 40, 23), 0, true) };
        let [own_y, own_dx] = run(fast(), &alone);
        same_bits("y alone", &own_y, &part(&y, 23));
        same_bits("dx alone", &own_dx, &part(&dx, 40));
    }
}

#[test]
fn numbers_are_rounded_into_activations() {
    for b in [fast(), checked()] {
        for len in [0, 1, 7, 8, 1031] {
            let src = numbers(5, len + 2);
            let (buf, mut room) = (upload(b, &src), upload(b, &vec![bf16::from_f32(7.0); len + 1]));
            assert_eq!(b.act_room(len), len);
            let act: Vec<bf16> = download(b, b.as_act(&buf, &mut room, len).unwrap());
            let act: Vec<f32> = act.into_iter().map(bf16::to_f32).collect();
            let want = [rounded(&src[..len]), vec![7.0]].concat();
            same_bits("rounded", &act, &want);
            let error = b.as_act(&buf, &mut room, len + 2);
            assert!(matches!(error, Err(Error::Length { op: "as_act", what: "room", .. })));
        }
    }
}

#[test]
fn every_access_is_checked() {
    for (shape, place) in [((0, 4, 4), 0), ((3, 24, 16), 1), ((5, 30, 130), 2), ((7, 9, 20), 0)] {
        compare(checked(), &Case::new(shape, place, true));
    }
}

#[test]
fn seeded_faults_are_caught() {
    caught(Mode::Fast, "LINEAR_WIDE_START", |b| compare(b, &Case::new((3, 8, 5), 0, true)));
}

#[test]
fn what_does_not_fit_is_refused() {
    let (b, case) = (fast(), Case::new((3, 8, 5), 0, true));
    let weight = &case.weight(b);
    let (x, dy) = (case.x.input(b, &case.values), case.dy.input(b, &case.gradient));
    let mut short = b.alloc::<f32>(14).unwrap();
    let (bias, x, dy) = (b.alloc::<f32>(4).unwrap(), case.x.mat(&x), case.dy.mat(&dy));
    let error = b.wide_forward(Forward { x, weight, bias: None, y: &mut short, rows: 3 });
    assert!(matches!(error, Err(Error::Length { op: "wide_forward", what: "y", .. })));
    let error = b.wide_forward(Forward { x, weight, bias: Some(&bias), y: &mut short, rows: 1 });
    assert!(matches!(error, Err(Error::Shape { op: "wide_forward", what: "bias", .. })));
    let error = b.wide_backward(Backward { dy, weight, dx: &mut short, rows: 3 });
    assert!(matches!(error, Err(Error::Length { op: "wide_backward", what: "dx", .. })));
    let mut room = b.alloc::<bf16>(1).unwrap();
    let error = b.as_act(&short, &mut room, 15).err();
    assert!(matches!(error, Some(Error::Length { op: "as_act", what: "src", .. })));
}
