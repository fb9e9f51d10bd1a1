//! A user's adapter is a function of base, that user's data and config: promise 1 of docs/architecture.md, byte for
//! byte, and the same for predictions.

use crate::story::{Story, USERS, lines, user};

#[test]
fn any_number_of_ranks() {
    let story = Story::new();
    for ranks in 1..=4 {
        let folder = format!("run{ranks}");
        story.run_on(ranks, &["--set", &format!("run.out_dir={folder}")]).run().must(0);
        story.same_results(&folder, &format!("{ranks} ranks"));
        let folders = std::fs::read_dir(story.path(&folder).join("store")).unwrap().count();
        assert_eq!(folders, ranks, "every rank has users, so every rank has an archive");
    }
}

#[test]
fn more_ranks_than_users() {
    let story = Story::new();
    story.put("personal.jsonl", &lines((0..2).map(user)));
    story.run_on(3, &[]).run().must(0);
    story.same_adapters("run", &[0, 1], "3 ranks, 2 users");
}

#[test]
fn any_number_of_users_in_flight_and_threads() {
    let story = Story::new();
    for (in_flight, threads) in [(1, 4), (4, 2), (64, 1)] {
        let folder = format!("run{in_flight}");
        let sets = [
            "--set".to_owned(),
            format!("run.out_dir={folder}"),
            "--set".to_owned(),
            format!("engine.users_in_flight={in_flight}"),
            "--set".to_owned(),
            format!("engine.threads={threads}"),
        ];
        story.run(&sets.each_ref().map(String::as_str)).must(0);
        story.same_results(&folder, &format!("{in_flight} in flight, {threads} threads"));
    }
}

#[test]
fn activations_stored_or_computed_again_and_packs_of_any_size() {
    let story = Story::new();
    for (recompute, rows) in [("always", 2048), ("never", 6000)] {
        let sets = [
            "--set".to_owned(),
            format!("run.out_dir={recompute}"),
            "--set".to_owned(),
            format!("engine.recompute={recompute}"),
            "--set".to_owned(),
            format!("engine.pack_tokens={rows}"),
        ];
        story.run(&sets.each_ref().map(String::as_str)).must(0);
        story.same_results(recompute, &format!("recompute {recompute}, packs of {rows} rows"));
    }
}

#[test]
fn the_order_of_users_in_the_file() {
    let story = Story::new();
    story.put("personal.jsonl", &lines((0..USERS).map(|n| user(n * 7 % USERS))));
    story.run(&[]).must(0);
    story.same_results("run", "shuffled");
}

#[test]
fn alone_or_with_one_other() {
    let story = Story::new();
    for users in [&[3][..], &[9, 0]] {
        story.put("personal.jsonl", &lines(users.iter().map(|&n| user(n))));
        let folder = format!("run{}", users.len());
        story.run(&["--set", &format!("run.out_dir={folder}")]).must(0);
        story.same_adapters(&folder, users, &format!("only users {users:?}"));
    }
}
