//! The engine's step on the GPU backend, run by the emulator, against the CPU path from the same weights.
//!
//! Bases are the golden ones with every number rounded to `bf16` first, and one of odd widths, so that both backends have
//! the same weights.
//! Tolerances come from the number of roundings to `bf16` along the path ([`bound`]). That nobody's bits depend on
//! others ([`alone`]) holds on the emulator because its dense product sums every row in one fixed order; on CUDA it
//! needs the batch-invariant mode of the device's library. Nothing here has run on a GPU. Start at [`world`].
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod alone;
mod bound;
#[path = "../../../kernels/tests/gpu/device.rs"]
#[expect(dead_code, reason = "what the tests of single operations use as well")]
mod device;
mod gradients;
mod graphs;
mod optimiser;
mod prediction;
mod swaps;
mod world;
