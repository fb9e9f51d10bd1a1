//! Items and question in one sentence, within a budget of tokens.
//!
//! *Source*: methods.md 4.3 (LaMP) and 3.4 (the study of user profiles).

use super::fit::first_tokens;
use super::text::Pattern;
use super::{Ablation, Ask, Budget, ListForm, Merge, Place, PromptError, Task, Tokenize};

/// Everything about the items that does not change with the budget.
pub(super) struct Plan<'a> {
    task: &'a Task,
    merge: Option<&'a Merge>,
    tokenizer: &'a dyn Tokenize,
    question: &'a str,
    question_len: usize,
    /// Longest prompt in tokens.
    most: usize,
    /// The title as the item has it, for a place behind it.
    title: Option<&'a str>,
    form: Form<'a>,
}

/// What is in front of a question.
enum Form<'a> {
    /// Items, each cut in its middle.
    Items(Vec<Piece>),
    /// One list, cut at its end.
    List(&'a ListForm, String),
}

/// An item around the field it is cut in.
struct Piece {
    /// 0 is the most relevant.
    relevance: usize,
    before: String,
    field: String,
    after: String,
    /// Tokens of the field.
    ids: Vec<u32>,
    /// Length of the fixed parts.
    fixed: usize,
    /// Length of the whole.
    whole: usize,
}

impl Piece {
    fn text(&self, tokenizer: &dyn Tokenize, tokens: usize) -> Result<String, PromptError> {
        let field = first_tokens(tokenizer, &self.field, &self.ids, tokens)?;
        Ok(format!("{}{field}{}", self.before, self.after))
    }
}

impl<'a> Plan<'a> {
    /// Renders and measures the items of a prompt of at most `most` tokens.
    pub(super) fn new(
        task: &'a Task,
        tokenizer: &'a dyn Tokenize,
        ask: &Ask<'a>,
        question: &'a str,
        most: usize,
    ) -> Result<Self, PromptError> {
        let forms = task.template.ablation.as_ref();
        let list = match ask.ablation {
            Ablation::Both => None,
            Ablation::OnlyInput => {
                Some(forms.map(|f| &f.only_input).zip(task.parts.only_input.as_ref()))
            }
            Ablation::OnlyOutput | Ablation::Decouple => {
                Some(forms.map(|f| &f.only_output).zip(task.parts.only_output.as_ref()))
            }
        };
        let form = match list {
            None => Form::Items(pieces(task, tokenizer, ask)?),
            Some(form) => {
                let (form, pattern) = form.ok_or_else(|| task.no_ablation(ask.ablation))?;
                Form::List(form, list_of(task, ask, (form, pattern))?)
            }
        };
        let title = task.template.input_field.as_deref().and_then(|f| ask.item.field(f));
        let question_len = length(tokenizer, question)?;
        let merge = task.template.merge.as_ref();
        Ok(Self { task, merge, tokenizer, question, question_len, most, title, form })
    }

    /// Longest text of items and question in tokens, where the budget has a limit of both.
    pub(super) fn max_tokens(&self) -> usize {
        match self.merge.map(|m| &m.budget) {
            Some(Budget::Study { max_tokens, .. }) => *max_tokens,
            _ => usize::MAX,
        }
    }

    /// How many steps lead from the bare question to all there is to show, each longer than the one before; none
    /// where [`Self::text`] is asked for less instead.
    pub(super) fn steps(&self) -> Option<usize> {
        match (&self.form, self.merge.map(|m| &m.budget)) {
            (Form::Items(pieces), Some(Budget::Study { .. })) => Some(pieces.len() + self.share()),
            _ => None,
        }
    }

    /// Items and question at one of the [`Self::steps`]: to the number of items the most relevant ones with nothing of
    /// their inputs, then all items with a token more for each; none at 0.
    pub(super) fn step(&self, step: usize) -> Result<Option<String>, PromptError> {
        let (Some(merge), Form::Items(pieces)) = (self.merge, &self.form) else { return Ok(None) };
        let mut order: Vec<usize> = pieces.iter().map(|p| p.relevance).collect();
        order.sort_unstable();
        let least = order[..step.min(order.len())].last();
        let share = step.saturating_sub(pieces.len());
        let mut texts = Vec::with_capacity(step.min(pieces.len()));
        for piece in pieces.iter().filter(|p| Some(&p.relevance) <= least) {
            let keep = piece.ids.len().saturating_sub(piece.whole.saturating_sub(share));
            texts.push(piece.text(self.tokenizer, keep)?);
        }
        Ok((!texts.is_empty()).then(|| self.placed(merge, &texts.join(&merge.join))))
    }

    /// Items and question with a budget lowered by `less` tokens; none if no item fits.
    pub(super) fn text(&self, less: usize) -> Result<Option<String>, PromptError> {
        let Some(merge) = self.merge else { return Ok(None) };
        let items = match &self.form {
            Form::Items(pieces) => {
                let texts = self.lamp(merge, pieces, less)?;
                (!texts.is_empty()).then(|| texts.join(&merge.join))
            }
            Form::List(form, list) => self.list(form, list, less)?,
        };
        Ok(items.map(|items| self.placed(merge, &items)))
    }

