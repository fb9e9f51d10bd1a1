//! What of CUDA this machine has. The CUDA backend itself is still to come; today this is the one caller
//! of cudarc, which is loaded at run time and linked to nothing.
#![expect(unsafe_code, reason = "cudarc marks looking a library up as unsafe")]

/// Libraries that can be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Libraries {
    /// The driver, libcuda.
    pub driver: bool,
    /// The run-time compiler.
    pub nvrtc: bool,
    /// Collectives between GPUs.
    pub nccl: bool,
}

/// Looks for the libraries without calling them: cudarc panics when a missing one is called.
pub fn libraries() -> Libraries {
    // SAFETY: each call only opens the library, as any later use would, and calls nothing in it; cudarc
    // asks that no other thread unload it meanwhile, and nothing here ever unloads one.
    unsafe {
        Libraries {
            driver: cudarc::driver::sys::is_culib_present(),
            nvrtc: cudarc::nvrtc::sys::is_culib_present(),
            nccl: cudarc::nccl::sys::is_culib_present(),
        }
    }
}
