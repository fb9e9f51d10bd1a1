//! `kill -9` at any moment; the same command ends with the same bytes.

use crate::process::{Running, alive, send};
use crate::story::{Adapters, Story};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Long enough to be caught in the middle: one user after the other, many epochs.
pub(crate) fn long_story() -> Story {
    let story = Story::new();
    story.edit_config("epochs = 2", "epochs = 60");
    story.edit_config("virtual_shards = 4", "virtual_shards = 4\nepochs = 20");
    story.edit_config("threads = 1", "threads = 1\nusers_in_flight = 2");
    story
}

/// What the long story leads to when nothing happens to it.
pub(crate) struct Undisturbed {
    adapters: Adapters,
    predictions: BTreeMap<&'static str, String>,
    /// Bytes of its store.
    pub(crate) size: u64,
}

pub(crate) fn undisturbed() -> &'static Undisturbed {
    static UNDISTURBED: OnceLock<Undisturbed> = OnceLock::new();
    UNDISTURBED.get_or_init(|| {
        let story = long_story();
        story.run(&[]).must(0);
        Undisturbed {
            adapters: story.adapters("run"),
            predictions: story.predictions("run"),
            size: story.size("run/store"),
        }
    })
}

/// Stops the test unless the story ended as if nothing had happened.
#[track_caller]
pub(crate) fn ends_undisturbed(story: &Story, what: &str) {
    assert!(story.adapters("run") == undisturbed().adapters, "{what}: other adapters");
    assert!(story.predictions("run") == undisturbed().predictions, "{what}: other predictions");
    story.launcher(&["verify", "--run", "run"]).run().must(0);
}

fn stored(story: &Story, share: f64) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "some kilobytes")]
    let (now, whole) = (story.size("run/store") as f64, undisturbed().size as f64);
    now >= share * whole
}

type Moment = (&'static str, fn(&Story) -> bool);

const MOMENTS: &[Moment] = &[
    ("the folder was made", |s| s.path("run/manifest.json").exists()),
    ("the population stage began", |s| s.path("run/predictions/base.jsonl").exists()),
    ("the task adapter was committed", |s| s.size("run/population/store") > 1000),
    ("the base was merged", |s| s.path("run/population/merged.myriad").exists()),
    ("the individual stage began", |s| s.path("run/store/rank-0000").exists()),
    ("a fifth of the users was done", |s| stored(s, 0.2)),
    ("half of the users were done", |s| stored(s, 0.5)),
    ("most users were done", |s| stored(s, 0.9)),
];

/// Waits for a moment, then kills; false when the run was over before.
fn kill_at(story: &Story, run: Running, moment: &Moment) -> bool {
    let mut run = run;
    let caught = run.until(&|| moment.1(story));
    run.signal("KILL");
    let ended = run.end();
    caught && ended.code == 137
}

/// Waits for processes to go: `mpirun` may return before the system has taken its ranks away.
fn all_gone(pids: &[u32]) -> bool {
    let began = std::time::Instant::now();
    while pids.iter().any(|&pid| alive(pid)) {
        if began.elapsed().as_secs() >= 10 {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    true
}

#[test]
fn killed_again_and_again_at_every_stage() {
    undisturbed();
    let story = long_story();
    let mut caught = Vec::new();
    for moment in MOMENTS {
        if kill_at(&story, story.run_on(0, &[]).start(), moment) {
            caught.push(moment.0);
        }
    }
    assert!(caught.len() >= 6, "of all moments only these were caught: {caught:?}");
    story.run(&[]).must(0);
    ends_undisturbed(&story, "after eight kills");
}

#[test]
fn committed_users_are_not_trained_again() {
    undisturbed();
    let story = long_story();
    assert!(kill_at(&story, story.run_on(0, &[]).start(), &MOMENTS[6]), "not caught half-way");
    let done = story.adapters("run").len();
    assert!((1..12).contains(&done), "{done} of 12 users done half-way");
    let before = story.events("run").len();
    story.run(&[]).must(0);
    let again = story.events("run")[before..].iter().filter(|e| e["event"] == "user_done").count();
    assert_eq!(again, 12 - done);
    ends_undisturbed(&story, "half-way");
}

#[test]
fn one_rank_of_three_is_killed() {
    undisturbed();
    for victim in [0, 2] {
        let story = long_story();
        let mut run = story.run_on(3, &[]).start();
        assert!(run.until(&|| stored(&story, 0.2)), "the run was over before it could be hurt");
        let ranks = run.ranks();
        assert_eq!(ranks.len(), 3);
        send("KILL", ranks[victim]);
        let ended = run.end();
        assert_ne!(ended.code, 0, "{}", ended.stderr);
        assert!(all_gone(&ranks), "a rank outlived the job");
        story.run_on(3, &[]).run().must(0);
        ends_undisturbed(&story, "one rank killed");
    }
}

#[test]
fn the_whole_job_is_killed_and_goes_on_with_other_ranks() {
    undisturbed();
    let story = long_story();
    for (ranks, moment) in [(2, MOMENTS[1]), (3, MOMENTS[5]), (4, MOMENTS[6])] {
        let mut run = story.run_on(ranks, &[]).start();
        assert!(run.until(&|| moment.1(&story)), "{ranks} ranks: over before {}", moment.0);
        let pids = run.ranks();
        run.signal("KILL");
        pids.iter().for_each(|&pid| send("KILL", pid));
        assert_eq!(run.end().code, 137);
        assert!(all_gone(&pids), "a rank outlived its kill");
    }
    story.run(&[]).must(0);
    ends_undisturbed(&story, "2, 3, 4 ranks killed, 1 finished");
}

#[test]
fn cut_off_between_the_merge_and_its_note() {
    let story = Story::new();
    story.launcher(&["population", "--config", "config.toml"]).run().must(0);
    let mut manifest = story.json("run/manifest.json");
    let hash = manifest["merged_hash"].take();
    assert!(hash.is_string());
    story.put("run/manifest.json", manifest.to_string().as_bytes());
    story.run(&[]).must(0);
    assert_eq!(story.json("run/manifest.json")["merged_hash"], hash);
    story.same_results("run", "cut off after the merge");
    story.launcher(&["verify", "--run", "run"]).run().must(0);
}
