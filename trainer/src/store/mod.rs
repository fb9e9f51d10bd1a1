//! The adapters of a run on disk: whole or absent, checksummed, one record per user, any number of ranks.
//!
//! Owns the file operations ([`fs`]), the archive of records ([`Writer`], [`Store`]), forgetting a user
//! ([`forget`]), the check of everything ([`verify`]), the run manifest ([`manifest`]) and PEFT folders
//! ([`peft`]). Must never know how an adapter is trained, a device, or the environment. User ids are data:
//! no file name is ever made from one. Formats byte by byte: `docs/formats.md`; why so: ADR 0002.
//! Start reading at [`Writer::commit_batch`], then `segment.rs`.

pub mod crash;
pub mod fs;
pub mod manifest;
pub mod peft;

mod adapter;
mod archive;
mod codec;
mod error;
mod forget;
mod index;
mod model;
mod rank;
mod record;
mod segment;
mod tensors;
mod verify;
mod writer;

pub use adapter::{Adapter, AdapterRef, Provenance};
pub use archive::Store;
pub use error::{Error, Result};
pub use forget::{Forgotten, forget, forget_in, may_forget};
pub use fs::write_atomic;
pub use index::{Entry, Status};
pub use manifest::Manifest;
pub use model::{Best, ModelFile, State, load_checkpoint, save_checkpoint};
pub use verify::{Problem, Report, verify, verify_in};
pub use writer::{Commit, Options, Outcome, Writer};
