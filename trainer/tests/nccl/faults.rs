//! What a group that fails says, on which rank, how soon, and that nothing of it is used again.

use crate::job::{Ended, is_rank, job};
use crate::rank::{handles, options, run, sum_on_host, sync};
use std::time::Duration;
use trainer::comm::nccl::{DeviceSync as _, SumOrder, join, prepare};
use trainer::comm::{Communicator, Reduce};

/// Long beside what a sum takes here, short for a test.
const LIMIT: Duration = Duration::from_millis(1500);

/// Joins and sums until an error; then the group must refuse everything.
fn until_error(comm: &dyn Communicator) -> String {
    let sync = match sync(comm, options(SumOrder::Shards, 1 << 20), LIMIT) {
        Ok(sync) => sync,
        Err(error) => return format!("join: {error}"),
    };
    for step in 0..3 {
        let summed = sum_on_host(comm, &sync, 1000);
        // So that a rank whose own sum succeeded does not begin another with one that will not come.
        let failed = comm.all_reduce_u64(Reduce::Max, u64::from(summed.is_err())).unwrap();
        if let Err(error) = summed {
            let again = sync.finish().map_or_else(|e| e.to_string(), |()| "no error".into());
            return format!("step {step}: {error}; then: {again}");
        }
        if failed > 0 {
            return format!("step {step}: another rank failed");
        }
    }
    sync.close().unwrap();
    "no error".into()
}

#[track_caller]
fn two_ranks(name: &str, fault: &str) -> Ended {
    job(&format!("faults::{name}"), 2, fault)
}

#[track_caller]
fn says(ended: &Ended, rank: usize, texts: &[&str]) {
    for text in texts {
        assert!(ended.said(rank).contains(text), "no `{text}` in: {}", ended.said(rank));
    }
}

const GONE: &str = "the group was aborted after an earlier error";

/// Rank 1 has no device to join with.
fn unprepared(comm: &dyn Communicator) -> String {
    let broken = || kernels::Error::Backend { op: "load", what: "no such kernel".into() };
    let handles = handles(comm).unwrap();
    let handles = if comm.rank() == 1 { Err(broken()) } else { Ok(handles) };
    let joined = join(comm, "node-of-the-test", prepare(handles), LIMIT);
    joined.map_or_else(|error| error.to_string(), |_| "no error".into())
}

#[test]
fn a_rank_that_cannot_join_is_named_on_all() {
    if is_rank() {
        return run(unprepared);
    }
    let ended = job("faults::a_rank_that_cannot_join_is_named_on_all", 3, "");
    assert_eq!(ended.said(1), "GPU: load: no such kernel");
    let elsewhere = "rank 1 cannot take part in the group of GPUs: on node-of-the-test: GPU: load: no such kernel";
    assert_eq!([0, 2].map(|rank| ended.said(rank)), [elsewhere; 2]);
    assert_eq!(ended.count(0, "nccl"), 0, "nobody begins to join");
}

#[test]
fn refused_at_once_while_joining() {
    if is_rank() {
        return run(until_error);
    }
    let ended = two_ranks("refused_at_once_while_joining", "init=1");
    let own = [
        "join: NCCL: init: rank 1 of 2 on node-of-the-test: unhandled system error (code 2)",
        "last error: no socket, as the test asked",
    ];
    says(&ended, 1, &own);
    says(&ended, 0, &["join: NCCL: init: rank 0 of 2", "not over after 1.5s"]);
    assert_eq!(
        [0, 1].map(|r| ended.count(r, "ncclCommAbort")),
        [1, 0],
        "rank 1 never had a handle"
    );
}

#[test]
fn failing_later_while_joining() {
    if is_rank() {
        return run(until_error);
    }
    let ended = two_ranks("failing_later_while_joining", "init_later=0");
    says(&ended, 0, &["join: NCCL: init: rank 0 of 2", "internal error (code 3)", "no topology"]);
    says(&ended, 1, &["join: NCCL: init: rank 1 of 2", "not over after 1.5s"]);
    assert_eq!([0, 1].map(|r| ended.count(r, "ncclCommAbort")), [1, 1]);
}

