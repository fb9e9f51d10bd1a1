//! Hugging Face folders and GGUF files hold the same base.

use crate::fixtures::{
    Named, gguf_metadata, gpt2_config, gpt2_hf, llama_config, llama_gguf, llama_hf, parse,
    safetensors_bytes, values, write_file, write_folder, write_gguf,
};
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use safetensors::tensor::Dtype;
use serde_json::json;
use std::path::Path;
use trainer::model::spec::{BaseSpec, RopeScaling};
use trainer::model::weights::{WeightSource, open};
use trainer::model::{Error, Result};

fn all(source: &dyn WeightSource) -> Vec<(String, Vec<f32>)> {
    source.spec().tensors().iter().map(|t| (t.name.clone(), source.read(t).unwrap())).collect()
}

fn reopen(folder: &Path, tensors: &[Named]) -> Result<Box<dyn WeightSource>> {
    write_file(&folder.join("model.safetensors"), &safetensors_bytes(tensors, Dtype::F32));
    open(folder)
}

#[test]
fn llama_folder_gives_back_every_tensor() {
    let spec = parse(&llama_config()).unwrap();
    let values = values(&spec, 1);
    let dir = tempfile::tempdir().unwrap();
    write_folder(dir.path(), &llama_config(), &llama_hf(&spec, &values));
    assert_eq!(all(&*open(dir.path()).unwrap()), values.clone().into_iter_in(&spec));
    // Without the prefix, and with a forgotten rotary buffer.
    let mut bare = llama_hf(&spec, &values);
    for t in &mut bare {
        t.0 = t.0.trim_start_matches("model.").to_owned();
    }
    bare.push(("layers.0.self_attn.rotary_emb.inv_freq".to_owned(), vec![2], vec![1.0, 0.01]));
    assert_eq!(all(&*reopen(dir.path(), &bare).unwrap()), values.into_iter_in(&spec));
}

#[test]
fn gpt2_folder_splits_c_attn_by_columns() {
    let spec = parse(&gpt2_config()).unwrap();
    let values = values(&spec, 2);
    for prefix in ["transformer.", ""] {
        let dir = tempfile::tempdir().unwrap();
        write_folder(dir.path(), &gpt2_config(), &gpt2_hf(&spec, &values, prefix));
        assert_eq!(all(&*open(dir.path()).unwrap()), values.clone().into_iter_in(&spec));
    }
}

#[test]
fn half_precision_files_are_widened_exactly() {
    let spec = parse(&llama_config()).unwrap();
    let values = values(&spec, 3);
    let dir = tempfile::tempdir().unwrap();
    write_folder(dir.path(), &llama_config(), &llama_hf(&spec, &values));
    for dtype in [Dtype::F16, Dtype::BF16] {
        let bytes = safetensors_bytes(&llama_hf(&spec, &values), dtype);
        write_file(&dir.path().join("model.safetensors"), &bytes);
        for (name, got) in all(&*open(dir.path()).unwrap()) {
            let expected = values[&name].iter().map(|&v| match dtype {
                Dtype::F16 => half::f16::from_f32(v).to_f32(),
                _ => half::bf16::from_f32(v).to_f32(),
            });
            assert!(got.iter().copied().eq(expected), "{name}");
        }
    }
    write_file(
        &dir.path().join("model.safetensors"),
        &safetensors_bytes(&llama_hf(&spec, &values), Dtype::F64),
    );
    assert!(matches!(open(dir.path()), Err(Error::TensorType { .. })));
}

#[test]
fn shards_are_joined_and_their_index_is_checked() {
    let spec = parse(&llama_config()).unwrap();
    let values = values(&spec, 4);
    let tensors = llama_hf(&spec, &values);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    write_file(&folder.join("config.json"), &serde_json::to_vec(&llama_config()).unwrap());
    let (one, two) = tensors.split_at(7);
    write_file(&folder.join("a.safetensors"), &safetensors_bytes(one, Dtype::F32));
    write_file(&folder.join("b.safetensors"), &safetensors_bytes(two, Dtype::BF16));
    let mut map = serde_json::Map::new();
    for (i, t) in tensors.iter().enumerate() {
        map.insert(t.0.clone(), json!(if i < 7 { "a.safetensors" } else { "b.safetensors" }));
    }
    let index = |map: &serde_json::Map<String, serde_json::Value>| {
        let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
        write_file(
            &folder.join("model.safetensors.index.json"),
            &serde_json::to_vec(&index).unwrap(),
        );
        open(folder)
    };
    let base = index(&map).unwrap();
    assert_eq!(base.files().len(), 3);
    assert_eq!(all(&*base)[0].1, values["embedding"]);
    let norm = "model.norm.weight";
    for bad in ["../b.safetensors", "/etc/passwd", "", ".", "..", "x/b.safetensors", "b.bin"] {
        let mut map = map.clone();
        map[norm] = json!(bad);
        let error = index(&map).unwrap_err();
        assert!(matches!(error, Error::Setting { .. } | Error::Pickle { .. }), "{bad}: {error}");
    }
    let mut wrong = map.clone();
    wrong[norm] = json!("a.safetensors");
    assert!(matches!(index(&wrong), Err(Error::UnexpectedTensor { .. })));
    let mut more = map.clone();
    more.insert("model.ghost.weight".to_owned(), json!("a.safetensors"));
    assert!(matches!(index(&more), Err(Error::MissingTensor { .. })));
    map.shift_remove(norm);
    assert!(matches!(index(&map), Err(Error::UnexpectedTensor { .. })));
}

