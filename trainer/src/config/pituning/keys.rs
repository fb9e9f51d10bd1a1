//! Every key of a PITuning config, as `config/keys.rs` has them for the other runs.
//!
//! Where the paper leaves a choice open the default is the reading argued in its reconstruction; sizes that are not
//! written are the paper's: GPT-2 small teaches, six blocks of width 384 learn.

use super::super::keys::{
    COUNT, Default, ENGINE, Effect, Key, Kind, NAME, OUT_DIR, POSITIVE, SEED, SHARE, Section, key,
};
use Default::{Is, Required, Unset};
use Effect::{Placement, Result};

/// The methods of runs that have one.
pub(super) const METHODS: Kind = Kind::OneOf(&["pituning"]);
const ARMS: &[&str] = &[
    "most_frequent",
    "personal_frequency",
    "personal_time",
    "markov",
    "personal_markov",
    "teacher",
    "population",
    "finetune",
    "focal",
    "oversample",
    "unlearned",
    "personal",
    "permuted",
    "truth",
];
/// The smallest share that is more than nothing.
const SOME: Kind = Kind::Float(1e-6, 1.0);
const WEIGHT: Kind = Kind::Float(0.0, 1e6);
/// Widths and numbers of blocks; no model is near the upper end.
const WIDTH: Kind = Kind::Int(1, 1 << 16);
const HEAD_WIDTH: Kind = Kind::Int(1, 1 << 14);
const RECIPE: Key =
    key("recipe", Kind::EventRecipe, Is("\"pituning\""), Result, "recipe the keys below override");

const RUN: &[Key] = &[
    key("method", METHODS, Required, Result, "what kind of run this is"),
    NAME,
    SEED,
    OUT_DIR,
    key(
        "arms",
        Kind::ListOf(ARMS),
        Is(
            r#"["most_frequent", "personal_frequency", "personal_markov", "population", "finetune", "personal"]"#,
        ),
        Result,
        "rows of the result table",
    ),
];

const DATA: &[Key] = &[
    key(
        "source",
        Kind::OneOf(&["log", "generated"]),
        Required,
        Result,
        "event logs, or the generator with known truth",
    ),
    // Paths say where the bytes lie; the bytes themselves are hashed by whoever reads them.
    key("files", Kind::Paths, Unset, Placement, "files of the logs; a folder with ml100k-genre"),
    key("preset", Kind::Text, Unset, Result, "a known log's format, which `format` goes on from"),
    key("format", Kind::Table, Unset, Result, "how the logs are written"),
    key("generator", Kind::Table, Unset, Result, "what is generated"),
    key("train", SOME, Is("0.7"), Result, "share of a person's events to train on, the earliest"),
    key("validation", SHARE, Is("0.1"), Result, "share after it, which chooses among epochs"),
    key(
        "cold",
        Kind::FloatBelow(0.0, 1.0),
        Is("0.0"),
        Result,
        "share of the people who are kept out of the population stage",
    ),
    key("users", COUNT, Unset, Result, "at most so many people, in the order of their ids"),
    key("max_windows", COUNT, Unset, Result, "newest training windows of a person that are used"),
    key("max_test_windows", COUNT, Unset, Result, "newest test windows of a person that are used"),
    key("strict", Kind::Bool, Is("false"), Result, "a bad row ends the run"),
];

const MODEL: &[Key] = &[
    key("window", Kind::Int(1, 1 << 16), Is("32"), Result, "events of a window"),
    key("hidden", WIDTH, Is("768"), Result, "width of the residual stream"),
    key("layers", Kind::Int(1, 1024), Is("12"), Result, "blocks"),
    key("heads", Kind::Int(1, 1024), Is("12"), Result, "attention heads; they divide the width"),
    key("intermediate", WIDTH, Is("3072"), Result, "width inside the MLP"),
    key(
        "combine",
        Kind::OneOf(&["concat", "sum"]),
        Is("\"concat\""),
        Result,
        "how the embeddings of an event's columns become one vector",
    ),
    key(
        "history",
        Kind::OneOf(&["last", "mean"]),
        Is("\"last\""),
        Result,
        "the hidden state that stands for a window: the last event's, or the mean",
    ),
    key(
        "product",
        Kind::OneOf(&["elementwise", "outer"]),
        Is("\"elementwise\""),
        Result,
        "how an intent's embedding meets the history",
    ),
    key("head_hidden", HEAD_WIDTH, Is("64"), Result, "width inside the intention attention"),
    key(
        "prediction",
        Kind::OneOf(&["scalar", "linear"]),
        Is("\"scalar\""),
        Result,
        "what its numbers are: the logits, or what one more layer makes logits of",
    ),
    // Whether there is one changes everything; so the path counts, not the bytes alone.
    key("pretrained", Kind::Path, Unset, Result, "a GPT-2 whose blocks the model begins with"),
];

