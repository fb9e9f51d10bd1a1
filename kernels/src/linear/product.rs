//! Blocking of a product: which tile is computed when, and by whom.
//!
//! Owns the walk over row blocks, column groups and blocks of `k`, and the split
//! into tasks. None of these can change a bit: a tile's accumulators rest as `f32` between blocks of
//! `k`, so each element stays the one chain of `tile.rs` however it is cut. Start at [`Product::run`].

use super::operand::{Left, PackedPanel, Right, Rows};
use super::tile::{Accumulators, BLOCK_K, MAX_ROWS, PACKED_K, PANEL, copy, multiply, tile_rows};
use pulp::{Arch, Simd, WithSimd};
use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

/// Rows of a task: its block of `X` stays in the second-level cache.
const BLOCK_ROWS: usize = 144;

/// Fewest rows of a task that packs its panels itself: what packing costs is shared by so many.
const PACKING_ROWS: usize = 48;

/// Multiply-adds below which another task costs more than it brings.
const TASK_WORK: usize = 1 << 20;

/// One product `Y [rows, n] = X [rows, k]·W [k, n]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) x: Left<'a>,
    pub(crate) w: Right<'a>,
    pub(crate) rows: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
    /// The chains begin at what `Y` holds instead of at zero.
    pub(crate) accumulate: bool,
    /// Added to the finished chain.
    pub(crate) bias: Option<&'a [f32]>,
    /// Added after the bias.
    pub(crate) residual: Option<Rows<'a>>,
}

/// Rows of `Y` that a task owns, cut to its columns.
struct Owned<'a> {
    rows: [&'a mut [f32]; BLOCK_ROWS],
    len: usize,
}

impl<'a> Owned<'a> {
    /// The two sides of column `mid`.
    fn split(self, mid: usize) -> (Self, Self) {
        let mut right = std::array::from_fn(|_| Default::default());
        let mut left = self.rows;
        for (left, right) in left.iter_mut().zip(&mut right).take(self.len) {
            let (l, r) = std::mem::take(left).split_at_mut(mid);
            (*left, *right) = (l, r);
        }
        (Self { rows: left, len: self.len }, Self { rows: right, len: self.len })
    }
}

impl Product<'_> {
    /// Runs the product on the instructions of `arch`; row `i` of `Y` begins at `y[i * stride]`.
    pub(crate) fn run(&self, arch: Arch, y: &mut [f32], stride: usize) {
        if self.rows == 0 || self.n == 0 {
            return;
        }
        let y = &mut y[..(self.rows - 1) * stride + self.n];
        let threads = rayon::current_num_threads();
        let (least, wanted) = match self.x {
            Left::AsIs(_) => (1, 2 * threads),
            // Each piece of the columns would pack the same transposed rows again: rows are cut instead,
            // and columns only where threads would have nothing to do.
            Left::Transposed(_) if threads == 1 => (1, 1),
            Left::Transposed(_) => ((2 * threads).min(self.rows / PACKING_ROWS), threads),
        };
        let blocks = self.rows.div_ceil(BLOCK_ROWS).max(least);
        let block = self.rows.div_ceil(blocks);
        // Columns are cut only as far as rows alone leave threads idle.
        let wanted = wanted.div_ceil(blocks);
        let work = (block * self.k * self.n / TASK_WORK).max(1);
        let panels = self.n.div_ceil(PANEL);
        let pieces = if threads == 1 { 1 } else { wanted.min(work).min(panels) };
        let go = |(index, y): (usize, &mut [f32])| {
            let mut owned = Owned { rows: std::array::from_fn(|_| Default::default()), len: 0 };
            for (slot, row) in owned.rows.iter_mut().zip(y.chunks_mut(stride)) {
                *slot = &mut row[..self.n];
                owned.len += 1;
            }
            self.columns(arch, index * block, owned, 0..panels, pieces);
        };
        if blocks == 1 {
            go((0, y));
        } else {
            y.par_chunks_mut(block * stride).enumerate().for_each(go);
        }
    }

    /// As [`Product::run`], on this thread: for callers that have split their work already.
    pub(crate) fn run_here(&self, arch: Arch, y: &mut [f32], stride: usize) {
        for (index, y) in y.chunks_mut(BLOCK_ROWS * stride).enumerate() {
            let mut owned = Owned { rows: std::array::from_fn(|_| Default::default()), len: 0 };
            let left = self.rows.saturating_sub(index * BLOCK_ROWS);
            for (slot, row) in owned.rows.iter_mut().zip(y.chunks_mut(stride)).take(left) {
                *slot = &mut row[..self.n];
                owned.len += 1;
            }
            self.columns(arch, index * BLOCK_ROWS, owned, 0..self.n.div_ceil(PANEL), 1);
        }
    }

    /// Cuts the columns into `pieces` tasks.
    fn columns(
        &self,
        arch: Arch,
        first_row: usize,
        y: Owned<'_>,
        panels: Range<usize>,
        pieces: usize,
    ) {
        if pieces <= 1 {
            arch.dispatch(Task { product: self, first_row, y, panels });
            return;
        }
        let left = pieces / 2;
        let mid = panels.start + panels.len() * left / pieces;
        let (a, b) = y.split((mid - panels.start) * PANEL);
        rayon::join(
            || self.columns(arch, first_row, a, panels.start..mid, left),
            || self.columns(arch, first_row, b, mid..panels.end, pieces - left),
        );
    }
}

