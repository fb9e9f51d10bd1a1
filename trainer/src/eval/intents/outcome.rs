//! What became of one target.

use crate::eval::EvalError;
use serde::{Deserialize, Serialize};

/// One target as the metrics see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// Number of the target event in its person's log.
    pub target: usize,
    /// The intent that came.
    pub gold: u32,
    /// The intent ranked first.
    pub answer: u32,
    /// The place of `gold` in the ranking, from 1.
    pub rank: u32,
}

impl Outcome {
    /// Ranks `gold` among scores (probabilities or logits) of all intents, `[intents]`; equal scores by number.
    ///
    /// # Errors
    /// No such intent; a score that is not a number (infinite ones are: a softmax of them may be wanted).
    pub fn new<T: Copy + Into<f64>>(
        target: usize,
        gold: u32,
        scores: &[T],
    ) -> Result<Self, EvalError> {
        let own = value(scores, gold)?;
        let (mut rank, mut answer, mut best) = (1, 0, f64::NEG_INFINITY);
        for (intent, &score) in (0..).zip(scores) {
            let score = number(intent, score.into())?;
            if score > own || (score >= own && intent < gold) {
                rank += 1;
            }
            if score > best {
                (answer, best) = (intent, score);
            }
        }
        Ok(Self { target, gold, answer, rank })
    }
}

/// The `most` best intents with their scores, best first, equal ones by number.
///
/// # Errors
/// A score that is not a number.
pub fn ranked<T: Copy + Into<f64>>(
    scores: &[T],
    most: usize,
) -> Result<Vec<(u32, f64)>, EvalError> {
    let scores = (0..).zip(scores).map(|(n, &s)| Ok((n, number(n, s.into())?)));
    let mut all: Vec<(u32, f64)> = scores.collect::<Result<_, EvalError>>()?;
    // +0 and -0 are equal scores, which total_cmp does not say.
    all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal));
    all.truncate(most);
    Ok(all)
}

fn number(intent: u32, score: f64) -> Result<f64, EvalError> {
    let what = || EvalError::Intent(format!("the score of intent {intent} is not a number"));
    if score.is_nan() { Err(what()) } else { Ok(score) }
}

fn value<T: Copy + Into<f64>>(scores: &[T], intent: u32) -> Result<f64, EvalError> {
    let score = scores.get(intent as usize).copied().map(Into::into);
    score.ok_or_else(|| EvalError::Intent(format!("intent {intent} of {}", scores.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_rank_by_number() {
        let scores = [0.2_f32, 0.3, 0.3, 0.2];
        let of = |gold| Outcome::new(7, gold, &scores).unwrap();
        assert_eq!([0, 1, 2, 3].map(|gold| of(gold).rank), [3, 1, 2, 4]);
        assert!((0..4).all(|gold| of(gold).answer == 1 && of(gold).target == 7));
        let order: Vec<u32> = ranked(&scores, 9).unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(order, [1, 2, 0, 3]);
        assert_eq!(ranked(&scores, 2).unwrap().len(), 2);
        assert_eq!(ranked(&[-0.0_f64, 0.0], 1).unwrap()[0].0, 0);
        assert_eq!(Outcome::new(0, 1, &[-0.0_f64, 0.0]).unwrap().rank, 2);
    }

    #[test]
    fn scores_may_be_logits_but_numbers() {
        let masked = [f64::NEG_INFINITY, -3.0, f64::NEG_INFINITY];
        assert_eq!(Outcome::new(0, 2, &masked).unwrap().rank, 3);
        assert_eq!(Outcome::new(0, 0, &[f64::NEG_INFINITY; 2]).unwrap().answer, 0);
        assert!(Outcome::new(0, 1, &[0.0, 1.0, f64::NAN]).is_err());
        assert!(Outcome::new(0, 0, &[f64::NAN, 1.0]).is_err());
        assert!(Outcome::new(0, 2, &[0.0, 1.0]).is_err());
        assert!(Outcome::new::<f32>(0, 0, &[]).is_err());
        assert!(ranked(&[f32::NAN], 1).is_err());
    }
}
