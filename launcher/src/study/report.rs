//! What a study leaves: `study.json`, `study.csv` (one row a cell, arm and metric), `study.txt`, `plots/`.

use super::table::{AxisRow, CellRow, Tables, tables};
use super::{End, pictures};
use serde_json::json;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use trainer::config::{Metric, Study};
use trainer::eval::Bootstrap;
use trainer::eval::Grid;
use trainer::store::write_atomic;

/// Writes everything; the text of the tables.
pub(super) fn write(study: &Study, ends: &[End]) -> anyhow::Result<String> {
    let first = &study.cells[0].config;
    let bootstrap = Bootstrap {
        replicates: u32::try_from(first.evaluate.bootstrap_samples)?,
        confidence: first.evaluate.confidence,
        seed: first.run.seed,
    };
    let (tables, groups) = tables(study, ends, &bootstrap)?;
    fs::create_dir_all(&study.out_dir)?;
    let text = text(study, ends, &tables);
    let whole = json!({
        "name": study.name,
        "axes": study.axes.iter().map(|a| json!({"name": a.name, "values": a.labels})).collect::<Vec<_>>(),
        "cells": cells(study, ends),
        "results": tables,
    });
    let put = |name: &str, text: &str| write_atomic(&study.out_dir.join(name), text.as_bytes());
    put("study.json", &serde_json::to_string_pretty(&whole)?)?;
    put("study.csv", &csv(study, &tables))?;
    put("study.txt", &text)?;
    let plots = study.out_dir.join("plots");
    if plots.exists() {
        fs::remove_dir_all(&plots)?;
    }
    fs::create_dir_all(&plots)?;
    for (name, svg) in pictures::draw(&groups, &tables)? {
        write_atomic(&plots.join(name), svg.as_bytes())?;
    }
    Ok(text)
}

fn cells(study: &Study, ends: &[End]) -> Vec<serde_json::Value> {
    let cell = |(cell, end): (&trainer::config::Cell, &End)| {
        let axes = study.axes.iter().zip(&cell.point);
        let at: serde_json::Map<String, serde_json::Value> =
            axes.map(|(a, &at)| (a.name.clone(), json!(a.labels[at]))).collect();
        let folder = &cell.config.run.out_dir;
        let (state, note) = match end {
            End::Done { quarantined: false, .. } => ("done", None),
            End::Done { quarantined: true, .. } => ("done, users put aside", None),
            End::Same(same) => ("same", Some(study.cells[*same].name.clone())),
            End::Failed(reason) => ("failed", Some(reason.clone())),
        };
        json!({
            "name": cell.name,
            "at": at,
            "folder": folder.strip_prefix(&study.out_dir).unwrap_or(folder),
            "state": state,
            "note": note,
        })
    };
    study.cells.iter().zip(ends).map(cell).collect()
}

/// One row a cell, arm and metric, with a column an axis.
fn csv(study: &Study, tables: &Tables) -> String {
    let mut text = String::new();
    let mut line = |cells: Vec<String>| {
        text.push_str(&cells.iter().map(|c| quoted(c)).collect::<Vec<_>>().join(","));
        text.push('\n');
    };
    let fixed = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let mut head = fixed(&["panel", "cell"]);
    head.extend(study.axes.iter().map(|a| a.name.clone()));
    head.extend(fixed(&["arm", "answered_by", "metric", "queries", "users", "value", "lo", "hi"]));
    line(head);
    for row in &tables.cells {
        let mut cells = vec![tables.panels[row.panel].title.clone(), row.cell.clone()];
        cells.extend(row.at.iter().cloned());
        let e = row.estimate;
        cells.extend(fixed(&[row.arm.name(), row.answered_by.name(), row.metric.name()]));
        cells.extend([row.num_queries, row.num_users].map(|n| n.to_string()));
        cells.extend([e.value, e.interval.lo, e.interval.hi].map(|v| v.to_string()));
        line(cells);
    }
    text
}

