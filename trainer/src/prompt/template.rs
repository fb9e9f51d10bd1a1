//! Task templates: data that says how an item becomes a prompt and an answer.

use super::PromptError;
use crate::data::Item;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A task as data; TOML and JSON, unknown keys refused. `{field}` stands for an item's field, `{{`
/// and `}}` for braces. [`Task::new`] checks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// Name in configurations and reports.
    pub name: String,
    /// Raised with every change of wording; adapters of different versions do not mix.
    pub version: u32,
    /// What to do; first in every prompt, the same for all, no placeholders. May be empty.
    pub instruction: String,
    /// The question; ends where the answer goes on after one space.
    pub prompt: String,
    /// The answer. An item's own field `gold` goes before it.
    pub answer: String,
    /// The possible answers, if they are few.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// An earlier item in a prompt, and as the document of retrieval.
    pub history_line: String,
    /// Longest generated answer in tokens.
    pub max_new_tokens: u32,
    /// Longest field in the prompt in words; more are cut off. None is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_field_words: Option<usize>,
    /// Longest field in a history line in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_history_field_words: Option<usize>,
}

impl Template {
    /// Rating a text from 1 to 5 (the shape of LaMP-3, own wording); word limits as in OPPU.
    pub fn rating() -> Self {
        Self {
            name: "rating".to_owned(),
            version: 1,
            instruction: "Give the score from 1 (worst) to 5 (best) that this person gives. \
                          Answer with one digit."
                .to_owned(),
            prompt: "text: {text}\nscore:".to_owned(),
            answer: "{score}".to_owned(),
            labels: Some((1..=5).map(|s| s.to_string()).collect()),
            history_line: "text: {text} score: {score}".to_owned(),
            max_new_tokens: 4,
            max_field_words: Some(768),
            max_history_field_words: Some(368),
        }
    }

    /// The built-in template of a name.
    pub fn builtin(name: &str) -> Option<Self> {
        (name == "rating").then(Self::rating)
    }
}

/// A text with placeholders, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(String),
}

/// A checked template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    template: Template,
    /// The instruction with its doubled braces resolved.
    instruction: String,
    prompt: Vec<Piece>,
    answer: Vec<Piece>,
    history_line: Vec<Piece>,
}

impl Task {
    /// Checks a template.
    ///
    /// # Errors
    /// Unmatched braces, an empty placeholder, a placeholder in the instruction, a prompt or answer
    /// without one, an answer field in the prompt (it would give the answer away), a prompt that ends
    /// in white space, no token to generate, labels that are fewer than two, twice, empty or untrimmed.
    pub fn new(template: Template) -> Result<Self, PromptError> {
        let refuse = |part, what: String| PromptError::Template {
            template: template.name.clone(),
            part,
            what,
        };
        let parsed = |part, text: &str| parse(text).map_err(|what| refuse(part, what));
        let instruction = parsed("instruction", &template.instruction)?;
        let prompt = parsed("prompt", &template.prompt)?;
        let answer = parsed("answer", &template.answer)?;
        let history_line = parsed("history_line", &template.history_line)?;
        let no_field = "needs a placeholder".to_owned();
        if fields(&instruction).next().is_some() {
            return Err(refuse("instruction", "must be the same for all items".to_owned()));
        }
        for (part, pieces) in [("prompt", &prompt), ("answer", &answer)] {
            if fields(pieces).next().is_none() {
                return Err(refuse(part, no_field));
            }
        }
        if let Some(field) =
            fields(&prompt).find(|f| *f == "gold" || fields(&answer).any(|a| a == *f))
        {
            return Err(refuse("prompt", format!("shows the answer's field {field:?}")));
        }
        if template.prompt.ends_with(char::is_whitespace) {
            return Err(refuse(
                "prompt",
                "ends in white space; the answer brings its own".to_owned(),
            ));
        }
        if template.max_new_tokens == 0 {
            return Err(refuse("max_new_tokens", "must be at least 1".to_owned()));
        }
        if let Some(what) = template.labels.as_deref().and_then(wrong_labels) {
            return Err(refuse("labels", what));
        }
        let instruction = render_plain(&instruction);
        Ok(Self { template, instruction, prompt, answer, history_line })
    }

    /// The template it was made of.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// The possible answers, if they are few.
    pub fn labels(&self) -> Option<&[String]> {
        self.template.labels.as_deref()
    }

    /// The question for an item, without instruction and history.
    ///
    /// # Errors
    /// [`PromptError::MissingField`].
    pub fn question(&self, item: &Item) -> Result<String, PromptError> {
        self.render(&self.prompt, item, self.template.max_field_words)
    }

