//! What the emulator refuses.

use crate::finding::Finding;
use std::path::PathBuf;

/// Result of the emulator.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a library could not be had or a launch failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No C++ compiler answers.
    #[error("the emulator needs a C++17 compiler: neither `g++` nor `c++` runs ({0})")]
    NoCompiler(std::io::Error),
    /// A source does not compile.
    #[error("{} does not compile for the emulator:\n{output}", source_file.display())]
    Compile {
        /// The source.
        source_file: PathBuf,
        /// The compiler's own words.
        output: String,
    },
    /// A file of the build could not be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: std::io::Error,
    },
    /// A library does not load or lacks a symbol.
    #[error("{}: {error}", path.display())]
    Library {
        /// The library.
        path: PathBuf,
        /// The loader's own words.
        error: libloading::Error,
    },
    /// No source mentions a fault, so that asking for it would test nothing.
    #[error("no source mentions FAULT_{0}")]
    UnknownFault(String),
    /// The module has no such entry, or `ENTRY` does not name it.
    #[error("{module}.cu has no ENTRY({kernel})")]
    UnknownKernel {
        /// Module.
        module: String,
        /// Entry.
        kernel: String,
    },
    /// The arguments are not those of the entry.
    #[error("{kernel}: {what}")]
    Arguments {
        /// Entry.
        kernel: String,
        /// The difference.
        what: String,
    },
    /// No CUDA device takes this geometry.
    #[error(
        "{kernel}: grid {grid:?}, block {block:?}, {shared} bytes of dynamic shared memory (limit {limit})"
    )]
    Geometry {
        /// Entry.
        kernel: String,
        /// Blocks.
        grid: [u32; 3],
        /// Threads.
        block: [u32; 3],
        /// Bytes asked for.
        shared: u32,
        /// Bytes that there are.
        limit: u32,
    },
    /// A range leaves its allocation.
    #[error("{op}: {len} bytes at {offset} of an allocation of {bytes}")]
    Range {
        /// Operation.
        op: &'static str,
        /// First byte.
        offset: usize,
        /// Bytes.
        len: usize,
        /// Bytes that there are.
        bytes: usize,
    },
    /// There is not enough memory.
    #[error("no memory for {0} bytes")]
    Memory(usize),
    /// A product reads or writes what it must not.
    #[error("product: {0}")]
    Product(String),
    /// A call of attention kernels that a device brings along is not what they take.
    #[error("flash: {0}")]
    Flash(String),
    /// The launch did something wrong; what it wrote is not to be trusted.
    #[error("{kernel}: {count} findings{}", crate::finding::listed(findings))]
    Findings {
        /// Entry.
        kernel: String,
        /// All of them, also those beyond the first 64, which are not kept.
        count: usize,
        /// The first ones, one per kind and pair of places.
        findings: Vec<Finding>,
    },
}
