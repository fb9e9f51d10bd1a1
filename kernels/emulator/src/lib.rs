//! The CUDA kernels on the CPU: the sources of `kernels/cu`, compiled by g++, run with one fiber per thread.
//!
//! Owns the runtime (`runtime/`, C++), its build on demand and [`Emulator`], a [`kernels::gpu::Device`]. For
//! tests alone: it finds wrong results and, in [`Mode::Checked`], races, uninitialised and out-of-bounds
//! accesses that a GPU would hide; it says nothing of speed, of the hardware's rounding, nor of weak memory
//! between blocks. Start at [`Emulator::open`]; `README.md` shows how to try a kernel by hand.
#![expect(unsafe_code, reason = "opens the libraries it built and calls their C interface")]

mod compile;
mod copies;
mod device;
mod emulator;
mod error;
mod finding;
mod flash;
mod log;
mod product;
mod runtime;

pub use copies::Copies;
pub use emulator::{Emulator, Memory, Mode};
pub use error::{Error, Result};
pub use finding::{Finding, Kind};
