//! Every key of a config: its kind, what it may be, its default, whether it can change results. The one place for all
//! four; the structs of `resolved.rs` hold the values, and a test keeps the two in step. PITuning's sections are in
//! `pituning/keys.rs`.

/// What a value may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// true or false.
    Bool,
    /// A whole number in the closed range.
    Int(i64, i64),
    /// A number in the closed range; whole numbers are taken too.
    Float(f64, f64),
    /// A number in the range, its upper end excluded.
    FloatBelow(f64, f64),
    /// Two numbers in the range, its upper end excluded.
    PairBelow(f64, f64),
    /// Any text that is not empty.
    Text,
    /// A path; relative ones start at the config file's folder.
    Path,
    /// The name of something built in, or a path if it ends in `.toml`.
    NameOrPath,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A list without repeats, not empty, of these words.
    ListOf(&'static [&'static str]),
    /// A list without repeats, not empty, of texts.
    Texts,
    /// The name of a recipe.
    Recipe,
    /// The name of a recipe of PITuning.
    EventRecipe,
    /// A list without repeats, not empty, of paths.
    Paths,
    /// A table whose keys its own reader knows; its numbers are finite.
    Table,
}

/// Whether a key can change what a run computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It can: part of [`super::Config::result_hash`].
    Result,
    /// It says where, how fast or under which name; adapters and predictions are the same bytes.
    Placement,
}

/// What stands for a key that is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Default {
    /// It must be written.
    Required,
    /// It stays unset.
    Unset,
    /// This TOML value.
    Is(&'static str),
    /// The recipe's value.
    FromRecipe,
}

/// One key of a section.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Name inside the section; with a dot for a table inside it.
    pub name: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// What it is if not written.
    pub default: Default,
    /// Whether it can change results.
    pub effect: Effect,
    /// One sentence for people.
    pub help: &'static str,
}

/// One `[section]`.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// Its keys.
    pub keys: &'static [Key],
    /// Whether it also has every key of a recipe.
    pub recipe: bool,
    /// Whether it also has a list of [`OVERRIDES`].
    pub overrides: bool,
}

impl Section {
    /// A section of its keys alone.
    pub(super) const fn plain(name: &'static str, keys: &'static [Key]) -> Self {
        Self { name, keys, recipe: false, overrides: false }
    }

    /// A section that has a recipe's keys besides.
    pub(super) const fn trained(name: &'static str, keys: &'static [Key]) -> Self {
        Self { name, keys, recipe: true, overrides: false }
    }
}

use self::Default::{FromRecipe, Is, Required, Unset};
use self::Effect::{Placement, Result};

pub(super) const fn key(
    name: &'static str,
    kind: Kind,
    default: self::Default,
    effect: Effect,
    help: &'static str,
) -> Key {
    Key { name, kind, default, effect, help }
}

pub(super) const COUNT: Kind = Kind::Int(1, 1 << 40);
const FROM_ZERO: Kind = Kind::Int(0, 1 << 40);
pub(super) const SHARE: Kind = Kind::Float(0.0, 1.0);
pub(super) const POSITIVE: Kind = Kind::Float(1e-12, 1e12);
const TARGETS: &[&str] =
    &["q", "k", "v", "o", "gate", "up", "down", "c_attn", "attn_c_proj", "c_fc", "mlp_c_proj"];
const METRICS: &[&str] = &[
    "accuracy",
    "macro_f1",
    "mae",
    "rmse",
    "expected_mae",
    "rouge_1",
    "rouge_l",
    "compat_accuracy",
    "compat_macro_f1",
    "compat_mae",
    "compat_rmse",
];

