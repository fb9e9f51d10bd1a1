//! The gradient sum of the population stage where the gradients are: on the GPUs.
//!
//! In buckets, so that the sum of the last blocks' gradients runs while the backward of earlier blocks still does:
//! `begin(bucket)` as soon as a bucket's gradients are enqueued, `finish` once before the optimiser. The population stage
//! does so.

use super::super::sync::{Layout, layout};
use super::super::{Communicator, Error, GradientSync, HostSync, LocalShards, Op, Result};
use kernels::nccl::{Group, Lane, Region};
use std::sync::{Arc, Mutex, PoisonError};

/// Which order gradients are added in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SumOrder {
    /// The order of the virtual shards, as [`HostSync`] adds: the same bytes for every number of ranks. Every rank
    /// receives V·n values.
    Shards,
    /// Each rank's shards in their order, then NCCL's all-reduce: 2·n values received, but the bytes depend on the number of
    /// ranks, on NCCL's algorithm and so on its release; equal to the other only within rounding, V·2⁻²⁴·Σ|s|.
    Ranks,
}

/// How [`NcclSync`] works; must be equal on all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NcclOptions {
    /// V, the virtual shards of the whole job.
    pub num_shards: u32,
    /// Which sum.
    pub order: SumOrder,
    /// Device memory for gathered shards; a bucket goes in as many pieces as that takes. At least one value of each
    /// shard is gathered at a time.
    pub buffer_bytes: usize,
}

impl NcclOptions {
    /// V = `num_shards`, added in their order, 64 MiB of buffer.
    pub fn new(num_shards: u32) -> Self {
        Self { num_shards, order: SumOrder::Shards, buffer_bytes: 64 << 20 }
    }

    /// Values of each shard that are gathered at a time from `size` ranks of at most `per_rank` shards, of buckets of
    /// `len` values.
    fn step(&self, (per_rank, size): (usize, usize), len: usize) -> usize {
        let row = per_rank.max(1) * size * size_of::<f32>();
        (self.buffer_bytes / row.max(1)).clamp(1, len.max(1))
    }

    /// Device memory that sums over `size` ranks of at most `per_rank` shards keep for gathered shards, where buckets
    /// have up to `len` values.
    pub fn gathered_bytes(&self, (per_rank, size): (usize, usize), len: usize) -> usize {
        match self.order {
            SumOrder::Shards => {
                per_rank * size * self.step((per_rank, size), len) * size_of::<f32>()
            }
            SumOrder::Ranks => 0,
        }
    }
}

/// Who holds which shard, agreed by all ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreement {
    /// Shards of this rank.
    held: usize,
    /// Shards on the rank that has most.
    per_rank: usize,
    /// By shard: its rank and its place in that rank's list.
    places: Vec<(usize, usize)>,
}

/// The same range of values of every gradient.
#[derive(Debug, Clone, Copy)]
pub struct Bucket<'a> {
    /// Device addresses of the first value, one for each of this rank's shards in the order agreed.
    pub shards: &'a [u64],
    /// Where the sum goes; its length is the bucket's, equal on all ranks. None of `shards`.
    pub total: Region,
}

/// [`GradientSync`] where the gradients lie in device memory.
pub trait DeviceSync: Send + Sync + std::fmt::Debug {
    /// Learns which rank holds which of the V shards; `ids` are this rank's. Once per run, over the host.
    ///
    /// # Errors
    /// Shards that are not each of `0..V` on exactly one rank; a failed collective.
    fn agree(&self, comm: &dyn Communicator, ids: &[u32]) -> Result<Agreement>;

    /// Begins total = ((s₀ + s₁) + s₂) + … of one bucket, after all that the computing stream was given so far and
    /// beside what it is given later. Every rank must begin the same buckets in the same order.
    ///
    /// # Errors
    /// Another number of shards than agreed; what the device or NCCL says.
    fn begin(&self, agreement: &Agreement, bucket: Bucket<'_>) -> Result<()>;

    /// Waits until all buckets begun are summed; what the computing stream is given later sees the sums.
    ///
    /// # Errors
    /// What the device or NCCL says, a rank that does not come in time: the group is then aborted.
    fn finish(&self) -> Result<()>;

    /// Leaves in good order; every rank must.
    ///
    /// # Errors
    /// What the device or NCCL says.
    fn close(self) -> Result<()>
    where
        Self: Sized;
}

/// Memory of a lane, given back when dropped; the group that used it must be idle or aborted by then.
#[derive(Debug)]
struct Memory {
    lane: Arc<dyn Lane>,
    region: Region,
}

impl Memory {
    fn new(lane: &Arc<dyn Lane>, len: usize) -> Result<Self> {
        Ok(Self { lane: Arc::clone(lane), region: lane.alloc(len)? })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.lane.free(self.region);
    }
}

/// Device memory kept between calls, so that a step allocates nothing once it has the size.
#[derive(Debug, Default)]
struct Scratch {
    gathered: Option<Memory>,
    /// Of the host form: the shards, the total.
    values: Option<Memory>,
    total: Option<Memory>,
}

/// [`DeviceSync`] over an NCCL group; also a [`GradientSync`] for gradients in host memory, which it copies to the device
/// and back.
///
/// Dropped without [`NcclSync::close`], the group is aborted first, then its memory freed.
#[derive(Debug)]
pub struct NcclSync {
    // Before `scratch`, so dropped before it: an aborted group's work no longer uses the memory.
    group: Group,
    options: NcclOptions,
    scratch: Mutex<Scratch>,
}

impl NcclSync {
    /// Sums over the ranks of `group`.
    pub fn new(group: Group, options: NcclOptions) -> Self {
        Self { group, options, scratch: Mutex::default() }
    }

