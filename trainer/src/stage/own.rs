//! Every parameter of a small model tuned for each person: the paper's on-device setting.
//!
//! People do not share a product here, since each has weights of an own; they are trained side by side, a thread each,
//! with the same passes as in [`super::tune`].

use super::individual::End;
use super::population::PopulationStep;
use super::sums::ByHost;
use super::trainee::Outcome;
use super::tune::{Lesson, Person, Tuning};
use super::whole::{Keep, WholeTask, WholeTrainer};
use super::{Error, Result};
use crate::comm::{HostSync, Solo};
use crate::config::Recipe;
use crate::lora::AdapterSpec;
use crate::model::event::{EventNetwork, EventTable};
use crate::store::{ModelFile, State};
use kernels::Ops;
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// The shape that goes with a model tuned whole: nothing of low rank.
pub fn whole_spec() -> AdapterSpec {
    AdapterSpec { lora_rank: 1, alpha: 1.0, rslora: false, dropout: 0.0, targets: Vec::new() }
}

/// Remembers the last loss; one person's training is short, and has no checkpoint.
#[derive(Default)]
struct Last(f32);

impl Keep for Last {
    fn step(&mut self, step: PopulationStep) {
        self.0 = step.loss;
    }

    fn epoch(&mut self, _: u32, _: Option<f64>) {}

    fn every(&self) -> u32 {
        0
    }

    fn checkpoint(&mut self, _: &State) -> Result<()> {
        Ok(())
    }
}

/// Tunes people on a backend, `at_once` side by side; `left` is told in their order.
///
/// # Errors
/// When there is no memory, or what `left` says; a person's own trouble is an [`Outcome`], never an error.
pub fn run<B: Ops + Clone>(
    (student, table, pack_rows): (&ModelFile, &EventTable, usize),
    (tuning, people): (&Tuning, &mut dyn Iterator<Item = Person>),
    (backend, at_once): (&B, usize),
    left: &mut dyn FnMut(Outcome) -> Result<()>,
    stop: &AtomicBool,
) -> Result<End> {
    loop {
        if stop.load(Ordering::Relaxed) {
            return Ok(End::Stopped);
        }
        let few: Vec<Person> = (0..at_once.max(1)).map_while(|_| people.next()).collect();
        if few.is_empty() {
            return Ok(End::Complete);
        }
        let outcomes: Vec<Result<Option<Outcome>>> = few
            .into_par_iter()
            .map(|person| one((student, table, pack_rows), (backend, tuning), person, stop))
            .collect();
        for outcome in outcomes {
            match outcome? {
                Some(outcome) => left(outcome)?,
                None => return Ok(End::Stopped),
            }
        }
    }
}

/// One person; none when stopped in between.
fn one<B: Ops + Clone>(
    (student, table, pack_rows): (&ModelFile, &EventTable, usize),
    (backend, tuning): (&B, &Tuning),
    person: Person,
    stop: &AtomicBool,
) -> Result<Option<Outcome>> {
    let Person { user, unlearn, learn, unusable } = person;
    if let Some(reason) = unusable {
        return Ok(Some(Outcome::quarantined(user, 0, reason)));
    }
    let mut net = EventNetwork::new(backend.clone(), student.spec.clone())?;
    let mut trainer = WholeTrainer::new(&mut net, table, pack_rows)?;
    let (mut params, mut steps, mut last) = (student.params.clone(), 0, Last::default());
    let passes = [(&unlearn, &tuning.unlearn, 0u64), (&learn, &tuning.learn, 1)];
    for (lesson, recipe, pass) in passes {
        if lesson.windows.is_empty() {
            continue;
        }
        let key = user.key().random_key(tuning.seed.wrapping_add(pass));
        match pass_over(&mut trainer, (lesson, recipe, key), params, &mut last, stop) {
            Ok((End::Complete, state)) => {
                steps += state.step;
                params = state.into_params();
            }
            Ok((End::Stopped, _)) => return Ok(None),
            Err(error @ Error::PopulationDiverged { .. }) => {
                return Ok(Some(Outcome::quarantined(user, steps, error.to_string())));
            }
            Err(error) => return Err(error),
        }
    }
    if !params.iter().all(|p| p.is_finite()) {
        return Ok(Some(Outcome::quarantined(user, steps, "its model is not finite".into())));
    }
    let (lora, final_loss) = (whole_spec(), last.0);
    Ok(Some(Outcome::Trained { user, lora, params, steps, final_loss, held_out_loss: None }))
}

fn pass_over<B: Ops>(
    trainer: &mut WholeTrainer<'_, B>,
    (lesson, recipe, key): (&Lesson, &Recipe, [u32; 2]),
    params: Vec<f32>,
    last: &mut Last,
    stop: &AtomicBool,
) -> Result<(End, State)> {
    let task = WholeTask {
        windows: &lesson.windows,
        losses: &lesson.losses,
        validation: &[],
        recipe,
        reconstruction: None,
        key,
        num_shards: 1,
    };
    let mut sums = ByHost::new(HostSync::new(1));
    trainer.run((&Solo::new(), &mut sums), &task, State::new(params), last, stop)
}
