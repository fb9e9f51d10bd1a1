//! Items of a profile that lack their id or a field of the task.

use super::hostile_tests::{Case, ids, item, user};
use crate::data::{OnBad, Selection, Source, Tally, load};

/// An item that lacks what the task needs is left out alone; strictly it ends the load, by name.
#[test]
fn an_unusable_item_leaves_its_record() {
    let case = Case::new();
    let good = item("1");
    let broken = [
        (r#"{"id":2,"text":"t"}"#, "has no `score`"),
        (r#"{"text":"t","score":1}"#, "has no `id`"),
        (
            r#"{"id":2,"text":"t","score":null}"#,
            ".score must be a string, number or boolean, found null",
        ),
        (
            r#"{"id":2,"text":["t"],"score":1}"#,
            ".text must be a string, number or boolean, found an array",
        ),
        (
            r#"{"id":2,"text":{"score":1}}"#,
            ".text must be a string, number or boolean, found an object",
        ),
        ("{}", "has no `id`"),
    ];
    for (bad, what) in broken {
        let lamp = format!(r#"[{{"id":"u","input":"review: r","profile":[{good},{bad}]}}]"#);
        let oppu = format!(
            r#"[{{"user_id":"u","profile":[{good},{bad}],"query":[{{"id":"q","input":"review: r"}}]}}]"#
        );
        for source in [case.lamp(&lamp, None), case.oppu(&oppu, None, None)] {
            let data = load(&source, OnBad::Quarantine).unwrap();
            let index = data.index();
            assert_eq!(index.quarantined, [], "{bad}");
            assert_eq!(index.tally, Tally { unusable_items: 1, ..Tally::default() }, "{bad}");
            let kept = data.user(0).unwrap();
            assert_eq!(kept.history.iter().map(|i| i.id.as_str()).collect::<Vec<_>>(), ["1"]);
            let expected = "json: record 1 at byte 1: user u: profile[1]".to_owned();
            let [first] = &index.unusable[..] else { panic!("{:?}", index.unusable) };
            let shown = first.to_string();
            assert!(shown.contains(&expected) && shown.ends_with(what), "{shown}");
            assert_eq!(load(&source, OnBad::Stop).unwrap_err().to_string(), shown);
        }
    }
}

#[test]
fn unusable_items_are_counted_for_users_who_stay() {
    let mut case = Case::new();
    let bad = r#"{"id":"9","text":"t"}"#;
    let ask = |id: &str, user: &str, items: &[&str]| {
        let items = items.join(",");
        format!(r#"{{"id":"{id}","user_id":"{user}","input":"review: r{id}","profile":[{items}]}}"#)
    };
    let (one, two) = (item("1"), item("2"));
    let records = [
        ask("1", "u", &[bad]),
        ask("2", "v", &[bad, bad]),
        ask("3", "w", &[&one, &two, bad]),
        ask("4", "u", &[&one, &two, bad]),
        ask("5", "x", &[&one, bad]),
    ];
    case.selection.min_history = Some(2);
    let data = load(&case.lamp(&format!("[{}]", records.join(",")), None), OnBad::Quarantine);
    let data = data.unwrap();
    // u's first question has no usable item, its second has; v has nothing; x has too little.
    assert_eq!(ids(&data), ["u", "w"]);
    let shown: Vec<String> = data.index().quarantined.iter().map(ToString::to_string).collect();
    assert!(
        shown.len() == 1 && shown[0].ends_with("user v: profile[0] has no `score`"),
        "{shown:?}"
    );
    assert_eq!(data.index().tally.unusable_items, 3);
    let listed: Vec<String> = data.index().unusable.iter().map(ToString::to_string).collect();
    assert!(listed.len() == 2 && listed[0].contains("record 1 at byte 1: user u: profile[0]"));
    assert!(listed[1].contains("record 3 at byte ") && listed[1].contains("user w: profile[2]"));
    // A population user learns from its queries: it stays without any history.
    case.selection = Selection::default();
    let mut source = case.oppu(&format!("[{}]", user("a")), None, None);
    let bare = user("b").replace(&item("1"), bad);
    let others = case.file("others.json", format!("[{bare}]"));
    let Source::Oppu { population, .. } = &mut source else { panic!() };
    *population = Some(others);
    let data = load(&source, OnBad::Quarantine).unwrap();
    assert_eq!((data.index().population[0].num_history, data.index().tally.unusable_items), (0, 1));
    assert!(data.index().unusable[0].to_string().contains("others.json: record 1"));
    assert_eq!(data.population_user(0).unwrap().history, []);
}
