//! What a template must keep.

use super::*;
use crate::prompt::testing::rating;
use crate::prompt::{Budget, HistoryExample, Place, RetrievalText, Split};
use proptest::prelude::*;

fn refused(template: Template, part: &str) {
    let name = template.name.clone();
    let Err(error) = Task::new(template) else { panic!("{name} was taken: {part}") };
    let shown = error.to_string();
    assert!(shown.starts_with(&format!("template `{name}`, ")) && shown.contains(part), "{shown}");
}

fn builtin(name: &str) -> Template {
    Template::builtin(name).unwrap()
}

#[test]
fn broken_templates_are_refused_by_part() {
    let base = rating;
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
        (Template { output_field: Some(text("text")), ..base() }, "output_field: is the input"),
        (Template { layout: Layout::HistoryFirst, ..base() }, "instruction: belongs into"),
        (Template { instruction: text(""), layout: Layout::Merged, ..base() }, "merge: is missing"),
        (Template { merge: builtin("lamp/rating").merge, ..base() }, "merge: is for layout merged"),
        (Template { ablation: builtin("study/rating").ablation, ..base() }, "ablation: is for"),
    ];
    for (template, part) in cases {
        refused(template, part);
    }
}

/// Changes one thing of a built-in template and expects a refusal.
fn changed(name: &str, part: &str, change: impl Fn(&mut Template)) {
    let mut template = builtin(name);
    change(&mut template);
    refused(template, part);
}

fn merge(t: &mut Template) -> &mut Merge {
    t.merge.as_mut().unwrap()
}

fn example(t: &mut Template) -> &mut HistoryExample {
    t.history_example.as_mut().unwrap()
}

fn retrieval(t: &mut Template) -> &mut RetrievalText {
    t.retrieval.as_mut().unwrap()
}

#[test]
fn broken_parts_are_refused() {
    let lamp = "lamp/rating";
    changed(lamp, "input_field: is missing", |t| t.input_field = None);
    changed(lamp, "history_line: must have the input", |t| t.history_line = "{score}".into());
    changed(lamp, "history_line: must have the input", |t| t.history_line = "{text}{text}".into());
    changed(lamp, "merge.cue: ends in white", |t| merge(t).cue = "\nAnswer: ".into());
    changed(lamp, "merge.budget: has no tokens", |t| {
        merge(t).budget = Budget::Study { tokens: 0, max_tokens: 9, long_question: None };
    });
    changed(lamp, "merge.budget: max_tokens is less", |t| {
        merge(t).budget = Budget::Study { tokens: 10, max_tokens: 9, long_question: None };
    });
    changed(lamp, "merge.budget: its phrase is not", |t| {
        merge(t).budget = Budget::Lamp { max_tokens: 9, reserved: 1, phrase: "what".into() };
    });
    let tweet = "lamp/tweet_paraphrase";
    changed(tweet, "history_example.answer: needs", |t| example(t).answer = "x".into());
    changed(tweet, "history_example.prompt: shows", |t| example(t).prompt = "{rest}:".into());
    changed(tweet, "history_example.query: shows", |t| example(t).query = Some("{rest}".into()));
    changed(tweet, "history_example.split: the prompt", |t| example(t).prompt = "{text}:".into());
    changed(tweet, "history_example.split: 0 <=", |t| {
        example(t).split = Some(Split { field: "text".into(), from_percent: 30, to_percent: 20 });
    });
    changed("oppu/tweet_paraphrase", "history_example.prompt: ends in", |t| {
        example(t).prompt = "tweet: ".into();
    });
    let study = "study/rating";
    changed(study, "retrieval.query: shows", |t| retrieval(t).query = "{text} {score}".into());
    changed(study, "retrieval.query: shows", |t| retrieval(t).query = "{gold?}".into());
    changed(study, "retrieval.document_without_output: must lack", |t| {
        retrieval(t).document_without_output = Some("{text} {score}".into());
    });
    changed(study, "ablation: needs retrieval", |t| retrieval(t).document_without_output = None);
    let forms = |t: &mut Template| t.ablation.take().unwrap();
    changed(study, "ablation.tokens: must", |t| {
        t.ablation = Some(super::super::AblationForms { tokens: 0, ..forms(t) });
    });
    changed(study, "ablation.only_input: must", |t| {
        t.ablation.as_mut().unwrap().only_input.item = "{text} {score}".into();
    });
    changed(study, "ablation.only_output: must", |t| {
        t.ablation.as_mut().unwrap().only_output.item = "x".into();
    });
    let request = |t: &mut Template, prompt: &str| {
        t.profile_request.as_mut().unwrap().prompt = prompt.into();
    };
    changed(study, "profile_request.prompt: must", |t| request(t, "who?"));
    changed(study, "profile_request.prompt: must", |t| request(t, "{items} {text}"));
    changed(study, "profile_request.prompt: ends in", |t| request(t, "{items}\n"));
    changed(study, "profile_request: needs", |t| t.profile_request.as_mut().unwrap().items = 0);
    changed(study, "retrieval.exclude_equal", |t| {
        (t.layout, t.merge, t.ablation, t.input_field) = (Layout::HistoryFirst, None, None, None);
    });
    // A change that is allowed is taken.
    let mut fine = builtin(study);
    merge(&mut fine).place = Place::AfterTitleWord;
    assert!(Task::new(fine).is_ok());
}

#[test]
fn unknown_keys_are_refused_everywhere() {
    let text = toml::to_string(&builtin("study/rating")).unwrap();
    assert_eq!(Template::from_toml(&text).unwrap(), builtin("study/rating"));
    let tables = ["merge", "merge.budget", "ablation"];
    let more = ["ablation.only_input", "retrieval", "profile_request"];
    for table in tables.iter().chain(&more) {
        let head = format!("[{table}]\n");
        assert!(text.contains(&head), "{table}");
        let extra = text.replace(&head, &format!("{head}surprise = 1\n"));
        let refused = Template::from_toml(&extra).unwrap_err().to_string();
        assert!(refused.contains("surprise"), "{table}: {refused}");
    }
    let top = Template::from_toml(&format!("surprise = 1\n{text}"));
    assert!(matches!(top, Err(PromptError::Toml(_))));
    let tweet = toml::to_string(&builtin("lamp/tweet_paraphrase")).unwrap();
    for table in ["history_example", "history_example.split"] {
        let head = format!("[{table}]\n");
        let extra = tweet.replace(&head, &format!("{head}surprise = 1\n"));
        assert_ne!(extra, tweet);
        assert!(Template::from_toml(&extra).is_err(), "{table}");
    }
}

proptest! {
    #[test]
    fn template_round_trip(
        prompt in "\\PC{0,12}\\{text\\}\\PC{0,12}:", instruction in any::<String>(), words in any::<Option<u16>>(),
    ) {
        let max_field_words = words.map(usize::from);
        let template = Template { prompt, instruction, max_field_words, ..rating() };
        let text = toml::to_string(&template).unwrap();
        prop_assert_eq!(&toml::from_str::<Template>(&text).unwrap(), &template);
        let text = serde_json::to_string(&template).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Template>(&text).unwrap(), &template);
    }
}
