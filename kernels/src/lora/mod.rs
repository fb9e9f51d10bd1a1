//! Grouped LoRA over adapter-major segments: `Y += scale · drop(X)·Aᵀ·Bᵀ` and its backward.
//!
//! A segment is the contiguous rows of one user. All adapters of the resident users lie in one slab of
//! `f32`: an adapter's parameters begin at `param_offset`, its sites follow one another, each as
//! `A [r, d]` then `B [n, r]` row-major (the layout of PEFT's files), so site `k` of an adapter of rank
//! `r` begins at `param_offset + r · unit_offset(k)`, `unit_offset(k)` being the sum of `d + n` of the
//! sites before it. Nothing is stacked or copied; ranks may be mixed; segments may be empty.
//!
//! Solo equivalence: a segment's result depends only on its own rows and parameters. Sums over the
//! rows of a segment (`dA`, `dB`) run in an order fixed relative to the segment's first row.

use crate::backend::{Backend, Buffer, Mat, MatMut};
use crate::error::{Error, Result, check_len};

mod block;
pub mod cpu;
pub(crate) mod gpu;
mod gradient;

/// The rows of one user in a pack, and where its adapter and gradient lie in the slabs.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Segment {
    /// First row.
    pub row_start: u32,
    /// Number of rows; may be zero.
    pub rows: u32,
    /// First element of the adapter in the parameter slab.
    pub param_offset: u64,
    /// First element of its gradient in the gradient slab.
    pub grad_offset: u64,
    /// LoRA rank `r >= 1`.
    pub lora_rank: u32,
    /// `alpha / r` (or `alpha / sqrt(r)`), computed once by the trainer.
    pub scale: f32,
    /// Dropout probability on the LoRA input, `0 <= p < 1`; zero draws nothing.
    pub dropout: f32,
    /// The user's optimiser step, part of the dropout counter.
    pub step: u32,
    /// The user's dropout key.
    pub key: [u32; 2],
}

/// One adapted product of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site {
    /// Input width `d`.
    pub in_dim: usize,
    /// Output width `n` of the whole adapted product.
    pub out_dim: usize,
    /// Sum of `d + n` of the sites before this one.
    pub unit_offset: usize,
    /// Number of the site in the adapter, part of the dropout counter (distinct for each layer and product).
    pub id: u32,
}

/// A site applied to a range of its outputs, which lies in `Y` from `y_start` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiteOutput {
    /// The site.
    pub site: Site,
    /// First output (row of `B`) taken.
    pub out_begin: usize,
    /// Number of outputs taken.
    pub out_len: usize,
    /// Element of `Y` (and `dY`) of row 0, first output taken. All sites of one call lie in the same
    /// rows: the last range ends at most a stride after the first one begins.
    pub y_start: usize,
}

/// Forward: for each segment and site output, `Y[rows, outs] += scale · drop(X)[rows]·Aᵀ·B[outs]ᵀ`.
#[derive(Debug)]
pub struct Forward<'a, B: Backend + ?Sized> {
    /// `X [t, d]`, shared by all sites.
    pub x: Mat<'a, B::Buf<B::Act>>,
    /// The sites, all of input width `d`; their ranges of `Y` do not overlap.
    pub sites: &'a [SiteOutput],
    /// Segments, in row order, not overlapping.
    pub segments: &'a B::Buf<Segment>,
    /// Number of segments taken.
    pub num_segments: usize,
    /// For each row of `X` its token number within its segment's user: the dropout counter.
    pub row_token: &'a B::Buf<u32>,
    /// The parameter slab.
    pub params: &'a B::Buf<f32>,
    /// `Y`, written `+=`; only `start` 0 is used, see [`SiteOutput::y_start`].
    pub y: MatMut<'a, B::Buf<B::Act>>,
    /// `t`.
    pub rows: usize,
}

