//! What cells of a study have in common, computed once: texts the base writes about users, answers of arms without
//! personal adapters, and the population stage.
//!
//! An entry's name is a hash of everything its bytes follow from: the weights that answer, every prompt token of every
//! user, the golds, the arithmetic's rules, the settings. Nothing is inferred from a config being "the same but for x":
//! a key that changes a prompt changes its tokens, so a wrong hit would be a collision of BLAKE3.
//! An entry is whole when its `entry.json` is there; files are checked against it before they are given out.

use super::digest::Digest;
use super::key::{arithmetic, each, prompts, settings, tokens};
use crate::run::Run;
use crate::shown::Shown;
use crate::watch::say;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use trainer::comm::Reduce;
use trainer::config::Arm;
use trainer::ids::UserId;
use trainer::model::cache::MappedBase;
use trainer::prompt::Example;
use trainer::stage::sample::Sampling;
use trainer::store::write_atomic;

/// The list of an entry's files.
const LIST: &str = "entry.json";
const ANSWERS: &str = "answers";
const PROFILES: &str = "profiles";

/// The folder of what cells share.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
}

/// One thing that cells may share: where it is kept and where the run wants it.
#[derive(Debug)]
pub(crate) struct Entry {
    kept: PathBuf,
    /// Files or folders below the run folder.
    wanted: Vec<PathBuf>,
    /// Whether it was there; then there is nothing to keep.
    found: bool,
}

/// A file of an entry.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sum {
    bytes: u64,
    blake3: String,
}

type Sums = BTreeMap<PathBuf, Sum>;

impl Cache {
    pub(crate) fn new(study: &Path) -> Self {
        Self { folder: study.join("cache") }
    }

