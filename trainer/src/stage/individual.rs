//! The individual stage: every user's own adapter, many users in one packed batch.
//!
//! Reads like the picture: admit users to free slots; pack the due micro-batches; step; AdamW on the
//! users whose micro-batch is complete; finished users leave to the caller's commit. Nothing here
//! depends on which users are in flight together, so the bytes of an adapter are the same alone and
//! among thousands (`docs/design.md` section 4, invariant 1).

use super::engine::{Engine, Model};
use super::trainee::{Job, Outcome, Trainee};
use super::{Error, Result};
use crate::ids::Slot;
use crate::pack::{Packer, Piece, Share};
use kernels::Ops;
use kernels::optim::Update;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the stage tells while it runs; the caller makes events and progress of it.
pub trait Watch {
    /// A pack was trained: rows computed, rows it would have had without shared prefixes, users in flight.
    fn pack(&mut self, rows: usize, unshared_rows: usize, in_flight: usize);
    /// A user finished an optimiser step.
    fn step(&mut self, trainee: &Trainee, loss: f32, grad_norm: f32);
    /// A user left: trained, or put aside with a reason. An adapter is durable when this returns.
    ///
    /// # Errors
    /// What the store says; ends the stage.
    fn left(&mut self, outcome: Outcome) -> Result<()>;
}

/// How a stage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Every user left.
    Complete,
    /// The caller asked to stop; users in flight were not committed.
    Stopped,
}

/// How packs are made.
#[derive(Debug, Clone, Copy)]
pub struct PackRules {
    /// Rows of a chunk of one micro-batch: part of the arithmetic, so the same on every machine.
    pub chunk_rows: usize,
    /// Share prefixes within a user.
    pub share_prefixes: bool,
}

/// Trains every job; users join as slots come free, in the order of `jobs`.
///
/// # Errors
/// What the engine or [`Watch::left`] says; a user's own trouble is an [`Outcome`], never an error.
pub fn run<B: Ops, M: Model<B>>(
    engine: &mut Engine<'_, B, M>,
    rules: PackRules,
    jobs: &mut dyn Iterator<Item = Job>,
    watch: &mut dyn Watch,
    stop: &AtomicBool,
) -> Result<End> {
    let mut flight = Flight {
        rules,
        seats: Vec::new(),
        next_seat: 0,
        packer: Packer::new(rules.share_prefixes),
        due: Vec::new(),
    };
    flight.seats.resize_with(engine.slabs.num_slots() as usize, || None);
    loop {
        flight.admit(engine, jobs, watch)?;
        if flight.seats.iter().all(Option::is_none) {
            return Ok(End::Complete);
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(End::Stopped);
        }
        flight.pack(engine)?;
        flight.step(engine, watch)?;
        flight.update(engine, watch)?;
    }
}

/// The users in flight, by slot.
struct Flight {
    rules: PackRules,
    seats: Vec<Option<Trainee>>,
    next_seat: usize,
    packer: Packer,
    /// Seats in the pack, in its order.
    due: Vec<usize>,
}

impl Flight {
    fn admit<B: Ops, M: Model<B>>(
        &mut self,
        engine: &mut Engine<'_, B, M>,
        jobs: &mut dyn Iterator<Item = Job>,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        while engine.slabs.num_free() > 0 {
            let Some(job) = jobs.next() else { return Ok(()) };
            let (user, rules) = (job.user.clone(), self.rules);
            let checked = fits(&job, &engine.model);
            match checked.and_then(|()| Trainee::new(job, engine.lists, rules)) {
                Ok((trainee, adapter)) => {
                    let slot = engine.slabs.take().ok_or(Error::NoSlot)?;
                    engine.load(slot, &adapter)?;
                    self.seats[slot.0 as usize] = Some(trainee);
                }
                Err(reason) => watch.left(Outcome::quarantined(user, 0, reason))?,
            }
        }
        Ok(())
    }

    /// Takes due chunks seat by seat, from where the last pack ended, until one does not fit.
    fn pack<B: Ops, M: Model<B>>(&mut self, engine: &Engine<'_, B, M>) -> Result<()> {
        self.packer.clear();
        self.due.clear();
        let seats = self.seats.len();
        for seat in (0..seats).map(|i| (self.next_seat + i) % seats) {
            let Some(trainee) = &self.seats[seat] else { continue };
            let rows = trainee.due_rows();
            if self.packer.rows() + rows > engine.rows() {
                if self.due.is_empty() {
                    return Err(Error::ChunkTooLong {
                        user: trainee.user().clone(),
                        rows,
                        room: engine.rows(),
                    });
                }
                self.next_seat = seat;
                return Ok(());
            }
            let slot = Slot(u32::try_from(seat).unwrap_or(u32::MAX));
            let adapter = Some(trainee.segment(engine.segment(slot, slot)));
            let (pieces, weight) = (trainee.due_pieces(), trainee.weight());
            self.packer.add(&Share {
                adapter,
                layout: trainee.layout(),
                pieces: &pieces,
                weight,
                first_token: trainee.first_token(),
            });
            self.due.push(seat);
        }
        Ok(())
    }

