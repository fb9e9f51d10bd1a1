//! Head product and cross-entropy in one pass over vocabulary chunks, supervised rows only.
//!
//! For a row with hidden state `x`, target `y` and weight `w`: loss `= lse_v(x·W_v) - x·W_y`,
//! `dx = w · (softmax(x·W)·Wᵀ - W_y)`. The softmax is accumulated with a running maximum, so neither the
//! logits nor the probabilities are ever stored whole.

use crate::backend::{Backend, Buffer, Mat, MatMut};
use crate::error::{Result, check_len};
use crate::linear::Linear;

pub mod cpu;
mod gpu;

/// Loss and gradient of the supervised rows.
#[derive(Debug)]
pub struct HeadLoss<'a, B: Linear + ?Sized> {
    /// `X [t, d]`, after the final norm.
    pub x: Mat<'a, B::Buf<B::Act>>,
    /// Head weight of shape `d -> v`.
    pub head: &'a B::Weight,
    /// Target id of each row.
    pub targets: &'a B::Buf<u32>,
    /// Weight of each row: one over the number of supervised rows of its user's micro-batch.
    pub weights: &'a B::Buf<f32>,
    /// Unweighted loss of each row, written `=`.
    pub losses: &'a mut B::Buf<f32>,
    /// `dX [t, d]`, written `=`; `None` to get the losses alone.
    pub dx: Option<MatMut<'a, B::Buf<B::Act>>>,
    /// Workspace; at least [`Loss::head_loss_workspace`] elements.
    pub work: &'a mut B::Buf<f32>,
    /// `t`.
    pub rows: usize,
}

/// The head.
pub trait Loss: Backend + Linear {
    /// Elements of workspace for `rows` rows and a head `d -> v`.
    fn head_loss_workspace(&self, rows: usize, dim: usize, vocab: usize) -> usize;

    /// See [`HeadLoss`]; row-invariant.
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree or a target is outside the vocabulary.
    fn head_loss(&self, args: HeadLoss<'_, Self>) -> Result<()>;
}

impl<B: Loss> HeadLoss<'_, B> {
    /// Checks every length once.
    ///
    /// # Errors
    /// [`crate::Error::Length`].
    pub fn check(&self, dim: usize, workspace: usize) -> Result<()> {
        let op = "head_loss";
        self.x.check(op, "x", self.rows, dim)?;
        check_len(op, "targets", self.rows, self.targets.len())?;
        check_len(op, "weights", self.rows, self.weights.len())?;
        check_len(op, "losses", self.rows, self.losses.len())?;
        check_len(op, "work", workspace, self.work.len())?;
        self.dx.as_ref().map_or(Ok(()), |dx| dx.check(op, "dx", self.rows, dim))
    }
}
