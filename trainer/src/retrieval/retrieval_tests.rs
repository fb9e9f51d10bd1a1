//! Choices from a user's own history: golden orders, windows, properties, mixing.

use super::*;
use proptest::prelude::*;
use rayon::prelude::*;
use std::collections::BTreeSet;

const OWN: [Retriever; 6] = [
    Retriever::Bm25Okapi,
    Retriever::Bm25Lamp,
    Retriever::Bm25Study,
    Retriever::Recency,
    Retriever::Random,
    Retriever::RandomLamp,
];

fn items(texts: &[impl AsRef<str>]) -> Vec<Item> {
    let item = |(n, text): (usize, &_)| {
        let text = AsRef::<str>::as_ref(text).to_owned();
        let fields = [("text".to_owned(), text), ("tag".to_owned(), format!("tag {n}"))];
        Item { id: n.to_string(), fields: fields.into() }
    };
    texts.iter().enumerate().map(item).collect()
}

fn history(items: &[Item]) -> History<'_> {
    History::new(items.iter().map(|item| (item, item.field("text").unwrap().to_owned())))
}

fn request<'a>(item: &'a str, text: &'a str) -> Request<'a> {
    Request::new(UserKey([3; 32]), item, text)
}

fn numbers(chosen: &[Item]) -> Vec<usize> {
    chosen.iter().map(|item| item.id.parse().unwrap()).collect()
}

/// The item numbers chosen of all texts.
fn choose(retrieval: Retrieval, texts: &[impl AsRef<str>], request: &Request<'_>) -> Vec<usize> {
    let items = items(texts);
    numbers(&retrieval.choose(&history(&items), items.len(), request, None).unwrap())
}

#[test]
fn golden_orders() {
    let corpus = [
        "description: a robot dreams of the sea tag: sci-fi\n",
        "description: two friends travel the sea tag: comedy\n",
        "description: a war in the desert tag: violence\n",
        "description: the robot falls in love tag: romance\n",
        "description: robot robot robot war tag: action\n",
    ];
    let asked = request("q", "description: a robot at war");
    let all = |retriever| choose(Retrieval::top(retriever, 9, 0), &corpus, &asked);
    assert_eq!(all(Retriever::Bm25Okapi), [2, 4, 0, 3, 1]);
    assert_eq!(all(Retriever::Bm25Study), [4, 2, 0, 3, 1]);
    // A single document has a negative score and is still chosen.
    let alone = choose(Retrieval::top(Retriever::Bm25Okapi, 1, 0), &corpus[..1], &asked);
    assert_eq!(alone, [0]);
    // Only LaMP's words are free of the newline.
    let asked = request("q", "romance");
    let best = |retriever| choose(Retrieval::top(retriever, 1, 0), &corpus, &asked);
    assert_eq!(best(Retriever::Bm25Lamp), [3]);
    assert_eq!(best(Retriever::Bm25Okapi), [4]);
}

#[test]
fn ties() {
    let texts = ["a b", "c d", "a b", "c d"];
    let asked = request("q", "a");
    let of = |retriever, count| choose(Retrieval::top(retriever, count, 0), &texts, &asked);
    assert_eq!(of(Retriever::Recency, 3), [3, 2, 1]);
    assert_eq!(of(Retriever::Recency, 9), [3, 2, 1, 0]);
    // Okapi's idf of `a` is 0 here: all tie.
    assert_eq!(of(Retriever::Bm25Okapi, 9), [3, 2, 1, 0]);
    assert_eq!(of(Retriever::Bm25Lamp, 3), [3, 2, 1]);
    assert_eq!(of(Retriever::Bm25Study, 3), [0, 2, 1]);
    assert!(choose(Retrieval::NONE, &texts, &asked).is_empty());
    let many = vec!["same words"; 40];
    let tied = |r| choose(Retrieval::top(r, 3, 0), &many, &request("q", "words"));
    assert_eq!(tied(Retriever::Bm25Okapi), [39, 38, 37]);
    assert_eq!(tied(Retriever::Bm25Study), [0, 1, 2]);
}

