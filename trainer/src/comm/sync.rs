//! The sum of gradients over ranks, with the same bytes for any number of ranks.
//!
//! Floating-point addition is not associative, so a plain all-reduce gives other bytes for 2 ranks than for 4. Here
//! a batch is cut into V virtual shards whatever the rank count; each shard's gradient is made whole on one rank and
//! the V gradients are added in the order 0, 1, … V−1 on every rank.

use super::{Communicator, Error, Op, Result};
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// The virtual shards a rank holds: shard `ids[i]` has the values `values[i·len .. (i+1)·len]`.
#[derive(Debug, Clone, Copy)]
pub struct LocalShards<'a> {
    /// Which shards, each in `0..num_shards`, in any order; may be none.
    pub ids: &'a [u32],
    /// (ids.len(), len) f32.
    pub values: &'a [f32],
}

/// The virtual shards of `rank`: v with v mod `size` = `rank`, ascending.
pub fn shards_of(rank: usize, size: usize, num_shards: u32) -> Vec<u32> {
    (0..num_shards).filter(|&v| v as usize % size.max(1) == rank).collect()
}

/// Sums what the virtual shards of all ranks hold, in the order of the shards' numbers.
pub trait GradientSync: Send + Sync + fmt::Debug {
    /// total = ((s₀ + s₁) + s₂) + … + s₍V−1₎, elementwise in f32; the same bytes on every rank and for every number of
    /// ranks. *Shapes* `local.values` (ids, len), `total` (len). *Writes* `=`.
    ///
    /// # Errors
    /// Lengths that do not fit; shards that are not each of `0..V` on exactly one rank; a failed collective.
    fn reduce_shards(
        &self,
        comm: &dyn Communicator,
        local: LocalShards<'_>,
        total: &mut [f32],
    ) -> Result<()>;

    /// The shards' scalars (loss sums, token counts) added in f64 in the order of the shards' numbers; `values[i]`
    /// belongs to shard `ids[i]`.
    ///
    /// # Errors
    /// As [`GradientSync::reduce_shards`].
    fn reduce_scalars(&self, comm: &dyn Communicator, ids: &[u32], values: &[f64]) -> Result<f64>;
}

/// [`GradientSync`] in host memory, over any [`Communicator`].
///
/// *Cost* per call: every rank receives V·len·4 bytes (a ring all-reduce: 2·len·4, but with bytes that depend on the
/// rank count) and adds V·len numbers; independent of the number of ranks as long as V is a multiple of it. With 8
/// shards and LoRA of rank 8 on q, k, v of a 135M base (0.65 M numbers) that is 21 MB a step. *Memory*: at most
/// `buffer_bytes`, or one number per shard if that is more.
#[derive(Debug)]
pub struct HostSync {
    num_shards: u32,
    buffer_bytes: usize,
    /// This rank's part and all parts of a piece, kept between calls so that a step allocates nothing of this size.
    scratch: Mutex<Scratch>,
}

#[derive(Debug, Default)]
struct Scratch {
    mine: Vec<f32>,
    all: Vec<f32>,
}

/// Where each shard lies in the gathered parts.
pub(super) struct Layout {
    /// Shards on the rank that has most; the other ranks' parts are padded to it.
    pub(super) per_rank: usize,
    /// By shard: rank · per_rank + place in that rank's list.
    pub(super) places: Vec<usize>,
}

impl HostSync {
    /// V = `num_shards` virtual shards in the whole job, buffers of 64 MiB.
    pub fn new(num_shards: u32) -> Self {
        Self { num_shards, buffer_bytes: 64 << 20, scratch: Mutex::default() }
    }

    /// The same with buffers of at most `buffer_bytes`; must be equal on all ranks.
    #[must_use]
    pub fn with_buffer_bytes(self, buffer_bytes: usize) -> Self {
        Self { buffer_bytes, ..self }
    }
}

/// Asks all ranks for their lists of the V = `num_shards` shards and finds each shard's place.
pub(super) fn layout(comm: &dyn Communicator, ids: &[u32], num_shards: u32) -> Result<Layout> {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let all = comm.all_gather_bytes(&bytes)?;
    let lists: Vec<Vec<u32>> = all
        .iter()
        .map(|b| b.as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w)).collect())
        .collect();
    let per_rank = lists.iter().map(Vec::len).max().unwrap_or(0);
    let mut places = vec![Vec::new(); num_shards as usize];
    for (rank, list) in lists.iter().enumerate() {
        for (i, &shard) in list.iter().enumerate() {
            let unknown = Error::Shards { shard, num_shards, holders: 1 };
            places.get_mut(shard as usize).ok_or(unknown)?.push(rank * per_rank + i);
        }
    }
    let places = (0u32..).zip(places).map(|(shard, at)| match at[..] {
        [one] => Ok(one),
        _ => Err(Error::Shards { shard, num_shards, holders: at.len() }),
    });
    Ok(Layout { per_rank, places: places.collect::<Result<_>>()? })
}

impl GradientSync for HostSync {
    fn reduce_shards(
        &self,
        comm: &dyn Communicator,
        local: LocalShards<'_>,
        total: &mut [f32],
    ) -> Result<()> {
        let len = total.len();
        let expected = local.ids.len().saturating_mul(len);
        if local.values.len() != expected {
            let (op, rank, got) = (Op::AllGatherF32, comm.rank(), local.values.len());
            return Err(Error::Length { op, rank, expected, got });
        }
        let Layout { per_rank, places } = layout(comm, local.ids, self.num_shards)?;
        let row = per_rank.max(1) * (comm.size() + 1) * size_of::<f32>();
        let step = (self.buffer_bytes / row).clamp(1, len.max(1));
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let Scratch { mine, all } = &mut *scratch;
        mine.resize(per_rank * step, 0.0);
        all.resize(per_rank * step * comm.size(), 0.0);
        for (start, sums) in (0..).step_by(step).zip(total.chunks_mut(step)) {
            let n = sums.len();
            for i in 0..local.ids.len() {
                let from = &local.values[i * len + start..][..n];
                mine[i * n..][..n].copy_from_slice(from);
            }
            let all = &mut all[..per_rank * n * comm.size()];
            comm.all_gather_f32(&mine[..per_rank * n], all)?;
            for (v, &place) in places.iter().enumerate() {
                let part = &all[place * n..][..n];
                match v {
                    // Not 0 + s₀: that would turn −0 into +0.
                    0 => sums.copy_from_slice(part),
                    _ => sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x),
                }
            }
        }
        if places.is_empty() {
            total.fill(0.0);
        }
        Ok(())
    }

    fn reduce_scalars(&self, comm: &dyn Communicator, ids: &[u32], values: &[f64]) -> Result<f64> {
        if values.len() != ids.len() {
            let (op, rank) = (Op::AllGatherBytes, comm.rank());
            return Err(Error::Length { op, rank, expected: ids.len(), got: values.len() });
        }
        let Layout { per_rank, places } = layout(comm, ids, self.num_shards)?;
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let all = comm.all_gather_bytes(&bytes)?;
        let mut sum: Option<f64> = None;
        for (shard, place) in (0u32..).zip(places) {
            let words = all[place / per_rank].as_chunks::<8>().0;
            let missing = Error::Shards { shard, num_shards: self.num_shards, holders: 0 };
            let x = f64::from_le_bytes(*words.get(place % per_rank).ok_or(missing)?);
            sum = Some(sum.map_or(x, |sum| sum + x));
        }
        Ok(sum.unwrap_or(0.0))
    }
}
