//! The command line.

use clap::{ArgGroup, Args, Parser, Subcommand};
use std::path::PathBuf;

/// Trains thousands of personal LoRA adapters at once on one frozen base model.
///
/// Start alone, or one process a rank: `mpirun -n 4 launcher run --config configs/x.toml`. The same
/// command again resumes a run that was cut off, and does nothing to one that is finished.
///
/// Exit codes: 0 done, 2 usage, 3 wrong config or data, 4 verification failed, 5 done but some users were
/// put aside or some cells of a study failed, 75 stopped on a signal (run the same command again), 101 internal error.
#[derive(Debug, Parser)]
#[command(name = "launcher", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All stages of a config: population, personal adapters, predictions, evaluation.
    Run(RunArgs),
    /// The population stage alone: task adapter, merged base.
    Population(RunArgs),
    /// Everything up to the student of a PITuning run.
    Distill(RunArgs),
    /// Everything up to the personal adapters.
    Individual(RunArgs),
    /// Everything up to the predictions of all arms.
    Predict(RunArgs),
    /// The table of a run from its predictions (--config), or of anybody's LaMP files (--predictions, --golds); trains
    /// nothing.
    Evaluate(EvaluateArgs),
    /// All cells of a config with [study.axes], and one table with plots: docs/guides/study.md.
    ///
    /// A finished cell is never redone; what cells have in common is computed once. A cell that fails is reported
    /// and the others go on (exit code 5).
    Study(RunArgs),
    /// What a run would take: users, tokens, steps, memory, time; starts nothing.
    Plan(PlanArgs),
    /// Checks data, describes it, converts it.
    Prepare(Box<PrepareArgs>),
    /// Writes adapters as PEFT folders.
    Export(ExportArgs),
    /// Puts PEFT folders into a store.
    Import(ImportArgs),
    /// Reads everything of a run folder and checks it against its checksums.
    Verify(FolderArgs),
    /// Takes a user out of the folder of a run or a study, bytes and all.
    Forget(ForgetArgs),
    /// Ranks, processors, MPI, GPUs and libraries as this job sees them; whether ranks and GPUs talk, and how fast.
    Doctor(DoctorArgs),
    /// Measurements.
    #[command(subcommand)]
    Bench(Bench),
    /// Shell completions on standard output.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// How patient the doctor is.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Seconds after which an exchange between ranks, or between GPUs, counts as failed.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) timeout_s: u64,
}

/// A run by its config.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    /// The config file (TOML).
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Lays `[variant.NAME]` of the file over the rest of it. Can be repeated.
    #[arg(long = "variant", value_name = "NAME")]
    pub(crate) variants: Vec<String>,
    /// Sets one key over the file: `individual.learning_rate=1e-3`. Can be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
    /// Prints the resolved config and stops.
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Reads and checks everything, prints the plan, starts nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Of a plan: bytes of the GPU it is for.
    #[arg(skip)]
    pub(crate) gpu: Option<usize>,
}

/// A run by its config, and the GPU it is to run on.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Plans for a GPU that need not be here: a100-40, a100-80, h100, h200, or its memory in 10^9 bytes. Of a config with
    /// engine.device = "cuda".
    #[arg(long, value_name = "NAME|GB", value_parser = crate::plan::room::named)]
    pub(crate) gpu: Option<usize>,
}

/// A run by its config, or prediction files; one of the two.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true).args(["config", "predictions"]))]
pub(crate) struct EvaluateArgs {
    /// The config file (TOML) of the run.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Lays `[variant.NAME]` of the file over the rest of it. Can be repeated.
    #[arg(
        long = "variant",
        value_name = "NAME",
        requires = "config",
        conflicts_with = "predictions"
    )]
    pub(crate) variants: Vec<String>,
    /// Sets one key over the file: `evaluate.confidence=0.9`. Can be repeated.
    #[arg(
        long = "set",
        value_name = "KEY=VALUE",
        requires = "config",
        conflicts_with = "predictions"
    )]
    pub(crate) sets: Vec<String>,
    /// Prints the resolved config and stops.
    #[arg(long, requires = "config", conflicts_with = "predictions")]
    pub(crate) print_config: bool,
    /// Reads and checks everything, prints the plan, starts nothing.
    #[arg(long, requires = "config", conflicts_with = "predictions")]
    pub(crate) dry_run: bool,
    /// Predictions in LaMP's form, an object or a bare list. Repeated, the files are compared in pairs, each with the ones
    /// before it; without a name the file's own is taken.
    #[arg(long, value_name = "[NAME=]FILE", requires = "golds")]
    pub(crate) predictions: Vec<String>,
    #[command(flatten)]
    pub(crate) files: EvaluateFiles,
}