#[test]
fn number_and_offset() {
    let texts: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    let of = |number, offset| {
        let retrieval = Retrieval { number, offset, ..Retrieval::top(Retriever::Recency, 0, 0) };
        choose(retrieval, &texts, &request("q", ""))
    };
    let (count, share) = (Amount::Count, Amount::Share);
    assert_eq!(of(count(2), count(3)), [6, 5]);
    assert_eq!(of(share(0.25), count(0)), [9, 8]);
    assert_eq!(of(share(0.05), count(0)), [0; 0]);
    assert_eq!(of(share(0.3), share(0.5)), [4, 3, 2]);
    assert_eq!(of(count(2), count(7)), [2, 1]);
    // Not less than the length: nothing.
    assert_eq!(of(count(2), count(8)), [0; 0]);
    assert_eq!(of(count(MOST_ITEMS), count(MOST_ITEMS)), [0; 0]);
    assert_eq!(of(count(10), share(0.01)), [0; 0]);
    assert_eq!(of(count(10), count(0)).len(), 10);
    let shares = [0.0, 1.0, -0.5, f64::NAN, 7.5].map(share);
    for bad in shares.into_iter().chain([count(MOST_ITEMS + 1), count(usize::MAX)]) {
        let retrieval = Retrieval { number: bad, ..Retrieval::top(Retriever::Random, 0, 0) };
        assert!(matches!(retrieval.check(), Err(RetrievalError::Amount { .. })), "{bad:?}");
        let items = items(&texts);
        let refused = retrieval.choose(&history(&items), 10, &request("q", ""), None);
        assert!(matches!(refused, Err(RetrievalError::Amount { .. })), "{bad:?}");
    }
    assert_eq!(Amount::try_from(0.5).unwrap(), share(0.5));
    assert_eq!(Amount::try_from(3.0).unwrap(), count(3));
    assert_eq!(Amount::try_from(0.0).unwrap(), count(0));
    for bad in [-1.0, 1.5, f64::NAN, f64::INFINITY] {
        assert!(Amount::try_from(bad).is_err());
    }
}

#[test]
fn orders_apply_to_what_was_chosen() {
    let texts: Vec<String> = (0..8).map(|n| n.to_string()).collect();
    let of = |order, count| {
        let retrieval = Retrieval { order, ..Retrieval::top(Retriever::Recency, count, 0) };
        choose(retrieval, &texts, &request("q", ""))
    };
    assert_eq!(of(Order::Start, 4), [7, 6, 5, 4]);
    assert_eq!(of(Order::End, 4), [4, 5, 6, 7]);
    assert_eq!(of(Order::Middle, 4), [4, 6, 7, 5]);
    assert_eq!(of(Order::Middle, 5), [4, 6, 7, 5, 3]);
    let mut random = of(Order::Random, 8);
    assert_ne!(random, of(Order::Start, 8));
    assert_eq!(random, of(Order::Random, 8));
    random.sort_unstable();
    assert_eq!(random, (0..8).collect::<Vec<_>>());
}

#[test]
fn the_study_drops_the_first_twin() {
    let texts = ["a b c", "x y", "a b c", "y z", "a"];
    let twin = Some(("text", "a b c"));
    let asked = Request { twin, ..request("q", "a b c") };
    let all = |retriever| choose(Retrieval::top(retriever, 9, 0), &texts, &asked);
    assert_eq!(all(Retriever::Bm25Study), [2, 4, 1, 3]);
    assert_eq!(all(Retriever::Bm25Okapi).len(), 5);
    let none = Request { twin: Some(("text", "other")), ..asked };
    assert_eq!(choose(Retrieval::top(Retriever::Bm25Study, 9, 0), &texts, &none), [0, 2, 4, 1, 3]);
    // A twin later than what may be seen stays out of sight.
    let items = items(&texts);
    let one = Retrieval::top(Retriever::Bm25Study, 9, 0);
    let unlike = Request { twin: Some(("text", "a")), ..asked };
    assert_eq!(numbers(&one.choose(&history(&items), 4, &unlike, None).unwrap()).len(), 4);
    // The only item is the twin.
    assert!(one.choose(&history(&items), 1, &asked, None).unwrap().is_empty());
}

