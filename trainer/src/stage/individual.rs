//! The individual stage: every user's own adapter, many users in one packed batch.
//!
//! Reads like the picture: admit users to free slots; pack the due micro-batches; queue the step and
//! AdamW on the users whose micro-batch is complete; while the device works, commit those who finished
//! with the pack before and prepare those who come after this one; take losses and norms, one wait a
//! pack; finished users leave their slots. Nothing here depends on which users are in flight together,
//! so the bytes of an adapter are the same alone and among thousands (`docs/design.md` section 4,
//! invariant 1).

use super::engine::{Engine, Model};
use super::trainee::{Job, Outcome, Trainee};
use super::{Error, Result};
use crate::ids::Slot;
use crate::pack::{Packer, Piece, Share};
use kernels::Ops;
use kernels::backend::Pending;
use kernels::optim::Update;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of adapters on their way to the host beyond which the oldest is waited for first.
const LEAVING_BYTES: usize = 256 << 20;

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

/// Trains every job; users join as slots come free, in the order of `jobs`. However it ends, whoever finished has left
/// to [`Watch::left`].
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
        prepared: VecDeque::new(),
        leaving: VecDeque::new(),
    };
    flight.seats.resize_with(engine.slabs.num_slots() as usize, || None);
    let end = flight.fly(engine, jobs, watch, stop);
    let collected = flight.collect(engine, watch);
    end.and_then(|end| collected.map(|()| end))
}

/// The users in flight, by slot, and those on their way in and out.
struct Flight {
    rules: PackRules,
    seats: Vec<Option<Trainee>>,
    next_seat: usize,
    packer: Packer,
    /// Seats in the pack, in its order.
    due: Vec<usize>,
    /// Users for the next free seats with their first parameters.
    prepared: VecDeque<(Trainee, Vec<f32>)>,
    /// Users without a seat, oldest first.
    leaving: VecDeque<Leaving>,
}

/// A user whose training is over.
struct Leaving {
    trainee: Trainee,
    /// The seat that was left.
    slot: Slot,
    /// The last parameters, where they may be the adapter.
    params: Option<Pending<f32>>,
}

/// What was queued of a pack.
struct Queued {
    losses: Pending<f32>,
    /// Norms of the seats whose micro-batch is complete, in this order.
    norms: Pending<f32>,
    complete: Vec<usize>,
}

impl Flight {
    fn fly<B: Ops, M: Model<B>>(
        &mut self,
        engine: &mut Engine<'_, B, M>,
        jobs: &mut dyn Iterator<Item = Job>,
        watch: &mut dyn Watch,
        stop: &AtomicBool,
    ) -> Result<End> {
        loop {
            self.admit(engine, jobs, watch)?;
            if self.seats.iter().all(Option::is_none) {
                if self.leaving.is_empty() {
                    return Ok(End::Complete);
                }
                // Whoever leaves may make a job of the next pass: it comes only once the adapter is handed over.
                self.collect(engine, watch)?;
                continue;
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(End::Stopped);
            }
            self.pack(engine)?;
            let queued = self.queue(engine)?;
            self.collect(engine, watch)?;
            self.prepare(engine, jobs, watch)?;
            self.take(engine, queued, watch)?;
        }
    }

    /// Seats users while there are seats.
    fn admit<B: Ops, M: Model<B>>(
        &mut self,
        engine: &mut Engine<'_, B, M>,
        jobs: &mut dyn Iterator<Item = Job>,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        while engine.slabs.num_free() > 0 {
            let next = match self.prepared.pop_front() {
                None => self.next(engine, jobs, watch)?,
                prepared => prepared,
            };
            let Some((trainee, adapter)) = next else { return Ok(()) };
            let slot = engine.slabs.take().ok_or(Error::NoSlot)?;
            engine.load(slot, &adapter)?;
            self.seats[slot.0 as usize] = Some(trainee);
        }
        Ok(())
    }

    /// Prepares as many users as leave with the queued pack.
    fn prepare<B: Ops, M: Model<B>>(
        &mut self,
        engine: &Engine<'_, B, M>,
        jobs: &mut dyn Iterator<Item = Job>,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let leaves = |&&seat: &&usize| self.seats[seat].as_ref().is_some_and(Trainee::at_last_step);
        let wanted = self.due.iter().filter(leaves).count();
        while self.prepared.len() < wanted {
            let Some(next) = self.next(engine, jobs, watch)? else { return Ok(()) };
            self.prepared.push_back(next);
        }
        Ok(())
    }

