//! A comparison as CSV (RFC 4180), tidy: one row a group, arm, metric and aggregation, for values and for differences.

use super::{Comparison, Interval, Row, UserCounts};

/// The columns. `reference` is empty for a value; `aggregation` is `queries` or `users`; `group` is `all` or a group by
/// history size; `lo` and `hi` draw users; `better` to `sign_p` are there for differences over users alone.
pub const HEAD: &str = "group,arm,reference,metric,aggregation,value,lo,hi,confidence,queries,users,better,worse,equal,sign_p";

/// Renders a comparison; numbers in the shortest form that reads back to the same bits.
///
/// *Order*: groups, in each the comparison's rows, in each the value and the differences.
pub fn render(comparison: &Comparison) -> String {
    let mut text = format!("{HEAD}\n");
    let confidence = comparison.bootstrap.confidence;
    let groups = comparison.by_history.iter().map(|group| (group.name.as_str(), &group.rows));
    for (group, rows) in std::iter::once(("all", &comparison.rows)).chain(groups) {
        for row in rows {
            for line in lines(row) {
                let (arm, reference) = (quoted(&row.arm), quoted(line.reference));
                let (metric, aggregation) = (row.metric.key(), line.aggregation);
                let (value, Interval { lo, hi }) = (line.value, line.interval);
                let (queries, users) = (row.num_queries, row.num_users);
                let counts = line.counts.map_or_else(
                    || ",,,".to_owned(),
                    |c| format!("{},{},{},{:?}", c.better, c.worse, c.equal, c.sign_test_p),
                );
                text.push_str(&format!(
                    "{group},{arm},{reference},{metric},{aggregation},{value},{lo},{hi},{confidence},{queries},{users},{counts}\n"
                ));
            }
        }
    }
    text
}

struct Line<'a> {
    reference: &'a str,
    aggregation: &'static str,
    value: f64,
    interval: Interval,
    counts: Option<UserCounts>,
}

fn lines(row: &Row) -> Vec<Line<'_>> {
    let line = |reference, aggregation, value, interval, counts| Line {
        reference,
        aggregation,
        value,
        interval,
        counts,
    };
    let mut lines = vec![line("", "queries", row.over_queries, row.interval_over_queries, None)];
    if let (Some(value), Some(interval)) = (row.over_users, row.interval_over_users) {
        lines.push(line("", "users", value, interval, None));
    }
    for d in &row.differences {
        let over = &d.over_queries;
        lines.push(line(&d.reference, "queries", over.value, over.interval, None));
        if let Some(over) = &d.over_users {
            lines.push(line(&d.reference, "users", over.value, over.interval, d.users));
        }
    }
    lines
}

fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_where_they_must_be() {
        assert_eq!(
            ["plain", "a,b", "say \"x\"\n"].map(quoted),
            ["plain", "\"a,b\"", "\"say \"\"x\"\"\n\""]
        );
    }
}
