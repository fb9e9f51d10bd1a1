//! A study as written (`[study]` of a config) and as meant: its cells, each a config of its own.
//!
//! Start reading at [`Document::study`].

use super::document::Document;
use super::error::{Error, Place, Suggestion};
use super::identity::effect;
use super::keys::{Effect, SECTIONS};
use super::resolved::{Arm, Config, OrderKind, ProfileSource, Prompt, RetrieverKind};
use super::value::nearest;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use toml::{Table, Value};

/// The section of a study.
pub(super) const STUDY: &str = "study";
/// Cells a study may have, left out ones included.
const MAX_CELLS: usize = 100_000;

/// Several runs of one config: every combination of the values of some axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Study {
    /// `run.name`.
    pub name: String,
    /// `run.out_dir`: the folder of the study; cells live below it.
    pub out_dir: PathBuf,
    /// The axes, in the order of their lines.
    pub axes: Vec<Axis>,
    /// The combinations that are not left out; the last axis moves fastest.
    pub cells: Vec<Cell>,
}

/// One thing that differs between cells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axis {
    /// A key with its section, or the name of a group of keys.
    pub name: String,
    /// `name` without the section where that is clear enough.
    pub short: String,
    /// Its values as people read them, in the written order; distinct.
    pub labels: Vec<String>,
}

/// One run of a study.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// `axis=value,axis=value`.
    pub name: String,
    /// Number of the value on each axis.
    pub point: Vec<usize>,
    /// Identity: of all that can change results, and of the paths the axes set. Sixteen hexadecimal digits.
    pub id: String,
    /// An earlier cell that is this very run.
    pub same_as: Option<usize>,
    /// Every wanted row of the table, and the arm whose answers it has: an arm that would show what the cell does not
    /// have is the arm without it (`rag` with nothing retrieved is `base`).
    pub rows: Vec<(Arm, Arm)>,
    /// The run; its arms are those that answer rows, its folder is the study's until a cell's is chosen.
    pub config: Config,
}

/// A value of an axis: what it puts at which keys.
struct Point {
    label: String,
    /// The value of a plain axis; the label of a named point.
    value: Value,
    place: Place,
    sets: Vec<(String, Value)>,
}

struct Written {
    axis: Axis,
    points: Vec<Point>,
}

impl Document {
    /// Whether the config is a study.
    pub fn is_study(&self) -> bool {
        self.table.contains_key(STUDY)
    }

    /// The study as meant; every cell is resolved. `variables` are as in [`Document::resolve`].
    ///
    /// # Errors
    /// What `[study]` lacks or does not know, an axis that does not vary or may not, a key on two axes, and, naming
    /// the cell, everything that [`Document::resolve`] finds wrong.
    pub fn study(&self, variables: &BTreeMap<String, String>) -> Result<Study, Error> {
        let axes = self.axes()?;
        let skips = self.skips(&axes)?;
        let size = axes.iter().try_fold(1usize, |n, a| n.checked_mul(a.points.len()));
        if size.is_none_or(|n| n > MAX_CELLS) {
            let reason = format!("the axes have more than {MAX_CELLS} combinations");
            return Err(self.wrong("study.axes", &reason));
        }
        let mut plain = self.clone();
        plain.table.remove(STUDY);
        let mut cells: Vec<Cell> = Vec::new();
        let mut known = BTreeMap::new();
        for point in (0..size.unwrap_or(0)).map(|n| coordinates(n, &axes)) {
            if skips.iter().any(|rule| rule.iter().all(|(axis, on)| on.contains(&point[*axis]))) {
                continue;
            }
            let name = name_of(&axes, &point);
            let named = |e| Error::Cell { cell: name.clone(), source: Box::new(e) };
            let mut cell = plain.cell(&axes, point, variables).map_err(named)?;
            cell.name.clone_from(&name);
            cell.same_as = known.get(&cell.id).copied();
            known.entry(cell.id.clone()).or_insert(cells.len());
            cells.push(cell);
        }
        let Some(first) = cells.first() else {
            return Err(self.wrong("study.skip", "leaves no cell"));
        };
        let (name, out_dir) = (first.config.run.name.clone(), first.config.run.out_dir.clone());
        for cell in &mut cells {
            cell.config.run.name = format!("{name} {}", cell.name);
        }
        Ok(Study { name, out_dir, axes: axes.into_iter().map(|a| a.axis).collect(), cells })
    }

