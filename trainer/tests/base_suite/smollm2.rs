//! The real SmolLM2-135M, where `scripts/setup` has put it; SKIPPED elsewhere.

use crate::fixtures::Reversed;
use std::path::PathBuf;
use trainer::model::cache::MappedBase;
use trainer::model::spec::BaseSpec;
use trainer::model::tokenizer::Tokenizer;
use trainer::model::weights::{WeightSource, open};

fn file() -> Option<PathBuf> {
    let path = std::env::home_dir()?.join(".cache/myriad/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: no {}", path.display());
    None
}

fn crc(source: &dyn WeightSource, name: &str) -> u32 {
    let tensor = source.spec().tensors().into_iter().find(|t| t.name == name).unwrap();
    crc32fast::hash(bytemuck::cast_slice(&source.read(&tensor).unwrap()))
}

#[test]
fn weights_are_bit_equal_to_those_transformers_reads() {
    let Some(path) = file() else { return };
    let source = open(&path).unwrap();
    let spec: &BaseSpec = source.spec();
    assert_eq!((spec.vocab, spec.hidden, spec.layers, spec.intermediate), (49152, 576, 30, 1536));
    assert_eq!((spec.heads, spec.kv_heads, spec.head_dim, spec.max_positions), (9, 3, 64, 8192));
    assert!(spec.tied_head && !spec.attention_bias && !spec.mlp_bias);
    assert_eq!((spec.bos, spec.eos.as_slice()), (Some(1), &[2][..]));
    assert_eq!(spec.describe().parameters, 134_515_008);
    // zlib.crc32 of state_dict() tensors, AutoModelForCausalLM.from_pretrained(gguf_file=…), transformers 5.23.0.
    for (name, expected) in [
        ("head", 0x3978_6908),
        ("layers.0.q.weight", 0x568c_15c3),
        ("layers.29.k.weight", 0x2106_bc25),
        ("layers.7.v.weight", 0x7a84_e5d9),
        ("layers.5.down.weight", 0x2aeb_6a72),
        ("norm.weight", 0xc681_1e6c),
        ("layers.3.norm2.weight", 0x82d6_8337),
    ] {
        assert_eq!(crc(&*source, name), expected, "{name}");
    }
}

#[test]
fn tokens_are_the_golden_ones() {
    let Some(path) = file() else { return };
    let source = open(&path).unwrap();
    let tokenizer = Tokenizer::open(&path, source.spec()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 49152);
    let golden =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/smollm2/input.json");
    let cases = match std::fs::read(&golden) {
        Ok(bytes) => serde_json::from_slice::<serde_json::Value>(&bytes).unwrap(),
        Err(_) => serde_json::json!({"texts": [
            {"text": "1998 was 12.5", "tokens": [33, 41, 41, 40, 436, 216, 33, 34, 30, 37]},
            {"text": "<|im_start|>user\nhi<|im_end|>", "tokens": [1, 4093, 198, 6004, 2]}
        ]}),
    };
    for case in cases["texts"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let tokens: Vec<u32> = serde_json::from_value(case["tokens"].clone()).unwrap();
        assert_eq!(tokenizer.encode_markup(text).unwrap(), tokens, "{text}");
        // As a text of a user: the same letters, nothing special, and the same tokens where nothing is.
        let plain = tokenizer.encode(text).unwrap();
        assert!(plain.iter().all(|&id| id > 16), "{text}: {plain:?}");
        assert_eq!(tokenizer.decode(&plain, true).unwrap(), text);
        assert_eq!(plain == tokens, tokens.iter().all(|&id| id > 16), "{text}");
        assert_eq!(tokenizer.decode(&tokens, false).unwrap(), text);
    }
    for text in [
        "",
        " ",
        "\0\u{7f}\u{80}",
        "a\u{301} \u{1F468}\u{200D}\u{1F469}",
        "Ⅷ½ ٣٤  7\t\t8\r\n",
        "\u{10FFFF}",
    ] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap(), false).unwrap(), text);
    }
}

#[test]
fn it_converts_and_maps() {
    let Some(path) = file() else { return };
    let dir = tempfile::tempdir().unwrap();
    let source = open(&path).unwrap();
    let start = std::time::Instant::now();
    let base = MappedBase::load(&Reversed, &*source, dir.path()).unwrap();
    let converted = start.elapsed();
    let again = MappedBase::load(&Reversed, &*open(&path).unwrap(), dir.path()).unwrap();
    eprintln!("converted in {converted:?}, opened and mapped in {:?}", start.elapsed() - converted);
    assert_eq!(again.hash(), base.hash());
    assert!(base.mapped_bytes() > 4 * 134_515_008);
    let norm = base.vector("norm.weight").unwrap();
    assert_eq!(crc32fast::hash(bytemuck::cast_slice(norm)), 0xc681_1e6c);
}
