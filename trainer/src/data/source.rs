//! Where a run's users come from.

use super::lamp::LampTask;
use super::{Ml100k, Selection};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the users come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// Myriad JSONL files.
    Jsonl {
        /// Users who get adapters.
        personal: PathBuf,
        /// Other users, for the population stage.
        population: Option<PathBuf>,
        /// Longest line in bytes.
        max_line_bytes: usize,
        /// Which users and items.
        #[serde(default)]
        selection: Selection,
    },
    /// MovieLens 100k as the `recbole` package carries it.
    Ml100k {
        /// The folder; [`super::ml100k::read`] says which are tried.
        path: PathBuf,
        /// Which users and items.
        selection: Ml100k,
    },
    /// LaMP files: questions with the user's history, answers beside them.
    Lamp {
        /// The task; the questions' text must have its form.
        task: LampTask,
        /// Questions of users who get adapters.
        personal: LampSet,
        /// Questions of other users, all answered.
        population: Option<LampSet>,
        /// Which users and items.
        #[serde(default)]
        selection: Selection,
    },
    /// OPPU files: users with history and queries.
    Oppu {
        /// The task; the queries' text must have its form.
        task: LampTask,
        /// Users who get adapters: `user_top_100_history.json`.
        personal: PathBuf,
        /// Their answers, which override those in the users' file: `user_top_100_history_label.json`.
        labels: Option<PathBuf>,
        /// Their profile texts: `profile_user_100.json`.
        profiles: Option<PathBuf>,
        /// Other users: `user_others.json`.
        population: Option<PathBuf>,
        /// Their profile texts: `profile_user_others.json`.
        population_profiles: Option<PathBuf>,
        /// Which users and items.
        #[serde(default)]
        selection: Selection,
    },
}

/// The LaMP files of one set of users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LampSet {
    /// `dev_questions.json` and the like; an array or one question a line.
    pub questions: PathBuf,
    /// `dev_outputs.json`; without it answers are `output` of the questions, or unknown.
    pub outputs: Option<PathBuf>,
    /// Profile texts by user id, as OPPU's are written.
    pub profiles: Option<PathBuf>,
}

/// What to do with a bad record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBad {
    /// The first one ends the load with its error.
    Stop,
    /// Skip it and list it in [`super::Index::quarantined`]; of a LaMP or OPPU record an unusable history item alone,
    /// listed in [`super::Index::unusable`].
    Quarantine,
}
