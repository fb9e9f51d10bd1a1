//! Boundary, masks, truncation.

use super::*;
use crate::prompt::testing::Letters;
use crate::prompt::{Template, TokenizeError};
use proptest::prelude::*;

const BOS: Letters = Letters { bos: true };

fn item(text: &str, score: &str) -> Item {
    let fields = [("text", text), ("score", score)];
    let fields = fields.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    Item { id: "i".to_owned(), fields }
}

fn task() -> Task {
    let template = Template { instruction: "Rate.".to_owned(), labels: None, ..Template::rating() };
    Task::new(template).unwrap()
}

/// Length of BOS and the prompt for a text of one letter, without history.
const SHORT: usize = 1 + "Rate.\ntext: x\nscore:".len();

#[test]
fn tokens_are_bos_prompt_answer_eos() {
    let example = task().example(&BOS, &item("x", "5"), &[&item("y", "4")], 100).unwrap();
    assert_eq!((example.tokens[0], example.tokens.last()), (1, Some(&0)));
    let text = BOS.decode(&example.tokens).unwrap();
    assert_eq!(text, "Rate.\ntext: y score: 4\ntext: x\nscore: 5");
    assert_eq!(BOS.decode(example.supervised()).unwrap(), " 5");
    let bare = task().example(&Letters { bos: false }, &item("x", "5"), &[], 100).unwrap();
    assert_eq!(bare.prompt_len, SHORT - 1);
}

#[test]
fn lines_go_first_then_the_right_end_then_the_example() {
    let (target, old) = (item("x", "50"), item("y", "4"));
    let with = |max_len| task().example(&BOS, &target, &[&old, &old], max_len);
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
fn a_query_is_what_the_example_starts_with() {
    let (target, old) = (item("x", "5"), item("y", "4"));
    let example = task().example(&BOS, &target, &[&old], 100).unwrap();
    let query = task().query(&BOS, &target, &[&old], (100, 4)).unwrap();
    assert_eq!(query.tokens, example.tokens[..example.prompt_len]);
    assert_eq!((query.gold.as_deref(), query.id.as_str()), (Some("5"), "i"));
    let mut open = target.clone();
    open.fields.remove("score");
    assert_eq!(task().query(&BOS, &open, &[], (100, 4)).unwrap().gold, None);
    assert_eq!(task().query(&BOS, &open, &[&old], (SHORT + 4, 4)).unwrap().tokens.len(), SHORT);
    let refused = task().query(&BOS, &open, &[], (SHORT + 3, 4));
    assert!(matches!(refused, Err(PromptError::PromptTooLong { prompt_tokens: SHORT, .. })));
}

#[test]
fn the_tokenizers_error_is_passed_on() {
    let refused: Result<_, PromptError> = task().example(&BOS, &item("\u{fffd}", "5"), &[], 100);
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
        let retrieved: Vec<&Item> = past.iter().collect();
        let mut full = tokenizer.encode(&format!(" {answer}")).unwrap();
        full.push(tokenizer.eos());
        match task().example(&tokenizer, &item(&text, &answer), &retrieved, max_len) {
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
