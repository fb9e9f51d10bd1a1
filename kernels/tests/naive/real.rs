//! Numbers that a formula is written over once: `f64` is the truth, `f32` the yardstick of its error.

use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// `f32` or `f64`.
pub trait Real:
    Copy
    + Default
    + PartialOrd
    + From<f32>
    + Into<f64>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + Sum
{
    /// `e^x`.
    fn exp(self) -> Self;
    /// `ln x`.
    fn ln(self) -> Self;
    /// `x^y`.
    fn powf(self, y: Self) -> Self;
}

impl Real for f32 {
    fn exp(self) -> Self {
        self.exp()
    }
    fn ln(self) -> Self {
        self.ln()
    }
    fn powf(self, y: Self) -> Self {
        self.powf(y)
    }
}

impl Real for f64 {
    fn exp(self) -> Self {
        self.exp()
    }
    fn ln(self) -> Self {
        self.ln()
    }
    fn powf(self, y: Self) -> Self {
        self.powf(y)
    }
}

/// Every number widened to another kind of number.
pub fn wide<F: Real>(x: &[f32]) -> Vec<F> {
    x.iter().map(|&x| F::from(x)).collect()
}
