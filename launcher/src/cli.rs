//! The command line.

use clap::{Args, Parser, Subcommand};
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
    /// Everything up to the personal adapters.
    Individual(RunArgs),
    /// Everything up to the predictions of all arms.
    Predict(RunArgs),
    /// The table of a run from its predictions; trains nothing.
    Evaluate(RunArgs),
    /// All cells of a config with [study.axes], and one table with plots: docs/guides/study.md.
    ///
    /// A finished cell is never redone; what cells have in common is computed once. A cell that fails is reported
    /// and the others go on (exit code 5).
    Study(RunArgs),
    /// What a run would take: users, tokens, steps, memory, time; starts nothing.
    Plan(RunArgs),
    /// Checks data and prints statistics.
    Prepare(PrepareArgs),
    /// Writes adapters as PEFT folders.
    Export(ExportArgs),
    /// Puts PEFT folders into a store.
    Import(ImportArgs),
    /// Reads everything of a run folder and checks it against its checksums.
    Verify(FolderArgs),
    /// Removes a user's adapter from a run folder, bytes and all.
    Forget(ForgetArgs),
    /// Ranks, processors, MPI and libraries as this job sees them.
    Doctor,
    /// Measurements.
    #[command(subcommand)]
    Bench(Bench),
    /// Shell completions on standard output.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// A run by its config.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    /// The config file (TOML).
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Sets one key over the file: `individual.learning_rate=1e-3`. Can be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
    /// Prints the resolved config and stops.
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Reads and checks everything, prints the plan, starts nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PrepareArgs {
    /// Myriad JSONL file to check.
    #[arg(long, value_name = "FILE")]
    pub(crate) check: PathBuf,
    /// The file is for the population stage: users may have no history.
    #[arg(long)]
    pub(crate) population: bool,
    /// Stop with code 3 at the first problem instead of listing all.
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
}

#[derive(Debug, Args)]
pub(crate) struct FolderArgs {
    /// The run folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) run: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ForgetArgs {
    /// The run folder.
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
