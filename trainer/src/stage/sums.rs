//! How a step's gradients of virtual shards are added up where they lie in a slab: through the host, on one GPU, or
//! between the GPUs of the ranks.
//!
//! Owns the seam [`ShardSums`] and its three ways, whose bytes are the same: [`ByHost`] for every backend, [`OnGpu`] and
//! [`BetweenGpus`] for `Gpu<D>`. Start reading at [`ShardSums`]; `docs/adr/0006-nccl.md` says why.

use super::Result;
use crate::comm::nccl::{Agreement, Bucket, DeviceSync};
use crate::comm::{self, Communicator, GradientSync, HostSync, LocalShards};
use kernels::Backend;
use kernels::backend::Buffer as _;
use kernels::gpu::{Device, Gpu, GpuBuf};
use kernels::nccl::Region;
use std::fmt;

/// Bytes of one gradient that make a bucket where buckets are begun during the backward: 1 MiB.
///
/// Small enough that a LoRA gradient of some MB has several, large enough that a collective moves data for longer than
/// it takes to be started. Untried: no machine of the project has two GPUs.
pub const BUCKET_BYTES: usize = 1 << 20;

/// The same range of values of every gradient of this rank's shards, all in one slab.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// First elements, in the order in which the shards were agreed.
    pub shards: &'a [usize],
    /// First element of the sum, which overlaps none of them.
    pub total: usize,
    /// Elements, as many on every rank.
    pub len: usize,
}

/// Adds gradients over all shards of all ranks. Every rank makes the same calls in the same order.
pub trait ShardSums<B: Backend>: fmt::Debug {
    /// Learns which shards this rank holds: once, before anything else.
    ///
    /// # Errors
    /// Shards that are not each on exactly one rank; a failed collective.
    fn agree(&mut self, comm: &dyn Communicator, ids: &[u32]) -> Result<()>;

    /// The sum over host memory, where this is one: a stage whose gradients come one after another may give them to it as
    /// they come, and need not hold all of them.
    fn by_host(&self) -> Option<&dyn GradientSync> {
        None
    }

    /// slab[to..to+len] = slab[from..from+len], which do not overlap; after the work given to the backend so far.
    ///
    /// # Errors
    /// A range outside the slab; what the backend says.
    fn copy(
        &self,
        (backend, slab): (&B, &mut B::Buf<f32>),
        (from, to): (usize, usize),
        len: usize,
    ) -> Result<()> {
        let mut values = vec![0.0; len];
        backend.read(slab, from, &mut values)?;
        Ok(backend.write(slab, to, &values)?)
    }

    /// Bytes of a gradient that make a bucket to be begun before the backward has ended; `None`: begin one, after it.
    fn bucket_bytes(&self) -> Option<usize>;

    /// Begins slab[total ..] = ((s₀ + s₁) + s₂) + … + s₍V−1₎, in f32, elementwise, the same bytes on every rank. The
    /// shards' values are those of the work given to the backend so far; they may change, and the sum be read, after
    /// [`ShardSums::finish`].
    ///
    /// # Errors
    /// A range outside the slab; what the backend, a collective or a device says.
    fn begin(
        &mut self,
        comm: &dyn Communicator,
        of: (&B, &mut B::Buf<f32>),
        part: Part<'_>,
    ) -> Result<()>;

    /// What was begun is done for all work given to the backend later.
    ///
    /// # Errors
    /// What a device says, or a rank that does not come in time.
    fn finish(&mut self) -> Result<()>;

    /// The shards' scalars, `values[i]` of the i-th shard agreed, added in f64 in the order of the shards' numbers.
    ///
    /// # Errors
    /// A failed collective.
    fn scalars(&self, comm: &dyn Communicator, values: &[f64]) -> Result<f64>;

    /// Leaves in good order; every rank must. Dropped without, it leaves at once.
    ///
    /// # Errors
    /// What a device says.
    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// [`ShardSums`] through host memory, for every backend.
#[derive(Debug)]
pub struct ByHost<S> {
    sync: S,
    ids: Vec<u32>,
    values: Vec<f32>,
    total: Vec<f32>,
}

impl<S: GradientSync> ByHost<S> {
    /// Adds as `sync` does.
    pub fn new(sync: S) -> Self {
        Self { sync, ids: Vec::new(), values: Vec::new(), total: Vec::new() }
    }
}

impl<B: Backend, S: GradientSync> ShardSums<B> for ByHost<S> {
    fn agree(&mut self, _: &dyn Communicator, ids: &[u32]) -> Result<()> {
        // Compared with the other ranks' in every sum.
        self.ids = ids.to_vec();
        Ok(())
    }

    fn by_host(&self) -> Option<&dyn GradientSync> {
        Some(&self.sync)
    }

    fn bucket_bytes(&self) -> Option<usize> {
        None
    }

