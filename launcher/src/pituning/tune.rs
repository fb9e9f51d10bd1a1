//! Everybody's own part of the student, for each of the tuned arms.

use super::{Course, EventSession, models, plan};
use crate::device::{Device, on};
use crate::exit::Fails;
use crate::watch::{Progress, say};
use kernels::Ops;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;
use trainer::config::Recipe;
use trainer::config::pituning::{EventArm, EventConfig, RareTo, Tune};
use trainer::data::events::Part;
use trainer::ids::{Step, UserId, UserKey};
use trainer::lora::{SiteList, WholeTensor};
use trainer::model::activations::StepSize;
use trainer::model::event::{EventNetwork, EventSpec, EventStepper, Places};
use trainer::prompt::Example;
use trainer::report::{Event, Stage};
use trainer::shard::{CostModel, plan};
use trainer::stage::engine::Engine;
use trainer::stage::events::Events;
use trainer::stage::individual::{End, Watch};
use trainer::stage::lesson::{
    ForgetFrom, Forgetting, RetainTo, focal, oversampled, plain, unlearning,
};
use trainer::stage::trainee::{Outcome, Trainee};
use trainer::stage::tune::{Lesson, Person, Tuning, run as tune};
use trainer::store::{
    AdapterRef, Commit, Entry, ModelFile, Outcome as Record, Provenance, Status, Store, Writer,
};
use trainer::unlearn::{Counts, Rule, Split};

/// People in flight where the config leaves it open.
const AUTO_USERS: usize = 64;

/// Where an arm's people lie in a run folder.
pub(super) fn folder(run: &Path, arm: EventArm) -> PathBuf {
    match arm {
        EventArm::Personal | EventArm::Permuted => run.join("store"),
        _ => run.join("arms").join(arm.name()).join("store"),
    }
}

/// The arms of a run for which people are tuned.
pub(super) fn arms(config: &EventConfig) -> impl Iterator<Item = EventArm> {
    config.run.arms.iter().copied().filter(|arm| arm.tuned())
}

/// Who was forgotten: nothing is made of them any more, in whichever arm they were when they went.
pub(super) fn forgotten(course: &Course<'_>) -> anyhow::Result<BTreeSet<UserKey>> {
    let mut gone = BTreeSet::new();
    for arm in arms(&course.session.config) {
        let users = stored(&folder(&course.session.folder, arm))?;
        gone.extend(users.values().filter(|e| e.status == Status::Forgotten).map(|e| e.key));
    }
    Ok(gone)
}

/// People with an own part and people put aside, over all tuned arms: the fewest and the most.
pub(super) fn counts(course: &Course<'_>) -> anyhow::Result<(usize, usize)> {
    let (mut fewest, mut aside) = (usize::MAX, BTreeSet::new());
    for arm in arms(&course.session.config) {
        let users = stored(&folder(&course.session.folder, arm))?;
        fewest = fewest.min(users.values().filter(|e| e.status == Status::Done).count());
        let bad = |e: &&Entry| matches!(e.status, Status::Quarantined { .. });
        aside.extend(users.values().filter(bad).map(|e| e.key));
    }
    Ok((if fewest == usize::MAX { 0 } else { fewest }, aside.len()))
}

fn stored(folder: &Path) -> anyhow::Result<BTreeMap<UserKey, Entry>> {
    Ok(if folder.exists() { Store::open(folder)?.users().clone() } else { BTreeMap::new() })
}

/// The sites and whole tensors of a person's own part.
pub(super) fn sites(course: &Course<'_>, student: &ModelFile) -> anyhow::Result<SiteList> {
    if course.session.config.individual.tune == Tune::All {
        let places = Places::new(&student.spec);
        let tensors = places
            .tensors()
            .iter()
            .map(|place| WholeTensor { name: place.name.clone(), dims: place.dims.clone() });
        return Ok(SiteList::whole_only(tensors.collect())?);
    }
    Ok(course.session.lists.lists()[0].clone())
}

