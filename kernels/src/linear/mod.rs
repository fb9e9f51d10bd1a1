//! Frozen products: `Y = X·W + b + residual` and `dX = dY·Wᵀ`. No gradient of `W` exists.
//!
//! Row invariance: the bits of a result row depend only on that row of the input and on `W`, never on
//! the number of rows, on the other rows, or on threads (`docs/design.md` section 4).

use crate::backend::{Backend, Mat, MatMut};
use crate::error::{Result, check_eq, check_len};
use std::sync::Arc;

pub mod cpu;
pub mod peak;
pub(crate) mod product;
pub(crate) mod tile;

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
            check_eq(op, "bias", shape.out_dim, crate::backend::Buffer::len(bias))?;
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

/// Checks the two slices of [`Linear::prepare`] and [`Linear::unprepare`].
pub(crate) fn check_prepare(
    op: &'static str,
    plain: (usize, usize),
    prepared: (usize, usize),
) -> Result<()> {
    check_eq(op, "plain weight", plain.0, plain.1)?;
    check_len(op, "prepared weight", prepared.0, prepared.1)
}
