//! One pass over a pack of windows: columns to vectors, blocks, head (`head.rs`), losses, and back.
//!
//! Scores, logits, losses and what belongs to them are `f32` on every backend; hidden states and histories are its
//! activations. Two ways back: to adapters and to the changes of the intent table that belong to users (the model
//! is frozen), or to every parameter of the model.

use super::super::activations::StepSize;
use super::super::batch::Batch;
use super::super::pass::{Acts, Adapters};
use super::super::step::{Passed, Stepper};
use super::super::{Error, Result};
use super::table::MASKED;
use super::{Combine, EventNetwork, EventSpec, EventTable, History};
use crate::data::events::EVENT;
use kernels::classify::{ClassLoss, Row, Softmax};
use kernels::embedding::{Lookup, LookupGradient};
use kernels::intent::Segment;
use kernels::pool::Range;
use kernels::{Backend, Mat, MatMut, Ops};

/// What the output rows of a pack are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// The intent that follows each window.
    Intents,
    /// The event that was hidden in each output row.
    Events,
}

/// The users' own parts in the slab: adapters of the blocks, and where each layout's changes of the intent table begin.
#[derive(Debug)]
pub struct Adapted<'a, B: Backend> {
    /// The adapters of the blocks.
    pub adapters: Adapters<'a, B>,
    /// By layout: LoRA units before the changes of the intent table; `None` where a layout has no such changes.
    pub head_after: &'a [Option<usize>],
}

impl<B: Backend> Clone for Adapted<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend> Copy for Adapted<'_, B> {}

/// The pass's buffers; made once, used for every pack.
#[derive(Debug)]
pub struct EventStepper<B: Ops> {
    pub(super) stepper: Stepper<B>,
    columns: B::Buf<u32>,
    pub(super) segments: B::Buf<Segment>,
    pub(super) ranges: B::Buf<Range>,
    /// Histories of the windows and their gradient.
    pub(super) history: Acts<B>,
    pub(super) history_gradient: Acts<B>,
    /// What the intention attention network says, and its gradient.
    pub(super) scores: B::Buf<f32>,
    pub(super) score_gradient: B::Buf<f32>,
    /// Room for the scores as a product's input.
    pub(super) score_acts: Acts<B>,
    /// Logits of intents (after the prediction layer) or of events, and their gradient.
    pub(super) logits: B::Buf<f32>,
    pub(super) logit_gradient: B::Buf<f32>,
    /// Room for the logits' gradient as a product's input.
    pub(super) logit_acts: Acts<B>,
    teacher: B::Buf<f32>,
    table: B::Buf<Row>,
    losses: B::Buf<f32>,
    pub(super) work: B::Buf<f32>,
    /// Windows, and segments, of the pack at hand.
    pub(super) windows: usize,
    pub(super) num_segments: usize,
    host: Vec<f32>,
    host_columns: Vec<u32>,
}

/// Elements of the widest logits.
fn classes(spec: &EventSpec) -> usize {
    spec.intents.max(spec.events())
}

impl<B: Ops> EventStepper<B> {
    /// Buffers for packs of up to `size.rows` rows.
    ///
    /// # Errors
    /// When the backend has no memory.
    pub fn new(net: &EventNetwork<B>, size: StepSize) -> Result<Self> {
        let (backend, spec, t) = (net.trunk.backend(), &net.spec, size.rows);
        let floats = |n: usize| backend.alloc::<f32>(t * n);
        let acts = |n: usize| backend.alloc::<B::Act>(n);
        let room = |n: usize| acts(backend.act_room(t * n));
        let pooled = if spec.history == History::Mean { spec.hidden } else { 0 };
        let linear = if net.prediction.is_some() { spec.intents } else { 0 };
        Ok(Self {
            stepper: Stepper::new(&net.trunk, size)?,
            columns: backend.alloc(t * spec.columns.len())?,
            segments: backend.alloc(t)?,
            ranges: backend.alloc(t)?,
            history: acts(t * pooled)?,
            history_gradient: acts(t * pooled)?,
            scores: floats(linear)?,
            score_gradient: floats(linear)?,
            score_acts: room(linear)?,
            logits: floats(classes(spec))?,
            logit_gradient: floats(classes(spec))?,
            logit_acts: room(classes(spec))?,
            teacher: floats(spec.intents)?,
            table: backend.alloc(t)?,
            losses: floats(1)?,
            work: backend.alloc(backend.intent_workspace(t, t, spec.intent_shape()))?,
            windows: 0,
            num_segments: 0,
            host: vec![0.0; t * classes(spec)],
            host_columns: Vec::with_capacity(t * spec.columns.len()),
        })
    }

