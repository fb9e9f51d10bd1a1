//! Records -> files of LaMP and OPPU, one user at a time.
//!
//! What is written reads back to the same records. A query without `input` gets a question in words
//! of our own ([`LampTask::question`]) and reads back with it.

use super::LampTask;
use super::payload::{NoMarker, Payload};
use crate::data::{DataError, Item, UserRecord};
use crate::ids::UserId;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::collections::BTreeSet;
use std::io::{self, Write};

/// Where LaMP files are written.
#[allow(missing_debug_implementations, reason = "writers need none")]
pub struct LampFiles<'a> {
    /// Questions, each with the whole history of its user.
    pub questions: &'a mut dyn Write,
    /// Answers; without it each is the `output` of its question.
    pub outputs: Option<&'a mut dyn Write>,
    /// Profile texts; must be there if a user has one, and then every user must.
    pub profiles: Option<&'a mut dyn Write>,
}

/// Where OPPU files are written.
#[allow(missing_debug_implementations, reason = "writers need none")]
pub struct OppuFiles<'a> {
    /// Users with history, queries and answers.
    pub users: &'a mut dyn Write,
    /// The answers again.
    pub labels: Option<&'a mut dyn Write>,
    /// Profile texts; must be there if a user has one, and then every user must.
    pub profiles: Option<&'a mut dyn Write>,
}

/// The ids of the questions written; answers are found by them, so they must differ in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuestionIds {
    /// The queries' own.
    Own,
    /// `user:query`, for data in which every user has a `q0`.
    WithUser,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Users.
    pub users: u64,
    /// Questions.
    pub questions: u64,
}

/// Why a user cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The user could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The writer's.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A query without the fields of the task's payload.
    #[error("user {user}: query {query:?} has neither `input` nor `{}`", missing.expected)]
    NoPayload {
        /// The user.
        user: UserId,
        /// The query.
        query: String,
        /// What is missing.
        missing: NoMarker,
    },
    /// The question's text would not give the query's field back.
    #[error(
        "user {user}: `{field}` of query {query:?} cannot be read back from the question's text"
    )]
    Payload {
        /// The user.
        user: UserId,
        /// The query.
        query: String,
        /// The field.
        field: String,
    },
    /// A history item without a field that the task's files have.
    #[error("user {user}: history item {item:?} has no `{field}`")]
    NoField {
        /// The user.
        user: UserId,
        /// The item.
        item: String,
        /// The field.
        field: &'static str,
    },
    /// A query without an answer where a file of answers is written.
    #[error("user {user}: query {query:?} has no answer for the file of answers")]
    NoAnswer {
        /// The user.
        user: UserId,
        /// The query.
        query: String,
    },
    /// Two questions with one id.
    #[error("user {user}: a second question with the id {id:?}; write ids with the user in front")]
    DuplicateQuestion {
        /// The user of the second.
        user: UserId,
        /// The id.
        id: String,
    },
    /// A user that a LaMP file cannot hold.
    #[error("user {user} has no queries: LaMP files know users by their questions")]
    NoQueries {
        /// The user.
        user: UserId,
    },
    /// A profile text without a file for it, or the reverse.
    #[error("user {user}: profile texts must be written for all users or none")]
    Profile {
        /// The user.
        user: UserId,
    },
}

/// A JSON array that grows.
struct List<'a> {
    out: &'a mut dyn Write,
    empty: bool,
}

impl<'a> List<'a> {
    fn begin(out: &'a mut dyn Write, opening: &str) -> io::Result<Self> {
        out.write_all(opening.as_bytes())?;
        Ok(Self { out, empty: true })
    }

    fn add(&mut self, value: &impl Serialize) -> io::Result<()> {
        self.out.write_all(if self.empty { b"\n" } else { b",\n" })?;
        self.empty = false;
        Ok(serde_json::to_writer(&mut *self.out, value)?)
    }

    fn end(self, closing: &str) -> io::Result<()> {
        self.out.write_all(b"\n")?;
        self.out.write_all(closing.as_bytes())
    }
}

/// `{"id": …, "output": …}`.
#[derive(Serialize)]
struct Gold<'a> {
    id: &'a str,
    output: &'a str,
}

