//! The stages of a run: each reads like a page.
//!
//! [`population`] trains the task adapter on the other users, [`individual`] everybody's own adapter,
//! [`predict`] answers queries; [`whole`] trains every parameter of an event model. [`engine`] holds the device
//! side ([`events`] where an event model is what trains), [`trainee`] one user's way, [`forecast`] says what a GPU
//! needs for it.

mod buckets;
pub mod engine;
pub mod events;
pub mod forecast;
pub mod foresee;
mod held;
mod hidden;
pub mod individual;
pub mod lesson;
pub mod own;
pub mod population;
pub mod predict;
pub mod recipe;
pub mod sample;
pub mod sums;
pub mod trainee;
pub mod tune;
pub mod whole;
pub mod windows;

use crate::ids::UserId;

/// Result of a stage.
pub type Result<T> = std::result::Result<T, Error>;

/// What ends a stage; a user's own trouble never does.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model refused a batch.
    #[error(transparent)]
    Model(#[from] crate::model::Error),
    /// An operation refused its arguments.
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
    /// An adapter does not fit its slot.
    #[error(transparent)]
    Lora(#[from] crate::lora::Error),
    /// A collective failed.
    #[error(transparent)]
    Comm(#[from] crate::comm::Error),
    /// More steps than can be counted, or a batch of none.
    #[error(transparent)]
    Optim(#[from] crate::optim::Error),
    /// The store refused an adapter.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// No free slot where one must be.
    #[error("no free adapter slot")]
    NoSlot,
    /// The population stage has nothing to train on.
    #[error("the population has no usable example")]
    NoPopulation,
    /// The population's adapter left the finite numbers.
    #[error(
        "population step {step} diverged: loss {loss}, gradient norm {grad_norm}; try a lower learning rate"
    )]
    PopulationDiverged {
        /// Step.
        step: u32,
        /// Loss of the step.
        loss: f32,
        /// Norm of the summed gradient.
        grad_norm: f32,
    },
    /// More steps or parameters than a counter holds.
    #[error("more steps, tokens or parameters than 2^32")]
    TooManySteps,
    /// One example takes more rows than a pack has.
    #[error(
        "user {user}: an example of {rows} rows does not fit in a pack of {room}; raise engine.pack_tokens or lower prompt.max_length"
    )]
    ChunkTooLong {
        /// The user.
        user: UserId,
        /// Rows of the example.
        rows: usize,
        /// Rows of a pack.
        room: usize,
    },
    /// The key/value cache is too small for a pack.
    #[error("a pack needs {rows} cache rows, there are {room}")]
    CacheTooSmall {
        /// Rows needed.
        rows: usize,
        /// Rows there.
        room: usize,
    },
}
