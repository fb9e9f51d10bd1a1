//! The population model and the student, and what they take: parameters, latency, memory.

use super::plan::Needs;
use super::{Course, EventSession};
use crate::cli::RunArgs;
use crate::device::on;
use crate::env::Env;
use crate::exit::{Exit, Fails};
use crate::ground::Purpose;
use crate::plan::gigabytes;
use crate::run::Until;
use crate::sums::{Adds, explained, of_nccl};
use crate::watch::{Progress, print};
use kernels::Ops;
use std::path::{Path, PathBuf};
use std::time::Instant;
use trainer::comm::{Communicator, shards_of};
use trainer::config::{GradientSum, Recipe};
use trainer::data::events::Part;
use trainer::lora::SiteLists;
use trainer::model::activations::StepSize;
use trainer::model::event::{EventNetwork, EventSpec, EventStepper, Places};
use trainer::model::huggingface::HuggingFace;
use trainer::pack::ClassLoss;
use trainer::prompt::Example;
use trainer::report::{Event, Stage};
use trainer::stage::engine::Engine;
use trainer::stage::events::Events;
use trainer::stage::foresee::{Asker, Form, run as foresee};
use trainer::stage::individual::End;
use trainer::stage::lesson::distilled;
use trainer::stage::population::PopulationStep;
use trainer::stage::whole::{Keep, Reconstruction, WholeTask, WholeTrainer, whole_key};
use trainer::store::{ModelFile, State, load_checkpoint, save_checkpoint};

/// The population model's file in the run folder.
pub(super) const POPULATION: &str = "population/model.safetensors";
/// The student's.
pub(super) const STUDENT: &str = "student/model.safetensors";

/// Rows of a pack where the config leaves it open.
const AUTO_PACK_ROWS: usize = 2048;

const PRETRAINED: &str =
    "model.pretrained is a Hugging Face folder of a GPT-2 of this width and depth";

impl EventSession {
    /// The base whose blocks the population model begins with, if there is one; no weight is read yet.
    pub(super) fn pretrained(&self) -> anyhow::Result<Option<HuggingFace>> {
        let Some(folder) = &self.config.model.pretrained else { return Ok(None) };
        let source = HuggingFace::open(folder).input(PRETRAINED)?;
        Places::check_blocks(&self.teacher, &source).input(PRETRAINED)?;
        Ok(Some(source))
    }

    /// Rows of a pack.
    pub(crate) fn pack_rows(&self) -> usize {
        let asked = self.config.engine.pack_tokens;
        let rows = if asked == 0 { AUTO_PACK_ROWS } else { asked };
        rows.max(self.rules.chunk_rows.min(AUTO_PACK_ROWS)).max(self.config.model.window)
    }
}

/// The population model, trained or found done; `None` when stopped.
pub(super) fn population(course: &Course<'_>) -> anyhow::Result<Option<ModelFile>> {
    let (session, config) = (course.session, &course.session.config.population);
    let path = course.path(POPULATION);
    if path.exists() {
        return Ok(Some(load(&path)?));
    }
    let key = whole_key(session.config.run.seed, "population");
    let places = Places::new(&session.teacher);
    let mut params = vec![0.0; places.len()];
    places.initialise(key, &mut params);
    if let Some(source) = session.pretrained()? {
        places.take_blocks(&session.teacher, &source, &mut params).input(PRETRAINED)?;
    }
    let (windows, validation) =
        (session.population(Part::Train), session.population(Part::Validation));
    let reconstruction = (config.mask_ratio > 0.0)
        .then_some(Reconstruction { mask_ratio: config.mask_ratio, lambda: config.lambda });
    let job = Job {
        stage: Stage::Population,
        spec: &session.teacher,
        recipe: &config.training,
        losses: Vec::new(),
        reconstruction,
        frozen: config.frozen_blocks,
        key,
        folder: course.path("population"),
    };
    train(course, &job, (&windows, &validation), params, &path)
}

