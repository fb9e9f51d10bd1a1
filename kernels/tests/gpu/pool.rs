//! Means over ranges: the same operations in the same order as written in the contract, so the same bits.

use crate::harness::{PLACES, Subject, Window, caught, checked, fast, own, rounded};
use crate::naive::{numbers, upload};
use crate::tolerance::same_bits;
use emulator::Mode;
use half::bf16;
use kernels::Error;
use kernels::pool::{Mean, MeanBackward, Pool, Range};

struct Case {
    rows: Window,
    means: Window,
    ranges: Vec<Range>,
    x: Vec<f32>,
    dy: Vec<f32>,
}

impl Case {
    fn new(ranges: &[(u32, u32)], (rows, dim): (usize, usize), place: (usize, usize)) -> Self {
        let ranges: Vec<Range> = ranges.iter().map(|&(start, len)| Range { start, len }).collect();
        Self {
            rows: Window::new(rows, dim, place),
            means: Window::new(ranges.len(), dim, place),
            x: rounded(&numbers(1, rows * dim)),
            dy: rounded(&numbers(2, ranges.len() * dim)),
            ranges,
        }
    }

    /// `Y`, and `dX` on top of `x` or of nothing.
    fn want(&self, accumulate: bool) -> (Vec<f32>, Vec<Option<f32>>) {
        let (dim, mut y) = (self.rows.width, Vec::new());
        let mut dx: Vec<Option<f32>> = self.x.iter().map(|v| accumulate.then_some(*v)).collect();
        for (j, range) in self.ranges.iter().enumerate() {
            let (start, len) = (range.start as usize, range.len as usize);
            for c in 0..dim {
                let sum = (start..start + len).fold(0.0f32, |sum, i| sum + self.x[i * dim + c]);
                let mean = if len > 0 { sum / len as f32 } else { sum };
                y.push(bf16::from_f32(mean).to_f32());
                for i in start..start + len {
                    let before = if accumulate { self.x[i * dim + c] } else { 0.0 };
                    let v = before + self.dy[j * dim + c] / len as f32;
                    dx[i * dim + c] = Some(bf16::from_f32(v).to_f32());
                }
            }
        }
        (y, dx)
    }
}

fn mean<B: Pool + Subject>(b: &B, case: &Case) -> Result<Vec<f32>, Error> {
    let x = case.rows.input(b, &case.x);
    let (ranges, mut y) = (upload(b, &case.ranges), case.means.output(b));
    b.pool_mean(Mean {
        x: case.rows.mat(&x),
        ranges: &ranges,
        y: case.means.mat_mut(&mut y),
        num_ranges: case.ranges.len(),
        rows: case.rows.rows,
        dim: case.rows.width,
    })?;
    b.read(&ranges, 0, &mut [])?;
    Ok(case.means.result(b, &y))
}

fn backward<B: Pool + Subject>(b: &B, case: &Case, accumulate: bool) -> Result<Vec<f32>, Error> {
    let dy = case.means.input(b, &case.dy);
    let ranges = upload(b, &case.ranges);
    let mut dx = if accumulate { case.rows.updated(b, &case.x) } else { case.rows.output(b) };
    b.pool_mean_backward(MeanBackward {
        dy: case.means.mat(&dy),
        ranges: &ranges,
        dx: case.rows.mat_mut(&mut dx),
        accumulate,
        num_ranges: case.ranges.len(),
        rows: case.rows.rows,
        dim: case.rows.width,
    })?;
    b.read(&ranges, 0, &mut [])?;
    Ok(case.rows.result(b, &dx))
}

fn compare<B: Pool + Subject>(b: &B, case: &Case, disjoint: bool) {
    same_bits("y", &mean(b, case).unwrap(), &case.want(false).0);
    for accumulate in [false, true].into_iter().filter(|_| disjoint) {
        let got = backward(b, case, accumulate).unwrap();
        for (i, (got, want)) in got.iter().zip(case.want(accumulate).1).enumerate() {
            match want {
                Some(want) => same_bits(&format!("dx[{i}]"), &[*got], &[want]),
                None => assert!(got.is_nan(), "dx[{i}] is in no range but became {got}"),
            }
        }
    }
}

const DISJOINT: [(u32, u32); 6] = [(0, 1), (1, 0), (2, 9), (11, 1), (14, 0), (15, 2)];

#[test]
fn means_have_the_bits_of_the_contract() {
    for dim in [1, 7, 8, 100, 1032] {
        for place in PLACES {
            compare(fast(), &Case::new(&DISJOINT, (18, dim), place), true);
            let overlapping = [(3, 4), (0, 5), (0, 0), (4, 1)];
            compare(fast(), &Case::new(&overlapping, (7, dim), place), false);
        }
    }
    compare(fast(), &Case::new(&[], (3, 8), PLACES[0]), true);
    compare(fast(), &Case::new(&[(0, 0)], (0, 8), PLACES[0]), true);
}

#[test]
fn wrong_ranges_are_refused_by_the_next_read() {
    let b = own();
    let text = |result: Result<Vec<f32>, Error>| result.unwrap_err().to_string();
    let long = Case::new(&[(0, 1), (1, 1)], (3, 8), PLACES[0]);
    let long =
        Case { ranges: vec![Range { start: 0, len: 1 }, Range { start: 2, len: 2 }], ..long };
    assert_eq!(text(mean(&b, &long)), "pool: row 1: range whose end 4 is out of range");
    assert_eq!(text(backward(&b, &long, true)), "pool: row 1: range whose end 4 is out of range");
    let far = Case { ranges: vec![Range { start: u32::MAX, len: 2 }; 2], ..long };
    assert!(mean(&b, &far).is_err(), "an end beyond 32 bits");
    let twice =
        Case { ranges: vec![Range { start: 0, len: 2 }, Range { start: 1, len: 1 }], ..far };
    let what = "pool: row 1: range that overlaps the one before: its start 1 is out of range";
    assert_eq!(text(backward(&b, &twice, false)), what);
}

#[test]
fn every_access_is_checked() {
    for (dim, place) in [(8, 0), (13, 2), (40, 1)] {
        compare(checked(), &Case::new(&DISJOINT, (18, dim), PLACES[place]), true);
    }
}

#[test]
fn seeded_faults_are_caught() {
    let case = Case::new(&DISJOINT, (18, 8), PLACES[0]);
    caught(Mode::Fast, "POOL_EMPTY", |b| compare(b, &case, true));
}
