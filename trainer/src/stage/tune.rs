//! Personal unlearning and tuning of an event model: many people in one packed batch, each first led away from what the
//! population knows of the intents that are the person's own, then fine-tuned.
//!
//! Two passes of [`super::individual`] a person, the second from where the first ended, each with an optimiser and a
//! schedule of its own; which people are in which pass at the same time changes no byte. Source: PITuning, figure (c);
//! what is reconstructed is in `docs/adr/0005-pituning.md`.

use super::Result;
use super::engine::{Engine, Model};
use super::individual::{End, PackRules, Watch, run as train};
use super::trainee::{Job, Outcome, Trainee};
use crate::config::Recipe;
use crate::ids::UserId;
use crate::lora::AdapterSpec;
use crate::pack::ClassLoss;
use crate::prompt::Example;
use kernels::Ops;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicBool;

/// A pass over a person's windows.
#[derive(Debug, Clone, Default)]
pub struct Lesson {
    /// Windows: the numbers of their events in the table, then the intent.
    pub windows: Vec<Example>,
    /// Their losses where these are not plain cross-entropy, one for each; otherwise empty.
    pub losses: Vec<ClassLoss>,
}

/// A person to tune.
#[derive(Debug, Clone)]
pub struct Person {
    /// Who.
    pub user: UserId,
    /// What is unlearned first; no windows: nothing.
    pub unlearn: Lesson,
    /// What is learned then; no windows: nothing.
    pub learn: Lesson,
    /// Why the person cannot be tuned, when the data say so already.
    pub unusable: Option<String>,
}

/// How people are tuned.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// The adapter's shape.
    pub lora: AdapterSpec,
    /// How the first pass is trained.
    pub unlearn: Recipe,
    /// How the second is.
    pub learn: Recipe,
    /// Histories are means of hidden states.
    pub of_mean: bool,
    /// The run's seed.
    pub seed: u64,
}

/// Added to the seed for the second pass, so that the two do not shuffle alike.
const SECOND: u64 = 0x7075_7069_6c00_0002;

/// What the second pass of a person waits for.
struct Waiting {
    lesson: Lesson,
    steps: u32,
}

/// People in the middle: those that wait for the end of their first pass, and those whose second may begin.
#[derive(Default)]
struct Middle {
    waiting: BTreeMap<UserId, Waiting>,
    ready: VecDeque<Job>,
}

impl Tuning {
    /// Key of what is drawn in a person's first pass or in the second: the order of the windows, dropout, and an adapter
    /// that begins with that pass.
    pub fn key(&self, user: &UserId, second: bool) -> [u32; 2] {
        user.key().random_key(self.pass_seed(second))
    }

    fn pass_seed(&self, second: bool) -> u64 {
        if second { self.seed.wrapping_add(SECOND) } else { self.seed }
    }

    /// The job of a pass.
    fn job(&self, user: UserId, lesson: Lesson, (recipe, second): (&Recipe, bool)) -> Job {
        Job {
            user,
            examples: lesson.windows,
            losses: lesson.losses,
            of_mean: self.of_mean,
            lora: self.lora.clone(),
            unusable: None,
            recipe: recipe.clone(),
            seed: self.pass_seed(second),
            start: None,
        }
    }

    /// The first job of a person; what follows is put aside in `middle`.
    fn first(&self, person: Person, middle: &RefCell<Middle>) -> Job {
        let Person { user, unlearn, learn, unusable } = person;
        if unlearn.windows.is_empty() {
            return Job { unusable, ..self.job(user, learn, (&self.learn, true)) };
        }
        if !learn.windows.is_empty() {
            let waiting = Waiting { lesson: learn, steps: 0 };
            middle.borrow_mut().waiting.insert(user.clone(), waiting);
        }
        Job { unusable, ..self.job(user, unlearn, (&self.unlearn, false)) }
    }
}

/// Jobs of people whose second pass may begin, then those of new people.
struct Jobs<'a> {
    tuning: &'a Tuning,
    people: &'a mut dyn Iterator<Item = Person>,
    middle: &'a RefCell<Middle>,
}

impl Iterator for Jobs<'_> {
    type Item = Job;

    fn next(&mut self) -> Option<Job> {
        if let Some(job) = self.middle.borrow_mut().ready.pop_front() {
            return Some(job);
        }
        self.people.next().map(|person| self.tuning.first(person, self.middle))
    }
}

/// Lets the caller see people leave after their last pass only.
struct Passes<'a> {
    tuning: &'a Tuning,
    watch: &'a mut dyn Watch,
    middle: &'a RefCell<Middle>,
}

impl Watch for Passes<'_> {
    fn pack(&mut self, rows: usize, unshared_rows: usize, in_flight: usize) {
        self.watch.pack(rows, unshared_rows, in_flight);
    }

    fn step(&mut self, trainee: &Trainee, loss: f32, grad_norm: f32) {
        self.watch.step(trainee, loss, grad_norm);
    }

    fn left(&mut self, outcome: Outcome) -> Result<()> {
        let mut middle = self.middle.borrow_mut();
        match outcome {
            Outcome::Trained { user, lora, params, steps, final_loss, held_out_loss } => {
                let Some(waiting) = middle.waiting.remove(&user) else {
                    drop(middle);
                    return self.watch.left(Outcome::Trained {
                        user,
                        lora,
                        params,
                        steps,
                        final_loss,
                        held_out_loss,
                    });
                };
                if waiting.lesson.windows.is_empty() {
                    // The end of a second pass: its steps follow the first's.
                    let steps = waiting.steps + steps;
                    drop(middle);
                    return self.watch.left(Outcome::Trained {
                        user,
                        lora,
                        params,
                        steps,
                        final_loss,
                        held_out_loss,
                    });
                }
                let job = self.tuning.job(user.clone(), waiting.lesson, (&self.tuning.learn, true));
                middle.ready.push_back(Job { start: Some(params), ..job });
                middle.waiting.insert(user, Waiting { lesson: Lesson::default(), steps });
                Ok(())
            }
            aside @ Outcome::Quarantined { .. } => {
                if let Outcome::Quarantined { user, .. } = &aside {
                    middle.waiting.remove(user);
                }
                drop(middle);
                self.watch.left(aside)
            }
        }
    }
}

/// Tunes everybody; people join as slots come free, in their order.
///
/// # Errors
/// What the engine or [`Watch::left`] says; a person's own trouble is an [`Outcome`], never an error.
pub fn run<B: Ops, M: Model<B>>(
    engine: &mut Engine<'_, B, M>,
    rules: PackRules,
    (tuning, people): (&Tuning, &mut dyn Iterator<Item = Person>),
    watch: &mut dyn Watch,
    stop: &AtomicBool,
) -> Result<End> {
    let middle = RefCell::new(Middle::default());
    let mut jobs = Jobs { tuning, people, middle: &middle };
    train(engine, rules, &mut jobs, &mut Passes { tuning, watch, middle: &middle }, stop)
}
