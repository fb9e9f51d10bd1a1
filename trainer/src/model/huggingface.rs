//! A Hugging Face folder: `config.json` beside `model.safetensors` or a sharded index.
//!
//! Owns the names tensors have there. Files are mapped, their headers checked by the safetensors crate (bounds, exact
//! tiling, header of at most 100 MB) and then against the specification.

use super::config_json::{self, MAX_CONFIG_BYTES};
use super::error::{Error, Result};
use super::mapped;
use super::spec::{BaseSpec, Family, Kind, TensorSpec};
use super::weights::{WeightSource, columns, refuse_pickle};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Largest sharded index that is read, in bytes.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// A checked Hugging Face folder.
#[derive(Debug)]
pub struct HuggingFace {
    folder: PathBuf,
    spec: BaseSpec,
    shards: Vec<Shard>,
    /// Name in the files, without prefix → shard and name with prefix.
    entries: BTreeMap<String, (usize, String)>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
    data_start: usize,
    metadata: Metadata,
}

/// Where a canonical tensor lies: its stored name without prefix, stored shape, and the columns it takes.
struct Stored {
    name: String,
    shape: Vec<usize>,
    columns: Option<usize>,
}

impl HuggingFace {
    /// Opens and checks a folder.
    ///
    /// # Errors
    /// [`Error`] naming the file and the setting or tensor.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = folder.join("config.json");
        let mut spec =
            config_json::parse(&config, &mapped::read_small(&config, MAX_CONFIG_BYTES)?)?;
        add_generation_eos(folder, &mut spec)?;
        let (shards, listed) = open_shards(folder)?;
        let mut base =
            Self { folder: folder.to_path_buf(), spec, shards, entries: BTreeMap::new() };
        base.index(listed.as_ref())?;
        base.check()?;
        Ok(base)
    }

    fn index(&mut self, listed: Option<&BTreeMap<String, String>>) -> Result<()> {
        let prefix = match self.spec.family {
            Family::Llama => "model.",
            Family::Gpt2 => "transformer.",
        };
        for (i, shard) in self.shards.iter().enumerate() {
            for name in shard.metadata.offset_keys() {
                let file = shard.path.file_name().and_then(|f| f.to_str()).unwrap_or_default();
                if listed.is_some_and(|map| map.get(&name).is_none_or(|f| f != file)) {
                    return Err(Error::UnexpectedTensor { path: shard.path.clone(), name });
                }
                let bare = name.strip_prefix(prefix).unwrap_or(&name).to_owned();
                if self.entries.insert(bare, (i, name.clone())).is_some() {
                    return Err(Error::format(
                        &shard.path,
                        format!("tensor `{name}` is there twice"),
                    ));
                }
            }
        }
        match listed
            .into_iter()
            .flatten()
            .find(|(name, _)| !self.entries.contains_key(name.strip_prefix(prefix).unwrap_or(name)))
        {
            Some((name, _)) => self.missing(name),
            None => Ok(()),
        }
    }

    fn check(&self) -> Result<()> {
        let mut used = BTreeSet::new();
        for tensor in self.spec.tensors() {
            let stored = self.stored(&tensor);
            let (path, dtype, shape, _) = self.entry(&stored.name)?;
            if shape != stored.shape {
                return Err(Error::TensorShape {
                    path: path.to_path_buf(),
                    name: stored.name,
                    expected: stored.shape,
                    got: shape.to_vec(),
                });
            }
            if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                return Err(Error::TensorType {
                    path: path.to_path_buf(),
                    name: stored.name,
                    got: format!("{dtype:?}"),
                    supported: "F32, F16, BF16",
                });
            }
            used.insert(stored.name);
        }
        for (bare, (shard, name)) in &self.entries {
            if used.contains(bare) || is_buffer(self.spec.family, bare) {
                continue;
            }
            if bare == "lm_head.weight" && self.spec.tied_head {
                self.check_tied()?;
                continue;
            }
            let path = self.shards[*shard].path.clone();
            return Err(Error::UnexpectedTensor { path, name: name.clone() });
        }
        Ok(())
    }

    /// A tied base may store its head once more; it must then be the embedding, bit for bit.
    fn check_tied(&self) -> Result<()> {
        let (path, head_type, head_shape, head) = self.entry("lm_head.weight")?;
        let (_, embedding_type, embedding_shape, embedding) = self.entry(self.embedding_name())?;
        if (head_type, head_shape, head) == (embedding_type, embedding_shape, embedding) {
            return Ok(());
        }
        Err(Error::format(
            path,
            "the head differs from the embedding, but tie_word_embeddings is true",
        ))
    }

    fn embedding_name(&self) -> &'static str {
        match self.spec.family {
            Family::Llama => "embed_tokens.weight",
            Family::Gpt2 => "wte.weight",
        }
    }

    fn missing<T>(&self, name: &str) -> Result<T> {
        Err(Error::MissingTensor { path: self.folder.clone(), name: name.to_owned() })
    }

    fn entry(&self, bare: &str) -> Result<(&Path, Dtype, &[usize], &[u8])> {
        let Some((shard, name)) = self.entries.get(bare) else { return self.missing(bare) };
        let shard = &self.shards[*shard];
        let Some(info) = shard.metadata.info(name) else { return self.missing(name) };
        let (from, to) = info.data_offsets;
        let data = shard.map.get(shard.data_start..).and_then(|data| data.get(from..to));
        let data =
            data.ok_or_else(|| Error::format(&shard.path, format!("`{name}` leaves the file")))?;
        Ok((&shard.path, info.dtype, &info.shape, data))
    }

    fn stored(&self, tensor: &TensorSpec) -> Stored {
        let plain = |name: String| Stored { name, shape: tensor.kind.dims(), columns: None };
        match tensor.name.as_str() {
            "head" if !self.spec.tied_head => return plain("lm_head.weight".to_owned()),
            "head" | "embedding" => return plain(self.embedding_name().to_owned()),
            "positions" => return plain("wpe.weight".to_owned()),
            _ => {}
        }
        let (head, end) = tensor.name.rsplit_once('.').unwrap_or((&tensor.name, ""));
        let (layer, part) = match head.strip_prefix("layers.").and_then(|rest| rest.split_once('.'))
        {
            Some((layer, part)) => (Some(layer), part),
            None => (None, head),
        };
        match (self.spec.family, layer) {
            (Family::Llama, None) => plain(format!("norm.{end}")),
            (Family::Llama, Some(layer)) => {
                plain(format!("layers.{layer}.{}.{end}", llama_part(part)))
            }
            (Family::Gpt2, None) => plain(format!("ln_f.{end}")),
            (Family::Gpt2, Some(layer)) => {
                let mut stored = plain(format!("h.{layer}.{}.{end}", gpt2_part(part)));
                if let Some(third) = ["q", "k", "v"].iter().position(|&p| p == part) {
                    let width = self.spec.hidden;
                    stored.columns = Some(third * width);
                    stored.shape = match tensor.kind {
                        Kind::Vector { .. } => vec![3 * width],
                        Kind::Matrix { .. } | Kind::Table { .. } => vec![width, 3 * width],
                    };
                }
                stored
            }
        }
    }
}

