//! A PEFT folder to a recipe and a flat parameter vector.

use super::super::adapter::BASE_KEY;
use super::super::error::{Error, Result};
use super::super::fs::{Fs, RealFs};
use super::super::tensors::{File, MAX_HEADER, Tensor, parse};
use super::{CONFIG_FILE, WEIGHTS_FILE, config};
use crate::lora::{AdapterSpec, Half, SiteList, SiteSpec, Target};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::path::Path;

const MAX_CONFIG: u64 = 1 << 20;

/// An adapter out of a PEFT folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// Its recipe.
    pub spec: AdapterSpec,
    /// Its sites.
    pub sites: SiteList,
    /// The flat parameter vector, f32.
    pub params: Vec<f32>,
    /// Hash of the base it was trained on, where the file says so: ours do, PEFT's do not.
    pub base_hash: Option<String>,
}

/// Reads a PEFT folder for a base that can adapt `available` (all products of all its layers). F16 and BF16 are widened.
///
/// # Errors
/// [`Error::Refused`] naming what is missing, unknown, of a wrong shape or type, or not plain LoRA;
/// [`Error::NotFinite`]. Memory stays within the size the adapter must have.
pub fn import(folder: &Path, available: &[SiteSpec]) -> Result<Imported> {
    let config_path = folder.join(CONFIG_FILE);
    let refused_config = |what: String| Error::Refused { path: config_path.clone(), what };
    let len = RealFs.len(&config_path).map_err(Error::io(&config_path))?;
    if len > MAX_CONFIG {
        return Err(refused_config("the config is larger than 1 MiB".to_owned()));
    }
    let bytes = RealFs.read(&config_path).map_err(Error::io(&config_path))?;
    let json = serde_json::from_slice(&bytes).map_err(|e| refused_config(e.to_string()))?;
    let (spec, sites) = config::from_json(&json, available).map_err(refused_config)?;

    let path = folder.join(WEIGHTS_FILE);
    let refused = |what: String| Error::Refused { path: path.clone(), what };
    let len = match RealFs.len(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let what = "missing; .bin, .pt and .pth files can run code when read and are never opened: \
                        save the adapter as safetensors";
            return Err(refused(what.to_owned()));
        }
        other => other.map_err(Error::io(&path))?,
    };
    let num_params = sites.params(spec.lora_rank as usize);
    let most = (num_params as u64).saturating_mul(4).saturating_add(MAX_HEADER as u64 + 8);
    if len > most {
        return Err(refused(format!("{len} bytes, more than the {most} such an adapter can take")));
    }
    let bytes = RealFs.read(&path).map_err(Error::io(&path))?;
    let mut found = BTreeMap::new();
    let File { metadata, tensors } = parse(&bytes, &path)?;
    for (name, tensor) in tensors {
        let place = SiteSpec::parse_peft_key(&name).map_err(|e| refused(e.to_string()))?;
        if found.insert(place, tensor).is_some() {
            return Err(refused(format!(
                "{name} is there twice, with and without an adapter's name"
            )));
        }
    }
    let params = flatten(&sites, spec.lora_rank as usize, found, &refused)?;
    for (site, half, range) in sites.tensors(spec.lora_rank as usize) {
        if !params[range].iter().all(|v| v.is_finite()) {
            return Err(Error::NotFinite { tensor: site.peft_key(half) });
        }
    }
    Ok(Imported { spec, sites, params, base_hash: metadata.get(BASE_KEY).cloned() })
}

/// Puts the tensors in the order of the flat vector: each once, none left.
fn flatten(
    sites: &SiteList,
    lora_rank: usize,
    mut found: BTreeMap<(u32, Target, Half), Tensor<'_>>,
    refused: &dyn Fn(String) -> Error,
) -> Result<Vec<f32>> {
    let mut params =
        Vec::with_capacity(found.values().map(|t| t.shape.iter().product::<usize>()).sum());
    for (site, half, _) in sites.tensors(lora_rank) {
        let name = site.peft_key(half);
        let tensor = found.remove(&(site.layer, site.target, half));
        let tensor = tensor.ok_or_else(|| refused(format!("{name} is missing")))?;
        let expected = site.shape(half, lora_rank);
        if tensor.shape != expected {
            let got = &tensor.shape;
            return Err(refused(format!("{name} has shape {got:?}, expected {expected:?}")));
        }
        let pairs = || tensor.data.chunks_exact(2).map(|b| [b[0], b[1]]);
        match tensor.dtype {
            Dtype::F32 => {
                let four = tensor.data.chunks_exact(4);
                params.extend(four.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            }
            Dtype::F16 => params.extend(pairs().map(|b| half::f16::from_le_bytes(b).to_f32())),
            Dtype::BF16 => params.extend(pairs().map(|b| half::bf16::from_le_bytes(b).to_f32())),
            other => {
                return Err(refused(format!("{name} is {other:?}, expected F32, F16 or BF16")));
            }
        }
    }
    match found.first_key_value() {
        None => Ok(params),
        Some(((layer, target, _), _)) => {
            let path = target.module_path(*layer);
            Err(refused(format!("matrices of {path}, which the config does not name")))
        }
    }
}
