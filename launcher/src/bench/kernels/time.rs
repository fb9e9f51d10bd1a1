//! How long a call takes: the median of repetitions, after a warm-up.
//!
//! On processors every call is timed alone. On a GPU a call only queues work, so a batch of calls is queued and timed
//! until the device has finished it, which a read of four bytes waits for; a batch takes [`BATCH`] or more, so the wait (tens
//! of microseconds) is some hundredth of it, and nothing is subtracted. Where the host queues more slowly than the device
//! works, it is the host that is timed, as in a training step. Calls use the same buffers again and again: what fits into
//! a cache stays there, and a bound from bytes can be passed.

use std::time::{Duration, Instant};

/// The shortest batch on a GPU.
const BATCH: Duration = Duration::from_millis(10);
/// Most calls of a batch: what a driver queues without waiting.
const MOST_CALLS: u32 = 512;

/// How often.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// At least so many repetitions …
    pub(super) runs: usize,
    /// … that take so long together.
    pub(super) time: Duration,
}

/// Seconds of one call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Times {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
    /// Repetitions.
    pub(super) runs: usize,
    /// Calls of each.
    pub(super) calls: u32,
}

impl Times {
    fn of(mut seconds: Vec<f64>, calls: u32) -> Self {
        seconds.sort_unstable_by(f64::total_cmp);
        let at = |i: usize| seconds.get(i).copied().unwrap_or(f64::NAN);
        let runs = seconds.len();
        let median = (at(runs.saturating_sub(1) / 2) + at(runs / 2)) / 2.0;
        Self { median, least: at(0), most: at(runs.saturating_sub(1)), runs, calls }
    }
}

/// Times `run`; `wait` returns when what runs have queued is done, and is none where they queue nothing.
pub(super) fn measure<E>(
    rules: Rules,
    run: &mut dyn FnMut() -> Result<(), E>,
    wait: Option<&mut dyn FnMut() -> Result<(), E>>,
) -> Result<Times, E> {
    // The first call compiles, allocates and touches memory for the first time.
    run()?;
    let (calls, mut wait) = match wait {
        None => (1, None),
        Some(wait) => {
            wait()?;
            let began = Instant::now();
            run()?;
            wait()?;
            let one = began.elapsed().max(Duration::from_nanos(1));
            let calls = BATCH.as_nanos().div_ceil(one.as_nanos());
            (u32::try_from(calls).unwrap_or(u32::MAX).clamp(1, MOST_CALLS), Some(wait))
        }
    };
    let (mut seconds, mut total) = (Vec::new(), Duration::ZERO);
    while seconds.len() < rules.runs.max(1) || total < rules.time {
        let began = Instant::now();
        for _ in 0..calls {
            run()?;
        }
        if let Some(wait) = &mut wait {
            wait()?;
        }
        let taken = began.elapsed();
        total += taken;
        seconds.push(taken.as_secs_f64() / f64::from(calls));
    }
    Ok(Times::of(seconds, calls))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn the_median_and_the_ends() {
        let times = Times::of(vec![3.0, 1.0, 2.0, 10.0], 1);
        assert_eq!((times.least, times.median, times.most, times.runs), (1.0, 2.5, 10.0, 4));
        assert_eq!(Times::of(vec![5.0, 1.0, 2.0], 1).median.to_bits(), 2.0f64.to_bits());
    }

    #[test]
    fn enough_runs_and_enough_time() {
        let count = Cell::new(0);
        let mut run = || -> Result<(), ()> {
            count.set(count.get() + 1);
            std::thread::sleep(Duration::from_millis(2));
            Ok(())
        };
        let rules = |runs, ms| Rules { runs, time: Duration::from_millis(ms) };
        let times = measure(rules(3, 0), &mut run, None).unwrap();
        assert_eq!((times.runs, times.calls, count.get()), (3, 1, 4));
        assert!(times.least >= 2e-3 && times.least <= times.median && times.median <= times.most);
        let times = measure(rules(1, 20), &mut run, None).unwrap();
        assert!(times.runs >= 2, "{times:?}");
    }

    /// Calls that queue, and a wait that works off the queue.
    #[test]
    fn what_is_queued_is_waited_for() {
        let (queued, done) = (Cell::new(0u32), Cell::new(0u32));
        let mut run = || -> Result<(), ()> {
            queued.set(queued.get() + 1);
            Ok(())
        };
        let mut wait = || {
            let waiting = queued.replace(0);
            done.set(done.get() + waiting);
            std::thread::sleep(Duration::from_millis(1) * waiting);
            Ok(())
        };
        let rules = Rules { runs: 2, time: Duration::ZERO };
        let times = measure(rules, &mut run, Some(&mut wait)).unwrap();
        assert!(times.calls > 1 && times.runs == 2, "{times:?}");
        assert!(times.least >= 1e-3, "the wait was not timed: {times:?}");
        assert_eq!((queued.get(), done.get()), (0, 2 + 2 * times.calls));
    }

    #[test]
    fn an_error_ends_it() {
        let rules = Rules { runs: 2, time: Duration::ZERO };
        assert_eq!(measure(rules, &mut || Err("no"), None), Err("no"));
    }
}
