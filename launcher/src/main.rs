//! The binary: command line, ranks, run folder, progress, exit codes.
//!
//! The only crate that reads the environment, prints or exits. Start reading at [`run::run`].

mod adapters;
mod bench;
mod cli;
mod device;
mod doctor;
mod env;
mod evaluate_files;
mod exit;
mod forget;
mod ground;
mod labels;
mod pituning;
mod plan;
mod prepare;
mod run;
mod session;
mod shown;
mod source;
mod study;
mod sums;
mod watch;
mod world;

use clap::{CommandFactory, Parser};
use cli::{Cli, Command, RunArgs};
use env::Env;
use exit::Exit;
use run::{Until, run};
use std::process::ExitCode;
use trainer::comm::Communicator;
use world::World;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let env = Env::read();
    if let Command::Completions { shell } = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "launcher", &mut std::io::stdout());
        return Exit::Done.into();
    }
    let world = match World::join(&env) {
        Ok(world) => world,
        Err(error) => return failed(&error, "").into(),
    };
    match dispatch(cli.command, &env, world.comm()) {
        Ok(exit) => {
            world.finish();
            exit.into()
        }
        Err(error) => {
            let comm = world.comm();
            let place =
                if comm.size() > 1 { format!("rank {}: ", comm.rank()) } else { String::new() };
            let exit = failed(&error, &place);
            if comm.size() > 1 {
                // The others may wait for this rank: end the job, never return past them.
                let _ = comm.abort(i32::from(exit.code()));
            }
            exit.into()
        }
    }
}

fn failed(error: &anyhow::Error, place: &str) -> Exit {
    let (exit, hint) = exit::read(error);
    watch::say(&format!("{place}error: {error:#}"));
    if let Some(hint) = hint {
        watch::say(&format!("hint: {hint}"));
    }
    exit
}

fn dispatch(command: Command, env: &Env, comm: &dyn Communicator) -> anyhow::Result<Exit> {
    match command {
        Command::Run(args) => run(&args, Until::Evaluate, env, comm),
        Command::Evaluate(args) => match args.run() {
            Some(of_run) => run(&of_run, Until::Evaluate, env, comm),
            None => alone(comm, || evaluate_files::run(&args.predictions, &args.files)),
        },
        Command::Population(args) => run(&args, Until::Population, env, comm),
        Command::Distill(args) => run(&args, Until::Distill, env, comm),
        Command::Individual(args) => run(&args, Until::Individual, env, comm),
        Command::Predict(args) => run(&args, Until::Predict, env, comm),
        Command::Plan(args) => {
            let of_run = RunArgs { dry_run: true, gpu: args.gpu, ..args.run };
            run(&of_run, Until::Evaluate, env, comm)
        }
        Command::Study(args) => study::run(&args, env, comm),
        Command::Doctor(args) => doctor::run(&args, env, comm),
        Command::Prepare(args) => alone(comm, || prepare::run(&args)),
        Command::Export(args) => alone(comm, || adapters::export(&args, env)),
        Command::Import(args) => alone(comm, || adapters::import(&args, env)),
        Command::Verify(args) => alone(comm, || adapters::verify(&args, env)),
        Command::Forget(args) => alone(comm, || forget::forget(&args, env)),
        Command::Bench(args) => alone(comm, || bench::run(&args, env, comm)),
        Command::Completions { .. } => Ok(Exit::Done),
    }
}

/// Commands of one process: started under mpirun, only rank 0 works.
fn alone(
    comm: &dyn Communicator,
    work: impl FnOnce() -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    let exit = if comm.rank() == 0 { work()? } else { Exit::Done };
    comm.barrier()?;
    Ok(exit)
}

/// Sizes the thread pool once: what the config says, or this rank's share of the processors.
fn threads(wanted: usize, env: &Env) -> anyhow::Result<()> {
    let num_threads = if wanted == 0 { env.processors } else { wanted };
    // Were this thread outside of the pool, each operation would wake the pool and go to sleep until it is done, which
    // takes longer than many an operation of a small model.
    Ok(rayon::ThreadPoolBuilder::new()
        .num_threads(num_threads)
        .use_current_thread()
        .build_global()?)
}
