//! `adapter_config.json`: the fields written, and what is read, ignored or refused.

use crate::lora::{AdapterSpec, Family, SiteList, SiteSpec, Target};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Fields that change nothing about the function the adapter computes, whatever they hold.
const WITHOUT_EFFECT: [&str; 11] = [
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out", // how the base is stored; A and B are stored the same either way
    "inference_mode",
    "peft_version",
    "revision",
    "task_type",
    "megatron_core",
    "qalora_group_size",
    "lora_dropout",
    "runtime_config",
];

/// The config of an adapter, in the fields PEFT 0.5 and 0.21 both know, keys sorted as PEFT sorts them.
pub(super) fn to_json(spec: &AdapterSpec, sites: &SiteList, base: &str, num_layers: u32) -> Value {
    let layers = sites.layers();
    // A list of layers only where it says something; where it cannot say it, each module by its path.
    let (modules, layers) = if !sites.is_rectangular() {
        (sites.entries().iter().map(|e| e.spec.module_path()).collect(), Value::Null)
    } else if layers.len() == num_layers as usize {
        (Target::names(&sites.targets()), Value::Null)
    } else {
        (Target::names(&sites.targets()), json!(layers))
    };
    json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": sites.family() == Family::Gpt2,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": layers,
        "lora_alpha": number(spec.alpha),
        "lora_dropout": spec.dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": spec.lora_rank,
        "rank_pattern": {},
        "revision": null,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": spec.rslora,
    })
}

/// PEFT writes a whole alpha as an integer.
fn number(alpha: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "whole and in range, so exact")]
    if alpha.fract() == 0.0 && alpha.abs() < 1e15 { json!(alpha as i64) } else { json!(alpha) }
}

/// What a config says of a base with these products: the recipe and the sites.
///
/// # Errors
/// What is refused and why.
pub(super) fn from_json(
    config: &Value,
    available: &[SiteSpec],
) -> Result<(AdapterSpec, SiteList), String> {
    let map = config.as_object().ok_or("the config is not a JSON object")?;
    match map.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        other => return Err(format!("peft_type is {other:?}, only \"LORA\" can be imported")),
    }
    for (name, value) in map {
        refuse(name, value)?;
    }
    let lora_rank = map.get("r").and_then(Value::as_u64).and_then(|r| u32::try_from(r).ok());
    let alpha = map.get("lora_alpha").and_then(Value::as_f64);
    let dropout = map.get("lora_dropout").map_or(Some(0.0), Value::as_f64);
    let rslora = map.get("use_rslora").map_or(Some(false), Value::as_bool);
    let sites = sites(map, available)?;
    let spec = AdapterSpec {
        lora_rank: lora_rank.ok_or("r is missing or not a rank")?,
        alpha: alpha.ok_or("lora_alpha is missing or not a number")?,
        rslora: rslora.ok_or("use_rslora is not true or false")?,
        dropout: dropout.ok_or("lora_dropout is not a number")?,
        targets: sites.targets(),
    };
    spec.check().map_err(|e| e.to_string())?;
    Ok((spec, sites))
}

/// Refuses a field that asks for something a plain LoRA is not.
fn refuse(name: &str, value: &Value) -> Result<(), String> {
    let known =
        ["peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "layers_to_transform"];
    if known.contains(&name) || WITHOUT_EFFECT.contains(&name) {
        return Ok(());
    }
    let empty = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => false,
    };
    let plain = match name {
        "bias" => value == "none",
        // Others (pissa, olora, loftq, corda, …) change the base's weights too. False also occurs and counts as empty.
        "init_lora_weights" => value == true || value == "gaussian" || value == "orthogonal",
        "layers_pattern" => ["layers", "h"].iter().any(|p| value == *p || *value == json!([p])),
        _ => false,
    };
    if empty || plain {
        return Ok(());
    }
    let why = match name {
        "rank_pattern" | "alpha_pattern" => ": one rank and one alpha for all sites is supported",
        "use_dora" => ": DoRA is not LoRA",
        "modules_to_save" => ": whole modules beside the LoRA matrices are not supported",
        _ => "",
    };
    let value = value.to_string();
    let shown: String = value.chars().take(80).collect();
    Err(format!("{name} is {shown}{why}; only a plain LoRA can be imported"))
}

/// The sites `target_modules` and `layers_to_transform` select, by PEFT's rule: a name selects the modules whose path
/// is it or ends in a dot and it.
fn sites(map: &Map<String, Value>, available: &[SiteSpec]) -> Result<SiteList, String> {
    let layers = match map.get("layers_to_transform") {
        None | Some(Value::Null) => None,
        Some(Value::Array(list)) => Some(list.as_slice()),
        Some(one) => Some(std::slice::from_ref(one)),
    };
    let layers: Option<BTreeSet<u64>> = match layers {
        Some(list) => {
            let numbers: Option<_> = list.iter().map(Value::as_u64).collect();
            Some(numbers.ok_or("layers_to_transform is not a list of layers")?)
        }
        None => None,
    };
    let in_layers = |s: &SiteSpec| layers.as_ref().is_none_or(|l| l.contains(&u64::from(s.layer)));
    let mut chosen = BTreeSet::new();
    match map.get("target_modules") {
        Some(Value::String(all)) if all == "all-linear" => chosen.extend(available.iter().copied()),
        Some(Value::Array(names)) if !names.is_empty() => {
            for name in names {
                let name = name.as_str().ok_or("target_modules is not a list of names")?;
                let matches = |s: &&SiteSpec| {
                    let path = s.module_path();
                    path == name || path.strip_suffix(name).is_some_and(|p| p.ends_with('.'))
                };
                let found: Vec<SiteSpec> = available.iter().filter(matches).copied().collect();
                if found.is_empty() {
                    return Err(format!(
                        "target_modules has {name:?}, which this base cannot adapt"
                    ));
                }
                chosen.extend(found);
            }
        }
        Some(Value::String(_)) => {
            return Err("target_modules is a pattern; a list is needed".to_owned());
        }
        _ => return Err("target_modules is missing or empty".to_owned()),
    }
    if let Some(layer) =
        layers.iter().flatten().find(|l| available.iter().all(|s| u64::from(s.layer) != **l))
    {
        return Err(format!("layers_to_transform has {layer}, which this base has not"));
    }
    SiteList::new(chosen.into_iter().filter(in_layers).collect()).map_err(|e| e.to_string())
}
