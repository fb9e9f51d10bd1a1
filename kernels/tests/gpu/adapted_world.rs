//! Packs of several layouts on products of one input, for the tests of products with adapters.
//!
//! Owns [`World`]: products side by side in `Y`, users with and without adapters, windows anywhere. It runs both
//! directions on any backend; outputs begin as poison. Start at [`World::new`].

use crate::harness::{Subject, Window, rounded};
use crate::lora_pack::Draw;
use crate::naive::{Naive, download, numbers, upload};
use half::bf16;
use kernels::Error;
use kernels::adapted::{Adapted, Adapters, Backward, Forward, Part, Product};
use kernels::backend::{Mat, MatMut};
use kernels::linear::{self, HostStorage, Layout, Linear};
use kernels::lora::{Segment, Site, SiteOutput};
use std::ops::Range;
use std::sync::Arc;

impl Adapted for Naive {}

/// Elements between the adapters of a slab.
const GAP: usize = 3;

/// A user as `(layout, rows, lora_rank, dropout)`; rank zero for the base alone.
pub(crate) type User = (usize, usize, usize, f32);

/// The sites of a layout, each over neighbouring products `(first, how many)`.
pub(crate) type Over = [(usize, usize)];

/// Widths of the products, and what is added to them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape<'a> {
    pub(crate) d: usize,
    pub(crate) widths: &'a [usize],
    /// A bias on all products but the second.
    pub(crate) biased: bool,
    pub(crate) residual: bool,
}

/// One product, `[n, d]`.
#[derive(Debug, Clone)]
pub(crate) struct One {
    pub(crate) shape: linear::Shape,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    y_start: usize,
}

/// The adapters of one layout.
#[derive(Debug, Clone)]
pub(crate) struct OfLayout {
    pub(crate) sites: Vec<SiteOutput>,
    pub(crate) segments: Vec<Segment>,
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) x: Window,
    pub(crate) y: Window,
    pub(crate) products: Vec<One>,
    pub(crate) residual: Option<Vec<f32>>,
    pub(crate) parts: Vec<OfLayout>,
    pub(crate) users: Vec<User>,
    pub(crate) params: Vec<f32>,
    pub(crate) grads: Vec<f32>,
    pub(crate) row_token: Vec<u32>,
    pub(crate) values: Vec<f32>,
    pub(crate) dy: Vec<f32>,
}

/// The sites of a layout in `Y`, and its units.
fn sites(layout: &Over, products: &[One]) -> (Vec<SiteOutput>, usize) {
    let mut unit_offset = 0;
    let mut sites = Vec::new();
    for &(first, count) in layout {
        let covered = &products[first..first + count];
        let (in_dim, out_dim) =
            (covered[0].shape.in_dim, covered.iter().map(|p| p.shape.out_dim).sum());
        let site = Site { in_dim, out_dim, unit_offset, id: 40 + first as u32 };
        let y_start = covered[0].y_start;
        sites.push(SiteOutput { site, out_begin: 0, out_len: out_dim, y_start });
        unit_offset += in_dim + out_dim;
    }
    (sites, unit_offset)
}

impl World {
    pub(crate) fn new(
        draw: Draw,
        shape: Shape<'_>,
        (place, layouts): ((usize, usize), &[&Over]),
        users: &[User],
    ) -> Self {
        let some = |seed: u64, len: usize| -> Vec<f32> {
            let drawn = numbers(seed + shape.d as u64, len).into_iter();
            match draw {
                // No negative zeros: which of the two a sum of zeros is depends on its order.
                Draw::Whole => drawn.map(|v| (v * 1.5).round() + 0.0).collect(),
                Draw::Real => rounded(&drawn.collect::<Vec<_>>()),
            }
        };
        let (mut products, mut y_start) = (Vec::new(), place.0);
        for (i, &n) in shape.widths.iter().enumerate() {
            products.push(One {
                shape: linear::Shape { in_dim: shape.d, out_dim: n },
                weight: some(10 + i as u64, n * shape.d),
                bias: (shape.biased && i != 1).then(|| some(20 + i as u64, n)),
                y_start,
            });
            y_start += n;
        }
        let laid: Vec<_> = layouts.iter().map(|layout| sites(layout, &products)).collect();
        let mut parts: Vec<_> = laid
            .iter()
            .map(|(sites, _)| OfLayout { sites: sites.clone(), segments: vec![] })
            .collect();
        let (mut rows, mut slab) = (0, GAP);
        for (i, &(layout, count, r, dropout)) in users.iter().enumerate() {
            if r > 0 {
                parts[layout].segments.push(Segment {
                    row_start: rows as u32,
                    rows: count as u32,
                    param_offset: slab as u64,
                    grad_offset: slab as u64,
                    lora_rank: r as u32,
                    scale: if draw == Draw::Whole { 0.5 } else { 2.0 / r as f32 },
                    dropout,
                    step: 3 + i as u32,
                    key: [17, i as u32],
                });
                slab += r * laid[layout].1 + GAP;
            }
            rows += count;
        }
        let width = shape.widths.iter().sum();
        Self {
            x: Window::new(rows, shape.d, place),
            y: Window::new(rows, width, place),
            residual: shape.residual.then(|| some(1, rows * width)),
            users: users.to_vec(),
            params: some(2, slab),
            grads: some(3, slab),
            row_token: users.iter().flat_map(|u| (0..u.1 as u32).map(|t| 2 * t + 1)).collect(),
            values: some(4, rows * shape.d),
            dy: some(5, rows * width),
            products,
            parts,
        }
    }

