//! What a base, its files or its tokenizer can be refused for.

use std::path::{Path, PathBuf};

/// Result of a call in [`crate::model`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a base, an overlay or a tokenizer was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's own words.
        source: std::io::Error,
    },
    /// A setting of the base is absent, malformed or not supported.
    #[error("{}: `{key}`: {reason}", path.display())]
    Setting {
        /// File.
        path: PathBuf,
        /// Key as written in the file.
        key: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// The file is not what its format says.
    #[error("{}: {what}", path.display())]
    Format {
        /// File.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A pickle checkpoint.
    #[error(
        "{}: pickle checkpoints (.bin, .pt, .pth, .ckpt) can run code when they are read; convert to safetensors",
        path.display()
    )]
    Pickle {
        /// File.
        path: PathBuf,
    },
    /// A tensor of the base is in no file.
    #[error("{}: tensor `{name}` is missing", path.display())]
    MissingTensor {
        /// File or folder.
        path: PathBuf,
        /// Name it would have there.
        name: String,
    },
    /// A file holds a tensor that the base has no use for.
    #[error("{}: unexpected tensor `{name}`", path.display())]
    UnexpectedTensor {
        /// File or folder.
        path: PathBuf,
        /// Name in the file.
        name: String,
    },
    /// A tensor's shape is not the one the specification asks for.
    #[error("{}: tensor `{name}` must have shape {expected:?}, has {got:?}", path.display())]
    TensorShape {
        /// File.
        path: PathBuf,
        /// Name in the file.
        name: String,
        /// Shape by the specification.
        expected: Vec<usize>,
        /// Shape in the file.
        got: Vec<usize>,
    },
    /// A tensor's element type is not supported.
    #[error("{}: tensor `{name}` has element type {got}; supported: {supported}", path.display())]
    TensorType {
        /// File.
        path: PathBuf,
        /// Name in the file.
        name: String,
        /// Type in the file.
        got: String,
        /// Types that can be read.
        supported: &'static str,
    },
    /// A weight is NaN or infinite.
    #[error("tensor `{name}`: element {index} is {value}")]
    NonFinite {
        /// Canonical name.
        name: String,
        /// Flat index.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The base has no tensor of this name, or not of this kind.
    #[error("the base has no {kind} `{name}`")]
    NoSuchTensor {
        /// Canonical name asked for.
        name: String,
        /// Kind asked for.
        kind: &'static str,
    },
    /// A file of this module's own format belongs to something else.
    #[error("{}: {what} is {got}, expected {expected}", path.display())]
    Mismatch {
        /// File.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// Value required.
        expected: String,
        /// Value found.
        got: String,
    },
    /// A merge was asked for something that cannot be merged.
    #[error("merge into `{name}`: {what}")]
    Delta {
        /// Canonical name of the weight.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// Text could not be encoded or ids could not be decoded.
    #[error("tokenizer: {what}")]
    Tokenizer {
        /// What is wrong.
        what: String,
    },
    /// A packed batch is inconsistent or does not fit.
    #[error("batch: {what}")]
    Batch {
        /// What is wrong.
        what: String,
    },
    /// An operation refused its arguments.
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn format(path: &Path, what: impl Into<String>) -> Self {
        Self::Format { path: path.to_path_buf(), what: what.into() }
    }

    pub(crate) fn setting(path: &Path, key: &str, reason: impl Into<String>) -> Self {
        Self::Setting { path: path.to_path_buf(), key: key.to_owned(), reason: reason.into() }
    }
}
