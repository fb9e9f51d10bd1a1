//! The tolerances of the op tests, in one place: exact, derived, or relative to naive; never a guess.
//!
//! Derived: a chain of `k` rounded operations on terms of absolute sum `s` is off by at most
//! `k · EPS · s` (Higham, Accuracy and Stability, 3.1, first order); the caller counts `k` from the
//! code and gives `s` per element, computed in `f64`.
#![allow(dead_code, reason = "each test binary uses the rungs it needs")]
#![allow(unreachable_pub, reason = "shared by every test binary, exported by none")]

/// Unit in the last place of 1 in `f32`.
pub const EPS: f64 = f32::EPSILON as f64;

/// Running sums of a sixteen-lane sum over `n`: chain of each lane, four lanes' vectors, the tree.
pub fn lane_chain(n: usize) -> f64 {
    n.div_ceil(16) as f64 + 8.0
}

/// Asserts `|got - want| <= k · EPS · scale` for every element; NaN never passes.
pub fn within(what: &str, k: f64, got: &[f32], want: &[f64], scale: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    assert_eq!(got.len(), scale.len(), "{what}: scale");
    for (i, ((g, w), s)) in got.iter().zip(want).zip(scale).enumerate() {
        let (error, bound) = ((f64::from(*g) - w).abs(), k * EPS * s + 1e-37);
        assert!(error <= bound, "{what}[{i}]: {g} for {w}: off by {error:e}, allowed {bound:e}");
    }
}

/// Asserts that ours is at most `factor` times as far from the truth as `naive`, in the root mean
/// square over all elements (with one rounding per element as floor).
pub fn no_worse(what: &str, factor: f64, got: &[f32], naive: &[f32], want: &[f64]) {
    assert!(got.len() == want.len() && naive.len() == want.len(), "{what}: lengths");
    let rms = |x: &[f32]| {
        let sum: f64 = x.iter().zip(want).map(|(x, w)| (f64::from(*x) - w).powi(2)).sum();
        (sum / want.len().max(1) as f64).sqrt()
    };
    let floor =
        EPS / 2.0 * (want.iter().map(|w| w * w).sum::<f64>() / want.len().max(1) as f64).sqrt();
    let (ours, theirs) = (rms(got), rms(naive).max(floor));
    assert!(ours <= factor * theirs, "{what}: error {ours:e}, naive {theirs:e}, factor {factor}");
}

/// Asserts that an analytic gradient agrees with central differences of an `f64` function.
///
/// With step `h` the difference is off by `h²/6 · f'''` (functions here have third derivatives of the
/// size of the gradient's largest element) and `1e-16/h · |f|`; the gradient itself is rounded to `f32`.
pub fn differences(what: &str, gradient: &[f32], x: &[f32], f: impl Fn(&[f64]) -> f64) {
    let h = 1e-4;
    let mut at: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let size = gradient.iter().fold(1.0f64, |a, g| a.max(f64::from(g.abs())));
    let magnitude = f(&at).abs().max(1.0);
    let bound = (10.0 * h * h / 6.0 + 2.0 * EPS) * size + 1e-15 / h * magnitude;
    for (i, g) in gradient.iter().enumerate() {
        let x = at[i];
        at[i] = x + h;
        let up = f(&at);
        at[i] = x - h;
        let down = f(&at);
        at[i] = x;
        let error = (f64::from(*g) - (up - down) / (2.0 * h)).abs();
        assert!(error <= bound, "{what}[{i}]: {g}, difference {}", (up - down) / (2.0 * h));
    }
}

/// Asserts equal bits, naming the first element that differs.
pub fn same_bits(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}: lengths");
    if let Some(i) = (0..a.len()).find(|&i| a[i].to_bits() != b[i].to_bits()) {
        panic!("{what}[{i}]: {} and {}", a[i], b[i]);
    }
}

/// What `f` returns with 1, 2 and 4 threads.
pub fn on_threads<T: Send>(f: impl Fn() -> T + Send + Sync) -> [T; 3] {
    [1, 2, 4].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(&f))
}
