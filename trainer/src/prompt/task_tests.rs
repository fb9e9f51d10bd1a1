//! Texts of one item: questions, lines, documents, answers, shares of words.

use super::*;
use crate::prompt::testing::{item as with_id, rating as template};
use crate::prompt::{Layout, Template};
use proptest::prelude::*;

fn item(fields: &[(&str, &str)]) -> Item {
    with_id("i", fields)
}

fn rating() -> Task {
    Task::new(template()).unwrap()
}

fn builtin(name: &str) -> Task {
    Task::new(Template::builtin(name).unwrap()).unwrap()
}

#[test]
fn rating_texts() {
    let task = rating();
    let film = item(&[("text", "Toy {Story}"), ("score", " 5 ")]);
    let question = task.question(&film, Purpose::Predict).unwrap();
    assert_eq!(question, "text: Toy {Story}\nscore:");
    let document = task.document(&film, Ablation::Both).unwrap();
    assert_eq!(document, "text: Toy {Story} score:  5 \n");
    assert_eq!(task.retrieval_query(&film, Purpose::History).unwrap(), question);
    assert_eq!(task.answer(&film).unwrap(), "5");
    let say = "Give the score from 1 (worst) to 5 (best) that this person gives. \
               Answer with one digit.";
    let whole = task.assemble(Purpose::Predict, None, &["one", "two"], "q:");
    assert_eq!(whole, format!("{say}\none\ntwo\nq:"));
    let whole = task.assemble(Purpose::Predict, Some("who"), &["one"], "q:");
    assert_eq!(whole, format!("{say}\nwho\none\nq:"));
    let bare = Task::new(Template { instruction: String::new(), ..template() }).unwrap();
    assert_eq!(bare.assemble(Purpose::Predict, Some(" "), &[], "q:"), "q:");
    let oppu = Template { layout: Layout::HistoryFirst, instruction: String::new(), ..template() };
    let oppu = Task::new(oppu).unwrap();
    let whole = |profile, lines: &[&str]| oppu.assemble(Purpose::Predict, profile, lines, "q:");
    assert_eq!(whole(Some("who"), &["one", "two"]), "who\none\ntwo\n\nq:");
    assert_eq!(whole(Some("who"), &[]), "who\nq:");
    assert_eq!(whole(None, &["one"]), "one\n\nq:");
    assert_eq!(whole(None, &[]), "q:");
}

#[test]
fn words_are_cut_by_purpose() {
    let long = |n: usize| vec!["w"; n].join(" ");
    let asked = item(&[("text", &long(900)), ("score", "5")]);
    let words = |text: String| text.split_whitespace().filter(|w| *w == "w").count();
    let of = |task: &Task, p| words(task.question(&asked, p).unwrap());
    assert_eq!(of(&rating(), Purpose::Predict), 768);
    let oppu = builtin("oppu/rating");
    assert_eq!(
        [Purpose::Predict, Purpose::Population, Purpose::History].map(|p| of(&oppu, p)),
        [900, 768, 768]
    );
    assert_eq!(words(oppu.history_line(&asked).unwrap()), 368);
    assert_eq!(words(oppu.document(&asked, Ablation::Both).unwrap()), 368);
    assert_eq!(words(oppu.retrieval_query(&asked, Purpose::History).unwrap()), 768);
    let request = oppu.profile_request(&[&asked, &asked]).unwrap().unwrap();
    assert_eq!(words(request), 400);
}

#[test]
fn gold_goes_before_the_answer_field_and_labels_hold_in_training() {
    let task = rating();
    let query = item(&[("text", "a"), ("gold", "4")]);
    assert_eq!(task.training_answer(&query, Purpose::Population).unwrap(), "4");
    // As an earlier item, what a query has for output is its gold.
    assert_eq!(task.history_line(&query).unwrap(), "text: a score: 4");
    let other = item(&[("text", "a"), ("score", "4.5")]);
    assert_eq!(task.answer(&other).unwrap(), "4.5");
    let refused = task.training_answer(&other, Purpose::History);
    assert!(matches!(refused, Err(PromptError::NotALabel { .. })));
    let empty = item(&[("text", "a"), ("score", " ")]);
    assert!(matches!(task.answer(&empty), Err(PromptError::EmptyAnswer { .. })));
    let Err(PromptError::MissingField { field, item, .. }) = task.answer(&item(&[("text", "a")]))
    else {
        panic!()
    };
    assert_eq!((field.as_str(), item.as_str()), ("score", "i"));
}

