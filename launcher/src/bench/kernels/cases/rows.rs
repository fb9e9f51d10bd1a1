//! Norms, rotary positions, activations and means over ranges: row by row, bound by bytes.

use super::super::model::{Unit, Work};
use super::super::sizes::Sizes;
use super::{Op, Run, Subject, acts, elements, no_rivals, number, real, table, values};
use kernels::Result;
use kernels::activation::{self, Kind};
use kernels::backend::{Mat, MatMut};
use kernels::norm::{self, Params};
use kernels::pool::{Mean, MeanBackward, Range};
use kernels::rope::{self, Rotate};

const EPS: f32 = 1e-5;

const NORMS: &[(&str, &str)] = &[
    ("smollm2", "rows=4096,d=576,centred=0"),
    ("gpt2", "rows=4096,d=768,centred=1"),
    ("llama7b", "rows=4096,d=4096,centred=0"),
];
const TRAINED_NORMS: &[(&str, &str)] =
    &[("student", "rows=4096,d=128,centred=1"), ("gpt2", "rows=4096,d=768,centred=1")];
const ROPES: &[(&str, &str)] = &[
    ("smollm2_q", "rows=4096,heads=9,head_dim=64,length=512"),
    ("smollm2_k", "rows=4096,heads=3,head_dim=64,length=512"),
    ("llama7b_q", "rows=4096,heads=32,head_dim=128,length=512"),
];
const ACTIVATIONS: &[(&str, &str)] = &[
    ("smollm2", "rows=4096,f=1536,gated=1"),
    ("gpt2", "rows=4096,f=3072,gated=0"),
    ("llama7b", "rows=4096,f=11008,gated=1"),
];
const POOLS: &[(&str, &str)] = &[
    ("student", "ranges=256,length=16,d=128"),
    ("smollm2", "ranges=64,length=64,d=576"),
    ("llama7b", "ranges=16,length=256,d=4096"),
];

pub(super) fn ops<B: Subject>() -> Vec<Op<B>> {
    let op = |family, name, presets, work, build| Op {
        name,
        family,
        presets,
        work,
        build,
        rivals: no_rivals,
    };
    vec![
        op("norm", "norm_forward", NORMS, norm_work, norm_forward),
        op("norm", "norm_backward", NORMS, norm_backward_work, norm_backward),
        op("norm", "norm_param_gradient", TRAINED_NORMS, norm_gradient_work, norm_gradient),
        op("rope", "rope", ROPES, rope_work, rope),
        op("activation", "activation_forward", ACTIVATIONS, activation_work, activation),
        op(
            "activation",
            "activation_backward",
            ACTIVATIONS,
            activation_backward_work,
            activation_backward,
        ),
        op("pool", "pool_mean", POOLS, pool_work, pool),
        op("pool", "pool_mean_backward", POOLS, pool_work, pool_backward),
    ]
}

fn f32_work(bytes: f64, flop: f64) -> Work {
    Work { bytes, flop, unit: Unit::F32 }
}

/// Root mean square: the squares (2), scale and weight (2). Layer: the mean (1), squares (3), the rest (4).
fn norm_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, d] = sizes.counts(["rows", "d"]).map(real);
    let (flop, vectors) = if sizes.flag("centred") { (8.0, 2.0) } else { (4.0, 1.0) };
    f32_work(2.0 * act * rows * d + 4.0 * vectors * d, flop * rows * d)
}

fn norm_forward<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [rows, dim] = sizes.counts(["rows", "d"]);
    let (b, len) = (b.clone(), elements([rows, dim]));
    let (x, mut y, weight) = (acts(&b, len)?, b.alloc(len)?, values(&b, dim)?);
    let bias = if sizes.flag("centred") { Some(values(&b, dim)?) } else { None };
    Ok(Box::new(move || {
        let params = Params { weight: &weight, bias: bias.as_ref(), eps: EPS };
        let (x, y) = (Mat::new(&x, dim), MatMut::new(&mut y, dim));
        b.norm_forward(norm::Forward { params, x, y, rows, dim })
    }))
}

/// `X` and `dY` read, `dX` read and written; statistics again, `g = w dY`, its sums, the result.
fn norm_backward_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, d] = sizes.counts(["rows", "d"]).map(real);
    let flop = if sizes.flag("centred") { 16.0 } else { 10.0 };
    f32_work(4.0 * act * rows * d + 4.0 * d, flop * rows * d)
}

fn norm_backward<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [rows, dim] = sizes.counts(["rows", "d"]);
    let (b, len) = (b.clone(), elements([rows, dim]));
    let (x, dy, mut dx) = (acts(&b, len)?, acts(&b, len)?, b.alloc(len)?);
    let weight = values(&b, dim)?;
    let bias = if sizes.flag("centred") { Some(values(&b, dim)?) } else { None };
    Ok(Box::new(move || {
        let params = Params { weight: &weight, bias: bias.as_ref(), eps: EPS };
        let (x, dy, dx) = (Mat::new(&x, dim), Mat::new(&dy, dim), MatMut::new(&mut dx, dim));
        b.norm_backward(norm::Backward { params, x, dy, dx, rows, dim })
    }))
}

/// `X` and `dY` read, the gradients read and written.
fn norm_gradient_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, d] = sizes.counts(["rows", "d"]).map(real);
    let (flop, vectors) = if sizes.flag("centred") { (9.0, 2.0) } else { (5.0, 1.0) };
    f32_work(2.0 * act * rows * d + 8.0 * vectors * d, flop * rows * d)
}

