//! `config.json` as transformers 4 and 5 write it.
//!
//! Owns the reading of settings: every key is understood, known not to change the model's output, or refused; nothing
//! is ignored silently. Dropout settings are among the harmless: a frozen base runs without dropout.

use super::error::{Error, Result};
use super::spec::{BaseSpec, Family, Norm, Rope, RopeScaling};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::Path;

/// Largest `config.json` that is read, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Keys that say nothing about what the model computes in a forward pass without dropout.
const HARMLESS: &[&str] = &[
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_pdrop",
    "bad_words_ids",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "n_ctx",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "reorder_and_upcast_attn",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
];

/// Reads a configuration from the bytes of `path`.
///
/// # Errors
/// [`Error::Setting`] for a key that is absent, malformed, unknown or unsupported; [`Error::Format`] when it is not a
/// JSON object.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<BaseSpec> {
    let value: Value =
        serde_json::from_slice(bytes).map_err(|e| Error::format(path, e.to_string()))?;
    let Value::Object(map) = value else {
        return Err(Error::format(path, "not a JSON object"));
    };
    let mut settings = Settings { path, map: &map, used: BTreeSet::new() };
    let spec = match settings.text("model_type")? {
        Some("llama") => settings.llama()?,
        Some("gpt2") => settings.gpt2()?,
        other => {
            return Err(settings.bad("model_type", &format!("{other:?}; supported: llama, gpt2")));
        }
    };
    settings.refuse_unknown()?;
    spec.validate(path)?;
    Ok(spec)
}

/// The settings of one file and which of them were understood.
struct Settings<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
    used: BTreeSet<&'static str>,
}

impl<'a> Settings<'a> {
    fn llama(&mut self) -> Result<BaseSpec> {
        self.architecture("LlamaForCausalLM")?;
        self.must_be("hidden_act", "silu")?;
        if self.count("pretraining_tp")?.is_some_and(|tp| tp != 1) {
            return Err(self.bad("pretraining_tp", "only 1 is supported"));
        }
        let heads = self.required("num_attention_heads")?;
        let hidden = self.required("hidden_size")?;
        let head_dim = match self.count("head_dim")? {
            Some(width) => width,
            None if heads > 0 && hidden % heads == 0 => hidden / heads,
            None => return Err(self.bad("num_attention_heads", "must divide hidden_size")),
        };
        Ok(BaseSpec {
            family: Family::Llama,
            vocab: self.required("vocab_size")?,
            hidden,
            layers: self.required("num_hidden_layers")?,
            heads,
            kv_heads: self.count("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            intermediate: self.required("intermediate_size")?,
            norm: Norm::Rms,
            norm_eps: self.small("rms_norm_eps", 1e-6)?,
            rope: Some(self.rope()?),
            learned_positions: None,
            tied_head: self.flag("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: self.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: self.flag("mlp_bias")?.unwrap_or(false),
            max_positions: self.required("max_position_embeddings")?,
            bos: self.ids("bos_token_id")?.first().copied(),
            eos: self.ids("eos_token_id")?,
        })
    }

    fn gpt2(&mut self) -> Result<BaseSpec> {
        self.architecture("GPT2LMHeadModel")?;
        self.must_be("activation_function", "gelu_new")?;
        if self.flag("scale_attn_weights")? == Some(false) {
            return Err(self.bad("scale_attn_weights", "false is not supported"));
        }
        for key in ["scale_attn_by_inverse_layer_idx", "add_cross_attention"] {
            if self.flag(key)? == Some(true) {
                return Err(self.bad(key, "true is not supported"));
            }
        }
        let heads = self.required("n_head")?;
        let hidden = self.required("n_embd")?;
        if heads == 0 || hidden % heads != 0 {
            return Err(self.bad("n_head", "must divide n_embd"));
        }
        let positions = self.required("n_positions")?;
        Ok(BaseSpec {
            family: Family::Gpt2,
            vocab: self.required("vocab_size")?,
            hidden,
            layers: self.required("n_layer")?,
            heads,
            kv_heads: heads,
            head_dim: hidden / heads,
            intermediate: self.count("n_inner")?.unwrap_or(hidden.saturating_mul(4)),
            norm: Norm::Layer,
            norm_eps: self.small("layer_norm_epsilon", 1e-5)?,
            rope: None,
            learned_positions: Some(positions),
            tied_head: self.flag("tie_word_embeddings")?.unwrap_or(true),
            attention_bias: true,
            mlp_bias: true,
            max_positions: positions,
            bos: self.ids("bos_token_id")?.first().copied(),
            eos: self.ids("eos_token_id")?,
        })
    }

    /// Version 5 keeps everything in `rope_parameters`; version 4 has `rope_theta` beside `rope_scaling`.
    fn rope(&mut self) -> Result<Rope> {
        let old_theta = self.number("rope_theta")?;
        if self.flag("rope_interleaved")? == Some(true) {
            return Err(self.bad("rope_interleaved", "true is not supported"));
        }
        let (new, old) = (self.object("rope_parameters")?, self.object("rope_scaling")?);
        if let (Some(new), Some(old)) = (new, old)
            && new != old
        {
            return Err(self.bad("rope_scaling", "disagrees with rope_parameters"));
        }
        let (key, map) = match (new, old) {
            (Some(map), _) => ("rope_parameters", Some(map)),
            (None, old) => ("rope_scaling", old),
        };
        let Some(map) = map else {
            // transformers' default for files written before the setting existed.
            return Ok(Rope { theta: old_theta.unwrap_or(10_000.0), scaling: RopeScaling::None });
        };
        let mut inner = Settings { path: self.path, map, used: BTreeSet::new() };
        let inner_theta = inner.number("rope_theta")?;
        let theta = match (inner_theta, old_theta) {
            (Some(a), Some(b)) if a.to_bits() != b.to_bits() => {
                return Err(self.bad("rope_theta", &format!("{b} outside, {a} in {key}")));
            }
            (Some(theta), _) | (None, Some(theta)) => theta,
            (None, None) if key == "rope_scaling" => 10_000.0,
            (None, None) => return Err(self.bad(key, "has no rope_theta")),
        };
        if inner.number("partial_rotary_factor")?.is_some_and(|f| (f - 1.0).abs() > 0.0) {
            return Err(self.bad(key, "partial_rotary_factor other than 1 is not supported"));
        }
        let scaling = inner.scaling(key)?;
        for name in inner.map.keys() {
            if !inner.used.contains(name.as_str()) {
                return Err(self.bad(key, &format!("unknown entry `{name}`")));
            }
        }
        Ok(Rope { theta, scaling })
    }

    fn scaling(&mut self, outer: &'static str) -> Result<RopeScaling> {
        let (new, old) = (self.text("rope_type")?, self.text("type")?);
        if new.is_some() && old.is_some() && new != old {
            return Err(self.bad(outer, "`type` and `rope_type` disagree"));
        }
        match new.or(old) {
            Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: self.must_number("factor")? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: self.must_number("factor")?,
                low_freq_factor: self.must_number("low_freq_factor")?,
                high_freq_factor: self.must_number("high_freq_factor")?,
                original_max_position: self.required("original_max_position_embeddings")?,
            }),
            other => Err(self
                .bad(outer, &format!("rope type {other:?}; supported: default, linear, llama3"))),
        }
    }

