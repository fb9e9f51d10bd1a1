//! The intention attention network's head: one logit for each intent, from a history vector.
//!
//! For a row with history `h [d]` and an intent with embedding `v [d]`, row `n` of the table `V [N, d]`:
//! `z = W1·[v ; v (x) h ; h] + b1 [k]`, `a_n = w2 · PReLU(z; slope) + b2 (+ c_n)`, where `(x)` is the
//! element-wise product or the flattened outer product ([`Product`]) and PReLU has one slope for each
//! hidden unit: `PReLU(z) = z` where `z > 0`, else `slope · z` (derivative `slope` at zero, as PyTorch's).
//!
//! A segment is the rows of one user. It may have a personal delta in the users' slab: `ΔV [N, d]`
//! row-major, then `Δc [N]`; its rows are evaluated with `V + ΔV` and `c + Δc`. Rows in no segment, and
//! segments without a delta, use the shared table.
//!
//! Solo equivalence: a row's logits and `dh` depend on that row, the head and its segment's delta alone;
//! a delta's gradient on the rows of its segment. Every gradient is a chain of one addition for each row,
//! in ascending order, that begins at what the buffer holds: rows cut into several calls give the same bits.
//!
//! Shape letters: `N` intents, `k` hidden units. Source: methods.md 2.1 and 2.2 (PITuning, Fig. a; DIN's
//! activation unit).

use crate::backend::{Backend, Buffer, Mat, MatMut};
use crate::error::{Error, Result, check_len};

mod chain;
pub mod cpu;
mod gpu;
mod gradient;
mod row;

/// How an intent meets the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Product {
    /// `v (.) h`, `d` numbers.
    #[default]
    Elementwise,
    /// `v hᵀ` flattened row-major, `d²` numbers: number `i · d + j` is `v_i · h_j`.
    Outer,
}

/// Sizes of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// `N >= 1`.
    pub intents: usize,
    /// `d >= 1`, width of history and embeddings.
    pub dim: usize,
    /// `k >= 1`, hidden units.
    pub hidden: usize,
    /// The product.
    pub product: Product,
}

/// Where a head's parameters begin in the flat buffer; its gradients begin at the same elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offsets {
    /// `V [N, d]`.
    pub table: usize,
    /// `W1 [k, d + p + d]`, `p` numbers of the product: columns for `v`, the product, `h`.
    pub w1: usize,
    /// `b1 [k]`.
    pub b1: usize,
    /// `slope [k]`.
    pub slope: usize,
    /// `w2 [k]`.
    pub w2: usize,
    /// `b2`, one number.
    pub b2: usize,
    /// `c [N]`, if the head has it.
    pub bias: Option<usize>,
}

/// The rows of one user in a pack, and where its delta and the delta's gradient lie in the slabs.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Segment {
    /// First row.
    pub row_start: u32,
    /// Number of rows; may be zero.
    pub rows: u32,
    /// First element of `ΔV [N, d]`, `Δc [N]` in the delta slab; [`Segment::NONE`] without a delta.
    pub delta_offset: u64,
    /// First element of their gradient in the gradient slab; [`Segment::NONE`] where none is wanted.
    /// It does not need a delta: the gradient at a delta of zero is the shared table's.
    pub delta_grad_offset: u64,
}

/// A head with the personal parts of a pack, as both directions read it.
#[derive(Debug)]
pub struct Head<'a, B: Backend + ?Sized> {
    /// Sizes.
    pub shape: Shape,
    /// Places in `params`.
    pub offsets: Offsets,
    /// The flat parameter buffer.
    pub params: &'a B::Buf<f32>,
    /// Segments, in row order, not overlapping.
    pub segments: &'a B::Buf<Segment>,
    /// Number of segments taken; zero is legal.
    pub num_segments: usize,
    /// The delta slab; may be empty where no segment has a delta.
    pub deltas: &'a B::Buf<f32>,
}

impl<B: Backend + ?Sized> Clone for Head<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend + ?Sized> Copy for Head<'_, B> {}

/// `A [t, N]` from `H [t, d]`.
#[derive(Debug)]
pub struct Forward<'a, B: Backend + ?Sized> {
    /// The head.
    pub head: Head<'a, B>,
    /// `H [t, d]`.
    pub h: Mat<'a, B::Buf<B::Act>>,
    /// `A [t, N]`, row-major, written `=`.
    pub logits: &'a mut B::Buf<f32>,
    /// Workspace; at least [`Intent::intent_workspace`] elements, whatever they hold.
    pub work: &'a mut B::Buf<f32>,
    /// `t`; zero is legal.
    pub rows: usize,
}