/// What goes with prediction files.
#[derive(Debug, Args)]
pub(crate) struct EvaluateFiles {
    /// The true answers, in the same form.
    #[arg(long, value_name = "FILE", requires = "predictions", conflicts_with = "config")]
    pub(crate) golds: Option<PathBuf>,
    /// The task, under LaMP's, OPPU's or our name (LaMP_3, product_rating, rating); without it what the golds name.
    #[arg(long, value_name = "NAME", requires = "predictions", conflicts_with = "config")]
    pub(crate) task: Option<String>,
    /// LaMP's questions or OPPU's users, for values per user and by history size; without it every query is a user.
    #[arg(long, value_name = "FILE", requires = "predictions", conflicts_with = "config")]
    pub(crate) questions: Option<PathBuf>,
    /// Metrics, the primary one first, instead of the task's official ones: accuracy, macro_f1, mae, rmse, rouge_1,
    /// rouge_l, compat_accuracy, compat_macro_f1, compat_mae, compat_rmse.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        requires = "predictions",
        conflicts_with = "config"
    )]
    pub(crate) metrics: Vec<String>,
    /// Adds the user-profile study's variants of the metrics.
    #[arg(long, requires = "predictions", conflicts_with = "config")]
    pub(crate) compat: bool,
    /// Writes everything as JSON; `-` for standard output, instead of the table.
    #[arg(long, value_name = "FILE", requires = "predictions", conflicts_with = "config")]
    pub(crate) json: Option<PathBuf>,
    /// Writes values, differences and intervals as CSV; `-` for standard output, instead of the table.
    #[arg(long, value_name = "FILE", requires = "predictions", conflicts_with = "config")]
    pub(crate) csv: Option<PathBuf>,
}

