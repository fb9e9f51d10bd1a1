//! What can go wrong with a store.

use crate::ids::{UserId, UserKey};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Result of a store call.
pub type Result<T> = std::result::Result<T, Error>;

/// A user as far as known at a damaged place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(pub Option<UserKey>);

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(key) => write!(f, " (user key {})", key.hex()),
            None => Ok(()),
        }
    }
}

/// Any error of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Bytes that are not what was committed.
    #[error("{path}, byte {offset}{owner}: {what}", path = path.display())]
    Corrupt {
        /// File.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// Whose record, if known.
        owner: Owner,
        /// What is wrong.
        what: String,
    },
    /// Another process writes there.
    #[error("{path} is locked: another run writes to this store", path = path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A write failed before: nothing more is taken.
    #[error("rank {rank}'s archive had a failed write and takes no more: open it again")]
    Failed {
        /// MPI rank of the archive.
        rank: u32,
    },
    /// Two ranks hold different records of one user under one generation.
    #[error("user key {key}: ranks {ranks:?} hold different records of generation {generation}", key = key.hex())]
    Conflict {
        /// The user.
        key: UserKey,
        /// The generation both claim.
        generation: u64,
        /// The two ranks.
        ranks: [u32; 2],
    },
    /// A commit that would not be the user's newest.
    #[error("user {user}: generation {got} is not above {newest}, the newest committed")]
    Generation {
        /// The user.
        user: UserId,
        /// Generation given.
        got: u64,
        /// Newest in the archive, or in the batch.
        newest: u64,
    },
    /// No record of that user.
    #[error("no adapter of user key {key} in the store", key = key.hex())]
    UnknownUser {
        /// The user.
        key: UserKey,
    },
    /// A text or header too long for the format.
    #[error("{what} takes {got} bytes, at most {max} are allowed")]
    TooLong {
        /// Which.
        what: &'static str,
        /// Bytes found.
        got: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A NaN or infinity in an adapter.
    #[error("tensor {tensor} holds a value that is not finite")]
    NotFinite {
        /// Its key.
        tensor: String,
    },
    /// An adapter file or its config says something we refuse.
    #[error("{path}: {what}", path = path.display())]
    Refused {
        /// File or folder.
        path: PathBuf,
        /// What and why.
        what: String,
    },
    /// A resumed run is not the one in the folder.
    #[error("this is not the run in {path}; changed:\n{diff}", path = path.display())]
    Changed {
        /// The manifest.
        path: PathBuf,
        /// One line a key: `key: old -> new`.
        diff: String,
    },
    /// A description of an adapter is wrong.
    #[error(transparent)]
    Lora(#[from] crate::lora::Error),
}

impl Error {
    /// Wraps a system error with its path, for `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// A damaged place.
    pub(crate) fn corrupt(path: &Path, offset: u64, key: Option<UserKey>, what: &str) -> Self {
        Self::Corrupt { path: path.to_owned(), offset, owner: Owner(key), what: what.to_owned() }
    }
}
