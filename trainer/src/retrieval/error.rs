//! What can go wrong when items are retrieved.

use super::Retriever;
use crate::data::DataError;

/// An error of this module.
#[derive(Debug, thiserror::Error)]
pub enum RetrievalError {
    /// More items are to be seen than the history has.
    #[error("{visible} items are to be seen, the history has {items}")]
    Visible {
        /// Items to be seen.
        visible: usize,
        /// Items there are.
        items: usize,
    },
    /// A number that is neither a count nor a share.
    #[error(
        "{got} is neither a whole number of items, at most {}, nor a share between 0 and 1",
        super::MOST_ITEMS
    )]
    Amount {
        /// The number.
        got: f64,
    },
    /// A retriever over other users was given none.
    #[error("{retriever:?} draws from other users, and none were given")]
    NoOthers {
        /// The retriever.
        retriever: Retriever,
    },
    /// [`Retriever::RanBm25`] over a pool of no items, or of too many.
    #[error(
        "{retriever:?} needs the number of items to pool, from 1 to {}; it is {got}",
        super::MOST_ITEMS
    )]
    PoolSize {
        /// The retriever.
        retriever: Retriever,
        /// The number.
        got: usize,
    },
    /// Outputs of other items are asked for in a task that has no output field.
    #[error("inputs and outputs cannot be mixed: the task names no output field")]
    NoOutputField,
    /// The item that lends its output has none.
    #[error("history item {item:?} has no field {field:?} to lend")]
    NoOutput {
        /// The item's id.
        item: String,
        /// The output field.
        field: String,
    },
    /// A pooled user's history is not as long as was said when the pool was made.
    #[error("pooled user number {user} has {got} history items, {expected} were announced")]
    PoolChanged {
        /// The user's number in the pool.
        user: usize,
        /// Items announced.
        expected: usize,
        /// Items read.
        got: usize,
    },
    /// A pooled user could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
}
