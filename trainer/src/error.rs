//! The crate's error: one variant per module that can fail, each module's own enum inside.

/// Result of a library call.
pub type Result<T> = std::result::Result<T, Error>;

/// Any error of the trainer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation refused its arguments.
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
}