    fn wrong(&self, key: &str, reason: &str) -> Error {
        Error::Conflict { place: self.place(key), key: key.into(), reason: reason.to_owned() }
    }

    fn unknown(&self, path: &str, name: &str, known: &[&str]) -> Error {
        let suggestion = match SECTIONS[0].keys.iter().any(|k| k.name == name) {
            true => Suggestion::Section(SECTIONS[0].name.to_owned()),
            false => nearest(name, known.iter().copied()),
        };
        Error::Unknown { place: self.place(path), key: path.into(), suggestion }
    }

    /// The axes by the lines they are written on.
    fn axes(&self) -> Result<Vec<Written>, Error> {
        let section = self.table.get(STUDY).and_then(Value::as_table);
        let section = section.ok_or_else(|| self.wrong(STUDY, "there is no such section"))?;
        if let Some(name) = section.keys().find(|k| !["axes", "skip"].contains(&k.as_str())) {
            return Err(self.unknown(&format!("{STUDY}.{name}"), name, &["axes", "skip"]));
        }
        let written = section.get("axes").and_then(Value::as_table);
        let written = written.filter(|t| !t.is_empty());
        let none = || self.wrong("study.axes", "must have an axis: a key and a list of its values");
        let mut axes = Vec::new();
        for (name, value) in flat(written.ok_or_else(none)?) {
            axes.push(self.axis(&name, value)?);
        }
        axes.sort_by_key(|a| self.line(&a.axis.name));
        let short = |a: &Written| a.axis.name.rsplit('.').next().unwrap_or_default().to_owned();
        let shorts: Vec<String> = axes.iter().map(short).collect();
        for (axis, short) in axes.iter_mut().zip(&shorts) {
            let alone = shorts.iter().filter(|s| *s == short).count() == 1;
            axis.axis.short = if alone { short.clone() } else { axis.axis.name.clone() };
        }
        self.fixed(&axes)?;
        Ok(axes)
    }

    fn line(&self, axis: &str) -> (PathBuf, usize) {
        match self.place(&format!("study.axes.{axis}")) {
            Place::File { file, line } => (file, line.unwrap_or(0)),
            Place::Set { .. } => (PathBuf::new(), 0),
        }
    }

    fn axis(&self, name: &str, value: &Value) -> Result<Written, Error> {
        let path = format!("study.axes.{name}");
        let points = value.as_array().filter(|list| !list.is_empty());
        let points = points
            .ok_or_else(|| self.wrong(&path, "must be a list of values, or of named points"))?;
        let points: Vec<Point> = points
            .iter()
            .enumerate()
            .map(|(i, value)| match value.as_table() {
                Some(table) => self.named(&format!("{path}[{i}]"), table),
                None => Ok(Point {
                    label: value.as_str().map_or_else(|| value.to_string(), str::to_owned),
                    value: value.clone(),
                    place: self.place(&format!("{path}[{i}]")),
                    sets: vec![(name.to_owned(), value.clone())],
                }),
            })
            .collect::<Result<_, _>>()?;
        let labels: Vec<String> = points.iter().map(|p| p.label.clone()).collect();
        let mut seen = BTreeSet::new();
        if let Some(twice) = labels.iter().find(|label| !seen.insert(label.as_str())) {
            return Err(self.wrong(&path, &format!("has {twice:?} twice")));
        }
        let axis = Axis { name: name.to_owned(), short: String::new(), labels };
        Ok(Written { axis, points })
    }

    fn named(&self, path: &str, table: &Table) -> Result<Point, Error> {
        if let Some(name) = table.keys().find(|k| !["label", "set"].contains(&k.as_str())) {
            return Err(self.unknown(&format!("{path}.{name}"), name, &["label", "set"]));
        }
        let label = table.get("label").and_then(Value::as_str).filter(|l| !l.is_empty());
        let sets = table.get("set").and_then(Value::as_table).filter(|t| !t.is_empty());
        let (Some(label), Some(sets)) = (label, sets) else {
            return Err(self.wrong(path, "a point is { label = \"…\", set = { \"key\" = value } }"));
        };
        Ok(Point {
            label: label.to_owned(),
            value: label.into(),
            place: self.place(path),
            sets: flat(sets).into_iter().map(|(key, value)| (key, value.clone())).collect(),
        })
    }

