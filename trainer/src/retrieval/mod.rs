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
mod draw;
mod error;
mod history;
mod order;
mod pool;

pub use error::RetrievalError;
pub use history::History;
pub use order::Order;
pub use pool::{Others, Pool};

use crate::data::Item;
use crate::ids::UserKey;
use bm25::{Index, Split};
use draw::{Draws, Purpose};
use pool::Own;
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

/// A number of items.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Amount {
    /// So many.
    Count(usize),
    /// A share of those there are, in (0, 1), rounded down.
    Share(f64),
}

impl Amount {
    /// Of `len` items.
    ///
    /// # Errors
    /// [`RetrievalError::Amount`]: a share outside (0, 1).
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= share < len")]
    pub fn of(self, len: usize) -> Result<usize, RetrievalError> {
        match self {
            Self::Count(count) => Ok(count),
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
        } else if (0.0..=1e9).contains(&got) && got.fract() == 0.0 {
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
    /// [`RetrievalError::Amount`], [`RetrievalError::NoPool`].
    pub fn check(&self) -> Result<(), RetrievalError> {
        self.number.of(0).and(self.offset.of(0))?;
        match [Some(self.retriever), self.outputs].into_iter().flatten().find(|r| r.pools_items()) {
            Some(retriever) if self.pool == 0 => Err(RetrievalError::NoPool { retriever }),
            _ => Ok(()),
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
        let draws = || Draws::new(self.seed, request, Purpose::Order);
        let places = self.order.places(items.len(), draws);
        let mut held: Vec<_> = items.into_iter().map(Some).collect();
        Ok(places.into_iter().filter_map(|place| held[place].take()).collect())
    }

    /// Which ranks out of `len` are shown.
    fn window(&self, len: usize) -> Result<Range<usize>, RetrievalError> {
        let number = self.number.of(len)?;
        self.window_of(number, len)
    }

    /// The ranks of `number` items out of `len`, behind the offset.
    fn window_of(&self, number: usize, len: usize) -> Result<Range<usize>, RetrievalError> {
        let offset = self.offset.of(len)?;
        let end = offset.saturating_add(number);
        Ok(match self.offset {
            Amount::Count(0) => 0..end.min(len),
            _ if end < len => offset..end,
            _ => 0..0,
        })
    }
}

/// An item with the output of another; the id stays that of the input.
fn merge(mut input: Item, output: &Item, field: &str) -> Result<Item, RetrievalError> {
    let lent = output.field(field).ok_or_else(|| {
        let (item, field) = (output.id.clone(), field.to_owned());
        RetrievalError::NoOutput { item, field }
    })?;
    input.fields.insert(field.to_owned(), lent.to_owned());
    Ok(input)
}

/// The arguments of one [`Retrieval::choose`].
struct Call<'c> {
    retrieval: &'c Retrieval,
    history: &'c History<'c>,
    visible: usize,
    request: &'c Request<'c>,
    pool: Option<&'c Pool<'c>>,
}

impl Call<'_> {
    /// The items of the window, most relevant first.
    fn best(&self, retriever: Retriever, purpose: Purpose) -> Result<Vec<Item>, RetrievalError> {
        let (retrieval, visible) = (self.retrieval, self.visible);
        let draws = || Draws::new(retrieval.seed, self.request, purpose);
        let own = |numbers: Vec<usize>| -> Vec<Item> {
            numbers.into_iter().map(|number| self.history.item(number).clone()).collect()
        };
        let okapi = |split| {
            let window = retrieval.window(visible)?;
            let scores = self.history.index(split).okapi(visible, self.request.text);
            Ok(own(top(&scores, window, Ties::Later)))
        };
        match retriever {
            Retriever::Bm25Okapi => okapi(Split::Spaces),
            Retriever::Bm25Lamp => okapi(Split::Whitespace),
            Retriever::Bm25Study => self.study().map(own),
            Retriever::Recency => {
                let window = retrieval.window(visible)?;
                Ok(own(window.map(|rank| visible - 1 - rank).collect()))
            }
            Retriever::Random => {
                let window = retrieval.window(visible)?;
                let drawn = draws().distinct(visible).take(window.end).skip(window.start);
                Ok(own(drawn.collect()))
            }
            Retriever::RandomLamp if visible == 0 => Ok(Vec::new()),
            Retriever::RandomLamp => {
                let (number, mut draws) = (retrieval.number.of(visible)?, draws());
                Ok(own((0..number).map(|_| draws.below(visible)).collect()))
            }
            Retriever::FullRandom => {
                let number = retrieval.number.of(visible)?;
                let mut window = 0..0;
                let most = |len| {
                    window = retrieval.window_of(number, len)?;
                    Ok(window.end)
                };
                let drawn = self.others(retriever)?.draw(self.own(), number, most, draws())?;
                Ok(drawn.into_iter().skip(window.start).map(|pooled| pooled.item).collect())
            }
            Retriever::RanBm25 => self.study_in_pool(draws()),
        }
    }

    /// The study's BM25 over the own items.
    fn study(&self) -> Result<Vec<usize>, RetrievalError> {
        let (visible, text) = (self.visible, self.request.text);
        let twin = (0..visible).find(|&number| self.request.is_twin(self.history.item(number)));
        let Some(twin) = twin else {
            let window = self.retrieval.window(visible)?;
            let scores = self.history.index(Split::Whitespace).study(visible, text);
            return Ok(top(&scores, window, Ties::Earlier));
        };
        // Rare: the corpus without it is no prefix and is indexed for this request alone.
        let rest: Vec<usize> = (0..visible).filter(|&number| number != twin).collect();
        let window = self.retrieval.window(rest.len())?;
        let documents: Vec<&str> = rest.iter().map(|&n| self.history.document(n)).collect();
        let scores = Index::new(Split::Whitespace, &documents).study(rest.len(), text);
        Ok(top(&scores, window, Ties::Earlier).into_iter().map(|place| rest[place]).collect())
    }

    /// The study's BM25 over a pool.
    fn study_in_pool(&self, draws: Draws) -> Result<Vec<Item>, RetrievalError> {
        let (retriever, size) = (Retriever::RanBm25, self.retrieval.pool);
        if size == 0 {
            return Err(RetrievalError::NoPool { retriever });
        }
        let mut pooled = self.others(retriever)?.draw(self.own(), size, |_| Ok(size), draws)?;
        if let Some(twin) = pooled.iter().position(|p| self.request.is_twin(&p.item)) {
            pooled.remove(twin);
        }
        let documents: Vec<&str> = pooled.iter().map(|p| p.document.as_str()).collect();
        let index = Index::new(Split::Whitespace, &documents);
        let scores = index.study(documents.len(), self.request.text);
        let best = top(&scores, self.retrieval.window(documents.len())?, Ties::Earlier);
        Ok(best.into_iter().map(|place| pooled[place].item.clone()).collect())
    }

    fn others(&self, retriever: Retriever) -> Result<&Pool<'_>, RetrievalError> {
        self.pool.ok_or(RetrievalError::NoOthers { retriever })
    }

    fn own(&self) -> Own<'_> {
        let visible = if self.retrieval.exclude_self { 0 } else { self.visible };
        Own { user: self.request.user, history: self.history, visible }
    }
}

/// Which of two documents with one score comes first.
#[derive(Clone, Copy)]
enum Ties {
    Earlier,
    Later,
}

/// The documents at these ranks, the highest score first.
fn top(scores: &[f64], ranks: Range<usize>, ties: Ties) -> Vec<usize> {
    let before = |a: &usize, b: &usize| {
        let tied = match ties {
            Ties::Earlier => a.cmp(b),
            Ties::Later => b.cmp(a),
        };
        scores[*b].total_cmp(&scores[*a]).then(tied)
    };
    let mut order: Vec<usize> = (0..scores.len()).collect();
    if ranks.end < order.len() {
        order.select_nth_unstable_by(ranks.end, before);
        order.truncate(ranks.end);
    }
    order.sort_unstable_by(before);
    order.split_off(ranks.start)
}

#[cfg(test)]
#[path = "retrieval_tests.rs"]
mod tests;