/// A question, or an item of a profile.
struct Fields<'a> {
    first: Vec<(&'a str, &'a str)>,
    rest: Vec<(&'a str, &'a str)>,
    profile: Option<&'a [Item]>,
}

impl<'a> Fields<'a> {
    fn item(item: &'a Item) -> Self {
        let rest = item.fields.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        Self { first: vec![("id", &item.id)], rest, profile: None }
    }
}

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(None)?;
        let mut fields = self.first.iter().chain(&self.rest);
        fields.try_for_each(|(key, value)| map.serialize_entry(key, value))?;
        if let Some(items) = self.profile {
            map.serialize_entry("profile", &Profile(items))?;
        }
        map.end()
    }
}

/// History items as the files have them.
struct Profile<'a>(&'a [Item]);

impl Serialize for Profile<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.0.iter().map(Fields::item))
    }
}

/// An OPPU user.
#[derive(Serialize)]
struct User<'a> {
    user_id: &'a str,
    profile: Profile<'a>,
    query: Vec<Fields<'a>>,
}

/// A query as it is written.
struct Asked<'a> {
    id: String,
    input: String,
    answer: Option<&'a str>,
    rest: Vec<(&'a str, &'a str)>,
}

impl<'a> Asked<'a> {
    /// The question; `answer` is the key its answer gets.
    fn fields<'b>(&'b self, user: Option<&'b str>, answer: Option<&'b str>) -> Fields<'b>
    where
        'a: 'b,
    {
        let mut first = vec![("id", self.id.as_str())];
        first.extend(user.map(|user| ("user_id", user)));
        first.push(("input", &self.input));
        first.extend(answer.zip(self.answer));
        Fields { first, rest: self.rest.clone(), profile: None }
    }
}

/// Keys that a question's further fields must leave free.
const TAKEN: [&str; 5] = ["id", "user_id", "profile", "output", "gold"];

/// What is the same for all users.
struct Questions {
    task: LampTask,
    ids: QuestionIds,
    seen: BTreeSet<String>,
}

impl Questions {
    /// The queries of a user, checked to read back.
    fn of<'a>(&mut self, user: &'a UserRecord) -> Result<Vec<Asked<'a>>, WriteError> {
        for item in &user.history {
            let lacks = self.task.required_fields().iter().find(|f| item.field(f).is_none());
            if let Some(&field) = lacks {
                let (user, item) = (user.id.clone(), item.id.clone());
                return Err(WriteError::NoField { user, item, field });
            }
        }
        user.queries.iter().map(|query| self.one(user, query)).collect()
    }

    fn one<'a>(&mut self, user: &'a UserRecord, query: &'a Item) -> Result<Asked<'a>, WriteError> {
        let task = self.task;
        let name = || (user.id.clone(), query.id.clone());
        let fields = || query.fields.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let input = match query.field("input") {
            Some(input) => input.to_owned(),
            None => {
                let owned = fields().map(|(k, v)| (k.to_owned(), v.to_owned()));
                task.question(&owned.collect::<Payload>()).map_err(|missing| {
                    let (user, query) = name();
                    WriteError::NoPayload { user, query, missing }
                })?
            }
        };
        let payload = task.payload(&input).map_err(|_| {
            let ((user, query), field) = (name(), "input".to_owned());
            WriteError::Payload { user, query, field }
        })?;
        let own_answer = task.answer_field().filter(|f| !task.payload_fields().contains(f));
        let answer = query.field("gold").or_else(|| query.field(own_answer?));
        let mut rest = Vec::new();
        for (key, value) in fields() {
            let same = payload.get(key).map(|text| text == value);
            let lost = same == Some(false)
                || (same.is_none() && task.payload_fields().contains(&key))
                || (key != "gold" && TAKEN.contains(&key));
            if lost {
                let ((user, query), field) = (name(), key.to_owned());
                return Err(WriteError::Payload { user, query, field });
            }
            // An answer under its own name is written as the answer alone.
            let answers = query.field("gold").is_none() && Some(key) == own_answer;
            if same.is_none() && !answers && key != "input" && key != "gold" {
                rest.push((key, value));
            }
        }
        let id = match self.ids {
            QuestionIds::Own => query.id.clone(),
            QuestionIds::WithUser => format!("{}:{}", user.id.as_str(), query.id),
        };
        if !self.seen.insert(id.clone()) {
            return Err(WriteError::DuplicateQuestion { user: user.id.clone(), id });
        }
        Ok(Asked { id, input, answer, rest })
    }
}

