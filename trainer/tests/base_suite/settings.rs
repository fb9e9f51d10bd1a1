//! `config.json`: both spellings, and everything that must be refused.

use crate::fixtures::{gpt2_config, llama_config, parse};
use kernels::linear::Shape;
use serde_json::{Value, json};
use std::path::Path;
use trainer::model::Error;
use trainer::model::spec::{Family, Kind, Rope, RopeScaling};

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

#[test]
fn llama_settings_are_read() {
    let spec = parse(&llama_config()).unwrap();
    assert_eq!((spec.family, spec.vocab, spec.hidden, spec.layers), (Family::Llama, 11, 8, 2));
    assert_eq!((spec.heads, spec.kv_heads, spec.head_dim, spec.intermediate), (2, 1, 4, 12));
    assert_eq!((spec.tied_head, spec.attention_bias, spec.mlp_bias), (false, true, false));
    assert_eq!((spec.bos, spec.eos.as_slice(), spec.max_positions), (Some(1), &[2, 3][..], 64));
    assert_eq!(spec.rope, Some(Rope { theta: 10_000.0, scaling: RopeScaling::None }));
}

#[test]
fn version_five_spelling_gives_the_same_specification() {
    let scaling = json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let old =
        with(with(llama_config(), "rope_scaling", scaling.clone()), "rope_theta", json!(500000));
    let mut new = llama_config();
    for key in ["rope_theta", "rope_scaling", "torch_dtype"] {
        new.as_object_mut().unwrap().shift_remove(key);
    }
    new["dtype"] = json!("float32");
    new["rope_parameters"] = with(scaling, "rope_theta", json!(500000.0));
    let spec = parse(&new).unwrap();
    assert_eq!(spec, parse(&old).unwrap());
    assert_eq!(spec.rope.as_ref().map(|r| r.theta.to_bits()), Some(500_000f64.to_bits()));
    // The old spelling of the type's own name.
    let older = json!({"type": "linear", "factor": 2});
    let spec = parse(&with(llama_config(), "rope_scaling", older)).unwrap();
    assert_eq!(spec.rope.unwrap().scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn frequencies_are_those_of_transformers() {
    // LlamaRotaryEmbedding.inv_freq of transformers 5.23.0, head_dim 16.
    let expected: [(Value, [f32; 8]); 3] = [
        (
            json!({"rope_type": "default", "rope_theta": 10000.0}),
            [1.0, 0.316_227_76, 0.1, 0.031_622_78, 0.01, 0.003_162_277_6, 0.001, 0.000_316_227_77],
        ),
        (
            json!({"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}),
            [
                0.4,
                0.126_491_1,
                0.04,
                0.012_649_111,
                0.004,
                0.001_264_911_1,
                0.000_4,
                0.000_126_491_11,
            ],
        ),
        (
            json!({"rope_type": "llama3", "rope_theta": 500000.0, "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
            [
                1.0,
                0.095_762_976,
                0.009_401_508,
                0.001_823_166_3,
                0.000_353_553_36,
                6.856_205e-5,
                1.329_573_9e-5,
                2.578_346_3e-6,
            ],
        ),
    ];
    for (rope, expected) in expected {
        let mut config = with(with(llama_config(), "head_dim", json!(16)), "rope_parameters", rope);
        config.as_object_mut().unwrap().shift_remove("rope_theta");
        let got = parse(&config).unwrap().rope_frequencies();
        assert_eq!(got.len(), 8);
        for (g, e) in got.iter().zip(expected) {
            // transformers rounds each of four f32 operations, we round once: 4 half-ulps and the power's own error.
            assert!((g - e).abs() <= 8.0 * f32::EPSILON * e, "{g} {e}");
        }
    }
}

#[test]
fn gpt2_settings_are_read() {
    let spec = parse(&gpt2_config()).unwrap();
    assert_eq!(
        (spec.family, spec.intermediate, spec.learned_positions),
        (Family::Gpt2, 32, Some(16))
    );
    assert!(
        spec.tied_head
            && spec.attention_bias
            && spec.mlp_bias
            && spec.rope_frequencies().is_empty()
    );
    let d = spec.describe();
    let blocks = 2 * (4 * 8 * 8 + 2 * 8 * 32);
    assert_eq!((d.block_matmul_parameters, d.head_matmul_parameters), (blocks, 88));
    assert_eq!(d.vector_parameters, 16 * 8 + 2 * (4 * 8 + 4 * 8 + 32 + 8) + 16);
    assert_eq!(d.parameters, blocks + 88 + d.vector_parameters);
}

#[test]
fn canonical_tensors_are_listed_once_in_order() {
    let spec = parse(&llama_config()).unwrap();
    let list = spec.tensors();
    let names: Vec<&str> = list.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names[0], "embedding");
    assert_eq!(names[1..4], ["layers.0.norm1.weight", "layers.0.q.weight", "layers.0.q.bias"]);
    assert_eq!(names[names.len() - 2..], ["norm.weight", "head"]);
    let k = list.iter().find(|t| t.name == "layers.1.k.weight").unwrap();
    assert!(matches!(k.kind, Kind::Matrix { shape: Shape { in_dim: 8, out_dim: 4 }, .. }));
    assert_eq!(
        spec.describe().parameters as usize,
        list.iter().map(|t| t.kind.len()).sum::<usize>()
    );
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let llama = [
        ("model_type", json!("mistral")),
        ("model_type", json!(null)),
        ("architectures", json!(["LlamaForSequenceClassification"])),
        ("hidden_act", json!("gelu")),
        ("pretraining_tp", json!(2)),
        ("sliding_window", json!(4096)),
        ("quantization_config", json!({"bits": 4})),
        ("rope_interleaved", json!(true)),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0})),
        ("rope_scaling", json!({"type": "dynamic", "factor": 2.0})),
        ("rope_scaling", json!({"rope_type": "longrope"})),
        ("rope_scaling", json!({"rope_type": "linear"})),
        ("rope_scaling", json!({"rope_type": "linear", "factor": -1.0})),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 2.0, "attention_factor": 3.0})),
        ("rope_parameters", json!({"rope_type": "default"})),
        ("rope_parameters", json!({"rope_type": "default", "rope_theta": 500.0})),
        (
            "rope_parameters",
            json!({"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}),
        ),
        (
            "rope_parameters",
            json!({"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        ),
        ("vocab_size", json!(null)),
        ("vocab_size", json!(-5)),
        ("vocab_size", json!(1u64 << 60)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(3)),
        ("rms_norm_eps", json!("tiny")),
        ("eos_token_id", json!([2, 11])),
    ];
    let gpt2 = [
        ("activation_function", json!("gelu")),
        ("scale_attn_by_inverse_layer_idx", json!(true)),
        ("scale_attn_weights", json!(false)),
        ("add_cross_attention", json!(true)),
        ("n_head", json!(3)),
        ("n_positions", json!(0)),
    ];
    let cases = llama.into_iter().map(|(k, v)| (llama_config(), k, v));
    for (config, key, value) in cases.chain(gpt2.into_iter().map(|(k, v)| (gpt2_config(), k, v))) {
        // A theta inside rope_parameters may not be contradicted outside; with none inside there must be one.
        let mut config = with(config, key, value.clone());
        if value == json!({"rope_type": "default"}) {
            config.as_object_mut().unwrap().shift_remove("rope_theta");
        }
        match parse(&config) {
            Err(Error::Setting { .. }) => {}
            other => panic!("{key} = {value}: {other:?}"),
        }
    }
    // Off is off.
    parse(&with(llama_config(), "sliding_window", json!(null))).unwrap();
    parse(&with(llama_config(), "some_new_feature", json!(false))).unwrap();
    let path = Path::new("config.json");
    for bytes in [&b"[]"[..], b"", b"{", b"{\"model_type\": \"llama\"", &[0xff, 0xfe]] {
        assert!(matches!(
            trainer::model::config_json::parse(path, bytes),
            Err(Error::Format { .. })
        ));
    }
}