    /// Bytes of [`EventStepper::new`], of which [`EventStepper::host_bytes`] are the host's on every backend.
    pub fn bytes(net: &EventNetwork<B>, size: StepSize, num_layouts: usize) -> usize {
        let (spec, t) = (&net.spec, size.rows);
        let pooled = if spec.history == History::Mean { 2 * spec.hidden } else { 0 };
        let linear = if net.prediction.is_some() { 2 * spec.intents } else { 0 };
        let per_row = linear + 3 * classes(spec) + spec.intents + 2 * spec.columns.len() + 1;
        let plain = size_of::<Segment>() + size_of::<Range>() + size_of::<Row>();
        let backend = net.trunk.backend();
        let work = backend.intent_workspace(t, t, spec.intent_shape());
        let room = backend.act_room(t * linear / 2) + backend.act_room(t * classes(spec));
        Stepper::bytes(&net.trunk, size, num_layouts)
            + (t * pooled + room) * size_of::<B::Act>()
            + t * (per_row * size_of::<f32>() + plain)
            + work * size_of::<f32>()
    }

    /// Bytes of what a step reads back, and of the columns on their way.
    pub fn host_bytes(net: &EventNetwork<B>, size: StepSize) -> usize {
        let per_row = classes(&net.spec) + net.spec.columns.len();
        Stepper::<B>::host_bytes(size) + size.rows * per_row * size_of::<f32>()
    }

    /// Rows a pack may have.
    pub fn rows(&self) -> usize {
        self.stepper.rows()
    }

    /// Logits `[windows, intents]` of the next intents.
    ///
    /// # Errors
    /// When the batch does not fit or is inconsistent.
    pub fn logits(
        &mut self,
        net: &EventNetwork<B>,
        (batch, table): (&Batch, &EventTable),
        adapted: Adapted<'_, B>,
    ) -> Result<&[f32]> {
        self.forward(net, (batch, table), (adapted, Goal::Intents))?;
        let n = self.windows * net.spec.intents;
        net.trunk.backend().read(&self.logits, 0, &mut self.host[..n])?;
        Ok(&self.host[..n])
    }

    /// Probabilities `[windows, intents]` of the next intents.
    ///
    /// # Errors
    /// As [`EventStepper::logits`].
    pub fn probabilities(
        &mut self,
        net: &EventNetwork<B>,
        pack: (&Batch, &EventTable),
        adapted: Adapted<'_, B>,
    ) -> Result<&[f32]> {
        self.forward(net, pack, (adapted, Goal::Intents))?;
        let (rows, classes) = (self.windows, net.spec.intents);
        let backend = net.trunk.backend();
        let probabilities = &mut self.logit_gradient;
        backend.softmax(Softmax { logits: &self.logits, probabilities, rows, classes })?;
        let n = rows * classes;
        backend.read(&self.logit_gradient, 0, &mut self.host[..n])?;
        Ok(&self.host[..n])
    }

    /// Losses of the windows, without their weights; nothing is trained.
    ///
    /// # Errors
    /// As [`EventStepper::logits`].
    pub fn losses(
        &mut self,
        net: &EventNetwork<B>,
        (batch, table): (&Batch, &EventTable),
        adapted: Adapted<'_, B>,
    ) -> Result<&[f32]> {
        self.forward(net, (batch, table), (adapted, Goal::Intents))?;
        self.loss(net, batch, (net.spec.intents, false))?;
        self.read_losses(net)
    }

    /// Forward and backward with a frozen model: losses of the windows; `grads += d(Σ weight · loss)` of adapters and
    /// of changes of the intent table.
    ///
    /// # Errors
    /// As [`EventStepper::logits`].
    pub fn train(
        &mut self,
        net: &EventNetwork<B>,
        (batch, table): (&Batch, &EventTable),
        adapted: Adapted<'_, B>,
        grads: &mut B::Buf<f32>,
    ) -> Result<&[f32]> {
        self.forward(net, (batch, table), (adapted, Goal::Intents))?;
        self.loss(net, batch, (net.spec.intents, true))?;
        self.head_back(net, adapted, (None, Some(grads)))?;
        // Users of the pack who have changes of the intent table alone need nothing below the head.
        let mut layouts = adapted.adapters.layouts.iter().zip(&batch.full.segments);
        if layouts.any(|(layout, own)| layout.lowest.is_some() && !own.is_empty()) {
            self.stepper.backward(&net.trunk, (adapted.adapters, None), grads)?;
        }
        self.read_losses(net)
    }

