//! Data of any kind, opened: an index of its users, and the users one after another.

use super::choose::Choice;
use super::layout::{Files, Kind};
use crate::cli::PrepareArgs;
use crate::exit::Fails;
use anyhow::Context;
use std::collections::BTreeMap;
use std::path::Path;
use trainer::data::ml100k::{self, Ml100k};
use trainer::data::spam_assassin::{self, Shape};
use trainer::data::timeline::{Corpus, Cut, Event, Timeline};
use trainer::data::{
    Dataset, LampSet, LampTask, OnBad, Records, Role, Selection, Source, chitchat, jsonl,
};
use trainer::ids::UserKey;

const HINT: &str = "docs/guides/data.md says what every kind expects";
const KINDS: &str = "write --from KIND=PATH; kinds: jsonl, lamp, oppu, ml-100k, chitchat, spam-assassin, or an event log (--help)";

/// Bad records: the first, and how many.
#[derive(Debug, Default)]
pub(super) struct Problems {
    pub(super) listed: Vec<String>,
    pub(super) count: u64,
}

/// A user as far as choosing needs it.
pub(super) struct Candidate {
    pub(super) key: UserKey,
    pub(super) num_history: usize,
    pub(super) num_queries: usize,
}

/// Opened data.
pub(super) struct Opened {
    /// The task, as given or as the kind has it.
    pub(super) task: Option<LampTask>,
    held: Held,
}

enum Held {
    /// Files of users: indexed, read again user by user.
    Files(Box<Dataset>),
    /// People's events, held; the cuts make users of them.
    Events { corpus: Corpus, personal: Cut, population: Cut },
}

impl Opened {
    /// Opens `KIND=PATH`.
    pub(super) fn open(
        from: &str,
        task: Option<LampTask>,
        args: &PrepareArgs,
    ) -> anyhow::Result<Self> {
        let (kind, path) = from.split_once('=').context("--from has no `=`").input(KINDS)?;
        let path = Path::new(path);
        if let Some(kind) = Kind::parse(kind) {
            let held = Held::Files(Box::new(files(kind, path, task, args)?));
            return Ok(Self { task, held });
        }
        let beside = [&args.population_file, &args.answers, &args.profiles];
        if beside.iter().any(|file| file.is_some()) {
            let error = anyhow::anyhow!("{kind} has no further files");
            return Err(error).input("--split-population parts its users");
        }
        let (corpus, task) = match kind {
            "ml-100k" => (ratings(path)?, only(kind, task, LampTask::Rating)?),
            "chitchat" => {
                let task = only(kind, task, LampTask::TweetParaphrase)?;
                (chitchat::read(path).input(HINT)?, task)
            }
            "spam-assassin" => {
                let (shape, task) = shape(task)?;
                (spam_assassin::read(path, shape).input(HINT)?, task)
            }
            _ => return Err(anyhow::anyhow!("unknown kind of data {kind:?}")).input(KINDS),
        };
        let personal = Cut {
            held_out_percent: args.held_out_percent,
            min_history: args.min_history,
            max_history: args.max_history.unwrap_or(usize::MAX),
            min_queries: args.min_queries.unwrap_or(1),
            max_queries: args.max_queries.unwrap_or(usize::MAX),
        };
        // The shared adapter learns from these users' queries: their number is not cut.
        let population = Cut {
            held_out_percent: args.population_held_out_percent,
            min_history: 0,
            min_queries: 1,
            max_queries: usize::MAX,
            ..personal
        };
        Ok(Self { task: Some(task), held: Held::Events { corpus, personal, population } })
    }

    /// Whether users are cut from people's events.
    pub(super) fn has_events(&self) -> bool {
        matches!(self.held, Held::Events { .. })
    }

    /// What was skipped because it is not what its format says.
    pub(super) fn problems(&self) -> Problems {
        let (listed, count): (Vec<String>, _) = match &self.held {
            Held::Files(data) => {
                let bad = &data.index().quarantined;
                let listed = bad.iter().take(Corpus::MAX_LISTED);
                (listed.map(ToString::to_string).collect(), bad.len() as u64)
            }
            Held::Events { corpus, .. } => {
                (corpus.unreadable.iter().map(ToString::to_string).collect(), corpus.num_unreadable)
            }
        };
        Problems { listed, count }
    }

    /// The first item of each user that lacks its id or a field of the task, at most so many as are listed of
    /// bad records.
    pub(super) fn unusable(&self) -> Vec<String> {
        let Held::Files(data) = &self.held else { return Vec::new() };
        data.index().unusable.iter().take(Corpus::MAX_LISTED).map(ToString::to_string).collect()
    }

    /// What the kind's own rules left out.
    pub(super) fn left_out(&self) -> BTreeMap<String, u64> {
        let rules: Vec<(&str, u64)> = match &self.held {
            Held::Files(data) => {
                let tally = data.index().tally;
                vec![
                    ("values of unknown keys", tally.dropped_values),
                    ("history items given twice", tally.repeated_items),
                    ("history items that a question of the user asks about", tally.leaked_items),
                    ("history items without an id or a field of the task", tally.unusable_items),
                ]
            }
            Held::Events { corpus, .. } => corpus.left_out.iter().map(|(r, n)| (*r, *n)).collect(),
        };
        let some = rules.into_iter().filter(|(_, count)| *count > 0);
        some.map(|(rule, count)| (rule.to_owned(), count)).collect()
    }

