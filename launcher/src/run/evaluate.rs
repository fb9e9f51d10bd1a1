//! The table of a run: all arms over the queries they all answer, with paired intervals.

use super::{Run, predict};
use crate::exit::Fails;
use crate::watch::print;
use anyhow::Context;
use std::collections::BTreeSet;
use trainer::config::Arm as ArmName;
use trainer::eval::table::render;
use trainer::eval::{Arm, Bootstrap, Options, Prediction, compare};
use trainer::store::write_atomic;

/// Reads the predictions of every arm, writes `metrics.json` and prints the table; rank 0 alone.
pub(super) fn run(run: &Run<'_>) -> anyhow::Result<()> {
    if run.leads() {
        lead(run)?;
    }
    run.comm.barrier()?;
    Ok(())
}

fn lead(run: &Run<'_>) -> anyhow::Result<()> {
    let config = &run.session.config;
    let mut arms: Vec<Arm> = Vec::new();
    for &arm in &config.run.arms {
        let path = predict::file(run, arm);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("predictions {}", path.display()))
            .input("launcher predict makes them")?;
        let predictions =
            text.lines().map(serde_json::from_str).collect::<Result<Vec<Prediction>, _>>();
        arms.push(Arm {
            name: arm.name().to_owned(),
            predictions: predictions.with_context(|| format!("{}", path.display()))?,
        });
    }
    let asked: usize = arms.iter().map(|a| a.predictions.len()).max().unwrap_or(0);
    keep_common(&mut arms);
    let kept = arms.first().map_or(0, |a| a.predictions.len());
    if kept < asked {
        run.say(&format!(
            "{kept} of {asked} queries are answered by every arm; the others are left out"
        ));
    }
    let references = [ArmName::Base, ArmName::Population];
    let options = Options {
        metrics: config.evaluate.metrics.clone(),
        labels: run.session.task.labels().map(<[String]>::to_vec).unwrap_or_default(),
        references: references
            .iter()
            .filter(|a| config.run.arms.contains(a))
            .map(|a| a.name().to_owned())
            .collect(),
        bootstrap: Bootstrap {
            replicates: u32::try_from(config.evaluate.bootstrap_samples)?,
            confidence: config.evaluate.confidence,
            seed: config.run.seed,
        },
    };
    let comparison =
        compare(&arms, &options).input("evaluate.metrics must fit the task's answers")?;
    let json = serde_json::to_string_pretty(&comparison)?;
    write_atomic(&run.path("metrics.json"), json.as_bytes())?;
    let table = render(&comparison);
    write_atomic(&run.path("table.txt"), table.as_bytes())?;
    // A study prints one table of all its cells.
    if run.shared.is_none() {
        print(table.trim_end());
    }
    Ok(())
}

/// Leaves the queries that every arm answers.
fn keep_common(arms: &mut [Arm]) {
    let keys = |arm: &Arm| {
        arm.predictions.iter().map(|p| (p.user.clone(), p.query.clone())).collect::<BTreeSet<_>>()
    };
    let Some(common) = arms.iter().map(keys).reduce(|a, b| a.intersection(&b).cloned().collect())
    else {
        return;
    };
    for arm in arms {
        arm.predictions.retain(|p| common.contains(&(p.user.clone(), p.query.clone())));
    }
}
