//! Frozen products: one body on every backend against `f64`, then what only the CPU promises.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at what it did not expect; its numbers are small"
)]

mod naive;

use kernels::linear::cpu::aligned_storage;
use kernels::linear::{Backward, Forward, HostStorage, Layout, Linear, Shape};
use kernels::{Cpu, Error, Mat, MatMut};
use naive::{Naive, download, numbers, upload};
use std::sync::Arc;

/// A product and its operands; `w` is `[d, n]`.
struct Case {
    shape: Shape,
    rows: usize,
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Option<Vec<f32>>,
    residual: Option<Vec<f32>>,
}

impl Case {
    fn new(d: usize, n: usize, rows: usize) -> Self {
        let seed = (d * 1_000_003 + n * 1009 + rows) as u64;
        Self {
            shape: Shape { in_dim: d, out_dim: n },
            rows,
            x: numbers(seed, rows * d),
            w: numbers(seed + 1, d * n),
            bias: None,
            residual: None,
        }
    }

    fn with_additions(mut self) -> Self {
        self.bias = Some(numbers(5, self.shape.out_dim));
        self.residual = Some(numbers(6, self.rows * self.shape.out_dim));
        self
    }

    fn weight<B: Linear>(&self, b: &B, layout: Layout) -> B::Weight {
        let Shape { in_dim: d, out_dim: n } = self.shape;
        let plain = match layout {
            Layout::InOut => self.w.clone(),
            Layout::OutIn => (0..d * n).map(|i| self.w[i % d * n + i / d]).collect(),
        };
        // The weight begins inside its storage, after what is not its own.
        let len = b.prepared_len(self.shape);
        let storage = aligned_storage(16 + len, |dst| {
            dst[..16].fill(f32::NAN);
            b.prepare(self.shape, layout, &plain, &mut dst[16..]).unwrap();
            let mut back = vec![f32::NAN; d * n];
            b.unprepare(self.shape, layout, &dst[16..], &mut back).unwrap();
            assert_eq!(bits(&back), bits(&plain), "{:?} is not recovered", self.shape);
        });
        b.weight(self.shape, &storage, 16).unwrap()
    }

    /// `Y`, out of a poisoned window whose surroundings must stay.
    fn forward<B: Linear<Act = f32>>(&self, b: &B, weight: &B::Weight) -> Vec<f32> {
        let Shape { in_dim: d, out_dim: n } = self.shape;
        let x = upload(b, &widened(&self.x, d, 3, f32::NAN));
        let mut y = upload(b, &vec![f32::NAN; 2 + self.rows * (n + 5)]);
        let bias = self.bias.as_ref().map(|v| upload(b, v));
        let residual = self.residual.as_ref().map(|v| upload(b, &widened(v, n, 1, f32::NAN)));
        b.linear_forward(Forward {
            x: Mat::at(&x, 2, d + 3),
            weight,
            bias: bias.as_ref(),
            residual: residual.as_ref().map(|r| Mat::at(r, 2, n + 1)),
            y: MatMut::at(&mut y, 2, n + 5),
            rows: self.rows,
        })
        .unwrap();
        window(&download(b, &y), (self.rows, n), (2, n + 5))
    }

    /// `dX = dY·Wᵀ`, or `dX += ` on `before`; `dY` is `self.x` of width `n`.
    fn backward<B: Linear<Act = f32>>(
        &self,
        b: &B,
        weight: &B::Weight,
        dy: &[f32],
        before: Option<&[f32]>,
    ) -> Vec<f32> {
        let Shape { in_dim: d, out_dim: n } = self.shape;
        let dy = upload(b, &widened(dy, n, 3, f32::NAN));
        let poison = vec![f32::NAN; self.rows * d];
        let mut dx = upload(b, &widened(before.unwrap_or(&poison), d, 4, f32::NAN));
        b.linear_backward(Backward {
            dy: Mat::at(&dy, 2, n + 3),
            weight,
            dx: MatMut::at(&mut dx, 2, d + 4),
            accumulate: before.is_some(),
            rows: self.rows,
        })
        .unwrap();
        window(&download(b, &dx), (self.rows, d), (2, d + 4))
    }
}

