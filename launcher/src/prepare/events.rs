//! `launcher prepare --from` of an event log: what it holds, and its canonical form.
//!
//! Owns: which kinds there are, the keys of `--format`. Must never know: how a log is read or counted
//! (`trainer::data::events` does). The log is held whole.

use super::events_table;
use super::output::{File, Part};
use super::write_json;
use crate::cli::PrepareArgs;
use crate::exit::{Exit, Fails};
use crate::watch::{print, say};
use anyhow::Context;
use serde::Serialize;
use std::path::{Path, PathBuf};
use trainer::data::OnBad;
use trainer::data::events::{self, Format, Kind, PRESETS, RawLog, Split, Statistics, Tally};

const HINT: &str = "docs/guides/events.md describes event logs";

/// The kinds beside the presets: with a format of one's own, and the canonical form.
const OWN: &str = "events";
const CANONICAL: [(&str, Kind, &str); 2] =
    [("events-csv", Kind::Csv, "events.csv"), ("events-jsonl", Kind::Jsonl, "events.jsonl")];

/// What `--stats` writes.
#[derive(Serialize)]
pub(super) struct Document<'a> {
    format: &'static str,
    pub(super) source: String,
    log: &'a Format,
    split: &'a Split,
    pub(super) statistics: Statistics,
    pub(super) left_out: Tally,
}

/// Whether a kind is an event log's.
pub(super) fn is_kind(kind: &str) -> bool {
    kind == OWN || PRESETS.contains(&kind) || canonical(kind).is_some()
}

fn canonical(kind: &str) -> Option<(Kind, &'static str)> {
    let found = CANONICAL.iter().find(|(name, ..)| *name == kind);
    found.map(|(_, kind, file)| (*kind, *file))
}

/// Reads, counts, writes.
pub(super) fn describe(kind: &str, path: &Path, args: &PrepareArgs) -> anyhow::Result<Exit> {
    refuse_others(args)?;
    let (format, split) = options(kind, path, args)?;
    let output = output(args)?;
    let paths = [path.to_owned()];
    let on_bad = if args.strict { OnBad::Stop } else { OnBad::Quarantine };
    let (log, mut tally) = events::open(&paths, &format, on_bad).input(HINT)?;
    tally.problems.iter().for_each(|problem| say(&problem.to_string()));
    let unlisted = tally.bad_rows - tally.problems.len() as u64;
    if unlisted > 0 {
        say(&format!("and {unlisted} more"));
    }
    let data = log.encode(&format, &split, None, &mut tally).input(HINT)?;
    let statistics = events::statistics(&data, usize::try_from(args.window)?);
    let bad_rows = tally.bad_rows;
    let document = Document {
        format: "myriad-event-statistics/1",
        source: format!("{kind}={}", path.display()),
        log: &format,
        split: &split,
        statistics,
        left_out: tally,
    };
    if let Some(file) = &args.stats {
        write_json(file, &document)?;
    }
    print(&events_table::text(&document));
    if let Some((kind, name, part)) = output {
        print(&format!("written to {}", write(&log, kind, name, part)?.display()));
    }
    Ok(if bad_rows == 0 { Exit::Done } else { Exit::Quarantined })
}

/// Options that mean nothing here are no silent mistakes.
fn refuse_others(args: &PrepareArgs) -> anyhow::Result<()> {
    let given = [
        ("--task", args.task.is_some()),
        ("--answers", args.answers.is_some()),
        ("--profiles", args.profiles.is_some()),
        ("--population-file", args.population_file.is_some()),
        ("--users", args.users.is_some()),
        ("--split-population", args.split_population.is_some()),
        ("--max-history", args.max_history.is_some()),
        ("--min-queries", args.min_queries.is_some()),
        ("--max-queries", args.max_queries.is_some()),
        ("--base", args.base.is_some()),
        ("--ids-with-user", args.ids_with_user),
    ];
    match given.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((option, _)) => Err(anyhow::anyhow!("{option} is not for event logs"))
            .input("an event log is parted by the keys of --format"),
    }
}

/// The format and the split: the kind's, under the keys of `--format`.
fn options(kind: &str, path: &Path, args: &PrepareArgs) -> anyhow::Result<(Format, Split)> {
    let mut keys = match &args.format {
        None if kind == OWN => {
            let error = anyhow::anyhow!("the columns of {} are not known", path.display());
            return Err(error).input("--format names a file with the keys `columns` and `time`");
        }
        None => toml::Table::new(),
        Some(file) => keys(file)?,
    };
    let in_file = "--format names a TOML file with keys of an event log";
    let split = match keys.remove("split") {
        Some(table) => table.try_into::<Split>().input(in_file)?,
        None => Split::default(),
    };
    split.check().input(in_file)?;
    let preset = match keys.remove("preset") {
        Some(toml::Value::String(name)) if kind == OWN => Some(name),
        Some(_) => {
            let error = anyhow::anyhow!("`preset` is a name, and for the kind `events` alone");
            return Err(error).input(in_file);
        }
        None => PRESETS.contains(&kind).then(|| kind.to_owned()),
    };
    let format = match canonical(kind) {
        Some((kind, _)) => {
            let own = Format::canonical_of(kind, path).input(HINT)?;
            let mut table = toml::Table::try_from(own)?;
            table.extend(keys);
            Format::resolve(None, &table)
        }
        None => Format::resolve(preset.as_deref(), &keys),
    };
    Ok((format.input(in_file)?, split))
}

fn keys(file: &Path) -> anyhow::Result<toml::Table> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{}", file.display()));
    let parsed = text.input("--format names a TOML file")?.parse::<toml::Table>();
    parsed.with_context(|| format!("{}", file.display())).input("--format names a TOML file")
}

fn output(args: &PrepareArgs) -> anyhow::Result<Option<(Kind, &'static str, Part)>> {
    let (Some(to), Some(out)) = (&args.to, &args.out) else { return Ok(None) };
    let unknown = || anyhow::anyhow!("cannot write the kind {to:?} from an event log");
    let (kind, name) =
        canonical(to).ok_or_else(unknown).input("kinds to write: events-csv, events-jsonl")?;
    Ok(Some((kind, name, Part::begin(out)?)))
}

fn write(log: &RawLog, kind: Kind, name: &str, part: Part) -> anyhow::Result<PathBuf> {
    let mut file = File::begin(&part.folder.join(name))?;
    events::write(log, kind, &mut file.0)?;
    file.commit()?;
    part.commit()
}