#[test]
fn incomplete_and_foreign_folders_are_refused_by_name() {
    let spec = parse(&llama_config()).unwrap();
    let tensors = llama_hf(&spec, &values(&spec, 5));
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    write_folder(folder, &llama_config(), &tensors);
    let missing = reopen(folder, &tensors[..tensors.len() - 1]).unwrap_err();
    assert!(
        matches!(missing, Error::MissingTensor { ref name, .. } if name == "lm_head.weight"),
        "{missing}"
    );
    let mut extra = tensors.clone();
    extra.push(("model.layers.0.self_attn.q_norm.weight".to_owned(), vec![1], vec![0.0]));
    assert!(matches!(reopen(folder, &extra), Err(Error::UnexpectedTensor { .. })));
    let mut turned = tensors.clone();
    let gate = turned.iter_mut().find(|t| t.0.contains("gate")).unwrap();
    gate.1.reverse();
    assert!(matches!(reopen(folder, &turned), Err(Error::TensorShape { .. })));
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    assert!(matches!(open(folder), Err(Error::Format { .. })));
    write_file(&folder.join("pytorch_model.bin"), b"\x80\x02");
    assert!(matches!(open(folder), Err(Error::Pickle { .. })));
    assert!(matches!(open(&folder.join("pytorch_model.bin")), Err(Error::Pickle { .. })));
    assert!(matches!(open(&folder.join("nothing.gguf")), Err(Error::Io { .. })));
}

#[test]
fn a_tied_head_may_be_stored_only_if_it_is_the_embedding() {
    let mut config = llama_config();
    config["tie_word_embeddings"] = json!(true);
    let spec = parse(&config).unwrap();
    let values = values(&spec, 6);
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = llama_hf(&spec, &values);
    write_folder(dir.path(), &config, &tensors);
    assert_eq!(all(&*open(dir.path()).unwrap()), values.clone().into_iter_in(&spec));
    tensors.push(("lm_head.weight".to_owned(), vec![11, 8], values["head"].clone()));
    reopen(dir.path(), &tensors).unwrap();
    tensors.last_mut().unwrap().2[3] += 1.0;
    assert!(matches!(reopen(dir.path(), &tensors), Err(Error::Format { .. })));
}

#[test]
fn gguf_rows_are_put_back_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.gguf");
    for tied in [false, true] {
        let mut config = llama_config();
        config["tie_word_embeddings"] = json!(tied);
        let spec = parse(&config).unwrap();
        let values = values(&spec, 7);
        write_gguf(&path, &gguf_metadata(&spec), &llama_gguf(&spec, &values), GgmlDType::F32);
        let base = open(&path).unwrap();
        let expected = BaseSpec { bos: Some(0), eos: vec![1], ..spec.clone() };
        assert_eq!(base.spec(), &expected);
        assert_eq!(all(&*base), values.into_iter_in(&spec));
    }
}

