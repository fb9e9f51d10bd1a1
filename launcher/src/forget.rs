//! Taking one user out of a folder: a run's, or a study's with all its cells and what they share.
//!
//! Everything is looked at before anything is changed. What names the user only in passing (tables, pictures, answers
//! in LaMP's form) is removed and comes back with the next start of the run; records are rewritten without the user.
//! Cut off anywhere, the same command finishes: what is computed goes first, so the user is found until the end.
//! Start reading at [`forget`].

mod records;
mod resolved;

use crate::adapters::stores;
use crate::cli::ForgetArgs;
use crate::env::Env;
use crate::exit::Exit;
use crate::exit::Fails;
use crate::study::Cache;
use crate::watch::{print, say};
use anyhow::Context;
use records::{entries, lines, without};
use std::fs;
use std::path::{Path, PathBuf};
use trainer::config::Arm;
use trainer::ids::UserId;
use trainer::store::{Forgotten, may_forget};

/// Tables and plots of a study, below its folder.
const STUDY_TABLES: [&str; 4] = ["study.json", "study.csv", "study.txt", "plots"];
/// What a run or a study makes; anything else in a folder is somebody else's.
const OWN: [&str; 9] = [
    "store",
    "population",
    "predictions",
    "events",
    "cells",
    "cache",
    "config.toml",
    "manifest.json",
    "profiles.json",
];

/// What a folder has of a user.
#[derive(Debug, Default, Clone, Copy)]
struct Found {
    /// Folders of runs that have anything.
    runs: usize,
    ranks: usize,
    bytes: u64,
    /// Lines of predictions and events, texts about the user.
    records: usize,
    /// Overrides of configs that name the user.
    overrides: usize,
    /// Shared results of a study.
    shared: usize,
}

impl Found {
    fn add(&mut self, other: Self) {
        self.runs += other.runs;
        self.ranks += other.ranks;
        self.bytes += other.bytes;
        self.records += other.records;
        self.overrides += other.overrides;
        self.shared += other.shared;
    }
}

pub(crate) fn forget(args: &ForgetArgs, env: &Env) -> anyhow::Result<Exit> {
    let user = UserId::new(&args.user);
    let folder = Folder::at(&args.run)?;
    let mut known = Found::default();
    for run in &folder.runs {
        known.add(look(run, &user, env).with_context(|| format!("{}", run.display()))?);
    }
    known.shared = folder.cached(&user)?.len();
    if known.runs + known.shared == 0 {
        return Err(anyhow::anyhow!("nothing in {} is of user {user}", args.run.display()))
            .input("the user must be in the run, or in a cell of the study");
    }
    let tables = folder.remove_tables(&user)?;
    let mut gone = Found { shared: known.shared, ..Found::default() };
    for run in &folder.runs {
        gone.add(remove(run, &user, env).with_context(|| format!("{}", run.display()))?);
    }
    let runs = if folder.is_study { format!(" in {} cells", gone.runs) } else { String::new() };
    print(&format!(
        "user {user}{runs}: {} bytes of adapters in {} ranks and {} lines of predictions, events and profile texts removed",
        gone.bytes, gone.ranks, gone.records
    ));
    if gone.shared > 0 {
        say(&format!(
            "{} shared results are removed; cells to come compute theirs anew",
            gone.shared
        ));
    }
    if tables {
        say(
            "the tables named users and are removed: launcher evaluate --config FILE, or study, makes them anew",
        );
    }
    if gone.overrides > 0 {
        say(
            "individual.override named the user: take the id out of your own config too, or it is refused as another one",
        );
    }
    say(
        "the data files are yours: whatever is not finished yet, or new, still reads the user from them",
    );
    say("a population adapter trained on this user's data is not covered; exports are not either");
    for path in foreign(&args.run, &user)? {
        say(&format!("not made by a run, and names the user: {}", path.display()));
    }
    Ok(Exit::Done)
}

/// The folders of runs to go through.
struct Folder {
    root: PathBuf,
    runs: Vec<PathBuf>,
    is_study: bool,
}

impl Folder {
    /// The cells of a study, or a run alone.
    ///
    /// # Errors
    /// A cell of a study: its answers are in the others and in the cache too.
    fn at(root: &Path) -> anyhow::Result<Self> {
        let cells = root.join("cells");
        if cells.is_dir() {
            let runs = entries(&cells)?.into_iter().filter(|path| path.is_dir()).collect();
            return Ok(Self { root: root.to_owned(), runs, is_study: true });
        }
        let whole = root.canonicalize().with_context(|| format!("{}", root.display()));
        let whole = whole.input(crate::adapters::NO_RUN)?;
        let cells = whole.parent().filter(|p| p.file_name().is_some_and(|n| n == "cells"));
        let study = cells.and_then(Path::parent);
        if let Some(study) = study
            .filter(|s| s.join("cache").is_dir() || STUDY_TABLES.iter().any(|t| s.join(t).exists()))
        {
            return Err(anyhow::anyhow!(
                "{} is a cell of the study {}: the user is in its other cells and its cache too",
                root.display(),
                study.display()
            ))
            .input("forget the user in the whole study: --run with the study's folder");
        }
        Ok(Self { root: root.to_owned(), runs: vec![root.to_owned()], is_study: false })
    }

