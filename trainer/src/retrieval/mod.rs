//! Which items stand in front of a prompt, and in which order.
//!
//! Owns: the retrievers and the choice ([`Retrieval::choose`]), a user's index ([`History`]), the pool
//! of other users ([`Pool`]), BM25 in both its forms. Must never know: prompts, tokens, files.
//!
//! **What may be seen.** The caller says how many items from the start of the history a request may
//! see: for a history item those strictly before it. Nothing of a later item enters, not even as a
//! document frequency. The same holds for the own items in a pool of users.
//!
//! **Randomness.** All draws of a request are a function of (seed, user, query id, purpose): no
//! request depends on another one, on threads or on order. (The study reseeds once a batch.)
//!
//! Contriever, LaMP's dense retriever, is not here: it needs an encoder of its own.
//! Start reading at [`Retrieval`].

mod bm25;
mod choose;
mod draw;
mod error;
mod history;
mod order;
mod pool;

pub use error::RetrievalError;
pub use history::History;
pub use order::Order;
pub use pool::{Document, Others, Pool};

use crate::data::Item;
use crate::ids::UserKey;
use choose::{Call, merge};
use draw::{Draws, Purpose};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How items are ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Retriever {
    /// OPPU's: BM25 Okapi as `rank_bm25` 0.2.2 has it, words between single spaces; ties to the later item.
    #[serde(rename = "bm25-okapi", alias = "bm25")]
    Bm25Okapi,
    /// LaMP's: the same over words between white space.
    #[serde(rename = "bm25-lamp", alias = "lamp")]
    Bm25Lamp,
    /// The study's: never negative, over words between white space; ties to the earlier item; the
    /// first item that equals the question ([`Request::twin`]) is not in the corpus.
    #[serde(rename = "bm25-study")]
    Bm25Study,
    /// The most recent first.
    #[serde(rename = "recency")]
    Recency,
    /// A draw without replacement from the user's own items; all of them if there are no more.
    #[serde(rename = "random")]
    Random,
    /// LaMP's: a draw with replacement, as long as is asked for; without an offset.
    #[serde(rename = "random-lamp")]
    RandomLamp,
    /// As many users as items are wanted, drawn with replacement by their number of items; the items
    /// are drawn from theirs.
    #[serde(rename = "full_random", alias = "full-random")]
    FullRandom,
    /// [`Retriever::Bm25Study`] over [`Retrieval::pool`] items drawn from as many users.
    #[serde(rename = "ranbm25")]
    RanBm25,
}

impl Retriever {
    fn pools_items(self) -> bool {
        self == Self::RanBm25
    }
}

/// The largest number of items that can be asked for, passed over or pooled: a typing error beyond it
/// must not become a run out of memory.
pub const MOST_ITEMS: usize = 1_000_000;

/// A number of items.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Amount {
    /// So many, at most [`MOST_ITEMS`].
    Count(usize),
    /// A share of those there are, in (0, 1), rounded down.
    Share(f64),
}

impl Amount {
    /// Of `len` items.
    ///
    /// # Errors
    /// [`RetrievalError::Amount`]: a count beyond [`MOST_ITEMS`], a share outside (0, 1).
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= share < len")]
    pub fn of(self, len: usize) -> Result<usize, RetrievalError> {
        match self {
            Self::Count(count) if count <= MOST_ITEMS => Ok(count),
            Self::Count(count) => Err(RetrievalError::Amount { got: count as f64 }),
            Self::Share(share) if share > 0.0 && share < 1.0 => Ok((len as f64 * share) as usize),
            Self::Share(got) => Err(RetrievalError::Amount { got }),
        }
    }
}

impl TryFrom<f64> for Amount {
    type Error = RetrievalError;

    /// The study's spelling: below 1 a share, otherwise a whole number.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: whole and small"
    )]
    fn try_from(got: f64) -> Result<Self, RetrievalError> {
        if got > 0.0 && got < 1.0 {
            Ok(Self::Share(got))
        } else if (0.0..=MOST_ITEMS as f64).contains(&got) && got.fract() == 0.0 {
            Ok(Self::Count(got as usize))
        } else {
            Err(RetrievalError::Amount { got })
        }
    }
}

/// The study's pool for LaMP task 1 to 7, about the mean size of a profile; none for another number.
pub fn study_pool(lamp_task: usize) -> Option<usize> {
    [91, 159, 188, 287, 90, 81, 18].get(lamp_task.checked_sub(1)?).copied()
}

/// A retriever, how many items it shows, and how.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retrieval {
    /// How to rank; with `outputs`, the items' inputs alone.
    pub retriever: Retriever,
    /// Mixed: the retriever of the items whose outputs are shown with these inputs.
    #[serde(default)]
    pub outputs: Option<Retriever>,
    /// How many to show; a count of 0 is no retrieval. A share is of the items there are to rank,
    /// for [`Retriever::FullRandom`] of the user's own.
    pub number: Amount,
    /// How many of the best to pass over. Unless it is a count of 0, `offset + number` must be less
    /// than the items there are, otherwise nothing is shown.
    #[serde(default = "zero")]
    pub offset: Amount,
    /// The order in the prompt.
    #[serde(default)]
    pub order: Order,
    /// Items pooled by [`Retriever::RanBm25`]: [`study_pool`] has the study's.
    #[serde(default)]
    pub pool: usize,
    /// Whether the user who asks is left out of pools; the study keeps it in.
    #[serde(default)]
    pub exclude_self: bool,
    /// Seed of all draws.
    #[serde(default)]
    pub seed: u64,
}

