//! PEFT folders: what we write field by field, what we read, what we refuse.

use super::*;
use serde_json::{Value, json};
use trainer::store::peft::{ExportOptions, Imported, Naming, export, import};

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

/// Writes a file as another program would.
#[expect(
    clippy::disallowed_methods,
    reason = "what stands in for PEFT's own writing needs no sync"
)]
fn put<P: AsRef<Path>, B: AsRef<[u8]>>(path: P, bytes: B) -> std::io::Result<()> {
    std::fs::write(path, bytes)
}

/// All products of a small base.
fn available(targets: &[Target], num_layers: u32) -> Vec<SiteSpec> {
    let one = |layer, target: Target| {
        let wide = matches!(target, Target::CAttn | Target::CFc);
        SiteSpec { layer, target, in_dim: 4, out_dim: if wide { 12 } else { 4 } }
    };
    (0..num_layers).flat_map(|l| targets.iter().map(move |t| one(l, *t))).collect()
}

const LLAMA: [Target; 4] = [Target::Q, Target::K, Target::V, Target::O];
const GPT2: [Target; 4] = [Target::CAttn, Target::AttnCProj, Target::CFc, Target::MlpCProj];

/// Stores one adapter on these sites and exports it; gives the folder, its config, and the parameters.
fn exported(
    chosen: Vec<SiteSpec>,
    num_layers: u32,
) -> (tempfile::TempDir, PathBuf, Value, Imported) {
    let temporary = tempfile::tempdir().unwrap();
    let sites = SiteList::new(chosen).unwrap();
    let targets = sites.targets();
    let spec = AdapterSpec { lora_rank: 2, alpha: 16.0, rslora: false, dropout: 0.05, targets };
    let len = u16::try_from(sites.params(2)).unwrap();
    let params: Vec<f32> = (0..len).map(|i| f32::from(i) * 0.37 - 11.0).collect();
    let (base_hash, config_hash) = ("b".to_owned(), "c".to_owned());
    let provenance = Provenance { base_hash, config_hash, steps: 1, final_loss: None };
    let adapter =
        AdapterRef { spec: &spec, sites: &sites, params: &params, provenance: &provenance };
    let user = UserId::new("u");
    let mut w = Writer::open(&temporary.path().join("store"), 0).unwrap();
    w.commit(Commit { user: &user, generation: 1, outcome: Outcome::Adapter(adapter) }).unwrap();
    let store = Store::open(&temporary.path().join("store")).unwrap();
    let options =
        ExportOptions { base_name_or_path: "org/base".into(), num_layers, naming: Naming::Ordinal };
    let out = temporary.path().join("peft");
    let list = export(&store, Some(&[user.key()]), &out, &options).unwrap();
    let folder = out.join(&list[0].folder);
    let config = serde_json::from_slice(&std::fs::read(folder.join(CONFIG)).unwrap()).unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), store.payload(&user.key()).unwrap());
    (temporary, folder, config, Imported { spec, sites, params, base_hash: Some("b".to_owned()) })
}

#[test]
fn llama_config_field_by_field() {
    let all = available(&LLAMA, 2);
    let chosen = all.iter().filter(|s| [Target::Q, Target::V].contains(&s.target)).copied();
    let (_t, folder, config, adapter) = exported(chosen.collect(), 2);
    let expected = json!({
        "alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": "org/base", "bias": "none",
        "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "layers_pattern": null,
        "layers_to_transform": null, "lora_alpha": 16, "lora_dropout": 0.05, "modules_to_save": null,
        "peft_type": "LORA", "r": 2, "rank_pattern": {}, "revision": null,
        "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "use_dora": false, "use_rslora": false
    });
    assert_eq!(config, expected);
    let text = std::fs::read_to_string(folder.join(CONFIG)).unwrap();
    assert!(text.contains("\"lora_alpha\": 16,"), "{text}");
    let names: Vec<&String> = config.as_object().unwrap().keys().collect();
    assert!(names.is_sorted(), "PEFT sorts its keys");
    assert_eq!(import(&folder, &all).unwrap(), adapter);
}

