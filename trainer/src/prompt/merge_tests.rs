//! Budgets to the token, carrying on, lists, places. A character is a token.

use super::*;
use crate::data::Item;
use crate::prompt::testing::{Letters, item, shown};
use crate::prompt::{LongQuestion, Purpose, Template};
use proptest::prelude::*;

const LETTERS: Letters = Letters { bos: false };
/// `5 is the score for ""`.
const FIXED: usize = 21;
/// `\nAnswer:`.
const CUE: usize = 8;

fn with(name: &str, budget: Budget) -> Task {
    let mut template = Template::builtin(name).unwrap();
    template.merge.as_mut().unwrap().budget = budget;
    Task::new(template).unwrap()
}

fn lamp(max_tokens: usize) -> Task {
    with("lamp/rating", Budget::Lamp { max_tokens, reserved: 1, phrase: String::new() })
}

fn study(tokens: usize) -> Task {
    let long_question = Some(LongQuestion { from_tokens: 50, max_tokens: 100 });
    with("study/rating", Budget::Study { tokens, long_question })
}

fn past(lengths: &[usize]) -> Vec<Item> {
    let past = lengths.iter().enumerate();
    past.map(|(i, n)| item(&i.to_string(), &[("text", &"x".repeat(*n)), ("score", "5")])).collect()
}

/// A query whose question is this long with its cue.
fn asked(length: usize) -> Item {
    item("q", &[("input", &"q".repeat(length - CUE)), ("text", "other")])
}

fn prompt(task: &Task, question: usize, past: &[Item], ablation: Ablation) -> String {
    let (asked, shown) = (asked(question), shown(past));
    let ask = Ask { shown: &shown, ablation, ..Ask::bare(&asked, Purpose::Predict) };
    LETTERS.decode(&task.query(&LETTERS, &ask, (1 << 20, 0)).unwrap().tokens).unwrap()
}

/// Lengths of the texts of the items shown.
fn kept(task: &Task, question: usize, lengths: &[usize]) -> Vec<usize> {
    let text = prompt(task, question, &past(lengths), Ablation::Both);
    text.split('"').skip(1).step_by(2).map(str::len).collect()
}

#[test]
fn lamp_shares_the_budget_and_carries_on_what_is_left() {
    // B = 100 - min(38, 60) = 62; b = (62 - 1 - 2) / 2 = 29.
    assert_eq!(kept(&lamp(100), 38, &[50, 50]), [29 - FIXED, 29 - FIXED]);
    assert_eq!(kept(&lamp(100), 38, &[3, 50]), [3, 29 + (29 - FIXED - 3) - FIXED]);
    // What the last one leaves is lost.
    assert_eq!(kept(&lamp(100), 38, &[50, 3]), [29 - FIXED, 3]);
    assert_eq!(kept(&lamp(100), 38, &[50]), [62 - 1 - FIXED]);
    assert_eq!(kept(&lamp(100), 38, &[]), [0; 0]);
}

#[test]
fn lamp_lets_the_questions_share_fall() {
    // f = .6: B 40, b 18 < 21; f = .5: B 50, b 23.
    assert_eq!(kept(&lamp(100), 80, &[50, 50]), [23 - FIXED; 2]);
    // The whole length at f = 0: b = (100 - 1 - 6) / 4 = 23; with five (100 - 1 - 8) / 5 = 18.
    assert_eq!(kept(&lamp(100), 300, &[50; 4]), [23 - FIXED; 4]);
    let bare = prompt(&lamp(100), 300, &past(&[50; 5]), Ablation::Both);
    assert_eq!(bare, "q".repeat(300 - CUE) + "\nAnswer:");
    // A long question is charged floor(f M) alone: B = 58 - 34; the limit of the sequence does the rest.
    assert_eq!(kept(&lamp(58), 36, &[50]), [58 - 34 - 1 - FIXED]);
    // Room for the fixed words alone is a failure: b 21 at f = .6, 27 at f = .5.
    assert_eq!(kept(&lamp(55), 100, &[50]), [27 - FIXED]);
}

