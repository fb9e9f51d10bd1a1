//! `launcher bench predict`: many users decoded in one batch, against one user after another.

use super::report;
use super::workload::{Workload, start};
use crate::cli::BenchPredictArgs;
use crate::env::Env;
use crate::exit::Exit;
use serde_json::json;
use std::time::Instant;
use trainer::stage::individual::PackRules;
use trainer::stage::predict::{Asker, Oracle, Own};
use trainer::stage::sample::Sampling;

/// Rows of a pack.
const PACK_ROWS: usize = 2048;

pub(super) fn run(args: &BenchPredictArgs, env: &Env) -> anyhow::Result<Exit> {
    let work = Workload::open(&args.common, env)?;
    let net = work.network()?;
    let lora = work.adapter(args.common.lora_rank, 0.0);
    let mut askers = Vec::new();
    for (user, examples) in work.users()? {
        let params = start(&work, &user, args.common.lora_rank, 1)?;
        let own = Own { lora: lora.clone(), sites: work.sites.clone(), params };
        let prompts =
            examples.iter().take(args.queries).map(|e| e.tokens[..e.prompt_len].to_vec()).collect();
        askers.push(Asker { user, adapter: Some(own), prompts });
    }
    let queries: usize = askers.iter().map(|a| a.prompts.len()).sum();
    let cache = PACK_ROWS + queries * args.new_tokens as usize;
    let slots = u32::try_from(askers.len())?;
    let rules = PackRules { chunk_rows: PACK_ROWS, share_prefixes: true };
    let mut oracle = Oracle::new(&net, (PACK_ROWS, cache), slots, rules)?;
    let sampling = Sampling {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        max_new_tokens: args.new_tokens,
        seed: 1,
    };
    // No end token: both ways decode the same number of tokens.
    oracle.generate(&askers[..1], &sampling, &[])?;
    let started = Instant::now();
    let together = oracle.generate(&askers, &sampling, &[])?;
    let batched = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let mut alone = Vec::new();
    for asker in &askers {
        alone.extend(oracle.generate(std::slice::from_ref(asker), &sampling, &[])?);
    }
    let sequential = started.elapsed().as_secs_f64();
    anyhow::ensure!(together == alone, "answers in a batch differ from answers one by one");
    let result = json!({
        "users": askers.len(),
        "queries": queries,
        "new_tokens": args.new_tokens,
        "threads": work.threads,
        "batched_s": batched,
        "one_by_one_s": sequential,
        "speed_up": sequential / batched,
        "same_answers": true,
    });
    report(&result, args.common.json.as_deref())?;
    Ok(Exit::Done)
}
