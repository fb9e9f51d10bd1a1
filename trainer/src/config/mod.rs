//! config: a run as written, and as meant.
//!
//! Owns: the TOML a user writes ([`Document`]), the checks and their messages, recipes by name, the resolved [`Config`]
//! with its hash. Must never know: what a value leads to, the environment (`${NAME}` comes from a map), the terminal.
//! Start reading at `keys.rs`, the table of all keys; then [`Document::resolve`]. PITuning's runs have sections of their
//! own: [`pituning`], [`Document::resolve_events`]; [`Document::method`] says which a file is.

mod document;
mod error;
mod identity;
mod keys;
pub mod pituning;
mod recipe;
mod resolve;
mod resolved;
mod study;
mod value;

pub use document::{Document, Text, read_layers};
pub use error::{Error, Place, Suggestion};
pub use identity::{Difference, Hash};
pub use keys::{Default, Effect, Key, Kind, OVERRIDE, OVERRIDES, RECIPE, SECTIONS, Section};
pub use recipe::{EarlyStop, Recipe, ScheduleKind};
pub use resolved::{
    AblationKind, Arm, Base, Config, Data, DeviceKind, Engine, Evaluate, GradientSum, Individual,
    Metric, OrderKind, Override, Population, Predict, PredictMode, Profile, ProfileSource, Prompt,
    Recompute, RetrieverKind, Run, Source,
};
pub use study::{Axis, Cell, Study};

/// The names of the recipes.
pub fn recipe_names() -> impl Iterator<Item = &'static str> {
    recipe::RECIPES.iter().map(|r| r.name)
}
