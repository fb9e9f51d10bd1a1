//! The binary as a user runs it: real processes, real `mpirun`, real files.
//!
//! Every module is one story. What they share is in `process.rs` (starting, stopping, waiting) and `story.rs` (a
//! folder with a tiny base, users and a config). Start reading at `whole_run.rs`.
#![expect(clippy::unwrap_used, reason = "a test stops where its world is not as it must be")]

mod adapters;
mod base;
mod bench_kernels;
mod commands;
mod config;
mod crash;
mod doctor;
mod equivalence;
mod evaluate_files;
mod forget;
mod hostile;
mod lamp;
mod nccl;
mod pituning;
mod pituning_input;
mod pituning_parts;
mod pituning_stops;
mod plan_events;
mod plan_gpu;
mod prepare;
mod process;
mod real_model;
mod resume;
mod signals;
mod story;
mod study;
mod whole_run;
