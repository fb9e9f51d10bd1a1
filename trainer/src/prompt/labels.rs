//! The tokens that decide between closed labels.

use super::{PromptError, Task, Tokenize};
use std::collections::{BTreeMap, BTreeSet};

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

/// How to score labels that share more than their first tokens: each label's whole token sequence, and
/// the tree they make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSequences {
    /// Tokens that every label starts with; often none. Part of the prompt.
    pub shared: Vec<u32>,
    /// Per label, in the template's order: all its tokens after the shared ones, EOS last. Distinct.
    pub sequences: Vec<Vec<u32>>,
}

/// A place in the tree of labels where more than one token goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// The tokens from the end of the shared ones to here; empty for the first branch.
    pub prefix: Vec<u32>,
    /// What may come next: distinct, ascending, at least two.
    pub tokens: Vec<u32>,
}

impl LabelSequences {
    /// The branches to read the network at, shorter prefixes first; the first has an empty prefix.
    ///
    /// Where one branch is all there is, it holds the ids of [`LabelTokens`].
    pub fn branches(&self) -> Vec<Branch> {
        let mut next: BTreeMap<(usize, &[u32]), BTreeSet<u32>> = BTreeMap::new();
        for sequence in &self.sequences {
            for (at, &token) in sequence.iter().enumerate() {
                next.entry((at, &sequence[..at])).or_default().insert(token);
            }
        }
        let several = next.into_iter().filter(|(_, tokens)| tokens.len() > 1);
        let branch = |((_, prefix), tokens): ((usize, &[u32]), BTreeSet<u32>)| Branch {
            prefix: prefix.to_vec(),
            tokens: tokens.into_iter().collect(),
        };
        several.map(branch).collect()
    }

