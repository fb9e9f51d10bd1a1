//! The individual stage of a run: users over ranks, adapters into the store.

use super::Run;
use crate::device::on;
use crate::plan::{Bounds, fit};
use crate::watch::Progress;
use kernels::Ops;
use std::collections::BTreeMap;
use std::time::Instant;
use trainer::ids::{Step, UserId, UserKey};
use trainer::lora::SiteLists;
use trainer::model::cache::MappedBase;
use trainer::model::network::Network;
use trainer::report::{Event, EventSink, Progress as Standing, Stage};
use trainer::shard::{CostModel, plan};
use trainer::stage::engine::Engine;
use trainer::stage::individual::{End, Watch, run as train};
use trainer::stage::trainee::{Job, Outcome, Trainee};
use trainer::store::{
    AdapterRef, Commit, Entry, Outcome as Record, Provenance, Status, Store, Writer,
};

/// Adapters trained and users put aside so far, in the data and in the store together.
pub(super) fn counts(run: &Run<'_>) -> anyhow::Result<(usize, usize)> {
    let users = stored(run)?;
    let done = users.values().filter(|e| e.status == Status::Done).count();
    let aside = users.values().filter(|e| matches!(e.status, Status::Quarantined { .. })).count();
    Ok((done, aside + run.session.index().quarantined.len()))
}

fn stored(run: &Run<'_>) -> anyhow::Result<BTreeMap<UserKey, Entry>> {
    let folder = run.path("store");
    Ok(if folder.exists() { Store::open(&folder)?.users().clone() } else { BTreeMap::new() })
}

/// Trains every user that is not in the store yet.
pub(super) fn run(run: &Run<'_>, base: &MappedBase) -> anyhow::Result<End> {
    let started = Instant::now();
    let before = stored(run)?;
    // All ranks have looked before one writes.
    run.comm.barrier()?;
    let mine = my_users(run, &before)?;
    let everyone = run.comm.all_reduce_u64(trainer::comm::Reduce::Sum, mine.len() as u64)?;
    if everyone == 0 {
        return Ok(End::Complete);
    }
    let end = on!(*run.session.device()?, backend => {
        tune(run, &run.network(backend, base)?, (base.hash().to_string(), &mine))
    })?;
    run.events.emit(Event::StageFinished {
        stage: Stage::Individual,
        seconds: started.elapsed().as_secs_f64(),
    })?;
    run.events.flush()?;
    let stopped =
        run.comm.all_reduce_u64(trainer::comm::Reduce::Max, u64::from(end == End::Stopped))?;
    Ok(if stopped > 0 { End::Stopped } else { End::Complete })
}

/// Trains these users on the backend of `net`.
fn tune<B: Ops>(
    run: &Run<'_>,
    net: &Network<B>,
    (base_hash, mine): (String, &[usize]),
) -> anyhow::Result<End> {
    let (session, users) = (run.session, mine.len());
    let bounds = Bounds::of(session, users);
    let hint = "raise engine.memory_gb, or lower engine.users_in_flight or engine.pack_tokens";
    let sizes = fit(session, net, (&session.lists, bounds), hint)?;
    let mut engine =
        Engine::new(net, &session.lists, sizes.step, (sizes.slots, session.adapter_params()))?;
    let writer = Writer::open(&run.path("store"), u32::try_from(run.comm.rank())?)?;
    run.events.emit(Event::StageStarted { stage: Stage::Individual, users, tokens: 0 })?;
    let mut watch = Watcher {
        events: run.events,
        lists: &session.lists,
        provenance: (base_hash, session.result_hash()?),
        writer,
        progress: Progress::new("individual", my_steps(run, mine), run.leads()),
        last_event: Instant::now(),
        tokens: 0,
        users,
        left: 0,
    };
    let mut failed = None;
    let mut jobs = mine.iter().map_while(|&i| job(run, i).map_err(|e| failed = Some(e)).ok());
    let end = train(&mut engine, session.rules, &mut jobs, &mut watch, run.stop)?;
    if let Some(error) = failed {
        return Err(error);
    }
    watch.progress.finish();
    watch.writer.close()?;
    Ok(end)
}

/// This rank's users that are still to train, dearest first.
fn my_users(run: &Run<'_>, before: &BTreeMap<UserKey, Entry>) -> anyhow::Result<Vec<usize>> {
    let index = &run.session.index().personal;
    let spec = run.session.base.spec();
    let model = CostModel {
        per_token: 4 * spec.describe().block_matmul_parameters,
        per_pair: 12 * (spec.layers * spec.heads * spec.head_dim) as u64,
    };
    let todo: Vec<usize> =
        (0..index.len()).filter(|&i| !before.contains_key(&index[i].key)).collect();
    let costs: Vec<(UserKey, u64)> = todo
        .iter()
        .map(|&i| {
            let user = &index[i];
            let items = user.num_history.max(1);
            // Four bytes of text a token, as English has with these vocabularies.
            let tokens = usize::try_from(user.bytes / 4).unwrap_or(usize::MAX) / items;
            let epochs = run.session.config.individual.training_of(&user.id).epochs;
            (user.key, model.user(std::iter::repeat_n(tokens, items), epochs))
        })
        .collect();
    let plan = plan(&costs, run.comm.size())?;
    Ok(plan.by_rank[run.comm.rank()].iter().map(|&i| todo[i]).collect())
}