    fn step<B: Ops, M: Model<B>>(
        &mut self,
        engine: &mut Engine<'_, B, M>,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let losses = engine.train(&self.packer)?;
        for (share, &seat) in self.due.iter().enumerate() {
            if let Some(trainee) = &mut self.seats[seat] {
                trainee.chunk_done(&losses[self.packer.targets(share)]);
            }
        }
        watch.pack(
            self.packer.rows(),
            self.packer.unshared_rows(),
            self.seats.iter().flatten().count(),
        );
        Ok(())
    }

    /// AdamW on the users whose micro-batch is complete, then held-out checks, commits and quarantines.
    fn update<B: Ops, M: Model<B>>(
        &mut self,
        engine: &mut Engine<'_, B, M>,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        self.due
            .retain(|&seat| self.seats[seat].as_ref().is_some_and(Trainee::micro_batch_complete));
        self.due.sort_unstable();
        let offset =
            |seat: usize| engine.slabs.offset(Slot(u32::try_from(seat).unwrap_or(u32::MAX))) as u64;
        let updates: Vec<Update> = self
            .due
            .iter()
            .filter_map(|&seat| Some(self.seats[seat].as_ref()?.update(offset(seat))))
            .collect();
        let mut norms = vec![0.0; updates.len()];
        engine.update(&updates, &mut norms)?;
        for (i, norm) in norms.into_iter().enumerate() {
            let seat = self.due[i];
            let Some(trainee) = &mut self.seats[seat] else { continue };
            let loss = trainee.step_done(norm);
            watch.step(trainee, loss, norm);
            self.after_step(engine, seat, watch)?;
        }
        Ok(())
    }

    fn after_step<B: Ops, M: Model<B>>(
        &mut self,
        engine: &mut Engine<'_, B, M>,
        seat: usize,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let slot = Slot(u32::try_from(seat).unwrap_or(u32::MAX));
        let Some(trainee) = &mut self.seats[seat] else { return Ok(()) };
        if trainee.failure().is_none() && trainee.wants_held_out_check() {
            let loss = mean_loss(engine, slot, (trainee, &trainee.held_out_pieces()), self.rules)?;
            let mut params = vec![0.0; trainee.num_params()];
            engine.read(slot, &mut params)?;
            trainee.held_out_checked(loss, params);
        }
        let mut params = Vec::new();
        if trainee.failure().is_none() && trainee.finished() {
            params.resize(trainee.num_params(), 0.0);
            engine.read(slot, &mut params)?;
            if trainee.strayed(&params) {
                let pieces = trainee.training_pieces();
                let loss = mean_loss(engine, slot, (trainee, &pieces), self.rules)?;
                trainee.asked_after_last_step(loss);
            }
        }
        let outcome = match trainee.failure() {
            Some(reason) => Outcome::quarantined(trainee.user().clone(), trainee.steps(), reason),
            None if trainee.finished() => trainee.outcome(params),
            None => return Ok(()),
        };
        self.leave(engine, slot, outcome, watch)
    }

    fn leave<B: Ops, M: Model<B>>(
        &mut self,
        engine: &mut Engine<'_, B, M>,
        slot: Slot,
        outcome: Outcome,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        self.seats[slot.0 as usize] = None;
        engine.slabs.release(slot)?;
        watch.left(outcome)
    }
}

/// Whether the base can take a job's examples; the reason when it cannot, which is that user's alone.
fn fits<B: Ops>(job: &Job, model: &impl Model<B>) -> std::result::Result<(), String> {
    let (vocab, positions) = (model.vocab(), model.trunk().max_positions());
    for (i, example) in job.examples.iter().enumerate() {
        if let Some(id) = example.tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(format!("example {i}: token id {id} is outside the vocabulary of {vocab}"));
        }
        if example.tokens.len() > positions + 1 {
            let tokens = example.tokens.len();
            return Err(format!(
                "example {i}: {tokens} tokens, the base has {positions} positions"
            ));
        }
        if let Some(reason) = model.refuses(example, job.losses.get(i)) {
            return Err(format!("example {i}: {reason}"));
        }
    }
    match job.losses.len() {
        0 => Ok(()),
        losses if losses == job.examples.len() => Ok(()),
        losses => Err(format!("{losses} losses of {} examples", job.examples.len())),
    }
}

/// Mean loss of a user's tokens, without dropout, in packs of its own.
fn mean_loss<B: Ops, M: Model<B>>(
    engine: &mut Engine<'_, B, M>,
    slot: Slot,
    (trainee, pieces): (&Trainee, &[Piece<'_>]),
    rules: PackRules,
) -> Result<f64> {
    let mut packer = Packer::new(rules.share_prefixes);
    let segment = trainee.without_dropout(engine.segment(slot, slot));
    let (mut sum, mut count) = (0.0f64, 0usize);
    for chunk in crate::pack::chunks(pieces, rules.chunk_rows, rules.share_prefixes) {
        packer.clear();
        packer.add(&Share {
            adapter: Some(segment),
            layout: trainee.layout(),
            pieces: &pieces[chunk],
            weight: 0.0,
            first_token: 0,
        });
        let losses = engine.losses(&packer)?;
        sum += losses.iter().map(|&l| f64::from(l)).sum::<f64>();
        count += losses.len();
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
    Ok(sum / count.max(1) as f64)
}