/// Gradients from `dA [t, N]`; `Z` is recomputed, nothing is kept from the forward.
#[derive(Debug)]
pub struct Backward<'a, B: Backend + ?Sized> {
    /// The head.
    pub head: Head<'a, B>,
    /// `H` of the forward.
    pub h: Mat<'a, B::Buf<B::Act>>,
    /// `dA [t, N]`, row-major.
    pub dlogits: &'a B::Buf<f32>,
    /// `dH [t, d]`, written `=`; `None` where nothing below is trained.
    pub dh: Option<MatMut<'a, B::Buf<B::Act>>>,
    /// Gradient of every parameter at the head's offsets, written `+=`; `None` for a frozen head.
    pub grads: Option<&'a mut B::Buf<f32>>,
    /// The slab of the deltas' gradients, written `+=` at [`Segment::delta_grad_offset`]; `None` where
    /// no delta is trained. Gradients of different segments do not overlap.
    pub delta_grads: Option<&'a mut B::Buf<f32>>,
    /// Workspace; at least [`Intent::intent_workspace`] elements, whatever they hold.
    pub work: &'a mut B::Buf<f32>,
    /// `t`; zero is legal.
    pub rows: usize,
}

/// The intention attention network's head.
pub trait Intent: Backend {
    /// Elements of workspace for `rows` rows in `segments` segments, of either direction.
    fn intent_workspace(&self, rows: usize, segments: usize, shape: Shape) -> usize;

