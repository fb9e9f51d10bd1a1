//! report: what a run says while it runs.
//!
//! Owns: the events of a run and where they go, one JSON object a line; charts ([`plot`], [`intents`]). Must never know: the terminal (the launcher
//! prints), users' texts (an event names a user, never quotes one). Start reading at [`Event`].

mod event;
pub mod intents;
pub mod plot;
mod sink;

pub use event::{Event, Progress, Record, Stage};
pub use sink::{EventSink, JsonlSink, NullSink};

use std::path::PathBuf;

/// Why an event could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The event file could not be opened or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A picture that cannot be drawn.
    #[error("picture: {reason}")]
    Picture {
        /// Why.
        reason: String,
    },
    /// An event that JSON cannot say, or a line that is no event.
    #[error("not an event: {source}")]
    Json {
        /// The cause.
        #[from]
        source: serde_json::Error,
    },
}