    /// Refuses keys that an axis may not move, that two axes move, or that `--set` holds fast.
    fn fixed(&self, axes: &[Written]) -> Result<(), Error> {
        let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
        for axis in axes {
            let path = format!("study.axes.{}", axis.axis.name);
            let keys: BTreeSet<&str> =
                axis.points.iter().flat_map(|p| &p.sets).map(|(key, _)| key.as_str()).collect();
            for key in keys {
                let layout =
                    key.starts_with("engine.") && effect(key, SECTIONS) == Effect::Placement;
                if layout || ["run.name", "run.out_dir"].contains(&key) {
                    return Err(self.wrong(&path, &format!("`{key}` is the same in all cells")));
                }
                if let Place::Set { .. } = self.place(key) {
                    return Err(self.wrong(key, "is an axis of the study"));
                }
                if let Some(other) = owners.insert(key, &axis.axis.name) {
                    return Err(self.wrong(&path, &format!("`{key}` is on the axis `{other}` too")));
                }
            }
        }
        Ok(())
    }

    /// The rules of `study.skip`: by number of the axis, the numbers of the values on which the rule holds.
    fn skips(&self, axes: &[Written]) -> Result<Vec<BTreeMap<usize, Vec<usize>>>, Error> {
        let Some(rules) = self.table.get(STUDY).and_then(|s| s.get("skip")) else {
            return Ok(Vec::new());
        };
        let form = || self.wrong("study.skip", "must be a list of { \"axis\" = value or values }");
        let rules = rules.as_array().ok_or_else(form)?;
        let names: Vec<&str> = axes.iter().map(|a| a.axis.name.as_str()).collect();
        let mut skips = Vec::new();
        for (i, rule) in rules.iter().enumerate() {
            let mut skip = BTreeMap::new();
            let rule = rule.as_table().filter(|t| !t.is_empty()).ok_or_else(form)?;
            for (name, wanted) in flat(rule) {
                let path = format!("study.skip[{i}].{name}");
                let Some(axis) = names.iter().position(|n| *n == name) else {
                    return Err(self.unknown(&path, &name, &names));
                };
                let one = |w: &Value| axes[axis].points.iter().position(|p| p.value == *w);
                let on = match (one(wanted), wanted.as_array()) {
                    (Some(only), _) => Some(vec![only]),
                    (None, Some(list)) => list.iter().map(one).collect(),
                    (None, None) => None,
                };
                let on = on.filter(|on| !on.is_empty()).ok_or_else(|| Error::Value {
                    place: self.place(&path),
                    key: path.as_str().into(),
                    given: wanted.to_string().into(),
                    allowed: format!("values of the axis: {}", axes[axis].axis.labels.join(", "))
                        .into(),
                    suggestion: Suggestion::Nothing,
                })?;
                skip.insert(axis, on);
            }
            skips.push(skip);
        }
        Ok(skips)
    }

    /// The cell of a point; `self` has no `[study]`.
    fn cell(
        &self,
        axes: &[Written],
        point: Vec<usize>,
        variables: &BTreeMap<String, String>,
    ) -> Result<Cell, Error> {
        let mut document = self.clone();
        let mut paths = BTreeMap::new();
        for (axis, &at) in axes.iter().zip(&point) {
            let here = &axis.points[at];
            for (key, value) in &here.sets {
                document.put(key, value.clone(), here.place.clone())?;
                if effect(key, SECTIONS) == Effect::Placement {
                    paths.insert(key, value.to_string());
                }
            }
        }
        let meant = document.meant(variables)?;
        for key in idle(&meant) {
            document.drop(key);
        }
        let mut config = document.meant(variables)?;
        let rows: Vec<(Arm, Arm)> =
            config.run.arms.iter().map(|&arm| (arm, answers(arm, &config))).collect();
        let mut arms: Vec<Arm> = rows.iter().map(|(_, by)| *by).collect();
        arms.sort_unstable();
        arms.dedup();
        config.run.arms = arms;
        document.fitting(&config)?;
        let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 study cell");
        hasher.update(&config.result_hash()?.0);
        // The bytes behind a path are no part of the config's hash; a path that an axis sets, as written, is the cell's.
        for (key, value) in paths {
            for text in [key.as_bytes(), value.as_bytes()] {
                hasher.update(&(text.len() as u64).to_le_bytes()).update(text);
            }
        }
        let id = hasher.finalize().to_hex()[..16].to_owned();
        Ok(Cell { name: String::new(), point, id, same_as: None, rows, config })
    }
}

