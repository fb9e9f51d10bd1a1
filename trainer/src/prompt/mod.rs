//! From items to token ids: what the model reads, what it is trained to answer.
//!
//! Owns: task templates as data ([`Template`], checked into a [`Task`]; those shipped are in
//! `trainer/templates`), budgets of tokens, examples with the prompt/answer boundary ([`Example`]),
//! queries, label tokens. Must never know: weights, users in flight, files. The tokenizer is a trait
//! ([`Tokenize`]); the type is the model's.
//!
//! **The text.** A [`Layout`] orders profile, earlier items and question; then one space and the
//! answer. In [`Layout::InstructionFirst`] what all examples of a user share comes first.
//!
//! **The boundary.** BOS (if the tokenizer has one) and the prompt are tokenised alone, then the
//! space with the answer alone, then EOS. So no token straddles the boundary, training and
//! prediction read the same prompt tokens, and exactly answer + EOS are supervised.
//!
//! **The length.** A template's budgets say how long merged items may be, alone and with their question; words are cut
//! by its limits. Beyond that nothing exceeds the sequence limit: items go, least relevant first, then the end of the
//! profile, then, of a query alone, the end of its payload ([`Cut`] says which); an example is cut
//! on the right.
//! Start reading at [`Builder`].

mod build;
mod builtin;
mod check;
mod example;
mod fit;
mod labels;
mod merge;
mod profile;
mod task;
mod template;
mod text;

pub use build::Builder;
pub use example::{Ask, Cut, Example, Query, Shown};
pub use labels::{Branch, LabelSequences, LabelTokens};
pub use task::{Ablation, Purpose, Task};
pub use template::{
    AblationForms, Budget, HistoryExample, Layout, ListForm, Merge, Place, ProfileRequest,
    RetrievalText, Split, Template,
};

/// An error a tokenizer reports, in its own words.
pub type TokenizeError = Box<dyn std::error::Error + Send + Sync>;

/// Text <-> token ids, as the base model's tokenizer has them.
pub trait Tokenize {
    /// The ids of a text, without any special token around it.
    ///
    /// # Errors
    /// The tokenizer's.
    fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizeError>;

    /// The text of ids, special tokens left out.
    ///
    /// # Errors
    /// The tokenizer's, as for an id outside the vocabulary.
    fn decode(&self, ids: &[u32]) -> Result<String, TokenizeError>;

    /// The id that ends an answer.
    fn eos(&self) -> u32;

    /// The id that starts a prompt, if the base was trained with one.
    fn bos(&self) -> Option<u32>;
}

/// An error of this module.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The items in front of a prompt could not be chosen.
    #[error(transparent)]
    Retrieval(#[from] crate::retrieval::RetrievalError),
    /// A template's text is not one.
    #[error("{0}")]
    Toml(#[source] Box<toml::de::Error>),
    /// A template that breaks its own rules.
    #[error("template `{template}`, {part}: {what}")]
    Template {
        /// Its name.
        template: String,
        /// The field of the template.
        part: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The template has no form for an ablation.
    #[error("template `{template}` has no form for the ablation {ablation:?}")]
    NoAblation {
        /// The template.
        template: String,
        /// The ablation.
        ablation: Ablation,
    },
    /// An item lacks a field that the template names.
    #[error("item {item:?} has no field {field:?}, which template `{template}` needs")]
    MissingField {
        /// The template.
        template: String,
        /// The item's id.
        item: String,
        /// The field.
        field: String,
    },
    /// The answer is empty.
    #[error("item {item:?}: the answer is empty")]
    EmptyAnswer {
        /// The item's id.
        item: String,
    },
    /// The answer is not one of the template's labels.
    #[error("item {item:?}: the answer {answer:?} is not one of the labels {labels:?}")]
    NotALabel {
        /// The item's id.
        item: String,
        /// The answer.
        answer: String,
        /// The labels.
        labels: Vec<String>,
    },
    /// After cutting at the length limit no answer token is left: there is nothing to train on.
    #[error(
        "item {item:?}: the prompt has {prompt_tokens} tokens, the limit is {max_len}: no supervised token is left"
    )]
    NoSupervisedToken {
        /// The item's id.
        item: String,
        /// Length of its prompt.
        prompt_tokens: usize,
        /// The limit.
        max_len: usize,
    },
    /// A prompt that leaves no room for an answer.
    #[error(
        "query {item:?}: the prompt has {prompt_tokens} tokens, the limit is {max_len}: no answer fits"
    )]
    PromptTooLong {
        /// The query's id.
        item: String,
        /// Length of its prompt.
        prompt_tokens: usize,
        /// The limit.
        max_len: usize,
    },
    /// Two labels cannot be told apart by one token.
    #[error(
        "labels {first:?} and {second:?} start with the same token {token} after what all labels share: closed-label scoring needs distinct ones"
    )]
    LabelsShareToken {
        /// One label.
        first: String,
        /// The other.
        second: String,
        /// The token.
        token: u32,
    },
    /// Two labels are the same tokens.
    #[error("labels {first:?} and {second:?} are the same tokens")]
    LabelsSame {
        /// One label.
        first: String,
        /// The other.
        second: String,
    },
    /// The tokenizer failed.
    #[error("tokenizer: {0}")]
    Tokenizer(#[source] TokenizeError),
}

impl PromptError {
    /// Whether the item lacks what the template needs, so that it can only be left out; otherwise limits or
    /// settings stand against it.
    pub fn is_of_item(&self) -> bool {
        matches!(
            self,
            Self::MissingField { .. } | Self::EmptyAnswer { .. } | Self::NotALabel { .. }
        )
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A tokenizer for tests: one id per character; digits and spaces apart, as SmolLM2 has them. Items.

    use super::{Shown, Template, Tokenize, TokenizeError};
    use crate::data::Item;
    use std::borrow::Cow;

    pub(crate) fn rating() -> Template {
        Template::builtin("rating").unwrap()
    }

    pub(crate) fn item(id: &str, fields: &[(&str, &str)]) -> Item {
        let fields = fields.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Item { id: id.to_owned(), fields }
    }

    /// Items in the order of the prompt, the first the most relevant.
    pub(crate) fn shown(items: &[Item]) -> Vec<Shown<'_>> {
        let shown = items.iter().enumerate();
        shown.map(|(relevance, i)| Shown { item: Cow::Borrowed(i), relevance }).collect()
    }

    /// Ids are code points; 0 is EOS, 1 is BOS if it has one.
    pub(crate) struct Letters {
        pub(crate) bos: bool,
    }

    impl Tokenize for Letters {
        fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizeError> {
            if text.contains('\u{fffd}') {
                return Err("unknown character".into());
            }
            Ok(text.chars().map(|c| u32::from(c) + 2).collect())
        }

        fn decode(&self, ids: &[u32]) -> Result<String, TokenizeError> {
            let chars = ids.iter().filter(|id| **id > 1).map(|id| char::from_u32(id - 2));
            chars.collect::<Option<String>>().ok_or_else(|| "not a code point".into())
        }

        fn eos(&self) -> u32 {
            0
        }

        fn bos(&self) -> Option<u32> {
            self.bos.then_some(1)
        }
    }
}
