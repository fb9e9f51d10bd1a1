//! The frozen base on a backend: weights of every block, norms, tables, and the adapted sites.

use super::cache::MappedBase;
use super::sites::{BlockSites, LayerSites, Part, lowest};
use super::spec::{BaseSpec, Norm};
use super::{Error, Result};
use kernels::activation::Kind;
use kernels::attention::Heads;
use kernels::linear::Linear;
use kernels::{Backend, Ops, norm};

/// A frozen product with its bias.
#[derive(Debug)]
pub(super) struct Product<B: Linear> {
    pub(super) weight: B::Weight,
    pub(super) bias: Option<B::Buf<f32>>,
}

/// A frozen norm.
#[derive(Debug)]
pub(super) struct NormWeights<B: Backend> {
    weight: B::Buf<f32>,
    bias: Option<B::Buf<f32>>,
    eps: f32,
}

impl<B: Backend> NormWeights<B> {
    pub(super) fn params(&self) -> norm::Params<'_, B> {
        norm::Params { weight: &self.weight, bias: self.bias.as_ref(), eps: self.eps }
    }
}

/// One block's frozen weights.
#[derive(Debug)]
pub(super) struct Block<B: Linear> {
    pub(super) norm1: NormWeights<B>,
    pub(super) q: Product<B>,
    pub(super) k: Product<B>,
    pub(super) v: Product<B>,
    pub(super) o: Product<B>,
    pub(super) norm2: NormWeights<B>,
    /// `gate, up` side by side, or GPT-2's `fc` alone.
    pub(super) mlp_in: Vec<Product<B>>,
    pub(super) down: Product<B>,
    pub(super) sites: BlockSites,
}

/// Widths a step needs again and again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dims {
    pub(super) hidden: usize,
    pub(super) q: usize,
    pub(super) kv: usize,
    pub(super) qkv: usize,
    pub(super) mlp: usize,
    pub(super) mlp_in: usize,
    pub(super) vocab: usize,
}

impl Dims {
    pub(super) fn new(spec: &BaseSpec) -> Self {
        let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        Self {
            hidden: spec.hidden,
            q,
            kv,
            qkv: q + 2 * kv,
            mlp: spec.intermediate,
            mlp_in: activation(spec).in_dim(spec.intermediate),
            vocab: spec.vocab,
        }
    }
}

/// The activation of a base's MLP.
pub(super) fn activation(spec: &BaseSpec) -> Kind {
    match spec.norm {
        Norm::Rms => Kind::SwiGlu,
        Norm::Layer => Kind::GeluNew,
    }
}

/// The frozen base.
#[derive(Debug)]
pub struct Network<B: Ops> {
    pub(super) backend: B,
    pub(super) spec: BaseSpec,
    pub(super) dims: Dims,
    pub(super) heads: Heads,
    pub(super) kind: Kind,
    /// Separate embedding table where the head is not tied.
    pub(super) embedding: Option<B::Weight>,
    pub(super) positions: Option<B::Buf<f32>>,
    pub(super) rope: Option<B::Buf<f32>>,
    pub(super) blocks: Vec<Block<B>>,
    pub(super) final_norm: NormWeights<B>,
    pub(super) head: B::Weight,
    pub(super) lowest: Option<(usize, Part)>,
    max_positions: usize,
    empty: B::Buf<f32>,
}