#[test]
fn gguf_block_formats_are_dequantised() {
    let mut config = llama_config();
    for (key, n) in [("hidden_size", 256), ("head_dim", 128), ("intermediate_size", 256)] {
        config[key] = json!(n);
    }
    config["attention_bias"] = json!(false);
    let spec = parse(&config).unwrap();
    let values = values(&spec, 8);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.gguf");
    // Weights lie in -1..1: half a step of a b-bit grid over a block, and as much again for its scales.
    let formats = [
        (GgmlDType::F16, 0.000_5),
        (GgmlDType::BF16, 0.004),
        (GgmlDType::Q8_0, 2.0 / 256.0),
        (GgmlDType::Q4_0, 2.0 / 8.0),
        (GgmlDType::Q4_1, 2.0 / 16.0),
        (GgmlDType::Q5_0, 2.0 / 16.0),
        (GgmlDType::Q5_1, 2.0 / 32.0),
        (GgmlDType::Q2K, 2.0 / 3.0),
        (GgmlDType::Q3K, 2.0 / 6.0),
        (GgmlDType::Q4K, 2.0 / 14.0),
        (GgmlDType::Q5K, 2.0 / 28.0),
        (GgmlDType::Q6K, 2.0 / 48.0),
    ];
    for (dtype, bound) in formats {
        write_gguf(&path, &gguf_metadata(&spec), &llama_gguf(&spec, &values), dtype);
        let base = open(&path).unwrap();
        let q = base.spec().tensors().into_iter().find(|t| t.name == "layers.1.q.weight").unwrap();
        let got = base.read(&q).unwrap();
        let worst =
            got.iter().zip(&values[&q.name]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst > 0.0 && worst <= bound, "{dtype:?}: {worst} over {bound}");
    }
    write_gguf(&path, &gguf_metadata(&spec), &llama_gguf(&spec, &values), GgmlDType::Q8_1);
    assert!(matches!(open(&path), Err(Error::TensorType { .. })));
}

#[test]
fn gguf_settings_are_checked() {
    let spec = parse(&llama_config()).unwrap();
    let tensors = llama_gguf(&spec, &values(&spec, 9));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.gguf");
    let text = |s: &str| Value::String(s.to_owned());
    let attempt = |key: &'static str, value: Value| {
        let mut metadata = gguf_metadata(&spec);
        metadata.retain(|(k, _)| *k != key);
        metadata.push((key, value));
        write_gguf(&path, &metadata, &tensors, GgmlDType::F32);
        open(&path)
    };
    let refused = [
        ("general.architecture", text("qwen2")),
        ("llama.expert_count", Value::U32(8)),
        ("llama.attention.sliding_window", Value::U32(4096)),
        ("llama.rope.scaling.type", text("yarn")),
        ("llama.rope.dimension_count", Value::U32(2)),
        ("llama.vocab_size", Value::U32(12)),
        ("llama.attention.value_length", Value::U32(8)),
        ("llama.attention.head_count", Value::U32(0)),
        ("llama.attention.head_count", Value::I32(-1)),
        ("llama.attention.head_count_kv", Value::Array(vec![Value::U32(1)])),
        ("llama.block_count", Value::U64(u64::MAX)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN)),
        ("llama.rope.freq_base", Value::F32(f32::INFINITY)),
    ];
    for (key, value) in refused {
        let error = attempt(key, value).unwrap_err();
        assert!(matches!(error, Error::Setting { .. }), "{key}: {error}");
    }
    assert!(matches!(
        attempt("llama.block_count", Value::U32(3)),
        Err(Error::MissingTensor { .. })
    ));
    assert!(matches!(
        attempt("llama.block_count", Value::U32(1)),
        Err(Error::UnexpectedTensor { .. })
    ));
    attempt("llama.expert_count", Value::U32(0)).unwrap();
    let mut more = tensors.clone();
    more.push(("rope_freqs.weight".to_owned(), vec![2], vec![1.0, 4.0]));
    write_gguf(&path, &gguf_metadata(&spec), &more, GgmlDType::F32);
    let base = open(&path).unwrap();
    let rope = base.spec().rope.clone().unwrap();
    assert_eq!(rope.scaling, RopeScaling::Divisors { factors: vec![1.0, 4.0] });
    let plain = spec.rope_frequencies();
    assert_eq!(base.spec().rope_frequencies(), [plain[0], plain[1] / 4.0]);
}

#[test]
fn golden_bases_are_read_in_both_spellings() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    for case in ["llama_tied", "llama_untied", "gpt2"] {
        let folder = golden.join(case);
        if !folder.exists() {
            eprintln!("SKIPPED: no {}", folder.display());
            continue;
        }
        let base = open(&folder.join("base")).unwrap();
        let old = folder.join("base_v4/config.json");
        let spec = trainer::model::config_json::parse(&old, &std::fs::read(&old).unwrap()).unwrap();
        assert_eq!(base.spec(), &spec, "{case}");
        assert!(all(&*base).iter().all(|(_, v)| v.iter().any(|x| x.abs() > 0.0)), "{case}");
    }
}

/// Values in the order of the specification.
trait InOrder {
    fn into_iter_in(self, spec: &BaseSpec) -> Vec<(String, Vec<f32>)>;
}

impl InOrder for crate::fixtures::Values {
    fn into_iter_in(mut self, spec: &BaseSpec) -> Vec<(String, Vec<f32>)> {
        spec.tensors()
            .into_iter()
            .map(|t| {
                let v = self.remove(&t.name).unwrap();
                (t.name, v)
            })
            .collect()
    }
}
