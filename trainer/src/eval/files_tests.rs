//! Joining anybody's files: what matches, and every way not to.

use super::*;
use crate::eval::{Metric, Options, compare, questions};
use proptest::prelude::*;

fn file(task: Option<&str>, outputs: &[(&str, &str)]) -> LampFile {
    let outputs = outputs.iter().map(|(id, text)| ((*id).to_owned(), (*text).to_owned()));
    LampFile { task: task.map(str::to_owned), outputs: outputs.collect() }
}

fn joined(golds: &LampFile, answers: LampFile) -> Result<Vec<Arm>, EvalError> {
    arms(LampTask::Rating, golds, &[("mine".to_owned(), answers)], None)
}

#[test]
fn order_and_form_do_not_count() {
    let golds = file(Some("LaMP_3"), &[("1", "4"), ("2", "2")]);
    let done = joined(&golds, file(None, &[("2", "1"), ("1", "4")])).unwrap();
    let seen: Vec<_> =
        done[0].predictions.iter().map(|p| (p.query.as_str(), p.text.as_str())).collect();
    assert_eq!(seen, [("1", "4"), ("2", "1")]);
    let options = Options { metrics: vec![Metric::Mae], ..Options::default() };
    let row = &compare(&done, &options).unwrap().rows[0];
    assert_eq!((row.num_queries, row.num_users), (2, 2));
    assert!((row.over_queries - 0.5).abs() < 1e-12);
}

#[test]
fn questions_give_the_users() {
    let golds = file(None, &[("1", "4"), ("2", "2"), ("3", "3")]);
    let text = r#"[{"id":1,"user_id":"u","profile":[{}]},{"id":2,"user_id":"u","profile":[]}]"#;
    let mut owners = questions::read(&mut text.as_bytes()).unwrap();
    let answers = [("a".to_owned(), golds.clone())];
    let refused = arms(LampTask::Rating, &golds, &answers, Some(&owners)).unwrap_err().to_string();
    assert!(refused.contains("id \"3\"") && refused.contains("1 of 3"), "{refused}");
    owners.users.insert("3".to_owned(), UserId::new("v"));
    let done = arms(LampTask::Rating, &golds, &answers, Some(&owners)).unwrap();
    let seen: Vec<_> = done[0].predictions.iter().map(|p| p.user.as_str()).collect();
    assert_eq!(seen, ["u", "u", "v"]);
}

#[test]
fn tasks_must_match() {
    let golds = file(Some("LaMP_3"), &[("1", "4")]);
    for own in ["LaMP_3", "lamp-3", "product_rating"] {
        assert!(joined(&golds, file(Some(own), &[("1", "4")])).is_ok());
    }
    let refused =
        joined(&golds, file(Some("LaMP_4\u{1b}"), &[("1", "4")])).unwrap_err().to_string();
    assert_eq!(refused, "predictions `mine` are of task `LaMP_4\\u{1b}`, not of LaMP_3");
    let refused = joined(&file(Some("x"), &[]), file(None, &[])).unwrap_err().to_string();
    assert!(refused.starts_with("golds are of task `x`"), "{refused}");
}

#[test]
fn ids_that_differ_are_listed() {
    let many: Vec<String> = (0..45).map(|n| format!("gold {n}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|id| (id.as_str(), "3")).collect();
    let golds = file(None, &many);
    let long = "é".repeat(5000);
    let answers = file(None, &[("gold 0", "3"), (&long, "1"), ("\u{1b}[2J", "1")]);
    let error = joined(&golds, answers).unwrap_err();
    let EvalError::Ids(differ) = &error else { panic!("{error}") };
    assert_eq!((differ.missing.0.len(), differ.missing.1), (20, 44));
    assert_eq!(
        (differ.missing.0[0].as_str(), differ.missing.0[19].as_str()),
        ("gold 1", "gold 20")
    );
    assert_eq!((differ.extra.0.len(), differ.extra.1), (2, 2));
    let shown = error.to_string();
    assert!(shown.contains("44 golds without a prediction: \"gold 1\", \"gold 2\""), "{shown}");
    assert!(shown.contains("\"gold 20\", …\n  2 predictions without a gold: "), "{shown}");
    assert!(shown.len() < 700 && !shown.contains('\u{1b}'), "{shown}");
    // One side alone.
    let more = joined(&file(None, &[("1", "4")]), file(None, &[("1", "4"), ("2", "4")]));
    let shown = more.unwrap_err().to_string();
    assert!(shown.ends_with("differ\n  1 predictions without a gold: \"2\""), "{shown}");
    let twice = file(None, &[("1", "4"), ("1", "5")]);
    assert!(matches!(joined(&twice, twice.clone()), Err(EvalError::LampDuplicate { .. })));
}

proptest! {
    /// A join passes exactly where the sets of ids are equal, and then holds every gold once.
    #[test]
    fn equal_sets_and_no_others(
        golds in proptest::collection::btree_set("[a-d]{1,2}", 1..8),
        answers in proptest::collection::btree_set("[a-d]{1,2}", 1..8),
    ) {
        let make = |ids: &BTreeSet<String>| LampFile {
            task: None, outputs: ids.iter().map(|id| (id.clone(), "3".to_owned())).collect(),
        };
        match joined(&make(&golds), make(&answers)) {
            Ok(done) => {
                prop_assert_eq!(&golds, &answers);
                prop_assert_eq!(done[0].predictions.len(), golds.len());
            }
            Err(EvalError::Ids(differ)) => {
                prop_assert_eq!(differ.missing.1, golds.difference(&answers).count());
                prop_assert_eq!(differ.extra.1, answers.difference(&golds).count());
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
