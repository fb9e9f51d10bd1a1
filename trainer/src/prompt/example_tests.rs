//! Boundary, masks, truncation.

use super::*;
use crate::prompt::testing::{Letters, item as fields, rating, shown};
use crate::prompt::{Template, TokenizeError};
use proptest::prelude::*;

const BOS: Letters = Letters { bos: true };

fn item(text: &str, score: &str) -> Item {
    fields("i", &[("text", text), ("score", score)])
}

fn task() -> Task {
    let template = Template { instruction: "Rate.".to_owned(), labels: None, ..rating() };
    Task::new(template).unwrap()
}

fn ask<'a>(item: &'a Item, shown: &'a [Shown<'a>]) -> Ask<'a> {
    Ask { shown, ..Ask::bare(item, Purpose::Population) }
}

/// Length of BOS and the prompt for a text of one letter, without history.
const SHORT: usize = 1 + "Rate.\ntext: x\nscore:".len();

#[test]
fn tokens_are_bos_prompt_answer_eos() {
    let (target, past) = (item("x", "5"), [item("y", "4")]);
    let example = task().example(&BOS, &ask(&target, &shown(&past)), 100).unwrap();
    assert_eq!((example.tokens[0], example.tokens.last()), (1, Some(&0)));
    let text = BOS.decode(&example.tokens).unwrap();
    assert_eq!(text, "Rate.\ntext: y score: 4\ntext: x\nscore: 5");
    assert_eq!(BOS.decode(example.supervised()).unwrap(), " 5");
    let bare = task().example(&Letters { bos: false }, &ask(&target, &[]), 100).unwrap();
    assert_eq!(bare.prompt_len, SHORT - 1);
}

#[test]
fn lines_go_first_then_the_right_end_then_the_example() {
    let (target, past) = (item("x", "50"), [item("y", "4"), item("y", "4")]);
    let with = |max_len| task().example(&BOS, &ask(&target, &shown(&past)), max_len);
    let line = "text: y score: 4\n".len();
    // The answer " 50" and EOS are four tokens.
    for (room, lines, supervised) in [
        (4 + 2 * line, 2, 4),
        (3 + 2 * line, 1, 4),
        (3 + line, 0, 4),
        (4, 0, 4),
        (3, 0, 3),
        (1, 0, 1),
    ] {
        let example = with(SHORT + room).unwrap();
        assert_eq!(
            (example.prompt_len - SHORT, example.supervised().len()),
            (lines * line, supervised),
            "{room}"
        );
        assert!(example.tokens.len() <= SHORT + room);
    }
    for max_len in [SHORT, 0] {
        let Err(PromptError::NoSupervisedToken { prompt_tokens, .. }) = with(max_len) else {
            panic!()
        };
        assert_eq!(prompt_tokens, SHORT);
    }
}

#[test]
fn the_least_relevant_go_first_wherever_they_stand() {
    let (target, past) = (item("x", "5"), [item("a", "1"), item("b", "2"), item("c", "3")]);
    // In the order of the prompt; `b` is the most relevant, then `c`.
    let mut shown = shown(&past);
    for (shown, relevance) in shown.iter_mut().zip([2, 0, 1]) {
        shown.relevance = relevance;
    }
    let line = "text: a score: 1\n".len();
    for (count, seen) in [(3, "abc"), (2, "bc"), (1, "b"), (0, "")] {
        let max_len = SHORT + count * line + 5;
        let query = task().query(&BOS, &ask(&target, &shown), (max_len, 4)).unwrap();
        let text = BOS.decode(&query.tokens).unwrap();
        let kept: String =
            "abc".chars().filter(|c| text.contains(&format!("text: {c} "))).collect();
        assert_eq!(kept, seen);
        assert_eq!(query.cut, if count == 3 { Cut::None } else { Cut::Context });
    }
}

#[test]
fn a_profile_is_cut_after_the_lines_and_a_payload_last() {
    let (target, past) = (item("xyz", "5"), [item("y", "4")]);
    let shown = shown(&past);
    let ask = Ask { profile: Some("likes it"), ..ask(&target, &shown) };
    let read = |room: usize| {
        let query = task().query(&BOS, &ask, (room + 4, 4)).unwrap();
        assert!(query.tokens.len() <= room);
        (BOS.decode(&query.tokens).unwrap(), query.cut)
    };
    let (line, profile) = ("text: y score: 4\n", "likes it\n");
    let whole = 1 + "Rate.\ntext: xyz\nscore:".len() + line.len() + profile.len();
    let expect = |room, text: &str, cut| assert_eq!(read(room), (text.to_owned(), cut), "{room}");
    expect(whole, "Rate.\nlikes it\ntext: y score: 4\ntext: xyz\nscore:", Cut::None);
    expect(whole - 1, "Rate.\nlikes it\ntext: xyz\nscore:", Cut::Context);
    expect(whole - line.len() - 3, "Rate.\nlikes\ntext: xyz\nscore:", Cut::Context);
    expect(SHORT + 2, "Rate.\ntext: xyz\nscore:", Cut::Context);
    expect(SHORT + 1, "Rate.\ntext: xy\nscore:", Cut::Question);
    expect(SHORT - 1, "Rate.\ntext: \nscore:", Cut::Question);
    let refused = task().query(&BOS, &ask, (SHORT + 2, 4));
    let Err(PromptError::PromptTooLong { prompt_tokens, .. }) = refused else { panic!() };
    assert_eq!(prompt_tokens, SHORT - 1);
    let refused = task().query(&BOS, &ask, (3, 4));
    assert!(matches!(refused, Err(PromptError::PromptTooLong { .. })));
    // The same in training: the context gives way, then the answer is cut.
    let example = task().example(&BOS, &ask, SHORT + 2 + 2).unwrap();
    assert_eq!(BOS.decode(&example.tokens).unwrap(), "Rate.\ntext: xyz\nscore: 5");
    assert_eq!(example.supervised().len(), 2);
}