#[test]
fn a_history_example_may_have_a_form_of_its_own() {
    let task = builtin("oppu/citation");
    let paper = item(&[("title", "On {x}"), ("citation", " On y "), ("gold", "[1]")]);
    assert_eq!(task.question(&paper, Purpose::History).unwrap(), "paper title: On {x} reference:");
    assert_eq!(task.training_answer(&paper, Purpose::History).unwrap(), "On y");
    assert_eq!(task.training_answer(&paper, Purpose::Population).unwrap(), "[1]");
    let has =
        [Purpose::History, Purpose::Population, Purpose::Predict].map(|p| task.has_context(p));
    assert_eq!(has, [false, true, true]);
    // Another instruction than the task's would be false.
    let first = builtin("citation");
    assert_eq!(first.assemble(Purpose::History, None, &[], "q:"), "q:");
    assert!(first.assemble(Purpose::Population, None, &[], "q:").ends_with("\nq:"));
}

#[test]
fn merged_questions_are_those_of_the_data() {
    let task = builtin("lamp/rating");
    let asked = item(&[("text", "good"), ("score", "5"), ("input", "Rate {it}. review: good ")]);
    let question = |p| task.question(&asked, p).unwrap();
    assert_eq!(question(Purpose::Predict), "Rate {it}. review: good\nAnswer:");
    assert_eq!(question(Purpose::Population), question(Purpose::Predict));
    let own = "Which score from 1 (worst) to 5 (best) does this review give? \
               Answer with the score alone. review: good\nAnswer:";
    assert_eq!(question(Purpose::History), own);
    let bare = item(&[("text", "good")]);
    assert_eq!(task.question(&bare, Purpose::Predict).unwrap(), own);
}

#[test]
fn the_item_asked_for_is_not_shown_by_the_study() {
    let (old, same) = (item(&[("text", "a")]), item(&[("text", "a"), ("input", "x: a")]));
    let task = builtin("study/rating");
    assert_eq!(task.twin(&same), Some(("text", "a")));
    assert_eq!(task.twin(&old), Some(("text", "a")));
    assert_eq!(task.twin(&item(&[("score", "1")])), None);
    assert_eq!(builtin("lamp/rating").twin(&same), None);
}

#[test]
fn shares_of_words() {
    let task = builtin("lamp/tweet_paraphrase");
    let split = |text: &str, draw| {
        let item = item(&[("text", text)]);
        let item = task.split(&item, draw).unwrap();
        [item.field("head").unwrap().to_owned(), item.field("rest").unwrap().to_owned()]
    };
    let twenty = (0..20).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
    assert_eq!(split(&twenty, 0)[0], "0 1");
    assert_eq!(split(&twenty, 1 << 31)[0], "0 1 2");
    assert_eq!(split(&twenty, u32::MAX)[0], "0 1 2 3 4".strip_suffix(" 4").unwrap());
    assert_eq!(split(" a  b ", 0), ["a", "b"]);
    assert_eq!(split("alone", u32::MAX), ["", "alone"]);
    assert_eq!(split(" ", 0), ["", ""]);
    let missing = task.split(&item(&[("other", "x")]), 0).map(drop);
    assert!(matches!(missing, Err(PromptError::MissingField { .. })));
    let untouched = item(&[("text", "a b")]);
    assert!(matches!(rating().split(&untouched, 0), Ok(Cow::Borrowed(_))));
}

proptest! {
    /// Head and rest are the words, in their order, and both have some where there are two.
    #[test]
    fn shares_lose_no_word(text in "[a-c é\n{}]{0,40}", draw: u32) {
        let task = builtin("lamp/tweet_paraphrase");
        let item = item(&[("text", &text)]);
        let item = task.split(&item, draw).unwrap();
        let (head, rest) = (item.field("head").unwrap(), item.field("rest").unwrap());
        let both: Vec<&str> = head.split_whitespace().chain(rest.split_whitespace()).collect();
        prop_assert_eq!(&both, &text.split_whitespace().collect::<Vec<_>>());
        prop_assert!(both.len() < 2 || (!head.is_empty() && !rest.is_empty()));
        let quarter = (both.len() / 4).max(1);
        prop_assert!(head.split_whitespace().count() <= quarter);
    }
}
