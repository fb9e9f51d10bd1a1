//! Token ids of one example or query.

use super::{PromptError, Task, Tokenize};
use crate::data::Item;

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
}

impl Task {
    /// The example of a labelled item, `retrieved` (most relevant first) in front of the question.
    ///
    /// When prompt and answer exceed `max_len`, the least relevant lines go first; what is still too
    /// long is cut on the right, EOS first.
    ///
    /// # Errors
    /// A missing field, an empty or unknown answer, the tokenizer's; [`PromptError::NoSupervisedToken`].
    pub fn example(
        &self,
        tokenizer: &dyn Tokenize,
        item: &Item,
        retrieved: &[&Item],
        max_len: usize,
    ) -> Result<Example, PromptError> {
        let answer = format!(" {}", self.training_answer(item)?);
        let mut answer = tokenizer.encode(&answer).map_err(PromptError::Tokenizer)?;
        answer.push(tokenizer.eos());
        let mut tokens = self.prompt_tokens(tokenizer, item, retrieved, max_len, answer.len())?;
        let prompt_len = tokens.len();
        if prompt_len >= max_len {
            let item = item.id.clone();
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
    /// Lines are dropped as in [`Task::example`]; a question is never cut, as its end asks for the answer.
    ///
    /// # Errors
    /// A missing field of the prompt, the tokenizer's; [`PromptError::PromptTooLong`].
    pub fn query(
        &self,
        tokenizer: &dyn Tokenize,
        item: &Item,
        retrieved: &[&Item],
        (max_len, reserve): (usize, usize),
    ) -> Result<Query, PromptError> {
        let tokens = self.prompt_tokens(tokenizer, item, retrieved, max_len, reserve)?;
        if tokens.len() + reserve > max_len {
            let item = item.id.clone();
            return Err(PromptError::PromptTooLong { item, prompt_tokens: tokens.len(), max_len });
        }
        Ok(Query { tokens, gold: self.answer(item).ok(), id: item.id.clone() })
    }

    /// BOS and prompt, with as many lines as leave `reserve` tokens free below `max_len`, or with none.
    fn prompt_tokens(
        &self,
        tokenizer: &dyn Tokenize,
        item: &Item,
        retrieved: &[&Item],
        max_len: usize,
        reserve: usize,
    ) -> Result<Vec<u32>, PromptError> {
        let question = self.question(item)?;
        let mut lines = Vec::with_capacity(retrieved.len());
        for earlier in retrieved {
            lines.push(self.history_line(earlier)?);
        }
        loop {
            let text = self.assemble(&lines, &question);
            let prompt = tokenizer.encode(&text).map_err(PromptError::Tokenizer)?;
            let tokens: Vec<u32> = tokenizer.bos().into_iter().chain(prompt).collect();
            if tokens.len() + reserve <= max_len || lines.pop().is_none() {
                return Ok(tokens);
            }
        }
    }
}

#[cfg(test)]
#[path = "example_tests.rs"]
mod tests;
