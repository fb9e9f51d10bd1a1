//! Means over ranges of rows, for one vector of a whole history, and their backward.

use crate::backend::{Backend, Buffer, Mat, MatMut};
use crate::error::{Error, Result, check_len};

pub mod cpu;
mod gpu;

/// A range of rows; counts from the window's first row.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Range {
    /// First row.
    pub start: u32,
    /// Rows; may be zero.
    pub len: u32,
}

/// `Y[j] = Σ_{i in ranges[j]} X[i] / len`; zero for an empty range.
#[derive(Debug)]
pub struct Mean<'a, B: Backend + ?Sized> {
    /// `X [t, d]`.
    pub x: Mat<'a, B::Buf<B::Act>>,
    /// Which rows of `X` each row of `Y` is the mean of; may overlap.
    pub ranges: &'a B::Buf<Range>,
    /// `Y [num_ranges, d]`, written `=`.
    pub y: MatMut<'a, B::Buf<B::Act>>,
    /// Ranges in use; zero is legal.
    pub num_ranges: usize,
    /// `t`.
    pub rows: usize,
    /// `d`.
    pub dim: usize,
}

/// `dX[i] (=|+=) dY[j] / len` for `i` in `ranges[j]`.
#[derive(Debug)]
pub struct MeanBackward<'a, B: Backend + ?Sized> {
    /// `dY [num_ranges, d]`.
    pub dy: Mat<'a, B::Buf<B::Act>>,
    /// The forward's ranges, which for the backward ascend and do not overlap.
    pub ranges: &'a B::Buf<Range>,
    /// `dX [t, d]`; rows in no range are not touched.
    pub dx: MatMut<'a, B::Buf<B::Act>>,
    /// `+=` instead of `=`.
    pub accumulate: bool,
    /// Ranges in use; zero is legal.
    pub num_ranges: usize,
    /// `t`.
    pub rows: usize,
    /// `d`.
    pub dim: usize,
}

/// Means over ranges of rows.
pub trait Pool: Backend {
    /// See [`Mean`]. Order: an element is one chain of additions over the rows ascending, from zero, then
    /// one division; it depends on no other range.
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree or a range leaves the rows.
    fn pool_mean(&self, args: Mean<'_, Self>) -> Result<()>;

    /// See [`MeanBackward`].
    ///
    /// # Errors
    /// [`crate::Error`] when shapes disagree, a range leaves the rows, or ranges overlap or descend.
    fn pool_mean_backward(&self, args: MeanBackward<'_, Self>) -> Result<()>;
}

impl<B: Backend + ?Sized> Mean<'_, B> {
    /// Checks every length once.
    ///
    /// # Errors
    /// [`crate::Error::Length`] or [`crate::Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let op = "pool_mean";
        check_len(op, "ranges", self.num_ranges, self.ranges.len())?;
        self.x.check(op, "x", self.rows, self.dim)?;
        self.y.check(op, "y", self.num_ranges, self.dim)
    }
}

impl<B: Backend + ?Sized> MeanBackward<'_, B> {
    /// Checks every length once.
    ///
    /// # Errors
    /// [`crate::Error::Length`] or [`crate::Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let op = "pool_mean_backward";
        check_len(op, "ranges", self.num_ranges, self.ranges.len())?;
        self.dy.check(op, "dy", self.num_ranges, self.dim)?;
        self.dx.check(op, "dx", self.rows, self.dim)
    }
}

impl Range {
    /// The rows.
    pub(crate) fn rows(self) -> std::ops::Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

/// Refuses ranges that leave `rows` rows; if `disjoint`, also those that overlap or descend.
pub(crate) fn check_ranges(
    op: &'static str,
    ranges: &[Range],
    rows: usize,
    disjoint: bool,
) -> Result<()> {
    let mut free = 0;
    for (j, range) in ranges.iter().enumerate() {
        let Range { start, len } = range;
        let end = range.rows().end;
        if end > rows {
            let what = format!("range {j}: {len} rows from row {start} of {rows}");
            return Err(Error::Routing { op, what });
        }
        if disjoint {
            if range.rows().start < free {
                let what = format!("range {j} begins at row {start}, before the end {free}");
                return Err(Error::Routing { op, what });
            }
            free = end;
        }
    }
    Ok(())
}