/// Tunes everybody who is not in the arm's store yet.
pub(super) fn arm(course: &Course<'_>, arm: EventArm, student: &ModelFile) -> anyhow::Result<End> {
    let (session, started) = (course.session, Instant::now());
    let store = folder(&session.folder, arm);
    let mut before: BTreeSet<UserKey> = stored(&store)?.into_keys().collect();
    before.extend(forgotten(course)?);
    // All ranks have looked before one writes.
    course.comm.barrier()?;
    let mine = my_people(course, &before)?;
    let everyone = course.comm.all_reduce_u64(trainer::comm::Reduce::Sum, mine.len() as u64)?;
    if everyone == 0 {
        return Ok(End::Complete);
    }
    let people: Vec<Person> = persons(course, arm, student, &mine)?;
    let tuning = tuning(session);
    std::fs::create_dir_all(&store)?;
    let steps = people
        .iter()
        .map(|p| steps_of(&p.unlearn, &tuning.unlearn) + steps_of(&p.learn, &tuning.learn));
    let mut watch = Watcher {
        course,
        sites: sites(course, student)?,
        provenance: (student.hash(), session.config.result_hash()?.to_string()),
        writer: Writer::open(&store, u32::try_from(course.comm.rank())?)?,
        progress: Progress::new(arm.name(), steps.sum(), course.leads()),
        people: people.len(),
        left: 0,
    };
    let (users, tokens) = (people.len(), 0);
    course.events.emit(Event::StageStarted { stage: Stage::Individual, users, tokens })?;
    let end = if session.config.individual.tune == Tune::All {
        let at_once = at_once(session.device()?);
        on!(*session.device()?, backend => {
            whole(backend, (course, student), (&tuning, people, at_once), &mut watch)?
        })
    } else {
        on!(*session.device()?, backend => {
            adapted(backend, (course, student), (&tuning, people), &mut watch)?
        })
    };
    watch.progress.finish();
    watch.writer.close()?;
    let seconds = started.elapsed().as_secs_f64();
    course.events.emit(Event::StageFinished { stage: Stage::Individual, seconds })?;
    Ok(if course.stopped(end)? { End::Stopped } else { End::Complete })
}

/// How a run's people are tuned.
pub(crate) fn tuning(session: &EventSession) -> Tuning {
    Tuning {
        lora: session.lora.clone(),
        unlearn: recipe(&session.config.individual.training, &session.config.unlearn.training),
        learn: session.config.individual.training.clone(),
        of_mean: session.of_mean(),
        seed: session.config.run.seed,
    }
}

/// People in flight.
pub(crate) fn slots(session: &EventSession, people: usize) -> usize {
    let asked = session.config.engine.users_in_flight;
    if asked == 0 { AUTO_USERS } else { asked }.min(people.max(1))
}

/// People whose own parts are at hand while packs of `rows` rows are asked: as many as one holds, and those at its ends.
pub(super) fn answered(session: &EventSession, rows: usize) -> anyhow::Result<u32> {
    Ok(u32::try_from(rows / session.config.model.window + 2)?)
}

/// Rows of the packs of somebody who has a whole model.
pub(super) fn own_rows(spec: &EventSpec, tuning: &Tuning) -> usize {
    spec.window * tuning.learn.batch_size.max(tuning.unlearn.batch_size) as usize
}

/// Unlearning's optimiser with fine-tuning's adapter shape: both train the same parameters.
fn recipe(adapter: &Recipe, unlearn: &Recipe) -> Recipe {
    Recipe {
        lora_rank: adapter.lora_rank,
        alpha: adapter.alpha,
        rslora: adapter.rslora,
        dropout: adapter.dropout,
        targets: adapter.targets.clone(),
        ..unlearn.clone()
    }
}

fn steps_of(lesson: &Lesson, recipe: &Recipe) -> u64 {
    let each = lesson.windows.len().div_ceil(recipe.batch_size.max(1) as usize) as u64;
    each * u64::from(recipe.epochs)
}

/// Whole models that are tuned side by side: one for each thread; on a GPU, whose work is in one queue, one.
fn at_once(device: &Device) -> usize {
    match device {
        Device::Cpu => rayon::current_num_threads(),
        Device::Cuda(_) => 1,
    }
}