impl EvaluateArgs {
    /// The run that is meant, or none where files are.
    pub(crate) fn run(&self) -> Option<RunArgs> {
        let config = self.config.clone()?;
        let (sets, print_config, dry_run) = (self.sets.clone(), self.print_config, self.dry_run);
        let variants = self.variants.clone();
        Some(RunArgs { config, variants, sets, print_config, dry_run, gpu: None })
    }
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["check", "from"]))]
pub(crate) struct PrepareArgs {
    /// Myriad JSONL file to check: every bad record by line and user.
    #[arg(long, value_name = "FILE")]
    pub(crate) check: Option<PathBuf>,
    /// The file to check is for the population stage: users may have no history.
    #[arg(long, conflicts_with = "from")]
    pub(crate) population: bool,
    /// Data to describe and convert. KIND is `jsonl`, `lamp`, `oppu`, `ml-100k`, `chitchat` or
    /// `spam-assassin`; PATH its folder or its file of users. Or an event log: `lsapp`, `tsinghua-app-usage`,
    /// `studentlife-activity`, `ml100k-genre`, `events-csv` and `events-jsonl` (as `--to` writes them), `events`
    /// (with `--format`).
    #[arg(long, value_name = "KIND=PATH")]
    pub(crate) from: Option<String>,
    /// Answers to the questions of the file of users.
    #[arg(long, value_name = "FILE", requires = "from")]
    pub(crate) answers: Option<PathBuf>,
    /// Profile texts of the users.
    #[arg(long, value_name = "FILE", requires = "from")]
    pub(crate) profiles: Option<PathBuf>,
    /// The population users, where they are a file of their own.
    #[arg(long, value_name = "FILE", requires = "from")]
    pub(crate) population_file: Option<PathBuf>,
    /// Answers to the questions of the population users.
    #[arg(long, value_name = "FILE", requires = "population_file")]
    pub(crate) population_answers: Option<PathBuf>,
    /// Profile texts of the population users.
    #[arg(long, value_name = "FILE", requires = "population_file")]
    pub(crate) population_profiles: Option<PathBuf>,
    /// The task, under any of its names; `lamp`, `oppu` and `spam-assassin` need it.
    #[arg(long, value_name = "TASK", requires = "from")]
    pub(crate) task: Option<String>,
    /// Personal users; all who qualify without.
    #[arg(long, value_name = "N", requires = "from")]
    pub(crate) users: Option<usize>,
    /// So many users, or this share of those who qualify, become population users.
    #[arg(long, value_name = "N|SHARE", requires = "from")]
    pub(crate) split_population: Option<String>,
    /// Orders the users from whom `--users` and `--split-population` take.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub(crate) seed: u64,
    /// A user qualifies with so many history items.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) min_history: usize,
    /// The newest so many history items of a personal user are kept.
    #[arg(long, value_name = "N", requires = "from")]
    pub(crate) max_history: Option<usize>,
    /// A user qualifies with so many queries; 1 for people's events, 0 for files of users.
    #[arg(long, value_name = "N", requires = "from")]
    pub(crate) min_queries: Option<usize>,
    /// The first so many queries of a personal user are kept.
    #[arg(long, value_name = "N", requires = "from")]
    pub(crate) max_queries: Option<usize>,
    /// Of people's events the latest part, in per cent, that becomes a personal user's queries.
    #[arg(long, value_name = "PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) held_out_percent: u8,
    /// The same for a population user, whose queries the shared adapter learns from.
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) population_held_out_percent: u8,
    /// Hugging Face folder or GGUF file whose tokens lengths are counted in; words without.
    #[arg(long, value_name = "PATH", requires = "from")]
    pub(crate) base: Option<PathBuf>,
    /// Writes the statistics as JSON to a new file.
    #[arg(long, value_name = "FILE", requires = "from")]
    pub(crate) stats: Option<PathBuf>,
    /// Of an event log: TOML file with keys over those of KIND, such as `columns`, `time`, `intent`, `preset`,
    /// `[split]`.
    #[arg(long, value_name = "FILE", requires = "from")]
    pub(crate) format: Option<PathBuf>,
    /// Of an event log: the length of windows that statistics are for.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) window: u32,
    /// Writes the users as `jsonl`, `lamp` or `oppu`, files named as the originals; an event log as `events-csv` or
    /// `events-jsonl`.
    #[arg(long, value_name = "KIND", requires_all = ["from", "out"])]
    pub(crate) to: Option<String>,
    /// Question ids of LaMP and OPPU files are USER:QUERY instead of the queries' own.
    #[arg(long, requires = "to")]
    pub(crate) ids_with_user: bool,
    /// The folder for `--to`; must not exist.
    #[arg(long, value_name = "DIR", requires = "to")]
    pub(crate) out: Option<PathBuf>,
    /// Stop with code 3 at bad records instead of skipping and listing them.
    #[arg(long)]
    pub(crate) strict: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The run folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) run: PathBuf,
    /// Where the PEFT folders go; must not exist.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Only these users; all without.
    #[arg(long = "user", value_name = "ID")]
    pub(crate) users: Vec<String>,
    /// Of a PITuning run the arm whose people are meant; `personal` without.
    #[arg(long, value_name = "ARM")]
    pub(crate) arm: Option<String>,
    /// What adapters name as their base.
    #[arg(long, value_name = "NAME")]
    pub(crate) base_name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The run folder whose base the adapter is for.
    #[arg(long, value_name = "DIR")]
    pub(crate) run: PathBuf,
    /// The PEFT folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: PathBuf,
    /// The user it belongs to.
    #[arg(long, value_name = "ID")]
    pub(crate) user: String,
    /// Take it even if it says that it was trained on another base.
    #[arg(long)]
    pub(crate) any_base: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FolderArgs {
    /// The run folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) run: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ForgetArgs {
    /// The run folder, or a study's.
    #[arg(long, value_name = "DIR")]
    pub(crate) run: PathBuf,
    /// The user.
    #[arg(long, value_name = "ID")]
    pub(crate) user: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Speed and memory of the individual stage.
    Train(BenchTrainArgs),
    /// Batched prediction against one user after another.
    Predict(BenchPredictArgs),
    /// Every operation at the shapes of known models: bytes, operations, the bound on A100, H100 and H200, and the time it takes
    /// here.
    Kernels(BenchKernelsArgs),
    /// Personal unlearning and tuning of a PITuning config's people: many at once against one after another.
    Tune(BenchTuneArgs),
    /// The device table of a PITuning config: parameters, latency of one window, memory of tuning, for the population model
    /// and the student.
    Device(RunArgs),
}