    /// The next user who can be trained, with the first parameters; the others are put aside.
    fn next<B: Ops, M: Model<B>>(
        &self,
        engine: &Engine<'_, B, M>,
        jobs: &mut dyn Iterator<Item = Job>,
        watch: &mut dyn Watch,
    ) -> Result<Option<(Trainee, Vec<f32>)>> {
        for job in jobs {
            let user = job.user.clone();
            let checked = fits(&job, &engine.model);
            match checked.and_then(|()| Trainee::new(job, engine.lists, self.rules)) {
                Ok(next) => return Ok(Some(next)),
                Err(reason) => watch.left(Outcome::quarantined(user, 0, reason))?,
            }
        }
        Ok(None)
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
            let slot = slot_of(seat);
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

    /// The pack's forward and backward, and AdamW on the users whose micro-batch is then complete.
    fn queue<B: Ops, M: Model<B>>(&mut self, engine: &mut Engine<'_, B, M>) -> Result<Queued> {
        let losses = engine.begin_train(&self.packer)?;
        let mut complete = Vec::new();
        for &seat in &self.due {
            let Some(trainee) = &mut self.seats[seat] else { continue };
            trainee.chunk_queued();
            if trainee.micro_batch_complete() {
                complete.push(seat);
            }
        }
        complete.sort_unstable();
        let offset = |seat: usize| engine.slabs.offset(slot_of(seat)) as u64;
        let updates: Vec<Update> = complete
            .iter()
            .filter_map(|&seat| Some(self.seats[seat].as_ref()?.update(offset(seat))))
            .collect();
        let norms = engine.begin_update(&updates)?;
        Ok(Queued { losses, norms, complete })
    }

    /// What the pack came to: losses, then steps, held-out checks and leaves in the order of the seats.
    fn take<B: Ops, M: Model<B>>(
        &mut self,
        engine: &mut Engine<'_, B, M>,
        queued: Queued,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        // The later copy first: then the other is there too.
        let norms = queued.norms.wait()?;
        let losses = queued.losses.wait()?;
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
        for (seat, norm) in queued.complete.into_iter().zip(norms) {
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
        let slot = slot_of(seat);
        let Some(trainee) = &mut self.seats[seat] else { return Ok(()) };
        if trainee.failure().is_none() && trainee.wants_held_out_check() {
            let params = engine.begin_read(slot, trainee.num_params())?;
            let loss = mean_loss(engine, slot, (trainee, &trainee.held_out_pieces()), self.rules)?;
            trainee.held_out_checked(loss, params.wait()?);
        }
        let failed = trainee.failure().is_some();
        if !failed && !trainee.finished() {
            return Ok(());
        }
        let Some(trainee) = self.seats[seat].take() else { return Ok(()) };
        let wanted = !failed && !trainee.keeps_best();
        let bytes = trainee.num_params() * size_of::<f32>();
        while wanted && self.leaving_bytes() + bytes > LEAVING_BYTES && !self.leaving.is_empty() {
            self.collect_oldest(engine, watch)?;
        }
        let params = wanted.then(|| engine.evict(slot, trainee.num_params())).transpose()?;
        engine.slabs.release(slot)?;
        self.leaving.push_back(Leaving { trainee, slot, params });
        // Without copies on their way, as on processors, nothing is gained by keeping a finished adapter from the store.
        if self.leaving.iter().all(|left| left.params.as_ref().is_none_or(Pending::is_here)) {
            self.collect(engine, watch)?;
        }
        Ok(())
    }

    fn leaving_bytes(&self) -> usize {
        let params = self.leaving.iter().filter_map(|leaving| leaving.params.as_ref());
        params.map(|params| params.len() * size_of::<f32>()).sum()
    }

    /// Waits for the adapters that are on their way and hands them over, in the order in which they left.
    fn collect<B: Ops, M: Model<B>>(
        &mut self,
        engine: &mut Engine<'_, B, M>,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        while !self.leaving.is_empty() {
            self.collect_oldest(engine, watch)?;
        }
        Ok(())
    }

    fn collect_oldest<B: Ops, M: Model<B>>(
        &mut self,
        engine: &mut Engine<'_, B, M>,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let Some(Leaving { mut trainee, slot, params }) = self.leaving.pop_front() else {
            return Ok(());
        };
        let params = params.map_or_else(|| Ok(Vec::new()), Pending::wait)?;
        if trainee.strayed(&params) {
            let rules = self.rules;
            let loss = engine.ask_again((slot, &params), |engine| {
                mean_loss(engine, slot, (&trainee, &trainee.training_pieces()), rules)
            })?;
            trainee.asked_after_last_step(loss);
        }
        watch.left(match trainee.failure() {
            Some(reason) => Outcome::quarantined(trainee.user().clone(), trainee.steps(), reason),
            None => trainee.outcome(params),
        })
    }
}

/// The slot of a seat.
fn slot_of(seat: usize) -> Slot {
    Slot(u32::try_from(seat).unwrap_or(u32::MAX))
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
