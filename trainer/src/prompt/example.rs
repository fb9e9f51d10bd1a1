//! Token ids of one example or query.

use super::fit::Fitted;
use super::{Ablation, PromptError, Purpose, Task, Tokenize};
use crate::data::Item;
use std::borrow::Cow;

/// One training sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// BOS if any, prompt, answer, EOS; cut on the right at the length limit.
    pub tokens: Vec<u32>,
    /// Tokens that are read but not supervised; less than `tokens.len()`.
    pub prompt_len: usize,
}

impl Example {
    /// The supervised tokens: the answer, and EOS unless it was cut off.
    pub fn supervised(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }
}

/// One question to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// BOS if any, then the prompt: the same tokens an example of the item would start with.
    pub tokens: Vec<u32>,
    /// The known answer, trimmed; none for an unlabelled query.
    pub gold: Option<String>,
    /// The item's id.
    pub id: String,
    /// What the length limit took away.
    pub cut: Cut,
}

/// What a limit of the whole took away from a prompt: the sequence's, or a template's of items and question together.
/// What a budget of the items alone cuts is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// Nothing.
    None,
    /// Earlier items or the end of the profile.
    Context,
    /// All of these, and the end of the question's payload.
    Question,
}

/// An item in front of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown<'a> {
    /// The item; owned where retrieval made it of two.
    pub item: Cow<'a, Item>,
    /// 0 is the most relevant; the largest goes first when there is no room.
    pub relevance: usize,
}

/// What a prompt is made of.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The item asked about; for [`Purpose::History`] after [`Task::split`].
    pub item: &'a Item,
    /// What for.
    pub purpose: Purpose,
    /// A text about the user; blank is none.
    pub profile: Option<&'a str>,
    /// Earlier items in the order of the prompt.
    pub shown: &'a [Shown<'a>],
    /// Which sides of them are shown.
    pub ablation: Ablation,
    /// Whether an example's question that is too long is cut as a query's is.
    pub cut_question: bool,
}

impl<'a> Ask<'a> {
    /// An item without context.
    pub fn bare(item: &'a Item, purpose: Purpose) -> Self {
        let ablation = Ablation::Both;
        Self { item, purpose, profile: None, shown: &[], ablation, cut_question: false }
    }
}

impl Task {
    /// The example of a labelled item.
    ///
    /// When prompt and answer exceed `max_len`, the context gives way: the least relevant items first,
    /// then the end of the profile. What is still too long is cut on the right, EOS first; with
    /// [`Ask::cut_question`] the payload of the question is cut before, and the answer stays whole.
    ///
    /// # Errors
    /// A missing field, an empty or unknown answer, the tokenizer's; [`PromptError::NoAblation`];
    /// [`PromptError::NoSupervisedToken`].
    pub fn example(
        &self,
        tokenizer: &dyn Tokenize,
        ask: &Ask<'_>,
        max_len: usize,
    ) -> Result<Example, PromptError> {
        let answer = format!(" {}", self.training_answer(ask.item, ask.purpose)?);
        let mut answer = tokenizer.encode(&answer).map_err(PromptError::Tokenizer)?;
        answer.push(tokenizer.eos());
        let room = (max_len, max_len.saturating_sub(answer.len()));
        let mut fitted = self.fitted(tokenizer, ask, room)?;
        if ask.cut_question && fitted.tokens.len() > room.1 {
            fitted = self.with_cut_question(tokenizer, ask, room.1)?;
        }
        let Fitted { mut tokens, .. } = fitted;
        let prompt_len = tokens.len();
        if prompt_len >= max_len {
            let item = ask.item.id.clone();
            return Err(PromptError::NoSupervisedToken {
                item,
                prompt_tokens: prompt_len,
                max_len,
            });
        }
        tokens.extend(answer);
        tokens.truncate(max_len);
        Ok(Example { tokens, prompt_len })
    }

    /// The query of an item, labelled or not, with room for `reserve` more tokens below `max_len`.
    ///
    /// The context gives way as in [`Task::example`]; then the payload of the question is cut at its end
    /// and the words after it, which ask for the answer, stay.
    ///
    /// # Errors
    /// A missing field of the prompt, the tokenizer's; [`PromptError::NoAblation`];
    /// [`PromptError::PromptTooLong`] if the question without its payload does not fit.
    pub fn query(
        &self,
        tokenizer: &dyn Tokenize,
        ask: &Ask<'_>,
        (max_len, reserve): (usize, usize),
    ) -> Result<Query, PromptError> {
        let Some(room) = max_len.checked_sub(reserve) else {
            return Err(self.too_long(ask, 0, max_len));
        };
        let mut fitted = self.fitted(tokenizer, ask, (max_len, room))?;
        if fitted.tokens.len() > room {
            fitted = self.with_cut_question(tokenizer, ask, room)?;
        }
        if fitted.tokens.len() > room {
            return Err(self.too_long(ask, fitted.tokens.len(), max_len));
        }
        let gold = self.answer(ask.item).ok();
        Ok(Query { tokens: fitted.tokens, gold, id: ask.item.id.clone(), cut: fitted.cut })
    }

    fn too_long(&self, ask: &Ask<'_>, prompt_tokens: usize, max_len: usize) -> PromptError {
        PromptError::PromptTooLong { item: ask.item.id.clone(), prompt_tokens, max_len }
    }
}

#[cfg(test)]
#[path = "example_tests.rs"]
mod tests;
