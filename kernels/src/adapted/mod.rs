//! A frozen product and the adapters on it as one operation: `Y = X·W + b + residual + adapters(X)`, and its backward.
//!
//! Owns which of the two comes first. Products that share their input (queries, keys and values; the inputs of the MLP)
//! go together, since their adapters do; adapters of several layouts (lists of sites) may lie in one pack. The order
//! that [`Adapted`] gives is product, then adapters, layout by layout: that is the CPU's, bit for bit. A GPU turns it
//! round (`gpu.rs`): what is written before the product is read by the product beside its arithmetic.
//!
//! Solo equivalence: a row's result depends on the row, the products and the row's own layout, neither on the other
//! layouts of the pack nor on their order.

use crate::backend::{Backend, Mat, MatMut};
use crate::error::{Error, Result};
use crate::linear::{self, Linear};
use crate::lora::{self, Lora, Segment, SiteOutput};

mod gpu;

/// A frozen product whose outputs lie in a range of the columns of `Y`.
#[derive(Debug)]
pub struct Product<'a, B: Linear + ?Sized> {
    /// `W`.
    pub weight: &'a B::Weight,
    /// `b [n]`; the backward has no use for it.
    pub bias: Option<&'a B::Buf<f32>>,
    /// Element of `Y` (and `dY`) of row 0, first output, as [`SiteOutput::y_start`].
    pub y_start: usize,
}

/// The adapters of one layout.
#[derive(Debug)]
pub struct Part<'a, B: Backend + ?Sized> {
    /// Their sites, each over the outputs of one whole product or of several neighbouring ones; may be none.
    pub sites: &'a [SiteOutput],
    /// Their segments, which no other layout's overlap.
    pub segments: &'a B::Buf<Segment>,
    /// Number of segments taken.
    pub num_segments: usize,
}

/// The adapters of a pack.
#[derive(Debug)]
pub struct Adapters<'a, B: Backend + ?Sized> {
    /// By layout; rows of none are the base's alone.
    pub parts: &'a [Part<'a, B>],
    /// For each row of `X` its token number within its segment's user: the dropout counter.
    pub row_token: &'a B::Buf<u32>,
    /// The parameter slab.
    pub params: &'a B::Buf<f32>,
}

/// `Y = X·W + b + residual + scale · drop(X)·Aᵀ·Bᵀ`, each product in its columns, each adapter in its rows.
#[derive(Debug)]
pub struct Forward<'a, B: Linear + ?Sized> {
    /// `X [t, d]`.
    pub x: Mat<'a, B::Buf<B::Act>>,
    /// The products, all of input width `d`; their ranges of `Y` do not overlap.
    pub products: &'a [Product<'a, B>],
    /// Added to the product, which then is the only one.
    pub residual: Option<Mat<'a, B::Buf<B::Act>>>,
    /// `Y`, written `=` in the columns of the products; only `start` 0 is used, see [`Product::y_start`].
    pub y: MatMut<'a, B::Buf<B::Act>>,
    /// The adapters.
    pub adapters: Adapters<'a, B>,
    /// `t`; zero is legal.
    pub rows: usize,
}

/// `dX = Σ dY·Wᵀ + undrop(dS·A)` and the adapters' gradients, as [`lora::Backward`].
#[derive(Debug)]
pub struct Backward<'a, B: Linear + ?Sized> {
    /// `X [t, d]` of the forward; not read where there are no adapters.
    pub x: Mat<'a, B::Buf<B::Act>>,
    /// The products of the forward.
    pub products: &'a [Product<'a, B>],
    /// `dY`, laid out as `Y` of the forward; only `start` 0 is used.
    pub dy: Mat<'a, B::Buf<B::Act>>,
    /// The adapters of the forward.
    pub adapters: Adapters<'a, B>,
    /// The gradient slab, written `+=`; gradients of different segments do not overlap.
    pub grads: &'a mut B::Buf<f32>,
    /// `dX [t, d]`, written `=`; `None` where nothing below needs it, and no product is formed.
    pub dx: Option<MatMut<'a, B::Buf<B::Act>>>,
    /// `t`; zero is legal.
    pub rows: usize,
}

