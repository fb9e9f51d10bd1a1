//! The validator behind `launcher prepare --check`: reads a whole file and names every bad record.

use super::jsonl::{Limits, Reader};
use super::{DataError, Problem};
use std::path::Path;

/// What a file holds and what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Good records.
    pub users: u64,
    /// History items of good records.
    pub items: u64,
    /// Queries of good records.
    pub queries: u64,
    /// Bad records found, listed or not.
    pub num_problems: u64,
    /// The first of them, at most [`Report::MAX_LISTED`], in file order.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Problems kept in full; a broken file of any size must not fill the memory.
    pub const MAX_LISTED: usize = 1000;
}

/// Reads a Myriad JSONL file to its end.
///
/// # Errors
/// Only the system's; bad records are in the report.
pub fn check(path: &Path, limits: Limits) -> Result<Report, DataError> {
    let mut report = Report::default();
    for record in Reader::open(path, limits)? {
        match record {
            Ok(user) => {
                report.users += 1;
                report.items += user.history.len() as u64;
                report.queries += user.queries.len() as u64;
            }
            Err(DataError::Bad(problem)) => {
                report.num_problems += 1;
                if report.problems.len() < Report::MAX_LISTED {
                    report.problems.push(problem);
                }
            }
            Err(other) => return Err(other),
        }
    }
    Ok(report)
}
