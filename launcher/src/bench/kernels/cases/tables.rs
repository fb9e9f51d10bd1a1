//! Rows by index: token embeddings, gather and scatter of rows, tables that train.

use super::super::model::{Unit, Work};
use super::super::sizes::Sizes;
use super::{Op, Run, Subject, acts, elements, no_rivals, number, real, scattered, table};
use super::{values, weight};
use kernels::Result;
use kernels::backend::{Mat, MatMut};
use kernels::embedding::{Embed, Gather, Lookup, LookupGradient, Scatter};

/// Every row of a pack; `positions` is the number of learned ones.
const EMBEDS: &[(&str, &str)] = &[
    ("smollm2", "rows=4096,d=576,v=49152,positions=0"),
    ("gpt2", "rows=4096,d=768,v=50257,positions=1024"),
    ("llama7b", "rows=4096,d=4096,v=32000,positions=0"),
];
/// The supervised rows, one of `every`.
const GATHERS: &[(&str, &str)] =
    &[("smollm2", "rows=1024,d=576,every=4"), ("llama7b", "rows=1024,d=4096,every=4")];
/// The gather's backward, and copies into a cache.
const SCATTERS: &[(&str, &str)] = &[
    ("smollm2", "rows=1024,d=576,every=4,accumulate=1"),
    ("llama7b", "rows=1024,d=4096,every=4,accumulate=1"),
    ("llama7b_cache", "rows=64,d=4096,every=16,accumulate=0"),
];
/// Kinds of events, and people, of a small model.
const LOOKUPS: &[(&str, &str)] =
    &[("student_kinds", "rows=4096,d=128,v=64"), ("teacher_kinds", "rows=4096,d=384,v=1000")];

pub(super) fn ops<B: Subject>() -> Vec<Op<B>> {
    let op = |name, presets, work, build| Op {
        name,
        family: "embedding",
        presets,
        work,
        build,
        rivals: no_rivals,
    };
    vec![
        op("embed", EMBEDS, embed_work, embed),
        op("gather", GATHERS, gather_work, gather),
        op("scatter", SCATTERS, scatter_work, scatter),
        op("lookup", LOOKUPS, lookup_work, lookup),
        op("lookup_gradient", LOOKUPS, lookup_gradient_work, lookup_gradient),
    ]
}

fn f32_work(bytes: f64, flop: f64) -> Work {
    Work { bytes, flop, unit: Unit::F32 }
}

/// A row of the table read for each row written, no two alike; learned positions are rows of `f32`.
fn embed_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, d, v, positions] = sizes.counts(["rows", "d", "v", "positions"]).map(real);
    let bytes = act * d * (rows.min(v) + rows) + 4.0 * rows;
    if positions > 0.0 {
        return f32_work(bytes + 4.0 * d * rows.min(positions) + 4.0 * rows, rows * d);
    }
    f32_work(bytes, 0.0)
}

fn embed<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [rows, d, v, known] = sizes.counts(["rows", "d", "v", "positions"]);
    let (b, head) = (b.clone(), weight(b, d, v)?);
    let (ids, mut x) = (table(&b, &scattered(rows, v))?, b.alloc(elements([rows, d]))?);
    let learned = if known == 0 {
        None
    } else {
        let at: Vec<u32> = (0..rows).map(|row| number(row % known)).collect();
        Some((values(&b, elements([known, d]))?, table(&b, &at)?))
    };
    Ok(Box::new(move || {
        let positions = learned.as_ref().map(|(places, at)| (places, at));
        b.embed(Embed { table: &head, ids: &ids, positions, x: MatMut::new(&mut x, d), rows })
    }))
}

fn gather_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, d] = sizes.counts(["rows", "d"]).map(real);
    f32_work(2.0 * act * rows * d + 4.0 * rows, 0.0)
}

/// One row of `every`.
fn spread(rows: usize, every: usize) -> Vec<u32> {
    (0..rows).map(|row| number(row * every)).collect()
}

fn gather<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [rows, dim, every] = sizes.counts(["rows", "d", "every"]);
    let (b, index) = (b.clone(), table(b, &spread(rows, every))?);
    let (x, mut y) = (acts(&b, elements([rows, every, dim]))?, b.alloc(elements([rows, dim]))?);
    Ok(Box::new(move || {
        let (x, y) = (Mat::new(&x, dim), MatMut::new(&mut y, dim));
        b.gather(Gather { x, index: &index, y, rows, dim })
    }))
}

fn scatter_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, d, accumulate] = sizes.counts(["rows", "d", "accumulate"]).map(real);
    f32_work((2.0 + accumulate) * act * rows * d + 4.0 * rows, accumulate * rows * d)
}

fn scatter<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let ([rows, dim, every], accumulate) =
        (sizes.counts(["rows", "d", "every"]), sizes.flag("accumulate"));
    let (b, index) = (b.clone(), table(b, &spread(rows, every))?);
    let (x, mut y) = (acts(&b, elements([rows, dim]))?, b.alloc(elements([rows, every, dim]))?);
    Ok(Box::new(move || {
        let (x, y) = (Mat::new(&x, dim), MatMut::new(&mut y, dim));
        b.scatter(Scatter { x, index: &index, y, accumulate, rows, dim })
    }))
}

/// The rows of the table that are met, rows written.
fn lookup_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, d, v] = sizes.counts(["rows", "d", "v"]).map(real);
    f32_work(4.0 * d * rows.min(v) + act * rows * d + 4.0 * rows, 0.0)
}

fn lookup<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [rows, dim, v] = sizes.counts(["rows", "d", "v"]);
    let (b, ids) = (b.clone(), table(b, &scattered(rows, v))?);
    let (params, mut x) = (values(&b, elements([v, dim]))?, b.alloc(elements([rows, dim]))?);
    Ok(Box::new(move || {
        b.lookup(Lookup {
            params: &params,
            offset: 0,
            values: v,
            dim,
            ids: Mat::new(&ids, 1),
            x: MatMut::new(&mut x, dim),
            accumulate: false,
            rows,
        })
    }))
}

/// Rows read, the gradients of the rows of the table that are met read and written.
fn lookup_gradient_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, d, v] = sizes.counts(["rows", "d", "v"]).map(real);
    f32_work(act * rows * d + 8.0 * d * rows.min(v) + 4.0 * rows, rows * d)
}

fn lookup_gradient<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [rows, dim, v] = sizes.counts(["rows", "d", "v"]);
    let (b, ids) = (b.clone(), table(b, &scattered(rows, v))?);
    let (dx, mut grads) = (acts(&b, elements([rows, dim]))?, b.alloc(elements([v, dim]))?);
    Ok(Box::new(move || {
        b.lookup_gradient(LookupGradient {
            dx: Mat::new(&dx, dim),
            ids: Mat::new(&ids, 1),
            grads: &mut grads,
            offset: 0,
            values: v,
            dim,
            rows,
        })
    }))
}
