//! Placeholders, checks, answers, word limits, TOML round trip.

use super::*;
use proptest::prelude::*;

fn item(fields: &[(&str, &str)]) -> Item {
    let fields = fields.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Item { id: "i".to_owned(), fields }
}

fn rating() -> Task {
    Task::new(Template::rating()).unwrap()
}

#[test]
fn rating_texts() {
    let task = rating();
    let film = item(&[("text", "Toy {Story}"), ("score", " 5 ")]);
    assert_eq!(task.question(&film).unwrap(), "text: Toy {Story}\nscore:");
    assert_eq!(task.document(&film).unwrap(), "text: Toy {Story} score:  5 \n");
    assert_eq!(task.answer(&film).unwrap(), "5");
    let lines = ["one".to_owned(), "two".to_owned()];
    let whole = task.assemble(&lines, "q:");
    assert_eq!(whole, format!("{}\none\ntwo\nq:", Template::rating().instruction));
    let bare = Task::new(Template { instruction: String::new(), ..Template::rating() }).unwrap();
    assert_eq!(bare.assemble(&[], "q:"), "q:");
}

#[test]
fn gold_goes_before_the_answer_field_and_labels_hold_in_training() {
    let task = rating();
    let query = item(&[("text", "a"), ("gold", "4")]);
    assert_eq!(task.training_answer(&query).unwrap(), "4");
    let other = item(&[("text", "a"), ("score", "4.5")]);
    assert_eq!(task.answer(&other).unwrap(), "4.5");
    assert!(matches!(task.training_answer(&other), Err(PromptError::NotALabel { .. })));
    let empty = item(&[("text", "a"), ("score", " ")]);
    assert!(matches!(task.answer(&empty), Err(PromptError::EmptyAnswer { .. })));
    let Err(PromptError::MissingField { field, item, .. }) = task.answer(&item(&[("text", "a")]))
    else {
        panic!()
    };
    assert_eq!((field.as_str(), item.as_str()), ("score", "i"));
}

#[test]
fn broken_templates_are_refused_by_part() {
    let base = Template::rating;
    let text = |s: &str| s.to_owned();
    let labels = |list: &[&str]| Some(list.iter().map(|l| text(l)).collect());
    let cases = [
        (Template { instruction: text("Rate {text}."), ..base() }, "instruction: must be the same"),
        (Template { prompt: text("rate:"), ..base() }, "prompt: needs a placeholder"),
        (
            Template { prompt: text("{text} {score}:"), ..base() },
            "prompt: shows the answer's field",
        ),
        (Template { prompt: text("{gold}:"), ..base() }, "prompt: shows the answer's field"),
        (Template { prompt: text("{text} score: "), ..base() }, "prompt: ends in white space"),
        (Template { prompt: text("{text"), ..base() }, "prompt: a lone `{`"),
        (Template { prompt: text("text}"), ..base() }, "prompt: a lone `}`"),
        (Template { prompt: text("{}:"), ..base() }, "prompt: `{}` is not a field name"),
        (Template { answer: text("5"), ..base() }, "answer: needs a placeholder"),
        (Template { history_line: text("{ text }"), ..base() }, "history_line: `{ text }` is not"),
        (Template { max_new_tokens: 0, ..base() }, "max_new_tokens: must be at least 1"),
        (Template { labels: labels(&["1"]), ..base() }, "labels: needs at least two"),
        (Template { labels: labels(&["1", "1"]), ..base() }, "labels: \"1\" is empty, untrimmed"),
        (Template { labels: labels(&["1", " 2"]), ..base() }, "labels: \" 2\" is empty, untrimmed"),
    ];
    for (template, part) in cases {
        let shown = Task::new(template).unwrap_err().to_string();
        assert!(shown.starts_with("template `rating`, ") && shown.contains(part), "{shown}");
    }
}

#[test]
fn words_are_cut_and_spacing_kept() {
    let cases = [
        ("a  b c", 2, "a  b"),
        (" a b ", 2, " a b "),
        (" a b \n c", 2, " a b"),
        ("a b", 3, "a b"),
        ("a b", 0, ""),
        (" é ü", 1, " é"),
        ("", 1, ""),
    ];
    for (text, max, expected) in cases {
        assert_eq!(first_words(text, Some(max)), expected, "{text:?} {max}");
    }
    assert_eq!(first_words("a b", None), "a b");
}

#[test]
fn templates_are_data() {
    let text = toml::to_string(&Template::rating()).unwrap();
    assert_eq!(toml::from_str::<Template>(&text).unwrap(), Template::rating());
    assert!(toml::from_str::<Template>(&format!("{text}\nmodel = 1\n")).is_err());
    assert_eq!(Template::builtin("rating"), Some(Template::rating()));
    assert_eq!(Template::builtin("other"), None);
}

proptest! {
    #[test]
    fn template_round_trip(
        prompt in "\\PC{0,12}\\{text\\}\\PC{0,12}:", instruction in any::<String>(), words in any::<Option<u16>>(),
    ) {
        let max_field_words = words.map(usize::from);
        let template = Template { prompt, instruction, max_field_words, ..Template::rating() };
        let text = toml::to_string(&template).unwrap();
        prop_assert_eq!(&toml::from_str::<Template>(&text).unwrap(), &template);
        let text = serde_json::to_string(&template).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Template>(&text).unwrap(), &template);
    }

    /// Doubling the braces of any text makes it a literal; a field's own braces are never read.
    #[test]
    fn braces_and_values_are_literal(before in any::<String>(), value in any::<String>()) {
        let escaped = before.replace('{', "{{").replace('}', "}}");
        let pieces = parse(&format!("{escaped}{{text}}:")).unwrap();
        let text = rating().render(&pieces, &item(&[("text", &value)]), None).unwrap();
        prop_assert_eq!(text, format!("{before}{value}:"));
    }

    #[test]
    fn parsing_never_panics_and_cut_texts_are_prefixes(text in any::<String>(), max in 0usize..6) {
        let _ = parse(&text);
        let cut = first_words(&text, Some(max));
        prop_assert!(text.starts_with(cut));
        prop_assert_eq!(cut.split_whitespace().count(), text.split_whitespace().count().min(max));
    }
}
