//! The pictures of a study: for every axis but seeds, every metric and every arm that the axes move, the value by the
//! axis; a series for each value of a second axis, retrievers where there are some.

use super::table::{Group, Tables};
use trainer::config::{Arm, Metric};
use trainer::report::plot::{Chart, Point, Series, svg};

/// Averaged, never drawn.
const SEEDS: [&str; 2] = ["run.seed", "prompt.retrieval_seed"];
/// The axis whose values are series where there is one.
const LINES: &str = "prompt.retriever";

/// All pictures: file name and SVG.
pub(super) fn draw(groups: &[Group<'_>], tables: &Tables) -> anyhow::Result<Vec<(String, String)>> {
    let mut pictures = Vec::new();
    for group in groups {
        let title = &tables.panels[group.number].title;
        for axis in 0..group.study.axes.len() {
            let name = group.study.axes[axis].name.as_str();
            if SEEDS.contains(&name) {
                continue;
            }
            for arm in moved(group) {
                for &metric in group.metrics() {
                    let Some(chart) =
                        chart(group, (axis, second(group, axis)), arm, metric, title)?
                    else {
                        continue;
                    };
                    let parts = [title.as_str(), metric.name(), arm.name(), "by", name];
                    let file = parts.iter().filter(|p| !p.is_empty()).map(|p| plain(p));
                    pictures.push((file.collect::<Vec<_>>().join("-") + ".svg", svg(&chart)?));
                }
            }
        }
    }
    Ok(pictures)
}

/// Arms whose answers differ between cells; all arms where none do.
fn moved(group: &Group<'_>) -> Vec<Arm> {
    let arms = group.arms();
    let moved: Vec<Arm> = arms.iter().copied().filter(|&arm| group.differs(arm)).collect();
    if moved.is_empty() { arms.into_iter().collect() } else { moved }
}

/// The axis whose values are the series of a picture over `axis`.
fn second(group: &Group<'_>, axis: usize) -> Option<usize> {
    let axes = &group.study.axes;
    let varies = |i: usize| {
        let at = |&c: &usize| group.study.cells[c].point[i];
        let first = group.cells.first().map(at);
        group.cells.iter().any(|c| Some(at(c)) != first)
    };
    let other = |i: &usize| *i != axis && !SEEDS.contains(&axes[*i].name.as_str()) && varies(*i);
    let retriever = (0..axes.len()).filter(other).find(|i| axes[*i].name == LINES);
    retriever.or_else(|| (0..axes.len()).find(other))
}

fn chart(
    group: &Group<'_>,
    (axis, second): (usize, Option<usize>),
    arm: Arm,
    metric: Metric,
    title: &str,
) -> anyhow::Result<Option<Chart>> {
    let of = &group.study.axes[axis];
    let mut series = Vec::new();
    let kinds = second.map_or(1, |s| group.study.axes[s].labels.len());
    for kind in 0..kinds {
        let mut points = Vec::new();
        for tick in 0..of.labels.len() {
            let mut cells = group.having(arm, axis, tick);
            if let Some(second) = second {
                cells.retain(|&c| group.study.cells[c].point[second] == kind);
            }
            if !cells.is_empty() {
                let e = group.value(metric, arm, &cells)?;
                let (lo, hi) = (e.interval.lo, e.interval.hi);
                points.push(Point { tick, value: e.value, lo, hi });
            }
        }
        let name = second.map_or_else(
            || arm.name().to_owned(),
            |second| group.study.axes[second].labels[kind].clone(),
        );
        if !points.is_empty() {
            series.push(Series { name, points });
        }
    }
    let ticks: std::collections::BTreeSet<usize> =
        series.iter().flat_map(|s| &s.points).map(|p| p.tick).collect();
    if ticks.len() < 2 {
        return Ok(None);
    }
    let way = if metric.lower_is_better() { "lower is better" } else { "higher is better" };
    let of_panel = if title.is_empty() { String::new() } else { format!(", {title}") };
    Ok(Some(Chart {
        title: format!("{}: {} by {}{of_panel}", group.study.name, arm.name(), of.short),
        x_label: of.name.clone(),
        y_label: format!("{} ({way})", metric.name()),
        legend: second.map_or_else(|| "arm".to_owned(), |s| group.study.axes[s].short.clone()),
        ticks: of.labels.clone(),
        series,
    }))
}

/// A part of a file name.
fn plain(part: &str) -> String {
    let keep = |c: char| c.is_ascii_alphanumeric() || "._=,".contains(c);
    let mut text = String::new();
    for c in part.to_lowercase().chars().take(80) {
        match keep(c) {
            true => text.push(c),
            false if !text.ends_with('_') && !text.is_empty() => text.push('_'),
            false => {}
        }
    }
    text.trim_end_matches('_').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_file_names_are_plain() {
        assert_eq!(plain("MAE (expected)"), "mae_expected");
        assert_eq!(plain("../a b"), ".._a_b");
        assert_eq!(plain("task=a,k=1"), "task=a,k=1");
    }
}
