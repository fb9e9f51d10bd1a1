//! One pass over a pack of windows: columns to vectors, blocks, head, losses, and back.
//!
//! Computes in `f32`. Two ways back: to adapters and to the changes of the intent table that belong to users (the model
//! is frozen), or to every parameter of the model.

use super::super::activations::StepSize;
use super::super::batch::Batch;
use super::super::pass::{Acts, Adapters, product_gradient};
use super::super::step::Stepper;
use super::super::{Error, Result};
use super::table::MASKED;
use super::{Combine, EventNetwork, EventSpec, EventTable, History};
use crate::data::events::EVENT;
use kernels::classify::{ClassLoss, Row, Softmax};
use kernels::embedding::{Lookup, LookupGradient};
use kernels::intent::{self, Head, Segment};
use kernels::linear::{Backward, Forward};
use kernels::pool::{Mean, MeanBackward, Range};
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
    stepper: Stepper<B>,
    columns: B::Buf<u32>,
    segments: B::Buf<Segment>,
    ranges: B::Buf<Range>,
    /// Histories of the windows and their gradient.
    history: Acts<B>,
    history_gradient: Acts<B>,
    /// What the intention attention network says, and its gradient.
    scores: B::Buf<f32>,
    score_gradient: B::Buf<f32>,
    /// Logits of intents (after the prediction layer) or of events, and their gradient.
    logits: B::Buf<f32>,
    logit_gradient: B::Buf<f32>,
    teacher: B::Buf<f32>,
    table: B::Buf<Row>,
    losses: B::Buf<f32>,
    work: B::Buf<f32>,
    /// Windows, and segments, of the pack at hand.
    windows: usize,
    num_segments: usize,
    host: Vec<f32>,
    host_columns: Vec<u32>,
}

/// Where gradients of the head go: of its parameters, and of the users' changes of the intent table.
struct HeadGradients<'a, B: Backend> {
    whole: Option<&'a mut B::Buf<f32>>,
    own: Option<&'a mut B::Buf<f32>>,
}

/// Elements of the widest logits.
fn classes(spec: &EventSpec) -> usize {
    spec.intents.max(spec.events())
}