fn zero() -> Amount {
    Amount::Count(0)
}

/// Who asks for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The user.
    pub user: UserKey,
    /// The id of the item the prompt is for.
    pub item: &'a str,
    /// The text BM25 compares with.
    pub text: &'a str,
    /// A field and the question's text in it: the study drops the first item with the same.
    pub twin: Option<(&'a str, &'a str)>,
    /// The task's output field, which [`Retrieval::outputs`] exchanges.
    pub output: Option<&'a str>,
}

impl<'a> Request<'a> {
    /// A request with no twin and no output field.
    pub fn new(user: UserKey, item: &'a str, text: &'a str) -> Self {
        Self { user, item, text, twin: None, output: None }
    }

    fn is_twin(&self, item: &Item) -> bool {
        self.twin.is_some_and(|(field, text)| item.field(field) == Some(text))
    }
}

impl Retrieval {
    /// No retrieval.
    pub const NONE: Self = Self::top(Retriever::Recency, 0, 0);

    /// The `count` best, the best first, of the user's own items.
    pub const fn top(retriever: Retriever, count: usize, seed: u64) -> Self {
        let (number, offset) = (Amount::Count(count), Amount::Count(0));
        let (outputs, order) = (None, Order::Start);
        Self { retriever, outputs, number, offset, order, pool: 0, exclude_self: false, seed }
    }

    /// Whether nothing is ever retrieved.
    pub fn is_none(&self) -> bool {
        self.number == Amount::Count(0)
    }

    /// Checks what can be known before any history: the amounts, the size of the pool.
    ///
    /// # Errors
    /// [`RetrievalError::Amount`], [`RetrievalError::PoolSize`].
    pub fn check(&self) -> Result<(), RetrievalError> {
        self.number.of(0).and(self.offset.of(0))?;
        let mut retrievers = [Some(self.retriever), self.outputs].into_iter().flatten();
        match retrievers.find(|retriever| retriever.pools_items()) {
            Some(retriever) => self.pool_size(retriever).map(|_| ()),
            None => Ok(()),
        }
    }

    fn pool_size(&self, retriever: Retriever) -> Result<usize, RetrievalError> {
        match self.pool {
            size @ 1..=MOST_ITEMS => Ok(size),
            got => Err(RetrievalError::PoolSize { retriever, got }),
        }
    }

    /// Whether [`Retrieval::choose`] needs a [`Pool`].
    pub fn needs_pool(&self) -> bool {
        let drawing = |r: Retriever| r.pools_items() || r == Retriever::FullRandom;
        drawing(self.retriever) || self.outputs.is_some_and(drawing)
    }

    /// The items to show for a request that may see the first `visible` items, in their order in the prompt.
    ///
    /// *Order*: a function of its arguments alone.
    ///
    /// # Errors
    /// More visible items than there are, a bad amount, a pool that is needed and not given or cannot be
    /// read, inputs and outputs that cannot be mixed.
    pub fn choose(
        &self,
        history: &History<'_>,
        visible: usize,
        request: &Request<'_>,
        pool: Option<&Pool<'_>>,
    ) -> Result<Vec<Item>, RetrievalError> {
        if visible > history.len() {
            return Err(RetrievalError::Visible { visible, items: history.len() });
        }
        if self.is_none() {
            return Ok(Vec::new());
        }
        let call = Call { retrieval: self, history, visible, request, pool };
        let inputs = call.best(self.retriever, Purpose::Inputs)?;
        let items = match self.outputs {
            None => inputs,
            Some(retriever) => {
                let field = request.output.ok_or(RetrievalError::NoOutputField)?;
                let outputs = call.best(retriever, Purpose::Outputs)?;
                inputs
                    .into_iter()
                    .zip(&outputs)
                    .map(|(i, o)| merge(i, o, field))
                    .collect::<Result<_, _>>()?
            }
        };
        let places = self.relevance(items.len(), request);
        let mut held: Vec<_> = items.into_iter().map(Some).collect();
        Ok(places.into_iter().filter_map(|place| held[place].take()).collect())
    }

    /// How relevant each of the `count` items of [`Retrieval::choose`] is, in the same order: 0 is the most.
    pub fn relevance(&self, count: usize, request: &Request<'_>) -> Vec<usize> {
        self.order.places(count, || Draws::new(self.seed, request, Purpose::Order))
    }

    /// Which ranks out of `len` are shown.
    fn window(&self, len: usize) -> Result<Range<usize>, RetrievalError> {
        let number = self.number.of(len)?;
        self.window_of(number, len)
    }

    /// The ranks of `number` items out of `len`, behind the offset.
    fn window_of(&self, number: usize, len: usize) -> Result<Range<usize>, RetrievalError> {
        let offset = self.offset.of(len)?;
        let end = offset + number;
        Ok(match self.offset {
            Amount::Count(0) => 0..end.min(len),
            _ if end < len => offset..end,
            _ => 0..0,
        })
    }
}

#[cfg(test)]
#[path = "retrieval_tests.rs"]
mod tests;
