//! The rows of a study's tables: one a cell, arm and metric; and one a value of an axis, over all cells that have it.
//!
//! Cells are compared within a panel: those that answer the same questions with the same labels. A value of an axis is
//! the metric over the queries of all its cells; against the axis's first value, over the cells both have, paired by
//! user, query and the place on the other axes, users drawn with all of that. Start reading at [`tables`].

use super::{End, Kin};
use anyhow::Context;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use trainer::config::{Arm as ArmName, Metric, Study};
use trainer::eval::{Arm, Bootstrap, Estimate, Options, Prediction, UserCounts, compare, estimate};

/// One cell under one metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct CellRow {
    pub(super) panel: usize,
    pub(super) cell: String,
    /// Labels of the values on the axes.
    pub(super) at: Vec<String>,
    pub(super) arm: ArmName,
    /// The arm whose answers these are.
    pub(super) answered_by: ArmName,
    pub(super) metric: Metric,
    pub(super) num_queries: usize,
    pub(super) num_users: usize,
    #[serde(flatten)]
    pub(super) estimate: Estimate,
}

/// One value of an axis under one metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct AxisRow {
    pub(super) panel: usize,
    pub(super) axis: String,
    pub(super) value_label: String,
    pub(super) arm: ArmName,
    pub(super) metric: Metric,
    /// Cells that have the value.
    pub(super) num_cells: usize,
    #[serde(flatten)]
    pub(super) estimate: Estimate,
    /// Against the first value of the axis; none for itself.
    pub(super) against_first: Option<Against>,
}

/// A value of an axis minus the first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Against {
    pub(super) first: String,
    /// Pairs of cells that differ in this axis alone.
    pub(super) num_cells: usize,
    pub(super) difference: Estimate,
    /// None for a metric that has no value for one user.
    pub(super) users: Option<UserCounts>,
}

/// Cells that answer the same questions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Panel {
    /// What its cells have in common and others have not; empty if there is one panel.
    pub(super) title: String,
    pub(super) num_queries: usize,
    /// Queries that some arm of some cell does not answer, left out everywhere.
    pub(super) left_out: usize,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Tables {
    pub(super) bootstrap: Bootstrap,
    pub(super) panels: Vec<Panel>,
    pub(super) cells: Vec<CellRow>,
    pub(super) axes: Vec<AxisRow>,
}

/// Answers by cell and row.
pub(super) type Answers = BTreeMap<(usize, ArmName), Vec<Prediction>>;

/// A panel at work.
pub(super) struct Group<'a> {
    pub(super) number: usize,
    pub(super) study: &'a Study,
    labels: &'a [String],
    metrics: Vec<Metric>,
    pub(super) cells: Vec<usize>,
    answers: Answers,
    bootstrap: &'a Bootstrap,
}

/// The tables of all cells that ended well, and the panels for the pictures.
pub(super) fn tables<'a>(
    study: &'a Study,
    ends: &'a [End],
    bootstrap: &'a Bootstrap,
) -> anyhow::Result<(Tables, Vec<Group<'a>>)> {
    let mut kin: BTreeMap<&Kin, Vec<usize>> = BTreeMap::new();
    for cell in 0..ends.len() {
        let run = match ends[cell] {
            End::Same(same) => same,
            _ => cell,
        };
        if let End::Done { kin: of, .. } = &ends[run] {
            kin.entry(of).or_default().push(cell);
        }
    }
    let mut groups: Vec<(&Kin, Vec<usize>)> = kin.into_iter().collect();
    groups.sort_by_key(|(_, cells)| cells[0]);
    let alone = groups.len() == 1;
    let mut all =
        Tables { bootstrap: bootstrap.clone(), panels: vec![], cells: vec![], axes: vec![] };
    let mut panels = Vec::new();
    for (number, (kin, cells)) in groups.into_iter().enumerate() {
        let (answers, left_out) = answers(study, &cells)?;
        let title = if alone { String::new() } else { title(study, &cells) };
        let num_queries = answers.values().next().map_or(0, Vec::len);
        all.panels.push(Panel { title, num_queries, left_out });
        if num_queries == 0 {
            continue;
        }
        let metrics = study.cells[cells[0]].config.evaluate.metrics.clone();
        let (labels, bootstrap) = (kin.labels.as_slice(), bootstrap);
        let group = Group { number, study, labels, metrics, cells, answers, bootstrap };
        all.cells.extend(group.cell_rows()?);
        for axis in 0..study.axes.len() {
            all.axes.extend(group.axis_rows(axis)?);
        }
        panels.push(group);
    }
    Ok((all, panels))
}

