//! The device side of training: the frozen network, the step's buffers and the adapters' slabs.
//!
//! Knows slots and gradients; never users or files.

use super::Result;
use crate::ids::Slot;
use crate::lora::{SiteLists, Slabs};
use crate::model::Adapters;
use crate::model::activations::StepSize;
use crate::model::batch::Batch;
use crate::model::network::Network;
use crate::model::step::Stepper;
use crate::pack::{ClassLoss, Packer};
use crate::prompt::Example;
use kernels::Ops;
use kernels::backend::Pending;
use kernels::lora::Segment;
use kernels::optim::{AdamW, Update};

/// Four slabs of one layout: 16 bytes for each LoRA parameter in flight, and nothing else.
#[derive(Debug)]
pub struct SlabBuffers<B: Ops> {
    pub(super) params: B::Buf<f32>,
    pub(super) grads: B::Buf<f32>,
    m: B::Buf<f32>,
    v: B::Buf<f32>,
    updates: B::Buf<Update>,
    norms: B::Buf<f32>,
}

/// What a pack runs through: a frozen model and the buffers of its steps.
pub trait Model<B: Ops> {
    /// The blocks that adapters adapt.
    fn trunk(&self) -> &Network<B>;
    /// Rows a pack may have.
    fn rows(&self) -> usize;
    /// Numbers that stand in a pack for tokens or events are below this.
    fn vocab(&self) -> usize;
    /// Why an example cannot be trained on with its loss, beyond its ids and its length; such a user is put aside, and
    /// no pack ever refuses the others.
    fn refuses(&self, _: &Example, _: Option<&ClassLoss>) -> Option<String> {
        None
    }
    /// Forward and backward of a checked pack: unweighted losses of its targets; `grads += d(Σ weight · loss)`.
    ///
    /// # Errors
    /// When the pack is inconsistent.
    fn train(
        &mut self,
        batch: &Batch,
        of: (&SiteLists, &B::Buf<f32>),
        grads: &mut B::Buf<f32>,
    ) -> Result<&[f32]>;
    /// As [`Model::train`], for losses that are waited for later; a model without a device waits at once.
    ///
    /// # Errors
    /// As [`Model::train`].
    fn begin_train(
        &mut self,
        batch: &Batch,
        of: (&SiteLists, &B::Buf<f32>),
        grads: &mut B::Buf<f32>,
    ) -> Result<Pending<f32>> {
        Ok(Pending::ready(self.train(batch, of, grads)?.to_vec()))
    }
    /// Forward of a checked pack alone.
    ///
    /// # Errors
    /// When the pack is inconsistent.
    fn losses(&mut self, batch: &Batch, of: (&SiteLists, &B::Buf<f32>)) -> Result<&[f32]>;
}

/// A language model.
#[derive(Debug)]
pub struct Language<'a, B: Ops> {
    net: &'a Network<B>,
    stepper: Stepper<B>,
}

impl<B: Ops> Model<B> for Language<'_, B> {
    fn trunk(&self) -> &Network<B> {
        self.net
    }

    fn rows(&self) -> usize {
        self.stepper.rows()
    }

    fn vocab(&self) -> usize {
        self.net.spec().vocab
    }

    fn train(
        &mut self,
        batch: &Batch,
        (lists, params): (&SiteLists, &B::Buf<f32>),
        grads: &mut B::Buf<f32>,
    ) -> Result<&[f32]> {
        let adapters = Adapters { layouts: lists.layouts(), params };
        let Self { net, stepper } = self;
        Ok(stepper.train(net, batch, adapters, grads)?)
    }

    fn begin_train(
        &mut self,
        batch: &Batch,
        (lists, params): (&SiteLists, &B::Buf<f32>),
        grads: &mut B::Buf<f32>,
    ) -> Result<Pending<f32>> {
        let adapters = Adapters { layouts: lists.layouts(), params };
        let Self { net, stepper } = self;
        Ok(stepper.begin_train(net, batch, adapters, grads)?)
    }

    fn losses(
        &mut self,
        batch: &Batch,
        (lists, params): (&SiteLists, &B::Buf<f32>),
    ) -> Result<&[f32]> {
        let adapters = Adapters { layouts: lists.layouts(), params };
        let Self { net, stepper } = self;
        Ok(stepper.losses(net, batch, adapters)?)
    }
}

/// What trains: one a rank.
#[derive(Debug)]
pub struct Engine<'a, B: Ops, M = Language<'a, B>> {
    /// The frozen model.
    pub model: M,
    /// The sites of the users' adapters.
    pub lists: &'a SiteLists,
    /// Slots and offsets.
    pub slabs: Slabs,
    pub(super) buffers: SlabBuffers<B>,
    image: Vec<f32>,
}

