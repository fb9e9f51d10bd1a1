//! The base as files: specification, readers, tokenizer, cache, overlays, hostile input.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "tests on small numbers; a failed unwrap is a failed test"
)]

mod cached;
mod files;
mod fixtures;
mod hostile;
mod merged;
mod settings;
mod smollm2;
mod tokenizers;
