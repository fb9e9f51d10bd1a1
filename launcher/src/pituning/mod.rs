//! A PITuning run, stage by stage, in one folder. The same command again goes on where the last one stopped.
//!
//! `population -> distill -> tuned arms -> predictions of all arms -> evaluation`; every stage leaves a file that says it
//! is whole, and is skipped when that file is there. `docs/guides/pituning.md` is the guide for people.

mod evaluate;
mod models;
pub(crate) mod parts;
mod pictures;
mod plan;
mod predict;
mod session;
mod tune;

pub(crate) use models::bench;
pub(crate) use session::EventSession;
pub(crate) use tune::{persons, slots, tuning};

use crate::cli::RunArgs;
use crate::env::Env;
use crate::exit::{Exit, Fails};
use crate::ground::Purpose;
use crate::run::Until;
use crate::watch::{print, say};
use anyhow::Context;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use trainer::comm::{Communicator, Reduce};
use trainer::config::Document;
use trainer::config::pituning::EventArm;
use trainer::report::{Event, EventSink, JsonlSink};
use trainer::stage::individual::End;
use trainer::store::{Manifest, write_atomic};

/// What every stage works with.
#[derive(Debug)]
pub(crate) struct Course<'a> {
    pub(crate) session: &'a EventSession,
    pub(crate) comm: &'a dyn Communicator,
    pub(crate) events: &'a dyn EventSink,
    pub(crate) stop: &'a AtomicBool,
}

impl Course<'_> {
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

    /// Whether any rank was stopped.
    pub(crate) fn stopped(&self, end: End) -> anyhow::Result<bool> {
        Ok(self.comm.all_reduce_u64(Reduce::Max, u64::from(end == End::Stopped))? > 0)
    }

    fn has(&self, arm: EventArm) -> bool {
        self.session.config.run.arms.contains(&arm)
    }
}

/// Runs a PITuning config up to a stage.
pub(crate) fn run(
    document: &Document,
    args: &RunArgs,
    until: Until,
    (env, comm): (&Env, &dyn Communicator),
) -> anyhow::Result<Exit> {
    let config = document
        .resolve_events(&env.variables())
        .input("launcher run --config FILE --print-config shows every key")?;
    if args.print_config {
        if comm.rank() == 0 {
            print(config.to_toml()?.trim_end());
        }
        return Ok(Exit::Done);
    }
    crate::threads(config.engine.threads, env)?;
    let gpu = args.gpu;
    let purpose = if args.dry_run { Purpose::Plan { gpu } } else { Purpose::Run };
    let session = EventSession::open(config, purpose, env, comm)?;
    if args.dry_run {
        return models::print_plan(&session, comm);
    }
    let stop = crate::run::stop_flag()?;
    let started = Instant::now();
    plan::check(&session, until, comm.size())?;
    prepare_folder(&session, env, comm)?;
    let events = JsonlSink::open(&session.folder.join("events"), comm.rank())?;
    let course = Course { session: &session, comm, events: &events, stop: &stop };
    events.emit(Event::RunStarted {
        name: session.config.run.name.clone(),
        config_hash: session.config.hash()?.to_string(),
        ranks: comm.size(),
        threads: rayon::current_num_threads(),
    })?;
    session.notes.iter().for_each(|note| course.say(note));
    let exit = stages(&course, until)?;
    if exit != Exit::Requeue {
        let (done, quarantined) = tune::counts(&course)?;
        let seconds = started.elapsed().as_secs_f64();
        events.emit(Event::RunFinished { done, quarantined, seconds })?;
    }
    events.flush()?;
    course.say(&format!("run folder: {}", session.folder.display()));
    Ok(exit)
}

fn stages(course: &Course<'_>, until: Until) -> anyhow::Result<Exit> {
    let requeue = || {
        course
            .say("stopped on a signal; everything finished is committed, the same command goes on");
        Ok(Exit::Requeue)
    };
    let arms = &course.session.config.run.arms;
    let needs_student = arms.iter().any(|arm| arm.of_student()) || until <= Until::Individual;
    if needs_student || course.has(EventArm::Teacher) {
        let Some(teacher) = models::population(course)? else { return requeue() };
        if until == Until::Population {
            return Ok(Exit::Done);
        }
        if until >= Until::Predict && course.has(EventArm::Teacher) {
            predict::population(course, EventArm::Teacher, &teacher)?;
        }
        if needs_student {
            let Some(student) = models::student(course, teacher)? else { return requeue() };
            if until == Until::Distill {
                return Ok(Exit::Done);
            }
            for arm in tune::arms(&course.session.config) {
                if tune::arm(course, arm, &student)? == End::Stopped {
                    return requeue();
                }
            }
            if until >= Until::Predict {
                predict::student(course, &student)?;
            }
        }
    }
    if until >= Until::Predict {
        predict::counted(course)?;
    }
    if until >= Until::Evaluate {
        evaluate::run(course)?;
    }
    let (_, quarantined) = tune::counts(course)?;
    Ok(if quarantined > 0 { Exit::Quarantined } else { Exit::Done })
}

/// Makes the folder, or checks that what is there is this very run.
fn prepare_folder(
    session: &EventSession,
    env: &Env,
    comm: &dyn Communicator,
) -> anyhow::Result<()> {
    let manifest = session.manifest(env, comm)?;
    let verdict = if comm.rank() == 0 { lead_folder(session, &manifest) } else { Ok(()) };
    // Every rank must leave by the same door.
    let failed = comm.all_reduce_u64(Reduce::Max, u64::from(verdict.is_err()))?;
    verdict?;
    if failed > 0 {
        return Err(anyhow::anyhow!("rank 0 refused the run folder")).input("its message says why");
    }
    Ok(())
}

fn lead_folder(session: &EventSession, manifest: &Manifest) -> anyhow::Result<()> {
    let folder = &session.folder;
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
            let now = Manifest { run_id: before.run_id.clone(), ..manifest.clone() };
            for change in before.check_resume(&now, folder).input(hint)? {
                say(&format!("resuming with {change}"));
            }
        }
    }
    write_atomic(&folder.join("config.toml"), session.config.to_toml()?.as_bytes())?;
    Ok(())
}
