//! GGUF files of the `llama` architecture, dequantised by candle-core.
//!
//! Owns llama.cpp's names and its order of the rows of q and k. `gguf_header` checks the file first; candle runs
//! with its panics contained all the same. Start reading at [`Gguf::open`].

use super::error::{Error, Result};
use super::gguf_header;
use super::spec::{BaseSpec, Family, Norm, Rope, RopeScaling, TensorSpec};
use super::weights::WeightSource;
use crate::comm::contain_panic;
use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

/// A checked GGUF file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    content: Content,
    spec: BaseSpec,
}

/// Keys of the `llama.` group that are read; any other key there is refused.
const KNOWN: &[&str] = &[
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "vocab_size",
];

impl Gguf {
    /// Opens and checks a file.
    ///
    /// # Errors
    /// [`Error`] naming the metadata key or tensor.
    pub fn open(path: &Path) -> Result<Self> {
        let content = open_content(path)?;
        let spec = Metadata { path, content: &content }.spec()?;
        let base = Self { path: path.to_path_buf(), content, spec };
        base.check()?;
        Ok(base)
    }

    /// The parsed metadata, from which the tokenizer is rebuilt.
    pub fn content(&self) -> &Content {
        &self.content
    }

    fn check(&self) -> Result<()> {
        let mut used = BTreeSet::from(["rope_freqs.weight".to_owned()]);
        for tensor in self.spec.tensors() {
            let name = self.stored(&tensor);
            let Some(info) = self.content.tensor_infos.get(&name) else {
                return Err(Error::MissingTensor { path: self.path.clone(), name });
            };
            if info.shape.dims() != tensor.kind.dims() {
                let (expected, got) = (tensor.kind.dims(), info.shape.dims().to_vec());
                return Err(Error::TensorShape { path: self.path.clone(), name, expected, got });
            }
            used.insert(name);
        }
        let stored: BTreeSet<&String> = self.content.tensor_infos.keys().collect();
        match stored.into_iter().find(|name| !used.contains(*name)) {
            None => Ok(()),
            Some(name) => {
                Err(Error::UnexpectedTensor { path: self.path.clone(), name: name.clone() })
            }
        }
    }

    fn stored(&self, tensor: &TensorSpec) -> String {
        let (head, end) = tensor.name.rsplit_once('.').unwrap_or((&tensor.name, "weight"));
        if let Some((layer, part)) =
            head.strip_prefix("layers.").and_then(|rest| rest.split_once('.'))
        {
            let part = match part {
                "norm1" => "attn_norm",
                "norm2" => "ffn_norm",
                "q" => "attn_q",
                "k" => "attn_k",
                "v" => "attn_v",
                "o" => "attn_output",
                "gate" => "ffn_gate",
                "up" => "ffn_up",
                "down" => "ffn_down",
                other => other,
            };
            return format!("blk.{layer}.{part}.{end}");
        }
        match head {
            "head" if !self.spec.tied_head => "output.weight".to_owned(),
            "head" | "embedding" => "token_embd.weight".to_owned(),
            "norm" => "output_norm.weight".to_owned(),
            other => format!("{other}.{end}"),
        }
    }
}

impl WeightSource for Gguf {
    fn spec(&self) -> &BaseSpec {
        &self.spec
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn read(&self, tensor: &TensorSpec) -> Result<Vec<f32>> {
        let name = self.stored(tensor);
        let values = dequantise(&self.path, &self.content, &name)?;
        if values.len() != tensor.kind.len() {
            return Err(Error::MissingTensor { path: self.path.clone(), name });
        }
        let heads = match tensor.name.rsplit('.').nth(1) {
            Some("q") => self.spec.heads,
            Some("k") => self.spec.kv_heads,
            _ => return Ok(values),
        };
        Ok(unpermute(&values, heads, self.spec.head_dim))
    }
}

/// Checks and parses a file's header.
///
/// # Errors
/// [`Error::Format`] for anything that is not a sound GGUF file.
pub fn open_content(path: &Path) -> Result<Content> {
    gguf_header::check(path)?;
    let file = File::open(path).map_err(Error::io(path))?;
    guard(path, || Content::read(&mut BufReader::new(file)))
}

fn dequantise(path: &Path, content: &Content, name: &str) -> Result<Vec<f32>> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    guard(path, || {
        let tensor = content.tensor(&mut file, name, &Device::Cpu)?.dequantize(&Device::Cpu)?;
        tensor.flatten_all()?.to_vec1::<f32>()
    })
}

fn guard<T>(path: &Path, read: impl FnOnce() -> candle_core::Result<T>) -> Result<T> {
    match contain_panic(AssertUnwindSafe(read)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::format(path, error.to_string())),
        Err(_) => Err(Error::format(path, "the reader failed on a malformed file")),
    }
}

/// llama.cpp stores row `p·half + j` of a head (`p` in 0..2) at `2·j + p`; this undoes it, for weights and biases.
fn unpermute(values: &[f32], heads: usize, head_dim: usize) -> Vec<f32> {
    let width = values.len() / (heads * head_dim);
    let half = head_dim / 2;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for row in 0..head_dim {
            let from = (head * head_dim + 2 * (row % half) + row / half) * width;
            out.extend_from_slice(&values[from..from + width]);
        }
    }
    out
}

struct Metadata<'a> {
    path: &'a Path,
    content: &'a Content,
}

