//! A comparison for people: aligned Markdown tables of values and differences, then groups, users, leak check.
//!
//! Short by choice: what is left out here is in the JSON and the CSV.

use super::grid::Grid;
use super::{
    Comparison, Difference, Estimate, Interval, Metric, Movers, Row, UserChange, UserCounts,
};

/// Users named on either side.
const MOST: usize = 3;
/// Letters of a user's id.
const LONG: usize = 20;

/// Renders a comparison; readable as it is, and as Markdown.
///
/// Differences are arm minus reference, against the references before the arm; their intervals draw users.
pub fn render(comparison: &Comparison) -> String {
    let mut parts = vec![values(&comparison.rows).render()];
    let primary = comparison.rows.first().map(|row| row.metric);
    let differences = differences(comparison);
    if !differences.rows.is_empty() {
        parts.push(differences.render());
    }
    if let Some(metric) = primary {
        parts.extend(by_history(comparison, metric));
        parts.extend(movers(&comparison.movers, metric));
    }
    if let Some(leak) = &comparison.leak {
        let over = if leak.over_users { "per user" } else { "per query" };
        parts.push(format!(
            "Leak check, {} {over}: {}\n",
            leak.metric.name(),
            clean(&leak.verdict)
        ));
    }
    if comparison.unlabelled > 0 {
        parts.push(format!("{} predictions without gold left out.\n", comparison.unlabelled));
    }
    parts.join("\n")
}

fn values(rows: &[Row]) -> Grid {
    let mut grid = Grid::new(&["metric", "arm", "queries", "users", "per query", "per user"], 2);
    for row in rows {
        grid.push(vec![
            row.metric.name().to_owned(),
            row.arm.clone(),
            row.num_queries.to_string(),
            row.num_users.to_string(),
            format!("{:.4}", row.over_queries),
            row.over_users.map_or_else(dash, |v| format!("{v:.4}")),
        ]);
    }
    grid
}

fn differences(comparison: &Comparison) -> Grid {
    let percent = 100.0 * comparison.bootstrap.confidence;
    let [by_query, by_user] = ["per query", "per user"].map(|h| format!("{h} [{percent} %]"));
    let heads = ["metric", "arm - reference", &by_query, &by_user, "better", "worse", "sign p"];
    let mut grid = Grid::new(&heads, 2);
    for (row, d) in to_earlier(&comparison.rows) {
        let share = |f: fn(&UserCounts) -> f64| {
            d.users.as_ref().map_or_else(dash, |u| format!("{:.1} %", 100.0 * f(u)))
        };
        grid.push(vec![
            row.metric.name().to_owned(),
            format!("{} - {}", row.arm, d.reference),
            estimate(&d.over_queries),
            d.over_users.as_ref().map_or_else(dash, estimate),
            share(|u| u.better_share),
            share(|u| u.worse_share),
            d.users.map_or_else(dash, |u| probability(u.sign_test_p)),
        ]);
    }
    grid
}

/// Differences against earlier arms: the mirror of a difference says nothing new.
fn to_earlier(rows: &[Row]) -> impl Iterator<Item = (&Row, &Difference)> {
    rows.iter().enumerate().flat_map(move |(place, row)| {
        let earlier =
            move |name: &str| rows[..place].iter().any(|r| r.metric == row.metric && r.arm == name);
        row.differences.iter().filter(move |d| earlier(&d.reference)).map(move |d| (row, d))
    })
}

/// One column a group, one row a pair of arms, under one metric.
fn by_history(comparison: &Comparison, metric: Metric) -> Option<String> {
    let groups = &comparison.by_history;
    let mut heads = vec!["arm - reference".to_owned()];
    heads.extend(groups.iter().map(|group| {
        let users = group.rows.first().map_or(0, |row| row.num_users);
        format!("{} ({}-{} items, {users} users)", group.name, group.from, group.to)
    }));
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    let mut grid = Grid::new(&heads, 1);
    let of_group = |group: &super::HistoryGroup| -> Vec<(String, String)> {
        to_earlier(&group.rows)
            .filter(|(row, _)| row.metric == metric)
            .map(|(row, d)| {
                let pair = format!("{} - {}", row.arm, d.reference);
                (pair, estimate(&d.over_users.unwrap_or(d.over_queries)))
            })
            .collect()
    };
    let columns: Vec<_> = groups.iter().map(of_group).collect();
    for (at, (pair, _)) in columns.first()?.iter().enumerate() {
        let cells = columns.iter().map(|c| c.get(at).map_or_else(dash, |(_, text)| text.clone()));
        grid.push(std::iter::once(pair.clone()).chain(cells).collect());
    }
    let over = if metric.per_user() { "per user" } else { "per query" };
    let rendered = || format!("By history size, {} {over}:\n\n{}", metric.name(), grid.render());
    (!grid.rows.is_empty()).then(rendered)
}

/// One line an arm, against the last reference before it, under one metric.
fn movers(all: &[Movers], metric: Metric) -> Option<String> {
    let ours: Vec<&Movers> = all.iter().filter(|m| m.metric == metric).collect();
    let mut text = String::new();
    for (at, m) in ours.iter().enumerate() {
        let last = ours.get(at + 1).is_none_or(|next| next.arm != m.arm);
        if last && !(m.gained.is_empty() && m.lost.is_empty()) {
            let pair = clean(&format!("{} - {}", m.arm, m.reference));
            text.push_str(&format!(
                "* {pair}: gain {}; lose {}\n",
                users(&m.gained),
                users(&m.lost)
            ));
        }
    }
    let head = format!("Users who gain and lose most, {}:\n\n", metric.name());
    (!text.is_empty()).then(|| head + &text)
}

fn users(changes: &[UserChange]) -> String {
    let one = |change: &UserChange| {
        let id = clean(&change.user.to_string());
        let short: String = id.chars().take(LONG).collect();
        let more = if short.len() < id.len() { "…" } else { "" };
        format!("{short}{more} {:.4}", change.gain.abs())
    };
    let named: Vec<String> = changes.iter().take(MOST).map(one).collect();
    if named.is_empty() { "nobody".to_owned() } else { named.join(", ") }
}

fn clean(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

fn dash() -> String {
    "-".to_owned()
}

fn estimate(e: &Estimate) -> String {
    format!("{:+.4} {}", e.value, interval(e.interval))
}

fn interval(i: Interval) -> String {
    format!("[{:+.4}, {:+.4}]", i.lo, i.hi)
}

fn probability(p: f64) -> String {
    if p < 1e-4 { format!("{p:.0e}") } else { format!("{p:.4}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_probabilities() {
        assert_eq!([0.03, 0.000_012].map(probability), ["0.0300", "1e-5"]);
    }
}
