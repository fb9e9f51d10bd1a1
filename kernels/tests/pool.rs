//! Means over ranges of rows, on every backend.
#![expect(clippy::unwrap_used, reason = "a test panics when wrong; its data is small and exact")]

mod naive;
mod tolerance;

use kernels::backend::{Mat, MatMut};
use kernels::pool::{Mean, MeanBackward, Pool, Range};
use kernels::{Cpu, Error};
use naive::{Naive, download, numbers, upload};
use tolerance::{differences, on_threads, same_bits, within};

fn ranges(of: &[(u32, u32)]) -> Vec<Range> {
    of.iter().map(|&(start, len)| Range { start, len }).collect()
}

/// Ranges that ascend: adjacent, apart, empty, long ones.
fn ascending(rows: usize) -> Vec<Range> {
    let (mut all, mut at) = (Vec::new(), 0);
    for len in [1, 3, 0, 0, 17, 2, 40, 0, 100, 1].into_iter().cycle() {
        if at + len as usize > rows {
            return all;
        }
        all.push(Range { start: u32::try_from(at).unwrap(), len });
        at += len as usize + all.len() % 3;
    }
    all
}

/// `Y`; rows lie `dim + 3` apart from element 2 on, what lies between must stay.
fn mean<B: Pool<Act = f32>>(b: &B, of: &[Range], x: &[f32], dim: usize) -> Vec<f32> {
    let stride = dim + 3;
    let wide = x.chunks(dim).flat_map(|row| [row, &[f32::NAN; 3]].concat());
    let x_wide: Vec<f32> = [f32::NAN; 2].into_iter().chain(wide).collect();
    let (x_wide, of_buf) = (upload(b, &x_wide), upload(b, of));
    let mut y = upload(b, &vec![-77.5; 2 + of.len() * stride]);
    b.pool_mean(Mean {
        x: Mat::at(&x_wide, 2, stride),
        ranges: &of_buf,
        y: MatMut::at(&mut y, 2, stride),
        num_ranges: of.len(),
        rows: x.len() / dim,
        dim,
    })
    .unwrap();
    let y = download(b, &y);
    let beside = |i: &usize| *i < 2 || (i - 2) % stride >= dim;
    assert!((0..y.len()).filter(beside).all(|i| y[i].to_bits() == (-77.5f32).to_bits()));
    (0..y.len()).filter(|i| !beside(i)).map(|i| y[i]).collect()
}

/// The whole buffer of `dX`, whose rows lie `dim + 1` apart from element 1 on.
fn backward<B: Pool<Act = f32>>(
    b: &B,
    of: &[Range],
    (dy, before): (&[f32], &[f32]),
    dim: usize,
    accumulate: bool,
) -> Vec<f32> {
    let (dy, ranges, mut dx) = (upload(b, dy), upload(b, of), upload(b, before));
    b.pool_mean_backward(MeanBackward {
        dy: Mat::new(&dy, dim),
        ranges: &ranges,
        dx: MatMut::at(&mut dx, 1, dim + 1),
        accumulate,
        num_ranges: of.len(),
        rows: before.len() / (dim + 1),
        dim,
    })
    .unwrap();
    download(b, &dx)
}

#[test]
fn means_are_chains_in_the_order_of_the_rows() {
    for (rows, dim) in [(1, 1), (5, 7), (300, 33), (900, 64)] {
        let x = numbers(1, rows * dim);
        let mut of = ascending(rows);
        // Overlapping and descending ranges are legal forwards.
        of.push(Range { start: 0, len: u32::try_from(rows).unwrap() });
        of.push(Range { start: u32::try_from(rows).unwrap(), len: 0 });
        of.push(Range { start: 0, len: 1 });
        let (mut want, mut exact, mut scale) = (Vec::new(), Vec::new(), Vec::new());
        for range in &of {
            let len = range.len.max(1);
            for c in 0..dim {
                let at = |i: u32| x[(range.start + i) as usize * dim + c];
                want.push((0..range.len).fold(0.0f32, |s, i| s + at(i)) / len as f32);
                let terms = (0..range.len).map(|i| f64::from(at(i)) / f64::from(len));
                exact.push(terms.clone().sum());
                scale.push(terms.map(f64::abs).sum());
            }
        }
        let [one, two, four] = on_threads(|| mean(&Cpu, &of, &x, dim));
        same_bits("chain", &one, &want);
        same_bits("two threads", &two, &want);
        same_bits("four threads", &four, &want);
        within("cpu", rows as f64 + 1.0, &one, &exact, &scale);
        within("naive", 1.0, &mean(&Naive, &of, &x, dim), &exact, &scale);
    }
}

