//! One case an operation: its shapes, what a call does at least, and how to make its buffers and call it.
//!
//! Owns [`Op`] and the backends that cases are built on ([`Subject`]); a file a family or several small ones. Names are
//! the contracts' (`kernels/src/<op>/mod.rs`). Start reading at [`ops`], then `rows.rs`, the simplest.

mod adapted;
mod attention;
mod dense;
mod heads;
mod lora;
mod optim;
mod per_adapter;
mod routing;
mod rows;
mod tables;

use super::model::Work;
use super::sizes::Sizes;
use kernels::backend::Element;
use kernels::gpu::{Device, Gpu};
use kernels::{Backend, Cpu, Ops, Result};

/// A call with its buffers.
pub(super) type Run = Box<dyn FnMut() -> Result<()>>;

/// An operation that is measured.
#[derive(Debug)]
pub(super) struct Op<B: Subject> {
    /// As the contract's function, but `attention_decode`, which is `attention_forward` over a cache.
    pub(super) name: &'static str,
    /// The contract's module.
    pub(super) family: &'static str,
    /// `(name, sizes)`; all have the same keys.
    pub(super) presets: &'static [(&'static str, &'static str)],
    /// What a call does at least, for activations and weights of so many bytes.
    pub(super) work: fn(&Sizes, f64) -> Work,
    /// Buffers and call.
    pub(super) build: fn(&B, &Sizes) -> Result<Run>,
    /// Others that do the same, where they are there: `(name, call)`.
    pub(super) rivals: Rivals<B>,
}

/// Makes the others that do what an operation does.
type Rivals<B> = fn(&B, &Sizes) -> Result<Vec<(&'static str, Run)>>;

/// A backend that cases are built on.
pub(super) trait Subject: Ops + Clone {
    /// Whether calls only queue work.
    const QUEUES: bool;

    /// The nearest activation.
    fn act(value: f32) -> Self::Act;

    /// Grouped LoRA as products of the backend's library, one adapter after another.
    fn per_adapter(&self, sizes: &Sizes, backward: bool) -> Result<(&'static str, Run)>;
}

impl Subject for Cpu {
    const QUEUES: bool = false;

    fn act(value: f32) -> f32 {
        value
    }

    fn per_adapter(&self, sizes: &Sizes, backward: bool) -> Result<(&'static str, Run)> {
        Ok(("linear_per_adapter", per_adapter::Linears::new(self, sizes)?.run(backward)))
    }
}

impl<D: Device> Subject for Gpu<D> {
    const QUEUES: bool = true;

    fn act(value: f32) -> Self::Act {
        <Self as Backend>::Act::from_f32(value)
    }

    fn per_adapter(&self, sizes: &Sizes, backward: bool) -> Result<(&'static str, Run)> {
        Ok(("library_per_adapter", per_adapter::Products::new(self, sizes)?.run(backward)))
    }
}

/// All operations, family by family.
pub(super) fn ops<B: Subject>() -> Vec<Op<B>> {
    let mut all = dense::ops();
    all.extend(lora::ops());
    all.extend(adapted::ops());
    all.extend(attention::ops());
    all.extend(rows::ops());
    all.extend(tables::ops());
    all.extend(heads::ops());
    all.extend(optim::ops());
    all
}

impl<B: Subject> Op<B> {
    /// The shapes with `wanted` laid over them, each once.
    pub(super) fn shapes(&self, wanted: &Sizes) -> anyhow::Result<Vec<(&'static str, Sizes)>> {
        let mut shapes: Vec<(&'static str, Sizes)> = Vec::new();
        for (name, text) in self.presets {
            let sizes = Sizes::parse(text)?.overridden(wanted);
            if shapes.iter().all(|(_, known)| *known != sizes) {
                shapes.push((name, sizes));
            }
        }
        Ok(shapes)
    }
}

/// None.
fn no_rivals<B: Subject>(_: &B, _: &Sizes) -> Result<Vec<(&'static str, Run)>> {
    Ok(Vec::new())
}

/// A count as a number of a formula.
fn real(count: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a number of a model")]
    let real = count as f64;
    real
}

/// A row's number, a length, a position.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Elements of a matrix or a stack of them; what exceeds memory is refused by the backend.
fn elements<const N: usize>(sizes: [usize; N]) -> usize {
    sizes.into_iter().fold(1, usize::saturating_mul)
}

/// Period of [`value`].
const PERIOD: usize = 2003;
/// Elements that are made at a time.
const CHUNK: usize = 500 * PERIOD;

/// Numbers in `[-1, 1]` that are neither all equal nor denormal.
fn value(index: usize) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "below 2^24")]
    let value = ((index * 7919 + 13) % PERIOD) as f32 / 1001.0 - 1.0;
    value
}

/// A buffer of [`value`]s, made into elements by `element`.
fn filled<B: Backend, T: Element>(
    b: &B,
    len: usize,
    element: impl Fn(f32) -> T,
) -> Result<B::Buf<T>> {
    let mut buf = b.alloc(len)?;
    let chunk: Vec<T> = (0..len.min(CHUNK)).map(|i| element(value(i))).collect();
    for first in (0..len).step_by(CHUNK) {
        b.write(&mut buf, first, &chunk[..CHUNK.min(len - first)])?;
    }
    Ok(buf)
}

/// Numbers of `f32`.
fn values<B: Backend>(b: &B, len: usize) -> Result<B::Buf<f32>> {
    filled(b, len, |value| value)
}

/// Activations.
fn acts<B: Subject>(b: &B, len: usize) -> Result<B::Buf<B::Act>> {
    filled(b, len, B::act)
}

/// A table of a pack on the device.
fn table<B: Backend, T: Element>(b: &B, rows: &[T]) -> Result<B::Buf<T>> {
    let mut buf = b.alloc(rows.len())?;
    b.write(&mut buf, 0, rows)?;
    Ok(buf)
}

/// A weight `d -> n`.
fn weight<B: Subject>(b: &B, in_dim: usize, out_dim: usize) -> Result<B::Weight> {
    let mut weight = b.trainable(kernels::linear::Shape { in_dim, out_dim })?;
    let plain = values(b, elements([in_dim, out_dim]))?;
    b.refresh(&mut weight, &plain, 0)?;
    Ok(weight)
}

/// `rows` numbers below `below`, scattered, each once before one comes again.
fn scattered(rows: usize, below: usize) -> Vec<u32> {
    let below = below.max(1);
    let coprime = |step: &usize| gcd(*step, below) == 1;
    // About the golden section of the whole.
    let step = (below * 618 / 1000 + 1..).find(coprime).unwrap_or(1);
    (0..rows).map(|row| number(row * step % below)).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
