//! Whether two configs are the same, and where they differ.

use super::error::Error;
use super::keys::{Effect, SECTIONS, Section};
use super::resolved::Config;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;

/// BLAKE3 of a config's canonical JSON: keys sorted, no spaces, numbers in their shortest form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// A key whose value differs between two configs; values as JSON, `None` where unset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The key with its section.
    pub key: String,
    /// Its value in the first config.
    pub was: Option<String>,
    /// Its value in the second.
    pub is: Option<String>,
    /// Whether it can change results.
    pub effect: Effect,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |v: &Option<String>| v.clone().unwrap_or_else(|| "(unset)".to_owned());
        write!(f, "{}: {} -> {}", self.key, side(&self.was), side(&self.is))
    }
}

impl Config {
    /// The hash of every value.
    ///
    /// # Errors
    /// A value JSON cannot say.
    pub fn hash(&self) -> Result<Hash, Error> {
        whole(self)
    }

    /// The hash of what can change results: without the run's name and folder, the paths of base and data (whose bytes
    /// are hashed by their readers) and the layout of the work. Two runs with equal result hashes, base and data give
    /// equal bytes.
    ///
    /// # Errors
    /// A value JSON cannot say.
    pub fn result_hash(&self) -> Result<Hash, Error> {
        results(self, SECTIONS)
    }

    /// Where `self` and `other` differ, by key.
    ///
    /// # Errors
    /// A value JSON cannot say.
    pub fn differences(&self, other: &Config) -> Result<Vec<Difference>, Error> {
        differences(self, other, SECTIONS)
    }
}

/// The hash of every value of a config.
pub(super) fn whole(config: &impl Serialize) -> Result<Hash, Error> {
    Ok(hash_of(&json(config)?, "myriad 2026 config"))
}

/// The hash of a config's values without those that say where and how fast.
pub(super) fn results(config: &impl Serialize, sections: &[Section]) -> Result<Hash, Error> {
    let mut whole = json(config)?;
    for section in sections {
        for key in section.keys.iter().filter(|k| k.effect == Effect::Placement) {
            if let Some(table) = whole.get_mut(section.name).and_then(Value::as_object_mut) {
                table.remove(key.name);
            }
        }
    }
    Ok(hash_of(&whole, "myriad 2026 config results"))
}

/// Where two configs of the same sections differ, by key.
pub(super) fn differences<C: Serialize>(
    was: &C,
    is: &C,
    sections: &[Section],
) -> Result<Vec<Difference>, Error> {
    let (was, is) = (flat(&json(was)?), flat(&json(is)?));
    let keys: std::collections::BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    let differ = keys.into_iter().filter(|key| was.get(*key) != is.get(*key));
    let difference = |key: &String| Difference {
        key: key.clone(),
        was: was.get(key).cloned(),
        is: is.get(key).cloned(),
        effect: effect(key, sections),
    };
    Ok(differ.map(difference).collect())
}

/// Whether a key, given with its section, can change results.
pub(super) fn effect(path: &str, sections: &[Section]) -> Effect {
    let Some((section, name)) = path.split_once('.') else { return Effect::Result };
    let section = sections.iter().find(|s| s.name == section);
    let key = section.and_then(|s| s.keys.iter().find(|k| k.name == name));
    key.map_or(Effect::Result, |k| k.effect)
}

fn json(config: &impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(config).map_err(|e| Error::Unsayable { reason: e.to_string() })
}

fn hash_of(value: &Value, domain: &str) -> Hash {
    Hash(blake3::derive_key(domain, sorted(value).to_string().as_bytes()))
}

/// The value with the keys of every object in order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered: BTreeMap<&String, Value> =
                map.iter().map(|(k, v)| (k, sorted(v))).collect();
            Value::Object(ordered.into_iter().map(|(k, v)| (k.clone(), v)).collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// Every value that is no object, by its path.
fn flat(value: &Value) -> BTreeMap<String, String> {
    fn into(value: &Value, path: &str, out: &mut BTreeMap<String, String>) {
        match value.as_object() {
            None => {
                out.insert(path.to_owned(), sorted(value).to_string());
            }
            Some(map) => {
                for (key, value) in map {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    into(value, &path, out);
                }
            }
        }
    }
    let mut out = BTreeMap::new();
    into(value, "", &mut out);
    out
}
