//! Event models (PITuning) on the GPU backend, run by the emulator, against the CPU path from the same parameters.
//!
//! Parameters are numbers that `bf16` holds, so both backends begin with the same ones. Tolerances come from the number
//! of roundings to `bf16` along the path ([`bound`]). What must be equal to the bit: a user alone and among others, a
//! model after a step and one made from its parameters, checked and unchecked device code. Nothing here has run on a
//! GPU. Start at [`world`].
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod answers;
mod bound;
mod checked;
#[path = "../../../kernels/tests/gpu/device.rs"]
#[expect(dead_code, reason = "what the tests of single operations use as well")]
mod device;
#[path = "../gpu_step/bound.rs"]
mod step_bound;
mod tuning;
mod users;
mod whole;
mod world;