impl Metadata<'_> {
    fn spec(&self) -> Result<BaseSpec> {
        match self.content.metadata.get("general.architecture") {
            Some(Value::String(name)) if name == "llama" => {}
            other => {
                return self.bad("general.architecture", format!("{other:?}; supported: llama"));
            }
        }
        let keys: BTreeSet<&String> = self.content.metadata.keys().collect();
        for key in keys {
            if key.strip_prefix("llama.").is_some_and(|rest| !KNOWN.contains(&rest))
                && !self.is_zero(key)
            {
                return self.bad(key, "unknown setting; it may change what the model computes");
            }
        }
        let embedding = self.shape("token_embd.weight")?;
        let (vocab, hidden) = match embedding[..] {
            [vocab, hidden] => (vocab, hidden),
            _ => return self.bad("token_embd.weight", format!("has shape {embedding:?}")),
        };
        let heads = self.required("llama.attention.head_count")?;
        if heads == 0 {
            return self.bad("llama.attention.head_count", "is zero");
        }
        let head_dim = self.count("llama.attention.key_length")?.unwrap_or(hidden / heads);
        self.must_equal("llama.attention.value_length", head_dim)?;
        self.must_equal("llama.rope.dimension_count", head_dim)?;
        self.must_equal("llama.vocab_size", vocab)?;
        self.must_equal("llama.embedding_length", hidden)?;
        let has = |name: &str| self.content.tensor_infos.contains_key(name);
        let spec = BaseSpec {
            family: Family::Llama,
            vocab,
            hidden,
            layers: self.required("llama.block_count")?,
            heads,
            kv_heads: self.count("llama.attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            intermediate: self.required("llama.feed_forward_length")?,
            norm: Norm::Rms,
            norm_eps: self.float("llama.attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
            rope: Some(self.rope()?),
            learned_positions: None,
            tied_head: !has("output.weight"),
            attention_bias: has("blk.0.attn_q.bias"),
            mlp_bias: has("blk.0.ffn_gate.bias"),
            max_positions: self.required("llama.context_length")?,
            bos: self.token("tokenizer.ggml.bos_token_id")?,
            eos: {
                let keys = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
                let ids: BTreeSet<u32> =
                    keys.iter().filter_map(|k| self.token(k).transpose()).collect::<Result<_>>()?;
                ids.into_iter().collect()
            },
        };
        spec.validate(self.path)?;
        Ok(spec)
    }

    fn rope(&self) -> Result<Rope> {
        let theta = f64::from(self.float("llama.rope.freq_base")?.unwrap_or(10_000.0));
        let kind = match self.content.metadata.get("llama.rope.scaling.type") {
            None => "none",
            Some(Value::String(kind)) => kind.as_str(),
            Some(other) => return self.bad("llama.rope.scaling.type", format!("{other:?}")),
        };
        let factor = self.float("llama.rope.scaling.factor")?.map(f64::from);
        let divisors = self.content.tensor_infos.contains_key("rope_freqs.weight");
        let scaling = match (kind, factor, divisors) {
            ("none", _, false) => RopeScaling::None,
            ("linear", Some(factor), false) => RopeScaling::Linear { factor },
            ("none", _, true) => {
                let shape = self.shape("rope_freqs.weight")?;
                if shape.len() != 1 || shape[0] > 1 << 14 {
                    return self.bad("rope_freqs.weight", format!("has shape {shape:?}"));
                }
                let factors = dequantise(self.path, self.content, "rope_freqs.weight")?;
                RopeScaling::Divisors { factors }
            }
            _ => {
                return self
                    .bad("llama.rope.scaling.type", format!("{kind:?}; supported: none, linear"));
            }
        };
        Ok(Rope { theta, scaling })
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        match self.content.tensor_infos.get(name) {
            Some(info) => Ok(info.shape.dims().to_vec()),
            None => {
                Err(Error::MissingTensor { path: self.path.to_path_buf(), name: name.to_owned() })
            }
        }
    }

    /// A setting that is off (zero experts, no window) changes nothing.
    fn is_zero(&self, key: &str) -> bool {
        match self.content.metadata.get(key) {
            Some(Value::Bool(on)) => !on,
            Some(value) => value.to_u64().is_ok_and(|n| n == 0),
            None => true,
        }
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.content.metadata.get(key) else { return Ok(None) };
        let number = match value {
            Value::I32(n) => u64::try_from(*n).ok(),
            Value::I64(n) => u64::try_from(*n).ok(),
            Value::U8(_) | Value::U16(_) | Value::U32(_) | Value::U64(_) => value.to_u64().ok(),
            _ => None,
        };
        match number.and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => self.bad(key, "must be one whole number"),
        }
    }

    fn required(&self, key: &str) -> Result<usize> {
        match self.count(key)? {
            Some(n) => Ok(n),
            None => self.bad(key, "missing"),
        }
    }

    fn must_equal(&self, key: &str, wanted: usize) -> Result<()> {
        match self.count(key)? {
            Some(n) if n != wanted => {
                self.bad(key, format!("is {n}; only {wanted} is supported here"))
            }
            _ => Ok(()),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f32>> {
        match self.content.metadata.get(key) {
            None => Ok(None),
            Some(Value::F32(x)) => Ok(Some(*x)),
            Some(_) => self.bad(key, "must be a 32-bit float"),
        }
    }

    fn token(&self, key: &str) -> Result<Option<u32>> {
        match self.count(key)?.map(u32::try_from) {
            None => Ok(None),
            Some(Ok(id)) => Ok(Some(id)),
            Some(Err(_)) => self.bad(key, "is not a token id"),
        }
    }

    fn bad<T>(&self, key: &str, reason: impl Into<String>) -> Result<T> {
        let mut reason = reason.into();
        if let Some((end, _)) = reason.char_indices().nth(200) {
            reason.truncate(end);
        }
        Err(Error::setting(self.path, key, reason))
    }
}