#[test]
fn lamp_charges_phrase_and_quotes() {
    let phrase = "Following the given patterns";
    let task = with(
        "lamp/scholarly_title",
        Budget::Lamp { max_tokens: 200, reserved: 1, phrase: phrase.to_owned() },
    );
    let past = [item("a", &[("abstract", &"x".repeat(300)), ("title", "T")])];
    let (asked, shown) = (asked(40), shown(&past));
    let ask = Ask { shown: &shown, ..Ask::bare(&asked, Purpose::Predict) };
    let text = LETTERS.decode(&task.query(&LETTERS, &ask, (999, 0)).unwrap().tokens).unwrap();
    let room = 200 - 40 - 1 - phrase.len() - "\"T\" is a title for \"\"".len();
    let question = "q".repeat(40 - CUE);
    let expected =
        format!("\"T\" is a title for \"{}\". {phrase} {question}\nAnswer:", "x".repeat(room));
    assert_eq!(text, expected);

    let task =
        with("lamp/citation", Budget::Lamp { max_tokens: 100, reserved: 0, phrase: String::new() });
    let past =
        [item("a", &[("title", "abcdefghijklmnopqrstuvwxyz")]), item("b", &[("title", "B")])];
    let asked = item("q", &[("input", "title subtitle: which of them?"), ("title", "N")]);
    let shown = self::shown(&past);
    let ask = Ask { shown: &shown, ..Ask::bare(&asked, Purpose::Predict) };
    let text = LETTERS.decode(&task.query(&LETTERS, &ask, (999, 0)).unwrap().tokens).unwrap();
    // B = 100 - 38; b = (62 - 2) / 2 = 30: 28 letters and two quotes.
    assert_eq!(
        text,
        "title, and \"abcdefghijklmnopqrstuvwxyz\", and \"B\" subtitle: which of them?\nAnswer:"
    );
}

#[test]
fn the_study_gives_each_item_its_own_share() {
    assert_eq!(kept(&study(60), 38, &[50, 2]), [30 - FIXED, 2]);
    assert_eq!(kept(&study(60), 38, &[2, 50]), [2, 30 - FIXED]);
    // 60 / 3 = 20 < 21: none fits; 84 / 4 = 21: only the one with nothing in it.
    assert_eq!(kept(&study(60), 38, &[50; 3]), [0; 0]);
    assert_eq!(kept(&study(84), 38, &[50, 0, 50, 50]), [0]);
    // From 50 on 100 - len are left for all.
    assert_eq!(kept(&study(60), 49, &[90]), [60 - FIXED]);
    assert_eq!(kept(&study(60), 50, &[90]), [50 - FIXED]);
    assert_eq!(kept(&study(60), 90, &[90]), [0; 0]);
    assert_eq!(kept(&study(60), 101, &[90]), [0; 0]);
}

#[test]
fn places_in_the_question() {
    let past = [item("a", &[("title", "A")]), item("b", &[("title", "B")])];
    let text = |name: &str, title: &str, input: &str| {
        let task = Task::new(Template::builtin(name).unwrap()).unwrap();
        let asked = item("q", &[("title", title), ("input", input)]);
        let shown = shown(&past);
        let ask = Ask { shown: &shown, ..Ask::bare(&asked, Purpose::Predict) };
        let text = LETTERS.decode(&task.query(&LETTERS, &ask, (999, 0)).unwrap().tokens).unwrap();
        text.strip_suffix("\nAnswer:").unwrap().to_owned()
    };
    let items = ", and \"A\", and \"B\"";
    let question = "paper with the title \"a \"b\" c\", or? \"x\"";
    let expected = format!("paper with the title{items} \"a \"b\" c\", or? \"x\"");
    assert_eq!(text("lamp/citation", "a \"b\" c", question), expected);
    let expected = format!("paper with the title \"a \"b\" c\"{items}, or? \"x\"");
    assert_eq!(text("study/citation", "a \"b\" c", question), expected);
    // Another title than the question's: after the first quoted text.
    let expected = format!("paper with the title \"a \"{items}b\" c\", or? \"x\"");
    assert_eq!(text("study/citation", "z", question), expected);
    for name in ["lamp/citation", "study/citation"] {
        assert_eq!(text(name, "z", "Which {é}?"), "\"A\", and \"B\". Which {é}?");
    }
}

