//! `launcher prepare`: checks a file; or reads data of any kind, says what it holds, and writes it in
//! another kind.
//!
//! Owns: the command. Must never know: how a kind is read (`trainer::data` does). In memory are the
//! index of the users, one user, and counts; the corpora that are no files of users are held whole.
//! Start reading at [`describe`]: `source.rs` opens, `choose.rs` takes users, `statistics.rs` counts,
//! `output.rs` writes. Event logs, which have no users of this kind, go through `events.rs`.

mod check;
mod choose;
mod events;
mod events_table;
mod layout;
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
use trainer::data::{DataError, LampTask, Role, UserRecord};

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
    if let Some((kind, path)) = from.split_once('=').filter(|(kind, _)| events::is_kind(kind)) {
        return events::describe(kind, Path::new(path), args);
    }
    if args.format.is_some() {
        return Err(anyhow::anyhow!("--format is for event logs"))
            .input("write --from events=PATH");
    }
    let task =
        args.task.as_deref().map(LampTask::parse).transpose().input("--task names one task")?;
    let measure = Measure::open(args.base.as_deref())?;
    let output = Output::begin(args)?;
    let opened = Opened::open(from, task, args)?;
    let problems = opened.problems();
    if let (true, Some(first)) = (args.strict, problems.listed.first()) {
        return Err(anyhow::anyhow!("{first}")).input("without --strict bad records are skipped");
    }
    problems.listed.iter().for_each(|problem| say(problem));
    let unlisted = problems.count - problems.listed.len() as u64;
    if unlisted > 0 {
        say(&format!("and {unlisted} more"));
    }
    opened.unusable().iter().for_each(|problem| say(&format!("item left out: {problem}")));
    let choice = Choice::of(&opened, args)?;
    let mut counter = Counter::new(&opened, &measure);
    for role in [Role::Personal, Role::Population] {
        counter.role(role, &choice, output.as_ref())?;
    }
    let statistics = counter.statistics;
    let mut left_out = opened.left_out();
    let taken = usize::try_from(statistics.users())?;
    let not_taken = if opened.has_population() {
        opened.candidates().len() - usize::try_from(statistics.personal.users)?
    } else {
        opened.candidates().len() - taken
    };
    if not_taken > 0 {
        left_out
            .insert("users who do not qualify or are not asked for".to_owned(), not_taken as u64);
    }
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

fn write_json(file: &Path, document: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(document)?;
    text.push(b'\n');
    trainer::store::write_atomic(file, &text)
        .map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))
        .input("--stats names a file in a folder that exists")
}

/// Counts users while they go by, and says so now and then.
struct Counter<'a> {
    opened: &'a Opened,
    measure: &'a Measure,
    statistics: Statistics,
    last_line: Instant,
}

impl<'a> Counter<'a> {
    fn new(opened: &'a Opened, measure: &'a Measure) -> Self {
        let statistics = Statistics::new(opened.task);
        Self { opened, measure, statistics, last_line: Instant::now() }
    }

    /// Reads the users of a role once, into the output if there is one.
    fn role(&mut self, role: Role, choice: &Choice, output: Option<&Output>) -> anyhow::Result<()> {
        let mut failed = None;
        let task = self.opened.task;
        let users = self.opened.users(role, choice).map_while(|user| {
            failed = user.as_ref().ok().and_then(|user| self.count(role, user).err());
            failed.is_none().then_some(user)
        });
        match output {
            Some(output) => output.write(role, task, Box::new(users))?,
            None => drain(users).input("the data changed while they were read")?,
        }
        failed.map_or(Ok(()), Err)
    }

    fn count(&mut self, role: Role, user: &UserRecord) -> anyhow::Result<()> {
        if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            say(&format!("{} users so far", self.statistics.users()));
        }
        self.statistics.add(role, user, self.measure)
    }
}

fn drain(mut users: impl Iterator<Item = Result<UserRecord, DataError>>) -> Result<(), DataError> {
    users.try_for_each(|user| user.map(drop))
}