    /// Probabilities of the labels, in their order, summing to 1: p(label) = product over the branches on
    /// its way of p(its token), where `at[branch][i]` is the probability of `branches()[branch].tokens[i]`,
    /// renormalised over that branch's tokens, after prompt, shared tokens and prefix.
    ///
    /// It is the distribution of decoding constrained to the labels; with one branch it is that of
    /// [`LabelTokens`]. A probability that is not given is 0.
    pub fn probabilities(&self, at: &[Vec<f32>]) -> Vec<f32> {
        let branches = self.branches();
        let of = |sequence: &Vec<u32>| {
            let mut product = 1.0f64;
            for (branch, given) in branches.iter().zip(at) {
                if let Some(rest) = sequence.strip_prefix(branch.prefix.as_slice()) {
                    let child = branch.tokens.iter().position(|t| rest.first() == Some(t));
                    product *= child.and_then(|c| given.get(c)).map_or(0.0, |p| f64::from(*p));
                }
            }
            product
        };
        let products: Vec<f64> = self.sequences.iter().map(of).collect();
        #[expect(clippy::cast_possible_truncation, reason = "probabilities are kept as f32")]
        products.into_iter().map(|p| p as f32).collect()
    }
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
        let Some((labels, answers, shared)) = self.label_answers(tokenizer)? else {
            return Ok(None);
        };
        let ids: Vec<u32> = answers.iter().map(|ids| ids[shared]).collect();
        for (second, id) in ids.iter().enumerate() {
            if let Some(earlier) = ids[..second].iter().position(|other| other == id) {
                let (first, second) = (labels[earlier].clone(), labels[second].clone());
                return Err(PromptError::LabelsShareToken { first, second, token: *id });
            }
        }
        let shared = answers.first().map_or(&[][..], |ids| &ids[..shared]).to_vec();
        Ok(Some(LabelTokens { shared, ids }))
    }

    /// The token sequences of the labels, or none for a task without labels; for labels that one token
    /// does not decide. Tokenised as in [`Task::label_tokens`].
    ///
    /// # Errors
    /// [`PromptError::LabelsSame`]; the tokenizer's.
    pub fn label_sequences(
        &self,
        tokenizer: &dyn Tokenize,
    ) -> Result<Option<LabelSequences>, PromptError> {
        let Some((labels, answers, shared)) = self.label_answers(tokenizer)? else {
            return Ok(None);
        };
        for (second, ids) in answers.iter().enumerate() {
            if let Some(earlier) = answers[..second].iter().position(|other| other == ids) {
                let (first, second) = (labels[earlier].clone(), labels[second].clone());
                return Err(PromptError::LabelsSame { first, second });
            }
        }
        let front = answers.first().map_or(&[][..], |ids| &ids[..shared]).to_vec();
        let sequences = answers.iter().map(|ids| ids[shared..].to_vec()).collect();
        Ok(Some(LabelSequences { shared: front, sequences }))
    }

    /// The labels, the tokens of each with EOS, and how many of these all share; less than any has.
    #[expect(clippy::type_complexity, reason = "private, taken apart at once")]
    fn label_answers(
        &self,
        tokenizer: &dyn Tokenize,
    ) -> Result<Option<(&[String], Vec<Vec<u32>>, usize)>, PromptError> {
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
        Ok(Some((labels, answers, shared)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{TokenizeError, testing::Letters};
    use super::*;
    use crate::prompt::Template;
    use crate::prompt::testing::rating;
    use proptest::prelude::*;

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
        Task::new(Template { labels, ..rating() }).unwrap()
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
    fn labels_are_told_apart_by_their_whole_sequences() {
        let tags = task(&["romance", "sci-fi", "science", "sci"]);
        let found = tags.label_sequences(&Letters { bos: true }).unwrap().unwrap();
        assert_eq!(found.shared, letters(" "));
        let end = |text: &str| [letters(text), vec![0]].concat();
        assert_eq!(found.sequences, ["romance", "sci-fi", "science", "sci"].map(end));
        let branch = |prefix: &str, tokens: Vec<u32>| Branch { prefix: letters(prefix), tokens };
        let after_sci = [vec![0], letters("-e")].concat();
        assert_eq!(found.branches(), [branch("", letters("rs")), branch("sci", after_sci)]);
        let probabilities = found.probabilities(&[vec![0.25, 0.75], vec![0.125, 0.5, 0.375]]);
        assert_eq!(probabilities, [0.25, 0.375, 0.28125, 0.09375]);
        // One branch: the fast path's ids.
        let digits = task(&["1", "2", "3"]);
        let found = digits.label_sequences(&Letters { bos: true }).unwrap().unwrap();
        assert_eq!(found.branches(), [branch("", letters("123"))]);
        assert_eq!(found.probabilities(&[vec![0.5, 0.25, 0.25]]), [0.5, 0.25, 0.25]);
        assert_eq!(found.probabilities(&[vec![0.5]]), [0.5, 0.0, 0.0]);
        let same = task(&["x", "y"]).label_sequences(&Words);
        assert!(matches!(same, Err(PromptError::LabelsSame { .. })));
    }

    proptest! {
        /// Whatever the labels, each is told apart, and uniform branches give a distribution.
        #[test]
        fn branches_decide(labels in proptest::collection::btree_set("[ab]{1,5}", 2..9)) {
            let names: Vec<&str> = labels.iter().map(String::as_str).collect();
            let found = task(&names).label_sequences(&Letters { bos: false }).unwrap().unwrap();
            let branches = found.branches();
            prop_assert!(branches[0].prefix.is_empty());
            let at: Vec<Vec<f32>> = branches
                .iter()
                .map(|b| vec![1.0 / b.tokens.len() as f32; b.tokens.len()])
                .collect();
            let sum: f32 = found.probabilities(&at).iter().sum();
            prop_assert!((sum - 1.0).abs() < 1e-5, "{}", sum);
            // The path of one label alone: all of the mass is on it.
            for (index, target) in found.sequences.iter().enumerate() {
                let way = |b: &Branch| {
                    let next = target.strip_prefix(b.prefix.as_slice()).and_then(<[u32]>::first);
                    b.tokens.iter().map(|t| if next == Some(t) { 1.0 } else { 0.0 }).collect()
                };
                let at: Vec<Vec<f32>> = branches.iter().map(way).collect();
                let mut only = vec![0.0; names.len()];
                only[index] = 1.0;
                prop_assert_eq!(found.probabilities(&at), only);
            }
        }
    }

    #[test]
    fn a_task_without_labels_has_none() {
        let task = Task::new(Template { labels: None, ..rating() }).unwrap();
        assert_eq!(task.label_tokens(&Words).unwrap(), None);
        assert_eq!(task.label_sequences(&Words).unwrap(), None);
    }
}
