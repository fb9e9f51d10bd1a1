//! `launcher bench kernels`: what each operation takes, beside what it could take at best.
//!
//! Owns the choice of operations and shapes and the measurement of one after another; cases are in `cases/`, bounds of GPUs
//! in `model.rs`, the rules of timing in `time.rs`, tables and JSON in `table.rs`. Nothing here has run on a GPU. Start
//! reading at [`run`].

mod cases;
mod model;
mod sizes;
mod table;
#[cfg(test)]
mod tests;
mod time;

use crate::cli::BenchKernelsArgs;
use crate::device::{Device, on};
use crate::env::Env;
use crate::exit::{Exit, Fails};
use crate::watch::print;
use anyhow::Context;
use cases::{Op, Run, Subject, ops};
use kernels::{Cpu, linear::peak};
use model::{Model, Work};
use sizes::Sizes;
use std::path::Path;
use std::time::Duration;
use table::Table;
use time::{Rules, Times, measure};
use trainer::comm::Solo;
use trainer::config::DeviceKind;
use trainer::store::write_atomic;

/// Bytes of an activation and of a frozen weight on a GPU; bounds are for these.
const GPU_ACT: f64 = 2.0;

/// Where it is measured.
#[derive(Debug)]
struct Place {
    /// `cpu` or `cuda`; none where nothing is run.
    kind: Option<&'static str>,
    name: String,
    /// The GPU, where it is one of the table.
    model: Option<&'static Model>,
    /// GFLOP/s of our products on processors.
    peak: Option<f64>,
    threads: usize,
}

/// One operation of one shape.
#[derive(Debug)]
struct Entry {
    op: &'static str,
    family: &'static str,
    preset: &'static str,
    sizes: Sizes,
    /// With a GPU's activations.
    gpu: Work,
    /// With those of where it is measured.
    here: Work,
    times: Option<Times>,
    /// Others that do the same.
    rivals: Vec<(&'static str, Times)>,
    error: Option<String>,
}

pub(super) fn run(args: &BenchKernelsArgs, env: &Env) -> anyhow::Result<Exit> {
    let hint = "launcher bench kernels --list shows operations and their shapes";
    let wanted = Sizes::parse(args.shape.as_deref().unwrap_or_default()).input(hint)?;
    let rules = Rules { runs: args.runs, time: Duration::from_millis(args.milliseconds) };
    // Refused before a device is opened.
    let known = choose::<Cpu>(&args.ops, &wanted).input(hint)?;
    let (place, entries) = if args.list {
        let place = Place { kind: None, name: String::new(), model: None, peak: None, threads: 0 };
        let entries = entries(&known, GPU_ACT);
        let mut table = Table::new(&place, &entries, !quiet(args));
        entries.iter().for_each(|entry| table.row(entry));
        table.end();
        (place, entries)
    } else {
        crate::threads(args.threads, env)?;
        let kind = if args.device == "cuda" { DeviceKind::Cuda } else { DeviceKind::Cpu };
        // One process on one device, also under mpirun: this is not a matter between ranks.
        let device = Device::open((kind, false), env, &Solo::new())?;
        let place = place(&device)?;
        let entries = on!(device, b => {
            let chosen = choose(&args.ops, &wanted).input(hint)?;
            measured(&b, &chosen, (&place, rules), quiet(args))?
        });
        (place, entries)
    };
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&table::json(&place, rules, &entries))?;
        if quiet(args) {
            print(&text);
        } else {
            write_atomic(path, (text + "\n").as_bytes())
                .with_context(|| format!("{}", path.display()))?;
        }
    }
    failures(&entries).input(hint)?;
    Ok(Exit::Done)
}

/// Whether JSON goes where the table would go.
fn quiet(args: &BenchKernelsArgs) -> bool {
    args.json.as_deref() == Some(Path::new("-"))
}

/// What `device` is.
fn place(device: &Device) -> anyhow::Result<Place> {
    let threads = rayon::current_num_threads();
    Ok(match device {
        Device::Cpu => Place {
            kind: Some("cpu"),
            name: format!("{threads} threads, {}", kernels::cpu::vector_instructions()),
            model: None,
            peak: Some(peak::product(threads)?),
            threads,
        },
        Device::Cuda(gpu) => {
            let name = gpu.device().describe()?.name;
            let model = Model::reported(&name);
            Place { kind: Some("cuda"), name, model, peak: None, threads }
        }
    })
}