impl<B: Ops> Network<B> {
    /// Takes the weights of `base` to the backend, with positions up to `max_positions`.
    ///
    /// # Errors
    /// When a weight is missing, or more positions are asked for than the base has.
    pub fn new(backend: B, base: &MappedBase, sites: &[LayerSites], max_positions: usize) -> Result<Self> {
        let spec = base.spec().clone();
        if max_positions > spec.max_positions {
            let what = format!("{max_positions} positions asked for, the base has {}", spec.max_positions);
            return Err(Error::Batch { what });
        }
        let load = Loader { backend: &backend, base, spec: &spec };
        let blocks = (0..spec.layers)
            .map(|l| load.block(l, BlockSites::new(&spec, &sites.get(l).copied().unwrap_or_default())))
            .collect::<Result<Vec<_>>>()?;
        let rope = match spec.rope_frequencies() {
            Some(frequencies) => {
                let table = kernels::rope::table(&frequencies, max_positions);
                let mut buf = backend.alloc(table.len())?;
                backend.write(&mut buf, 0, &table)?;
                Some(buf)
            }
            None => None,
        };
        #[expect(clippy::cast_precision_loss, reason = "a head width is far below 2^24")]
        let scale = 1.0 / (spec.head_dim as f32).sqrt();
        let heads = Heads { heads: spec.heads, kv_heads: spec.kv_heads, head_dim: spec.head_dim, scale };
        Ok(Self {
            embedding: if spec.tied_head { None } else { Some(load.weight("embedding")?) },
            positions: if spec.learned_positions.is_some() { Some(load.vector("positions")?) } else { None },
            final_norm: load.norm("final_norm")?,
            head: load.weight("head")?,
            rope,
            lowest: lowest(&blocks.iter().map(|b| b.sites.clone()).collect::<Vec<_>>()),
            blocks,
            max_positions,
            empty: backend.alloc(0)?,
            dims: Dims::new(&spec),
            heads,
            kind: activation(&spec),
            spec,
            backend,
        })
    }

    /// The base's description.
    pub fn spec(&self) -> &BaseSpec {
        &self.spec
    }

    /// The backend the weights live on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Positions a pack may use.
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// A slab without adapters, for passes of the bare base.
    pub fn no_params(&self) -> &B::Buf<f32> {
        &self.empty
    }

    pub(super) fn embedding_table(&self) -> &B::Weight {
        self.embedding.as_ref().unwrap_or(&self.head)
    }
}

struct Loader<'a, B> {
    backend: &'a B,
    base: &'a MappedBase,
    spec: &'a BaseSpec,
}

impl<B: Ops> Loader<'_, B> {
    fn weight(&self, name: &str) -> Result<B::Weight> {
        self.base.weight(self.backend, name)
    }

    fn vector(&self, name: &str) -> Result<B::Buf<f32>> {
        let data = self.base.vector(name)?;
        let mut buf = self.backend.alloc(data.len())?;
        self.backend.write(&mut buf, 0, data)?;
        Ok(buf)
    }

    fn norm(&self, name: &str) -> Result<NormWeights<B>> {
        let bias = match self.spec.norm {
            Norm::Rms => None,
            Norm::Layer => Some(self.vector(&format!("{name}.bias"))?),
        };
        Ok(NormWeights { weight: self.vector(&format!("{name}.weight"))?, bias, eps: self.spec.norm_eps })
    }

    fn product(&self, name: &str) -> Result<Product<B>> {
        let bias = format!("{name}.bias");
        let bias = if self.base.has(&bias) { Some(self.vector(&bias)?) } else { None };
        Ok(Product { weight: self.weight(&format!("{name}.weight"))?, bias })
    }

    fn block(&self, layer: usize, sites: BlockSites) -> Result<Block<B>> {
        let name = |part: &str| format!("blocks.{layer}.{part}");
        let mlp_in = match activation(self.spec) {
            Kind::SwiGlu => vec![self.product(&name("gate"))?, self.product(&name("up"))?],
            Kind::GeluNew => vec![self.product(&name("fc"))?],
        };
        Ok(Block {
            norm1: self.norm(&name("norm1"))?,
            q: self.product(&name("q"))?,
            k: self.product(&name("k"))?,
            v: self.product(&name("v"))?,
            o: self.product(&name("o"))?,
            norm2: self.norm(&name("norm2"))?,
            mlp_in,
            down: self.product(&name("down"))?,
            sites,
        })
    }
}