fn norm_gradient<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [rows, dim] = sizes.counts(["rows", "d"]);
    let (b, len, centred) = (b.clone(), elements([rows, dim]), sizes.flag("centred"));
    let (x, dy, mut grads) = (acts(&b, len)?, acts(&b, len)?, b.alloc(elements([2, dim]))?);
    Ok(Box::new(move || {
        b.norm_param_gradient(norm::ParamGradient {
            centred,
            eps: EPS,
            x: Mat::new(&x, dim),
            dy: Mat::new(&dy, dim),
            rows,
            dim,
            grads: &mut grads,
            weight_offset: 0,
            bias_offset: centred.then_some(dim),
        })
    }))
}

/// `X` read and written, positions and the table of angles read; six operations a pair.
fn rope_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, heads, e, length] = sizes.counts(["rows", "heads", "head_dim", "length"]).map(real);
    let all = rows * heads * e;
    f32_work(2.0 * act * all + 4.0 * rows + 4.0 * length.min(rows) * e, 3.0 * all)
}

fn rope<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [rows, heads, head_dim, length] = sizes.counts(["rows", "heads", "head_dim", "length"]);
    let (b, width) = (b.clone(), elements([heads, head_dim]));
    let mut x = acts(&b, elements([rows, width]))?;
    let frequencies: Vec<f32> =
        (0..head_dim / 2).map(|i| 10_000f32.powf(-2.0 * ratio(i, head_dim))).collect();
    let angles = table(&b, &rope::table(&frequencies, length))?;
    let positions: Vec<u32> = (0..rows).map(|row| number(row % length)).collect();
    let positions = table(&b, &positions)?;
    Ok(Box::new(move || {
        b.rope(Rotate {
            x: MatMut::new(&mut x, width),
            positions: &positions,
            table: &angles,
            heads,
            head_dim,
            inverse: false,
            rows,
        })
    }))
}

fn ratio(part: usize, whole: usize) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "widths of heads")]
    let ratio = part as f32 / whole as f32;
    ratio
}

fn kind(sizes: &Sizes) -> Kind {
    if sizes.flag("gated") { Kind::SwiGlu } else { Kind::GeluNew }
}

/// Operations an output: `g σ(g) u` 5; `u σ(2z)` with its cubic 9.
fn activation_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, f] = sizes.counts(["rows", "f"]).map(real);
    let (inputs, flop) = if sizes.flag("gated") { (2.0, 5.0) } else { (1.0, 9.0) };
    f32_work(act * rows * f * (inputs + 1.0), flop * rows * f)
}

fn activation<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let ([rows, dim], kind) = (sizes.counts(["rows", "f"]), kind(sizes));
    let (b, width) = (b.clone(), kind.in_dim(dim));
    let (x, mut h) = (acts(&b, elements([rows, width]))?, b.alloc(elements([rows, dim]))?);
    Ok(Box::new(move || {
        let (x, h) = (Mat::new(&x, width), MatMut::new(&mut h, dim));
        b.activation_forward(activation::Forward { kind, x, h, rows, dim })
    }))
}

/// `X` and `dH` read, `dX` written.
fn activation_backward_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, f] = sizes.counts(["rows", "f"]).map(real);
    let (inputs, flop) = if sizes.flag("gated") { (2.0, 10.0) } else { (1.0, 18.0) };
    f32_work(act * rows * f * (2.0 * inputs + 1.0), flop * rows * f)
}

fn activation_backward<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let ([rows, dim], kind) = (sizes.counts(["rows", "f"]), kind(sizes));
    let (b, width) = (b.clone(), kind.in_dim(dim));
    let (x, dh) = (acts(&b, elements([rows, width]))?, acts(&b, elements([rows, dim]))?);
    let mut dx = b.alloc(elements([rows, width]))?;
    Ok(Box::new(move || {
        let (x, dh, dx) = (Mat::new(&x, width), Mat::new(&dh, dim), MatMut::new(&mut dx, width));
        b.activation_backward(activation::Backward { kind, x, dh, dx, rows, dim })
    }))
}

/// All rows and one for each range, read and written or the other way round; an addition or a copy an element.
fn pool_work(sizes: &Sizes, act: f64) -> Work {
    let [ranges, length, d] = sizes.counts(["ranges", "length", "d"]).map(real);
    f32_work(act * ranges * (length + 1.0) * d + 8.0 * ranges, ranges * length * d)
}

fn ranges(count: usize, length: usize) -> Vec<Range> {
    let range = |i| Range { start: number(elements([i, length])), len: number(length) };
    (0..count).map(range).collect()
}

fn pool<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [num_ranges, length, dim] = sizes.counts(["ranges", "length", "d"]);
    let (b, rows) = (b.clone(), elements([num_ranges, length]));
    let (x, mut y) = (acts(&b, elements([rows, dim]))?, b.alloc(elements([num_ranges, dim]))?);
    let ranges = table(&b, &ranges(num_ranges, length))?;
    Ok(Box::new(move || {
        let (x, y, ranges) = (Mat::new(&x, dim), MatMut::new(&mut y, dim), &ranges);
        b.pool_mean(Mean { x, ranges, y, num_ranges, rows, dim })
    }))
}

fn pool_backward<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [num_ranges, length, dim] = sizes.counts(["ranges", "length", "d"]);
    let (b, rows) = (b.clone(), elements([num_ranges, length]));
    let (dy, mut dx) = (acts(&b, elements([num_ranges, dim]))?, b.alloc(elements([rows, dim]))?);
    let ranges = table(&b, &ranges(num_ranges, length))?;
    Ok(Box::new(move || {
        let (dy, dx, ranges) = (Mat::new(&dy, dim), MatMut::new(&mut dx, dim), &ranges);
        let accumulate = false;
        b.pool_mean_backward(MeanBackward { dy, ranges, dx, accumulate, num_ranges, rows, dim })
    }))
}
