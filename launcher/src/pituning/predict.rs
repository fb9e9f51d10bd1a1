//! What every arm answers to everybody's test windows: one line a window in `predictions/ARM.jsonl`.

use super::{Course, models, tune};
use crate::device::on;
use crate::exit::Fails;
use anyhow::Context;
use kernels::Ops;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use trainer::baseline::{Baseline, Baselines, Options};
use trainer::config::pituning::{EventArm, Tune};
use trainer::data::events::generator::Model;
use trainer::data::events::{Part, Window};
use trainer::eval::intents::{Outcome, ranked};
use trainer::ids::{UserId, UserKey};
use trainer::model::activations::StepSize;
use trainer::model::event::EventNetwork;
use trainer::stage::engine::Engine;
use trainer::stage::events::Events;
use trainer::stage::foresee::{Asker, Form, Own, run as foresee};
use trainer::store::{ModelFile, Status, Store, write_atomic};

/// One answered window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Answered {
    /// Whose.
    pub(super) user: UserId,
    /// Target, gold and its place.
    #[serde(flatten)]
    pub(super) outcome: OutcomeFields,
    /// Probability of the gold intent.
    pub(super) p: f64,
    /// The best intents by name with their probabilities.
    pub(super) top: Vec<(String, f64)>,
}

/// [`Outcome`], which takes no neighbours in its JSON.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct OutcomeFields {
    target: usize,
    gold: u32,
    answer: u32,
    rank: u32,
}

impl From<Outcome> for OutcomeFields {
    fn from(o: Outcome) -> Self {
        Self { target: o.target, gold: o.gold, answer: o.answer, rank: o.rank }
    }
}

impl From<OutcomeFields> for Outcome {
    fn from(o: OutcomeFields) -> Self {
        Self { target: o.target, gold: o.gold, answer: o.answer, rank: o.rank }
    }
}

/// The file of an arm.
pub(super) fn file(course: &Course<'_>, arm: EventArm) -> PathBuf {
    course.path("predictions").join(format!("{}.jsonl", arm.name()))
}

/// People answered at once.
const BATCH: usize = 256;

/// Everybody this rank answers for, by number.
fn mine(course: &Course<'_>) -> anyhow::Result<Vec<usize>> {
    let (rank, size) = (course.comm.rank(), course.comm.size());
    let (users, gone) = (&course.session.data.users, tune::forgotten(course)?);
    let asked = |n: &usize| n % size == rank && !gone.contains(&users[*n].id.key());
    Ok((0..users.len()).filter(asked).collect())
}

/// A line of a person's window.
fn line<T: Copy + Into<f64>>(
    course: &Course<'_>,
    (number, target, gold): (usize, usize, u32),
    shares: &[T],
) -> anyhow::Result<String> {
    let session = course.session;
    let names = &session.data.vocabulary.intents;
    let best = ranked(shares, session.config.evaluate.top_k)?;
    let round = |p: f64| (p * 1e6).round() / 1e6;
    Ok(serde_json::to_string(&Answered {
        user: session.data.users[number].id.clone(),
        outcome: Outcome::new(target, gold, shares)?.into(),
        p: round(shares.get(gold as usize).map_or(0.0, |&p| p.into())),
        top: best.into_iter().map(|(n, p)| (names[n as usize].clone(), round(p))).collect(),
    })?)
}

/// Writes an arm's file from every rank's lines, person by person in their order; rank 0 alone writes.
fn write(course: &Course<'_>, arm: EventArm, own: &[(usize, String)]) -> anyhow::Result<()> {
    let bytes = serde_json::to_vec(own)?;
    let Some(all) = course.comm.gather_bytes(0, &bytes)? else { return Ok(()) };
    let mut lines: Vec<(usize, String)> = Vec::new();
    for part in all {
        lines.extend(serde_json::from_slice::<Vec<(usize, String)>>(&part)?);
    }
    // Lines of one person come from one rank, in order of time.
    lines.sort_by_key(|(number, _)| *number);
    let text: String = lines.into_iter().map(|(_, line)| line + "\n").collect();
    let path = file(course, arm);
    std::fs::create_dir_all(course.path("predictions"))?;
    write_atomic(&path, text.as_bytes()).with_context(|| path.display().to_string())
}