impl WeightSource for HuggingFace {
    fn spec(&self) -> &BaseSpec {
        &self.spec
    }

    fn path(&self) -> &Path {
        &self.folder
    }

    fn files(&self) -> Vec<PathBuf> {
        let config = self.folder.join("config.json");
        std::iter::once(config).chain(self.shards.iter().map(|s| s.path.clone())).collect()
    }

    fn read(&self, tensor: &TensorSpec) -> Result<Vec<f32>> {
        let stored = self.stored(tensor);
        let (path, dtype, _, data) = self.entry(&stored.name)?;
        let values = to_f32(dtype, data)
            .ok_or_else(|| Error::format(path, format!("`{}` has type {dtype:?}", stored.name)))?;
        Ok(match stored.columns {
            None => values,
            Some(from) => columns(&values, 3 * self.spec.hidden, from, self.spec.hidden),
        })
    }
}

fn llama_part(part: &str) -> &str {
    match part {
        "norm1" => "input_layernorm",
        "norm2" => "post_attention_layernorm",
        "q" => "self_attn.q_proj",
        "k" => "self_attn.k_proj",
        "v" => "self_attn.v_proj",
        "o" => "self_attn.o_proj",
        "gate" => "mlp.gate_proj",
        "up" => "mlp.up_proj",
        "down" => "mlp.down_proj",
        other => other,
    }
}

