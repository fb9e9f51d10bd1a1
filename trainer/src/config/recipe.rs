//! How one adapter is trained, as a config means it, and the recipes by name.

use serde::{Deserialize, Serialize};

/// Everything that decides how one adapter is trained. Whole after resolving: nothing is left to defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Rank r of A (r, in) and B (out, r).
    pub lora_rank: u32,
    /// The adapter's scale is alpha / r, or alpha / √r with `rslora`.
    pub alpha: f64,
    /// Rank-stabilised scale.
    pub rslora: bool,
    /// Probability that an input element of the adapter is dropped in training.
    pub dropout: f64,
    /// Adapted products, e.g. `q`, `v`; the model says which it has.
    pub targets: Vec<String>,
    /// Learning rate after warm-up.
    pub learning_rate: f64,
    /// AdamW's decoupled weight decay, on A and B alike.
    pub weight_decay: f64,
    /// AdamW's β₁, β₂.
    pub betas: [f64; 2],
    /// AdamW's ε.
    pub eps: f64,
    /// Largest L2 norm of the adapter's whole gradient; 0 does not clip.
    pub clip_norm: f64,
    /// Shape of the learning rate over the steps.
    pub schedule: ScheduleKind,
    /// Warm-up is the first ceil(ratio · steps) steps.
    pub warmup_ratio: f64,
    /// Passes over the items.
    pub epochs: u32,
    /// Items of a step; the last step of an epoch takes what is left.
    pub batch_size: u32,
    /// Tokens of an example, if fewer than `prompt.max_length`; 0 is that.
    pub max_length: u32,
    /// Stopping on the user's own held-out items.
    pub early_stop: EarlyStop,
}

/// Stopping when the user's own held-out items get no better; the best step's adapter is kept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStop {
    /// Whether it is on.
    pub enabled: bool,
    /// Share of the user's newest items that is held out.
    pub held_out: f64,
    /// Epochs without improvement before stopping.
    pub patience: u32,
}

/// Shape of the learning rate; formulas in `optim::Schedule`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Straight down to 0 at the last step.
    Linear,
    /// Level.
    Constant,
    /// Half a cosine wave down to 0.
    Cosine,
}

/// A recipe by name, for the population adapter and for the personal ones.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: &'static str,
    /// Shared by both stages, in TOML.
    pub(super) both: &'static str,
    /// Over `both`, in the population stage.
    pub(super) population: &'static str,
    /// Over `both`, in the individual stage.
    pub(super) individual: &'static str,
}

/// What every recipe starts from: AdamW and PEFT as their libraries default.
pub(super) const ROOT: &str = r#"
rslora = false
dropout = 0.0
weight_decay = 0.01
max_length = 0
betas = [0.9, 0.999]
eps = 1e-8
clip_norm = 0.3
schedule = "linear"
warmup_ratio = 0.1
early_stop = { enabled = false, held_out = 0.1, patience = 2 }
"#;

pub(super) const RECIPES: &[Named] = &[
    // The published OPPU code. Its population targets also name `out_proj`, which matches nothing in Llama.
    Named {
        name: "oppu-code",
        both: "lora_rank = 8\nalpha = 8.0\ndropout = 0.05\nlearning_rate = 1e-4\nbatch_size = 16",
        population: "targets = ['q', 'k', 'v']\nepochs = 3",
        individual: "targets = ['q', 'v']\nepochs = 2",
    },
    // The OPPU paper's table 5 where it differs from the code: learning rate 1e-5, 3 epochs in both stages.
    Named {
        name: "oppu-paper",
        both: "lora_rank = 8\nalpha = 8.0\ndropout = 0.05\nlearning_rate = 1e-5\nbatch_size = 16\nepochs = 3",
        population: "targets = ['q', 'k', 'v']",
        individual: "targets = ['q', 'v']",
    },
    // LaMP's per-user LoRA script, with the warm-up and decay of its fine-tuning script.
    Named {
        name: "lamp-peft",
        both: "lora_rank = 8\nalpha = 32.0\ndropout = 0.1\ntargets = ['q', 'k', 'v']\nlearning_rate = 5e-5\nweight_decay = 1e-4\nclip_norm = 1.0\nwarmup_ratio = 0.05\nbatch_size = 16",
        population: "epochs = 10",
        individual: "epochs = 30",
    },
    // For bases of some hundred million parameters and users of some dozens of items: a larger rate, more passes.
    Named {
        name: "personal-small",
        both: "lora_rank = 8\nalpha = 16.0\nbatch_size = 8",
        population: "targets = ['q', 'k', 'v']\nlearning_rate = 1e-3\nepochs = 1",
        individual: "targets = ['q', 'v']\nlearning_rate = 2e-3\nepochs = 4",
    },
];
