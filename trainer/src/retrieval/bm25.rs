//! BM25 over any prefix of a list of documents, from one index of the whole list.
//!
//! Owns: words ([`Split`]), postings, the two formulas ([`Index::okapi`], [`Index::study`]). Knows no
//! items and no users. Numbers are f64, and the order of every sum is fixed: scores over documents
//! `0..n` are bit-equal to those of an index that never saw the others. What a prefix needs comes from
//! the postings, which are sorted by document: a word's document frequency is a binary search, lengths
//! are running totals, and words are numbered by first occurrence, so a prefix's vocabulary is `0..v`.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::OnceLock;

const K1: f64 = 1.5;
const B: f64 = 0.75;
/// A negative idf is replaced by this share of the mean idf.
const EPSILON: f64 = 0.25;

/// What a word is. Nothing is lower-cased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Split {
    /// What stands between single spaces; empty words count, as with Python's `split(" ")`.
    Spaces,
    /// What stands between runs of white space, as with Python's `split()`.
    Whitespace,
}

impl Split {
    fn words(self, text: &str) -> impl Iterator<Item = &str> {
        let parts = text.split(move |c: char| match self {
            Self::Spaces => c == ' ',
            // Python counts the four information separators as white space, Unicode does not.
            Self::Whitespace => c.is_whitespace() || matches!(c, '\x1c'..='\x1f'),
        });
        parts.filter(move |word| self == Self::Spaces || !word.is_empty())
    }
}

/// A word with its first bytes as a number, which decides most comparisons.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Word<'a> {
    head: u64,
    text: &'a str,
}

impl<'a> Word<'a> {
    fn new(text: &'a str) -> Self {
        let mut head = [0; 8];
        let len = text.len().min(8);
        head[..len].copy_from_slice(&text.as_bytes()[..len]);
        Self { head: u64::from_be_bytes(head), text }
    }
}

/// Words in their order, with their numbers.
#[derive(Debug)]
struct Dictionary {
    heads: Vec<u64>,
    /// All words, one after another.
    text: String,
    /// Where each word begins in `text`, and the end.
    starts: Vec<usize>,
    numbers: Vec<usize>,
}

impl Dictionary {
    fn new(words: &BTreeMap<Word<'_>, usize>) -> Self {
        let mut starts = vec![0];
        let mut text = String::new();
        for word in words.keys() {
            text.push_str(word.text);
            starts.push(text.len());
        }
        let heads = words.keys().map(|w| w.head).collect();
        Self { heads, text, starts, numbers: words.values().copied().collect() }
    }

    fn number(&self, text: &str) -> Option<usize> {
        let word = Word::new(text);
        let (mut lo, mut hi) = (0, self.heads.len());
        while lo < hi {
            let middle = lo.midpoint(hi);
            let there = &self.text[self.starts[middle]..self.starts[middle + 1]];
            match self.heads[middle].cmp(&word.head).then_with(|| there.cmp(text)) {
                Ordering::Less => lo = middle + 1,
                Ordering::Equal => return Some(self.numbers[middle]),
                Ordering::Greater => hi = middle,
            }
        }
        None
    }
}

/// A document that has a word, and how often.
#[derive(Debug, Clone, Copy, Default)]
struct Posting {
    document: usize,
    count: u32,
}

/// An index over documents.
#[derive(Debug)]
pub(super) struct Index {
    split: Split,
    dictionary: Dictionary,
    /// Where the postings of word `w` begin; they end where those of `w + 1` begin.
    starts: Vec<usize>,
    /// By word, then by document.
    postings: Vec<Posting>,
    /// Per document: words with repetition.
    lengths: Vec<u32>,
    /// `totals[n]`: words in documents `0..n`, with repetition.
    totals: Vec<u64>,
    /// `vocabulary[n]`: distinct words in documents `0..n`.
    vocabulary: Vec<usize>,
    /// `logs[i] = ln(i + .5)`.
    logs: Vec<f64>,
    /// What replaces a negative idf over all documents.
    whole_floor: OnceLock<f64>,
    /// The same over documents `0..n`, by `n`.
    floors: OnceLock<Vec<f64>>,
}

impl Index {
    /// Indexes the documents: O(words log vocabulary).
    pub(super) fn new<D: AsRef<str>>(split: Split, documents: &[D]) -> Self {
        let mut words = BTreeMap::new();
        // By document, then by first occurrence in it.
        let mut found: Vec<(usize, Posting)> = Vec::new();
        // Per word: where its latest posting is in `found`.
        let mut latest: Vec<usize> = Vec::new();
        let (mut lengths, mut totals, mut vocabulary) = (Vec::new(), vec![0], vec![0]);
        for (document, text) in documents.iter().enumerate() {
            let mut length = 0;
            for word in split.words(text.as_ref()) {
                length += 1;
                let number = *words.entry(Word::new(word)).or_insert(latest.len());
                if number == latest.len() {
                    latest.push(usize::MAX);
                }
                match found.get_mut(latest[number]) {
                    Some((_, posting)) if posting.document == document => posting.count += 1,
                    _ => {
                        latest[number] = found.len();
                        found.push((number, Posting { document, count: 1 }));
                    }
                }
            }
            lengths.push(length);
            totals.push(totals[document] + u64::from(length));
            vocabulary.push(latest.len());
        }
        let (starts, postings) = by_word(latest.len(), &found);
        let logs = (0..=documents.len()).map(|i| (i as f64 + 0.5).ln()).collect();
        let dictionary = Dictionary::new(&words);
        let (whole_floor, floors) = (OnceLock::new(), OnceLock::new());
        Self {
            split,
            dictionary,
            starts,
            postings,
            lengths,
            totals,
            vocabulary,
            logs,
            whole_floor,
            floors,
        }
    }

