//! All examples and queries of one user, each with the history it may see.

use super::{Example, PromptError, Query, Task, Tokenize};
use crate::data::{Item, UserRecord};
use crate::retrieval::{Request, Retrieval, earlier};

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
        let history: Vec<&Item> = user.history.iter().collect();
        let documents = self.documents(&history);
        let queries = user.queries.iter().map(|item| {
            let seen = self.seen(user, item, &history, documents.as_deref())?;
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
        let documents = self.documents(items);
        let targets = items.iter().enumerate().skip(from);
        let examples = targets.map(|(at, item)| {
            let before = documents.as_deref().map(|d| earlier(d, at));
            let seen = self.seen(user, item, earlier(items, at), before)?;
            self.task.example(self.tokenizer, item, &seen, self.max_len)
        });
        examples.collect()
    }

    /// The items as documents, none if nothing is retrieved. An item that cannot be a line is empty
    /// here and fails, named, where it is retrieved.
    fn documents(&self, items: &[&Item]) -> Option<Vec<String>> {
        let document = |item: &&Item| self.task.document(item).unwrap_or_default();
        (self.retrieval.k > 0).then(|| items.iter().map(document).collect())
    }

    /// The retrieved items, most relevant first.
    fn seen<'i>(
        &self,
        user: &UserRecord,
        item: &Item,
        candidates: &[&'i Item],
        documents: Option<&[String]>,
    ) -> Result<Vec<&'i Item>, PromptError> {
        let Some(documents) = documents else { return Ok(Vec::new()) };
        let text = self.task.question(item)?;
        let request = Request { user: user.id.key(), item: &item.id, text: &text };
        Ok(self.retrieval.rank(documents, &request).into_iter().map(|i| candidates[i]).collect())
    }
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
