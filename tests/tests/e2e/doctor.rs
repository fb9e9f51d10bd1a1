//! `launcher doctor`: is this one world.

use crate::story::Story;

#[test]
fn alone() {
    let story = Story::new();
    let said = story.launcher(&["doctor"]).run().must(0).stdout;
    assert!(said.contains("one world of 1 ranks"), "{said}");
    assert!(said.contains("processors"), "{said}");
}

#[test]
fn three_ranks_are_one_world() {
    let story = Story::new();
    let said = crate::process::Start::new(story.root(), 3, &["doctor"]).run().must(0).stdout;
    assert!(said.contains("one world of 3 ranks; sum over ranks 6, expected 6"), "{said}");
    for rank in 0..3 {
        assert_eq!(said.matches(&format!("rank {rank} of 3 on ")).count(), 1, "{said}");
    }
    assert_eq!(said.matches("one world").count(), 1, "{said}");
}