fn adapted<B: Ops>(
    backend: B,
    (course, student): (&Course<'_>, &ModelFile),
    (tuning, people): (&Tuning, Vec<Person>),
    watch: &mut Watcher<'_>,
) -> anyhow::Result<End> {
    let session = course.session;
    let mut net = EventNetwork::new(backend, student.spec.clone())?;
    net.load(&student.params)?;
    let params = session.lists.lists()[0].params(session.lora.lora_rank as usize);
    let (rows, slots) = plan::sizes(session, (people.len(), course.comm.size()))?;
    let size = StepSize { rows, stored_blocks: student.spec.layers, backward: true };
    models::budget(session, EventStepper::bytes(&net, size, 1) + slots * params * 16)?;
    let events = Events::new((&net, session.windows.table()), &session.lists, size)?;
    let mut engine = Engine::of(events, &session.lists, (u32::try_from(slots)?, params))?;
    let mut people = people.into_iter();
    Ok(tune(&mut engine, session.rules, (tuning, &mut people), watch, course.stop)?)
}

fn whole<B: Ops + Clone>(
    backend: B,
    (course, student): (&Course<'_>, &ModelFile),
    (tuning, people, at_once): (&Tuning, Vec<Person>, usize),
    watch: &mut Watcher<'_>,
) -> anyhow::Result<End> {
    let session = course.session;
    let rows = own_rows(&student.spec, tuning);
    let net = EventNetwork::new(backend.clone(), student.spec.clone())?;
    models::budget(session, at_once * trainer::stage::whole::WholeTrainer::bytes(&net, rows, 1))?;
    drop(net);
    let mut people = people.into_iter();
    let with = (student, session.windows.table(), rows);
    let mut left = |outcome: Outcome| {
        let (Outcome::Trained { steps, .. } | Outcome::Quarantined { steps, .. }) = &outcome;
        let note = format!("people {}/{}", watch.left + 1, watch.people);
        watch.progress.advance(u64::from(*steps), 0, &note);
        watch.left(outcome)
    };
    let of = (tuning, &mut people as &mut dyn Iterator<Item = Person>);
    Ok(trainer::stage::own::run(with, of, (&backend, at_once), &mut left, course.stop)?)
}

/// This rank's people that are still to tune, dearest first.
fn my_people(course: &Course<'_>, before: &BTreeSet<UserKey>) -> anyhow::Result<Vec<usize>> {
    let session = course.session;
    let todo: Vec<usize> = (0..session.data.users.len())
        .filter(|&n| !before.contains(&session.data.users[n].id.key()))
        .collect();
    let model = CostModel { per_token: 1, per_pair: 0 };
    let cost = |&n: &usize| {
        let events = session.of(n, Part::Train).into_iter().map(|(_, w)| w.prompt_len);
        (session.data.users[n].id.key(), model.user(events, 1))
    };
    let costs: Vec<(UserKey, u64)> = todo.iter().map(cost).collect();
    let plan = plan(&costs, course.comm.size())?;
    Ok(plan.by_rank[course.comm.rank()].iter().map(|&i| todo[i]).collect())
}

/// What people are taught in an arm.
pub(crate) fn persons(
    course: &Course<'_>,
    arm: EventArm,
    student: &ModelFile,
    mine: &[usize],
) -> anyhow::Result<Vec<Person>> {
    let session = course.session;
    let windows: Vec<Vec<Example>> = mine
        .iter()
        .map(|&n| session.of(n, Part::Train).into_iter().map(|(_, w)| w).collect())
        .collect();
    let forgets = matches!(arm, EventArm::Personal | EventArm::Unlearned);
    let teacher =
        if forgets { models::logits(session, student, &windows.concat())? } else { Vec::new() };
    let population = session.counts(None);
    let (mut people, mut from) = (Vec::with_capacity(mine.len()), 0);
    for (&number, windows) in mine.iter().zip(windows) {
        let user = session.data.users[number].id.clone();
        let logits =
            &teacher[from..from + if forgets { windows.len() * student.spec.intents } else { 0 }];
        from += logits.len();
        let unlearn = if forgets {
            let split = split(course, &population, (&windows, logits))?;
            unlearning(&windows, logits, &split, forgetting(course)?)
        } else {
            Lesson::default()
        };
        #[expect(clippy::cast_possible_truncation, reason = "rounded once to f32")]
        let gamma = session.config.individual.focal_gamma as f32;
        let learn = match arm {
            EventArm::Unlearned => Lesson::default(),
            EventArm::Focal => focal(&windows, gamma),
            EventArm::Oversample => {
                let own = match session.config.individual.oversample {
                    RareTo::Person => Some(session.counts(Some(number))),
                    RareTo::Population => None,
                };
                oversampled(&windows, own.as_deref().unwrap_or(&population))
            }
            _ => plain(&windows),
        };
        // Somebody with nothing to forget keeps the student as it is in the arm without fine-tuning: one step of
        // nothing would be no adapter, so the person has one that changes nothing.
        let unusable = windows.is_empty().then(|| "no training window".to_owned());
        let unlearn = match unlearn.windows.is_empty() && learn.windows.is_empty() {
            true => still(&windows, logits),
            false => unlearn,
        };
        people.push(Person { user, unlearn, learn, unusable });
    }
    Ok(people)
}

/// Windows held to the teacher, which the student already is.
fn still(windows: &[Example], logits: &[f32]) -> Lesson {
    let nothing = Forgetting {
        forget: ForgetFrom::Label,
        retain: RetainTo::TeacherDistribution,
        beta: 0.0,
        margin: 0.0,
    };
    // An intent that nobody has stands for the forget set.
    let nobody = Split { forget: vec![u32::MAX], weights: vec![0.0] };
    unlearning(windows, logits, &nobody, nothing)
}

/// A person's forget set.
fn split(
    course: &Course<'_>,
    population: &[u64],
    (windows, logits): (&[Example], &[f32]),
) -> anyhow::Result<Split> {
    let config = &course.session.config.unlearn;
    let intents = population.len();
    // The person's counts and the teacher's hits are those of the windows that are trained on.
    let (mut counted, mut hits) = (vec![0u64; intents], vec![0u64; intents]);
    for (window, row) in windows.iter().zip(logits.chunks_exact(intents.max(1))) {
        let intent = window.tokens.last().copied().unwrap_or(0) as usize;
        counted[intent] += 1;
        let first =
            row.iter().enumerate().fold(0, |best, (n, x)| if *x > row[best] { n } else { best });
        hits[intent] += u64::from(first == intent);
    }
    let rule = match config.rule.as_str() {
        "difference" => Rule::Difference { top: config.top, min_count: config.min_count },
        "teacher_error" => {
            Rule::TeacherError { recall_below: config.recall, min_count: config.min_count.max(1) }
        }
        _ => Rule::Ratio { tau: config.tau, min_count: config.min_count },
    };
    let counts = Counts { population, person: &counted, hits: &hits };
    Split::new(rule, counts, config.smoothing, config.adaptive).input("see [unlearn] of the config")
}

fn forgetting(course: &Course<'_>) -> anyhow::Result<Forgetting> {
    let config = &course.session.config.unlearn;
    let forget = match config.forget.as_str() {
        "teacher_answer" => ForgetFrom::TeacherAnswer,
        "teacher_error" => ForgetFrom::TeacherError,
        "teacher_distribution" => ForgetFrom::TeacherDistribution,
        "label" => ForgetFrom::Label,
        other => anyhow::bail!("unlearn.forget is {other:?}"),
    };
    let retain =
        if config.retain == "label" { RetainTo::Label } else { RetainTo::TeacherDistribution };
    #[expect(clippy::cast_possible_truncation, reason = "rounded once to f32")]
    let (beta, margin) = (config.beta as f32, config.margin as f32);
    Ok(Forgetting { forget, retain, beta, margin })
}

struct Watcher<'a> {
    course: &'a Course<'a>,
    sites: SiteList,
    /// Hashes of the student and of the config of every adapter.
    provenance: (String, String),
    writer: Writer,
    progress: Progress,
    people: usize,
    left: usize,
}

impl Watcher<'_> {
    fn commit(&mut self, user: &UserId, outcome: Record<'_>) -> trainer::stage::Result<()> {
        self.left += 1;
        Ok(self.writer.commit(Commit { user, generation: 1, outcome })?)
    }

    /// Events are for people: losing one never ends a run.
    fn emit(&self, event: Event) {
        if let Err(error) = self.course.events.emit(event) {
            say(&format!("events: {error}"));
        }
    }
}

