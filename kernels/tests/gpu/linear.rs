//! Products with weights, what is added to them, weights that train and their gradients.

use crate::harness::{
    Emulated, HALF_ULP, PLACES, Subject, Window, caught, checked, fast, own, rounded, within_bf16,
    within_rounding,
};
use crate::naive::{Naive, download, numbers, upload};
use crate::tolerance::{EPS, same_bits, within};
use emulator::Mode;
use half::bf16;
use kernels::Error;
use kernels::backend::{Backend, Mat};
use kernels::linear::{
    Backward, Forward, HostStorage, Layout, Linear, Shape, Trainable, WeightGradient,
};
use std::ops::Range;
use std::sync::Arc;

struct Case {
    x: Window,
    y: Window,
    shape: Shape,
    /// `[n, d]`.
    weight: Vec<f32>,
    values: Vec<f32>,
    dy: Vec<f32>,
    bias: Option<Vec<f32>>,
    residual: Option<Vec<f32>>,
}

impl Case {
    fn new((rows, d, n): (usize, usize, usize), place: (usize, usize), added: usize) -> Self {
        Self {
            x: Window::new(rows, d, place),
            y: Window::new(rows, n, place),
            shape: Shape { in_dim: d, out_dim: n },
            weight: rounded(&numbers(1, n * d)),
            values: rounded(&numbers(2, rows * d)),
            dy: rounded(&numbers(3, rows * n)),
            bias: (added & 1 > 0).then(|| numbers(4, n)),
            residual: (added & 2 > 0).then(|| rounded(&numbers(5, rows * n))),
        }
    }

    fn weight<B: Linear>(&self, b: &B) -> B::Weight {
        let mut prepared = vec![f32::NAN; b.prepared_len(self.shape)];
        b.prepare(self.shape, Layout::OutIn, &self.weight, &mut prepared).unwrap();
        let storage: HostStorage = Arc::new(prepared);
        b.weight(self.shape, &storage, 0).unwrap()
    }

    fn name(&self) -> String {
        let (bias, residual) = (self.bias.is_some(), self.residual.is_some());
        format!("{:?} to {} bias {bias} residual {residual}", self.x, self.shape.out_dim)
    }

    /// Absolute error of `Y` before its last rounding: a chain over the inputs in `f32`, and what is added, which was
    /// rounded to `bf16` if it is a sum.
    fn forward_errors(&self) -> Vec<f64> {
        let Shape { in_dim: d, out_dim: n } = self.shape;
        let both = self.bias.is_some();
        let at = |row: usize, o: usize| {
            let (x, w) = (&self.values[row * d..][..d], &self.weight[o * d..][..d]);
            let terms: f64 = x.iter().zip(w).map(|(x, w)| f64::from(x * w).abs()).sum();
            let bias = self.bias.as_ref().map_or(0.0, |b| f64::from(b[o].abs()));
            let residual = self.residual.as_ref().map_or(0.0, |r| f64::from(r[row * n + o].abs()));
            let added = bias + residual;
            (d as f64 + 3.0) * EPS * (terms + added) + if both { HALF_ULP * added } else { 0.0 }
        };
        (0..self.x.rows * n).map(|i| at(i / n, i % n)).collect()
    }

    /// Sizes of the terms of `dX` without what it held.
    fn backward_scales(&self) -> Vec<f64> {
        let Shape { in_dim: d, out_dim: n } = self.shape;
        let at = |row: usize, i: usize| {
            let dy = self.dy[row * n..][..n].iter().enumerate();
            dy.map(|(o, dy)| f64::from(dy * self.weight[o * d + i]).abs()).sum()
        };
        (0..self.x.rows * d).map(|i| at(i / d, i % d)).collect()
    }
}

fn forward<B: Linear + Subject>(b: &B, case: &Case) -> Vec<f32> {
    forward_beside(b, case, &case.y)
}

/// With a residual that lies elsewhere in its buffer than `Y`.
fn forward_beside<B: Linear + Subject>(b: &B, case: &Case, at: &Window) -> Vec<f32> {
    let (x, weight) = (case.x.input(b, &case.values), case.weight(b));
    let bias = case.bias.as_ref().map(|values| upload(b, values));
    let residual = case.residual.as_ref().map(|values| at.input(b, values));
    let mut y = case.y.output(b);
    b.linear_forward(Forward {
        x: case.x.mat(&x),
        weight: &weight,
        bias: bias.as_ref(),
        residual: residual.as_ref().map(|r| at.mat(r)),
        y: case.y.mat_mut(&mut y),
        rows: case.x.rows,
    })
    .unwrap();
    case.y.result(b, &y)
}