/// Frozen products with adapters.
pub trait Adapted: Linear + Lora {
    /// See [`Forward`]. Order: the products, then the adapters layout by layout, each added to what is there; a
    /// backend with another order says so.
    ///
    /// # Errors
    /// [`Error`] when shapes or segments are inconsistent, or a residual meets several products.
    fn adapted_forward(&self, mut args: Forward<'_, Self>) -> Result<()> {
        args.check()?;
        for product in args.products {
            self.linear_forward(args.linear(product))?;
        }
        for part in args.adapters.parts {
            self.lora_forward(args.lora(part))?;
        }
        Ok(())
    }

    /// See [`Backward`]. Order: the products, then the adapters layout by layout, each added to what is there; a
    /// backend with another order says so.
    ///
    /// # Errors
    /// [`Error`] when shapes or segments are inconsistent.
    fn adapted_backward(&self, mut args: Backward<'_, Self>) -> Result<()> {
        args.products_back(self, false)?;
        for part in args.adapters.parts {
            self.lora_backward(args.lora(part))?;
        }
        Ok(())
    }
}

impl<'a, B: Linear + Lora + ?Sized> Forward<'a, B> {
    /// Checks what the calls that it is made of cannot see.
    fn check(&self) -> Result<()> {
        if self.residual.is_some() && self.products.len() > 1 {
            let what = format!("a residual of {} products", self.products.len());
            return Err(Error::Routing { op: "adapted_forward", what });
        }
        Ok(())
    }

    /// One product alone.
    fn linear(&mut self, product: &Product<'a, B>) -> linear::Forward<'_, B> {
        linear::Forward {
            x: self.x,
            weight: product.weight,
            bias: product.bias,
            residual: self.residual,
            y: MatMut { buf: &mut *self.y.buf, start: product.y_start, stride: self.y.stride },
            rows: self.rows,
        }
    }

    /// One layout's adapters alone.
    fn lora(&mut self, part: &Part<'a, B>) -> lora::Forward<'_, B> {
        lora::Forward {
            x: self.x,
            sites: part.sites,
            segments: part.segments,
            num_segments: part.num_segments,
            row_token: self.adapters.row_token,
            params: self.adapters.params,
            y: MatMut { buf: &mut *self.y.buf, start: 0, stride: self.y.stride },
            rows: self.rows,
        }
    }
}

impl<'a, B: Linear + Lora + ?Sized> Backward<'a, B> {
    /// `dX (=|+=) Σ dY·Wᵀ` over the products, in their order.
    fn products_back(&mut self, backend: &B, accumulate: bool) -> Result<()> {
        let Some(dx) = &mut self.dx else { return Ok(()) };
        for (i, product) in self.products.iter().enumerate() {
            backend.linear_backward(linear::Backward {
                dy: Mat { buf: self.dy.buf, start: product.y_start, stride: self.dy.stride },
                weight: product.weight,
                dx: MatMut { buf: &mut *dx.buf, ..*dx },
                accumulate: accumulate || i > 0,
                rows: self.rows,
            })?;
        }
        Ok(())
    }

    /// One layout's adapters alone.
    fn lora(&mut self, part: &Part<'a, B>) -> lora::Backward<'_, B> {
        lora::Backward {
            x: self.x,
            sites: part.sites,
            segments: part.segments,
            num_segments: part.num_segments,
            row_token: self.adapters.row_token,
            params: self.adapters.params,
            dy: Mat { buf: self.dy.buf, start: 0, stride: self.dy.stride },
            grads: &mut *self.grads,
            dx: self.dx.as_mut().map(|dx| MatMut { buf: &mut *dx.buf, ..*dx }),
            rows: self.rows,
        }
    }
}

impl Adapted for crate::Cpu {}