    /// The folders of entries with a record for each user.
    pub(crate) fn of_users(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for kind in [ANSWERS, PROFILES] {
            let folder = self.folder.join(kind);
            if folder.is_dir() {
                found.extend(fs::read_dir(folder)?.map(|e| e.map(|e| e.path())).collect::<Result<
                    Vec<_>,
                    _,
                >>(
                )?);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Whether an entry's folder is whole; what is not is no entry.
    pub(crate) fn is_whole(entry: &Path) -> bool {
        entry.join(LIST).is_file()
    }

    /// The answers of `base`, without adapters, to the prompts of all users, put into the run if they are known;
    /// none if the run has the file already.
    pub(crate) fn answers(
        &self,
        run: &Run<'_>,
        (file, arm): (&Path, Arm),
        base: &MappedBase,
    ) -> anyhow::Result<Option<Entry>> {
        if there(run, file)? {
            return Ok(None);
        }
        let mut digest = Digest::new("myriad 2026 study answers 1");
        arithmetic(run, base, &mut digest);
        settings(run, &mut digest)?;
        prompts(run, Shown::to(arm), &mut digest)?;
        self.entry(run, ANSWERS, &digest, vec![file.to_owned()]).map(Some)
    }

    /// The population stage of these examples, put into the run if it is known; none if the run has it already.
    pub(crate) fn population(
        &self,
        run: &Run<'_>,
        examples: impl FnOnce() -> anyhow::Result<Vec<Example>>,
    ) -> anyhow::Result<Option<Entry>> {
        let (overlay, store) = (run.path("population/merged.myriad"), run.path("population/store"));
        // A stage that was cut off goes on with what it has.
        if there(run, &overlay)? || there(run, &store)? {
            return Ok(None);
        }
        let mut digest = Digest::new("myriad 2026 study population 1");
        arithmetic(run, &run.session.base, &mut digest);
        digest.bytes(&serde_json::to_vec(&run.session.config.population)?);
        digest.number(run.session.config.run.seed);
        for example in examples()? {
            digest.tokens(&example.tokens);
            digest.number(example.prompt_len as u64);
        }
        // The overlay last: it is what says that the stage is done.
        self.entry(run, "population", &digest, vec![store, overlay]).map(Some)
    }

    /// The texts the base writes about these users, asked with these tokens, put into the run if they are known.
    pub(crate) fn profiles(
        &self,
        run: &Run<'_>,
        (file, users): (&Path, usize),
        sampling: &Sampling,
        asked: &dyn Fn(usize) -> anyhow::Result<(UserId, Option<Vec<u32>>)>,
    ) -> anyhow::Result<Entry> {
        let mut digest = Digest::new("myriad 2026 study profiles 1");
        arithmetic(run, &run.session.base, &mut digest);
        tokens(run, &mut digest);
        digest.number(u64::from(sampling.temperature.to_bits()));
        digest.number(u64::from(sampling.top_p.to_bits()));
        digest.number(u64::from(sampling.top_k));
        digest.number(u64::from(sampling.max_new_tokens));
        digest.number(if sampling.temperature > 0.0 { sampling.seed } else { 0 });
        each(run, users, &mut digest, &|user, of_user| {
            let (id, asked) = asked(user)?;
            of_user.text(id.as_str());
            of_user.number(u64::from(asked.is_some()));
            of_user.tokens(&asked.unwrap_or_default());
            Ok(())
        })?;
        self.entry(run, PROFILES, &digest, vec![file.to_owned()])
    }

    fn entry(
        &self,
        run: &Run<'_>,
        kind: &str,
        digest: &Digest,
        wanted: Vec<PathBuf>,
    ) -> anyhow::Result<Entry> {
        let mut entry =
            Entry { kept: self.folder.join(kind).join(digest.name()), wanted, found: false };
        let found = run.leads() && entry.fetch(&run.session.folder)?;
        entry.found = run.comm.all_reduce_u64(Reduce::Max, u64::from(found))? > 0;
        if entry.found {
            run.say(&format!("{kind:<14} as in another cell"));
        }
        Ok(entry)
    }
}

impl Entry {
    /// Whether it was there, and now is in the run.
    pub(crate) fn found(&self) -> bool {
        self.found
    }

    /// Puts the entry's files into the run; false, with nothing done, if there is no whole entry.
    fn fetch(&self, run: &Path) -> anyhow::Result<bool> {
        let Ok(list) = fs::read(self.kept.join(LIST)) else { return Ok(false) };
        let good = serde_json::from_slice::<Sums>(&list).is_ok_and(|sums| {
            let whole = |(name, sum): (&PathBuf, &Sum)| {
                Sum::of(&self.kept.join(name)).is_ok_and(|now| now == *sum)
            };
            sums.iter().all(whole) && self.names(run).is_ok_and(|w| covers(&w, &sums))
        });
        if !good {
            say(&format!("{}: damaged, computed again", self.kept.display()));
            fs::remove_dir_all(&self.kept)?;
            return Ok(false);
        }
        for name in self.names(run)? {
            same_files(&self.kept.join(&name), &run.join(&name))?;
        }
        Ok(true)
    }

    /// Keeps the run's files for other cells, unless they came from there.
    pub(crate) fn keep(&self, run: &Run<'_>) -> anyhow::Result<()> {
        if self.found || !run.leads() {
            return Ok(());
        }
        self.store(&run.session.folder).with_context(|| format!("{}", self.kept.display()))
    }

    fn store(&self, run: &Path) -> anyhow::Result<()> {
        if self.kept.exists() {
            // A start that was cut off while it kept them.
            fs::remove_dir_all(&self.kept)?;
        }
        let mut sums = Sums::new();
        for name in self.names(run)? {
            same_files(&run.join(&name), &self.kept.join(&name))?;
            for file in files(&self.kept, &name)? {
                let sum = Sum::of(&self.kept.join(&file))?;
                sums.insert(file, sum);
            }
        }
        Ok(write_atomic(&self.kept.join(LIST), &serde_json::to_vec_pretty(&sums)?)?)
    }

    /// What is wanted, as named in the run folder.
    fn names(&self, run: &Path) -> anyhow::Result<Vec<PathBuf>> {
        let name = |path: &PathBuf| Ok(path.strip_prefix(run)?.to_owned());
        self.wanted.iter().map(name).collect()
    }
}

impl Sum {
    fn of(path: &Path) -> io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        let bytes = io::copy(&mut fs::File::open(path)?, &mut hasher)?;
        Ok(Self { bytes, blake3: hasher.finalize().to_hex().to_string() })
    }
}

/// Whether every wanted name has a file in the list, and nothing else does.
fn covers(wanted: &[PathBuf], sums: &Sums) -> bool {
    wanted.iter().all(|name| sums.keys().any(|file| file.starts_with(name)))
        && sums.keys().all(|file| wanted.iter().any(|name| file.starts_with(name)))
}

/// Whether rank 0 sees a path; the same answer on all ranks.
fn there(run: &Run<'_>, path: &Path) -> anyhow::Result<bool> {
    let seen = u64::from(run.leads() && path.exists());
    Ok(run.comm.all_reduce_u64(Reduce::Max, seen)? > 0)
}

/// The files at or below `name`, in order.
fn files(root: &Path, name: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let path = root.join(name);
    if path.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(&path)?.collect::<io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            found.extend(files(root, &name.join(entry.file_name()))?);
        }
    } else {
        found.push(name.to_owned());
    }
    Ok(found)
}

