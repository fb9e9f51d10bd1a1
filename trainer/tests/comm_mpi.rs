//! Real MPI ranks: every test starts `mpirun` on this test binary again, naming itself; with `MYRIAD_COMM_RANK` set the
//! test is a rank and runs its body instead.

#![cfg(feature = "mpi")]
#![expect(clippy::unwrap_used, clippy::cast_precision_loss, reason = "test code")]

mod comm_suite;

use comm_suite::{every_collective, sum_in_order, sum_of_shards};
use std::io::{Read as _, Seek as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use trainer::comm::{Communicator as _, Error, Mpi, PANIC_CODE, contain_panic};

const RANK: &str = "MYRIAD_COMM_RANK";

/// How a job ended.
struct Ended {
    code: Option<i32>,
    output: String,
    wall: Duration,
}

#[expect(clippy::disallowed_methods, reason = "how a test tells its ranks from itself")]
fn is_rank() -> bool {
    std::env::var(RANK).is_ok()
}

/// Starts this binary's test `name` under `mpirun -n ranks`, or without mpirun for `None`.
fn job(name: &str, ranks: Option<usize>, limit: Duration) -> Ended {
    let myself = std::env::current_exe().unwrap();
    let mut command = match ranks {
        None => Command::new(&myself),
        Some(n) => {
            let mut command = Command::new("mpirun");
            command.arg("-n").arg(n.to_string()).arg(&myself);
            command
        }
    };
    for key in [
        "OMPI_ALLOW_RUN_AS_ROOT",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
        "OMPI_MCA_rmaps_base_oversubscribe",
        "OMPI_MCA_mpi_yield_when_idle",
        "OMPI_MCA_ess_singleton_isolated",
        RANK,
    ] {
        command.env(key, "1");
    }
    let mut log = tempfile::tempfile().unwrap();
    command.args(["--exact", name, "--nocapture", "--test-threads", "1"]);
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log.try_clone().unwrap());
    let start = Instant::now();
    let mut child = command.spawn().expect("mpirun (package openmpi-bin) starts");
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if start.elapsed() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let wall = start.elapsed();
    let mut output = String::new();
    log.rewind().unwrap();
    log.read_to_string(&mut output).unwrap();
    Ended { code, output, wall }
}

/// A job that must end well.
fn good(name: &str, ranks: Option<usize>) -> String {
    let ended = job(name, ranks, Duration::from_secs(60));
    assert_eq!(ended.code, Some(0), "{ranks:?} ranks, {:?}\n{}", ended.wall, ended.output);
    ended.output
}

/// A job of 3 ranks that must be gone with `code` within 10 s (more only for starting on a loaded machine).
fn bad(name: &str, code: i32) -> String {
    let ended = job(name, Some(3), Duration::from_secs(60));
    assert_eq!(ended.code, Some(code), "{:?}\n{}", ended.wall, ended.output);
    // The ranks print the moment of the fault; the job must be gone 10 s after it.
    let at: u128 = ended
        .output
        .split_once("fault at ")
        .and_then(|(_, rest)| rest.lines().next()?.trim().parse().ok())
        .unwrap_or_else(|| panic!("no fault was reached\n{}", ended.output));
    let after = unix_ms() - at;
    assert!(after < 10_000, "the job outlived its fault by {after} ms\n{}", ended.output);
    ended.output
}

fn unix_ms() -> u128 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()
}

fn fault() {
    say(&format!("fault at {}", unix_ms()));
}

/// One line in one write, so that the lines of ranks do not mix.
fn say(text: &str) {
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
}

#[test]
fn suite_on_real_ranks() {
    if is_rank() {
        let comm = Mpi::init().unwrap();
        assert_eq!(Mpi::init().err(), Some(Error::AlreadyInitialised));
        every_collective(&comm).unwrap();
        assert_eq!(sum_of_shards(&comm, 8, 1000, 3000).unwrap(), sum_in_order(8, 1000));
        // Again with rounds of a few bytes, as a message over the 32-bit counts of MPI takes.
        let comm = comm.with_message_bytes(64);
        every_collective(&comm).unwrap();
        assert_eq!(sum_of_shards(&comm, 8, 1000, 1 << 20).unwrap(), sum_in_order(8, 1000));
        let caught = contain_panic(|| -> u8 { panic!("contained") });
        assert_eq!(caught, Err("contained".into()));
        comm.barrier().unwrap();
        say(&format!("rank {} of {} is done", comm.rank(), comm.size()));
        return comm.finish();
    }
    for ranks in 1..=4 {
        let output = good("suite_on_real_ranks", Some(ranks));
        let said = |r| output.contains(&format!("rank {r} of {ranks} is done"));
        assert!((0..ranks).all(said), "{ranks} ranks in one world\n{output}");
    }
}

