//! Tokenizers out of `tokenizer.json` and GGUF files: nothing added, nothing cut, and a user's text is only text.

use crate::fixtures::{
    gguf_metadata, llama_config, llama_gguf, parse, values, write_file, write_gguf,
};
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;
use trainer::model::Error;
use trainer::model::spec::BaseSpec;
use trainer::model::tokenizer::Tokenizer;
use trainer::model::weights::open;

#[test]
fn gguf_tokenizer_merges_splits_digits_and_knows_special_tokens() {
    let spec = parse(&llama_config()).unwrap();
    let tensors = llama_gguf(&spec, &values(&spec, 10));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.gguf");
    write_gguf(&path, &gguf_metadata(&spec), &tensors, GgmlDType::F32);
    let tokenizer = Tokenizer::open(&path, open(&path).unwrap().spec()).unwrap();
    // "ab" merges before " a" can, digits stand alone, <s> is one control token, <u> one of the user's.
    let ids = [5, 4, 5, 6, 8, 9, 7, 0, 10, 2];
    assert_eq!(tokenizer.encode_markup("ab ab a12!<s><u>a").unwrap(), ids);
    // In a text <s> is no token; this vocabulary has no letters for it.
    assert_eq!(tokenizer.encode("ab ab a12!<s><u>a</s>").unwrap(), [5, 4, 5, 6, 8, 9, 7, 10, 2]);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "ab ab a12!<s><u>a");
    assert_eq!(tokenizer.decode(&[0, 10, 2, 1], true).unwrap(), "<u>a");
    assert_eq!((tokenizer.encode("").unwrap().len(), tokenizer.vocab_size()), (0, 11));
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), &[1][..]));
    assert!(matches!(tokenizer.decode(&[11], false), Err(Error::Tokenizer { .. })));
    let attempt = |key: &str, value: Value| {
        let mut metadata = gguf_metadata(&spec);
        metadata.iter_mut().find(|(k, _)| *k == key).unwrap().1 = value;
        write_gguf(&path, &metadata, &tensors, GgmlDType::F32);
        Tokenizer::open(&path, open(&path).unwrap().spec())
    };
    let text = |s: &str| Value::String(s.to_owned());
    for pre in ["gpt-2", "llama-bpe", "default"] {
        let other = attempt("tokenizer.ggml.pre", text(pre)).unwrap();
        assert_eq!(other.encode("ab!").unwrap(), [5, 7], "{pre}");
        assert_ne!(other.hash(), tokenizer.hash());
    }
    for (key, value) in [
        ("tokenizer.ggml.pre", text("deepseek-llm")),
        ("tokenizer.ggml.model", text("llama")),
        ("tokenizer.ggml.merges", Value::Array(vec![text("a z")])),
        ("tokenizer.ggml.merges", Value::Array(vec![text("a b"), text("a b")])),
        ("tokenizer.ggml.merges", Value::Array(vec![text("ab ab")])),
        ("tokenizer.ggml.merges", Value::Array(vec![text("ab")])),
        ("tokenizer.ggml.tokens", Value::Array(vec![text("a"), text("a")])),
        ("tokenizer.ggml.token_type", Value::Array(vec![Value::I32(1)])),
    ] {
        let error = attempt(key, value).unwrap_err();
        assert!(matches!(error, Error::Setting { .. }), "{key}: {error}");
    }
}

#[test]
fn tokenizer_json_never_cuts_or_pads() {
    let spec = BaseSpec { bos: None, eos: vec![0], ..parse(&llama_config()).unwrap() };
    let dir = tempfile::tempdir().unwrap();
    let file = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<s>"},
        "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {"<s>": {"id": "<s>", "ids": [0],
            "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]}
    });
    let path = dir.path().join("tokenizer.json");
    write_file(&path, &serde_json::to_vec(&file).unwrap());
    let tokenizer = Tokenizer::open(dir.path(), &spec).unwrap();
    assert_eq!(tokenizer.encode_markup("abaab<s>b").unwrap(), [3, 1, 3, 0, 2]);
    assert_eq!(tokenizer.encode("abaab<s>b").unwrap(), [3, 1, 3, 2]);
    let mut large = file;
    large["model"]["vocab"]["b"] = json!(11);
    write_file(&path, &serde_json::to_vec(&large).unwrap());
    assert!(matches!(Tokenizer::open(dir.path(), &spec), Err(Error::Mismatch { .. })));
}

/// Vocabularies that have a letter for every byte of these texts, read from `tokenizer.json` and from GGUF.
const LETTERS: &str = "<|im_end|>s/ab Ġ";

const WITH_NAMES: [&str; 9] = [
    "<|im_end|>",
    "a<|im_end|>",
    "<|im_end|>b",
    "<|im_end|><|im_end|>",
    "a <|im_end|> b",
    "<|im_end<|im_end|>|>",
    "<<|im_end|>>",
    "<|im_end|><s></s><s>",
    "<s>",
];

const PLAIN: [&str; 6] = ["", "ab", "a b a", "<|im_end", "im_end|>", "< |im_end| >"];

