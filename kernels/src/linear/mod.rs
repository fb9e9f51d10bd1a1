//! Products with weights: `Y = X·W + b + residual` and `dX = dY·Wᵀ`, and for a small base that trains
//! whole also `dW += dYᵀ·X`, into a flat gradient buffer ([`Trainable`]).
//!
//! Row invariance: the bits of a result row depend only on that row of the input and on `W`, never on
//! the number of rows, on the other rows, or on threads (`docs/design.md` section 4).

use crate::backend::{Backend, Buffer, Mat, MatMut};
use crate::error::{Error, Result, check_eq, check_len};
use std::sync::Arc;

pub mod cpu;
pub mod gpu;
mod gradient;
pub(crate) mod operand;
pub mod peak;
pub(crate) mod product;
pub(crate) mod tile;
pub mod wide;

/// How a weight lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[n, d]` row-major: `nn.Linear`, Llama.
    OutIn,
    /// `[d, n]` row-major: GPT-2's `Conv1D`.
    InOut,
}

/// Widths of a product: `X [t, d] · W [d, n] = Y [t, n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Input width `d`.
    pub in_dim: usize,
    /// Output width `n`.
    pub out_dim: usize,
}

/// Host memory of prepared weights: owned, or borrowed from a mapped file by whoever implements it.
pub type HostStorage = Arc<dyn AsRef<[f32]> + Send + Sync>;

/// `Y = X·W + b + residual`.
#[derive(Debug)]
pub struct Forward<'a, B: Linear + ?Sized> {
    /// `X [t, d]`.
    pub x: Mat<'a, B::Buf<B::Act>>,
    /// `W`.
    pub weight: &'a B::Weight,
    /// `b [n]`.
    pub bias: Option<&'a B::Buf<f32>>,
    /// Added to the product, `[t, n]`.
    pub residual: Option<Mat<'a, B::Buf<B::Act>>>,
    /// `Y [t, n]`, written `=`.
    pub y: MatMut<'a, B::Buf<B::Act>>,
    /// `t`; zero is legal.
    pub rows: usize,
}

/// `dX (=|+=) dY·Wᵀ`.
#[derive(Debug)]
pub struct Backward<'a, B: Linear + ?Sized> {
    /// `dY [t, n]`.
    pub dy: Mat<'a, B::Buf<B::Act>>,
    /// `W`.
    pub weight: &'a B::Weight,
    /// `dX [t, d]`.
    pub dx: MatMut<'a, B::Buf<B::Act>>,
    /// `+=` instead of `=`.
    pub accumulate: bool,
    /// `t`; zero is legal.
    pub rows: usize,
}

/// `dW[o, i] += Σ_t dY[t, o]·X[t, i]` and `db[o] += Σ_t dY[t, o]`, in a flat gradient buffer.
#[derive(Debug)]
pub struct WeightGradient<'a, B: Backend + ?Sized> {
    /// Widths `d` and `n`.
    pub shape: Shape,
    /// `X [t, d]` of the forward.
    pub x: Mat<'a, B::Buf<B::Act>>,
    /// `dY [t, n]`.
    pub dy: Mat<'a, B::Buf<B::Act>>,
    /// `t`; zero is legal.
    pub rows: usize,
    /// Holds `dW` and `db`, written `+=`; nothing else of it is touched.
    pub grads: &'a mut B::Buf<f32>,
    /// Element of `grads` where `dW` begins, `[n, d]` row-major ([`Layout::OutIn`]).
    pub weight_offset: usize,
    /// Element of `grads` where `db [n]` begins; `None` for a product without bias.
    pub bias_offset: Option<usize>,
}

/// Products with frozen weights.
pub trait Linear: Backend {
    /// A weight prepared once for both directions.
    type Weight: Send + Sync + std::fmt::Debug;

    /// Name of the prepared form, part of the name of cached files (changes when the layout does).
    fn prepared_form(&self) -> &'static str;

    /// Number of `f32` of a prepared weight.
    fn prepared_len(&self, shape: Shape) -> usize;

    /// Prepares `src` (`layout`, `d·n` elements) into `dst` (`prepared_len` elements), written `=`.
    ///
    /// # Errors
    /// [`crate::Error::Length`] when a slice has the wrong length.
    fn prepare(&self, shape: Shape, layout: Layout, src: &[f32], dst: &mut [f32]) -> Result<()>;

    /// The inverse of [`Linear::prepare`], in `layout`; exact.
    ///
    /// # Errors
    /// [`crate::Error::Length`] when a slice has the wrong length.
    fn unprepare(&self, shape: Shape, layout: Layout, src: &[f32], dst: &mut [f32]) -> Result<()>;

    /// Takes a prepared weight that lies at `offset` in `storage`; the CPU borrows it, a device copies.
    ///
    /// # Errors
    /// [`crate::Error::Length`] when it does not fit in the storage.
    fn weight(&self, shape: Shape, storage: &HostStorage, offset: usize) -> Result<Self::Weight>;

    /// Widths of a weight.
    fn shape(&self, weight: &Self::Weight) -> Shape;

