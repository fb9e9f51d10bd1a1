//! Training every parameter of an event model, data-parallel over ranks: the population stage, distilling, and a user's
//! own model where all of it is tuned.
//!
//! As in [`super::population`] a batch is cut into virtual shards, each shard's gradient is made whole on one rank, and
//! the shards' gradients are added in the order of their numbers; so any number of ranks gives the same bytes. The model
//! on the backend is made anew from the flat vector after each step. Where the sum is not by the host
//! ([`super::sums::ShardSums`]), shards lie side by side in one slab and nothing leaves the device. Of a network whose lowest blocks are frozen
//! ([`EventNetwork::partly`]) gradients, moments and sums have the parameters that train alone.

use super::buckets::Sum;
use super::held::Held;
use super::hidden::{Hidden, Window, masked};
use super::individual::End;
use super::population::PopulationStep;
use super::sums::ShardSums;
use super::{Error, Result};
use crate::comm::{Communicator, GradientSync, Reduce, shards_of};
use crate::config::Recipe;
use crate::ids::UserKey;
use crate::model::activations::StepSize;
use crate::model::event::{EventNetwork, EventStepper, EventTable, Goal, History, MASKED};
use crate::model::step::Passed;
use crate::optim::{Order, steps_per_user};
use crate::pack::{ClassLoss, Packer, Piece, chunks};
use crate::prompt::Example;
pub use crate::store::{Best, State};
use kernels::Ops;
use kernels::optim::{AdamW, Update};
use std::sync::atomic::{AtomicBool, Ordering};

/// The auxiliary objective: events hidden from the model, to be named again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reconstruction {
    /// Probability that an event is hidden.
    pub mask_ratio: f64,
    /// Its weight beside the intents' loss.
    pub lambda: f64,
}

/// What is trained, the same on every rank.
#[derive(Debug, Clone, Copy)]
pub struct WholeTask<'a> {
    /// Windows: the numbers of their events in the table, then the intent.
    pub windows: &'a [Example],
    /// Their losses where these are not plain cross-entropy, one for each; otherwise empty.
    pub losses: &'a [ClassLoss],
    /// Windows whose loss chooses among the epochs; none: the last epoch's model stays.
    pub validation: &'a [Example],
    /// How; what it says of adapters is not looked at. `batch_size` counts windows over all ranks.
    pub recipe: &'a Recipe,
    /// Hidden events.
    pub reconstruction: Option<Reconstruction>,
    /// Key of shuffling and masks.
    pub key: [u32; 2],
    /// Virtual shards.
    pub num_shards: u32,
}

/// What the stage tells while it runs.
pub trait Keep {
    /// A step is done.
    fn step(&mut self, step: PopulationStep);
    /// An epoch is done: number from 1, mean loss of the validation windows.
    fn epoch(&mut self, epoch: u32, validation_loss: Option<f64>);
    /// Steps between two checkpoints; 0 for none but at a stop.
    fn every(&self) -> u32;
    /// Keeps a state, the same on every rank.
    ///
    /// # Errors
    /// What the store says; ends the stage.
    fn checkpoint(&mut self, state: &State) -> Result<()>;
}

/// Buffers of a model that trains whole.
#[derive(Debug)]
pub struct WholeTrainer<'a, B: Ops> {
    pub(super) net: &'a mut EventNetwork<B>,
    table: &'a EventTable,
    stepper: EventStepper<B>,
    /// The gradient at hand, and after the shards the batch's, from 0 on; what is kept beside it, see [`Held`].
    pub(super) grads: B::Buf<f32>,
    m: B::Buf<f32>,
    v: B::Buf<f32>,
    update: B::Buf<Update>,
    norm: B::Buf<f32>,
    packer: Packer,
    pub(super) values: Vec<f32>,
    pub(super) total: Vec<f32>,
    pack_rows: usize,
}

/// Whether enough epochs brought no better loss of the validation windows.
fn enough(state: &State, recipe: &Recipe) -> bool {
    let early = &recipe.early_stop;
    early.enabled && state.best.as_ref().is_some_and(|b| b.epochs_since >= early.patience)
}

