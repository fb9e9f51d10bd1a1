//! Random numbers of one request: a function of (seed, user, query, purpose, position) and of nothing else.

use super::Request;
use std::collections::BTreeMap;

/// What is drawn. Two purposes of one request share no numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The items, or their inputs alone.
    Inputs = 0,
    /// The items that lend their outputs.
    Outputs = 1,
    /// The order in the prompt.
    Order = 2,
}

/// The numbers, read from position 0 on.
pub(super) struct Draws(blake3::OutputReader);

impl Draws {
    pub(super) fn new(seed: u64, request: &Request<'_>, purpose: Purpose) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 retrieval draws");
        // All but the last part have a fixed length: no two requests hash the same bytes.
        hasher.update(&seed.to_le_bytes()).update(&request.user.0).update(&[purpose as u8]);
        Self(hasher.update(request.item.as_bytes()).finalize_xof())
    }

    /// Uniform in `0..n`, up to a bias of `n / 2^64`; 0 if `n` is 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        let mut word = [0; 8];
        self.0.fill(&mut word);
        let product = u128::from(u64::from_le_bytes(word)) * n as u128;
        usize::try_from(product >> 64).unwrap_or(0)
    }

    /// `0..len` in random order, drawn as it is read: O(log) time and space for each number taken.
    pub(super) fn distinct(self, len: usize) -> Distinct {
        Distinct { draws: self, len, at: 0, moved: BTreeMap::new() }
    }
}

/// A Fisher-Yates shuffle that keeps only the places it has touched.
pub(super) struct Distinct {
    draws: Draws,
    len: usize,
    at: usize,
    /// Place -> the number that stands there now, where it is not the place itself.
    moved: BTreeMap<usize, usize>,
}

impl Iterator for Distinct {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.at == self.len {
            return None;
        }
        let here = self.moved.remove(&self.at).unwrap_or(self.at);
        let place = self.at + self.draws.below(self.len - self.at);
        let taken =
            if place == self.at { here } else { self.moved.insert(place, here).unwrap_or(place) };
        self.at += 1;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UserKey;

    fn draws(item: &str, purpose: Purpose) -> Draws {
        Draws::new(1, &Request::new(UserKey([3; 32]), item, ""), purpose)
    }

    #[test]
    fn distinct_is_a_uniform_permutation() {
        let mut seen = BTreeMap::<Vec<usize>, u32>::new();
        for i in 0..6000 {
            let order: Vec<_> = draws(&i.to_string(), Purpose::Inputs).distinct(3).collect();
            *seen.entry(order).or_insert(0) += 1;
        }
        // 1000 expected of each of the 6, standard deviation 29.
        assert_eq!(seen.len(), 6);
        assert!(seen.values().all(|n| (870..1130).contains(n)), "{seen:?}");
        assert_eq!(draws("q", Purpose::Inputs).distinct(0).next(), None);
        let mut long: Vec<_> = draws("q", Purpose::Inputs).distinct(500).collect();
        assert!(!long.is_sorted());
        long.sort_unstable();
        assert_eq!(long, (0..500).collect::<Vec<_>>());
    }

    #[test]
    fn purposes_share_nothing() {
        let of = |p| draws("q", p).distinct(1000).take(4).collect::<Vec<_>>();
        let all = [Purpose::Inputs, Purpose::Outputs, Purpose::Order].map(of);
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2]);
        assert_eq!(draws("q", Purpose::Order).below(0), 0);
        assert_eq!(draws("q", Purpose::Order).below(1), 0);
    }
}