/// Optimiser steps of these users, without early stops.
fn my_steps(run: &Run<'_>, users: &[usize]) -> u64 {
    let index = &run.session.index().personal;
    users
        .iter()
        .map(|&i| {
            let recipe = run.session.config.individual.training_of(&index[i].id);
            let steps = index[i].num_history.div_ceil(recipe.batch_size as usize);
            steps as u64 * u64::from(recipe.epochs)
        })
        .sum()
}

/// A user's job; a user without usable examples gets one without examples, which the stage puts aside.
fn job(run: &Run<'_>, index: usize) -> anyhow::Result<Job> {
    let session = run.session;
    let record = session.data.user(index)?;
    let (examples, unusable) = match session.examples(&record) {
        Ok((examples, left_out)) => {
            if let Some(first) = left_out.first() {
                let (user, count) = (&record.id, left_out.len());
                crate::watch::say(&format!(
                    "user {user}: {count} items left out, the first: {first}"
                ));
            }
            (examples, None)
        }
        Err(reason) => (Vec::new(), Some(reason)),
    };
    Ok(Job {
        lora: session.adapter_of(&record.id),
        recipe: session.config.individual.training_of(&record.id).clone(),
        user: record.id,
        examples,
        losses: Vec::new(),
        of_mean: false,
        unusable,
        seed: session.config.run.seed,
        start: None,
    })
}

struct Watcher<'a> {
    events: &'a dyn EventSink,
    lists: &'a SiteLists,
    /// Base and config hash of every adapter of this run.
    provenance: (String, String),
    writer: Writer,
    progress: Progress,
    last_event: Instant,
    tokens: u64,
    users: usize,
    left: usize,
}

/// Events are for people: losing one never ends a run.
fn emit(events: &dyn EventSink, event: Event) {
    if let Err(error) = events.emit(event) {
        crate::watch::say(&format!("events: {error}"));
    }
}

impl Watcher<'_> {
    fn commit(&mut self, user: &UserId, outcome: Record<'_>) -> trainer::stage::Result<()> {
        self.left += 1;
        Ok(self.writer.commit(Commit { user, generation: 1, outcome })?)
    }
}

impl Watch for Watcher<'_> {
    fn pack(&mut self, rows: usize, _: usize, in_flight: usize) {
        self.tokens += rows as u64;
        let note = format!("users {}/{}, {in_flight} in flight", self.left, self.users);
        self.progress.advance(0, rows as u64, &note);
        if self.last_event.elapsed().as_secs() >= 5 {
            self.last_event = Instant::now();
            let standing = Standing {
                stage: Stage::Individual,
                users_done: self.left,
                users: self.users,
                tokens_done: self.tokens,
                tokens: 0,
                tokens_per_s: self.progress.tokens_per_s(),
                eta_s: self.progress.eta_s(),
            };
            emit(self.events, Event::Progress(standing));
            if let Err(error) = self.events.flush() {
                crate::watch::say(&format!("events: {error}"));
            }
        }
    }

    fn step(&mut self, trainee: &Trainee, loss: f32, grad_norm: f32) {
        let event = Event::UserStep {
            user: trainee.user().clone(),
            step: Step(trainee.steps()),
            loss: f64::from(loss),
            grad_norm: f64::from(grad_norm),
            learning_rate: f64::from(trainee.last_rate()),
        };
        emit(self.events, event);
        self.progress.advance(1, 0, &format!("users {}/{}", self.left, self.users));
    }

    fn left(&mut self, outcome: Outcome) -> trainer::stage::Result<()> {
        match outcome {
            Outcome::Trained { user, lora, params, steps, final_loss, .. } => {
                let (base_hash, config_hash) = self.provenance.clone();
                let provenance =
                    Provenance { base_hash, config_hash, steps, final_loss: Some(final_loss) };
                let (_, sites) = self.lists.find(&lora.targets)?;
                let adapter =
                    AdapterRef { spec: &lora, sites, params: &params, provenance: &provenance };
                self.commit(&user, Record::Adapter(adapter))?;
                emit(
                    self.events,
                    Event::UserDone { user, step: Step(steps), loss: f64::from(final_loss) },
                );
            }
            Outcome::Quarantined { user, steps, reason } => {
                self.commit(&user, Record::Quarantined { reason: &reason })?;
                crate::watch::say(&format!("put aside: user {user}: {reason}"));
                emit(self.events, Event::UserQuarantined { user, step: Step(steps), reason });
            }
        }
        Ok(())
    }
}
