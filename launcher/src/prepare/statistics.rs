//! What data holds, counted user by user.

use crate::exit::Fails;
use serde::Serialize as Derive;
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use trainer::data::{Item, LampTask, Role, UserRecord};
use trainer::model::tokenizer::Tokenizer;

/// Answers of more kinds than this are free text: they are no labels and not held.
const MAX_LABELS: usize = 50;

/// How answers are counted that the task does not have.
const NO_LABEL: &str = "(no label of the task)";

/// A text of so many words that stands in two places is no accident.
const LONG_WORDS: usize = 4;

/// Where no task says which fields answer.
const ANSWERS: [&str; 3] = ["score", "tag", "category"];

/// How lengths are measured.
pub(super) enum Measure {
    /// Runs of anything but white space.
    Words,
    /// Tokens of a base.
    Tokens(Box<Tokenizer>),
}

impl Measure {
    pub(super) fn open(base: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = base else { return Ok(Self::Words) };
        let hint = "--base names a Hugging Face folder or a GGUF file";
        let source = trainer::model::weights::open(path).input(hint)?;
        Ok(Self::Tokens(Box::new(Tokenizer::open(path, source.spec()).input(hint)?)))
    }

    pub(super) fn unit(&self) -> &'static str {
        match self {
            Self::Words => "words",
            Self::Tokens(_) => "tokens",
        }
    }

    fn of(&self, text: &str) -> anyhow::Result<u64> {
        Ok(match self {
            Self::Words => text.split_whitespace().count() as u64,
            Self::Tokens(tokenizer) => tokenizer.encode(text)?.len() as u64,
        })
    }
}

/// Lengths and how often each occurs: exact quantiles in memory that grows with the longest, not with
/// their number.
#[derive(Debug, Default)]
pub(super) struct Lengths(BTreeMap<u64, u64>);

impl Lengths {
    /// The columns of a table: name and per cent.
    pub(super) const QUANTILES: [(&'static str, u64); 8] = [
        ("min", 0),
        ("p10", 10),
        ("p25", 25),
        ("p50", 50),
        ("p75", 75),
        ("p90", 90),
        ("p99", 99),
        ("max", 100),
    ];

    pub(super) fn add(&mut self, length: u64) {
        *self.0.entry(length).or_default() += 1;
    }

    pub(super) fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// The smallest length that at least `per_cent` of all are not longer than; 0 of none.
    pub(super) fn quantile(&self, per_cent: u64) -> u64 {
        let wanted = (self.count() * per_cent).div_ceil(100).max(1);
        let mut so_far = 0;
        let mut lengths = self.0.iter();
        let found = lengths.find(|(_, times)| {
            so_far += *times;
            so_far >= wanted
        });
        found.map_or(0, |(length, _)| *length)
    }

    #[expect(clippy::cast_precision_loss, reason = "a mean for people")]
    pub(super) fn mean(&self) -> f64 {
        let total: u64 = self.0.iter().map(|(length, times)| length * times).sum();
        total as f64 / self.count().max(1) as f64
    }
}

impl Serialize for Lengths {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("count", &self.count())?;
        for (name, per_cent) in Self::QUANTILES {
            map.serialize_entry(name, &self.quantile(per_cent))?;
        }
        map.serialize_entry("mean", &self.mean())?;
        map.end()
    }
}

/// How often each label occurs; nothing once there are too many kinds.
#[derive(Debug)]
pub(super) struct Labels(Option<BTreeMap<String, u64>>);

impl Default for Labels {
    fn default() -> Self {
        Self(Some(BTreeMap::new()))
    }
}

impl Labels {
    fn add(&mut self, label: &str) {
        let Some(counts) = &mut self.0 else { return };
        if let Some(times) = counts.get_mut(label) {
            *times += 1;
        } else if counts.len() < MAX_LABELS {
            counts.insert(label.to_owned(), 1);
        } else {
            self.0 = None;
        }
    }

