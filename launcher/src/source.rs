//! The data set a config names.

use crate::exit::Fails;
use anyhow::Context;
use std::path::PathBuf;
use trainer::config::{Config, Data, Source as Kind};
use trainer::data::{LampSet, LampTask, Ml100k, Selection, Source};

/// Longest line of a JSONL file in bytes.
const MAX_LINE_BYTES: usize = 64 << 20;

/// The data set of a config, its files not looked at yet.
pub(crate) fn of(config: &Config) -> anyhow::Result<Source> {
    let data = &config.data;
    Ok(match data.source {
        Kind::Jsonl => Source::Jsonl {
            personal: personal(data)?,
            population: data.population.clone(),
            max_line_bytes: MAX_LINE_BYTES,
            selection: selection(data),
        },
        Kind::Lamp => Source::Lamp {
            task: task(data)?,
            personal: LampSet {
                questions: personal(data)?,
                outputs: data.personal_outputs.clone(),
                profiles: data.personal_profiles.clone(),
            },
            population: data.population.clone().map(|questions| LampSet {
                questions,
                outputs: data.population_outputs.clone(),
                profiles: data.population_profiles.clone(),
            }),
            selection: selection(data),
        },
        Kind::Oppu => Source::Oppu {
            task: task(data)?,
            personal: personal(data)?,
            labels: data.personal_outputs.clone(),
            profiles: data.personal_profiles.clone(),
            population: data.population.clone(),
            population_profiles: data.population_profiles.clone(),
            selection: selection(data),
        },
        Kind::Ml100k => {
            let path = data.path.clone().context("data.path is not set");
            let users = data.personal_users.context("data.personal_users is not set");
            Source::Ml100k {
                path: path.input("scripts/setup fetches ml-100k")?,
                selection: Ml100k {
                    personal_users: users
                        .input("ml-100k needs to know how many users are personal")?,
                    population_users: data.population_users,
                    min_history: data.min_history,
                    max_history: data.max_history.unwrap_or(usize::MAX),
                    max_queries: data.max_queries.unwrap_or(usize::MAX),
                    max_population_items: data.max_population_items.unwrap_or(usize::MAX),
                    seed: data.seed.unwrap_or(config.run.seed),
                },
            }
        }
    })
}

fn personal(data: &Data) -> anyhow::Result<PathBuf> {
    let personal = data.personal.clone().context("data.personal is not set");
    personal.input("name the file of the users to personalise")
}

fn task(data: &Data) -> anyhow::Result<LampTask> {
    let name = data.task.as_deref().context("data.task is not set");
    let hint = "docs/guides/lamp.md lists the tasks";
    LampTask::parse(name.input(hint)?).input(hint)
}

fn selection(data: &Data) -> Selection {
    Selection {
        personal_users: data.personal_users,
        population_users: data.population_users,
        min_history: Some(data.min_history),
        max_history: data.max_history,
        max_queries: data.max_queries,
        max_population_items: data.max_population_items,
    }
}
