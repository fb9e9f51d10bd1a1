//! SIGTERM and SIGUSR1: everything finished is committed, exit code 75, the same command goes on.

use crate::crash::{ends_undisturbed, long_story, undisturbed};
use crate::process::{Ended, Running, send};
use crate::story::Story;
use std::time::{Duration, Instant};

const PROMPT: Duration = Duration::from_secs(10);

/// The end of a run that was told to stop.
fn ends_soon(run: Running) -> Ended {
    let began = Instant::now();
    let ended = run.end();
    assert!(began.elapsed() < PROMPT, "took {:?} to stop", began.elapsed());
    ended
}

fn half_way(story: &Story) -> bool {
    story.size("run/store") > undisturbed().size / 3
}

#[test]
fn one_process_stops_in_the_individual_stage() {
    undisturbed();
    for signal in ["TERM", "USR1", "INT"] {
        let story = long_story();
        let mut run = story.run_on(0, &[]).start();
        assert!(run.until(&|| half_way(&story)));
        run.signal(signal);
        ends_soon(run).must(75).says(&["the same command goes on"]);
        let done = story.adapters("run").len();
        assert!((1..12).contains(&done), "{done} users done");
        story.run(&[]).must(0);
        ends_undisturbed(&story, signal);
    }
}

#[test]
fn one_process_stops_in_the_population_stage() {
    undisturbed();
    let story = long_story();
    story.edit_config("epochs = 20", "epochs = 20000");
    let mut run = story.run_on(0, &[]).start();
    assert!(run.until(&|| story.path("run/predictions/base.jsonl").exists()));
    std::thread::sleep(Duration::from_millis(100));
    run.signal("TERM");
    ends_soon(run).must(75);
    assert!(!story.path("run/store").exists());
}

#[test]
fn two_ranks_stop() {
    undisturbed();
    // mpirun passes SIGUSR1 on to its ranks; a scheduler signals the ranks themselves.
    for to_mpirun in [true, false] {
        let story = long_story();
        let mut run = story.run_on(2, &[]).start();
        assert!(run.until(&|| half_way(&story)));
        if to_mpirun {
            run.signal("USR1");
        } else {
            run.ranks().into_iter().for_each(|rank| send("TERM", rank));
        }
        ends_soon(run).must(75);
        assert!((1..12).contains(&story.adapters("run").len()));
        story.run_on(2, &[]).run().must(0);
        ends_undisturbed(&story, "two ranks stopped");
    }
}

#[test]
fn predicting_stops_too() {
    let story = Story::new();
    // Hundreds of users who are only asked: every arm takes seconds.
    let mut users: Vec<_> = (200..600).map(crate::story::user).collect();
    for user in &mut users {
        let query = user["queries"][0].clone();
        user["queries"] = vec![query; 40].into();
    }
    story.put("personal.jsonl", &crate::story::lines(users));
    let mut run = story.run_on(0, &[]).start();
    assert!(
        run.until(&|| story.size("run/events") > 0 || story.path("run/manifest.json").exists())
    );
    std::thread::sleep(Duration::from_millis(300));
    run.signal("TERM");
    ends_soon(run).must(75).says(&["the same command goes on"]);
    assert!(!story.path("run/predictions/base.jsonl").exists(), "the arm was answered to its end");
}
