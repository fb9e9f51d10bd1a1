//! The parts of a prompt in their order, and what goes when they do not fit.

use super::merge::Plan;
use super::{Ablation, Ask, Cut, Layout, PromptError, Purpose, Task, Tokenize};

/// A prompt's tokens; longer than the room only if the bare question is.
pub(super) struct Fitted {
    pub(super) tokens: Vec<u32>,
    pub(super) cut: Cut,
}

impl Task {
    /// Profile, history lines and question in the template's order.
    ///
    /// *Source*: methods.md 1.4 for [`Layout::HistoryFirst`]; each part but the question ends its line,
    /// and a blank line ends the history.
    pub(super) fn assemble(
        &self,
        purpose: Purpose,
        profile: Option<&str>,
        lines: &[&str],
        question: &str,
    ) -> String {
        let profile = profile.filter(|p| !p.trim().is_empty());
        // A history example in a form of its own is not what the instruction asks for.
        let own = purpose == Purpose::History && self.parts.history_prompt.is_some();
        let instruction = Some(self.instruction.as_str()).filter(|i| !i.is_empty() && !own);
        let blank =
            (self.template.layout == Layout::HistoryFirst && !lines.is_empty()).then_some("");
        let parts = instruction.into_iter().chain(profile).chain(lines.iter().copied());
        parts.chain(blank).chain([question]).collect::<Vec<_>>().join("\n")
    }

    /// BOS and prompt, with as much of the context as leaves them within `room`, or with none of it.
    pub(super) fn fitted(
        &self,
        tokenizer: &dyn Tokenize,
        ask: &Ask<'_>,
        (max_len, room): (usize, usize),
    ) -> Result<Fitted, PromptError> {
        let question = self.question(ask.item, ask.purpose)?;
        let fitted = match self.template.layout {
            Layout::Merged => self.fitted_merged(tokenizer, ask, &question, (max_len, room))?,
            _ => self.fitted_lines(tokenizer, ask, &question, room)?,
        };
        match ask.profile {
            Some(profile) if fitted.tokens.len() > room => {
                let render =
                    |text: &str| Ok(self.assemble(ask.purpose, Some(text), &[], &question));
                let tokens = shrunk(tokenizer, profile, room, &render)?;
                Ok(Fitted { tokens, cut: Cut::Context })
            }
            _ => Ok(fitted),
        }
    }

    /// The lines that fit, the most relevant ones, in their order.
    fn fitted_lines(
        &self,
        tokenizer: &dyn Tokenize,
        ask: &Ask<'_>,
        question: &str,
        room: usize,
    ) -> Result<Fitted, PromptError> {
        if ask.ablation != Ablation::Both && !ask.shown.is_empty() {
            return Err(self.no_ablation(ask.ablation));
        }
        let mut lines = Vec::with_capacity(ask.shown.len());
        for shown in ask.shown {
            lines.push((shown.relevance, self.history_line(&shown.item)?));
        }
        let mut order: Vec<usize> = lines.iter().map(|(relevance, _)| *relevance).collect();
        order.sort_unstable();
        let with = |count: usize| {
            let most = order[..count].last();
            let kept = lines.iter().filter(|(relevance, _)| Some(relevance) <= most);
            let kept: Vec<&str> = kept.map(|(_, line)| line.as_str()).collect();
            encode_prompt(tokenizer, &self.assemble(ask.purpose, ask.profile, &kept, question))
        };
        let at = |count: usize| {
            let tokens = with(count)?;
            let fits = tokens.len() <= room;
            Ok((tokens, fits))
        };
        let (count, tokens) = most_that_fits(lines.len(), &at)?;
        let cut = if count < lines.len() { Cut::Context } else { Cut::None };
        Ok(Fitted { tokens, cut })
    }

