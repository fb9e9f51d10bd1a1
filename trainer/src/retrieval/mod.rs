//! Which of a user's earlier items stand in front of a prompt.
//!
//! Owns: the retrievers and their ranking of documents ([`Retrieval::rank`]), BM25 ([`Bm25`]).
//! Must never know: prompts, tokens, files. The caller passes the documents that may be seen; for a
//! history item these are the ones strictly before it ([`earlier`]), never a later one or itself.
//! Start reading at [`Retrieval`].

mod bm25;

pub use bm25::Bm25;

use crate::ids::UserKey;
use serde::{Deserialize, Serialize};

/// How documents are ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retriever {
    /// BM25 Okapi as `rank_bm25` 0.2.2 has it, over words between single spaces; ties to the later document.
    Bm25,
    /// The most recent first.
    Recency,
    /// A draw without replacement that depends on seed, user and query alone.
    Random,
}

/// A retriever with its number of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retrieval {
    /// How to rank.
    pub retriever: Retriever,
    /// How many to take; 0 is no retrieval.
    pub k: usize,
    /// Seed of [`Retriever::Random`].
    #[serde(default)]
    pub seed: u64,
}

/// Who asks for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The user.
    pub user: UserKey,
    /// The id of the item the prompt is for.
    pub item: &'a str,
    /// The text BM25 compares with.
    pub text: &'a str,
}

/// The documents an item at `index` may see: those strictly before it.
pub fn earlier<T>(documents: &[T], index: usize) -> &[T] {
    &documents[..index.min(documents.len())]
}

impl Retrieval {
    /// No retrieval.
    pub const NONE: Self = Self { retriever: Retriever::Recency, k: 0, seed: 0 };

    /// The numbers of at most `k` documents (oldest first in `documents`), most relevant first.
    ///
    /// *Order*: a function of its arguments alone; equal ranks go to the later document.
    pub fn rank<D: AsRef<str>>(&self, documents: &[D], request: &Request<'_>) -> Vec<usize> {
        if self.k == 0 {
            return Vec::new();
        }
        let mut order: Vec<usize> = (0..documents.len()).rev().collect();
        match self.retriever {
            Retriever::Recency => {}
            Retriever::Random => {
                let stream = Stream::new(self.seed, request);
                order.sort_by_cached_key(|&i| stream.word(i));
            }
            Retriever::Bm25 => {
                let mut index = Bm25::default();
                documents.iter().for_each(|d| index.push(d.as_ref()));
                let scores = index.scores(request.text);
                // Stable over the reversed numbers: ties stay with the later document first.
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            }
        }
        order.truncate(self.k);
        order
    }
}

/// The random words of one request, addressed by document number.
struct Stream(blake3::Hasher);

impl Stream {
    fn new(seed: u64, request: &Request<'_>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 random retrieval");
        hasher.update(&seed.to_le_bytes()).update(&request.user.0).update(request.item.as_bytes());
        Self(hasher)
    }

    /// 128 bits: two documents never tie. The document's number ends the input at a fixed length.
    fn word(&self, document: usize) -> u128 {
        let mut hasher = self.0.clone();
        hasher.update(&(document as u64).to_le_bytes());
        let mut word = [0; 16];
        hasher.finalize_xof().fill(&mut word);
        u128::from_le_bytes(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request<'a>(item: &'a str, text: &'a str) -> Request<'a> {
        Request { user: UserKey([3; 32]), item, text }
    }

    fn by(retriever: Retriever, k: usize) -> Retrieval {
        Retrieval { retriever, k, seed: 1 }
    }

    #[test]
    fn recency_and_ties() {
        let documents = ["a b", "c d", "a b", "c d"];
        let asked = request("q", "a");
        assert_eq!(by(Retriever::Recency, 3).rank(&documents, &asked), [3, 2, 1]);
        assert_eq!(by(Retriever::Recency, 9).rank(&documents, &asked), [3, 2, 1, 0]);
        // idf of `a` is 0 here: all tie, the later ones first.
        assert_eq!(by(Retriever::Bm25, 9).rank(&documents, &asked), [3, 2, 1, 0]);
        assert_eq!(by(Retriever::Bm25, 2).rank(&["a b", "x", "y", "a b", "z"], &asked), [3, 0]);
        assert_eq!(Retrieval::NONE.rank(&documents, &asked), [0; 0]);
        assert_eq!(by(Retriever::Bm25, 2).rank(&[""; 0], &asked), [0; 0]);
    }

    #[test]
    fn random_is_uniform_and_keyed() {
        let documents = ["x"; 5];
        let mut firsts = [0u32; 5];
        for i in 0..2000 {
            firsts[by(Retriever::Random, 1).rank(&documents, &request(&i.to_string(), ""))[0]] += 1;
        }
        // 400 expected each, standard deviation 18.
        assert!(firsts.iter().all(|n| (310..490).contains(n)), "{firsts:?}");
        let draw = |seed, user: u8, item: &str| {
            let asked = Request { user: UserKey([user; 32]), item, text: "" };
            Retrieval { retriever: Retriever::Random, k: 20, seed }.rank(&["x"; 20], &asked)
        };
        let base = draw(1, 1, "q");
        assert_eq!(base, draw(1, 1, "q"));
        assert!([draw(2, 1, "q"), draw(1, 2, "q"), draw(1, 1, "r")].iter().all(|d| *d != base));
    }

    proptest! {
        #[test]
        fn results_are_distinct_earlier_and_blind_to_later(
            documents in proptest::collection::vec("[ab]( [abc]){0,4}", 0..12),
            at in 0usize..12, k in 0usize..6, which in 0usize..3,
        ) {
            let retriever = [Retriever::Bm25, Retriever::Recency, Retriever::Random][which];
            let seen = earlier(&documents, at);
            let ranks = by(retriever, k).rank(seen, &request("q", "a c"));
            prop_assert_eq!(ranks.len(), k.min(at).min(documents.len()));
            prop_assert!(ranks.iter().all(|&i| i < at));
            let distinct: std::collections::BTreeSet<_> = ranks.iter().collect();
            prop_assert_eq!(distinct.len(), ranks.len());
            let mut changed = documents.clone();
            changed.iter_mut().skip(at).for_each(|d| d.push_str(" a c c"));
            prop_assert_eq!(by(retriever, k).rank(earlier(&changed, at), &request("q", "a c")), ranks);
        }
    }
}