thread_local! {
    /// A task's packed block of `X`; grows once.
    static PACKED: RefCell<Vec<[f32; PACKED_K]>> = const { RefCell::new(Vec::new()) };
    /// A task's panel of `W`, where `W` is not in panels.
    static PANELS: RefCell<Vec<PackedPanel>> = const { RefCell::new(Vec::new()) };
}

/// Some rows by some panels, computed by one thread.
struct Task<'a, 'b> {
    product: &'a Product<'a>,
    first_row: usize,
    y: Owned<'b>,
    panels: Range<usize>,
}

impl WithSimd for Task<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let k = self.product.k;
        let num_blocks = k.div_ceil(BLOCK_K).max(1);
        let block_k = k.div_ceil(num_blocks);
        PACKED.with_borrow_mut(|packed| {
            if packed.len() < self.y.len {
                packed.resize(self.y.len, [0.0; PACKED_K]);
            }
            for b in 0..num_blocks {
                let ks = (b * block_k).min(k)..((b + 1) * block_k).min(k);
                let rows = self.first_row..self.first_row + self.y.len;
                self.product.x.pack(rows, ks.clone(), packed);
                PANELS.with_borrow_mut(|panels| {
                    self.block(simd, ks, b + 1 == num_blocks, (packed, panels));
                });
            }
        });
    }
}

impl Task<'_, '_> {
    /// Tiles of nearly equal height: first row and number of rows of each.
    fn tiles<S: Simd>(&self) -> impl Iterator<Item = (usize, usize)> + use<S> {
        let len = self.y.len;
        let count = len.div_ceil(tile_rows::<S>());
        (0..count).map(move |i| (i * len / count, (i + 1) * len / count - i * len / count))
    }

    /// Every tile of one block of `k`.
    #[inline(always)]
    fn block<S: Simd>(
        &mut self,
        simd: S,
        ks: Range<usize>,
        last: bool,
        (packed, panels): (&[[f32; PACKED_K]], &mut Vec<PackedPanel>),
    ) {
        let p = self.product;
        let fresh = ks.start == 0 && !p.accumulate;
        let mut acc: Accumulators = [[0.0; PANEL]; MAX_ROWS];
        for panel in self.panels.clone() {
            let column = (panel - self.panels.start) * PANEL;
            let width = PANEL.min(p.n - panel * PANEL);
            let w = p.w.panel((panel, width), ks.clone(), panels);
            for (first, rows) in self.tiles::<S>() {
                if !fresh {
                    for (acc, y) in acc.iter_mut().zip(&self.y.rows[first..first + rows]) {
                        copy(&y[column..column + width], &mut acc[..width]);
                    }
                }
                multiply(simd, &packed[first..first + rows], (w, width), fresh, &mut acc);
                if last {
                    self.finish(
                        &mut acc,
                        first..first + rows,
                        panel * PANEL..panel * PANEL + width,
                    );
                }
                for (acc, y) in acc.iter().zip(&mut self.y.rows[first..first + rows]) {
                    copy(&acc[..width], &mut y[column..column + width]);
                }
            }
        }
    }

