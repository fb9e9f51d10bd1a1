//! A config as it is meant: every value present, in range, paths whole.

use super::Error;
use super::recipe::Recipe;
use crate::ids::UserId;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A run, fully described. Its TOML resolves to itself again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[run]`
    pub run: Run,
    /// `[base]`
    pub base: Base,
    /// `[data]`
    pub data: Data,
    /// `[prompt]`
    pub prompt: Prompt,
    /// `[profile]`
    pub profile: Profile,
    /// `[population]`
    pub population: Population,
    /// `[individual]`
    pub individual: Individual,
    /// `[engine]`
    pub engine: Engine,
    /// `[predict]`
    pub predict: Predict,
    /// `[evaluate]`
    pub evaluate: Evaluate,
}

/// `[run]`: the run itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Its name.
    pub name: String,
    /// Seed of all random numbers.
    pub seed: u64,
    /// The run folder.
    pub out_dir: PathBuf,
    /// Rows of the result table.
    pub arms: Vec<Arm>,
}

/// A row of the result table: what answers, and what it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arm {
    /// The base model on the bare question.
    Base,
    /// The base model, shown the retrieved items.
    Rag,
    /// The base model, shown the retrieved items and the profile text.
    Pag,
    /// The base with the population adapter merged, shown what the config says.
    Population,
    /// Every user's own adapter on that.
    Personal,
    /// Every user's queries answered with the next user's adapter: the gain must be lost.
    Permuted,
}

impl Arm {
    /// All there are.
    pub const ALL: [Self; 6] =
        [Self::Base, Self::Rag, Self::Pag, Self::Population, Self::Personal, Self::Permuted];

    /// Its name in configs, files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Rag => "rag",
            Self::Pag => "pag",
            Self::Population => "population",
            Self::Personal => "personal",
            Self::Permuted => "permuted",
        }
    }

    /// Whether it answers with personal adapters.
    pub fn adapted(self) -> bool {
        matches!(self, Self::Personal | Self::Permuted)
    }

    /// Whether it answers with the merged base.
    pub fn merged(self) -> bool {
        self == Self::Population || self.adapted()
    }
}

/// `[base]`: the frozen model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Hugging Face folder or GGUF file.
    pub path: PathBuf,
    /// Where prepared weights are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
}

/// `[data]`: who the users are. An unset limit is no limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// The reader.
    pub source: Source,
    /// Task of LaMP's and OPPU's files; set with `lamp` and `oppu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Folder of a known data set; set with `ml-100k`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// File of the users to personalise; set with all sources but `ml-100k`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personal: Option<PathBuf>,
    /// Their answers, where they lie apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personal_outputs: Option<PathBuf>,
    /// Their profile texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personal_profiles: Option<PathBuf>,
    /// File of the users of the population stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub population: Option<PathBuf>,
    /// Their answers, where they lie apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub population_outputs: Option<PathBuf>,
    /// Their profile texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub population_profiles: Option<PathBuf>,
    /// Most personal users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personal_users: Option<usize>,
    /// Most population users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub population_users: Option<usize>,
    /// Newest items of a population user that are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_population_items: Option<usize>,
    /// Most population examples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub population_examples: Option<usize>,
    /// Users with fewer history items are left out.
    pub min_history: usize,
    /// Newest history items that are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_history: Option<usize>,
    /// Queries of a user that are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_queries: Option<usize>,
    /// Chooses the users of `ml-100k`; unset is the run's seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// A bad user ends the run instead of being skipped.
    pub strict: bool,
}

/// A reader of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Myriad's own format.
    #[serde(rename = "jsonl")]
    Jsonl,
    /// MovieLens 100K.
    #[serde(rename = "ml-100k")]
    Ml100k,
    /// Questions and outputs of the LaMP benchmark.
    #[serde(rename = "lamp")]
    Lamp,
    /// The files of OPPU's repository.
    #[serde(rename = "oppu")]
    Oppu,
}