    /// An earlier item as a line, without its newline.
    ///
    /// # Errors
    /// [`PromptError::MissingField`].
    pub fn history_line(&self, item: &Item) -> Result<String, PromptError> {
        self.render(&self.history_line, item, self.template.max_history_field_words)
    }

    /// The line as a document of retrieval: its newline stays on the last word, as in OPPU.
    ///
    /// # Errors
    /// [`PromptError::MissingField`].
    pub fn document(&self, item: &Item) -> Result<String, PromptError> {
        self.history_line(item).map(|line| line + "\n")
    }

    /// The instruction, the lines and the question, in this order, one newline after each but the last.
    pub fn assemble(&self, lines: &[String], question: &str) -> String {
        let instruction = Some(self.instruction.as_str()).filter(|i| !i.is_empty());
        let parts = instruction.into_iter().chain(lines.iter().map(String::as_str));
        parts.chain([question]).collect::<Vec<_>>().join("\n")
    }

    /// The answer of a labelled item, trimmed: its field `gold`, or the template's answer.
    ///
    /// # Errors
    /// [`PromptError::MissingField`], [`PromptError::EmptyAnswer`].
    pub fn answer(&self, item: &Item) -> Result<String, PromptError> {
        let text = match item.field("gold") {
            Some(gold) => gold.to_owned(),
            None => self.render(&self.answer, item, None)?,
        };
        match text.trim() {
            "" => Err(PromptError::EmptyAnswer { item: item.id.clone() }),
            trimmed => Ok(trimmed.to_owned()),
        }
    }

    /// The answer to train on: one of the labels where the template has labels.
    ///
    /// # Errors
    /// As [`Task::answer`], and [`PromptError::NotALabel`].
    pub fn training_answer(&self, item: &Item) -> Result<String, PromptError> {
        let answer = self.answer(item)?;
        match self.labels() {
            Some(labels) if !labels.contains(&answer) => {
                let (item, labels) = (item.id.clone(), labels.to_vec());
                Err(PromptError::NotALabel { item, answer, labels })
            }
            _ => Ok(answer),
        }
    }

    fn render(
        &self,
        pieces: &[Piece],
        item: &Item,
        max_words: Option<usize>,
    ) -> Result<String, PromptError> {
        let mut text = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(fixed) => text.push_str(fixed),
                Piece::Field(name) => {
                    let value = item.field(name).ok_or_else(|| PromptError::MissingField {
                        template: self.template.name.clone(),
                        item: item.id.clone(),
                        field: name.clone(),
                    })?;
                    text.push_str(first_words(value, max_words));
                }
            }
        }
        Ok(text)
    }
}

fn fields(pieces: &[Piece]) -> impl Iterator<Item = &str> {
    pieces.iter().filter_map(|piece| match piece {
        Piece::Field(name) => Some(name.as_str()),
        Piece::Text(_) => None,
    })
}

/// The text of pieces without placeholders.
fn render_plain(pieces: &[Piece]) -> String {
    let text = |piece: &Piece| match piece {
        Piece::Text(text) => text.clone(),
        Piece::Field(_) => String::new(),
    };
    pieces.iter().map(text).collect()
}

/// Takes `text {field} {{brace}}` apart.
fn parse(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut fixed = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        fixed.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            fixed.push_str(brace);
            rest = after;
            continue;
        }
        let closed = if brace == "{" { rest.split_once('}') } else { None };
        let (name, after) =
            closed.ok_or_else(|| format!("a lone `{brace}`; write it twice for a brace"))?;
        if name.is_empty() || name.contains('{') || name.trim() != name {
            return Err(format!("`{{{name}}}` is not a field name"));
        }
        if !fixed.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut fixed)));
        }
        pieces.push(Piece::Field(name.to_owned()));
        rest = after;
    }
    fixed.push_str(rest);
    if !fixed.is_empty() {
        pieces.push(Piece::Text(fixed));
    }
    Ok(pieces)
}

fn wrong_labels(labels: &[String]) -> Option<String> {
    let mut seen = BTreeSet::new();
    if labels.len() < 2 {
        return Some("needs at least two".to_owned());
    }
    let bad =
        labels.iter().find(|l| l.is_empty() || l.trim() != l.as_str() || !seen.insert(l.as_str()));
    bad.map(|label| format!("{label:?} is empty, untrimmed or there twice"))
}

/// The text up to the end of its `max`-th word, spacing kept; all of it if it has no more.
fn first_words(text: &str, max: Option<usize>) -> &str {
    let Some(max) = max else { return text };
    let (mut words, mut inside, mut end) = (0, false, 0);
    for (at, c) in text.char_indices() {
        let in_word = !c.is_whitespace();
        if in_word && !inside {
            if words == max {
                return &text[..end];
            }
            words += 1;
        }
        if in_word {
            end = at + c.len_utf8();
        }
        inside = in_word;
    }
    text
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