    /// LaMP's rule; see [`Budget::Lamp`].
    fn lamp(
        &self,
        merge: &Merge,
        pieces: &[Piece],
        less: usize,
    ) -> Result<Vec<String>, PromptError> {
        let Budget::Lamp { max_tokens, reserved, phrase } = &merge.budget else {
            return Ok(Vec::new());
        };
        let most = self.most.min(*max_tokens);
        let joins = 2 * pieces.len().saturating_sub(1);
        let over = reserved + length(self.tokenizer, phrase)? + joins + less;
        let mut last = None;
        for tenths in (0..=6).rev() {
            let question = self.question_len.min(tenths * most / 10);
            if last.replace(question) == Some(question) {
                continue;
            }
            let each = most.saturating_sub(question + over) / pieces.len().max(1);
            match self.carried(pieces, each)? {
                Some(texts) if each > 0 => return Ok(texts),
                _ => {}
            }
        }
        Ok(Vec::new())
    }

    /// All pieces in `each` tokens, what one leaves going to the next; none if one does not fit.
    fn carried(&self, pieces: &[Piece], each: usize) -> Result<Option<Vec<String>>, PromptError> {
        let mut saved = 0;
        let mut texts = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let Some(room) = (each + saved).checked_sub(piece.fixed) else { return Ok(None) };
            if room == 0 && !piece.ids.is_empty() {
                return Ok(None);
            }
            let used = piece.ids.len().min(room);
            saved = room - used;
            texts.push(piece.text(self.tokenizer, used)?);
        }
        Ok(Some(texts))
    }

    /// Each item's tokens by the study's rule; see [`Budget::Study`].
    fn share(&self) -> usize {
        let Some(Budget::Study { tokens, max_tokens, long_question }) =
            self.merge.map(|m| &m.budget)
        else {
            return 0;
        };
        let all = match long_question {
            Some(long) if self.question_len >= *long => {
                max_tokens.saturating_sub(self.question_len)
            }
            _ => *tokens,
        };
        match &self.form {
            Form::Items(pieces) => all / pieces.len().max(1),
            Form::List(..) => 0,
        }
    }

    /// The list of one side, cut at its end so that the tail stays.
    fn list(
        &self,
        form: &ListForm,
        list: &str,
        less: usize,
    ) -> Result<Option<String>, PromptError> {
        let most = self.task.template.ablation.as_ref().map_or(0, |a| a.tokens);
        let ids = self.tokenizer.encode(list).map_err(PromptError::Tokenizer)?;
        let room = most.saturating_sub(length(self.tokenizer, &form.tail)?);
        let room = if less > 0 { room.min(ids.len()).saturating_sub(less) } else { room };
        let cut = first_tokens(self.tokenizer, list, &ids, room)?;
        let says_something = cut.len() > form.lead.len();
        Ok(says_something.then(|| cut + &form.tail))
    }

    fn placed(&self, merge: &Merge, items: &str) -> String {
        let question = self.question;
        let quoted = |title: &str| {
            let quoted = format!("\"{title}\"");
            question.find(&quoted).map(|at| at + quoted.len())
        };
        let second_quote = || question.match_indices('"').nth(1).map(|(at, _)| at + 1);
        let at = match merge.place {
            Place::Before => return format!("{items}{}{question}", merge.link),
            Place::AfterTitleWord => question.find("title").map(|at| at + "title".len()),
            Place::AfterQuotedTitle => self.title.and_then(quoted).or_else(second_quote),
        };
        match at {
            Some(at) => format!("{}{}{items}{}", &question[..at], merge.link, &question[at..]),
            // A question in other words: the items stand in front of it, as in the other tasks.
            None => format!("{items}. {question}"),
        }
    }
}

fn length(tokenizer: &dyn Tokenize, text: &str) -> Result<usize, PromptError> {
    if text.is_empty() {
        return Ok(0);
    }
    Ok(tokenizer.encode(text).map_err(PromptError::Tokenizer)?.len())
}

fn pieces(task: &Task, tokenizer: &dyn Tokenize, ask: &Ask<'_>) -> Result<Vec<Piece>, PromptError> {
    let input = task.template.input_field.as_deref().unwrap_or_default();
    let around = task.parts.history_line.around(input);
    let Some((before, after)) = around else { return Ok(Vec::new()) };
    let piece = |shown: &super::Shown<'_>| {
        let (item, relevance) = (&*shown.item, shown.relevance);
        let field = item.field(input).ok_or_else(|| task.missing(item, input.to_owned()))?;
        let (before, after) = (task.past(&before, item)?, task.past(&after, item)?);
        let ids = tokenizer.encode(field).map_err(PromptError::Tokenizer)?;
        let fixed = length(tokenizer, &before)? + length(tokenizer, &after)?;
        let whole = length(tokenizer, &format!("{before}{field}{after}"))?;
        Ok(Piece { relevance, before, field: field.to_owned(), after, ids, fixed, whole })
    };
    ask.shown.iter().map(piece).collect()
}

fn list_of(
    task: &Task,
    ask: &Ask<'_>,
    (form, pattern): (&ListForm, &Pattern),
) -> Result<String, PromptError> {
    let mut items = Vec::with_capacity(ask.shown.len());
    for shown in ask.shown {
        items.push(task.past(pattern, &shown.item)?);
    }
    Ok(if items.is_empty() { String::new() } else { form.lead.clone() + &items.join(&form.join) })
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
