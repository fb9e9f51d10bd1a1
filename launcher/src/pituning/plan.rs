//! What the stages of a PITuning run take of a GPU, and the sizes that follow from it.
//!
//! Counted by [`trainer::stage::forecast`] stage by stage, in their order, since scratch memory is kept from one to the
//! next. Rows of packs of models that train whole are never chosen from memory: they decide last bits there. Those of
//! tuning, and how many people are in flight, are; neither changes a bit. Start reading at [`Needs::of`].

use super::{EventSession, tune};
use crate::exit::Fails;
use crate::plan::gigabytes;
use crate::plan::gpu::{self, AUTO_PACK_ROWS, AUTO_USERS, RESERVE};
use crate::plan::room::Room;
use crate::run::Until;
use trainer::config::pituning::{EventArm, Tune};
use trainer::config::{GradientSum, Recipe};
use trainer::lora::SiteLists;
use trainer::model::event::{EventSpec, Places};
use trainer::stage::forecast::{Forecast, answers, tuning, whole, whole_sums};

const WHOLE: &str = "lower engine.pack_tokens (it has no effect below 2048 and model.window), raise population.frozen_blocks or make [model] and [distill] smaller; launcher plan --gpu NAME|GB says what another GPU holds";
const OWN: &str = "lower individual.batch_size and unlearn.batch_size or make the student smaller; launcher plan --gpu NAME|GB says what another GPU holds";
const TUNING: &str = "lower engine.pack_tokens (it has no effect below 2048 and model.window), engine.users_in_flight or individual.lora_rank; launcher plan --gpu NAME|GB says what another GPU holds";
const ANSWERS: &str = "lower engine.pack_tokens (it has no effect below 2048 and model.window); launcher plan --gpu NAME|GB says what another GPU holds";

/// A stage and its memory.
#[derive(Debug)]
struct Need {
    stage: &'static str,
    rows: usize,
    forecast: Forecast,
}

/// All stages of a run.
#[derive(Debug)]
pub(super) struct Needs {
    room: Room,
    stages: Vec<Need>,
    /// Rows of a pack and people in flight while people are tuned with adapters.
    tuning: Option<(usize, usize)>,
}

impl Needs {
    /// The stages of a run up to one, with `people` to tune on each of so many ranks.
    ///
    /// # Errors
    /// What does not fit, with the numbers.
    pub(super) fn of(
        session: &EventSession,
        until: Until,
        (people, ranks): (usize, usize),
        room: Room,
    ) -> anyhow::Result<Self> {
        let (config, rows) = (&session.config, session.pack_rows());
        let (teacher, student, arms) = (&session.teacher, &session.student, &config.run.arms);
        let needs_student = arms.iter().any(|arm| arm.of_student()) || until <= Until::Individual;
        let asks_teacher = until >= Until::Predict && arms.contains(&EventArm::Teacher);
        let distills = needs_student && config.distill.enabled && until > Until::Population;
        let on_device = config.engine.gradient_sum == GradientSum::Device;
        let shards = (config.population.virtual_shards, ranks);
        let sums = |model| if on_device { whole_sums(model, shards) } else { 0 };
        let mut needs = Self { room, stages: Vec::new(), tuning: None };
        if needs_student || arms.contains(&EventArm::Teacher) {
            let (frozen, hidden) =
                (config.population.frozen_blocks, config.population.mask_ratio > 0.0);
            let of = ((teacher, frozen), &config.population.training);
            needs.whole("population", of, (rows, hidden), (sums(of.0), WHOLE))?;
        }
        if asks_teacher || distills {
            needs.bare("its answers", teacher, rows)?;
        }
        if distills {
            needs.whole(
                "distil",
                ((student, 0), &config.distill.training),
                (rows, false),
                (sums((student, 0)), WHOLE),
            )?;
        }
        if needs_student && until >= Until::Individual {
            needs.bare("student's answers", student, rows)?;
            if tune::arms(config).next().is_some() {
                needs.people(session, people)?;
            }
        }
        let own = |arm: &EventArm| arm.tuned() || *arm == EventArm::Permuted;
        if until >= Until::Predict && config.individual.tune != Tune::All && arms.iter().any(own) {
            let of = (tune::answered(session, rows)?, own_params(session));
            let forecast = answers(student, &session.lists, rows, of)?;
            needs.add(("predictions", rows), forecast, ANSWERS)?;
        }
        Ok(needs)
    }

