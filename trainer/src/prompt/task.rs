//! A checked template: the texts of one item.

use super::text::Pattern;
use super::{PromptError, Template};
use crate::data::Item;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// What a prompt is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A query to answer.
    Predict,
    /// A query to train on, in the population stage.
    Population,
    /// A history item to train on, in the personal stage.
    History,
}

/// Which sides of the retrieved items a prompt shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ablation {
    /// Inputs and outputs.
    #[default]
    Both,
    /// Inputs alone.
    OnlyInput,
    /// Outputs alone.
    OnlyOutput,
    /// Outputs alone, of items that were found by their inputs alone.
    Decouple,
}

/// A checked template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    pub(super) template: Template,
    /// The instruction with its doubled braces resolved.
    pub(super) instruction: String,
    pub(super) parts: Parts,
}

/// The template's texts, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) prompt: Pattern,
    pub(super) answer: Pattern,
    pub(super) history_line: Pattern,
    pub(super) history_prompt: Option<Pattern>,
    pub(super) history_answer: Option<Pattern>,
    pub(super) history_query: Option<Pattern>,
    pub(super) query: Option<Pattern>,
    pub(super) document: Option<Pattern>,
    pub(super) document_without_output: Option<Pattern>,
    pub(super) only_input: Option<Pattern>,
    pub(super) only_output: Option<Pattern>,
    pub(super) profile_prompt: Option<Pattern>,
    pub(super) profile_line: Option<Pattern>,
}

impl Task {
    /// The template it was made of.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// The possible answers, if they are few.
    pub fn labels(&self) -> Option<&[String]> {
        self.template.labels.as_deref()
    }

    /// Whether profile and earlier items stand in front of a prompt.
    pub fn has_context(&self, purpose: Purpose) -> bool {
        let own = self.template.history_example.as_ref();
        purpose != Purpose::History || own.is_none_or(|example| example.context)
    }

    /// The question for an item with its cue, without instruction and context.
    ///
    /// # Errors
    /// [`PromptError::MissingField`].
    pub fn question(&self, item: &Item, purpose: Purpose) -> Result<String, PromptError> {
        self.question_about(item, purpose, None)
    }

    /// The question with another text in the place of [`Task::payload`].
    pub(super) fn question_about(
        &self,
        item: &Item,
        purpose: Purpose,
        payload: Option<&str>,
    ) -> Result<String, PromptError> {
        let cue = self.template.merge.as_ref().map_or("", |m| m.cue.as_str());
        if let Some(whole) = self.own_question(item, purpose) {
            return Ok(payload.unwrap_or(whole).trim_end().to_owned() + cue);
        }
        let own = self.parts.history_prompt.as_ref().filter(|_| purpose == Purpose::History);
        let input = self.template.input_field.as_deref();
        let value = |name: &str| match payload {
            Some(text) if input == Some(name) => Some(text),
            _ => item.field(name),
        };
        let text = own.unwrap_or(&self.parts.prompt).fill(value, self.most_words(purpose));
        Ok(text.map_err(|field| self.missing(item, field))? + cue)
    }

