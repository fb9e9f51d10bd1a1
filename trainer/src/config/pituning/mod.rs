//! The configs of PITuning runs (`run.method = "pituning"`): keys of their own, the same layers, recipes and checks.
//!
//! Start reading at `keys.rs`, the table of all keys; then [`super::Document::resolve_events`].

mod fitting;
mod keys;
mod resolve;
mod resolved;

pub use keys::SECTIONS;
pub(super) use resolve::METHOD;
pub use resolved::{
    Distill, EventArm, EventConfig, EventEvaluate, EventIndividual, EventPopulation, EventRun,
    EventSource, EventSourceKind, Method, ModelShape, RareTo, Tune, Unlearn,
};

/// The names of the recipes.
pub fn recipe_names() -> impl Iterator<Item = &'static str> {
    super::recipe::EVENT_RECIPES.iter().map(|r| r.name)
}
