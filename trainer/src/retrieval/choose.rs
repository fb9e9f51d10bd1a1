//! What each retriever does for one request.

use super::bm25::{Index, Split};
use super::draw::{Draws, Purpose};
use super::pool::Own;
use super::{History, Pool, Request, Retrieval, RetrievalError, Retriever};
use crate::data::Item;
use std::ops::Range;

/// An item with the output of another; the id stays that of the input.
pub(super) fn merge(mut input: Item, output: &Item, field: &str) -> Result<Item, RetrievalError> {
    let lent = output.field(field).ok_or_else(|| {
        let (item, field) = (output.id.clone(), field.to_owned());
        RetrievalError::NoOutput { item, field }
    })?;
    input.fields.insert(field.to_owned(), lent.to_owned());
    Ok(input)
}

/// The arguments of one [`Retrieval::choose`].
pub(super) struct Call<'c> {
    pub(super) retrieval: &'c Retrieval,
    pub(super) history: &'c History<'c>,
    pub(super) visible: usize,
    pub(super) request: &'c Request<'c>,
    pub(super) pool: Option<&'c Pool<'c>>,
}

impl Call<'_> {
    /// The items of the window, most relevant first.
    pub(super) fn best(
        &self,
        retriever: Retriever,
        purpose: Purpose,
    ) -> Result<Vec<Item>, RetrievalError> {
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
        let retriever = Retriever::RanBm25;
        let size = self.retrieval.pool_size(retriever)?;
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