impl Watch for Watcher<'_> {
    fn pack(&mut self, rows: usize, _: usize, in_flight: usize) {
        let note = format!("people {}/{}, {in_flight} in flight", self.left, self.people);
        self.progress.advance(0, rows as u64, &note);
    }

    fn step(&mut self, trainee: &Trainee, loss: f32, grad_norm: f32) {
        self.emit(Event::UserStep {
            user: trainee.user().clone(),
            step: Step(trainee.steps()),
            loss: f64::from(loss),
            grad_norm: f64::from(grad_norm),
            learning_rate: f64::from(trainee.last_rate()),
        });
        self.progress.advance(1, 0, &format!("people {}/{}", self.left, self.people));
    }

    fn left(&mut self, outcome: Outcome) -> trainer::stage::Result<()> {
        match outcome {
            Outcome::Trained { user, lora, params, steps, final_loss, .. } => {
                let (base_hash, config_hash) = self.provenance.clone();
                let provenance =
                    Provenance { base_hash, config_hash, steps, final_loss: Some(final_loss) };
                let sites = self.sites.clone();
                let adapter = AdapterRef {
                    spec: &lora,
                    sites: &sites,
                    params: &params,
                    provenance: &provenance,
                };
                self.commit(&user, Record::Adapter(adapter))?;
                self.emit(Event::UserDone { user, step: Step(steps), loss: f64::from(final_loss) });
            }
            Outcome::Quarantined { user, steps, reason } => {
                self.commit(&user, Record::Quarantined { reason: &reason })?;
                say(&format!("put aside: user {user}: {reason}"));
                self.emit(Event::UserQuarantined { user, step: Step(steps), reason });
            }
        }
        Ok(())
    }
}