/// Whether an arm has its answers; ranks agree on what they saw before one writes.
fn done(course: &Course<'_>, arm: EventArm) -> anyhow::Result<bool> {
    let done = file(course, arm).exists();
    course.comm.barrier()?;
    Ok(done)
}

/// The answers of a model that nobody adapts.
pub(super) fn population(
    course: &Course<'_>,
    arm: EventArm,
    model: &ModelFile,
) -> anyhow::Result<()> {
    if done(course, arm)? {
        return Ok(());
    }
    let askers = course_askers(course, &mine(course)?, |_| Ok(None))?;
    let mut lines = Vec::new();
    models::with_model(course.session, model, |ask| {
        let mut failed = None;
        ask(&askers.people, Form::Probabilities, &mut |asker, window, shares| {
            let about = askers.about(asker, window);
            match line(course, about, shares) {
                Ok(line) => lines.push((about.0, line)),
                Err(error) => failed = Some(error),
            }
        })?;
        Ok(failed)
    })?
    .map_or(Ok(()), Err)?;
    write(course, arm, &lines)
}

/// People and what their windows are about.
struct Askers {
    people: Vec<Asker>,
    numbers: Vec<usize>,
    targets: Vec<Vec<(usize, u32)>>,
}

impl Askers {
    /// Person, target and gold of a window.
    fn about(&self, asker: usize, window: usize) -> (usize, usize, u32) {
        let (target, gold) = self.targets[asker][window];
        (self.numbers[asker], target, gold)
    }
}

fn course_askers(
    course: &Course<'_>,
    numbers: &[usize],
    own: impl Fn(usize) -> anyhow::Result<Option<Own>>,
) -> anyhow::Result<Askers> {
    let mut askers = Askers { people: Vec::new(), numbers: numbers.to_vec(), targets: Vec::new() };
    for &number in numbers {
        let windows = course.session.of(number, Part::Test);
        let gold = |w: &trainer::prompt::Example| w.tokens.last().copied().unwrap_or(0);
        askers.targets.push(windows.iter().map(|(target, w)| (*target, gold(w))).collect());
        askers.people.push(Asker {
            user: course.session.data.users[number].id.clone(),
            own: own(number)?,
            windows: windows.into_iter().map(|(_, w)| w).collect(),
        });
    }
    Ok(askers)
}

/// The student's answers and those of all tuned arms.
pub(super) fn student(course: &Course<'_>, student: &ModelFile) -> anyhow::Result<()> {
    let arms = &course.session.config.run.arms;
    if arms.contains(&EventArm::Population) {
        population(course, EventArm::Population, student)?;
    }
    for &arm in arms.iter().filter(|arm| arm.tuned() || **arm == EventArm::Permuted) {
        if !done(course, arm)? {
            tuned(course, arm, student)?;
        }
    }
    Ok(())
}

/// Whose own part answers for a person: the person's, or with [`EventArm::Permuted`] the next one's.
fn whose(course: &Course<'_>, arm: EventArm, done: &[UserKey], number: usize) -> Option<UserKey> {
    let key = course.session.data.users[number].id.key();
    let at = done.binary_search(&key).ok()?;
    Some(if arm == EventArm::Permuted { done[(at + 1) % done.len()] } else { key })
}

fn tuned(course: &Course<'_>, arm: EventArm, student: &ModelFile) -> anyhow::Result<()> {
    let session = course.session;
    let store = Store::open(&tune::folder(&session.folder, arm))
        .input("the arm's people are tuned first: launcher individual")?;
    let keys: Vec<UserKey> =
        store.users().values().filter(|e| e.status == Status::Done).map(|e| e.key).collect();
    let numbers: Vec<usize> =
        mine(course)?.into_iter().filter(|&n| whose(course, arm, &keys, n).is_some()).collect();
    let own = |number: usize| -> anyhow::Result<Option<Own>> {
        let Some(key) = whose(course, arm, &keys, number) else { return Ok(None) };
        let adapter = store.get(&key)?;
        anyhow::ensure!(
            adapter.provenance.base_hash == student.hash(),
            "user key {}: the stored part belongs to another student",
            key.hex()
        );
        Ok(Some(Own { lora: adapter.spec, params: adapter.params }))
    };
    if session.config.individual.tune == Tune::All {
        let mut lines = Vec::new();
        for &number in &numbers {
            let Some(mine) = own(number)? else { continue };
            let model = ModelFile { spec: student.spec.clone(), params: mine.params };
            lines.extend(of_one(course, &model, number)?);
        }
        return write(course, arm, &lines);
    }
    let lines = on!(*session.device()?, backend => {
        let net = EventNetwork::new(backend, student.spec.clone())?;
        of_adapted(course, (net, student), &numbers, &own)?
    });
    write(course, arm, &lines)
}