#[test]
fn a_rank_that_never_comes() {
    if is_rank() {
        return run(until_error);
    }
    let ended = two_ranks("a_rank_that_never_comes", "absent=1");
    for rank in 0..2 {
        says(&ended, rank, &["join: NCCL: init", "not over after 1.5s", "slow, stuck or gone"]);
        assert_eq!(ended.count(rank, "ncclCommAbort"), 1);
        assert_eq!(ended.count(rank, "ncclAllGather"), 0);
    }
}

#[test]
fn an_asynchronous_error() {
    if is_rank() {
        return run(until_error);
    }
    // Ten gathers a step (20 shards, 2 ranks): number 10 is the second step's first.
    let ended = two_ranks("an_asynchronous_error", "async=1:10");
    let own = [
        "step 1: NCCL: ",
        "rank 1 of 2 on node-of-the-test: remote process exited",
        "(code 6); last error: the link to rank 0 went down",
        GONE,
    ];
    says(&ended, 1, &own);
    says(&ended, 0, &["step 1: NCCL: gradient sum: rank 0 of 2", "not over after 1.5s", GONE]);
    assert_eq!([0, 1].map(|r| ended.count(r, "ncclCommAbort")), [1, 1]);
    assert_eq!([0, 1].map(|r| ended.count(r, "ncclAllGather")), [20, 20]);
}

#[test]
fn a_rank_that_is_stuck() {
    if is_rank() {
        return run(until_error);
    }
    let ended = two_ranks("a_rank_that_is_stuck", "stuck=0:25");
    for rank in 0..2 {
        says(&ended, rank, &["step 2: NCCL: gradient sum", "not over after 1.5s", GONE]);
        assert_eq!(ended.count(rank, "ncclCommAbort"), 1);
        assert_eq!(ended.count(rank, "ncclCommDestroy"), 0);
    }
}

#[test]
fn a_call_refused() {
    if is_rank() {
        return run(until_error);
    }
    let ended = two_ranks("a_call_refused", "refused=0:2");
    says(&ended, 0, &["step 0: NCCL: all_gather: rank 0 of 2", "invalid usage (code 5)", GONE]);
    assert_eq!(
        ended.count(0, "ncclAllGather"),
        3,
        "nothing of the group's calls after the refusal"
    );
    assert_eq!(ended.count(0, "ncclGroupEnd"), 1, "the group of calls is closed");
    says(&ended, 1, &["not over after 1.5s", GONE]);
}

#[test]
fn a_device_that_fails() {
    if is_rank() {
        return run(until_error);
    }
    // The last of ten gathers (20 shards, two ranks): what comes before it, rank 0 has from rank 1.
    let ended = two_ranks("a_device_that_fails", "device=1:9");
    says(&ended, 1, &["CUDA_ERROR_LAUNCH_FAILED (code 719)", GONE]);
    assert_eq!(ended.count(1, "ncclCommAbort"), 1);
    // Rank 0's own sum succeeded; its group is dropped, which aborts it.
    says(&ended, 0, &["step 0: another rank failed"]);
    assert_eq!(ended.count(0, "ncclCommAbort"), 1);
}

#[test]
fn a_slow_rank_is_waited_for() {
    if is_rank() {
        return run(until_error);
    }
    let ended = two_ranks("a_slow_rank_is_waited_for", "slow=1:10");
    for rank in 0..2 {
        assert_eq!(ended.said(rank), "no error");
        assert_eq!(ended.count(rank, "ncclCommAbort"), 0);
    }
    assert!(ended.wall >= Duration::from_millis(30 * 10), "30 gathers of 10 ms: {:?}", ended.wall);
}
