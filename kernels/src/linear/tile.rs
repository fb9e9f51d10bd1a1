//! The micro-kernel: a tile of at most [`MAX_ROWS`] rows by one panel, all along `k`.
//!
//! Owns the only arithmetic of the frozen products. Every element of a tile is one chain
//! `acc = fma(x[k], w[k], acc)` in ascending `k`; the chain is the same for any number of rows in the
//! tile and for any vector width, because a fused multiply-add rounds once, the same on every
//! processor, and no sum is ever split over lanes. Knows no blocking, thread or buffer.

use pulp::{Simd, WithSimd};

/// Columns of a panel of packed weights: two AVX-512 registers, four of AVX2, eight of NEON.
pub(crate) const PANEL: usize = 32;

/// Most rows of a tile, on any processor.
pub(crate) const MAX_ROWS: usize = 12;

/// Most `k` of a block.
pub(crate) const BLOCK_K: usize = 768;

/// Packed values of one row of `X`: a cache line more than a block, so that the rows of a tile do not
/// fall on the same sets of the first-level cache.
pub(crate) const PACKED_K: usize = BLOCK_K + 16;

/// Accumulators of a tile: between two blocks of `k` they rest here, unrounded.
pub(crate) type Accumulators = [[f32; PANEL]; MAX_ROWS];

/// `to = from`, of equal lengths: without a call for the lengths that narrow models and adapters have.
///
/// A product of 64 columns takes about as long for a row as two calls that copy a row in and out.
#[inline(always)]
pub(crate) fn copy(from: &[f32], to: &mut [f32]) {
    match to.len() {
        8 => copy_pieces::<8, 1>(from, to),
        16 => copy_pieces::<16, 1>(from, to),
        PANEL => copy_pieces::<PANEL, 1>(from, to),
        64 => copy_pieces::<PANEL, 2>(from, to),
        _ => to.copy_from_slice(from),
    }
}

#[inline(always)]
fn copy_pieces<const LEN: usize, const PIECES: usize>(from: &[f32], to: &mut [f32]) {
    let pieces = (from.as_chunks::<LEN>().0, to.as_chunks_mut::<LEN>().0);
    if let (Some(from), Some(to)) =
        (pieces.0.first_chunk::<PIECES>(), pieces.1.first_chunk_mut::<PIECES>())
    {
        #[expect(
            clippy::manual_memcpy,
            reason = "a call of memcpy costs more than these few moves"
        )]
        for i in 0..PIECES {
            to[i] = from[i];
        }
    }
}

/// Rows of a tile that keep the accumulators in registers.
pub(crate) fn tile_rows<S: Simd>() -> usize {
    match S::F32_LANES {
        16 => 12,
        8 => 6,
        4 => 6,
        _ => 4,
    }
}

/// `acc[row] = fma(x[row, k], w[k, column], acc[row])` for the rows of `x`, in ascending `k`; the chains
/// begin at zero if `fresh`.
///
/// `x` holds at most [`MAX_ROWS`] packed rows, `w` a panel row for each of at most [`BLOCK_K`] `k`, of which
/// the first `columns` matter (the other accumulators may be left as they are).
#[inline(always)]
pub(crate) fn multiply<S: Simd>(
    simd: S,
    x: &[[f32; PACKED_K]],
    (w, columns): (&[[f32; PANEL]], usize),
    fresh: bool,
    acc: &mut Accumulators,
) {
    match x.len() {
        1 => panel::<S, 1>(simd, x, (w, columns), fresh, acc),
        2 => panel::<S, 2>(simd, x, (w, columns), fresh, acc),
        3 => panel::<S, 3>(simd, x, (w, columns), fresh, acc),
        4 => panel::<S, 4>(simd, x, (w, columns), fresh, acc),
        5 => panel::<S, 5>(simd, x, (w, columns), fresh, acc),
        6 => panel::<S, 6>(simd, x, (w, columns), fresh, acc),
        7 => panel::<S, 7>(simd, x, (w, columns), fresh, acc),
        8 => panel::<S, 8>(simd, x, (w, columns), fresh, acc),
        9 => panel::<S, 9>(simd, x, (w, columns), fresh, acc),
        10 => panel::<S, 10>(simd, x, (w, columns), fresh, acc),
        11 => panel::<S, 11>(simd, x, (w, columns), fresh, acc),
        _ => panel::<S, 12>(simd, x, (w, columns), fresh, acc),
    }
}