impl<'a, B: Ops> Engine<'a, B> {
    /// Buffers for packs of `size` and `num_slots` adapters of at most `adapter_params` parameters.
    ///
    /// # Errors
    /// When the backend has no memory.
    pub fn new(
        net: &'a Network<B>,
        lists: &'a SiteLists,
        size: StepSize,
        (num_slots, adapter_params): (u32, usize),
    ) -> Result<Self> {
        let model = Language { net, stepper: Stepper::new(net, size)? };
        Engine::of(model, lists, (num_slots, adapter_params))
    }

    /// Parameters, gradients and two moments, `f32` each.
    pub const SLAB_BYTES_PER_PARAM: usize = 4 * size_of::<f32>();

    /// Bytes of [`Engine::new`], without the network.
    pub fn bytes(
        net: &Network<B>,
        size: StepSize,
        (num_slots, adapter_params): (usize, usize),
        num_layouts: usize,
    ) -> usize {
        let slab = num_slots * adapter_params * size_of::<f32>();
        Stepper::bytes(net, size, num_layouts)
            + 4 * slab
            + num_slots * (size_of::<Update>() + size_of::<f32>())
    }
}

impl<'a, B: Ops, M: Model<B>> Engine<'a, B, M> {
    /// Slabs of `num_slots` adapters of at most `adapter_params` parameters, over a model.
    ///
    /// # Errors
    /// When the backend has no memory.
    pub fn of(
        model: M,
        lists: &'a SiteLists,
        (num_slots, adapter_params): (u32, usize),
    ) -> Result<Self> {
        let slabs = Slabs::new(num_slots, adapter_params)?;
        let (backend, len) = (model.trunk().backend(), slabs.slab_len());
        let buffers = SlabBuffers {
            params: backend.alloc(len)?,
            grads: backend.alloc(len)?,
            m: backend.alloc(len)?,
            v: backend.alloc(len)?,
            updates: backend.alloc(num_slots as usize)?,
            norms: backend.alloc(num_slots as usize)?,
        };
        Ok(Self { model, lists, buffers, image: vec![0.0; slabs.capacity()], slabs })
    }

    /// The backend.
    fn backend(&self) -> &B {
        self.model.trunk().backend()
    }

    /// The parameters of all slots.
    pub fn params(&self) -> &B::Buf<f32> {
        &self.buffers.params
    }

    /// Rows a pack may have.
    pub fn rows(&self) -> usize {
        self.model.rows()
    }

    /// Puts an adapter into a slot: parameters as given, zero gradient and moments, the slot's whole
    /// capacity overwritten so that nothing of its last user is left.
    ///
    /// # Errors
    /// When the adapter is larger than a slot.
    pub fn load(&mut self, slot: Slot, adapter: &[f32]) -> Result<()> {
        let (backend, offset, capacity) =
            (self.model.trunk().backend(), self.slabs.offset(slot), self.slabs.capacity());
        self.slabs.image(adapter, &mut self.image)?;
        backend.write(&mut self.buffers.params, offset, &self.image)?;
        for slab in [&mut self.buffers.grads, &mut self.buffers.m, &mut self.buffers.v] {
            backend.zero(slab, offset, capacity)?;
        }
        Ok(())
    }

    /// An adapter's parameters.
    ///
    /// # Errors
    /// When the slot has fewer.
    pub fn read(&self, slot: Slot, adapter: &mut [f32]) -> Result<()> {
        Ok(self.backend().read(&self.buffers.params, self.slabs.offset(slot), adapter)?)
    }

    /// As [`Engine::read`] of the first `len` parameters, for somebody who waits later.
    ///
    /// # Errors
    /// When the slot has fewer.
    pub fn begin_read(&self, slot: Slot, len: usize) -> Result<Pending<f32>> {
        Ok(self.backend().begin_read(&self.buffers.params, self.slabs.offset(slot), len)?)
    }

    /// As [`Engine::begin_read`], of an adapter that leaves: until the next [`Engine::load`] of the slot, which is put
    /// after the copy without waiting for it, nobody may be trained or asked there.
    ///
    /// # Errors
    /// When the slot has fewer.
    pub fn evict(&mut self, slot: Slot, len: usize) -> Result<Pending<f32>> {
        let (backend, offset) = (self.model.trunk().backend(), self.slabs.offset(slot));
        Ok(backend.evict(&mut self.buffers.params, offset, len)?)
    }

    /// Asks something of an adapter that has left, in a slot whose own parameters are put aside meanwhile.
    ///
    /// # Errors
    /// When the adapter is larger than the slot, and what `ask` says.
    pub fn ask_again<R>(
        &mut self,
        (slot, adapter): (Slot, &[f32]),
        ask: impl FnOnce(&mut Self) -> Result<R>,
    ) -> Result<R> {
        let mut own = vec![0.0; self.slabs.capacity()];
        self.read(slot, &mut own)?;
        let offset = self.slabs.offset(slot);
        self.model.trunk().backend().write(&mut self.buffers.params, offset, adapter)?;
        let answer = ask(self);
        self.model.trunk().backend().write(&mut self.buffers.params, offset, &own)?;
        answer
    }