    fn refuse_unknown(&self) -> Result<()> {
        for (key, value) in self.map {
            let off = matches!(value, Value::Null | Value::Bool(false))
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(Map::is_empty);
            if !off && !self.used.contains(key.as_str()) && !HARMLESS.contains(&key.as_str()) {
                return Err(self.bad(key, "unknown setting; it may change what the model computes"));
            }
        }
        Ok(())
    }

    fn architecture(&mut self, wanted: &str) -> Result<()> {
        match self.get("architectures") {
            None => Ok(()),
            Some(Value::Array(names)) if names.iter().any(|n| n.as_str() == Some(wanted)) => Ok(()),
            Some(other) => Err(self.bad("architectures", &format!("{other}; supported: {wanted}"))),
        }
    }

    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.used.insert(key);
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn bad(&self, key: &str, reason: &str) -> Error {
        Error::setting(self.path, key, reason)
    }

    fn text(&mut self, key: &'static str) -> Result<Option<&'a str>> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| self.bad(key, "must be text"))).transpose()
    }

    fn flag(&mut self, key: &'static str) -> Result<Option<bool>> {
        self.get(key)
            .map(|v| v.as_bool().ok_or_else(|| self.bad(key, "must be true or false")))
            .transpose()
    }

    fn number(&mut self, key: &'static str) -> Result<Option<f64>> {
        self.get(key)
            .map(|v| v.as_f64().ok_or_else(|| self.bad(key, "must be a number")))
            .transpose()
    }

    fn must_number(&mut self, key: &'static str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.bad(key, "missing"))
    }

    fn count(&mut self, key: &'static str) -> Result<Option<usize>> {
        self.get(key)
            .map(|v| {
                // Some tools write whole numbers as 8192.0.
                let whole = v.as_u64().or_else(|| whole_float(v.as_f64()?));
                whole
                    .and_then(|n| usize::try_from(n).ok())
                    .ok_or_else(|| self.bad(key, "must be a whole number"))
            })
            .transpose()
    }

    fn required(&mut self, key: &'static str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.bad(key, "missing"))
    }

    fn small(&mut self, key: &'static str, default: f64) -> Result<f32> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an epsilon is used in f32, as transformers does"
        )]
        Ok(self.number(key)?.unwrap_or(default) as f32)
    }

    fn object(&mut self, key: &'static str) -> Result<Option<&'a Map<String, Value>>> {
        self.get(key)
            .map(|v| v.as_object().ok_or_else(|| self.bad(key, "must be an object")))
            .transpose()
    }

    fn must_be(&mut self, key: &'static str, wanted: &str) -> Result<()> {
        match self.text(key)? {
            Some(got) if got == wanted => Ok(()),
            None => Ok(()), // absent means transformers' default, which is the wanted one
            other => Err(self.bad(key, &format!("{other:?}; supported: {wanted}"))),
        }
    }

    fn ids(&mut self, key: &'static str) -> Result<Vec<u32>> {
        token_ids(self.get(key))
            .ok_or_else(|| self.bad(key, "must be a token id or a list of them"))
    }
}

/// One token id, a list, or nothing; in rising order without repetition.
pub(crate) fn token_ids(value: Option<&Value>) -> Option<Vec<u32>> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    let ids: BTreeSet<u32> = match value {
        None | Some(Value::Null) => BTreeSet::new(),
        Some(Value::Array(list)) => list.iter().map(id).collect::<Option<_>>()?,
        Some(one) => BTreeSet::from([id(one)?]),
    };
    Some(ids.into_iter().collect())
}

fn whole_float(x: f64) -> Option<u64> {
    let whole = x.fract().abs() <= 0.0 && (0.0..9e15).contains(&x);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked whole and in range"
    )]
    whole.then_some(x as u64)
}
