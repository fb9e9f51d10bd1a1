//! `launcher doctor`: is this one world of ranks, what does each see, do their GPUs talk, how fast.
//!
//! Every exchange has a time limit: a doctor that hangs tells nothing. Start reading at [`run`].

mod gpu;
mod limit;
mod rates;

use crate::cli::DoctorArgs;
use crate::env::Env;
use crate::exit::Exit;
use crate::watch::print;
use limit::within;
use std::time::{Duration, Instant};
use trainer::comm::nccl::Machine;
use trainer::comm::{Communicator, Reduce};

pub(crate) fn run(args: &DoctorArgs, env: &Env, comm: &dyn Communicator) -> anyhow::Result<Exit> {
    crate::threads(0, env)?;
    let limit = Duration::from_secs(args.timeout_s);
    let machine = Machine::here();
    let started = Instant::now();
    let sum = within(limit, comm, "a first sum over all ranks", || {
        comm.all_reduce_u64(Reduce::Sum, comm.rank() as u64 + 1)
    })??;
    let waited = started.elapsed();
    let gpus = gpu::Gpus::look();
    let seats = within(limit, comm, "choosing GPUs", || gpus.seats(comm, &machine))??;
    let mine = format!(
        "rank {} of {} on {}: {} threads, {}; {}",
        comm.rank(),
        comm.size(),
        machine.host,
        rayon::current_num_threads(),
        kernels::cpu::vector_instructions(),
        gpus.describe(seats[comm.rank()])
    );
    let lines = within(limit, comm, "gathering what ranks see", || gather(comm, &mine))??;
    let expected = (comm.size() * (comm.size() + 1) / 2) as u64;
    let mut good = sum == expected;
    let say = |text: &str| {
        if comm.rank() == 0 {
            print(text);
        }
    };
    lines.iter().for_each(|line| say(line));
    say(&format!(
        "one world of {} ranks; sum over ranks {sum}, expected {expected}, after {:.0} ms",
        comm.size(),
        waited.as_secs_f64() * 1e3
    ));
    if let Some(text) = separate(env, comm.size()) {
        good = false;
        say(&text);
    }
    if comm.size() > 1 {
        let text = within(limit, comm, "sampling the host's bandwidth", || rates::host(comm))??;
        say(&text);
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    say(&format!("processors {processors}, ranks on this node {}", seats[comm.rank()].local_size));
    say(&format!("cache {}", env.cache.display()));
    let libraries = within(limit, comm, "looking for CUDA libraries", || gpu::libraries(comm))??;
    libraries.iter().for_each(|line| say(line));
    // Every wait of NCCL has the limit itself; the exchanges between them wait for ranks that wait.
    let (talk, text) =
        within(limit * 6, comm, "letting GPUs talk", || gpus.talk(comm, &machine, &seats, limit))??;
    say(&text);
    Ok(if good && talk { Exit::Done } else { Exit::Verification })
}

/// Every rank's line, on every rank.
fn gather(comm: &dyn Communicator, mine: &str) -> trainer::comm::Result<Vec<String>> {
    let all = comm.all_gather_bytes(mine.as_bytes())?;
    Ok(all.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect())
}

/// What to say if the launcher started more processes than this world has.
fn separate(env: &Env, size: usize) -> Option<String> {
    let started = env.ranks_in_job?;
    (started > size).then(|| {
        format!(
            "SEPARATE WORLDS: the MPI launcher started {started} processes, but this world has {size}: {} worlds that do not know each other; use the mpirun (or srun --mpi) of the MPI this binary is linked with",
            started.div_ceil(size)
        )
    })
}