/// The keys of a recipe, in `[population]`, `[individual]` and `[[individual.override]]`.
pub const RECIPE: &[Key] = &[
    key("lora_rank", Kind::Int(1, 1024), FromRecipe, Result, "rank of the adapter"),
    key("alpha", POSITIVE, FromRecipe, Result, "scale = alpha / lora_rank"),
    key("rslora", Kind::Bool, FromRecipe, Result, "scale = alpha / sqrt(lora_rank)"),
    key("dropout", Kind::FloatBelow(0.0, 1.0), FromRecipe, Result, "dropout of adapter inputs"),
    key("targets", Kind::ListOf(TARGETS), FromRecipe, Result, "adapted products"),
    key("learning_rate", Kind::Float(0.0, 10.0), FromRecipe, Result, "rate after warm-up"),
    key("weight_decay", Kind::Float(0.0, 10.0), FromRecipe, Result, "decoupled decay"),
    key("betas", Kind::PairBelow(0.0, 1.0), FromRecipe, Result, "AdamW moments"),
    key("eps", Kind::Float(1e-30, 1.0), FromRecipe, Result, "AdamW epsilon"),
    key("clip_norm", Kind::Float(0.0, 1e12), FromRecipe, Result, "gradient norm bound; 0 is off"),
    key(
        "schedule",
        Kind::OneOf(&["linear", "constant", "cosine"]),
        FromRecipe,
        Result,
        "shape of the learning rate",
    ),
    key("warmup_ratio", SHARE, FromRecipe, Result, "share of steps spent warming up"),
    key("epochs", Kind::Int(1, 100_000), FromRecipe, Result, "passes over the items"),
    key("batch_size", Kind::Int(1, 1 << 20), FromRecipe, Result, "items of a step"),
    key(
        "max_length",
        Kind::Int(0, 1 << 20),
        FromRecipe,
        Result,
        "tokens of an example, if fewer than prompt.max_length; 0 is that",
    ),
    key("early_stop.enabled", Kind::Bool, FromRecipe, Result, "stop on own held-out items"),
    key("early_stop.held_out", Kind::Float(0.01, 0.9), FromRecipe, Result, "share held out"),
    key("early_stop.patience", Kind::Int(1, 1000), FromRecipe, Result, "epochs without gain"),
];

/// The keys that an override has besides a recipe's.
pub const OVERRIDE: &[Key] = &[key("users", Kind::Texts, Required, Result, "ids it applies to")];

pub(super) const NAME: Key = key("name", Kind::Text, Required, Placement, "name of the run");
pub(super) const SEED: Key =
    key("seed", Kind::Int(0, i64::MAX), Is("42"), Result, "seed of all random numbers");
pub(super) const OUT_DIR: Key = key("out_dir", Kind::Path, Required, Placement, "the run folder");

