//! The LoRA tax: grouped LoRA on q and v of a block of SmolLM2-135M, as a share of the block's frozen
//! products, forward and backward, for several numbers of users, ranks and dropout rates.
//!
//! `cargo bench -p kernels --bench lora [-- THREADS...]`; without numbers, one thread and all. Times
//! are the best of several repetitions, base and LoRA in turn.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use kernels::cpu::CpuBuf;
use kernels::linear::cpu::{CpuWeight, aligned_storage};
use kernels::linear::{self, Layout, Linear, Shape};
use kernels::lora::{self, Lora, Segment, Site, SiteOutput};
use kernels::{Cpu, Mat, MatMut, Result};
use std::time::Instant;

const D: usize = 576;
const KV: usize = 192;
const FF: usize = 1536;
/// q, k, v, o, gate, up, down.
const BLOCK: [(usize, usize); 7] = [(D, D), (D, KV), (D, KV), (D, D), (D, FF), (D, FF), (FF, D)];
/// Row of q, k and v side by side.
const QKV: usize = D + 2 * KV;
const REPETITIONS: usize = 7;

fn numbers(len: usize) -> CpuBuf<f32> {
    (0..len).map(|i| (i * 31 % 97) as f32 / 97.0 - 0.5).collect::<Vec<_>>().into()
}

/// Seconds of the frozen products of one block, forward and backward.
struct Base {
    weights: Vec<CpuWeight>,
    wide: CpuBuf<f32>,
    out: CpuBuf<f32>,
}

impl Base {
    fn new(rows: usize) -> Result<Self> {
        let weights = BLOCK.iter().map(|&(in_dim, out_dim)| {
            let shape = Shape { in_dim, out_dim };
            let mut prepared = Ok(());
            let storage = aligned_storage(Cpu.prepared_len(shape), |dst| {
                let plain = numbers(in_dim * out_dim);
                prepared = Cpu.prepare(shape, Layout::OutIn, &plain, dst);
            });
            prepared.and_then(|()| Cpu.weight(shape, &storage, 0))
        });
        let weights = weights.collect::<Result<_>>()?;
        Ok(Self { weights, wide: numbers(rows * FF), out: numbers(rows * FF) })
    }

