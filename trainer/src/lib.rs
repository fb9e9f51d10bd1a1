//! One run of Myriad as a library.
//!
//! Modules, lowest first; a module uses only those before it (held by `tests/order.rs`):
//! [`ids`], [`config`], [`comm`], [`data`], [`baseline`], [`unlearn`], [`retrieval`], [`prompt`], [`model`], [`lora`],
//! [`pack`], [`optim`], [`shard`], [`store`], [`stage`], [`eval`], [`report`].
//! Libraries return errors and emit events; only the launcher reads the environment, prints or exits.

pub mod baseline;
pub mod comm;
pub mod config;
pub mod data;
pub mod eval;
pub mod ids;
pub mod lora;
pub mod model;
pub mod optim;
pub mod pack;
pub mod prompt;
pub mod report;
pub mod retrieval;
pub mod shard;
pub mod stage;
pub mod store;
pub mod unlearn;
