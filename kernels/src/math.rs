//! Elementary functions on sixteen lanes: same bits on every instruction set, NaN in is NaN out.

use pulp::Simd;

/// Below this `exp` is taken as zero: its value is under `2.5e-38`, near the smallest normal number.
const SMALLEST: f32 = -86.6;
/// Above this `exp` is infinite in `f32`.
const LARGEST: f32 = 88.722_83;

/// `e^x` within 2 units in the last place; zero below [`SMALLEST`], infinite above [`LARGEST`].
///
/// `x = n ln 2 + r`, `|r| <= ln 2 / 2`, and a polynomial of degree 7 in `r` (Cephes `expf`, evaluated
/// with fused operations).
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // 1.5 · 2^23: adding it rounds to an integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let c = |v: f32| simd.splat_f32s(v);
    let shifted = simd.mul_add_f32s(x, c(std::f32::consts::LOG2_E), c(ROUND));
    let n = simd.sub_f32s(shifted, c(ROUND));
    let r = simd.mul_add_f32s(n, c(-0.693_359_4), x);
    let r = simd.mul_add_f32s(n, c(2.121_944_4e-4), r);
    let mut p = c(1.987_569_1e-4);
    for k in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = simd.mul_add_f32s(p, r, c(k));
    }
    let p = simd.mul_add_f32s(p, simd.mul_f32s(r, r), simd.add_f32s(r, c(1.0)));
    // 2^(n-1), then doubled: 2^128 itself is not a number.
    let bits = simd.transmute_u32s_f32s(shifted);
    let bits = simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23));
    let half = simd.transmute_f32s_u32s(simd.add_u32s(bits, simd.splat_u32s(126 << 23)));
    let y = simd.mul_f32s(simd.mul_f32s(p, half), c(2.0));
    // Comparisons with NaN are false, so it stays.
    let y = simd.select_f32s(simd.less_than_f32s(x, c(SMALLEST)), c(0.0), y);
    simd.select_f32s(simd.greater_than_f32s(x, c(LARGEST)), c(f32::INFINITY), y)
}

/// `(σ(x), σ(-x))`, both to a few units in the last place wherever they lie: `e = exp(-|x|)` cannot overflow.
#[inline(always)]
pub(crate) fn sigmoids<S: Simd>(simd: S, x: S::f32s) -> (S::f32s, S::f32s) {
    let one = simd.splat_f32s(1.0);
    let e = exp(simd, simd.sub_f32s(simd.splat_f32s(0.0), simd.abs_f32s(x)));
    let large = simd.div_f32s(one, simd.add_f32s(one, e));
    let small = simd.mul_f32s(e, large);
    let negative = simd.less_than_f32s(x, simd.splat_f32s(0.0));
    (simd.select_f32s(negative, small, large), simd.select_f32s(negative, large, small))
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "the nearest f32 is what is compared")]
mod tests {
    use super::*;
    use crate::lanes::{Kernel, LANES, load, run_each, store};

    #[derive(Clone)]
    struct Both([f32; LANES]);
    impl Kernel for Both {
        type Output = [[u32; LANES]; 3];
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let x = load(simd, &self.0);
            let (a, b) = sigmoids(simd, x);
            [exp(simd, x), a, b].map(|v| {
                let mut out = [0.0; LANES];
                store(simd, &mut out, v);
                out.map(f32::to_bits)
            })
        }
    }

    #[test]
    fn exp_is_within_two_units_and_equal_on_every_instruction_set() {
        let mut worst = 0.0f64;
        let mut x = -86.5f32;
        while x < 88.7 {
            let lanes: [f32; LANES] = std::array::from_fn(|i| x + i as f32 * 1.3e-4);
            let outputs = run_each(Both(lanes));
            assert!(outputs.iter().all(|o| *o == outputs[0]), "bits differ near {x}");
            for (l, bits) in lanes.iter().zip(outputs[0][0]) {
                let (got, want) = (f32::from_bits(bits), f64::from(*l).exp());
                let ulp = f64::from((want as f32).next_up()) - f64::from(want as f32);
                worst = worst.max((f64::from(got) - want).abs() / ulp);
            }
            for (l, (a, b)) in lanes.iter().zip(outputs[0][1].iter().zip(outputs[0][2])) {
                let (a, b) = (f64::from(f32::from_bits(*a)), f64::from(f32::from_bits(b)));
                let (want_a, want_b) =
                    (1.0 / (1.0 + (-f64::from(*l)).exp()), 1.0 / (1.0 + f64::from(*l).exp()));
                // exp within 2 ulp, one addition, one division and one product of half an ulp each.
                let bound = 4.0 * f64::from(f32::EPSILON);
                assert!((a - want_a).abs() <= bound * want_a + 3e-38, "sigmoid({l}) = {a}");
                assert!((b - want_b).abs() <= bound * want_b + 3e-38, "sigmoid(-{l}) = {b}");
            }
            x += 0.0137;
        }
        assert!(worst <= 2.0, "{worst} units in the last place");
    }

    #[test]
    fn exp_at_the_edges() {
        let mut lanes = [0.0; LANES];
        lanes[..10].copy_from_slice(&[
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            0.0,
            -0.0,
            88.722_83,
            88.8,
            -86.7,
            -1e30,
            1e30,
        ]);
        for outputs in run_each(Both(lanes)) {
            let x = outputs[0].map(f32::from_bits);
            assert!(x[0].is_nan());
            assert_eq!(x[1..5], [f32::INFINITY, 0.0, 1.0, 1.0]);
            assert!(x[5] > 3.4e38 && x[5].is_finite());
            assert_eq!(x[6..10], [f32::INFINITY, 0.0, 0.0, f32::INFINITY]);
            let (a, b) = (outputs[1].map(f32::from_bits), outputs[2].map(f32::from_bits));
            assert!(a[0].is_nan() && b[0].is_nan());
            assert_eq!((a[1], b[1], a[2], b[2]), (1.0, 0.0, 0.0, 1.0));
        }
    }
}