/// The side files of both layouts.
struct Beside<'a> {
    answers: Option<List<'a>>,
    profiles: Option<List<'a>>,
}

impl<'a> Beside<'a> {
    fn begin(
        task: LampTask,
        answers: Option<&'a mut dyn Write>,
        profiles: Option<&'a mut dyn Write>,
    ) -> io::Result<Self> {
        let opening = format!("{{\"task\": \"{}\", \"golds\": [", task.lamp_id());
        let answers = answers.map(|out| List::begin(out, &opening)).transpose()?;
        Ok(Self { answers, profiles: profiles.map(|out| List::begin(out, "[")).transpose()? })
    }

    fn add(&mut self, user: &UserRecord, asked: &[Asked<'_>]) -> Result<(), WriteError> {
        if let Some(answers) = &mut self.answers {
            for (query, asked) in user.queries.iter().zip(asked) {
                let none = || (user.id.clone(), query.id.clone());
                let output = asked.answer.ok_or_else(none);
                let output =
                    output.map_err(|(user, query)| WriteError::NoAnswer { user, query })?;
                answers.add(&Gold { id: &asked.id, output })?;
            }
        }
        match (&mut self.profiles, &user.profile) {
            (Some(list), Some(output)) => list.add(&Gold { id: user.id.as_str(), output })?,
            (None, None) => {}
            _ => return Err(WriteError::Profile { user: user.id.clone() }),
        }
        Ok(())
    }

    fn end(self) -> io::Result<()> {
        if let Some(list) = self.answers {
            list.end("]}\n")?;
        }
        self.profiles.map_or(Ok(()), |list| list.end("]\n"))
    }
}

/// Writes LaMP questions, one for each query, and what belongs to them.
///
/// *Order*: of the users, then of their queries. *Round trip*: a history whose order is not that of
/// its dates reads back in theirs; an answer under its own name (`score`) reads back as `gold`.
///
/// # Errors
/// The first user that cannot be written or read back, and the system's; what is written then is cut.
pub fn write_lamp(
    task: LampTask,
    users: impl Iterator<Item = Result<UserRecord, DataError>>,
    ids: QuestionIds,
    files: LampFiles<'_>,
) -> Result<Written, WriteError> {
    let mut beside = Beside::begin(task, files.outputs, files.profiles)?;
    let mut questions = List::begin(files.questions, "[")?;
    let mut all = Questions { task, ids, seen: BTreeSet::new() };
    let mut written = Written::default();
    let inline = beside.answers.is_none().then_some("output");
    for user in users {
        let user = user?;
        if user.queries.is_empty() {
            return Err(WriteError::NoQueries { user: user.id });
        }
        let asked = all.of(&user)?;
        for asked in &asked {
            let fields = asked.fields(Some(user.id.as_str()), inline);
            questions.add(&Fields { profile: Some(&user.history), ..fields })?;
        }
        beside.add(&user, &asked)?;
        written.users += 1;
        written.questions += asked.len() as u64;
    }
    questions.end("]\n")?;
    beside.end()?;
    Ok(written)
}

/// Writes OPPU users, and what belongs to them.
///
/// *Order* and *round trip*: as [`write_lamp`].
///
/// # Errors
/// As [`write_lamp`].
pub fn write_oppu(
    task: LampTask,
    users: impl Iterator<Item = Result<UserRecord, DataError>>,
    ids: QuestionIds,
    files: OppuFiles<'_>,
) -> Result<Written, WriteError> {
    let mut beside = Beside::begin(task, files.labels, files.profiles)?;
    let mut list = List::begin(files.users, "[")?;
    let mut all = Questions { task, ids, seen: BTreeSet::new() };
    let mut written = Written::default();
    for user in users {
        let user = user?;
        let asked = all.of(&user)?;
        let query = asked.iter().map(|a| a.fields(None, Some("gold"))).collect();
        list.add(&User { user_id: user.id.as_str(), profile: Profile(&user.history), query })?;
        beside.add(&user, &asked)?;
        written.users += 1;
        written.questions += asked.len() as u64;
    }
    list.end("]\n")?;
    beside.end()?;
    Ok(written)
}
