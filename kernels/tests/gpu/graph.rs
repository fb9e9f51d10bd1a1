//! Work that is held back, and graphs of what repeats: the same bits as launch by launch.

use crate::harness::{Emulated, own, with_graphs};
use crate::naive::{download, numbers, upload};
use half::bf16;
use kernels::backend::{Backend, Mat, MatMut};
use kernels::gpu::{GraphCounts, Launch, Operand, Output, OutputType, Product};
use kernels::norm::{Forward, Norm, ParamGradient, Params};

const ROWS: usize = 6;
const DIM: usize = 16;

type Buf<T> = <Emulated as Backend>::Buf<T>;

/// Buffers of a little step: two norms, a product, and a gradient through the workspace.
struct Step {
    weight: Buf<f32>,
    x: Buf<bf16>,
    y: Buf<bf16>,
    z: Buf<bf16>,
    product: Buf<f32>,
    grads: Buf<f32>,
}

fn acts(seed: u64, rows: usize) -> Vec<bf16> {
    numbers(seed, rows * DIM).into_iter().map(bf16::from_f32).collect()
}

impl Step {
    fn new(b: &Emulated, rows: usize) -> Self {
        Self {
            weight: upload(b, &numbers(1, DIM)),
            x: upload(b, &acts(2, rows)),
            y: b.alloc(rows * DIM).unwrap(),
            z: b.alloc(rows * DIM).unwrap(),
            product: b.alloc(rows * rows).unwrap(),
            grads: b.alloc(DIM).unwrap(),
        }
    }

    /// Five launches and a product, with nothing between.
    fn queue(&mut self, b: &Emulated, rows: usize, eps: f32) {
        let params = || Params { weight: &self.weight, bias: None, eps };
        let (x, y) = (Mat::new(&self.x, DIM), MatMut::new(&mut self.y, DIM));
        b.norm_forward(Forward { params: params(), x, y, rows, dim: DIM }).unwrap();
        let (y, z) = (Mat::new(&self.y, DIM), MatMut::new(&mut self.z, DIM));
        b.norm_forward(Forward { params: params(), x: y, y: z, rows, dim: DIM }).unwrap();
        let a = Operand { address: self.y.address_at(0), stride: DIM, transposed: false };
        let of_z = Operand { address: self.z.address_at(0), stride: DIM, transposed: true };
        let (address, element) = (self.product.address_at(0), OutputType::F32);
        let out = Output { address, stride: rows, element };
        let (m, n, k) = (rows, rows, DIM);
        let accumulate = true;
        b.product(&Product { m, n, k, a, b: of_z, out, accumulate, c: None, invariant: false })
            .unwrap();
        b.norm_param_gradient(ParamGradient {
            centred: false,
            eps,
            x: Mat::new(&self.x, DIM),
            dy: Mat::new(&self.z, DIM),
            rows,
            dim: DIM,
            grads: &mut self.grads,
            weight_offset: 0,
            bias_offset: None,
        })
        .unwrap();
        let (x, y) = (Mat::new(&self.z, DIM), MatMut::new(&mut self.y, DIM));
        b.norm_forward(Forward { params: params(), x, y, rows, dim: DIM }).unwrap();
    }

    fn state(&self, b: &Emulated) -> (Vec<bf16>, Vec<bf16>, Vec<f32>, Vec<f32>) {
        let (product, grads) = (download(b, &self.product), download(b, &self.grads));
        (download(b, &self.y), download(b, &self.z), product, grads)
    }
}

/// A step on a device with graphs and one without, which must stay alike.
struct Twins {
    graphs: Emulated,
    plain: Emulated,
    rows: usize,
    steps: [Step; 2],
}

impl Twins {
    fn new(kept: usize, rows: usize) -> Self {
        let (graphs, plain) = (with_graphs(kept), own());
        // As after planning: a workspace that grows would cut the first list in two.
        drop(graphs.workspace([rows * size_of::<[f32; 2]>()]).unwrap());
        let steps = [Step::new(&graphs, rows), Step::new(&plain, rows)];
        Self { graphs, plain, rows, steps }
    }

    /// One step from new inputs, both ways.
    fn step(&mut self, seed: u64, eps: f32) {
        let [ours, theirs] = &mut self.steps;
        for (b, step) in [(&self.graphs, &mut *ours), (&self.plain, &mut *theirs)] {
            b.write(&mut step.x, 0, &acts(seed, self.rows)).unwrap();
            step.queue(b, self.rows, eps);
        }
        assert_eq!(ours.state(&self.graphs), theirs.state(&self.plain), "{seed}, {eps}");
    }

    fn counts(&self) -> [u64; 4] {
        let GraphCounts { plain, captured, replayed, forgotten } = self.graphs.graph_counts();
        [plain, captured, replayed, forgotten]
    }
}

