//! A run, stage by stage, in one folder. The same command again goes on where the last one stopped.
//!
//! `population -> individual -> predictions of all arms -> evaluation`; every stage leaves a file that says
//! it is whole, and is skipped when that file is there.

mod evaluate;
mod individual;
mod lamp_form;
pub(crate) mod population;
pub(crate) mod predict;
mod profiles;

pub(crate) use evaluate::FILES as TABLES;
pub(crate) use profiles::FILE as PROFILES;

use crate::cli::RunArgs;
use crate::env::Env;
use crate::exit::{Exit, Fails};
use crate::ground::Purpose;
use crate::session::{self, Session};
use crate::study::Cache;
use crate::watch::{print, say};
use anyhow::Context;
use kernels::Ops;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use trainer::comm::Communicator;
use trainer::config::{Arm, ProfileSource};
use trainer::model::cache::MappedBase;
use trainer::model::network::Network;
use trainer::report::{Event, EventSink, JsonlSink};
use trainer::stage::individual::End;
use trainer::store::{Manifest, write_atomic};

/// How far a command goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Until {
    Population,
    /// Of PITuning runs alone.
    Distill,
    Individual,
    Predict,
    Evaluate,
}

/// What every stage works with.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) session: &'a Session,
    pub(crate) comm: &'a dyn Communicator,
    pub(crate) events: &'a dyn EventSink,
    pub(crate) stop: &'a AtomicBool,
    /// What the cells of a study share; none outside of one.
    pub(crate) shared: Option<&'a Cache>,
}

impl Run<'_> {
    /// Rank 0 speaks for all.
    pub(crate) fn leads(&self) -> bool {
        self.comm.rank() == 0
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.session.folder.join(name)
    }

    pub(crate) fn say(&self, line: &str) {
        if self.leads() {
            say(line);
        }
    }

    /// The frozen network of a base on a backend.
    pub(crate) fn network<B: Ops>(
        &self,
        backend: B,
        base: &MappedBase,
    ) -> anyhow::Result<Network<B>> {
        let positions = self.session.config.prompt.max_length.min(base.spec().max_positions);
        Ok(Network::new(backend, base, positions)?)
    }
}

/// Runs a config up to a stage.
pub(crate) fn run(
    args: &RunArgs,
    until: Until,
    env: &Env,
    comm: &dyn Communicator,
) -> anyhow::Result<Exit> {
    let document = session::document(args, comm)?;
    if document.method().input("run.method is pituning, or not there")?.is_some() {
        return crate::pituning::run(&document, args, until, (env, comm));
    }
    if until == Until::Distill {
        return Err(anyhow::anyhow!("{} distils nothing", args.config.display()))
            .input("distilling is a stage of PITuning runs: run.method = \"pituning\"");
    }
    let config = session::config(document, args, env)?;
    if args.print_config {
        if comm.rank() == 0 {
            print(config.to_toml()?.trim_end());
        }
        return Ok(Exit::Done);
    }
    crate::threads(config.engine.threads, env)?;
    let gpu = args.gpu;
    let purpose = if args.dry_run { Purpose::Plan { gpu } } else { Purpose::Run };
    let session = Session::open(config, purpose, env, comm)?;
    if args.dry_run {
        return crate::plan::print_plan(&session, comm);
    }
    let stop = stop_flag()?;
    of_session(&session, until, env, comm, (&stop, None))
}

/// Runs an open session up to a stage; within a study, with what its cells share.
pub(crate) fn of_session(
    session: &Session,
    until: Until,
    env: &Env,
    comm: &dyn Communicator,
    (stop, shared): (&AtomicBool, Option<&Cache>),
) -> anyhow::Result<Exit> {
    let started = Instant::now();
    crate::plan::check(session, until, comm)?;
    prepare_folder(session, env, comm)?;
    let events = JsonlSink::open(&session.folder.join("events"), comm.rank())?;
    let run = Run { session, comm, events: &events, stop, shared };
    events.emit(Event::RunStarted {
        name: session.config.run.name.clone(),
        config_hash: session.config.hash()?.to_string(),
        ranks: comm.size(),
        threads: rayon::current_num_threads(),
    })?;
    say_left_out(&run);
    let exit = stages(&run, until)?;
    if exit != Exit::Requeue {
        let (done, quarantined) = individual::counts(&run)?;
        events.emit(Event::RunFinished {
            done,
            quarantined,
            seconds: started.elapsed().as_secs_f64(),
        })?;
    }
    events.flush()?;
    run.say(&format!("run folder: {}", session.folder.display()));
    Ok(exit)
}

/// What of the data is left out, whatever stages follow.
fn say_left_out(run: &Run<'_>) {
    let index = run.session.index();
    for problem in &index.quarantined {
        run.say(&format!("put aside: {problem}"));
    }
    for problem in &index.unusable {
        run.say(&format!("item left out: {problem}"));
    }
    let more = index.tally.unusable_items.saturating_sub(index.unusable.len() as u64);
    if more > 0 {
        run.say(&format!("and {more} more items of these users"));
    }
    let without = index.personal.iter().filter(|user| !user.has_profile).count();
    if without > 0 && run.session.config.profile.source == ProfileSource::File {
        run.say(&format!("{without} of {} users have no profile text", index.personal.len()));
    }
}

