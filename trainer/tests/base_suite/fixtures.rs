//! Small bases in every file format, and a backend whose prepared form is unlike its input.

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use kernels::backend::{Backend, Element};
use kernels::cpu::{Cpu, CpuBuf};
use kernels::linear::{Backward, Forward, HostStorage, Layout, Linear, Shape};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use trainer::model::spec::{BaseSpec, TensorSpec};

/// Prepared form: three marker numbers, then the weight `[out, in]` backwards.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reversed;

#[derive(Debug)]
pub(crate) struct ReversedWeight {
    pub(crate) shape: Shape,
    pub(crate) data: Vec<f32>,
}

impl Backend for Reversed {
    type Act = f32;
    type Buf<T: Element> = CpuBuf<T>;
    fn alloc<T: Element>(&self, len: usize) -> kernels::Result<CpuBuf<T>> {
        Cpu.alloc(len)
    }
    fn write<T: Element>(
        &self,
        dst: &mut CpuBuf<T>,
        offset: usize,
        src: &[T],
    ) -> kernels::Result<()> {
        Cpu.write(dst, offset, src)
    }
    fn read<T: Element>(
        &self,
        src: &CpuBuf<T>,
        offset: usize,
        dst: &mut [T],
    ) -> kernels::Result<()> {
        Cpu.read(src, offset, dst)
    }
    fn zero<T: Element>(
        &self,
        dst: &mut CpuBuf<T>,
        offset: usize,
        len: usize,
    ) -> kernels::Result<()> {
        Cpu.zero(dst, offset, len)
    }
}

fn index(shape: Shape, layout: Layout, o: usize, i: usize) -> usize {
    match layout {
        Layout::OutIn => o * shape.in_dim + i,
        Layout::InOut => i * shape.out_dim + o,
    }
}

impl Linear for Reversed {
    type Weight = ReversedWeight;
    fn prepared_form(&self) -> &'static str {
        "reversed-1"
    }
    fn prepared_len(&self, shape: Shape) -> usize {
        3 + shape.in_dim * shape.out_dim
    }
    fn prepare(
        &self,
        shape: Shape,
        layout: Layout,
        src: &[f32],
        dst: &mut [f32],
    ) -> kernels::Result<()> {
        assert_eq!(
            (src.len(), dst.len()),
            (shape.in_dim * shape.out_dim, self.prepared_len(shape))
        );
        dst[0] = 7.0;
        let end = dst.len() - 1;
        for o in 0..shape.out_dim {
            for i in 0..shape.in_dim {
                dst[end - (o * shape.in_dim + i)] = src[index(shape, layout, o, i)];
            }
        }
        Ok(())
    }
    fn unprepare(
        &self,
        shape: Shape,
        layout: Layout,
        src: &[f32],
        dst: &mut [f32],
    ) -> kernels::Result<()> {
        for o in 0..shape.out_dim {
            for i in 0..shape.in_dim {
                dst[index(shape, layout, o, i)] = src[src.len() - 1 - (o * shape.in_dim + i)];
            }
        }
        Ok(())
    }
    fn weight(
        &self,
        shape: Shape,
        storage: &HostStorage,
        offset: usize,
    ) -> kernels::Result<ReversedWeight> {
        let all: &[f32] = (**storage).as_ref();
        Ok(ReversedWeight { shape, data: all[offset..offset + self.prepared_len(shape)].to_vec() })
    }
    fn shape(&self, weight: &ReversedWeight) -> Shape {
        weight.shape
    }
    fn linear_forward(&self, _: Forward<'_, Self>) -> kernels::Result<()> {
        Err(kernels::Error::Backend {
            op: "linear_forward",
            what: "not part of these tests".to_owned(),
        })
    }
    fn linear_backward(&self, _: Backward<'_, Self>) -> kernels::Result<()> {
        Err(kernels::Error::Backend {
            op: "linear_backward",
            what: "not part of these tests".to_owned(),
        })
    }
}

/// SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    pub(crate) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

pub(crate) fn write_file(path: &Path, bytes: &[u8]) {
    File::create(path).unwrap().write_all(bytes).unwrap();
}

pub(crate) fn llama_config() -> Json {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 11, "hidden_size": 8,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "intermediate_size": 12, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
        "rope_theta": 10000.0, "rope_scaling": null, "torch_dtype": "float32", "tie_word_embeddings": false,
        "attention_bias": true, "mlp_bias": false, "bos_token_id": 1, "eos_token_id": [2, 3], "use_cache": true
    })
}

pub(crate) fn gpt2_config() -> Json {
    json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_layer": 2,
        "n_head": 2, "n_positions": 16, "n_inner": null, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1, "bos_token_id": 1, "eos_token_id": 2
    })
}

