//! Where the gradients of a model that trains whole wait for their sum: in host memory, or side by side on the device.
//!
//! Owns [`Held`] and the part of [`WholeTrainer`] that makes room, keeps a shard's gradient, and takes the sum. Start
//! reading at [`Held`].

use super::Result;
use super::buckets::{Sum, whole_buckets};
use super::sums::ShardSums;
use super::whole::WholeTrainer;
use crate::comm::Communicator;
use kernels::Ops;
use kernels::backend::Buffer as _;
use rayon::prelude::*;

/// Where a rank's shards wait for their sum.
#[derive(Debug, Clone, Copy)]
pub(super) enum Held {
    /// Nowhere: the only shard of a rank alone is the sum.
    Nothing,
    /// In host memory; alone, the sum alone.
    OnHost { alone: bool },
    /// In one slab with the gradient at hand, which is the last shard's in the end: place `i + 1` of it is the `i`-th
    /// shard's but for the last, and the place after all shards is the sum's.
    OnDevice,
}

impl<B: Ops> WholeTrainer<'_, B> {
    /// Agrees on this rank's shards, and makes room for their gradients; where they are kept, and how they are summed.
    pub(super) fn hold<'s>(
        &mut self,
        (comm, sums): (&'s dyn Communicator, &'s mut dyn ShardSums<B>),
        ids: &[u32],
    ) -> Result<(Held, Sum<'s, B>)> {
        sums.agree(comm, ids)?;
        let (len, alone) = (self.net.places().trained(), comm.size() == 1);
        let held = match (sums.by_host().is_some(), alone, ids.len()) {
            (_, true, 0 | 1) => Held::Nothing,
            (true, ..) => Held::OnHost { alone },
            (false, ..) => Held::OnDevice,
        };
        let on_device = matches!(held, Held::OnDevice).then_some(ids.len());
        let needed = len * on_device.map_or(1, |shards| shards + 1);
        self.values.clear();
        let backend = self.net.trunk().backend();
        if self.grads.len() != needed {
            self.grads = backend.alloc(0)?; // frees the old ones before the new are taken
            self.grads = backend.alloc(needed)?;
        }
        let buckets = whole_buckets(self.net.places(), sums.bucket_bytes().unwrap_or(usize::MAX));
        // The last shard's gradient stays where it is made.
        let own = on_device.unwrap_or(0);
        let shards = (1..=own).map(|place| place % own * len).collect();
        Ok((held, Sum::new((comm, sums), buckets, (shards, own * len))))
    }

    /// Takes shard `i` of `shards` to the host.
    ///
    /// A rank alone has no use for them apart: it adds them up in `self.total` as they come, which is the order that
    /// any world adds them in, and holds one of them at a time.
    pub(super) fn keep(&mut self, alone: bool, (i, shards): (usize, usize)) -> Result<()> {
        let len = self.net.places().trained();
        self.values.resize(if alone { len } else { shards * len }, 0.0);
        self.total.resize(len, 0.0);
        let (backend, first) = (self.net.trunk().backend(), if alone { 0 } else { i * len });
        match (alone, i) {
            // Not 0 + s₀: that would turn −0 into +0.
            (true, 0) => backend.read(&self.grads, 0, &mut self.total)?,
            _ => backend.read(&self.grads, 0, &mut self.values[first..first + len])?,
        }
        if alone && i > 0 {
            add(&mut self.total, &self.values);
        }
        Ok(())
    }

    /// Ends the sum; the total from 0 on in `self.grads`.
    pub(super) fn total(&mut self, held: Held, ids: &[u32], sum: &mut Sum<'_, B>) -> Result<()> {
        let (len, backend) = (self.net.places().trained(), self.net.trunk().backend());
        match held {
            Held::Nothing => Ok(()),
            Held::OnHost { alone } => {
                self.total.resize(len, 0.0);
                if !alone {
                    sum.by_host((ids, &self.values), &mut self.total)?;
                }
                Ok(backend.write(&mut self.grads, 0, &self.total)?)
            }
            Held::OnDevice => {
                sum.end((backend, &mut self.grads))?;
                if ids.is_empty() {
                    return Ok(());
                }
                // Where the optimiser finds parameters and moments too.
                sum.copy((backend, &mut self.grads), (ids.len() * len, 0), len)
            }
        }
    }
}

/// `sum += x`, elementwise.
fn add(sum: &mut [f32], x: &[f32]) {
    const PIECE: usize = 1 << 14;
    let pieces = sum.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE));
    pieces.for_each(|(sum, x)| sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x));
}
