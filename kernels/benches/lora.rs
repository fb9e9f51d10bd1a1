//! Grouped LoRA on q and v of a block of SmolLM2-135M, for several numbers of users, ranks and dropout
//! rates, beside the block's frozen products; one group a number of rows. The LoRA tax is LoRA's time
//! over the frozen products', forward and backward together.
#![expect(clippy::unwrap_used, reason = "a benchmark panics when wrong; its sizes are small")]

mod roofline;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::cpu::CpuBuf;
use kernels::linear::cpu::{CpuWeight, aligned_storage};
use kernels::linear::{self, Layout, Linear, Shape};
use kernels::lora::{self, Lora, Segment, Site, SiteOutput};
use kernels::{Cpu, Mat, MatMut};
use roofline::{D, F, G, Group, THREADS, Work, filled};

const KV: usize = G * roofline::E;
/// q, k, v, o, gate, up, down.
const BLOCK: [(usize, usize); 7] = [(D, D), (D, KV), (D, KV), (D, D), (D, F), (D, F), (F, D)];
/// Row of q, k and v side by side.
const QKV: usize = D + 2 * KV;

/// The frozen products of one block.
struct Base {
    weights: Vec<CpuWeight>,
    wide: CpuBuf<f32>,
    out: CpuBuf<f32>,
}

impl Base {
    fn new(rows: usize) -> Self {
        let weights = BLOCK.map(|(in_dim, out_dim)| {
            let shape = Shape { in_dim, out_dim };
            let storage = aligned_storage(Cpu.prepared_len(shape), |dst| {
                Cpu.prepare(shape, Layout::OutIn, &filled(in_dim * out_dim), dst).unwrap();
            });
            Cpu.weight(shape, &storage, 0).unwrap()
        });
        Self { weights: weights.into(), wide: filled(rows * F), out: filled(rows * F) }
    }

    /// Of one direction.
    fn work(rows: usize) -> Work {
        let weights: usize = BLOCK.iter().map(|(d, n)| d * n).sum();
        let outer: usize = BLOCK.iter().map(|(d, n)| d + n).sum();
        Work { flop: 2.0 * (rows * weights) as f64, bytes: 4.0 * (weights + rows * outer) as f64 }
    }

    fn forward(&mut self, rows: usize) {
        for weight in &self.weights {
            let Shape { in_dim: d, out_dim: n } = Cpu.shape(weight);
            let (x, y) = (Mat::new(&self.wide, d), MatMut::new(&mut self.out, n));
            let (bias, residual) = (None, None);
            Cpu.linear_forward(linear::Forward { x, weight, bias, residual, y, rows }).unwrap();
        }
    }

    fn backward(&mut self, rows: usize) {
        for weight in &self.weights {
            let Shape { in_dim: d, out_dim: n } = Cpu.shape(weight);
            let (dy, dx) = (Mat::new(&self.wide, n), MatMut::new(&mut self.out, d));
            let accumulate = false;
            Cpu.linear_backward(linear::Backward { dy, weight, dx, accumulate, rows }).unwrap();
        }
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
    dy: CpuBuf<f32>,
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
            params: filled(slab),
            grads: filled(slab),
            x: filled(t * D),
            y: filled(t * QKV),
            dy: filled(t * QKV),
            dx: filled(t * D),
        }
    }

    /// Forward (`S`, `Y`) and backward (`S` again, `dS`, `dX`, `dA`, `dB`).
    fn work(rows: usize, users: u32, r: u32) -> [Work; 2] {
        let (unit, a, slab) = (rows * r as usize, 2 * D, (users * r) as usize * (3 * D + KV));
        let flop = |columns: usize| 2.0 * (unit * columns) as f64;
        // `X` is read once for both sites; what grows by `+=` is read and written.
        let bytes = |elements: usize| 4.0 * elements as f64;
        let outputs = D + KV;
        [
            Work { flop: flop(a + outputs), bytes: bytes(rows * (D + 2 * outputs) + slab) },
            Work {
                flop: flop(3 * a + 2 * outputs),
                bytes: bytes(rows * (3 * D + outputs) + 3 * slab),
            },
        ]
    }

    // Y, dX and the gradients grow by `+=` with every call, in proportion to their number: they stay finite.
    fn forward(&mut self, rows: usize) {
        Cpu.lora_forward(lora::Forward {
            x: Mat::new(&self.x, D),
            sites: &self.sites,
            segments: &self.segments,
            num_segments: self.num_segments,
            row_token: &self.row_token,
            params: &self.params,
            y: MatMut::new(&mut self.y, QKV),
            rows,
        })
        .unwrap();
    }

    fn backward(&mut self, rows: usize) {
        Cpu.lora_backward(lora::Backward {
            x: Mat::new(&self.x, D),
            sites: &self.sites,
            segments: &self.segments,
            num_segments: self.num_segments,
            row_token: &self.row_token,
            params: &self.params,
            dy: Mat::new(&self.dy, QKV),
            grads: &mut self.grads,
            dx: Some(MatMut::new(&mut self.dx, D)),
            rows,
        })
        .unwrap();
    }
}

fn lora(c: &mut Criterion) {
    for rows in [1024u32, 2048] {
        let t = rows as usize;
        let mut group = Group::new(c, format!("lora_{rows}"));
        let (mut base, work) = (Base::new(t), Base::work(t));
        let frozen = THREADS.map(|threads| {
            let id = |name| (name, "block", threads);
            let forward = group.bench(id("frozen_forward"), work, || base.forward(t));
            let backward = group.bench(id("frozen_backward"), work, || base.backward(t));
            Some(forward? + backward?)
        });
        let mut cases = vec![];
        for users in [1, 16, 64] {
            cases.extend([(users, 8, 0.0), (users, 8, 0.05), (users, 64, 0.0)]);
        }
        if rows == 1024 {
            cases.push((1024, 8, 0.0));
        }
        for (users, r, dropout) in cases {
            let mut adapters = Adapters::new(rows, users, r, dropout);
            let work = Adapters::work(t, users, r);
            let shape = format!("{users}_users_r{r}_dropout{dropout}");
            for (threads, frozen) in THREADS.into_iter().zip(frozen) {
                let id = |name| (name, shape.as_str(), threads);
                let forward = group.bench(id("forward"), work[0], || adapters.forward(t));
                let backward = group.bench(id("backward"), work[1], || adapters.backward(t));
                if let (Some(forward), Some(backward), Some(frozen)) = (forward, backward, frozen) {
                    let tax = 100.0 * (forward + backward) / frozen;
                    eprintln!("{}/{shape}/{threads}: LoRA tax {tax:.1} %", group.name);
                }
            }
        }
    }
}

criterion_group!(benches, lora);
criterion_main!(benches);
