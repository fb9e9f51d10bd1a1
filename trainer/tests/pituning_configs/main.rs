//! Configs of PITuning runs: what they may say, and that every file of them resolves.

#![expect(clippy::unwrap_used, reason = "test code")]

mod documents;
mod files;
