//! RMSNorm `y = w · x / sqrt(mean(x²) + eps)` and LayerNorm `y = w · (x - mean) / sqrt(var + eps) + b`, rowwise.

use crate::backend::{Backend, Buffer, Mat, MatMut};
use crate::error::{Result, check_eq};
use crate::linear::check_gradients;

pub mod cpu;
mod gpu;

/// A frozen norm.
#[derive(Debug)]
pub struct Params<'a, B: Backend + ?Sized> {
    /// `w [d]`.
    pub weight: &'a B::Buf<f32>,
    /// `b [d]`: present for LayerNorm, absent for RMSNorm (which also does not subtract the mean).
    pub bias: Option<&'a B::Buf<f32>>,
    /// `eps`.
    pub eps: f32,
}

impl<B: Backend + ?Sized> Clone for Params<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend + ?Sized> Copy for Params<'_, B> {}

/// `Y = norm(X)`.
#[derive(Debug)]
pub struct Forward<'a, B: Backend + ?Sized> {
    /// The norm.
    pub params: Params<'a, B>,
    /// `X [t, d]`.
    pub x: Mat<'a, B::Buf<B::Act>>,
    /// `Y [t, d]`, written `=`.
    pub y: MatMut<'a, B::Buf<B::Act>>,
    /// `t`.
    pub rows: usize,
    /// `d`.
    pub dim: usize,
}

/// `dX += norm'(X)ᵀ · dY`, statistics recomputed from `X`.
#[derive(Debug)]
pub struct Backward<'a, B: Backend + ?Sized> {
    /// The norm.
    pub params: Params<'a, B>,
    /// `X [t, d]` of the forward.
    pub x: Mat<'a, B::Buf<B::Act>>,
    /// `dY [t, d]`.
    pub dy: Mat<'a, B::Buf<B::Act>>,
    /// `dX [t, d]`, written `+=` (the residual's gradient is there already).
    pub dx: MatMut<'a, B::Buf<B::Act>>,
    /// `t`.
    pub rows: usize,
    /// `d`.
    pub dim: usize,
}

/// `dw += Σ_t dY[t]·x̂[t]` and `db += Σ_t dY[t]` with `x̂ = (X - mean) / sqrt(var + eps)`, in a flat
/// gradient buffer; statistics recomputed from `X`.
#[derive(Debug)]
pub struct ParamGradient<'a, B: Backend + ?Sized> {
    /// LayerNorm (the mean is subtracted); false for RMSNorm.
    pub centred: bool,
    /// `eps`.
    pub eps: f32,
    /// `X [t, d]` of the forward.
    pub x: Mat<'a, B::Buf<B::Act>>,
    /// `dY [t, d]`.
    pub dy: Mat<'a, B::Buf<B::Act>>,
    /// `t`; zero is legal.
    pub rows: usize,
    /// `d`.
    pub dim: usize,
    /// Holds `dw` and `db`, written `+=`; nothing else of it is touched.
    pub grads: &'a mut B::Buf<f32>,
    /// Element of `grads` where `dw [d]` begins.
    pub weight_offset: usize,
    /// Element of `grads` where `db [d]` begins; `None` for a norm without bias.
    pub bias_offset: Option<usize>,
}

/// Norms over rows.
pub trait Norm: Backend {
    /// See [`Forward`].
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree.
    fn norm_forward(&self, args: Forward<'_, Self>) -> Result<()>;

    /// See [`Backward`].
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree.
    fn norm_backward(&self, args: Backward<'_, Self>) -> Result<()>;

    /// See [`ParamGradient`]. Order: an element is one chain over `t` ascending that begins at what
    /// `grads` holds; so calls over rows `0..a`, then `a..b`, equal one call over rows `0..b`, bit for bit.
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree, or when `dw` and `db` overlap or leave `grads`.
    fn norm_param_gradient(&self, args: ParamGradient<'_, Self>) -> Result<()>;
}

impl<B: Backend + ?Sized> Params<'_, B> {
    fn check(&self, op: &'static str, dim: usize) -> Result<()> {
        check_eq(op, "weight", dim, self.weight.len())?;
        self.bias.map_or(Ok(()), |b| check_eq(op, "bias", dim, b.len()))
    }
}

impl<B: Backend + ?Sized> Forward<'_, B> {
    /// Checks every shape once.
    ///
    /// # Errors
    /// [`crate::Error::Length`] or [`crate::Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let op = "norm_forward";
        self.params.check(op, self.dim)?;
        self.x.check(op, "x", self.rows, self.dim)?;
        self.y.check(op, "y", self.rows, self.dim)
    }
}

impl<B: Backend + ?Sized> Backward<'_, B> {
    /// Checks every shape once.
    ///
    /// # Errors
    /// [`crate::Error::Length`] or [`crate::Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let op = "norm_backward";
        self.params.check(op, self.dim)?;
        self.x.check(op, "x", self.rows, self.dim)?;
        self.dy.check(op, "dy", self.rows, self.dim)?;
        self.dx.check(op, "dx", self.rows, self.dim)
    }
}

impl<B: Backend + ?Sized> ParamGradient<'_, B> {
    /// Checks every shape once.
    ///
    /// # Errors
    /// [`crate::Error::Length`], [`crate::Error::Shape`] or [`crate::Error::Routing`].
    pub fn check(&self) -> Result<()> {
        let (op, dim) = ("norm_param_gradient", self.dim);
        self.x.check(op, "x", self.rows, dim)?;
        self.dy.check(op, "dy", self.rows, dim)?;
        let bias = self.bias_offset.map(|at| (at, dim));
        check_gradients(op, (self.weight_offset, dim), bias, self.grads.len())
    }
}