/// Covers the panel with parts of `VECTORS` registers, as wide as the register file allows.
#[inline(always)]
fn panel<S: Simd, const ROWS: usize>(
    simd: S,
    x: &[[f32; PACKED_K]],
    (w, columns): (&[[f32; PANEL]], usize),
    fresh: bool,
    acc: &mut Accumulators,
) {
    let Some(x) = x.first_chunk::<ROWS>() else { return };
    match S::F32_LANES {
        16 if columns <= 16 => simd.vectorize(Part::<ROWS, 1> { x, w, fresh, acc, first: 0 }),
        16 => simd.vectorize(Part::<ROWS, 2> { x, w, fresh, acc, first: 0 }),
        8 if ROWS <= 6 => {
            for first in [0, 2].into_iter().take(columns.div_ceil(16)) {
                simd.vectorize(Part::<ROWS, 2> { x, w, fresh, acc: &mut *acc, first });
            }
        }
        4 if ROWS <= 6 => {
            for first in [0, 4].into_iter().take(columns.div_ceil(16)) {
                simd.vectorize(Part::<ROWS, 4> { x, w, fresh, acc: &mut *acc, first });
            }
        }
        _ => simd.vectorize(Narrow::<ROWS> { x, w, fresh, acc }),
    }
}

/// `ROWS` rows by `VECTORS` registers, from register `first` of the panel on.
struct Part<'a, const ROWS: usize, const VECTORS: usize> {
    x: &'a [[f32; PACKED_K]; ROWS],
    w: &'a [[f32; PANEL]],
    fresh: bool,
    acc: &'a mut Accumulators,
    first: usize,
}

impl<const ROWS: usize, const VECTORS: usize> WithSimd for Part<'_, ROWS, VECTORS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, w, fresh, acc, first } = self;
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
        if !fresh {
            for r in 0..ROWS {
                let (acc, _) = S::as_simd_f32s(&acc[r]);
                sums[r].copy_from_slice(&acc[first..first + VECTORS]);
            }
        }
        for (k, w) in w.iter().enumerate().take(PACKED_K) {
            let (w, _) = S::as_simd_f32s(w);
            let w = &w[first..first + VECTORS];
            for r in 0..ROWS {
                let x = simd.splat_f32s(x[r][k]);
                for v in 0..VECTORS {
                    sums[r][v] = simd.mul_add_f32s(x, w[v], sums[r][v]);
                }
            }
        }
        for r in 0..ROWS {
            let (acc, _) = S::as_mut_simd_f32s(&mut acc[r]);
            acc[first..first + VECTORS].copy_from_slice(&sums[r]);
        }
    }
}

/// The same sums on a processor without known vector instructions.
struct Narrow<'a, const ROWS: usize> {
    x: &'a [[f32; PACKED_K]; ROWS],
    w: &'a [[f32; PANEL]],
    fresh: bool,
    acc: &'a mut Accumulators,
}

impl<const ROWS: usize> WithSimd for Narrow<'_, ROWS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        if self.fresh {
            self.acc[..ROWS].fill([0.0; PANEL]);
        }
        for (k, w) in self.w.iter().enumerate().take(PACKED_K) {
            for (acc, x) in self.acc.iter_mut().zip(self.x) {
                for (acc, &w) in acc.iter_mut().zip(w) {
                    *acc = x[k].mul_add(w, *acc);
                }
            }
        }
    }
}
