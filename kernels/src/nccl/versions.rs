//! Which CUDA libraries this machine has, in which versions, from which files.
#![expect(unsafe_code, reason = "asking foreign libraries for their versions")]

use super::driver::{self, Driver};
use super::error::Result;
use super::library::{self, Nccl};
use super::table::table;
use std::ffi::c_int;

table! { Nvrtc of "NVRTC" in &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
    version = "nvrtcVersion" (*mut c_int, *mut c_int) -> c_int;
}

table! { CublasLt of "cuBLASLt" in &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];
    get_version = "cublasLtGetVersion" () -> usize;
}

/// A library and what became of loading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub library: &'static str,
    /// Its version and the file it came from, or why it cannot be used.
    pub outcome: Result<(String, String)>,
}

/// Loads the driver, NVRTC, cuBLASLt and NCCL, and asks each for its version. Slow (seconds, once), for diagnosis.
pub fn versions() -> Vec<Found> {
    let file = |names: &[&str]| loaded_file(names);
    let driver = Driver::open().and_then(|d| d.version()).map(|v| (cuda(v), file(driver::NAMES)));
    let nccl = Nccl::open().map(|n| (n.version().to_string(), file(library::NAMES)));
    vec![
        Found { library: "CUDA driver", outcome: driver },
        Found { library: "NVRTC", outcome: nvrtc().map(|v| (v, file(&["libnvrtc.so"]))) },
        Found { library: "cuBLASLt", outcome: cublas_lt().map(|v| (v, file(&["libcublasLt.so"]))) },
        Found { library: "NCCL", outcome: nccl },
    ]
}

fn nvrtc() -> Result<String> {
    let table = Nvrtc::load()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two ints, which live.
    let _ = unsafe { (table.version)(&raw mut major, &raw mut minor) };
    Ok(format!("{major}.{minor}"))
}

fn cublas_lt() -> Result<String> {
    let table = CublasLt::load()?;
    // SAFETY: no arguments, no preconditions.
    let version = unsafe { (table.get_version)() };
    // Since version 13 ten thousand for the major version, before that too; 12.1.3 is 120103.
    Ok(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
}

fn cuda(version: i32) -> String {
    format!("for CUDA {}.{}", version / 1000, version % 1000 / 10)
}

/// The file behind the first of `names` that this process has mapped.
fn loaded_file(names: &[&str]) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let stem = |name: &str| name.split(".so").next().map(|s| format!("/{s}.so"));
    let files = || maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    let found = names.iter().filter_map(|n| stem(n)).find_map(|s| files().find(|f| f.contains(&s)));
    found.unwrap_or("file unknown").to_owned()
}
