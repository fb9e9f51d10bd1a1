//! The plots of a run: who is confused with whom, and recall along the long tail.

use super::Course;
use trainer::config::pituning::EventArm;
use trainer::eval::intents::{Confusion, IntentArm, IntentComparison, IntentMetric};
use trainer::report::intents::{HeatMap, by_slice, heat_map};
use trainer::store::write_atomic;

/// Intents of a confusion matrix at most, the most frequent ones.
const MOST_INTENTS: usize = 24;

/// Writes `plots/long_tail.svg` and `plots/confusion_ARM.svg` of the population and the personal arm.
pub(super) fn write(
    course: &Course<'_>,
    (comparison, bands): (&IntentComparison, &[String]),
    arms: &[IntentArm],
) -> anyhow::Result<()> {
    let folder = course.path("plots");
    std::fs::create_dir_all(&folder)?;
    let title = "macro recall along the long tail";
    let tail = by_slice(comparison, bands, IntentMetric::RecM, title)?;
    write_atomic(&folder.join("long_tail.svg"), tail.as_bytes())?;
    let counts = course.session.counts(None);
    let mut listed: Vec<u32> = (0..).take(counts.len()).collect();
    listed.sort_by_key(|&n| std::cmp::Reverse(counts[n as usize]));
    listed.truncate(MOST_INTENTS);
    let names = &course.session.data.vocabulary.intents;
    let labels: Vec<String> = listed.iter().map(|&n| names[n as usize].clone()).collect();
    for shown in [EventArm::Population, EventArm::Finetune, EventArm::Personal] {
        let Some(arm) = arms.iter().find(|arm| arm.name == shown.name()) else { continue };
        let mut confusion = Confusion::new(names.len());
        for outcome in arm.users.iter().flat_map(|u| &u.outcomes) {
            confusion.add(outcome)?;
        }
        let map = heat_map(&HeatMap {
            title: format!("{}: share of answers by true intent", shown.name()),
            x_label: "answered".to_owned(),
            y_label: "true intent, most frequent first".to_owned(),
            columns: labels.iter().cloned().chain(["others".to_owned()]).collect(),
            rows: labels.clone(),
            shares: confusion.shares(&listed),
        })?;
        write_atomic(&folder.join(format!("confusion_{}.svg", shown.name())), map.as_bytes())?;
    }
    Ok(())
}