    fn seconds(&mut self, rows: usize, forward: bool) -> Result<f64> {
        let start = Instant::now();
        for weight in &self.weights {
            let Shape { in_dim: d, out_dim: n } = Cpu.shape(weight);
            if forward {
                let (x, y) = (Mat::new(&self.wide, d), MatMut::new(&mut self.out, n));
                let (bias, residual) = (None, None);
                Cpu.linear_forward(linear::Forward { x, weight, bias, residual, y, rows })?;
            } else {
                let (dy, dx) = (Mat::new(&self.wide, n), MatMut::new(&mut self.out, d));
                Cpu.linear_backward(linear::Backward { dy, weight, dx, accumulate: false, rows })?;
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// LoRA on q and v, users of nearly equal length.
struct Adapters {
    sites: [SiteOutput; 2],
    segments: CpuBuf<Segment>,
    num_segments: usize,
    row_token: CpuBuf<u32>,
    params: CpuBuf<f32>,
    grads: CpuBuf<f32>,
    x: CpuBuf<f32>,
    y: CpuBuf<f32>,
    dx: CpuBuf<f32>,
}

impl Adapters {
    fn new(rows: u32, users: u32, r: u32, dropout: f32) -> Self {
        let q = Site { in_dim: D, out_dim: D, unit_offset: 0, id: 0 };
        let v = Site { in_dim: D, out_dim: KV, unit_offset: 2 * D, id: 1 };
        let all =
            |site: Site, y_start| SiteOutput { site, out_begin: 0, out_len: site.out_dim, y_start };
        let size = u64::from(r) * (3 * D + KV) as u64;
        let segments: Vec<Segment> = (0..users)
            .map(|u| Segment {
                row_start: u * rows / users,
                rows: (u + 1) * rows / users - u * rows / users,
                param_offset: u64::from(u) * size,
                grad_offset: u64::from(u) * size,
                lora_rank: r,
                scale: 2.0,
                dropout,
                step: 1,
                key: [1, u],
            })
            .collect();
        let slab = users as usize * r as usize * (3 * D + KV);
        let t = rows as usize;
        Self {
            sites: [all(q, 0), all(v, D + KV)],
            segments: segments.into(),
            num_segments: users as usize,
            row_token: (0..rows).collect::<Vec<_>>().into(),
            params: numbers(slab),
            grads: numbers(slab),
            x: numbers(t * D),
            y: numbers(t * QKV),
            dx: numbers(t * D),
        }
    }

    fn forward(&mut self, rows: usize) -> Result<f64> {
        let start = Instant::now();
        Cpu.lora_forward(lora::Forward {
            x: Mat::new(&self.x, D),
            sites: &self.sites,
            segments: &self.segments,
            num_segments: self.num_segments,
            row_token: &self.row_token,
            params: &self.params,
            y: MatMut::new(&mut self.y, QKV),
            rows,
        })?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn backward(&mut self, rows: usize) -> Result<f64> {
        let start = Instant::now();
        Cpu.lora_backward(lora::Backward {
            x: Mat::new(&self.x, D),
            sites: &self.sites,
            segments: &self.segments,
            num_segments: self.num_segments,
            row_token: &self.row_token,
            params: &self.params,
            dy: Mat::new(&self.y, QKV),
            grads: &mut self.grads,
            dx: Some(MatMut::new(&mut self.dx, D)),
            rows,
        })?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Prints one line: times of base and LoRA in milliseconds, LoRA's rate and its tax in percent.
fn line(threads: usize, rows: u32, (users, r, dropout): (u32, u32, f32)) -> Result<()> {
    let t = rows as usize;
    let (mut base, mut lora) = (Base::new(t)?, Adapters::new(rows, users, r, dropout));
    let mut best = [f64::INFINITY; 4];
    for _ in 0..REPETITIONS {
        // Gradients grow by `+=` and `Y` by the forward: both stay finite over the repetitions.
        let seconds =
            [base.seconds(t, true)?, base.seconds(t, false)?, lora.forward(t)?, lora.backward(t)?];
        for (best, seconds) in best.iter_mut().zip(seconds) {
            *best = best.min(seconds);
        }
    }
    let [base_forward, base_backward, forward, backward] = best;
    let flop = 2.0 * (t * r as usize) as f64 * (4.0 * (2 * D + D + KV) as f64 - (D + KV) as f64);
    println!(
        "{threads:>7} {rows:>5} {users:>5} {r:>3} {dropout:>7} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>8.1} {:>7.1} {:>7.1} {:>7.1}",
        base_forward * 1e3,
        base_backward * 1e3,
        forward * 1e3,
        backward * 1e3,
        flop / (forward + backward) * 1e-9,
        100.0 * forward / base_forward,
        100.0 * backward / base_backward,
        100.0 * (forward + backward) / (base_forward + base_backward),
    );
    Ok(())
}

fn main() -> Result<()> {
    let mut threads: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    if threads.is_empty() {
        threads = vec![1, std::thread::available_parallelism().map_or(1, usize::from)];
        threads.dedup();
    }
    println!("milliseconds of one block; tax: LoRA's share of the frozen products' time, percent");
    println!(
        "{:>7} {:>5} {:>5} {:>3} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7} {:>7} {:>7}",
        "threads",
        "rows",
        "users",
        "r",
        "dropout",
        "base f",
        "base b",
        "lora f",
        "lora b",
        "GFLOP/s",
        "tax f",
        "tax b",
        "tax"
    );
    for threads in threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool =
            pool.map_err(|e| kernels::Error::Backend { op: "bench", what: e.to_string() })?;
        pool.install(|| {
            for rows in [1024, 2048] {
                for users in [1, 16, 64] {
                    for (r, dropout) in [(8, 0.0), (8, 0.05), (64, 0.0)] {
                        line(threads, rows, (users, r, dropout))?;
                    }
                }
            }
            line(threads, 1024, (1024, 8, 0.0))
        })?;
    }
    Ok(())
}
