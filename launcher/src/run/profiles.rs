//! Texts about the users that the base writes itself (OPPU's PAG), before anything else is asked or trained.

use super::Run;
use crate::device::on;
use crate::exit::Fails;
use crate::watch::{Progress, say};
use anyhow::Context;
use kernels::Ops;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use trainer::comm::Reduce;
use trainer::config::ProfileSource;
use trainer::data::UserRecord;
use trainer::ids::{UserId, UserKey};
use trainer::model::network::Network;
use trainer::prompt::{ProfileRequest, PromptError};
use trainer::shard::plan;
use trainer::stage::individual::End;
use trainer::stage::predict::{Asker, Oracle};
use trainer::stage::sample::Sampling;
use trainer::store::write_atomic;

/// OPPU's form, so that the file serves as `data.personal_profiles` of another run.
pub(crate) const FILE: &str = "profiles.json";
/// Users asked between two looks at the stop flag; the tokens of this many answers lie in the cache.
const GROUP: usize = 32;

/// One text.
#[derive(Serialize, Deserialize)]
struct Profile {
    id: UserId,
    output: String,
}

/// Writes the text of every user who has none yet, or finds them written; all ranks hold them afterwards.
pub(super) fn run(run: &Run<'_>) -> anyhow::Result<End> {
    let session = run.session;
    if session.config.profile.source != ProfileSource::Generate {
        return Ok(End::Complete);
    }
    let path = run.path(FILE);
    let there = run.comm.all_reduce_u64(Reduce::Max, u64::from(path.exists()))? > 0;
    if !there {
        // Another cell of the study may have asked the same of the same users.
        let entry = match run.shared {
            Some(cache) => {
                let users = users(run);
                let asked = |i: usize| {
                    let record = record(run, users[i].0)?;
                    let asked = request(run, &record)?.ok();
                    Ok((record.id, asked))
                };
                Some(cache.profiles(run, (&path, users.len()), &sampling(run)?, &asked)?)
            }
            None => None,
        };
        let found = entry.as_ref().is_some_and(|entry| entry.found());
        if !found && write_all(run, &path)? == End::Stopped {
            return Ok(End::Stopped);
        }
        if let Some(entry) = entry {
            entry.keep(run)?;
        }
    }
    let text = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
    let all: Vec<Profile> = serde_json::from_slice(&text)
        .with_context(|| format!("{}", path.display()))
        .input("the file was changed: remove it, and the texts are written again")?;
    let by_key: BTreeMap<UserKey, String> =
        all.into_iter().map(|p| (p.id.key(), p.output)).collect();
    session.profiles.get_or_init(|| by_key);
    Ok(End::Complete)
}

