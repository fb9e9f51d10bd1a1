//! Predictions of one arm: users over ranks, answers gathered in one file.

use super::Run;
use crate::device::on;
use crate::exit::Fails;
use crate::labels::Labels;
use crate::session::Session;
use crate::shown::Shown;
use crate::watch::Progress;
use anyhow::Context;
use kernels::Ops;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;
use trainer::config::Arm;
use trainer::eval::Prediction;
use trainer::ids::UserKey;
use trainer::model::cache::MappedBase;
use trainer::model::network::Network;
use trainer::prompt::{Branch, Query};
use trainer::report::{Event, Stage};
use trainer::shard::plan;
use trainer::stage::individual::End;
use trainer::stage::predict::{Asker, Oracle, Own};
use trainer::stage::sample::Sampling;
use trainer::store::{Adapter, Store, write_atomic};

/// Rows of a prediction pack.
const PACK_ROWS: usize = 2048;
/// Users answered between two looks at the clock and the stop flag.
pub(crate) const GROUP: usize = 16;
/// Queries of such a group, so that a stop is seen in seconds.
const GROUP_QUERIES: usize = 64;

/// The file of an arm's predictions, one JSON record a line.
pub(super) fn file(run: &Run<'_>, arm: Arm) -> PathBuf {
    run.path("predictions").join(format!("{}.jsonl", arm.name()))
}

/// Answers every query of every user who has an adapter (personal) or of all users (the other arms). Stopped, it
/// leaves nothing: the arm is asked again.
pub(super) fn arm(run: &Run<'_>, arm: Arm, base: &MappedBase) -> anyhow::Result<End> {
    let path = file(run, arm);
    // One look for all, before rank 0 may write it.
    let there = run.comm.all_reduce_u64(trainer::comm::Reduce::Max, u64::from(path.exists()))? > 0;
    if there {
        return Ok(End::Complete);
    }
    let started = Instant::now();
    let users = my_users(run)?;
    run.events.emit(Event::StageStarted {
        stage: Stage::Predict,
        users: users.len(),
        tokens: 0,
    })?;
    let store = if arm.adapted() { Some(Store::open(&run.path("store"))?) } else { None };
    let lender = match &store {
        Some(store) if arm == Arm::Permuted => next_users(run, store)?,
        _ => BTreeMap::new(),
    };
    let adapters = (store.as_ref(), &lender);
    let lines = on!(*run.session.device()?, backend => {
        ask(run, arm, &run.network(backend, base)?, (&users, adapters))
    })?;
    // A rank that was stopped after its last group has stopped too: all ranks leave the same way.
    let stopped = u64::from(run.stop.load(Ordering::Relaxed));
    if run.comm.all_reduce_u64(trainer::comm::Reduce::Max, stopped)? > 0 {
        return Ok(End::Stopped);
    }
    gather(run, &path, &lines)?;
    run.events.emit(Event::StageFinished {
        stage: Stage::Predict,
        seconds: started.elapsed().as_secs_f64(),
    })?;
    Ok(End::Complete)
}

/// Where the adapters of an arm are, and whose a user is lent where it is not the user's own.
type Adapters<'a> = (Option<&'a Store>, &'a BTreeMap<UserKey, UserKey>);

