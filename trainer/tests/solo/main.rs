//! Solo equivalence, in one process and on tiny bases: what a user gets depends on that user alone.
//!
//! A user's store record has the same bytes alone and beside anybody, in any order, for any number of slots, ranks and
//! threads and any size of pack (`docs/architecture.md`, promise 1); the base never changes (2); nothing of one user
//! reaches another, a NaN included (3). Every comparison is made by [`world::differing`], and `faults` shows that it
//! fails for training loops that couple users. Real `mpirun` and `kill -9` are tested in `tests/`.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod compositions;
mod early_stop;
mod faults;
mod isolation;
mod leaving;
mod merged;
mod population;
mod predictions;
mod targets;
mod users;
mod world;
