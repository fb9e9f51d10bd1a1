//! Questions, users, answers and profile texts -> records.

use super::golds::{Golds, Kind};
use super::parse::{Asked, Items, Parsed, Question, Refusal, User};
use super::{LampTask, date, parse};
use crate::data::pass::Pass;
use crate::data::{
    DataError, Item, Location, OnBad, Problem, Role, Tally, Unmatched, UserRecord, What,
};
use crate::ids::UserId;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What makes records of a file's spans, now and when they are read again.
#[derive(Debug)]
pub(crate) struct Join {
    pub(super) task: LampTask,
    role: Role,
    /// Whether an unusable item ends its record.
    strict: bool,
    pub(super) answers: Option<Golds>,
    pub(super) profiles: Option<Profiles>,
}

/// Profile texts and how a user finds its own.
#[derive(Debug)]
pub(super) struct Profiles {
    pub(super) golds: Golds,
    /// By the number of the user's record, as OPPU's programs do; otherwise by the user's id.
    pub(super) by_index: bool,
}

/// What was left out of a record.
#[derive(Debug, Default)]
pub(crate) struct LeftOut {
    pub(super) tally: Tally,
    /// The first unusable item: in which of the record's questions, from 0, and what it lacks.
    pub(super) lacks: Option<(usize, What)>,
}

impl LeftOut {
    /// Why a record's user cannot be one of this file's, if so: a history that is empty for want of a
    /// usable item is told by what the first one lacks.
    pub(super) fn unfit(&self, record: &UserRecord, pass: &Pass<'_>) -> Option<What> {
        let what = pass.unfit(record)?;
        let lacks = self.lacks.as_ref().filter(|_| what == What::EmptyHistory);
        Some(lacks.map_or(what, |(_, lacks)| lacks.clone()))
    }
}

/// A record and what was left out of it.
pub(crate) type Joined = Result<(UserRecord, LeftOut), Refusal>;

impl Join {
    /// Reads the files of answers and profile texts, if there are.
    pub(super) fn read(
        task: LampTask,
        answers: Option<&Path>,
        profiles: Option<&Path>,
        pass: &mut Pass<'_>,
    ) -> Result<Self, DataError> {
        let answers = answers.map(|p| Golds::read(p, Kind::Answers(task), pass)).transpose()?;
        let profiles = profiles.map(|p| Golds::read(p, Kind::Profiles, pass)).transpose()?;
        let profiles = profiles.map(|golds| Profiles { golds, by_index: false });
        let strict = pass.on_bad == OnBad::Stop;
        Ok(Self { task, role: pass.role, strict, answers, profiles })
    }

    pub(super) fn question(&self, bytes: &[u8]) -> Parsed<Question> {
        parse::question(bytes, self.task)
    }

    /// The record of an OPPU user.
    pub(crate) fn oppu(&self, bytes: &[u8], number: u64) -> Joined {
        let (user, dropped_values) = parse::user(bytes, self.task)?;
        let User { id, profile, asked } = user;
        let named = |what| (Some(id.clone()), what);
        let mut left = LeftOut::default();
        left.tally.dropped_values = dropped_values;
        let mut history = self.items(profile, 0, &mut left).map_err(named)?;
        date::sort(&mut history);
        let queries = self.queries(asked).map_err(named)?;
        let profile = self.profile(&id, number);
        Ok((UserRecord { id, history, queries, profile }, left))
    }

    /// The usable items of a profile, each once; strictly, an unusable one is the record's fault.
    fn items(&self, items: Items, question: usize, left: &mut LeftOut) -> Result<Vec<Item>, What> {
        let Items { usable, num_unusable, lacks } = items;
        if let Some(what) = lacks {
            if self.strict {
                return Err(what);
            }
            left.lacks.get_or_insert((question, what));
        }
        let (items, repeated) = distinct(usable)?;
        left.tally.unusable_items += num_unusable;
        left.tally.repeated_items += repeated;
        Ok(items)
    }

    /// The record of a LaMP user from the bytes of its questions.
    pub(crate) fn lamp(&self, questions: &[Vec<u8>]) -> Joined {
        let mut dropped_values = 0;
        let mut parsed = Vec::with_capacity(questions.len());
        for bytes in questions {
            let (question, dropped) = self.question(bytes)?;
            dropped_values += dropped;
            parsed.push(question);
        }
        let (record, mut left) = self.questions(parsed)?;
        left.tally.dropped_values += dropped_values;
        Ok((record, left))
    }

    /// The record of a user's questions. Without a user id there is one question, and its id is the
    /// user's.
    ///
    /// The history of several questions is the union of their profiles by item id, the last spelling
    /// of an item; a query's own item is left out where another question's profile has it.
    pub(super) fn questions(&self, questions: Vec<Question>) -> Joined {
        let first = questions.first();
        let id = first.map(|q| q.user.clone().unwrap_or_else(|| UserId::new(&q.asked.id)));
        let Some(id) = id else { return Err((None, What::NoQueries)) };
        let named = |what| (Some(id.clone()), what);
        let mut left = LeftOut::default();
        let (mut asked, mut own_items) = (Vec::new(), Vec::new());
        let mut lists = Vec::new();
        for (number, question) in questions.into_iter().enumerate() {
            lists.push(self.items(question.profile, number, &mut left).map_err(named)?);
            asked.push(question.asked);
        }
        let mut history = if lists.len() == 1 {
            lists.pop().unwrap_or_default()
        } else {
            own_items = lists.iter().map(|l| l.iter().map(|i| i.id.clone()).collect()).collect();
            union(lists)
        };
        let queries = asked.into_iter().map(|a| self.query(a).map_err(named));
        let queries = queries.collect::<Result<Vec<_>, _>>()?;
        if !own_items.is_empty() {
            let before = history.len();
            history.retain(|item| !self.is_leak(item, &queries, &own_items));
            left.tally.leaked_items += (before - history.len()) as u64;
        }
        date::sort(&mut history);
        let queries = in_order(queries).map_err(named)?;
        let profile = self.profile(&id, 0);
        Ok((UserRecord { id, history, queries, profile }, left))
    }

