//! Counter-based random numbers: Philox4x32-10.
//!
//! Owns the generator and the two draws made of it: uniform numbers and dropout masks. A number is a
//! pure function of (key, counter); there is no stream and no state, so results depend neither on
//! threads nor on who else draws. Knows no user: keys come from the trainer. Start at [`philox`], then
//! [`Dropout`]. Device code must repeat the formulas written here.
//!
//! Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); Random123.

use pulp::{Arch, Simd, WithSimd};

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// High and low word of a product.
#[expect(clippy::cast_possible_truncation, reason = "the low word is what is wanted")]
const fn words(product: u64) -> (u32, u32) {
    ((product >> 32) as u32, product as u32)
}

/// Four random words for a key and a counter: Philox4x32-10.
pub fn philox(mut key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let mut c = counter;
    for _ in 0..ROUNDS {
        let (hi0, lo0) = words(u64::from(c[0]) * u64::from(MULTIPLIERS[0]));
        let (hi1, lo1) = words(u64::from(c[2]) * u64::from(MULTIPLIERS[1]));
        c = [hi1 ^ c[1] ^ key[0], lo1, hi0 ^ c[3] ^ key[1], lo0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    c
}

/// Uniform in `[0, 1)`, a multiple of `2^-24`: the top 24 bits of the first word.
#[expect(clippy::cast_precision_loss, reason = "24 bits fit a f32")]
pub fn uniform_f32(key: [u32; 2], counter: [u32; 4]) -> f32 {
    (philox(key, counter)[0] >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// The dropout masks of one site in one step of one user.
///
/// Element (token, column) is kept iff word `column % 4` of
/// `philox(key, (token, column / 4, site, step))` is at least `floor(p · 2^32)`; what is kept is
/// multiplied by `1 / (1 - p)`. `p = 0` keeps everything.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    key: [u32; 2],
    step: u32,
    site: u32,
    threshold: u32,
    scale: f32,
}

/// Counters drawn at a time, as many as an AVX-512 register has 64-bit products.
const BATCH: u32 = 8;

/// [`BATCH`] as a length.
const LANES: usize = BATCH as usize;

/// Columns of a batch.
const COLUMNS: usize = 4 * LANES;

impl Dropout {
    /// Masks of probability `0 <= p < 1`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "p < 1: below 2^32"
    )]
    pub fn new(key: [u32; 2], step: u32, site: u32, p: f32) -> Self {
        let threshold = (f64::from(p) * 4_294_967_296.0).floor() as u32;
        Self { key, step, site, threshold, scale: 1.0 / (1.0 - p) }
    }

    /// Whether the element (token, column) is kept: the definition.
    pub fn keep(&self, token: u32, column: u32) -> bool {
        let words = philox(self.key, [token, column / 4, self.site, self.step]);
        words[(column % 4) as usize] >= self.threshold
    }

    /// `row[c] = keep(token, first + c) ? row[c] / (1 - p) : 0` for columns from `first` on; the
    /// multiplication is by `1 / (1 - p)` rounded.
    pub fn apply(&self, token: u32, first: u32, row: &mut [f32]) {
        Arch::new().dispatch(Apply { dropout: self, token, first, row });
    }
}

struct Apply<'a> {
    dropout: &'a Dropout,
    token: u32,
    first: u32,
    row: &'a mut [f32],
}

impl WithSimd for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { dropout, token, first, row } = self;
        // Columns before the first whole counter are drawn with it and skipped.
        let mut skip = (first % 4) as usize;
        let mut counter = first / 4;
        let mut rest = row;
        while !rest.is_empty() {
            let kept = dropout.batch(token, counter);
            let (now, later) = rest.split_at_mut((COLUMNS - skip).min(rest.len()));
            for (value, &factor) in now.iter_mut().zip(&kept[skip..]) {
                // A select, not a product: what is dropped is zero even if it was not finite.
                *value = if factor == 0.0 { 0.0 } else { *value * factor };
            }
            (rest, skip, counter) = (later, 0, counter.wrapping_add(BATCH));
        }
    }
}