#[test]
fn gpt2_and_partial_sets_come_back_as_they_were() {
    let all = available(&GPT2, 3);
    let pick =
        |f: &dyn Fn(&SiteSpec) -> bool| all.iter().filter(|s| f(s)).copied().collect::<Vec<_>>();
    let (_t, folder, config, adapter) = exported(pick(&|_| true), 3);
    assert_eq!(config["fan_in_fan_out"], true);
    assert_eq!(config["target_modules"], json!(["c_attn", "c_proj", "c_fc"]));
    assert_eq!(import(&folder, &all).unwrap(), adapter);
    // One c_proj alone.
    let (_t, folder, config, adapter) = exported(pick(&|s| s.target == Target::AttnCProj), 3);
    assert_eq!(config["target_modules"], json!(["attn.c_proj"]));
    assert_eq!(import(&folder, &all).unwrap(), adapter);
    // The upper layers only.
    let (_t, folder, config, adapter) = exported(pick(&|s| s.layer > 0), 3);
    assert_eq!(config["layers_to_transform"], json!([1, 2]));
    assert_eq!(import(&folder, &all).unwrap(), adapter);
    // A set no list of names and layers can say.
    let ragged = pick(&|s| s.layer == 0 && s.target == Target::CFc || s.target == Target::CAttn);
    let (_t, folder, config, adapter) = exported(ragged, 3);
    assert_eq!(config["target_modules"][1], "transformer.h.0.mlp.c_fc");
    assert_eq!(import(&folder, &all).unwrap(), adapter);
}

#[test]
fn an_export_goes_into_an_empty_folder_only() {
    let (t, _, _, _) = exported(available(&LLAMA, 1), 1);
    let store = Store::open(&t.path().join("store")).unwrap();
    let options =
        ExportOptions { base_name_or_path: "b".into(), num_layers: 1, naming: Naming::Ordinal };
    assert!(export(&store, None, &t.path().join("peft"), &options).is_err());
    let none = t.path().join("none");
    assert!(export(&store, Some(&[key("stranger")]), &none, &options).is_err());
    assert!(!none.exists());
    let fewer = ExportOptions { num_layers: 0, ..options };
    assert!(export(&store, None, &none, &fewer).is_err(), "a base without the adapter's layer");
    assert!(!none.join("users.json").exists());
}

/// A safetensors file in the dtype given, keys changed by `rename`.
fn weights(adapter: &Imported, dtype: &str, rename: &dyn Fn(String) -> Option<String>) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (site, half, range) in adapter.sites.tensors(2) {
        let Some(name) = rename(site.peft_key(half)) else { continue };
        let begin = data.len();
        for v in &adapter.params[range] {
            match dtype {
                "F16" => data.extend(half::f16::from_f32(*v).to_le_bytes()),
                "BF16" => data.extend(half::bf16::from_f32(*v).to_le_bytes()),
                "F64" => data.extend(f64::from(*v).to_le_bytes()),
                _ => data.extend(v.to_le_bytes()),
            }
        }
        let info = json!({"dtype": dtype, "shape": site.shape(half, 2), "data_offsets": [begin, data.len()]});
        header.insert(name, info);
    }
    let header = Value::from(header).to_string();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

#[test]
fn half_precision_and_adapter_names_in_keys() {
    let all = available(&LLAMA, 1);
    let (_t, folder, _, adapter) = exported(all.clone(), 1);
    let named = |k: String| Some(k.replace(".weight", ".default.weight"));
    let write = |bytes: Vec<u8>| put(folder.join(WEIGHTS), bytes).unwrap();
    write(weights(&adapter, "F32", &named));
    // Written by somebody else: no word of the base.
    assert_eq!(import(&folder, &all).unwrap(), Imported { base_hash: None, ..adapter.clone() });
    write(weights(&adapter, "F16", &|k| Some(k)));
    let rounded = adapter.params.iter().map(|v| half::f16::from_f32(*v).to_f32());
    assert_eq!(import(&folder, &all).unwrap().params, rounded.collect::<Vec<_>>());
    write(weights(&adapter, "BF16", &|k| Some(k)));
    let rounded = adapter.params.iter().map(|v| half::bf16::from_f32(*v).to_f32());
    assert_eq!(import(&folder, &all).unwrap().params, rounded.collect::<Vec<_>>());
    write(weights(&adapter, "F64", &|k| Some(k)));
    assert!(import(&folder, &all).is_err());
}

