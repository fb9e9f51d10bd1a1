//! Users of a store to PEFT folders.

use super::super::archive::Store;
use super::super::error::{Error, Result};
use super::super::fs::{Fs, RealFs, write_atomic};
use super::super::index::Entry;
use super::{CONFIG_FILE, USERS_FILE, WEIGHTS_FILE, config};
use crate::ids::UserKey;
use serde_json::json;
use std::path::{Path, PathBuf};

/// How folders are called; never by the user's id, and without a dot, which PEFT's adapter names must not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// `000000`, `000001`, … in the order of the keys exported.
    Ordinal,
    /// The first 16 hexadecimal digits of the key, more where two begin alike.
    Key,
}

/// What an export needs to know.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// Written as `base_model_name_or_path`: where PEFT finds the base.
    pub base_name_or_path: String,
    /// Layers of the base; an adapter of fewer lists its layers.
    pub num_layers: u32,
    /// How folders are called.
    pub naming: Naming,
}

/// One user's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The user.
    pub entry: Entry,
    /// Folder below the export's.
    pub folder: String,
}

/// Writes the adapters of `users` (all that are done, if `None`) below `dir`, one folder each, and `users.json` last:
/// its presence says the export is whole.
///
/// *Writes* in each folder the record's payload, byte for byte, and the config where there is anything of low rank.
///
/// # Errors
/// [`Error::UnknownUser`] before anything is written; [`Error::Refused`] when `dir` is not empty.
pub fn export(
    store: &Store,
    users: Option<&[UserKey]>,
    dir: &Path,
    options: &ExportOptions,
) -> Result<Vec<Exported>> {
    let done = store.done();
    let mut keys: Vec<UserKey> = match users {
        Some(list) => list.to_vec(),
        None => done.keys().copied().collect(),
    };
    keys.sort_unstable();
    keys.dedup();
    if let Some(key) = keys.iter().find(|k| !done.contains_key(k)) {
        return Err(Error::UnknownUser { key: *key });
    }
    RealFs.create_dir(dir).map_err(Error::io(dir))?;
    let mut inside = std::fs::read_dir(dir).map_err(Error::io(dir))?;
    if inside.next().is_some() {
        let what = "the folder is not empty; an export goes into a new one".to_owned();
        return Err(Error::Refused { path: dir.to_owned(), what });
    }
    let folders = folders(&keys, options.naming);
    let mut exported = Vec::with_capacity(keys.len());
    for (key, folder) in keys.iter().zip(folders) {
        let entry = done.get(key).cloned().ok_or(Error::UnknownUser { key: *key })?;
        write_one(store, key, &dir.join(&folder), options)?;
        exported.push(Exported { entry, folder });
    }
    let users: Vec<_> = exported
        .iter()
        .map(|e| json!({"id": e.entry.user, "key": e.entry.key.hex(), "folder": e.folder}))
        .collect();
    write_json(&dir.join(USERS_FILE), &json!({"format_version": 1, "users": users}))?;
    Ok(exported)
}

fn write_one(store: &Store, key: &UserKey, folder: &Path, options: &ExportOptions) -> Result<()> {
    let adapter = store.get(key)?;
    let payload = adapter.view().encode(key)?;
    let layers = adapter.sites.layers();
    if layers.last().is_some_and(|l| *l >= options.num_layers) {
        let what =
            format!("the adapter has layer {:?}, the base {}", layers.last(), options.num_layers);
        return Err(Error::Refused { path: folder.to_owned(), what });
    }
    RealFs.create_dir(folder).map_err(Error::io(folder))?;
    // Whole tensors alone are no adapter: PEFT would look for matrices that are not there.
    if !adapter.sites.entries().is_empty() {
        let (base, layers) = (&options.base_name_or_path, options.num_layers);
        let config = config::to_json(&adapter.spec, &adapter.sites, base, layers);
        write_json(&folder.join(CONFIG_FILE), &config)?;
    }
    let path: PathBuf = folder.join(WEIGHTS_FILE);
    write_atomic(&path, &payload).map_err(Error::io(&path))
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let refused =
        |e: serde_json::Error| Error::Refused { path: path.to_owned(), what: e.to_string() };
    let bytes = serde_json::to_vec_pretty(value).map_err(refused)?;
    write_atomic(path, &bytes).map_err(Error::io(path))
}

/// Distinct folder names for distinct, sorted keys.
fn folders(keys: &[UserKey], naming: Naming) -> Vec<String> {
    if naming == Naming::Ordinal {
        return (0..keys.len()).map(|i| format!("{i:06}")).collect();
    }
    let hex: Vec<String> = keys.iter().map(UserKey::hex).collect();
    // Sorted, so the longest common beginning of any two is one of neighbours.
    let alike = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let longest = hex.windows(2).map(|w| alike(&w[0], &w[1])).max().unwrap_or(0);
    let digits = (longest + 1).clamp(16, 64);
    hex.into_iter().map(|h| h[..digits].to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_names_are_distinct() {
        let mut near = [7; 32];
        near[31] = 8;
        let keys = [UserKey([7; 32]), UserKey(near)];
        assert_eq!(folders(&keys, Naming::Ordinal), ["000000", "000001"]);
        let names = folders(&keys, Naming::Key);
        assert_ne!(names[0], names[1]);
        assert_eq!(folders(&keys[..1], Naming::Key), ["0707070707070707"]);
    }
}
