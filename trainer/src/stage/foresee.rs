//! The next intents of many people's windows, each person with the own adapter, in packed batches.

use super::engine::Engine;
use super::events::Events;
use super::{Error, Result};
use crate::ids::{Slot, UserId};
use crate::lora::AdapterSpec;
use crate::pack::{Packer, Piece, Share};
use crate::prompt::Example;
use kernels::lora::Segment;
use kernels::{Backend, Ops};

/// A person's adapter.
#[derive(Debug, Clone)]
pub struct Own {
    /// Its shape.
    pub lora: AdapterSpec,
    /// Its parameters.
    pub params: Vec<f32>,
}

/// A person and the windows that are asked about.
#[derive(Debug, Clone)]
pub struct Asker {
    /// Who.
    pub user: UserId,
    /// The adapter; `None` for the model as it is.
    pub own: Option<Own>,
    /// Windows: the numbers of their events in the table, then the intent, which is not looked at.
    pub windows: Vec<Example>,
}

/// Windows in the pack at hand, of one asker.
struct Asked {
    asker: usize,
    windows: std::ops::Range<usize>,
}

/// What is wanted of every intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Logits, for a student to learn from.
    Logits,
    /// Probabilities.
    Probabilities,
}

/// Numbers of all intents, window by window in the order asked: `answer(asker, window, numbers)`.
///
/// Bits of an answer do not depend on who else asks.
///
/// # Errors
/// What the engine says; an adapter of another shape.
pub fn run<B: Ops + Backend<Act = f32>>(
    engine: &mut Engine<'_, B, Events<'_, B>>,
    askers: &[Asker],
    (form, of_mean): (Form, bool),
    answer: &mut dyn FnMut(usize, usize, &[f32]),
) -> Result<()> {
    let mut packer = Packer::new(false);
    packer.clear();
    let (mut pending, mut slots): (Vec<Asked>, Vec<Slot>) = (Vec::new(), Vec::new());
    for (number, asker) in askers.iter().enumerate() {
        let mut slot = None;
        let mut next = 0;
        while next < asker.windows.len() {
            let window = asker.windows[next].tokens.len().saturating_sub(1);
            if packer.rows() + window > engine.rows() {
                if pending.is_empty() {
                    let (user, rows, room) = (asker.user.clone(), window, engine.rows());
                    return Err(Error::ChunkTooLong { user, rows, room });
                }
                flush(engine, (&mut packer, &mut pending, &mut slots), form, answer)?;
                slot = None;
            }
            if let Some(own) = asker.own.as_ref().filter(|_| slot.is_none()) {
                if engine.slabs.num_free() == 0 {
                    flush(engine, (&mut packer, &mut pending, &mut slots), form, answer)?;
                }
                let taken = engine.slabs.take().ok_or(Error::NoSlot)?;
                slots.push(taken);
                engine.load(taken, &own.params)?;
                slot = Some(taken);
            }
            let end = fitting(&asker.windows, next, engine.rows() - packer.rows());
            add(engine, &mut packer, (asker, slot, &asker.windows[next..end]), of_mean)?;
            pending.push(Asked { asker: number, windows: next..end });
            next = end;
        }
    }
    flush(engine, (&mut packer, &mut pending, &mut slots), form, answer)
}

/// The end of the windows from `start` on that fit in `room` rows.
fn fitting(windows: &[Example], start: usize, room: usize) -> usize {
    let mut rows = 0;
    let fits = |w: &&Example| {
        rows += w.tokens.len().saturating_sub(1);
        rows <= room
    };
    start + windows[start..].iter().take_while(fits).count()
}

fn add<B: Ops + Backend<Act = f32>>(
    engine: &Engine<'_, B, Events<'_, B>>,
    packer: &mut Packer,
    (asker, slot, windows): (&Asker, Option<Slot>, &[Example]),
    of_mean: bool,
) -> Result<()> {
    let pieces: Vec<Piece<'_>> = windows
        .iter()
        .map(|w| {
            let rows = &w.tokens[..w.tokens.len().saturating_sub(1)];
            let first_output = if of_mean { 0 } else { rows.len().saturating_sub(1) };
            Piece { rows, first_output, targets: &[], loss: None, only: None }
        })
        .collect();
    let (mut adapter, mut layout) = (None, 0);
    if let (Some(own), Some(slot)) = (&asker.own, slot) {
        layout = engine.lists.find(&own.lora.targets)?.0;
        let (lora_rank, scale) = (own.lora.lora_rank, own.lora.scale());
        adapter = Some(Segment { lora_rank, scale, ..engine.segment(slot, slot) });
    }
    packer.add(&Share { adapter, layout, pieces: &pieces, weight: 0.0, first_token: 0 });
    Ok(())
}

fn flush<B: Ops + Backend<Act = f32>>(
    engine: &mut Engine<'_, B, Events<'_, B>>,
    (packer, pending, slots): (&mut Packer, &mut Vec<Asked>, &mut Vec<Slot>),
    form: Form,
    answer: &mut dyn FnMut(usize, usize, &[f32]),
) -> Result<()> {
    if !pending.is_empty() {
        let classes = engine.model.intents();
        let numbers = match form {
            Form::Logits => engine.logits(packer)?,
            Form::Probabilities => engine.probabilities(packer)?,
        };
        let mut rows = numbers.chunks_exact(classes);
        for asked in pending.drain(..) {
            for window in asked.windows {
                if let Some(row) = rows.next() {
                    answer(asked.asker, window, row);
                }
            }
        }
        packer.clear();
    }
    for slot in slots.drain(..) {
        engine.slabs.release(slot)?;
    }
    Ok(())
}

impl<B: Ops + Backend<Act = f32>> Engine<'_, B, Events<'_, B>> {
    /// Probabilities `[windows, intents]` of a pack.
    ///
    /// # Errors
    /// When the pack is inconsistent.
    pub fn probabilities(&mut self, packer: &Packer) -> Result<&[f32]> {
        self.check(packer)?;
        let of = (self.lists, &self.buffers.params);
        self.model.probabilities(packer.batch(), of)
    }

    /// Logits `[windows, intents]` of a pack.
    ///
    /// # Errors
    /// When the pack is inconsistent.
    pub fn logits(&mut self, packer: &Packer) -> Result<&[f32]> {
        self.check(packer)?;
        let of = (self.lists, &self.buffers.params);
        self.model.logits(packer.batch(), of)
    }
}
