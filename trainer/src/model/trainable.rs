//! A base that trains: the same blocks, their weights made anew from one flat vector after every step.

use super::Result;
use super::network::{Block, Dims, Network, NormWeights, Product, activation};
use super::places::{BlockPlaces, NormPlace, ProductPlace, TrunkPlaces};
use super::spec::BaseSpec;
use kernels::Ops;
use kernels::attention::Heads;
use kernels::linear::Shape;

impl<B: Ops> NormWeights<B> {
    fn zeros(backend: &B, dim: usize, eps: f32) -> Result<Self> {
        Ok(Self { weight: backend.alloc(dim)?, bias: Some(backend.alloc(dim)?), eps })
    }

    fn refresh(&mut self, backend: &B, params: &B::Buf<f32>, at: NormPlace) -> Result<()> {
        backend.refresh_vector(&mut self.weight, params, at.weight)?;
        match &mut self.bias {
            Some(bias) => Ok(backend.refresh_vector(bias, params, at.bias)?),
            None => Ok(()),
        }
    }
}

impl<B: Ops> Product<B> {
    /// A product of zeros with a bias.
    pub(super) fn zeros(backend: &B, shape: Shape) -> Result<Self> {
        let (weight, bias) = (backend.trainable(shape)?, Some(backend.alloc(shape.out_dim)?));
        Ok(Self { weight, bias })
    }

    /// Takes weight and bias from the flat vector.
    pub(super) fn refresh(
        &mut self,
        backend: &B,
        params: &B::Buf<f32>,
        at: ProductPlace,
    ) -> Result<()> {
        backend.refresh(&mut self.weight, params, at.weight)?;
        match &mut self.bias {
            Some(bias) => Ok(backend.refresh_vector(bias, params, at.bias)?),
            None => Ok(()),
        }
    }
}

impl<B: Ops> Block<B> {
    fn zeros(backend: &B, spec: &BaseSpec, layer: usize) -> Result<Self> {
        let (d, f, eps) = (spec.hidden, spec.intermediate, spec.norm_eps);
        let product = |in_dim, out_dim| Product::zeros(backend, Shape { in_dim, out_dim });
        Ok(Self {
            norm1: NormWeights::zeros(backend, d, eps)?,
            q: product(d, d)?,
            k: product(d, d)?,
            v: product(d, d)?,
            o: product(d, d)?,
            norm2: NormWeights::zeros(backend, d, eps)?,
            mlp_in: vec![product(d, f)?],
            down: product(f, d)?,
            layer,
        })
    }

    fn refresh(&mut self, backend: &B, params: &B::Buf<f32>, at: &BlockPlaces) -> Result<()> {
        self.norm1.refresh(backend, params, at.norm1)?;
        self.norm2.refresh(backend, params, at.norm2)?;
        let products = [
            (&mut self.q, at.q),
            (&mut self.k, at.k),
            (&mut self.v, at.v),
            (&mut self.o, at.o),
            (&mut self.down, at.proj),
        ];
        for (product, at) in products {
            product.refresh(backend, params, at)?;
        }
        self.mlp_in.iter_mut().try_for_each(|fc| fc.refresh(backend, params, at.fc))
    }
}

impl<B: Ops> Network<B> {
    /// GPT-2 blocks of zeros that [`Network::refresh`] fills, of which the lowest `frozen` do not train; the token tables
    /// of `spec` are the caller's, only the head's weight is there.
    pub(super) fn trainable(backend: B, spec: BaseSpec, frozen: usize) -> Result<Self> {
        let shape = Shape { in_dim: spec.hidden, out_dim: spec.vocab };
        #[expect(clippy::cast_precision_loss, reason = "a head width is far below 2^24")]
        let scale = 1.0 / (spec.head_dim as f32).sqrt();
        let blocks = (0..spec.layers).map(|layer| Block::zeros(&backend, &spec, layer));
        Ok(Self {
            blocks: blocks.collect::<Result<_>>()?,
            heads: Heads {
                heads: spec.heads,
                kv_heads: spec.kv_heads,
                head_dim: spec.head_dim,
                scale,
            },
            embedding: None,
            positions: None,
            rope: None,
            final_norm: NormWeights::zeros(&backend, spec.hidden, spec.norm_eps)?,
            head: backend.trainable(shape)?,
            max_positions: spec.max_positions,
            empty: backend.alloc(0)?,
            dims: Dims::new(&spec),
            kind: activation(&spec),
            frozen,
            spec,
            backend,
        })
    }

    /// Takes the blocks that do not train from their part of the flat vector.
    pub(super) fn refresh_frozen(&mut self, params: &B::Buf<f32>, at: &TrunkPlaces) -> Result<()> {
        for (block, at) in self.blocks.iter_mut().zip(&at.blocks).take(at.frozen) {
            block.refresh(&self.backend, params, at)?;
        }
        Ok(())
    }

    /// Takes the blocks that train and the final norm from theirs.
    pub(super) fn refresh(&mut self, params: &B::Buf<f32>, at: &TrunkPlaces) -> Result<()> {
        for (block, at) in self.blocks.iter_mut().zip(&at.blocks).skip(at.frozen) {
            block.refresh(&self.backend, params, at)?;
        }
        self.final_norm.refresh(&self.backend, params, at.norm)
    }
}
