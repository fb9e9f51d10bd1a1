//! The files of LaMP and OPPU: tasks, questions, users, answers, profile texts.
//!
//! Owns: the one list of tasks ([`LampTask`]), what a question's text asks about ([`Payload`]), the
//! readers of both layouts, and writers of both ([`write_lamp`], [`write_oppu`]). Both layouts end in
//! the same records: history items keep the released fields; a query has its payload under the names
//! of those fields, the whole question as `input`, and its answer, if known, as `gold`.
//! Must never know: prompts, tokens. Start reading at [`LampTask`], then `join.rs`. The formats are
//! described for users in `docs/guides/data.md`.

mod date;
mod golds;
mod join;
mod oppu;
mod parse;
mod payload;
mod questions;
mod shape;
mod task;
mod write;

pub use payload::{NoMarker, Payload};
pub use task::{LampTask, TaskError};
pub use write::{LampFiles, OppuFiles, QuestionIds, WriteError, Written, write_lamp, write_oppu};

pub(super) use date::day as day_number;
pub(super) use join::Join;
pub(super) use oppu::{Files as UserFiles, index as index_oppu};
pub(super) use questions::{Files as QuestionFiles, index as index_questions};

#[cfg(test)]
#[path = "fixture_tests.rs"]
mod fixture_tests;
#[cfg(test)]
#[path = "hostile_tests.rs"]
mod hostile_tests;
#[cfg(test)]
#[path = "unusable_tests.rs"]
mod unusable_tests;
