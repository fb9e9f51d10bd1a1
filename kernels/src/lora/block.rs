//! A small product, out of whatever holds its operands, by one thread.
//!
//! Owns the packing of an adapter's few rows or columns for the micro-kernel of the frozen products, so
//! that LoRA sums have the same one order (a chain along `k`, ascending) on every processor and for
//! every neighbour. Knows no segment, site or dropout: operands come
//! through two functions. Start at
//! [`Scratch::product`].

use crate::linear::tile::{
    Accumulators, BLOCK_K, MAX_ROWS, PACKED_K, PANEL, copy, multiply, tile_rows,
};
use pulp::{Arch, Simd, WithSimd};
use std::ops::Range;

/// Memory of small products, reused; grows once.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    left: Vec<[f32; PACKED_K]>,
    right: Vec<[f32; PANEL]>,
    result: Vec<f32>,
}

impl Scratch {
    /// `C [rows, n] = L [rows, k]·R [k, n]`, row-major; each element is the chain
    /// `c = fma(l[k], r[k], c)` from zero, `k` ascending.
    ///
    /// `left(row, ks, dst)` writes `L[row, ks]`; `right(ks, columns, dst)` writes `R[ks, columns]`, one
    /// element of `dst` for each of `ks`, whose slots beyond `columns` are never read.
    pub(super) fn product(
        &mut self,
        (rows, k, n): (usize, usize, usize),
        left_of: impl Fn(usize, Range<usize>, &mut [f32]),
        right_of: impl Fn(Range<usize>, Range<usize>, &mut [[f32; PANEL]]),
    ) -> &mut [f32] {
        if self.left.len() < rows {
            self.left.resize(rows, [0.0; PACKED_K]);
        }
        if self.right.is_empty() {
            self.right.resize(BLOCK_K, [0.0; PANEL]);
        }
        if self.result.len() < rows * n {
            self.result.resize(rows * n, 0.0);
        }
        let result = &mut self.result[..rows * n];
        if k == 0 {
            result.fill(0.0);
        }
        for start in (0..k).step_by(BLOCK_K) {
            let ks = start..k.min(start + BLOCK_K);
            for (row, left) in self.left.iter_mut().enumerate().take(rows) {
                left_of(row, ks.clone(), &mut left[..ks.len()]);
            }
            for first in (0..n).step_by(PANEL) {
                let columns = first..n.min(first + PANEL);
                let right = &mut self.right[..ks.len()];
                right_of(ks.clone(), columns.clone(), right);
                let left = &self.left[..rows];
                let fresh = start == 0;
                Arch::new().dispatch(Panel { left, right, columns, n, fresh, result });
            }
        }
        result
    }
}

/// One panel of one block of `k`.
struct Panel<'a> {
    left: &'a [[f32; PACKED_K]],
    right: &'a [[f32; PANEL]],
    columns: Range<usize>,
    n: usize,
    fresh: bool,
    result: &'a mut [f32],
}

impl WithSimd for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { left, right, columns, n, fresh, result } = self;
        let width = columns.len();
        let mut acc: Accumulators = [[0.0; PANEL]; MAX_ROWS];
        let tile = tile_rows::<S>();
        for (left, rows) in left.chunks(tile).zip(result.chunks_mut(tile * n)) {
            if !fresh {
                for (acc, row) in acc.iter_mut().zip(rows.chunks(n)) {
                    copy(&row[columns.clone()], &mut acc[..width]);
                }
            }
            multiply(simd, left, (right, width), fresh, &mut acc);
            for (acc, row) in acc.iter().zip(rows.chunks_mut(n)) {
                copy(&acc[..width], &mut row[columns.clone()]);
            }
        }
    }
}

/// A row-major matrix, or a window of one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(super) start: usize,
    pub(super) stride: usize,
}

impl<'a> Matrix<'a> {
    pub(super) fn row(&self, row: usize, columns: Range<usize>) -> &'a [f32] {
        let start = self.start + row * self.stride;
        &self.data[start + columns.start..start + columns.end]
    }

    /// `dst = self[row, columns]`.
    pub(super) fn copy_row(&self, row: usize, columns: Range<usize>, dst: &mut [f32]) {
        copy(self.row(row, columns), dst);
    }

    /// `dst = self[rows, column]`.
    pub(super) fn copy_column(&self, rows: Range<usize>, column: usize, dst: &mut [f32]) {
        for (row, dst) in rows.zip(dst) {
            *dst = self.data[self.start + row * self.stride + column];
        }
    }

    /// `dst = self[rows, columns]`.
    pub(super) fn copy_panel(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        dst: &mut [[f32; PANEL]],
    ) {
        if columns.len() == PANEL {
            for (row, dst) in rows.zip(dst) {
                dst.copy_from_slice(self.row(row, columns.clone()));
            }
        } else {
            for (row, dst) in rows.zip(dst) {
                copy(self.row(row, columns.clone()), &mut dst[..columns.len()]);
            }
        }
    }

    /// `dst[.., first..] = selfᵀ[rows, columns]`, in squares of eight where both reach.
    pub(super) fn copy_transposed(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        (dst, first): (&mut [[f32; PANEL]], usize),
    ) {
        let (length, width) = (rows.len() / 8 * 8, columns.len() / 8 * 8);
        let (squares, rest) = dst[..rows.len()].split_at_mut(length);
        for slot in (0..width).step_by(8) {
            let eight: [&[[f32; 8]]; 8] = std::array::from_fn(|i| {
                self.row(columns.start + slot + i, rows.clone()).as_chunks().0
            });
            for (square, dst) in squares.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let from = eight.map(|column| column[square]);
                for (i, dst) in dst.iter_mut().enumerate() {
                    for (dst, from) in dst[first + slot..][..8].iter_mut().zip(&from) {
                        *dst = from[i];
                    }
                }
            }
        }
        for (slot, column) in columns.enumerate() {
            let column = self.row(column, rows.clone());
            for (dst, &v) in rest.iter_mut().zip(&column[length..]) {
                dst[first + slot] = v;
            }
            if slot >= width {
                for (dst, &v) in squares.iter_mut().zip(column) {
                    dst[first + slot] = v;
                }
            }
        }
    }
}