    /// `Y = X·W + b + residual`; row-invariant.
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree.
    fn linear_forward(&self, args: Forward<'_, Self>) -> Result<()>;

    /// `dX (=|+=) dY·Wᵀ`; row-invariant.
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree.
    fn linear_backward(&self, args: Backward<'_, Self>) -> Result<()>;
}

/// Products whose weights train: the parameters and their gradients lie in flat `f32` buffers, which the
/// optimiser updates; a prepared copy of each weight serves [`Linear`]'s products and is made anew after
/// each update.
pub trait Trainable: Linear {
    /// A weight of zeros in memory of its own, for [`Trainable::refresh`]. Called while planning.
    ///
    /// # Errors
    /// [`crate::Error::Backend`] when there is not enough memory.
    fn trainable(&self, shape: Shape) -> Result<Self::Weight>;

    /// `W = src[offset..offset + n·d]`, row-major `[n, d]` ([`Layout::OutIn`]); the same bits in the
    /// products as a weight that was prepared from these numbers. Allocates nothing.
    ///
    /// # Errors
    /// [`crate::Error::Routing`] when the weight is not one of [`Trainable::trainable`] (its memory may
    /// be a mapped file or shared), [`crate::Error::Length`] when the range leaves the buffer.
    fn refresh(&self, weight: &mut Self::Weight, src: &Self::Buf<f32>, offset: usize)
    -> Result<()>;

    /// `dst = src[offset..offset + dst.len()]`: what [`Trainable::refresh`] is for a weight, for a bias
    /// or a norm, which the other operations take as buffers of their own.
    ///
    /// # Errors
    /// [`crate::Error::Length`] when the range leaves the buffer.
    fn refresh_vector(
        &self,
        dst: &mut Self::Buf<f32>,
        src: &Self::Buf<f32>,
        offset: usize,
    ) -> Result<()>;

    /// See [`WeightGradient`]. Order: an element is one chain over `t` ascending that begins at what
    /// `grads` holds; so calls over rows `0..a`, then `a..b`, equal one call over rows `0..b`, bit for bit.
    /// On a GPU the chain of `dW` takes sixteen rows at a time, counted from the call's first (a tensor core
    /// adds them together): there this holds for `a` a multiple of sixteen.
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree, or when `dW` and `db` overlap or leave `grads`.
    fn linear_weight_gradient(&self, args: WeightGradient<'_, Self>) -> Result<()>;
}

impl<B: Linear> Forward<'_, B> {
    /// Checks every shape once.
    ///
    /// # Errors
    /// [`crate::Error::Length`] or [`crate::Error::Shape`].
    pub fn check(&self, shape: Shape) -> Result<()> {
        let op = "linear_forward";
        self.x.check(op, "x", self.rows, shape.in_dim)?;
        self.y.check(op, "y", self.rows, shape.out_dim)?;
        if let Some(residual) = &self.residual {
            residual.check(op, "residual", self.rows, shape.out_dim)?;
        }
        if let Some(bias) = self.bias {
            check_eq(op, "bias", shape.out_dim, bias.len())?;
        }
        Ok(())
    }
}

impl<B: Linear> Backward<'_, B> {
    /// Checks every shape once.
    ///
    /// # Errors
    /// [`crate::Error::Length`] or [`crate::Error::Shape`].
    pub fn check(&self, shape: Shape) -> Result<()> {
        let op = "linear_backward";
        self.dy.check(op, "dy", self.rows, shape.out_dim)?;
        self.dx.check(op, "dx", self.rows, shape.in_dim)
    }
}

impl<B: Backend + ?Sized> WeightGradient<'_, B> {
    /// Checks every shape once.
    ///
    /// # Errors
    /// [`crate::Error::Length`], [`crate::Error::Shape`] or [`crate::Error::Routing`].
    pub fn check(&self) -> Result<()> {
        let (op, Shape { in_dim: d, out_dim: n }) = ("linear_weight_gradient", self.shape);
        self.x.check(op, "x", self.rows, d)?;
        self.dy.check(op, "dy", self.rows, n)?;
        let bias = self.bias_offset.map(|at| (at, n));
        check_gradients(op, (self.weight_offset, n.saturating_mul(d)), bias, self.grads.len())
    }
}

/// Checks that the gradients of a weight and its bias, each `(offset, length)`, lie in a buffer of `len`
/// elements and not over each other.
pub(crate) fn check_gradients(
    op: &'static str,
    (weight, weight_len): (usize, usize),
    bias: Option<(usize, usize)>,
    len: usize,
) -> Result<()> {
    check_len(op, "weight gradient", weight.saturating_add(weight_len), len)?;
    let Some((bias, bias_len)) = bias else { return Ok(()) };
    check_len(op, "bias gradient", bias.saturating_add(bias_len), len)?;
    if weight < bias + bias_len && bias < weight + weight_len {
        let what = format!("the gradients of weight {weight} and bias {bias} overlap");
        return Err(Error::Routing { op, what });
    }
    Ok(())
}

/// Checks the two slices of [`Linear::prepare`] and [`Linear::unprepare`].
pub(crate) fn check_prepare(
    op: &'static str,
    plain: (usize, usize),
    prepared: (usize, usize),
) -> Result<()> {
    check_eq(op, "plain weight", plain.0, plain.1)?;
    check_len(op, "prepared weight", prepared.0, prepared.1)
}