    /// Label -> how often; `None` for free text and for none at all.
    pub(super) fn counts(&self) -> Option<&BTreeMap<String, u64>> {
        self.0.as_ref().filter(|counts| !counts.is_empty())
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.counts().serialize(s)
    }
}

/// Users of one role.
#[derive(Debug, Default, Derive)]
pub(super) struct Group {
    pub(super) users: u64,
    pub(super) history_items: u64,
    pub(super) queries: u64,
    /// Users with history, every item of which has a `date`.
    pub(super) dated_users: u64,
    /// Queries with an answer: `gold`, or a label field.
    pub(super) answered_queries: u64,
    /// Items whose fields (`date` apart) an earlier item of the same user has.
    pub(super) repeated_items: u64,
    /// Queries with a text of four words or more that is a field of the user's history.
    pub(super) known_queries: u64,
    pub(super) history_per_user: Lengths,
    pub(super) queries_per_user: Lengths,
    /// All fields of a history item but its `date`.
    pub(super) history_item_length: Lengths,
    /// A query's `input`; without one its fields but date and answer.
    pub(super) question_length: Lengths,
    pub(super) answer_length: Lengths,
    pub(super) history_labels: Labels,
    pub(super) query_labels: Labels,
}

/// Where answers are found and which of them are labels.
#[derive(Debug)]
struct Answers {
    task: Option<LampTask>,
    /// Fields that answer a query without `gold`.
    fields: Vec<&'static str>,
}

impl Answers {
    fn new(task: Option<LampTask>) -> Self {
        let own = |task: LampTask| {
            let field = task.answer_field().filter(|f| !task.payload_fields().contains(f));
            field.into_iter().collect()
        };
        Self { task, fields: task.map_or_else(|| ANSWERS.to_vec(), own) }
    }

    fn of_query<'a>(&self, query: &'a Item) -> Option<(&'static str, &'a str)> {
        let names = std::iter::once("gold").chain(self.fields.iter().copied());
        names.into_iter().find_map(|name| Some((name, query.field(name)?)))
    }

    /// A history item of a citation task has a title there, no label.
    fn of_item<'a>(&self, item: &'a Item) -> Option<&'a str> {
        let mut fields = self.fields.iter().filter(|_| self.task != Some(LampTask::Citation));
        fields.find_map(|name| item.field(name))
    }

    /// What to count an answer as; free text is not counted.
    fn label<'a>(&self, answer: &'a str) -> Option<&'a str> {
        match self.task {
            None => Some(answer),
            Some(task) if task.is_free_text() => None,
            Some(task) if task.labels().contains(&answer) => Some(answer),
            Some(_) => Some(NO_LABEL),
        }
    }
}

/// All users.
#[derive(Debug, Derive)]
pub(super) struct Statistics {
    #[serde(skip)]
    answers: Answers,
    pub(super) personal: Group,
    pub(super) population: Group,
}

impl Statistics {
    /// Nothing counted yet.
    pub(super) fn new(task: Option<LampTask>) -> Self {
        let answers = Answers::new(task);
        Self { answers, personal: Group::default(), population: Group::default() }
    }

    pub(super) fn users(&self) -> u64 {
        self.personal.users + self.population.users
    }

    /// Counts one user.
    pub(super) fn add(
        &mut self,
        role: Role,
        user: &UserRecord,
        measure: &Measure,
    ) -> anyhow::Result<()> {
        let group = match role {
            Role::Personal => &mut self.personal,
            Role::Population => &mut self.population,
        };
        group.add(user, measure, &self.answers)
    }
}

