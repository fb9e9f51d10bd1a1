//! Products beside class losses, where numbers are `f32` on every backend: logits, and gradients of scores.
//!
//! Where activations are `f32` these are the products of [`Linear`], bit for bit, and nothing is copied. Where they are
//! `bf16` a product's inputs are rounded ([`Wide::as_act`]) and its results are not.

use super::{Linear, Shape};
use crate::backend::{Buffer, Mat};
use crate::error::{Result, check_eq, check_len};

mod cpu;
mod gpu;

/// `Y = X·Wᵀ + b` in `f32`.
#[derive(Debug)]
pub struct Forward<'a, B: Linear + ?Sized> {
    /// `X [t, d]`.
    pub x: Mat<'a, B::Buf<B::Act>>,
    /// `W [n, d]`.
    pub weight: &'a B::Weight,
    /// `b [n]`.
    pub bias: Option<&'a B::Buf<f32>>,
    /// `Y [t, n]`, row-major, written `=`.
    pub y: &'a mut B::Buf<f32>,
    /// `t`; zero is legal.
    pub rows: usize,
}

/// `dX = dY·W` in `f32`.
#[derive(Debug)]
pub struct Backward<'a, B: Linear + ?Sized> {
    /// `dY [t, n]`.
    pub dy: Mat<'a, B::Buf<B::Act>>,
    /// `W [n, d]`.
    pub weight: &'a B::Weight,
    /// `dX [t, d]`, row-major, written `=`.
    pub dx: &'a mut B::Buf<f32>,
    /// `t`; zero is legal.
    pub rows: usize,
}

/// Products with `f32` results, and `f32` numbers as inputs of products.
pub trait Wide: Linear {
    /// Activations of room that [`Wide::as_act`] needs for `len` numbers: none where they are activations already.
    fn act_room(&self, len: usize) -> usize;

    /// `src[..len]` as activations: `src` itself, or each number rounded to the nearest, ties to even, into
    /// `room[..len]`, which is returned.
    ///
    /// # Errors
    /// [`crate::Error::Length`] when one of them is too short.
    fn as_act<'a>(
        &self,
        src: &'a Self::Buf<f32>,
        room: &'a mut Self::Buf<Self::Act>,
        len: usize,
    ) -> Result<&'a Self::Buf<Self::Act>>;

    /// See [`Forward`]; row-invariant.
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree.
    fn wide_forward(&self, args: Forward<'_, Self>) -> Result<()>;

    /// See [`Backward`]; row-invariant.
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree.
    fn wide_backward(&self, args: Backward<'_, Self>) -> Result<()>;
}

impl<B: Linear> Forward<'_, B> {
    /// Checks every shape once.
    ///
    /// # Errors
    /// [`crate::Error::Length`] or [`crate::Error::Shape`].
    pub fn check(&self, shape: Shape) -> Result<()> {
        let op = "wide_forward";
        self.x.check(op, "x", self.rows, shape.in_dim)?;
        check_len(op, "y", self.rows.saturating_mul(shape.out_dim), self.y.len())?;
        self.bias.map_or(Ok(()), |bias| check_eq(op, "bias", shape.out_dim, bias.len()))
    }
}

impl<B: Linear> Backward<'_, B> {
    /// Checks every shape once.
    ///
    /// # Errors
    /// [`crate::Error::Length`] or [`crate::Error::Shape`].
    pub fn check(&self, shape: Shape) -> Result<()> {
        let op = "wide_backward";
        self.dy.check(op, "dy", self.rows, shape.out_dim)?;
        check_len(op, "dx", self.rows.saturating_mul(shape.in_dim), self.dx.len())
    }
}
