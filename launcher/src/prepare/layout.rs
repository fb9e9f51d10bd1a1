//! The kinds of files of users, and what their files are called.

use crate::exit::Fails;
use std::path::{Path, PathBuf};
use trainer::data::{LampTask, Role};

/// A kind that is read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Myriad's own.
    Jsonl,
    /// The LaMP benchmark's.
    Lamp,
    /// OPPU's.
    Oppu,
}

/// The files of one role. An empty name is a file that the kind does not have.
pub(super) struct Names {
    pub(super) users: &'static str,
    pub(super) answers: &'static str,
    pub(super) profiles: &'static str,
}

/// Files that are there.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) users: PathBuf,
    pub(super) answers: Option<PathBuf>,
    pub(super) profiles: Option<PathBuf>,
}

impl Kind {
    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "jsonl" => Some(Self::Jsonl),
            "lamp" => Some(Self::Lamp),
            "oppu" => Some(Self::Oppu),
            _ => None,
        }
    }

    /// The kind to write.
    pub(super) fn to_write(name: &str) -> anyhow::Result<Self> {
        let unknown = || anyhow::anyhow!("cannot write the kind {name:?}");
        Self::parse(name).ok_or_else(unknown).input("kinds to write: jsonl, lamp, oppu")
    }

    /// The names of the released files; those of LaMP's profile texts are ours, it has none.
    pub(super) fn names(self, role: Role, task: Option<LampTask>) -> Names {
        let (users, answers, profiles) = match (self, role) {
            (Self::Jsonl, Role::Personal) => ("personal.jsonl", "", ""),
            (Self::Jsonl, Role::Population) => ("population.jsonl", "", ""),
            (Self::Lamp, Role::Personal) => {
                ("dev_questions.json", "dev_outputs.json", "dev_profiles.json")
            }
            (Self::Lamp, Role::Population) => {
                ("train_questions.json", "train_outputs.json", "train_profiles.json")
            }
            // OPPU calls the users of this task so.
            (Self::Oppu, Role::Personal) if task == Some(LampTask::TweetParaphrase) => (
                "user_more_100_history.json",
                "user_more_100_history_label.json",
                "profile_user_100.json",
            ),
            (Self::Oppu, Role::Personal) => (
                "user_top_100_history.json",
                "user_top_100_history_label.json",
                "profile_user_100.json",
            ),
            (Self::Oppu, Role::Population) => ("user_others.json", "", "profile_user_others.json"),
        };
        Names { users, answers, profiles }
    }

    /// The files of a role in a folder that has them under the kind's names.
    pub(super) fn find(self, folder: &Path, role: Role, task: Option<LampTask>) -> Option<Files> {
        let names = self.names(role, task);
        let there =
            |name: &str| Some(folder.join(name)).filter(|f| !name.is_empty() && f.is_file());
        let (answers, profiles) = (there(names.answers), there(names.profiles));
        // LaMP has the training questions of one task as lines: `train_questions.jsonl`.
        let users = there(names.users).or_else(|| there(&format!("{}l", names.users)));
        Some(Files { users: users?, answers, profiles })
    }
}