    /// Scores of documents `0..n` as `rank_bm25` 0.2.2 (`BM25Okapi`) has them for that corpus.
    ///
    /// score(d) = sum over the query's words, with repetition, of idf f (k1+1) / (f + k1 (1 - b + b |d|/avg));
    /// idf = ln(n - df + .5) - ln(df + .5), a negative one replaced by `EPSILON` x the mean over the
    /// vocabulary, negatives included. An unknown word adds nothing.
    ///
    /// *Order*: the query's words as they come; the mean by first occurrence: that of the library.
    pub(super) fn okapi(&self, n: usize, query: &str) -> Vec<f64> {
        let norms = self.norms(n);
        let mut scores = vec![0.0; n];
        for word in self.split.words(query) {
            let postings = self.seen(word, n);
            if postings.is_empty() {
                continue;
            }
            let raw = self.idf(postings.len(), n);
            let idf = if raw < 0.0 { self.floor(n) } else { raw };
            for &Posting { document, count } in postings {
                let f = f64::from(count);
                scores[document] += idf * (f * (K1 + 1.0) / (f + norms[document]));
            }
        }
        scores
    }

    /// Scores of documents `0..n` as the user-profile study defines them.
    ///
    /// score(d) = sum over the distinct words t common to query and document of
    /// ln((n - df + .5) / (df + .5) + 1) f (k1+1) q / (f + k1 (1 - b + b |d|/avg)), q the word's count in
    /// the query. Never negative.
    ///
    /// *Order*: the words sorted by their code points.
    pub(super) fn study(&self, n: usize, query: &str) -> Vec<f64> {
        let norms = self.norms(n);
        let mut scores = vec![0.0; n];
        let mut words: Vec<&str> = self.split.words(query).collect();
        words.sort_unstable();
        for same in words.chunk_by(|a, b| a == b) {
            let postings = self.seen(same[0], n);
            let (df, asked) = (postings.len() as f64, same.len() as f64);
            let idf = ((n as f64 - df + 0.5) / (df + 0.5) + 1.0).ln();
            for &Posting { document, count } in postings {
                let f = f64::from(count);
                scores[document] += idf * (f * (K1 + 1.0) * asked) / (f + norms[document]);
            }
        }
        scores
    }

    /// k1 (1 - b + b |d|/avg) of documents `0..n`.
    fn norms(&self, n: usize) -> Vec<f64> {
        let average = self.totals[n] as f64 / n as f64;
        let norm = |&length: &u32| K1 * (1.0 - B + B * f64::from(length) / average);
        self.lengths[..n].iter().map(norm).collect()
    }

    /// The postings of a word in documents `0..n`.
    fn seen(&self, word: &str, n: usize) -> &[Posting] {
        let Some(number) = self.dictionary.number(word) else { return &[] };
        let all = &self.postings[self.starts[number]..self.starts[number + 1]];
        &all[..all.partition_point(|p| p.document < n)]
    }

    /// ln(n - df + .5) - ln(df + .5).
    fn idf(&self, df: usize, n: usize) -> f64 {
        self.logs[n - df] - self.logs[df]
    }

    /// What replaces a negative idf over documents `0..n`, `n > 0`.
    ///
    /// All prefixes are computed at the first call for a true prefix, one pass over the documents
    /// with running document frequencies; the whole list alone needs none of that.
    fn floor(&self, n: usize) -> f64 {
        if n == self.lengths.len() {
            let frequencies = || self.starts.windows(2).map(|w| w[1] - w[0]);
            return *self.whole_floor.get_or_init(|| self.share_of_mean(n, frequencies()));
        }
        let all = self.floors.get_or_init(|| {
            let mut words_of = vec![Vec::new(); self.lengths.len()];
            for (word, bounds) in self.starts.windows(2).enumerate() {
                self.postings[bounds[0]..bounds[1]]
                    .iter()
                    .for_each(|p| words_of[p.document].push(word));
            }
            let mut frequencies = vec![0; self.starts.len() - 1];
            let mut floors = vec![0.0];
            for (document, words) in words_of.iter().enumerate() {
                words.iter().for_each(|&word| frequencies[word] += 1);
                let known = frequencies[..self.vocabulary[document + 1]].iter().copied();
                floors.push(self.share_of_mean(document + 1, known));
            }
            floors
        });
        all[n]
    }

    /// `EPSILON` x the mean idf of words with these document frequencies, summed as they come.
    fn share_of_mean(&self, n: usize, frequencies: impl ExactSizeIterator<Item = usize>) -> f64 {
        let words = frequencies.len() as f64;
        EPSILON * (frequencies.fold(0.0, |sum, df| sum + self.idf(df, n)) / words)
    }
}

/// Postings found by document, put in order by word: starts per word, postings.
fn by_word(words: usize, found: &[(usize, Posting)]) -> (Vec<usize>, Vec<Posting>) {
    let mut starts = vec![0; words + 1];
    found.iter().for_each(|(word, _)| starts[word + 1] += 1);
    (0..words).for_each(|word| starts[word + 1] += starts[word]);
    let mut next = starts.clone();
    let mut postings = vec![Posting::default(); found.len()];
    for &(word, posting) in found {
        postings[next[word]] = posting;
        next[word] += 1;
    }
    (starts, postings)
}

#[cfg(test)]
#[path = "bm25_tests.rs"]
mod tests;
