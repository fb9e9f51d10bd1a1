//! The tokens that decide between closed labels.

use super::{PromptError, Task, Tokenize};

/// How to score labels with one pass over `prompt ++ shared`: the probabilities of `ids` at its last
/// row, renormalised over the labels.
///
/// With a tokenizer that splits digits off (SmolLM2: ` 4` is the space, then `4`) the labels share
/// their first token; it says nothing about the choice and is read as part of the prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelTokens {
    /// Tokens that every label starts with; often none.
    pub shared: Vec<u32>,
    /// Per label, in the template's order: the first token after the shared ones; EOS for a label
    /// that is all shared. Distinct.
    pub ids: Vec<u32>,
}

impl Task {
    /// The label tokens, or none for a task without labels. Each label is tokenised as an answer: a
    /// space, the label, EOS.
    ///
    /// # Errors
    /// [`PromptError::LabelsShareToken`] if one token does not decide; the tokenizer's.
    pub fn label_tokens(
        &self,
        tokenizer: &dyn Tokenize,
    ) -> Result<Option<LabelTokens>, PromptError> {
        let Some(labels) = self.labels() else { return Ok(None) };
        let mut answers = Vec::with_capacity(labels.len());
        for label in labels {
            let mut ids = tokenizer.encode(&format!(" {label}")).map_err(PromptError::Tokenizer)?;
            ids.push(tokenizer.eos());
            answers.push(ids);
        }
        let first = answers.first().map_or(&[][..], Vec::as_slice);
        let same = |ids: &Vec<u32>| first.iter().zip(ids).take_while(|(a, b)| a == b).count();
        let shared = answers.iter().map(same).min().unwrap_or(0);
        // All labels equal in tokens: the last shared one, EOS, is the one they collide on.
        let shared = shared.min(answers.iter().map(|ids| ids.len() - 1).min().unwrap_or(0));
        let ids: Vec<u32> = answers.iter().map(|ids| ids[shared]).collect();
        for (second, id) in ids.iter().enumerate() {
            if let Some(earlier) = ids[..second].iter().position(|other| other == id) {
                let (first, second) = (labels[earlier].clone(), labels[second].clone());
                return Err(PromptError::LabelsShareToken { first, second, token: *id });
            }
        }
        Ok(Some(LabelTokens { shared: first[..shared].to_vec(), ids }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{TokenizeError, testing::Letters};
    use super::*;
    use crate::prompt::Template;

    /// One id for a whole word with its space.
    struct Words;

    impl Tokenize for Words {
        fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizeError> {
            Ok(text.split(' ').skip(1).map(|w| 100 + if w.len() > 1 { 2 } else { 1 }).collect())
        }
        fn decode(&self, _: &[u32]) -> Result<String, TokenizeError> {
            Err("not needed".into())
        }
        fn eos(&self) -> u32 {
            9
        }
        fn bos(&self) -> Option<u32> {
            None
        }
    }

    fn task(labels: &[&str]) -> Task {
        let labels = Some(labels.iter().map(|l| (*l).to_owned()).collect());
        Task::new(Template { labels, ..Template::rating() }).unwrap()
    }

    fn letters(text: &str) -> Vec<u32> {
        Letters { bos: false }.encode(text).unwrap()
    }

    #[test]
    fn a_shared_space_is_part_of_the_prompt() {
        let found = task(&["1", "2", "3"]).label_tokens(&Letters { bos: true }).unwrap().unwrap();
        assert_eq!(found, LabelTokens { shared: letters(" "), ids: letters("123") });
        let found = task(&["a", "bb"]).label_tokens(&Words).unwrap().unwrap();
        assert_eq!(found, LabelTokens { shared: vec![], ids: vec![101, 102] });
    }

    #[test]
    fn a_label_that_is_a_prefix_is_told_by_its_end() {
        let found = task(&["no", "nope"]).label_tokens(&Letters { bos: false }).unwrap().unwrap();
        assert_eq!(found, LabelTokens { shared: letters(" no"), ids: vec![0, letters("p")[0]] });
    }

    #[test]
    fn labels_that_need_more_than_one_token_are_refused() {
        let error = task(&["romance", "sci-fi", "science"]).label_tokens(&Letters { bos: false });
        let Err(PromptError::LabelsShareToken { first, second, token }) = error else { panic!() };
        assert_eq!(
            (first.as_str(), second.as_str(), token),
            ("sci-fi", "science", letters("s")[0])
        );
        // Different words, one id.
        let error = task(&["x", "y"]).label_tokens(&Words);
        assert!(matches!(error, Err(PromptError::LabelsShareToken { token: 101 | 9, .. })));
    }

    #[test]
    fn a_task_without_labels_has_none() {
        let task = Task::new(Template { labels: None, ..Template::rating() }).unwrap();
        assert_eq!(task.label_tokens(&Words).unwrap(), None);
    }
}
