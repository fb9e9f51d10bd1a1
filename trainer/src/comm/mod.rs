//! comm: how ranks talk.
//!
//! Owns: the [`Communicator`] seam with its three implementations ([`Solo`], [`Threads`], [`Mpi`]) and
//! [`GradientSync`], the rank-count-independent sum of the population stage, on the host and ([`nccl`]) on GPUs. Must
//! never know: users, models, files.
//! Start reading at [`Communicator`]; `header.rs` says why a mismatched collective is an error and not a hang;
//! `docs/adr/0003-communicator.md` says why it is built this way.

mod contain;
mod header;
#[cfg(feature = "mpi")]
mod mpi;
pub mod nccl;
mod solo;
mod sync;
mod threads;

pub use contain::contain_panic;
pub use header::{Call, Op};
#[cfg(feature = "mpi")]
pub use mpi::{Mpi, PANIC_CODE};
pub use solo::Solo;
pub use sync::{GradientSync, HostSync, LocalShards, shards_of};
pub use threads::Threads;

use std::fmt;

/// Result of a collective.
pub type Result<T> = std::result::Result<T, Error>;

/// Why ranks could not talk. After any of these the world is unusable: pass the error up, end with
/// [`Communicator::abort`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Two ranks were in different collectives, or disagreed on the root or on equal lengths.
    #[error(
        "ranks disagree on collective: rank {rank} is in {call}, rank {other} is in {other_call}"
    )]
    Mismatch {
        /// The lower of the two ranks.
        rank: usize,
        /// What it called.
        call: Call,
        /// The first rank that differs from it.
        other: usize,
        /// What that rank called.
        other_call: Call,
    },
    /// A rank left the world while others still needed it.
    #[error("{op} on rank {rank}: rank {gone} has left the world")]
    RankLeft {
        /// The collective that could not complete.
        op: Op,
        /// The rank that reports it.
        rank: usize,
        /// The rank that is missing.
        gone: usize,
    },
    /// A rank panicked.
    #[error("rank {rank} panicked: {message}")]
    Panicked {
        /// The rank that panicked.
        rank: usize,
        /// Its panic message.
        message: String,
    },
    /// A rank called [`Communicator::abort`].
    #[error("rank {rank} aborted the run with code {code}")]
    Aborted {
        /// The rank that aborted.
        rank: usize,
        /// Its exit code.
        code: i32,
    },
    /// The root of a collective is no rank of this world.
    #[error("{op} on rank {rank}: root {root} is outside a world of {size} ranks")]
    Root {
        /// The collective.
        op: Op,
        /// The rank that reports it.
        rank: usize,
        /// The root asked for.
        root: usize,
        /// Ranks in the world.
        size: usize,
    },
    /// A buffer has the wrong length.
    #[error("{op} on rank {rank}: buffer of {got} elements, expected {expected}")]
    Length {
        /// The collective.
        op: Op,
        /// The rank that reports it.
        rank: usize,
        /// Elements the arguments ask for.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// A sum left the range of u64.
    #[error("{op} on rank {rank}: the sum over ranks exceeds 64 bits")]
    Overflow {
        /// The collective.
        op: Op,
        /// The rank that reports it.
        rank: usize,
    },
    /// The ranks' virtual shards are not each of `0..num_shards` exactly once.
    #[error(
        "virtual shard {shard} of {num_shards} is held by {holders} ranks' lists, expected exactly 1"
    )]
    Shards {
        /// The shard at fault.
        shard: u32,
        /// Shards there should be.
        num_shards: u32,
        /// How often it appears over all ranks.
        holders: usize,
    },
    /// A sum was begun before the ranks had agreed on who holds which shard.
    #[error("a gradient sum was begun before the ranks had agreed on their shards")]
    NotAgreed,
    /// A world of no ranks was asked for.
    #[error("a world needs at least one rank")]
    NoRanks,
    /// This rank's GPU, or the group of GPUs.
    #[error(transparent)]
    Nccl(#[from] kernels::nccl::Error),
    /// Another rank's GPU, so that this rank's cannot be used either.
    #[error("rank {rank} cannot take part in the group of GPUs: {what}")]
    NcclElsewhere {
        /// The rank that reported it.
        rank: usize,
        /// Its words.
        what: String,
    },
    /// MPI was initialised before.
    #[error("MPI is already initialised in this process; it can be initialised once")]
    AlreadyInitialised,
    /// The MPI library cannot be used from threads.
    #[error(
        "this MPI library provides thread support {provided}, MPI_THREAD_SERIALIZED or higher is needed"
    )]
    Threading {
        /// The level it provides.
        provided: &'static str,
    },
}

