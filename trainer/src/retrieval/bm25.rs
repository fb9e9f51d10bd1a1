//! BM25 Okapi with the numbers of `rank_bm25` 0.2.2 (`BM25Okapi`), in f64 and in its order of sums.

use std::collections::BTreeMap;

const K1: f64 = 1.5;
const B: f64 = 0.75;
/// A negative idf is replaced by this share of the mean idf.
const EPSILON: f64 = 0.25;

/// An index over documents, grown one by one; a word is what stands between single spaces.
///
/// Empty words count, as with Python's `split(" ")`; nothing is lower-cased.
#[derive(Debug, Clone, Default)]
pub struct Bm25 {
    /// Word -> number, by first occurrence: the mean idf is summed in that order.
    words: BTreeMap<String, usize>,
    /// Number of documents with the word.
    containing: Vec<u32>,
    /// Per document: occurrences by word number.
    counts: Vec<BTreeMap<usize, u32>>,
    /// Per document: words with repetition.
    lengths: Vec<u32>,
}

impl Bm25 {
    /// Adds a document at the end.
    pub fn push(&mut self, document: &str) {
        let mut counts = BTreeMap::new();
        let mut length = 0;
        for word in document.split(' ') {
            let number = match self.words.get(word) {
                Some(&number) => number,
                None => {
                    let number = self.containing.len();
                    self.words.insert(word.to_owned(), number);
                    self.containing.push(0);
                    number
                }
            };
            let count = counts.entry(number).or_insert(0);
            if *count == 0 {
                self.containing[number] += 1;
            }
            *count += 1;
            length += 1;
        }
        self.counts.push(counts);
        self.lengths.push(length);
    }

    /// idf(t) = ln(N - n_t + .5) - ln(n_t + .5), negative ones replaced by `EPSILON` x the mean over
    /// all words (negatives included); by word number.
    fn idf(&self) -> Vec<f64> {
        let n = self.lengths.len() as f64;
        let raw = |&with: &u32| (n - f64::from(with) + 0.5).ln() - (f64::from(with) + 0.5).ln();
        let mut idf: Vec<f64> = self.containing.iter().map(raw).collect();
        let floor = EPSILON * (idf.iter().sum::<f64>() / idf.len() as f64);
        idf.iter_mut().filter(|value| **value < 0.0).for_each(|value| *value = floor);
        idf
    }

    /// score(d) = sum over the query's words, with repetition, of idf f (k1+1) / (f + k1 (1 - b + b |d|/avg)).
    ///
    /// An unknown word adds nothing. Empty for an empty index.
    pub fn scores(&self, query: &str) -> Vec<f64> {
        let idf = self.idf();
        let total: f64 = self.lengths.iter().map(|&l| f64::from(l)).sum();
        let average = total / self.lengths.len() as f64;
        let known: Vec<usize> =
            query.split(' ').filter_map(|word| self.words.get(word).copied()).collect();
        let documents = self.counts.iter().zip(&self.lengths);
        let score = |(counts, &length): (&BTreeMap<usize, u32>, &u32)| {
            let norm = K1 * (1.0 - B + B * f64::from(length) / average);
            known.iter().fold(0.0, |sum, word| {
                let f = f64::from(counts.get(word).copied().unwrap_or(0));
                sum + idf[*word] * (f * (K1 + 1.0) / (f + norm))
            })
        };
        documents.map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CORPUS: [&str; 5] = [
        "description: a robot dreams of the sea tag: sci-fi\n",
        "description: two friends travel the sea tag: comedy\n",
        "description: a war in the desert tag: violence\n",
        "description: the robot falls in love tag: romance\n",
        "description: robot robot robot war tag: action\n",
    ];
    const QUERY: &str = "description: a robot at war";

    fn index(documents: &[&str]) -> Bm25 {
        let mut index = Bm25::default();
        documents.iter().for_each(|d| index.push(d));
        index
    }

    fn close(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        // A few roundings apart: the platform's ln.
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-14), "{got:?}");
    }

    /// To six places the values of rank_bm25 0.2.2; the further digits are from its formulas in Python.
    #[test]
    fn golden() {
        let expected = [
            0.5303760510876339,
            0.11186873367005018,
            0.784813206912476,
            0.22373746734010036,
            0.6675256172756825,
        ];
        close(&index(&CORPUS).scores(QUERY), &expected);
        // One document: every idf is ln(.5) - ln(1.5), so the mean is negative and so is the score.
        close(&index(&CORPUS[..1]).scores(QUERY), &[-0.75 * 3.0_f64.ln()]);
        let idf = index(&CORPUS).idf();
        assert!(idf.iter().all(|value| *value > 0.0));
    }

    #[test]
    fn empty_words_count_and_unknown_words_do_not() {
        let index = index(&["a  b", "c", "d e"]);
        assert_eq!(index.lengths, [3, 1, 2]);
        assert!(index.scores(" ")[0] > 0.0);
        assert_eq!(index.scores("zebra"), [0.0; 3]);
        let (once, twice) = (index.scores("c")[1], index.scores("c c")[1]);
        assert!((2.0 * once - twice).abs() < 1e-15);
    }

    #[test]
    fn empty_index_and_empty_text() {
        assert!(Bm25::default().scores("a").is_empty());
        assert_eq!(index(&["", ""]).scores("a"), [0.0; 2]);
    }
}
