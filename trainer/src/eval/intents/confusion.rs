//! What is taken for what.

use super::Outcome;
use crate::eval::EvalError;

/// Targets by the intent that came and the one answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    intents: usize,
    /// `[gold, answer]`.
    counts: Vec<u64>,
}

impl Confusion {
    /// Nothing yet, of `intents` intents.
    pub fn new(intents: usize) -> Self {
        Self { intents, counts: vec![0; intents * intents] }
    }

    /// += a target.
    ///
    /// # Errors
    /// An intent that there is not.
    pub fn add(&mut self, outcome: &Outcome) -> Result<(), EvalError> {
        let (gold, answer) = (outcome.gold as usize, outcome.answer as usize);
        if gold.max(answer) >= self.intents {
            let what = format!("intent {} of {}", gold.max(answer), self.intents);
            return Err(EvalError::Intent(what));
        }
        self.counts[gold * self.intents + answer] += 1;
        Ok(())
    }

    /// Targets of `gold` answered `answer`; 0 of intents that there are not.
    pub fn count(&self, gold: u32, answer: u32) -> u64 {
        let (gold, answer) = (gold as usize, answer as usize);
        let inside = gold < self.intents && answer < self.intents;
        if inside { self.counts[gold * self.intents + answer] } else { 0 }
    }

    /// Shares of the answers to each of the `listed` intents' targets, `[listed, listed + 1]`, the last column all other
    /// answers together; rows without targets are 0.
    pub fn shares(&self, listed: &[u32]) -> Vec<f64> {
        let mut shares = Vec::with_capacity(listed.len() * (listed.len() + 1));
        for &gold in listed {
            let start = gold as usize * self.intents;
            let row = self.counts.get(start..start + self.intents).unwrap_or(&[]);
            let total: u64 = row.iter().sum();
            let share = |count: u64| if total > 0 { count as f64 / total as f64 } else { 0.0 };
            let inside: Vec<u64> = listed.iter().map(|&answer| self.count(gold, answer)).collect();
            shares.extend(inside.iter().map(|&count| share(count)));
            shares.push(share(total.saturating_sub(inside.iter().sum())));
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_by_hand() {
        let mut confusion = Confusion::new(4);
        for (gold, answer) in [(0, 0), (0, 0), (0, 1), (0, 3), (2, 0), (1, 1)] {
            confusion.add(&Outcome { target: 0, gold, answer, rank: 1 }).unwrap();
        }
        assert_eq!(
            (confusion.count(0, 0), confusion.count(0, 3), confusion.count(9, 0)),
            (2, 1, 0)
        );
        let shares = confusion.shares(&[1, 0, 3]);
        assert_eq!(shares[..4], [1.0, 0.0, 0.0, 0.0]);
        assert_eq!(shares[4..8], [0.25, 0.5, 0.25, 0.0]);
        assert_eq!(shares[8..], [0.0; 4]);
        assert_eq!(confusion.shares(&[2])[..], [0.0, 1.0]);
        assert_eq!(confusion.shares(&[7])[..], [0.0, 0.0]);
        let outside = Outcome { target: 0, gold: 0, answer: 4, rank: 1 };
        assert!(confusion.add(&outside).is_err());
    }
}
