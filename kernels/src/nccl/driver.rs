//! The CUDA driver: which GPUs this process sees, and the calls a [`super::CudaLane`] is made of.
#![expect(unsafe_code, reason = "foreign functions of the CUDA driver")]

use super::error::{Error, Result};
use super::table::table;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;

/// Names to look for.
pub(super) const NAMES: &[&str] = &["libcuda.so.1", "libcuda.so"];

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`; the minor one follows.
const CAPABILITY_MAJOR: c_int = 75;
/// `CUDA_ERROR_NOT_READY`.
pub(super) const NOT_READY: c_int = 600;

/// A `CUcontext`, `CUstream`, `CUevent` or `CUfunction`.
pub(super) type Object = *mut c_void;

// The names with _v2 are the functions that cuda.h's macros choose.
table! { Table of "CUDA driver" in NAMES;
    init = "cuInit" (c_uint) -> c_int;
    driver_get_version = "cuDriverGetVersion" (*mut c_int) -> c_int;
    get_error_name = "cuGetErrorName" (c_int, *mut *const c_char) -> c_int;
    device_get_count = "cuDeviceGetCount" (*mut c_int) -> c_int;
    device_get = "cuDeviceGet" (*mut c_int, c_int) -> c_int;
    device_get_name = "cuDeviceGetName" (*mut c_char, c_int, c_int) -> c_int;
    device_total_mem = "cuDeviceTotalMem_v2" (*mut usize, c_int) -> c_int;
    device_get_uuid = "cuDeviceGetUuid_v2" (*mut Uuid, c_int) -> c_int;
    device_get_attribute = "cuDeviceGetAttribute" (*mut c_int, c_int, c_int) -> c_int;
    device_primary_ctx_retain = "cuDevicePrimaryCtxRetain" (*mut Object, c_int) -> c_int;
    ctx_set_current = "cuCtxSetCurrent" (Object) -> c_int;
    stream_create = "cuStreamCreate" (*mut Object, c_uint) -> c_int;
    stream_destroy = "cuStreamDestroy_v2" (Object) -> c_int;
    stream_query = "cuStreamQuery" (Object) -> c_int;
    stream_wait_event = "cuStreamWaitEvent" (Object, Object, c_uint) -> c_int;
    event_create = "cuEventCreate" (*mut Object, c_uint) -> c_int;
    event_record = "cuEventRecord" (Object, Object) -> c_int;
    event_destroy = "cuEventDestroy_v2" (Object) -> c_int;
    mem_alloc = "cuMemAlloc_v2" (*mut u64, usize) -> c_int;
    mem_free = "cuMemFree_v2" (u64) -> c_int;
    memcpy_to_device = "cuMemcpyHtoD_v2" (u64, *const c_void, usize) -> c_int;
    memcpy_to_host = "cuMemcpyDtoH_v2" (*mut c_void, u64, usize) -> c_int;
    memset = "cuMemsetD8Async" (u64, u8, usize, Object) -> c_int;
    module_load_data = "cuModuleLoadData" (*mut Object, *const c_void) -> c_int;
    module_get_function = "cuModuleGetFunction" (*mut Object, Object, *const c_char) -> c_int;
    launch_kernel = "cuLaunchKernel" (Object, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Object, *mut *mut c_void, *mut *mut c_void) -> c_int;
}

/// A device's own name, the same in every process and container that sees it (`CUuuid`; of a MIG instance its own).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Uuid(pub [u8; 16]);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GPU-")?;
        for (i, byte) in self.0.iter().enumerate() {
            let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

/// A GPU that this process sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number among those visible here (CUDA_VISIBLE_DEVICES hides and reorders).
    pub ordinal: usize,
    /// Its model.
    pub name: String,
    /// Which one it is.
    pub uuid: Uuid,
    /// Its memory.
    pub memory_bytes: u64,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ordinal, name, memory_bytes, capability: (major, minor), uuid } = self;
        let gib = memory_bytes >> 30;
        write!(f, "GPU {ordinal}, {name}, {gib} GiB, compute capability {major}.{minor}, {uuid}")
    }
}

/// The CUDA driver of this machine, loaded and initialised.
#[derive(Debug)]
pub struct Driver {
    pub(super) table: Table,
}

impl Driver {
    /// Loads the driver and initialises it.
    ///
    /// # Errors
    /// No driver on this machine; one that finds no GPU.
    pub fn open() -> Result<Self> {
        let driver = Self { table: Table::load()? };
        // SAFETY: no arguments but the flags, which must be 0.
        let code = unsafe { (driver.table.init)(0) };
        driver.check("cuInit", code)?;
        Ok(driver)
    }

    /// The newest CUDA it serves, as thousand times the major plus ten times the minor version.
    ///
    /// # Errors
    /// What the driver says.
    pub fn version(&self) -> Result<i32> {
        let mut version = 0;
        // SAFETY: writes one int, which lives.
        let code = unsafe { (self.table.driver_get_version)(&raw mut version) };
        self.check("cuDriverGetVersion", code)?;
        Ok(version)
    }

    /// The GPUs visible here, by their number.
    ///
    /// # Errors
    /// What the driver says.
    pub fn devices(&self) -> Result<Vec<DeviceInfo>> {
        let mut count = 0;
        // SAFETY: writes one int, which lives.
        let code = unsafe { (self.table.device_get_count)(&raw mut count) };
        self.check("cuDeviceGetCount", code)?;
        (0..usize::try_from(count).unwrap_or(0)).map(|ordinal| self.device(ordinal)).collect()
    }

    fn device(&self, ordinal: usize) -> Result<DeviceInfo> {
        let t = &self.table;
        let device = self.handle(ordinal)?;
        let (mut name, mut memory, mut uuid) = ([0u8; 256], 0usize, Uuid::default());
        let mut capability = (0, 0);
        // SAFETY: `device` came from the driver; every output lives and is as long as said.
        unsafe {
            let code = (t.device_get_name)(name.as_mut_ptr().cast(), 256, device);
            self.check("cuDeviceGetName", code)?;
            self.check("cuDeviceTotalMem", (t.device_total_mem)(&raw mut memory, device))?;
            self.check("cuDeviceGetUuid", (t.device_get_uuid)(&raw mut uuid, device))?;
            let attribute = t.device_get_attribute;
            let code = attribute(&raw mut capability.0, CAPABILITY_MAJOR, device);
            self.check("cuDeviceGetAttribute", code)?;
            let code = attribute(&raw mut capability.1, CAPABILITY_MAJOR + 1, device);
            self.check("cuDeviceGetAttribute", code)?;
        }
        let name = CStr::from_bytes_until_nul(&name)
            .map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned());
        Ok(DeviceInfo { ordinal, name, uuid, memory_bytes: memory as u64, capability })
    }

    fn handle(&self, ordinal: usize) -> Result<c_int> {
        let mut device = 0;
        let wanted = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        // SAFETY: writes one int, which lives.
        let code = unsafe { (self.table.device_get)(&raw mut device, wanted) };
        self.check("cuDeviceGet", code)?;
        Ok(device)
    }

    /// The address of a device's primary context, the one CUDA's run-time library and NCCL use; kept for good.
    ///
    /// # Errors
    /// What the driver says: a device in exclusive use, no memory.
    pub fn primary_context(&self, ordinal: usize) -> Result<u64> {
        let device = self.handle(ordinal)?;
        let mut context: Object = std::ptr::null_mut();
        // SAFETY: `device` came from the driver; writes one pointer, which lives.
        let code = unsafe { (self.table.device_primary_ctx_retain)(&raw mut context, device) };
        self.check("cuDevicePrimaryCtxRetain", code)?;
        Ok(context as u64)
    }

    /// The address of the function `name` (a `CUfunction`) of the PTX text `ptx`, loaded into `context` for good.
    ///
    /// # Errors
    /// What the driver says: PTX it does not understand, no such function.
    pub fn function(&self, context: u64, ptx: &CStr, name: &CStr) -> Result<u64> {
        let t = &self.table;
        let (mut module, mut function): (Object, Object) =
            (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the context came from the driver; both texts end in 0; each call writes one pointer, which lives.
        unsafe {
            self.check("cuCtxSetCurrent", (t.ctx_set_current)(context as Object))?;
            let code = (t.module_load_data)(&raw mut module, ptx.as_ptr().cast());
            self.check("cuModuleLoadData", code)?;
            let code = (t.module_get_function)(&raw mut function, module, name.as_ptr());
            self.check("cuModuleGetFunction", code)?;
        }
        Ok(function as u64)
    }

    pub(super) fn check(&self, op: &'static str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let mut name: *const c_char = std::ptr::null();
        // SAFETY: writes one pointer, which lives, to a string of the driver's or null.
        let name = unsafe {
            let _ = (self.table.get_error_name)(code, &raw mut name);
            if name.is_null() {
                "unknown error".into()
            } else {
                CStr::from_ptr(name).to_string_lossy()
            }
        };
        Err(Error::Driver { op, code, name: name.into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_reads_as_nvidia_smi_writes_it() {
        let uuid = Uuid(std::array::from_fn(|i| u8::try_from(i * 16 + i).unwrap()));
        assert_eq!(uuid.to_string(), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }
}
