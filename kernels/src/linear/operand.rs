//! Factors of a product, as they lie in memory, and their packing for the micro-kernel.
//!
//! Owns the copies between row-major memory, packed rows of the left factor and panels of the right one.
//! Knows no blocking, thread or arithmetic. Start at [`Left`] and [`Right`].

use super::tile::{BLOCK_K, PACKED_K, PANEL, copy};
use std::ops::Range;

/// Rows in a slice: row `i` begins at `start + i * stride`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) start: usize,
    pub(crate) stride: usize,
}

impl<'a> Rows<'a> {
    /// Columns `columns` of row `i`.
    pub(crate) fn row(&self, i: usize, columns: Range<usize>) -> &'a [f32] {
        let start = self.start + i * self.stride;
        &self.data[start + columns.start..start + columns.end]
    }

    /// The same rows from (row, column) on; they must hold an element.
    fn from(&self, row: usize, column: usize) -> Self {
        Self { start: self.start + row * self.stride + column, ..*self }
    }
}

/// The left factor `X [rows, k]`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Left<'a> {
    /// Its rows.
    AsIs(Rows<'a>),
    /// The rows of `Xᵀ [k, rows]`.
    Transposed(Rows<'a>),
}

impl Left<'_> {
    /// `packed[r][l] = X[rows.start + r, ks.start + l]`.
    #[inline(always)]
    pub(super) fn pack(
        &self,
        rows: Range<usize>,
        ks: Range<usize>,
        packed: &mut [[f32; PACKED_K]],
    ) {
        match self {
            Left::AsIs(x) => {
                for (row, packed) in rows.zip(packed) {
                    copy(x.row(row, ks.clone()), &mut packed[..ks.len()]);
                }
            }
            Left::Transposed(x) => {
                if !rows.is_empty() && !ks.is_empty() {
                    let from = x.from(ks.start, rows.start);
                    transpose(from, (ks.len(), rows.len()), packed.as_flattened_mut(), PACKED_K);
                }
            }
        }
    }
}

/// The right factor `W [k, n]`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Right<'a> {
    /// `n.div_ceil(PANEL)` panels of rows of [`PANEL`] columns, `pitch` rows from one panel to the next:
    /// more than `k` where only some rows are taken.
    Panels {
        /// Panel rows.
        w: &'a [[f32; PANEL]],
        /// Rows of a panel.
        pitch: usize,
    },
    /// Its rows; a task packs the panel it needs.
    Rows(Rows<'a>),
}

/// One panel of one block of `k`, on cache lines.
#[repr(C, align(64))]
#[derive(Debug, Clone)]
pub(super) struct PackedPanel([[f32; PANEL]; BLOCK_K]);

impl PackedPanel {
    pub(super) const ZERO: Self = Self([[0.0; PANEL]; BLOCK_K]);
}

impl Right<'_> {
    /// Rows `ks` of panel `panel`, of which the first `width` columns count; packed into `scratch` (grown
    /// once) if it lies in no panel yet.
    #[inline(always)]
    pub(super) fn panel<'s>(
        &'s self,
        (panel, width): (usize, usize),
        ks: Range<usize>,
        scratch: &'s mut Vec<PackedPanel>,
    ) -> &'s [[f32; PANEL]] {
        match self {
            Right::Panels { w, pitch } => &w[panel * pitch + ks.start..panel * pitch + ks.end],
            Right::Rows(w) => {
                if scratch.is_empty() {
                    scratch.push(PackedPanel::ZERO);
                }
                let packed = &mut scratch[0].0[..ks.len()];
                let first = panel * PANEL;
                for (k, packed) in ks.zip(&mut *packed) {
                    let row = w.row(k, first..first + width);
                    match row.as_array::<PANEL>() {
                        Some(row) => *packed = *row,
                        None => packed[..width].copy_from_slice(row),
                    }
                }
                packed
            }
        }
    }
}

/// Edge of the squares that [`transpose`] moves at a time.
const SQUARE: usize = 4;

/// `dst[c * dst_stride + r] = from[r][c]` for `r < rows`, `c < columns`; at least one of each.
#[inline(always)]
pub(super) fn transpose(
    from: Rows<'_>,
    (rows, columns): (usize, usize),
    dst: &mut [f32],
    dst_stride: usize,
) {
    let (whole_rows, whole_columns) = (rows / SQUARE * SQUARE, columns / SQUARE * SQUARE);
    for r in (0..whole_rows).step_by(SQUARE) {
        let rows: [&[f32]; SQUARE] = std::array::from_fn(|i| from.row(r + i, 0..columns));
        for c in (0..whole_columns).step_by(SQUARE) {
            let square: [[f32; SQUARE]; SQUARE] =
                rows.map(|row| std::array::from_fn(|j| row[c + j]));
            for j in 0..SQUARE {
                let column: [f32; SQUARE] = std::array::from_fn(|i| square[i][j]);
                dst[(c + j) * dst_stride + r..][..SQUARE].copy_from_slice(&column);
            }
        }
    }
    for r in 0..rows {
        let first = if r < whole_rows { whole_columns } else { 0 };
        for (c, v) in (first..columns).zip(from.row(r, first..columns)) {
            dst[c * dst_stride + r] = *v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transpose_moves_every_element_and_writes_nothing_beside() {
        for rows in [1, 7, 8, 9, 16, 27] {
            for columns in [1, 5, 8, 15, 24, 33] {
                let data: Vec<f32> = (0..3 + rows * (columns + 2)).map(|i| i as f32).collect();
                let from = Rows { data: &data, start: 3, stride: columns + 2 };
                let mut dst = vec![-1.0; columns * (rows + 1)];
                transpose(from, (rows, columns), &mut dst, rows + 1);
                for (i, v) in dst.iter().enumerate() {
                    let (c, r) = (i / (rows + 1), i % (rows + 1));
                    let want = if r < rows { data[3 + r * (columns + 2) + c] } else { -1.0 };
                    assert!(v.total_cmp(&want).is_eq(), "{rows}x{columns}: {r}, {c}: {v}");
                }
            }
        }
    }
}
