//! One user's way through the individual stage: epochs, micro-batches, chunks, steps.
//!
//! Everything here is a function of the user's own examples, recipe and seed.

use super::individual::PackRules;
use crate::config::{EarlyStop, Recipe};
use crate::ids::UserId;
use crate::lora::{AdapterSpec, SiteLists, initialise};
use crate::optim::{Order, steps_per_user};
use crate::pack::{ClassLoss, Piece, chunks, rows_of};
use crate::prompt::Example;
use kernels::lora::Segment;
use kernels::optim::Update;
use std::ops::Range;

/// A user to train.
#[derive(Debug, Clone)]
pub struct Job {
    /// The user.
    pub user: UserId,
    /// One example an item of the user's history, in time order.
    pub examples: Vec<Example>,
    /// The examples' losses where they are not plain cross-entropy, one for each; otherwise empty.
    pub losses: Vec<ClassLoss>,
    /// The answer follows the mean of an example's rows, not its last (event models alone).
    pub of_mean: bool,
    /// The adapter's shape.
    pub lora: AdapterSpec,
    /// Why it cannot be trained, when its data say so already.
    pub unusable: Option<String>,
    /// How it is trained.
    pub recipe: Recipe,
    /// The run's seed.
    pub seed: u64,
    /// Start from these parameters instead of a fresh adapter.
    pub start: Option<Vec<f32>>,
}

/// How a user left the stage.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// With an adapter.
    Trained {
        /// The user.
        user: UserId,
        /// The adapter's shape.
        lora: AdapterSpec,
        /// Its parameters, in the order of the sites of its targets in every block.
        params: Vec<f32>,
        /// Optimiser steps that led to these parameters.
        steps: u32,
        /// Loss of the last step.
        final_loss: f32,
        /// Held-out loss of these parameters, with early stopping.
        held_out_loss: Option<f64>,
    },
    /// Put aside; the run goes on.
    Quarantined {
        /// The user.
        user: UserId,
        /// Steps made before.
        steps: u32,
        /// Why, in one line.
        reason: String,
    },
}

impl Outcome {
    /// A user put aside.
    pub fn quarantined(user: UserId, steps: u32, reason: String) -> Self {
        Self::Quarantined { user, steps, reason }
    }
}

/// An element of an adapter beyond this is far from any that training leads to: the loss may have no finite value there.
const FAR: f32 = 10.0;

/// Best parameters so far, with early stopping.
#[derive(Debug)]
struct Best {
    loss: f64,
    params: Vec<f32>,
    steps: u32,
    epochs_since: u32,
}

/// Newest items held out: with early stopping the share rounded up, but never all; otherwise none.
fn held_out_items(early_stop: &EarlyStop, items: usize) -> usize {
    if !early_stop.enabled || items < 2 {
        return 0;
    }
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a count"
    )]
    let share = (early_stop.held_out * items as f64).ceil() as usize;
    share.clamp(1, items - 1)
}

/// A user in flight.
#[derive(Debug)]
pub struct Trainee {
    job: Job,
    rules: PackRules,
    key: [u32; 2],
    layout: usize,
    /// Examples trained on are the first so many; the rest are held out.
    num_train: u32,
    num_params: usize,
    total_steps: u32,
    steps: u32,
    epoch: u32,
    order: Order,
    /// Number of the current micro-batch in its epoch, and its chunks.
    batch: u32,
    chunks: Vec<Range<usize>>,
    chunk: usize,
    first_token: usize,
    supervised: usize,
    loss_sum: f64,
    last_loss: f32,
    failure: Option<String>,
    checked: bool,
    stopped: bool,
    best: Option<Best>,
}

impl Trainee {
    /// Seats a user; the adapter to load. The error is the reason to put the user aside.
    ///
    /// # Errors
    /// No example, or targets that none of the lists has.
    pub fn new(
        job: Job,
        lists: &SiteLists,
        rules: PackRules,
    ) -> std::result::Result<(Self, Vec<f32>), String> {
        if let Some(reason) = job.unusable {
            return Err(reason);
        }
        if job.examples.is_empty() {
            return Err("its history has no usable item".into());
        }
        let (layout, sites) = lists.find(&job.lora.targets).map_err(|e| e.to_string())?;
        let key = job.user.key().random_key(job.seed);
        let lora_rank = job.lora.lora_rank as usize;
        let mut params = vec![0.0; sites.params(lora_rank)];
        match &job.start {
            Some(start) if start.len() == params.len() => params.copy_from_slice(start),
            Some(start) => {
                return Err(format!(
                    "its adapter has {} parameters, not {}",
                    start.len(),
                    params.len()
                ));
            }
            None => initialise(sites, lora_rank, key, &mut params).map_err(|e| e.to_string())?,
        }
        let n = job.examples.len();
        let num_train = n - held_out_items(&job.recipe.early_stop, n);
        let total_steps = steps_per_user(num_train, job.recipe.batch_size, job.recipe.epochs)
            .map_err(|e| e.to_string())?;
        let num_train =
            u32::try_from(num_train).map_err(|_| "its history has too many items".to_owned())?;
        let mut trainee = Self {
            job,
            rules,
            key,
            layout,
            num_train,
            num_params: params.len(),
            total_steps,
            steps: 0,
            epoch: 0,
            order: Order::new(0, 1, 0, key),
            batch: 0,
            chunks: Vec::new(),
            chunk: 0,
            first_token: 0,
            supervised: 0,
            loss_sum: 0.0,
            last_loss: f32::NAN,
            failure: None,
            checked: false,
            stopped: false,
            best: None,
        };
        trainee.start_epoch();
        Ok((trainee, params))
    }

