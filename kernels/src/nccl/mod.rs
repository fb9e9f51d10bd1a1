//! Collectives between GPUs: NCCL and the little of the CUDA driver that they need.
//!
//! Owns the foreign calls, loaded at run time: [`Nccl`] and [`Driver`] are looked for by name, and a machine without
//! them gets an [`Error`] that names what was tried. Knows no MPI: how ranks find each other is the trainer's
//! (`trainer::comm::nccl`). Start reading at [`Group`] (one rank's communicator, polled, with a time limit) and
//! [`Lane`] (the stream on which its collectives run); `docs/adr/0006-nccl.md` says why it is built this way.
//!
//! Never met a GPU: proved against `tests/fake-nccl`, which has the same C interface on host memory.

mod driver;
mod error;
mod group;
mod lane;
mod library;
mod table;
mod versions;

pub use driver::{DeviceInfo, Driver, Uuid};
pub use error::{Error, Place, Result};
pub use group::{Group, UniqueId};
pub use lane::{CudaLane, Handles, Lane, Region, SUM_KERNEL, SUM_PARTS};
pub use library::{Nccl, Version};
pub use versions::{Found, versions};
