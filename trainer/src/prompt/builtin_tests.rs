//! Every shipped template: it is sound, its texts are the recorded ones, it keeps its budgets.

use super::*;
use crate::data::{Item, UserRecord};
use crate::ids::UserId;
use crate::prompt::testing::{Letters, item, shown};
use crate::prompt::{Ablation, Ask, Builder, Layout, PromptError, Purpose, Shown, Task, Tokenize};
use crate::retrieval::{Retrieval, Retriever};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fmt::Write;

const LETTERS: Letters = Letters { bos: false };

fn task(name: &str) -> Task {
    Task::new(Template::builtin(name).unwrap()).unwrap()
}

/// A history item of a task with texts about `x`, as data/ reads it.
fn history(task: &str, id: &str, x: &str, output: &str) -> Item {
    match task {
        "citation" => {
            let abs = format!("In {x}.");
            item(
                id,
                &[("title", x), ("abstract", &abs), ("citation", "a cited work"), ("date", "2019")],
            )
        }
        "movie_tag" => item(id, &[("description", x), ("tag", output), ("date", "1")]),
        "news_category" => item(id, &[("text", x), ("title", "T"), ("category", output)]),
        "rating" => item(id, &[("text", x), ("score", output)]),
        "scholarly_title" => item(id, &[("abstract", x), ("title", output)]),
        "tweet_paraphrase" => item(id, &[("text", x)]),
        _ => item(id, &[("text", x), ("title", output)]),
    }
}

/// A query of a task about `x`.
fn query(task: &str, id: &str, x: &str, gold: &str) -> Item {
    let field = match task {
        "citation" => "title",
        "movie_tag" => "description",
        "scholarly_title" => "abstract",
        _ => "text",
    };
    let input = match task {
        "citation" => format!("A paper with the title \"{x}\", which? [1]: \"r1\" [2]: \"r2\""),
        _ => format!("What now? {field}: {x}"),
    };
    let mut query = item(id, &[(field, x), ("input", &input), ("gold", gold)]);
    if task == "citation" {
        query.fields.insert("option_1".to_owned(), "r1".to_owned());
        query.fields.insert("option_2".to_owned(), "r2".to_owned());
    }
    query
}

fn output_of(task: &Task) -> &str {
    task.labels().map_or("some title", |labels| labels[0].as_str())
}

fn prompt(task: &Task, ask: &Ask<'_>) -> String {
    LETTERS.decode(&task.query(&LETTERS, ask, (1 << 20, 0)).unwrap().tokens).unwrap()
}

/// Everything a template makes of two items, one query and a profile.
fn rendering(name: &str) -> String {
    let task = task(name);
    let kind = task.template().task.clone().unwrap();
    let output = output_of(&task);
    let past = [history(&kind, "a", "first one", output), history(&kind, "b", "second", output)];
    let asked = query(&kind, "q", "the new one", output);
    let shown = shown(&past);
    let ask =
        Ask { profile: Some("who it is"), shown: &shown, ..Ask::bare(&asked, Purpose::Predict) };
    let mut text = format!("==== {name}\n{}\n", prompt(&task, &ask));
    for ablation in [Ablation::OnlyInput, Ablation::OnlyOutput] {
        if task.template().ablation.is_some() {
            let ask = Ask { profile: None, ablation, ..ask };
            writeln!(text, "-- {ablation:?}\n{}", prompt(&task, &ask)).unwrap();
        }
    }
    let item = history(&kind, "c", "third one of five words", output);
    let item = task.split(&item, 1 << 31).unwrap();
    let shown = if task.has_context(Purpose::History) { &shown[..1] } else { &[] };
    let example = Ask { shown, ..Ask::bare(&item, Purpose::History) };
    let example = task.example(&LETTERS, &example, 1 << 20).unwrap();
    let (read, answer) = example.tokens.split_at(example.prompt_len);
    let (read, answer) = (LETTERS.decode(read).unwrap(), LETTERS.decode(answer).unwrap());
    writeln!(text, "-- history example\n{read}|{answer}").unwrap();
    let retrieves = [
        task.retrieval_query(&asked, Purpose::Predict).unwrap(),
        task.retrieval_query(&item, Purpose::History).unwrap(),
        task.document(&past[0], Ablation::Both).unwrap(),
        task.document(&past[0], Ablation::Decouple).unwrap_or_else(|_| "-".to_owned()),
    ];
    writeln!(text, "-- retrieval\n{retrieves:?}").unwrap();
    let request = task.profile_request(&[&past[0], &past[1]]).unwrap().unwrap();
    writeln!(text, "-- profile request\n{request}").unwrap();
    text
}

