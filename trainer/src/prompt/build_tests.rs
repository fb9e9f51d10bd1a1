//! Which items a prompt sees.

use super::*;
use crate::ids::UserId;
use crate::prompt::Template;
use crate::prompt::testing::{Letters, item, rating};
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
    let retrieval = Retrieval::top(retriever, k, 5);
    Builder {
        task,
        tokenizer: &LETTERS,
        retrieval,
        pool: None,
        ablation: Ablation::Both,
        seed: 5,
        max_len: 4000,
        cut_questions: false,
    }
}

/// The numbers in a prompt: the retrieved ones, then the target.
fn numbers(tokens: &[u32]) -> Vec<usize> {
    let text = LETTERS.decode(tokens).unwrap();
    text.split('<').skip(1).map(|t| t.split_once('>').unwrap().0.parse().unwrap()).collect()
}

#[test]
fn recency_sees_the_items_just_before() {
    let task = Task::new(rating()).unwrap();
    let build = builder(&task, Retriever::Recency, 2);
    let of = |examples: Vec<Result<Example, PromptError>>| -> Vec<Vec<usize>> {
        examples.into_iter().map(|e| numbers(&e.unwrap().tokens)).collect()
    };
    assert_eq!(of(build.history_examples(&user(3, 1), None)), [vec![0], vec![0, 1], vec![1, 0, 2]]);
    assert_eq!(of(build.query_examples(&user(1, 2), None)), [vec![0, 1], vec![1, 0, 2]]);
    let queries = build.queries(&user(3, 2), None, 8);
    let seen: Vec<_> = queries.into_iter().map(|q| numbers(&q.unwrap().tokens)).collect();
    assert_eq!(seen, [[2, 1, 3], [2, 1, 4]]);
}

#[test]
fn one_bad_item_fails_alone() {
    let task = Task::new(rating()).unwrap();
    let mut bad = user(4, 0);
    bad.history[1].fields.remove("score");
    let results = builder(&task, Retriever::Recency, 0).history_examples(&bad, None);
    let good: Vec<bool> = results.iter().map(Result::is_ok).collect();
    assert_eq!(good, [true, false, true, true]);
    // It stands in front of no other: the item before it does.
    let results = builder(&task, Retriever::Recency, 1).history_examples(&bad, None);
    assert!(matches!(&results[1], Err(PromptError::MissingField { item, .. }) if item == "1"));
    let seen = [0, 2, 3].map(|i: usize| numbers(&results[i].as_ref().unwrap().tokens));
    assert_eq!(seen, [vec![0], vec![0, 2], vec![2, 3]]);
}

#[test]
fn the_population_sees_earlier_queries_only_where_the_template_says() {
    let template = Template { earlier_queries: false, ..rating() };
    let task = Task::new(template).unwrap();
    let build = builder(&task, Retriever::Recency, 2);
    let examples = build.query_examples(&user(1, 2), None).into_iter();
    let seen: Vec<_> = examples.map(|e| numbers(&e.unwrap().tokens)).collect();
    assert_eq!(seen, [[0, 1], [0, 2]]);
}

#[test]
fn an_equal_item_is_not_shown_and_the_next_one_is() {
    let task = Task::new(Template::builtin("study/rating").unwrap()).unwrap();
    let mut user = user(3, 1);
    user.queries[0].fields.insert("text".to_owned(), "<2>".to_owned());
    let shown = |retriever| {
        let queries = builder(&task, retriever, 3).queries(&user, None, 8);
        let mut numbers = numbers(&queries[0].as_ref().unwrap().tokens);
        numbers.sort_unstable();
        numbers
    };
    // The question, 2, is in every prompt; the study's BM25 does not show the item that equals it.
    assert_eq!(shown(Retriever::Bm25Study), [0, 1, 2]);
    assert_eq!(shown(Retriever::Recency), [0, 1, 2, 2]);
}