    /// The user.
    pub fn user(&self) -> &UserId {
        &self.job.user
    }

    /// Number of the adapter's layout.
    pub fn layout(&self) -> usize {
        self.layout
    }

    /// Optimiser steps finished.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// Optimiser steps in all, without early stopping.
    pub fn total_steps(&self) -> u32 {
        self.total_steps
    }

    /// Learning rate of the last finished step.
    pub fn last_rate(&self) -> f32 {
        super::recipe::update(&self.job.recipe, self.steps.saturating_sub(1), self.total_steps)
            .learning_rate
    }

    fn start_epoch(&mut self) {
        self.order = Order::new(self.num_train, self.job.recipe.batch_size, self.epoch, self.key);
        self.start_batch(0);
    }

    fn start_batch(&mut self, batch: u32) {
        self.batch = batch;
        let pieces = self.pieces(0..self.order.batch(batch).len());
        let chunks = chunks(&pieces, self.rules.chunk_rows, self.rules.share_prefixes);
        self.supervised = pieces.iter().map(|p| p.targets.len()).sum();
        self.chunks = chunks;
        (self.chunk, self.first_token, self.loss_sum) = (0, 0, 0.0);
    }

    /// Pieces of the current micro-batch, numbered within it.
    fn pieces(&self, within: Range<usize>) -> Vec<Piece<'_>> {
        self.order.batch(self.batch)[within].iter().map(|&i| self.piece(i as usize)).collect()
    }

    fn piece(&self, example: usize) -> Piece<'_> {
        let e = &self.job.examples[example];
        let piece = Piece::supervised(&e.tokens, e.prompt_len);
        let first_output = if self.job.of_mean { 0 } else { piece.first_output };
        Piece { first_output, loss: self.job.losses.get(example), ..piece }
    }

    /// Pieces of the due chunk.
    pub fn due_pieces(&self) -> Vec<Piece<'_>> {
        self.pieces(self.chunks[self.chunk].clone())
    }

    /// Rows the due chunk takes.
    pub fn due_rows(&self) -> usize {
        rows_of(&self.due_pieces(), self.rules.share_prefixes)
    }

    /// Pieces trained on, in time order.
    pub fn training_pieces(&self) -> Vec<Piece<'_>> {
        (0..self.num_train as usize).map(|i| self.piece(i)).collect()
    }

    /// Held-out pieces, in time order.
    pub fn held_out_pieces(&self) -> Vec<Piece<'_>> {
        (self.num_train as usize..self.job.examples.len()).map(|i| self.piece(i)).collect()
    }

    /// Weight of each supervised row: one over the supervised rows of the user's micro-batch.
    #[expect(clippy::cast_precision_loss, reason = "a count of rows below 2^24")]
    pub fn weight(&self) -> f32 {
        1.0 / self.supervised as f32
    }

    /// Rows of the micro-batch's chunks before the due one.
    pub fn first_token(&self) -> u32 {
        u32::try_from(self.first_token).unwrap_or(u32::MAX)
    }

    /// Completes a segment with the user's adapter, dropout key and step.
    pub fn segment(&self, template: Segment) -> Segment {
        let lora = &self.job.lora;
        Segment {
            lora_rank: lora.lora_rank,
            scale: lora.scale(),
            dropout: lora.dropout_f32(),
            step: self.steps,
            key: self.key,
            ..template
        }
    }

    /// The segment for evaluation.
    pub fn without_dropout(&self, template: Segment) -> Segment {
        Segment { dropout: 0.0, ..self.segment(template) }
    }

    /// The due chunk is in a pack that was queued: the next is due.
    pub fn chunk_queued(&mut self) {
        self.first_token += self.due_rows();
        self.chunk += 1;
    }

    /// Takes the losses of a queued chunk, before the step's [`Trainee::step_done`].
    pub fn chunk_done(&mut self, losses: &[f32]) {
        self.loss_sum += losses.iter().map(|&l| f64::from(l)).sum::<f64>();
    }

    /// Whether the user leaves with this step, unless it fails or early stopping ends it before.
    pub fn at_last_step(&self) -> bool {
        self.micro_batch_complete()
            && self.epoch + 1 == self.job.recipe.epochs
            && self.order.batch(self.batch + 1).is_empty()
    }

    /// Whether every chunk of the micro-batch has passed.
    pub fn micro_batch_complete(&self) -> bool {
        self.chunk == self.chunks.len()
    }

    /// This step's AdamW.
    pub fn update(&self, offset: u64) -> Update {
        let r = &self.job.recipe;
        Update {
            offset,
            len: u32::try_from(self.num_params).unwrap_or(u32::MAX),
            ..super::recipe::update(r, self.steps, self.total_steps)
        }
    }

    /// Takes the step's gradient norm; the step's loss, a mean over its supervised tokens.
    pub fn step_done(&mut self, norm: f32) -> f32 {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "a mean of f32 losses"
        )]
        let loss = (self.loss_sum / self.supervised as f64) as f32;
        self.steps += 1;
        self.last_loss = loss;
        if !loss.is_finite() || !norm.is_finite() {
            self.failure = Some(format!("step {}: loss {loss}, gradient norm {norm}", self.steps));
        } else if !self.order.batch(self.batch + 1).is_empty() {
            self.start_batch(self.batch + 1);
        } else {
            self.epoch += 1;
            self.checked = false;
            if self.epoch < self.job.recipe.epochs {
                self.start_epoch();
            }
        }
        loss
    }

    /// Why the user must be put aside, if so.
    pub fn failure(&self) -> Option<String> {
        self.failure.clone()
    }

    /// Whether an epoch just ended and held-out examples wait.
    pub fn wants_held_out_check(&self) -> bool {
        let at_end = self.epoch > 0
            && (self.batch == 0 || self.epoch == self.job.recipe.epochs)
            && !self.checked;
        self.job.recipe.early_stop.enabled
            && (self.num_train as usize) < self.job.examples.len()
            && at_end
    }

    /// Keeps the best parameters; stops after `patience` epochs without a better loss.
    pub fn held_out_checked(&mut self, loss: f64, params: Vec<f32>) {
        self.checked = true;
        match &mut self.best {
            Some(best) if loss >= best.loss || loss.is_nan() => best.epochs_since += 1,
            best => *best = Some(Best { loss, params, steps: self.steps, epochs_since: 0 }),
        }
        self.stopped = self
            .best
            .as_ref()
            .is_some_and(|b| b.epochs_since >= self.job.recipe.early_stop.patience);
    }

    /// Whether the last epoch is over, or the user stopped early.
    pub fn finished(&self) -> bool {
        self.stopped || self.epoch == self.job.recipe.epochs
    }

    /// Whether early stopping has kept the adapter's parameters here.
    pub fn keeps_best(&self) -> bool {
        self.best.is_some()
    }

    /// Whether the last step led so far away that only the loss there can tell if it is an adapter: a step's own loss
    /// is from before it. Where early stopping chose, the held-out loss has told.
    pub fn strayed(&self, params: &[f32]) -> bool {
        self.best.is_none() && params.iter().any(|p| p.is_finite() && p.abs() > FAR)
    }

    /// Takes the loss behind the last step.
    pub fn asked_after_last_step(&mut self, loss: f64) {
        if !loss.is_finite() {
            self.failure = Some(format!("after its last step: loss {loss}"));
        }
    }

    /// Parameters of the user's adapter.
    pub fn num_params(&self) -> usize {
        self.num_params
    }

    /// The user's adapter: the best seen on held-out examples, or `params`, the last.
    pub fn outcome(&mut self, params: Vec<f32>) -> Outcome {
        let best = self.best.take();
        let held_out_loss = best.as_ref().map(|b| b.loss);
        let (params, steps) = best.map_or((params, self.steps), |b| (b.params, b.steps));
        let reason = match held_out_loss {
            Some(loss) if !loss.is_finite() => Some(format!("its best held-out loss is {loss}")),
            _ if params.iter().any(|p| !p.is_finite()) => Some("its adapter is not finite".into()),
            _ => None,
        };
        if let Some(reason) = reason {
            return Outcome::quarantined(self.job.user.clone(), self.steps, reason);
        }
        Outcome::Trained {
            user: self.job.user.clone(),
            lora: self.job.lora.clone(),
            params,
            steps,
            final_loss: self.last_loss,
            held_out_loss,
        }
    }
}