impl<B: Ops + Backend<Act = f32>> EventStepper<B> {
    /// Buffers for packs of up to `size.rows` rows.
    ///
    /// # Errors
    /// When the backend has no memory.
    pub fn new(net: &EventNetwork<B>, size: StepSize) -> Result<Self> {
        let (backend, spec, t) = (net.trunk.backend(), &net.spec, size.rows);
        let floats = |n: usize| backend.alloc::<f32>(t * n);
        let pooled = if spec.history == History::Mean { spec.hidden } else { 0 };
        let linear = if net.prediction.is_some() { spec.intents } else { 0 };
        Ok(Self {
            stepper: Stepper::new(&net.trunk, size)?,
            columns: backend.alloc(t * spec.columns.len())?,
            segments: backend.alloc(t)?,
            ranges: backend.alloc(t)?,
            history: floats(pooled)?,
            history_gradient: floats(pooled)?,
            scores: floats(linear)?,
            score_gradient: floats(linear)?,
            logits: floats(classes(spec))?,
            logit_gradient: floats(classes(spec))?,
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

    /// Bytes of [`EventStepper::new`].
    pub fn bytes(net: &EventNetwork<B>, size: StepSize, num_layouts: usize) -> usize {
        let (spec, t) = (&net.spec, size.rows);
        let pooled = if spec.history == History::Mean { 2 * spec.hidden } else { 0 };
        let linear = if net.prediction.is_some() { 2 * spec.intents } else { 0 };
        let per_row =
            pooled + linear + 3 * classes(spec) + spec.intents + 2 * spec.columns.len() + 1;
        let plain = size_of::<Segment>() + size_of::<Range>() + size_of::<Row>();
        let work = net.trunk.backend().intent_workspace(t, t, spec.intent_shape());
        Stepper::bytes(&net.trunk, size, num_layouts)
            + t * (per_row * size_of::<f32>() + plain)
            + work * size_of::<f32>()
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
        self.head_back(net, adapted, HeadGradients { whole: None, own: Some(grads) })?;
        // Users of the pack who have changes of the intent table alone need nothing below the head.
        let mut layouts = adapted.adapters.layouts.iter().zip(&batch.full.segments);
        if layouts.any(|(layout, own)| layout.lowest.is_some() && !own.is_empty()) {
            self.stepper.backward(&net.trunk, (adapted.adapters, None), grads)?;
        }
        self.read_losses(net)
    }

    /// Forward and backward of a model that trains whole: losses of the output rows (of the windows, for
    /// [`Goal::Intents`]); `grads += d(Σ weight · loss)` of every parameter, laid out as [`super::Places`] says.
    ///
    /// # Errors
    /// As [`EventStepper::logits`].
    pub fn train_whole(
        &mut self,
        net: &EventNetwork<B>,
        (batch, table): (&Batch, &EventTable),
        goal: Goal,
        grads: &mut B::Buf<f32>,
    ) -> Result<&[f32]> {
        let adapted = Adapted { adapters: net.trunk.bare(), head_after: &[] };
        self.forward(net, (batch, table), (adapted, goal))?;
        match goal {
            Goal::Intents => {
                self.loss(net, batch, (net.spec.intents, true))?;
                self.head_back(net, adapted, HeadGradients { whole: Some(grads), own: None })?;
            }
            Goal::Events => {
                self.loss(net, batch, (net.spec.events(), true))?;
                self.reconstruction_back(net, grads)?;
            }
        }
        self.stepper.backward(&net.trunk, (adapted.adapters, Some(&net.places.trunk)), grads)?;
        self.embed_back(net, grads)?;
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
        let (d, x) = (spec.hidden, &mut self.stepper.acts.inputs[0]);
        for (column, &offset) in net.places.columns.iter().enumerate() {
            let (start, dim) = spec.column_span(column);
            backend.lookup(Lookup {
                params: &net.params,
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
            params: &net.params,
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

    /// Windows and users of the output rows: ranges of the rows of each window, segments of the windows of each user.
    fn route(
        &mut self,
        net: &EventNetwork<B>,
        (batch, adapted): (&Batch, Adapted<'_, B>),
    ) -> Result<()> {
        let windows: Vec<Range> = (batch.outputs.sequences.iter())
            .filter(|s| s.q_len > 0)
            .map(|s| Range { start: s.q_start, len: s.q_len })
            .collect();
        if net.spec.history == History::Last && windows.iter().any(|w| w.len != 1) {
            return Err(Error::Batch { what: "a window with several outputs".into() });
        }
        let number = |row: u32| windows.partition_point(|w| w.start < row);
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut segments = Vec::new();
        for (layout, own) in batch.outputs.segments.iter().enumerate() {
            let Some(units) = adapted.head_after.get(layout).copied().flatten() else { continue };
            for s in own {
                let (first, end) = (number(s.row_start), number(s.row_start + s.rows));
                let after = units as u64 * u64::from(s.lora_rank);
                segments.push(Segment {
                    row_start: small(first),
                    rows: small(end - first),
                    delta_offset: s.param_offset + after,
                    delta_grad_offset: s.grad_offset + after,
                });
            }
        }
        segments.sort_by_key(|s| s.row_start);
        let backend = net.trunk.backend();
        (self.windows, self.num_segments) = (windows.len(), segments.len());
        backend.write(&mut self.ranges, 0, &windows)?;
        Ok(backend.write(&mut self.segments, 0, &segments)?)
    }

    /// Histories to logits of intents.
    fn head(&mut self, net: &EventNetwork<B>, of: (&Batch, Adapted<'_, B>)) -> Result<()> {
        self.route(net, of)?;
        let (spec, backend, d) = (&net.spec, net.trunk.backend(), net.spec.hidden);
        let normed = &self.stepper.acts.scratch.gathered;
        if spec.history == History::Mean {
            backend.pool_mean(Mean {
                x: Mat::new(normed, d),
                ranges: &self.ranges,
                y: MatMut::new(&mut self.history, d),
                num_ranges: self.windows,
                rows: self.stepper.batch.outputs.rows,
                dim: d,
            })?;
        }
        let h = if spec.history == History::Mean { &self.history } else { normed };
        let head = Head {
            shape: spec.intent_shape(),
            offsets: net.places.intent,
            params: &net.params,
            segments: &self.segments,
            num_segments: self.num_segments,
            deltas: of.1.adapters.params,
        };
        let scores = if net.prediction.is_some() { &mut self.scores } else { &mut self.logits };
        let (h, rows) = (Mat::new(h, d), self.windows);
        backend.intent_forward(intent::Forward {
            head,
            h,
            logits: scores,
            work: &mut self.work,
            rows,
        })?;
        let Some(prediction) = &net.prediction else { return Ok(()) };
        Ok(backend.linear_forward(Forward {
            x: Mat::new(&self.scores, spec.intents),
            weight: &prediction.weight,
            bias: prediction.bias.as_ref(),
            residual: None,
            y: MatMut::new(&mut self.logits, spec.intents),
            rows,
        })?)
    }

    /// From the gradient of the logits to that of the normed output rows; `whole +=` the head's parameters, `own +=`
    /// the users' changes.
    fn head_back(
        &mut self,
        net: &EventNetwork<B>,
        adapted: Adapted<'_, B>,
        HeadGradients { mut whole, own }: HeadGradients<'_, B>,
    ) -> Result<()> {
        let (spec, backend, d) = (&net.spec, net.trunk.backend(), net.spec.hidden);
        let (n, rows) = (spec.intents, self.windows);
        if let (Some(prediction), Some(at)) = (&net.prediction, net.places.prediction) {
            let dy = Mat::new(&self.logit_gradient, n);
            if let Some(grads) = whole.as_deref_mut() {
                product_gradient(backend, rows, at, (Mat::new(&self.scores, n), dy), grads)?;
            }
            let dx = MatMut::new(&mut self.score_gradient, n);
            let (weight, accumulate) = (&prediction.weight, false);
            backend.linear_backward(Backward { dy, weight, dx, accumulate, rows })?;
        }
        let acts = &mut self.stepper.acts;
        let Some(gradients) = &mut acts.gradients else {
            return Err(Error::Batch { what: "a backward without buffers".into() });
        };
        let mean = spec.history == History::Mean;
        let (h, dh) = match mean {
            true => (&self.history, &mut self.history_gradient),
            false => (&acts.scratch.gathered, &mut gradients.normed_outputs),
        };
        let scores = &self.score_gradient;
        backend.intent_backward(intent::Backward {
            head: Head {
                shape: spec.intent_shape(),
                offsets: net.places.intent,
                params: &net.params,
                segments: &self.segments,
                num_segments: self.num_segments,
                deltas: adapted.adapters.params,
            },
            h: Mat::new(h, d),
            dlogits: if net.prediction.is_some() { scores } else { &self.logit_gradient },
            dh: Some(MatMut::new(dh, d)),
            grads: whole,
            delta_grads: own,
            work: &mut self.work,
            rows,
        })?;
        if mean {
            backend.pool_mean_backward(MeanBackward {
                dy: Mat::new(&self.history_gradient, d),
                ranges: &self.ranges,
                dx: MatMut::new(&mut gradients.normed_outputs, d),
                accumulate: false,
                num_ranges: rows,
                rows: self.stepper.batch.outputs.rows,
                dim: d,
            })?;
        }
        Ok(())
    }

    /// Output rows to logits of events.
    fn reconstruct(&mut self, net: &EventNetwork<B>) -> Result<()> {
        let (spec, rows) = (&net.spec, self.stepper.batch.outputs.rows);
        self.windows = rows;
        Ok(net.trunk.backend().linear_forward(Forward {
            x: Mat::new(&self.stepper.acts.scratch.gathered, spec.hidden),
            weight: &net.trunk.head,
            bias: Some(&net.reconstruction_bias),
            residual: None,
            y: MatMut::new(&mut self.logits, spec.events()),
            rows,
        })?)
    }

    fn reconstruction_back(
        &mut self,
        net: &EventNetwork<B>,
        grads: &mut B::Buf<f32>,
    ) -> Result<()> {
        let (spec, backend, rows) = (&net.spec, net.trunk.backend(), self.windows);
        let acts = &mut self.stepper.acts;
        let Some(gradients) = &mut acts.gradients else {
            return Err(Error::Batch { what: "a backward without buffers".into() });
        };
        let dy = Mat::new(&self.logit_gradient, spec.events());
        let x = Mat::new(&acts.scratch.gathered, spec.hidden);
        product_gradient(backend, rows, net.places.reconstruction, (x, dy), grads)?;
        let (weight, accumulate) = (&net.trunk.head, false);
        let dx = MatMut::new(&mut gradients.normed_outputs, spec.hidden);
        Ok(backend.linear_backward(Backward { dy, weight, dx, accumulate, rows })?)
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