/// Rows of `width` columns, `extra` more elements between them, two before all.
fn widened(plain: &[f32], width: usize, extra: usize, fill: f32) -> Vec<f32> {
    let mut wide = vec![fill; 2];
    for row in plain.chunks(width) {
        wide.extend_from_slice(row);
        wide.extend(std::iter::repeat_n(fill, extra));
    }
    wide
}

/// The rows of a window; everything around them must still be poisoned.
fn window(all: &[f32], (rows, width): (usize, usize), (start, stride): (usize, usize)) -> Vec<f32> {
    let inside =
        |i: usize| i >= start && (i - start) / stride < rows && (i - start) % stride < width;
    for (i, v) in all.iter().enumerate() {
        assert!(inside(i) || v.is_nan(), "element {i} outside of the window was written");
    }
    all.iter().enumerate().filter(|&(i, _)| inside(i)).map(|(_, &v)| v).collect()
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

/// Holds each element of `got` to `f64`: a chain of `k` fused multiply-adds and two additions is off
/// by at most `(k + 2)·eps·Σ|terms|`.
fn assert_close(got: &[f32], k: usize, terms: impl Fn(usize) -> Vec<f64>, what: &str) {
    for (i, &got) in got.iter().enumerate() {
        let terms = terms(i);
        let want: f64 = terms.iter().sum();
        let size: f64 = terms.iter().map(|t| t.abs()).sum();
        let bound = (k + 2) as f64 * f64::from(f32::EPSILON) * size;
        assert!((f64::from(got) - want).abs() <= bound, "{what}: {i}: {got} for {want} ± {bound}");
    }
}

/// The body of every backend.
fn agrees_with_f64<B: Linear<Act = f32>>(b: &B) {
    for (d, n, rows) in
        [(1, 1, 1), (7, 33, 3), (33, 7, 13), (64, 97, 2), (97, 64, 25), (900, 40, 5)]
    {
        for layout in [Layout::OutIn, Layout::InOut] {
            let case = Case::new(d, n, rows).with_additions();
            let weight = case.weight(b, layout);
            assert_eq!(b.shape(&weight), case.shape);
            let (bias, residual) = (case.bias.as_ref().unwrap(), case.residual.as_ref().unwrap());
            let product = |i: usize| {
                let (row, o) = (i / n, i % n);
                let term = |k| f64::from(case.x[row * d + k]) * f64::from(case.w[k * n + o]);
                let mut terms: Vec<f64> = (0..d).map(term).collect();
                terms.extend([f64::from(bias[o]), f64::from(residual[i])]);
                terms
            };
            assert_close(&case.forward(b, &weight), d, product, "forward");

            let (dy, before) = (numbers(8, rows * n), numbers(9, rows * d));
            for before in [None, Some(&before[..])] {
                let product = |i: usize| {
                    let (row, k) = (i / d, i % d);
                    let term = |o| f64::from(dy[row * n + o]) * f64::from(case.w[k * n + o]);
                    let mut terms: Vec<f64> = (0..n).map(term).collect();
                    terms.push(before.map_or(0.0, |b| f64::from(b[i])));
                    terms
                };
                assert_close(&case.backward(b, &weight, &dy, before), n, product, "backward");
            }
        }
    }
}

/// Whole numbers whose sums are exact: every backend gives the same bits.
fn is_exact_on_small_integers<B: Linear<Act = f32>>(b: &B) {
    let whole = |seed, len| -> Vec<f32> {
        numbers(seed, len).into_iter().map(|v| (v * 8.0).floor()).collect()
    };
    let (d, n, rows) = (67, 45, 19);
    let mut case = Case::new(d, n, rows);
    (case.x, case.w) = (whole(1, rows * d), whole(2, d * n));
    (case.bias, case.residual) = (Some(whole(3, n)), Some(whole(4, rows * n)));
    let weight = case.weight(b, Layout::OutIn);
    let y = case.forward(b, &weight);
    let (bias, residual) = (case.bias.as_ref().unwrap(), case.residual.as_ref().unwrap());
    for (i, &y) in y.iter().enumerate() {
        let sum: f32 = (0..d).map(|k| case.x[i / n * d + k] * case.w[k * n + i % n]).sum();
        assert_eq!(y.to_bits(), (sum + bias[i % n] + residual[i]).to_bits(), "element {i}");
    }
    let dy = whole(5, rows * n);
    let before = whole(6, rows * d);
    let dx = case.backward(b, &weight, &dy, Some(&before));
    for (i, &dx) in dx.iter().enumerate() {
        let sum: f32 = (0..n).map(|o| dy[i / d * n + o] * case.w[i % d * n + o]).sum();
        assert_eq!(dx.to_bits(), (before[i] + sum).to_bits(), "element {i}");
    }
}

fn refuses_what_does_not_fit<B: Linear<Act = f32>>(b: &B) {
    let case = Case::new(5, 4, 2);
    let weight = case.weight(b, Layout::OutIn);
    let (mut small, mut large) = (upload(b, &[0.0f32; 7]), upload(b, &[0.0f32; 10]));
    let short = |r: Result<(), Error>| assert!(matches!(r, Err(Error::Length { .. })), "{r:?}");
    let x = upload(b, &case.x);
    let forward = |y: &mut B::Buf<f32>, rows, stride, bias: Option<&B::Buf<f32>>| {
        let (x, y) = (Mat::new(&x, 5), MatMut::new(y, stride));
        b.linear_forward(Forward { x, weight: &weight, bias, residual: None, y, rows })
    };
    short(forward(&mut small, 2, 4, None));
    short(forward(&mut large, 3, 4, None));
    assert!(matches!(forward(&mut large, 2, 3, None), Err(Error::Shape { .. })));
    assert!(matches!(forward(&mut large, 2, 4, Some(&x)), Err(Error::Shape { .. })));
    assert_eq!(forward(&mut large, 0, 4, None), Ok(()));
    assert_eq!(forward(&mut large, 2, 4, None), Ok(()));

    let storage: HostStorage = Arc::new(vec![0.0f32; b.prepared_len(case.shape)]);
    assert!(b.weight(case.shape, &storage, 1).is_err());
    assert!(b.weight(case.shape, &storage, usize::MAX).is_err());
    let mut dst = vec![0.0; b.prepared_len(case.shape)];
    assert!(b.prepare(case.shape, Layout::OutIn, &case.w[1..], &mut dst).is_err());
    assert!(b.prepare(case.shape, Layout::OutIn, &case.w, &mut dst[1..]).is_err());
    assert!(b.unprepare(case.shape, Layout::OutIn, &dst[1..], &mut [0.0; 20]).is_err());
    assert!(b.unprepare(case.shape, Layout::OutIn, &dst, &mut [0.0; 19]).is_err());
}

#[test]
fn every_backend_agrees_with_f64() {
    agrees_with_f64(&Naive);
    agrees_with_f64(&Cpu);
}

#[test]
fn every_backend_is_exact_on_small_integers() {
    is_exact_on_small_integers(&Naive);
    is_exact_on_small_integers(&Cpu);
}

#[test]
fn every_backend_refuses_what_does_not_fit() {
    refuses_what_does_not_fit(&Naive);
    refuses_what_does_not_fit(&Cpu);
}

/// Every row of `y` has the bits of `alone`.
fn assert_rows(y: &[f32], alone: &[f32], what: &str) {
    assert!(bits(y) == bits(&alone[..y.len()]), "{what}: a row depends on the others");
}

fn rows_stand_alone(d: usize, n: usize, counts: &[usize]) {
    let most = *counts.iter().max().unwrap();
    let mut all = Case::new(d, n, most).with_additions();
    let weight = all.weight(&Cpu, Layout::OutIn);
    let (dy, before) = (numbers(8, most * n), numbers(9, most * d));
    let (mut y, mut dx) = (Vec::new(), Vec::new());
    let (x, residual) = (all.x.clone(), all.residual.clone().unwrap());
    for row in 0..most {
        all.rows = 1;
        all.x = x[row * d..(row + 1) * d].to_vec();
        all.residual = Some(residual[row * n..(row + 1) * n].to_vec());
        y.extend(all.forward(&Cpu, &weight));
        let before = &before[row * d..(row + 1) * d];
        dx.extend(all.backward(&Cpu, &weight, &dy[row * n..(row + 1) * n], Some(before)));
    }
    for &rows in counts {
        all.rows = rows;
        all.x = x[..rows * d].to_vec();
        all.residual = Some(residual[..rows * n].to_vec());
        let what = format!("{rows} rows of {d}x{n}");
        assert_rows(&all.forward(&Cpu, &weight), &y, &what);
        let dx_now = all.backward(&Cpu, &weight, &dy[..rows * n], Some(&before[..rows * d]));
        assert_rows(&dx_now, &dx, &what);
    }
}

#[test]
fn rows_of_a_real_base_stand_alone() {
    let counts: Vec<usize> = (1..=70).chain([300]).collect();
    for (d, n) in [(576, 576), (576, 192), (576, 1536), (1536, 576)] {
        rows_stand_alone(d, n, &counts);
    }
    // The head, with a part of its vocabulary: enough for several blocks of `k` in the backward.
    rows_stand_alone(576, 3001, &[1, 2, 3, 12, 13, 64, 65, 145, 300]);
}

#[test]
fn rows_of_odd_shapes_stand_alone() {
    let widths = [1, 7, 31, 32, 33, 64, 97, 576];
    let counts: Vec<usize> = (1..=70).chain([300]).collect();
    for d in widths {
        for n in widths {
            rows_stand_alone(
                d,
                n,
                if d * n > 5000 { &[1, 5, 6, 7, 12, 13, 70, 150] } else { &counts },
            );
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let run = |threads: usize, case: &Case| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let weight = case.weight(&Cpu, Layout::InOut);
            let dy = numbers(3, case.rows * case.shape.out_dim);
            (bits(&case.forward(&Cpu, &weight)), bits(&case.backward(&Cpu, &weight, &dy, None)))
        })
    };
    for (d, n, rows) in [(576, 576, 300), (576, 2000, 7), (2000, 97, 64), (576, 1536, 1)] {
        let case = Case::new(d, n, rows).with_additions();
        let one = run(1, &case);
        for threads in [2, 4, 7] {
            assert!(run(threads, &case) == one, "{threads} threads change {d}x{n}, {rows} rows");
        }
    }
}

