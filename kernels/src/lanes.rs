//! Sixteen `f32` lanes on every processor: one kernel source, the same bits with AVX-512, AVX2 or neither.
//!
//! Owns the run-time choice of instructions and the fixed-order sums. A kernel works on vectors of
//! [`LANES`] lanes whatever the registers hold, multiplies and adds only through fused operations it
//! names itself, and sums lanes in the tree of [`sum`]; so its result does not depend on the machine.
//! Knows no operation. Start at [`run`].

use pulp::Simd;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// A loop nest compiled once for each instruction set; `S::f32s` has [`LANES`] lanes.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// The loops; must be `#[inline(always)]`, as must all that it calls, or they miss the instructions.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// A kernel with the instructions it shall use.
struct On<S, K>(S, K);

impl<S: Simd, K: Kernel> pulp::NullaryFnOnce for On<S, K> {
    type Output = K::Output;
    #[inline(always)]
    fn call(self) -> K::Output {
        self.1.run(self.0)
    }
}

/// Runs a kernel with the best instructions of this processor.
#[inline]
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    match pulp::Arch::new() {
        pulp::Arch::V4(v4) => return v4.vectorize(On(v4, kernel)),
        pulp::Arch::V3(v3) => return v3.vectorize(On(pulp::x86::V3_512b(v3), kernel)),
        _ => {}
    }
    #[cfg_attr(target_arch = "x86_64", allow(unreachable_code, reason = "the other processors"))]
    kernel.run(pulp::Scalar512b)
}

/// Runs a kernel with every instruction set this processor has, for tests of equal bits.
#[cfg(test)]
pub(crate) fn run_each<K: Kernel + Clone>(kernel: K) -> Vec<K::Output> {
    let mut outputs = vec![kernel.clone().run(pulp::Scalar512b)];
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(v3) = pulp::x86::V3::try_new() {
            outputs.push(v3.vectorize(On(pulp::x86::V3_512b(v3), kernel.clone())));
        }
        if let Some(v4) = pulp::x86::V4::try_new() {
            outputs.push(v4.vectorize(On(v4, kernel)));
        }
    }
    outputs
}

/// Sixteen consecutive elements.
#[inline(always)]
pub(crate) fn load<S: Simd>(_: S, x: &[f32; LANES]) -> S::f32s {
    pulp::cast(*x)
}

/// Up to sixteen elements, the missing lanes zero.
#[inline(always)]
pub(crate) fn load_tail<S: Simd>(simd: S, x: &[f32]) -> S::f32s {
    let mut full = [0.0; LANES];
    full[..x.len()].copy_from_slice(x);
    load(simd, &full)
}

/// Writes sixteen consecutive elements.
#[inline(always)]
pub(crate) fn store<S: Simd>(_: S, to: &mut [f32; LANES], x: S::f32s) {
    *to = pulp::cast(x);
}

/// Sum of the lanes in a fixed tree: halves onto each other, 16 to 8 to 4 to 2 to 1.
#[inline(always)]
pub(crate) fn sum<S: Simd>(_: S, x: S::f32s) -> f32 {
    let mut lanes: [f32; LANES] = pulp::cast(x);
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `Σ_i f(i-th vector)` over vectors of `x` and `y` (equal lengths): `f` adds a product of its two
/// vectors into a running sum. Four running sums of sixteen lanes, added pairwise at the end.
#[inline(always)]
pub(crate) fn fold<S: Simd>(
    simd: S,
    (x, y): (&[f32], &[f32]),
    f: impl Fn(S::f32s, S::f32s, S::f32s) -> S::f32s,
) -> f32 {
    let mut acc = [simd.splat_f32s(0.0); 4];
    let (xs, x_tail) = x.as_chunks::<LANES>();
    let (ys, y_tail) = y.as_chunks::<LANES>();
    let (x4, x_rest) = xs.as_chunks::<4>();
    let (y4, y_rest) = ys.as_chunks::<4>();
    for (x, y) in x4.iter().zip(y4) {
        for i in 0..4 {
            acc[i] = f(acc[i], load(simd, &x[i]), load(simd, &y[i]));
        }
    }
    for (x, y) in x_rest.iter().zip(y_rest) {
        acc[0] = f(acc[0], load(simd, x), load(simd, y));
    }
    if !x_tail.is_empty() {
        acc[1] = f(acc[1], load_tail(simd, x_tail), load_tail(simd, y_tail));
    }
    let low = simd.add_f32s(acc[0], acc[1]);
    let high = simd.add_f32s(acc[2], acc[3]);
    sum(simd, simd.add_f32s(low, high))
}

/// `Σ x·y` in the order of [`fold`].
#[inline(always)]
pub(crate) fn dot<S: Simd>(simd: S, x: &[f32], y: &[f32]) -> f32 {
    fold(
        simd,
        (x, y),
        #[inline(always)]
        |acc, x, y| simd.mul_add_f32s(x, y, acc),
    )
}