const POPULATION: &[Key] = &[
    RECIPE,
    key("virtual_shards", Kind::Int(1, 4096), Is("8"), Result, "parts of a batch, summed in order"),
    key(
        "mask_ratio",
        Kind::FloatBelow(0.0, 1.0),
        Is("0.15"),
        Result,
        "probability that an event is hidden, to be named again; 0 is no reconstruction",
    ),
    key("lambda", WEIGHT, Is("1.0"), Result, "weight of the reconstruction's loss"),
    key(
        "frozen_blocks",
        Kind::Int(0, 1024),
        Is("0"),
        Result,
        "lowest blocks that stay as they begin, and with any the embeddings below them",
    ),
    key(
        "checkpoint_steps",
        Kind::Int(0, u32::MAX as i64),
        Is("0"),
        Placement,
        "steps between two checkpoints; 0 is none but at a stop",
    ),
];

const DISTILL: &[Key] = &[
    key(
        "enabled",
        Kind::Bool,
        Is("true"),
        Result,
        "teach a student; without, people tune the teacher",
    ),
    RECIPE,
    key("hidden", WIDTH, Is("384"), Result, "width of the student's residual stream"),
    key("layers", Kind::Int(1, 1024), Is("6"), Result, "its blocks"),
    key("heads", Kind::Int(1, 1024), Is("6"), Result, "its attention heads; they divide the width"),
    key("intermediate", WIDTH, Is("1536"), Result, "width inside its MLP"),
    key("head_hidden", HEAD_WIDTH, Is("64"), Result, "width inside its intention attention"),
    key(
        "soft_weight",
        SHARE,
        Is("0.5"),
        Result,
        "weight of the teacher's answer beside the label's",
    ),
    key("temperature", Kind::Float(0.01, 1000.0), Is("2.0"), Result, "temperature of both answers"),
];

const UNLEARN: &[Key] = &[
    RECIPE,
    key(
        "rule",
        Kind::OneOf(&["ratio", "difference", "teacher_error"]),
        Is("\"ratio\""),
        Result,
        "which intents of a person are forgotten",
    ),
    key("tau", POSITIVE, Is("1.5"), Result, "with ratio: forgotten above this ratio of shares"),
    key(
        "min_count",
        Kind::Int(0, 1 << 40),
        Is("3"),
        Result,
        "occurrences a forgotten intent needs",
    ),
    key("smoothing", POSITIVE, Is("1.0"), Result, "added to every count before shares are taken"),
    key("top", COUNT, Is("3"), Result, "with difference: intents forgotten at most"),
    key("recall", SOME, Is("0.5"), Result, "with teacher_error: forgotten below this recall"),
    key(
        "forget",
        Kind::OneOf(&["teacher_error", "teacher_answer", "teacher_distribution", "label"]),
        Is("\"teacher_error\""),
        Result,
        "what forgotten windows are led away from",
    ),
    key(
        "retain",
        Kind::OneOf(&["teacher_distribution", "label"]),
        Is("\"teacher_distribution\""),
        Result,
        "what retained windows are held to",
    ),
    key("beta", WEIGHT, Is("1.0"), Result, "weight of the forgotten beside the retained"),
    key(
        "adaptive",
        Kind::Bool,
        Is("false"),
        Result,
        "weigh the forgotten by how peculiar they are",
    ),
    key(
        "margin",
        POSITIVE,
        Is("5.0"),
        Result,
        "cross-entropy, in nats, beyond which nothing more is forgotten",
    ),
];

const INDIVIDUAL: &[Key] = &[
    RECIPE,
    key(
        "tune",
        Kind::OneOf(&["adapters_and_head", "adapters", "all"]),
        Is("\"adapters_and_head\""),
        Result,
        "what of the student a person has",
    ),
    key("focal_gamma", Kind::Float(0.0, 100.0), Is("2.0"), Result, "with focal: its exponent"),
    key(
        "oversample",
        Kind::OneOf(&["person", "population"]),
        Is("\"person\""),
        Result,
        "with oversample: among whose events an intent is rare",
    ),
];

const EVALUATE: &[Key] = &[
    key(
        "tail_share",
        SHARE,
        Is("0.2"),
        Result,
        "the population's long tail: the rarest intents with at most this share together",
    ),
    key(
        "own_tau",
        POSITIVE,
        Is("1.5"),
        Result,
        "a person's own intents: ratio of shares above this",
    ),
    key("own_count", COUNT, Is("3"), Result, "and so many occurrences"),
    key("top_k", Kind::Int(1, 1 << 16), Is("5"), Result, "intents listed for a window"),
    key("bootstrap_samples", Kind::Int(1, 1_000_000), Is("10000"), Result, "resampled users"),
    key("confidence", Kind::Float(0.5, 0.9999), Is("0.95"), Result, "level of the intervals"),
];

/// Every section, in the order a resolved config is written.
pub const SECTIONS: &[Section] = &[
    Section::plain("run", RUN),
    Section::plain("data", DATA),
    Section::plain("model", MODEL),
    Section::trained("population", POPULATION),
    Section::trained("distill", DISTILL),
    Section::trained("unlearn", UNLEARN),
    Section::trained("individual", INDIVIDUAL),
    Section::plain("engine", ENGINE),
    Section::plain("evaluate", EVALUATE),
];