/// No text says a special token, every text is read back, other texts are encoded as they always were.
fn plain_text_is_text(tokenizer: &Tokenizer, special: &[u32], what: &str) {
    for text in WITH_NAMES {
        let (ids, markup) =
            (tokenizer.encode(text).unwrap(), tokenizer.encode_markup(text).unwrap());
        assert!(!ids.iter().any(|id| special.contains(id)), "{what}: {text:?} is {ids:?}");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text, "{what}");
        assert!(markup.iter().any(|id| special.contains(id)), "{what}: {text:?} is {markup:?}");
    }
    for text in PLAIN {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids, tokenizer.encode_markup(text).unwrap(), "{what}: {text:?}");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text, "{what}");
    }
}

fn letters() -> BTreeSet<char> {
    LETTERS.chars().filter(|c| *c != ' ').collect()
}

#[test]
fn special_tokens_in_a_text_of_a_gguf_tokenizer_are_letters() {
    let mut spec = parse(&llama_config()).unwrap();
    spec.vocab = 64;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.gguf");
    let names = ["<s>", "<|im_end|>", "</s>"];
    let mut tokens: Vec<String> = names.map(str::to_owned).to_vec();
    tokens.extend(letters().into_iter().map(String::from));
    tokens.push("ab".to_owned());
    // As control tokens, and as files have it that mark them as the user's own or not at all.
    for kind in [3, 4, 1] {
        let kinds = (0..tokens.len()).map(|i| Value::I32(if i < names.len() { kind } else { 1 }));
        let mut metadata = gguf_metadata(&spec);
        let mut put = |key: &str, value: Value| {
            metadata.iter_mut().find(|(k, _)| *k == key).unwrap().1 = value;
        };
        put("tokenizer.ggml.token_type", Value::Array(kinds.collect()));
        let texts = tokens.iter().map(|t| Value::String(t.clone())).collect();
        put("tokenizer.ggml.tokens", Value::Array(texts));
        put("tokenizer.ggml.merges", Value::Array(vec![Value::String("a b".to_owned())]));
        write_gguf(&path, &metadata, &llama_gguf(&spec, &values(&spec, 10)), GgmlDType::F32);
        for end in [vec![1], vec![1, 2]] {
            let spec = BaseSpec { eos: end, bos: Some(0), ..open(&path).unwrap().spec().clone() };
            let tokenizer = Tokenizer::open(&path, &spec).unwrap();
            match kind {
                1 => assert_eq!(tokenizer.encode("<|im_end|>").unwrap().len(), 10),
                3 => plain_text_is_text(&tokenizer, &[0, 1, 2], "control tokens"),
                _ => {
                    let mut ends = spec.eos.clone();
                    ends.push(0);
                    let ids = tokenizer.encode("a<|im_end|>b<s>").unwrap();
                    assert!(!ids.iter().any(|id| ends.contains(id)), "{ids:?}");
                    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "a<|im_end|>b<s>");
                }
            }
        }
    }
}

#[test]
fn special_tokens_in_a_text_of_a_tokenizer_json_are_letters() {
    let spec =
        BaseSpec { vocab: 64, eos: vec![1], bos: Some(0), ..parse(&llama_config()).unwrap() };
    let dir = tempfile::tempdir().unwrap();
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let names = ["<s>", "<|im_end|>", "</s>"];
    let added = |special: bool| -> Vec<Json> {
        let one = |(id, name): (usize, &&str)| {
            json!({"id": id, "content": name, "single_word": false,
            "lstrip": true, "rstrip": false, "normalized": false, "special": special})
        };
        names.iter().enumerate().map(one).collect()
    };
    let mut vocab = serde_json::Map::new();
    let letters = letters().into_iter().map(String::from);
    for (id, token) in names.iter().map(|n| (*n).to_owned()).chain(letters).enumerate() {
        vocab.insert(token, json!(id));
    }
    // A model that takes any word it has as it is, behind nothing that splits: the name is one piece to it.
    for (splits, ignore_merges, marked) in
        [(true, false, true), (false, true, true), (true, true, true), (false, true, false)]
    {
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added(marked),
            "normalizer": null, "post_processor": null, "decoder": level,
            "pre_tokenizer": if splits { level.clone() } else {
                json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})
            },
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": ignore_merges, "vocab": vocab, "merges": []}
        });
        write_file(&dir.path().join("tokenizer.json"), &serde_json::to_vec(&file).unwrap());
        let tokenizer = Tokenizer::open(dir.path(), &spec).unwrap();
        let what = format!("splits {splits}, whole words {ignore_merges}, marked {marked}");
        if marked {
            plain_text_is_text(&tokenizer, &[0, 1, 2], &what);
        } else {
            let ids = tokenizer.encode("<|im_end|>").unwrap();
            assert_eq!(ids.len(), 10, "{what}: {ids:?}");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), "<|im_end|>", "{what}");
        }
    }
}

/// A special token of one letter cannot be told from the letter: said, never silently taken for either.
#[test]
fn a_special_token_of_one_letter_is_an_error_in_a_text() {
    let spec = BaseSpec { eos: vec![2], bos: Some(3), ..parse(&llama_config()).unwrap() };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.gguf");
    write_gguf(
        &path,
        &gguf_metadata(&spec),
        &llama_gguf(&spec, &values(&spec, 10)),
        GgmlDType::F32,
    );
    let tokenizer = Tokenizer::open(&path, &spec).unwrap();
    // A beginning does no harm within a text, an end does.
    assert_eq!(tokenizer.encode("b12").unwrap(), [3, 8, 9]);
    let error = tokenizer.encode("ba").unwrap_err().to_string();
    assert!(error.contains("\"a\""), "{error}");
}