    /// The shared results with something of the user.
    fn cached(&self, user: &UserId) -> anyhow::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        if self.is_study {
            for entry in Cache::new(&self.root).of_users()? {
                if holds(&entry, user)? {
                    found.push(entry);
                }
            }
        }
        Ok(found)
    }

    /// Removes what is computed from records of users, and shared results; whether there were any tables.
    fn remove_tables(&self, user: &UserId) -> anyhow::Result<bool> {
        let mut removed = false;
        if self.is_study {
            for name in STUDY_TABLES {
                removed |= remove_path(&self.root.join(name))?;
            }
            // One that is not whole is no result, and may have anything.
            let broken =
                Cache::new(&self.root).of_users()?.into_iter().filter(|e| !Cache::is_whole(e));
            for entry in self.cached(user)?.into_iter().chain(broken) {
                remove_path(&entry)?;
            }
        }
        Ok(removed
            | self.runs.iter().try_fold(false, |any, run| anyhow::Ok(any | run_tables(run)?))?)
    }
}

/// Whether a shared result has something of the user.
fn holds(entry: &Path, user: &UserId) -> anyhow::Result<bool> {
    let mut folders = vec![entry.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder)? {
            if path.is_dir() {
                folders.push(path);
            } else if records::count(&path, user)? > 0 {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// What a run has of a user, with nothing changed.
///
/// # Errors
/// What could not be removed: a store that is being written, a file that is not what a run writes.
fn look(run: &Path, user: &UserId, env: &Env) -> anyhow::Result<Found> {
    let mut store = false;
    for path in stores(run)? {
        store |= may_forget(&path, &user.key())
            .input("wait until the run has ended; a damaged store is shown by launcher verify")?;
    }
    let mut found = Found { overrides: resolved::look(run, user, env)?, ..Found::default() };
    for path in recorded(run)? {
        found.records += records::count(&path, user)?;
    }
    found.runs = usize::from(store || found.overrides + found.records > 0);
    Ok(found)
}

/// Takes the user out of a run.
fn remove(run: &Path, user: &UserId, env: &Env) -> anyhow::Result<Found> {
    let mut gone = Found { overrides: resolved::remove(run, user, env)?, ..Found::default() };
    let key = user.key();
    for store in stores(run)? {
        if may_forget(&store, &key)? {
            let Forgotten { num_ranks, bytes } = trainer::store::forget(&store, &key)?;
            gone.ranks += num_ranks;
            gone.bytes += bytes;
            gone.runs = 1;
        }
    }
    for path in recorded(run)? {
        gone.records += without(&path, user)?;
    }
    gone.runs = gone.runs.max(usize::from(gone.records + gone.overrides > 0));
    Ok(gone)
}

/// The files of a run with a record for each user.
fn recorded(run: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for folder in ["events", "predictions"] {
        files.extend(entries(&run.join(folder))?.into_iter().filter(|path| lines(path)));
    }
    files.extend(Some(run.join(crate::run::PROFILES)).filter(|path| path.exists()));
    Ok(files)
}

/// Removes the tables, which name the users who gain and lose most, their plots, the answers in LaMP's form, which a run writes anew
/// from its records, and what a start that was cut off left of any file; whether there were any tables.
fn run_tables(run: &Path) -> anyhow::Result<bool> {
    for arm in Arm::ALL {
        remove_path(&run.join("predictions").join(format!("{}.json", arm.name())))?;
    }
    for folder in [run.to_owned(), run.join("predictions")] {
        for path in entries(&folder)?.iter().filter(|path| records::unfinished(path)) {
            remove_path(path)?;
        }
    }
    let mut removed = remove_path(&run.join("plots"))?;
    for name in crate::run::TABLES {
        removed |= remove_path(&run.join(name))?;
    }
    Ok(removed)
}

/// Removes a file or a whole folder; whether it was there.
fn remove_path(path: &Path) -> anyhow::Result<bool> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).with_context(|| format!("{}", path.display())),
    }
}

/// Files that no run makes and that have the id in quotes: exports, notes, a scheduler's output.
fn foreign(root: &Path, user: &UserId) -> anyhow::Result<Vec<PathBuf>> {
    let id = serde_json::to_vec(user.as_str())?;
    let mut found = Vec::new();
    let own = |path: &PathBuf| path.file_name().is_some_and(|n| OWN.iter().any(|own| n == *own));
    let mut folders = vec![root.to_owned()];
    folders.extend(entries(&root.join("cells"))?.into_iter().filter(|path| path.is_dir()));
    while let Some(folder) = folders.pop() {
        for path in entries(&folder)?.into_iter().filter(|path| !own(path)) {
            if path.is_dir() {
                folders.push(path);
            } else if fs::read(&path)?.windows(id.len()).any(|w| w == id) {
                found.push(path);
            }
        }
    }
    Ok(found)
}
