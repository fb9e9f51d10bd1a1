//! The learning rate of a step.

use super::Error;
use crate::config::{Recipe, ScheduleKind};
use crate::ids::Step;

/// A recipe's learning rate over a known number of steps.
///
/// With S steps, base rate lr₀, w = ceil(warmup_ratio · S) and s = 0, 1, … S−1 the steps done before this one:
/// s < w: lr₀ · s / w, so the first step of a warm-up has rate 0;
/// else linear lr₀ · (S−s)/(S−w), constant lr₀, cosine lr₀ · (1 + cos(π (s−w)/(S−w)))/2.
/// *Source*: transformers' `get_{linear,constant,cosine}_schedule_with_warmup`, which OPPU's code uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Its shape.
    pub kind: ScheduleKind,
    /// lr₀.
    pub base_rate: f64,
    /// w.
    pub warmup_steps: u32,
    /// S.
    pub total_steps: u32,
}

impl Schedule {
    /// The schedule of a recipe over `total_steps` steps.
    pub fn new(recipe: &Recipe, total_steps: u32) -> Self {
        let warmup = (recipe.warmup_ratio * f64::from(total_steps)).ceil();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        let warmup_steps = warmup.clamp(0.0, f64::from(total_steps)) as u32;
        let (kind, base_rate) = (recipe.schedule, recipe.learning_rate);
        Self { kind, base_rate, warmup_steps, total_steps }
    }

    /// The rate of the step after `done` finished ones; 0 from the last step on, but for the constant shape.
    pub fn rate(&self, done: Step) -> f64 {
        let (s, w, total) = (done.0, self.warmup_steps, self.total_steps);
        if s < w {
            return self.base_rate * f64::from(s) / f64::from(w);
        }
        let left = f64::from(total.saturating_sub(s));
        let span = f64::from(total.saturating_sub(w).max(1));
        let factor = match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => left / span,
            ScheduleKind::Cosine => {
                (1.0 + (std::f64::consts::PI * (1.0 - left / span)).cos()) / 2.0
            }
        };
        self.base_rate * factor
    }
}

/// S = epochs · ceil(items / batch); the last batch of an epoch may be smaller, none is dropped.
///
/// # Errors
/// A batch of 0; more steps than [`Step`] counts.
pub fn steps_per_user(items: usize, batch: u32, epochs: u32) -> Result<u32, Error> {
    if batch == 0 {
        return Err(Error::EmptyBatch);
    }
    let steps = (items as u64).div_ceil(u64::from(batch)).checked_mul(u64::from(epochs));
    let steps = steps.and_then(|s| u32::try_from(s).ok());
    steps.ok_or(Error::TooManySteps { items, batch, epochs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, warmup_steps: u32, total_steps: u32) -> Schedule {
        Schedule { kind, base_rate: 2.0, warmup_steps, total_steps }
    }

    fn rates(s: &Schedule) -> Vec<f64> {
        (0..=s.total_steps).map(|i| s.rate(Step(i))).collect()
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "all rates are representable")]
    fn linear_warms_up_from_zero_and_ends_at_zero() {
        let s = schedule(ScheduleKind::Linear, 2, 6);
        assert_eq!(rates(&s), [0.0, 1.0, 2.0, 1.5, 1.0, 0.5, 0.0]);
        assert_eq!(s.rate(Step(9)), 0.0);
        assert_eq!(rates(&schedule(ScheduleKind::Linear, 0, 2)), [2.0, 1.0, 0.0]);
        // Nothing but warm-up, and no steps at all.
        assert_eq!(rates(&schedule(ScheduleKind::Linear, 2, 2)), [0.0, 1.0, 0.0]);
        assert_eq!(rates(&schedule(ScheduleKind::Linear, 0, 0)), [0.0]);
    }

    #[test]
    fn constant_stays() {
        assert_eq!(rates(&schedule(ScheduleKind::Constant, 2, 4)), [0.0, 1.0, 2.0, 2.0, 2.0]);
    }

    #[test]
    fn cosine_is_half_way_in_the_middle() {
        let s = schedule(ScheduleKind::Cosine, 1, 5);
        // lr0 (1 + cos(pi k/4))/2 for k = 0..4 after one step of warm-up.
        let half = std::f64::consts::FRAC_1_SQRT_2;
        let expected = [0.0, 2.0, 1.0 + half, 1.0, 1.0 - half, 0.0];
        for (got, expected) in rates(&s).iter().zip(expected) {
            assert!((got - expected).abs() < 1e-15, "{got} {expected}");
        }
    }

    #[test]
    fn warm_up_is_rounded_up_as_python_rounds_it() {
        let mut recipe = crate::config::Recipe::named("oppu-code").unwrap();
        recipe.warmup_ratio = 0.1;
        // math.ceil(n * 0.1) in Python for these n; 3 * 0.1 is 0.30000000000000004, 30 * 0.1 is 3.0.
        for (steps, warmup) in [(0, 0), (1, 1), (3, 1), (10, 1), (11, 2), (30, 3), (32, 4), (70, 7)]
        {
            assert_eq!(Schedule::new(&recipe, steps).warmup_steps, warmup, "{steps} steps");
        }
        recipe.warmup_ratio = 1.0;
        assert_eq!(Schedule::new(&recipe, 7).warmup_steps, 7);
    }

    #[test]
    fn steps_keep_the_partial_batch() {
        for (items, batch, epochs, steps) in
            [(32, 16, 2, 4), (33, 16, 2, 6), (1, 16, 3, 3), (0, 16, 2, 0)]
        {
            assert_eq!(steps_per_user(items, batch, epochs), Ok(steps));
        }
        assert_eq!(steps_per_user(5, 0, 1), Err(Error::EmptyBatch));
        assert!(matches!(steps_per_user(usize::MAX, 1, 9), Err(Error::TooManySteps { .. })));
        assert!(matches!(steps_per_user(1 << 32, 1, 1), Err(Error::TooManySteps { .. })));
    }
}
