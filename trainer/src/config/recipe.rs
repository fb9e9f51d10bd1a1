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

/// A recipe by name.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: &'static str,
    /// Shared by all stages, in TOML.
    pub(super) all: &'static str,
    /// Over `all`, by section.
    pub(super) stages: &'static [(&'static str, &'static str)],
}

impl Named {
    /// What a section has over `all`; nothing for a section that the recipe does not know.
    pub(super) fn stage(&self, section: &str) -> &'static str {
        let stage = self.stages.iter().find(|(name, _)| *name == section);
        stage.map_or("", |(_, text)| text)
    }
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
        all: "lora_rank = 8\nalpha = 8.0\ndropout = 0.05\nlearning_rate = 1e-4\nbatch_size = 16",
        stages: &[
            ("population", "targets = ['q', 'k', 'v']\nepochs = 3"),
            ("individual", "targets = ['q', 'v']\nepochs = 2"),
        ],
    },
    // The OPPU paper's table 5 where it differs from the code: learning rate 1e-5, 3 epochs in both stages.
    Named {
        name: "oppu-paper",
        all: "lora_rank = 8\nalpha = 8.0\ndropout = 0.05\nlearning_rate = 1e-5\nbatch_size = 16\nepochs = 3",
        stages: &[
            ("population", "targets = ['q', 'k', 'v']"),
            ("individual", "targets = ['q', 'v']"),
        ],
    },
    // LaMP's per-user LoRA script, with the warm-up and decay of its fine-tuning script.
    Named {
        name: "lamp-peft",
        all: "lora_rank = 8\nalpha = 32.0\ndropout = 0.1\ntargets = ['q', 'k', 'v']\nlearning_rate = 5e-5\nweight_decay = 1e-4\nclip_norm = 1.0\nwarmup_ratio = 0.05\nbatch_size = 16",
        stages: &[("population", "epochs = 10"), ("individual", "epochs = 30")],
    },
    // For bases of some hundred million parameters and users of some dozens of items: a larger rate, more passes.
    Named {
        name: "personal-small",
        all: "lora_rank = 8\nalpha = 16.0\nbatch_size = 8",
        stages: &[
            ("population", "targets = ['q', 'k', 'v']\nlearning_rate = 1e-3\nepochs = 1"),
            ("individual", "targets = ['q', 'v']\nlearning_rate = 2e-3\nepochs = 4"),
        ],
    },
];

/// The recipes of PITuning, whose stages are `population`, `distill`, `unlearn` and `individual`. Adapters sit on every
/// product of a GPT-2 block: intents that nobody else has need more than attention to change. Nothing about training was
/// published but some 25 epochs of the population stage.
pub(super) const EVENT_RECIPES: &[Named] = &[
    // The paper's sizes, a reconstruction: GPT-2's own rates for training from scratch, decay and clipping.
    Named {
        name: "pituning",
        all: "lora_rank = 8\nalpha = 16.0\ntargets = ['c_attn', 'attn_c_proj', 'c_fc', 'mlp_c_proj']\nclip_norm = 1.0",
        stages: &[
            (
                "population",
                "learning_rate = 3e-4\nschedule = 'cosine'\nwarmup_ratio = 0.05\nbatch_size = 256\nepochs = 25\nearly_stop = { enabled = true, held_out = 0.1, patience = 3 }",
            ),
            (
                "distill",
                "learning_rate = 5e-4\nschedule = 'cosine'\nwarmup_ratio = 0.05\nbatch_size = 256\nepochs = 25\nearly_stop = { enabled = true, held_out = 0.1, patience = 3 }",
            ),
            // One pass that only loosens the population's answers; fine-tuning does the rest.
            (
                "unlearn",
                "learning_rate = 5e-4\nschedule = 'constant'\nwarmup_ratio = 0.0\nbatch_size = 16\nepochs = 1",
            ),
            ("individual", "learning_rate = 1e-3\nbatch_size = 16\nepochs = 5"),
        ],
    },
    // For models of some hundred thousand parameters and people of some hundred events: larger rates.
    Named {
        name: "pituning-small",
        all: "lora_rank = 8\nalpha = 16.0\ntargets = ['c_attn', 'attn_c_proj', 'c_fc', 'mlp_c_proj']\nclip_norm = 1.0",
        stages: &[
            (
                "population",
                "learning_rate = 2e-3\nschedule = 'cosine'\nwarmup_ratio = 0.05\nbatch_size = 128\nepochs = 6",
            ),
            (
                "distill",
                "learning_rate = 3e-3\nschedule = 'cosine'\nwarmup_ratio = 0.05\nbatch_size = 128\nepochs = 6",
            ),
            (
                "unlearn",
                "learning_rate = 2e-3\nschedule = 'constant'\nwarmup_ratio = 0.0\nbatch_size = 16\nepochs = 1",
            ),
            ("individual", "learning_rate = 5e-3\nbatch_size = 16\nepochs = 6"),
        ],
    },
];