    /// Whether an item is what a query asks about and comes from another question's profile.
    fn is_leak(&self, item: &Item, queries: &[Item], own_items: &[BTreeSet<String>]) -> bool {
        let field = self.task.input_field();
        let answer = if self.task == LampTask::TweetParaphrase { "gold" } else { field };
        let text = item.field(field);
        queries.iter().zip(own_items).any(|(query, own)| {
            (text == query.field(field) || text == query.field(answer)) && !own.contains(&item.id)
        })
    }

    fn queries(&self, asked: Vec<Asked>) -> Result<Vec<Item>, What> {
        in_order(asked.into_iter().map(|a| self.query(a)).collect::<Result<_, _>>()?)
    }

    /// A question as an item: payload, `input`, `gold`, and what else it had under other names.
    fn query(&self, asked: Asked) -> Result<Item, What> {
        let payload = self.task.payload(&asked.input);
        let payload = payload.map_err(|reason| What::Question { id: asked.id.clone(), reason })?;
        let mut fields = asked.extra;
        fields.extend(payload);
        fields.insert("input".to_owned(), asked.input);
        let found = self.answers.as_ref().and_then(|golds| golds.get(&asked.id));
        match found.map(str::to_owned).or(asked.answer) {
            Some(answer) => drop(fields.insert("gold".to_owned(), answer)),
            None if self.role == Role::Population => {
                return Err(What::NoAnswer { id: asked.id });
            }
            None => {}
        }
        Ok(Item { id: asked.id, fields })
    }

    fn profile(&self, user: &UserId, number: u64) -> Option<String> {
        let Profiles { golds, by_index } = self.profiles.as_ref()?;
        let text = match by_index {
            true => usize::try_from(number).ok()?.checked_sub(1).and_then(|n| golds.text(n)),
            false => golds.get(user.as_str()),
        };
        text.map(str::to_owned)
    }
}

/// A profile without items that are there twice; the same id with other fields is refused.
fn distinct(mut items: Vec<Item>) -> Result<(Vec<Item>, u64), What> {
    let mut first: BTreeMap<&str, &Item> = BTreeMap::new();
    let mut repeated = BTreeSet::new();
    for (i, item) in items.iter().enumerate() {
        match first.insert(&item.id, item) {
            Some(other) if other.fields == item.fields => drop(repeated.insert(i)),
            Some(_) => return Err(What::DuplicateItem { list: "profile", id: item.id.clone() }),
            None => {}
        }
    }
    if !repeated.is_empty() {
        let mut number = 0;
        items.retain(|_| {
            number += 1;
            !repeated.contains(&(number - 1))
        });
    }
    Ok((items, repeated.len() as u64))
}

/// The last list in its order, behind what only the earlier ones have.
fn union(mut lists: Vec<Vec<Item>>) -> Vec<Item> {
    let mut seen = BTreeSet::new();
    let mut kept: Vec<Vec<Item>> = Vec::new();
    while let Some(list) = lists.pop() {
        kept.push(list.into_iter().filter(|item| seen.insert(item.id.clone())).collect());
    }
    kept.into_iter().rev().flatten().collect()
}

/// Queries by date where all have one; ids must differ.
fn in_order(mut queries: Vec<Item>) -> Result<Vec<Item>, What> {
    let mut ids = BTreeSet::new();
    if let Some(twice) = queries.iter().find(|q| !ids.insert(q.id.as_str())) {
        return Err(What::DuplicateItem { list: "query", id: twice.id.clone() });
    }
    date::sort(&mut queries);
    Ok(queries)
}

/// Compares the ids of a file of texts with those that ask for them.
pub(super) struct Matching {
    used: Vec<bool>,
    without: Unmatched,
}

impl Matching {
    pub(super) fn new(golds: Option<&Golds>, without: &'static str) -> Self {
        Self { used: vec![false; golds.map_or(0, Golds::len)], without: Unmatched::new(without) }
    }

    /// Notes that an id asks for its text; whether another did before.
    pub(super) fn ask(&mut self, golds: Option<&Golds>, id: &str) -> bool {
        let Some(golds) = golds else { return false };
        match golds.number(id).and_then(|n| self.used.get_mut(n)) {
            Some(used) => std::mem::replace(used, true),
            None => {
                self.without.add(id);
                false
            }
        }
    }

    /// Lists both sides of a mismatch. `whole` is false if not every id was seen: then texts nobody
    /// asked for mean nothing.
    pub(super) fn finish(
        self,
        golds: Option<&Golds>,
        unasked: &'static str,
        whole: bool,
        pass: &mut Pass<'_>,
    ) -> Result<(), DataError> {
        let Some(golds) = golds else { return Ok(()) };
        let mut unknown = Unmatched::new(unasked);
        if whole {
            golds.ids().filter(|(_, n)| !self.used[*n]).for_each(|(id, _)| unknown.add(id));
        }
        if self.without.count + unknown.count == 0 {
            return Ok(());
        }
        let what = What::Unmatched { sides: Box::new([self.without, unknown]) };
        let (file, at) = (golds.path.clone(), Location::File);
        pass.refuse(Problem { file, at, user: None, what })
    }
}
