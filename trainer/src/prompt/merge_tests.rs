//! Budgets to the token, carrying on, lists, places. A character is a token.

use super::*;
use crate::data::Item;
use crate::prompt::testing::{Letters, item, shown};
use crate::prompt::{Cut, Purpose, Query, Template};
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

/// Items have `tokens`; a question of 50 or more leaves them what is left of `max_tokens`.
fn study(tokens: usize, max_tokens: usize) -> Task {
    with("study/rating", Budget::Study { tokens, max_tokens, long_question: Some(50) })
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
    let roomy = |tokens| study(tokens, 1000);
    assert_eq!(kept(&roomy(60), 38, &[50, 2]), [30 - FIXED, 2]);
    assert_eq!(kept(&roomy(60), 38, &[2, 50]), [2, 30 - FIXED]);
    // 60 / 3 = 20 < 21: nothing is left of the inputs, all else stays.
    assert_eq!(kept(&roomy(60), 38, &[50; 3]), [0; 3]);
    assert_eq!(kept(&roomy(84), 38, &[50, 0, 50, 50]), [0; 4]);
    assert_eq!(kept(&roomy(88), 38, &[50, 0, 50, 50]), [1, 0, 1, 1]);
    assert_eq!(kept(&roomy(1), 38, &[50; 9]), [0; 9]);
    // From 50 on what is left of 1000 is for all, `, and ` and `. ` beside them too.
    assert_eq!(kept(&roomy(60), 49, &[990]), [60 - FIXED]);
    assert_eq!(kept(&roomy(60), 50, &[990]), [1000 - 50 - 2 - FIXED]);
    assert_eq!(kept(&roomy(60), 900, &[90, 90]), [(1000 - 900 - 6 - 2) / 2 - FIXED; 2]);
    assert_eq!(kept(&roomy(60), 1000 - FIXED - 2, &[90]), [0]);
    assert_eq!(kept(&roomy(60), 1001 - FIXED - 2, &[90]), [0; 0]);
    assert_eq!(kept(&roomy(60), 1001, &[90]), [0; 0]);
}

/// Query of these texts, the n-th the n-th relevant of `relevance`, with outputs `0`, `1`, ….
fn ranked(task: &Task, question: usize, texts: &[String], order: &[usize], room: usize) -> Query {
    let past: Vec<Item> = (0..texts.len())
        .map(|i| item(&i.to_string(), &[("text", &texts[i]), ("score", &i.to_string())]))
        .collect();
    let (asked, mut shown) = (asked(question), shown(&past));
    shown.iter_mut().zip(order).for_each(|(shown, &relevance)| shown.relevance = relevance);
    let ask = Ask { shown: &shown, ..Ask::bare(&asked, Purpose::Predict) };
    task.query(&LETTERS, &ask, (room, 0)).unwrap()
}

#[test]
fn of_many_pairs_the_study_shows_the_best_that_fit() {
    let texts: Vec<String> = (0..64).map(|i| format!("{i} ").repeat(20)).collect();
    let task = Task::new(Template::builtin("study/rating").unwrap()).unwrap();
    // The best one stands last.
    let order: Vec<usize> = (0..64).rev().collect();
    let query = ranked(&task, 100, &texts, &order, 1 << 20);
    assert_eq!(query.cut, Cut::Context);
    let text = LETTERS.decode(&query.tokens).unwrap();
    let pairs: Vec<&str> = text.split(", and ").collect();
    // Pairs of two digits with nothing in them: 14 * 22 + 13 * 6 <= 512 - 100 - 2 < 15 * 22 + 14 * 6.
    let expected: Vec<String> = (50..64).map(|i| format!("{i} is the score for \"\"")).collect();
    assert_eq!(pairs[..13], expected[..13]);
    assert!(pairs.len() == 14 && pairs[13].starts_with(&expected[13]), "{pairs:?}");
    assert!(text.ends_with(&("q".repeat(100 - CUE) + "\nAnswer:")));
    // With room for all, all are there, in their order.
    let roomy = study(256, 1 << 20);
    let query = ranked(&roomy, 49, &texts, &order, 1 << 20);
    assert_eq!(query.cut, Cut::None);
    let text = LETTERS.decode(&query.tokens).unwrap();
    assert_eq!(text.matches("is the score for \"\"").count(), 64);
    // The one side alone is a list, whole here.
    let items = past(&[3; 64]);
    let text = prompt(&task, 100, &items, Ablation::OnlyOutput);
    assert_eq!(text.matches("5, ").count(), 63);
}

