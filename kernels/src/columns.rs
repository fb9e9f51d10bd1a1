//! Sums down the columns of row-major matrices: gradients of what every row shares (a bias, a norm).
//!
//! An element is one chain over the rows ascending that begins at what it holds, whatever the threads and
//! the instructions: tasks and vectors lie across columns, never across rows. Start at [`add`].

use crate::lanes::{self, Kernel, LANES};
use crate::linear::operand::Rows;
use pulp::Simd;
use rayon::prelude::*;

/// Columns of a task: as many running sums as registers hold, and a few cache lines of each row.
const TASK_COLUMNS: usize = 4 * LANES;

/// Rows below which all columns are one task.
const TASK_ROWS: usize = 64;

/// What each element of a row is multiplied by: `(x - mean) · scale` with the row's statistics.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Normalised<'a> {
    pub(crate) x: Rows<'a>,
    /// `mean` and `scale` of each row.
    pub(crate) statistics: &'a [[f32; 2]],
}

/// `sums[c] += Σ_t y[t, c]`, or `sums[c] = fma((x[t, c] - mean[t]) · scale[t], y[t, c], sums[c])` in
/// ascending `t`, for `rows` rows.
pub(crate) fn add(y: Rows<'_>, times: Option<Normalised<'_>>, rows: usize, sums: &mut [f32]) {
    let columns = if rows < TASK_ROWS { sums.len().max(1) } else { TASK_COLUMNS };
    let task = |(index, sums): (usize, &mut [f32])| {
        lanes::run(Columns { y, times, rows, first: index * columns, sums });
    };
    if sums.len() <= columns {
        task((0, sums));
    } else {
        sums.par_chunks_mut(columns).enumerate().for_each(task);
    }
}

/// Some columns, from column `first` on, by one thread.
struct Columns<'a> {
    y: Rows<'a>,
    times: Option<Normalised<'a>>,
    rows: usize,
    first: usize,
    sums: &'a mut [f32],
}

impl Kernel for Columns<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { y, times, rows, mut first, sums } = self;
        let (strips, rest) = sums.as_chunks_mut::<TASK_COLUMNS>();
        for strip in strips {
            chains::<S, 4>(simd, (y, times), rows, first, strip.as_chunks_mut().0);
            first += TASK_COLUMNS;
        }
        let (vectors, rest) = rest.as_chunks_mut::<LANES>();
        for vector in vectors {
            chains::<S, 1>(simd, (y, times), rows, first, std::slice::from_mut(vector));
            first += LANES;
        }
        for (c, sum) in (first..).zip(rest) {
            for t in 0..rows {
                let y = y.row(t, c..c + 1)[0];
                *sum = match &times {
                    None => *sum + y,
                    Some(Normalised { x, statistics }) => {
                        let [mean, scale] = statistics[t];
                        ((x.row(t, c..c + 1)[0] - mean) * scale).mul_add(y, *sum)
                    }
                };
            }
        }
    }
}

/// The chains of `N` vectors of columns, in registers over all rows.
#[inline(always)]
fn chains<S: Simd, const N: usize>(
    simd: S,
    (y, times): (Rows<'_>, Option<Normalised<'_>>),
    rows: usize,
    first: usize,
    sums: &mut [[f32; LANES]],
) {
    let columns = first..first + N * LANES;
    let mut acc: [S::f32s; N] = std::array::from_fn(|i| lanes::load(simd, &sums[i]));
    match times {
        None => {
            for t in 0..rows {
                let (y, _) = y.row(t, columns.clone()).as_chunks::<LANES>();
                for i in 0..N {
                    acc[i] = simd.add_f32s(acc[i], lanes::load(simd, &y[i]));
                }
            }
        }
        Some(Normalised { x, statistics }) => {
            for (t, [mean, scale]) in statistics.iter().enumerate().take(rows) {
                let (y, _) = y.row(t, columns.clone()).as_chunks::<LANES>();
                let (x, _) = x.row(t, columns.clone()).as_chunks::<LANES>();
                let (mean, scale) = (simd.splat_f32s(*mean), simd.splat_f32s(*scale));
                for i in 0..N {
                    let centred = simd.sub_f32s(lanes::load(simd, &x[i]), mean);
                    let hat = simd.mul_f32s(centred, scale);
                    acc[i] = simd.mul_add_f32s(hat, lanes::load(simd, &y[i]), acc[i]);
                }
            }
        }
    }
    for (sum, acc) in sums.iter_mut().zip(acc) {
        lanes::store(simd, sum, acc);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Case(Vec<f32>, Vec<[f32; 2]>, usize, usize);
    impl Kernel for Case {
        type Output = [Vec<u32>; 2];
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let Self(data, statistics, rows, width) = self;
            let (y, x) = (
                Rows { data: &data, start: 1, stride: width + 1 },
                Rows { data: &data, start: 0, stride: width + 1 },
            );
            [None, Some(Normalised { x, statistics: &statistics })].map(|times| {
                let mut sums: Vec<f32> = (0..width).map(|c| data[c] * 3.0).collect();
                Columns { y, times, rows, first: 0, sums: &mut sums }.run(simd);
                sums.iter().map(|v| v.to_bits()).collect()
            })
        }
    }

    #[test]
    fn a_column_is_one_chain_on_every_instruction_set() {
        let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 503.0 - 1.0;
        for (rows, width) in [(0, 5), (1, 1), (3, 16), (40, 17), (9, 64), (7, 150)] {
            let data: Vec<f32> = (0..1 + (rows + 1) * (width + 1)).map(value).collect();
            let statistics: Vec<[f32; 2]> =
                (0..rows).map(|t| [value(t + 5), 1.5 + value(t + 9)]).collect();
            let mut want = [Vec::new(), Vec::new()];
            for c in 0..width {
                let at = |t: usize, first: usize| data[first + t * (width + 1) + c];
                let (mut plain, mut times) = (data[c] * 3.0, data[c] * 3.0);
                for (t, [mean, scale]) in statistics.iter().enumerate() {
                    plain += at(t, 1);
                    times = ((at(t, 0) - mean) * scale).mul_add(at(t, 1), times);
                }
                want[0].push(plain.to_bits());
                want[1].push(times.to_bits());
            }
            for got in lanes::run_each(Case(data, statistics, rows, width)) {
                assert_eq!(got, want, "{rows} rows of {width}");
            }
        }
    }
}