/// The student, distilled or found done; the population model itself where there is none. `None` when stopped.
pub(super) fn student(
    course: &Course<'_>,
    teacher: ModelFile,
) -> anyhow::Result<Option<ModelFile>> {
    let (session, config) = (course.session, &course.session.config.distill);
    if !config.enabled {
        return Ok(Some(teacher));
    }
    let path = course.path(STUDENT);
    if path.exists() {
        return Ok(Some(load(&path)?));
    }
    let key = whole_key(session.config.run.seed, "student");
    let places = Places::new(&session.student);
    let mut params = vec![0.0; places.len()];
    places.initialise(key, &mut params);
    let (windows, validation) =
        (session.population(Part::Train), session.population(Part::Validation));
    course.say("asking the population model for its answers");
    let logits = shared_logits(course, &teacher, &windows)?;
    #[expect(clippy::cast_possible_truncation, reason = "rounded once to f32")]
    let terms = (config.soft_weight as f32, config.temperature as f32);
    let job = Job {
        stage: Stage::Distill,
        spec: &session.student,
        recipe: &config.training,
        losses: distilled(&windows, &logits, terms),
        reconstruction: None,
        frozen: 0,
        key,
        folder: course.path("student"),
    };
    train(course, &job, (&windows, &validation), params, &path)
}

fn load(path: &Path) -> anyhow::Result<ModelFile> {
    ModelFile::load(path).input("the run folder was changed: start a new run")
}

/// A model to train.
struct Job<'a> {
    stage: Stage,
    spec: &'a EventSpec,
    recipe: &'a Recipe,
    losses: Vec<ClassLoss>,
    reconstruction: Option<Reconstruction>,
    /// Lowest blocks that stay as they are.
    frozen: usize,
    key: [u32; 2],
    folder: PathBuf,
}

fn train(
    course: &Course<'_>,
    job: &Job<'_>,
    of: (&[Example], &[Example]),
    params: Vec<f32>,
    path: &Path,
) -> anyhow::Result<Option<ModelFile>> {
    on!(*course.session.device()?, backend => {
        let net = EventNetwork::partly(backend, job.spec.clone(), job.frozen)?;
        train_on(net, (course, job), of, params, path)
    })
}

fn train_on<B: Adds + Clone>(
    mut net: EventNetwork<B>,
    (course, job): (&Course<'_>, &Job<'_>),
    (windows, validation): (&[Example], &[Example]),
    params: Vec<f32>,
    path: &Path,
) -> anyhow::Result<Option<ModelFile>> {
    let (session, started) = (course.session, Instant::now());
    let config = &session.config.population;
    let shards = shards_of(course.comm.rank(), course.comm.size(), config.virtual_shards).len();
    let rows = session.pack_rows();
    let bytes = WholeTrainer::bytes(&net, rows, shards);
    budget(session, bytes)?;
    if course.leads() {
        std::fs::create_dir_all(&job.folder)?;
    }
    course.comm.barrier()?;
    let checkpoint = job.folder.join("checkpoint.safetensors");
    let config_hash = session.config.result_hash()?.to_string();
    let state = load_checkpoint(&checkpoint, &config_hash)
        .input("delete the checkpoint to train this stage from its beginning")?;
    let state = state.unwrap_or_else(|| State::partly(params, net.places().frozen()));
    course.comm.barrier()?;
    let steps = windows.len().div_ceil(job.recipe.batch_size as usize) * job.recipe.epochs as usize;
    let events: u64 = windows.iter().map(|w| w.prompt_len as u64).sum();
    let tokens = events * u64::from(job.recipe.epochs);
    course.events.emit(Event::StageStarted { stage: job.stage, users: 0, tokens })?;
    let name = if job.stage == Stage::Distill { "distill" } else { "population" };
    let mut keep = Keeper {
        course,
        progress: Progress::new(name, steps as u64, course.leads()),
        checkpoint: &checkpoint,
        every: config.checkpoint_steps,
        config: &config_hash,
    };
    keep.progress.advance(u64::from(state.step), 0, "");
    let task = WholeTask {
        windows,
        losses: &job.losses,
        validation,
        recipe: job.recipe,
        reconstruction: job.reconstruction,
        key: job.key,
        num_shards: config.virtual_shards,
    };
    let backend = net.trunk().backend().clone();
    let mut trainer = WholeTrainer::new(&mut net, session.windows.table(), rows)?;
    // After the trainer, so dropped before it: on an error it may still be at work on the trainer's memory.
    let place = session.config.engine.gradient_sum;
    let mut sums = backend.sums(course.comm, place, config.virtual_shards)?;
    let trained = trainer.run((course.comm, &mut *sums), &task, state, &mut keep, course.stop);
    let (end, state) = if of_nccl(&trained) {
        explained(course.comm, trained)?
    } else {
        trained.input("lower the learning rate or set clip_norm, if it diverged; give people training windows")?
    };
    explained(course.comm, sums.close())?;
    keep.progress.finish();
    let seconds = started.elapsed().as_secs_f64();
    course.events.emit(Event::StageFinished { stage: job.stage, seconds })?;
    if end == End::Stopped {
        return Ok(None);
    }
    let model = ModelFile { spec: job.spec.clone(), params: state.into_params() };
    if course.leads() {
        model.save(path)?;
        // The model is there: the checkpoint has served.
        let _ = std::fs::remove_file(&checkpoint);
    }
    course.comm.barrier()?;
    Ok(Some(model))
}