    /// The group, for collectives of its user's own.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Leaves the group in good order; every rank must.
    ///
    /// # Errors
    /// What NCCL says.
    pub fn close(self) -> Result<()> {
        let Self { group, scratch, .. } = self;
        let closed = group.close();
        drop(scratch);
        Ok(closed?)
    }

    /// Gathers pieces of all shards and adds them in the shards' order.
    fn add_shards(&self, agreement: &Agreement, bucket: Bucket<'_>) -> Result<()> {
        let (size, rank) = (self.group.place().size, self.group.place().rank);
        let (len, lane) = (bucket.total.len, self.group.lane());
        let step = self.options.step((agreement.per_rank, size), len);
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = agreement.per_rank * size * step;
        let gathered = self.at_least(&mut scratch.gathered, needed)?;
        for start in (0..len).step_by(step) {
            let n = step.min(len - start);
            // gathered (per_rank, size, n): list place i of every rank, then rank by rank.
            let part = |i: usize, rank: usize| gathered.part((i * size + rank) * n, n);
            let pairs = (0..agreement.per_rank).map(|i| {
                let to = gathered.part(i * size * n, size * n);
                // A rank with fewer shards sends what happens to lie in its part; no shard's place points there.
                let from = bucket
                    .shards
                    .get(i)
                    .map_or(part(i, rank), |&address| Region { address, len }.part(start, n));
                (from, to)
            });
            self.group.all_gather_each(&pairs.collect::<Vec<_>>())?;
            let parts: Vec<u64> =
                agreement.places.iter().map(|&(rank, i)| part(i, rank).address).collect();
            lane.sum(bucket.total.part(start, n), &parts)?;
        }
        Ok(())
    }

    /// Adds this rank's shards, then reduces.
    fn add_ranks(&self, bucket: Bucket<'_>) -> Result<()> {
        self.group.lane().sum(bucket.total, bucket.shards)?;
        Ok(self.group.all_reduce(bucket.total, bucket.total)?)
    }

    /// Memory of at least `len` values; grown only when a run begins, or begins with larger gradients.
    fn at_least(&self, kept: &mut Option<Memory>, len: usize) -> Result<Region> {
        match kept {
            Some(memory) if memory.region.len >= len => Ok(memory.region),
            _ => {
                if kept.is_some() {
                    self.group.wait("gradient sum")?;
                }
                *kept = None;
                let memory = Memory::new(self.group.lane(), len)?;
                Ok(kept.insert(memory).region)
            }
        }
    }
}

impl DeviceSync for NcclSync {
    fn agree(&self, comm: &dyn Communicator, ids: &[u32]) -> Result<Agreement> {
        let Layout { per_rank, places } = layout(comm, ids, self.options.num_shards)?;
        let places = places.iter().map(|place| (place / per_rank, place % per_rank)).collect();
        Ok(Agreement { held: ids.len(), per_rank, places })
    }

    fn begin(&self, agreement: &Agreement, bucket: Bucket<'_>) -> Result<()> {
        if bucket.shards.len() != agreement.held {
            let (op, rank) = (Op::AllGatherF32, self.group.place().rank);
            let (expected, got) = (agreement.held, bucket.shards.len());
            return Err(Error::Length { op, rank, expected, got });
        }
        let lane = self.group.lane();
        lane.follow()?;
        match self.options.order {
            _ if agreement.places.is_empty() => Ok(lane.zero(bucket.total)?),
            SumOrder::Shards => self.add_shards(agreement, bucket),
            SumOrder::Ranks => self.add_ranks(bucket),
        }
    }

    fn finish(&self) -> Result<()> {
        self.group.lane().lead()?;
        Ok(self.group.wait("gradient sum")?)
    }

    fn close(self) -> Result<()> {
        Self::close(self)
    }
}

impl GradientSync for NcclSync {
    fn reduce_shards(
        &self,
        comm: &dyn Communicator,
        local: LocalShards<'_>,
        total: &mut [f32],
    ) -> Result<()> {
        let (len, lane) = (total.len(), self.group.lane());
        let expected = local.ids.len().saturating_mul(len);
        if local.values.len() != expected {
            let (op, rank, got) = (Op::AllGatherF32, comm.rank(), local.values.len());
            return Err(Error::Length { op, rank, expected, got });
        }
        let agreement = self.agree(comm, local.ids)?;
        let (values, sum) = {
            let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
            let values = self.at_least(&mut scratch.values, expected)?.part(0, expected);
            (values, self.at_least(&mut scratch.total, len)?.part(0, len))
        };
        lane.write(values, local.values)?;
        let shards: Vec<u64> =
            (0..local.ids.len()).map(|i| values.part(i * len, len).address).collect();
        self.begin(&agreement, Bucket { shards: &shards, total: sum })?;
        self.finish()?;
        Ok(lane.read(sum, total)?)
    }

    fn reduce_scalars(&self, comm: &dyn Communicator, ids: &[u32], values: &[f64]) -> Result<f64> {
        // A handful of numbers that the host needs anyway: over the host, in the same order.
        HostSync::new(self.options.num_shards).reduce_scalars(comm, ids, values)
    }
}