#[test]
fn lists_of_one_side_are_cut_at_their_end() {
    let mut template = Template::builtin("study/rating").unwrap();
    template.ablation.as_mut().unwrap().tokens = 50;
    let task = Task::new(template).unwrap();
    let list = |lengths: &[usize], ablation| {
        let text = prompt(&task, CUE + 1, &past(lengths), ablation);
        text.strip_suffix("q\nAnswer:").unwrap().to_owned()
    };
    assert_eq!(list(&[2, 3], Ablation::OnlyInput), "The previous reviews are \"xx\", \"xxx\". ");
    let cut = list(&[40, 3], Ablation::OnlyInput);
    assert_eq!(cut, format!("The previous reviews are \"{}. ", "x".repeat(24)));
    let outputs = list(&[40, 3], Ablation::OnlyOutput);
    assert_eq!(outputs, "5, 5 is the score for the previous review. ");
    assert_eq!(list(&[40, 3], Ablation::Decouple), outputs);
    let tail = " is the score for the previous review";
    let cut = list(&[1; 20], Ablation::OnlyOutput);
    assert_eq!(cut, format!("{}{tail}. ", &"5, ".repeat(20)[..50 - tail.len()]));
    assert_eq!(list(&[], Ablation::OnlyOutput), "");
    for name in ["lamp/rating", "study/citation", "rating"] {
        let task = Task::new(Template::builtin(name).unwrap()).unwrap();
        let past = [item("a", &[("text", "x"), ("score", "1"), ("title", "y")])];
        let shown = shown(&past);
        let asked = item("q", &[("text", "x"), ("title", "y"), ("input", "z")]);
        let ask = Ask {
            shown: &shown,
            ablation: Ablation::OnlyInput,
            ..Ask::bare(&asked, Purpose::Predict)
        };
        let refused = task.query(&LETTERS, &ask, (999, 0));
        assert!(matches!(refused, Err(PromptError::NoAblation { .. })), "{name}");
    }
}

#[test]
fn the_limit_goes_before_the_budget() {
    let past = past(&[60, 60]);
    let (asked, shown) = (asked(38), shown(&past));
    for task in [lamp(512), study(256)] {
        let ask = Ask { shown: &shown, ..Ask::bare(&asked, Purpose::Predict) };
        let length = |max_len: usize| {
            let query = task.query(&LETTERS, &ask, (max_len, 4)).unwrap();
            assert!(query.tokens.len() + 4 <= max_len);
            query.tokens.len()
        };
        let whole = 38 + 2 * (60 + FIXED) + ", and ".len() + ". ".len();
        assert_eq!(length(1000), whole);
        for less in [1, 2, 10, 60, 100] {
            let there = length(whole + 4 - less);
            assert!(there + 12 >= whole - less, "{there} of {}", whole - less);
        }
        assert_eq!(length(38 + 4), 38);
    }
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec("[a-z \"{}\né😀]{0,60}", 1..6)
}

proptest! {
    /// Items of LaMP's rule are together within B - 1 - 2(n-1), the study's each in its share.
    #[test]
    fn budgets_are_never_exceeded(texts in texts(), question in 9usize..200, most in 1usize..300) {
        let items = texts.iter().map(|t| item("i", &[("text", t), ("score", "5")]));
        let items: Vec<Item> = items.collect();
        let n = items.len();
        let joined = |task: &Task| {
            let text = prompt(task, question, &items, Ablation::Both);
            text.chars().count() - question
        };
        let around = ", and ".len() * (n - 1) + ". ".len();
        // With f = 0 nothing is kept for the question.
        let least = question.min(6 * most / 10);
        let there = joined(&lamp(most));
        prop_assert!(there == 0 || there - around <= most - 1 - 2 * (n - 1));
        if question <= least {
            let task = lamp(most);
            let fits = there > 0;
            prop_assert!(!fits || there - around <= most - 1 - 2 * (n - 1));
            // Where B is enough for all fixed words and one more, it is not left unused.
            prop_assert!(fits || (most - question).saturating_sub(1 + 2 * (n - 1)) / n <= FIXED);
            prop_assert_eq!(joined(&task), there);
        }
        let share = if question < 50 { most } else { 100usize.saturating_sub(question) };
        let there = joined(&study(most));
        prop_assert!(there <= share / n * n + around);
        for ablation in [Ablation::OnlyInput, Ablation::OnlyOutput] {
            let text = prompt(&study(most), question, &items, ablation);
            prop_assert!(text.chars().count() <= question + 256 + ". ".len());
        }
    }
}
