//! Products with weights.

use super::super::model::{Unit, Work};
use super::super::sizes::Sizes;
use super::{Op, Run, Subject, acts, elements, no_rivals, real, values, weight};
use kernels::Result;
use kernels::backend::{Mat, MatMut};
use kernels::linear::{Backward, Forward, Shape, WeightGradient, wide};

const FROZEN: &[(&str, &str)] = &[
    ("smollm2_o", "rows=4096,d=576,n=576"),
    ("smollm2_gate_up", "rows=4096,d=576,n=3072"),
    ("gpt2_qkv", "rows=4096,d=768,n=2304"),
    ("gpt2_down", "rows=4096,d=3072,n=768"),
    ("llama7b_o", "rows=4096,d=4096,n=4096"),
    ("llama7b_up", "rows=4096,d=4096,n=11008"),
];

/// Bases that train whole are small.
const TRAINED: &[(&str, &str)] = &[
    ("student_o", "rows=4096,d=128,n=128"),
    ("gpt2_o", "rows=4096,d=768,n=768"),
    ("gpt2_up", "rows=4096,d=768,n=3072"),
];

/// Scores of intents.
const SCORED: &[(&str, &str)] =
    &[("student_intents", "rows=4096,d=128,n=100"), ("gpt2_intents", "rows=4096,d=768,n=100")];

pub(super) fn ops<B: Subject>() -> Vec<Op<B>> {
    let op = |name, presets, work, build| Op {
        name,
        family: "linear",
        presets,
        work,
        build,
        rivals: no_rivals,
    };
    vec![
        op("linear_forward", FROZEN, product, forward),
        op("linear_backward", FROZEN, product, backward),
        op("linear_weight_gradient", TRAINED, gradient_work, gradient),
        op("refresh", TRAINED, refresh_work, refresh),
        op("wide_forward", SCORED, wide_forward_work, wide_forward),
        op("wide_backward", SCORED, wide_backward_work, wide_backward),
    ]
}

/// Both factors read, the result written.
fn product(sizes: &Sizes, act: f64) -> Work {
    let [rows, d, n] = sizes.counts(["rows", "d", "n"]).map(real);
    let bytes = act * (rows * d + d * n + rows * n);
    Work { bytes, flop: 2.0 * rows * d * n, unit: Unit::Bf16 }
}

fn forward<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [rows, d, n] = sizes.counts(["rows", "d", "n"]);
    let (b, weight) = (b.clone(), weight(b, d, n)?);
    let (x, mut y) = (acts(&b, elements([rows, d]))?, b.alloc(elements([rows, n]))?);
    Ok(Box::new(move || {
        let (x, y, weight) = (Mat::new(&x, d), MatMut::new(&mut y, n), &weight);
        b.linear_forward(Forward { x, weight, bias: None, residual: None, y, rows })
    }))
}

fn backward<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [rows, d, n] = sizes.counts(["rows", "d", "n"]);
    let (b, weight) = (b.clone(), weight(b, d, n)?);
    let (dy, mut dx) = (acts(&b, elements([rows, n]))?, b.alloc(elements([rows, d]))?);
    Ok(Box::new(move || {
        let (dy, dx, weight) = (Mat::new(&dy, n), MatMut::new(&mut dx, d), &weight);
        b.linear_backward(Backward { dy, weight, dx, accumulate: false, rows })
    }))
}

/// Both factors read, `dW` read and written.
fn gradient_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, d, n] = sizes.counts(["rows", "d", "n"]).map(real);
    let bytes = act * rows * (d + n) + 8.0 * n * d;
    Work { bytes, flop: 2.0 * rows * d * n, unit: Unit::Bf16 }
}

fn gradient<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [rows, d, n] = sizes.counts(["rows", "d", "n"]);
    let (b, shape) = (b.clone(), Shape { in_dim: d, out_dim: n });
    let (x, dy) = (acts(&b, elements([rows, d]))?, acts(&b, elements([rows, n]))?);
    let mut grads = b.alloc(elements([n, d]))?;
    Ok(Box::new(move || {
        let (x, dy, grads) = (Mat::new(&x, d), Mat::new(&dy, n), &mut grads);
        let (weight_offset, bias_offset) = (0, None);
        b.linear_weight_gradient(WeightGradient {
            shape,
            x,
            dy,
            rows,
            grads,
            weight_offset,
            bias_offset,
        })
    }))
}

/// The parameters read, the prepared form written, of which the CPU has two.
fn refresh_work(sizes: &Sizes, act: f64) -> Work {
    let [d, n] = sizes.counts(["d", "n"]).map(real);
    let copies = if act > 2.0 { 2.0 } else { 1.0 };
    Work { bytes: d * n * (4.0 + copies * act), flop: 0.0, unit: Unit::F32 }
}

fn refresh<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [d, n] = sizes.counts(["d", "n"]);
    let (b, mut weight) = (b.clone(), weight(b, d, n)?);
    let params = values(&b, elements([d, n]))?;
    Ok(Box::new(move || b.refresh(&mut weight, &params, 0)))
}

/// Both factors read, the result written in `f32`.
fn wide_forward_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, d, n] = sizes.counts(["rows", "d", "n"]).map(real);
    let bytes = act * (rows * d + d * n) + 4.0 * rows * n;
    Work { bytes, flop: 2.0 * rows * d * n, unit: Unit::Bf16 }
}

/// The same of `dX`.
fn wide_backward_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, d, n] = sizes.counts(["rows", "d", "n"]).map(real);
    let bytes = act * (rows * n + d * n) + 4.0 * rows * d;
    Work { bytes, flop: 2.0 * rows * d * n, unit: Unit::Bf16 }
}

fn wide_forward<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [rows, d, n] = sizes.counts(["rows", "d", "n"]);
    let (b, weight) = (b.clone(), weight(b, d, n)?);
    let (x, mut y) = (acts(&b, elements([rows, d]))?, b.alloc(elements([rows, n]))?);
    Ok(Box::new(move || {
        let (x, y, weight) = (Mat::new(&x, d), &mut y, &weight);
        b.wide_forward(wide::Forward { x, weight, bias: None, y, rows })
    }))
}

fn wide_backward<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [rows, d, n] = sizes.counts(["rows", "d", "n"]);
    let (b, weight) = (b.clone(), weight(b, d, n)?);
    let (dy, mut dx) = (acts(&b, elements([rows, n]))?, b.alloc(elements([rows, d]))?);
    Ok(Box::new(move || {
        let (dy, dx, weight) = (Mat::new(&dy, n), &mut dx, &weight);
        b.wide_backward(wide::Backward { dy, weight, dx, rows })
    }))
}