    /// Calls `body` with the products and adapters on a backend.
    fn with<B: Adapted + Subject, T>(
        &self,
        b: &B,
        body: impl FnOnce(&[Product<'_, B>], Adapters<'_, B>) -> T,
    ) -> T {
        let weights: Vec<_> = self.products.iter().map(|p| p.weight(b)).collect();
        let biases: Vec<_> =
            self.products.iter().map(|p| p.bias.as_ref().map(|v| upload(b, v))).collect();
        let products: Vec<_> = self
            .products
            .iter()
            .zip(weights.iter().zip(&biases))
            .map(|(p, (weight, bias))| Product { weight, bias: bias.as_ref(), y_start: p.y_start })
            .collect();
        let segments: Vec<_> = self.parts.iter().map(|p| upload(b, &p.segments)).collect();
        let parts: Vec<_> = self
            .parts
            .iter()
            .zip(&segments)
            .map(|(p, segments)| Part { sites: &p.sites, segments, num_segments: p.segments.len() })
            .collect();
        let (row_token, params) = (upload(b, &self.row_token), upload(b, &self.params));
        body(&products, Adapters { parts: &parts, row_token: &row_token, params: &params })
    }

    fn y_of<B: Adapted + Subject>(&self, b: &B) -> Result<B::Buf<B::Act>, Error> {
        let x = self.x.input(b, &self.values);
        let residual = self.residual.as_ref().map(|v| self.y.input(b, v));
        let mut y = self.y.output(b);
        self.with(b, |products, adapters| {
            b.adapted_forward(Forward {
                x: self.x.mat(&x),
                products,
                residual: residual.as_ref().map(|r| self.y.mat(r)),
                y: MatMut { buf: &mut y, start: 0, stride: self.y.stride },
                adapters,
                rows: self.x.rows,
            })
        })?;
        Ok(y)
    }

    /// `Y`.
    pub(crate) fn forward<B: Adapted + Subject>(&self, b: &B) -> Result<Vec<f32>, Error> {
        let y = self.y_of(b)?;
        b.read(&y, 0, &mut [])?;
        Ok(self.y.result(b, &y))
    }

    /// `Y` of a call whose refusal is passed over.
    pub(crate) fn forward_unread<B: Adapted + Subject>(&self, b: &B) -> Vec<f32> {
        let y = self.y_of(b).unwrap();
        assert!(b.read(&y, 0, &mut []).is_err(), "nothing was refused");
        self.y.result(b, &y)
    }

    /// `dX` and the gradient slab.
    pub(crate) fn backward<B: Adapted + Subject>(
        &self,
        b: &B,
    ) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let mut dx = self.x.output(b);
        let grads = self.back(b, Some(self.x.mat_mut(&mut dx)))?;
        Ok((self.x.result(b, &dx), grads))
    }

    /// The gradient slab, without `dX`.
    pub(crate) fn gradients<B: Adapted + Subject>(&self, b: &B) -> Result<Vec<f32>, Error> {
        self.back(b, None)
    }

