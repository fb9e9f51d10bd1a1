//! Numbers by counter: what for, of what, nothing else.

use crate::ids::UserId;
use kernels::random::philox;

/// What a number is for: the last word of its counter.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    // The population's.
    Popularity = 1,
    ByPart,
    ByWeekend,
    ByLocation,
    After,
    Place,
    // A person's.
    Length,
    Cold,
    Component,
    Mixture,
    Share,
    OwnIntent,
    OwnWeight,
    OwnPlace,
    // An event's.
    Gap,
    Location,
    Event,
}

/// The numbers of the population or of one person.
pub(super) struct Draws {
    key: [u32; 2],
}

impl Draws {
    pub(super) fn population(seed: u64) -> Self {
        let hash = blake3::derive_key("myriad 2026 generated population", &seed.to_le_bytes());
        let word = |i: usize| u32::from_le_bytes([0, 1, 2, 3].map(|b| hash[4 * i + b]));
        Self { key: [word(0), word(1)] }
    }

    pub(super) fn person(id: &UserId, seed: u64) -> Self {
        Self { key: id.key().random_key(seed) }
    }

    /// Uniform in `[0, 1)`, a multiple of 2^-53.
    pub(super) fn uniform(&self, purpose: Purpose, of: [u32; 2]) -> f64 {
        // "GENE": no other use of a person's key meets the same counters.
        let words = philox(self.key, [of[0], of[1], 0x4745_4E45, purpose as u32]);
        let bits = (u64::from(words[0]) << 21) | u64::from(words[1] >> 11);
        bits as f64 / (1_u64 << 53) as f64
    }

    /// Mean 0 and variance 1, uniform: bounded, and the same on every machine.
    pub(super) fn unit(&self, purpose: Purpose, of: [u32; 2]) -> f64 {
        (self.uniform(purpose, of) - 0.5) * 12.0_f64.sqrt()
    }

    /// A number below `n`; its bias is below n / 2^53.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= x < n")]
    pub(super) fn below(&self, n: u32, purpose: Purpose, of: [u32; 2]) -> u32 {
        (self.uniform(purpose, of) * f64::from(n)) as u32
    }
}

/// The place at which the running sum of shares passes `at`; the last one with a share if rounding leaves none.
pub(super) fn pick(shares: &[f64], at: f64) -> u32 {
    let mut sum = 0.0;
    let mut last = 0;
    for (place, &share) in (0..).zip(shares) {
        if share > 0.0 {
            last = place;
        }
        sum += share;
        if at < sum {
            return place;
        }
    }
    last
}

/// Weights given by their logarithms, to shares with sum 1.
pub(super) fn shares(logs: &mut [f64]) {
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logs.iter_mut().for_each(|x| *x = (*x - most).exp());
    let sum: f64 = logs.iter().sum();
    logs.iter_mut().for_each(|x| *x /= sum);
}