    /// A model that trains whole, with so many bytes of its gradients' sums.
    fn whole(
        &mut self,
        stage: &'static str,
        (model, recipe): ((&EventSpec, usize), &Recipe),
        (rows, hidden): (usize, bool),
        (sums, hint): (usize, &'static str),
    ) -> anyhow::Result<()> {
        let forecast = Forecast { sums, ..whole(model, recipe, (rows, hidden))? };
        self.add((stage, rows), forecast, hint)
    }

    /// A model that is asked as it is.
    fn bare(&mut self, stage: &'static str, spec: &EventSpec, rows: usize) -> anyhow::Result<()> {
        let lists = SiteLists::new(&spec.trunk());
        self.add((stage, rows), answers(spec, &lists, rows, (1, 1))?, ANSWERS)
    }

    /// People who are tuned: with adapters as many in packs as large as fit.
    fn people(&mut self, session: &EventSession, people: usize) -> anyhow::Result<()> {
        let (engine, student) = (&session.config.engine, &session.student);
        if session.config.individual.tune == Tune::All {
            let rows = tune::own_rows(student, &tune::tuning(session));
            let of = ((student, 0), &session.config.individual.training);
            return self.whole("tuning", of, (rows, false), (0, OWN));
        }
        let automatic = (engine.pack_tokens == 0, engine.users_in_flight == 0);
        let least = session.pack_rows();
        let rows = if automatic.0 { AUTO_PACK_ROWS.max(least) } else { least };
        let slots = if automatic.1 { AUTO_USERS } else { engine.users_in_flight };
        let mut sizes = (rows, slots.min(people.max(1)));
        loop {
            let of = (u32::try_from(sizes.1)?, own_params(session));
            let forecast = self.kept(tuning(student, &session.lists, sizes.0, of)?);
            match gpu::smaller(sizes, automatic, least) {
                Some(less) if !gpu::fits(&forecast, self.room) => sizes = less,
                _ => {
                    self.tuning = Some(sizes);
                    return self.add(("tuning", sizes.0), forecast, TUNING);
                }
            }
        }
    }

    /// With the scratch memory that earlier stages have left, if that is more.
    fn kept(&self, forecast: Forecast) -> Forecast {
        let before = self.stages.last().map_or(0, |need| need.forecast.workspace);
        Forecast { workspace: forecast.workspace.max(before), ..forecast }
    }

    fn add(
        &mut self,
        (stage, rows): (&'static str, usize),
        forecast: Forecast,
        hint: &'static str,
    ) -> anyhow::Result<()> {
        let forecast = self.kept(forecast);
        if !gpu::fits(&forecast, self.room) {
            let what = match self.tuning {
                Some((_, slots)) if stage == "tuning" => {
                    format!("{stage}: packs of {rows} rows and {slots} people in flight")
                }
                _ => format!("{stage}: packs of {rows} rows"),
            };
            return Err(gpu::refusal(&what, &forecast, self.room)).input(hint);
        }
        self.stages.push(Need { stage, rows, forecast });
        Ok(())
    }

    /// The end of a plan, from the line on memory on; a rank's host holds so many shards' gradients at a time.
    pub(super) fn lines(&self, session: &EventSession, held: usize) -> String {
        let most = self.stages.iter().map(|need| need.forecast.total()).max().unwrap_or(0);
        let mut text = format!(
            "GPU memory        {:.2} GB a rank, each with a GPU of its own; {}\n",
            gigabytes(most.saturating_add(RESERVE)),
            self.room.says()
        );
        let columns =
            ["base", "activations", "adapters", "optimiser", "workspace", "tables", "whole"];
        let row = |name: &str, rows: &str, cells: [String; 7]| {
            let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>12}")).collect();
            format!("  {name:<18}{rows:>6}{}\n", cells.concat())
        };
        text += &row("MB", "rows", columns.map(str::to_owned));
        for Need { stage, rows, forecast } in &self.stages {
            let Forecast { base, activations, adapters, optimiser, workspace, tables, sums } =
                *forecast;
            let whole = forecast.total().saturating_add(RESERVE);
            let parts = [base, activations, adapters, optimiser, workspace + sums, tables, whole];
            let cells = parts.map(|bytes| format!("{:.1}", gigabytes(bytes) * 1e3));
            text += &row(stage, &rows.to_string(), cells);
        }
        text += &format!(
            "  adapters with their gradients, of a model that trains whole its gradient, and its shards' in workspace; whole with {:.0} of reserve, an \
             estimate: context, modules, the library's own kernels\n",
            gigabytes(RESERVE) * 1e3
        );
        if let Some((rows, slots)) = self.tuning {
            text += &format!("tuning            packs of {rows} rows, {slots} people in flight\n");
        }
        let places = Places::partly(&session.teacher, session.config.population.frozen_blocks);
        let state = 2 * places.len() + (3 + held) * places.trained();
        text += &format!(
            "host memory       {:.2} GB a rank in the population stage, of the model's state and its shards' \
             gradients, besides data",
            gigabytes(state * size_of::<f32>())
        );
        text
    }
}

/// Parameters of a person's own part that is not the whole model.
fn own_params(session: &EventSession) -> usize {
    session.lists.lists().first().map_or(1, |l| l.params(session.lora.lora_rank as usize))
}

/// Refuses a run up to a stage whose GPU cannot hold it, before anything is trained; on processors each stage does so
/// when it begins.
///
/// # Errors
/// What does not fit, with the numbers.
pub(super) fn check(session: &EventSession, until: Until, ranks: usize) -> anyhow::Result<()> {
    let Some(room) = session.room else { return Ok(()) };
    let people = session.data.users.len().div_ceil(ranks);
    Needs::of(session, until, (people, ranks), room).map(|_| ())
}

/// Rows of a pack and people in flight when `people` are tuned with adapters on this one of `ranks` ranks.
///
/// # Errors
/// On a GPU when not even the fewest fit, with the numbers.
pub(super) fn sizes(
    session: &EventSession,
    (people, ranks): (usize, usize),
) -> anyhow::Result<(usize, usize)> {
    let of_cpu = (session.pack_rows(), tune::slots(session, people));
    let Some(room) = session.room else { return Ok(of_cpu) };
    Ok(Needs::of(session, Until::Individual, (people, ranks), room)?.tuning.unwrap_or(of_cpu))
}
