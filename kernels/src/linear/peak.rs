//! The rate of `f32` arithmetic that this machine reaches: the roof of the microbenchmarks and of the
//! forecast of a run's time.
//!
//! Owns two measurements, both in GFLOP/s (a multiply-add is two): [`arithmetic`], multiply-adds on
//! registers alone, which nothing exceeds, and [`product`], the best of our own products, which a
//! training step can hope for. Starts its own threads, touches no buffer of a run.

use super::cpu::aligned_storage;
use super::{Forward, Layout, Linear, Shape};
use crate::backend::{Mat, MatMut};
use crate::cpu::{Cpu, CpuBuf};
use crate::error::{Error, Result};
use pulp::{Arch, Simd, WithSimd};
use std::hint::black_box;
use std::time::Instant;

/// Repetitions; the best counts, since everything else on the machine only slows one down.
const REPETITIONS: usize = 7;

/// Independent chains: enough to hide the latency, few enough for 16 registers.
const CHAINS: usize = 12;

/// Multiply-adds of each chain in one repetition.
const STEPS: u32 = 200_000;

/// Multiply-adds on registers only.
struct Chains;

impl WithSimd for Chains {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let mut sums = [simd.splat_f32s(black_box(1.0)); CHAINS];
        let (x, y) = (simd.splat_f32s(black_box(0.999)), simd.splat_f32s(black_box(0.001)));
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = simd.mul_add_f32s(*sum, x, y);
            }
        }
        black_box(&sums);
        2.0 * (CHAINS * S::F32_LANES) as f64 * f64::from(STEPS)
    }
}

/// GFLOP/s of fused multiply-adds on the registers of `threads` threads (zero counts as one).
///
/// # Errors
/// [`Error::Backend`] when the threads cannot be started.
pub fn arithmetic(threads: usize) -> Result<f64> {
    let pool = pool(threads)?;
    let mut best = 0.0f64;
    for _ in 0..REPETITIONS {
        let start = Instant::now();
        let flop: f64 = pool.broadcast(|_| Arch::new().dispatch(Chains)).iter().sum();
        best = best.max(flop / start.elapsed().as_secs_f64());
    }
    Ok(best * 1e-9)
}

/// GFLOP/s of our own product on `threads` threads: the best over a square of 1024 and over the
/// shapes of a small base's attention and feed-forward layers, 1024 rows each.
///
/// # Errors
/// [`Error::Backend`] when the threads cannot be started or there is not enough memory.
pub fn product(threads: usize) -> Result<f64> {
    let pool = pool(threads)?;
    let mut best = 0.0f64;
    for (d, n) in [(1024, 1024), (576, 576), (576, 1536), (1536, 576)] {
        best = best.max(pool.install(|| rate(1024, Shape { in_dim: d, out_dim: n }))?);
    }
    Ok(best)
}

/// GFLOP/s of one shape on the threads of the current pool, best of a few.
fn rate(rows: usize, shape: Shape) -> Result<f64> {
    let Shape { in_dim: d, out_dim: n } = shape;
    let mut refused = Ok(());
    let storage = aligned_storage(Cpu.prepared_len(shape), |dst| {
        refused = Cpu.prepare(shape, Layout::OutIn, &vec![0.5; d * n], dst);
    });
    refused?;
    let weight = Cpu.weight(shape, &storage, 0)?;
    let x = CpuBuf::from(vec![0.25; rows * d]);
    let mut y = CpuBuf::from(vec![0.0; rows * n]);
    let mut best = 0.0f64;
    for _ in 0..REPETITIONS {
        let start = Instant::now();
        Cpu.linear_forward(Forward {
            x: Mat::new(&x, d),
            weight: &weight,
            bias: None,
            residual: None,
            y: MatMut::new(&mut y, n),
            rows,
        })?;
        best = best.max(2.0 * (rows * d * n) as f64 / start.elapsed().as_secs_f64());
    }
    Ok(best * 1e-9)
}

fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .build()
        .map_err(|e| Error::Backend { op: "peak", what: e.to_string() })
}

#[cfg(test)]
mod tests {
    #[test]
    fn rates_are_rates() {
        let arithmetic = super::arithmetic(1).unwrap();
        let product = super::product(1).unwrap();
        assert!(arithmetic.is_finite() && product.is_finite() && product > 0.0);
        // Registers alone are never much slower than a whole product, even on a busy machine.
        assert!(arithmetic > 0.2 * product, "{arithmetic} {product}");
    }
}
