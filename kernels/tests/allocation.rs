//! A steady call allocates nothing: scratch grows in the first calls and is kept.
#![expect(unsafe_code, reason = "a counting allocator is an unsafe trait")]
#![expect(clippy::unwrap_used, reason = "a test panics when wrong")]

use kernels::activation::{self, Activation, Kind};
use kernels::attention::{self, Attention, Grads, Heads, QueryGrads, Routing, Sequence};
use kernels::classify::{ClassLoss, Classify, Row, Softmax};
use kernels::cpu::CpuBuf;
use kernels::embedding::{Embed, Embedding, Lookup, LookupGradient};
use kernels::intent::{self, Head, Intent, Offsets, Product, Segment, Shape as HeadShape};
use kernels::linear::{HostStorage, Layout, Linear, Shape, Trainable, WeightGradient};
use kernels::loss::{HeadLoss, Loss};
use kernels::norm::{self, Norm, ParamGradient, Params};
use kernels::optim::{AdamW, Optim, Update};
use kernels::pool::{Mean, MeanBackward, Pool, Range};
use kernels::rope::{Rope, Rotate, table};
use kernels::{Backend, Cpu, Mat, MatMut};
use std::alloc::{GlobalAlloc, Layout as AllocLayout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: forwards every call unchanged to the system's allocator, which keeps the trait's contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: AllocLayout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: AllocLayout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Rows of the pack: one sequence of 40 and two that share a prefix of 30.
const T: usize = 40 + 30 + 25 + 25;
const D: usize = 64;
const F: usize = 96;
const V: usize = 5000;

fn buf(len: usize) -> CpuBuf<f32> {
    (0..len).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect::<Vec<_>>().into()
}

fn sequence(start: u32, len: u32, (p_start, p_len): (u32, u32)) -> Sequence {
    Sequence { q_start: start, q_len: len, k_start: start, k_len: len, p_start, p_len }
}

/// One call of every operation, on buffers that are there already.
struct Step {
    x: CpuBuf<f32>,
    y: CpuBuf<f32>,
    wide: CpuBuf<f32>,
    dwide: CpuBuf<f32>,
    weight: CpuBuf<f32>,
    table: CpuBuf<f32>,
    index: CpuBuf<u32>,
    sequences: CpuBuf<Sequence>,
    groups: CpuBuf<u32>,
    limits: CpuBuf<u32>,
    lse: CpuBuf<f32>,
    head: <Cpu as Linear>::Weight,
    row_weights: CpuBuf<f32>,
    losses: CpuBuf<f32>,
    work: CpuBuf<f32>,
    updates: CpuBuf<Update>,
    slabs: [CpuBuf<f32>; 4],
    norms: CpuBuf<f32>,
    trained: <Cpu as Linear>::Weight,
    ranges: CpuBuf<Range>,
}

impl Step {
    fn new() -> Self {
        let shape = Shape { in_dim: D, out_dim: V };
        let mut prepared = vec![0.0; Cpu.prepared_len(shape)];
        Cpu.prepare(shape, Layout::OutIn, &buf(D * V), &mut prepared).unwrap();
        let storage: HostStorage = Arc::new(prepared);
        let sequences = vec![
            sequence(0, 40, (0, 0)),
            sequence(40, 30, (0, 0)),
            sequence(70, 25, (40, 30)),
            sequence(95, 25, (40, 30)),
        ];
        let limits: Vec<u32> = sequences.iter().flat_map(|s| 1..=s.q_len).collect();
        let update = |offset| Update {
            offset,
            len: 40_000,
            step: 1,
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            clip_norm: 1.0,
        };
        Self {
            x: buf(T * D),
            y: buf(T * D),
            wide: buf(T * 2 * F),
            dwide: buf(T * 2 * F),
            weight: buf(D),
            table: table(&[1.0; 8], 64).into(),
            index: (0..T).map(|i| u32::try_from(i % 64).unwrap()).collect::<Vec<_>>().into(),
            sequences: sequences.into(),
            groups: vec![0, 1, 4].into(),
            limits: limits.into(),
            lse: buf(T * 4),
            head: Cpu.weight(shape, &storage, 0).unwrap(),
            row_weights: buf(T),
            losses: buf(T),
            work: buf(Cpu.head_loss_workspace(T, D, V)),
            updates: vec![update(0), update(40_000)].into(),
            slabs: std::array::from_fn(|_| buf(80_000)),
            norms: buf(2),
            trained: Cpu.trainable(Shape { in_dim: 2 * F, out_dim: D }).unwrap(),
            ranges: vec![Range { start: 0, len: 70 }, Range { start: 70, len: 50 }].into(),
        }
    }

    fn run(&mut self) {
        let (rows, dim) = (T, D);
        let x = MatMut::new(&mut self.x, D);
        let (table, ids) = (&self.head, &self.index);
        Cpu.embed(Embed { table, ids, positions: None, x, rows }).unwrap();
        let params = Params { weight: &self.weight, bias: None, eps: 1e-5 };
        let (x, y) = (Mat::new(&self.x, D), MatMut::new(&mut self.y, D));
        Cpu.norm_forward(norm::Forward { params, x, y, rows, dim }).unwrap();
        let (dy, dx) = (Mat::new(&self.x, D), MatMut::new(&mut self.y, D));
        Cpu.norm_backward(norm::Backward { params, x, dy, dx, rows, dim }).unwrap();
        Cpu.rope(Rotate {
            x: MatMut::new(&mut self.y, D),
            positions: &self.index,
            table: &self.table,
            heads: 4,
            head_dim: 16,
            inverse: false,
            rows,
        })
        .unwrap();
        let kind = Kind::SwiGlu;
        let (x, h) = (Mat::new(&self.wide, 2 * F), MatMut::new(&mut self.dwide, 2 * F));
        Cpu.activation_forward(activation::Forward { kind, x, h, rows, dim: F }).unwrap();
        self.attention();
        Cpu.head_loss(HeadLoss {
            x: Mat::new(&self.x, D),
            head: &self.head,
            targets: &self.index,
            weights: &self.row_weights,
            losses: &mut self.losses,
            dx: Some(MatMut::new(&mut self.y, D)),
            work: &mut self.work,
            rows,
        })
        .unwrap();
        self.whole_base();
        let [params, grads, m, v] = &mut self.slabs;
        let (updates, norms) = (&self.updates, &mut self.norms);
        Cpu.adamw(AdamW { updates, num_updates: 2, params, grads, m, v, norms }).unwrap();
    }

    /// What only a base that trains whole calls.
    fn whole_base(&mut self) {
        let (rows, dim) = (T, D);
        let [params, grads, ..] = &mut self.slabs;
        Cpu.refresh(&mut self.trained, params, 5).unwrap();
        Cpu.refresh_vector(&mut self.weight, params, 5).unwrap();
        let (x, dy) = (Mat::new(&self.wide, 2 * F), Mat::new(&self.x, D));
        let (shape, bias_offset) = (Cpu.shape(&self.trained), Some(2 * F * D));
        let weight_offset = 0;
        Cpu.linear_weight_gradient(WeightGradient {
            shape,
            x,
            dy,
            rows,
            grads,
            weight_offset,
            bias_offset,
        })
        .unwrap();
        Cpu.norm_param_gradient(ParamGradient {
            centred: true,
            eps: 1e-5,
            x: dy,
            dy,
            rows,
            dim,
            grads,
            weight_offset,
            bias_offset,
        })
        .unwrap();
        let (ids, offset, values, accumulate) = (Mat::new(&self.index, 1), 7, 64, true);
        let x = MatMut::new(&mut self.y, D);
        Cpu.lookup(Lookup { params, offset, values, dim, ids, x, accumulate, rows }).unwrap();
        // Wide rows, so that more than one task takes part.
        let (dx, dim) = (Mat::new(&self.wide, 2 * F), 2 * F);
        Cpu.lookup_gradient(LookupGradient { dx, ids, grads, offset, values, dim, rows }).unwrap();
        let (ranges, num_ranges, dim) = (&self.ranges, 2, D);
        let (x, y) = (Mat::new(&self.x, D), MatMut::new(&mut self.y, D));
        Cpu.pool_mean(Mean { x, ranges, y, num_ranges, rows, dim }).unwrap();
        let dx = MatMut::new(&mut self.y, D);
        let args = MeanBackward { dy: x, ranges, dx, accumulate, num_ranges, rows, dim };
        Cpu.pool_mean_backward(args).unwrap();
    }

    fn attention(&mut self) {
        let heads = Heads { heads: 4, kv_heads: 2, head_dim: 16, scale: 0.25 };
        let routing = Routing::<Cpu> {
            sequences: &self.sequences,
            num_sequences: 4,
            groups: &self.groups,
            num_groups: 2,
            limits: &self.limits,
        };
        let (q, k, v) = (Mat::new(&self.x, D), Mat::new(&self.x, D), Mat::at(&self.x, 32, D));
        let (out, lse) = (MatMut::new(&mut self.y, D), &mut self.lse);
        let (q_rows, k_rows) = (T, T);
        let args = attention::Forward { heads, routing, q, k, v, out, lse, q_rows, k_rows };
        Cpu.attention_forward(args).unwrap();
        Cpu.attention_backward(attention::Backward {
            heads,
            routing,
            q,
            k,
            v,
            out: Mat::new(&self.y, D),
            lse: &self.lse,
            dout: Mat::new(&self.x, D),
            grads: Grads {
                rows: MatMut::new(&mut self.dwide, 2 * F),
                dq: QueryGrads::Beside(0),
                dk: D,
                dv: D + 32,
            },
            q_rows,
            k_rows,
        })
        .unwrap();
    }
}

/// Intent heads with both products and their losses, on buffers that are there already.
struct IntentStep {
    shape: HeadShape,
    params: CpuBuf<f32>,
    segments: CpuBuf<Segment>,
    deltas: CpuBuf<f32>,
    h: CpuBuf<f32>,
    dh: CpuBuf<f32>,
    logits: [CpuBuf<f32>; 2],
    teacher: CpuBuf<f32>,
    table: CpuBuf<Row>,
    losses: CpuBuf<f32>,
    grads: CpuBuf<f32>,
    delta_grads: CpuBuf<f32>,
    work: CpuBuf<f32>,
}

impl IntentStep {
    fn new(product: Product) -> Self {
        let shape = HeadShape { intents: 7, dim: 20, hidden: 12, product };
        let size = shape.delta_len() as u64;
        let segment = |row_start, rows, order: u64| Segment {
            row_start,
            rows,
            delta_offset: order * size,
            delta_grad_offset: (2 - order) * size,
        };
        let rows = [Row::distill(1, 1.0, 0.5, 2.0), Row::forget(None, 1.0, 1.0, 4.0)];
        Self {
            shape,
            params: buf(shape.param_len(true)),
            segments: vec![segment(0, 30, 1), segment(30, 50, 2), segment(80, 20, 0)].into(),
            deltas: buf(3 * shape.delta_len()),
            h: buf(T * 20),
            dh: buf(T * 20),
            logits: [buf(T * 7), buf(T * 7)],
            teacher: buf(T * 7),
            table: (0..T).map(|i| rows[i % 2]).collect::<Vec<_>>().into(),
            losses: buf(T),
            grads: buf(shape.param_len(true)),
            delta_grads: buf(3 * shape.delta_len()),
            work: buf(Cpu.intent_workspace(T, 3, shape)),
        }
    }

    fn run(&mut self) {
        let (rows, classes) = (T, 7);
        let head = Head::<Cpu> {
            shape: self.shape,
            offsets: Offsets::dense(self.shape, true, 0),
            params: &self.params,
            segments: &self.segments,
            num_segments: 3,
            deltas: &self.deltas,
        };
        let h = Mat::new(&self.h, 20);
        let [logits, dlogits] = &mut self.logits;
        let work = &mut self.work;
        Cpu.intent_forward(intent::Forward { head, h, logits, work, rows }).unwrap();
        let (table, losses) = (&self.table, &mut self.losses);
        let (teacher, gradient) = (Some(&self.teacher), Some(&mut *dlogits));
        Cpu.class_loss(ClassLoss {
            logits,
            teacher,
            table,
            losses,
            dlogits: gradient,
            rows,
            classes,
        })
        .unwrap();
        Cpu.intent_backward(intent::Backward {
            head,
            h,
            dlogits,
            dh: Some(MatMut::new(&mut self.dh, 20)),
            grads: Some(&mut self.grads),
            delta_grads: Some(&mut self.delta_grads),
            work: &mut self.work,
            rows,
        })
        .unwrap();
        Cpu.softmax(Softmax { logits, probabilities: dlogits, rows, classes }).unwrap();
    }
}

#[test]
fn a_steady_step_allocates_nothing() {
    for threads in [1, 2] {
        let mut step = Step::new();
        let mut heads = [Product::Elementwise, Product::Outer].map(IntentStep::new);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        // Which thread takes which task is chance: scratch has grown everywhere only after a while.
        let quiet = pool.install(|| {
            (0..400).any(|_| {
                let before = COUNT.load(Ordering::Relaxed);
                (0..5).for_each(|_| {
                    step.run();
                    heads.iter_mut().for_each(IntentStep::run);
                });
                COUNT.load(Ordering::Relaxed) == before
            })
        });
        assert!(quiet, "no 5 steps of 2000 without an allocation on {threads} threads");
        assert!(Cpu.alloc::<f32>(0).unwrap().is_empty());
    }
}
