//! All examples and queries of one user, each with the context it may see.

use super::{Ablation, Ask, Example, PromptError, Purpose, Query, Shown, Task, Tokenize};
use crate::data::{Item, UserRecord};
use crate::ids::UserKey;
use crate::retrieval::{Request, Retrieval, Retriever, earlier};
use std::borrow::Cow;

/// What is fixed for a run: task, tokenizer, retrieval, length limit.
#[derive(Clone, Copy)]
pub struct Builder<'a> {
    /// The task.
    pub task: &'a Task,
    /// The base's tokenizer.
    pub tokenizer: &'a dyn Tokenize,
    /// Which earlier items stand in front.
    pub retrieval: Retrieval,
    /// Which sides of them are shown.
    pub ablation: Ablation,
    /// Seed of what is drawn for each user and item: shares of words, items for a profile.
    pub seed: u64,
    /// Longest sequence in tokens.
    pub max_len: usize,
}

impl std::fmt::Debug for Builder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = &self.task.template().name;
        f.debug_struct("Builder").field("task", name).field("max_len", &self.max_len).finish()
    }
}

/// Items that may be shown, oldest first, and their documents; no documents if nothing is retrieved.
struct Past<'i> {
    items: Vec<&'i Item>,
    documents: Vec<String>,
}

/// An item to make a prompt for.
struct Target<'t> {
    item: &'t Item,
    purpose: Purpose,
    /// How many items of the past it may see.
    sees: usize,
}

