//! How good guesses of the next intent are: PITuning's metrics over targets and over people, long tails apart.
//!
//! Owns: a target's outcome ([`Outcome`]), the six metrics and their sums ([`IntentMetric`], [`Tally`]), which targets a
//! table looks at ([`Slice`], [`long_tail`]), confusions ([`Confusion`]), comparisons of arms with paired intervals
//! ([`compare`]), their [`table`]. Must never know: models, logs, ranks.
//!
//! # Rules
//! Intents are ranked by probability, equal ones by number. With `TP_n` targets of intent n answered n, `A_n` targets
//! answered n, `G_n` targets of n, `S` targets, all as scikit-learn's `precision_score` and `recall_score` with
//! `zero_division=0`:
//!
//! ```text
//! Prec_w = sum_n G_n/S * TP_n/A_n (0 where A_n = 0)      Rec_w = sum_n TP_n / S, the accuracy
//! Prec_m, Rec_m = the same quotients' plain mean over n with G_n + A_n > 0
//! NDCG@k = mean of 1/log2(1 + rank) where rank <= k, else 0
//! ```
//!
//! In a slice of certain intents, targets of others do not count, answers outside it are misses, and macro averages go over its
//! intents with `G_n > 0` (scikit-learn: `labels=` those): the same intents for every arm. "Over users" is the mean of a
//! metric of each person's targets, over the people who have targets in the slice.
//!
//! *Order*: sums are made per person and then over people by id; nothing depends on the order of records or on threads.
//! Start reading at [`compare`].

mod compare;
mod confusion;
mod grid;
mod outcome;
mod slice;
mod tally;

pub use compare::{
    IntentArm, IntentComparison, IntentDifference, IntentOptions, IntentRow, SliceRows,
    UserOutcomes, compare,
};
pub use confusion::Confusion;
pub use grid::{Detail, table};
pub use outcome::{Outcome, ranked};
pub use slice::{Classes, Slice, long_tail, popularity_slices};
pub use tally::{Averaged, IntentMetric, Tally};

#[cfg(test)]
mod truth_tests;
