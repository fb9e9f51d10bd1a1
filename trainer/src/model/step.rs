//! One training step on a packed batch: forward, loss of the supervised rows, backward.

use super::activations::{Activations, StepSize};
use super::batch::{Batch, DeviceBatch};
use super::block::Reach;
use super::network::Network;
use super::pass::{Adapters, Pass};
use super::places::TrunkPlaces;
use super::sites::Part;
use super::{Error, Result};
use kernels::backend::Pending;
use kernels::{Backend, Mat, MatMut, Ops, embedding, loss};

/// Told of each block whose backward was given to the backend in full, the last block first: its number, the backend and
/// the gradients, to which nothing of this pack's adapters in that block is added any more, nor, where the model trains
/// whole, of that block's own parameters and of what is above it.
pub type Passed<'a, B> = &'a mut dyn FnMut(usize, &B, &mut <B as Backend>::Buf<f32>);

/// The step's buffers on one backend; made once, used for every pack.
#[derive(Debug)]
pub struct Stepper<B: Ops> {
    pub(super) batch: DeviceBatch<B>,
    pub(super) acts: Activations<B>,
    host_losses: Vec<f32>,
}

impl<B: Ops> Stepper<B> {
    /// Buffers for packs of up to `size.rows` rows.
    ///
    /// # Errors
    /// When the backend has no memory.
    pub fn new(net: &Network<B>, size: StepSize) -> Result<Self> {
        Ok(Self {
            batch: DeviceBatch::alloc(net.backend(), size.rows)?,
            acts: Activations::alloc(net.backend(), net.spec(), net.plan(size))?,
            host_losses: vec![0.0; size.rows],
        })
    }

    /// Bytes of [`Stepper::new`] for adapters of `num_layouts` layouts, of which [`Stepper::host_bytes`] are the host's on
    /// every backend.
    pub fn bytes(net: &Network<B>, size: StepSize, num_layouts: usize) -> usize {
        DeviceBatch::<B>::bytes(size.rows, num_layouts)
            + Activations::<B>::bytes(net.backend(), net.spec(), net.plan(size))
            + Self::host_bytes(size)
    }

    /// Bytes of the losses, which a step reads back.
    pub fn host_bytes(size: StepSize) -> usize {
        size.rows * size_of::<f32>()
    }

    /// Rows a pack may have.
    pub fn rows(&self) -> usize {
        self.acts.plan.size.rows
    }

    /// Unweighted losses of the output rows, adapters' gradients left as they are.
    ///
    /// # Errors
    /// When the batch does not fit or is inconsistent.
    pub fn losses(
        &mut self,
        net: &Network<B>,
        batch: &Batch,
        adapters: Adapters<'_, B>,
    ) -> Result<&[f32]> {
        self.forward(net, batch, adapters)?;
        self.loss(net, false)?;
        self.read_losses(net)
    }

    /// Forward and backward: unweighted losses of the output rows; `grads += d(Σ weight · loss)`.
    ///
    /// # Errors
    /// When the batch does not fit or is inconsistent.
    pub fn train(
        &mut self,
        net: &Network<B>,
        batch: &Batch,
        adapters: Adapters<'_, B>,
        grads: &mut B::Buf<f32>,
    ) -> Result<&[f32]> {
        self.train_watched(net, batch, adapters, (grads, None))
    }