#[test]
fn what_peft_accepts_quietly_is_refused() {
    let all = available(&LLAMA, 2);
    let (_t, folder, _, adapter) = exported(all.clone(), 2);
    let refused = |bytes: Vec<u8>, why: &str| {
        put(folder.join(WEIGHTS), bytes).unwrap();
        let error = import(&folder, &all).unwrap_err().to_string();
        assert!(error.contains(why), "expected {why:?}: {error}");
    };
    refused(weights(&adapter, "F32", &|k| (!k.contains("layers.1.")).then_some(k)), "is missing");
    refused(
        weights(&adapter, "F32", &|k| k.strip_prefix("base_model.model.").map(str::to_owned)),
        "not the path",
    );
    refused(weights(&adapter, "F32", &|k| Some(k.replace("o_proj", "x_proj"))), "not the path");
    let mut nan = adapter.clone();
    nan.params[5] = f32::NAN;
    refused(weights(&nan, "F32", &|k| Some(k)), "not finite");
    // More layers in the file than the config names.
    put(folder.join(WEIGHTS), weights(&adapter, "F32", &|k| Some(k))).unwrap();
    let config = std::fs::read_to_string(folder.join(CONFIG)).unwrap();
    let write = |text: &str| put(folder.join(CONFIG), text).unwrap();
    write(&config.replace("\"layers_to_transform\": null", "\"layers_to_transform\": [0]"));
    let error = import(&folder, &all).unwrap_err().to_string();
    assert!(error.contains("more than") || error.contains("does not name"), "{error}");
    write(&config.replace("\"r\": 2", "\"r\": 4"));
    assert!(import(&folder, &all).unwrap_err().to_string().contains("expected [4, 4]"));
    // The base has other widths.
    write(&config);
    let mut wider = all.clone();
    wider[0].in_dim = 8;
    assert!(import(&folder, &wider).unwrap_err().to_string().contains("has shape"));
    std::fs::remove_file(folder.join(WEIGHTS)).unwrap();
    put(folder.join("adapter_model.bin"), b"x").unwrap();
    assert!(import(&folder, &all).unwrap_err().to_string().contains("never opened"));
}

#[test]
fn configs_that_are_not_a_plain_lora() {
    let all = available(&LLAMA, 1);
    let (_t, folder, config, adapter) = exported(all.clone(), 1);
    let with = |name: &str, value: Value| {
        let mut changed = config.clone();
        changed[name] = value;
        put(folder.join(CONFIG), changed.to_string()).unwrap();
        import(&folder, &all).map_err(|e| e.to_string())
    };
    for (name, value) in [
        ("rank_pattern", json!({"q_proj": 4})),
        ("alpha_pattern", json!({"q_proj": 4})),
        ("use_dora", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("all")),
        ("lora_bias", json!(true)),
        ("init_lora_weights", json!("pissa")),
        ("target_parameters", json!(["x"])),
        ("exclude_modules", json!("q_proj")),
        ("layer_replication", json!([[0, 1]])),
        ("something_new", json!(1)),
        ("peft_type", json!("LOHA")),
        ("r", json!(0)),
        ("r", json!(-1)),
        ("r", json!(1e30)),
        ("lora_alpha", json!("16")),
        ("lora_dropout", json!(1.0)),
        ("target_modules", json!(["q_proj", "lm_head"])),
        ("target_modules", json!(["proj"])),
        ("target_modules", json!(".*_proj")),
        ("target_modules", json!([])),
        ("target_modules", Value::Null),
        ("layers_to_transform", json!([0, 7])),
        ("layers_to_transform", json!([])),
        ("layers_to_transform", json!("0")),
    ] {
        let error = with(name, value.clone()).expect_err(name);
        assert!(error.contains(CONFIG), "{name} {value}: {error}");
    }
    for (name, value) in [
        ("something_new", Value::Null),
        ("loftq_config", json!({})),
        ("use_qalora", json!(false)),
        ("peft_version", json!("0.21.2")),
        ("init_lora_weights", json!("gaussian")),
        ("target_modules", json!("all-linear")),
        (
            "target_modules",
            json!(["q_proj", "self_attn.k_proj", "model.layers.0.self_attn.v_proj", "o_proj"]),
        ),
        ("layers_to_transform", json!(0)),
    ] {
        assert_eq!(with(name, value), Ok(adapter.clone()), "{name}");
    }
    let rs = with("use_rslora", json!(true)).unwrap();
    assert!(rs.spec.rslora);
}

/// Mutated files: an error or finite parameters, never a panic.
#[test]
fn hostile_bytes() {
    let all = available(&LLAMA, 1);
    let (_t, folder, _, adapter) = exported(all.clone(), 1);
    let mut state = 7u64;
    let mut next = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut refusals = 0;
    for file in [WEIGHTS, CONFIG] {
        let path = folder.join(file);
        let bytes = std::fs::read(&path).unwrap();
        for _ in 0..1500 {
            let mut bad = bytes.clone();
            for _ in 0..=next(3) {
                let at = next(bad.len());
                match next(4) {
                    0 => bad.truncate(at.max(1)),
                    1 => bad.insert(at, b'9'),
                    _ => bad[at] = next(256).try_into().unwrap(),
                }
            }
            put(&path, &bad).unwrap();
            match import(&folder, &all) {
                Ok(read) => assert!(read.params.iter().all(|v| v.is_finite())),
                Err(_) => refusals += 1,
            }
        }
        put(&path, &bytes).unwrap();
    }
    assert!(refusals > 1000, "{refusals}");
    assert_eq!(import(&folder, &all).unwrap(), adapter);
}

