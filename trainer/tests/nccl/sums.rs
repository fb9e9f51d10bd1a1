//! What a group that works gives: sums, their bytes on 1 to 4 ranks, and the calls behind them.

use crate::job::{is_rank, job};
use crate::rank::{
    SHARDS, collectives, options, run, shard, shards, sum_in_buckets, sum_on_host, sync,
};
use std::time::Duration;
use trainer::comm::nccl::SumOrder;
use trainer::comm::{Communicator, GradientSync as _, HostSync, LocalShards};

const LIMIT: Duration = Duration::from_secs(30);
const LEN: usize = 70_001;

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// ((s₀ + s₁) + s₂) + …, by hand.
pub(crate) fn in_order(len: usize) -> Vec<f32> {
    let mut total = shard(0, len);
    for id in 1..SHARDS {
        total.iter_mut().zip(shard(id, len)).for_each(|(sum, x)| *sum += x);
    }
    total
}

fn shard_order(comm: &dyn Communicator) -> String {
    let expected = bits(&in_order(LEN));
    let (ids, values) = shards(comm, LEN);
    let mut by_host = vec![0.0; LEN];
    let local = LocalShards { ids: &ids, values: &values };
    HostSync::new(SHARDS).reduce_shards(comm, local, &mut by_host).unwrap();
    assert_eq!(bits(&by_host), expected);
    // In pieces of a hundredth of the gradient, and in one.
    let small = SHARDS as usize * LEN / 100 * 4;
    for buffer_bytes in [small, 64 << 20] {
        let sync = sync(comm, options(SumOrder::Shards, buffer_bytes), LIMIT).unwrap();
        // Twice: what the second call finds in its buffers must not matter, nor a gradient of another length.
        for _ in 0..2 {
            assert_eq!(bits(&sum_on_host(comm, &sync, LEN).unwrap()), expected);
            assert_eq!(bits(&sum_on_host(comm, &sync, 3).unwrap()), bits(&in_order(3)));
        }
        let buckets = [1, 30_000, 0, LEN - 30_001];
        assert_eq!(bits(&sum_in_buckets(comm, &sync, &buckets).unwrap()), expected);
        let loss = sync.reduce_scalars(comm, &ids, &vec![0.1; ids.len()]).unwrap();
        assert_eq!(loss.to_bits(), (0..SHARDS).skip(1).fold(0.1f64, |s, _| s + 0.1).to_bits());
        collectives(&sync).unwrap();
        sync.close().unwrap();
    }
    "done".into()
}

#[test]
fn same_bytes_on_every_number_of_ranks() {
    if is_rank() {
        return run(shard_order);
    }
    for ranks in 1..=4 {
        let ended = job("sums::same_bytes_on_every_number_of_ranks", ranks, "");
        for rank in 0..ranks {
            assert_eq!(ended.said(rank), "done");
            assert_eq!(ended.count(rank, "ncclGetUniqueId"), if rank == 0 { 2 } else { 0 });
            let init = format!(
                "ncclCommInitRankConfig ranks={ranks} rank={rank} config size=24 version=21400 blocking=0"
            );
            assert_eq!(ended.count(rank, &init), 2);
            assert_eq!(ended.count(rank, "error"), 0, "{:?}", ended.calls[rank]);
            assert_eq!(ended.count(rank, "ncclCommAbort"), 0);
            let last: Vec<&str> =
                ended.calls[rank].iter().rev().take(2).map(String::as_str).collect();
            assert_eq!(last, ["ncclCommDestroy", "ncclCommFinalize"]);
            let others: Vec<&String> =
                ended.calls[rank].iter().filter(|c| *c != "ncclGetUniqueId").collect();
            let first: Vec<&String> =
                ended.calls[0].iter().filter(|c| *c != "ncclGetUniqueId").collect();
            let collectives = |calls: &[&String]| -> Vec<String> {
                calls.iter().filter(|c| c.contains("count=")).map(|c| (*c).clone()).collect()
            };
            assert_eq!(collectives(&others), collectives(&first), "all ranks call the same");
        }
        // A piece of every shard of a rank goes in one launch.
        let groups = ended.count(0, "ncclGroupStart");
        assert!(groups > 0 && groups == ended.count(0, "ncclGroupEnd"));
    }
}

/// What two orders of V − 1 additions each differ by at most: 2·(V − 1)·2⁻²⁴·Σ|s|, and a little for the sum of
/// magnitudes' own.
pub(crate) fn bound(len: usize) -> Vec<f32> {
    let mut magnitudes = vec![0.0; len];
    for id in 0..SHARDS {
        magnitudes
            .iter_mut()
            .zip(shard(id, len))
            .for_each(|(sum, x): (&mut f32, f32)| *sum += x.abs());
    }
    magnitudes.iter().map(|m| 2.0 * 19.0 * f32::EPSILON / 2.0 * m * 1.001).collect()
}

fn rank_order(comm: &dyn Communicator) -> String {
    let sync = sync(comm, options(SumOrder::Ranks, 1 << 20), LIMIT).unwrap();
    let (sum, exact) = (sum_on_host(comm, &sync, LEN).unwrap(), in_order(LEN));
    let bucketed = sum_in_buckets(comm, &sync, &[LEN]).unwrap();
    assert_eq!(bits(&sum), bits(&bucketed), "the same ranks and lengths give the same bytes");
    let bound = bound(LEN);
    assert!((0..LEN).all(|i| (sum[i] - exact[i]).abs() <= bound[i]));
    sync.close().unwrap();
    let differ = bits(&sum).iter().zip(bits(&exact)).filter(|(a, b)| **a != *b).count();
    format!("{differ} differ")
}

#[test]
fn all_reduce_is_equal_within_rounding_only() {
    if is_rank() {
        return run(rank_order);
    }
    let name = "sums::all_reduce_is_equal_within_rounding_only";
    assert_eq!(job(name, 1, "").said(0), "0 differ", "one rank adds in the order of the shards");
    let ended = job(name, 4, "");
    // If they did not differ, the tests of the shards' order could not fail.
    let differ: usize = ended.said(3).strip_suffix(" differ").unwrap().parse().unwrap();
    assert!(differ > LEN / 10, "{differ}");
    assert_eq!(ended.count(0, "ncclAllReduce"), 2);
    assert_eq!(ended.count(0, "ncclAllGather"), 0);
}