#[test]
fn accumulation_continues_the_chain() {
    // dX of two weights, one after the other, is dX of the two side by side: the same bits.
    let (d, n, rows) = (40, 33, 9);
    let both = Case::new(d, 2 * n, rows);
    let half = |begin: usize| {
        let mut case = Case::new(d, n, rows);
        case.w = both.w.chunks(2 * n).flat_map(|row| row[begin..begin + n].to_vec()).collect();
        case
    };
    let dy = numbers(4, rows * 2 * n);
    let part = |begin: usize| -> Vec<f32> {
        dy.chunks(2 * n).flat_map(|row| row[begin..begin + n].to_vec()).collect()
    };
    let (left, right) = (half(0), half(n));
    let first = left.backward(&Cpu, &left.weight(&Cpu, Layout::OutIn), &part(0), None);
    let sum = right.backward(&Cpu, &right.weight(&Cpu, Layout::OutIn), &part(n), Some(&first));
    let whole = both.backward(&Cpu, &both.weight(&Cpu, Layout::OutIn), &dy, None);
    assert_eq!(bits(&sum), bits(&whole));
}

#[test]
fn one_bad_row_spoils_no_other() {
    let (d, n, rows) = (64, 70, 30);
    let clean = Case::new(d, n, rows);
    let weight = clean.weight(&Cpu, Layout::OutIn);
    let mut bad = Case::new(d, n, rows);
    bad.x[17 * d..18 * d].fill(f32::NAN);
    let (clean, bad) = (clean.forward(&Cpu, &weight), bad.forward(&Cpu, &weight));
    for row in 0..rows {
        let at = row * n..(row + 1) * n;
        assert_eq!(bits(&clean[at.clone()]) == bits(&bad[at]), row != 17, "row {row}");
    }
}
