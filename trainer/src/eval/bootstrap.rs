//! Paired statistics: percentile bootstrap with counter-based draws, exact sign test.

use super::EvalError;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How intervals are made: the percentile bootstrap of a paired difference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// Seed; a replicate's draws depend on it, on the replicate and on the unit alone.
    pub seed: u64,
    /// Resamples.
    pub replicates: u32,
    /// Share of resamples inside the interval, in (0, 1).
    pub confidence: f64,
}

impl Default for Bootstrap {
    /// 10,000 resamples, 95 %.
    fn default() -> Self {
        Self { seed: 0, replicates: 10_000, confidence: 0.95 }
    }
}

/// A two-sided interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
}

/// Two arms' sums per unit: `[units, columns]`, row-major.
pub(super) struct Paired<'a> {
    pub(super) arm: &'a [f64],
    pub(super) reference: &'a [f64],
    pub(super) columns: usize,
}

impl Bootstrap {
    /// Interval of mean(arm) - mean(reference) over paired values, one a unit.
    ///
    /// *Order*: deterministic for any number of threads.
    ///
    /// # Errors
    /// No values, unequal lengths, parameters out of range.
    pub fn mean_difference(&self, arm: &[f64], reference: &[f64]) -> Result<Interval, EvalError> {
        if arm.len() != reference.len() {
            return Err(EvalError::Bootstrap("the arms have different numbers of values"));
        }
        let mean = |sums: &[f64]| sums[0] / arm.len() as f64;
        self.difference("value", &Paired { arm, reference, columns: 1 }, mean)
    }

    /// Interval of statistic(sum of arm's rows) - statistic(sum of reference's rows) when units are
    /// drawn with replacement, the same for both. `unit` names the stream of draws.
    pub(super) fn difference(
        &self,
        unit: &str,
        paired: &Paired<'_>,
        statistic: impl Fn(&[f64]) -> f64 + Sync,
    ) -> Result<Interval, EvalError> {
        let columns = paired.columns;
        let units = paired.arm.len() / columns;
        if units == 0 {
            return Err(EvalError::Empty { what: "bootstrap".to_owned() });
        }
        if self.replicates == 0 {
            return Err(EvalError::Bootstrap("needs at least one resample"));
        }
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            return Err(EvalError::Bootstrap("the confidence must lie between 0 and 1"));
        }
        let replicate = |number: u32| {
            let mut draws = Draws::new(self.seed, unit, number, units);
            let mut sums = vec![0.0; 2 * columns];
            let (arm, reference) = sums.split_at_mut(columns);
            for _ in 0..units {
                let row = draws.next() * columns;
                add(arm, &paired.arm[row..row + columns]);
                add(reference, &paired.reference[row..row + columns]);
            }
            statistic(arm) - statistic(reference)
        };
        let mut values: Vec<f64> = (0..self.replicates).into_par_iter().map(replicate).collect();
        values.sort_by(f64::total_cmp);
        let tail = (1.0 - self.confidence) / 2.0;
        Ok(Interval { lo: quantile(&values, tail), hi: quantile(&values, 1.0 - tail) })
    }
}

fn add(sums: &mut [f64], row: &[f64]) {
    sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
}

/// Linear interpolation between the order statistics at q (n - 1), as numpy's default.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= at < len")]
    let below = at.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (at - at.floor())
}

/// Unit numbers of one replicate: BLAKE3 of (unit, seed, replicate) in counter mode.
struct Draws {
    stream: blake3::OutputReader,
    block: [u8; 512],
    used: usize,
    units: u64,
}

impl Draws {
    fn new(seed: u64, unit: &str, replicate: u32, units: usize) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 bootstrap");
        hasher.update(&seed.to_le_bytes()).update(&replicate.to_le_bytes()).update(unit.as_bytes());
        Self { stream: hasher.finalize_xof(), block: [0; 512], used: 512, units: units as u64 }
    }

    /// A number below `units`; 64 random bits scaled, so its bias is below units / 2^64.
    fn next(&mut self) -> usize {
        if self.used == self.block.len() {
            self.stream.fill(&mut self.block);
            self.used = 0;
        }
        let mut word = [0; 8];
        word.copy_from_slice(&self.block[self.used..self.used + 8]);
        self.used += 8;
        let scaled = (u128::from(u64::from_le_bytes(word)) * u128::from(self.units)) >> 64;
        usize::try_from(scaled).unwrap_or(0)
    }
}

