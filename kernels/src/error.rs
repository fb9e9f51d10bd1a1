//! Typed errors of the operations.

/// Result of an operation.
pub type Result<T> = std::result::Result<T, Error>;

/// What an operation refuses, with the operation's name, what it expected and what it got.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A buffer is too short for the rows, stride and width asked of it.
    #[error("{op}: {what} needs {expected} elements, the buffer has {got}")]
    Length {
        /// Operation.
        op: &'static str,
        /// Argument.
        what: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements there.
        got: usize,
    },
    /// Two dimensions that must agree do not.
    #[error("{op}: {what} must be {expected}, got {got}")]
    Shape {
        /// Operation.
        op: &'static str,
        /// Argument or dimension.
        what: &'static str,
        /// Value required.
        expected: usize,
        /// Value given.
        got: usize,
    },
    /// A routing table (segments, sequences, indices) is inconsistent.
    #[error("{op}: {what}")]
    Routing {
        /// Operation.
        op: &'static str,
        /// What is wrong, with the entry's index.
        what: String,
    },
    /// The backend could not provide memory or run the operation.
    #[error("{op}: {what}")]
    Backend {
        /// Operation.
        op: &'static str,
        /// The backend's own words.
        what: String,
    },
}

/// Checks `got >= expected` elements.
///
/// # Errors
/// [`Error::Length`] when the buffer is too short.
pub fn check_len(op: &'static str, what: &'static str, expected: usize, got: usize) -> Result<()> {
    if got < expected { Err(Error::Length { op, what, expected, got }) } else { Ok(()) }
}

/// Checks `got == expected`.
///
/// # Errors
/// [`Error::Shape`] when they differ.
pub fn check_eq(op: &'static str, what: &'static str, expected: usize, got: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::Shape { op, what, expected, got }) }
}
