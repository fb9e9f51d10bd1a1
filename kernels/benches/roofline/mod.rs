//! Roofline columns: beside criterion's time, the best time's GFLOP/s, its share of the machine's two
//! peaks measured in the same run (our own products, and multiply-adds on registers), and GB/s.
#![allow(dead_code, reason = "each benchmark uses the shapes it needs")]
#![allow(unreachable_pub, reason = "shared by the benchmarks, exported by none")]

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode};
use kernels::backend::Backend;
use kernels::cpu::CpuBuf;
use kernels::{Cpu, linear::peak};
use std::sync::OnceLock;
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
/// Threads that each benchmark runs on.
pub const THREADS: [usize; 2] = [1, 2];

/// What one call does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Floating-point operations; a multiply-add is two.
    pub flop: f64,
    /// Bytes that must move between memory and the processor.
    pub bytes: f64,
}

/// Benchmarks `f` on its own, with each number of threads.
pub fn bench(c: &mut Criterion, name: &str, work: Work, mut f: impl FnMut() + Send) {
    for threads in THREADS {
        let mut best = Best::default();
        let id = format!("{name}/{threads}");
        c.bench_function(&id, |b| best.time(b, threads, &mut f));
        best.print(&id, threads, work);
    }
}

/// Short benchmarks that are compared with one another, for operations of many shapes.
pub struct Group<'c> {
    pub name: String,
    inner: BenchmarkGroup<'c, WallTime>,
}

impl<'c> Group<'c> {
    pub fn new(c: &'c mut Criterion, name: String) -> Self {
        let mut inner = c.benchmark_group(&name);
        inner.sample_size(10);
        inner.sampling_mode(SamplingMode::Flat);
        inner.warm_up_time(Duration::from_millis(100));
        inner.measurement_time(Duration::from_millis(500));
        Self { name, inner }
    }

    /// Benchmarks `f` as `contender` for `shape`; its best time in seconds, or nothing where the
    /// command line filters it out.
    pub fn bench(
        &mut self,
        (contender, shape, threads): (&str, &str, usize),
        work: Work,
        mut f: impl FnMut() + Send,
    ) -> Option<f64> {
        let mut best = Best::default();
        let id = BenchmarkId::new(contender, format!("{shape}/{threads}"));
        self.inner.bench_function(id, |b| best.time(b, threads, &mut f));
        best.print(&format!("{}/{contender}/{shape}/{threads}", self.name), threads, work)
    }
}

/// The best time of one call.
#[derive(Default)]
struct Best(Option<Duration>);

impl Best {
    fn time(
        &mut self,
        b: &mut criterion::Bencher<'_>,
        threads: usize,
        f: &mut (impl FnMut() + Send),
    ) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        b.iter_custom(|iterations| {
            pool.install(|| {
                let start = Instant::now();
                for _ in 0..iterations {
                    let one = Instant::now();
                    f();
                    let one = one.elapsed();
                    self.0 = Some(self.0.map_or(one, |best| best.min(one)));
                }
                start.elapsed()
            })
        });
    }

    fn print(&self, id: &str, threads: usize, work: Work) -> Option<f64> {
        let seconds = self.0?.as_secs_f64();
        let (products, registers) = peaks(threads);
        let gflops = work.flop / seconds * 1e-9;
        eprintln!(
            "{id}: best {:.3} ms, {gflops:.1} GFLOP/s = {:.0} % of the products' {products:.0}, {:.0} % of the \
             registers' {registers:.0}, {:.1} GB/s",
            seconds * 1e3,
            100.0 * gflops / products,
            100.0 * gflops / registers,
            work.bytes / seconds * 1e-9
        );
        Some(seconds)
    }
}

/// GFLOP/s of products and of multiply-adds on registers, measured once a run.
fn peaks(threads: usize) -> (f64, f64) {
    static PEAKS: [OnceLock<(f64, f64)>; THREADS.len()] =
        [const { OnceLock::new() }; THREADS.len()];
    let index = THREADS.iter().position(|&t| t == threads).unwrap();
    *PEAKS[index]
        .get_or_init(|| (peak::product(threads).unwrap(), peak::arithmetic(threads).unwrap()))
}

/// A buffer of numbers that are neither all equal nor denormal.
pub fn filled(len: usize) -> CpuBuf<f32> {
    let mut buf = Cpu.alloc(len).unwrap();
    for (i, x) in buf.iter_mut().enumerate() {
        *x = ((i * 7919 + 13) % 2003) as f32 / 1001.0 - 1.0;
    }
    buf
}
