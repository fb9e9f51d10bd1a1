//! The communicators of one process: the suite on each, and what happens when ranks disagree, leave, panic or abort.

#![expect(clippy::unwrap_used, clippy::cast_precision_loss, reason = "test code")]

mod comm_suite;

use comm_suite::{every_collective, shard_gradient, sum_in_order, sum_of_shards};
use std::sync::mpsc;
use std::time::Duration;
use trainer::comm::{
    Communicator, Error, GradientSync, HostSync, LocalShards, Op, Reduce, Result, Solo, Threads,
    shards_of,
};

/// Runs `body` on a thread of its own and fails if it takes longer than 20 s: a hang is a failure, not a wait.
fn within<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || sender.send(body()));
    let result = receiver.recv_timeout(Duration::from_secs(20));
    let value = result.expect("the world hangs");
    thread.join().unwrap().unwrap();
    value
}

fn on_threads<T: Send + 'static>(
    ranks: usize,
    body: impl Fn(&Threads) -> Result<T> + Send + Sync + 'static,
) -> Vec<Result<T>> {
    within(move || Threads::run(ranks, body).unwrap())
}

#[test]
fn suite_on_solo() {
    every_collective(&Solo::new()).unwrap();
}

#[test]
fn suite_on_threads() {
    for ranks in 1..=4 {
        for result in on_threads(ranks, |comm| every_collective(comm)) {
            result.unwrap();
        }
    }
}

#[test]
fn no_world_without_ranks() {
    assert_eq!(Threads::world(0).err(), Some(Error::NoRanks));
}

#[test]
fn same_sum_for_any_rank_count() {
    const SHARDS: u32 = 8;
    const LEN: usize = 1000;
    let expected = sum_in_order(SHARDS, LEN);
    let mut backwards = shard_gradient(SHARDS - 1, LEN);
    for v in (0..SHARDS - 1).rev() {
        backwards.iter_mut().zip(shard_gradient(v, LEN)).for_each(|(sum, x)| *sum += x);
    }
    let backwards: Vec<u32> = backwards.iter().map(|x| x.to_bits()).collect();
    assert_ne!(backwards, expected.0, "the values must not hide a wrong order");
    // Buffers for all, for a few numbers, for less than one.
    for buffer in [1 << 20, 3000, 0] {
        assert_eq!(sum_of_shards(&Solo::new(), SHARDS, LEN, buffer).unwrap(), expected);
        for ranks in [1, 2, 3, 4, 8, 9] {
            let sums = on_threads(ranks, move |comm| sum_of_shards(comm, SHARDS, LEN, buffer));
            assert!(sums.into_iter().all(|s| s.unwrap() == expected), "{ranks} ranks, {buffer} B");
        }
    }
}

#[test]
fn negative_zero_survives_the_sum() {
    let sync = HostSync::new(2);
    let mut total = [1.0f32];
    let local = LocalShards { ids: &[0, 1], values: &[-0.0, -0.0] };
    sync.reduce_shards(&Solo::new(), local, &mut total).unwrap();
    assert_eq!(total[0].to_bits(), (-0.0f32).to_bits());
}

#[test]
fn shards_are_each_held_once() {
    let sync = HostSync::new(3);
    let reduce = |ids: &[u32]| {
        let values = vec![1.0; ids.len()];
        sync.reduce_shards(&Solo::new(), LocalShards { ids, values: &values }, &mut [0.0])
    };
    assert_eq!(reduce(&[2, 0, 1]), Ok(()));
    let fault = |shard, holders| Err(Error::Shards { shard, num_shards: 3, holders });
    assert_eq!(reduce(&[0, 1]), fault(2, 0));
    assert_eq!(reduce(&[0, 1, 1, 2]), fault(1, 2));
    assert_eq!(reduce(&[0, 1, 3]), fault(3, 1));
    let short = LocalShards { ids: &[0, 1, 2], values: &[1.0] };
    let error = sync.reduce_shards(&Solo::new(), short, &mut [0.0]).unwrap_err();
    assert!(matches!(error, Error::Length { expected: 3, got: 1, .. }), "{error}");
    for (size, shards) in [(1, 8), (3, 8), (8, 8), (11, 8), (2, 0)] {
        let mut all: Vec<u32> = (0..size).flat_map(|r| shards_of(r, size, shards)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..shards).collect::<Vec<_>>());
    }
}