fn gpt2_part(part: &str) -> &str {
    match part {
        "norm1" => "ln_1",
        "norm2" => "ln_2",
        "q" | "k" | "v" => "attn.c_attn",
        "o" => "attn.c_proj",
        "fc" => "mlp.c_fc",
        "proj" => "mlp.c_proj",
        other => other,
    }
}

/// Constants that older files carry along: causal masks, rotary frequencies.
fn is_buffer(family: Family, bare: &str) -> bool {
    let Some((_, rest)) = bare.split_once('.').and_then(|(_, rest)| rest.split_once('.')) else {
        return false;
    };
    match family {
        Family::Llama => bare.starts_with("layers.") && rest == "self_attn.rotary_emb.inv_freq",
        Family::Gpt2 => bare.starts_with("h.") && matches!(rest, "attn.bias" | "attn.masked_bias"),
    }
}

fn to_f32(dtype: Dtype, data: &[u8]) -> Option<Vec<f32>> {
    let pair = |b: &[u8]| [b[0], b[1]];
    match dtype {
        Dtype::F32 => Some(
            data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        ),
        Dtype::F16 => {
            Some(data.chunks_exact(2).map(|b| half::f16::from_le_bytes(pair(b)).to_f32()).collect())
        }
        Dtype::BF16 => Some(
            data.chunks_exact(2).map(|b| half::bf16::from_le_bytes(pair(b)).to_f32()).collect(),
        ),
        _ => None,
    }
}

/// `generation_config.json`, where there is one, may name more end tokens than `config.json`.
fn add_generation_eos(folder: &Path, spec: &mut BaseSpec) -> Result<()> {
    let path = folder.join("generation_config.json");
    if !path.exists() {
        return Ok(());
    }
    let bytes = mapped::read_small(&path, MAX_CONFIG_BYTES)?;
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|e| Error::format(&path, e.to_string()))?;
    let more = config_json::token_ids(value.get("eos_token_id")).ok_or_else(|| {
        Error::setting(&path, "eos_token_id", "must be a token id or a list of them")
    })?;
    spec.eos.extend(more);
    spec.eos.sort_unstable();
    spec.eos.dedup();
    spec.validate(&path)
}

type WeightMap = BTreeMap<String, String>;

fn open_shards(folder: &Path) -> Result<(Vec<Shard>, Option<WeightMap>)> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if index.exists() {
        if single.exists() {
            return Err(Error::format(folder, "holds both model.safetensors and a sharded index"));
        }
        let map = read_index(&index)?;
        let files: BTreeSet<&String> = map.values().collect();
        let shards =
            files.into_iter().map(|f| Shard::open(folder.join(f))).collect::<Result<_>>()?;
        return Ok((shards, Some(map)));
    }
    if single.exists() {
        return Ok((vec![Shard::open(single)?], None));
    }
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))?.flatten() {
        refuse_pickle(&entry.path())?;
    }
    Err(Error::format(folder, "no model.safetensors and no model.safetensors.index.json"))
}

fn read_index(path: &Path) -> Result<WeightMap> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: WeightMap,
    }
    let bytes = mapped::read_small(path, MAX_INDEX_BYTES)?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|e| Error::format(path, e.to_string()))?;
    for file in index.weight_map.values() {
        let plain = !file.is_empty() && !file.starts_with('.') && !file.contains(['/', '\\', '\0']);
        if !plain {
            return Err(Error::setting(
                path,
                "weight_map",
                format!("{file:?} is not a plain file name"),
            ));
        }
        refuse_pickle(Path::new(file))?;
    }
    Ok(index.weight_map)
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self> {
        let map = mapped::map(&path)?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|e| Error::format(&path, e.to_string()))?;
        Ok(Self { data_start: 8 + header, path, map, metadata })
    }
}