/// `[prompt]`: how a record becomes text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// A builtin template's name, or a file if it ends in `.toml`.
    pub template: String,
    /// History items shown.
    pub retrieved: usize,
    /// Share of the history shown instead; 0 is off.
    pub retrieved_share: f64,
    /// How they are chosen.
    pub retriever: RetrieverKind,
    /// With [`RetrieverKind::Mixed`]: chooses the inputs.
    pub input_retriever: RetrieverKind,
    /// With [`RetrieverKind::Mixed`]: chooses the outputs.
    pub output_retriever: RetrieverKind,
    /// Best items passed over: from 1 a number, below a share of the history.
    pub offset: f64,
    /// Where the best item stands.
    pub order: OrderKind,
    /// What of an item is shown.
    pub ablation: AblationKind,
    /// With [`RetrieverKind::RanBm25`]: items drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_items: Option<usize>,
    /// Seed of retrieval; unset is the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrieval_seed: Option<u64>,
    /// Tokens of an example.
    pub max_length: usize,
    /// Cut the text of an example that is too long, instead of refusing it.
    pub cut_questions: bool,
}

/// How history items are chosen for a prompt; the rules are in `retrieval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetrieverKind {
    /// Okapi BM25 over words between single spaces: OPPU's.
    #[serde(rename = "bm25-okapi")]
    Bm25Okapi,
    /// Okapi BM25 over words between white space: LaMP's.
    #[serde(rename = "bm25-lamp")]
    Bm25Lamp,
    /// The BM25 of the user-profile study.
    #[serde(rename = "bm25-study")]
    Bm25Study,
    /// The newest.
    Recency,
    /// Random ones of the user's own.
    Random,
    /// The same with replacement: LaMP's.
    #[serde(rename = "random-lamp")]
    RandomLamp,
    /// Random ones of anybody's.
    FullRandom,
    /// BM25 among random ones of anybody's.
    #[serde(rename = "ranbm25")]
    RanBm25,
    /// Inputs by one retriever, outputs by another.
    Mixed,
}

/// Where the best item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderKind {
    /// First.
    Start,
    /// Last.
    End,
    /// In the middle.
    Middle,
    /// Anywhere.
    Random,
}

/// What of an item is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AblationKind {
    /// Input and output.
    Both,
    /// The input alone.
    OnlyInput,
    /// The output alone.
    OnlyOutput,
    /// The output alone, of an item that was found by its input alone.
    Decouple,
}

/// `[profile]`: a text about the user in front of prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Where it comes from.
    pub source: ProfileSource,
    /// History items the base sees when it writes one; unset is the template's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<usize>,
    /// Tokens written at most; unset is the template's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// 0 is greedy.
    pub temperature: f64,
    /// Best tokens kept; 0 is all.
    pub top_k: usize,
    /// Probability mass kept.
    pub top_p: f64,
}

/// Where profile texts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileSource {
    /// There are none.
    None,
    /// The data.
    File,
    /// The base writes them.
    Generate,
}

/// `[population]`: the stage before the personal one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Population {
    /// Whether it runs.
    pub enabled: bool,
    /// The recipe it started from.
    pub recipe: String,
    /// Parts of a batch whose gradients are summed in order (see `comm::GradientSync`).
    pub virtual_shards: u32,
    /// How its adapter is trained.
    #[serde(flatten)]
    pub training: Recipe,
}

/// `[individual]`: the users' own adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Individual {
    /// The recipe it started from.
    pub recipe: String,
    /// How an adapter is trained, unless overridden.
    #[serde(flatten)]
    pub training: Recipe,
    /// Users trained differently.
    #[serde(default, rename = "override", skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
}

/// `[[individual.override]]`: some users, trained differently.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Override {
    /// Their ids, sorted; no id is in two overrides.
    pub users: Vec<UserId>,
    /// Their whole recipe.
    #[serde(flatten)]
    pub training: Recipe,
}

impl Individual {
    /// The recipe of one user.
    pub fn training_of(&self, user: &UserId) -> &Recipe {
        let named = self.overrides.iter().find(|o| o.users.binary_search(user).is_ok());
        named.map_or(&self.training, |o| &o.training)
    }
}

