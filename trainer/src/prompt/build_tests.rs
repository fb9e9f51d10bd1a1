//! Which items a prompt sees.

use super::*;
use crate::ids::UserId;
use crate::prompt::Template;
use crate::prompt::testing::Letters;
use crate::retrieval::Retriever;
use proptest::prelude::*;

const LETTERS: Letters = Letters { bos: false };

/// Item `n` has the text `<n>` and is found in prompts by it.
fn items(numbers: std::ops::Range<usize>) -> Vec<Item> {
    let item = |n: usize| {
        let fields = [("text", format!("<{n}>")), ("score", (n % 5 + 1).to_string())];
        Item { id: n.to_string(), fields: fields.map(|(k, v)| (k.to_owned(), v)).into() }
    };
    numbers.map(item).collect()
}

fn user(history: usize, queries: usize) -> UserRecord {
    let all = history + queries;
    UserRecord {
        id: UserId::new("u"),
        history: items(0..history),
        queries: items(history..all),
        profile: None,
    }
}

fn builder(task: &Task, retriever: Retriever, k: usize) -> Builder<'_> {
    let retrieval = Retrieval { retriever, k, seed: 5 };
    Builder { task, tokenizer: &LETTERS, retrieval, max_len: 4000 }
}

/// The numbers in a prompt: the retrieved ones, then the target.
fn numbers(tokens: &[u32]) -> Vec<usize> {
    let text = LETTERS.decode(tokens).unwrap();
    text.split('<').skip(1).map(|t| t.split_once('>').unwrap().0.parse().unwrap()).collect()
}

#[test]
fn recency_sees_the_items_just_before() {
    let task = Task::new(Template::rating()).unwrap();
    let build = builder(&task, Retriever::Recency, 2);
    let of = |examples: Vec<Result<Example, PromptError>>| -> Vec<Vec<usize>> {
        examples.into_iter().map(|e| numbers(&e.unwrap().tokens)).collect()
    };
    assert_eq!(of(build.history_examples(&user(3, 1))), [vec![0], vec![0, 1], vec![1, 0, 2]]);
    assert_eq!(of(build.query_examples(&user(1, 2))), [vec![0, 1], vec![1, 0, 2]]);
    let queries = build.queries(&user(3, 2), 8);
    let seen: Vec<_> = queries.into_iter().map(|q| numbers(&q.unwrap().tokens)).collect();
    assert_eq!(seen, [[2, 1, 3], [2, 1, 4]]);
}

#[test]
fn one_bad_item_fails_alone() {
    let task = Task::new(Template::rating()).unwrap();
    let mut bad = user(4, 0);
    bad.history[1].fields.remove("score");
    let results = builder(&task, Retriever::Recency, 0).history_examples(&bad);
    let good: Vec<bool> = results.iter().map(Result::is_ok).collect();
    assert_eq!(good, [true, false, true, true]);
    // As a line in front of another item it is named where it is retrieved.
    let results = builder(&task, Retriever::Recency, 1).history_examples(&bad);
    assert!(matches!(&results[2], Err(PromptError::MissingField { item, .. }) if item == "1"));
    assert!(results[3].is_ok());
}

proptest! {
    #[test]
    fn retrieved_items_are_strictly_earlier(
        history in 0usize..7, queries in 0usize..4, k in 0usize..4, which in 0usize..3,
    ) {
        let task = Task::new(Template::rating()).unwrap();
        let retriever = [Retriever::Bm25, Retriever::Recency, Retriever::Random][which];
        let build = builder(&task, retriever, k);
        let user = user(history, queries);
        let examples = build.history_examples(&user).into_iter().enumerate();
        let later = build.query_examples(&user).into_iter().enumerate();
        for (at, example) in examples.chain(later.map(|(at, e)| (history + at, e))) {
            let mut seen = numbers(&example.unwrap().tokens);
            prop_assert_eq!(seen.pop(), Some(at));
            prop_assert_eq!(seen.len(), k.min(at));
            prop_assert!(seen.iter().all(|&n| n < at));
        }
        for (at, query) in build.queries(&user, 4).into_iter().enumerate() {
            let mut seen = numbers(&query.unwrap().tokens);
            prop_assert_eq!(seen.pop(), Some(history + at));
            prop_assert_eq!(seen.len(), k.min(history));
            prop_assert!(seen.iter().all(|&n| n < history));
        }
    }
}
