//! Users and their items, from files to records.
//!
//! Owns: the record every reader ends in ([`UserRecord`]), the Myriad JSONL format ([`jsonl`]), the
//! files of LaMP and OPPU ([`lamp`]), the ml-100k reader ([`ml100k`]), two corpora that are cut into
//! users ([`chitchat`], [`spam_assassin`], [`timeline`]), the choice between them
//! ([`Source`], [`Selection`], [`Dataset`]), fingerprints.
//! Must never know: tokens, prompts, models, ranks. A record is text as the file has it.
//! Start reading at [`UserRecord`], then [`Dataset`]. The format is described for users in
//! `docs/guides/data.md`.

mod check;
pub mod chitchat;
mod chitchat_plain;
mod dataset;
mod elements;
mod error;
pub mod events;
mod fingerprint;
mod json;
pub mod jsonl;
pub mod lamp;
mod lines;
pub mod ml100k;
mod ml100k_table;
mod pass;
mod selection;
mod shelf;
mod source;
pub mod spam_assassin;
mod spam_assassin_mail;
mod spam_assassin_text;
mod syntax;
pub mod timeline;
mod visit;

pub use check::{Report, check};
pub use dataset::{Dataset, Index, Records, Tally, UserSummary, load};
pub use error::{DataError, Location, Problem, Unmatched, What};
pub use fingerprint::{Fingerprint, fingerprint, user_fingerprint};
pub use lamp::LampTask;
pub use ml100k::Ml100k;
pub use selection::Selection;
pub use source::{LampSet, OnBad, Source};

use jsonl::Span;

use crate::ids::UserId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One thing a user did or is asked about: named texts, such as `text`, `score`, `date`.
///
/// Numbers and booleans of the file are already text here ([`jsonl`] has the rule).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The item's id, unique in its list; never among the fields.
    pub id: String,
    /// Field name -> text. At least one.
    pub fields: BTreeMap<String, String>,
}

impl Item {
    /// The text of a field, if the item has it.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }
}

/// Everything known of one user.
///
/// *Order*: both lists oldest first; every query is later than the whole history. Retrieval relies
/// on it to keep an item from seeing later ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRecord {
    /// The id as written; data, never a path.
    pub id: UserId,
    /// What a personal adapter is trained on.
    pub history: Vec<Item>,
    /// Held-out items of a personal user; training items of a population user.
    pub queries: Vec<Item>,
    /// A text about the user that stands in front of the prompts (PAG profile), if there is one.
    pub profile: Option<String>,
}

/// What a file's users are for; decides which lists may be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Gets an adapter of its own: the history must not be empty, the queries may be.
    Personal,
    /// Trains what all share: the queries must not be empty, the history may be.
    Population,
}
