//! A comparison as two aligned Markdown tables: values, and differences with intervals.

use super::{Comparison, Estimate, Interval};

/// Renders a comparison; readable as it is, and as Markdown.
///
/// Differences are arm minus reference; their intervals draw users, except the column that says queries.
pub fn render(comparison: &Comparison) -> String {
    let percent = 100.0 * comparison.bootstrap.confidence;
    let mut values = Grid::new(&["metric", "arm", "queries", "users", "per query", "per user"], 2);
    let [by_user, by_query, mean] = ["per query [% users]", "[% queries]", "per user [% users]"]
        .map(|h| h.replace('%', &format!("{percent} %")));
    let heads =
        ["metric", "arm - reference", &by_user, &by_query, &mean, "better", "worse", "sign p"];
    let mut differences = Grid::new(&heads, 2);
    for (place, row) in comparison.rows.iter().enumerate() {
        let (metric, dash) = (row.metric.name(), || "-".to_owned());
        let per_user = row.over_users.map_or_else(dash, |v| format!("{v:.4}"));
        values.push(vec![
            metric.to_owned(),
            row.arm.clone(),
            row.num_queries.to_string(),
            row.num_users.to_string(),
            format!("{:.4}", row.over_queries),
            per_user,
        ]);
        // Against earlier arms only: the mirror of a difference says nothing new.
        let earlier = |name: &str| {
            comparison.rows[..place].iter().any(|r| r.metric == row.metric && r.arm == name)
        };
        for d in row.differences.iter().filter(|d| earlier(&d.reference)) {
            let share = |f: fn(&super::UserCounts) -> f64| {
                d.users.as_ref().map_or_else(dash, |u| format!("{:.1} %", 100.0 * f(u)))
            };
            differences.push(vec![
                metric.to_owned(),
                format!("{} - {}", row.arm, d.reference),
                estimate(&d.over_queries),
                interval(d.over_queries_by_query),
                d.over_users.as_ref().map_or_else(dash, estimate),
                share(|u| u.better_share),
                share(|u| u.worse_share),
                d.users.map_or_else(dash, |u| probability(u.sign_test_p)),
            ]);
        }
    }
    let mut text = values.render();
    if !differences.rows.is_empty() {
        text.push('\n');
        text.push_str(&differences.render());
    }
    if comparison.unlabelled > 0 {
        text.push_str(&format!("\n{} predictions without gold left out.\n", comparison.unlabelled));
    }
    text
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

/// A table of texts; the first `left` columns to the left, the others to the right.
#[derive(Debug, Clone)]
pub struct Grid {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    left: usize,
}

impl Grid {
    /// A table without rows.
    pub fn new(head: &[&str], left: usize) -> Self {
        Self { head: head.iter().map(|h| (*h).to_owned()).collect(), rows: Vec::new(), left }
    }

    /// Adds a row, as long as the head; what would break the table (bars, line ends) is replaced.
    pub fn push(&mut self, row: Vec<String>) {
        let clean = |cell: String| cell.replace('|', "\\|").replace(|c: char| c.is_control(), " ");
        self.rows.push(row.into_iter().map(clean).collect());
    }

    /// The aligned Markdown.
    pub fn render(&self) -> String {
        let all = || std::iter::once(&self.head).chain(&self.rows);
        let widths: Vec<usize> = (0..self.head.len())
            .map(|c| all().map(|row| row[c].chars().count()).max().unwrap_or(0).max(3))
            .collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate();
            let padded = cells.map(|(c, (cell, width))| {
                let gap = " ".repeat(width - cell.chars().count());
                if c < self.left { format!("{cell}{gap}") } else { format!("{gap}{cell}") }
            });
            format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
        };
        let rule = widths.iter().enumerate().map(|(c, width)| {
            let dashes = "-".repeat(width - 1);
            if c < self.left { format!("{dashes}-") } else { format!("{dashes}:") }
        });
        let rule = format!("| {} |\n", rule.collect::<Vec<_>>().join(" | "));
        let mut text = line(&self.head) + &rule;
        self.rows.iter().for_each(|row| text.push_str(&line(row)));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_align_and_survive_hostile_cells() {
        let mut grid = Grid::new(&["arm", "n"], 1);
        grid.push(vec!["é|x\ny".to_owned(), "12345".to_owned()]);
        let expected = "| arm    |     n |\n| ------ | ----: |\n| é\\|x y | 12345 |\n";
        assert_eq!(grid.render(), expected);
    }

    #[test]
    fn small_probabilities() {
        assert_eq!([0.03, 0.000_012].map(probability), ["0.0300", "1e-5"]);
    }
}