/// What both benchmarks take.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArgs {
    /// Hugging Face folder or GGUF file.
    #[arg(long, value_name = "PATH")]
    pub(crate) base: PathBuf,
    /// `ml-100k=FOLDER` or `jsonl=FILE`.
    #[arg(long, value_name = "KIND=PATH")]
    pub(crate) data: String,
    /// Users.
    #[arg(long, default_value_t = 8)]
    pub(crate) users: usize,
    /// Items of each user's history.
    #[arg(long, default_value_t = 32)]
    pub(crate) items: usize,
    /// Threads; 0 for all processors.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// LoRA rank.
    #[arg(long, default_value_t = 8)]
    pub(crate) lora_rank: u32,
    /// Writes the result as JSON; `-` for standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BenchTrainArgs {
    #[command(flatten)]
    pub(crate) common: BenchArgs,
    /// Users trained at once.
    #[arg(long, default_value_t = 8)]
    pub(crate) users_in_flight: usize,
    /// Rows of a pack; 0 for automatic.
    #[arg(long, default_value_t = 0)]
    pub(crate) pack_tokens: usize,
    /// Examples of a step.
    #[arg(long, default_value_t = 16)]
    pub(crate) batch_size: u32,
    /// Passes over the items.
    #[arg(long, default_value_t = 2)]
    pub(crate) epochs: u32,
    /// Dropout on the LoRA input.
    #[arg(long, default_value_t = 0.05)]
    pub(crate) dropout: f64,
    /// Learning rate.
    #[arg(long, default_value_t = 1e-4)]
    pub(crate) learning_rate: f64,
    /// Computes every example whole instead of a user's common prefix once.
    #[arg(long)]
    pub(crate) no_shared_prefix: bool,
    /// Computes every block's activations again in the backward.
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Writes the batches in order, for `scripts/compare`.
    #[arg(long, value_name = "FILE")]
    pub(crate) dump_examples: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BenchPredictArgs {
    #[command(flatten)]
    pub(crate) common: BenchArgs,
    /// Queries of each user.
    #[arg(long, default_value_t = 1)]
    pub(crate) queries: usize,
    /// Tokens generated for each query.
    #[arg(long, default_value_t = 32)]
    pub(crate) new_tokens: u32,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BenchKernelsArgs {
    /// An operation, or a family of them: `lora_forward`, `attention`. Can be repeated, or a list; all without.
    #[arg(long = "op", value_name = "NAME", value_delimiter = ',')]
    pub(crate) ops: Vec<String>,
    /// Numbers over those of the shapes: `rows=512,adapters=16`. An operation without such a number keeps its shapes.
    #[arg(long, value_name = "KEY=VALUE,...")]
    pub(crate) shape: Option<String>,
    /// Prints operations, shapes, bytes and bounds, and runs nothing.
    #[arg(long)]
    pub(crate) list: bool,
    /// `cpu`, or `cuda`: the first GPU.
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = ["cpu", "cuda"])]
    pub(crate) device: String,
    /// Threads; 0 for all processors.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Repetitions, at least.
    #[arg(long, default_value_t = 5)]
    pub(crate) runs: usize,
    /// Milliseconds that the repetitions take together, at least.
    #[arg(long, default_value_t = 200)]
    pub(crate) milliseconds: u64,
    /// Writes the result as JSON; `-` or nothing for standard output, instead of the table.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BenchTuneArgs {
    /// The config file (TOML) of a PITuning run.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Lays `[variant.NAME]` of the file over the rest of it. Can be repeated.
    #[arg(long = "variant", value_name = "NAME")]
    pub(crate) variants: Vec<String>,
    /// Sets one key over the file: `engine.threads=1`. Can be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
    /// People; at most those of the data where these are not generated.
    #[arg(long, default_value_t = 1000)]
    pub(crate) users: usize,
    /// Times that both ways are taken, in turns.
    #[arg(long, default_value_t = 3)]
    pub(crate) repetitions: usize,
    /// Writes the student, everybody's lessons, adapters at their start and losses to this folder, for
    /// scripts/compare/pituning.
    #[arg(long, value_name = "DIR")]
    pub(crate) dump: Option<PathBuf>,
    /// Writes the result as JSON; `-` for standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}
