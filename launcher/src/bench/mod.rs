//! Measurements: of the whole engine, and operation by operation (`kernels/`; for tuning the CPU's, `cargo bench -p
//! kernels` has more).

mod case;
mod kernels;
mod predict;
mod train;
mod tune;
mod workload;

use crate::cli::Bench;
use crate::env::Env;
use crate::exit::Exit;
use crate::watch::print;
use anyhow::Context;
use std::path::Path;
use trainer::comm::Communicator;
use trainer::store::write_atomic;

pub(crate) fn run(bench: &Bench, env: &Env, comm: &dyn Communicator) -> anyhow::Result<Exit> {
    match bench {
        Bench::Train(args) => train::run(args, env),
        Bench::Predict(args) => predict::run(args, env),
        Bench::Kernels(args) => kernels::run(args, env),
        Bench::Tune(args) => tune::run(args, env, comm),
        Bench::Device(args) => crate::pituning::bench(args, env, comm),
    }
}

/// The result: on the terminal line by line, and as JSON where asked.
fn report(result: &serde_json::Value, json: Option<&Path>) -> anyhow::Result<()> {
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(result)? + "\n";
        if path == Path::new("-") {
            print(text.trim_end());
            return Ok(());
        }
        write_atomic(path, text.as_bytes()).with_context(|| format!("{}", path.display()))?;
    }
    for (key, value) in result.as_object().into_iter().flatten() {
        if !value.is_object() {
            print(&format!("{key:<28} {value}"));
        }
    }
    Ok(())
}

/// Largest resident memory of this process so far, in bytes (`VmHWM`).
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Processor seconds of all threads of this process so far: what other programs take does not count (`schedstat`).
fn cpu_seconds() -> Option<f64> {
    let mut nanoseconds = 0.0;
    for task in std::fs::read_dir("/proc/self/task").ok()?.flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        nanoseconds += text.split_whitespace().next()?.parse::<f64>().ok()?;
    }
    Some(nanoseconds / 1e9)
}
