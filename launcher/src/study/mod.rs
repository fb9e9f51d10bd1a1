//! A study: the cells of a config with `[study.axes]`, one after the other in this process, then one table.
//!
//! Every cell is an ordinary run in `<study>/cells/<name>-<id>/`, made by the code of [`mod@crate::run`], which also says
//! what is left to do in it. Cells share the loaded base and data, and through [`Cache`] what they would compute alike.
//! Start reading at [`run`].

mod cache;
mod digest;
mod key;
mod pictures;
mod report;
mod table;

pub(crate) use cache::Cache;

use crate::cli::RunArgs;
use crate::env::Env;
use crate::exit::{self, Exit, Fails};
use crate::ground::Purpose;
use crate::run::{Until, of_session, stop_flag};
use crate::session::{self, Loaded, Session};
use crate::watch::{print, say};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use trainer::comm::{Communicator, Reduce};
use trainer::config::{Cell, Study};

const HINT: &str =
    "docs/guides/study.md has the section's form; launcher study --print-config shows every cell";

/// How a cell ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum End {
    /// All its arms are answered.
    Done {
        /// What all predictions of cells that can be compared have in common.
        kin: Kin,
        /// Some users were put aside.
        quarantined: bool,
    },
    /// It is the run of an earlier cell.
    Same(usize),
    /// It was given up.
    Failed(String),
}

/// Cells with equal kin answer the same questions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kin {
    /// Fingerprint of the data.
    pub(crate) data: String,
    /// The task's labels.
    pub(crate) labels: Vec<String>,
}

/// What all cells are run with.
struct Course<'a> {
    env: &'a Env,
    comm: &'a dyn Communicator,
    stop: &'a AtomicBool,
    cache: Cache,
}

/// Runs all cells and writes the study's table; `--dry-run` lists them, `--print-config` prints their configs.
pub(crate) fn run(args: &RunArgs, env: &Env, comm: &dyn Communicator) -> anyhow::Result<Exit> {
    let document = session::document(args, comm)?;
    let mut study = document.study(&env.variables()).input(HINT)?;
    let lead = comm.rank() == 0;
    if args.print_config {
        if lead {
            print_configs(&study)?;
        }
        return Ok(Exit::Done);
    }
    study.cells.iter().try_for_each(|cell| named(cell, files_exist(cell)))?;
    // All ranks have looked before one makes a folder.
    let folders = folders(&study);
    comm.barrier()?;
    for (cell, folder) in study.cells.iter_mut().zip(folders) {
        cell.config.run.out_dir = folder;
    }
    crate::threads(study.cells[0].config.engine.threads, env)?;
    if args.dry_run {
        return plan(&study, env, comm);
    }
    let stop = stop_flag()?;
    let cache = Cache::new(&study.out_dir);
    let Some(ends) = all(&study, &Course { env, comm, stop: &stop, cache })? else {
        return Ok(Exit::Requeue);
    };
    if lead {
        print(report::write(&study, &ends)?.trim_end());
        say(&format!("study folder: {}", study.out_dir.display()));
    }
    comm.barrier()?;
    let whole = ends.iter().all(|end| match end {
        End::Done { quarantined, .. } => !quarantined,
        End::Same(_) => true,
        End::Failed(_) => false,
    });
    Ok(if whole { Exit::Done } else { Exit::Quarantined })
}

/// The result with the cell's name in its error.
fn named<T>(cell: &Cell, result: anyhow::Result<T>) -> anyhow::Result<T> {
    result.or_else(|error| {
        let (exit, hint) = exit::read(&error);
        let error = anyhow::anyhow!("cell {}: {error:#}", cell.name);
        match exit {
            Exit::Input => Err(error).input(hint.unwrap_or(HINT)),
            _ => Err(error),
        }
    })
}

/// Runs the cells in order; none when stopped by a signal.
fn all(study: &Study, course: &Course<'_>) -> anyhow::Result<Option<Vec<End>>> {
    let comm = course.comm;
    let (mut ends, mut loaded) = (Vec::new(), Loaded::default());
    let runs = study.cells.iter().filter(|c| c.same_as.is_none()).count();
    let mut number = 0;
    for cell in &study.cells {
        if let Some(same) = cell.same_as {
            ends.push(End::Same(same));
            continue;
        }
        let stopped = u64::from(course.stop.load(Ordering::Relaxed));
        if comm.all_reduce_u64(Reduce::Max, stopped)? > 0 {
            if comm.rank() == 0 {
                say("stopped on a signal between two cells; the same command goes on");
            }
            return Ok(None);
        }
        number += 1;
        if comm.rank() == 0 {
            say(&format!("cell {number}/{runs}: {}", cell.name));
        }
        let (result, left) = one(cell, course, std::mem::take(&mut loaded));
        loaded = left;
        let end = agreed(cell, comm, result)?;
        match end {
            None => return Ok(None),
            Some(end) => ends.push(end),
        }
    }
    Ok(Some(ends))
}

/// One cell, and what the next one may take over.
fn one(cell: &Cell, course: &Course<'_>, loaded: Loaded) -> (anyhow::Result<Option<End>>, Loaded) {
    let (env, comm) = (course.env, course.comm);
    let config = (cell.config.clone(), Purpose::Run);
    let session = match Session::open_with(config, env, comm, loaded) {
        Ok(session) => session,
        Err(error) => return (Err(error), Loaded::default()),
    };
    let shared = (course.stop, Some(&course.cache));
    let kin = Kin {
        data: session.index().fingerprint.to_string(),
        labels: session.task.labels().map(<[String]>::to_vec).unwrap_or_default(),
    };
    let end = of_session(&session, Until::Evaluate, env, comm, shared).map(|exit| match exit {
        Exit::Requeue => None,
        exit => Some(End::Done { kin, quarantined: exit == Exit::Quarantined }),
    });
    (end, session.into_loaded())
}

