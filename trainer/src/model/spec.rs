//! What a base is: family, widths, positions, and the canonical list of its tensors.
//!
//! Owns [`BaseSpec`] and everything that follows from it alone: the names, kinds and shapes of the tensors, the rotary
//! frequencies, the count of parameters. Must never know a file format. Start reading at [`BaseSpec::tensors`].

use super::error::{Error, Result};
use kernels::linear::{Layout, Shape};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Architecture of a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// RMSNorm, rotary positions, SwiGLU, grouped-query attention; weights `[out, in]`.
    Llama,
    /// LayerNorm, learned positions, `gelu_new`, biases everywhere; `Conv1D` weights `[in, out]`.
    Gpt2,
}

/// Normalisation of a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// `x / rms(x) · w`.
    Rms,
    /// `(x − mean) / std · w + b`.
    Layer,
}

/// Change of the rotary frequencies for contexts longer than those of the first training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// None.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, those between interpolated.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context of the first training, in tokens.
        original_max_position: usize,
    },
    /// Frequency `i` divided by `factors[i]`: what GGUF files store for Llama 3.1 (`rope_freqs.weight`).
    Divisors {
        /// One divisor per frequency, `head_dim / 2` of them.
        factors: Vec<f32>,
    },
}

/// Rotary positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// Scaling for long contexts.
    pub scaling: RopeScaling,
}

/// What a base is; every width in elements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseSpec {
    /// Architecture.
    pub family: Family,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Normalisation.
    pub norm: Norm,
    /// Added to the mean square or variance.
    pub norm_eps: f32,
    /// Rotary positions (Llama).
    pub rope: Option<Rope>,
    /// Rows of the table of learned positions (GPT-2).
    pub learned_positions: Option<usize>,
    /// The head is the embedding: one tensor, `head`, serves both.
    pub tied_head: bool,
    /// q, k, v and o have biases.
    pub attention_bias: bool,
    /// The MLP's matrices have biases.
    pub mlp_bias: bool,
    /// Longest context, in tokens.
    pub max_positions: usize,
    /// Token that begins a text, where the base has one.
    pub bos: Option<u32>,
    /// Tokens that end an answer, in rising order.
    pub eos: Vec<u32>,
}

/// What a canonical tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A frozen product; prepared by the backend.
    Matrix {
        /// Widths.
        shape: Shape,
        /// How it lies in canonical form.
        layout: Layout,
    },
    /// A norm's weight or bias, or a product's bias.
    Vector {
        /// Elements.
        len: usize,
    },
    /// Rows read by index: learned positions.
    Table {
        /// Rows.
        rows: usize,
        /// Elements of a row.
        cols: usize,
    },
}

/// One canonical tensor of a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Canonical name, for example `layers.3.q.weight`.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
}

/// Size of a base, for planning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BaseDescription {
    /// All parameters; a tied head counts once.
    pub parameters: u64,
    /// Parameters in products of the blocks: `2·P` FLOP per token and direction.
    pub block_matmul_parameters: u64,
    /// Parameters of the head's product, applied to supervised rows only.
    pub head_matmul_parameters: u64,
    /// Norms, biases and learned positions.
    pub vector_parameters: u64,
}

impl Kind {
    /// Number of elements in canonical form.
    pub fn len(&self) -> usize {
        let dims = self.dims();
        dims.iter().product()
    }

    /// Whether there are none; never true in a checked specification.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Row-major dimensions in canonical form.
    pub fn dims(&self) -> Vec<usize> {
        match *self {
            Kind::Matrix { shape, layout: Layout::OutIn } => vec![shape.out_dim, shape.in_dim],
            Kind::Matrix { shape, layout: Layout::InOut } => vec![shape.in_dim, shape.out_dim],
            Kind::Vector { len } => vec![len],
            Kind::Table { rows, cols } => vec![rows, cols],
        }
    }
}

/// Name of a tensor of block `layer`, for example `layer_tensor(3, "q.weight")`.
pub fn layer_tensor(layer: usize, part: &str) -> String {
    format!("layers.{layer}.{part}")
}

impl BaseSpec {
    /// How the products of the blocks lie in canonical form.
    pub fn layout(&self) -> Layout {
        match self.family {
            Family::Llama => Layout::OutIn,
            Family::Gpt2 => Layout::InOut,
        }
    }