/// Writes the file of all users' texts; stopped, it leaves none.
fn write_all(run: &Run<'_>, path: &Path) -> anyhow::Result<End> {
    let written = on!(*run.session.device()?, backend => {
        write(run, &run.network(backend, &run.session.base)?)
    })?;
    let stopped = u64::from(written.is_none());
    if run.comm.all_reduce_u64(Reduce::Max, stopped)? > 0 {
        return Ok(End::Stopped);
    }
    let mine = serde_json::to_vec(&written.unwrap_or_default())?;
    if let Some(parts) = run.comm.gather_bytes(0, &mine)? {
        let mut all: Vec<Profile> = Vec::new();
        for part in &parts {
            all.extend(serde_json::from_slice::<Vec<Profile>>(part)?);
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        let text = serde_json::to_vec_pretty(&all)?;
        write_atomic(path, &text).with_context(|| format!("{}", path.display()))?;
    }
    run.comm.barrier()?;
    Ok(End::Complete)
}

/// This rank's texts, written on the backend of `net`; none when stopped.
fn write<B: Ops>(run: &Run<'_>, net: &Network<B>) -> anyhow::Result<Option<Vec<Profile>>> {
    let session = run.session;
    let sampling = sampling(run)?;
    let rows = session.rules.chunk_rows.max(2048);
    let cache = rows + GROUP * sampling.max_new_tokens as usize;
    let mut oracle = Oracle::new(net, (rows, cache), 0, session.rules)?;
    let mine = my_users(run)?;
    let mut progress = Progress::new("write profiles", mine.len() as u64, run.leads());
    let mut written = Vec::with_capacity(mine.len());
    for group in mine.chunks(GROUP) {
        if run.stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let (mut askers, mut tokens) = (Vec::new(), 0);
        for &number in group {
            let record = record(run, number)?;
            let prompt = match request(run, &record)? {
                Ok(prompt) => prompt,
                Err(reason) => {
                    if let Some(reason) = reason {
                        say(&format!("user {}: no profile: {reason}", record.id));
                    }
                    continue;
                }
            };
            tokens += prompt.len() as u64;
            askers.push(Asker { user: record.id, adapter: None, prompts: vec![prompt] });
        }
        let answers = oracle.generate(&askers, &sampling, session.tokenizer.eos())?;
        for (asker, answer) in askers.into_iter().zip(answers) {
            let ids = answer.first().map_or(&[][..], Vec::as_slice);
            let output = session.tokenizer.decode(ids, true)?.trim().to_owned();
            written.push(Profile { id: asker.user, output });
        }
        progress.advance(group.len() as u64, tokens, "");
    }
    progress.finish();
    Ok(Some(written))
}

fn sampling(run: &Run<'_>) -> anyhow::Result<Sampling> {
    let profile = &run.session.config.profile;
    #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
    Ok(Sampling {
        temperature: profile.temperature as f32,
        top_k: u32::try_from(profile.top_k)?,
        top_p: profile.top_p as f32,
        max_new_tokens: match profile.max_new_tokens {
            Some(own) => u32::try_from(own)?,
            None => own_request(run)?.max_new_tokens,
        },
        seed: run.session.config.run.seed,
    })
}

fn own_request<'a>(run: &'a Run<'_>) -> anyhow::Result<&'a ProfileRequest> {
    let request = run.session.task.template().profile_request.as_ref();
    request
        .context("the template asks for no profile")
        .input("set profile.source = \"file\", or give the template a [profile_request]")
}

/// The request for a user's text, or why there is nothing to write it from; none of both without a request.
fn request(
    run: &Run<'_>,
    record: &UserRecord,
) -> anyhow::Result<Result<Vec<u32>, Option<PromptError>>> {
    let room = (run.session.config.profile.items, run.session.config.profile.max_new_tokens);
    let asked =
        run.session.prompts(crate::shown::Shown::ALL, 0, |b| b.profile_request(record, room));
    match asked {
        Ok(prompt) => Ok(prompt.ok_or(None)),
        Err(e) if e.is_of_item() => Ok(Err(Some(e))),
        Err(e) => Err(e)
            .with_context(|| format!("user {}: no room to write a profile", record.id))
            .input("lower profile.max_new_tokens, or raise prompt.max_length"),
    }
}

/// A user by number, personal ones first.
fn record(run: &Run<'_>, number: usize) -> anyhow::Result<UserRecord> {
    let personal = run.session.index().personal.len();
    Ok(match number.checked_sub(personal) {
        None => run.session.data.user(number)?,
        Some(other) => run.session.data.population_user(other)?,
    })
}

/// All users with a history, by number; population users only where they are trained on.
fn users(run: &Run<'_>) -> Vec<(usize, UserKey)> {
    let index = run.session.index();
    let population: &[_] =
        if run.session.config.population.enabled { &index.population } else { &[] };
    let users = index.personal.iter().chain(population).enumerate();
    users.filter(|(_, u)| u.num_history > 0).map(|(number, u)| (number, u.key)).collect()
}

/// This rank's share of them, by number.
fn my_users(run: &Run<'_>) -> anyhow::Result<Vec<usize>> {
    let some = users(run);
    let costs: Vec<(UserKey, u64)> = some.iter().map(|(_, key)| (*key, 1)).collect();
    let plan = plan(&costs, run.comm.size())?;
    let mut mine: Vec<usize> = plan.by_rank[run.comm.rank()].iter().map(|&i| some[i].0).collect();
    mine.sort_unstable();
    Ok(mine)
}
