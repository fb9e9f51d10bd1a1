//! What evaluation refuses.

use super::Metric;
use crate::ids::UserId;
use std::{fmt, io};

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
    /// Scores, outcomes or sums of intents that do not fit.
    #[error("intents: {0}")]
    Intent(String),
    /// The system refused a read or a write.
    #[error("predictions: {0}")]
    Io(#[from] io::Error),
    /// A metric that there is not.
    #[error("no metric is called `{name}`; there are {}", metric_keys())]
    UnknownMetric {
        /// The name.
        name: String,
    },
    /// A task that there is not, or a name that several have.
    #[error("task `{name}` {what}; the tasks are {}", super::tasks::names())]
    Task {
        /// The name.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A file of another task.
    #[error("{file} are of task `{found}`, not of {expected}")]
    TaskDiffers {
        /// Whose.
        file: String,
        /// The task it names.
        found: String,
        /// The task asked for.
        expected: &'static str,
    },
    /// The ids of predictions and golds are not the same set.
    #[error("{0}")]
    Ids(Box<IdsDiffer>),
    /// A user without a history size, where others have one.
    #[error("no history size is known for user {user}")]
    NoHistory {
        /// The user.
        user: UserId,
    },
    /// A questions file that is not in LaMP's or OPPU's form.
    #[error("not a LaMP or OPPU questions file: {0}")]
    Questions(String),
    /// A gold whose question is not there.
    #[error("no question has the id {id:?} of the golds ({count} of {of} golds have none)")]
    NoQuestion {
        /// The first such id.
        id: String,
        /// How many there are.
        count: usize,
        /// Of how many.
        of: usize,
    },
}

/// How two sets of ids differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdsDiffer {
    /// Whose predictions.
    pub arm: String,
    /// Golds without a prediction: the first 20 in the golds' order, and how many there are.
    pub missing: (Vec<String>, usize),
    /// Predictions without a gold: the first 20 in the predictions' order, and how many there are.
    pub extra: (Vec<String>, usize),
}

impl fmt::Display for IdsDiffer {
    /// One line a side; ids quoted and escaped, so that they are safe in a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the ids of predictions `{}` and golds differ", self.arm.escape_debug())?;
        for ((ids, count), what) in [
            (&self.missing, "golds without a prediction"),
            (&self.extra, "predictions without a gold"),
        ] {
            if *count > 0 {
                let shown: Vec<String> = ids.iter().map(|id| shown(id)).collect();
                let more = if *count > ids.len() { ", …" } else { "" };
                write!(f, "\n  {count} {what}: {}{more}", shown.join(", "))?;
            }
        }
        Ok(())
    }
}

/// An id for a person: quoted, escaped, cut where it is very long.
fn shown(id: &str) -> String {
    const LONG: usize = 60;
    match id.char_indices().nth(LONG) {
        Some((cut, _)) => format!("{:?}…", &id[..cut]),
        None => format!("{id:?}"),
    }
}

fn metric_keys() -> String {
    Metric::ALL.map(Metric::key).join(", ")
}