/// How [`Communicator::all_reduce_u64`] combines the ranks' values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    /// The largest.
    Max,
    /// The smallest.
    Min,
    /// The sum; overflow is an error.
    Sum,
}

/// A fixed world of ranks that talk by collectives; every rank must make the same calls in the same order.
///
/// *Order*: results are in rank order and the same on every rank, so nothing depends on arrival.
/// A call that differs from another rank's is [`Error::Mismatch`] on every rank, in every implementation.
/// Calls from several threads of one rank are serialised, but their order is then the caller's to fix.
pub trait Communicator: Send + Sync + fmt::Debug {
    /// This process's place, in `0..size()`.
    fn rank(&self) -> usize;

    /// Ranks in the world, at least 1.
    fn size(&self) -> usize;

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// A mismatched call, or a rank that is gone.
    fn barrier(&self) -> Result<()>;

    /// bytes(every rank) = bytes(root). *Writes* `=` on the others, whatever they held.
    ///
    /// # Errors
    /// `root` outside the world or not the same everywhere; a mismatched call; a rank that is gone.
    fn broadcast_bytes(&self, root: usize, bytes: &mut Vec<u8>) -> Result<()>;

    /// Every rank's bytes, in rank order; lengths may differ and may be 0.
    ///
    /// # Errors
    /// A mismatched call, or a rank that is gone.
    fn all_gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// all[r·n .. (r+1)·n] = mine of rank r. *Shapes* mine (n), all (size·n), n equal on all ranks. *Writes* `=`.
    ///
    /// # Errors
    /// `all` of another length; n not the same everywhere; a mismatched call; a rank that is gone.
    fn all_gather_f32(&self, mine: &[f32], all: &mut [f32]) -> Result<()>;

    /// Every rank's bytes in rank order on `root`, `None` elsewhere.
    ///
    /// # Errors
    /// `root` outside the world or not the same everywhere; a mismatched call; a rank that is gone.
    fn gather_bytes(&self, root: usize, mine: &[u8]) -> Result<Option<Vec<Vec<u8>>>>;

    /// The ranks' values combined, the same on every rank.
    ///
    /// # Errors
    /// A sum over 64 bits; a mismatched call; a rank that is gone.
    fn all_reduce_u64(&self, reduce: Reduce, value: u64) -> Result<u64>;

    /// Ends the world: under MPI the whole job ends with `code` and this never returns; elsewhere every other rank's
    /// next or pending collective fails with [`Error::Aborted`], and the same error comes back for the caller to pass up.
    fn abort(&self, code: i32) -> Error;
}

/// Refuses a root outside the world.
fn check_root(op: Op, root: usize, comm: &dyn Communicator) -> Result<()> {
    if root < comm.size() {
        return Ok(());
    }
    Err(Error::Root { op, rank: comm.rank(), root, size: comm.size() })
}

/// Refuses an output that is not size · n long.
fn check_all(n: usize, got: usize, comm: &dyn Communicator) -> Result<()> {
    let expected = n.saturating_mul(comm.size());
    if got == expected {
        return Ok(());
    }
    Err(Error::Length { op: Op::AllGatherF32, rank: comm.rank(), expected, got })
}