#[test]
fn recorded_texts() {
    let recorded = include_str!("recorded.txt");
    let all: String = Template::builtins().map(rendering).collect();
    if all != recorded {
        let lines = all.lines().zip(recorded.lines()).enumerate();
        let first = lines.filter(|(_, (ours, theirs))| ours != theirs).take(3);
        let faults: Vec<_> = first.collect();
        panic!("the first differences (line, (rendered, recorded)): {faults:#?}\n{all}");
    }
}

#[test]
fn all_are_sound_and_named_as_their_files() {
    let names: Vec<&str> = Template::builtins().collect();
    let sorted: BTreeSet<&str> = names.iter().copied().collect();
    assert!(sorted.iter().eq(&names), "sorted, none twice");
    for name in &names {
        let template = Template::builtin(name).unwrap();
        assert_eq!(template.name, *name);
        let kind = template.task.clone().unwrap();
        let (folder, layout) = match name.strip_suffix(kind.as_str()).unwrap() {
            "" => ("", Layout::InstructionFirst),
            "oppu/" => ("oppu/", Layout::HistoryFirst),
            folder @ ("lamp/" | "study/") => (folder, Layout::Merged),
            other => panic!("{other}"),
        };
        assert_eq!((template.layout, folder.len() + kind.len()), (layout, name.len()));
        let text = toml::to_string(&template).unwrap();
        assert_eq!(Template::from_toml(&text).unwrap(), template);
        assert!(template.profile_request.is_some());
        // A task is the same in all layouts.
        let other = Template::builtin(&kind).unwrap();
        assert_eq!(template.labels, other.labels);
        assert_eq!(template.answer, other.answer);
        assert_eq!(
            (&template.input_field, &template.output_field),
            (&other.input_field, &other.output_field)
        );
        assert_eq!(template.max_new_tokens, other.max_new_tokens);
        Task::new(template).unwrap();
    }
    assert_eq!(names.len(), 4 * 8);
    assert_eq!(Template::builtin("lamp"), None);
    assert_eq!(Template::builtin("other"), None);
}

#[test]
fn labels_are_told_apart() {
    for name in Template::builtins() {
        let task = task(name);
        let Some(labels) = task.labels() else { continue };
        let found = task.label_sequences(&LETTERS).unwrap().unwrap();
        let distinct: BTreeSet<_> = found.sequences.iter().collect();
        assert_eq!(distinct.len(), labels.len(), "{name}");
        // Romance and religion share letters; digits and [1], [2] do not after what all share.
        let one_token = task.label_tokens(&LETTERS).is_ok();
        assert_eq!(one_token, labels.len() <= 5, "{name}");
        assert_eq!(one_token, found.branches().len() == 1);
        // A generated label has room.
        let longest = labels.iter().map(|l| l.split([' ', '-']).count()).max().unwrap();
        assert!(longest * 2 < task.template().max_new_tokens as usize);
    }
}

/// Hostile and ordinary texts.
fn texts() -> impl Strategy<Value = String> {
    let words = "[a-z {}\"\n\\[\\]é😀]{0,40}";
    let long = (1usize..400).prop_map(|n| "long words, \"{text}\" ".repeat(n));
    prop_oneof![4 => words, 1 => Just(String::new()), 2 => long, 2 => any::<String>()]
}

