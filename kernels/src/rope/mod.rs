//! Rotary positions in Hugging Face's half-split form: for `i < e/2`,
//! `(x_i, x_{i+e/2}) <- (x_i cos - x_{i+e/2} sin, x_{i+e/2} cos + x_i sin)`, angle `position · frequency_i`.

use crate::backend::{Backend, Buffer, MatMut};
use crate::error::{Result, check_eq, check_len};

pub mod cpu;
mod gpu;

/// Rotates heads in place; the backward is the inverse rotation of the gradient.
#[derive(Debug)]
pub struct Rotate<'a, B: Backend + ?Sized> {
    /// `X [t, heads·e]`, rotated in place.
    pub x: MatMut<'a, B::Buf<B::Act>>,
    /// Position of each row.
    pub positions: &'a B::Buf<u32>,
    /// `cos` then `sin` of each position: `[max_positions, 2, e/2]`; every position is below `max_positions`
    /// (checked by the trainer when it builds the pack).
    pub table: &'a B::Buf<f32>,
    /// Heads.
    pub heads: usize,
    /// `e`, even.
    pub head_dim: usize,
    /// Inverse rotation (backward).
    pub inverse: bool,
    /// `t`.
    pub rows: usize,
}

/// Rotary positions.
pub trait Rope: Backend {
    /// See [`Rotate`].
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree or a position is outside the table.
    fn rope(&self, args: Rotate<'_, Self>) -> Result<()>;
}

/// The table of [`Rotate::table`] for given frequencies: angles in `f32`, as transformers computes them.
pub fn table(frequencies: &[f32], max_positions: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(2 * max_positions * frequencies.len());
    for position in 0..max_positions {
        #[expect(clippy::cast_precision_loss, reason = "positions are far below 2^24")]
        let angles = || frequencies.iter().map(move |f| position as f32 * f);
        out.extend(angles().map(f32::cos));
        out.extend(angles().map(f32::sin));
    }
    out
}

impl<B: Backend + ?Sized> Rotate<'_, B> {
    /// Checks every shape once.
    ///
    /// # Errors
    /// [`crate::Error::Length`] or [`crate::Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let op = "rope";
        self.x.check(op, "x", self.rows, self.heads * self.head_dim)?;
        check_eq(op, "head_dim modulo 2", 0, self.head_dim % 2)?;
        check_len(op, "positions", self.rows, self.positions.len())
    }
}
