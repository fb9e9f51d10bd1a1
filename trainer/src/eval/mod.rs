//! How good predictions are, per query and per user, and whether two arms differ.
//!
//! Owns: metrics by LaMP's rules and the user-profile study's variants ([`Metric`]), prediction records and LaMP's
//! file form ([`predictions`]), anybody's files as arms ([`files`], [`questions`], [`tasks`]), paired statistics
//! ([`Bootstrap`], [`sign_test`]), comparisons of arms ([`compare()`]: rows, rows by history size, who gains and loses,
//! leak check), their [`table`] and [`csv`],
//! guesses of the next intent ([`intents`]). Must never know: models, prompts, ranks.
//! All sums run over queries sorted by user and query id: results do not depend on record order.
//! Start reading at [`compare()`].

mod arms;
mod bootstrap;
mod compare;
pub mod csv;
mod error;
pub mod files;
mod grid;
mod history;
pub mod intents;
mod leak;
mod metric;
mod movers;
mod panel;
pub mod predictions;
pub mod questions;
mod rouge;
pub mod table;
pub mod tasks;
mod value;

pub use arms::{Arm, UserValue, per_user};
pub use bootstrap::{Bootstrap, Interval, sign_test};
pub use compare::{Comparison, Difference, Estimate, Options, Row, UserCounts, compare};
pub use error::{EvalError, IdsDiffer};
pub use grid::Grid;
pub use history::HistoryGroup;
pub use leak::{Finding, LeakArms, LeakCheck, leak_check};
pub use metric::Metric;
pub use movers::{Movers, UserChange};
pub use predictions::Prediction;
pub use value::estimate;