fn stages(run: &Run<'_>, until: Until) -> anyhow::Result<Exit> {
    let arms = &run.session.config.run.arms;
    let has = |arm| arms.contains(&arm) && until >= Until::Predict;
    let ask = |wanted: &[Arm], base: &MappedBase| -> anyhow::Result<End> {
        for &arm in wanted.iter().filter(|&&arm| has(arm)) {
            if answered(run, arm, base)? == End::Stopped {
                return Ok(End::Stopped);
            }
        }
        Ok(End::Complete)
    };
    if profiles::run(run)? == End::Stopped
        || ask(&[Arm::Base, Arm::Rag, Arm::Pag], &run.session.base)? == End::Stopped
    {
        return Ok(requeue(run));
    }
    // Arms may do without any training.
    if until <= Until::Individual || arms.iter().any(|arm| arm.merged()) {
        let Some(merged) = shared_population(run)? else { return Ok(requeue(run)) };
        if ask(&[Arm::Population], &merged)? == End::Stopped {
            return Ok(requeue(run));
        }
        if until == Until::Population {
            return Ok(Exit::Done);
        }
        if (until == Until::Individual || arms.iter().any(|arm| arm.adapted()))
            && (individual::run(run, &merged)? == End::Stopped
                || ask(&[Arm::Personal, Arm::Permuted], &merged)? == End::Stopped)
        {
            return Ok(requeue(run));
        }
    }
    if until >= Until::Evaluate {
        evaluate::run(run)?;
    }
    let (_, quarantined) = individual::counts(run)?;
    Ok(if quarantined > 0 { Exit::Quarantined } else { Exit::Done })
}

/// The answers of an arm, from another cell of the study where that has the very same.
fn answered(run: &Run<'_>, arm: Arm, base: &MappedBase) -> anyhow::Result<End> {
    let entry = match run.shared.filter(|_| !arm.adapted()) {
        Some(cache) => cache.answers(run, (&predict::file(run, arm), arm), base)?,
        None => None,
    };
    let end = predict::arm(run, arm, base)?;
    if end == End::Complete {
        lamp_form::write(run, arm)?;
    }
    if let Some(entry) = entry.filter(|_| end == End::Complete) {
        entry.keep(run)?;
    }
    Ok(end)
}

/// The merged base, from another cell of the study where that is the very same.
fn shared_population(run: &Run<'_>) -> anyhow::Result<Option<MappedBase>> {
    let entry = match run.shared.filter(|_| run.session.config.population.enabled) {
        Some(cache) => cache.population(run, || population::examples(run))?,
        None => None,
    };
    let merged = population::run(run)?;
    if let Some(entry) = entry.filter(|_| merged.is_some()) {
        entry.keep(run)?;
    }
    Ok(merged)
}

fn requeue(run: &Run<'_>) -> Exit {
    run.say("stopped on a signal; everything finished is committed, the same command goes on");
    Exit::Requeue
}

/// A flag that SIGTERM, SIGINT and SIGUSR1 (Slurm's warning) raise; the second signal ends the process.
pub(crate) fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in
        [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGUSR1]
    {
        signal_hook::flag::register_conditional_shutdown(
            signal,
            Exit::Requeue as i32,
            Arc::clone(&stop),
        )?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// Makes the folder, or checks that what is there is this very run.
fn prepare_folder(session: &Session, env: &Env, comm: &dyn Communicator) -> anyhow::Result<()> {
    let folder = &session.folder;
    let manifest = session.manifest(env, comm)?;
    let mut verdict = Ok(());
    if comm.rank() == 0 {
        verdict = lead_folder(session, &manifest, folder);
    }
    // Every rank must leave by the same door.
    let failed = comm.all_reduce_u64(trainer::comm::Reduce::Max, u64::from(verdict.is_err()))?;
    verdict?;
    if failed > 0 {
        return Err(anyhow::anyhow!("rank 0 refused the run folder")).input("its message says why");
    }
    Ok(())
}

fn lead_folder(session: &Session, manifest: &Manifest, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("run folder {}", folder.display()))
        .input("set run.out_dir to a folder you may write")?;
    let hint =
        "a run never overwrites another: set run.out_dir to a new folder, or undo the change";
    match Manifest::load(folder)
        .input("the run folder is damaged; start a new one with --set run.out_dir=…")?
    {
        None => manifest.save(folder)?,
        Some(before) => {
            let now = Manifest {
                merged_hash: before.merged_hash.clone(),
                run_id: before.run_id.clone(),
                ..manifest.clone()
            };
            let changes = before.check_resume(&now, folder).input(hint)?;
            for change in changes {
                say(&format!("resuming with {change}"));
            }
        }
    }
    let toml = session.config.to_toml()?;
    write_atomic(&folder.join("config.toml"), toml.as_bytes())?;
    Ok(())
}
