//! Ranks whose GPUs talk: which rank takes which GPU, how a group of GPUs is formed over the [`super::Communicator`],
//! and the gradient sum on the device.
//!
//! Owns [`DeviceSync`], the device's side of [`super::GradientSync`], and its implementation [`NcclSync`]. The foreign
//! calls are `kernels::nccl`'s. Start reading at [`NcclSync`]; `docs/adr/0006-nccl.md` says why it is built this way.

mod join;
mod placement;
mod sync;

pub use join::{join, prepare, unanimous};
pub use placement::{Machine, Seat, local_ranks, seats};
pub use sync::{Agreement, Bucket, DeviceSync, NcclOptions, NcclSync, SumOrder};
