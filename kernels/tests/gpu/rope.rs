//! Rotary positions against the reference, and their inverse.

use crate::harness::{PLACES, Subject, Window, caught, checked, fast, own, rounded, within_bf16};
use crate::naive::{Naive, numbers, upload};
use emulator::Mode;
use kernels::Error;
use kernels::rope::{Rope, Rotate, table};

const POSITIONS: usize = 40;

struct Case {
    window: Window,
    heads: usize,
    head_dim: usize,
    inverse: bool,
    x: Vec<f32>,
    positions: Vec<u32>,
}

impl Case {
    fn new([rows, heads, head_dim]: [usize; 3], place: (usize, usize), inverse: bool) -> Self {
        let window = Window::new(rows, heads * head_dim, place);
        let x = rounded(&numbers(1, rows * heads * head_dim));
        let positions = (0..rows).map(|i| (i * 7 % POSITIONS) as u32).collect();
        Self { window, heads, head_dim, inverse, x, positions }
    }
}

fn run<B: Rope + Subject>(b: &B, case: &Case) -> Result<Vec<f32>, Error> {
    let w = case.window;
    let frequencies: Vec<f32> = (0..case.head_dim / 2).map(|i| 0.7f32.powi(i as i32)).collect();
    let (table, positions) =
        (upload(b, &table(&frequencies, POSITIONS)), upload(b, &case.positions));
    let mut x = w.updated(b, &case.x);
    b.rope(Rotate {
        x: w.mat_mut(&mut x),
        positions: &positions,
        table: &table,
        heads: case.heads,
        head_dim: case.head_dim,
        inverse: case.inverse,
        rows: w.rows,
    })?;
    b.read(&positions, 0, &mut [])?;
    Ok(w.result(b, &x))
}

fn compare<B: Rope + Subject>(b: &B, case: &Case) {
    let half = case.head_dim / 2;
    let mut scale = vec![0.0; case.x.len()];
    for (i, s) in scale.iter_mut().enumerate() {
        let other = if i % case.head_dim < half { i + half } else { i - half };
        *s = f64::from(case.x[i].abs()) + f64::from(case.x[other].abs());
    }
    let what = format!("{:?} of {} inverse {}", case.window, case.head_dim, case.inverse);
    // Two products and a sum.
    within_bf16(&what, 2.0, &run(b, case).unwrap(), &run(&Naive, case).unwrap(), &scale);
}

#[test]
fn rows_are_within_the_derived_bound() {
    for shape in [[0, 2, 8], [1, 1, 2], [3, 2, 6], [5, 3, 16], [4, 9, 64], [2, 5, 80], [2, 40, 128]]
    {
        for place in PLACES {
            compare(fast(), &Case::new(shape, place, false));
            compare(fast(), &Case::new(shape, place, true));
        }
    }
}

#[test]
fn a_position_outside_the_table_is_refused_by_the_next_read() {
    let (b, mut case) = (own(), Case::new([5, 2, 16], PLACES[1], false));
    case.positions[3] = POSITIONS as u32;
    case.positions[4] = u32::MAX;
    let error = run(&b, &case).unwrap_err();
    assert_eq!(error.to_string(), format!("rope: row 3: position {POSITIONS} is out of range"));
    case.positions = vec![0; 5];
    assert!(run(&b, &case).is_ok(), "a refusal is told once");
}

#[test]
fn every_access_is_checked() {
    for (shape, place) in [([3, 2, 6], 2), ([4, 9, 64], 0), ([2, 3, 80], 1), ([1, 1, 2], 2)] {
        compare(checked(), &Case::new(shape, PLACES[place], false));
    }
}

#[test]
fn seeded_faults_are_caught() {
    caught(Mode::Fast, "ROPE_SIGN", |b| compare(b, &Case::new([3, 1, 16], PLACES[0], false)));
}