/// Labels of the axes on which the cells stand at one place, of several the study has.
fn title(study: &Study, cells: &[usize]) -> String {
    let fixed = study.axes.iter().enumerate().filter_map(|(i, axis)| {
        let at: BTreeSet<usize> = cells.iter().map(|&c| study.cells[c].point[i]).collect();
        let only = at.first().filter(|_| at.len() == 1 && axis.labels.len() > 1)?;
        Some(format!("{}={}", axis.short, axis.labels[*only]))
    });
    fixed.collect::<Vec<_>>().join(",")
}

/// The predictions of all rows of some cells, those that every row has, and how many queries are left out.
fn answers(study: &Study, cells: &[usize]) -> anyhow::Result<(Answers, usize)> {
    let mut answers = Answers::new();
    for &cell in cells {
        let folder = study.cells[cell].config.run.out_dir.join("predictions");
        for &(row, by) in &study.cells[cell].rows {
            answers.insert((cell, row), read(&folder.join(format!("{}.jsonl", by.name())))?);
        }
    }
    let keys = |list: &Vec<Prediction>| -> BTreeSet<(String, String)> {
        let labelled = list.iter().filter(|p| p.gold.is_some());
        labelled.map(|p| (p.user.as_str().to_owned(), p.query.clone())).collect()
    };
    let asked: BTreeSet<(String, String)> = answers.values().flat_map(keys).collect();
    let mut common = asked.clone();
    for list in answers.values() {
        let own = keys(list);
        common.retain(|key| own.contains(key));
    }
    for list in answers.values_mut() {
        list.retain(|p| common.contains(&(p.user.as_str().to_owned(), p.query.clone())));
    }
    Ok((answers, asked.len() - common.len()))
}

fn read(path: &Path) -> anyhow::Result<Vec<Prediction>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let lines = text.lines().map(serde_json::from_str).collect::<Result<_, _>>();
    lines.with_context(|| format!("{}", path.display()))
}