/// Two-sided exact sign test: min(1, 2 P(X <= min(better, worse))), X ~ Binomial(better + worse, 1/2).
///
/// Ties are left out before; 1 when nothing differs.
pub fn sign_test(better: u64, worse: u64) -> f64 {
    let (n, few) = (better + worse, better.min(worse));
    // ln of the largest term, C(n, few) / 2^n, then the smaller ones as ratios of it.
    let ratio = |k: u64| ((n - k) as f64 / (k + 1) as f64).ln();
    let largest = (0..few).map(ratio).sum::<f64>() - n as f64 * std::f64::consts::LN_2;
    let (mut term, mut sum) = (1.0, 1.0);
    for k in (1..=few).rev() {
        term *= k as f64 / (n - k + 1) as f64;
        sum += term;
    }
    (2.0 * largest.exp() * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bootstrap(seed: u64, replicates: u32) -> Bootstrap {
        Bootstrap { seed, replicates, ..Bootstrap::default() }
    }

    #[test]
    fn sign_test_against_binomial_tables() {
        let cases = [
            (0, 0, 1.0),
            (1, 0, 1.0),
            (5, 0, 0.0625),
            (8, 2, 0.109375),
            (9, 1, 0.021484375),
            (5, 5, 1.0),
        ];
        for (better, worse, p) in cases {
            assert!((sign_test(better, worse) - p).abs() < 1e-12, "{better} {worse}");
            assert!((sign_test(worse, better) - p).abs() < 1e-12);
        }
        // The normal approximation with continuity correction: z = (600 - 500 - .5) / sqrt(250).
        assert!((sign_test(600, 400) / 3.1e-10 - 1.0).abs() < 0.2, "{}", sign_test(600, 400));
        assert!(sign_test(0, 100_000) < 1e-300);
    }

    #[test]
    fn quantiles_interpolate() {
        let values = [0.0, 1.0, 2.0, 3.0];
        assert!((quantile(&values, 0.5) - 1.5).abs() < 1e-15);
        assert!((quantile(&values, 1.0) - 3.0).abs() < 1e-15);
        assert!((quantile(&[7.0], 0.3) - 7.0).abs() < 1e-15);
    }

    /// The interval of a mean of n values is near mean +- 1.96 s / sqrt(n).
    #[test]
    fn width_matches_the_normal_theory() {
        let n = 400_u32;
        let values: Vec<f64> = (0..n).map(|i| f64::from(i * 7919 % n) / f64::from(n)).collect();
        let zeros = vec![0.0; values.len()];
        let interval = bootstrap(1, 4000).mean_difference(&values, &zeros).unwrap();
        let half = 1.96 * (1.0 / 12.0_f64).sqrt() / f64::from(n).sqrt();
        let mean = values.iter().sum::<f64>() / f64::from(n);
        assert!((interval.lo - (mean - half)).abs() < 0.1 * half, "{interval:?} {mean} {half}");
        assert!((interval.hi - (mean + half)).abs() < 0.1 * half, "{interval:?} {mean} {half}");
    }

    #[test]
    fn pairing_removes_what_arms_share() {
        let base: Vec<f64> = (0..50).map(|i| f64::from(i % 7)).collect();
        let moved: Vec<f64> = base.iter().map(|v| v + 0.25).collect();
        let interval = bootstrap(3, 500).mean_difference(&moved, &base).unwrap();
        assert!((interval.lo - 0.25).abs() < 1e-12 && (interval.hi - 0.25).abs() < 1e-12);
    }

    #[test]
    fn draws_are_uniform() {
        let mut counts = [0_u32; 10];
        for replicate in 0..100 {
            let mut draws = Draws::new(9, "user", replicate, 10);
            (0..100).for_each(|_| counts[draws.next()] += 1);
        }
        // 1000 expected, standard deviation 30.
        assert!(counts.iter().all(|c| (850..1150).contains(c)), "{counts:?}");
        let first = |seed, unit, replicate| {
            let mut draws = Draws::new(seed, unit, replicate, 1 << 40);
            [draws.next(), draws.next()]
        };
        let base = first(1, "user", 0);
        assert!(
            [first(2, "user", 0), first(1, "query", 0), first(1, "user", 1)]
                .iter()
                .all(|d| *d != base)
        );
    }

    #[test]
    fn bad_parameters_are_refused() {
        assert!(bootstrap(0, 10).mean_difference(&[], &[]).is_err());
        assert!(bootstrap(0, 10).mean_difference(&[1.0], &[]).is_err());
        assert!(bootstrap(0, 0).mean_difference(&[1.0], &[1.0]).is_err());
        let wide = Bootstrap { confidence: 1.0, ..Bootstrap::default() };
        assert!(wide.mean_difference(&[1.0], &[1.0]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn same_bits_for_any_threads(
            values in proptest::collection::vec((-5.0..5.0f64, -5.0..5.0f64), 1..40), seed: u64,
        ) {
            let (arm, reference): (Vec<f64>, Vec<f64>) = values.into_iter().unzip();
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| bootstrap(seed, 200).mean_difference(&arm, &reference)).unwrap()
            };
            let (one, three) = (run(1), run(3));
            prop_assert_eq!((one.lo.to_bits(), one.hi.to_bits()), (three.lo.to_bits(), three.hi.to_bits()));
            prop_assert!(one.lo <= one.hi);
            let flipped = bootstrap(seed, 200).mean_difference(&reference, &arm).unwrap();
            prop_assert!((flipped.lo + one.hi).abs() < 1e-9 && (flipped.hi + one.lo).abs() < 1e-9);
        }
    }
}
