//! The frozen base: what it is, where its numbers come from, and how the ranks of a node share them.
//!
//! Owns the specification ([`spec`], parsed from `config.json` by [`config_json`]), the readers of foreign files
//! ([`huggingface`], [`gguf`]) behind one trait ([`weights`]), the tokenizer ([`tokenizer`]), and the converted,
//! memory-mapped weights with their overlays ([`cache`], [`overlay`]), and the arithmetic on them: [`network`] (weights on a
//! backend), [`step`] (forward, loss, backward of a packed batch) and [`decode`] (predictions). Must never know a user, a prompt or a rank.
//! Files it reads are hostile until checked: they end in an [`Error`], never in a panic or an allocation beyond
//! the size of the file. Start reading at [`spec::BaseSpec`], then [`cache::MappedBase`].

pub mod activations;
pub mod batch;
mod block;
pub mod cache;
mod cache_file;
pub mod config_json;
pub mod decode;
pub mod error;
pub mod event;
pub mod gguf;
mod gguf_header;
pub mod huggingface;
mod mapped;
pub mod network;
pub mod overlay;
mod pass;
mod places;
pub mod sites;
pub mod spec;
pub mod step;
pub mod tokenizer;
mod trainable;
pub mod weights;

pub use error::{Error, Result};
pub use pass::Adapters;
