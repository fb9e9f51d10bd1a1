//! What an event model is.

use super::super::spec::{BaseSpec, Family, Norm};
use super::super::{Error, Result};
use crate::data::events::{CONTEXTS, EVENT, Vocabulary};
use kernels::intent;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How the embeddings of an event's columns become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// Side by side: each column has its share of the width.
    Concat,
    /// Added: each column has the whole width.
    Sum,
}

/// What stands for a window of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum History {
    /// The hidden state of its last event.
    Last,
    /// The mean of all its hidden states.
    Mean,
}

/// How an intent's embedding meets a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Product {
    /// Element by element.
    Elementwise,
    /// The outer product, flattened.
    Outer,
}

/// How the numbers of the intention attention network become logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// They are the logits.
    Scalar,
    /// One more linear layer over all intents.
    Linear,
}

/// What an event model is; every width in elements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventSpec {
    /// Values of each column, in the order of [`Vocabulary::columns`].
    pub columns: Vec<u32>,
    /// Intents.
    pub intents: usize,
    /// Events of a window: learned positions.
    pub window: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// How columns become one vector.
    pub combine: Combine,
    /// What stands for a window.
    pub history: History,
    /// How an intent and a history meet.
    pub product: Product,
    /// Width inside the intention attention network.
    pub head_hidden: usize,
    /// What follows it.
    pub prediction: Prediction,
    /// Added to the variance in LayerNorm.
    pub norm_eps: f32,
}

impl EventSpec {
    /// Columns and intents of a vocabulary, everything else as `shape` has it.
    pub fn of(vocabulary: &Vocabulary, shape: &Self) -> Self {
        Self {
            columns: vocabulary.columns.iter().map(|c| c.size).collect(),
            intents: vocabulary.intents.len(),
            ..shape.clone()
        }
    }

    /// Rows of a column's embedding table: its values, and for the event one more that stands for a hidden one.
    pub fn table_rows(&self, column: usize) -> usize {
        self.columns[column] as usize + usize::from(column == EVENT)
    }

    /// Values an event can be reconstructed to.
    pub fn events(&self) -> usize {
        self.columns[EVENT] as usize
    }

    /// First element and width of a column's embedding in an event's vector.
    pub fn column_span(&self, column: usize) -> (usize, usize) {
        match self.combine {
            Combine::Sum => (0, self.hidden),
            Combine::Concat => {
                // What does not divide goes to the last column.
                let (n, width) = (self.columns.len(), self.hidden / self.columns.len());
                let start = column * width;
                (start, if column + 1 == n { self.hidden - start } else { width })
            }
        }
    }

    /// The intention attention network, as the kernels take it.
    pub fn intent_shape(&self) -> intent::Shape {
        let product = match self.product {
            Product::Elementwise => intent::Product::Elementwise,
            Product::Outer => intent::Product::Outer,
        };
        let (intents, dim, hidden) = (self.intents, self.hidden, self.head_hidden);
        intent::Shape { intents, dim, hidden, product }
    }

    /// The GPT-2 blocks, with the reconstruction layer in the place of a language model's head.
    pub fn trunk(&self) -> BaseSpec {
        BaseSpec {
            family: Family::Gpt2,
            vocab: self.events(),
            hidden: self.hidden,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.heads,
            head_dim: self.hidden / self.heads.max(1),
            intermediate: self.intermediate,
            norm: Norm::Layer,
            norm_eps: self.norm_eps,
            rope: None,
            learned_positions: Some(self.window),
            tied_head: true,
            attention_bias: true,
            mlp_bias: true,
            max_positions: self.window,
            bos: None,
            eos: Vec::new(),
        }
    }

    /// Checks every width.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let path = Path::new("event model");
        let wrong = |key: &str, reason: &str| Err(Error::setting(path, key, reason));
        if self.columns.len() < CONTEXTS || self.columns.contains(&0) {
            return wrong("columns", "time, weekday and event at least, none of them empty");
        }
        if self.columns.iter().any(|&c| c >= super::table::MASKED) {
            return wrong("columns", "too many values");
        }
        if self.intents == 0 || self.intents > 1 << 16 {
            return wrong("intents", "must be 1 to 65536");
        }
        if self.heads == 0 || !self.hidden.is_multiple_of(self.heads) {
            return wrong("hidden", "must be a multiple of heads");
        }
        if self.hidden < self.columns.len() {
            return wrong("hidden", "must have room for every column");
        }
        if self.head_hidden == 0 || self.head_hidden > 1 << 14 {
            return wrong("head_hidden", "must be 1 to 16384");
        }
        self.trunk().validate(path)
    }
}
