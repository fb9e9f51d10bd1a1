//! The table of a run: all arms over the queries they all answer, with paired intervals.

use super::{Run, predict};
use crate::exit::Fails;
use crate::watch::print;
use anyhow::Context;
use std::collections::BTreeSet;
use trainer::config::Arm as ArmName;
use trainer::eval::table::render;
use trainer::eval::{Arm, Bootstrap, LeakArms, Options, Prediction, compare, csv};
use trainer::store::write_atomic;

/// What [`run`] writes, for programs, spreadsheets and people.
pub(crate) const FILES: [&str; 3] = ["metrics.json", "metrics.csv", "table.txt"];

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
    let references = [ArmName::Base, ArmName::Rag, ArmName::Population];
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
        history: run
            .session
            .index()
            .personal
            .iter()
            .map(|u| (u.id.clone(), u.num_history))
            .collect(),
        leak: leak_arms(&config.run.arms),
    };
    let comparison =
        compare(&arms, &options).input("evaluate.metrics must fit the task's answers")?;
    let json = serde_json::to_string_pretty(&comparison)?;
    let table = render(&comparison);
    for (name, text) in FILES.iter().zip([&json, &csv::render(&comparison), &table]) {
        write_atomic(&run.path(name), text.as_bytes())?;
    }
    // A study prints one table of all its cells.
    if run.shared.is_none() {
        print(table.trim_end());
    }
    Ok(())
}

/// The arms of the leak check, if the run has them: what a gain is over, the gain, and the gain with another's adapter.
fn leak_arms(arms: &[ArmName]) -> Option<LeakArms> {
    let has = |arm| arms.contains(&arm);
    let without = [ArmName::Population, ArmName::Base].into_iter().find(|&arm| has(arm))?;
    (has(ArmName::Personal) && has(ArmName::Permuted))
        .then(|| LeakArms { population: without.name().to_owned(), ..LeakArms::default() })
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
