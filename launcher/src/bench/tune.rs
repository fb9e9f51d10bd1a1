//! `launcher bench tune`: people an hour of personal unlearning and tuning, many at once and one after another.
//!
//! Both ways run in one process, in turns, on the same seeded student and the same lessons; every person's parameters,
//! steps and last loss must be the same bits. One after another has buffers of its own that hold one micro-batch, so
//! that it is not slowed by memory it does not need. Start reading at [`run`].

use super::case::{self, Case, Losses};
use super::{cpu_seconds, peak_rss_bytes, report};
use crate::cli::{BenchTuneArgs, RunArgs};
use crate::env::Env;
use crate::exit::{Exit, Fails};
use crate::ground::Purpose;
use crate::pituning::{Course, EventSession, persons, slots, tuning};
use kernels::{Cpu, linear::peak};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use trainer::comm::Communicator;
use trainer::config::DeviceKind;
use trainer::config::pituning::{EventArm, EventConfig, EventSourceKind, Tune};
use trainer::ids::UserId;
use trainer::lora::SiteLists;
use trainer::model::activations::StepSize;
use trainer::model::batch::Batch;
use trainer::model::event::{EventNetwork, Places};
use trainer::model::network::Network;
use trainer::report::NullSink;
use trainer::stage::engine::{Engine, Model};
use trainer::stage::events::Events;
use trainer::stage::individual::Watch;
use trainer::stage::trainee::{Outcome, Trainee};
use trainer::stage::tune::{Person, Tuning, run as tune};
use trainer::store::ModelFile;

/// Key of the student's parameters: speed does not depend on them.
const STUDENT: [u32; 2] = [1, 2];

pub(super) fn run(
    args: &BenchTuneArgs,
    env: &Env,
    comm: &dyn Communicator,
) -> anyhow::Result<Exit> {
    let config = config(args, env, comm)?;
    crate::threads(config.engine.threads, env)?;
    let session = EventSession::open(config, Purpose::Run, env, comm)?;
    let student = student(&session);
    let stop = AtomicBool::new(false);
    let course = Course { session: &session, comm, events: &NullSink, stop: &stop };
    let everyone: Vec<usize> = (0..session.data.users.len().min(args.users)).collect();
    let people = persons(&course, EventArm::Personal, &student, &everyone)?;
    let tuning = tuning(&session);
    if args.dump.is_some() {
        case::check(&tuning)?;
    }
    let mut net = EventNetwork::new(Cpu, student.spec.clone())?;
    net.load(&student.params)?;
    let batch = tuning.learn.batch_size.max(tuning.unlearn.batch_size) as usize;
    let together = Way { rows: session.pack_rows(), slots: slots(&session, people.len()) };
    let alone = Way { rows: student.spec.window * batch, slots: 1 };
    let mut taken = [Vec::new(), Vec::new()];
    for _ in 0..args.repetitions.max(1) {
        let mut results = Vec::new();
        for (way, taken) in [together, alone].into_iter().zip(&mut taken) {
            let tally = take(way, (&session, &net), (&tuning, &people), &stop)?;
            results.push(tally.results.clone());
            taken.push(tally);
        }
        let differs = |(a, b): &(_, _)| a != b;
        let of = results[0].iter().zip(&results[1]).find(differs).map(|((user, _), _)| user);
        anyhow::ensure!(
            results[0] == results[1],
            "results differ, first those of user {}",
            of.map_or("?", UserId::as_str)
        );
    }
    anyhow::ensure!(taken[0][0].results.len() == people.len(), "somebody was not tuned");
    if let Some(folder) = &args.dump {
        let losses = &taken[1][0].losses;
        let case = Case { session: &session, student: &student, tuning: &tuning, losses };
        case.write(folder, &people)?;
    }
    let result = summary(&session, people.len(), (together, &taken))?;
    report(&result, args.json.as_deref())?;
    Ok(Exit::Done)
}