impl Builder<'_> {
    /// Training examples of the personal stage: one per history item, in its order; each sees only
    /// the items strictly before it. An error is that item's alone. A `profile` stands in front of all.
    pub fn history_examples(
        &self,
        user: &UserRecord,
        profile: Option<&str>,
    ) -> Vec<Result<Example, PromptError>> {
        let past = self.past(user.history.iter().collect());
        let example = |(sees, item): (usize, &Item)| {
            let item = self.task.split(item, self.draw(user.id.key(), &item.id))?;
            let target = Target { item: &item, purpose: Purpose::History, sees };
            self.example(user, profile, &past, &target)
        };
        user.history.iter().enumerate().map(example).collect()
    }

    /// Training examples of the population stage: one per query, in its order; each sees the history
    /// and, if the template says so, the queries strictly before it.
    pub fn query_examples(
        &self,
        user: &UserRecord,
        profile: Option<&str>,
    ) -> Vec<Result<Example, PromptError>> {
        let also = if self.task.template().earlier_queries { &user.queries[..] } else { &[] };
        let past = self.past(user.history.iter().chain(also).collect());
        let example = |(before, item)| {
            let sees = user.history.len() + if also.is_empty() { 0 } else { before };
            self.example(user, profile, &past, &Target { item, purpose: Purpose::Population, sees })
        };
        user.queries.iter().enumerate().map(example).collect()
    }

    /// Queries to predict, in their order; each sees the whole history and no other query.
    /// `reserve` tokens are left free for the answer.
    pub fn queries(
        &self,
        user: &UserRecord,
        profile: Option<&str>,
        reserve: usize,
    ) -> Vec<Result<Query, PromptError>> {
        let past = self.past(user.history.iter().collect());
        let query = |item| {
            let target = Target { item, purpose: Purpose::Predict, sees: past.items.len() };
            let shown = self.shown(user, &past, &target)?;
            let ask = self.ask(&target, profile, &shown);
            self.task.query(self.tokenizer, &ask, (self.max_len, reserve))
        };
        user.queries.iter().map(query).collect()
    }

    /// The tokens that ask the base for this user's profile, with room for the template's
    /// `profile_request.max_new_tokens`; none for a template without a request.
    ///
    /// The items are drawn from the history by seed and user; those drawn last go when there is no room.
    ///
    /// # Errors
    /// A missing field, the tokenizer's; [`PromptError::PromptTooLong`] if not even the bare request fits.
    pub fn profile_request(&self, user: &UserRecord) -> Result<Option<Vec<u32>>, PromptError> {
        let Some(request) = &self.task.template().profile_request else { return Ok(None) };
        let draw = Retrieval { retriever: Retriever::Random, k: request.items, seed: self.seed };
        let asked = Request { user: user.id.key(), item: "profile", text: "" };
        let drawn = draw.rank(&vec![""; user.history.len()], &asked);
        let mut items: Vec<&Item> = drawn.into_iter().map(|i| &user.history[i]).collect();
        let reserve = usize::try_from(request.max_new_tokens).unwrap_or(usize::MAX);
        let room = self.max_len.saturating_sub(reserve);
        loop {
            let Some(text) = self.task.profile_request(&items)? else { return Ok(None) };
            let tokens = super::fit::encode_prompt(self.tokenizer, &text)?;
            if tokens.len() <= room {
                return Ok(Some(tokens));
            }
            if items.pop().is_none() {
                let (item, prompt_tokens) = ("profile".to_owned(), tokens.len());
                return Err(PromptError::PromptTooLong { item, prompt_tokens, max_len: room });
            }
        }
    }

    fn example(
        &self,
        user: &UserRecord,
        profile: Option<&str>,
        past: &Past<'_>,
        target: &Target<'_>,
    ) -> Result<Example, PromptError> {
        let shown = self.shown(user, past, target)?;
        self.task.example(self.tokenizer, &self.ask(target, profile, &shown), self.max_len)
    }

    fn ask<'t>(
        &self,
        target: &Target<'t>,
        profile: Option<&'t str>,
        shown: &'t [Shown<'t>],
    ) -> Ask<'t> {
        let Target { item, purpose, .. } = *target;
        let profile = profile.filter(|_| self.task.has_context(purpose));
        Ask { item, purpose, profile, shown, ablation: self.ablation }
    }

    /// The items as documents. An item that cannot be one is empty here and fails, named, where it is
    /// retrieved.
    fn past<'i>(&self, items: Vec<&'i Item>) -> Past<'i> {
        let document = |item: &&Item| self.task.document(item, self.ablation).unwrap_or_default();
        let retrieves = self.retrieval.k > 0;
        let documents = if retrieves { items.iter().map(document).collect() } else { Vec::new() };
        Past { items, documents }
    }

    /// What a target shows, in the order of the prompt: the one place that asks retrieval.
    fn shown<'i>(
        &self,
        user: &UserRecord,
        past: &Past<'i>,
        target: &Target<'_>,
    ) -> Result<Vec<Shown<'i>>, PromptError> {
        if past.documents.is_empty() || !self.task.has_context(target.purpose) {
            return Ok(Vec::new());
        }
        let candidates = earlier(&past.items, target.sees);
        let allowed = |i: &usize| !self.task.is_excluded(candidates[*i], target.item);
        let allowed: Vec<usize> = (0..candidates.len()).filter(allowed).collect();
        let documents: Vec<&str> = allowed.iter().map(|i| past.documents[*i].as_str()).collect();
        let text = self.task.retrieval_query(target.item, target.purpose)?;
        let request = Request { user: user.id.key(), item: &target.item.id, text: &text };
        let ranked = self.retrieval.rank(&documents, &request).into_iter().enumerate();
        let show = |(relevance, i): (usize, usize)| Shown {
            item: Cow::Borrowed(candidates[allowed[i]]),
            relevance,
        };
        Ok(ranked.map(show).collect())
    }

    /// The random word of a user's item.
    fn draw(&self, user: UserKey, item: &str) -> u32 {
        let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 share of an item's words");
        hasher.update(&self.seed.to_le_bytes()).update(&user.0).update(item.as_bytes());
        let mut word = [0; 4];
        hasher.finalize_xof().fill(&mut word);
        u32::from_le_bytes(word)
    }
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