#[test]
fn different_collectives_are_an_error_on_every_rank() {
    let results = on_threads(3, |comm| match comm.rank() {
        1 => comm.broadcast_bytes(0, &mut Vec::new()),
        _ => comm.barrier(),
    });
    for result in results {
        let error = result.unwrap_err();
        let Error::Mismatch { rank: 0, call, other: 1, other_call } = &error else {
            panic!("{error}");
        };
        assert_eq!((call.op, other_call.op), (Some(Op::Barrier), Some(Op::BroadcastBytes)));
    }
}

#[test]
fn different_roots_lengths_or_reductions_are_an_error() {
    let roots = on_threads(2, |comm| comm.broadcast_bytes(comm.rank(), &mut vec![1, 2]));
    let lengths = on_threads(2, |comm| {
        let n = 1 + comm.rank();
        comm.all_gather_f32(&vec![0.0; n], &mut vec![0.0; 2 * n])
    });
    let reductions = on_threads(2, |comm| {
        let reduce = if comm.rank() == 0 { Reduce::Max } else { Reduce::Sum };
        comm.all_reduce_u64(reduce, 1).map(drop)
    });
    for result in roots.into_iter().chain(lengths).chain(reductions) {
        assert!(matches!(result, Err(Error::Mismatch { rank: 0, other: 1, .. })), "{result:?}");
    }
}

#[test]
fn a_rank_that_returns_early_fails_the_others() {
    let results = on_threads(3, |comm| {
        comm.barrier()?;
        if comm.rank() == 2 { Ok(()) } else { comm.barrier() }
    });
    assert_eq!(results[2], Ok(()));
    for (rank, result) in results.iter().enumerate().take(2) {
        let gone = results.iter().position(|r| r.is_ok()).unwrap();
        let left = Error::RankLeft { op: Op::Barrier, rank, gone };
        assert_eq!(*result, Err(left));
    }
}

#[test]
fn a_rank_that_panics_fails_the_others() {
    let results = on_threads(4, |comm| {
        comm.barrier()?;
        assert!(comm.rank() != 1, "seeded");
        comm.all_gather_bytes(&[1]).map(drop)
    });
    let panicked = Error::Panicked { rank: 1, message: "seeded".into() };
    assert_eq!(results[1], Err(panicked));
    for rank in [0, 2, 3] {
        assert!(matches!(results[rank], Err(Error::RankLeft { .. })), "{:?}", results[rank]);
    }
}

#[test]
fn an_abort_reaches_every_rank() {
    let results =
        on_threads(3, |comm| if comm.rank() == 1 { Err(comm.abort(42)) } else { comm.barrier() });
    assert!(results.iter().all(|r| *r == Err(Error::Aborted { rank: 1, code: 42 })), "{results:?}");
    let solo = Solo::new();
    assert_eq!(solo.abort(7), Error::Aborted { rank: 0, code: 7 });
    assert_eq!(solo.barrier(), Err(Error::Aborted { rank: 0, code: 7 }));
}

#[test]
fn the_last_result_is_read_before_a_rank_leaves() {
    // A rank may be gone before a slow one has picked up the result of the meeting both took part in.
    for _ in 0..200 {
        let results = on_threads(4, |comm| comm.all_reduce_u64(Reduce::Sum, 1));
        assert!(results.iter().all(|r| *r == Ok(4)), "{results:?}");
    }
}

#[test]
fn the_trait_is_object_safe_and_shared() {
    fn shared<T: Send + Sync + ?Sized>(_: &T) {}
    let comm: Box<dyn Communicator> = Box::new(Solo::new());
    shared(comm.as_ref());
    let sync: Box<dyn GradientSync> = Box::new(HostSync::new(1));
    shared(sync.as_ref());
}
