//! All examples and queries of one user, each with the history it may see.

use super::{Example, PromptError, Query, Task, Tokenize};
use crate::data::{Item, UserRecord};
use crate::retrieval::{History, Request, Retrieval};

/// What is fixed for a run: task, tokenizer, retrieval, length limit.
#[derive(Clone, Copy)]
pub struct Builder<'a> {
    /// The task.
    pub task: &'a Task,
    /// The base's tokenizer.
    pub tokenizer: &'a dyn Tokenize,
    /// Which earlier items stand in front.
    pub retrieval: Retrieval,
    /// Longest sequence in tokens.
    pub max_len: usize,
}

impl std::fmt::Debug for Builder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = &self.task.template().name;
        f.debug_struct("Builder").field("task", name).field("max_len", &self.max_len).finish()
    }
}

impl Builder<'_> {
    /// Training examples of the personal stage: one per history item, in its order; each sees only
    /// the items strictly before it. An error is that item's alone.
    pub fn history_examples(&self, user: &UserRecord) -> Vec<Result<Example, PromptError>> {
        let items: Vec<&Item> = user.history.iter().collect();
        self.examples(user, &items, 0)
    }

    /// Training examples of the population stage: one per query, in its order; each sees the history
    /// and the queries strictly before it.
    pub fn query_examples(&self, user: &UserRecord) -> Vec<Result<Example, PromptError>> {
        let items: Vec<&Item> = user.history.iter().chain(&user.queries).collect();
        self.examples(user, &items, user.history.len())
    }

    /// Queries to predict, in their order; each sees the whole history and no other query.
    /// `reserve` tokens are left free for the answer.
    pub fn queries(&self, user: &UserRecord, reserve: usize) -> Vec<Result<Query, PromptError>> {
        let history = self.history(&user.history.iter().collect::<Vec<_>>());
        let queries = user.queries.iter().map(|item| {
            let seen = self.seen(user, item, history.as_ref(), user.history.len())?;
            let seen: Vec<&Item> = seen.iter().collect();
            self.task.query(self.tokenizer, item, &seen, (self.max_len, reserve))
        });
        queries.collect()
    }

    /// Examples of `items[from..]`.
    fn examples(
        &self,
        user: &UserRecord,
        items: &[&Item],
        from: usize,
    ) -> Vec<Result<Example, PromptError>> {
        let history = self.history(items);
        let targets = items.iter().enumerate().skip(from);
        let examples = targets.map(|(at, item)| {
            let seen = self.seen(user, item, history.as_ref(), at)?;
            let seen: Vec<&Item> = seen.iter().collect();
            self.task.example(self.tokenizer, item, &seen, self.max_len)
        });
        examples.collect()
    }

    /// The items with their documents, none if nothing is retrieved. An item that cannot be a line is
    /// empty here and fails, named, where it is retrieved.
    fn history<'i>(&self, items: &[&'i Item]) -> Option<History<'i>> {
        let document = |item: &Item| self.task.document(item).unwrap_or_default();
        let pairs = items.iter().map(|&item| (item, document(item)));
        (!self.retrieval.is_none()).then(|| History::new(pairs))
    }

    /// The retrieved items, in their order in the prompt.
    fn seen(
        &self,
        user: &UserRecord,
        item: &Item,
        history: Option<&History<'_>>,
        visible: usize,
    ) -> Result<Vec<Item>, PromptError> {
        let Some(history) = history else { return Ok(Vec::new()) };
        let text = self.task.question(item)?;
        let request = Request::new(user.id.key(), &item.id, &text);
        Ok(self.retrieval.choose(history, visible, &request, None)?)
    }
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
