//! Data of any kind, opened: an index of its users, and the users one after another.

use super::choose::Choice;
use crate::cli::PrepareArgs;
use crate::exit::Fails;
use anyhow::Context;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trainer::data::ml100k::{self, Ml100k};
use trainer::data::timeline::{Corpus, Cut, Event, Timeline};
use trainer::data::{Dataset, OnBad, Role, Source, UserRecord, chitchat, jsonl, spam_assassin};
use trainer::ids::UserKey;

const HINT: &str = "docs/guides/data.md says what every kind expects";

/// Bad records: the first, and how many.
#[derive(Debug, Default)]
pub(super) struct Problems {
    pub(super) listed: Vec<String>,
    pub(super) count: u64,
}

/// Who takes the users, one at a time.
pub(super) type Taker<'a> = dyn FnMut(Role, UserRecord) -> anyhow::Result<()> + 'a;

/// A user as far as choosing needs it.
pub(super) struct Candidate {
    pub(super) key: UserKey,
    pub(super) num_history: usize,
    pub(super) num_queries: usize,
}

/// Opened data.
pub(super) enum Opened {
    /// Files of users: indexed, read again user by user.
    Files(Box<Dataset>),
    /// People's events, held; the cuts make users of them.
    Events { corpus: Corpus, personal: Cut, population: Cut },
}

impl Opened {
    /// Opens `KIND=PATH`.
    pub(super) fn open(from: &str, args: &PrepareArgs) -> anyhow::Result<Self> {
        let (kind, path) = from.split_once('=').context("--from has no `=`").input(
            "write --from jsonl=FILE, ml-100k=FOLDER, chitchat=FOLDER or spam-assassin=FOLDER",
        )?;
        let path = Path::new(path);
        let corpus = match kind {
            "jsonl" => return Self::jsonl(path, args),
            "ml-100k" => ratings(path)?,
            "chitchat" => chitchat::read(path).input(HINT)?,
            "spam-assassin" => spam_assassin::read(path, shape(args)?).input(HINT)?,
            _ => {
                let error = anyhow::anyhow!("unknown kind of data {kind:?}");
                return Err(error).input("kinds: jsonl, ml-100k, chitchat, spam-assassin");
            }
        };
        if args.population_file.is_some() {
            let error = anyhow::anyhow!("{kind} has no population file");
            return Err(error).input("--split-population parts its users");
        }
        let cut = |held_out_percent| Cut {
            held_out_percent,
            min_history: args.min_history,
            max_history: args.max_history.unwrap_or(usize::MAX),
            min_queries: args.min_queries.unwrap_or(1),
            max_queries: args.max_queries.unwrap_or(usize::MAX),
        };
        let personal = cut(args.held_out_percent);
        // The shared adapter learns from the queries of these users: their number is not cut.
        let population = Cut {
            min_history: 0,
            min_queries: 1,
            max_queries: usize::MAX,
            ..cut(args.population_held_out_percent)
        };
        Ok(Self::Events { corpus, personal, population })
    }

    /// One file, or a folder as `--to jsonl` leaves it.
    fn jsonl(path: &Path, args: &PrepareArgs) -> anyhow::Result<Self> {
        let [personal, population] = super::output::JSONL.map(|name| path.join(name));
        let (personal, population) = if path.is_dir() {
            (personal, Some(population).filter(|file| file.exists()))
        } else {
            (path.to_owned(), None)
        };
        let population: Option<PathBuf> = args.population_file.clone().or(population);
        let source = Source::Jsonl { personal, population, max_line_bytes: jsonl::MAX_LINE_BYTES };
        let on_bad = if args.strict { OnBad::Stop } else { OnBad::Quarantine };
        Ok(Self::Files(Box::new(trainer::data::load(&source, on_bad).input(HINT)?)))
    }

    /// What was skipped because it is not what its format says.
    pub(super) fn problems(&self) -> Problems {
        let (listed, count): (Vec<String>, _) = match self {
            Self::Files(data) => {
                let bad = &data.index().quarantined;
                let listed = bad.iter().take(Corpus::MAX_LISTED);
                (listed.map(ToString::to_string).collect(), bad.len() as u64)
            }
            Self::Events { corpus, .. } => {
                (corpus.unreadable.iter().map(ToString::to_string).collect(), corpus.num_unreadable)
            }
        };
        Problems { listed, count }
    }

    /// What the corpus' own rules left out.
    pub(super) fn left_out(&self) -> BTreeMap<String, u64> {
        match self {
            Self::Files(_) => BTreeMap::new(),
            Self::Events { corpus, .. } => {
                corpus.left_out.iter().map(|(rule, n)| ((*rule).to_owned(), *n)).collect()
            }
        }
    }

    /// Everybody who could be a personal user, with their sizes before any cut of the number kept.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        match self {
            Self::Files(data) => {
                let of = |user: &trainer::data::UserSummary| Candidate {
                    key: user.key,
                    num_history: user.num_history,
                    num_queries: user.num_queries,
                };
                data.index().personal.iter().map(of).collect()
            }
            Self::Events { corpus, personal, .. } => {
                let of = |timeline: &Timeline| {
                    let key = timeline.id.key();
                    let (num_history, num_queries) = personal.sizes(timeline);
                    Candidate { key, num_history, num_queries }
                };
                corpus.timelines.iter().map(of).collect()
            }
        }
    }

    /// Whether the population is a file of its own.
    pub(super) fn has_population(&self) -> bool {
        matches!(self, Self::Files(data) if !data.index().population.is_empty())
    }

    /// Gives the chosen users to `take`, in the order of the source, personal file first.
    pub(super) fn each(
        &self,
        choice: &Choice,
        left_out: &mut BTreeMap<String, u64>,
        take: &mut Taker<'_>,
    ) -> anyhow::Result<()> {
        let mut leave_out = |why: &str| *left_out.entry(why.to_owned()).or_default() += 1;
        match self {
            Self::Files(data) => {
                for record in data.users() {
                    let record = record.input(HINT)?;
                    match choice.role(&record.id.key()) {
                        None => leave_out(NOT_CHOSEN),
                        Some(Role::Population) if record.queries.is_empty() => {
                            leave_out(NO_QUERIES)
                        }
                        Some(Role::Population) => take(Role::Population, record)?,
                        Some(Role::Personal) => take(Role::Personal, choice.cut(record))?,
                    }
                }
                for record in data.population() {
                    take(Role::Population, record.input(HINT)?)?;
                }
            }
            Self::Events { corpus, personal, population } => {
                for timeline in &corpus.timelines {
                    let Some(role) = choice.role(&timeline.id.key()) else {
                        leave_out(NOT_CHOSEN);
                        continue;
                    };
                    let cut = if role == Role::Personal { personal } else { population };
                    match cut.record(timeline.clone()) {
                        Some(record) => take(role, record)?,
                        None => leave_out(NO_QUERIES),
                    }
                }
            }
        }
        Ok(())
    }
}

const NOT_CHOSEN: &str = "users who do not qualify or are not asked for";
const NO_QUERIES: &str = "population users without a query";

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

fn shape(args: &PrepareArgs) -> anyhow::Result<spam_assassin::Shape> {
    match args.task.as_deref() {
        Some("email_subject") => Ok(spam_assassin::Shape::EmailSubject),
        Some("headline") => Ok(spam_assassin::Shape::Headline),
        other => Err(anyhow::anyhow!("spam-assassin has no task {:?}", other.unwrap_or("")))
            .input("write --task email_subject or --task headline"),
    }
}
