//! How fast ranks exchange numbers over the host and over their GPUs: samples, not benchmarks.

use std::time::{Duration, Instant};
use trainer::comm::{Communicator, GradientSync as _, HostSync, LocalShards, shards_of};

/// Numbers a rank brings to the host's samples.
const HOST_SAMPLE: usize = 1 << 20;
/// Virtual shards of the gradient sum's sample: the default of a run.
const SHARDS: u32 = 8;

/// The host's all-gather, and the population stage's gradient sum through it.
pub(super) fn host(comm: &dyn Communicator) -> trainer::comm::Result<String> {
    let (mine, mut all) = (vec![1f32; HOST_SAMPLE], vec![0f32; HOST_SAMPLE * comm.size()]);
    comm.all_gather_f32(&mine, &mut all)?;
    comm.barrier()?;
    let started = Instant::now();
    comm.all_gather_f32(&mine, &mut all)?;
    let gather = started.elapsed();
    let ids = shards_of(comm.rank(), comm.size(), SHARDS);
    let (sync, len) = (HostSync::new(SHARDS), HOST_SAMPLE / 4);
    let (values, mut total) = (vec![1f32; len * ids.len()], vec![0f32; len]);
    let local = LocalShards { ids: &ids, values: &values };
    sync.reduce_shards(comm, local, &mut total)?;
    comm.barrier()?;
    let started = Instant::now();
    sync.reduce_shards(comm, local, &mut total)?;
    let reduce = started.elapsed();
    Ok(format!(
        "host: gathering {} MB from each rank to all: {:.2} GB/s into each; a gradient sum of {len} values over {SHARDS} shards: {:.2} ms",
        HOST_SAMPLE * 4 / 1_000_000,
        rate(HOST_SAMPLE * 4 * (comm.size() - 1), gather),
        reduce.as_secs_f64() * 1e3
    ))
}

/// GB/s.
pub(super) fn rate(bytes: usize, time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let bytes = bytes as f64;
    bytes / 1e9 / time.as_secs_f64().max(1e-9)
}