/// The end of a cell that all ranks hold for true; none when stopped.
///
/// # Errors
/// Of several ranks, one has failed on its own (a disk, a bug): the others are not where it is, the job must end.
fn agreed(
    cell: &Cell,
    comm: &dyn Communicator,
    result: anyhow::Result<Option<End>>,
) -> anyhow::Result<Option<End>> {
    if let Err(error) = &result
        && comm.size() > 1
        && exit::read(error).0 != Exit::Input
    {
        return named(cell, result);
    }
    // Wrong config or data are wrong on every rank; where they are not, the collective's header tells.
    let failed = comm.all_reduce_u64(Reduce::Max, u64::from(result.is_err()))? > 0;
    match result {
        Ok(end) if !failed => Ok(end),
        Ok(_) => Ok(Some(End::Failed("failed on another rank".to_owned()))),
        Err(error) => {
            let hint = exit::read(&error).1.map_or_else(String::new, |h| format!(" (hint: {h})"));
            let reason = format!("{error:#}{hint}");
            if comm.rank() == 0 {
                say(&format!("cell {} failed: {reason}", cell.name));
            }
            Ok(Some(End::Failed(reason)))
        }
    }
}

/// What a config names must be there before the first cell starts, not when its cell is reached.
fn files_exist(cell: &Cell) -> anyhow::Result<()> {
    let (data, prompt) = (&cell.config.data, &cell.config.prompt);
    let template = Some(PathBuf::from(&prompt.template)).filter(|p| p.is_absolute());
    let named = [
        ("base.path", Some(&cell.config.base.path)),
        ("data.path", data.path.as_ref()),
        ("data.personal", data.personal.as_ref()),
        ("data.personal_outputs", data.personal_outputs.as_ref()),
        ("data.personal_profiles", data.personal_profiles.as_ref()),
        ("data.population", data.population.as_ref()),
        ("data.population_outputs", data.population_outputs.as_ref()),
        ("data.population_profiles", data.population_profiles.as_ref()),
        ("prompt.template", template.as_ref()),
    ];
    for (key, path) in named.into_iter().filter_map(|(key, path)| Some((key, path?))) {
        if !path.exists() {
            return Err(anyhow::anyhow!("{key}: {} is not there", path.display()))
                .input("scripts/setup fetches the model and the data the shipped configs use");
        }
    }
    Ok(())
}

/// The folder of every cell: the one that has its id, whatever it was called when it was made, else a new one.
fn folders(study: &Study) -> Vec<PathBuf> {
    let root = study.out_dir.join("cells");
    let entries = std::fs::read_dir(&root).into_iter().flatten().filter_map(Result::ok);
    let mut there: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    there.sort();
    let folder = |cell: &Cell| {
        let end = format!("-{}", cell.id);
        let known = there.iter().find(|name| name.ends_with(&end));
        root.join(known.cloned().unwrap_or_else(|| format!("{}{end}", readable(&cell.name))))
    };
    let own: Vec<PathBuf> = study.cells.iter().map(folder).collect();
    let of = |(i, cell): (usize, &Cell)| own[cell.same_as.unwrap_or(i)].clone();
    study.cells.iter().enumerate().map(of).collect()
}

/// A name of letters, digits and `._=,+-`, of a length every file system takes.
fn readable(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._=,+-".contains(c);
    let name: String = name.chars().map(|c| if plain(c) { c } else { '_' }).take(120).collect();
    if name.starts_with('.') { name.replacen('.', "_", 1) } else { name }
}

fn print_configs(study: &Study) -> anyhow::Result<()> {
    for cell in &study.cells {
        let same = cell
            .same_as
            .map_or_else(String::new, |i| format!(", the same run as {}", study.cells[i].name));
        print(&format!("# cell {}, id {}{same}", cell.name, cell.id));
        print(&cell.config.to_toml()?);
    }
    Ok(())
}

/// The cells, what is there of them, and the plan of each run.
fn plan(study: &Study, env: &Env, comm: &dyn Communicator) -> anyhow::Result<Exit> {
    let mut loaded = Loaded::default();
    let mut runs = 0;
    for cell in &study.cells {
        let line = match cell.same_as {
            Some(same) => {
                format!("cell {}: the same run as {}\n", cell.name, study.cells[same].name)
            }
            None => format!("cell {}: {}", cell.name, state(&cell.config.run.out_dir)),
        };
        if comm.rank() == 0 {
            print(&line);
        }
        if cell.same_as.is_some() {
            continue;
        }
        runs += 1;
        let config = (cell.config.clone(), Purpose::Plan { gpu: None });
        let session = Session::open_with(config, env, comm, loaded);
        let session = named(cell, session)?;
        named(cell, crate::plan::print_plan(&session, comm))?;
        loaded = session.into_loaded();
        if comm.rank() == 0 {
            print("");
        }
    }
    if comm.rank() == 0 {
        print(&format!("{} cells, {runs} runs in {}", study.cells.len(), study.out_dir.display()));
    }
    Ok(Exit::Done)
}

fn state(folder: &Path) -> &'static str {
    match (folder.join("metrics.json").exists(), folder.exists()) {
        (true, _) => "finished",
        (false, true) => "begun",
        (false, false) => "new",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_folders_stay_readable_and_harmless() {
        assert_eq!(
            readable("retriever=bm25-study,retrieved=0.5"),
            "retriever=bm25-study,retrieved=0.5"
        );
        assert_eq!(readable("../é b/c"), "_.___b_c");
        assert_eq!(readable(&"x".repeat(500)).len(), 120);
    }
}