    /// Everybody who could be a personal user, with sizes before anything is cut off.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        match &self.held {
            Held::Files(data) => {
                let of = |user: &trainer::data::UserSummary| Candidate {
                    key: user.key,
                    num_history: user.num_history,
                    num_queries: user.num_queries,
                };
                data.index().personal.iter().map(of).collect()
            }
            Held::Events { corpus, personal, .. } => {
                let of = |timeline: &Timeline| {
                    let (num_history, num_queries) = personal.sizes(timeline);
                    Candidate { key: timeline.id.key(), num_history, num_queries }
                };
                corpus.timelines.iter().map(of).collect()
            }
        }
    }

    /// Whether the population is a file of its own.
    pub(super) fn has_population(&self) -> bool {
        matches!(&self.held, Held::Files(data) if !data.index().population.is_empty())
    }

    /// The chosen users of a role, in the order of the source.
    pub(super) fn users<'a>(&'a self, role: Role, choice: &'a Choice) -> Records<'a> {
        match &self.held {
            Held::Files(data) if role == Role::Population && self.has_population() => {
                data.population()
            }
            Held::Files(data) => Box::new(data.users().filter_map(move |record| match record {
                Ok(record) => choice.take(role, record).map(Ok),
                Err(error) => Some(Err(error)),
            })),
            Held::Events { corpus, personal, population } => {
                let cut = if role == Role::Personal { personal } else { population };
                let ours =
                    move |timeline: &&Timeline| choice.role(&timeline.id.key()) == Some(role);
                let all = corpus.timelines.iter().filter(ours);
                Box::new(all.filter_map(move |timeline| cut.record(timeline.clone()).map(Ok)))
            }
        }
    }
}

/// Files of users: a folder with the kind's names in it, or the files one by one.
fn files(
    kind: Kind,
    path: &Path,
    task: Option<LampTask>,
    args: &PrepareArgs,
) -> anyhow::Result<Dataset> {
    let given = |users: &Path| Files {
        users: users.to_owned(),
        answers: args.answers.clone(),
        profiles: args.profiles.clone(),
    };
    let (personal, mut population) = if path.is_dir() {
        let names = kind.names(Role::Personal, task);
        let lacks = || anyhow::anyhow!("{} has no {}", path.display(), names.users);
        let personal = kind.find(path, Role::Personal, task).ok_or_else(lacks);
        (personal.input("or give the file itself")?, kind.find(path, Role::Population, task))
    } else {
        (given(path), None)
    };
    if let Some(users) = &args.population_file {
        let (answers, profiles) =
            (args.population_answers.clone(), args.population_profiles.clone());
        population = Some(Files { users: users.clone(), answers, profiles });
    }
    let selection = Selection::default();
    let needed = || task.context("the files do not say their task").input("give --task");
    let source = match kind {
        Kind::Jsonl => Source::Jsonl {
            personal: personal.users,
            population: population.map(|files| files.users),
            max_line_bytes: jsonl::MAX_LINE_BYTES,
            selection,
        },
        Kind::Lamp => {
            let set =
                |f: Files| LampSet { questions: f.users, outputs: f.answers, profiles: f.profiles };
            let (personal, population) = (set(personal), population.map(set));
            Source::Lamp { task: needed()?, personal, population, selection }
        }
        Kind::Oppu => {
            let (population, population_profiles) =
                population.map_or((None, None), |f| (Some(f.users), f.profiles));
            Source::Oppu {
                task: needed()?,
                personal: personal.users,
                labels: personal.answers,
                profiles: personal.profiles,
                population,
                population_profiles,
                selection,
            }
        }
    };
    let on_bad = if args.strict { OnBad::Stop } else { OnBad::Quarantine };
    trainer::data::load(&source, on_bad).input(HINT)
}

/// MovieLens' people with all their ratings, so that they are cut as every other corpus is.
fn ratings(path: &Path) -> anyhow::Result<Corpus> {
    let everything = Ml100k {
        personal_users: 0,
        population_users: None,
        min_history: 1,
        max_history: usize::MAX,
        max_queries: usize::MAX,
        max_population_items: usize::MAX,
        seed: 0,
    };
    let mut people = ml100k::read(path, &everything).input(HINT)?.population;
    people.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    let timelines = people.into_iter().map(|person| {
        let event = |item: trainer::data::Item| Event { query: Some(item.clone()), item };
        Timeline { id: person.id, events: person.queries.into_iter().map(event).collect() }
    });
    Ok(Corpus { timelines: timelines.collect(), ..Corpus::default() })
}

fn only(kind: &str, asked: Option<LampTask>, task: LampTask) -> anyhow::Result<LampTask> {
    if asked.is_some_and(|asked| asked != task) {
        return Err(anyhow::anyhow!("{kind} has the task {task} only")).input("leave --task out");
    }
    Ok(task)
}

fn shape(task: Option<LampTask>) -> anyhow::Result<(Shape, LampTask)> {
    match task {
        Some(LampTask::EmailSubject) => Ok((Shape::EmailSubject, LampTask::EmailSubject)),
        Some(LampTask::Headline) => Ok((Shape::Headline, LampTask::Headline)),
        _ => Err(anyhow::anyhow!("spam-assassin has two tasks"))
            .input("write --task email_subject or --task headline"),
    }
}
