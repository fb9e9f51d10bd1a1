//! How good predictions are, per query and per user, and whether two arms differ.
//!
//! Owns: metrics by LaMP's rules ([`Metric`]), prediction records and LaMP's file form
//! ([`predictions`]), paired statistics ([`Bootstrap`], [`sign_test`]), comparisons of arms
//! ([`compare()`]) and their table ([`table`]). Must never know: models, prompts, ranks.
//! All sums run over queries sorted by user and query id: results do not depend on record order.
//! Start reading at [`compare()`].

mod arms;
mod bootstrap;
mod compare;
mod metric;
pub mod predictions;
pub mod table;
mod value;

pub use arms::{Arm, UserValue, per_user};
pub use bootstrap::{Bootstrap, Interval, sign_test};
pub use compare::{Comparison, Difference, Estimate, Options, Row, UserCounts, compare};
pub use metric::{Metric, accuracy, macro_f1, mae, rmse};
pub use predictions::Prediction;
pub use value::estimate;

use crate::ids::UserId;
use std::io;

/// An error of this module.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// Nothing to take a mean of.
    #[error("{what}: there are no labelled predictions")]
    Empty {
        /// What was asked for.
        what: String,
    },
    /// A metric over labels without labels.
    #[error("the metric {metric} needs the task's labels")]
    NoLabels {
        /// The metric.
        metric: &'static str,
    },
    /// A gold rating that is not a finite number.
    #[error("the gold answer {gold:?} is not a number")]
    GoldNotANumber {
        /// The answer.
        gold: String,
    },
    /// Two predictions of one arm for one query.
    #[error("arm `{arm}`: two predictions for query {query:?} of user {user}")]
    Duplicate {
        /// The arm.
        arm: String,
        /// The user.
        user: UserId,
        /// The query.
        query: String,
    },
    /// A labelled query that not every arm answers.
    #[error("query {query:?} of user {user} is answered by arm `{present}`, not by arm `{absent}`")]
    Unpaired {
        /// An arm with the query.
        present: String,
        /// An arm without it.
        absent: String,
        /// The user.
        user: UserId,
        /// The query.
        query: String,
    },
    /// Two arms with different golds for one query.
    #[error(
        "query {query:?} of user {user}: the gold answers of arms `{first}` and `{second}` differ"
    )]
    GoldDiffers {
        /// One arm.
        first: String,
        /// The other.
        second: String,
        /// The user.
        user: UserId,
        /// The query.
        query: String,
    },
    /// A prediction that lacks, or has impossible, numbers that a metric needs.
    #[error("arm `{arm}`, query {query:?} of user {user}: {what}")]
    Numbers {
        /// The arm.
        arm: String,
        /// The user.
        user: UserId,
        /// The query.
        query: String,
        /// What is wrong.
        what: String,
    },
    /// An arm's name twice, or a reference that is no arm.
    #[error("arm `{name}` {what}")]
    Arm {
        /// The name.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A statistic's parameter out of range.
    #[error("bootstrap: {0}")]
    Bootstrap(&'static str),
    /// A predictions file that is not in LaMP's form.
    #[error("not a LaMP predictions file: {0}")]
    Lamp(String),
    /// An id twice in a LaMP file, which joins by id alone.
    #[error("id {id:?} is there twice; LaMP's files join by id alone")]
    LampDuplicate {
        /// The id.
        id: String,
    },
    /// The system refused a read or a write.
    #[error("predictions: {0}")]
    Io(#[from] io::Error),
}
