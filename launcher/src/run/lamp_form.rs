//! Predictions in LaMP's form, for the benchmark's leaderboard and other people's scripts.

use super::{Run, predict};
use anyhow::Context;
use std::collections::BTreeSet;
use trainer::config::Arm;
use trainer::data::LampTask;
use trainer::eval::Prediction;
use trainer::eval::predictions::{global_id, write_lamp};
use trainer::store::write_atomic;

/// Writes `predictions/<arm>.json` beside the arm's records, for data of a benchmark's task; rank 0 alone.
///
/// An entry's id is the query's; where two users have a query of one id, every id is `user/query`.
pub(super) fn write(run: &Run<'_>, arm: Arm) -> anyhow::Result<()> {
    let Some(task) = run.session.config.data.task.as_deref().filter(|_| run.leads()) else {
        return Ok(());
    };
    let (from, to) = (predict::file(run, arm), predict::file(run, arm).with_extension("json"));
    if to.exists() {
        return Ok(());
    }
    let text = std::fs::read_to_string(&from).with_context(|| format!("{}", from.display()))?;
    let predictions: Vec<Prediction> =
        text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let mut seen = BTreeSet::new();
    let unique = predictions.iter().all(|p| seen.insert(p.query.as_str()));
    let id = |p: &Prediction| if unique { p.query.clone() } else { global_id(&p.user, &p.query) };
    let mut bytes = Vec::new();
    let mut entries = predictions.iter().map(|p| (id(p), p.text.clone()));
    write_lamp(&mut bytes, LampTask::parse(task)?.lamp_id(), &mut entries)?;
    write_atomic(&to, &bytes).with_context(|| format!("{}", to.display()))
}