/// The key of the population stage's shuffling and masks, or of distilling's.
pub fn whole_key(seed: u64, stage: &str) -> [u32; 2] {
    let domain = format!("myriad 2026 event model {stage}");
    UserKey(blake3::derive_key(&domain, &[])).random_key(seed)
}

impl<'a, B: Ops> WholeTrainer<'a, B> {
    /// Buffers for packs of up to `pack_rows` rows.
    ///
    /// # Errors
    /// When the backend has no memory.
    pub fn new(
        net: &'a mut EventNetwork<B>,
        table: &'a EventTable,
        pack_rows: usize,
    ) -> Result<Self> {
        let size = Self::size(net, pack_rows);
        let (backend, len) = (net.trunk().backend(), net.places().trained());
        Ok(Self {
            stepper: EventStepper::new(net, size)?,
            grads: backend.alloc(len)?,
            m: backend.alloc(len)?,
            v: backend.alloc(len)?,
            update: backend.alloc(1)?,
            norm: backend.alloc(1)?,
            packer: Packer::new(false),
            values: Vec::new(),
            total: Vec::new(),
            pack_rows: size.rows,
            net,
            table,
        })
    }

    fn size(net: &EventNetwork<B>, pack_rows: usize) -> StepSize {
        let rows = pack_rows.max(net.spec().window);
        StepSize { rows, stored_blocks: net.spec().layers, backward: true }
    }

    /// Bytes of [`WholeTrainer::new`] and of the shards' gradients on a rank that holds `shards` of them at a time: all
    /// of its own, or one where it is alone in its world and they are added by the host.
    pub fn bytes(net: &EventNetwork<B>, pack_rows: usize, shards: usize) -> usize {
        let len = net.places().trained() * size_of::<f32>();
        EventStepper::bytes(net, Self::size(net, pack_rows), 0) + (4 + shards) * len
    }

    /// Trains from `state` on; the state at the end. However it ends, the model has the state's parameters; after an error
    /// `sums` may still be at work on this trainer's memory and is to be dropped before it.
    ///
    /// # Errors
    /// No window, a gradient that is not finite, what the model, a collective or the keeper says.
    pub fn run(
        &mut self,
        (comm, sums): (&dyn Communicator, &mut dyn ShardSums<B>),
        task: &WholeTask<'_>,
        mut state: State,
        keep: &mut dyn Keep,
        stop: &AtomicBool,
    ) -> Result<(End, State)> {
        let ids = shards_of(comm.rank(), comm.size(), task.num_shards);
        let n = u32::try_from(task.windows.len()).map_err(|_| Error::TooManySteps)?;
        if n == 0 {
            return Err(Error::NoPopulation);
        }
        let (batch, epochs) = (task.recipe.batch_size, task.recipe.epochs);
        let total_steps = steps_per_user(task.windows.len(), batch, epochs)?;
        let per_epoch = total_steps / epochs.max(1);
        self.load(&state)?;
        let (held, mut sum) = self.hold((comm, sums), &ids)?;
        let mut order = None;
        // A state that early stopping ended is complete, however often it is continued.
        while state.step < total_steps && !enough(&state, task.recipe) {
            if comm.all_reduce_u64(Reduce::Max, u64::from(stop.load(Ordering::Relaxed)))? > 0 {
                self.read(&mut state)?;
                keep.checkpoint(&state)?;
                return Ok((End::Stopped, state));
            }
            let (epoch, at) = (state.step / per_epoch, state.step % per_epoch);
            if order.as_ref().is_none_or(|(of, _)| *of != epoch) {
                order = Some((epoch, Order::new(n, batch, epoch, task.key)));
            }
            let indices = order.as_ref().map_or(&[][..], |(_, order)| order.batch(at));
            let (losses, rows) = self.gradients((task, held), &ids, (indices, epoch), &mut sum)?;
            let loss = sum.scalars(&losses)?;
            let grad_norm = self.update(task, (state.step, total_steps))?;
            state.step += 1;
            #[expect(clippy::cast_possible_truncation, reason = "a mean of f32 losses")]
            let loss = loss as f32;
            let step = state.step;
            if !loss.is_finite() || !grad_norm.is_finite() {
                return Err(Error::PopulationDiverged { step, loss, grad_norm });
            }
            let unshared_rows = rows;
            keep.step(PopulationStep { step, total_steps, loss, grad_norm, rows, unshared_rows });
            let ended = state.step.is_multiple_of(per_epoch);
            if ended {
                self.epoch((&sum, &ids), task, &mut state, keep)?;
            }
            if keep.every() > 0 && state.step.is_multiple_of(keep.every()) {
                self.read(&mut state)?;
                keep.checkpoint(&state)?;
            }
        }
        self.read(&mut state)?;
        let params = state.best.as_ref().map_or(&state.params, |best| &best.params);
        self.net.load(params)?;
        Ok((End::Complete, state))
    }