/// Lines of predictions for these users' queries, on the backend of `net`; fewer when stopped.
fn ask<B: Ops>(
    run: &Run<'_>,
    arm: Arm,
    net: &Network<B>,
    (users, (store, lender)): (&[usize], Adapters<'_>),
) -> anyhow::Result<Vec<String>> {
    let session = run.session;
    let mut answerer = Answerer::new(run, net, arm)?;
    let mut progress =
        Progress::new(format!("ask {}", arm.name()), users.len() as u64, run.leads());
    let mut lines = Vec::new();
    let groups = groups(run, users);
    for group in groups.iter().take_while(|_| !run.stop.load(Ordering::Relaxed)) {
        let (mut askers, mut queries) = (Vec::new(), Vec::new());
        for &index in *group {
            let record = session.data.user(index)?;
            let adapter = match store {
                None => None,
                Some(store) if store.done().contains_key(&record.id.key()) => {
                    let own = record.id.key();
                    let adapter = store.get(lender.get(&own).unwrap_or(&own))?;
                    let Adapter { spec: lora, sites, params, .. } = adapter;
                    Some(Own { lora, sites, params })
                }
                // Put aside: this user has no personal answers.
                Some(_) => continue,
            };
            let (good, bad) = session.queries(&record, Shown::to(arm));
            bad.iter()
                .for_each(|reason| crate::watch::say(&format!("user {}: {reason}", record.id)));
            askers.push(Asker { user: record.id, adapter, prompts: answerer.prompts(&good) });
            queries.push(good);
        }
        let tokens: usize = askers.iter().flat_map(|a| &a.prompts).map(Vec::len).sum();
        for prediction in answerer.answer(&askers, &queries)? {
            lines.push(serde_json::to_string(&prediction)?);
        }
        progress.advance(group.len() as u64, tokens as u64, "");
    }
    progress.finish();
    Ok(lines)
}

/// For every user with an adapter the next such user in the data's order, the first for the last.
fn next_users(run: &Run<'_>, store: &Store) -> anyhow::Result<BTreeMap<UserKey, UserKey>> {
    let keys = run.session.index().personal.iter().map(|user| user.key);
    let done: Vec<UserKey> = keys.filter(|key| store.done().contains_key(key)).collect();
    if done.len() < 2 {
        return Err(anyhow::anyhow!(
            "the arm `permuted` swaps adapters; {} users have one",
            done.len()
        ))
        .input("leave \"permuted\" out of run.arms, or give more users");
    }
    let next = done.iter().cycle().skip(1);
    Ok(done.iter().copied().zip(next.copied()).collect())
}

/// Users answered together: up to [`GROUP`], and queries up to [`GROUP_QUERIES`] unless one user has more.
fn groups<'a>(run: &Run<'_>, users: &'a [usize]) -> Vec<&'a [usize]> {
    let index = &run.session.index().personal;
    let (mut groups, mut rest) = (Vec::new(), users);
    while !rest.is_empty() {
        let mut queries = 0;
        let fits = |&&user: &&usize| {
            queries += index[user].num_queries;
            queries <= GROUP_QUERIES
        };
        let len = rest.iter().take(GROUP).take_while(fits).count().max(1);
        let (group, others) = rest.split_at(len);
        groups.push(group);
        rest = others;
    }
    groups
}

/// This rank's users by the number of their queries; those put aside by the individual stage too, so that
/// every arm asks the same users the same way.
fn my_users(run: &Run<'_>) -> anyhow::Result<Vec<usize>> {
    let index = &run.session.index().personal;
    let costs: Vec<(UserKey, u64)> = index.iter().map(|u| (u.key, u.num_queries as u64)).collect();
    let plan = plan(&costs, run.comm.size())?;
    let mut mine = plan.by_rank[run.comm.rank()].clone();
    mine.sort_unstable();
    Ok(mine)
}

/// Rank 0 writes all lines, in the order of user and query.
fn gather(run: &Run<'_>, path: &std::path::Path, lines: &[String]) -> anyhow::Result<()> {
    let mine = lines.join("\n");
    if let Some(all) = run.comm.gather_bytes(0, mine.as_bytes())? {
        let mut text = String::new();
        let mut rows: Vec<(&str, String, String)> = Vec::new();
        let all: Vec<String> = all.into_iter().map(String::from_utf8).collect::<Result<_, _>>()?;
        for line in all.iter().flat_map(|part| part.lines()) {
            let p: Prediction = serde_json::from_str(line)?;
            rows.push((line, p.user.as_str().to_owned(), p.query));
        }
        rows.sort_by(|a, b| (&a.1, &a.2).cmp(&(&b.1, &b.2)));
        for (line, _, _) in rows {
            text.push_str(line);
            text.push('\n');
        }
        let folder = path.parent().context("a predictions file has a folder")?;
        std::fs::create_dir_all(folder)?;
        write_atomic(path, text.as_bytes()).with_context(|| format!("{}", path.display()))?;
    }
    run.comm.barrier()?;
    Ok(())
}

/// Rows of a pack and of the cache of keys and values.
pub(crate) fn rows(session: &Session) -> (usize, usize) {
    let labels = session.labels.as_ref();
    let rows = PACK_ROWS.max(session.rules.chunk_rows) + labels.map_or(0, Labels::rows);
    let written = session.config.predict.batch_queries * session.max_new_tokens();
    (rows, if labels.is_some() { 0 } else { rows + written })
}

/// What asks the network.
struct Answerer<'a, B: Ops> {
    run: &'a Run<'a>,
    oracle: Oracle<'a, B>,
    labels: Option<&'a Labels>,
    sampling: Sampling,
}