/// The config with as many generated people as asked for.
fn config(args: &BenchTuneArgs, env: &Env, comm: &dyn Communicator) -> anyhow::Result<EventConfig> {
    let run = RunArgs {
        config: args.config.clone(),
        variants: args.variants.clone(),
        sets: args.sets.clone(),
        print_config: false,
        dry_run: false,
        gpu: None,
    };
    let mut config = crate::session::document(&run, comm)?
        .resolve_events(&env.variables())
        .input("this measurement is of PITuning configs: run.method = \"pituning\"")?;
    if config.engine.device != DeviceKind::Cpu {
        return Err(anyhow::anyhow!("this measurement is of processors"))
            .input("set engine.device to \"cpu\"");
    }
    if config.individual.tune == Tune::All {
        return Err(anyhow::anyhow!("whole models are not tuned in packs"))
            .input("set individual.tune to \"adapters+head\" or \"adapters\"");
    }
    if config.data.source == EventSourceKind::Generated {
        let users = toml::Value::Integer(i64::try_from(args.users)?);
        config.data.generator.insert("users".into(), users);
    }
    Ok(config)
}

fn student(session: &EventSession) -> ModelFile {
    let places = Places::new(&session.student);
    let mut params = vec![0.0; places.len()];
    places.initialise(STUDENT, &mut params);
    ModelFile { spec: session.student.clone(), params }
}

/// A way to take people.
#[derive(Debug, Clone, Copy)]
struct Way {
    /// Rows of a pack at most.
    rows: usize,
    /// People in flight.
    slots: usize,
}

/// Tunes everybody in one way.
fn take(
    way: Way,
    (session, net): (&EventSession, &EventNetwork<Cpu>),
    (tuning, people): (&Tuning, &[Person]),
    stop: &AtomicBool,
) -> anyhow::Result<Tally> {
    let params = session.lists.lists()[0].params(session.lora.lora_rank as usize);
    let size = StepSize { rows: way.rows, stored_blocks: net.spec().layers, backward: true };
    let events = Events::new((net, session.windows.table()), &session.lists, size)?;
    let timed = Timed { events, seconds: 0.0 };
    let mut engine = Engine::of(timed, &session.lists, (u32::try_from(way.slots)?, params))?;
    let mut people = people.iter().cloned();
    let mut tally = Tally::default();
    let (started, before) = (Instant::now(), cpu_seconds());
    tune(&mut engine, session.rules, (tuning, &mut people), &mut tally, stop)?;
    tally.seconds = started.elapsed().as_secs_f64();
    tally.cpu_seconds = cpu_seconds().zip(before).map_or(f64::NAN, |(now, then)| now - then);
    tally.pack_seconds = engine.model.seconds;
    Ok(tally)
}

/// A model that says how long its packs took.
#[derive(Debug)]
struct Timed<'a> {
    events: Events<'a, Cpu>,
    seconds: f64,
}

impl Model<Cpu> for Timed<'_> {
    fn trunk(&self) -> &Network<Cpu> {
        self.events.trunk()
    }

    fn rows(&self) -> usize {
        self.events.rows()
    }

    fn vocab(&self) -> usize {
        self.events.vocab()
    }

    fn train(
        &mut self,
        batch: &Batch,
        of: (&SiteLists, &<Cpu as kernels::Backend>::Buf<f32>),
        grads: &mut <Cpu as kernels::Backend>::Buf<f32>,
    ) -> trainer::stage::Result<&[f32]> {
        let started = Instant::now();
        let losses = self.events.train(batch, of, grads)?;
        self.seconds += started.elapsed().as_secs_f64();
        Ok(losses)
    }

    fn losses(
        &mut self,
        batch: &Batch,
        of: (&SiteLists, &<Cpu as kernels::Backend>::Buf<f32>),
    ) -> trainer::stage::Result<&[f32]> {
        self.events.losses(batch, of)
    }
}

/// Somebody's result: bits of the parameters, steps, bits of the last loss; or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Own {
    Tuned(Vec<u32>, u32, u32),
    Aside(String),
}

/// What one way of taking everybody gave.
#[derive(Debug, Default)]
struct Tally {
    seconds: f64,
    /// Of all threads: other programs on the machine do not change it.
    cpu_seconds: f64,
    pack_seconds: f64,
    /// From the end of a pack to the first report of a step: `AdamW` of the due people.
    update_seconds: f64,
    packed: Option<Instant>,
    packs: usize,
    rows: usize,
    steps: usize,
    results: BTreeMap<UserId, Own>,
    losses: Losses,
}

