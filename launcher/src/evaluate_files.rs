//! `launcher evaluate --predictions … --golds …`: the table of anybody's files in LaMP's form.

use crate::cli::EvaluateFiles;
use crate::exit::{Exit, Fails};
use crate::watch::{print, say};
use anyhow::{Context, anyhow};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use trainer::data::LampTask;
use trainer::eval::predictions::{LampFile, read_lamp};
use trainer::eval::questions::{self, Owners};
use trainer::eval::{Comparison, EvalError, Metric, Options, compare, csv, files, table, tasks};
use trainer::store::write_atomic;

const FORM: &str =
    "LaMP's form is {\"task\": …, \"golds\": [{\"id\": …, \"output\": …}, …]}, or the list alone";
const JOIN: &str = "LaMP's rule: the task's name must match and the sets of ids be equal";

pub(crate) fn run(predictions: &[String], args: &EvaluateFiles) -> anyhow::Result<Exit> {
    let stdout = Path::new("-");
    let [to_json, to_csv] = [&args.json, &args.csv].map(|path| path.as_deref() == Some(stdout));
    if to_json && to_csv {
        return Err(anyhow!("JSON and CSV cannot both go to standard output"))
            .input("give one of --json and --csv a file");
    }
    let golds = args.golds.as_deref().context("no golds")?;
    let golds = read(golds, read_lamp).input(FORM)?;
    let task = task(args, &golds)?;
    let metrics = metrics(args, task)?;
    let mut named: Vec<(String, LampFile)> = Vec::new();
    for given in predictions {
        let (name, path) = named_path(given);
        named.push((name, read(path, read_lamp).input(FORM)?));
    }
    let owners = match &args.questions {
        None => None,
        Some(path) => Some(
            read(path, questions::read)
                .input("LaMP's questions have `id`, OPPU's users `user_id` and `query`")?,
        ),
    };
    let comparison = measure(task, &golds, &named, owners.as_ref(), metrics)?;
    if let Some(path) = &args.json {
        write(path, &(serde_json::to_string_pretty(&comparison)? + "\n"))?;
    }
    if let Some(path) = &args.csv {
        write(path, &csv::render(&comparison))?;
    }
    if !to_json && !to_csv {
        print(table::render(&comparison).trim_end());
    }
    notes(&comparison, owners.is_some());
    Ok(Exit::Done)
}

/// `NAME=FILE`, or a file whose name without extension is the name.
fn named_path(given: &str) -> (String, &Path) {
    match given.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() && !name.contains('/') => {
            (name.to_owned(), Path::new(path))
        }
        _ => {
            let path = Path::new(given);
            let stem = path.file_stem().unwrap_or(path.as_os_str());
            (stem.to_string_lossy().into_owned(), path)
        }
    }
}

fn read<T>(path: &Path, form: fn(&mut dyn Read) -> Result<T, EvalError>) -> anyhow::Result<T> {
    let whole = || -> anyhow::Result<T> { Ok(form(&mut BufReader::new(File::open(path)?))?) };
    whole().with_context(|| path.display().to_string())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if path == Path::new("-") {
        print(text.trim_end());
        return Ok(());
    }
    write_atomic(path, text.as_bytes())
        .with_context(|| path.display().to_string())
        .input("give a file in a folder that is there and may be written")
}

fn task(args: &EvaluateFiles, golds: &LampFile) -> anyhow::Result<LampTask> {
    match (&args.task, &golds.task) {
        (Some(name), _) => tasks::find(name).input("--task names it"),
        (None, Some(name)) => tasks::find(name).input("--task says which task the golds are of"),
        (None, None) => Err(anyhow!("the golds do not name their task")).input("add --task"),
    }
}

fn metrics(args: &EvaluateFiles, task: LampTask) -> anyhow::Result<Vec<Metric>> {
    let asked = args.metrics.iter().map(|key| Metric::from_key(key.trim()));
    let mut metrics = asked.collect::<Result<Vec<_>, _>>().input("--metrics lists their names")?;
    if metrics.is_empty() {
        metrics = tasks::metrics(task).to_vec();
    }
    if args.compat {
        let theirs: Vec<Metric> = metrics.iter().filter_map(|metric| metric.compat()).collect();
        metrics.extend(theirs);
    }
    let mut distinct: Vec<Metric> = Vec::new();
    for metric in metrics {
        if !distinct.contains(&metric) {
            distinct.push(metric);
        }
    }
    Ok(distinct)
}

fn measure(
    task: LampTask,
    golds: &LampFile,
    named: &[(String, LampFile)],
    owners: Option<&Owners>,
    metrics: Vec<Metric>,
) -> anyhow::Result<Comparison> {
    let arms = files::arms(task, golds, named, owners).input(JOIN)?;
    let options = Options {
        metrics,
        labels: task.labels().iter().map(|label| (*label).to_owned()).collect(),
        references: named.iter().map(|(name, _)| name.clone()).collect(),
        history: owners.map(|owners| owners.history.clone()).unwrap_or_default(),
        ..Options::default()
    };
    compare(&arms, &options)
        .input("the metrics must fit the golds; every arm needs a name of its own")
}

/// What a reader of the table should know.
fn notes(comparison: &Comparison, users_known: bool) {
    if !users_known {
        say("without --questions every query counts as a user of its own");
    }
    let rouge = |metric| matches!(metric, Metric::Rouge1 | Metric::RougeL);
    if comparison.rows.iter().any(|row| rouge(row.metric)) {
        say(
            "ROUGE is the plain mean; LaMP's script prints the median of 1000 unseeded resamples: the fourth digit differs",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_prediction_files() {
        for (given, name, path) in [
            ("base=a/b.json", "base", "a/b.json"),
            ("a/b.tar.json", "b.tar", "a/b.tar.json"),
            ("x=y=z.json", "x", "y=z.json"),
            ("a/x=y.json", "x=y", "a/x=y.json"),
            ("=x.json", "=x", "=x.json"),
            ("x=", "x=", "x="),
        ] {
            assert_eq!(named_path(given), (name.to_owned(), Path::new(path)), "{given}");
        }
    }
}
