//! The frozen base: what it is, where its numbers come from, and how the ranks of a node share them.
//!
//! Owns the specification ([`spec`], parsed from `config.json` by [`config_json`]), the readers of foreign files
//! ([`huggingface`], [`gguf`]) behind one trait ([`weights`]), the tokenizer ([`tokenizer`]), and the converted,
//! memory-mapped weights with their overlays ([`cache`], [`overlay`]). Must never know a user, a prompt or a rank.
//! Files it reads are hostile until checked: they end in an [`Error`], never in a panic or an allocation beyond
//! the size of the file. Start reading at [`spec::BaseSpec`], then [`cache::MappedBase`].

pub mod cache;
mod cache_file;
pub mod config_json;
pub mod error;
pub mod gguf;
mod gguf_header;
pub mod huggingface;
mod mapped;
pub mod overlay;
pub mod spec;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