impl Group<'_> {
    fn arm(&self, cell: usize, row: ArmName) -> Option<&Vec<Prediction>> {
        self.answers.get(&(cell, row))
    }

    /// The arms of any of its cells, in the order of tables.
    pub(super) fn arms(&self) -> BTreeSet<ArmName> {
        self.answers.keys().map(|(_, arm)| *arm).collect()
    }

    /// Whether an arm's answers are not the same in all cells.
    pub(super) fn differs(&self, row: ArmName) -> bool {
        let mut lists = self.answers.iter().filter(|((_, arm), _)| *arm == row).map(|(_, l)| l);
        let first = lists.next();
        lists.any(|list| Some(list) != first)
    }

    pub(super) fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    fn cell_rows(&self) -> anyhow::Result<Vec<CellRow>> {
        let mut rows = Vec::new();
        for &metric in &self.metrics {
            for &number in &self.cells {
                let cell = &self.study.cells[number];
                for &(row, by) in &cell.rows {
                    let Some(predictions) = self.arm(number, row) else { continue };
                    let users: BTreeSet<&str> =
                        predictions.iter().map(|p| p.user.as_str()).collect();
                    let axes = self.study.axes.iter().zip(&cell.point);
                    rows.push(CellRow {
                        panel: self.number,
                        cell: cell.name.clone(),
                        at: axes.map(|(axis, &at)| axis.labels[at].clone()).collect(),
                        arm: row,
                        answered_by: by,
                        metric,
                        num_queries: predictions.len(),
                        num_users: users.len(),
                        estimate: self.value(metric, row, &[number])?,
                    });
                }
            }
        }
        Ok(rows)
    }

    /// The metric over the queries of all these cells.
    pub(super) fn value(
        &self,
        metric: Metric,
        row: ArmName,
        cells: &[usize],
    ) -> anyhow::Result<Estimate> {
        let arm = self.pooled(String::new(), row, cells, None);
        Ok(estimate(&arm, metric, self.labels, self.bootstrap)?)
    }

    /// The answers of some cells as one arm; queries are told apart by their places on all axes but one.
    fn pooled(&self, name: String, row: ArmName, cells: &[usize], but: Option<usize>) -> Arm {
        let mut predictions = Vec::new();
        for &cell in cells {
            let place = self.place(cell, but);
            for p in self.arm(cell, row).into_iter().flatten() {
                predictions
                    .push(Prediction { query: format!("{place:?} {}", p.query), ..p.clone() });
            }
        }
        Arm { name, predictions }
    }

    /// Where a cell stands on all axes but one.
    fn place(&self, cell: usize, but: Option<usize>) -> Vec<usize> {
        let point = self.study.cells[cell].point.iter().enumerate();
        point.filter(|(axis, _)| Some(*axis) != but).map(|(_, &at)| at).collect()
    }

    /// The cells with answers of an arm that have a value of an axis.
    pub(super) fn having(&self, row: ArmName, axis: usize, value: usize) -> Vec<usize> {
        let here = |cell: &&usize| {
            self.study.cells[**cell].point[axis] == value && self.arm(**cell, row).is_some()
        };
        self.cells.iter().filter(here).copied().collect()
    }

    fn axis_rows(&self, axis: usize) -> anyhow::Result<Vec<AxisRow>> {
        let of = &self.study.axes[axis];
        let mut rows = Vec::new();
        for &metric in &self.metrics {
            for row in self.arms() {
                let values: Vec<(usize, Vec<usize>)> = (0..of.labels.len())
                    .map(|value| (value, self.having(row, axis, value)))
                    .filter(|(_, cells)| !cells.is_empty())
                    .collect();
                let Some(((first, base), true)) = values.first().map(|v| (v, values.len() > 1))
                else {
                    continue;
                };
                for (value, cells) in &values {
                    let against = match value == first {
                        true => None,
                        false => self.against(metric, row, axis, (base, cells))?,
                    };
                    rows.push(AxisRow {
                        panel: self.number,
                        axis: of.name.clone(),
                        value_label: of.labels[*value].clone(),
                        arm: row,
                        metric,
                        num_cells: cells.len(),
                        estimate: self.value(metric, row, cells)?,
                        against_first: against
                            .map(|a| Against { first: of.labels[*first].clone(), ..a }),
                    });
                }
            }
        }
        Ok(rows)
    }

    /// Cells of a value minus those of the first, over the places both have.
    fn against(
        &self,
        metric: Metric,
        row: ArmName,
        axis: usize,
        (first, cells): (&[usize], &[usize]),
    ) -> anyhow::Result<Option<Against>> {
        let places = |list: &[usize]| -> BTreeSet<Vec<usize>> {
            list.iter().map(|&cell| self.place(cell, Some(axis))).collect()
        };
        let both: BTreeSet<Vec<usize>> =
            places(first).intersection(&places(cells)).cloned().collect();
        if both.is_empty() {
            return Ok(None);
        }
        let kept = |list: &[usize]| -> Vec<usize> {
            let has = |cell: &&usize| both.contains(&self.place(**cell, Some(axis)));
            list.iter().filter(has).copied().collect()
        };
        let arms = [("first", first), ("value", cells)]
            .map(|(name, list)| self.pooled(name.to_owned(), row, &kept(list), Some(axis)));
        let options = Options {
            metrics: vec![metric],
            labels: self.labels.to_vec(),
            references: vec!["first".to_owned()],
            bootstrap: self.bootstrap.clone(),
            ..Options::default()
        };
        let comparison = compare(&arms, &options)?;
        let differences = comparison.rows.into_iter().flat_map(|r| r.differences);
        Ok(differences.last().map(|d| Against {
            first: String::new(),
            num_cells: both.len(),
            difference: d.over_queries,
            users: d.users,
        }))
    }
}