/// A field of RFC 4180.
fn quoted(field: &str) -> String {
    if field.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

fn text(study: &Study, ends: &[End], tables: &Tables) -> String {
    let mut text = String::new();
    let percent = 100.0 * tables.bootstrap.confidence;
    for (number, panel) in tables.panels.iter().enumerate() {
        if !panel.title.is_empty() {
            let _ = writeln!(text, "## {}\n", panel.title);
        }
        let rows: Vec<&CellRow> = tables.cells.iter().filter(|r| r.panel == number).collect();
        text.push_str(&cell_table(&rows, percent));
        if panel.left_out > 0 {
            let _ = writeln!(
                text,
                "\n{} queries that some arm of some cell does not answer are left out.",
                panel.left_out
            );
        }
        for axis in &study.axes {
            let here = |r: &&AxisRow| r.panel == number && r.axis == axis.name;
            let rows: Vec<&AxisRow> = tables.axes.iter().filter(here).collect();
            if !rows.is_empty() {
                let _ = write!(text, "\n{}", axis_table(&axis.name, &rows, percent));
            }
        }
        let metrics: BTreeSet<Metric> = rows.iter().map(|r| r.metric).collect();
        let errors = metrics.iter().filter(|m| m.lower_is_better()).map(|m| m.name());
        let errors: Vec<&str> = errors.collect();
        if !errors.is_empty() {
            let _ = writeln!(text, "\nLower is better: {}.", errors.join(", "));
        }
        text.push('\n');
    }
    for (cell, end) in study.cells.iter().zip(ends) {
        let _ = match end {
            End::Failed(reason) => writeln!(text, "failed: {}: {reason}", cell.name),
            End::Same(same) => {
                writeln!(text, "{} is the same run as {}", cell.name, study.cells[*same].name)
            }
            End::Done { quarantined: true, .. } => {
                writeln!(text, "{}: some users were put aside", cell.name)
            }
            End::Done { .. } => Ok(()),
        };
    }
    text
}

fn cell_table(rows: &[&CellRow], percent: f64) -> String {
    let interval = format!("[{percent} % users]");
    let head = ["metric", "cell", "arm", "queries", "users", "value", &interval];
    let mut grid = Grid::new(&head, 3);
    for row in rows {
        let e = row.estimate;
        let by = row.answered_by;
        let arm = if by == row.arm {
            by.name().to_owned()
        } else {
            format!("{} (= {})", row.arm.name(), by.name())
        };
        grid.push(vec![
            row.metric.name().to_owned(),
            row.cell.clone(),
            arm,
            row.num_queries.to_string(),
            row.num_users.to_string(),
            format!("{:.4}", e.value),
            format!("[{:.4}, {:.4}]", e.interval.lo, e.interval.hi),
        ]);
    }
    grid.render()
}

fn axis_table(axis: &str, rows: &[&AxisRow], percent: f64) -> String {
    let [value, difference] = ["value [% users]", "minus the first [% users]"]
        .map(|h| h.replace('%', &format!("{percent} %")));
    let head =
        ["metric", axis, "arm", "cells", &value, &difference, "pairs", "better", "worse", "sign p"];
    let mut grid = Grid::new(&head, 3);
    for row in rows {
        let e = row.estimate;
        let against = row.against_first.as_ref();
        let dash = || "-".to_owned();
        let users = against.and_then(|a| a.users.as_ref());
        let share = |v: Option<f64>| v.map_or_else(dash, |v| format!("{:.1} %", 100.0 * v));
        grid.push(vec![
            row.metric.name().to_owned(),
            row.value_label.clone(),
            row.arm.name().to_owned(),
            row.num_cells.to_string(),
            format!("{:.4} [{:.4}, {:.4}]", e.value, e.interval.lo, e.interval.hi),
            against.map_or_else(dash, |a| {
                let d = a.difference;
                format!("{:+.4} [{:+.4}, {:+.4}]", d.value, d.interval.lo, d.interval.hi)
            }),
            against.map_or_else(dash, |a| a.num_cells.to_string()),
            share(users.map(|u| u.better_share)),
            share(users.map(|u| u.worse_share)),
            users.map_or_else(dash, |u| format!("{:.4}", u.sign_test_p)),
        ]);
    }
    grid.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_would_break_a_line_are_quoted() {
        assert_eq!(quoted("a=1"), "a=1");
        assert_eq!(quoted("a=1,b=\"2\"\n"), "\"a=1,b=\"\"2\"\"\n\"");
    }
}
