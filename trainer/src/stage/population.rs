//! The population stage: one task LoRA on the examples of the other users, data-parallel over ranks.
//!
//! A batch is cut into a fixed number of virtual shards; a shard is a segment of the pack with the shared
//! adapter and a gradient of its own, and the shards' gradients are added in the order of their numbers.
//! So 1, 2, 4 and 8 ranks give the same bytes. Where the sum has a stream of its own ([`ShardSums`]), it is begun bucket by
//! bucket while the batch's last pack still goes back through the blocks below.

use super::buckets::{Sum, buckets};
use super::engine::Engine;
use super::individual::{End, PackRules};
use super::sums::ShardSums;
use super::{Error, Result};
use crate::comm::{Communicator, Reduce, shards_of};
use crate::config::Recipe;
use crate::ids::{Slot, UserKey};
use crate::lora::{AdapterSpec, initialise};
use crate::optim::{Order, steps_per_user};
use crate::pack::{Packer, Piece, Share, chunks, rows_of};
use crate::prompt::Example;
use kernels::Ops;
use kernels::lora::Segment;
use kernels::optim::Update;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is trained, the same on every rank.
#[derive(Debug)]
pub struct Task<'a> {
    /// Examples of all population users, the same order on every rank.
    pub examples: &'a [Example],
    /// The adapter's shape.
    pub lora: AdapterSpec,
    /// How it is trained; `batch_size` counts examples over all ranks.
    pub recipe: Recipe,
    /// The run's seed.
    pub seed: u64,
    /// Virtual shards.
    pub num_shards: u32,
}

/// A finished optimiser step.
#[derive(Debug, Clone, Copy)]
pub struct PopulationStep {
    /// Steps finished.
    pub step: u32,
    /// Steps in all.
    pub total_steps: u32,
    /// Mean loss over the supervised tokens of the batch.
    pub loss: f32,
    /// Norm of the summed gradient before clipping.
    pub grad_norm: f32,
    /// Rows this rank computed.
    pub rows: usize,
    /// Rows there would have been without shared prefixes.
    pub unshared_rows: usize,
}

/// Trains the task adapter; its parameters, the same bytes on every rank. However it ends, every slot taken is free again;
/// after an error `sums` may still be at work on the slab and is to be dropped before the engine.
///
/// # Errors
/// No example, a gradient that is not finite, or what the engine or a collective says.
pub fn run<B: Ops>(
    engine: &mut Engine<'_, B>,
    rules: PackRules,
    (comm, sums): (&dyn Communicator, &mut dyn ShardSums<B>),
    task: &Task<'_>,
    watch: &mut dyn FnMut(PopulationStep),
    stop: &AtomicBool,
) -> Result<(End, Vec<f32>)> {
    let mut shards = Shards::new(engine, comm, task, rules)?;
    let trained = shards
        .sum(engine, (comm, sums), task)
        .and_then(|mut sum| train(engine, &mut sum, (task, &mut shards), watch, stop));
    shards.release(engine)?;
    trained
}