pub(crate) fn parse(config: &Json) -> trainer::model::Result<BaseSpec> {
    trainer::model::config_json::parse(
        Path::new("config.json"),
        &serde_json::to_vec(config).unwrap(),
    )
}

pub(crate) type Values = BTreeMap<String, Vec<f32>>;

/// Random values for every canonical tensor.
pub(crate) fn values(spec: &BaseSpec, seed: u64) -> Values {
    let mut random = Random(seed);
    let one = |t: TensorSpec| {
        let v = (0..t.kind.len()).map(|_| random.float()).collect();
        (t.name, v)
    };
    spec.tensors().into_iter().map(one).collect()
}

/// A tensor as a file holds it: name, shape, values.
pub(crate) type Named = (String, Vec<usize>, Vec<f32>);

const LLAMA_HF: &[(&str, &str)] = &[
    ("norm1", "input_layernorm"),
    ("norm2", "post_attention_layernorm"),
    ("q", "self_attn.q_proj"),
    ("k", "self_attn.k_proj"),
    ("v", "self_attn.v_proj"),
    ("o", "self_attn.o_proj"),
    ("gate", "mlp.gate_proj"),
    ("up", "mlp.up_proj"),
    ("down", "mlp.down_proj"),
];
const LLAMA_GGUF: &[(&str, &str)] = &[
    ("norm1", "attn_norm"),
    ("norm2", "ffn_norm"),
    ("q", "attn_q"),
    ("k", "attn_k"),
    ("v", "attn_v"),
    ("o", "attn_output"),
    ("gate", "ffn_gate"),
    ("up", "ffn_up"),
    ("down", "ffn_down"),
];

fn renamed(
    spec: &BaseSpec,
    values: &Values,
    table: &[(&str, &str)],
    block: &str,
    top: [&str; 3],
) -> Vec<Named> {
    let name = |canonical: &str| match canonical {
        "embedding" => top[0].to_owned(),
        "head" if spec.tied_head => top[0].to_owned(),
        "head" => top[1].to_owned(),
        "norm.weight" => top[2].to_owned(),
        other => {
            let parts: Vec<&str> = other.split('.').collect();
            let part = table.iter().find(|(from, _)| *from == parts[2]).unwrap().1;
            format!("{block}.{}.{part}.{}", parts[1], parts[3])
        }
    };
    spec.tensors()
        .into_iter()
        .map(|t| (name(&t.name), t.kind.dims(), values[&t.name].clone()))
        .collect()
}

pub(crate) fn llama_hf(spec: &BaseSpec, values: &Values) -> Vec<Named> {
    let top = ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"];
    renamed(spec, values, LLAMA_HF, "model.layers", top)
}

/// Rows of q and k in llama.cpp's order: `reshape(heads, 2, half).swapaxes(1, 2)`.
pub(crate) fn llama_gguf(spec: &BaseSpec, values: &Values) -> Vec<Named> {
    let top = ["token_embd.weight", "output.weight", "output_norm.weight"];
    let mut list = renamed(spec, values, LLAMA_GGUF, "blk", top);
    for (name, shape, data) in &mut list {
        if !name.contains("attn_q.") && !name.contains("attn_k.") {
            continue;
        }
        let (half, rows) = (spec.head_dim / 2, shape[0]);
        let width = data.len() / rows;
        let mut out = Vec::new();
        for head in 0..rows / spec.head_dim {
            for j in 0..half {
                for p in 0..2 {
                    let row = head * spec.head_dim + p * half + j;
                    out.extend_from_slice(&data[row * width..(row + 1) * width]);
                }
            }
        }
        *data = out;
    }
    list
}

