//! The run manifest: what a run is made of, and the refusal to resume another.

use super::error::{Error, Result};
use super::fs::{Fs, RealFs, write_atomic_in};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Name of the file in a run folder.
pub const FILE_NAME: &str = "manifest.json";
/// Version this build writes and reads.
pub const FORMAT_VERSION: u32 = 1;
const MAX_BYTES: u64 = 16 << 20;

/// What a run is made of. The first part binds: it must be equal for a run to be resumed. `environment` may change
/// (results do not depend on ranks and threads); what changed there is reported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Name of the run; taken over from the folder when a run is resumed.
    pub run_id: String,
    /// Hash of the resolved config.
    pub config_hash: String,
    /// The resolved config, so that a refusal can name the keys.
    pub config: Value,
    /// Hash of the base as read.
    pub base_hash: String,
    /// Hash of the base after the population adapter was merged; `None` until then.
    pub merged_hash: Option<String>,
    /// Fingerprint of the data set.
    pub data_fingerprint: String,
    /// Hash of the tokenizer.
    pub tokenizer_hash: String,
    /// What must be known but may change: versions, CPU features, threads, ranks.
    pub environment: BTreeMap<String, String>,
}

/// A key that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Path of the key, e.g. `config.train.learning_rate`.
    pub key: String,
    /// Value in the folder.
    pub old: String,
    /// Value now.
    pub new: String,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} -> {}", self.key, self.old, self.new)
    }
}

impl Manifest {
    /// Reads the manifest of a run folder; `None` when there is none.
    ///
    /// # Errors
    /// A file that is not a manifest of this version.
    pub fn load(run: &Path) -> Result<Option<Self>> {
        Self::load_in(&RealFs, run)
    }

    /// [`Self::load`] on any file system.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_in(fs: &dyn Fs, run: &Path) -> Result<Option<Self>> {
        let path = run.join(FILE_NAME);
        let refused = |what: String| Error::Refused { path: path.clone(), what };
        let len = match fs.len(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::io(&path))?,
        };
        if len > MAX_BYTES {
            return Err(refused("larger than any manifest".to_owned()));
        }
        let bytes = fs.read(&path).map_err(Error::io(&path))?;
        let manifest: Self =
            serde_json::from_slice(&bytes).map_err(|e| refused(format!("not a manifest: {e}")))?;
        if manifest.format_version != FORMAT_VERSION {
            let got = manifest.format_version;
            return Err(refused(format!(
                "manifest version {got}, this build knows {FORMAT_VERSION}"
            )));
        }
        Ok(Some(manifest))
    }

    /// Writes the manifest into a run folder, atomically.
    ///
    /// # Errors
    /// Of the system.
    pub fn save(&self, run: &Path) -> Result<()> {
        self.save_in(&RealFs, run)
    }

    /// [`Self::save`] on any file system.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn save_in(&self, fs: &dyn Fs, run: &Path) -> Result<()> {
        let path = run.join(FILE_NAME);
        let mut json = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::Refused { path: path.clone(), what: e.to_string() })?;
        json.push(b'\n');
        write_atomic_in(fs, &path, &json).map_err(Error::io(&path))
    }

    /// Compares the run in `run` (`self`) with the one about to go on there; `Ok` gives what changed in the environment.
    ///
    /// # Errors
    /// [`Error::Changed`] with one line for each binding key that differs, `key: old -> new`.
    pub fn check_resume(&self, now: &Self, run: &Path) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        for (key, old, new) in [
            ("config_hash", &self.config_hash, &now.config_hash),
            ("base_hash", &self.base_hash, &now.base_hash),
            ("data_fingerprint", &self.data_fingerprint, &now.data_fingerprint),
            ("tokenizer_hash", &self.tokenizer_hash, &now.tokenizer_hash),
        ] {
            diff(key, &Value::from(old.as_str()), &Value::from(new.as_str()), &mut changes);
        }
        // Not known before the merge has run again.
        if let (Some(old), Some(new)) = (&self.merged_hash, &now.merged_hash) {
            diff(
                "merged_hash",
                &Value::from(old.as_str()),
                &Value::from(new.as_str()),
                &mut changes,
            );
        }
        diff("config", &self.config, &now.config, &mut changes);
        if !changes.is_empty() {
            let lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
            return Err(Error::Changed { path: run.join(FILE_NAME), diff: lines.join("\n") });
        }
        let (old, new) = (&self.environment, &now.environment);
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for name in names {
            let value = |map: &BTreeMap<String, String>| {
                map.get(name).map_or(Value::Null, |v| v.as_str().into())
            };
            diff(&format!("environment.{name}"), &value(old), &value(new), &mut changes);
        }
        Ok(changes)
    }
}

/// Collects the leaves in which two values differ; `null` stands for a key that is not there.
fn diff(key: &str, old: &Value, new: &Value, changes: &mut Vec<Change>) {
    if let (Value::Object(a), Value::Object(b)) = (old, new) {
        let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for name in names {
            let value = |map: &serde_json::Map<String, Value>| {
                map.get(name).cloned().unwrap_or(Value::Null)
            };
            diff(&format!("{key}.{name}"), &value(a), &value(b), changes);
        }
    } else if old != new {
        changes.push(Change { key: key.to_owned(), old: old.to_string(), new: new.to_string() });
    }
}
