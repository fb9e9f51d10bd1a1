//! Guesses that need no model: what is frequent, and what follows what.
//!
//! Owns the counted baselines of the intent tables ([`Baseline`]). Must never know: networks, metrics, ranks. All are
//! fitted on training parts alone; the population's counts are of the people who are not cold.
//! Start reading at [`Baselines::fit`].

mod counted;

pub use counted::{Baseline, BaselineError, Baselines, Options};
