//! ROUGE-1 F and ROUGE-L F of one answer, bit-equal to rouge-score 0.1.2 without stemmer.
//!
//! Tokens are the runs of `[a-z0-9]` of the lower-cased text, so accents split words and other scripts have no tokens.

use rougers::{RougeScorer, RougeType, Tokenizer};

/// 2 p r / (p + r) over common words, each counted as often as it is in both; 0 without words.
pub(super) fn rouge_1(gold: &str, answer: &str) -> f64 {
    f_measure(RougeType::N(1), gold, answer)
}

/// 2 p r / (p + r) over the longest common subsequence of the whole texts; 0 without words.
pub(super) fn rouge_l(gold: &str, answer: &str) -> f64 {
    f_measure(RougeType::L, gold, answer)
}

/// NaN if the library refused the kind, which it does for n-grams of other lengths than 1 to 9 alone.
fn f_measure(kind: RougeType, gold: &str, answer: &str) -> f64 {
    RougeScorer::with_tokenizer(vec![kind], Tokenizer::new(false))
        .ok()
        .and_then(|scorer| scorer.score(gold, answer).get(kind))
        .map_or(f64::NAN, |score| score.fmeasure)
}
