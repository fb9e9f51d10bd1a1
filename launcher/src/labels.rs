//! The labels of a task as the network is asked for them.

use crate::exit::Fails;
use anyhow::Context;
use trainer::model::tokenizer::Tokenizer;
use trainer::prompt::{Branch, LabelSequences, Task};

/// The task's labels and where they part.
#[derive(Debug)]
pub(crate) struct Labels {
    pub(crate) names: Vec<String>,
    pub(crate) sequences: LabelSequences,
    pub(crate) branches: Vec<Branch>,
}

impl Labels {
    pub(crate) fn new(task: &Task, tokenizer: &Tokenizer) -> anyhow::Result<Self> {
        let hint = "set predict.mode = \"generate\" for a task without labels";
        let sequences = task.label_sequences(tokenizer).input(hint)?;
        let names = task.labels().map(<[String]>::to_vec);
        let (sequences, names) = sequences
            .zip(names)
            .context("predict.mode is \"label\", but the template has no labels")
            .input(hint)?;
        let branches = sequences.branches();
        Ok(Self { names, sequences, branches })
    }

    /// Tokens read after each branch's prompt: what all labels share and what leads to the branch.
    fn behind(&self) -> impl Iterator<Item = usize> {
        self.branches.iter().map(|branch| self.sequences.shared.len() + branch.prefix.len())
    }

    /// Rows of a question's branches besides its own.
    pub(crate) fn rows(&self) -> usize {
        self.behind().map(|tokens| tokens + 1).sum()
    }

    /// Positions that a prompt must leave free for the longest branch; as many as a label of one token has, at least.
    pub(crate) fn reserve(&self) -> usize {
        self.behind().max().unwrap_or(0).max(1)
    }
}