#[test]
fn profiles_stand_in_front_where_there_is_context() {
    let task = Task::new(Template::builtin("oppu/tweet_paraphrase").unwrap()).unwrap();
    let tweets =
        |n: usize| (0..n).map(|i| item(&i.to_string(), &[("text", "a <1> b"), ("gold", "c")]));
    let user = UserRecord {
        id: UserId::new("u"),
        history: tweets(2).collect(),
        queries: tweets(1).collect(),
        profile: None,
    };
    let build = builder(&task, Retriever::Recency, 1);
    let example = build.history_examples(&user, Some("P")).pop().unwrap().unwrap();
    assert_eq!(LETTERS.decode(&example.tokens).unwrap(), "tweet: a <1> b");
    let text = |tokens: &[u32]| LETTERS.decode(tokens).unwrap();
    let query = build.queries(&user, Some("P"), 8).pop().unwrap().unwrap();
    assert!(text(&query.tokens).starts_with("P\ntweet: a <1> b\n\nSay"), "{}", text(&query.tokens));
    let trained = build.query_examples(&user, Some("P")).pop().unwrap().unwrap();
    assert!(trained.tokens.starts_with(&query.tokens) && trained.prompt_len == query.tokens.len());
}

#[test]
fn shares_and_profile_items_are_drawn_for_each_user_item_and_seed() {
    let task = Task::new(Template::builtin("lamp/tweet_paraphrase").unwrap()).unwrap();
    let words = (0..200).map(|n| format!("w{n}")).collect::<Vec<_>>().join(" ");
    let of = |user: &str, seed: u64, ids: std::ops::Range<usize>| {
        let history = ids.map(|i| item(&i.to_string(), &[("text", words.as_str())])).collect();
        let user = UserRecord { id: UserId::new(user), history, queries: vec![], profile: None };
        let build = Builder { seed, ..builder(&task, Retriever::Recency, 0) };
        let lengths =
            build.history_examples(&user, None).into_iter().map(|e| e.unwrap().prompt_len);
        (lengths.collect::<Vec<_>>(), build.profile_request(&user, (None, None)).unwrap().unwrap())
    };
    let (base, request) = of("u", 1, 0..12);
    assert_eq!((base.clone(), request.clone()), of("u", 1, 0..12));
    // An item's share does not depend on the others, only on user, seed and itself.
    assert_eq!(of("u", 1, 5..8).0, base[5..8]);
    assert!(of("v", 1, 0..12).0 != base && of("u", 2, 0..12).0 != base);
    assert!(base.iter().collect::<std::collections::BTreeSet<_>>().len() > 4);
    // Ten of twelve do not fit in 4,000 less 300.
    assert!(request.len() <= 3700);
    let text = LETTERS.decode(&request).unwrap();
    assert_eq!(text.matches("tweet: w0").count(), 3);
}

proptest! {
    #[test]
    fn retrieved_items_are_strictly_earlier(
        history in 0usize..7, queries in 0usize..4, k in 0usize..4, which in 0usize..3,
    ) {
        let task = Task::new(rating()).unwrap();
        let retriever = [Retriever::Bm25Okapi, Retriever::Recency, Retriever::Random][which];
        let build = builder(&task, retriever, k);
        let user = user(history, queries);
        let examples = build.history_examples(&user, None).into_iter().enumerate();
        let later = build.query_examples(&user, None).into_iter().enumerate();
        for (at, example) in examples.chain(later.map(|(at, e)| (history + at, e))) {
            let mut seen = numbers(&example.unwrap().tokens);
            prop_assert_eq!(seen.pop(), Some(at));
            prop_assert_eq!(seen.len(), k.min(at));
            prop_assert!(seen.iter().all(|&n| n < at));
        }
        for (at, query) in build.queries(&user, None, 4).into_iter().enumerate() {
            let mut seen = numbers(&query.unwrap().tokens);
            prop_assert_eq!(seen.pop(), Some(history + at));
            prop_assert_eq!(seen.len(), k.min(history));
            prop_assert!(seen.iter().all(|&n| n < history));
        }
    }
}