    /// A slot's gradient.
    ///
    /// # Errors
    /// When the slot has fewer elements.
    pub fn read_gradient(&self, slot: Slot, gradient: &mut [f32]) -> Result<()> {
        Ok(self.backend().read(&self.buffers.grads, self.slabs.offset(slot), gradient)?)
    }

    /// A slot's first and second moments.
    ///
    /// # Errors
    /// When the slot has fewer elements.
    pub fn read_moments(&self, slot: Slot, (m, v): (&mut [f32], &mut [f32])) -> Result<()> {
        let offset = self.slabs.offset(slot);
        self.backend().read(&self.buffers.m, offset, m)?;
        Ok(self.backend().read(&self.buffers.v, offset, v)?)
    }

    /// Zeroes a slot's gradient.
    ///
    /// # Errors
    /// When the backend says so.
    pub fn clear_gradient(&mut self, slot: Slot) -> Result<()> {
        let (offset, capacity) = (self.slabs.offset(slot), self.slabs.capacity());
        Ok(self.model.trunk().backend().zero(&mut self.buffers.grads, offset, capacity)?)
    }

    /// Overwrites a slot's gradient.
    ///
    /// # Errors
    /// When the slot has fewer elements.
    pub fn write_gradient(&mut self, slot: Slot, gradient: &[f32]) -> Result<()> {
        let offset = self.slabs.offset(slot);
        Ok(self.model.trunk().backend().write(&mut self.buffers.grads, offset, gradient)?)
    }

    /// The segment template of an adapter in `params`, its gradient going to `grads`.
    pub fn segment(&self, params: Slot, grads: Slot) -> Segment {
        Segment {
            row_start: 0,
            rows: 0,
            param_offset: self.slabs.offset(params) as u64,
            grad_offset: self.slabs.offset(grads) as u64,
            lora_rank: 1,
            scale: 1.0,
            dropout: 0.0,
            step: 0,
            key: [0; 2],
        }
    }

    /// Forward and backward of a pack; unweighted losses of its targets.
    ///
    /// # Errors
    /// When the pack is inconsistent.
    pub fn train(&mut self, packer: &Packer) -> Result<&[f32]> {
        self.check(packer)?;
        let of = (self.lists, &self.buffers.params);
        self.model.train(packer.batch(), of, &mut self.buffers.grads)
    }

    /// As [`Engine::train`], without waiting for the losses.
    ///
    /// # Errors
    /// When the pack is inconsistent.
    pub fn begin_train(&mut self, packer: &Packer) -> Result<Pending<f32>> {
        self.check(packer)?;
        let of = (self.lists, &self.buffers.params);
        self.model.begin_train(packer.batch(), of, &mut self.buffers.grads)
    }

    /// Forward of a pack alone.
    ///
    /// # Errors
    /// When the pack is inconsistent.
    pub fn losses(&mut self, packer: &Packer) -> Result<&[f32]> {
        self.check(packer)?;
        self.model.losses(packer.batch(), (self.lists, &self.buffers.params))
    }

    pub(super) fn check(&self, packer: &Packer) -> Result<()> {
        let (batch, slab) = (packer.batch(), self.slabs.slab_len());
        batch.check(self.model.vocab(), self.model.trunk().max_positions())?;
        for lane in [&batch.full, &batch.outputs] {
            for (segments, sites) in lane.segments.iter().zip(self.lists.lists()) {
                Segment::check_all(segments, lane.rows(), sites.units(), (slab, slab))?;
            }
        }
        Ok(())
    }

    /// AdamW on the due slots (in order of their offsets); the norms of their gradients before clipping.
    ///
    /// # Errors
    /// When updates are out of order or leave the slabs.
    pub fn update(&mut self, updates: &[Update], norms: &mut [f32]) -> Result<()> {
        self.queue_update(updates)?;
        Ok(self.backend().read(&self.buffers.norms, 0, norms)?)
    }

    /// As [`Engine::update`], without waiting for the norms.
    ///
    /// # Errors
    /// As [`Engine::update`].
    pub fn begin_update(&mut self, updates: &[Update]) -> Result<Pending<f32>> {
        self.queue_update(updates)?;
        Ok(self.backend().begin_read(&self.buffers.norms, 0, updates.len())?)
    }

    fn queue_update(&mut self, updates: &[Update]) -> Result<()> {
        Update::check_all(updates, self.slabs.slab_len())?;
        let (backend, b) = (self.model.trunk().backend(), &mut self.buffers);
        backend.write(&mut b.updates, 0, updates)?;
        backend.adamw(AdamW {
            updates: &b.updates,
            num_updates: updates.len(),
            params: &mut b.params,
            grads: &mut b.grads,
            m: &mut b.m,
            v: &mut b.v,
            norms: &mut b.norms,
        })?;
        Ok(())
    }
}
