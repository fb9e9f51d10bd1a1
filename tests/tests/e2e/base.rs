//! A tiny random Llama with a byte tokenizer, as a Hugging Face folder; the same bytes every time.

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

const HIDDEN: usize = 32;
const INTERMEDIATE: usize = 64;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
/// 256 bytes and the end of a text.
const VOCAB: usize = 257;
const END: &str = "<|end|>";

/// Writes the folder.
pub(crate) fn write(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let put = |name: &str, bytes: &[u8]| crate::story::put(&folder.join(name), bytes);
    put("config.json", config().to_string().as_bytes());
    put("tokenizer.json", tokenizer().to_string().as_bytes());
    let tensors = tensors();
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    put("model.safetensors", &safetensors::serialize(views, None).unwrap());
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HIDDEN / HEADS,
        "vocab_size": VOCAB, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "attention_bias": false,
        "mlp_bias": false, "bos_token_id": null, "eos_token_id": VOCAB - 1,
    })
}

/// Byte-level BPE without a merge: every byte is a token.
fn tokenizer() -> Value {
    // GPT-2's table: printable bytes stand for themselves, the others for the characters from U+0100 on.
    let mut next = 0x100;
    let mut vocab = Map::new();
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let character = if printable {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap()
        };
        vocab.insert(character.to_string(), json!(byte));
    }
    vocab.insert(END.to_owned(), json!(VOCAB - 1));
    let level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{
            "id": VOCAB - 1, "content": END, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }],
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": []
        }
    })
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn tensors() -> Tensors {
    let mut tensors = Tensors::new();
    let mut random = Random(2026);
    let kv = HIDDEN / HEADS * KV_HEADS;
    let mut matrix = |name: String, out: usize, inner: usize| {
        let values = (0..out * inner).flat_map(|_| (0.4 * random.next()).to_le_bytes()).collect();
        tensors.insert(name, (vec![out, inner], values));
    };
    matrix("model.embed_tokens.weight".to_owned(), VOCAB, HIDDEN);
    for layer in 0..LAYERS {
        for (name, out, inner) in [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", kv, HIDDEN),
            ("self_attn.v_proj", kv, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
            ("mlp.up_proj", INTERMEDIATE, HIDDEN),
            ("mlp.down_proj", HIDDEN, INTERMEDIATE),
        ] {
            matrix(format!("model.layers.{layer}.{name}.weight"), out, inner);
        }
    }
    let layers = (0..LAYERS).flat_map(|layer| {
        ["input_layernorm", "post_attention_layernorm"]
            .map(|norm| format!("model.layers.{layer}.{norm}.weight"))
    });
    for name in layers.chain(["model.norm.weight".to_owned()]) {
        tensors.insert(
            name,
            (vec![HIDDEN], [1f32; HIDDEN].iter().flat_map(|v| v.to_le_bytes()).collect()),
        );
    }
    tensors
}

/// Numbers that look random and are always the same (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.bits() % end as u64).unwrap()
    }

    /// In -1 .. 1.
    fn next(&mut self) -> f32 {
        let half = u16::try_from(self.bits() >> 48).unwrap();
        f32::from(half) / 32768.0 - 1.0
    }
}
