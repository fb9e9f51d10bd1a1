//! `launcher prepare --check`: every bad record of a Myriad JSONL file, by line and user.

use crate::cli::PrepareArgs;
use crate::exit::{Exit, Fails};
use crate::watch::{print, say};
use std::path::Path;
use trainer::data::jsonl::Limits;
use trainer::data::{Role, check};

pub(super) fn run(file: &Path, args: &PrepareArgs) -> anyhow::Result<Exit> {
    let role = if args.population { Role::Population } else { Role::Personal };
    let report =
        check(file, Limits::new(role)).input("docs/guides/data.md describes the format")?;
    for problem in &report.problems {
        say(&problem.to_string());
    }
    let unlisted = report.num_problems - report.problems.len() as u64;
    if unlisted > 0 {
        say(&format!("and {unlisted} more"));
    }
    print(&format!(
        "{}: {} users, {} history items, {} queries, {} problems",
        file.display(),
        report.users,
        report.items,
        report.queries,
        report.num_problems
    ));
    Ok(match report.num_problems {
        0 => Exit::Done,
        _ if args.strict => Exit::Input,
        _ => Exit::Quarantined,
    })
}