    /// After an epoch: the loss of the validation windows, and whether it is the best.
    fn epoch(
        &mut self,
        (sum, ids): (&Sum<'_, B>, &[u32]),
        task: &WholeTask<'_>,
        state: &mut State,
        keep: &mut dyn Keep,
    ) -> Result<()> {
        let early = &task.recipe.early_stop;
        let per_epoch = task.windows.len().div_ceil(task.recipe.batch_size.max(1) as usize);
        let epoch = state.step / u32::try_from(per_epoch).unwrap_or(u32::MAX).max(1);
        if !early.enabled || task.validation.is_empty() {
            keep.epoch(epoch, None);
            return Ok(());
        }
        let losses = self.losses(ids, (task, task.validation))?;
        let loss = sum.scalars(&losses)? / count(task.validation);
        keep.epoch(epoch, Some(loss));
        match &mut state.best {
            Some(best) if loss >= best.loss || loss.is_nan() => best.epochs_since += 1,
            best => {
                let mut params = vec![0.0; self.net.places().len()];
                self.net.read(&mut params)?;
                *best = Some(Best { loss, epochs_since: 0, params });
            }
        }
        Ok(())
    }

    fn load(&mut self, state: &State) -> Result<()> {
        self.net.load(&state.params)?;
        let (got, trained) = (state.m.len(), self.net.places().trained());
        if got != trained || state.v.len() != trained {
            let what = format!("moments of {got} parameters, {trained} train");
            return Err(crate::model::Error::Batch { what }.into());
        }
        let backend = self.net.trunk().backend();
        backend.write(&mut self.m, 0, &state.m)?;
        Ok(backend.write(&mut self.v, 0, &state.v)?)
    }

    fn read(&self, state: &mut State) -> Result<()> {
        self.net.read(&mut state.params)?;
        let backend = self.net.trunk().backend();
        backend.read(&self.m, 0, &mut state.m)?;
        Ok(backend.read(&self.v, 0, &mut state.v)?)
    }

    /// The sum of all shards' gradients, from 0 on in `self.grads`; each own shard's share of the batch's loss.
    fn gradients(
        &mut self,
        (task, held): (&WholeTask<'_>, Held),
        ids: &[u32],
        (batch, epoch): (&[u32], u32),
        sum: &mut Sum<'_, B>,
    ) -> Result<(Vec<f64>, usize)> {
        let len = self.net.places().trained();
        let window = |i: u32| &task.windows[i as usize];
        let masks: Vec<Vec<u32>> = match task.reconstruction {
            Some(r) => batch
                .iter()
                .map(|&i| masked(task.key, (window(i), i), epoch, r.mask_ratio))
                .collect(),
            None => Vec::new(),
        };
        let (mut losses, mut rows) = (vec![0.0f64; ids.len()], 0);
        for (i, &shard) in ids.iter().enumerate() {
            self.net.trunk().backend().zero(&mut self.grads, 0, len)?;
            let last = i + 1 == ids.len();
            let watched = matches!(held, Held::OnDevice) && last && sum.overlaps();
            let of = (task, batch, masks.as_slice());
            let sum_of_last = watched.then_some(&mut *sum);
            rows += self.shard(of, (shard, &mut losses[i]), sum_of_last)?;
            match held {
                Held::Nothing => {}
                Held::OnHost { alone } => self.keep(alone, (i, ids.len()))?,
                Held::OnDevice if last => {}
                Held::OnDevice => {
                    let of = (self.net.trunk().backend(), &mut self.grads);
                    sum.copy(of, (0, (i + 1) * len), len)?;
                }
            }
        }
        self.total(held, ids, sum)?;
        Ok((losses, rows))
    }

    /// Adds the gradient of one shard's windows to the one at hand; rows computed. With a sum it is this rank's last shard:
    /// the sum is begun as far as the backward of its last pack completes gradients.
    fn shard(
        &mut self,
        (task, batch, masks): (&WholeTask<'_>, &[u32], &[Vec<u32>]),
        (shard, loss): (u32, &mut f64),
        mut sum: Option<&mut Sum<'_, B>>,
    ) -> Result<usize> {
        let own = || (0..batch.len()).skip(shard as usize).step_by(task.num_shards as usize);
        let window = |at: usize| &task.windows[batch[at] as usize];
        let windows: Vec<Window<'_>> = own().map(|at| Window::of(task, batch[at])).collect();
        let of_mean = self.net.spec().history == History::Mean;
        let pieces: Vec<Piece<'_>> = windows.iter().map(|w| w.piece(of_mean)).collect();
        let hidden: Vec<Hidden> = match task.reconstruction {
            Some(_) => own().map(|at| Hidden::of(window(at), &masks[at])).collect(),
            None => Vec::new(),
        };
        let table = self.table;
        let targets: Vec<Vec<u32>> = hidden.iter().map(|h| h.events(table)).collect();
        let named: Vec<Piece<'_>> =
            hidden.iter().zip(&targets).filter_map(|(h, t)| h.piece(t)).map(needed).collect();
        let all_hidden: usize = masks.iter().map(Vec::len).sum();
        #[expect(clippy::cast_precision_loss, reason = "counts of rows below 2^24")]
        let (each, each_hidden) = (1.0 / batch.len() as f32, 1.0 / all_hidden.max(1) as f32);
        let last = if named.is_empty() { sum.take() } else { None };
        let mut rows = self.train(&pieces, (Goal::Intents, each), loss, last)?;
        if let Some(r) = task.reconstruction {
            #[expect(clippy::cast_possible_truncation, reason = "rounded once to f32")]
            let weight = each_hidden * r.lambda as f32;
            rows += self.train(&named, (Goal::Events, weight), loss, sum)?;
        }
        Ok(rows)
    }

    /// Adds the gradient of pieces, pack by pack; rows computed. The last pack's backward begins the sum, if there is one.
    fn train(
        &mut self,
        pieces: &[Piece<'_>],
        (goal, weight): (Goal, f32),
        loss: &mut f64,
        mut last: Option<&mut Sum<'_, B>>,
    ) -> Result<usize> {
        // One chain of additions over the windows: how they are cut into packs does not matter.
        let (mut rows, mut total) = (0, 0.0f64);
        for range in chunks(pieces, self.pack_rows, false) {
            let sum = if range.end == pieces.len() { last.take() } else { None };
            self.pack(&pieces[range], weight);
            let pack = (self.packer.batch(), self.table);
            let losses = match sum {
                None => self.stepper.train_whole(self.net, pack, goal, &mut self.grads)?,
                Some(sum) => {
                    let mut passed = |block: usize, backend: &B, grads: &mut B::Buf<f32>| {
                        sum.begin_down_to(block + 1, (backend, grads));
                    };
                    let watched = (&mut self.grads, Some(&mut passed as Passed<'_, B>));
                    self.stepper.train_whole_watched(self.net, pack, goal, watched)?
                }
            };
            total = losses.iter().fold(total, |sum, &l| sum + f64::from(l));
            rows += self.packer.rows();
        }
        *loss += total * f64::from(weight);
        Ok(rows)
    }

    fn pack(&mut self, pieces: &[Piece<'_>], weight: f32) {
        self.packer.clear();
        let (adapter, layout, first_token) = (None, 0, 0);
        self.packer.add(&crate::pack::Share { adapter, layout, pieces, weight, first_token });
    }

    /// Mean cross-entropy of windows, each rank computing its shards'.
    ///
    /// # Errors
    /// What the model or a collective says.
    pub fn mean_loss(
        &mut self,
        (comm, sync): (&dyn Communicator, &dyn GradientSync),
        (task, windows): (&WholeTask<'_>, &[Example]),
    ) -> Result<f64> {
        let ids = shards_of(comm.rank(), comm.size(), task.num_shards);
        let losses = self.losses(&ids, (task, windows))?;
        Ok(sync.reduce_scalars(comm, &ids, &losses)? / count(windows))
    }

    /// Sums of the windows' cross-entropy in these shards.
    fn losses(
        &mut self,
        ids: &[u32],
        (task, windows): (&WholeTask<'_>, &[Example]),
    ) -> Result<Vec<f64>> {
        let mut sums = vec![0.0f64; ids.len()];
        let of_mean = self.net.spec().history == History::Mean;
        for (sum, &shard) in sums.iter_mut().zip(ids) {
            let own = windows.iter().skip(shard as usize).step_by(task.num_shards as usize);
            let pieces: Vec<Piece<'_>> =
                own.map(|e| Window { example: e, loss: None }.piece(of_mean)).collect();
            for range in chunks(&pieces, self.pack_rows, false) {
                self.pack(&pieces[range], 0.0);
                let pack = (self.packer.batch(), self.table);
                let adapted = crate::model::event::Adapted {
                    adapters: self.net.trunk().bare(),
                    head_after: &[],
                };
                let losses = self.stepper.losses(self.net, pack, adapted)?;
                *sum = losses.iter().fold(*sum, |sum, &l| sum + f64::from(l));
            }
        }
        Ok(sums)
    }

    /// AdamW with the gradient from 0 on in `self.grads`; then the model made anew; the gradient's norm.
    fn update(&mut self, task: &WholeTask<'_>, (step, total): (u32, u32)) -> Result<f32> {
        let len = u32::try_from(self.net.places().trained()).map_err(|_| Error::TooManySteps)?;
        let update = Update { len, ..super::recipe::update(task.recipe, step, total) };
        let mut norm = [0.0];
        let backend = self.net.trunk().backend();
        backend.write(&mut self.update, 0, &[update])?;
        self.net.adamw(|backend, params| {
            backend.adamw(AdamW {
                updates: &self.update,
                num_updates: 1,
                params,
                grads: &mut self.grads,
                m: &mut self.m,
                v: &mut self.v,
                norms: &mut self.norm,
            })
        })?;
        self.net.trunk().backend().read(&self.norm, 0, &mut norm)?;
        Ok(norm[0])
    }
}

impl<B: Ops> WholeTrainer<'_, B> {
    /// What takes most memory of a step, for a forecast: a pack of `rows` windows of one event each, with `hidden` one of
    /// as many hidden events, and the optimiser.
    ///
    /// # Errors
    /// What the model or the backend says.
    pub(super) fn rehearse(
        &mut self,
        recipe: &Recipe,
        (rows, hidden): (usize, bool),
    ) -> Result<()> {
        let window = Piece::supervised(&[0, 0], 1);
        let (event, only) = ([MASKED], Some(&[0][..]));
        let event = Piece { rows: &event, first_output: 0, targets: &[0], loss: None, only };
        let packs = [(window, Goal::Intents), (event, Goal::Events)];
        for (piece, goal) in packs.into_iter().take(1 + usize::from(hidden)) {
            self.pack(&vec![piece; rows], 1.0);
            let pack = (self.packer.batch(), self.table);
            self.stepper.train_whole(self.net, pack, goal, &mut self.grads)?;
        }
        let (losses, reconstruction, key, num_shards) = (&[][..], None, [0; 2], 1);
        let (windows, validation) = (&[][..], &[][..]);
        let task =
            WholeTask { windows, losses, validation, recipe, reconstruction, key, num_shards };
        self.update(&task, (0, 1))?;
        Ok(())
    }
}

/// A piece up to the last row that is asked: attention is causal, so what follows has no part in any answer.
fn needed(piece: Piece<'_>) -> Piece<'_> {
    let last = piece.only.and_then(<[u32]>::last);
    let end = last.map_or(piece.rows.len(), |&last| last as usize + 1);
    Piece { rows: &piece.rows[..end.min(piece.rows.len())], ..piece }
}

/// A number of windows to divide by.
fn count(windows: &[Example]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count of windows")]
    let n = windows.len().max(1) as f64;
    n
}
