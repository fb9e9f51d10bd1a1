//! Groups of GPUs without a GPU: real MPI ranks on `tests/fake-nccl`, a driver and an NCCL of the same C interface.
//!
//! Every test starts `mpirun` on this test binary again, naming itself, with the fake libraries where the loader finds
//! them first; with `MYRIAD_NCCL_RANK` set the test is a rank and runs its body instead. `job.rs` starts ranks,
//! `rank.rs` is what a rank does. Start reading at `sums.rs`; `stage.rs` is the population stage on top of it, `events.rs` that of event
//! models.

#![cfg(feature = "mpi")]
#![expect(clippy::unwrap_used, reason = "test code")]

mod events;
mod faults;
mod job;
mod rank;
mod stage;
mod sums;
mod world;
