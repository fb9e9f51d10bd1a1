//! The few calls every block is made of: frozen products with their adapters, norm, rotation, forward and backward.

use super::batch::{Batch, DeviceBatch, DeviceLane, Segments};
use super::network::{Block, Network, NormWeights, Product};
use super::places::{BlockPlaces, NormPlace, ProductPlace, TrunkPlaces};
use super::sites::{Layout, Part, Pick};
use super::{Error, Result};
use kernels::lora::SiteOutput;
use kernels::{Backend, Mat, MatMut, Ops, adapted, linear, norm, rope};

/// A buffer of activations.
pub(super) type Acts<B> = <B as kernels::Backend>::Buf<<B as kernels::Backend>::Act>;
/// A read-only window of activations.
pub(super) type In<'a, B> = Mat<'a, Acts<B>>;
/// A writable window of activations.
pub(super) type Out<'a, B> = MatMut<'a, Acts<B>>;

/// The adapters that a batch's segments belong to.
#[derive(Debug)]
pub struct Adapters<'a, B: Backend> {
    /// The layouts, as the batch numbers them.
    pub layouts: &'a [Layout],
    /// The slab of parameters.
    pub params: &'a B::Buf<f32>,
}

impl<B: Backend> Clone for Adapters<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend> Copy for Adapters<'_, B> {}

impl<B: Backend> Adapters<'_, B> {
    /// Checks that every segment is of a layout that is here; one that is not would be left out silently.
    ///
    /// # Errors
    /// [`Error::Batch`].
    pub(super) fn check(&self, batch: &Batch) -> Result<()> {
        let known = self.layouts.len();
        for lane in [&batch.full, &batch.outputs] {
            if lane.segments.iter().skip(known).any(|segments| !segments.is_empty()) {
                let what = format!("a segment of a layout beyond the {known} given");
                return Err(Error::Batch { what });
            }
        }
        Ok(())
    }
}

/// What a pass over one batch reads.
#[derive(Debug)]
pub(super) struct Pass<'a, B: Ops> {
    pub(super) net: &'a Network<B>,
    pub(super) batch: &'a DeviceBatch<B>,
    pub(super) adapters: Adapters<'a, B>,
    /// Where the gradients of the blocks' own parameters go, when these train; `None` for a frozen base.
    pub(super) whole: Option<&'a TrunkPlaces>,
}