    fn begin(
        &mut self,
        comm: &dyn Communicator,
        (backend, slab): (&B, &mut B::Buf<f32>),
        Part { shards, total, len }: Part<'_>,
    ) -> Result<()> {
        self.values.resize(shards.len() * len, 0.0);
        self.total.resize(len, 0.0);
        for (i, &shard) in shards.iter().enumerate() {
            backend.read(slab, shard, &mut self.values[i * len..(i + 1) * len])?;
        }
        let local = LocalShards { ids: &self.ids, values: &self.values };
        self.sync.reduce_shards(comm, local, &mut self.total)?;
        Ok(backend.write(slab, total, &self.total)?)
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn scalars(&self, comm: &dyn Communicator, values: &[f64]) -> Result<f64> {
        Ok(self.sync.reduce_scalars(comm, &self.ids, values)?)
    }
}

/// [`ShardSums`] of a rank alone in its world, by launches on the computing stream: nothing leaves the GPU.
#[derive(Debug)]
pub struct OnGpu {
    host: HostSync,
    num_shards: u32,
    ids: Vec<u32>,
}

impl OnGpu {
    /// V = `num_shards`, all of them on this rank.
    pub fn new(num_shards: u32) -> Self {
        Self { host: HostSync::new(num_shards), num_shards, ids: Vec::new() }
    }
}

impl<D: Device> ShardSums<Gpu<D>> for OnGpu {
    fn agree(&mut self, _: &dyn Communicator, ids: &[u32]) -> Result<()> {
        let num_shards = self.num_shards;
        if let Some(shard) = (0..num_shards).find(|&v| ids.get(v as usize) != Some(&v)) {
            let holders = ids.iter().filter(|&&id| id == shard).count();
            return Err(comm::Error::Shards { shard, num_shards, holders }.into());
        }
        self.ids = ids.to_vec();
        Ok(())
    }

    fn copy(
        &self,
        (gpu, slab): (&Gpu<D>, &mut GpuBuf<D, f32>),
        (from, to): (usize, usize),
        len: usize,
    ) -> Result<()> {
        // The sum of one shard is that shard, in whatever bits.
        Ok(gpu.sum_shards(slab, to, &[from], len)?)
    }

    fn bucket_bytes(&self) -> Option<usize> {
        None
    }

    fn begin(
        &mut self,
        _: &dyn Communicator,
        (backend, slab): (&Gpu<D>, &mut GpuBuf<D, f32>),
        Part { shards, total, len }: Part<'_>,
    ) -> Result<()> {
        Ok(backend.sum_shards(slab, total, shards, len)?)
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn scalars(&self, comm: &dyn Communicator, values: &[f64]) -> Result<f64> {
        Ok(self.host.reduce_scalars(comm, &self.ids, values)?)
    }
}

/// [`ShardSums`] between the GPUs of ranks, beside the computing stream: a bucket is on its way while the backward of the
/// blocks below it still computes.
///
/// Dropped while buckets are under way, the group is aborted and its stream run out first; the slab must live until then.
#[derive(Debug)]
pub struct BetweenGpus<D: Device, S> {
    sync: S,
    host: HostSync,
    ids: Vec<u32>,
    agreement: Option<Agreement>,
    bucket_bytes: usize,
    addresses: Vec<u64>,
    /// The context and stream beside which `sync` works: dropped after it.
    _gpu: Gpu<D>,
}

impl<D: Device, S: DeviceSync> BetweenGpus<D, S> {
    /// V = `num_shards` in the whole job, added as `sync` does beside `gpu`, in buckets of [`BUCKET_BYTES`].
    pub fn new(gpu: Gpu<D>, sync: S, num_shards: u32) -> Self {
        Self {
            sync,
            host: HostSync::new(num_shards),
            ids: Vec::new(),
            agreement: None,
            bucket_bytes: BUCKET_BYTES,
            addresses: Vec::new(),
            _gpu: gpu,
        }
    }

    /// The same with buckets of `bucket_bytes`, equal on all ranks: 0 is one for each block, `usize::MAX` one in all.
    #[must_use]
    pub fn with_bucket_bytes(self, bucket_bytes: usize) -> Self {
        Self { bucket_bytes, ..self }
    }
}

impl<D: Device, S: DeviceSync> ShardSums<Gpu<D>> for BetweenGpus<D, S> {
    fn agree(&mut self, comm: &dyn Communicator, ids: &[u32]) -> Result<()> {
        self.agreement = Some(self.sync.agree(comm, ids)?);
        self.ids = ids.to_vec();
        Ok(())
    }

    fn copy(
        &self,
        (gpu, slab): (&Gpu<D>, &mut GpuBuf<D, f32>),
        (from, to): (usize, usize),
        len: usize,
    ) -> Result<()> {
        // The sum of one shard is that shard, in whatever bits.
        Ok(gpu.sum_shards(slab, to, &[from], len)?)
    }

    fn bucket_bytes(&self) -> Option<usize> {
        Some(self.bucket_bytes)
    }

    fn begin(
        &mut self,
        _: &dyn Communicator,
        (gpu, slab): (&Gpu<D>, &mut GpuBuf<D, f32>),
        Part { shards, total, len }: Part<'_>,
    ) -> Result<()> {
        for first in shards.iter().chain([&total]) {
            let (op, what, room) = ("gradient sum", "a gradient", slab.len());
            kernels::error::check_len(op, what, first.saturating_add(len), room)?;
        }
        let agreement = self.agreement.as_ref().ok_or(comm::Error::NotAgreed)?;
        self.addresses.clear();
        self.addresses.extend(shards.iter().map(|&first| slab.address_at(first)));
        let total = Region { address: slab.address_at(total), len };
        // Kernels that are held back for a graph belong before the sum too.
        gpu.flush()?;
        Ok(self.sync.begin(agreement, Bucket { shards: &self.addresses, total })?)
    }

    fn finish(&mut self) -> Result<()> {
        Ok(self.sync.finish()?)
    }

    fn scalars(&self, comm: &dyn Communicator, values: &[f64]) -> Result<f64> {
        Ok(self.host.reduce_scalars(comm, &self.ids, values)?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        let Self { sync, _gpu, .. } = *self;
        Ok(sync.close()?)
    }
}
