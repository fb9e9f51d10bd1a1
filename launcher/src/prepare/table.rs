//! Statistics for a person to read.

use super::Document;
use super::statistics::{Group, Labels, Lengths};

/// The whole report.
pub(super) fn text(document: &Document<'_>) -> String {
    let groups = [
        ("personal users", &document.statistics.personal),
        ("population users", &document.statistics.population),
    ];
    let mut lines = vec![document.source.to_owned()];
    for (name, group) in groups.iter().filter(|(_, group)| group.users > 0) {
        lines.push(String::new());
        lines.extend(group_lines(name, group, document.unit));
    }
    if !document.left_out.is_empty() || document.bad_records > 0 {
        lines.push(String::new());
        lines.push("left out".to_owned());
        lines.extend(document.left_out.iter().map(|(rule, n)| format!("{n:>9}  {rule}")));
        if document.bad_records > 0 {
            lines.push(format!("{:>9}  bad records", document.bad_records));
        }
    }
    lines.join("\n")
}

fn group_lines(name: &str, group: &Group, unit: &str) -> Vec<String> {
    let share = |part: u64, of: u64| format!("{part:>9}  {}", per_cent(part, of));
    let mut lines = vec![
        format!("{:<34}{:>9}", name, group.users),
        format!("{:<34}{}", "  with a date on every item", share(group.dated_users, group.users)),
        format!("{:<34}{:>9}", "history items", group.history_items),
        format!(
            "{:<34}{}",
            "  that repeat an earlier one",
            share(group.repeated_items, group.history_items)
        ),
        format!("{:<34}{:>9}", "queries", group.queries),
        format!("{:<34}{}", "  with an answer", share(group.answered_queries, group.queries)),
        format!(
            "{:<34}{}",
            "  that the history has word by word",
            share(group.known_queries, group.queries)
        ),
    ];
    let head: Vec<String> =
        Lengths::QUANTILES.iter().map(|(name, _)| format!("{name:>7}")).collect();
    lines.push(format!("{:<34}{}{:>9}", "", head.concat(), "mean"));
    let in_unit = |what: &str| format!("{what}, {unit}");
    for (what, lengths) in [
        ("history items a user".to_owned(), &group.history_per_user),
        ("queries a user".to_owned(), &group.queries_per_user),
        (in_unit("history item"), &group.history_item_length),
        (in_unit("question"), &group.question_length),
        (in_unit("answer"), &group.answer_length),
    ] {
        if lengths.count() > 0 {
            lines.push(length_line(&what, lengths));
        }
    }
    lines.extend(label_line("labels of the history", &group.history_labels));
    lines.extend(label_line("labels of the queries", &group.query_labels));
    lines
}

fn length_line(what: &str, lengths: &Lengths) -> String {
    let cell = |(_, per_cent): &(&str, u64)| format!("{:>7}", lengths.quantile(*per_cent));
    let cells: Vec<String> = Lengths::QUANTILES.iter().map(cell).collect();
    format!("{what:<34}{}{:>9.1}", cells.concat(), lengths.mean())
}

fn label_line(what: &str, labels: &Labels) -> Option<String> {
    let counts = labels.counts()?;
    let all: u64 = counts.values().sum();
    let shares: Vec<String> =
        counts.iter().map(|(label, n)| format!("{label} {}", per_cent(*n, all))).collect();
    Some(format!("{what:<34}{}", shares.join(", ")))
}

#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn per_cent(part: u64, of: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / of.max(1) as f64)
}
