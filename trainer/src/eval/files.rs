//! Anybody's prediction and gold files as arms, by LaMP's rule: the task's name must match, the sets of ids be equal.

use super::predictions::LampFile;
use super::questions::Owners;
use super::{Arm, EvalError, IdsDiffer, Prediction};
use crate::data::LampTask;
use crate::ids::UserId;
use std::collections::{BTreeMap, BTreeSet};

/// Ids named on either side of a mismatch.
const NAMED: usize = 20;

/// Arms of prediction files, named, over the golds. Without `owners` every query is its own user.
///
/// A file that names no task (a bare list) is taken to be of `task`.
///
/// # Errors
/// [`EvalError::TaskDiffers`], [`EvalError::Ids`], an id twice in a file, a gold whose question is not there.
pub fn arms(
    task: LampTask,
    golds: &LampFile,
    predictions: &[(String, LampFile)],
    owners: Option<&Owners>,
) -> Result<Vec<Arm>, EvalError> {
    same_task(task, golds, || "golds".to_owned())?;
    let gold_of = by_id(golds)?;
    let users = users(golds, owners)?;
    let arm = |(name, file): &(String, LampFile)| {
        same_task(task, file, || format!("predictions `{}`", name.escape_debug()))?;
        let answers = by_id(file)?;
        let missing = not_in(golds, &answers);
        let extra = not_in(file, &gold_of);
        if missing.1 + extra.1 > 0 {
            let arm = name.clone();
            return Err(EvalError::Ids(Box::new(IdsDiffer { arm, missing, extra })));
        }
        let prediction = |((id, gold), user): (&(String, String), &UserId)| Prediction {
            user: user.clone(),
            query: id.clone(),
            gold: Some(gold.clone()),
            text: answers.get(id.as_str()).map(|text| (*text).to_owned()).unwrap_or_default(),
            label_probs: None,
            expected: None,
        };
        let predictions = golds.outputs.iter().zip(&users).map(prediction).collect();
        Ok(Arm { name: name.clone(), predictions })
    };
    predictions.iter().map(arm).collect()
}

fn same_task(task: LampTask, file: &LampFile, whose: impl Fn() -> String) -> Result<(), EvalError> {
    match &file.task {
        Some(found) if !task.is_called(found) => Err(EvalError::TaskDiffers {
            file: whose(),
            found: found.escape_debug().to_string(),
            expected: task.lamp_id(),
        }),
        _ => Ok(()),
    }
}

/// Outputs by id. A file that was read has every id once; one that was made by hand may not.
fn by_id(file: &LampFile) -> Result<BTreeMap<&str, &str>, EvalError> {
    let mut outputs = BTreeMap::new();
    for (id, output) in &file.outputs {
        if outputs.insert(id.as_str(), output.as_str()).is_some() {
            return Err(EvalError::LampDuplicate { id: id.clone() });
        }
    }
    Ok(outputs)
}

/// The first ids of `file` that are not in `other`, and how many there are.
fn not_in(file: &LampFile, other: &BTreeMap<&str, &str>) -> (Vec<String>, usize) {
    let absent = || file.outputs.iter().filter(|(id, _)| !other.contains_key(id.as_str()));
    (absent().take(NAMED).map(|(id, _)| id.clone()).collect(), absent().count())
}

/// The user of every gold, in the golds' order.
fn users(golds: &LampFile, owners: Option<&Owners>) -> Result<Vec<UserId>, EvalError> {
    let ids = || golds.outputs.iter().map(|(id, _)| id.as_str());
    let Some(owners) = owners else { return Ok(ids().map(UserId::new).collect()) };
    let unknown: BTreeSet<&str> = ids().filter(|id| !owners.users.contains_key(*id)).collect();
    if let Some(id) = ids().find(|id| unknown.contains(id)) {
        let (count, of) = (unknown.len(), golds.outputs.len());
        return Err(EvalError::NoQuestion { id: id.to_owned(), count, of });
    }
    Ok(ids().filter_map(|id| owners.users.get(id).cloned()).collect())
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
