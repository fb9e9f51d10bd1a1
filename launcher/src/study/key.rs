//! What an entry's name is a hash of: weights and arithmetic, the settings, every token of every user.

use super::digest::Digest;
use crate::run::Run;
use crate::shown::Shown;
use anyhow::Context;
use trainer::config::PredictMode;
use trainer::model::cache::MappedBase;

/// Weights, and whatever decides the last bit of what is computed with them.
pub(super) fn arithmetic(run: &Run<'_>, base: &MappedBase, digest: &mut Digest) {
    digest.text(env!("CARGO_PKG_VERSION"));
    digest.text(kernels::cpu::vector_instructions());
    digest.text(base.form());
    digest.text(&base.hash().to_string());
    digest.text(&format!("{:?}", run.session.rules));
    digest.number(run.session.config.prompt.max_length as u64);
}

/// How tokens are read and where a text ends.
pub(super) fn tokens(run: &Run<'_>, digest: &mut Digest) {
    digest.bytes(&run.session.tokenizer.hash());
    digest.tokens(run.session.tokenizer.eos());
}

/// How queries are answered and answers are written.
pub(super) fn settings(run: &Run<'_>, digest: &mut Digest) -> anyhow::Result<()> {
    let (session, predict) = (run.session, &run.session.config.predict);
    digest.bytes(&serde_json::to_vec(predict)?);
    let sampled = predict.mode == PredictMode::Generate && predict.temperature > 0.0;
    digest.number(if sampled { session.config.run.seed } else { 0 });
    tokens(run, digest);
    let labels = match predict.mode {
        PredictMode::Generate => None,
        PredictMode::Label => session.task.label_sequences(&session.tokenizer)?,
    };
    digest.number(u64::from(labels.is_some()));
    if let Some(labels) = labels {
        digest.tokens(&labels.shared);
        labels.sequences.iter().for_each(|label| digest.tokens(label));
    }
    // Labels and all that may be done to a written answer.
    digest.bytes(&serde_json::to_vec(session.task.template())?);
    Ok(())
}

/// Every user with every query as it is asked.
pub(super) fn prompts(run: &Run<'_>, shown: Shown, digest: &mut Digest) -> anyhow::Result<()> {
    let session = run.session;
    each(run, session.index().personal.len(), digest, &|user, of_user| {
        let record = session.data.user(user)?;
        of_user.text(record.id.as_str());
        for query in session.queries(&record, shown).0 {
            of_user.text(&query.id);
            of_user.number(u64::from(query.gold.is_some()));
            of_user.text(query.gold.as_deref().unwrap_or_default());
            of_user.tokens(&query.tokens);
        }
        Ok(())
    })
}

/// What there is of each user, in the order of their numbers; the ranks read a share each.
pub(super) fn each(
    run: &Run<'_>,
    users: usize,
    digest: &mut Digest,
    of: &dyn Fn(usize, &mut Digest) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let ranks = run.comm.size();
    let mut mine = Vec::new();
    for user in (run.comm.rank()..users).step_by(ranks) {
        let mut of_user = Digest::new("myriad 2026 study user 1");
        of(user, &mut of_user)?;
        mine.extend(of_user.finish());
    }
    let all = run.comm.all_gather_bytes(&mine)?;
    digest.number(users as u64);
    for user in 0..users {
        let at = user / ranks * 32;
        digest.bytes(all[user % ranks].get(at..at + 32).context("a rank left users out")?);
    }
    Ok(())
}