/// On top of `before`, or into poison.
fn backward<B: Linear + Subject>(b: &B, case: &Case, before: Option<&[f32]>) -> Vec<f32> {
    let (dy, weight) = (case.y.input(b, &case.dy), case.weight(b));
    let mut dx = before.map_or_else(|| case.x.output(b), |values| case.x.updated(b, values));
    b.linear_backward(Backward {
        dy: case.y.mat(&dy),
        weight: &weight,
        dx: case.x.mat_mut(&mut dx),
        accumulate: before.is_some(),
        rows: case.x.rows,
    })
    .unwrap();
    case.x.result(b, &dx)
}

fn compare(b: &Emulated, case: &Case) {
    let what = case.name();
    within_rounding(&what, &forward(b, case), &forward(&Naive, case), &case.forward_errors());
    let k = case.shape.out_dim as f64 + 1.0;
    let mut scale = case.backward_scales();
    let (ours, theirs) = (backward(b, case, None), backward(&Naive, case, None));
    within_bf16(&format!("dx {what}"), k, &ours, &theirs, &scale);
    let before = &case.values;
    scale.iter_mut().zip(before).for_each(|(s, v)| *s += f64::from(v.abs()));
    let (ours, theirs) = (backward(b, case, Some(before)), backward(&Naive, case, Some(before)));
    within_bf16(&format!("dx += {what}"), k, &ours, &theirs, &scale);
}

#[test]
fn products_are_within_the_derived_bound() {
    let shapes =
        [(0, 8, 8), (1, 1, 1), (2, 0, 5), (2, 5, 0), (3, 15, 17), (5, 24, 1040), (17, 64, 33)];
    for shape in shapes {
        for place in PLACES {
            (0..4).for_each(|added| compare(fast(), &Case::new(shape, place, added)));
        }
    }
}

#[test]
fn a_residual_is_read_where_it_lies() {
    for shape in [(1, 1, 1), (5, 24, 40), (17, 9, 33), (3, 0, 5)] {
        for (place, other) in [(0, 1), (1, 2), (2, 0)] {
            let case = |added| Case::new(shape, PLACES[place], added);
            let at = Window::new(shape.0, shape.2, PLACES[other]);
            for added in [2, 3] {
                let own = forward(fast(), &case(added));
                same_bits("residual", &forward_beside(fast(), &case(added), &at), &own);
            }
            forward_beside(checked(), &case(2), &at);
        }
    }
}

#[test]
fn rows_do_not_see_each_other() {
    let case = Case::new((11, 40, 24), PLACES[1], 3);
    let (y, dx) = (forward(fast(), &case), backward(fast(), &case, None));
    for row in [0, 4, 10] {
        let part = |x: &[f32], width: usize| x[row * width..][..width].to_vec();
        let alone = Case {
            values: part(&case.values, 40),
            dy: part(&case.dy, 24),
            residual: case.residual.as_ref().map(|r| part(r, 24)),
            ..Case::new((1, 40, 24), PLACES[0], 3)
        };
        same_bits("y alone", &forward(fast(), &alone), &part(&y, 24));
        same_bits("dx alone", &backward(fast(), &alone, None), &part(&dx, 40));
    }
}

#[test]
fn a_weight_goes_to_its_prepared_form_and_back() {
    let (b, shape) = (fast(), Shape { in_dim: 37, out_dim: 70 });
    let plain = numbers(1, 37 * 70);
    for layout in [Layout::OutIn, Layout::InOut] {
        let mut prepared = vec![f32::NAN; b.prepared_len(shape) + 3];
        b.prepare(shape, layout, &plain, &mut prepared[..37 * 70]).unwrap();
        let at = |o: usize, i: usize| match layout {
            Layout::OutIn => plain[o * 37 + i],
            Layout::InOut => plain[i * 70 + o],
        };
        let turned: Vec<f32> = (0..37 * 70).map(|k| at(k / 37, k % 37)).collect();
        same_bits("prepared", &prepared[..37 * 70], &turned);
        let mut back = vec![f32::NAN; 37 * 70];
        b.unprepare(shape, layout, &prepared, &mut back).unwrap();
        same_bits("unprepared", &back, &plain);
    }
    let storage: HostStorage = Arc::new(vec![0.0; 37 * 70]);
    assert!(matches!(b.weight(shape, &storage, 1), Err(Error::Length { .. })));
}

