//! The event model: GPT-2 blocks over rows of events, and an intention attention network as the head.
//!
//! Each event is one position: its columns (time, weekday, event, contexts) have an embedding table each, side by side or
//! summed. The history's last hidden state meets a table of intent embeddings in the head; a second, auxiliary head
//! names events that were hidden from the model. All parameters lie in one flat vector, because all of them train
//! (in the population stage and in distilling); the individual stage sees them frozen, with adapters in the blocks and
//! changes of the intent table that belong to a user.
//!
//! Owns the specification ([`EventSpec`]), the places of the parameters ([`Places`]), the numbers events have in a pack
//! ([`EventTable`]) and the arithmetic ([`EventNetwork`], [`EventStepper`]). Must never know a user, a file or a stage.
//! Source: PITuning, figures (a) and (b); what is reconstructed is in `docs/adr/0005-pituning.md`. Start reading at
//! [`EventSpec`], then [`EventStepper`].

mod head;
mod network;
mod places;
mod spec;
mod step;
mod table;

pub use super::places::{Place, Start};
pub use network::EventNetwork;
pub use places::Places;
pub use spec::{Combine, EventSpec, History, Prediction, Product};
pub use step::{Adapted, EventStepper, Goal};
pub use table::{EventTable, MASKED};
