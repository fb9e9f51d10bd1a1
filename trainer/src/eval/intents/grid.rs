//! A comparison for people: a table a slice.

use super::{IntentComparison, IntentMetric, IntentRow, SliceRows};
use crate::eval::grid::Grid;

/// How much of a comparison is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Means over samples, and differences in macro recall.
    Brief,
    /// Means over users as well, and differences in accuracy.
    Whole,
}

/// Aligned Markdown: for every slice the six metrics of every arm over samples, then over users, then the differences in
/// macro recall and accuracy from the references.
pub fn table(comparison: &IntentComparison, detail: Detail) -> String {
    let percent = 100.0 * comparison.bootstrap.confidence;
    let slices = comparison.slices.iter().map(|slice| of_slice(slice, percent, detail));
    slices.collect::<Vec<_>>().join("\n")
}

fn of_slice(slice: &SliceRows, percent: f64, detail: Detail) -> String {
    let name = slice.slice.replace(['\n', '\r', '|'], " ");
    let mut text =
        format!("{name}: {} targets of {} people\n\n", slice.num_targets, slice.num_users);
    if slice.rows.is_empty() {
        return text;
    }
    let names = IntentMetric::ALL.map(IntentMetric::name);
    let heads: Vec<&str> = ["arm", "over"].into_iter().chain(names).collect();
    let mut grid = Grid::new(&heads, 2);
    let ways: &[bool] = if detail == Detail::Whole { &[false, true] } else { &[false] };
    for &over_users in ways {
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
    let shown = |row: &&IntentRow| match row.metric {
        IntentMetric::RecM => true,
        IntentMetric::RecW => detail == Detail::Whole,
        _ => false,
    };
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