/// Refuses what does not fit the memory of a rank on processors; of a GPU everything was looked at before.
pub(super) fn budget(session: &EventSession, bytes: usize) -> anyhow::Result<()> {
    if session.room.is_some() {
        return Ok(());
    }
    let (needed, there) = (gigabytes(bytes), session.config.engine.memory_gb);
    if needed > there {
        return Err(anyhow::anyhow!("{needed:.2} GB are needed, engine.memory_gb is {there:.2}"))
            .input(
                "raise engine.memory_gb, or lower engine.pack_tokens or population.virtual_shards",
            );
    }
    Ok(())
}

struct Keeper<'a> {
    course: &'a Course<'a>,
    progress: Progress,
    checkpoint: &'a Path,
    every: u32,
    config: &'a str,
}

impl Keep for Keeper<'_> {
    fn step(&mut self, step: PopulationStep) {
        let rows = (step.rows * self.course.comm.size()) as u64;
        self.progress.advance(1, rows, &format!("loss {:.3}", step.loss));
    }

    fn epoch(&mut self, epoch: u32, validation_loss: Option<f64>) {
        if let Some(loss) = validation_loss {
            self.course.say(&format!("epoch {epoch}: validation loss {loss:.4}"));
        }
    }

    fn every(&self) -> u32 {
        self.every
    }

    fn checkpoint(&mut self, state: &State) -> trainer::stage::Result<()> {
        if self.course.leads() {
            save_checkpoint(self.checkpoint, state, self.config)?;
        }
        Ok(())
    }
}

/// A model's logits `[windows, intents]`, each rank computing its share.
fn shared_logits(
    course: &Course<'_>,
    model: &ModelFile,
    windows: &[Example],
) -> anyhow::Result<Vec<f32>> {
    let (rank, size, n) = (course.comm.rank(), course.comm.size(), model.spec.intents);
    let each = windows.len().div_ceil(size);
    let start = (rank * each).min(windows.len());
    let mine = &windows[start..(start + each).min(windows.len())];
    let mut own = vec![0.0; each * n];
    own[..mine.len() * n].copy_from_slice(&logits(course.session, model, mine)?);
    let mut all = vec![0.0; each * n * size];
    course.comm.all_gather_f32(&own, &mut all)?;
    all.truncate(windows.len() * n);
    Ok(all)
}

/// A model's logits `[windows, intents]` of windows on this rank.
pub(super) fn logits(
    session: &EventSession,
    model: &ModelFile,
    windows: &[Example],
) -> anyhow::Result<Vec<f32>> {
    let mut all = Vec::with_capacity(windows.len() * model.spec.intents);
    let user = trainer::ids::UserId::new("population");
    let askers = [Asker { user, own: None, windows: windows.to_vec() }];
    with_model(session, model, |ask| {
        ask(&askers, Form::Logits, &mut |_, _, row| all.extend_from_slice(row))
    })?;
    Ok(all)
}