/// An operation with its shapes.
type Chosen<B> = (Op<B>, Vec<(&'static str, Sizes)>);

/// The operations that `names` mean, families too, all without names; `wanted` lies over their shapes.
fn choose<B: Subject>(names: &[String], wanted: &Sizes) -> anyhow::Result<Vec<Chosen<B>>> {
    let all = ops::<B>();
    for name in names {
        if !all.iter().any(|op| op.name == name || op.family == name) {
            let mut families: Vec<&str> = all.iter().map(|op| op.family).collect();
            families.dedup();
            let ops: Vec<&str> = all.iter().map(|op| op.name).collect();
            anyhow::bail!(
                "no operation `{name}`; there are {}, and the families {}",
                ops.join(", "),
                families.join(", ")
            );
        }
    }
    let meant = |op: &Op<B>| {
        names.is_empty() || names.iter().any(|name| op.name == name || op.family == name)
    };
    let mut chosen = Vec::new();
    for op in all.into_iter().filter(meant) {
        let shapes = op.shapes(wanted)?;
        chosen.push((op, shapes));
    }
    for key in wanted.keys() {
        let known = |(_, shapes): &Chosen<B>| {
            shapes.iter().any(|(_, sizes)| sizes.keys().any(|k| k == key))
        };
        if !chosen.iter().any(known) {
            anyhow::bail!("no size `{key}`; {}", keys(&chosen));
        }
    }
    Ok(chosen)
}

/// `linear_forward has rows, d, n; …`, operations of the same sizes together.
fn keys<B: Subject>(chosen: &[Chosen<B>]) -> String {
    let mut texts: Vec<(Vec<&str>, String)> = Vec::new();
    for (op, shapes) in chosen {
        let keys = shapes
            .first()
            .map_or(String::new(), |(_, sizes)| sizes.keys().collect::<Vec<_>>().join(", "));
        match texts.iter_mut().find(|(_, known)| *known == keys) {
            Some((names, _)) => names.push(op.name),
            None => texts.push((vec![op.name], keys)),
        }
    }
    let texts: Vec<String> = texts
        .into_iter()
        .map(|(names, keys)| {
            let verb = if names.len() > 1 { "have" } else { "has" };
            format!("{} {verb} {keys}", names.join(", "))
        })
        .collect();
    texts.join("; ")
}

/// What is to be measured, for activations of `act` bytes.
fn entries<B: Subject>(chosen: &[Chosen<B>], act: f64) -> Vec<Entry> {
    let entry = |op: &Op<B>, preset, sizes: &Sizes| Entry {
        op: op.name,
        family: op.family,
        preset,
        sizes: sizes.clone(),
        gpu: (op.work)(sizes, GPU_ACT),
        here: (op.work)(sizes, act),
        times: None,
        rivals: Vec::new(),
        error: None,
    };
    let of = |(op, shapes): &Chosen<B>| {
        shapes.iter().map(|(preset, sizes)| entry(op, preset, sizes)).collect::<Vec<_>>()
    };
    chosen.iter().flat_map(of).collect()
}

/// Measures one after another; what fails is noted, and the others go on.
fn measured<B: Subject>(
    b: &B,
    chosen: &[Chosen<B>],
    (place, rules): (&Place, Rules),
    quiet: bool,
) -> anyhow::Result<Vec<Entry>> {
    let mut entries = entries(chosen, size_of_act::<B>());
    let mut table = Table::new(place, &entries, !quiet);
    let ops = chosen.iter().flat_map(|(op, shapes)| shapes.iter().map(move |_| op));
    for (entry, op) in entries.iter_mut().zip(ops) {
        if let Err(error) = one(b, op, rules, entry) {
            entry.error = Some(error.to_string());
        }
        table.row(entry);
    }
    table.end();
    Ok(entries)
}

fn size_of_act<B: Subject>() -> f64 {
    f64::from(u8::try_from(size_of::<B::Act>()).unwrap_or(u8::MAX))
}

/// The operation, then the others, each with buffers of its own that are gone before the next.
fn one<B: Subject>(b: &B, op: &Op<B>, rules: Rules, entry: &mut Entry) -> kernels::Result<()> {
    entry.times = Some(timed(b, (op.build)(b, &entry.sizes)?, rules)?);
    for (name, run) in (op.rivals)(b, &entry.sizes)? {
        entry.rivals.push((name, timed(b, run, rules)?));
    }
    Ok(())
}

fn timed<B: Subject>(b: &B, mut run: Run, rules: Rules) -> kernels::Result<Times> {
    let probe = b.alloc::<u32>(1)?;
    let mut wait = || b.read(&probe, 0, &mut [0]);
    let wait: Option<&mut dyn FnMut() -> kernels::Result<()>> =
        if B::QUEUES { Some(&mut wait) } else { None };
    measure(rules, &mut run, wait)
}

/// An error if anything failed.
fn failures(entries: &[Entry]) -> anyhow::Result<()> {
    let failed: Vec<(&Entry, &String)> =
        entries.iter().filter_map(|entry| Some((entry, entry.error.as_ref()?))).collect();
    match failed.first() {
        None => Ok(()),
        Some((entry, error)) => Err(anyhow::anyhow!(
            "{} of {} could not be measured, the first {} of {}: {error}",
            failed.len(),
            entries.len(),
            entry.op,
            entry.sizes
        )),
    }
}