/// Backward: with `S = drop(X)·Aᵀ` recomputed, `dS = scale · dY·B`:
/// `dB += scale · dYᵀ·S`, `dA += dSᵀ·drop(X)`, `dX += undrop(dS·A)`.
#[derive(Debug)]
pub struct Backward<'a, B: Backend + ?Sized> {
    /// `X [t, d]` of the forward.
    pub x: Mat<'a, B::Buf<B::Act>>,
    /// The sites of the forward.
    pub sites: &'a [SiteOutput],
    /// Segments.
    pub segments: &'a B::Buf<Segment>,
    /// Number of segments taken.
    pub num_segments: usize,
    /// Token numbers of the rows, as in the forward.
    pub row_token: &'a B::Buf<u32>,
    /// The parameter slab.
    pub params: &'a B::Buf<f32>,
    /// `dY`, laid out as `Y` of the forward.
    pub dy: Mat<'a, B::Buf<B::Act>>,
    /// The gradient slab, written `+=`; gradients of different segments do not overlap.
    pub grads: &'a mut B::Buf<f32>,
    /// `dX [t, d]`, written `+=`; `None` below the lowest adapter.
    pub dx: Option<MatMut<'a, B::Buf<B::Act>>>,
    /// `t`.
    pub rows: usize,
}

/// Grouped LoRA products.
pub trait Lora: Backend {
    /// See [`Forward`].
    ///
    /// # Errors
    /// [`Error`] when shapes or segments are inconsistent.
    fn lora_forward(&self, args: Forward<'_, Self>) -> Result<()>;

    /// See [`Backward`].
    ///
    /// # Errors
    /// [`Error`] when shapes or segments are inconsistent.
    fn lora_backward(&self, args: Backward<'_, Self>) -> Result<()>;
}

impl Segment {
    /// Checks, once per pack on the host, that segments are in row order, do not overlap, have a rank of
    /// at least 1 and fit in `rows` rows and in slabs of `params` and `grads` elements, an adapter of rank
    /// `r` taking `r · units`.
    ///
    /// # Errors
    /// [`Error::Routing`] naming the segment.
    pub fn check_all(
        segments: &[Self],
        rows: usize,
        units: usize,
        (params, grads): (usize, usize),
    ) -> Result<()> {
        let mut end = 0usize;
        for (index, s) in segments.iter().enumerate() {
            let size = u64::from(s.lora_rank).saturating_mul(units as u64);
            let wrong = if s.lora_rank == 0 {
                "its rank is 0"
            } else if !(0.0..1.0).contains(&s.dropout) {
                "its dropout is not in [0, 1)"
            } else if (s.row_start as usize) < end {
                "it overlaps the one before"
            } else if u64::from(s.row_start) + u64::from(s.rows) > rows as u64 {
                "it leaves the pack"
            } else if s.param_offset.saturating_add(size) > params as u64
                || s.grad_offset.saturating_add(size) > grads as u64
            {
                "its adapter leaves the slab"
            } else {
                end = s.row_start as usize + s.rows as usize;
                continue;
            };
            return Err(Error::Routing { op: "lora", what: format!("segment {index}: {wrong}") });
        }
        Ok(())
    }
}

/// Checks what both directions share.
pub(crate) fn check_sites(
    op: &'static str,
    sites: &[SiteOutput],
    (rows, y_stride, y_len): (usize, usize, usize),
) -> Result<()> {
    let begin = sites.iter().map(|s| s.y_start).min().unwrap_or(0);
    for s in sites {
        crate::error::check_eq(op, "sites' input width", sites[0].site.in_dim, s.site.in_dim)?;
        check_len(op, "site's outputs", s.out_begin + s.out_len, s.site.out_dim)?;
        if rows > 0 {
            check_len(op, "row of y", s.y_start + s.out_len, begin + y_stride)?;
            check_len(op, "y", s.y_start + (rows - 1) * y_stride + s.out_len, y_len)?;
        }
    }
    Ok(())
}

/// Checks that tables are as long as said.
pub(crate) fn check_tables<T: Buffer, U: Buffer>(
    op: &'static str,
    (segments, num_segments): (&T, usize),
    (row_token, rows): (&U, usize),
) -> Result<()> {
    check_len(op, "segments", num_segments, segments.len())?;
    check_len(op, "row_token", rows, row_token.len())
}