    /// Forward and backward of a model that trains whole: losses of the output rows (of the windows, for
    /// [`Goal::Intents`]); `grads += d(Σ weight · loss)` of every parameter that trains, laid out as [`super::Places`]
    /// says. Nothing is formed below the lowest block that trains.
    ///
    /// # Errors
    /// As [`EventStepper::logits`].
    pub fn train_whole(
        &mut self,
        net: &EventNetwork<B>,
        pack: (&Batch, &EventTable),
        goal: Goal,
        grads: &mut B::Buf<f32>,
    ) -> Result<&[f32]> {
        self.train_whole_watched(net, pack, goal, (grads, None))
    }

    /// [`EventStepper::train_whole`] that tells of every block that trains once it has gone back through it.
    ///
    /// # Errors
    /// As [`EventStepper::logits`].
    pub fn train_whole_watched(
        &mut self,
        net: &EventNetwork<B>,
        (batch, table): (&Batch, &EventTable),
        goal: Goal,
        (grads, passed): (&mut B::Buf<f32>, Option<Passed<'_, B>>),
    ) -> Result<&[f32]> {
        let adapted = Adapted { adapters: net.trunk.bare(), head_after: &[] };
        self.forward(net, (batch, table), (adapted, goal))?;
        match goal {
            Goal::Intents => {
                self.loss(net, batch, (net.spec.intents, true))?;
                self.head_back(net, adapted, (Some(grads), None))?;
            }
            Goal::Events => {
                self.loss(net, batch, (net.spec.events(), true))?;
                self.reconstruction_back(net, grads)?;
            }
        }
        let whole = (adapted.adapters, Some(&net.places.trunk));
        self.stepper.backward_watched(&net.trunk, whole, (&mut *grads, passed))?;
        if net.places.frozen() == 0 {
            self.embed_back(net, grads)?;
        }
        self.read_losses(net)
    }

    /// Logits of the output rows, in `self.logits`.
    fn forward(
        &mut self,
        net: &EventNetwork<B>,
        (batch, table): (&Batch, &EventTable),
        (adapted, goal): (Adapted<'_, B>, Goal),
    ) -> Result<()> {
        self.begin(net, batch, table)?;
        self.stepper.begin(&net.trunk, batch, adapted.adapters)?;
        self.embed(net)?;
        self.stepper.blocks(&net.trunk, adapted.adapters)?;
        self.stepper.final_norm(&net.trunk)?;
        match goal {
            Goal::Intents => self.head(net, (batch, adapted)),
            Goal::Events => self.reconstruct(net),
        }
    }

    /// Takes the columns of the pack's rows to the backend; finds its windows.
    fn begin(&mut self, net: &EventNetwork<B>, batch: &Batch, table: &EventTable) -> Result<()> {
        let spec = &net.spec;
        let wrong = |what: String| Err(Error::Batch { what });
        if table.width() != spec.columns.len() {
            return wrong(format!(
                "{} columns, the model has {}",
                table.width(),
                spec.columns.len()
            ));
        }
        batch.check((MASKED as usize) << 1, spec.window)?;
        self.host_columns.clear();
        for &id in &batch.ids {
            let Some(row) = table.row(id) else {
                return wrong(format!("event {} of {}", id & !MASKED, table.len()));
            };
            let start = self.host_columns.len();
            self.host_columns.extend_from_slice(row);
            if id & MASKED != 0 {
                self.host_columns[start + EVENT] = spec.columns[EVENT];
            }
        }
        if batch.full.rows() > self.rows() {
            return wrong(format!(
                "a pack of {} rows, room for {}",
                batch.full.rows(),
                self.rows()
            ));
        }
        Ok(net.trunk.backend().write(&mut self.columns, 0, &self.host_columns)?)
    }

    /// Vectors of all rows: their columns' embeddings, and their positions'.
    fn embed(&mut self, net: &EventNetwork<B>) -> Result<()> {
        let (spec, backend, lane) = (&net.spec, net.trunk.backend(), &self.stepper.batch.full);
        let acts = &mut self.stepper.acts;
        let (d, x) = (spec.hidden, &mut acts.inputs[acts.plan.input(0)]);
        // They train if all blocks do.
        let params = if net.places.frozen() > 0 { &net.frozen } else { &net.params };
        for (column, &offset) in net.places.columns.iter().enumerate() {
            let (start, dim) = spec.column_span(column);
            backend.lookup(Lookup {
                params,
                offset,
                values: spec.table_rows(column),
                dim,
                ids: Mat::at(&self.columns, column, spec.columns.len()),
                x: MatMut::at(x, start, d),
                accumulate: spec.combine == Combine::Sum && column > 0,
                rows: lane.rows,
            })?;
        }
        Ok(backend.lookup(Lookup {
            params,
            offset: net.places.positions,
            values: spec.window,
            dim: d,
            ids: Mat::new(&lane.positions, 1),
            x: MatMut::new(x, d),
            accumulate: true,
            rows: lane.rows,
        })?)
    }

    /// Gradients of the columns' embeddings and of the positions, from the first block's.
    fn embed_back(&mut self, net: &EventNetwork<B>, grads: &mut B::Buf<f32>) -> Result<()> {
        let (spec, backend, lane) = (&net.spec, net.trunk.backend(), &self.stepper.batch.full);
        let Some(gradients) = &self.stepper.acts.gradients else {
            return Err(Error::Batch { what: "a backward without buffers".into() });
        };
        let (d, dx) = (spec.hidden, &gradients.stream);
        for (column, &offset) in net.places.columns.iter().enumerate() {
            let (start, dim) = spec.column_span(column);
            backend.lookup_gradient(LookupGradient {
                dx: Mat::at(dx, start, d),
                ids: Mat::at(&self.columns, column, spec.columns.len()),
                grads: &mut *grads,
                offset,
                values: spec.table_rows(column),
                dim,
                rows: lane.rows,
            })?;
        }
        Ok(backend.lookup_gradient(LookupGradient {
            dx: Mat::new(dx, d),
            ids: Mat::new(&lane.positions, 1),
            grads,
            offset: net.places.positions,
            values: spec.window,
            dim: d,
            rows: lane.rows,
        })?)
    }

    /// Losses of the logits' rows, and with `gradient` the gradient of the logits.
    fn loss(
        &mut self,
        net: &EventNetwork<B>,
        batch: &Batch,
        (classes, gradient): (usize, bool),
    ) -> Result<()> {
        let (backend, rows) = (net.trunk.backend(), self.windows);
        let own = batch.losses.len();
        if batch.targets.len() != rows || own != 0 && own != rows {
            let what = format!("{rows} windows, {} targets", batch.targets.len());
            return Err(Error::Batch { what });
        }
        let plain = || batch.targets.iter().zip(&batch.weights).map(|(&y, &w)| Row::hard(y, w));
        let table: Vec<Row> =
            if batch.losses.is_empty() { plain().collect() } else { batch.losses.clone() };
        let soft = table.iter().any(Row::needs_teacher);
        Row::check_all(&table, classes, soft)?;
        backend.write(&mut self.table, 0, &table)?;
        if soft {
            // Rows after the last that has a teacher need none; what the buffer holds for them is another pack's.
            let fits = batch.teacher.len().is_multiple_of(classes);
            let taught = batch.teacher.len() / classes;
            let untaught = table.iter().skip(taught).any(Row::needs_teacher);
            if !fits || untaught || taught > rows {
                let what = format!("{} numbers of a teacher", batch.teacher.len());
                return Err(Error::Batch { what });
            }
            backend.write(&mut self.teacher, 0, &batch.teacher)?;
        }
        Ok(backend.class_loss(ClassLoss {
            logits: &self.logits,
            teacher: soft.then_some(&self.teacher),
            table: &self.table,
            losses: &mut self.losses,
            dlogits: gradient.then_some(&mut self.logit_gradient),
            rows,
            classes,
        })?)
    }

    fn read_losses(&mut self, net: &EventNetwork<B>) -> Result<&[f32]> {
        let losses = &mut self.host[..self.windows];
        net.trunk.backend().read(&self.losses, 0, losses)?;
        Ok(losses)
    }
}
