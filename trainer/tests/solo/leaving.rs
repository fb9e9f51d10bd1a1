//! Who finished has left, however the stage ends. On processors, where nothing is on its way, that is at once.

use crate::users::{examples, job, tokens};
use crate::world::{Composition, RULES, World};
use std::sync::atomic::{AtomicBool, Ordering};
use trainer::ids::UserId;
use trainer::prompt::Example;
use trainer::stage::individual::{End, Watch, run};
use trainer::stage::trainee::{Job, Outcome, Trainee};
use trainer::stage::{Error, Result};

/// Tells what happened in which order, and stops when somebody makes the last step.
#[derive(Default)]
struct Told<'a> {
    events: Vec<String>,
    stop: Option<&'a AtomicBool>,
    refuses: bool,
}

impl Watch for Told<'_> {
    fn pack(&mut self, _: usize, _: usize, in_flight: usize) {
        self.events.push(format!("pack of {in_flight}"));
    }
    fn step(&mut self, trainee: &Trainee, _: f32, _: f32) {
        if trainee.steps() == trainee.total_steps() {
            self.events.push(format!("last step of {}", trainee.user()));
            self.stop.into_iter().for_each(|stop| stop.store(true, Ordering::Relaxed));
        }
    }
    fn left(&mut self, outcome: Outcome) -> Result<()> {
        let (user, how) = match &outcome {
            Outcome::Trained { user, .. } => (user, "left"),
            Outcome::Quarantined { user, .. } => (user, "put aside"),
        };
        self.events.push(format!("{user} {how}"));
        if self.refuses { Err(Error::NoSlot) } else { Ok(()) }
    }
}

/// A user of one step.
fn short(world: &World, name: &str) -> Job {
    let mut job = Job { examples: examples(5, 1, 0), user: UserId::new(name), ..job(world, 5) };
    job.recipe.epochs = 1;
    job.recipe.early_stop.enabled = false;
    job
}

fn fly(
    world: &World,
    jobs: Vec<Job>,
    slots: u32,
    (told, stop): (&mut Told<'_>, &AtomicBool),
) -> Result<End> {
    let mut engine = world.engine(&Composition { slots, ..Composition::NARROW });
    run(&mut engine, RULES, &mut jobs.into_iter(), told, stop)
}

#[test]
fn an_error_of_a_later_pack_loses_nobody() {
    let (world, never) = (World::open("llama_tied"), AtomicBool::new(false));
    let long = Example { tokens: tokens(1, 1, 60), prompt_len: 50 };
    let long = Job { examples: vec![long], ..short(&world, "long") };
    let mut told = Told::default();
    let end = fly(&world, vec![short(&world, "short"), long], 1, (&mut told, &never));
    assert!(matches!(end, Err(Error::ChunkTooLong { .. })), "{end:?}");
    assert_eq!(told.events, ["pack of 1", "last step of short", "short left"]);
}

#[test]
fn a_stop_loses_nobody() {
    let (world, stop) = (World::open("llama_tied"), AtomicBool::new(false));
    let mut told = Told { stop: Some(&stop), ..Told::default() };
    let jobs = ["a", "b", "c"].map(|name| short(&world, name)).to_vec();
    assert_eq!(fly(&world, jobs, 1, (&mut told, &stop)).unwrap(), End::Stopped);
    assert_eq!(told.events, ["pack of 1", "last step of a", "a left"]);
}

#[test]
fn who_finished_is_committed_at_once_and_the_next_is_prepared() {
    let (world, never) = (World::open("llama_tied"), AtomicBool::new(false));
    let mut told = Told::default();
    let nothing = Job { examples: Vec::new(), ..short(&world, "nothing") };
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| short(&world, name));
    let end = fly(&world, vec![a, b, c, nothing, d], 2, (&mut told, &never));
    assert_eq!(end.unwrap(), End::Complete);
    let of = |name: &str| told.events.iter().position(|e| e == name).unwrap();
    for name in ["a", "b", "c", "d"] {
        let (last, left) = (of(&format!("last step of {name}")), of(&format!("{name} left")));
        assert_eq!(last + 1, left, "{:?}", told.events);
    }
    assert!(of("nothing put aside") < of("last step of c"), "d is prepared before c leaves");
}

#[test]
fn a_store_that_refuses_ends_the_stage() {
    let (world, never) = (World::open("llama_tied"), AtomicBool::new(false));
    let mut told = Told { refuses: true, ..Told::default() };
    let jobs = ["a", "b"].map(|name| short(&world, name)).to_vec();
    let end = fly(&world, jobs, 1, (&mut told, &never));
    assert!(matches!(end, Err(Error::NoSlot)), "{end:?}");
    assert_eq!(told.events, ["pack of 1", "last step of a", "a left"]);
}
