//! A PITuning config as it is meant: every value present, in range, paths whole.

use super::super::recipe::Recipe;
use super::super::resolved::Engine;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A PITuning run, fully described. Its TOML resolves to itself again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventConfig {
    /// `[run]`
    pub run: EventRun,
    /// `[data]`
    pub data: EventSource,
    /// `[model]`: the population model, which teaches.
    pub model: ModelShape,
    /// `[population]`
    pub population: EventPopulation,
    /// `[distill]`
    pub distill: Distill,
    /// `[unlearn]`
    pub unlearn: Unlearn,
    /// `[individual]`
    pub individual: EventIndividual,
    /// `[engine]`
    pub engine: Engine,
    /// `[evaluate]`
    pub evaluate: EventEvaluate,
}

/// `[run]`: the run itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventRun {
    /// Always `pituning`; other runs have no such key.
    pub method: Method,
    /// Its name.
    pub name: String,
    /// Seed of all random numbers.
    pub seed: u64,
    /// The run folder.
    pub out_dir: PathBuf,
    /// Rows of the result table.
    pub arms: Vec<EventArm>,
}

/// The method of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Population-to-individual tuning.
    Pituning,
}

/// A row of the result table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventArm {
    /// Everybody's most frequent intents.
    MostFrequent,
    /// The person's most frequent intents.
    PersonalFrequency,
    /// The person's most frequent intents at that time of day.
    PersonalTime,
    /// What follows the last event in the population.
    Markov,
    /// What follows the last event with this person, backing off to the population.
    PersonalMarkov,
    /// The population model.
    Teacher,
    /// The student distilled of it; the population model where distilling is off.
    Population,
    /// The student fine-tuned on the person's own windows ("w/o unlearning").
    Finetune,
    /// The same with the focal loss.
    Focal,
    /// The same with the person's rare intents repeated.
    Oversample,
    /// The student after unlearning alone ("w/o finetune").
    Unlearned,
    /// Unlearning, then fine-tuning: PITuning.
    Personal,
    /// The person's windows answered with the next person's tuned part: the gain must be lost.
    Permuted,
    /// The perfect model, where the data are generated and the truth is known.
    Truth,
}

impl EventArm {
    /// All there are.
    pub const ALL: [Self; 14] = [
        Self::MostFrequent,
        Self::PersonalFrequency,
        Self::PersonalTime,
        Self::Markov,
        Self::PersonalMarkov,
        Self::Teacher,
        Self::Population,
        Self::Finetune,
        Self::Focal,
        Self::Oversample,
        Self::Unlearned,
        Self::Personal,
        Self::Permuted,
        Self::Truth,
    ];

    /// Its name in configs, files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::MostFrequent => "most_frequent",
            Self::PersonalFrequency => "personal_frequency",
            Self::PersonalTime => "personal_time",
            Self::Markov => "markov",
            Self::PersonalMarkov => "personal_markov",
            Self::Teacher => "teacher",
            Self::Population => "population",
            Self::Finetune => "finetune",
            Self::Focal => "focal",
            Self::Oversample => "oversample",
            Self::Unlearned => "unlearned",
            Self::Personal => "personal",
            Self::Permuted => "permuted",
            Self::Truth => "truth",
        }
    }

    /// Whether people are tuned for it.
    pub fn tuned(self) -> bool {
        matches!(
            self,
            Self::Finetune | Self::Focal | Self::Oversample | Self::Unlearned | Self::Personal
        )
    }

    /// Whether it needs the student (or the population model in its place).
    pub fn of_student(self) -> bool {
        self.tuned() || matches!(self, Self::Population | Self::Permuted)
    }
}

/// `[data]`: whose events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventSource {
    /// Event logs, or the generator.
    pub source: EventSourceKind,
    /// Files of the logs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
    /// A named format that `format` begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// What `data::events::Format` takes, over the preset or the defaults.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub format: toml::Table,
    /// What the generator's options take, over the defaults.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub generator: toml::Table,
    /// Share of a person's events that are training targets, the earliest.
    pub train: f64,
    /// Share that chooses among epochs, in between; the rest are test targets.
    pub validation: f64,
    /// Share of the people who are kept out of the population stage.
    pub cold: f64,
    /// People at most, in the order of their ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<usize>,
    /// Newest training windows of a person at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_windows: Option<usize>,
    /// Newest test windows of a person at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_test_windows: Option<usize>,
    /// A bad row ends the run.
    pub strict: bool,
}