/// The answers of people, each with the own adapter of one student.
fn of_adapted<B: Ops>(
    course: &Course<'_>,
    (mut net, student): (EventNetwork<B>, &ModelFile),
    numbers: &[usize],
    own: &dyn Fn(usize) -> anyhow::Result<Option<Own>>,
) -> anyhow::Result<Vec<(usize, String)>> {
    let session = course.session;
    net.load(&student.params)?;
    let mut lines = Vec::new();
    let rows = session.pack_rows();
    let size = StepSize { rows, stored_blocks: 0, backward: false };
    let params = session.lists.lists()[0].params(session.lora.lora_rank as usize);
    let slots = tune::answered(session, rows)?;
    let events = Events::new((&net, session.windows.table()), &session.lists, size)?;
    let mut engine = Engine::of(events, &session.lists, (slots, params))?;
    for batch in numbers.chunks(BATCH) {
        let askers = course_askers(course, batch, own)?;
        let mut failed = None;
        let form = (Form::Probabilities, session.of_mean());
        foresee(&mut engine, &askers.people, form, &mut |asker, window, shares| {
            let about = askers.about(asker, window);
            match line(course, about, shares) {
                Ok(line) => lines.push((about.0, line)),
                Err(error) => failed = Some(error),
            }
        })?;
        failed.map_or(Ok(()), Err)?;
    }
    Ok(lines)
}

fn of_one(
    course: &Course<'_>,
    model: &ModelFile,
    number: usize,
) -> anyhow::Result<Vec<(usize, String)>> {
    let askers = course_askers(course, &[number], |_| Ok(None))?;
    let mut lines = Vec::new();
    models::with_model(course.session, model, |ask| {
        let mut failed = None;
        ask(&askers.people, Form::Probabilities, &mut |asker, window, shares| match line(
            course,
            askers.about(asker, window),
            shares,
        ) {
            Ok(line) => lines.push((number, line)),
            Err(error) => failed = Some(error),
        })?;
        Ok(failed)
    })?
    .map_or(Ok(()), Err)?;
    Ok(lines)
}

/// The counted arms, and the truth where it is known.
pub(super) fn counted(course: &Course<'_>) -> anyhow::Result<()> {
    let session = course.session;
    let of = |arm: EventArm| Baseline::ALL.into_iter().find(|b| b.key() == arm.name());
    let (mut fitted, people) = (None, mine(course)?);
    for &arm in &session.config.run.arms {
        let (baseline, truth) = (of(arm), arm == EventArm::Truth);
        if baseline.is_none() && !truth || done(course, arm)? {
            continue;
        }
        if fitted.is_none() && !truth {
            fitted = Some(Baselines::fit(&session.data, Options::default())?);
        }
        let mut lines = Vec::new();
        for &number in &people {
            let wanted = session.of(number, Part::Test);
            if let (Some(baseline), Some(fitted)) = (baseline, &fitted) {
                let user = &session.data.users[number];
                let all: Vec<Window<'_>> =
                    user.windows(Part::Test, session.config.model.window).collect();
                let skip = all.len() - wanted.len();
                for window in &all[skip..] {
                    let shares = fitted.predict(baseline, user, window)?;
                    let about = (number, window.target, window.intent);
                    lines.push((number, line(course, about, &shares)?));
                }
            } else if let Some(known) = &session.truth {
                let all = known.optimal(&session.data, number, Part::Test, Model::Personal);
                let skip = all.len() - wanted.len();
                for moment in &all[skip..] {
                    let about = (number, moment.target, moment.intent);
                    lines.push((number, line(course, about, &moment.predicted)?));
                }
            }
        }
        write(course, arm, &lines)?;
    }
    Ok(())
}
