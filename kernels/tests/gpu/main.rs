//! Every GPU operation on the emulator, which runs the device code of `kernels/cu` on the CPU.
//!
//! One body per operation, generic over the backend, runs on the emulator and on the naive `f64` reference from the
//! same inputs, rounded to `bf16` before. Start at [`harness`]; an operation's file has edge shapes and windows in
//! fast mode, a few shapes in checked mode (bounds, races, uninitialised reads) and seeded faults that must be caught.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::float_cmp,
    reason = "a test stops at what it did not expect; its numbers are small and exact"
)]

#[allow(dead_code, reason = "of the CPU's tests")]
#[path = "../attention_case/mod.rs"]
mod attention_case;
#[path = "../intent_case/mod.rs"]
mod intent_case;
#[path = "../naive/mod.rs"]
mod naive;
#[path = "../tolerance/mod.rs"]
mod tolerance;

mod activation;
mod adapted;
mod adapted_world;
mod attention;
mod classify;
mod device;
mod embedding;
mod graph;
mod harness;
mod intent;
mod linear;
mod linear_wide;
mod lora;
mod lora_pack;
mod loss;
mod norm;
mod optim;
mod pool;
mod random;
mod record;
mod rope;
mod shards;
mod transfer;
