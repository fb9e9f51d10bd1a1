//! Roofline columns: beside criterion's time, the best time's GFLOP/s, its share of the product peak
//! measured in the same run, and GB/s.
#![allow(dead_code, reason = "each benchmark uses the shapes it needs")]
#![allow(unreachable_pub, reason = "shared by the benchmarks, exported by none")]

use criterion::Criterion;
use kernels::backend::Backend;
use kernels::cpu::CpuBuf;
use kernels::{Cpu, linear::peak};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// SmolLM2-135M: query heads, key/value heads, head width, model width, MLP width, vocabulary.
pub const H: usize = 9;
pub const G: usize = 3;
pub const E: usize = 64;
pub const D: usize = 576;
pub const F: usize = 1536;
pub const V: usize = 49_152;
/// Packed rows.
pub const T: usize = 1024;

/// What one call does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Floating-point operations; a multiply-add is two.
    pub flop: f64,
    /// Bytes that must move between memory and the processor.
    pub bytes: f64,
}

/// Benchmarks `f` with 1 and 2 threads.
pub fn bench(c: &mut Criterion, name: &str, work: Work, mut f: impl FnMut() + Send) {
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let best = Mutex::new(Duration::MAX);
        c.bench_function(&format!("{name}/{threads}"), |b| {
            b.iter_custom(|iterations| {
                pool.install(|| {
                    let start = Instant::now();
                    for _ in 0..iterations {
                        let one = Instant::now();
                        f();
                        let mut best = best.lock().unwrap();
                        *best = one.elapsed().min(*best);
                    }
                    start.elapsed()
                })
            });
        });
        let best = *best.lock().unwrap();
        if best == Duration::MAX {
            continue; // filtered out on the command line
        }
        let seconds = best.as_secs_f64();
        let roof = peak::product(threads).unwrap();
        let gflops = work.flop / seconds * 1e-9;
        eprintln!(
            "{name}/{threads}: best {:.3} ms, {gflops:.1} GFLOP/s = {:.0} % of {roof:.0}, {:.1} GB/s",
            seconds * 1e3,
            100.0 * gflops / roof,
            work.bytes / seconds * 1e-9
        );
    }
}

/// A buffer of numbers that are neither all equal nor denormal.
pub fn filled(len: usize) -> CpuBuf<f32> {
    let mut buf = Cpu.alloc(len).unwrap();
    for (i, x) in buf.iter_mut().enumerate() {
        *x = ((i * 7919 + 13) % 2003) as f32 / 1001.0 - 1.0;
    }
    buf
}