const RUN: &[Key] = &[
    NAME,
    SEED,
    OUT_DIR,
    key(
        "arms",
        Kind::ListOf(&["base", "rag", "pag", "population", "personal", "permuted"]),
        Is(r#"["base", "population", "personal"]"#),
        Result,
        "rows of the result table",
    ),
];

const BASE: &[Key] = &[
    // Paths say where the bytes lie; the bytes themselves are hashed by whoever reads them.
    key("path", Kind::Path, Required, Placement, "Hugging Face folder or GGUF file"),
    key("cache_dir", Kind::Path, Unset, Placement, "where prepared weights are kept"),
];

const DATA: &[Key] = &[
    key(
        "source",
        Kind::OneOf(&["jsonl", "ml-100k", "lamp", "oppu"]),
        Required,
        Result,
        "the reader",
    ),
    key("task", Kind::Text, Unset, Result, "task of LaMP's and OPPU's files, by any of its names"),
    key("path", Kind::Path, Unset, Placement, "folder of a known data set"),
    key("personal", Kind::Path, Unset, Placement, "file of the users to personalise"),
    key("personal_outputs", Kind::Path, Unset, Placement, "their answers, if apart (lamp, oppu)"),
    key("personal_profiles", Kind::Path, Unset, Placement, "their profile texts (lamp, oppu)"),
    key("population", Kind::Path, Unset, Placement, "file of the users of the population stage"),
    key("population_outputs", Kind::Path, Unset, Placement, "their answers, if apart (lamp)"),
    key("population_profiles", Kind::Path, Unset, Placement, "their profile texts (lamp, oppu)"),
    key("personal_users", COUNT, Unset, Result, "at most so many personal users"),
    key("population_users", COUNT, Unset, Result, "at most so many population users"),
    key("population_examples", COUNT, Unset, Result, "at most so many population examples"),
    key("min_history", FROM_ZERO, Is("1"), Result, "users with fewer items are left out"),
    key("max_history", COUNT, Unset, Result, "newest items of a history that are used"),
    key(
        "max_population_items",
        COUNT,
        Unset,
        Result,
        "newest items of a population user that are used",
    ),
    key("max_queries", COUNT, Unset, Result, "queries of a user that are used"),
    key(
        "seed",
        Kind::Int(0, i64::MAX),
        Unset,
        Result,
        "chooses users of ml-100k; unset is run.seed",
    ),
    key("strict", Kind::Bool, Is("false"), Result, "a bad user ends the run"),
];

const RETRIEVERS: &[&str] = &[
    "bm25-okapi",
    "bm25-lamp",
    "bm25-study",
    "recency",
    "random",
    "random-lamp",
    "full_random",
    "ranbm25",
    "mixed",
];
/// What `mixed` may mix.
const MIXABLE: Kind = Kind::OneOf(&["bm25-study", "random", "full_random"]);

const PROMPT: &[Key] = &[
    key("template", Kind::NameOrPath, Required, Result, "builtin template or a file"),
    key("retrieved", Kind::Int(0, 1000), Is("0"), Result, "history items shown in the prompt"),
    key(
        "retrieved_share",
        Kind::FloatBelow(0.0, 1.0),
        Is("0.0"),
        Result,
        "share of the history shown instead; 0 is off",
    ),
    key("retriever", Kind::OneOf(RETRIEVERS), Is("\"bm25-okapi\""), Result, "how they are chosen"),
    key("input_retriever", MIXABLE, Is("\"random\""), Result, "with mixed: chooses the inputs"),
    key("output_retriever", MIXABLE, Is("\"random\""), Result, "with mixed: chooses the outputs"),
    key(
        "offset",
        Kind::Float(0.0, 1e6),
        Is("0.0"),
        Result,
        "best items passed over: from 1 a number, below a share of the history",
    ),
    key(
        "order",
        Kind::OneOf(&["start", "end", "middle", "random"]),
        Is("\"start\""),
        Result,
        "where the best item stands",
    ),
    key(
        "ablation",
        Kind::OneOf(&["both", "only_input", "only_output", "decouple"]),
        Is("\"both\""),
        Result,
        "what of an item is shown (templates of the study)",
    ),
    key(
        "pool_items",
        COUNT,
        Unset,
        Result,
        "with ranbm25: items drawn; unset is the task's number",
    ),
    key("retrieval_seed", Kind::Int(0, i64::MAX), Unset, Result, "unset is run.seed"),
    key("max_length", Kind::Int(8, 1 << 20), Is("512"), Result, "tokens of an example"),
    key(
        "cut_questions",
        Kind::Bool,
        Is("false"),
        Result,
        "cut the text of an example that is too long, instead of refusing it",
    ),
];

/// Profile texts in front of prompts (OPPU's PAG).
const PROFILE: &[Key] = &[
    key(
        "source",
        Kind::OneOf(&["none", "file", "generate"]),
        Is("\"none\""),
        Result,
        "no profiles, the data's, or written by the base",
    ),
    key("items", COUNT, Unset, Result, "history items the base sees, drawn; unset: the template's"),
    key(
        "max_new_tokens",
        Kind::Int(1, 1 << 20),
        Unset,
        Result,
        "tokens written at most; unset: the template's",
    ),
    key("temperature", Kind::Float(0.0, 100.0), Is("0.6"), Result, "0 is greedy"),
    key("top_k", Kind::Int(0, 1 << 24), Is("10"), Result, "best tokens kept; 0 is all"),
    key("top_p", Kind::Float(1e-6, 1.0), Is("0.9"), Result, "probability mass kept"),
];

const POPULATION: &[Key] = &[
    key("enabled", Kind::Bool, Is("true"), Result, "train what all users share first"),
    key("recipe", Kind::Recipe, Is("\"oppu-code\""), Result, "recipe the keys below override"),
    key("virtual_shards", Kind::Int(1, 4096), Is("8"), Result, "parts of a batch, summed in order"),
];

const INDIVIDUAL: &[Key] =
    &[key("recipe", Kind::Recipe, Is("\"oppu-code\""), Result, "recipe the keys below override")];

pub(super) const ENGINE: &[Key] = &[
    // Another device rounds otherwise.
    key(
        "device",
        Kind::OneOf(&["cpu", "cuda"]),
        Is("\"cpu\""),
        Result,
        "what a rank computes on: its processors, or a GPU of its own",
    ),
    // Both ways add in the order of the shards.
    key(
        "gradient_sum",
        Kind::OneOf(&["device", "host"]),
        Is("\"device\""),
        Placement,
        "where the population stage adds gradients: where they are, or in host memory, which needs no NCCL",
    ),
    key(
        "memory_gb",
        Kind::Float(0.01, 1e6),
        Is("4.0"),
        Placement,
        "memory of a rank, in 10^9 bytes",
    ),
    key(
        "gpu_memory_gb",
        Kind::Float(0.0, 1e6),
        Is("0.0"),
        Placement,
        "memory of its GPU that a rank may take, in 10^9 bytes; 0 is what is free",
    ),
    key("users_in_flight", FROM_ZERO, Is("0"), Placement, "users trained at once; 0 is automatic"),
    key("pack_tokens", FROM_ZERO, Is("0"), Placement, "tokens of a packed batch; 0 is automatic"),
    key("threads", Kind::Int(0, 65_536), Is("0"), Placement, "threads of a rank; 0 is automatic"),
    key(
        "recompute",
        Kind::OneOf(&["auto", "always", "never"]),
        Is("\"auto\""),
        Placement,
        "activations: store or compute again",
    ),
    // Exact in real numbers, but it changes the order of additions.
    key("shared_prefix", Kind::Bool, Is("true"), Result, "compute a user's common prefix once"),
    // Off until a GPU has shown it.
    key(
        "graphs",
        Kind::Bool,
        Is("false"),
        Placement,
        "on a GPU: one call for launches that repeat",
    ),
];

const PREDICT: &[Key] = &[
    key(
        "mode",
        Kind::OneOf(&["label", "generate"]),
        Required,
        Result,
        "score labels or write text",
    ),
    key(
        "max_new_tokens",
        Kind::Int(1, 1 << 20),
        Unset,
        Result,
        "tokens written at most; unset is the template's number",
    ),
    key("temperature", Kind::Float(0.0, 100.0), Is("0.0"), Result, "0 is greedy"),
    key("top_k", Kind::Int(0, 1 << 24), Is("0"), Result, "best tokens kept; 0 is all"),
    key("top_p", Kind::Float(1e-6, 1.0), Is("1.0"), Result, "probability mass kept"),
    key("first_line", Kind::Bool, Is("false"), Result, "of a written answer the first line counts"),
    key("batch_queries", Kind::Int(1, 1 << 20), Is("64"), Placement, "queries decoded at once"),
];

const EVALUATE: &[Key] = &[
    key("metrics", Kind::ListOf(METRICS), Required, Result, "columns of the result table"),
    key("bootstrap_samples", Kind::Int(1, 1_000_000), Is("10000"), Result, "resampled users"),
    key("confidence", Kind::Float(0.5, 0.9999), Is("0.95"), Result, "level of the intervals"),
];

/// Every section, in the order a resolved config is written.
pub const SECTIONS: &[Section] = &[
    Section::plain("run", RUN),
    Section::plain("base", BASE),
    Section::plain("data", DATA),
    Section::plain("prompt", PROMPT),
    Section::plain("profile", PROFILE),
    Section::trained("population", POPULATION),
    Section { overrides: true, ..Section::trained("individual", INDIVIDUAL) },
    Section::plain("engine", ENGINE),
    Section::plain("predict", PREDICT),
    Section::plain("evaluate", EVALUATE),
];

/// The table of overrides inside `[individual]`.
pub const OVERRIDES: &str = "override";
