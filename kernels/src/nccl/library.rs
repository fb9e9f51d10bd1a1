//! NCCL itself: found at run time, its functions, and the configuration of a communicator.
//!
//! Not through cudarc's functions: cudarc looks for `libnccl.so` and `libnccl.so.13` but never for `libnccl.so.2`, the
//! only name NVIDIA's packages carry; it panics on a missing library or function; and its result enum has no place for
//! a code that a newer NCCL returns. Its bindings, made from NVIDIA's header, are what the tests hold ours against.
#![expect(unsafe_code, reason = "foreign functions of NCCL")]

use super::error::{Error, Place, Result};
use super::group::UniqueId;
use super::table::table;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;

/// Names to look for; the first is the only one in NVIDIA's wheels and Debian packages without `-dev`.
pub(super) const NAMES: &[&str] = &["libnccl.so.2", "libnccl.so"];

/// `ncclSuccess`.
pub(super) const SUCCESS: c_int = 0;
/// `ncclInProgress`.
pub(super) const IN_PROGRESS: c_int = 7;
/// `ncclFloat32` of `ncclDataType_t`.
pub(super) const FLOAT32: c_int = 7;
/// `ncclSum` of `ncclRedOp_t`.
pub(super) const SUM: c_int = 0;
/// `NCCL_CONFIG_UNDEF_INT`.
const UNDEFINED: c_int = c_int::MIN;

/// An `ncclComm_t`.
pub(super) type Comm = *mut c_void;

/// `ncclConfig_t` as NCCL 2.14 had it.
///
/// NCCL copies `size` bytes over its own defaults and ignores fields newer than `version`, so the oldest form that has
/// `blocking` is understood by every later NCCL, and nothing here depends on which fields a release has added
/// (2.30.7's header has one more than cudarc's 2.30).
#[repr(C)]
#[derive(Debug)]
pub(super) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    /// What was padding in 2.14; holds "undefined" for whoever reads it.
    cga_cluster_size: c_int,
}

impl Config {
    /// Calls return at once and are polled.
    pub(super) fn non_blocking() -> Self {
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21400,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
        }
    }
}

table! { Table of "NCCL" in NAMES;
    get_version = "ncclGetVersion" (*mut c_int) -> c_int;
    get_unique_id = "ncclGetUniqueId" (*mut UniqueId) -> c_int;
    comm_init_rank_config = "ncclCommInitRankConfig" (*mut Comm, c_int, UniqueId, c_int, *mut Config) -> c_int;
    comm_get_async_error = "ncclCommGetAsyncError" (Comm, *mut c_int) -> c_int;
    comm_finalize = "ncclCommFinalize" (Comm) -> c_int;
    comm_destroy = "ncclCommDestroy" (Comm) -> c_int;
    comm_abort = "ncclCommAbort" (Comm) -> c_int;
    get_error_string = "ncclGetErrorString" (c_int) -> *const c_char;
    get_last_error = "ncclGetLastError" (Comm) -> *const c_char;
    group_start = "ncclGroupStart" () -> c_int;
    group_end = "ncclGroupEnd" () -> c_int;
    all_gather = "ncclAllGather" (*const c_void, *mut c_void, usize, c_int, Comm, *mut c_void) -> c_int;
    reduce_scatter = "ncclReduceScatter" (*const c_void, *mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> c_int;
    all_reduce = "ncclAllReduce" (*const c_void, *mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> c_int;
}

/// A release of NCCL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub i32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // NCCL_VERSION: until 2.8 a thousand for the major version, ten thousand since.
        let major = if self.0 < 10_000 { 1_000 } else { 10_000 };
        write!(f, "{}.{}.{}", self.0 / major, self.0 % major / 100, self.0 % 100)
    }
}

/// The NCCL library of this machine, loaded.
#[derive(Debug)]
pub struct Nccl {
    pub(super) table: Table,
    version: Version,
}

impl Nccl {
    /// Loads NCCL.
    ///
    /// # Errors
    /// No NCCL on this machine; one older than 2.14, which has no non-blocking communicators.
    pub fn open() -> Result<Self> {
        let table = Table::load()?;
        let mut version = 0;
        // SAFETY: writes one int, which lives.
        let _ = unsafe { (table.get_version)(&raw mut version) };
        Ok(Self { table, version: Version(version) })
    }

    /// Its release.
    pub fn version(&self) -> Version {
        self.version
    }

    /// What the library has to say of a code, and of `comm`'s (null: this thread's) last error.
    pub(super) fn words(&self, code: c_int, comm: Comm) -> (String, String) {
        // SAFETY: both return null or a string that the library keeps; `comm` is null or a live communicator.
        unsafe {
            let what = text((self.table.get_error_string)(code));
            (what, text((self.table.get_last_error)(comm)))
        }
    }

    /// A new id by which the ranks of one group find each other: made by one rank, given to all. Starts the listener
    /// that the other ranks call.
    ///
    /// # Errors
    /// What NCCL says, mostly of the network interfaces.
    pub fn unique_id(&self, place: &Place) -> Result<UniqueId> {
        let mut id = UniqueId::default();
        // SAFETY: writes 128 bytes, which live.
        let code = unsafe { (self.table.get_unique_id)(&raw mut id) };
        if code == SUCCESS {
            return Ok(id);
        }
        let (what, last) = self.words(code, std::ptr::null_mut());
        let (op, place) = ("unique id", Box::new(place.clone()));
        Err(Error::Nccl { op, place, code, what, last })
    }
}

/// A string of the library's.
///
/// # Safety
/// `said` is null or a C string.
unsafe fn text(said: *const c_char) -> String {
    if said.is_null() {
        return String::new();
    }
    // SAFETY: not null, so a C string by the contract above.
    unsafe { CStr::from_ptr(said) }.to_string_lossy().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cudarc::nccl::sys;
    use std::mem::offset_of;

    #[test]
    fn configuration_is_a_prefix_of_the_headers() {
        assert_eq!(offset_of!(Config, size), offset_of!(sys::ncclConfig_t, size));
        assert_eq!(offset_of!(Config, magic), offset_of!(sys::ncclConfig_t, magic));
        assert_eq!(offset_of!(Config, version), offset_of!(sys::ncclConfig_t, version));
        assert_eq!(offset_of!(Config, blocking), offset_of!(sys::ncclConfig_t, blocking));
        let (ours, theirs) =
            (offset_of!(Config, cga_cluster_size), offset_of!(sys::ncclConfig_t, cgaClusterSize));
        assert_eq!(ours, theirs);
        assert_eq!(size_of::<Config>(), offset_of!(sys::ncclConfig_t, minCTAs));
        assert_eq!(Config::non_blocking().size, 24);
    }

    #[test]
    fn constants_are_the_headers() {
        assert_eq!(SUCCESS, sys::ncclResult_t::ncclSuccess as c_int);
        assert_eq!(IN_PROGRESS, sys::ncclResult_t::ncclInProgress as c_int);
        assert_eq!(FLOAT32, sys::ncclDataType_t::ncclFloat32 as c_int);
        assert_eq!(SUM, sys::ncclRedOp_t::ncclSum as c_int);
        assert_eq!(size_of::<UniqueId>(), size_of::<sys::ncclUniqueId>());
    }

    #[test]
    fn versions_read_as_people_write_them() {
        let said: Vec<String> = [2_708, 21_400, 23_007].map(|v| Version(v).to_string()).into();
        assert_eq!(said, ["2.7.8", "2.14.0", "2.30.7"]);
    }
}