/// Every value that is no table, by its dotted key: keys may be quoted whole or written as tables.
fn flat(table: &Table) -> Vec<(String, &Value)> {
    let mut out = Vec::new();
    for (name, value) in table {
        match value.as_table() {
            Some(inner) => {
                out.extend(flat(inner).into_iter().map(|(key, v)| (format!("{name}.{key}"), v)));
            }
            None => out.push((name.clone(), value)),
        }
    }
    out
}

/// The `n`-th combination; the last axis moves fastest.
fn coordinates(mut n: usize, axes: &[Written]) -> Vec<usize> {
    let mut point: Vec<usize> = axes
        .iter()
        .rev()
        .map(|axis| {
            let at = n % axis.points.len();
            n /= axis.points.len();
            at
        })
        .collect();
    point.reverse();
    point
}

fn name_of(axes: &[Written], point: &[usize]) -> String {
    let parts = axes.iter().zip(point).map(|(a, &at)| {
        let axis = &a.axis;
        format!("{}={}", axis.short, axis.labels[at])
    });
    parts.collect::<Vec<_>>().join(",")
}

fn shows_items(config: &Config) -> bool {
    config.prompt.retrieved > 0 || config.prompt.retrieved_share > 0.0
}

/// A single item, or none, has one order.
fn has_order(prompt: &Prompt) -> bool {
    prompt.retrieved > 1 || prompt.retrieved_share > 0.0
}

/// Whether chance has a part in what is shown.
fn is_drawn(config: &Config) -> bool {
    let prompt = &config.prompt;
    let draws = |kind: RetrieverKind| match kind {
        RetrieverKind::Bm25Okapi
        | RetrieverKind::Bm25Lamp
        | RetrieverKind::Bm25Study
        | RetrieverKind::Recency => false,
        RetrieverKind::Random
        | RetrieverKind::RandomLamp
        | RetrieverKind::FullRandom
        | RetrieverKind::RanBm25
        | RetrieverKind::Mixed => true,
    };
    let retriever = match prompt.retriever {
        RetrieverKind::Mixed => draws(prompt.input_retriever) || draws(prompt.output_retriever),
        alone => draws(alone),
    };
    let order = prompt.order == OrderKind::Random && has_order(prompt);
    shows_items(config) && (retriever || order)
}

/// Keys without any meaning in this config: cells that differ in them alone are one run.
fn idle(config: &Config) -> Vec<&'static str> {
    let prompt = &config.prompt;
    let mut keys = Vec::new();
    if !shows_items(config) {
        keys.extend(["prompt.retriever", "prompt.offset", "prompt.order", "prompt.ablation"]);
    }
    if !is_drawn(config) {
        keys.push("prompt.retrieval_seed");
    }
    if !shows_items(config) || prompt.retriever != RetrieverKind::Mixed {
        keys.extend(["prompt.input_retriever", "prompt.output_retriever"]);
    }
    if !shows_items(config) || prompt.retriever != RetrieverKind::RanBm25 {
        keys.push("prompt.pool_items");
    }
    if !has_order(prompt) {
        keys.push("prompt.order");
    }
    if config.profile.source != ProfileSource::Generate {
        keys.extend(["profile.items", "profile.max_new_tokens", "profile.temperature"]);
        keys.extend(["profile.top_k", "profile.top_p"]);
    }
    keys
}

/// The arm that answers for another one in this config.
fn answers(arm: Arm, config: &Config) -> Arm {
    let profile = config.profile.source != ProfileSource::None;
    match arm {
        Arm::Population if !config.population.enabled => answers(Arm::Pag, config),
        Arm::Pag if !profile => answers(Arm::Rag, config),
        Arm::Rag if !shows_items(config) => Arm::Base,
        other => other,
    }
}

#[cfg(test)]
#[path = "study_tests.rs"]
mod tests;
