//! Exchanges that may never end: a collective waits for ever for a rank that does not come, so a second thread counts
//! the seconds and ends the job.

use crate::exit::Exit;
use crate::watch::say;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use trainer::comm::Communicator;

/// Runs `work`, which calls collectives; if it is not over after `limit`, says `what` and aborts the world (under MPI
/// that ends the job with [`Exit::Verification`]; elsewhere `work` then fails).
///
/// # Errors
/// The thread that counts cannot be started.
pub(super) fn within<T>(
    limit: Duration,
    comm: &dyn Communicator,
    what: &str,
    work: impl FnOnce() -> T,
) -> anyhow::Result<T> {
    let (over, ended) = channel::<()>();
    std::thread::scope(|scope| {
        std::thread::Builder::new().name("doctor's limit".into()).spawn_scoped(
            scope,
            move || {
                if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                    say(&format!(
                        "rank {}: {what}: not over after {} s; another rank is slow, stuck or gone",
                        comm.rank(),
                        limit.as_secs_f64()
                    ));
                    let _ = comm.abort(i32::from(Exit::Verification.code()));
                }
            },
        )?;
        let made = work();
        drop(over);
        Ok(made)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use trainer::comm::{Error, Threads};

    #[test]
    fn a_rank_that_does_not_come_ends_the_wait() {
        let started = Instant::now();
        let limit = Duration::from_millis(100);
        let outcomes = Threads::run(2, |comm| {
            if comm.rank() == 1 {
                // Comes, but long after the limit.
                std::thread::sleep(Duration::from_millis(600));
                return comm.barrier();
            }
            within(limit, comm, "a barrier", || comm.barrier()).unwrap()
        });
        let code = i32::from(Exit::Verification.code());
        let aborted = Err(Error::Aborted { rank: 0, code });
        assert_eq!(outcomes.unwrap(), [aborted.clone(), aborted]);
        assert!(started.elapsed() >= limit);
    }

    #[test]
    fn work_in_time_is_left_alone() {
        let limit = Duration::from_secs(600);
        let started = Instant::now();
        let outcomes =
            Threads::run(2, |comm| within(limit, comm, "a barrier", || comm.barrier()).unwrap());
        assert_eq!(outcomes.unwrap(), [Ok(()), Ok(())]);
        assert!(started.elapsed() < limit / 10);
    }
}
