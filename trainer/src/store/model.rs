//! Event models and their checkpoints on disk: safetensors files, written whole or not at all.
//!
//! A model's file has its parameters under their names, its specification and a hash of both; a checkpoint's has all
//! that training continues from, as flat vectors.

use super::error::{Error, Result};
use super::fs::write_atomic;
use super::tensors::{File, Header, parse};
use crate::model::event::{EventSpec, Places};
use safetensors::Dtype;
use std::path::Path;

/// An event model as it lies on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFile {
    /// What it is.
    pub spec: EventSpec,
    /// Its parameters, laid out as [`Places`] says.
    pub params: Vec<f32>,
}

/// All that training continues from.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Steps finished.
    pub step: u32,
    /// Parameters.
    pub params: Vec<f32>,
    /// First moments of the parameters that train, the last ones.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
    /// The best epoch so far.
    pub best: Option<Best>,
}

/// An epoch's model, chosen by the validation windows.
#[derive(Debug, Clone, PartialEq)]
pub struct Best {
    /// Mean loss of the validation windows.
    pub loss: f64,
    /// Epochs after it.
    pub epochs_since: u32,
    /// Parameters.
    pub params: Vec<f32>,
}

impl State {
    /// Before the first step.
    pub fn new(params: Vec<f32>) -> Self {
        Self::partly(params, 0)
    }

    /// Before the first step of a training that leaves the first `frozen` parameters as they are.
    pub fn partly(params: Vec<f32>, frozen: usize) -> Self {
        let zeros = vec![0.0; params.len().saturating_sub(frozen)];
        Self { step: 0, params, m: zeros.clone(), v: zeros, best: None }
    }

    /// The parameters to go on with: the best epoch's, if one was chosen.
    pub fn into_params(self) -> Vec<f32> {
        self.best.map_or(self.params, |best| best.params)
    }
}

const SPEC: &str = "myriad.event_model";
const HASH: &str = "myriad.hash";

impl ModelFile {
    /// BLAKE3 of specification and parameters, in hexadecimal digits: what adapters belong to.
    pub fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 event model");
        hasher.update(self.spec_json().as_bytes());
        for value in &self.params {
            hasher.update(&value.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    fn spec_json(&self) -> String {
        serde_json::to_string(&self.spec).unwrap_or_default()
    }

    /// Writes the file, atomically.
    ///
    /// # Errors
    /// A parameter that is not finite; of the system.
    pub fn save(&self, path: &Path) -> Result<()> {
        let places = Places::new(&self.spec);
        if places.len() != self.params.len() {
            let what = format!("{} parameters, the model has {}", self.params.len(), places.len());
            return Err(Error::Refused { path: path.to_owned(), what });
        }
        let mut header = Header::new(&[(SPEC, self.spec_json()), (HASH, self.hash())]);
        for place in places.tensors() {
            if !self.params[place.range()].iter().all(|v| v.is_finite()) {
                return Err(Error::NotFinite { tensor: place.name.clone() });
            }
            header.add(&place.name, &place.dims, place.range());
        }
        write_atomic(path, &header.with(&self.params).bytes).map_err(Error::io(path))
    }

    /// Reads such a file and compares its hash.
    ///
    /// # Errors
    /// A file that is not whole or not a model's; of the system.
    pub fn load(path: &Path) -> Result<Self> {
        let data = std::fs::read(path).map_err(Error::io(path))?;
        let refused = |what: String| Error::Refused { path: path.to_owned(), what };
        let file = parse(&data, path)?;
        let spec =
            file.metadata.get(SPEC).ok_or_else(|| refused("not an event model".to_owned()))?;
        let spec: EventSpec = serde_json::from_str(spec).map_err(|e| refused(e.to_string()))?;
        spec.validate().map_err(|e| refused(e.to_string()))?;
        let places = Places::new(&spec);
        let mut params = vec![0.0; places.len()];
        for place in places.tensors() {
            let tensor = file.tensors.get(&place.name);
            match tensor.filter(|t| t.dtype == Dtype::F32 && t.shape == place.dims) {
                Some(tensor) => floats(tensor.data, &mut params[place.range()]),
                None => return Err(refused(format!("no tensor {} of its form", place.name))),
            }
        }
        let model = Self { spec, params };
        if file.metadata.get(HASH) != Some(&model.hash()) {
            return Err(refused("its hash is not that of its parameters".to_owned()));
        }
        Ok(model)
    }
}

/// Writes a checkpoint of training, atomically; `config` is the hash of what the training is made of.
///
/// # Errors
/// Of the system.
pub fn save_checkpoint(path: &Path, state: &State, config: &str) -> Result<()> {
    let mut metadata = vec![("step", state.step.to_string()), ("config", config.to_owned())];
    let mut vectors = vec![("params", &state.params), ("m", &state.m), ("v", &state.v)];
    if let Some(best) = &state.best {
        vectors.push(("best", &best.params));
        metadata.push(("best.loss", best.loss.to_bits().to_string()));
        metadata.push(("best.epochs_since", best.epochs_since.to_string()));
    }
    let (mut header, mut all) = (Header::new(&metadata), Vec::new());
    for (name, values) in vectors {
        let start = all.len();
        all.extend_from_slice(values);
        header.add(name, &[values.len()], start..all.len());
    }
    write_atomic(path, &header.with(&all).bytes).map_err(Error::io(path))
}

/// Reads a checkpoint of the same training; `None` where there is none.
///
/// # Errors
/// A file that is not one, or of another training; of the system.
pub fn load_checkpoint(path: &Path, config: &str) -> Result<Option<State>> {
    let data = match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io(path))?,
    };
    let refused = |what: &str| Error::Refused { path: path.to_owned(), what: what.to_owned() };
    let file = parse(&data, path)?;
    if file.metadata.get("config").map(String::as_str) != Some(config) {
        return Err(refused("a checkpoint of another training"));
    }
    let vector = |name: &str| -> Result<Vec<f32>> {
        let tensor = file.tensors.get(name).filter(|t| t.dtype == Dtype::F32);
        let data = tensor.ok_or_else(|| refused(&format!("no vector {name}")))?.data;
        let mut values = vec![0.0; data.len() / 4];
        floats(data, &mut values);
        Ok(values)
    };
    let step = number(&file, "step").ok_or_else(|| refused("no step"))?;
    let best = match number::<u64>(&file, "best.loss") {
        None => None,
        Some(bits) => Some(Best {
            loss: f64::from_bits(bits),
            epochs_since: number(&file, "best.epochs_since")
                .ok_or_else(|| refused("no best.epochs_since"))?,
            params: vector("best")?,
        }),
    };
    let state = State { step, params: vector("params")?, m: vector("m")?, v: vector("v")?, best };
    let len = state.m.len();
    if state.v.len() != len || len > state.params.len() {
        return Err(refused("vectors of different lengths"));
    }
    Ok(Some(state))
}

fn number<T: std::str::FromStr>(file: &File<'_>, key: &str) -> Option<T> {
    file.metadata.get(key)?.parse().ok()
}

fn floats(data: &[u8], values: &mut [f32]) {
    for (value, b) in values.iter_mut().zip(data.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*b);
    }
}
