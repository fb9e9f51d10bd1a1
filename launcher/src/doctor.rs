//! `launcher doctor`: is this one world of ranks, and what does each see.

use crate::env::Env;
use crate::exit::Exit;
use crate::watch::print;
use std::time::Instant;
use trainer::comm::{Communicator, Reduce};

/// Numbers gathered to sample the bandwidth between ranks.
const SAMPLE: usize = 1 << 20;

pub(crate) fn run(env: &Env, comm: &dyn Communicator) -> anyhow::Result<Exit> {
    crate::threads(0, env)?;
    let host =
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "?".to_owned());
    let mine = format!(
        "rank {} of {} on {}: {} threads, {}",
        comm.rank(),
        comm.size(),
        host.trim(),
        rayon::current_num_threads(),
        kernels::cpu::vector_instructions()
    );
    let sum = comm.all_reduce_u64(Reduce::Sum, comm.rank() as u64 + 1)?;
    let expected = (comm.size() * (comm.size() + 1) / 2) as u64;
    let rate = bandwidth(comm)?;
    if let Some(lines) = comm.gather_bytes(0, mine.as_bytes())? {
        for line in lines {
            print(&String::from_utf8_lossy(&line));
        }
        print(&format!(
            "one world of {} ranks; sum over ranks {sum}, expected {expected}",
            comm.size()
        ));
        if comm.size() > 1 {
            print(&format!(
                "gathering {} MB from each rank to all: {rate:.2} GB/s into each",
                SAMPLE * 4 / 1_000_000
            ));
        } else if env.started_by_mpi {
            print(
                "started by an MPI launcher, but alone: if you asked for more ranks, each is a world of its own; use the mpirun of the MPI this binary is linked with",
            );
        }
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        print(&format!("processors {processors}, ranks on this node {}", env.ranks_on_node));
        print(&format!("cache {}", env.cache.display()));
        print(&gpu());
    }
    Ok(if sum == expected { Exit::Done } else { Exit::Verification })
}

/// Bytes a second into each rank.
fn bandwidth(comm: &dyn Communicator) -> anyhow::Result<f64> {
    let (mine, mut all) = (vec![1f32; SAMPLE], vec![0f32; SAMPLE * comm.size()]);
    comm.barrier()?;
    let started = Instant::now();
    comm.all_gather_f32(&mine, &mut all)?;
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let bytes = (SAMPLE * (comm.size() - 1) * 4) as f64;
    Ok(bytes / 1e9 / started.elapsed().as_secs_f64())
}

/// Libraries are looked for before anything of them is called: cudarc panics on a missing one.
fn gpu() -> String {
    let found = |there: bool| if there { "found" } else { "not found" };
    let libraries = kernels::cuda::libraries();
    format!(
        "CUDA driver {}, NVRTC {}, NCCL {}; this version trains on CPUs alone",
        found(libraries.driver),
        found(libraries.nvrtc),
        found(libraries.nccl)
    )
}