/// Where events come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventSourceKind {
    /// Logs in files.
    Log,
    /// The generator with known truth.
    Generated,
}

/// Widths of an event model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelShape {
    /// Events of a window.
    pub window: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// `concat` or `sum` of the columns' embeddings.
    pub combine: String,
    /// `last` or `mean` of the hidden states.
    pub history: String,
    /// `elementwise` or `outer` product of intent and history.
    pub product: String,
    /// Width inside the intention attention network.
    pub head_hidden: usize,
    /// `scalar` or `linear`.
    pub prediction: String,
    /// A GPT-2 in Hugging Face's form whose blocks the model begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<PathBuf>,
}

/// `[population]`: every parameter, or those above some frozen blocks, on everybody's windows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventPopulation {
    /// The recipe it started from.
    pub recipe: String,
    /// Parts of a batch whose gradients are summed in order.
    pub virtual_shards: u32,
    /// Probability that an event is hidden; 0 is no reconstruction.
    pub mask_ratio: f64,
    /// Weight of the reconstruction's loss.
    pub lambda: f64,
    /// The lowest so many blocks stay as they begin, and with any the embeddings below them.
    pub frozen_blocks: usize,
    /// Steps between two checkpoints; 0 for none but at a stop.
    pub checkpoint_steps: u32,
    /// How; what it says of adapters is not looked at.
    #[serde(flatten)]
    pub training: Recipe,
}

/// `[distill]`: a smaller model taught by the population's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Distill {
    /// Whether there is a student.
    pub enabled: bool,
    /// The recipe it started from.
    pub recipe: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Width inside the intention attention network.
    pub head_hidden: usize,
    /// Weight of the teacher's answer beside the label's.
    pub soft_weight: f64,
    /// Temperature of both.
    pub temperature: f64,
    /// How.
    #[serde(flatten)]
    pub training: Recipe,
}

/// `[unlearn]`: what a person's model forgets before it is tuned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unlearn {
    /// The recipe it started from.
    pub recipe: String,
    /// `ratio`, `difference` or `teacher_error`: which intents are forgotten.
    pub rule: String,
    /// Ratio of shares above which an intent is forgotten.
    pub tau: f64,
    /// Occurrences a forgotten intent needs.
    pub min_count: u64,
    /// Number added to every count.
    pub smoothing: f64,
    /// Intents that rule `difference` takes.
    pub top: usize,
    /// Teacher's recall below which rule `teacher_error` takes an intent.
    pub recall: f64,
    /// What forgotten windows are led away from: `teacher_error`, `teacher_answer`, `teacher_distribution` or `label`.
    pub forget: String,
    /// What retained windows are held to: `teacher_distribution` or `label`.
    pub retain: String,
    /// Weight of the forgotten.
    pub beta: f64,
    /// Weigh each forgotten intent by the logarithm of its ratio.
    pub adaptive: bool,
    /// Cross-entropy beyond which nothing more is forgotten.
    pub margin: f64,
    /// How.
    #[serde(flatten)]
    pub training: Recipe,
}

/// `[individual]`: fine-tuning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventIndividual {
    /// The recipe it started from.
    pub recipe: String,
    /// What is tuned.
    pub tune: Tune,
    /// Focal loss' gamma, for arm `focal`.
    pub focal_gamma: f64,
    /// Among whose events an intent is rare, for arm `oversample`.
    pub oversample: RareTo,
    /// How; its adapter's shape holds for unlearning too.
    #[serde(flatten)]
    pub training: Recipe,
}

/// Among whose events an intent is rare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RareTo {
    /// The person's own.
    Person,
    /// Everybody's in the population stage.
    Population,
}

/// What of the student a person has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tune {
    /// LoRA adapters and changes of the intent table.
    AdaptersAndHead,
    /// LoRA adapters.
    Adapters,
    /// Every parameter: the paper's on-device setting.
    All,
}

/// `[evaluate]`: what is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventEvaluate {
    /// Population's long tail: the rarest intents with at most this share together.
    pub tail_share: f64,
    /// A person's own long-tail intents: ratio of shares above this.
    pub own_tau: f64,
    /// And at least so many occurrences.
    pub own_count: u64,
    /// Intents listed for each window in the predictions.
    pub top_k: usize,
    /// Resampled sets of users.
    pub bootstrap_samples: usize,
    /// Level of the intervals.
    pub confidence: f64,
}