    /// Width of all query heads together.
    pub fn query_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The products of one block, in the order of the forward pass: part name and widths.
    ///
    /// Llama: `q k v o gate up down`; GPT-2: `q k v o fc proj` (q, k and v are the columns of `c_attn`).
    pub fn block_products(&self) -> Vec<(&'static str, Shape)> {
        let shape = |in_dim, out_dim| Shape { in_dim, out_dim };
        let (d, f) = (self.hidden, self.intermediate);
        let mut products = vec![
            ("q", shape(d, self.query_dim())),
            ("k", shape(d, self.kv_dim())),
            ("v", shape(d, self.kv_dim())),
            ("o", shape(self.query_dim(), d)),
        ];
        match self.family {
            Family::Llama => {
                products.extend([
                    ("gate", shape(d, f)),
                    ("up", shape(d, f)),
                    ("down", shape(f, d)),
                ]);
            }
            Family::Gpt2 => products.extend([("fc", shape(d, f)), ("proj", shape(f, d))]),
        }
        products
    }

    /// Every tensor of the base, in the one canonical order that files, hashes and merges follow.
    ///
    /// `embedding` (untied only), `positions` (GPT-2), per block `norm1.*`, the products with their biases, `norm2.*`
    /// before the MLP, then `norm.*` and `head`. A tied base has `head` alone, of shape hidden → vocab.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let table = Kind::Matrix {
            shape: Shape { in_dim: self.hidden, out_dim: self.vocab },
            layout: Layout::OutIn,
        };
        let mut list = Vec::new();
        if !self.tied_head {
            list.push(TensorSpec { name: "embedding".to_owned(), kind: table });
        }
        if let Some(rows) = self.learned_positions {
            let kind = Kind::Table { rows, cols: self.hidden };
            list.push(TensorSpec { name: "positions".to_owned(), kind });
        }
        for layer in 0..self.layers {
            self.push_norm(&mut list, &layer_tensor(layer, "norm1"));
            for (part, shape) in self.block_products() {
                let attention = matches!(part, "q" | "k" | "v" | "o");
                if matches!(part, "gate" | "fc") {
                    self.push_norm(&mut list, &layer_tensor(layer, "norm2"));
                }
                let name = layer_tensor(layer, part);
                let kind = Kind::Matrix { shape, layout: self.layout() };
                list.push(TensorSpec { name: format!("{name}.weight"), kind });
                if if attention { self.attention_bias } else { self.mlp_bias } {
                    let kind = Kind::Vector { len: shape.out_dim };
                    list.push(TensorSpec { name: format!("{name}.bias"), kind });
                }
            }
        }
        self.push_norm(&mut list, "norm");
        list.push(TensorSpec { name: "head".to_owned(), kind: table });
        list
    }

    fn push_norm(&self, list: &mut Vec<TensorSpec>, name: &str) {
        let kind = Kind::Vector { len: self.hidden };
        list.push(TensorSpec { name: format!("{name}.weight"), kind });
        if self.norm == Norm::Layer {
            list.push(TensorSpec { name: format!("{name}.bias"), kind });
        }
    }

    /// Inverse frequencies `1 / theta^(2i / head_dim)` with the scaling applied, `head_dim / 2` of them; empty without
    /// rotary positions. Computed in f64 and rounded once.
    ///
    /// Source: transformers `modeling_rope_utils.py`.
    pub fn rope_frequencies(&self) -> Vec<f32> {
        let Some(rope) = &self.rope else { return Vec::new() };
        let dim = to_f64(self.head_dim);
        (0..self.head_dim / 2)
            .map(|i| {
                let plain = rope.theta.powf(-to_f64(2 * i) / dim);
                round(rope.scaling.scale(i, plain))
            })
            .collect()
    }

    /// Parameter counts.
    pub fn describe(&self) -> BaseDescription {
        let mut description = BaseDescription {
            parameters: 0,
            block_matmul_parameters: 0,
            head_matmul_parameters: 0,
            vector_parameters: 0,
        };
        for tensor in self.tensors() {
            let len = tensor.kind.len() as u64;
            description.parameters += len;
            match tensor.kind {
                Kind::Matrix { .. } if tensor.name == "head" => {
                    description.head_matmul_parameters += len
                }
                Kind::Matrix { .. } if tensor.name == "embedding" => {}
                Kind::Matrix { .. } => description.block_matmul_parameters += len,
                Kind::Vector { .. } | Kind::Table { .. } => description.vector_parameters += len,
            }
        }
        description
    }

    /// The bytes by which the base hash names this specification: what the forward pass depends on, independent of
    /// how a file spells it (rotary scaling enters as the frequencies it gives).
    pub fn canonical_bytes(&self) -> Vec<u8> {
        let family: &[u8] = match self.family {
            Family::Llama => b"llama",
            Family::Gpt2 => b"gpt2.",
        };
        let mut bytes = family.to_vec();
        let widths = [
            self.vocab,
            self.hidden,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.intermediate,
            self.learned_positions.unwrap_or(0),
        ];
        for width in widths {
            bytes.extend((width as u64).to_le_bytes());
        }
        let flags = [self.norm == Norm::Layer, self.tied_head, self.attention_bias, self.mlp_bias];
        bytes.extend(flags.map(u8::from));
        bytes.extend(self.norm_eps.to_le_bytes());
        for frequency in self.rope_frequencies() {
            bytes.extend(frequency.to_le_bytes());
        }
        bytes
    }

    /// Checks what every reader must guarantee: widths positive, within bounds and consistent.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the field; `path` is where the specification was read.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let bounds = [
            ("vocab", self.vocab, 1 << 24),
            ("hidden", self.hidden, 1 << 18),
            ("layers", self.layers, 1 << 11),
            ("heads", self.heads, 1 << 14),
            ("kv_heads", self.kv_heads, 1 << 14),
            ("head_dim", self.head_dim, 1 << 14),
            ("intermediate", self.intermediate, 1 << 20),
            ("max_positions", self.max_positions, 1 << 30),
            ("learned_positions", self.learned_positions.unwrap_or(1), 1 << 24),
            ("heads * head_dim", self.heads.saturating_mul(self.head_dim), 1 << 20),
        ];
        for (key, value, limit) in bounds {
            if value == 0 || value > limit {
                return Err(Error::setting(path, key, format!("must be 1 to {limit}, is {value}")));
            }
        }
        let consistent = [
            ("heads", self.heads.is_multiple_of(self.kv_heads), "must be a multiple of kv_heads"),
            ("norm_eps", self.norm_eps > 0.0 && self.norm_eps < 1.0, "must be between 0 and 1"),
            (
                "rope",
                self.rope.is_some() != self.learned_positions.is_some(),
                "one kind of positions",
            ),
            ("head_dim", self.rope.is_none() || self.head_dim.is_multiple_of(2), "must be even"),
            (
                "head_dim",
                self.family == Family::Llama
                    || self.query_dim() == self.hidden && self.heads == self.kv_heads,
                "heads * head_dim must be hidden",
            ),
            (
                "bos, eos",
                self.eos.iter().chain(&self.bos).all(|&id| (id as usize) < self.vocab),
                "must be inside the vocabulary",
            ),
        ];
        for (key, good, rule) in consistent {
            if !good {
                return Err(Error::setting(path, key, rule));
            }
        }
        match &self.rope {
            Some(rope) => {
                rope.validate(self.head_dim).map_err(|reason| Error::setting(path, "rope", reason))
            }
            None => Ok(()),
        }
    }
}