/// Makes `to` the same as `from`. A single file becomes a link to the same bytes where the file system has links: it
/// is only ever replaced, never written into. The files of a folder are copied: stores grow in place.
fn same_files(from: &Path, to: &Path) -> anyhow::Result<()> {
    let parent = to.parent().context("a file has a folder")?;
    fs::create_dir_all(parent)?;
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for file in files(from, Path::new(""))? {
            let at = to.join(&file);
            fs::create_dir_all(at.parent().context("a file has a folder")?)?;
            fs::copy(from.join(&file), at)?;
        }
        return Ok(());
    }
    if fs::hard_link(from, to).is_err() {
        let mut name = to.file_name().context("a file has a name")?.to_owned();
        name.push(".copy");
        let part = to.with_file_name(name);
        fs::copy(from, &part)?;
        fs::File::open(&part)?.sync_all()?;
        fs::rename(&part, to)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(root: &Path, run: &str) -> Entry {
        let run = root.join(run);
        Entry {
            kept: root.join("cache/k"),
            wanted: vec![run.join("population/store"), run.join("population/merged.myriad")],
            found: false,
        }
    }

    fn put(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_atomic(&path, text.as_bytes()).unwrap();
    }

    fn inode(path: PathBuf) -> u64 {
        std::os::unix::fs::MetadataExt::ino(&path.metadata().unwrap())
    }

    #[test]
    fn kept_files_come_back_and_damaged_ones_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        put(root.join("a/population/store/rank-0/x"), "adapter");
        put(root.join("a/population/merged.myriad"), "weights");
        let (a, b) = (entry(root, "a"), entry(root, "b"));
        assert!(!b.fetch(&root.join("b")).unwrap(), "nothing is kept yet");
        a.store(&root.join("a")).unwrap();
        assert!(b.fetch(&root.join("b")).unwrap());
        let text = |name: &str| fs::read_to_string(root.join("b/population").join(name)).unwrap();
        assert_eq!(
            (text("store/rank-0/x"), text("merged.myriad")),
            ("adapter".into(), "weights".into())
        );
        let overlay = |run: &str| inode(root.join(run).join("population/merged.myriad"));
        assert_eq!(overlay("a"), overlay("b"), "not one file");
        // The store was copied: what one run adds to it is not the other's.
        assert_ne!(
            inode(root.join("a/population/store/rank-0/x")),
            inode(root.join("b/population/store/rank-0/x"))
        );
        // One bit of one file changed in place: no hit, and the entry is gone.
        let mut file = fs::OpenOptions::new()
            .write(true)
            .open(root.join("a/population/merged.myriad"))
            .unwrap();
        io::Write::write_all(&mut file, b"W").unwrap();
        let c = entry(root, "c");
        assert!(!c.fetch(&root.join("c")).unwrap());
        assert!(!root.join("c").exists() && !root.join("cache/k").exists());
    }

    #[test]
    fn an_entry_without_its_list_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        put(root.join("cache/k/population/store/x"), "half");
        put(root.join("cache/k/population/merged.myriad"), "half");
        assert!(!entry(root, "a").fetch(&root.join("a")).unwrap());
        // Nor is one whose list lacks a file.
        put(root.join("cache/k/entry.json"), "{}");
        assert!(!entry(root, "a").fetch(&root.join("a")).unwrap());
        put(root.join("a/population/store/rank-0/x"), "adapter");
        put(root.join("a/population/merged.myriad"), "weights");
        entry(root, "a").store(&root.join("a")).unwrap();
        assert!(entry(root, "b").fetch(&root.join("b")).unwrap());
    }
}
