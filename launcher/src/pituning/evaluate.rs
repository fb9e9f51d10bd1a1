//! The table of a run: all arms over the windows they all answer, with paired intervals, and its pictures.

use super::predict::{Answered, file};
use super::{Course, pictures};
use crate::exit::Fails;
use crate::watch::print;
use anyhow::Context;
use std::collections::{BTreeMap, BTreeSet};
use trainer::config::pituning::EventArm;
use trainer::eval::Bootstrap;
use trainer::eval::intents::{
    Classes, Detail, IntentArm, IntentComparison, IntentOptions, Outcome, Slice, UserOutcomes,
    compare, long_tail, popularity_slices, table,
};
use trainer::ids::UserId;
use trainer::store::write_atomic;
use trainer::unlearn::{Counts, Rule, Split};

/// Bands of popularity of the long-tail chart.
pub(super) const BANDS: usize = 6;

/// Reads the predictions of every arm, writes `metrics.json`, `table.txt` and the plots, prints the table; rank 0 alone.
pub(super) fn run(course: &Course<'_>) -> anyhow::Result<()> {
    if course.leads() {
        lead(course)?;
    }
    Ok(course.comm.barrier()?)
}

fn lead(course: &Course<'_>) -> anyhow::Result<()> {
    let (session, config) = (course.session, &course.session.config);
    let mut arms = config
        .run
        .arms
        .iter()
        .map(|&arm| read(course, arm))
        .collect::<anyhow::Result<Vec<IntentArm>>>()?;
    let asked = targets(&arms).unwrap_or(0);
    keep_common(&mut arms);
    let kept = targets(&arms).unwrap_or(0);
    if kept < asked {
        course.say(&format!(
            "{kept} of {asked} windows are answered by every arm; the others are left out"
        ));
    }
    let counts = session.counts(None);
    let own = own_tails(course, &counts)?;
    let mut slices = vec![
        Slice { name: "all".into(), classes: Classes::All },
        Slice {
            name: "population long tail".into(),
            classes: Classes::Listed(long_tail(&counts, config.evaluate.tail_share)),
        },
        Slice { name: "own long tail".into(), classes: Classes::PerUser(own) },
    ];
    let every: Vec<u32> = (0..).take(counts.len()).collect();
    let cold = session.data.users.iter().filter(|user| user.cold);
    let cold: BTreeMap<UserId, Vec<u32>> =
        cold.map(|user| (user.id.clone(), every.clone())).collect();
    if !cold.is_empty() {
        slices.push(Slice { name: "cold people".into(), classes: Classes::PerUser(cold) });
    }
    if let Some(truth) = &session.truth {
        let own = (0..session.data.users.len())
            .map(|n| (session.data.users[n].id.clone(), truth.own_intents(n)))
            .collect();
        slices.push(Slice { name: "true own intents".into(), classes: Classes::PerUser(own) });
    }
    let shown = slices.len();
    let bands = popularity_slices(&counts, BANDS);
    slices.extend(bands.iter().cloned());
    let references = [EventArm::Population, EventArm::Finetune];
    let comparison = compare(
        &arms,
        &IntentOptions {
            intents: session.data.vocabulary.intents.len(),
            slices,
            references: references
                .iter()
                .filter(|arm| config.run.arms.contains(arm))
                .map(|arm| arm.name().to_owned())
                .collect(),
            bootstrap: Bootstrap {
                replicates: u32::try_from(config.evaluate.bootstrap_samples)?,
                confidence: config.evaluate.confidence,
                seed: config.run.seed,
            },
        },
    )
    .input("every arm needs answers to some window of the same people")?;
    write_atomic(
        &course.path("metrics.json"),
        serde_json::to_string_pretty(&comparison)?.as_bytes(),
    )?;
    let mut people =
        IntentComparison { slices: comparison.slices[..shown].to_vec(), ..comparison.clone() };
    write_atomic(&course.path("table.txt"), table(&people, Detail::Whole).as_bytes())?;
    let bands: Vec<String> = bands.into_iter().map(|band| band.name).collect();
    pictures::write(course, (&comparison, &bands), &arms)?;
    // On the terminal what the method is about; the rest is in the file.
    let slice = if session.truth.is_some() { "true own intents" } else { "own long tail" };
    people.slices.retain(|s| s.slice == "all" || s.slice == slice);
    for row in people.slices.iter_mut().flat_map(|s| &mut s.rows) {
        let tuned = |name: &str| config.run.arms.iter().any(|a| a.name() == name && a.of_student());
        let own = row.arm.clone();
        row.differences.retain(|d| tuned(&own) && own != "population" && d.reference != own);
    }
    print(table(&people, Detail::Brief).trim_end());
    print(&format!("all slices, means over people: {}", course.path("table.txt").display()));
    Ok(())
}

fn read(course: &Course<'_>, arm: EventArm) -> anyhow::Result<IntentArm> {
    let path = file(course, arm);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("predictions {}", path.display()))
        .input("launcher predict makes them")?;
    let mut users: BTreeMap<UserId, Vec<Outcome>> = BTreeMap::new();
    for line in text.lines() {
        let answered: Answered =
            serde_json::from_str(line).with_context(|| path.display().to_string())?;
        users.entry(answered.user).or_default().push(answered.outcome.into());
    }
    let users = users.into_iter().map(|(user, outcomes)| UserOutcomes { user, outcomes });
    Ok(IntentArm { name: arm.name().to_owned(), users: users.collect() })
}

fn targets(arms: &[IntentArm]) -> Option<usize> {
    arms.iter().map(|arm| arm.users.iter().map(|u| u.outcomes.len()).sum()).max()
}

/// Leaves the windows that every arm answers.
fn keep_common(arms: &mut [IntentArm]) {
    let keys = |arm: &IntentArm| -> BTreeSet<(UserId, usize)> {
        let of = |u: &UserOutcomes| -> Vec<(UserId, usize)> {
            u.outcomes.iter().map(|o| (u.user.clone(), o.target)).collect()
        };
        arm.users.iter().flat_map(of).collect()
    };
    let Some(common) = arms.iter().map(keys).reduce(|a, b| a.intersection(&b).cloned().collect())
    else {
        return;
    };
    for arm in arms {
        for user in &mut arm.users {
            let id = user.user.clone();
            user.outcomes.retain(|o| common.contains(&(id.clone(), o.target)));
        }
        arm.users.retain(|user| !user.outcomes.is_empty());
    }
}

/// Everybody's own long-tail intents: what a person does far more than the population, and often enough to tell.
fn own_tails(course: &Course<'_>, counts: &[u64]) -> anyhow::Result<BTreeMap<UserId, Vec<u32>>> {
    let (session, config) = (course.session, &course.session.config.evaluate);
    let rule = Rule::Ratio { tau: config.own_tau, min_count: config.own_count };
    let mut own = BTreeMap::new();
    for (number, user) in session.data.users.iter().enumerate() {
        let person = session.counts(Some(number));
        let counts = Counts { population: counts, person: &person, hits: &[] };
        let split = Split::new(rule, counts, 1.0, false)
            .input("evaluate.own_tau and evaluate.own_count say what a person's own intents are")?;
        own.insert(user.id.clone(), split.forget);
    }
    Ok(own)
}
