//! The store seen from outside: content, crashes, damage, forgetting, hostile ids, PEFT folders.
#![expect(clippy::unwrap_used, reason = "a test's helper may panic")]

mod archive;
mod crash;
mod damage;
mod ids;
mod manifest;
mod peft;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use trainer::ids::{UserId, UserKey};
use trainer::lora::{AdapterSpec, SiteList, SiteSpec, Target};
use trainer::store::crash::CrashFs;
use trainer::store::fs::Fs;
use trainer::store::{
    AdapterRef, Commit, Options, Outcome, Provenance, Result, Status, Store, Writer,
};

/// The store folder of the tests in memory.
fn dir() -> PathBuf {
    PathBuf::from("/run/store")
}

/// Two small Llama sites.
fn sites() -> SiteList {
    let site = |target, out_dim| SiteSpec { layer: 0, target, in_dim: 3, out_dim };
    SiteList::new(vec![site(Target::Q, 3), site(Target::V, 2)]).unwrap()
}

fn spec() -> AdapterSpec {
    let targets = sites().targets();
    AdapterSpec { lora_rank: 1, alpha: 2.0, rslora: false, dropout: 0.05, targets }
}

/// An adapter that depends on the user alone.
fn params(user: &str) -> Vec<f32> {
    let hash = UserId::new(user).key().0;
    (0..sites().params(1)).map(|i| f32::from(hash[i]) / 256.0).collect()
}

fn commit_adapter(writer: &mut Writer, users: &[(&str, u64)]) -> Result<()> {
    let (sites, spec) = (sites(), spec());
    let (base_hash, config_hash) = ("base".to_owned(), "config".to_owned());
    let provenance = Provenance { base_hash, config_hash, steps: 3, final_loss: Some(0.5) };
    let ids: Vec<UserId> = users.iter().map(|(u, _)| UserId::new(u)).collect();
    let all: Vec<Vec<f32>> = users.iter().map(|(u, _)| params(u)).collect();
    let commits: Vec<Commit<'_>> = (0..users.len())
        .map(|i| Commit {
            user: &ids[i],
            generation: users[i].1,
            outcome: Outcome::Adapter(AdapterRef {
                spec: &spec,
                sites: &sites,
                params: &all[i],
                provenance: &provenance,
            }),
        })
        .collect();
    writer.commit_batch(&commits)
}

fn quarantine(writer: &mut Writer, user: &str, generation: u64, reason: &str) -> Result<()> {
    let outcome = Outcome::Quarantined { reason };
    writer.commit(Commit { user: &UserId::new(user), generation, outcome })
}

/// Small segments and a lazy index, so that every path of the writer is walked.
fn small() -> Options {
    Options { segment_bytes: 2000, index_every: 2 }
}

fn writer(fs: &CrashFs, rank: u32) -> Result<Writer> {
    Writer::open_in(Arc::new(fs.clone()), &dir(), rank, small())
}

fn open(fs: &CrashFs) -> Result<Store> {
    Store::open_in(Arc::new(fs.clone()), &dir())
}

fn key(user: &str) -> UserKey {
    UserId::new(user).key()
}

/// What a store says: per user the status and, where there is one, the adapter's bytes.
type Content = BTreeMap<UserKey, (Status, Option<Vec<u8>>)>;

fn content(store: &Store) -> Result<Content> {
    let mut all = Content::new();
    for (key, entry) in store.users() {
        let payload = match entry.status {
            Status::Done => {
                let adapter = store.get(key)?;
                let id = entry.user.as_ref().unwrap().as_str();
                assert_eq!(adapter.params, params(id), "another user's adapter for {id:?}");
                Some(store.payload(key)?)
            }
            _ => None,
        };
        all.insert(*key, (entry.status.clone(), payload));
    }
    Ok(all)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// Whether any file of the store holds the bytes.
fn found_in(fs: &CrashFs, needle: &[u8]) -> Vec<PathBuf> {
    let files = fs.files().into_iter();
    files.filter(|(_, bytes)| contains(bytes, needle)).map(|(path, _)| path).collect()
}

fn read(fs: &CrashFs, path: &Path) -> Vec<u8> {
    Fs::read(fs, path).unwrap()
}
