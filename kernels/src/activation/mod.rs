//! Activations of the MLP: SwiGLU `h = silu(g) · u` and GPT-2's `gelu_new`.

use crate::backend::{Backend, Mat, MatMut};
use crate::error::Result;

pub mod cpu;
mod gpu;

/// Which function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `h = g · sigmoid(g) · u`; the input rows hold `g [f]` then `u [f]`.
    SwiGlu,
    /// `h = 0.5 u (1 + tanh(sqrt(2/pi) (u + 0.044715 u³)))`; the input rows hold `u [f]`.
    GeluNew,
}

impl Kind {
    /// Columns of the input for `f` columns of output.
    pub fn in_dim(self, f: usize) -> usize {
        match self {
            Self::SwiGlu => 2 * f,
            Self::GeluNew => f,
        }
    }
}

/// `H = act(X)`.
#[derive(Debug)]
pub struct Forward<'a, B: Backend + ?Sized> {
    /// Function.
    pub kind: Kind,
    /// `X [t, in_dim(f)]`.
    pub x: Mat<'a, B::Buf<B::Act>>,
    /// `H [t, f]`, written `=`.
    pub h: MatMut<'a, B::Buf<B::Act>>,
    /// `t`.
    pub rows: usize,
    /// `f`.
    pub dim: usize,
}

/// `dX = act'(X)ᵀ · dH`; `X` is recomputed from, not `H`.
#[derive(Debug)]
pub struct Backward<'a, B: Backend + ?Sized> {
    /// Function.
    pub kind: Kind,
    /// `X` of the forward.
    pub x: Mat<'a, B::Buf<B::Act>>,
    /// `dH [t, f]`.
    pub dh: Mat<'a, B::Buf<B::Act>>,
    /// `dX [t, in_dim(f)]`, written `=`.
    pub dx: MatMut<'a, B::Buf<B::Act>>,
    /// `t`.
    pub rows: usize,
    /// `f`.
    pub dim: usize,
}

/// Activations.
pub trait Activation: Backend {
    /// See [`Forward`].
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree.
    fn activation_forward(&self, args: Forward<'_, Self>) -> Result<()>;

    /// See [`Backward`].
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree.
    fn activation_backward(&self, args: Backward<'_, Self>) -> Result<()>;
}

impl<B: Backend + ?Sized> Forward<'_, B> {
    /// Checks every shape once.
    ///
    /// # Errors
    /// [`crate::Error::Length`].
    pub fn check(&self) -> Result<()> {
        let op = "activation_forward";
        self.x.check(op, "x", self.rows, self.kind.in_dim(self.dim))?;
        self.h.check(op, "h", self.rows, self.dim)
    }
}

impl<B: Backend + ?Sized> Backward<'_, B> {
    /// Checks every shape once.
    ///
    /// # Errors
    /// [`crate::Error::Length`].
    pub fn check(&self) -> Result<()> {
        let op = "activation_backward";
        self.x.check(op, "x", self.rows, self.kind.in_dim(self.dim))?;
        self.dh.check(op, "dh", self.rows, self.dim)?;
        self.dx.check(op, "dx", self.rows, self.kind.in_dim(self.dim))
    }
}
