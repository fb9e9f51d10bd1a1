//! Frozen products on the CPU: GFLOP/s, GB/s and the share of the machine's peak, for the shapes of
//! SmolLM2-135M, beside the `gemm` crate.
//!
//! `cargo bench -p kernels --bench linear [-- THREADS...]`; without numbers, one thread and all. Each
//! figure is the best of several repetitions, ours and the comparator's in turn, so that a busy machine
//! slows both.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use kernels::cpu::CpuBuf;
use kernels::linear::cpu::{CpuWeight, aligned_storage};
use kernels::linear::{Backward, Forward, Layout, Linear, Shape, peak};
use kernels::{Cpu, Mat, MatMut, Result};
use std::time::Instant;

const SHAPES: [(usize, usize); 5] =
    [(576, 576), (576, 192), (576, 1536), (1536, 576), (576, 49152)];
const ROWS: [usize; 6] = [1, 16, 64, 256, 1024, 2048];

/// Seconds of the best repetition of each of the contenders, run in turn for about a second.
fn best(flop: f64, contenders: &mut [&mut dyn FnMut() -> Result<()>]) -> Result<Vec<f64>> {
    let repetitions = if flop > 2e10 {
        3
    } else if flop > 1e9 {
        10
    } else {
        100
    };
    let mut best = vec![f64::INFINITY; contenders.len()];
    for _ in 0..repetitions {
        for (best, run) in best.iter_mut().zip(contenders.iter_mut()) {
            let start = Instant::now();
            run()?;
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    Ok(best)
}

/// Numbers in `[-0.5, 0.5)`.
fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 31 % 97) as f32 / 97.0 - 0.5).collect()
}

struct Bench {
    shape: Shape,
    weight: CpuWeight,
    plain: Vec<f32>,
}

impl Bench {
    fn new(d: usize, n: usize) -> Result<Self> {
        let shape = Shape { in_dim: d, out_dim: n };
        let plain = numbers(d * n);
        let mut prepared = Ok(());
        let storage = aligned_storage(Cpu.prepared_len(shape), |dst| {
            prepared = Cpu.prepare(shape, Layout::InOut, &plain, dst);
        });
        prepared?;
        Ok(Self { shape, weight: Cpu.weight(shape, &storage, 0)?, plain })
    }

    /// Prints one line: forward, backward, and the comparator's forward.
    fn line(&self, rows: usize, threads: usize, peak: f64) -> Result<()> {
        let Shape { in_dim: d, out_dim: n } = self.shape;
        let (x, dy) = (CpuBuf::from(numbers(rows * d)), CpuBuf::from(numbers(rows * n)));
        let mut y = CpuBuf::from(vec![0.0f32; rows * n]);
        let mut dx = CpuBuf::from(vec![0.0f32; rows * d]);
        let mut theirs = vec![0.0f32; rows * n];
        let mut forward = || {
            let (x, y) = (Mat::new(&x, d), MatMut::new(&mut y, n));
            let (bias, residual) = (None, None);
            Cpu.linear_forward(Forward { x, weight: &self.weight, bias, residual, y, rows })
        };
        let mut backward = || {
            let (dy, dx) = (Mat::new(&dy, n), MatMut::new(&mut dx, d));
            let accumulate = false;
            Cpu.linear_backward(Backward { dy, weight: &self.weight, dx, accumulate, rows })
        };
        let mut comparator = || {
            gemm_crate((rows, d, n), &x, &self.plain, &mut theirs, threads);
            Ok(())
        };
        let flop = 2.0 * (rows * d * n) as f64;
        let seconds = best(flop, &mut [&mut forward, &mut backward, &mut comparator])?;
        let bytes = 4.0 * (d * n + rows * (d + n)) as f64;
        let rate = |i: usize| flop / seconds[i] * 1e-9;
        println!(
            "{threads:>7} {rows:>6} {d:>6} {n:>6} {:>9.1} {:>6.2} {:>7.1} {:>9.1} {:>6.2} {:>9.1} {:>7.2}",
            rate(0),
            rate(0) / peak,
            bytes / seconds[0] * 1e-9,
            rate(1),
            rate(1) / peak,
            rate(2),
            rate(0) / rate(2),
        );
        Ok(())
    }
}

/// `y = x·w` by the `gemm` crate, all row-major.
#[expect(unsafe_code, reason = "the comparator's interface takes pointers")]
fn gemm_crate(
    (rows, d, n): (usize, usize, usize),
    x: &[f32],
    w: &[f32],
    y: &mut [f32],
    threads: usize,
) {
    assert!(x.len() >= rows * d && w.len() >= d * n && y.len() >= rows * n);
    let (xs, ys) = (d.cast_signed(), n.cast_signed());
    let parallel =
        if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    // SAFETY: the three matrices lie inside their slices, as asserted, and `y` overlaps neither.
    unsafe {
        gemm::gemm(
            rows,
            n,
            d,
            y.as_mut_ptr(),
            1,
            ys,
            false,
            x.as_ptr(),
            1,
            xs,
            w.as_ptr(),
            1,
            ys,
            0.0,
            1.0,
            false,
            false,
            false,
            parallel,
        );
    }
}

fn main() -> Result<()> {
    let mut threads: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    if threads.is_empty() {
        threads = vec![1, std::thread::available_parallelism().map_or(1, usize::from)];
        threads.dedup();
    }
    for threads in threads {
        let arithmetic = peak::arithmetic(threads)?;
        println!("{threads} threads: {arithmetic:.1} GFLOP/s on registers");
        println!(
            "{:>7} {:>6} {:>6} {:>6} {:>9} {:>6} {:>7} {:>9} {:>6} {:>9} {:>7}",
            "threads",
            "rows",
            "d",
            "n",
            "forward",
            "peak",
            "GB/s",
            "backward",
            "peak",
            "gemm",
            "ratio"
        );
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool =
            pool.map_err(|e| kernels::Error::Backend { op: "bench", what: e.to_string() })?;
        pool.install(|| {
            for (d, n) in SHAPES {
                let bench = Bench::new(d, n)?;
                for rows in ROWS {
                    bench.line(rows, threads, arithmetic)?;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}
