//! Personal unlearning: which intents of a person the population's knowledge is unlearnt for.
//!
//! Owns the split of intents into forget set and retain set ([`Rule`]). Must never know: models, ranks. The
//! published drawings leave the rule open (no single threshold reproduces them), so every reading is an option.
//! Start reading at [`Split::new`].

mod rule;

pub use rule::{Counts, Rule, RuleError, Split};
