//! One user's items with their documents, indexed once.

use super::bm25::{Index, Split};
use crate::data::Item;
use std::sync::OnceLock;

/// The items of one user, oldest first, and what BM25 compares of each.
///
/// An index is made at the first request that needs it and serves every prefix of the history
/// exactly as if the later items did not exist. Shared between threads freely.
#[derive(Debug)]
pub struct History<'a> {
    items: Vec<&'a Item>,
    documents: Vec<String>,
    spaces: OnceLock<Index>,
    whitespace: OnceLock<Index>,
}

impl<'a> History<'a> {
    /// Takes the items, oldest first, each with its document.
    pub fn new(items: impl IntoIterator<Item = (&'a Item, String)>) -> Self {
        let (items, documents) = items.into_iter().unzip();
        Self { items, documents, spaces: OnceLock::new(), whitespace: OnceLock::new() }
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn item(&self, number: usize) -> &'a Item {
        self.items[number]
    }

    pub(super) fn document(&self, number: usize) -> &str {
        &self.documents[number]
    }

    pub(super) fn index(&self, split: Split) -> &Index {
        let held = match split {
            Split::Spaces => &self.spaces,
            Split::Whitespace => &self.whitespace,
        };
        held.get_or_init(|| Index::new(split, &self.documents))
    }
}