#[test]
fn the_backward_spreads_each_row_and_leaves_the_others() {
    for (rows, dim) in [(1, 1), (5, 7), (300, 33), (900, 64)] {
        let of = ascending(rows);
        let (dy, before) = (numbers(2, of.len() * dim), numbers(3, rows * (dim + 1)));
        for accumulate in [false, true] {
            let mut want = before.clone();
            for (range, dy) in of.iter().zip(dy.chunks(dim)) {
                for row in range.start..range.start + range.len {
                    let to = &mut want[1 + row as usize * (dim + 1)..][..dim];
                    for (to, dy) in to.iter_mut().zip(dy) {
                        let v = dy / range.len as f32;
                        *to = if accumulate { *to + v } else { v };
                    }
                }
            }
            let run = || backward(&Cpu, &of, (&dy, &before), dim, accumulate);
            on_threads(run).iter().for_each(|got| same_bits("dX", got, &want));
            let naive = backward(&Naive, &of, (&dy, &before), dim, accumulate);
            let scale: Vec<f64> = before.iter().map(|v| 1.0 + f64::from(v.abs())).collect();
            let exact: Vec<f64> = naive.iter().map(|v| f64::from(*v)).collect();
            within("naive", 2.0, &want, &exact, &scale);
        }
    }
}

#[test]
fn the_backward_agrees_with_differences() {
    let (rows, dim) = (9, 2);
    let of = ranges(&[(1, 3), (4, 0), (5, 4)]);
    let (x, dy) = (numbers(1, rows * dim), numbers(2, 3 * dim));
    let dx = backward(&Cpu, &of, (&dy, &vec![0.0; rows * (dim + 1)]), dim, true);
    let dx: Vec<f32> = (0..rows * dim).map(|i| dx[1 + i / dim * (dim + 1) + i % dim]).collect();
    differences("dX", &dx, &x, |x| {
        let mean = |range: &Range, c: usize| {
            let rows = range.start as usize..(range.start + range.len) as usize;
            rows.map(|i| x[i * dim + c]).sum::<f64>() / f64::from(range.len.max(1))
        };
        let term = |(j, range)| (0..dim).map(|c| f64::from(dy[j * dim + c]) * mean(range, c)).sum();
        of.iter().enumerate().map(term).map(|v: f64| v).sum()
    });
}

fn refuses<B: Pool<Act = f32>>(b: &B) {
    let run = |of: &[(u32, u32)], num_ranges: usize, rows: usize| {
        let (of, source) = (upload(b, &ranges(of)), upload(b, &[1.0f32; 12]));
        let (dim, mut to): (_, B::Buf<f32>) = (3, b.alloc(12).unwrap());
        let (x, y) = (Mat::new(&source, dim), MatMut::new(&mut to, dim));
        let forward = b.pool_mean(Mean { x, ranges: &of, y, num_ranges, rows, dim });
        let mut to: B::Buf<f32> = b.alloc(12).unwrap();
        let (dy, dx, accumulate) = (Mat::new(&source, dim), MatMut::new(&mut to, dim), true);
        let args = MeanBackward { dy, ranges: &of, dx, accumulate, num_ranges, rows, dim };
        let backward = b.pool_mean_backward(args);
        assert!(backward.is_ok() || download(b, &to).iter().all(|v| *v == 0.0), "written");
        (forward, backward)
    };
    let routing = |r: &Result<(), Error>| matches!(r, Err(Error::Routing { .. }));
    let length = |r: &Result<(), Error>| matches!(r, Err(Error::Length { .. }));
    assert_eq!(run(&[(0, 2), (2, 2)], 2, 4), (Ok(()), Ok(())));
    assert_eq!(run(&[], 0, 0), (Ok(()), Ok(())));
    assert_eq!(run(&[(0, 2), (9, 9)], 1, 4), (Ok(()), Ok(())));
    for of in [[(0, 2), (2, 3)], [(5, 0), (0, 1)], [(0, 1), (u32::MAX, u32::MAX)]] {
        let (forward, backward) = run(&of, 2, 4);
        assert!(routing(&forward) && routing(&backward), "{of:?}");
    }
    for of in [[(0, 2), (1, 2)], [(2, 2), (0, 2)], [(1, 1), (0, 0)]] {
        let (forward, backward) = run(&of, 2, 4);
        assert!(forward.is_ok() && routing(&backward), "{of:?}");
    }
    for (num_ranges, rows) in [(3, 4), (2, 5)] {
        let (forward, backward) = run(&[(0, 1), (1, 1)], num_ranges, rows);
        assert!(length(&forward) && length(&backward), "{num_ranges}, {rows}");
    }
}

#[test]
fn ranges_outside_are_refused() {
    refuses(&Cpu);
    refuses(&Naive);
}
