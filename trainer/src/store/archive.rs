//! Reading a store: all ranks' archives as one.

use super::adapter::Adapter;
use super::error::{Error, Result};
use super::fs::{Fs, RealFs};
use super::index::{Entry, Status, absorb};
use super::rank::{folder_name, load, ranks, segment_path};
use super::record::{Kind, Record};
use crate::ids::UserKey;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A store as it was when opened; takes no lock and changes nothing.
#[derive(Debug, Clone)]
pub struct Store {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    entries: BTreeMap<UserKey, Entry>,
}

impl Store {
    /// Merges what the `rank-*` folders hold, whatever number of ranks wrote them; no folder is an empty store.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when something committed is damaged; [`Error::Conflict`] when two ranks disagree.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_in(Arc::new(RealFs), dir)
    }

    /// [`Self::open`] on any file system.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_in(fs: Arc<dyn Fs>, dir: &Path) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for rank in ranks(&*fs, dir)? {
            let state = load(&*fs, &dir.join(folder_name(rank)), rank)?;
            for entry in state.index.entries.into_values() {
                absorb(&mut entries, entry)?;
            }
        }
        Ok(Self { fs, dir: dir.to_owned(), entries })
    }

    /// Every user known, whatever became of them, by key.
    pub fn users(&self) -> &BTreeMap<UserKey, Entry> {
        &self.entries
    }

    /// The users whose adapter is there, by key.
    pub fn done(&self) -> BTreeMap<UserKey, Entry> {
        let done = self.entries.iter().filter(|(_, e)| e.status == Status::Done);
        done.map(|(k, e)| (*k, e.clone())).collect()
    }

    /// The generation a new commit of this user must have: one above the newest.
    pub fn next_generation(&self, key: &UserKey) -> u64 {
        self.entries.get(key).map_or(0, |e| e.generation) + 1
    }

    /// A user's adapter: checksums compared with record and index, exact keys, shapes, finite values.
    ///
    /// # Errors
    /// [`Error::UnknownUser`]; [`Error::Corrupt`].
    pub fn get(&self, key: &UserKey) -> Result<Adapter> {
        let (entry, payload) = self.read(key)?;
        let path = self.path(entry);
        let decoded = Adapter::decode(key, &payload);
        decoded.map_err(|what| Error::corrupt(&path, entry.place.offset, Some(*key), &what))
    }

    /// A user's adapter as bytes: a safetensors file that PEFT reads, compared with record and index.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn payload(&self, key: &UserKey) -> Result<Vec<u8>> {
        Ok(self.read(key)?.1)
    }

    /// BLAKE3 over (key, kind, BLAKE3 of the payload) of the users done or quarantined, by key: equal for stores of
    /// equal content, whatever ranks, order and interruptions made them.
    pub fn content_hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 store content");
        for (key, entry) in &self.entries {
            let kind = match entry.status {
                Status::Done => 1,
                Status::Quarantined { .. } => 2,
                Status::Forgotten => continue,
            };
            hasher.update(&key.0).update(&[kind]).update(&entry.payload_hash);
        }
        *hasher.finalize().as_bytes()
    }

    fn path(&self, entry: &Entry) -> PathBuf {
        segment_path(&self.dir.join(folder_name(entry.place.rank)), entry.place.segment)
    }

    fn read(&self, key: &UserKey) -> Result<(&Entry, Vec<u8>)> {
        let entry = self.entries.get(key).filter(|e| e.status == Status::Done);
        let entry = entry.ok_or(Error::UnknownUser { key: *key })?;
        let (path, offset) = (self.path(entry), entry.place.offset);
        let corrupt = |what| Error::corrupt(&path, offset, Some(*key), what);
        let len = self.fs.len(&path).map_err(Error::io(&path))?;
        let record = Record::read(&*self.fs, &path, offset, len)?;
        let record = record.map_err(|(what, _)| corrupt(what))?;
        let header = record.header;
        if (header.key, header.kind, header.generation) != (*key, Kind::Adapter, entry.generation) {
            return Err(corrupt("another record lies where the index points"));
        }
        if *blake3::hash(record.payload()).as_bytes() != entry.payload_hash {
            return Err(corrupt("the payload is not the one that was committed"));
        }
        Ok((entry, record.payload().to_vec()))
    }
}
