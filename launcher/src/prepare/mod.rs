//! `launcher prepare`: checks a file; or reads data of any kind, says what it holds, and writes it in
//! another kind.
//!
//! Owns: the command. Must never know: how a kind is read (`trainer::data` does). In memory are the
//! index of the users, one user, and counts; the corpora that are no files of users are held whole.
//! Start reading at [`describe`]: `source.rs` opens, `choose.rs` takes users, `statistics.rs` counts,
//! `output.rs` writes.

mod check;
mod choose;
mod output;
mod source;
mod statistics;
mod table;

use crate::cli::PrepareArgs;
use crate::exit::{Exit, Fails};
use crate::watch::{print, say};
use choose::Choice;
use output::Output;
use serde::Serialize;
use source::Opened;
use statistics::{Measure, Statistics};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Seconds between lines while a large source is read.
const LINE_EVERY: Duration = Duration::from_secs(10);

pub(crate) fn run(args: &PrepareArgs) -> anyhow::Result<Exit> {
    match (&args.check, &args.from) {
        (Some(file), _) => check::run(file, args),
        (None, Some(from)) => describe(from, args),
        // The command line lets nobody through without one of them.
        (None, None) => Err(anyhow::anyhow!("nothing to prepare")).input("give --check or --from"),
    }
}

/// What `--stats` writes.
#[derive(Serialize)]
struct Document<'a> {
    format: &'static str,
    source: &'a str,
    unit: &'a str,
    statistics: &'a Statistics,
    left_out: &'a BTreeMap<String, u64>,
    bad_records: u64,
}

/// Reads, chooses, counts, writes.
fn describe(from: &str, args: &PrepareArgs) -> anyhow::Result<Exit> {
    // What cannot be written is refused before a large file is read.
    if let Some(file) = args.stats.as_deref().filter(|file| file.exists()) {
        let error = anyhow::anyhow!("{} exists already", file.display());
        return Err(error).input("nothing is overwritten: remove it or name another file");
    }
    let measure = Measure::open(args.base.as_deref())?;
    let mut output = Output::begin(args)?;
    let opened = Opened::open(from, args)?;
    let problems = opened.problems();
    if let (true, Some(first)) = (args.strict, problems.listed.first()) {
        return Err(anyhow::anyhow!("{first}")).input("without --strict bad records are skipped");
    }
    problems.listed.iter().for_each(|problem| say(problem));
    let unlisted = problems.count - problems.listed.len() as u64;
    if unlisted > 0 {
        say(&format!("and {unlisted} more"));
    }
    let choice = Choice::of(&opened, args)?;
    let mut statistics = Statistics::default();
    let mut ticker = Ticker::new();
    let mut left_out = opened.left_out();
    opened.each(&choice, &mut left_out, &mut |role, record| {
        statistics.add(role, &record, &measure)?;
        ticker.tick();
        output.as_mut().map_or(Ok(()), |out| out.put(role, &record))
    })?;
    if statistics.users() == 0 {
        let error = anyhow::anyhow!("{from} has no user that qualifies");
        return Err(error).input("--min-history and --min-queries say who qualifies");
    }
    let unit = measure.unit();
    let bad_records = problems.count;
    let document = Document {
        format: "myriad-data-statistics/1",
        source: from,
        unit,
        statistics: &statistics,
        left_out: &left_out,
        bad_records,
    };
    if let Some(file) = &args.stats {
        write_json(file, &document)?;
    }
    print(&table::text(&document));
    if let Some(output) = output {
        let folder = output.commit()?;
        print(&format!("written to {}", folder.display()));
    }
    Ok(if bad_records == 0 { Exit::Done } else { Exit::Quarantined })
}

fn write_json(file: &Path, document: &Document<'_>) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(document)?;
    text.push(b'\n');
    trainer::store::write_atomic(file, &text)
        .map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))
        .input("--stats names a file in a folder that exists")
}

/// A line now and then while users go by.
struct Ticker {
    users: u64,
    last: Instant,
}

impl Ticker {
    fn new() -> Self {
        Self { users: 0, last: Instant::now() }
    }

    fn tick(&mut self) {
        self.users += 1;
        if self.last.elapsed() >= LINE_EVERY {
            self.last = Instant::now();
            say(&format!("{} users so far", self.users));
        }
    }
}