impl Watch for Tally {
    fn pack(&mut self, rows: usize, _: usize, _: usize) {
        self.packs += 1;
        self.rows += rows;
        self.packed = Some(Instant::now());
    }

    fn step(&mut self, trainee: &Trainee, loss: f32, _: f32) {
        self.steps += 1;
        match self.losses.get_mut(trainee.user()) {
            Some(losses) => losses.push(loss),
            None => drop(self.losses.insert(trainee.user().clone(), vec![loss])),
        }
        if let Some(packed) = self.packed.take() {
            self.update_seconds += packed.elapsed().as_secs_f64();
        }
    }

    fn left(&mut self, outcome: Outcome) -> trainer::stage::Result<()> {
        let (user, own) = match outcome {
            Outcome::Trained { user, params, steps, final_loss, .. } => {
                let bits = params.iter().map(|x| x.to_bits()).collect();
                (user, Own::Tuned(bits, steps, final_loss.to_bits()))
            }
            Outcome::Quarantined { user, reason, .. } => (user, Own::Aside(reason)),
        };
        self.results.insert(user, own);
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "rates and shares for people")]
fn summary(
    session: &EventSession,
    people: usize,
    (together, taken): (Way, &[Vec<Tally>; 2]),
) -> anyhow::Result<serde_json::Value> {
    let threads = rayon::current_num_threads();
    let of =
        |tallies: &[Tally], each: fn(&Tally) -> f64| median(tallies.iter().map(each).collect());
    let way = |tallies: &[Tally]| {
        let (seconds, packs) = (of(tallies, |t| t.seconds), tallies[0].packs.max(1) as f64);
        let (pack, update) = (of(tallies, |t| t.pack_seconds), of(tallies, |t| t.update_seconds));
        json!({
            "users_per_hour": people as f64 / seconds * 3600.0,
            "seconds": tallies.iter().map(|t| t.seconds).collect::<Vec<f64>>(),
            "cpu_seconds": tallies.iter().map(|t| t.cpu_seconds).collect::<Vec<f64>>(),
            "packs": tallies[0].packs,
            "rows": tallies[0].rows,
            "steps": tallies[0].steps,
            "rows_per_pack": tallies[0].rows as f64 / packs,
            "rows_per_s": tallies[0].rows as f64 / seconds,
            "pack_ms": pack / packs * 1e3,
            "share_packs": pack / seconds,
            "share_adamw": update / seconds,
            "share_planning": (seconds - pack - update).max(0.0) / seconds,
        })
    };
    let ratios: Vec<f64> =
        taken[0].iter().zip(&taken[1]).map(|(many, one)| one.seconds / many.seconds).collect();
    let cpu = |(many, one): (&Tally, &Tally)| one.cpu_seconds / many.cpu_seconds;
    let cpu_ratios: Vec<f64> = taken[0].iter().zip(&taken[1]).map(cpu).collect();
    let (together_of, alone_of) = (way(&taken[0]), way(&taken[1]));
    let aside = taken[0][0].results.values().filter(|own| matches!(own, Own::Aside(_))).count();
    let mut result = json!({
        "users": people,
        "users_put_aside": aside,
        "users_in_flight": together.slots,
        "pack_rows": together.rows,
        "threads": threads,
        "repetitions": taken[0].len(),
        "lora_rank": session.lora.lora_rank,
        "student_parameters": Places::new(&session.student).len(),
        "own_parameters": session.lists.lists()[0].params(session.lora.lora_rank as usize),
        "same_bits": true,
        "ratio": median(ratios.clone()),
        "ratios": ratios,
        "cpu_ratio": median(cpu_ratios),
        "sgemm_peak_gflop_per_s": peak::product(threads)?,
        "vector_instructions": kernels::cpu::vector_instructions(),
        "peak_rss_bytes": peak_rss_bytes(),
    });
    for (name, way) in [("together", together_of), ("one_by_one", alone_of)] {
        for (key, value) in way.as_object().into_iter().flatten() {
            result[format!("{name}_{key}")] = value.clone();
        }
    }
    Ok(result)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