    /// The text of a question that may be cut: the question as asked, or the input field.
    pub(super) fn payload<'i>(&self, item: &'i Item, purpose: Purpose) -> Option<&'i str> {
        let input = || item.field(self.template.input_field.as_deref()?);
        self.own_question(item, purpose).or_else(input)
    }

    /// The question in the words of the data.
    fn own_question<'i>(&self, item: &'i Item, purpose: Purpose) -> Option<&'i str> {
        let asked = self.template.merge.is_some() && purpose != Purpose::History;
        asked.then(|| item.field("input")).flatten()
    }

    pub(super) fn most_words(&self, purpose: Purpose) -> Option<usize> {
        let whole = self.template.whole_queries && purpose == Purpose::Predict;
        self.template.max_field_words.filter(|_| !whole)
    }

    /// An earlier item as a line, without its newline.
    ///
    /// # Errors
    /// [`PromptError::MissingField`].
    pub fn history_line(&self, item: &Item) -> Result<String, PromptError> {
        self.past(&self.parts.history_line, item)
    }

    /// An earlier item as a document of retrieval: the template's, or the line, whose newline stays on
    /// the last word, as in OPPU.
    ///
    /// # Errors
    /// [`PromptError::MissingField`]; [`PromptError::NoAblation`] if items cannot be decoupled.
    pub fn document(&self, item: &Item, ablation: Ablation) -> Result<String, PromptError> {
        if ablation == Ablation::Decouple {
            let bare = self.parts.document_without_output.as_ref();
            return self.past(bare.ok_or_else(|| self.no_ablation(ablation))?, item);
        }
        match &self.parts.document {
            Some(document) => self.past(document, item),
            None => self.history_line(item).map(|line| line + "\n"),
        }
    }

    /// [`Task::document`] of an item that can stand in front of a question, or none if it lacks a field of what is
    /// shown of it. What the template lacks is no fault of the item.
    pub fn shown_document(&self, item: &Item, ablation: Ablation) -> Option<String> {
        let parts = &self.parts;
        let form = match ablation {
            Ablation::Both => Some(&parts.history_line),
            Ablation::OnlyInput => parts.only_input.as_ref(),
            Ablation::OnlyOutput | Ablation::Decouple => parts.only_output.as_ref(),
        };
        if form.is_some_and(|form| self.past(form, item).is_err()) {
            return None;
        }
        match self.document(item, ablation) {
            Ok(document) => Some(document),
            Err(e) => (!e.is_of_item()).then(String::new),
        }
    }

    /// The text that retrieval compares with the documents.
    ///
    /// # Errors
    /// [`PromptError::MissingField`].
    pub fn retrieval_query(&self, item: &Item, purpose: Purpose) -> Result<String, PromptError> {
        let own = self.parts.history_query.as_ref().filter(|_| purpose == Purpose::History);
        // A history example in a form of its own asks in its own words.
        let shared = purpose != Purpose::History || self.parts.history_prompt.is_none();
        let query = own.or(self.parts.query.as_ref().filter(|_| shared));
        let Some(query) = query else { return self.question(item, purpose) };
        let text = query.fill(|name| item.field(name), self.most_words(purpose));
        text.map_err(|field| self.missing(item, field))
    }

    /// The field and text of an item by which an earlier one is known to be the same again: the study's
    /// retrievers do not show that one.
    pub fn twin<'i>(&'i self, asked: &'i Item) -> Option<(&'i str, &'i str)> {
        let exclude = self.template.retrieval.as_ref().is_some_and(|r| r.exclude_equal);
        let field = self.template.input_field.as_deref().filter(|_| exclude)?;
        Some((field, asked.field(field)?))
    }

    /// The field that mixed retrieval takes of the second item: the output, or all there is to an item.
    pub fn lent_field(&self) -> Option<&str> {
        self.template.output_field.as_deref().or(self.template.input_field.as_deref())
    }

    /// An earlier item in a pattern; an output that a query keeps under `gold` is found there.
    pub(super) fn past(&self, pattern: &Pattern, item: &Item) -> Result<String, PromptError> {
        self.filled_past(pattern, item, self.template.max_history_field_words)
    }

    pub(super) fn filled_past(
        &self,
        pattern: &Pattern,
        item: &Item,
        max_words: Option<usize>,
    ) -> Result<String, PromptError> {
        let output = self.template.output_field.as_deref();
        let gold = |name: &str| item.field("gold").filter(|_| output == Some(name));
        let text = pattern.fill(|name| item.field(name).or_else(|| gold(name)), max_words);
        text.map_err(|field| self.missing(item, field))
    }

    /// The answer of a labelled item, trimmed: its field `gold`, or the template's answer.
    ///
    /// # Errors
    /// [`PromptError::MissingField`], [`PromptError::EmptyAnswer`].
    pub fn answer(&self, item: &Item) -> Result<String, PromptError> {
        match item.field("gold") {
            Some(gold) => trimmed(item, gold),
            None => self.filled_answer(&self.parts.answer, item),
        }
    }

    /// The answer to train on: one of the labels where the template has labels, or that of the
    /// template's form of a history example.
    ///
    /// # Errors
    /// As [`Task::answer`], and [`PromptError::NotALabel`].
    pub fn training_answer(&self, item: &Item, purpose: Purpose) -> Result<String, PromptError> {
        if let (Purpose::History, Some(own)) = (purpose, &self.parts.history_answer) {
            return self.filled_answer(own, item);
        }
        let answer = self.answer(item)?;
        match self.labels() {
            Some(labels) if !labels.contains(&answer) => {
                let (item, labels) = (item.id.clone(), labels.to_vec());
                Err(PromptError::NotALabel { item, answer, labels })
            }
            _ => Ok(answer),
        }
    }

    fn filled_answer(&self, pattern: &Pattern, item: &Item) -> Result<String, PromptError> {
        let text = pattern.fill(|name| item.field(name), None);
        trimmed(item, &text.map_err(|field| self.missing(item, field))?)
    }

    /// A history item with the fields its example needs: `head` and `rest` of the field that the template
    /// splits, at the share `from + (to - from) draw / 2^32` of its words, rounded down; of two words or
    /// more each side has one, a single word is all `rest`.
    ///
    /// # Errors
    /// [`PromptError::MissingField`].
    pub fn split<'i>(&self, item: &'i Item, draw: u32) -> Result<Cow<'i, Item>, PromptError> {
        let split = self.template.history_example.as_ref().and_then(|e| e.split.as_ref());
        let Some(split) = split else { return Ok(Cow::Borrowed(item)) };
        let missing = || self.missing(item, split.field.clone());
        let text = item.field(&split.field).ok_or_else(missing)?.trim();
        let words = text.split_whitespace().count();
        let (from, to) = (u128::from(split.from_percent), u128::from(split.to_percent));
        // Hundredths of 2^-32.
        let share = (from << 32) + to.saturating_sub(from) * u128::from(draw);
        let head = usize::try_from((words as u128 * share) / (100 << 32)).unwrap_or(words);
        let head = head.max(1).min(words.saturating_sub(1));
        let head = super::text::first_words(text, Some(head));
        let rest = text[head.len()..].trim_start();
        let mut item = item.clone();
        item.fields.insert("head".to_owned(), head.to_owned());
        item.fields.insert("rest".to_owned(), rest.to_owned());
        Ok(Cow::Owned(item))
    }

    pub(super) fn missing(&self, item: &Item, field: String) -> PromptError {
        PromptError::MissingField {
            template: self.template.name.clone(),
            item: item.id.clone(),
            field,
        }
    }

    pub(super) fn no_ablation(&self, ablation: Ablation) -> PromptError {
        PromptError::NoAblation { template: self.template.name.clone(), ablation }
    }
}

fn trimmed(item: &Item, text: &str) -> Result<String, PromptError> {
    match text.trim() {
        "" => Err(PromptError::EmptyAnswer { item: item.id.clone() }),
        trimmed => Ok(trimmed.to_owned()),
    }
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
