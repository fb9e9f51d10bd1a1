//! How an adapter begins: PEFT's default, from counters and not from a stream.

use super::{Error, SiteList};
use kernels::random::philox;

/// "INIT": keeps these counters apart from every other use of the same key.
const PURPOSE: u32 = 0x494E_4954;

/// `A ~ U(-1/sqrt(in), 1/sqrt(in))` (Kaiming uniform with a = sqrt(5), PEFT's default), `B = 0`; whole tensors, which are
/// changes of the base's, begin at 0.
///
/// *Writes* `params` `=`, whole. *Order*: element `i` of site `k`'s `A` is word `i mod 4` of
/// `philox(key, [i / 4, k, "INIT", 0])`, so it depends on nothing but (key, site, element); the key is
/// [`crate::ids::UserKey::random_key`]. The word's upper 24 bits `w` give `(2w + 1 - 2^24) / 2^24`, exact in
/// f32, symmetric, never zero.
///
/// # Errors
/// [`Error::Length`] when `params` is not an adapter of that rank.
pub fn initialise(
    sites: &SiteList,
    lora_rank: usize,
    key: [u32; 2],
    params: &mut [f32],
) -> Result<(), Error> {
    let expected = sites.params(lora_rank);
    if params.len() != expected {
        return Err(Error::Length { what: "adapter to initialise", expected, got: params.len() });
    }
    for e in sites.entries() {
        let range = sites.range(&e.site, lora_rank);
        let bound = bound(e.site.in_dim);
        for (block, values) in (0u32..).zip(params[range.a].chunks_mut(4)) {
            let words = philox(key, [block, e.site.id, PURPOSE, 0]);
            for (value, word) in values.iter_mut().zip(words) {
                *value = symmetric_unit(word) * bound;
            }
        }
        params[range.b].fill(0.0);
    }
    params[lora_rank * sites.units()..].fill(0.0);
    Ok(())
}

/// `1 / sqrt(in)`, rounded once.
#[expect(clippy::cast_possible_truncation, reason = "rounded once to f32")]
#[expect(clippy::cast_precision_loss, reason = "widths are far below 2^53")]
fn bound(in_dim: usize) -> f32 {
    (1.0 / (in_dim as f64).sqrt()) as f32
}

/// Upper 24 bits to an odd multiple of 2^-24 in (-1, 1).
#[expect(clippy::cast_precision_loss, reason = "an integer below 2^24 is exact in f32")]
fn symmetric_unit(word: u32) -> f32 {
    let odd = i64::from(word >> 8) * 2 + 1 - (1 << 24);
    odd as f32 / 16_777_216.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UserId;
    use crate::lora::{SiteSpec, Target};

    fn sites() -> SiteList {
        let site = |layer, target, in_dim, out_dim| SiteSpec { layer, target, in_dim, out_dim };
        SiteList::new(vec![site(0, Target::Q, 33, 20), site(0, Target::V, 33, 7)]).unwrap()
    }

    fn init(user: &str, seed: u64, r: usize) -> Vec<f32> {
        let mut params = vec![f32::NAN; sites().params(r)];
        let key = UserId::new(user).key().random_key(seed);
        initialise(&sites(), r, key, &mut params).unwrap();
        params
    }

    #[test]
    fn a_in_bounds_b_zero_everything_written() {
        let params = init("u", 1, 5);
        let bound = 1.0 / 33f32.sqrt();
        for e in sites().entries() {
            let range = sites().range(&e.site, 5);
            let a = &params[range.a];
            assert!(a.iter().all(|v| *v != 0.0 && v.abs() < bound));
            assert!(params[range.b].iter().all(|v| v.to_bits() == 0));
            // 165 uniform values: mean within 5 sigma, spread reaching the outer tenth on both sides.
            let mean = a.iter().sum::<f32>() / 165.0;
            assert!(mean.abs() < 5.0 * bound / (3.0f32 * 165.0).sqrt(), "{mean}");
            assert!(a.iter().any(|v| *v > 0.9 * bound) && a.iter().any(|v| *v < -0.9 * bound));
        }
    }

    #[test]
    fn depends_on_user_seed_site_and_nothing_else() {
        let (a, range) =
            (init("u", 1, 5), |k: usize| sites().range(&sites().entries()[k].site, 5).a);
        assert_eq!(a, init("u", 1, 5));
        assert_ne!(a, init("u", 2, 5));
        assert_ne!(a, init("v", 1, 5));
        assert_ne!(a[range(0)], a[range(1)]);
        // The element's number, not its neighbours, decides: rank 5 begins as rank 3 does.
        assert_eq!(init("u", 1, 3)[..99], a[..99]);
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "exact by construction")]
    fn words_map_symmetrically() {
        assert_eq!(symmetric_unit(0), -symmetric_unit(u32::MAX));
        assert_eq!(symmetric_unit(u32::MAX), 16_777_215.0 / 16_777_216.0);
        assert_eq!(symmetric_unit(0x8000_0000), 1.0 / 16_777_216.0);
    }

    #[test]
    fn wrong_length() {
        let mut short = vec![0.0; sites().params(5) - 1];
        assert!(initialise(&sites(), 5, [0; 2], &mut short).is_err());
    }
}
