//! optim: when an adapter learns how fast, and from which items.
//!
//! Owns: learning-rate schedules, the number of steps, the order of a user's items. Must never know: tensors (AdamW and
//! clipping are `kernels::optim`), other users. Start reading at [`Schedule::rate`] and [`Order`].

mod order;
mod schedule;

pub use order::Order;
pub use schedule::{Schedule, steps_per_user};

/// Why a recipe does not fit a user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More steps than a step counter holds.
    #[error("{items} items in batches of {batch} for {epochs} epochs are more than 2^32 - 1 steps")]
    TooManySteps {
        /// Items of the user.
        items: usize,
        /// Items of a step.
        batch: u32,
        /// Passes.
        epochs: u32,
    },
    /// A batch of nothing.
    #[error("a batch size of 0")]
    EmptyBatch,
}