#[test]
fn a_long_question_takes_the_lists_room() {
    let items = past(&[3; 64]);
    for ablation in [Ablation::OnlyInput, Ablation::OnlyOutput] {
        let lengths: Vec<usize> = [300, 400, 460, 512, 600]
            .map(|question| prompt(&study(200, 512), question, &items, ablation).len())
            .to_vec();
        assert!(lengths[..3].iter().all(|l| *l <= 512 && *l + 8 > 512), "{lengths:?}");
        assert_eq!(lengths[3..], [512, 600]);
    }
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
    for task in [lamp(512), study(256, 1000)] {
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
        let share = if question < 50 { most } else { 1000 - question } / n;
        let there = joined(&study(most, 1000));
        prop_assert!(there <= share.max(FIXED) * n + around);
        for ablation in [Ablation::OnlyInput, Ablation::OnlyOutput] {
            let text = prompt(&study(most, 1000), question, &items, ablation);
            prop_assert!(text.chars().count() <= question + 256 + ". ".len());
        }
    }

    /// Whatever is shown: the question is whole, room and `max_tokens` hold, items are the most relevant ones in their
    /// order, as many as fit; an item is left out only where nothing of the others' inputs is left; and more room never shows less.
    #[test]
    fn the_study_shows_the_best_that_fit(
        texts in proptest::collection::vec("[a-z é😀]{0,40}", 0..12),
        order in Just((0..12).collect::<Vec<usize>>()).prop_shuffle(),
        question in 9usize..200, tokens in 1usize..400, more in 0usize..300,
        rooms in proptest::collection::vec(0usize..900, 2..5),
    ) {
        let n = texts.len();
        // Relevance as it would be: a permutation of what is there.
        let relevance: Vec<usize> =
            (0..n).map(|i| order[..n].iter().filter(|r| **r < order[i]).count()).collect();
        let task = study(tokens, tokens + more);
        let asked = "q".repeat(question - CUE) + "\nAnswer:";
        let mut rooms: Vec<usize> = rooms.into_iter().map(|r| question + r).collect();
        rooms.sort_unstable();
        let mut before: Vec<Option<usize>> = vec![None; n];
        for room in rooms {
            let query = ranked(&task, question, &texts, &relevance, room);
            let text = LETTERS.decode(&query.tokens).unwrap();
            let limit = room.min(tokens + more).max(question);
            prop_assert!(query.tokens.len() <= limit);
            prop_assert!(text.ends_with(&asked));
            let items = text[..text.len() - asked.len()].strip_suffix(". ").unwrap_or("");
            let parts: Vec<&str> = items.split(", and ").filter(|p| !p.is_empty()).collect();
            let mut kept: Vec<Option<usize>> = vec![None; n];
            let mut last = None;
            for part in &parts {
                let (number, rest) = part.split_once(" is the score for \"").unwrap();
                let number: usize = number.parse().unwrap();
                prop_assert!(last < Some(number), "another order: {text}");
                last = Some(number);
                let input = rest.strip_suffix('"').unwrap();
                prop_assert!(texts[number].starts_with(input));
                kept[number] = Some(input.chars().count());
            }
            let count = parts.len();
            let best = |i: &usize| relevance[*i] < count;
            prop_assert_eq!((0..n).filter(|i| kept[*i].is_some()).collect::<Vec<_>>(), (0..n).filter(best).collect::<Vec<_>>());
            // Left out only where its bare words have no place.
            if let Some(next) = (0..n).find(|i| relevance[*i] == count) {
                let words = |i: usize| i.to_string().len() + FIXED - 1;
                let there: usize = (0..n).filter(best).map(words).sum();
                prop_assert!(question + there + words(next) + 6 * count + 2 > limit);
                prop_assert!(kept.iter().flatten().all(|k| *k == 0));
            }
            for (now, before) in kept.iter().zip(&before) {
                prop_assert!(now >= before, "more room shows less: {text}");
            }
            before = kept;
        }
    }
}