fn plain(text: &str) -> String {
    text.replace(['\u{fffd}', '#'], "")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the texts: nothing exceeds the limit, the mask covers the answer and EOS, nothing of the
    /// answer is in front of it, and retrieval is not told either.
    #[test]
    fn limits_masks_and_secrets(
        which in 0usize..32, texts in proptest::collection::vec(texts(), 1..5),
        asked in texts(), profile in proptest::option::of(texts()), max_len in 0usize..900, ablated in 0usize..4,
    ) {
        let name = Template::builtins().nth(which).unwrap();
        let task = task(name);
        let kind = task.template().task.clone().unwrap();
        let texts: Vec<String> = texts.iter().map(|t| plain(t)).collect();
        // The answer is found by its sign.
        let secret = match task.labels() { None => "secret #", Some(labels) => labels[0].as_str() };
        let past: Vec<Item> =
            texts.iter().map(|t| history(&kind, t, t, output_of(&task))).collect();
        let shown: Vec<Shown<'_>> = shown(&past);
        let mut target = query(&kind, "q", &plain(&asked), secret);
        if task.labels().is_some() {
            // A field under the output's name that differs from the gold must not be read either.
            let output = task.template().output_field.clone().unwrap_or_else(|| "gold ".to_owned());
            target.fields.insert(output, "#".to_owned());
        }
        let profile = profile.map(|p| plain(&p));
        let ablation = match task.template().ablation {
            None => Ablation::Both,
            Some(_) => [Ablation::Both, Ablation::OnlyInput, Ablation::OnlyOutput, Ablation::Decouple][ablated],
        };
        let ask = Ask { profile: profile.as_deref(), shown: &shown, ablation, ..Ask::bare(&target, Purpose::Predict) };
        match task.query(&LETTERS, &ask, (max_len, 5)) {
            Ok(query) => {
                prop_assert!(query.tokens.len() + 5 <= max_len);
                let text = LETTERS.decode(&query.tokens).unwrap();
                prop_assert!(!text.contains('#'), "{}", text);
                prop_assert!(text.ends_with(':'), "{}", text);
            }
            Err(PromptError::PromptTooLong { .. }) => prop_assert!(max_len < 560),
            Err(other) => prop_assert!(false, "{other}"),
        }
        prop_assert!(!task.retrieval_query(&target, Purpose::Predict).unwrap().contains('#'));
        let ask = Ask { purpose: Purpose::Population, ..ask };
        let mut answer = LETTERS.encode(&format!(" {secret}")).unwrap();
        answer.push(0);
        match task.example(&LETTERS, &ask, max_len) {
            Ok(example) => {
                prop_assert!(example.tokens.len() <= max_len && !example.supervised().is_empty());
                prop_assert!(answer.starts_with(example.supervised()));
                prop_assert!(example.supervised().len() == answer.len() || example.tokens.len() == max_len);
            }
            Err(PromptError::NoSupervisedToken { .. }) => {}
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    /// A user's examples and queries, whatever the texts: each fails alone and by name or is sound.
    #[test]
    fn whole_users(which in 0usize..32, texts in proptest::collection::vec(texts(), 1..5), k in 0usize..4) {
        let name = Template::builtins().nth(which).unwrap();
        let task = task(name);
        let kind = task.template().task.clone().unwrap();
        let items = texts.iter().enumerate();
        let record = UserRecord {
            id: UserId::new("u"),
            history: items.clone().map(|(i, t)| history(&kind, &i.to_string(), &plain(t), output_of(&task))).collect(),
            queries: items.map(|(i, t)| query(&kind, &format!("q{i}"), &plain(t), output_of(&task))).collect(),
            profile: None,
        };
        let retrieval = Retrieval::top(Retriever::Bm25Okapi, k, 1);
        let build = Builder { task: &task, tokenizer: &LETTERS, retrieval, pool: None, ablation: Ablation::Both, seed: 3, max_len: 2500, cut_questions: false };
        for example in build.history_examples(&record, Some("who")) {
            match example {
                Ok(example) => {
                    prop_assert!(example.tokens.len() <= 2500);
                    let text = LETTERS.decode(&example.tokens[..example.prompt_len]).unwrap();
                    // A long question leaves the profile no room.
                    let there = text.contains("who\n") || text.len() > 2300;
                    prop_assert_eq!(there, task.has_context(Purpose::History) || text.len() > 2300);
                }
                Err(PromptError::EmptyAnswer { .. } | PromptError::NoSupervisedToken { .. }) => {}
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
        for query in build.queries(&record, None, 10) {
            prop_assert!(query.unwrap().tokens.len() <= 2490);
        }
        let request = build.profile_request(&record, (None, None)).unwrap().unwrap();
        prop_assert!(request.len() <= 2200);
        prop_assert_eq!(Some(request), build.profile_request(&record, (None, None)).unwrap());
    }
}
