//! A comparison for people: a table a slice.

use super::{IntentComparison, IntentMetric, IntentRow, SliceRows};
use crate::eval::grid::Grid;

/// Aligned Markdown: for every slice the six metrics of every arm over samples, then over users, then what the first
/// reference's difference in macro recall and accuracy is.
pub fn table(comparison: &IntentComparison) -> String {
    let percent = 100.0 * comparison.bootstrap.confidence;
    comparison.slices.iter().map(|slice| of_slice(slice, percent)).collect::<Vec<_>>().join("\n")
}

fn of_slice(slice: &SliceRows, percent: f64) -> String {
    let name = slice.slice.replace(['\n', '\r', '|'], " ");
    let mut text =
        format!("{name}: {} targets of {} people\n\n", slice.num_targets, slice.num_users);
    if slice.rows.is_empty() {
        return text;
    }
    let names = IntentMetric::ALL.map(IntentMetric::name);
    let heads: Vec<&str> = ["arm", "over"].into_iter().chain(names).collect();
    let mut grid = Grid::new(&heads, 2);
    for over_users in [false, true] {
        for arm in slice.rows.chunks(names.len()) {
            let over = if over_users { "users" } else { "samples" };
            let value = |row: &IntentRow| {
                let estimate = if over_users { row.over_users } else { row.over_samples };
                format!("{:.4}", estimate.value)
            };
            let first = [arm[0].arm.clone(), over.to_owned()];
            grid.push(first.into_iter().chain(arm.iter().map(value)).collect());
        }
    }
    text += &grid.render();
    let heads = [
        "arm - reference".to_owned(),
        "metric".to_owned(),
        format!("samples [{percent} %]"),
        format!("users [{percent} %]"),
        "better".to_owned(),
        "worse".to_owned(),
    ];
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    let mut grid = Grid::new(&heads, 2);
    let shown = |row: &&IntentRow| matches!(row.metric, IntentMetric::RecM | IntentMetric::RecW);
    for row in slice.rows.iter().filter(shown) {
        for d in &row.differences {
            let estimate = |e: crate::eval::Estimate| {
                format!("{:+.4} [{:+.4}, {:+.4}]", e.value, e.interval.lo, e.interval.hi)
            };
            grid.push(vec![
                format!("{} - {}", row.arm, d.reference),
                row.metric.name().to_owned(),
                estimate(d.over_samples),
                estimate(d.over_users),
                d.users.better.to_string(),
                d.users.worse.to_string(),
            ]);
        }
    }
    if !grid.rows.is_empty() {
        text.push('\n');
        text += &grid.render();
    }
    text
}
