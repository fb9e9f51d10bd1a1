//! Retrieval as runs do it: many users with a few queries each, one long history with a query at every item.
//!
//! One thread; users are independent, so threads divide the time. Words follow Zipf's law.
#![expect(clippy::unwrap_used, reason = "a benchmark panics when wrong; its sizes are small")]

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;
use trainer::data::{DataError, Item};
use trainer::ids::{UserId, UserKey};
use trainer::retrieval::{History, Others, Pool, Request, Retrieval, Retriever};

const USERS: usize = 10_000;
/// Users with texts of their own; the others repeat them.
const DISTINCT: usize = 250;
const ITEMS: usize = 100;
const QUERIES: usize = 20;
const LONG: usize = 1_000;
/// Words of a document, and of a query.
const WORDS: usize = 30;
const VOCABULARY: f64 = 20_000.0;

/// A linear congruential generator: the same texts on every machine.
struct Texts(u64);

impl Texts {
    fn unit(&mut self) -> f64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Rank r with a probability of about 1/r.
    fn text(&mut self) -> String {
        let word = |_| format!("word{:.0} ", VOCABULARY.powf(self.unit()));
        "text: ".to_owned() + &(0..WORDS).map(word).collect::<String>() + "score: 3\n"
    }

    fn items(&mut self, count: usize) -> Vec<Item> {
        let item = |n: usize| Item {
            id: n.to_string(),
            fields: BTreeMap::from([("text".to_owned(), self.text())]),
        };
        (0..count).map(item).collect()
    }
}

fn document(item: &Item) -> String {
    item.field("text").unwrap().to_owned()
}

fn history(items: &[Item]) -> History<'_> {
    History::new(items.iter().map(|item| (item, document(item))))
}

const RETRIEVERS: [(&str, Retriever); 5] = [
    ("bm25-okapi", Retriever::Bm25Okapi),
    ("bm25-lamp", Retriever::Bm25Lamp),
    ("bm25-study", Retriever::Bm25Study),
    ("recency", Retriever::Recency),
    ("random", Retriever::Random),
];

fn many_users(c: &mut Criterion) {
    let mut texts = Texts(1);
    let users: Vec<_> = (0..DISTINCT).map(|_| texts.items(ITEMS)).collect();
    let queries: Vec<_> = (0..QUERIES).map(|n| (n.to_string(), texts.text())).collect();
    let mut group =
        c.benchmark_group(format!("{USERS} users x {QUERIES} queries, {ITEMS} items each"));
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group
        .warm_up_time(Duration::from_millis(1))
        .throughput(Throughput::Elements((USERS * QUERIES) as u64));
    for (name, retriever) in RETRIEVERS {
        let retrieval = Retrieval::top(retriever, 4, 0);
        group.bench_function(name, |b| {
            b.iter(|| {
                for items in users.iter().cycle().take(USERS) {
                    let history = history(items);
                    for (id, text) in &queries {
                        let request = Request::new(UserKey([1; 32]), id, text);
                        black_box(retrieval.choose(&history, ITEMS, &request, None).unwrap());
                    }
                }
            });
        });
    }
}

fn every_prefix(c: &mut Criterion) {
    let items = Texts(2).items(LONG);
    let mut group = c.benchmark_group(format!("{LONG} prefix queries of one history"));
    group.sample_size(10).throughput(Throughput::Elements(LONG as u64));
    for (name, retriever) in RETRIEVERS {
        let retrieval = Retrieval::top(retriever, 4, 0);
        group.bench_function(name, |b| {
            b.iter(|| {
                let history = history(&items);
                for (at, item) in items.iter().enumerate() {
                    let request =
                        Request::new(UserKey([1; 32]), &item.id, item.field("text").unwrap());
                    black_box(retrieval.choose(&history, at, &request, None).unwrap());
                }
            });
        });
    }
}

struct Town(Vec<Vec<Item>>);

impl Others for Town {
    fn users(&self) -> usize {
        self.0.len()
    }

    fn items_of(&self, user: usize) -> usize {
        self.0[user].len()
    }

    fn history(&self, user: usize) -> Result<Cow<'_, [Item]>, DataError> {
        Ok(Cow::Borrowed(&self.0[user]))
    }

    fn number_of(&self, _: UserKey) -> Option<usize> {
        None
    }
}

fn pools(c: &mut Criterion) {
    let mut texts = Texts(3);
    let shown = |item: &Item| Some(document(item));
    let town = Town((0..DISTINCT).map(|_| texts.items(ITEMS)).collect());
    let (pool, own) = (Pool::new(&town, &shown), texts.items(4));
    let history = history(&own);
    let queries: Vec<_> = (0..QUERIES).map(|n| (n.to_string(), texts.text())).collect();
    let mut group = c.benchmark_group(format!("{QUERIES} queries over pools, {DISTINCT} users"));
    group.sample_size(10).throughput(Throughput::Elements(QUERIES as u64));
    for (name, retriever) in
        [("full_random", Retriever::FullRandom), ("ranbm25", Retriever::RanBm25)]
    {
        let retrieval = Retrieval { pool: 188, ..Retrieval::top(retriever, 4, 0) };
        group.bench_function(name, |b| {
            b.iter(|| {
                for (id, text) in &queries {
                    let request = Request::new(UserId::new("u").key(), id, text);
                    black_box(retrieval.choose(&history, 4, &request, Some(&pool)).unwrap());
                }
            });
        });
    }
}

criterion_group!(benches, many_users, every_prefix, pools);
criterion_main!(benches);
