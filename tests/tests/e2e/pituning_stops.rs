//! PITuning stopped in the middle, by a signal or for good: the same command ends with the same bytes.

use crate::pituning::{PEOPLE, Results, TUNED, export, story};
use crate::process::{Running, send};
use crate::story::Story;
use std::sync::OnceLock;

/// Long enough to be caught in every stage: many epochs, few people at a time, a checkpoint after every step.
fn long_story() -> Story {
    let story = story();
    story.edit_config("epochs = 3", "epochs = 30\ncheckpoint_steps = 1");
    story.edit_config("epochs = 4", "epochs = 40");
    story.edit_config("epochs = 2", "epochs = 12");
    story.edit_config("threads = 1", "threads = 1\nusers_in_flight = 2");
    story
}

struct Undisturbed {
    results: Results,
    /// Bytes of an arm's store.
    store: u64,
}

fn undisturbed() -> &'static Undisturbed {
    static UNDISTURBED: OnceLock<Undisturbed> = OnceLock::new();
    UNDISTURBED.get_or_init(|| {
        let story = long_story();
        story.run(&[]).must(0);
        let store = story.size("run/arms/finetune/store");
        Undisturbed { results: Results::of(&story, "run", &TUNED), store }
    })
}

/// Stops the test unless the story ended as if nothing had happened.
#[track_caller]
fn ends_undisturbed(story: &Story, what: &str) {
    undisturbed().results.same(&Results::of(story, "run", &TUNED), what);
    story.launcher(&["verify", "--run", "run"]).run().must(0);
    for stage in ["population", "student"] {
        assert!(!story.path("run").join(stage).join("checkpoint.safetensors").exists(), "{what}");
    }
}

/// Whether a share of an arm's people is in its store.
fn stored(story: &Story, store: &str, share: f64) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "some kilobytes")]
    let (now, whole) = (story.size(store) as f64, undisturbed().store as f64);
    now >= share * whole
}

type Moment = (&'static str, fn(&Story) -> bool);

const POPULATION: Moment =
    ("in the population stage", |s| s.path("run/population/checkpoint.safetensors").exists());
const DISTILLING: Moment =
    ("in distilling", |s| s.path("run/student/checkpoint.safetensors").exists());
const FIRST_ARM: Moment = ("in the first arm", |s| stored(s, "run/arms/finetune/store", 0.3));
const LATER_ARM: Moment = ("in a later arm", |s| stored(s, "run/arms/oversample/store", 0.5));
const LAST_ARM: Moment = ("in the last arm", |s| stored(s, "run/store", 0.6));

/// Stops the test unless the moment comes.
#[track_caller]
fn wait(story: &Story, run: &mut Running, moment: Moment) {
    assert!(
        run.until(&|| moment.1(story)),
        "the run was over before it could be hurt {}",
        moment.0
    );
}

#[test]
fn killed_in_every_stage() {
    undisturbed();
    let story = long_story();
    for moment in [POPULATION, DISTILLING, FIRST_ARM, LATER_ARM, LAST_ARM] {
        let mut run = story.run_on(0, &[]).start();
        wait(&story, &mut run, moment);
        run.signal("KILL");
        assert_eq!(run.end().code, 137, "over before the kill {}", moment.0);
    }
    story.run(&[]).must(0);
    ends_undisturbed(&story, "after five kills");
}

#[test]
fn two_ranks_killed_go_on_as_one_and_as_three() {
    undisturbed();
    let story = long_story();
    for (ranks, moment) in [(2, POPULATION), (3, DISTILLING), (2, FIRST_ARM)] {
        let mut run = story.run_on(ranks, &[]).start();
        wait(&story, &mut run, moment);
        let pids = run.ranks();
        assert_eq!(pids.len(), ranks);
        run.signal("KILL");
        pids.iter().for_each(|&pid| send("KILL", pid));
        assert_eq!(run.end().code, 137);
        let began = std::time::Instant::now();
        while pids.iter().any(|&pid| crate::process::alive(pid)) {
            assert!(began.elapsed().as_secs() < 10, "a rank outlived its kill");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    story.run(&[]).must(0);
    ends_undisturbed(&story, "2, 3, 2 ranks killed, 1 finished");
}

#[test]
fn signals_stop_every_stage_with_everything_kept() {
    undisturbed();
    let story = long_story();
    // Without checkpoints on the way: a stop makes its own.
    let key = ["--set", "population.checkpoint_steps=0"];
    let begun: [(Moment, &str); 2] = [
        (("in the population stage", |s| s.path("run/population").exists()), "population"),
        (("in distilling", |s| s.path("run/student").exists()), "student"),
    ];
    for (moment, stage) in begun {
        let mut run = story.run_on(0, &key).start();
        wait(&story, &mut run, moment);
        run.signal("TERM");
        run.end().must(75).says(&["the same command goes on"]);
        let left = |name: &str| story.path("run").join(stage).join(name).exists();
        assert!(left("checkpoint.safetensors") && !left("model.safetensors"), "{stage}");
    }
    let mut run = story.run_on(0, &key).start();
    wait(&story, &mut run, FIRST_ARM);
    run.signal("TERM");
    run.end().must(75).says(&["the same command goes on"]);
    let done = export(&story, "run", "finetune").len();
    assert!((1..PEOPLE).contains(&done), "{done} people done");
    // The rest, and nobody twice.
    let before = story.events("run").len();
    story.run(&key).must(0);
    let again = story.events("run")[before..].iter().filter(|e| e["event"] == "user_done").count();
    assert_eq!(again, TUNED.len() * PEOPLE - done);
    ends_undisturbed(&story, "stopped in every stage");
}

#[test]
fn two_ranks_stop() {
    undisturbed();
    let story = long_story();
    // mpirun passes SIGUSR1 on to its ranks; a scheduler signals the ranks themselves.
    for (moment, to_mpirun) in [(POPULATION, true), (LATER_ARM, false)] {
        let mut run = story.run_on(2, &[]).start();
        wait(&story, &mut run, moment);
        if to_mpirun {
            run.signal("USR1");
        } else {
            run.ranks().into_iter().for_each(|rank| send("TERM", rank));
        }
        run.end().must(75);
    }
    story.run_on(2, &[]).run().must(0);
    ends_undisturbed(&story, "two ranks stopped twice");
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let story = long_story();
    let mut run = story.run_on(0, &[]).start();
    wait(&story, &mut run, POPULATION);
    run.signal("TERM");
    run.end().must(75);
    let name = "run/population/checkpoint.safetensors";
    let good = story.read(name);
    story.put(name, &good[..good.len() - 1]);
    story.run(&[]).must(3).says(&["checkpoint.safetensors", "hint:", "delete the checkpoint"]);
}
