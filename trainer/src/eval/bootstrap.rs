//! Paired statistics: percentile bootstrap with counter-based draws, exact sign test.

use super::EvalError;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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

/// Sums per unit, `[units, width]` row-major, and the unit's name, which picks the stream of draws.
pub(super) struct Rows<'a> {
    pub(super) unit: &'static str,
    pub(super) sums: &'a [f64],
    pub(super) width: usize,
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
        let sums: Vec<f64> = arm.iter().zip(reference).map(|(a, r)| a - r).collect();
        let resamples = self.resample(&Rows { unit: "value", sums: &sums, width: 1 })?;
        Ok(self.interval(resamples.iter().map(|sum| sum[0] / arm.len() as f64)))
    }

    /// Draws the units with replacement, as many as there are: per resample the sums over its rows.
    ///
    /// One matrix holds all arms, so that every arm meets the same draws.
    ///
    /// # Errors
    /// No units, parameters out of range.
    pub(super) fn resample(&self, rows: &Rows<'_>) -> Result<Vec<Vec<f64>>, EvalError> {
        if self.replicates == 0 {
            return Err(EvalError::Bootstrap("needs at least one resample"));
        }
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            return Err(EvalError::Bootstrap("the confidence must lie between 0 and 1"));
        }
        let classes = Classes::new(rows);
        if classes.of_unit.is_empty() {
            return Err(EvalError::Empty { what: "bootstrap".to_owned() });
        }
        let resample = |counts: &mut Vec<u32>, replicate: u32| {
            counts.fill(0);
            let mut draws = Draws::new(self.seed, rows.unit, replicate, classes.of_unit.len());
            for _ in 0..classes.of_unit.len() {
                counts[classes.of_unit[draws.next()]] += 1;
            }
            let mut sums = vec![0.0; rows.width];
            for (&count, row) in counts.iter().zip(classes.rows.chunks_exact(rows.width)) {
                if count > 0 {
                    sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(count) * v);
                }
            }
            sums
        };
        let counts = || vec![0; classes.rows.len() / rows.width];
        Ok((0..self.replicates).into_par_iter().map_init(counts, resample).collect())
    }

    /// The percentile interval of a statistic's values, one a resample.
    pub(super) fn interval(&self, values: impl Iterator<Item = f64>) -> Interval {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let tail = (1.0 - self.confidence) / 2.0;
        Interval { lo: quantile(&values, tail), hi: quantile(&values, 1.0 - tail) }
    }
}

/// Units with equal rows, gathered: with few labels there are few kinds of queries, so a resample
/// costs little more than its draws.
struct Classes {
    /// Class of each unit, numbered by first occurrence.
    of_unit: Vec<usize>,
    /// `[classes, width]`.
    rows: Vec<f64>,
}

impl Classes {
    fn new(rows: &Rows<'_>) -> Self {
        let mut known = BTreeMap::new();
        let mut classes = Self { of_unit: Vec::new(), rows: Vec::new() };
        for row in rows.sums.chunks_exact(rows.width) {
            let bits: Vec<u64> = row.iter().map(|v| v.to_bits()).collect();
            let next = known.len();
            let class = *known.entry(bits).or_insert(next);
            if class == next {
                classes.rows.extend_from_slice(row);
            }
            classes.of_unit.push(class);
        }
        classes
    }
}

/// Linear interpolation between the order statistics at q (n - 1), as numpy's default.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= at < len")]
    let below = at.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (at - at.floor())
}

/// Unit numbers of one replicate: SplitMix64 (a mixed counter) from a BLAKE3 key of (seed, unit, replicate).
struct Draws {
    state: u64,
    units: u64,
}

impl Draws {
    fn new(seed: u64, unit: &str, replicate: u32, units: usize) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 bootstrap");
        hasher.update(&seed.to_le_bytes()).update(&replicate.to_le_bytes()).update(unit.as_bytes());
        let mut key = [0; 8];
        hasher.finalize_xof().fill(&mut key);
        Self { state: u64::from_le_bytes(key), units: units as u64 }
    }

    /// A number below `units`; 64 random bits scaled, so its bias is below units / 2^64.
    fn next(&mut self) -> usize {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^= word >> 31;
        #[expect(clippy::cast_possible_truncation, reason = "below units, a usize")]
        let number = ((u128::from(word) * u128::from(self.units)) >> 64) as usize;
        number
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

    /// Against the sums of the drawn rows, one by one.
    #[test]
    fn gathered_rows_sum_as_drawn() {
        let sums: Vec<f64> = (0..60).map(|i| f64::from(i / 2 % 4)).collect();
        let done =
            bootstrap(2, 20).resample(&Rows { unit: "user", sums: &sums, width: 2 }).unwrap();
        for (replicate, got) in (0..).zip(done) {
            let mut draws = Draws::new(2, "user", replicate, 30);
            let mut expected = [0.0; 2];
            for _ in 0..30 {
                let at = 2 * draws.next();
                expected[0] += sums[at];
                expected[1] += sums[at + 1];
            }
            assert_eq!(got, expected);
        }
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
