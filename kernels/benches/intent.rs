//! The intention attention head and the class losses: a pack of the population (no deltas, all gradients)
//! and packs of users (frozen head, personal rows), beside the same head as dense matrices would cost.
#![expect(clippy::unwrap_used, reason = "a benchmark panics when wrong; its sizes are small")]

mod roofline;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::classify::{ClassLoss, Classify, Row};
use kernels::cpu::CpuBuf;
use kernels::intent::{Backward, Forward, Head, Intent, Offsets, Product, Segment, Shape};
use kernels::{Cpu, Mat, MatMut};
use roofline::{Group, THREADS, Work, filled};

const ROWS: usize = 1024;

struct Case {
    shape: Shape,
    params: CpuBuf<f32>,
    segments: CpuBuf<Segment>,
    deltas: CpuBuf<f32>,
    h: CpuBuf<f32>,
    dh: CpuBuf<f32>,
    logits: CpuBuf<f32>,
    grads: CpuBuf<f32>,
    delta_grads: CpuBuf<f32>,
    work: CpuBuf<f32>,
}

impl Case {
    fn new(shape: Shape, users: u32) -> Self {
        let rows = u32::try_from(ROWS).unwrap();
        let at = |u: u32| u64::from(u) * shape.delta_len() as u64;
        let segments: Vec<Segment> = (0..users)
            .map(|u| Segment {
                row_start: u * rows / users,
                rows: (u + 1) * rows / users - u * rows / users,
                delta_offset: at(u),
                delta_grad_offset: at(u),
            })
            .collect();
        let slab = users as usize * shape.delta_len();
        Self {
            shape,
            params: filled(shape.param_len(true)),
            deltas: filled(slab),
            h: filled(ROWS * shape.dim),
            dh: filled(ROWS * shape.dim),
            logits: filled(ROWS * shape.intents),
            grads: filled(shape.param_len(true)),
            delta_grads: filled(slab),
            work: filled(Cpu.intent_workspace(ROWS, segments.len(), shape)),
            segments: segments.into(),
        }
    }

    /// Products of `N · k · d` for each row: one forward; three backward, of which the last is `dV`'s.
    fn cost(&self, products: usize, passes: usize) -> Work {
        let Shape { intents, dim, hidden, product } = self.shape;
        let mix = match product {
            Product::Elementwise => hidden * dim,
            Product::Outer => hidden * dim * dim,
        };
        let flop = 2.0 * (ROWS * (products * intents * hidden * dim + passes * mix)) as f64;
        let moved = ROWS * (dim + intents) + self.params.len() + self.deltas.len();
        Work { flop, bytes: 4.0 * (passes * moved) as f64 }
    }

    fn forward(&mut self) {
        Cpu.intent_forward(Forward {
            head: Head {
                shape: self.shape,
                offsets: Offsets::dense(self.shape, true, 0),
                params: &self.params,
                segments: &self.segments,
                num_segments: self.segments.len(),
                deltas: &self.deltas,
            },
            h: Mat::new(&self.h, self.shape.dim),
            logits: &mut self.logits,
            work: &mut self.work,
            rows: ROWS,
        })
        .unwrap();
    }

    // Gradients grow by `+=` with every call, in proportion to their number: they stay finite.
    fn backward(&mut self, frozen: bool) {
        let personal = !self.segments.is_empty();
        Cpu.intent_backward(Backward {
            head: Head {
                shape: self.shape,
                offsets: Offsets::dense(self.shape, true, 0),
                params: &self.params,
                segments: &self.segments,
                num_segments: self.segments.len(),
                deltas: &self.deltas,
            },
            h: Mat::new(&self.h, self.shape.dim),
            dlogits: &self.logits,
            dh: Some(MatMut::new(&mut self.dh, self.shape.dim)),
            grads: (!frozen).then_some(&mut self.grads),
            delta_grads: personal.then_some(&mut self.delta_grads),
            work: &mut self.work,
            rows: ROWS,
        })
        .unwrap();
    }
}

fn head(c: &mut Criterion) {
    use Product::{Elementwise, Outer};
    let mut group = Group::new(c, "intent".to_owned());
    for (intents, dim, hidden, product) in [
        (18, 64, 64, Elementwise),
        (30, 128, 64, Elementwise),
        (100, 384, 128, Elementwise),
        (30, 64, 64, Outer),
    ] {
        let shape = Shape { intents, dim, hidden, product };
        for (users, frozen) in [(0, false), (16, true), (256, true)] {
            let mut case = Case::new(shape, users);
            let name = format!("{intents}x{dim}x{hidden}_{product:?}_{users}_users");
            for threads in THREADS {
                let (work, back) = (case.cost(1, 1), case.cost(3, 2));
                group.bench(("forward", &name, threads), work, || case.forward());
                group.bench(("backward", &name, threads), back, || case.backward(frozen));
            }
        }
    }
}

fn losses(c: &mut Criterion) {
    let mut group = Group::new(c, "class_loss".to_owned());
    let classes = 30;
    let (logits, teacher) = (filled(ROWS * classes), filled(ROWS * classes));
    let (mut losses, mut dlogits) = (filled(ROWS), filled(ROWS * classes));
    for (name, row) in [
        ("hard", Row::hard(3, 1.0)),
        ("distill", Row::distill(3, 1.0, 0.5, 2.0)),
        ("forget", Row::forget(None, 1.0, 1.0, 6.0)),
    ] {
        let table: CpuBuf<Row> = vec![row; ROWS].into();
        let work = Work { flop: 0.0, bytes: (12 * ROWS * classes) as f64 };
        for threads in THREADS {
            group.bench((name, "1024x30", threads), work, || {
                Cpu.class_loss(ClassLoss {
                    logits: &logits,
                    teacher: Some(&teacher),
                    table: &table,
                    losses: &mut losses,
                    dlogits: Some(&mut dlogits),
                    rows: ROWS,
                    classes,
                })
                .unwrap();
            });
        }
    }
}

criterion_group!(benches, head, losses);
criterion_main!(benches);