    /// `acc = (acc + bias) + residual`.
    #[inline(always)]
    fn finish(&self, acc: &mut Accumulators, rows: Range<usize>, columns: Range<usize>) {
        for (acc, row) in acc.iter_mut().zip(rows) {
            if let Some(bias) = self.product.bias {
                add(acc, &bias[columns.clone()]);
            }
            if let Some(residual) = &self.product.residual {
                add(acc, residual.row(self.first_row + row, columns.clone()));
            }
        }
    }
}

#[inline(always)]
fn add(acc: &mut [f32], v: &[f32]) {
    for (acc, &v) in acc.iter_mut().zip(v) {
        *acc += v;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every instruction set this processor has.
    fn archs() -> Vec<Arch> {
        let mut archs = vec![Arch::Scalar, Arch::new()];
        #[cfg(target_arch = "x86_64")]
        {
            archs.extend(pulp::x86::V3::try_new().map(Arch::V3));
            archs.extend(pulp::x86::V4::try_new().map(Arch::V4));
        }
        archs
    }

    #[test]
    fn instruction_sets_change_no_bit() {
        let value = |i: usize| (i * 2_654_435_761 % 10_007) as f32 / 5003.0 - 1.0;
        for (k, n) in [(1usize, 1usize), (33, 16), (33, 17), (100, 33), (1600, 64)] {
            for rows in [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 25] {
                let x: Vec<f32> = (0..rows * k).map(value).collect();
                let w: Vec<[f32; PANEL]> = (0..n.div_ceil(PANEL) * k)
                    .map(|i| std::array::from_fn(|j| value(7 * i + j)))
                    .collect();
                let bias: Vec<f32> = (0..n).map(value).collect();
                let residual: Vec<f32> = (0..rows * n).map(value).collect();
                // The same factors as other operations hold them.
                let turned: Vec<f32> = (0..k * rows).map(|i| x[i % rows * k + i / rows]).collect();
                let plain: Vec<f32> =
                    (0..k * n).map(|i| w[i % n / PANEL * k + i / n][i % n % PANEL]).collect();
                let rows_of = |data, stride| Rows { data, start: 0, stride };
                let factors = [
                    (Left::AsIs(rows_of(&x, k)), Right::Panels { w: &w, pitch: k }),
                    (Left::Transposed(rows_of(&turned, rows)), Right::Rows(rows_of(&plain, n))),
                ];
                let mut first: [Option<Vec<u32>>; 2] = [None, None];
                for (accumulate, (x, w)) in
                    [false, true].into_iter().flat_map(|a| factors.map(|f| (a, f)))
                {
                    let product = Product {
                        x,
                        w,
                        rows,
                        k,
                        n,
                        accumulate,
                        bias: Some(&bias),
                        residual: Some(Rows { data: &residual, start: 0, stride: n }),
                    };
                    let first = &mut first[usize::from(accumulate)];
                    for arch in archs() {
                        let mut y: Vec<f32> = (0..rows * n).map(|i| value(i + 3)).collect();
                        product.run(arch, &mut y, n);
                        let bits: Vec<u32> = y.iter().map(|v| v.to_bits()).collect();
                        let same = first.get_or_insert_with(|| bits.clone()) == &bits;
                        assert!(same, "{arch:?}: {rows} rows, {k}x{n}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_element_is_one_chain() {
        let value = |i: usize| (i * 48_271 % 10_007) as f32 / 5003.0 - 1.0;
        let (rows, k, n) = (14, 1700, 40);
        let x: Vec<f32> = (0..rows * k).map(value).collect();
        let w: Vec<[f32; PANEL]> =
            (0..2 * k).map(|i| std::array::from_fn(|j| value(9 * i + j))).collect();
        let product = Product {
            x: Left::AsIs(Rows { data: &x, start: 0, stride: k }),
            w: Right::Panels { w: &w, pitch: k },
            rows,
            k,
            n,
            accumulate: false,
            bias: None,
            residual: None,
        };
        let mut y = vec![f32::NAN; rows * n];
        product.run(Arch::new(), &mut y, n);
        for (i, y) in y.iter().enumerate() {
            let (row, o) = (i / n, i % n);
            let w = |i: usize| w[o / PANEL * k + i][o % PANEL];
            let chain = (0..k).fold(0.0f32, |s, i| x[row * k + i].mul_add(w(i), s));
            assert_eq!(y.to_bits(), chain.to_bits(), "row {row}, output {o}");
        }
    }
}