/// `[engine]`: how the work is laid out; all but `shared_prefix` leave every byte of the results alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// What a rank computes on.
    pub device: DeviceKind,
    /// Where the population stage adds gradients.
    pub gradient_sum: GradientSum,
    /// Memory of a rank in 10⁹ bytes.
    pub memory_gb: f64,
    /// Memory of its GPU that a rank may take in 10⁹ bytes; 0 is what is free.
    pub gpu_memory_gb: f64,
    /// Users trained at once; 0 is automatic.
    pub users_in_flight: usize,
    /// Tokens of a packed batch; 0 is automatic.
    pub pack_tokens: usize,
    /// Threads of a rank; 0 is automatic.
    pub threads: usize,
    /// Store activations or compute them again.
    pub recompute: Recompute,
    /// Compute a user's common prefix once.
    pub shared_prefix: bool,
    /// On a GPU: launches that repeat become one call.
    pub graphs: bool,
}

/// What a rank computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// Its processors, in `f32`.
    Cpu,
    /// A GPU of its own, activations in `bf16`.
    Cuda,
}

/// Where the gradients of virtual shards are added; the bytes are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradientSum {
    /// Where they are: on a GPU, and between the GPUs of several ranks by NCCL.
    Device,
    /// In host memory, exchanged by the communicator.
    Host,
}

/// What to do with activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Whatever fits the memory.
    Auto,
    /// Compute all again.
    Always,
    /// Store all.
    Never,
}

/// `[predict]`: how queries are answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predict {
    /// Score labels or write text.
    pub mode: PredictMode,
    /// Tokens written at most; unset is the template's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// 0 is greedy.
    pub temperature: f64,
    /// Best tokens kept; 0 is all.
    pub top_k: usize,
    /// Probability mass kept.
    pub top_p: f64,
    /// Of a written answer the first line counts.
    pub first_line: bool,
    /// Queries decoded at once.
    pub batch_queries: usize,
}

/// How a query is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PredictMode {
    /// The task's labels are scored.
    Label,
    /// Text is written.
    Generate,
}

/// `[evaluate]`: what is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// Columns of the result table.
    pub metrics: Vec<Metric>,
    /// Resampled sets of users.
    pub bootstrap_samples: usize,
    /// Level of the intervals.
    pub confidence: f64,
}

/// A metric; the rules are in `eval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of equal labels; a text that is no label is label -1 on either side.
    Accuracy,
    /// Mean over the full label list of F1 = 2 tp / (predicted + true), 0 where a label never occurs;
    /// -1 is not a class.
    MacroF1,
    /// Mean |answer - gold|; an answer that is no finite number counts as the farther of 1 and 5
    /// (gold 3: as 5). LaMP's script lets `nan` and `inf` through; here they are no numbers.
    Mae,
    /// Root of the mean square of the same differences.
    Rmse,
    /// Mean |expected rating - gold|, the expectation under the label probabilities.
    ExpectedMae,
    /// Plain mean of ROUGE-1 F. LaMP's script prints the median of 1000 unseeded bootstrap means: the fourth digit differs.
    #[serde(rename = "rouge_1")]
    Rouge1,
    /// Plain mean of ROUGE-L F, the longest common subsequence over the whole text.
    RougeL,
    /// The user-profile study's: share of answers equal to the gold as they are, white space and all.
    CompatAccuracy,
    /// The study's: F1 averaged over the classes that occur, a text that is no label being a class of its own.
    CompatMacroF1,
    /// The study's: as `Mae`, an answer that is no number being an error of 5.
    CompatMae,
    /// The study's: as `Rmse`, an answer that is no number being an error of 5.
    CompatRmse,
}

impl Config {
    /// The resolved config as TOML; reading it gives the same config.
    ///
    /// # Errors
    /// A value TOML cannot say (a path that is not UTF-8).
    pub fn to_toml(&self) -> Result<String, Error> {
        toml::to_string(self).map_err(|e| Error::Unsayable { reason: e.to_string() })
    }
}