impl Dropout {
    /// Factors, `0` or `1 / (1 - p)`, of the columns of counters `counter..counter + BATCH`: [`philox`]
    /// in 64-bit lanes, whose upper halves are never read.
    #[inline(always)]
    fn batch(&self, token: u32, counter: u32) -> [f32; COLUMNS] {
        const LOW: u64 = 0xFFFF_FFFF;
        let mut c0 = [u64::from(token); LANES];
        let mut c1: [u64; LANES] = std::array::from_fn(|i| u64::from(counter) + i as u64);
        let mut c2 = [u64::from(self.site); LANES];
        let mut c3 = [u64::from(self.step); LANES];
        let mut key = self.key;
        for _ in 0..ROUNDS {
            let (k0, k1) = (u64::from(key[0]), u64::from(key[1]));
            for i in 0..LANES {
                let p0 = (c0[i] & LOW) * u64::from(MULTIPLIERS[0]);
                let p1 = (c2[i] & LOW) * u64::from(MULTIPLIERS[1]);
                c0[i] = (p1 >> 32) ^ c1[i] ^ k0;
                c1[i] = p1;
                c2[i] = (p0 >> 32) ^ c3[i] ^ k1;
                c3[i] = p0;
            }
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let mut kept = [0.0; COLUMNS];
        for (i, kept) in kept.chunks_exact_mut(4).enumerate() {
            for (kept, word) in kept.iter_mut().zip([c0[i], c1[i], c2[i], c3[i]]) {
                *kept = if word & LOW >= u64::from(self.threshold) { self.scale } else { 0.0 };
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_reference_words() {
        // Random123, tests/kat_vectors, philox4x32 10.
        let cases = [
            ([0; 2], [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 2], [u32::MAX; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0xa409_3822, 0x299f_31d0],
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (key, counter, expected) in cases {
            assert_eq!(philox(key, counter), expected);
        }
    }

    #[test]
    fn rows_follow_the_scalar_definition() {
        for (p, first, len) in
            [(0.05, 0, 576), (0.5, 3, 77), (0.9, 30, 1), (0.0, 5, 40), (0.3, 64, 0)]
        {
            let dropout = Dropout::new([7, 0xdead_beef], 11, 42, p);
            for token in [0, 1, 1000, u32::MAX] {
                let mut row: Vec<f32> = (0..len).map(|c| 1.0 + c as f32).collect();
                let plain = row.clone();
                dropout.apply(token, first, &mut row);
                for (c, (got, x)) in (first..).zip(row.iter().zip(plain)) {
                    let want = if dropout.keep(token, c) { x * (1.0 / (1.0 - p)) } else { 0.0 };
                    assert_eq!(got.to_bits(), want.to_bits(), "p {p} token {token} column {c}");
                }
            }
        }
    }

    #[test]
    fn masks_have_their_probability_and_differ() {
        let count = |dropout: Dropout| {
            (0..100_000u32).filter(|&c| !dropout.keep(c / 1000, c % 1000)).count()
        };
        let base = Dropout::new([1, 2], 3, 4, 0.05);
        // Five standard deviations of a binomial of 100,000 and 0.05 are 345.
        assert!((4655..5345).contains(&count(base)), "{}", count(base));
        for other in [
            Dropout::new([1, 3], 3, 4, 0.05),
            Dropout::new([1, 2], 4, 4, 0.05),
            Dropout::new([1, 2], 3, 5, 0.05),
        ] {
            let both = (0..100_000u32).filter(|&c| !base.keep(0, c) && !other.keep(0, c)).count();
            // Independent masks share 0.0025 of their zeros, equal ones 0.05.
            assert!((150..400).contains(&both), "{both}");
        }
        assert_eq!(count(Dropout::new([1, 2], 3, 4, 0.0)), 0);
    }

    #[test]
    fn dropped_values_are_zero_even_if_not_finite() {
        let dropout = Dropout::new([1, 2], 3, 4, 0.5);
        let mut row = vec![f32::NAN; 64];
        dropout.apply(9, 0, &mut row);
        for (c, v) in (0..).zip(row) {
            assert_eq!(v.is_nan(), dropout.keep(9, c));
        }
    }

    #[test]
    fn uniform_stays_below_one() {
        let draws: Vec<f32> = (0..20_000).map(|i| uniform_f32([5, 6], [i, 0, 0, 0])).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = draws.iter().map(|&u| f64::from(u)).sum::<f64>() / 20_000.0;
        // Five standard deviations of the mean: 5 / sqrt(12 · 20000).
        assert!((mean - 0.5).abs() < 0.0103, "{mean}");
    }
}