impl Group {
    fn add(
        &mut self,
        user: &UserRecord,
        measure: &Measure,
        answers: &Answers,
    ) -> anyhow::Result<()> {
        let UserRecord { history, queries, .. } = user;
        self.users += 1;
        self.history_items += history.len() as u64;
        self.queries += queries.len() as u64;
        self.history_per_user.add(history.len() as u64);
        self.queries_per_user.add(queries.len() as u64);
        let dated = !history.is_empty() && history.iter().all(|item| item.field("date").is_some());
        self.dated_users += u64::from(dated);
        let mut seen = BTreeSet::new();
        let mut known = BTreeSet::new();
        for item in history {
            self.history_item_length.add(measure.of(&joined(item, &["date"]))?);
            let label = answers.of_item(item).and_then(|text| answers.label(text));
            label.into_iter().for_each(|label| self.history_labels.add(label));
            let content: Vec<_> = item.fields.iter().filter(|(name, _)| *name != "date").collect();
            self.repeated_items += u64::from(!seen.insert(content));
            known.extend(long_texts(item));
        }
        for query in queries {
            self.known_queries += u64::from(long_texts(query).any(|text| known.contains(text)));
            let answer = answers.of_query(query);
            let question = match query.field("input") {
                Some(input) => measure.of(input)?,
                None => {
                    let name = answer.map_or("", |(name, _)| name);
                    measure.of(&joined(query, &["date", "gold", name]))?
                }
            };
            self.question_length.add(question);
            if let Some((_, text)) = answer {
                self.answered_queries += 1;
                self.answer_length.add(measure.of(text)?);
                answers.label(text).into_iter().for_each(|label| self.query_labels.add(label));
            }
        }
        Ok(())
    }
}

fn joined(item: &Item, without: &[&str]) -> String {
    let fields = item.fields.iter().filter(|(name, _)| !without.contains(&name.as_str()));
    fields.map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(" ")
}

fn long_texts(item: &Item) -> impl Iterator<Item = &str> {
    let texts = item.fields.iter().filter(|(name, _)| !matches!(name.as_str(), "date" | "input"));
    texts.map(|(_, text)| text.as_str()).filter(|t| t.split_whitespace().count() >= LONG_WORDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_exact() {
        let mut lengths = Lengths::default();
        assert_eq!((lengths.quantile(50), lengths.count()), (0, 0));
        (1..=10).rev().for_each(|n| lengths.add(n * 10));
        let at: Vec<u64> = [0, 10, 11, 50, 51, 90, 99, 100].map(|p| lengths.quantile(p)).into();
        assert_eq!(at, [10, 10, 20, 50, 60, 90, 100, 100]);
        assert!((lengths.mean() - 55.0).abs() < 1e-12);
        lengths.add(10);
        assert_eq!(lengths.quantile(10), 10);
    }

    #[test]
    fn answers_are_labels_where_the_task_has_labels() {
        let item = |name: &str, text: &str| Item {
            id: "i".to_owned(),
            fields: [(name.to_owned(), text.to_owned())].into(),
        };
        let rating = Answers::new(Some(LampTask::Rating));
        assert_eq!(rating.of_query(&item("score", "3")), Some(("score", "3")));
        assert_eq!(rating.of_query(&item("tag", "3")), None);
        assert_eq!((rating.label("3"), rating.label("6")), (Some("3"), Some(NO_LABEL)));
        let headline = Answers::new(Some(LampTask::Headline));
        assert_eq!(headline.of_query(&item("title", "t")), Some(("title", "t")));
        assert_eq!(headline.label("t"), None);
        let citation = Answers::new(Some(LampTask::Citation));
        assert_eq!(citation.of_item(&item("citation", "a title")), None);
        assert_eq!(citation.label("[1]"), Some("[1]"));
        let unknown = Answers::new(None);
        assert_eq!(unknown.of_item(&item("category", "c")), Some("c"));
        assert_eq!(unknown.of_query(&item("title", "t")), None);
    }

    #[test]
    fn labels_stop_at_free_text() {
        let mut labels = Labels::default();
        assert_eq!(labels.counts(), None);
        (0..MAX_LABELS).for_each(|i| labels.add(&i.to_string()));
        labels.add("0");
        assert_eq!(labels.counts().and_then(|c| c.get("0")), Some(&2));
        labels.add("one more");
        assert_eq!(labels.counts(), None);
        labels.add("0");
        assert_eq!(labels.counts(), None);
    }
}
