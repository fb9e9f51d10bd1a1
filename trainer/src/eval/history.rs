//! Rows by the size of the users' histories: does a method help those with much, or those with little?

use super::EvalError;
use super::arms::Sorted;
use super::compare::{Options, Row, rows};
use serde::{Deserialize, Serialize};

/// A third of the users, by history size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryGroup {
    /// `small`, `medium` or `large`.
    pub name: String,
    /// Fewest history items of its users.
    pub from: usize,
    /// Most history items of its users.
    pub to: usize,
    /// The rows over its users alone, with intervals of their own.
    pub rows: Vec<Row>,
}

/// The users in thirds; users of one size stay together, so thirds may be uneven, and an empty one is left out.
///
/// Empty if sizes are not known, or if there would be one group.
///
/// # Errors
/// A user without a size, and what the metrics refuse.
pub(super) fn groups(
    sorted: &[Sorted<'_>],
    options: &Options,
) -> Result<Vec<HistoryGroup>, EvalError> {
    let (Some(first), false) = (sorted.first(), options.history.is_empty()) else {
        return Ok(Vec::new());
    };
    let size = |user| {
        let known = options.history.get(user).copied();
        known.ok_or_else(|| EvalError::NoHistory { user: user.clone() })
    };
    let of_users = first.users().map(size).collect::<Result<Vec<_>, _>>()?;
    let mut sizes = of_users.clone();
    sizes.sort_unstable();
    // The sizes of the last users of the first and of the second third.
    let cut = |third: usize| sizes[(third * sizes.len()).div_ceil(3) - 1];
    let third = |size: usize| usize::from(size > cut(1)) + usize::from(size > cut(2));
    if third(sizes[0]) == third(sizes[sizes.len() - 1]) {
        return Ok(Vec::new());
    }
    let mut groups = Vec::new();
    for (number, name) in ["small", "medium", "large"].into_iter().enumerate() {
        let inside: Vec<bool> = of_users.iter().map(|&s| third(s) == number).collect();
        let mut own = sizes.iter().copied().filter(|&s| third(s) == number);
        let Some(from) = own.next() else { continue };
        let to = own.next_back().unwrap_or(from);
        let arms: Vec<Sorted<'_>> = sorted.iter().map(|arm| arm.only(&inside)).collect();
        groups.push(HistoryGroup {
            name: name.to_owned(),
            from,
            to,
            rows: rows(&arms, options)?.0,
        });
    }
    Ok(groups)
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