    /// [`Stepper::train`] that tells of every block it has gone back through; blocks below the lowest that trains are not
    /// told of.
    ///
    /// # Errors
    /// When the batch does not fit or is inconsistent.
    pub fn train_watched(
        &mut self,
        net: &Network<B>,
        batch: &Batch,
        adapters: Adapters<'_, B>,
        watched: (&mut B::Buf<f32>, Option<Passed<'_, B>>),
    ) -> Result<&[f32]> {
        self.forward_and_back(net, batch, adapters, watched)?;
        self.read_losses(net)
    }

    /// As [`Stepper::train`], without waiting for the losses.
    ///
    /// # Errors
    /// As [`Stepper::train`].
    pub fn begin_train(
        &mut self,
        net: &Network<B>,
        batch: &Batch,
        adapters: Adapters<'_, B>,
        grads: &mut B::Buf<f32>,
    ) -> Result<Pending<f32>> {
        self.forward_and_back(net, batch, adapters, (grads, None))?;
        Ok(net.backend().begin_read(&self.acts.scratch.losses, 0, self.batch.outputs.rows)?)
    }

    fn forward_and_back(
        &mut self,
        net: &Network<B>,
        batch: &Batch,
        adapters: Adapters<'_, B>,
        watched: (&mut B::Buf<f32>, Option<Passed<'_, B>>),
    ) -> Result<()> {
        self.forward(net, batch, adapters)?;
        self.loss(net, true)?;
        self.backward_watched(net, (adapters, None), watched)
    }

    /// Last hidden states of the output rows (before the final norm), in the last block's buffer.
    fn forward(
        &mut self,
        net: &Network<B>,
        batch: &Batch,
        adapters: Adapters<'_, B>,
    ) -> Result<()> {
        self.begin(net, batch, adapters)?;
        let pass = Pass { net, batch: &self.batch, adapters, whole: None };
        pass.embed(&mut self.acts.inputs[0])?;
        self.blocks(net, adapters)
    }

    /// Takes a batch's tables to the backend.
    pub(super) fn begin(
        &mut self,
        net: &Network<B>,
        batch: &Batch,
        adapters: Adapters<'_, B>,
    ) -> Result<()> {
        adapters.check(batch)?;
        let rows = batch.full.rows();
        if rows > self.rows() {
            let what = format!("a pack of {rows} rows, room for {}", self.rows());
            return Err(Error::Batch { what });
        }
        self.batch.upload(net.backend(), batch)
    }

    /// From the first block's input to the last block's output.
    pub(super) fn blocks(&mut self, net: &Network<B>, adapters: Adapters<'_, B>) -> Result<()> {
        let pass = Pass { net, batch: &self.batch, adapters, whole: None };
        let acts = &mut self.acts;
        let (last, before) =
            net.blocks.split_last().ok_or(Error::Batch { what: "no block".into() })?;
        for (layer, block) in before.iter().enumerate() {
            let (x, y) = (acts.plan.input(layer), acts.plan.input(layer + 1));
            let [x, y] = acts
                .inputs
                .get_disjoint_mut([x, y])
                .map_err(|_| Error::Batch { what: "stream".into() })?;
            pass.block(
                block,
                x,
                &mut acts.blocks[acts.plan.block_set(layer)],
                y,
                &mut acts.scratch,
            )?;
        }
        pass.last_block(
            last,
            &acts.inputs[acts.plan.input(before.len())],
            &mut acts.last,
            &mut acts.scratch,
        )
    }

    /// The final norm of the output rows, in `scratch.gathered`.
    pub(super) fn final_norm(&mut self, net: &Network<B>) -> Result<()> {
        let (d, rows) = (net.dims.hidden, self.batch.outputs.rows);
        let pass = Pass { net, batch: &self.batch, adapters: net.bare(), whole: None };
        let last = Mat::new(&self.acts.last.output, d);
        pass.norm(rows, &net.final_norm, last, MatMut::new(&mut self.acts.scratch.gathered, d))
    }

    /// Losses, and with `gradient` the gradient of the output rows' last hidden states.
    fn loss(&mut self, net: &Network<B>, gradient: bool) -> Result<()> {
        self.final_norm(net)?;
        let (d, acts, rows) = (net.dims.hidden, &mut self.acts, self.batch.outputs.rows);
        let scratch = &mut acts.scratch;
        let dx = match (&mut acts.gradients, gradient) {
            (Some(g), true) => Some(MatMut::new(&mut g.normed_outputs, d)),
            _ => None,
        };
        net.backend().head_loss(loss::HeadLoss {
            x: Mat::new(&scratch.gathered, d),
            head: &net.head,
            targets: &self.batch.targets,
            weights: &self.batch.weights,
            losses: &mut scratch.losses,
            dx,
            work: &mut scratch.head_work,
            rows,
        })?;
        Ok(())
    }

    /// From the gradient of the output rows' normed states down to the lowest place that trains: `grads +=` those of
    /// the adapters, or with `whole` those of the final norm and of the blocks' own parameters, and then, where no
    /// block is frozen, the gradient of the first block's input is left in `gradients.stream`.
    pub(super) fn backward(
        &mut self,
        net: &Network<B>,
        of: (Adapters<'_, B>, Option<&TrunkPlaces>),
        grads: &mut B::Buf<f32>,
    ) -> Result<()> {
        self.backward_watched(net, of, (grads, None))
    }

    /// [`Stepper::backward`] that tells of every block it has gone back through.
    pub(super) fn backward_watched(
        &mut self,
        net: &Network<B>,
        (adapters, whole): (Adapters<'_, B>, Option<&TrunkPlaces>),
        (grads, mut passed): (&mut B::Buf<f32>, Option<Passed<'_, B>>),
    ) -> Result<()> {
        let pass = Pass { net, batch: &self.batch, adapters, whole };
        let (d, rows, acts) = (net.dims.hidden, self.batch.outputs.rows, &mut self.acts);
        let (Some((lowest, part)), Some(g)) = (pass.lowest(), acts.gradients.as_mut()) else {
            return Err(Error::Batch { what: "a backward without adapters or buffers".into() });
        };
        if lowest < acts.plan.frozen {
            return Err(Error::Batch { what: format!("block {lowest} is frozen, and trains") });
        }
        let reach = |layer: usize| {
            let below = layer > lowest || whole.is_some_and(|at| at.frozen == 0);
            Reach {
                lowest: if layer == lowest { part } else { Part::Qkv },
                normed: below || whole.is_some(),
                below,
            }
        };
        net.backend().zero(&mut g.stream_outputs, 0, rows * d)?;
        let (x, dy) = (Mat::new(&acts.last.output, d), Mat::new(&g.normed_outputs, d));
        pass.learn_norm(rows, (&net.final_norm, |p| p.norm), (x, dy), grads)?;
        let top = net.blocks.len() - 1;
        if lowest > top {
            return Ok(());
        }
        pass.norm_back(rows, &net.final_norm, x, dy, MatMut::new(&mut g.stream_outputs, d))?;
        let forward = (&acts.inputs[acts.plan.input(top)], &acts.last);
        pass.last_block_back(&net.blocks[top], forward, g, &mut acts.scratch, (grads, reach(top)))?;
        if let Some(passed) = &mut passed {
            passed(top, net.backend(), grads);
        }
        for layer in (lowest..top).rev() {
            let (block, set) = (&net.blocks[layer], acts.plan.block_set(layer));
            let input = &acts.inputs[acts.plan.input(layer)];
            if acts.plan.recomputed(layer) && layer + 1 < top {
                pass.run_again(block, input, &mut acts.blocks[set], &mut acts.scratch)?;
            }
            let forward = (input, &acts.blocks[set]);
            pass.block_back(block, forward, g, &mut acts.scratch, (grads, reach(layer)))?;
            if let Some(passed) = &mut passed {
                passed(layer, net.backend(), grads);
            }
        }
        Ok(())
    }

    fn read_losses(&mut self, net: &Network<B>) -> Result<&[f32]> {
        let losses = &mut self.host_losses[..self.batch.outputs.rows];
        net.backend().read(&self.acts.scratch.losses, 0, losses)?;
        Ok(losses)
    }
}

impl<B: Ops> Pass<'_, B> {
    /// Token (and position) embeddings of all rows.
    pub(super) fn embed(&self, x: &mut B::Buf<B::Act>) -> Result<()> {
        let (net, lane) = (self.net, &self.batch.full);
        Ok(net.backend.embed(embedding::Embed {
            table: net.embedding_table(),
            ids: &self.batch.ids,
            positions: net.positions.as_ref().map(|p| (p, &lane.positions)),
            x: MatMut::new(x, net.dims.hidden),
            rows: lane.rows,
        })?)
    }
}