/// GPT-2's stored tensors, q, k and v joined into `c_attn`; `prefix` is `transformer.` or nothing.
pub(crate) fn gpt2_hf(spec: &BaseSpec, values: &Values, prefix: &str) -> Vec<Named> {
    let d = spec.hidden;
    let mut list = vec![
        (format!("{prefix}wte.weight"), vec![spec.vocab, d], values["head"].clone()),
        (format!("{prefix}wpe.weight"), vec![spec.max_positions, d], values["positions"].clone()),
    ];
    for end in ["weight", "bias"] {
        list.push((format!("{prefix}ln_f.{end}"), vec![d], values[&format!("norm.{end}")].clone()));
    }
    for layer in 0..spec.layers {
        let get = |part: &str| values[&format!("layers.{layer}.{part}")].clone();
        let qkv: Vec<Vec<f32>> =
            ["q", "k", "v"].iter().map(|p| get(&format!("{p}.weight"))).collect();
        let joined: Vec<f32> = (0..d)
            .flat_map(|row| qkv.iter().flat_map(move |m| m[row * d..(row + 1) * d].to_vec()))
            .collect();
        let biases = ["q", "k", "v"].iter().flat_map(|p| get(&format!("{p}.bias"))).collect();
        let block = format!("{prefix}h.{layer}");
        list.push((format!("{block}.attn.c_attn.weight"), vec![d, 3 * d], joined));
        list.push((format!("{block}.attn.c_attn.bias"), vec![3 * d], biases));
        list.push((format!("{block}.attn.bias"), vec![1, 1, 2, 2], vec![1.0, 0.0, 1.0, 1.0]));
        for (from, to, rows, cols) in [
            ("o", "attn.c_proj", d, d),
            ("fc", "mlp.c_fc", d, spec.intermediate),
            ("proj", "mlp.c_proj", spec.intermediate, d),
        ] {
            list.push((
                format!("{block}.{to}.weight"),
                vec![rows, cols],
                get(&format!("{from}.weight")),
            ));
            list.push((format!("{block}.{to}.bias"), vec![cols], get(&format!("{from}.bias"))));
        }
        for (from, to) in [("norm1", "ln_1"), ("norm2", "ln_2")] {
            for end in ["weight", "bias"] {
                list.push((format!("{block}.{to}.{end}"), vec![d], get(&format!("{from}.{end}"))));
            }
        }
    }
    list
}

pub(crate) fn safetensors_bytes(tensors: &[Named], dtype: Dtype) -> Vec<u8> {
    let encode = |values: &[f32]| -> Vec<u8> {
        match dtype {
            Dtype::F16 => {
                values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect()
            }
            Dtype::BF16 => {
                values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect()
            }
            Dtype::F64 => values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    };
    let data: Vec<Vec<u8>> = tensors.iter().map(|t| encode(&t.2)).collect();
    let views = tensors.iter().zip(&data).map(|((name, shape, _), bytes)| {
        (name, TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

pub(crate) fn write_folder(folder: &Path, config: &Json, tensors: &[Named]) {
    std::fs::create_dir_all(folder).unwrap();
    write_file(&folder.join("config.json"), &serde_json::to_vec(config).unwrap());
    write_file(&folder.join("model.safetensors"), &safetensors_bytes(tensors, Dtype::F32));
}

pub(crate) fn gguf_metadata(spec: &BaseSpec) -> Vec<(&'static str, Value)> {
    let int = |n: usize| Value::U32(u32::try_from(n).unwrap());
    let text = |s: &str| Value::String(s.to_owned());
    let tokens: Vec<Value> = ["<s>", "</s>", "a", "b", "Ġ", "ab", "Ġa", "!", "1", "2", "<u>"]
        .iter()
        .map(|t| text(t))
        .collect();
    let kinds = [3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 4].map(Value::I32).to_vec();
    vec![
        ("general.architecture", text("llama")),
        ("llama.block_count", int(spec.layers)),
        ("llama.context_length", int(spec.max_positions)),
        ("llama.embedding_length", int(spec.hidden)),
        ("llama.feed_forward_length", int(spec.intermediate)),
        ("llama.attention.head_count", int(spec.heads)),
        ("llama.attention.head_count_kv", int(spec.kv_heads)),
        ("llama.attention.key_length", int(spec.head_dim)),
        ("llama.rope.freq_base", Value::F32(10_000.0)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(spec.norm_eps)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("smollm")),
        ("tokenizer.ggml.tokens", Value::Array(tokens)),
        ("tokenizer.ggml.token_type", Value::Array(kinds)),
        ("tokenizer.ggml.merges", Value::Array(vec![text("a b"), text("Ġ a")])),
        ("tokenizer.ggml.bos_token_id", int(0)),
        ("tokenizer.ggml.eos_token_id", int(1)),
    ]
}

pub(crate) fn write_gguf(
    path: &Path,
    metadata: &[(&str, Value)],
    tensors: &[Named],
    dtype: GgmlDType,
) {
    let quantise = |(name, shape, data): &Named| {
        let tensor = Tensor::from_slice(data, shape.as_slice(), &Device::Cpu).unwrap();
        let plain = shape.len() == 1 || name == "token_embd.weight";
        let dtype = if plain { GgmlDType::F32 } else { dtype };
        QTensor::quantize(&tensor, dtype).unwrap()
    };
    let quantised: Vec<QTensor> = tensors.iter().map(quantise).collect();
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (*k, v)).collect();
    let named: Vec<(&str, &QTensor)> =
        tensors.iter().zip(&quantised).map(|(t, q)| (t.0.as_str(), q)).collect();
    gguf_file::write(&mut File::create(path).unwrap(), &metadata, &named).unwrap();
}