/// A model that is asked for what [`foresee`] answers, on whatever it computes.
pub(super) type Ask<'a> = dyn FnMut(&[Asker], Form, &mut dyn FnMut(usize, usize, &[f32])) -> trainer::stage::Result<()>
    + 'a;

/// Does some work with a model that nobody adapts.
pub(super) fn with_model<T>(
    session: &EventSession,
    model: &ModelFile,
    work: impl FnOnce(&mut Ask<'_>) -> trainer::stage::Result<T>,
) -> anyhow::Result<T> {
    on!(*session.device()?, backend => with_model_on(backend, session, model, work))
}

fn with_model_on<B: Ops, T>(
    backend: B,
    session: &EventSession,
    model: &ModelFile,
    work: impl FnOnce(&mut Ask<'_>) -> trainer::stage::Result<T>,
) -> anyhow::Result<T> {
    let mut net = EventNetwork::new(backend, model.spec.clone())?;
    net.load(&model.params)?;
    let lists = SiteLists::new(net.trunk().spec());
    let rows = session.pack_rows();
    let size = StepSize { rows, stored_blocks: 0, backward: false };
    let events = Events::new((&net, session.windows.table()), &lists, size)?;
    let mut engine = Engine::of(events, &lists, (1, 1))?;
    let of_mean = session.of_mean();
    Ok(work(&mut |askers, form, answer| foresee(&mut engine, askers, (form, of_mean), answer))?)
}

/// A model that trains whole: parameters, those of them that train, bytes of a rank that holds so many shards.
fn whole_size(
    session: &EventSession,
    (spec, frozen): (&EventSpec, usize),
    (rows, shards): (usize, usize),
) -> anyhow::Result<(usize, usize, usize)> {
    Ok(on!(*session.device()?, backend => {
        let net = EventNetwork::partly(backend, spec.clone(), frozen)?;
        let bytes = WholeTrainer::bytes(&net, rows, shards);
        (net.places().len(), net.places().trained(), bytes)
    }))
}

/// What a run would do, on standard output of rank 0.
pub(super) fn print_plan(session: &EventSession, comm: &dyn Communicator) -> anyhow::Result<Exit> {
    if comm.rank() > 0 {
        return Ok(Exit::Done);
    }
    let (config, vocabulary) = (&session.config, &session.data.vocabulary);
    let cold = session.data.users.iter().filter(|u| u.cold).count();
    let windows =
        |part| -> usize { (0..session.data.users.len()).map(|n| session.of(n, part).len()).sum() };
    let columns: Vec<String> =
        vocabulary.columns.iter().map(|c| format!("{} {}", c.name, c.size)).collect();
    let of = |spec: &EventSpec| Places::new(spec).len();
    let people = session.data.users.len();
    let (train, test) = (windows(Part::Train), windows(Part::Test));
    let own = session
        .lists
        .lists()
        .first()
        .map_or(of(&session.student), |l| l.params(session.lora.lora_rank as usize));
    let frozen = config.population.frozen_blocks;
    let shards = shards_of(0, comm.size(), config.population.virtual_shards).len();
    let places = Places::partly(&session.teacher, frozen);
    let (all, trained) = (places.len(), places.trained());
    let memory = match session.room {
        None => {
            let of = (&session.teacher, frozen);
            let (.., bytes) = whole_size(session, of, (session.pack_rows(), shards))?;
            let (needed, there) = (gigabytes(bytes), config.engine.memory_gb);
            format!(
                "memory            {needed:.2} GB a rank in the population stage; budget {there:.2} GB"
            )
        }
        Some(room) => {
            let mine = people.div_ceil(comm.size());
            let held = match (session.config.engine.gradient_sum, comm.size()) {
                (GradientSum::Device, _) => 0,
                // A rank alone adds its shards' gradients up as they come.
                (GradientSum::Host, 1) => shards.min(1),
                (GradientSum::Host, _) => shards,
            };
            Needs::of(session, Until::Evaluate, (mine, comm.size()), room)?.lines(session, held)
        }
    };
    print(&format!(
        "people            {people}, {cold} of them cold\n\
         columns           {}\n\
         intents           {}\n\
         windows           {train} for training, {test} for the test, at most {} events\n\
         population model  {} parameters, {} of them trained\n\
         student           {} parameters\n\
         a person's part   {own} parameters\n\
         ranks             {} with {} threads\n\
         {memory}",
        columns.join(", "),
        vocabulary.intents.len(),
        config.model.window,
        all,
        trained,
        of(&session.student),
        comm.size(),
        rayon::current_num_threads(),
    ));
    Ok(Exit::Done)
}

/// The paper's device table for a config's models: parameters, latency of one window, memory of tuning.
pub(crate) fn bench(args: &RunArgs, env: &Env, comm: &dyn Communicator) -> anyhow::Result<Exit> {
    let document = crate::session::document(args, comm)?;
    let config = document
        .resolve_events(&env.variables())
        .input("this table is of PITuning configs: run.method = \"pituning\"")?;
    if args.print_config {
        print(config.to_toml()?.trim_end());
        return Ok(Exit::Done);
    }
    crate::threads(config.engine.threads, env)?;
    let purpose = if args.dry_run { Purpose::Plan { gpu: None } } else { Purpose::Run };
    let session = EventSession::open(config, purpose, env, comm)?;
    if args.dry_run {
        return print_plan(&session, comm);
    }
    let mut lines = vec![format!(
        "{:<20}{:>14}{:>14}{:>16}{:>16}",
        "model", "parameters", "tuned", "one window", "tuning memory"
    )];
    let own = session.lists.lists().first().map(|l| l.params(session.lora.lora_rank as usize));
    for (name, spec) in [("population model", &session.teacher), ("student", &session.student)] {
        let len = Places::new(spec).len();
        let seconds = latency(&session, spec)?;
        let rows = spec.window * session.config.individual.training.batch_size as usize;
        let (.., whole) = whole_size(&session, (spec, 0), (rows, 1))?;
        lines.push(row(name, len, len, seconds, whole));
        let frozen = session.config.population.frozen_blocks;
        if name == "population model" && frozen > 0 {
            let (_, trained, bytes) = whole_size(&session, (spec, frozen), (rows, 1))?;
            lines.push(row("population, partly", len, trained, seconds, bytes));
        }
        if let Some(own) = own.filter(|_| name == "student") {
            let size = StepSize { rows, stored_blocks: spec.layers, backward: true };
            let buffers = on!(*session.device()?, backend => {
                EventStepper::bytes(&EventNetwork::new(backend, spec.clone())?, size, 1)
            });
            let bytes = buffers + own * 16 + len * 4;
            lines.push(row("student, adapters", len, own, seconds, bytes));
        }
    }
    print(&lines.join("\n"));
    Ok(Exit::Done)
}

fn row(name: &str, len: usize, tuned: usize, seconds: f64, bytes: usize) -> String {
    let (latency, memory) = (seconds * 1e3, gigabytes(bytes) * 1e3);
    format!("{name:<20}{len:>14}{tuned:>14}{latency:>13.3} ms{memory:>13.1} MB")
}

/// Median seconds of one person's one window, after a warm-up.
fn latency(session: &EventSession, spec: &EventSpec) -> anyhow::Result<f64> {
    let places = Places::new(spec);
    let mut params = vec![0.0; places.len()];
    places.initialise([1, 2], &mut params);
    let model = ModelFile { spec: spec.clone(), params };
    let (number, window) = (0..session.data.users.len())
        .find_map(|n| {
            session.of(n, Part::Train).into_iter().max_by_key(|w| w.1.prompt_len).map(|w| (n, w.1))
        })
        .ok_or_else(|| anyhow::anyhow!("nobody has a training window"))?;
    let user = session.data.users[number].id.clone();
    let askers = [Asker { user, own: None, windows: vec![window] }];
    let mut times = Vec::new();
    with_model(session, &model, |ask| {
        for _ in 0..60 {
            let started = Instant::now();
            ask(&askers, Form::Probabilities, &mut |_, _, _| {})?;
            times.push(started.elapsed().as_secs_f64());
        }
        Ok(())
    })?;
    times.drain(..10);
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