#[test]
fn mixed_lends_outputs_by_rank() {
    let items = items(&["a b", "b", "a a", "c"]);
    let retrieval = Retrieval {
        outputs: Some(Retriever::Recency),
        ..Retrieval::top(Retriever::Bm25Study, 2, 0)
    };
    let asked = Request { output: Some("tag"), ..request("q", "a") };
    let chosen = retrieval.choose(&history(&items), 4, &asked, None).unwrap();
    let got: Vec<_> =
        chosen.iter().map(|i| (i.id.as_str(), i.field("text"), i.field("tag"))).collect();
    assert_eq!(got, [("2", Some("a a"), Some("tag 3")), ("0", Some("a b"), Some("tag 2"))]);
    let middle = Retrieval { order: Order::End, ..retrieval };
    let reversed = middle.choose(&history(&items), 4, &asked, None).unwrap();
    assert_eq!(reversed, chosen.iter().rev().cloned().collect::<Vec<_>>());
    let refused = retrieval.choose(&history(&items), 4, &request("q", "a"), None);
    assert!(matches!(refused, Err(RetrievalError::NoOutputField)));
    let wrong = Request { output: Some("score"), ..asked };
    let refused = retrieval.choose(&history(&items), 4, &wrong, None);
    assert!(
        matches!(refused, Err(RetrievalError::NoOutput { item, field }) if item == "3" && field == "score")
    );
    // Two random retrievers draw apart: outputs are not simply the inputs' own.
    let both =
        Retrieval { outputs: Some(Retriever::Random), ..Retrieval::top(Retriever::Random, 4, 0) };
    let own = |asked: &Request<'_>| {
        let chosen = both.choose(&history(&items), 4, asked, None).unwrap();
        chosen.iter().all(|i| i.field("tag") == Some(&format!("tag {}", i.id)))
    };
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    assert!(!names.iter().all(|name| own(&Request { item: name, ..asked })));
}

#[test]
fn more_than_there_is_cannot_be_seen() {
    let items = items(&["a"]);
    let refused = Retrieval::top(Retriever::Recency, 1, 0).choose(
        &history(&items),
        2,
        &request("q", ""),
        None,
    );
    assert!(matches!(refused, Err(RetrievalError::Visible { visible: 2, items: 1 })));
    assert_eq!((history(&items).len(), history(&items).is_empty()), (1, false));
}

#[test]
fn random_is_uniform_and_keyed() {
    for retriever in [Retriever::Random, Retriever::RandomLamp] {
        let mut firsts = [0u32; 5];
        for i in 0..2000 {
            let name = i.to_string();
            let chosen = choose(Retrieval::top(retriever, 1, 1), &["x"; 5], &request(&name, ""));
            firsts[chosen[0]] += 1;
        }
        // 400 expected each, standard deviation 18.
        assert!(firsts.iter().all(|n| (310..490).contains(n)), "{firsts:?}");
    }
    let draw = |seed, user: u8, item: &str| {
        let asked = Request { user: UserKey([user; 32]), ..request(item, "") };
        choose(Retrieval::top(Retriever::Random, 20, seed), &["x"; 20], &asked)
    };
    let base = draw(1, 1, "q");
    assert_eq!(base, draw(1, 1, "q"));
    assert!([draw(2, 1, "q"), draw(1, 2, "q"), draw(1, 1, "r")].iter().all(|d| *d != base));
    // With replacement: as many as asked for, some of them twice.
    let lamp = choose(Retrieval::top(Retriever::RandomLamp, 9, 1), &["x"; 3], &request("q", ""));
    assert_eq!(lamp.len(), 9);
    assert!(
        choose(Retrieval::top(Retriever::RandomLamp, 9, 1), &[""; 0], &request("q", "")).is_empty()
    );
}

