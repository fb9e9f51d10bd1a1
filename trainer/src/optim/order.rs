//! In which order a user's items are learnt from.
//!
//! There is no length-grouped order, though OPPU's code has one: it exists to save padding, and a packed batch has none.

use kernels::random::philox;

/// The last word of the counters used here, so that no other use of a user's key meets the same bits ("ORDR").
const STREAM: u32 = 0x4f52_4452;

/// The order of a user's items in one epoch, cut into the batches of its steps.
///
/// *Order*: a function of (key, epoch, number of items) alone, so it is the same wherever and beside whomever the user
/// is trained, and can be made again after an interruption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    items: Vec<u32>,
    batch: usize,
}

impl Order {
    /// Shuffles `0..items` (Fisher-Yates, every order equally likely) for `epoch`; `key` is the user's
    /// [`crate::ids::UserKey::random_key`]. A batch of 0 is taken as 1.
    pub fn new(items: u32, batch: u32, epoch: u32, key: [u32; 2]) -> Self {
        let mut order: Vec<u32> = (0..items).collect();
        for i in (1..items).rev() {
            let j = below(i + 1, |attempt| philox(key, [i, epoch, attempt, STREAM])[0]);
            order.swap(i as usize, j as usize);
        }
        Self { items: order, batch: batch.max(1) as usize }
    }

    /// The items of each step; the last may be fewer than a batch.
    pub fn batches(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.items.chunks(self.batch)
    }

    /// The items of the epoch's `step`-th step, from 0; empty beyond the last.
    pub fn batch(&self, step: u32) -> &[u32] {
        self.items.chunks(self.batch).nth(step as usize).unwrap_or(&[])
    }
}

/// A number in `0..n`, each equally likely: Lemire's multiplication with rejection, one draw per attempt.
fn below(n: u32, draw: impl Fn(u32) -> u32) -> u32 {
    // Low words under this would favour some results: 2³² mod n.
    let unfair = n.wrapping_neg() % n;
    let mut attempt = 0;
    loop {
        let product = u64::from(draw(attempt)) * u64::from(n);
        let [low, high] = [product & 0xffff_ffff, product >> 32];
        // The attempt counter bounds the loop for a broken generator; a sound one passes with p > 1/2 each time.
        if low >= u64::from(unfair) || attempt == 1000 {
            return u32::try_from(high).unwrap_or(0);
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_item_once_in_batches_of_the_asked_size() {
        for items in [0u32, 1, 2, 7, 8, 100] {
            let order = Order::new(items, 8, 3, [1, 2]);
            let sizes: Vec<usize> = order.batches().map(<[u32]>::len).collect();
            assert_eq!(sizes.len(), items.div_ceil(8) as usize);
            assert!(sizes.iter().rev().skip(1).all(|&n| n == 8));
            let mut all: Vec<u32> = order.batches().flatten().copied().collect();
            assert!((0..items.div_ceil(8)).flat_map(|s| order.batch(s)).eq(all.iter()));
            all.sort_unstable();
            assert_eq!(all, (0..items).collect::<Vec<_>>());
            assert!(order.batch(items.div_ceil(8)).is_empty());
        }
    }

    #[test]
    fn differs_by_epoch_and_key_only() {
        let order = |epoch, key| Order::new(50, 8, epoch, key);
        assert_eq!(order(0, [1, 2]), order(0, [1, 2]));
        assert_ne!(order(0, [1, 2]), order(1, [1, 2]));
        assert_ne!(order(0, [1, 2]), order(0, [2, 1]));
    }

    #[test]
    fn all_orders_are_equally_likely() {
        let mut counts: BTreeMap<Vec<u32>, u32> = BTreeMap::new();
        let trials = 24_000;
        for epoch in 0..trials {
            *counts.entry(Order::new(4, 1, epoch, [5, 6]).items).or_default() += 1;
        }
        assert_eq!(counts.len(), 24);
        let expected = f64::from(trials) / 24.0;
        let chi: f64 = counts.values().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
        // Chi-square of 23 degrees of freedom exceeds 49.7 with probability .001; the draws are fixed.
        assert!(chi < 49.7, "{chi}");
    }

    #[test]
    fn unfair_draws_are_drawn_again() {
        // n = 3: 2³² mod 3 = 1, so only a low word of 0 is unfair: draw 0, then take the next.
        let drawn = below(3, |attempt| if attempt == 0 { 0 } else { u32::MAX });
        assert_eq!(drawn, 2);
        assert_eq!(below(3, |_| 0), 0, "a broken generator ends all the same");
        assert_eq!(below(1, |_| 77), 0);
    }
}