impl<B: Ops> Pass<'_, B> {
    pub(super) fn norm(
        &self,
        rows: usize,
        norm: &NormWeights<B>,
        x: In<'_, B>,
        y: Out<'_, B>,
    ) -> Result<()> {
        let (params, dim) = (norm.params(), self.net.dims.hidden);
        Ok(self.net.backend.norm_forward(norm::Forward { params, x, y, rows, dim })?)
    }

    pub(super) fn norm_back(
        &self,
        rows: usize,
        norm: &NormWeights<B>,
        x: In<'_, B>,
        dy: In<'_, B>,
        dx: Out<'_, B>,
    ) -> Result<()> {
        let (params, dim) = (norm.params(), self.net.dims.hidden);
        Ok(self.net.backend.norm_backward(norm::Backward { params, x, dy, dx, rows, dim })?)
    }

    /// The segments of each layout with the sites they have in a block; layouts without either are left out.
    fn groups<'b>(
        &'b self,
        lane: &'b DeviceLane<B>,
        (block, pick): (&Block<B>, Pick),
    ) -> impl Iterator<Item = (&'b [SiteOutput], &'b Segments<B>)> {
        let layer = block.layer;
        self.adapters
            .layouts
            .iter()
            .zip(&lane.segments)
            .map(move |(layout, segments)| (layout.sites(layer, pick), segments))
            .filter(|(sites, segments)| !sites.is_empty() && segments.num > 0)
    }

    /// The lowest place that trains: no gradient is formed below it. One block more than there are, where only what is
    /// above the blocks trains.
    pub(super) fn lowest(&self) -> Option<(usize, Part)> {
        if let Some(places) = self.whole {
            return Some((places.frozen, Part::Qkv));
        }
        let layouts = self.adapters.layouts.iter().zip(&self.batch.full.segments);
        layouts.filter(|(_, s)| s.num > 0).filter_map(|(layout, _)| layout.lowest).min()
    }

    /// Whether the product itself trains, or any segment of the lane has one of these sites.
    pub(super) fn trains(&self, lane: &DeviceLane<B>, block: &Block<B>, pick: Pick) -> bool {
        self.whole.is_some() || self.groups(lane, (block, pick)).next().is_some()
    }

    /// The adapters of a lane at a block's sites, by layout.
    fn parts<'b>(
        &'b self,
        lane: &'b DeviceLane<B>,
        at: (&Block<B>, Pick),
    ) -> Vec<adapted::Part<'b, B>> {
        self.groups(lane, at)
            .map(|(sites, Segments { buf: segments, num })| adapted::Part {
                sites,
                segments,
                num_segments: *num,
            })
            .collect()
    }

    /// `y = x·W + b + residual + adapters(x)`: products of one input, each in its columns of `y`, and a block's sites on
    /// them. A row is of one segment, so it does not depend on the layouts beside its own.
    pub(super) fn adapted(
        &self,
        lane: &DeviceLane<B>,
        at: (&Block<B>, Pick),
        (x, products): (In<'_, B>, &[adapted::Product<'_, B>]),
        residual: Option<In<'_, B>>,
        y: Out<'_, B>,
    ) -> Result<()> {
        let (row_token, rows, params) = (&lane.row_token, lane.rows, self.adapters.params);
        let parts = &self.parts(lane, at);
        let adapters = adapted::Adapters { parts, row_token, params };
        let args = adapted::Forward { x, products, residual, y, adapters, rows };
        Ok(self.net.backend.adapted_forward(args)?)
    }

    /// `dx = Σ dy·Wᵀ + ...` of the products of one input, and `grads += ...` at a block's sites on them.
    pub(super) fn adapted_back(
        &self,
        lane: &DeviceLane<B>,
        at: (&Block<B>, Pick),
        products: &[adapted::Product<'_, B>],
        (x, dy): (In<'_, B>, In<'_, B>),
        (grads, dx): (&mut B::Buf<f32>, Option<Out<'_, B>>),
    ) -> Result<()> {
        let (row_token, rows, params) = (&lane.row_token, lane.rows, self.adapters.params);
        let parts = &self.parts(lane, at);
        let adapters = adapted::Adapters { parts, row_token, params };
        let args = adapted::Backward { x, products, dy, adapters, grads, dx, rows };
        Ok(self.net.backend.adapted_backward(args)?)
    }

    /// `dW += dYᵀ·X`, `db += Σ dY` of one of a block's products where the base itself trains.
    pub(super) fn learn(
        &self,
        rows: usize,
        (block, pick): (&Block<B>, fn(&BlockPlaces) -> ProductPlace),
        xdy: (In<'_, B>, In<'_, B>),
        grads: &mut B::Buf<f32>,
    ) -> Result<()> {
        let Some(places) = self.whole else { return Ok(()) };
        product_gradient(&self.net.backend, rows, pick(&places.blocks[block.layer]), xdy, grads)
    }

    /// Weight and bias gradient of a norm where the base itself trains, `+=`.
    pub(super) fn learn_norm(
        &self,
        rows: usize,
        (norm, pick): (&NormWeights<B>, impl Fn(&TrunkPlaces) -> NormPlace),
        (x, dy): (In<'_, B>, In<'_, B>),
        grads: &mut B::Buf<f32>,
    ) -> Result<()> {
        let Some(places) = self.whole else { return Ok(()) };
        let at = pick(places);
        Ok(self.net.backend.norm_param_gradient(norm::ParamGradient {
            centred: norm.bias.is_some(),
            eps: norm.eps,
            x,
            dy,
            rows,
            dim: self.net.dims.hidden,
            grads,
            weight_offset: at.weight,
            bias_offset: Some(at.bias),
        })?)
    }

    /// Rotates `heads` heads in place; nothing for a base with learned positions.
    pub(super) fn rotate(
        &self,
        lane: &DeviceLane<B>,
        x: Out<'_, B>,
        heads: usize,
        inverse: bool,
    ) -> Result<()> {
        let Some(table) = &self.net.rope else { return Ok(()) };
        let (positions, head_dim, rows) = (&lane.positions, self.net.heads.head_dim, lane.rows);
        Ok(self.net.backend.rope(rope::Rotate {
            x,
            positions,
            table,
            heads,
            head_dim,
            inverse,
            rows,
        })?)
    }
}

/// A product whose outputs begin at a column of their buffer.
pub(super) fn placed<B: Ops>(w: &Product<B>, y_start: usize) -> adapted::Product<'_, B> {
    adapted::Product { weight: &w.weight, bias: w.bias.as_ref(), y_start }
}

/// `dW += dYᵀ·X`, `db += Σ dY` at a product's place.
pub(super) fn product_gradient<B: Ops>(
    backend: &B,
    rows: usize,
    at: ProductPlace,
    (x, dy): (In<'_, B>, In<'_, B>),
    grads: &mut B::Buf<f32>,
) -> Result<()> {
    Ok(backend.linear_weight_gradient(linear::WeightGradient {
        x,
        dy,
        rows,
        shape: at.shape,
        grads,
        weight_offset: at.weight,
        bias_offset: Some(at.bias),
    })?)
}
