//! The configs of PITuning runs (`run.method = "pituning"`): keys of their own, the same layers, recipes and checks.

mod resolved;

pub use resolved::{
    Distill, EventArm, EventConfig, EventEvaluate, EventIndividual, EventPopulation, EventRun,
    EventSource, EventSourceKind, Method, ModelShape, Tune, Unlearn,
};