/// The products of the tiny bases of `fixtures/with_peft.py`.
fn tiny(family: &str) -> Vec<SiteSpec> {
    let site = |target, in_dim, out_dim| move |layer| SiteSpec { layer, target, in_dim, out_dim };
    let block: Vec<Box<dyn Fn(u32) -> SiteSpec>> = if family == "llama" {
        vec![
            Box::new(site(Target::Q, 8, 8)),
            Box::new(site(Target::K, 8, 4)),
            Box::new(site(Target::V, 8, 4)),
            Box::new(site(Target::O, 8, 8)),
            Box::new(site(Target::Gate, 8, 16)),
            Box::new(site(Target::Up, 8, 16)),
            Box::new(site(Target::Down, 16, 8)),
        ]
    } else {
        vec![
            Box::new(site(Target::CAttn, 8, 24)),
            Box::new(site(Target::AttnCProj, 8, 8)),
            Box::new(site(Target::CFc, 8, 32)),
            Box::new(site(Target::MlpCProj, 32, 8)),
        ]
    };
    (0..2).flat_map(|layer| block.iter().map(move |site| site(layer))).collect()
}

/// Folders written by PEFT 0.21.2 itself (`fixtures/with_peft.py make`).
#[test]
fn folders_of_the_real_peft() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/store_suite/fixtures");
    for (family, targets, rslora) in [
        ("llama", vec![Target::Q, Target::V, Target::Down], true),
        ("gpt2", vec![Target::CAttn, Target::AttnCProj, Target::MlpCProj], false),
    ] {
        let read = import(&fixtures.join(format!("peft_{family}")), &tiny(family)).unwrap();
        let expected = AdapterSpec { lora_rank: 2, alpha: 3.0, rslora, dropout: 0.05, targets };
        assert_eq!(read.spec, expected);
        // The script numbers the values over the keys in sorted order.
        let mut tensors: Vec<_> =
            read.sites.tensors(2).map(|(s, half, range)| (s.peft_key(half), range)).collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let values = tensors.into_iter().flat_map(|(_, range)| read.params[range].to_vec());
        let numbers = (0u8..97).cycle().take(read.params.len()).map(f32::from);
        assert_eq!(values.collect::<Vec<_>>(), numbers.collect::<Vec<_>>());
    }
}

/// Leaves exports of both families where `fixtures/with_peft.py check` finds them.
#[test]
fn for_the_script() {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peft_export");
    let _ = std::fs::remove_dir_all(&root);
    for family in ["llama", "gpt2"] {
        let sites = SiteList::new(tiny(family)).unwrap();
        let targets = sites.targets();
        let spec = AdapterSpec { lora_rank: 2, alpha: 1.5, rslora: true, dropout: 0.05, targets };
        let len = u16::try_from(sites.params(2)).unwrap();
        let params: Vec<f32> = (0..len).map(|i| f32::from(i % 13) * 0.05 - 0.3).collect();
        let (base_hash, config_hash) = ("b".to_owned(), "c".to_owned());
        let provenance = Provenance { base_hash, config_hash, steps: 1, final_loss: Some(0.25) };
        let adapter =
            AdapterRef { spec: &spec, sites: &sites, params: &params, provenance: &provenance };
        let store = root.join(format!("{family}-store"));
        let user = UserId::new("../u");
        let mut w = Writer::open(&store, 0).unwrap();
        w.commit(Commit { user: &user, generation: 1, outcome: Outcome::Adapter(adapter) })
            .unwrap();
        let options = ExportOptions {
            base_name_or_path: "tiny".into(),
            num_layers: 2,
            naming: Naming::Ordinal,
        };
        let list =
            export(&Store::open(&store).unwrap(), None, &root.join(family), &options).unwrap();
        let read = import(&root.join(family).join(&list[0].folder), &tiny(family)).unwrap();
        let base_hash = Some(provenance.base_hash.clone());
        assert_eq!(read, Imported { spec, sites, params, base_hash });
    }
}
