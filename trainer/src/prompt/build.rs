//! All examples and queries of one user, each with the context it may see.

use super::{Ablation, Ask, Example, PromptError, Purpose, Query, Shown, Task, Tokenize};
use crate::data::{Item, UserRecord};
use crate::ids::UserKey;
use crate::retrieval::{History, Pool, Request, Retrieval, Retriever};
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
    /// Everybody's items, for a retrieval that draws from them.
    pub pool: Option<&'a Pool<'a>>,
    /// Which sides of them are shown.
    pub ablation: Ablation,
    /// Seed of what is drawn for each user and item: shares of words, items for a profile.
    pub seed: u64,
    /// Longest sequence in tokens.
    pub max_len: usize,
    /// Whether an example's question that is too long is cut as a query's is.
    pub cut_questions: bool,
}

impl std::fmt::Debug for Builder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = &self.task.template().name;
        f.debug_struct("Builder").field("task", name).field("max_len", &self.max_len).finish()
    }
}

/// An item to make a prompt for.
struct Target<'t> {
    item: &'t Item,
    purpose: Purpose,
    /// How many items of the past it may see, those that cannot be shown counted.
    sees: usize,
}

/// The items that can be shown, with their documents.
struct Past<'i> {
    shown: History<'i>,
    /// How many of the first `n` items can be shown, by `n`.
    among: Vec<usize>,
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
            let target = Target { item, purpose: Purpose::Predict, sees: user.history.len() };
            let shown = self.shown(user, &past, &target)?;
            let ask = self.ask(&target, profile, &shown);
            self.task.query(self.tokenizer, &ask, (self.max_len, reserve))
        };
        user.queries.iter().map(query).collect()
    }

    /// The tokens that ask the base for this user's profile, with `items` of the history and room for `reserve`
    /// tokens (none: the template's numbers); none for a template without a request.
    ///
    /// The items are drawn from the history by seed and user; those drawn last go when there is no room.
    ///
    /// # Errors
    /// A missing field, the tokenizer's; [`PromptError::PromptTooLong`] if not even the bare request fits.
    pub fn profile_request(
        &self,
        user: &UserRecord,
        (items, reserve): (Option<usize>, Option<usize>),
    ) -> Result<Option<Vec<u32>>, PromptError> {
        let Some(request) = &self.task.template().profile_request else { return Ok(None) };
        let count = items.unwrap_or(request.items);
        let draw = Retrieval::top(Retriever::Random, count, self.seed);
        let asked = Request::new(user.id.key(), "profile", "");
        let all = History::new(user.history.iter().map(|item| (item, String::new())));
        let drawn = draw.choose(&all, all.len(), &asked, None)?;
        let mut items: Vec<&Item> = drawn.iter().collect();
        let reserve = reserve.unwrap_or(request.max_new_tokens as usize);
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
        let (ablation, cut_question) = (self.ablation, self.cut_questions);
        Ask { item, purpose, profile, shown, ablation, cut_question }
    }

    /// The items with their documents. One that lacks what the template shows of it stands in front of no other: its
    /// own example names what it lacks.
    fn past<'i>(&self, items: Vec<&'i Item>) -> Past<'i> {
        let mut among = vec![0];
        let mut shown = Vec::with_capacity(items.len());
        for item in items {
            let document = match self.retrieval.is_none() {
                true => None,
                false => self.task.shown_document(item, self.ablation),
            };
            shown.extend(document.map(|document| (item, document)));
            among.push(shown.len());
        }
        Past { shown: History::new(shown), among }
    }

    /// What a target shows, in the order of the prompt: the one place that asks retrieval.
    fn shown(
        &self,
        user: &UserRecord,
        past: &Past<'_>,
        target: &Target<'_>,
    ) -> Result<Vec<Shown<'static>>, PromptError> {
        if self.retrieval.is_none() || !self.task.has_context(target.purpose) {
            return Ok(Vec::new());
        }
        let text = self.task.retrieval_query(target.item, target.purpose)?;
        let request = Request {
            twin: self.task.twin(target.item),
            output: self.task.lent_field(),
            ..Request::new(user.id.key(), &target.item.id, &text)
        };
        let sees = past.among.get(target.sees).copied().unwrap_or(past.shown.len());
        let chosen = self.retrieval.choose(&past.shown, sees, &request, self.pool)?;
        let relevance = self.retrieval.relevance(chosen.len(), &request);
        let shown = chosen.into_iter().zip(relevance);
        Ok(shown.map(|(item, relevance)| Shown { item: Cow::Owned(item), relevance }).collect())
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
