//! The few calls every block is made of: frozen product, norm, adapter, each forward and backward.

use super::Result;
use super::batch::{DeviceBatch, DeviceLane};
use super::network::{Network, NormWeights, Product};
use kernels::lora::SiteOutput;
use kernels::{Mat, MatMut, Ops, linear, lora, norm, rope};

/// A buffer of activations.
pub(super) type Acts<B> = <B as kernels::Backend>::Buf<<B as kernels::Backend>::Act>;
/// A read-only window of activations.
pub(super) type In<'a, B> = Mat<'a, Acts<B>>;
/// A writable window of activations.
pub(super) type Out<'a, B> = MatMut<'a, Acts<B>>;

/// What a pass over one batch reads.
#[derive(Debug)]
pub(super) struct Pass<'a, B: Ops> {
    pub(super) net: &'a Network<B>,
    pub(super) batch: &'a DeviceBatch<B>,
    /// The adapters' slab.
    pub(super) params: &'a B::Buf<f32>,
}

impl<B: Ops> Pass<'_, B> {
    pub(super) fn product(
        &self,
        rows: usize,
        x: In<'_, B>,
        w: &Product<B>,
        residual: Option<In<'_, B>>,
        y: Out<'_, B>,
    ) -> Result<()> {
        let (weight, bias) = (&w.weight, w.bias.as_ref());
        Ok(self.net.backend.linear_forward(linear::Forward {
            x,
            weight,
            bias,
            residual,
            y,
            rows,
        })?)
    }

    pub(super) fn product_back(
        &self,
        rows: usize,
        dy: In<'_, B>,
        w: &Product<B>,
        dx: Out<'_, B>,
        accumulate: bool,
    ) -> Result<()> {
        let weight = &w.weight;
        Ok(self.net.backend.linear_backward(linear::Backward {
            dy,
            weight,
            dx,
            accumulate,
            rows,
        })?)
    }

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

    /// `y += adapters(x)` for the sites given; nothing when there are none.
    pub(super) fn adapt(
        &self,
        lane: &DeviceLane<B>,
        x: In<'_, B>,
        sites: &[SiteOutput],
        y: Out<'_, B>,
    ) -> Result<()> {
        if sites.is_empty() || lane.num_segments == 0 {
            return Ok(());
        }
        let (segments, row_token) = (&lane.segments, &lane.row_token);
        let (num_segments, rows, params) = (lane.num_segments, lane.rows, self.params);
        let args = lora::Forward { x, sites, segments, num_segments, row_token, params, y, rows };
        Ok(self.net.backend.lora_forward(args)?)
    }

    /// `grads += ...`, `dx += ...` for the sites given; nothing when there are none.
    pub(super) fn adapt_back(
        &self,
        lane: &DeviceLane<B>,
        sites: &[SiteOutput],
        (x, dy): (In<'_, B>, In<'_, B>),
        grads: &mut B::Buf<f32>,
        dx: Option<Out<'_, B>>,
    ) -> Result<()> {
        if sites.is_empty() || lane.num_segments == 0 {
            return Ok(());
        }
        let (segments, row_token) = (&lane.segments, &lane.row_token);
        let (num_segments, rows, params) = (lane.num_segments, lane.rows, self.params);
        let args = lora::Backward {
            x,
            sites,
            segments,
            num_segments,
            row_token,
            params,
            dy,
            grads,
            dx,
            rows,
        };
        Ok(self.net.backend.lora_backward(args)?)
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
