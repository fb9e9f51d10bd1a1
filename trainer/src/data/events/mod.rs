//! Event logs: what people did and when, as rows of small numbers, and the windows a model learns from.
//!
//! Owns the types that every source of events gives ([`EventData`]) and every model, baseline and statistic takes.
//! Knows nothing of models. Start reading at [`EventData`].

pub mod generator;
mod log;

pub use log::{
    CONTEXTS, Column, EVENT, EventData, EventUser, Part, TIME, Vocabulary, WEEKDAY, Window,
};
