//! The frozen base on a backend: weights of every block, norms, tables. Knows no adapter.

use super::activations::{Plan, StepSize};
use super::cache::MappedBase;
use super::pass::Adapters;
use super::spec::{self, BaseSpec, Family, Norm, layer_tensor};
use super::{Error, Result};
use kernels::activation::Kind;
use kernels::attention::Heads;
use kernels::linear::Linear;
use kernels::{Backend, Ops, norm};
use std::collections::BTreeMap;

/// A frozen product with its bias.
#[derive(Debug)]
pub(super) struct Product<B: Linear> {
    pub(super) weight: B::Weight,
    pub(super) bias: Option<B::Buf<f32>>,
}

/// A frozen norm.
#[derive(Debug)]
pub(super) struct NormWeights<B: Backend> {
    pub(super) weight: B::Buf<f32>,
    pub(super) bias: Option<B::Buf<f32>>,
    pub(super) eps: f32,
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
    /// Number of the block.
    pub(super) layer: usize,
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
    match spec.family {
        Family::Llama => Kind::SwiGlu,
        Family::Gpt2 => Kind::GeluNew,
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
    pub(super) max_positions: usize,
    pub(super) empty: B::Buf<f32>,
    /// The lowest so many blocks are reached by no backward.
    pub(super) frozen: usize,
}

impl<B: Ops> Network<B> {
    /// Takes the weights of `base` to the backend, with positions up to `max_positions`.
    ///
    /// # Errors
    /// When a weight is missing, or more positions are asked for than the base has.
    pub fn new(backend: B, base: &MappedBase, max_positions: usize) -> Result<Self> {
        Self::of(backend, (base.spec(), Numbers::Mapped(base)), max_positions)
    }

    /// The same memory without the numbers, which are zeros: for plans, before there are prepared weights.
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn outline(backend: B, spec: &BaseSpec, max_positions: usize) -> Result<Self> {
        let kinds = spec.tensors().into_iter().map(|t| (t.name, t.kind)).collect();
        Self::of(backend, (spec, Numbers::Zeros(kinds)), max_positions)
    }

    fn of(
        backend: B,
        (spec, numbers): (&BaseSpec, Numbers<'_>),
        max_positions: usize,
    ) -> Result<Self> {
        let spec = spec.clone();
        if max_positions > spec.max_positions {
            let what =
                format!("{max_positions} positions asked for, the base has {}", spec.max_positions);
            return Err(Error::Batch { what });
        }
        let load = Loader { backend: &backend, numbers, spec: &spec };
        let blocks = (0..spec.layers).map(|l| load.block(l)).collect::<Result<Vec<_>>>()?;
        let rope = if spec.rope.is_some() {
            let table = kernels::rope::table(&spec.rope_frequencies(), max_positions);
            let mut buf = backend.alloc(table.len())?;
            backend.write(&mut buf, 0, &table)?;
            Some(buf)
        } else {
            None
        };
        #[expect(clippy::cast_precision_loss, reason = "a head width is far below 2^24")]
        let scale = 1.0 / (spec.head_dim as f32).sqrt();
        let heads =
            Heads { heads: spec.heads, kv_heads: spec.kv_heads, head_dim: spec.head_dim, scale };
        Ok(Self {
            embedding: if spec.tied_head { None } else { Some(load.weight("embedding")?) },
            positions: if spec.learned_positions.is_some() {
                Some(load.vector("positions")?)
            } else {
                None
            },
            final_norm: load.norm("norm")?,
            head: load.weight("head")?,
            rope,
            blocks,
            max_positions,
            empty: backend.alloc(0)?,
            frozen: 0,
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

    /// No adapters, for passes of the bare base.
    pub fn bare(&self) -> Adapters<'_, B> {
        Adapters { layouts: &[], params: &self.empty }
    }

    /// The buffers of a step of this size.
    pub(super) fn plan(&self, size: StepSize) -> Plan {
        Plan { size, layers: self.spec.layers, frozen: self.frozen }
    }

    pub(super) fn embedding_table(&self) -> &B::Weight {
        self.embedding.as_ref().unwrap_or(&self.head)
    }
}

/// Where a network's numbers come from.
enum Numbers<'a> {
    Mapped(&'a MappedBase),
    /// From nowhere: the tensors' forms by name.
    Zeros(BTreeMap<String, spec::Kind>),
}

struct Loader<'a, B> {
    backend: &'a B,
    numbers: Numbers<'a>,
    spec: &'a BaseSpec,
}

impl<B: Ops> Loader<'_, B> {
    fn weight(&self, name: &str) -> Result<B::Weight> {
        let kinds = match &self.numbers {
            Numbers::Mapped(base) => return base.weight(self.backend, name),
            Numbers::Zeros(kinds) => kinds,
        };
        match kinds.get(name) {
            Some(spec::Kind::Matrix { shape, .. }) => Ok(self.backend.trainable(*shape)?),
            _ => Err(Error::NoSuchTensor { name: name.to_owned(), kind: "weight" }),
        }
    }

    fn vector(&self, name: &str) -> Result<B::Buf<f32>> {
        let kinds = match &self.numbers {
            Numbers::Mapped(base) => {
                let data = base.vector(name)?;
                let mut buf = self.backend.alloc(data.len())?;
                self.backend.write(&mut buf, 0, data)?;
                return Ok(buf);
            }
            Numbers::Zeros(kinds) => kinds,
        };
        match kinds.get(name) {
            Some(kind @ (spec::Kind::Vector { .. } | spec::Kind::Table { .. })) => {
                Ok(self.backend.alloc(kind.len())?)
            }
            _ => Err(Error::NoSuchTensor { name: name.to_owned(), kind: "vector" }),
        }
    }

    fn norm(&self, name: &str) -> Result<NormWeights<B>> {
        let bias = match self.spec.norm {
            Norm::Rms => None,
            Norm::Layer => Some(self.vector(&format!("{name}.bias"))?),
        };
        Ok(NormWeights {
            weight: self.vector(&format!("{name}.weight"))?,
            bias,
            eps: self.spec.norm_eps,
        })
    }

    fn product(&self, layer: usize, part: &str, biased: bool) -> Result<Product<B>> {
        let name = layer_tensor(layer, part);
        let bias = if biased { Some(self.vector(&format!("{name}.bias"))?) } else { None };
        Ok(Product { weight: self.weight(&format!("{name}.weight"))?, bias })
    }

    fn block(&self, layer: usize) -> Result<Block<B>> {
        let attention = |part: &str| self.product(layer, part, self.spec.attention_bias);
        let mlp = |part: &str| self.product(layer, part, self.spec.mlp_bias);
        let (mlp_in, down) = match self.spec.family {
            Family::Llama => (vec![mlp("gate")?, mlp("up")?], mlp("down")?),
            Family::Gpt2 => (vec![mlp("fc")?], mlp("proj")?),
        };
        Ok(Block {
            norm1: self.norm(&layer_tensor(layer, "norm1"))?,
            q: attention("q")?,
            k: attention("k")?,
            v: attention("v")?,
            o: attention("o")?,
            norm2: self.norm(&layer_tensor(layer, "norm2"))?,
            mlp_in,
            down,
            layer,
        })
    }
}