    /// Items and question in one sentence. Where they are too long, all inputs of the study's items are cut alike, down to
    /// nothing, then the least relevant items go; elsewhere the items' budget is lowered by what is too much.
    fn fitted_merged(
        &self,
        tokenizer: &dyn Tokenize,
        ask: &Ask<'_>,
        question: &str,
        (max_len, room): (usize, usize),
    ) -> Result<Fitted, PromptError> {
        let answer = usize::try_from(self.template.max_new_tokens).unwrap_or(usize::MAX);
        let most = max_len.saturating_sub(answer);
        let plan = Plan::new(self, tokenizer, ask, question, most)?;
        let encoded = |merged: Option<&str>| -> Result<(Vec<u32>, usize), PromptError> {
            let text = merged.unwrap_or(question);
            let whole = self.assemble(ask.purpose, ask.profile, &[], text);
            let tokens = encode_prompt(tokenizer, &whole)?;
            let together = match ask.profile {
                None => tokens.len() - tokenizer.bos().iter().len(),
                Some(_) => tokenizer.encode(text).map_err(PromptError::Tokenizer)?.len(),
            };
            let excess = together.saturating_sub(plan.max_tokens());
            let excess = excess.max(tokens.len().saturating_sub(room));
            Ok((tokens, excess))
        };
        if let Some(steps) = plan.steps() {
            let at = |step: usize| {
                let (tokens, excess) = encoded(plan.step(step)?.as_deref())?;
                Ok((tokens, excess == 0))
            };
            let (step, tokens) = most_that_fits(steps, &at)?;
            return Ok(Fitted { tokens, cut: if step < steps { Cut::Context } else { Cut::None } });
        }
        let mut less = 0;
        loop {
            let merged = plan.text(less)?;
            let (tokens, excess) = encoded(merged.as_deref())?;
            if excess == 0 || merged.is_none() {
                return Ok(Fitted { tokens, cut: if less > 0 { Cut::Context } else { Cut::None } });
            }
            less += excess;
        }
    }

    /// The bare question with its payload cut to fit, if that is enough.
    pub(super) fn with_cut_question(
        &self,
        tokenizer: &dyn Tokenize,
        ask: &Ask<'_>,
        room: usize,
    ) -> Result<Fitted, PromptError> {
        let render = |payload: &str| {
            let question = self.question_about(ask.item, ask.purpose, Some(payload))?;
            Ok(self.assemble(ask.purpose, None, &[], &question))
        };
        let payload = self.payload(ask.item, ask.purpose).unwrap_or_default();
        let payload = super::text::first_words(payload, self.most_words(ask.purpose));
        let tokens = shrunk(tokenizer, payload, room, &render)?;
        Ok(Fitted { tokens, cut: Cut::Question })
    }
}

/// The largest of `0..=most` whose tokens fit, with them; 0 even if these do not. More is more tokens.
fn most_that_fits(
    most: usize,
    at: &dyn Fn(usize) -> Result<(Vec<u32>, bool), PromptError>,
) -> Result<(usize, Vec<u32>), PromptError> {
    let (whole, fit) = at(most)?;
    if fit || most == 0 {
        return Ok((most, whole));
    }
    let (mut fits, mut too_many) = (0, most);
    let mut tokens = at(0)?.0;
    while fits + 1 < too_many {
        let middle = usize::midpoint(fits, too_many);
        match at(middle)? {
            (more, true) => (fits, tokens) = (middle, more),
            (_, false) => too_many = middle,
        }
    }
    Ok((fits, tokens))
}

/// BOS if any, and a text.
pub(super) fn encode_prompt(tokenizer: &dyn Tokenize, text: &str) -> Result<Vec<u32>, PromptError> {
    let prompt = tokenizer.encode(text).map_err(PromptError::Tokenizer)?;
    Ok(tokenizer.bos().into_iter().chain(prompt).collect())
}

/// The text of the first tokens of a text; of a character cut in two nothing is left.
pub(super) fn first_tokens(
    tokenizer: &dyn Tokenize,
    text: &str,
    ids: &[u32],
    count: usize,
) -> Result<String, PromptError> {
    if count >= ids.len() {
        return Ok(text.to_owned());
    }
    let cut = tokenizer.decode(&ids[..count]).map_err(PromptError::Tokenizer)?;
    Ok(cut.trim_end_matches('\u{fffd}').to_owned())
}

/// The tokens of a rendered text that fits, its variable part cut at the end; if nothing is left of
/// this, those of the rest.
fn shrunk(
    tokenizer: &dyn Tokenize,
    text: &str,
    room: usize,
    render: &dyn Fn(&str) -> Result<String, PromptError>,
) -> Result<Vec<u32>, PromptError> {
    let ids = tokenizer.encode(text).map_err(PromptError::Tokenizer)?;
    let mut keep = ids.len();
    loop {
        let tokens =
            encode_prompt(tokenizer, &render(&first_tokens(tokenizer, text, &ids, keep)?)?)?;
        let excess = tokens.len().saturating_sub(room);
        if excess == 0 || keep == 0 {
            return Ok(tokens);
        }
        keep = keep.saturating_sub(excess);
    }
}
