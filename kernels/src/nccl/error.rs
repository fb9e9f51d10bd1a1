//! What went wrong, on which rank of which machine, in which call, and what the library said of it.

use std::fmt;
use std::time::Duration;

/// Result of a call to a GPU library.
pub type Result<T> = std::result::Result<T, Error>;

/// Who reports: a rank of a group, and its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// This process's place in the group, in `0..size`.
    pub rank: usize,
    /// Ranks in the group.
    pub size: usize,
    /// Name of its machine.
    pub host: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} on {}", self.rank, self.size, self.host)
    }
}

/// Why GPUs could not be used, or could not talk. A group that returned one is aborted and serves no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A library is not on this machine, or cannot be loaded.
    #[error("{library} cannot be loaded (tried {tried}): {why}")]
    Missing {
        /// What it is.
        library: &'static str,
        /// The names looked for, in order.
        tried: String,
        /// The loader's words on the first of them.
        why: String,
    },
    /// A library is there, but older than the calls made here.
    #[error("{library} lacks {symbol}: it is too old")]
    Symbol {
        /// What it is.
        library: &'static str,
        /// The function missing.
        symbol: &'static str,
    },
    /// The CUDA driver refused a call, or reports a failure of earlier work.
    #[error("CUDA driver: {op}: {name} (code {code})")]
    Driver {
        /// The call.
        op: &'static str,
        /// Its code.
        code: i32,
        /// The driver's name of the code.
        name: String,
    },
    /// NCCL refused a call, or an operation under way failed; the group is aborted.
    #[error("NCCL: {op}: {place}: {what} (code {code}); last error: {last}")]
    Nccl {
        /// The operation under way.
        op: &'static str,
        /// Who reports it.
        place: Box<Place>,
        /// NCCL's result code.
        code: i32,
        /// NCCL's words for the code.
        what: String,
        /// NCCL's last error, which says more.
        last: String,
    },
    /// An operation was not over in time; the group is aborted.
    #[error(
        "NCCL: {op}: {place}: not over after {limit:?}; another rank is slow, stuck or gone, or a link is down"
    )]
    TimedOut {
        /// The operation under way.
        op: &'static str,
        /// Who reports it.
        place: Box<Place>,
        /// The time limit.
        limit: Duration,
    },
    /// An operation on a group that was aborted before.
    #[error("NCCL: {op}: {place}: the group was aborted after an earlier error")]
    Gone {
        /// The operation asked for.
        op: &'static str,
        /// Who reports it.
        place: Box<Place>,
    },
    /// An argument does not fit.
    #[error("{op}: {what}")]
    Argument {
        /// The operation asked for.
        op: &'static str,
        /// What is wrong with it.
        what: String,
    },
}