    /// See [`Forward`].
    ///
    /// # Errors
    /// [`Error`] when lengths, offsets or segments are inconsistent.
    fn intent_forward(&self, args: Forward<'_, Self>) -> Result<()>;

    /// See [`Backward`].
    ///
    /// # Errors
    /// [`Error`] when lengths, offsets or segments are inconsistent, or gradients of deltas overlap.
    fn intent_backward(&self, args: Backward<'_, Self>) -> Result<()>;
}

impl Shape {
    /// Numbers of the product: `d` or `d²`.
    pub fn product_dim(&self) -> usize {
        match self.product {
            Product::Elementwise => self.dim,
            Product::Outer => self.dim.saturating_mul(self.dim),
        }
    }

    /// Columns of `W1`: `d + product_dim + d`.
    pub fn columns(&self) -> usize {
        self.dim.saturating_mul(2).saturating_add(self.product_dim())
    }

    /// Elements of a delta: `N · d + N`.
    pub fn delta_len(&self) -> usize {
        self.intents.saturating_mul(self.dim.saturating_add(1))
    }

    /// Elements of all parameters, with or without `c`.
    pub fn param_len(&self, bias: bool) -> usize {
        let table = self.intents.saturating_mul(self.dim);
        let hidden = self.hidden.saturating_mul(self.columns().saturating_add(3));
        let last = 1 + if bias { self.intents } else { 0 };
        table.saturating_add(hidden).saturating_add(last)
    }

    /// Checks that nothing is empty.
    fn check(&self, op: &'static str) -> Result<()> {
        let sizes = [("intents", self.intents), ("dim", self.dim), ("hidden", self.hidden)];
        match sizes.into_iter().find(|(_, size)| *size == 0) {
            Some((what, got)) => Err(Error::Shape { op, what, expected: 1, got }),
            None => Ok(()),
        }
    }
}

impl Offsets {
    /// Parameters one after another from `start` on, in the order of the fields:
    /// [`Shape::param_len`] elements.
    pub fn dense(shape: Shape, bias: bool, start: usize) -> Self {
        let table = start;
        let w1 = table.saturating_add(shape.intents.saturating_mul(shape.dim));
        let b1 = w1.saturating_add(shape.hidden.saturating_mul(shape.columns()));
        let slope = b1.saturating_add(shape.hidden);
        let w2 = slope.saturating_add(shape.hidden);
        let b2 = w2.saturating_add(shape.hidden);
        Self { table, w1, b1, slope, w2, b2, bias: bias.then(|| b2.saturating_add(1)) }
    }

    /// `(name, first element, elements)` of each parameter.
    pub fn parts(&self, shape: Shape) -> [(&'static str, usize, usize); 7] {
        let k = shape.hidden;
        let bias = self.bias.map_or((0, 0), |at| (at, shape.intents));
        [
            ("table", self.table, shape.intents.saturating_mul(shape.dim)),
            ("w1", self.w1, k.saturating_mul(shape.columns())),
            ("b1", self.b1, k),
            ("slope", self.slope, k),
            ("w2", self.w2, k),
            ("b2", self.b2, 1),
            ("bias", bias.0, bias.1),
        ]
    }

    /// Checks that every parameter fits in a buffer of `len` elements and that none overlap.
    fn check(&self, op: &'static str, shape: Shape, len: usize) -> Result<()> {
        let mut parts = self.parts(shape);
        for (what, start, size) in parts {
            check_len(op, what, start.saturating_add(size), len)?;
        }
        parts.sort_unstable_by_key(|part| (part.1, part.2));
        match parts.windows(2).find(|w| w[0].1 + w[0].2 > w[1].1) {
            Some(w) => {
                let what = format!("the parameters {} and {} overlap", w[0].0, w[1].0);
                Err(Error::Routing { op, what })
            }
            None => Ok(()),
        }
    }
}

impl Segment {
    /// No delta, or no gradient of it.
    pub const NONE: u64 = u64::MAX;

    /// Checks, on the host, that segments are in row order, do not overlap and fit in `rows` rows, and
    /// that each delta fits in a slab of `deltas` elements and its gradient in one of `delta_grads`
    /// (`None`: gradients are not looked at).
    ///
    /// # Errors
    /// [`Error::Routing`] naming the segment.
    pub fn check_all(
        segments: &[Self],
        rows: usize,
        shape: Shape,
        (deltas, delta_grads): (usize, Option<usize>),
    ) -> Result<()> {
        let size = shape.delta_len() as u64;
        let leaves = |at: u64, slab: usize| {
            at != Self::NONE && at.checked_add(size).is_none_or(|end| end > slab as u64)
        };
        let mut end = 0u64;
        for (index, s) in segments.iter().enumerate() {
            let wrong = if u64::from(s.row_start) < end {
                "it overlaps the one before"
            } else if u64::from(s.row_start) + u64::from(s.rows) > rows as u64 {
                "it leaves the pack"
            } else if leaves(s.delta_offset, deltas) {
                "its delta leaves the slab"
            } else if delta_grads.is_some_and(|slab| leaves(s.delta_grad_offset, slab)) {
                "its gradient leaves the slab"
            } else {
                end = u64::from(s.row_start) + u64::from(s.rows);
                continue;
            };
            return Err(Error::Routing { op: "intent", what: format!("segment {index}: {wrong}") });
        }
        Ok(())
    }
}

impl<B: Backend> Head<'_, B> {
    fn check(&self, op: &'static str) -> Result<()> {
        self.shape.check(op)?;
        self.offsets.check(op, self.shape, self.params.len())?;
        check_len(op, "segments", self.num_segments, self.segments.len())
    }
}

impl<B: Intent> Forward<'_, B> {
    /// Checks every length once; segments are the backend's to check.
    ///
    /// # Errors
    /// [`Error`] naming the argument.
    pub fn check(&self, workspace: usize) -> Result<()> {
        let (op, shape) = ("intent_forward", self.head.shape);
        self.head.check(op)?;
        check_len(op, "logits", self.rows.saturating_mul(shape.intents), self.logits.len())?;
        self.h.check(op, "h", self.rows, shape.dim)?;
        check_len(op, "work", workspace, self.work.len())
    }
}

impl<B: Intent> Backward<'_, B> {
    /// Checks every length once; segments are the backend's to check.
    ///
    /// # Errors
    /// [`Error`] naming the argument.
    pub fn check(&self, workspace: usize) -> Result<()> {
        let (op, shape) = ("intent_backward", self.head.shape);
        self.head.check(op)?;
        check_len(op, "dlogits", self.rows.saturating_mul(shape.intents), self.dlogits.len())?;
        self.h.check(op, "h", self.rows, shape.dim)?;
        if let Some(dh) = &self.dh {
            dh.check(op, "dh", self.rows, shape.dim)?;
        }
        if let Some(grads) = &self.grads {
            self.head.offsets.check(op, shape, grads.len())?;
        }
        check_len(op, "work", workspace, self.work.len())
    }
}