/// The steps of [`run`], on slots that are taken.
fn train<B: Ops>(
    engine: &mut Engine<'_, B>,
    sum: &mut Sum<'_, B>,
    (task, shards): (&Task<'_>, &mut Shards),
    watch: &mut dyn FnMut(PopulationStep),
    stop: &AtomicBool,
) -> Result<(End, Vec<f32>)> {
    let (key, slot) = (population_key(task.seed, u32::MAX), shards.adapter);
    let (_, sites) = engine.lists.find(&task.lora.targets)?;
    let mut params = vec![0.0; sites.params(task.lora.lora_rank as usize)];
    initialise(sites, task.lora.lora_rank as usize, key, &mut params)?;
    engine.load(slot, &params)?;
    let (n, batch) = (task.examples.len(), task.recipe.batch_size);
    let total_steps = steps_per_user(n, batch, task.recipe.epochs)?;
    let n = u32::try_from(n).map_err(|_| Error::TooManySteps)?;
    let mut step = 0;
    for epoch in 0..task.recipe.epochs {
        let order = Order::new(n, batch, epoch, key);
        for indices in order.batches() {
            if sum.comm.all_reduce_u64(Reduce::Max, u64::from(stop.load(Ordering::Relaxed)))? > 0 {
                return Ok((End::Stopped, params));
            }
            let (loss, rows, unshared_rows) =
                shards.gradients(engine, task, (indices, step), sum)?;
            sum.end(engine.gradients())?;
            shards.clear(engine)?;
            let loss = sum.scalars(&loss)?;
            let grad_norm = update(engine, task, (slot, params.len()), (step, total_steps))?;
            step += 1;
            #[expect(clippy::cast_possible_truncation, reason = "a mean of f32 losses")]
            let loss = loss as f32;
            if !loss.is_finite() || !grad_norm.is_finite() {
                return Err(Error::PopulationDiverged { step, loss, grad_norm });
            }
            watch(PopulationStep { step, total_steps, loss, grad_norm, rows, unshared_rows });
        }
    }
    engine.read(slot, &mut params)?;
    Ok((End::Complete, params))
}

/// The random key of a virtual shard (of initialisation and shuffling: `u32::MAX`).
fn population_key(seed: u64, shard: u32) -> [u32; 2] {
    UserKey(blake3::derive_key("myriad 2026 population shard", &shard.to_le_bytes()))
        .random_key(seed)
}

fn update<B: Ops>(
    engine: &mut Engine<'_, B>,
    task: &Task<'_>,
    (slot, params): (Slot, usize),
    (step, total): (u32, u32),
) -> Result<f32> {
    let update = Update {
        offset: engine.slabs.offset(slot) as u64,
        len: u32::try_from(params).map_err(|_| Error::TooManySteps)?,
        ..super::recipe::update(&task.recipe, step, total)
    };
    let mut norm = [0.0];
    engine.update(&[update], &mut norm)?;
    Ok(norm[0])
}

/// This rank's virtual shards: a gradient slot each.
struct Shards {
    /// The adapter's slot.
    adapter: Slot,
    layout: usize,
    ids: Vec<u32>,
    slots: Vec<Slot>,
    packer: Packer,
    rules: PackRules,
}

impl Shards {
    fn new<B: Ops>(
        engine: &mut Engine<'_, B>,
        comm: &dyn Communicator,
        task: &Task<'_>,
        rules: PackRules,
    ) -> Result<Self> {
        let ids = shards_of(comm.rank(), comm.size(), task.num_shards);
        let (layout, _) = engine.lists.find(&task.lora.targets)?;
        if task.examples.is_empty() {
            return Err(Error::NoPopulation);
        }
        // All slots or none: what is taken here is given back at the end.
        if engine.slabs.num_free() < 1 + ids.len() {
            return Err(Error::NoSlot);
        }
        let adapter = engine.slabs.take().ok_or(Error::NoSlot)?;
        let slots: Vec<Slot> = ids.iter().filter_map(|_| engine.slabs.take()).collect();
        for &slot in &slots {
            engine.load(slot, &[])?;
        }
        Ok(Self { layout, packer: Packer::new(rules.share_prefixes), adapter, ids, slots, rules })
    }

    /// Their sum into the adapter's gradient.
    fn sum<'a, B: Ops>(
        &self,
        engine: &Engine<'_, B>,
        (comm, sums): (&'a dyn Communicator, &'a mut dyn ShardSums<B>),
        task: &Task<'_>,
    ) -> Result<Sum<'a, B>> {
        sums.agree(comm, &self.ids)?;
        let (_, sites) = engine.lists.find(&task.lora.targets)?;
        let bytes = sums.bucket_bytes().unwrap_or(usize::MAX);
        let buckets = buckets(sites, task.lora.lora_rank as usize, bytes);
        let shards = self.slots.iter().map(|&slot| engine.slabs.offset(slot)).collect();
        let total = engine.slabs.offset(self.adapter);
        Ok(Sum::new((comm, sums), buckets, (shards, total)))
    }

    /// Gradients of this rank's shards of one batch, each in its slot; each shard's share of the batch's
    /// mean loss. The sum is begun as far as the backward of the last pack completes gradients.
    fn gradients<B: Ops>(
        &mut self,
        engine: &mut Engine<'_, B>,
        task: &Task<'_>,
        (batch, step): (&[u32], u32),
        sum: &mut Sum<'_, B>,
    ) -> Result<(Vec<f64>, usize, usize)> {
        let piece = |&i: &u32| {
            let e = &task.examples[i as usize];
            Piece::supervised(&e.tokens, e.prompt_len)
        };
        let supervised: usize = batch.iter().map(|i| piece(i).targets.len()).sum();
        #[expect(clippy::cast_precision_loss, reason = "a count of rows below 2^24")]
        let weight = 1.0 / supervised as f32;
        let (mut losses, mut rows, mut unshared) = (vec![0.0f64; self.ids.len()], 0, 0);
        // Shards of this pack, in its order.
        let mut packed: Vec<usize> = Vec::new();
        self.packer.clear();
        for index in 0..self.ids.len() {
            let shard = self.ids[index] as usize;
            let own: Vec<Piece<'_>> =
                batch.iter().skip(shard).step_by(task.num_shards as usize).map(piece).collect();
            let mut first_token = 0;
            for chunk in chunks(&own, self.rules.chunk_rows, self.rules.share_prefixes) {
                let pieces = &own[chunk];
                let needed = rows_of(pieces, self.rules.share_prefixes);
                // A gradient may be written by one segment of a pack only.
                let again = packed.last() == Some(&index);
                let full = self.packer.rows() + needed > engine.rows();
                if !packed.is_empty() && (again || full) {
                    self.step(
                        (&mut *engine, None),
                        &mut packed,
                        weight,
                        &mut losses,
                        (&mut rows, &mut unshared),
                    )?;
                }
                let template = engine.segment(self.adapter, self.slots[index]);
                let adapter = Some(self.segment(task, template, self.ids[index], step));
                let layout = self.layout;
                let share = Share { adapter, layout, pieces, weight, first_token };
                self.packer.add(&share);
                packed.push(index);
                first_token += u32::try_from(needed).map_err(|_| Error::TooManySteps)?;
            }
        }
        if !packed.is_empty() {
            let last = (engine, Some(sum));
            self.step(last, &mut packed, weight, &mut losses, (&mut rows, &mut unshared))?;
        }
        Ok((losses, rows, unshared))
    }

    fn release<B: Ops>(&self, engine: &mut Engine<'_, B>) -> Result<()> {
        for &slot in self.slots.iter().chain([&self.adapter]) {
            engine.slabs.release(slot)?;
        }
        Ok(())
    }

    fn segment(&self, task: &Task<'_>, template: Segment, shard: u32, step: u32) -> Segment {
        Segment {
            lora_rank: task.lora.lora_rank,
            scale: task.lora.scale(),
            dropout: task.lora.dropout_f32(),
            step,
            key: population_key(task.seed, shard),
            ..template
        }
    }

    /// Trains on a pack; with a sum it is this rank's last of the batch.
    fn step<B: Ops>(
        &mut self,
        (engine, last): (&mut Engine<'_, B>, Option<&mut Sum<'_, B>>),
        packed: &mut Vec<usize>,
        weight: f32,
        losses: &mut [f64],
        (rows, unshared): (&mut usize, &mut usize),
    ) -> Result<()> {
        let row_losses = match last {
            Some(sum) if sum.overlaps() => {
                let mut passed = |block: usize, backend: &B, grads: &mut B::Buf<f32>| {
                    sum.begin_down_to(block, (backend, grads));
                };
                engine.train_watched(&self.packer, &mut passed)?
            }
            _ => engine.train(&self.packer)?,
        };
        for (share, &index) in packed.iter().enumerate() {
            let sum: f64 =
                row_losses[self.packer.targets(share)].iter().map(|&l| f64::from(l)).sum();
            losses[index] += sum * f64::from(weight);
        }
        *rows += self.packer.rows();
        *unshared += self.packer.unshared_rows();
        packed.clear();
        self.packer.clear();
        Ok(())
    }

    /// Zeroes the shards' gradients for the next step.
    fn clear<B: Ops>(&self, engine: &mut Engine<'_, B>) -> Result<()> {
        self.slots.iter().try_for_each(|&slot| engine.clear_gradient(slot))
    }
}