impl Rope {
    fn validate(&self, head_dim: usize) -> std::result::Result<(), String> {
        let positive = |x: f64| x.is_finite() && x > 0.0 && x < 1e12;
        if !positive(self.theta) || self.theta < 1.0 {
            return Err(format!("theta must be 1 or more and finite, is {}", self.theta));
        }
        let good = match &self.scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => positive(*factor),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position,
            } => {
                [factor, low_freq_factor, high_freq_factor].into_iter().all(|&x| positive(x))
                    && high_freq_factor > low_freq_factor
                    && *original_max_position > 0
            }
            RopeScaling::Divisors { factors } => {
                factors.len() == head_dim / 2 && factors.iter().all(|&x| positive(f64::from(x)))
            }
        };
        if good { Ok(()) } else { Err(format!("inconsistent scaling {:?}", self.scaling)) }
    }
}

impl RopeScaling {
    fn scale(&self, i: usize, plain: f64) -> f64 {
        match self {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => plain / factor,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position,
            } => {
                let context = to_f64(*original_max_position);
                let wavelength = std::f64::consts::TAU / plain;
                if wavelength > context / low_freq_factor {
                    plain / factor
                } else if wavelength < context / high_freq_factor {
                    plain
                } else {
                    let smooth = (context / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * plain / factor + smooth * plain
                }
            }
            RopeScaling::Divisors { factors } => {
                plain / factors.get(i).map_or(1.0, |&f| f64::from(f))
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "widths are below 2^53 by validation")]
fn to_f64(n: usize) -> f64 {
    n as f64
}

#[expect(clippy::cast_possible_truncation, reason = "the one rounding of a frequency to f32")]
fn round(x: f64) -> f32 {
    x as f32
}
