//! Rows by index: token (and position) embedding, gather of supervised rows, its backward, copies into
//! a key/value cache, and tables that train.

use crate::backend::{Backend, Buffer, Mat, MatMut};
use crate::error::{Result, check_len};
use crate::linear::Linear;

pub mod cpu;
mod gpu;
mod table;

/// `X[i] = E[ids[i]] (+ P[positions[i]])`.
#[derive(Debug)]
pub struct Embed<'a, B: Linear + ?Sized> {
    /// `E` as the prepared head weight of shape `d -> v`, so that a tied head needs no second copy.
    pub table: &'a B::Weight,
    /// Token ids, each below `v` (checked by the trainer when it builds the pack).
    pub ids: &'a B::Buf<u32>,
    /// Learned positions `P [max_positions, d]` and the position of each row.
    #[expect(clippy::type_complexity, reason = "an alias would hide which buffer is which")]
    pub positions: Option<(&'a B::Buf<f32>, &'a B::Buf<u32>)>,
    /// `X [t, d]`, written `=`.
    pub x: MatMut<'a, B::Buf<B::Act>>,
    /// `t`.
    pub rows: usize,
}

/// `Y[i] = X[index[i]]`.
#[derive(Debug)]
pub struct Gather<'a, B: Backend + ?Sized> {
    /// `X [any, d]`.
    pub x: Mat<'a, B::Buf<B::Act>>,
    /// Row of `X` for each row of `Y`.
    pub index: &'a B::Buf<u32>,
    /// `Y [t, d]`, written `=`.
    pub y: MatMut<'a, B::Buf<B::Act>>,
    /// `t`.
    pub rows: usize,
    /// `d`.
    pub dim: usize,
}

/// `Y[index[i]] (=|+=) X[i]`; the indices are distinct.
#[derive(Debug)]
pub struct Scatter<'a, B: Backend + ?Sized> {
    /// `X [t, d]`.
    pub x: Mat<'a, B::Buf<B::Act>>,
    /// Row of `Y` for each row of `X`, all distinct.
    pub index: &'a B::Buf<u32>,
    /// `Y [any, d]`.
    pub y: MatMut<'a, B::Buf<B::Act>>,
    /// `+=` (the gather's backward) instead of `=` (a copy into a cache).
    pub accumulate: bool,
    /// `t`.
    pub rows: usize,
    /// `d`.
    pub dim: usize,
}

/// `X[i] (=|+=) E[ids[i]]` from a plain table in a flat parameter buffer.
#[derive(Debug)]
pub struct Lookup<'a, B: Backend + ?Sized> {
    /// Holds `E [v, d]`, row-major, from element `offset` on.
    pub params: &'a B::Buf<f32>,
    /// Element of `params` where `E` begins.
    pub offset: usize,
    /// `v`.
    pub values: usize,
    /// `d`.
    pub dim: usize,
    /// Row of `E` for each row of `X`, a column of `t` rows ([`Mat::at`] takes one out of `[t, c]`).
    pub ids: Mat<'a, B::Buf<u32>>,
    /// `X [t, d]`.
    pub x: MatMut<'a, B::Buf<B::Act>>,
    /// `+=` instead of `=`.
    pub accumulate: bool,
    /// `t`; zero is legal.
    pub rows: usize,
}

/// `dE[ids[i]] += dX[i]` in a flat gradient buffer.
#[derive(Debug)]
pub struct LookupGradient<'a, B: Backend + ?Sized> {
    /// `dX [t, d]`.
    pub dx: Mat<'a, B::Buf<B::Act>>,
    /// Row of `E` for each row of `X`, as in [`Lookup`].
    pub ids: Mat<'a, B::Buf<u32>>,
    /// Holds `dE [v, d]`, row-major, from element `offset` on.
    pub grads: &'a mut B::Buf<f32>,
    /// Element of `grads` where `dE` begins.
    pub offset: usize,
    /// `v`.
    pub values: usize,
    /// `d`.
    pub dim: usize,
    /// `t`; zero is legal.
    pub rows: usize,
}

/// Rows by index.
pub trait Embedding: Linear {
    /// See [`Embed`].
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree or an id is outside the table.
    fn embed(&self, args: Embed<'_, Self>) -> Result<()>;

    /// See [`Gather`].
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree or an index is outside.
    fn gather(&self, args: Gather<'_, Self>) -> Result<()>;

    /// See [`Scatter`].
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree or an index is outside.
    fn scatter(&self, args: Scatter<'_, Self>) -> Result<()>;

    /// See [`Lookup`].
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree or an id is outside the table; then nothing is written.
    fn lookup(&self, args: Lookup<'_, Self>) -> Result<()>;

    /// See [`LookupGradient`]. Order: an element is one chain of additions over `i` ascending that begins
    /// at what `grads` holds.
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree or an id is outside the table; then nothing is written.
    fn lookup_gradient(&self, args: LookupGradient<'_, Self>) -> Result<()>;
}

impl<B: Linear> Embed<'_, B> {
    /// Checks every length once; `dim` is `d`.
    ///
    /// # Errors
    /// [`crate::Error::Length`].
    pub fn check(&self, dim: usize) -> Result<()> {
        let op = "embed";
        check_len(op, "ids", self.rows, self.ids.len())?;
        if let Some((_, positions)) = self.positions {
            check_len(op, "positions", self.rows, positions.len())?;
        }
        self.x.check(op, "x", self.rows, dim)
    }
}

impl<B: Backend + ?Sized> Gather<'_, B> {
    /// Checks every length once.
    ///
    /// # Errors
    /// [`crate::Error::Length`].
    pub fn check(&self) -> Result<()> {
        check_len("gather", "index", self.rows, self.index.len())?;
        self.y.check("gather", "y", self.rows, self.dim)
    }
}

impl<B: Backend + ?Sized> Scatter<'_, B> {
    /// Checks every length once.
    ///
    /// # Errors
    /// [`crate::Error::Length`].
    pub fn check(&self) -> Result<()> {
        check_len("scatter", "index", self.rows, self.index.len())?;
        self.x.check("scatter", "x", self.rows, self.dim)
    }
}

impl<B: Backend + ?Sized> Lookup<'_, B> {
    /// Checks every length once.
    ///
    /// # Errors
    /// [`crate::Error::Length`] or [`crate::Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let op = "lookup";
        self.ids.check(op, "ids", self.rows, 1)?;
        self.x.check(op, "x", self.rows, self.dim)?;
        check_table(op, self.offset, (self.values, self.dim), self.params.len())
    }
}

impl<B: Backend + ?Sized> LookupGradient<'_, B> {
    /// Checks every length once.
    ///
    /// # Errors
    /// [`crate::Error::Length`] or [`crate::Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let op = "lookup_gradient";
        self.ids.check(op, "ids", self.rows, 1)?;
        self.dx.check(op, "dx", self.rows, self.dim)?;
        check_table(op, self.offset, (self.values, self.dim), self.grads.len())
    }
}

/// Checks that a table lies in its buffer.
fn check_table(
    op: &'static str,
    offset: usize,
    (values, dim): (usize, usize),
    len: usize,
) -> Result<()> {
    check_len(op, "table", offset.saturating_add(values.saturating_mul(dim)), len)
}
