//! What the base is asked when it writes a user's profile (PAG).

use super::{PromptError, Task};
use crate::data::Item;

impl Task {
    /// The request for a profile from items of the history, or none for a template without one.
    ///
    /// The answer is all the base writes; it stands in front of the user's prompts as it is.
    ///
    /// # Errors
    /// [`PromptError::MissingField`].
    ///
    /// *Source*: methods.md 1.5, with the items one a line, not as the printed list of the released code.
    pub fn profile_request(&self, items: &[&Item]) -> Result<Option<String>, PromptError> {
        let (Some(request), Some(prompt)) =
            (&self.template.profile_request, &self.parts.profile_prompt)
        else {
            return Ok(None);
        };
        let line = self.parts.profile_line.as_ref().unwrap_or(&self.parts.history_line);
        let mut lines = Vec::with_capacity(items.len());
        for item in items {
            lines.push(self.filled_past(line, item, Some(request.max_field_words))?);
        }
        let lines = lines.join("\n");
        // The only placeholder is `items`: the check saw to it.
        Ok(prompt.fill(|_| Some(&lines), None).ok())
    }
}