impl<'a, B: Ops> Answerer<'a, B> {
    fn new(run: &'a Run<'a>, net: &'a Network<B>, arm: Arm) -> anyhow::Result<Self> {
        let session = run.session;
        let predict = &session.config.predict;
        let labels = session.labels.as_ref();
        #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
        let sampling = Sampling {
            temperature: predict.temperature as f32,
            top_k: u32::try_from(predict.top_k)?,
            top_p: predict.top_p as f32,
            max_new_tokens: u32::try_from(session.max_new_tokens())?,
            seed: session.config.run.seed,
        };
        let adapters = if arm.adapted() { u32::try_from(GROUP)? } else { 0 };
        Ok(Self {
            run,
            oracle: Oracle::new(net, rows(session), adapters, session.rules)?,
            labels,
            sampling,
        })
    }

    /// Prompts of queries: with labels one for each branch, with the tokens that lead to it.
    fn prompts(&self, queries: &[Query]) -> Vec<Vec<u32>> {
        let Some(labels) = self.labels else {
            return queries.iter().map(|query| query.tokens.clone()).collect();
        };
        let asked = queries.iter().flat_map(|q| labels.branches.iter().map(move |b| (q, b)));
        let prompt = |(q, b): (&Query, &Branch)| {
            q.tokens.iter().chain(&labels.sequences.shared).chain(&b.prefix).copied().collect()
        };
        asked.map(prompt).collect()
    }

    fn answer(
        &mut self,
        askers: &[Asker],
        queries: &[Vec<Query>],
    ) -> anyhow::Result<Vec<Prediction>> {
        let mut out = Vec::new();
        let prediction = |asker: &Asker, query: &Query| Prediction {
            user: asker.user.clone(),
            query: query.id.clone(),
            gold: query.gold.clone(),
            text: String::new(),
            label_probs: None,
            expected: None,
        };
        let each = || askers.iter().zip(queries).flat_map(|(a, qs)| qs.iter().map(move |q| (a, q)));
        if let Some(labels) = self.labels {
            let branches: Vec<&[u32]> = labels.branches.iter().map(|b| &b.tokens[..]).collect();
            let given = self.oracle.branch_probabilities(askers, &branches)?;
            let given = given.iter().flat_map(|user| user.chunks(branches.len()));
            for ((asker, query), given) in each().zip(given) {
                let probs = labels.sequences.probabilities(given);
                let expected = expected(&labels.names, &probs);
                let mut p =
                    Prediction { label_probs: Some(probs), expected, ..prediction(asker, query) };
                p.text = p.answer(&labels.names).map_err(anyhow::Error::msg)?.to_owned();
                out.push(p);
            }
            return Ok(out);
        }
        let tokenizer = &self.run.session.tokenizer;
        let answers = self.oracle.generate(askers, &self.sampling, tokenizer.eos())?;
        for ((asker, query), ids) in each().zip(answers.iter().flatten()) {
            let text = tokenizer.decode(ids, true)?;
            let text = if self.run.session.config.predict.first_line {
                text.trim().lines().next().unwrap_or("").trim().to_owned()
            } else {
                text.trim().to_owned()
            };
            out.push(Prediction { text, ..prediction(asker, query) });
        }
        Ok(out)
    }
}

/// Expected value under the probabilities, where every label is a number.
fn expected(labels: &[String], probabilities: &[f32]) -> Option<f32> {
    let numbers: Option<Vec<f64>> = labels.iter().map(|l| l.parse().ok()).collect();
    let sum: f64 = numbers?.iter().zip(probabilities).map(|(n, &p)| n * f64::from(p)).sum();
    #[expect(clippy::cast_possible_truncation, reason = "kept as f32, like the probabilities")]
    Some(sum as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_rating() {
        let labels: Vec<String> = ["1", "2", "4"].map(str::to_owned).to_vec();
        assert_eq!(expected(&labels, &[0.5, 0.25, 0.25]), Some(2.0));
        assert_eq!(expected(&["good".to_owned()], &[1.0]), None);
    }
}