#[test]
fn a_weight_that_trains_is_one_that_was_prepared() {
    let b = fast();
    for (d, n) in [(1, 1), (8, 16), (13, 79), (40, 300)] {
        let case = Case::new((1, d, n), PLACES[0], 0);
        let values = numbers(9, d * n); // not rounded: that is what a refresh does
        let prepared = Case { weight: values.clone(), ..case }.weight(b);
        let mut own = b.trainable(prepared.shape()).unwrap();
        for offset in [0, 1, 4] {
            let slab = upload(b, &[vec![7.0; offset], values.clone()].concat());
            b.refresh(&mut own, &slab, offset).unwrap();
            let want: Vec<bf16> = download(b, prepared.values());
            assert_eq!(download(b, own.values()), want, "[{n}, {d}] from {offset}");
            assert!(matches!(b.refresh(&mut own, &slab, offset + 1), Err(Error::Length { .. })));
        }
    }
    let slab = upload(b, &numbers(1, 20));
    let mut frozen = Case::new((1, 4, 4), PLACES[0], 0).weight(b);
    assert!(matches!(b.refresh(&mut frozen, &slab, 0), Err(Error::Routing { .. })));
    let mut vector = upload(b, &[f32::NAN; 7]);
    b.refresh_vector(&mut vector, &slab, 13).unwrap();
    same_bits("vector", &download(b, &vector), &numbers(1, 20)[13..]);
    assert!(matches!(b.refresh_vector(&mut vector, &slab, 14), Err(Error::Length { .. })));
}

/// `dW`, then `db`, on top of `before`, from the rows in `range`.
fn gradient<B: Trainable + Subject>(
    b: &B,
    case: &Case,
    range: Range<usize>,
    before: &[f32],
) -> Vec<f32> {
    let (x, dy) = (case.x.input(b, &case.values), case.y.input(b, &case.dy));
    let mut grads = upload(b, &[&[7.0], before, &[7.0]].concat());
    let from = |w: &Window| w.start + range.start * w.stride;
    b.linear_weight_gradient(WeightGradient {
        shape: case.shape,
        x: Mat { start: from(&case.x), ..case.x.mat(&x) },
        dy: Mat { start: from(&case.y), ..case.y.mat(&dy) },
        rows: range.len(),
        grads: &mut grads,
        weight_offset: 1,
        bias_offset: case.bias.is_some().then_some(1 + case.weight.len()),
    })
    .unwrap();
    let grads = download(b, &grads);
    assert!(grads[0] == 7.0 && grads[grads.len() - 1] == 7.0, "written beside the gradients");
    grads[1..grads.len() - 1].to_vec()
}

fn before(case: &Case) -> Vec<f32> {
    numbers(7, case.weight.len() + case.shape.out_dim)
}

fn compare_gradient(b: &Emulated, case: &Case) {
    let Shape { in_dim: d, out_dim: n } = case.shape;
    let (rows, before) = (case.x.rows, before(case));
    let want = gradient(&Naive, case, 0..rows, &before);
    let mut scale: Vec<f64> = before.iter().map(|v| f64::from(v.abs())).collect();
    for row in 0..rows {
        for (o, dy) in case.dy[row * n..][..n].iter().enumerate() {
            let x = case.values[row * d..][..d].iter();
            scale[o * d..][..d].iter_mut().zip(x).for_each(|(s, x)| *s += f64::from(dy * x).abs());
            scale[d * n + o] += f64::from(dy.abs());
        }
    }
    let want: Vec<f64> = want.into_iter().map(f64::from).collect();
    let ours = gradient(b, case, 0..rows, &before);
    within(&format!("gradient {}", case.name()), rows as f64 + 2.0, &ours, &want, &scale);
}

/// The small tile's last rows, outputs and inputs, each alone and together, and more stages than the pipeline has.
const GRADIENTS: [(usize, usize, usize); 8] = [
    (0, 8, 8),
    (1, 1, 1),
    (31, 64, 64),
    (32, 65, 63),
    (33, 8, 130),
    (96, 130, 9),
    (97, 72, 72),
    (161, 20, 40),
];
/// So many outputs that the large tile is taken.
const LARGE: (usize, usize, usize) = (40, 9, 13_817);