#[test]
fn a_query_is_what_the_example_starts_with() {
    let (target, past) = (item("x", "5"), [item("y", "4")]);
    let shown = shown(&past);
    let example = task().example(&BOS, &ask(&target, &shown), 100).unwrap();
    let query = task().query(&BOS, &ask(&target, &shown), (100, 4)).unwrap();
    assert_eq!(query.tokens, example.tokens[..example.prompt_len]);
    assert_eq!((query.gold.as_deref(), query.id.as_str()), (Some("5"), "i"));
    let mut open = target.clone();
    open.fields.remove("score");
    assert_eq!(task().query(&BOS, &ask(&open, &[]), (100, 4)).unwrap().gold, None);
    assert_eq!(
        task().query(&BOS, &ask(&open, &shown), (SHORT + 4, 4)).unwrap().tokens.len(),
        SHORT
    );
}

#[test]
fn the_tokenizers_error_is_passed_on() {
    let bad = item("\u{fffd}", "5");
    let refused: Result<_, PromptError> = task().example(&BOS, &ask(&bad, &[]), 100);
    let Err(PromptError::Tokenizer(cause)) = refused else { panic!() };
    let cause: TokenizeError = cause;
    assert_eq!(cause.to_string(), "unknown character");
}

proptest! {
    /// Whatever the texts and limits: the mask covers exactly the answer and EOS, up to the cut.
    #[test]
    fn masks_cover_answer_and_eos(
        text in "[a-z {}\\n]{0,20}", answer in "[a-z]{1,6}( [a-z]{1,3})?",
        past in proptest::collection::vec("[a-z]{0,9}", 0..4), max_len in 0usize..120, bos: bool,
    ) {
        let tokenizer = Letters { bos };
        let past: Vec<Item> = past.iter().map(|t| item(t, "1")).collect();
        let shown = shown(&past);
        let mut full = tokenizer.encode(&format!(" {answer}")).unwrap();
        full.push(tokenizer.eos());
        match task().example(&tokenizer, &ask(&item(&text, &answer), &shown), max_len) {
            Ok(example) => {
                prop_assert!(example.tokens.len() <= max_len);
                prop_assert!(!example.supervised().is_empty());
                prop_assert!(full.starts_with(example.supervised()));
                let whole = example.supervised().len() == full.len();
                prop_assert!(whole || example.tokens.len() == max_len);
                let prompt = tokenizer.decode(&example.tokens[..example.prompt_len]).unwrap();
                let ends = format!("text: {text}\nscore:");
                prop_assert!(prompt.starts_with("Rate.\n") && prompt.ends_with(&ends));
                // A cut answer means that no line was kept.
                prop_assert!(whole || prompt.len() == "Rate.\n".len() + ends.len());
            }
            Err(PromptError::NoSupervisedToken { prompt_tokens, .. }) => prop_assert!(prompt_tokens >= max_len),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

#[test]
fn a_long_question_is_cut_where_that_is_asked_for() {
    let long = item(&"word ".repeat(50), "5");
    let ask = ask(&long, &[]);
    let refused = task().example(&BOS, &ask, 100);
    assert!(matches!(refused, Err(PromptError::NoSupervisedToken { .. })), "{refused:?}");
    let cut = task().example(&BOS, &Ask { cut_question: true, ..ask }, 100).unwrap();
    assert!((90..=100).contains(&cut.tokens.len()), "{}", cut.tokens.len());
    let text = BOS.decode(&cut.tokens[..cut.prompt_len]).unwrap();
    assert!(text.starts_with("Rate.\ntext: word word") && text.ends_with("\nscore:"), "{text}");
    // The answer is whole: it and EOS are what is supervised.
    assert_eq!(BOS.decode(cut.supervised()).unwrap(), " 5");
    assert_eq!(cut.supervised().last(), Some(&0));
    // A short one is the same either way.
    let short = item("x", "5");
    let with = |cut_question| {
        let ask = Ask { cut_question, ..Ask::bare(&short, Purpose::Population) };
        task().example(&BOS, &ask, 100).unwrap()
    };
    assert_eq!(with(true), with(false));
}