#[test]
fn one_process_without_mpirun() {
    if is_rank() {
        let comm = Mpi::init().unwrap();
        every_collective(&comm).unwrap();
        say(&format!("rank {} of {} is done", comm.rank(), comm.size()));
        return comm.finish();
    }
    let output = good("one_process_without_mpirun", None);
    assert!(output.contains("rank 0 of 1 is done"), "{output}");
}

#[test]
fn a_panic_ends_the_job() {
    if is_rank() {
        let comm = Mpi::init().unwrap();
        comm.barrier().unwrap();
        if comm.rank() == 1 {
            fault();
            panic!("seeded panic");
        }
        comm.barrier().unwrap();
        return;
    }
    let output = bad("a_panic_ends_the_job", PANIC_CODE);
    assert!(output.contains("seeded panic"), "the message is printed first\n{output}");
}

#[test]
fn a_panic_of_another_thread_ends_the_job() {
    if is_rank() {
        let comm = Mpi::init().unwrap();
        let last = comm.rank() == comm.size() - 1;
        comm.barrier().unwrap();
        std::thread::scope(|scope| {
            if last {
                scope.spawn(|| {
                    // Long enough for the main thread to sit in the barrier, inside MPI.
                    std::thread::sleep(Duration::from_millis(200));
                    fault();
                    panic!("seeded panic");
                });
                comm.barrier().unwrap();
            } else {
                loop {
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
        });
        return;
    }
    bad("a_panic_of_another_thread_ends_the_job", PANIC_CODE);
}

#[test]
fn an_abort_ends_the_job_with_its_code() {
    if is_rank() {
        let comm = Mpi::init().unwrap();
        comm.barrier().unwrap();
        if comm.rank() == 0 {
            fault();
            comm.abort(42);
        }
        comm.barrier().unwrap();
        return;
    }
    bad("an_abort_ends_the_job_with_its_code", 42);
}

#[test]
fn a_killed_rank_ends_the_job() {
    if is_rank() {
        let comm = Mpi::init().unwrap();
        comm.barrier().unwrap();
        if comm.rank() == 1 {
            fault();
            let me = std::process::id().to_string();
            Command::new("kill").args(["-KILL", &me]).status().unwrap();
        }
        comm.barrier().unwrap();
        return;
    }
    bad("a_killed_rank_ends_the_job", 128 + 9);
}

#[test]
fn a_rank_that_returns_early_ends_the_job() {
    if is_rank() {
        let comm = Mpi::init().unwrap();
        comm.barrier().unwrap();
        if comm.rank() == 1 {
            fault();
            return; // Drops the world: were that MPI_Finalize, all would hang.
        }
        comm.barrier().unwrap();
        return;
    }
    bad("a_rank_that_returns_early_ends_the_job", 1);
}

#[test]
fn different_collectives_do_not_hang() {
    if is_rank() {
        let comm = Mpi::init().unwrap();
        let result = match comm.rank() {
            2 => comm.all_gather_bytes(&[1, 2, 3]).map(drop),
            _ => comm.barrier(),
        };
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Mismatch { rank: 0, other: 2, .. }), "{error}");
        // Every rank has the error; let each say so before the first abort ends the job.
        say(&format!("rank {}: {error}", comm.rank()));
        fault();
        std::thread::sleep(Duration::from_millis(500));
        comm.abort(3);
    }
    let output = bad("different_collectives_do_not_hang", 3);
    let both = "rank 0 is in barrier (call 0, 0 elements), rank 2 is in all_gather_bytes (call 0, 3 elements)";
    assert!(output.contains(both), "{output}");
}