#[test]
fn gradients_of_a_weight_are_within_the_derived_bound() {
    for shape in GRADIENTS {
        for place in PLACES {
            (0..2).for_each(|bias| compare_gradient(fast(), &Case::new(shape, place, bias)));
        }
    }
    compare_gradient(fast(), &Case::new(LARGE, PLACES[1], 1));
}

#[test]
fn an_element_of_a_gradient_is_one_chain_over_the_rows() {
    let case = Case::new((150, 70, 66), PLACES[0], 1);
    let (before, weights) = (before(&case), case.weight.len());
    let whole = gradient(fast(), &case, 0..150, &before);
    for cut in [0, 5, 16, 33, 48, 144, 150] {
        let first = gradient(fast(), &case, 0..cut, &before);
        let both = gradient(fast(), &case, cut..150, &first);
        same_bits(&format!("bias cut at {cut}"), &both[weights..], &whole[weights..]);
        if cut % 16 == 0 || cut == 150 {
            same_bits(&format!("weight cut at {cut}"), &both, &whole);
        }
    }
}

#[test]
fn an_element_of_a_gradient_does_not_depend_on_the_tile() {
    let (large, (rows, d, n)) = (Case::new(LARGE, PLACES[0], 1), LARGE);
    let all = before(&large);
    let whole = gradient(fast(), &large, 0..rows, &all);
    // Some outputs alone, which begin elsewhere in another and smaller tile.
    let outputs = 301..420;
    let dy = large.dy.chunks(n).flat_map(|row| row[outputs.clone()].to_vec()).collect();
    let part = |x: &[f32]| {
        let (weights, bias) = x.split_at(n * d);
        [&weights[outputs.start * d..outputs.end * d], &bias[outputs.clone()]].concat()
    };
    let few = Case { dy, ..Case::new((rows, d, outputs.len()), PLACES[2], 1) };
    same_bits("few outputs", &gradient(fast(), &few, 0..rows, &part(&all)), &part(&whole));
}

#[test]
fn the_order_of_warps_changes_nothing() {
    let (b, case) = (own(), Case::new((97, 70, 66), PLACES[0], 1));
    let plain = gradient(&b, &case, 0..97, &before(&case));
    for seed in [1, 2, 3] {
        b.device().set_order(seed);
        same_bits("another order", &gradient(&b, &case, 0..97, &before(&case)), &plain);
    }
}

#[test]
fn every_access_is_checked() {
    for (shape, place) in [((0, 4, 4), 0), ((3, 24, 16), 1), ((2, 300, 7), 2)] {
        compare(checked(), &Case::new(shape, PLACES[place], 3));
    }
    for (shape, place) in [((1, 1, 1), 0), ((33, 8, 70), 1), ((97, 65, 20), 2)] {
        compare_gradient(checked(), &Case::new(shape, PLACES[place], 1));
    }
    for (rows, place) in [(17, 0), (1, 1), (33, 2)] {
        compare_gradient(checked(), &Case::new((rows, LARGE.1, LARGE.2), PLACES[place], 1));
    }
}

#[test]
fn seeded_faults_are_caught() {
    for (mode, fault) in [
        (Mode::Fast, "LINEAR_WAIT"),
        (Mode::Checked, "LINEAR_SYNC"),
        (Mode::Checked, "LINEAR_TAIL"),
    ] {
        caught(mode, fault, |b| compare_gradient(b, &Case::new((97, 20, 24), PLACES[0], 1)));
    }
}

#[test]
fn a_product_refuses_windows_that_leave_their_buffers() {
    let (b, case) = (fast(), Case::new((3, 8, 8), PLACES[0], 0));
    let (x, weight) = (case.x.input(b, &case.values), case.weight(b));
    let mut y = b.alloc::<bf16>(16).unwrap();
    let y = case.y.mat_mut(&mut y);
    let x = case.x.mat(&x);
    let error =
        b.linear_forward(Forward { x, weight: &weight, bias: None, residual: None, y, rows: 3 });
    assert!(matches!(error, Err(Error::Length { op: "linear_forward", what: "y", .. })));
}
