//! From a template to a task: every rule a template must keep.

use super::task::Parts;
use super::text::Pattern;
use super::{Layout, Merge, PromptError, Task, Template};
use std::collections::BTreeSet;

/// Part of the template and what is wrong with it.
type Fault = (&'static str, String);

impl Task {
    /// Checks a template.
    ///
    /// # Errors
    /// Unmatched braces, an empty placeholder, a placeholder in the instruction, a prompt or answer
    /// without one, an answer field in a text that stands in front of the answer or is compared by
    /// retrieval (it would give the answer away), a prompt that ends in white space, no token to
    /// generate, labels that are fewer than two, twice, empty or untrimmed; a part of another layout, or a
    /// layout without its parts; a share or a budget that is none.
    pub fn new(template: Template) -> Result<Self, PromptError> {
        let refuse =
            |(part, what)| PromptError::Template { template: template.name.clone(), part, what };
        let (instruction, parts) = parsed(&template).map_err(refuse)?;
        check_texts(&template, &parts)
            .and_then(|()| check_layout(&template, &parts))
            .and_then(|()| check_history_example(&template, &parts))
            .and_then(|()| check_retrieval(&template, &parts))
            .and_then(|()| check_profile_request(&template, &parts))
            .map_err(refuse)?;
        Ok(Self { template, instruction, parts })
    }
}

fn fault<T>(part: &'static str, what: &str) -> Result<T, Fault> {
    Err((part, what.to_owned()))
}

fn parsed(t: &Template) -> Result<(String, Parts), Fault> {
    let parse = |part, text: &str| Pattern::parse(text).map_err(|what| (part, what));
    let maybe = |part, text: Option<&String>| text.map(|t| parse(part, t)).transpose();
    let instruction = parse("instruction", &t.instruction)?;
    let instruction = instruction.fill(|_| None, None);
    let instruction =
        instruction.map_err(|_| ("instruction", "must be the same for all items".to_owned()))?;
    let (example, retrieval) = (t.history_example.as_ref(), t.retrieval.as_ref());
    let (ablation, profile) = (t.ablation.as_ref(), t.profile_request.as_ref());
    let parts = Parts {
        prompt: parse("prompt", &t.prompt)?,
        answer: parse("answer", &t.answer)?,
        history_line: parse("history_line", &t.history_line)?,
        history_prompt: maybe("history_example.prompt", example.map(|e| &e.prompt))?,
        history_answer: maybe("history_example.answer", example.map(|e| &e.answer))?,
        history_query: maybe("history_example.query", example.and_then(|e| e.query.as_ref()))?,
        query: maybe("retrieval.query", retrieval.map(|r| &r.query))?,
        document: maybe("retrieval.document", retrieval.and_then(|r| r.document.as_ref()))?,
        document_without_output: maybe(
            "retrieval.document_without_output",
            retrieval.and_then(|r| r.document_without_output.as_ref()),
        )?,
        only_input: maybe("ablation.only_input", ablation.map(|a| &a.only_input.item))?,
        only_output: maybe("ablation.only_output", ablation.map(|a| &a.only_output.item))?,
        profile_prompt: maybe("profile_request.prompt", profile.map(|p| &p.prompt))?,
        profile_line: maybe("profile_request.line", profile.and_then(|p| p.line.as_ref()))?,
    };
    Ok((instruction, parts))
}

fn check_texts(t: &Template, parts: &Parts) -> Result<(), Fault> {
    for (part, pattern) in [("prompt", &parts.prompt), ("answer", &parts.answer)] {
        if pattern.fields().next().is_none() {
            return fault(part, "needs a placeholder");
        }
    }
    if t.input_field.is_some() && t.input_field == t.output_field {
        return fault("output_field", "is the input field");
    }
    refuse_answer(t, "prompt", &parts.prompt, &parts.answer)?;
    if t.merge.is_none() && t.prompt.ends_with(char::is_whitespace) {
        return fault("prompt", "ends in white space; the answer brings its own");
    }
    if t.max_new_tokens == 0 {
        return fault("max_new_tokens", "must be at least 1");
    }
    match t.labels.as_deref().and_then(wrong_labels) {
        Some(what) => Err(("labels", what)),
        None => Ok(()),
    }
}

/// A text in front of an answer names no field that the answer is made of.
fn refuse_answer(
    t: &Template,
    part: &'static str,
    shown: &Pattern,
    answer: &Pattern,
) -> Result<(), Fault> {
    let output = t.output_field.as_deref();
    let secret = |field: &str| field == "gold" || output == Some(field) || answer.has(field);
    match shown.fields().find(|field| secret(field)) {
        Some(field) => Err((part, format!("shows the answer's field {field:?}"))),
        None => Ok(()),
    }
}

fn check_layout(t: &Template, parts: &Parts) -> Result<(), Fault> {
    if t.layout != Layout::InstructionFirst && !t.instruction.is_empty() {
        return fault("instruction", "belongs into the prompt in this layout");
    }
    let Some(merge) = &t.merge else {
        return match (t.layout, &t.ablation) {
            (Layout::Merged, _) => fault("merge", "is missing in layout merged"),
            (_, Some(_)) => fault("ablation", "is for layout merged"),
            _ => Ok(()),
        };
    };
    if t.layout != Layout::Merged {
        return fault("merge", "is for layout merged");
    }
    let Some(input) = t.input_field.as_deref() else {
        return fault("input_field", "is missing: a merged item is cut in it");
    };
    if parts.history_line.fields().filter(|f| *f == input).count() != 1 {
        return fault("history_line", "must have the input field once: it is cut there");
    }
    let ends = |text: &str| text.ends_with(char::is_whitespace);
    if ends(&merge.cue) || (merge.cue.is_empty() && ends(&t.prompt)) {
        return fault("merge.cue", "ends in white space; the answer brings its own");
    }
    check_budget(merge)?;
    let Some(forms) = &t.ablation else { return Ok(()) };
    let shows = |p: &Option<Pattern>, field: &Option<String>| {
        p.iter().zip(field).any(|(pattern, field)| pattern.has(field))
    };
    if parts.document_without_output.is_none() {
        return fault("ablation", "needs retrieval.document_without_output to decouple");
    }
    if forms.tokens == 0 {
        return fault("ablation.tokens", "must be at least 1");
    }
    if !shows(&parts.only_input, &t.input_field) || shows(&parts.only_input, &t.output_field) {
        return fault("ablation.only_input", "must show the input field, not the output field");
    }
    if !shows(&parts.only_output, &t.output_field) || shows(&parts.only_output, &t.input_field) {
        return fault("ablation.only_output", "must show the output field, not the input field");
    }
    Ok(())
}

fn check_budget(merge: &Merge) -> Result<(), Fault> {
    use super::Budget;
    match &merge.budget {
        Budget::Lamp { max_tokens: 0, .. } | Budget::Study { tokens: 0, .. } => {
            fault("merge.budget", "has no tokens")
        }
        Budget::Study { tokens, max_tokens, .. } if max_tokens < tokens => {
            fault("merge.budget", "max_tokens is less than the items may have")
        }
        Budget::Lamp { phrase, .. } if !merge.link.contains(phrase.as_str()) => {
            fault("merge.budget", "its phrase is not in the link")
        }
        _ => Ok(()),
    }
}

fn check_history_example(t: &Template, parts: &Parts) -> Result<(), Fault> {
    let (Some(example), Some(prompt), Some(answer)) =
        (&t.history_example, &parts.history_prompt, &parts.history_answer)
    else {
        return Ok(());
    };
    if answer.fields().next().is_none() {
        return fault("history_example.answer", "needs a placeholder");
    }
    refuse_answer(t, "history_example.prompt", prompt, answer)?;
    if t.merge.is_none() && example.prompt.ends_with(char::is_whitespace) {
        return fault("history_example.prompt", "ends in white space; the answer brings its own");
    }
    let Some(split) = &example.split else { return Ok(()) };
    if split.from_percent > split.to_percent || split.to_percent > 100 {
        return fault("history_example.split", "0 <= from_percent <= to_percent <= 100");
    }
    if prompt.has(&split.field) || prompt.has("rest") || !answer.has("rest") {
        return fault("history_example.split", "the prompt has `head`, the answer has `rest`");
    }
    Ok(())
}

fn check_retrieval(t: &Template, parts: &Parts) -> Result<(), Fault> {
    if let Some(query) = &parts.query {
        refuse_answer(t, "retrieval.query", query, &parts.answer)?;
    }
    if let (Some(query), Some(answer)) = (&parts.history_query, &parts.history_answer) {
        refuse_answer(t, "history_example.query", query, answer)?;
    }
    let output = t.output_field.as_deref();
    match &parts.document_without_output {
        Some(bare) if output.is_none_or(|f| bare.has(f)) => {
            fault("retrieval.document_without_output", "must lack the output field")
        }
        _ if t.retrieval.as_ref().is_some_and(|r| r.exclude_equal) && t.input_field.is_none() => {
            fault("retrieval.exclude_equal", "needs an input field to compare")
        }
        _ => Ok(()),
    }
}

fn check_profile_request(t: &Template, parts: &Parts) -> Result<(), Fault> {
    let (Some(request), Some(prompt)) = (&t.profile_request, &parts.profile_prompt) else {
        return Ok(());
    };
    if prompt.fields().ne(["items"]) {
        return fault("profile_request.prompt", "must have the placeholder {items} once, no other");
    }
    if t.profile_request.as_ref().is_some_and(|p| p.prompt.ends_with(char::is_whitespace)) {
        return fault("profile_request.prompt", "ends in white space");
    }
    if request.items == 0 || request.max_new_tokens == 0 {
        return fault("profile_request", "needs at least one item and one new token");
    }
    Ok(())
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

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