#[test]
fn what_repeats_is_one_call_with_the_same_bits() {
    let mut twins = Twins::new(4, ROWS);
    twins.step(10, 1e-5);
    assert_eq!(twins.counts(), [1, 0, 0, 0], "first plain");
    twins.step(11, 1e-5);
    assert_eq!(twins.counts(), [1, 1, 1, 0], "then made and used");
    twins.step(12, 1e-5);
    twins.step(13, 1e-5);
    assert_eq!(twins.counts(), [1, 1, 3, 0], "then used");
    assert_eq!(twins.plain.graph_counts(), GraphCounts::default());
}

#[test]
fn another_argument_or_address_is_another_list() {
    let mut twins = Twins::new(4, ROWS);
    for seed in 20..23 {
        twins.step(seed, 1e-5);
    }
    twins.step(23, 1e-4);
    assert_eq!(twins.counts(), [2, 1, 2, 0]);
    // Zeros of both signs are equal numbers, and other bytes.
    twins.step(24, 0.0);
    twins.step(25, -0.0);
    assert_eq!(twins.counts(), [4, 1, 2, 0]);
    // Both addresses are alive, so the buffers cannot trade places.
    let other = Step::new(&twins.graphs, ROWS);
    let old = std::mem::replace(&mut twins.steps[0], other);
    twins.graphs.copy((&mut twins.steps[0].grads, 0), (&old.grads, 0), DIM).unwrap();
    twins.graphs.copy((&mut twins.steps[0].product, 0), (&old.product, 0), ROWS * ROWS).unwrap();
    twins.step(26, 1e-5);
    assert_eq!(twins.counts(), [5, 1, 2, 0]);
    twins.step(27, 1e-5);
    assert_eq!(twins.counts(), [5, 2, 3, 0]);
}

#[test]
fn the_least_used_graph_is_given_up() {
    let mut twins = Twins::new(2, ROWS);
    for (i, eps) in [1e-5, 1e-4, 1e-5, 1e-4, 1e-5, 1e-3].into_iter().enumerate() {
        twins.step(30 + i as u64, eps);
    }
    assert_eq!(twins.counts(), [3, 2, 3, 0]);
    twins.step(36, 1e-3);
    assert_eq!(twins.counts(), [3, 3, 4, 1], "1e-4 makes room");
    twins.step(37, 1e-5);
    assert_eq!(twins.counts(), [3, 3, 5, 1], "1e-5 is still there");
    twins.step(38, 1e-4);
    assert_eq!(twins.counts(), [3, 4, 6, 2], "made again, 1e-3 makes room");
}

/// A larger step frees the workspace that the graph names.
#[test]
fn a_workspace_that_grew_is_another_address() {
    let mut twins = Twins::new(4, ROWS);
    for seed in 40..43 {
        twins.step(seed, 1e-5);
    }
    let rows = 700;
    let mut large = [Step::new(&twins.graphs, rows), Step::new(&twins.plain, rows)];
    // What frees the old workspace comes right behind what uses it, with nothing between.
    for (i, b) in [&twins.graphs, &twins.plain].into_iter().enumerate() {
        twins.steps[i].queue(b, ROWS, 1e-5);
        large[i].queue(b, rows, 1e-5);
    }
    assert_eq!(large[0].state(&twins.graphs), large[1].state(&twins.plain));
    assert_eq!(twins.steps[0].state(&twins.graphs), twins.steps[1].state(&twins.plain));
    for seed in 43..46 {
        twins.step(seed, 1e-5);
    }
}

#[test]
fn held_back_work_outlives_its_buffers() {
    let b = with_graphs(4);
    let [mut one, mut two] = [Step::new(&b, ROWS), Step::new(&b, ROWS)];
    one.queue(&b, ROWS, 1e-5);
    two.queue(&b, ROWS, 1e-5);
    let nothing = b.alloc(0).unwrap();
    let grads = std::mem::replace(&mut one.grads, nothing);
    drop(one);
    assert_eq!(download(&b, &grads), download(&b, &two.grads));
    assert!(download(&b, &grads).iter().any(|&v| v != 0.0));
}

#[test]
fn errors_are_told_by_what_comes_next() {
    let b = with_graphs(4);
    let x = upload(&b, &[1.0f32; 4]);
    let (grid, block) = ([1; 3], [32, 1, 1]);
    let unknown = Launch { module: "norm", kernel: "nobody", grid, block, shared: 0, args: &[] };
    b.launch(unknown).unwrap();
    let error = b.read(&x, 0, &mut [0.0; 4]).expect_err("there is no such kernel").to_string();
    assert!(error.contains("nobody"), "{error}");
    assert_eq!(download(&b, &x), [1.0; 4]);
    // Where nobody can be told, the next is.
    b.launch(unknown).unwrap();
    drop(b.alloc::<f32>(1).unwrap());
    assert!(b.flush().is_err());
    assert_eq!(download(&b, &x), [1.0; 4]);
    // A short list is not worth a graph.
    assert_eq!(b.graph_counts().captured, 0);
}