#[test]
fn spelled_in_configs() {
    let full: Retrieval = toml::from_str(
        r#"retriever = "bm25-okapi"
           outputs = "full_random"
           number = 0.5
           offset = 3
           order = "middle""#,
    )
    .unwrap();
    let expected = Retrieval {
        outputs: Some(Retriever::FullRandom),
        number: Amount::Share(0.5),
        offset: Amount::Count(3),
        order: Order::Middle,
        ..Retrieval::top(Retriever::Bm25Okapi, 0, 0)
    };
    assert_eq!(full, expected);
    assert!(full.needs_pool() && full.check().is_ok());
    assert_eq!(toml::from_str::<Retrieval>(&toml::to_string(&full).unwrap()).unwrap(), full);
    let short: Retrieval = toml::from_str("retriever = \"ranbm25\"\nnumber = 2").unwrap();
    assert_eq!(short, Retrieval::top(Retriever::RanBm25, 2, 0));
    assert!(short.needs_pool() && short.check().is_err());
    assert!(toml::from_str::<Retrieval>("retriever = \"contriever\"\nnumber = 2").is_err());
    assert!(!Retrieval::NONE.needs_pool());
    assert_eq!([0, 1, 4, 7, 8].map(study_pool), [None, Some(91), Some(287), Some(18), None]);
}

#[test]
fn threads_share_a_history() {
    let texts: Vec<String> = (0..60).map(|n| format!("a b{} c{} all", n % 7, n % 11)).collect();
    let items = items(&texts);
    for retriever in OWN {
        let retrieval = Retrieval::top(retriever, 3, 0);
        let ask = |history: &History<'_>, at: usize| {
            let item = &items[at];
            let asked = request(&item.id, item.field("text").unwrap());
            numbers(&retrieval.choose(history, at, &asked, None).unwrap())
        };
        let shared = history(&items);
        let together: Vec<_> = (0..60).into_par_iter().rev().map(|at| ask(&shared, at)).collect();
        let alone: Vec<_> = (0..60).rev().map(|at| ask(&history(&items[..at]), at)).collect();
        assert_eq!(together, alone, "{retriever:?}");
    }
}

proptest! {
    #[test]
    fn choices_are_distinct_earlier_and_blind_to_later(
        texts in proptest::collection::vec("[ab]( [abc]){0,4}", 0..12),
        at in 0usize..12, count in 0usize..6, which in 0usize..6, order in 0usize..4,
        asked in "[abc]( [abc]){0,3}", twin in any::<bool>(),
    ) {
        let at = at.min(texts.len());
        let order = [Order::Start, Order::End, Order::Middle, Order::Random][order];
        let retrieval = Retrieval { order, ..Retrieval::top(OWN[which], count, 1) };
        let request = Request { twin: twin.then_some(("text", &*asked)), ..request("q", &asked) };
        let items_now = items(&texts);
        let history_now = history(&items_now);
        let chosen = numbers(&retrieval.choose(&history_now, at, &request, None).unwrap());
        let dropped = twin && OWN[which] == Retriever::Bm25Study && texts[..at].contains(&asked);
        let left = at - usize::from(dropped);
        prop_assert!(chosen.iter().all(|&i| i < at));
        if OWN[which] == Retriever::RandomLamp {
            prop_assert_eq!(chosen.len(), if at == 0 { 0 } else { count });
        } else {
            prop_assert_eq!(chosen.len(), count.min(left));
            prop_assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len());
        }
        // Other texts later on, or none at all, or other requests before: the same choice.
        let mut changed = texts.clone();
        changed.iter_mut().skip(at).for_each(|d| d.push_str(" a c c"));
        for others in [&changed[..], &texts[..at]] {
            let others = items(others);
            let history = history(&others);
            for before in (0..=others.len()).rev() {
                retrieval.choose(&history, before, &super::Request { item: "r", ..request }, None).unwrap();
            }
            let again = retrieval.choose(&history, at, &request, None).unwrap();
            prop_assert_eq!(numbers(&again), chosen.clone());
        }
    }
}