    fn back<B: Adapted + Subject>(
        &self,
        b: &B,
        dx: Option<MatMut<'_, B::Buf<B::Act>>>,
    ) -> Result<Vec<f32>, Error> {
        let (x, dy) = (self.x.input(b, &self.values), self.y.input(b, &self.dy));
        let mut grads = upload(b, &self.grads);
        self.with(b, |products, adapters| {
            b.adapted_backward(Backward {
                x: self.x.mat(&x),
                products,
                dy: Mat { buf: &dy, start: 0, stride: self.y.stride },
                adapters,
                grads: &mut grads,
                dx,
                rows: self.x.rows,
            })
        })?;
        b.read(&grads, 0, &mut [])?;
        Ok(download(b, &grads))
    }

    /// `Y` by the reference, with the roundings of adapters that come first.
    pub(crate) fn exact_forward(&self) -> Vec<f32> {
        let round = |v: f32| bf16::from_f32(v).to_f32();
        let before = self.without_products().forward(&Naive).unwrap();
        let products = self.without_adapters().forward(&Naive).unwrap();
        before.iter().zip(products).map(|(b, p)| round(round(*b) + p)).collect()
    }

    /// With weights of zero: what comes before the products.
    pub(crate) fn without_products(&self) -> Self {
        let mut world = self.clone();
        world.products.iter_mut().for_each(|p| p.weight.fill(0.0));
        world
    }

    /// The products alone, without biases and residual.
    pub(crate) fn without_adapters(&self) -> Self {
        Self { parts: Vec::new(), residual: None, ..self.clone() }.without_biases()
    }

    pub(crate) fn without_biases(&self) -> Self {
        let mut world = self.clone();
        world.products.iter_mut().for_each(|p| p.bias = None);
        world
    }

    /// One product alone, in its columns.
    pub(crate) fn of_product(&self, i: usize) -> Self {
        Self { products: vec![self.products[i].clone()], ..self.clone() }
    }

    pub(crate) fn layouts_turned(&self) -> Self {
        Self { parts: self.parts.iter().rev().cloned().collect(), ..self.clone() }
    }

    /// The absolute values: results are the sums of the sizes of the terms.
    pub(crate) fn sizes(&self) -> Self {
        let abs = |v: &[f32]| -> Vec<f32> { v.iter().map(|v| v.abs()).collect() };
        let product =
            |p: &One| One { weight: abs(&p.weight), bias: p.bias.as_deref().map(abs), ..p.clone() };
        Self {
            products: self.products.iter().map(product).collect(),
            residual: self.residual.as_deref().map(abs),
            params: abs(&self.params),
            grads: vec![0.0; self.grads.len()],
            values: abs(&self.values),
            dy: abs(&self.dy),
            ..self.clone()
        }
    }

    /// Additions on the longest way through adapters.
    pub(crate) fn chain(&self) -> f64 {
        (self.x.width + self.y.width + 64 + 16) as f64
    }

    /// The rows of user `i`.
    pub(crate) fn rows_of(&self, i: usize) -> Range<usize> {
        let start: usize = self.users[..i].iter().map(|u| u.1).sum();
        start..start + self.users[i].1
    }

    /// User `i` with its own rows only.
    pub(crate) fn alone(&self, i: usize) -> Self {
        let rows = self.rows_of(i);
        let cut = |v: &[f32], width: usize| v[rows.start * width..rows.end * width].to_vec();
        let own = |part: &OfLayout| {
            let own = part.segments.iter().filter(|s| s.key[1] == i as u32);
            let segments = own.map(|s| Segment { row_start: 0, ..*s }).collect();
            OfLayout { segments, ..part.clone() }
        };
        Self {
            x: Window { rows: rows.len(), ..self.x },
            y: Window { rows: rows.len(), ..self.y },
            parts: self.parts.iter().map(own).collect(),
            users: vec![self.users[i]],
            residual: self.residual.as_ref().map(|v| cut(v, self.y.width)),
            row_token: self.row_token[rows.clone()].to_vec(),
            values: cut(&self.values, self.x.width),
            dy: cut(&self.dy, self.y.width),
            ..self.clone()
        }
    }
}

impl One {
    fn weight<B: Linear>(&self, b: &B) -> B::Weight {
        let mut prepared = vec![f32::NAN; b.prepared_len(self.shape)];
        b.prepare(self.shape, Layout::OutIn, &self.weight, &mut prepared).unwrap();
        let storage: HostStorage = Arc::new(prepared);
        b.weight(self.shape, &storage, 0).unwrap()
    }
}
