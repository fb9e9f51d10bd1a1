//! The stream on which collectives run, beside the one that computes; memory reached from it; the ordered sum.
#![expect(unsafe_code, reason = "foreign functions of the CUDA driver")]

use super::driver::{Driver, NOT_READY, Object};
use super::error::{Error, Result};
use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

/// The device's kernel behind [`Lane::sum`], `kernels/cu/shards.cu`: `shards_sum_f32(float* total, unsigned num_parts,
/// unsigned add, unsigned long long n, const float* p0, …)` with [`SUM_PARTS`] parts; blocks of 256 threads, any grid.
pub const SUM_KERNEL: &str = "shards_sum_f32";

/// Parts that one launch of [`SUM_KERNEL`] adds.
pub const SUM_PARTS: usize = 16;

/// Threads of a block of [`SUM_KERNEL`], and the most blocks a launch asks for.
const BLOCK: u32 = 256;
const MAX_BLOCKS: u64 = 1 << 16;

/// `CU_STREAM_NON_BLOCKING`: the stream does not wait for the legacy default stream.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const NO_TIMING: u32 = 2;

/// `len` f32 values from `address` on, in the memory of a lane's device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Device address of the first value.
    pub address: u64,
    /// Values.
    pub len: usize,
}

impl Region {
    /// Values `start .. start + len` of it; clipped to what it has.
    #[must_use]
    pub fn part(self, start: usize, len: usize) -> Self {
        let start = start.min(self.len);
        let address = self.address + (start * size_of::<f32>()) as u64;
        Self { address, len: len.min(self.len - start) }
    }

    pub(super) fn pointer(self) -> *mut c_void {
        self.address as *mut c_void
    }

    fn bytes(self) -> usize {
        self.len * size_of::<f32>()
    }
}

/// A stream of one device beside its computing stream, with what collectives need around them.
///
/// Work is done in the order given, later than the call. *Contract*: a [`Region`] is memory of this device that stays
/// until the work on it is done; like a kernel's pointer argument it cannot be checked here.
pub trait Lane: Send + Sync + fmt::Debug + 'static {
    /// Makes the device's context current on the calling thread; every other call does so itself.
    ///
    /// # Errors
    /// What the device's driver says; so for all calls.
    fn bind(&self) -> Result<()>;

    /// The stream's address (`CUstream`), for NCCL.
    fn stream(&self) -> u64;

    /// The lane waits for all that the computing stream was given so far.
    ///
    /// # Errors
    /// As [`Lane::bind`].
    fn follow(&self) -> Result<()>;

    /// The computing stream waits for all that the lane was given so far.
    ///
    /// # Errors
    /// As [`Lane::bind`].
    fn lead(&self) -> Result<()>;

    /// Whether all the lane was given is done; never waits.
    ///
    /// # Errors
    /// Also a failure of earlier work on the device.
    fn done(&self) -> Result<bool>;

    /// `len` values of memory, not initialised.
    ///
    /// # Errors
    /// Not enough memory.
    fn alloc(&self, len: usize) -> Result<Region>;

    /// Gives memory of [`Lane::alloc`] back; the lane must be idle.
    fn free(&self, region: Region);

    /// dst = src; waits for the copy alone, so nothing under way may use `dst`.
    ///
    /// # Errors
    /// Lengths that differ.
    fn write(&self, dst: Region, src: &[f32]) -> Result<()>;

    /// dst = src; waits for the copy alone, so what produces `src` must be done.
    ///
    /// # Errors
    /// Lengths that differ.
    fn read(&self, src: Region, dst: &mut [f32]) -> Result<()>;

    /// dst = 0.
    ///
    /// # Errors
    /// As [`Lane::bind`].
    fn zero(&self, dst: Region) -> Result<()>;

    /// `total[i] = ((p₀[i] + p₁[i]) + p₂[i]) + …`, in f32, in the order given; `parts` are the addresses of as many
    /// values as `total` has, and p₀ may be `total`. No parts: zero.
    ///
    /// # Errors
    /// A lane without [`SUM_KERNEL`].
    fn sum(&self, total: Region, parts: &[u64]) -> Result<()>;
}

/// What a CUDA backend hands over so that collectives can run beside it; the objects must outlive the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handles {
    /// The device's primary context, a `CUcontext`.
    pub context: u64,
    /// The stream that computes, a `CUstream`; 0 is the default stream.
    pub compute: u64,
    /// [`SUM_KERNEL`] loaded in that context, a `CUfunction`; without it [`Lane::sum`] is refused.
    pub sum: Option<u64>,
}

/// [`Lane`] on the CUDA driver.
#[derive(Debug)]
pub struct CudaLane {
    driver: Arc<Driver>,
    handles: Handles,
    stream: u64,
    event: u64,
}

impl CudaLane {
    /// A new stream in the context of `handles`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(driver: Arc<Driver>, handles: Handles) -> Result<Self> {
        let mut lane = Self { driver, handles, stream: 0, event: 0 };
        lane.bind()?;
        let (mut stream, mut event): (Object, Object) =
            (std::ptr::null_mut(), std::ptr::null_mut());
        let t = &lane.driver.table;
        // SAFETY: the context is current; each call writes one pointer, which lives.
        let code = unsafe { (t.stream_create)(&raw mut stream, NON_BLOCKING) };
        lane.driver.check("cuStreamCreate", code)?;
        lane.stream = stream as u64;
        // SAFETY: as above.
        let code = unsafe { (t.event_create)(&raw mut event, NO_TIMING) };
        lane.driver.check("cuEventCreate", code)?;
        lane.event = event as u64;
        Ok(lane)
    }

    /// `late` waits for all that `early` was given so far.
    fn order(&self, early: u64, late: u64) -> Result<()> {
        self.bind()?;
        let t = &self.driver.table;
        let event = self.event as Object;
        // SAFETY: event and both streams live, the context is current. A later record moves no wait that was made before.
        unsafe {
            self.driver.check("cuEventRecord", (t.event_record)(event, early as Object))?;
            self.driver.check("cuStreamWaitEvent", (t.stream_wait_event)(late as Object, event, 0))
        }
    }

    fn launch_sum(&self, kernel: u64, total: Region, parts: &[u64], add: bool) -> Result<()> {
        let mut pointers = [0u64; SUM_PARTS];
        pointers[..parts.len()].copy_from_slice(parts);
        let (mut address, mut add, mut n) = (total.address, u32::from(add), total.len as u64);
        let mut num_parts = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let blocks = n.div_ceil(u64::from(BLOCK)).clamp(1, MAX_BLOCKS);
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let mut arguments = vec![
            (&raw mut address).cast::<c_void>(),
            (&raw mut num_parts).cast(),
            (&raw mut add).cast(),
            (&raw mut n).cast(),
        ];
        arguments.extend(pointers.iter_mut().map(|pointer| (&raw mut *pointer).cast()));
        let (kernel, stream) = (kernel as Object, self.stream as Object);
        // SAFETY: the kernel is SUM_KERNEL by the contract of `Handles`, whose arguments these are; the driver copies them.
        let code = unsafe {
            let launch = self.driver.table.launch_kernel;
            let arguments = arguments.as_mut_ptr();
            launch(kernel, blocks, 1, 1, BLOCK, 1, 1, 0, stream, arguments, std::ptr::null_mut())
        };
        self.driver.check("cuLaunchKernel", code)
    }
}

impl Lane for CudaLane {
    fn bind(&self) -> Result<()> {
        // SAFETY: the context lives by the contract of `Handles`.
        let code = unsafe { (self.driver.table.ctx_set_current)(self.handles.context as Object) };
        self.driver.check("cuCtxSetCurrent", code)
    }

    fn stream(&self) -> u64 {
        self.stream
    }

    fn follow(&self) -> Result<()> {
        self.order(self.handles.compute, self.stream)
    }

    fn lead(&self) -> Result<()> {
        self.order(self.stream, self.handles.compute)
    }

    fn done(&self) -> Result<bool> {
        self.bind()?;
        // SAFETY: the stream lives.
        match unsafe { (self.driver.table.stream_query)(self.stream as Object) } {
            NOT_READY => Ok(false),
            code => self.driver.check("cuStreamQuery", code).map(|()| true),
        }
    }

    fn alloc(&self, len: usize) -> Result<Region> {
        self.bind()?;
        let mut address = 0;
        // At least one value: the driver refuses to allocate nothing.
        let bytes = len.max(1).saturating_mul(size_of::<f32>());
        // SAFETY: writes one address, which lives.
        let code = unsafe { (self.driver.table.mem_alloc)(&raw mut address, bytes) };
        self.driver.check("cuMemAlloc", code)?;
        Ok(Region { address, len })
    }

    fn free(&self, region: Region) {
        if self.bind().is_ok() {
            // SAFETY: memory of `alloc` by the contract; a failure leaves nothing to do but to leak it.
            let _ = unsafe { (self.driver.table.mem_free)(region.address) };
        }
    }

    fn write(&self, dst: Region, src: &[f32]) -> Result<()> {
        self.bind()?;
        same("write", dst.len, src.len())?;
        if src.is_empty() {
            return Ok(());
        }
        // SAFETY: `src` lives through the call, which returns when it is copied; lengths agree.
        let code = unsafe {
            (self.driver.table.memcpy_to_device)(dst.address, src.as_ptr().cast(), dst.bytes())
        };
        self.driver.check("cuMemcpyHtoD", code)
    }

    fn read(&self, src: Region, dst: &mut [f32]) -> Result<()> {
        self.bind()?;
        same("read", src.len, dst.len())?;
        if dst.is_empty() {
            return Ok(());
        }
        // SAFETY: `dst` lives through the call, which returns when it is written; lengths agree; any bytes are f32.
        let code = unsafe {
            (self.driver.table.memcpy_to_host)(dst.as_mut_ptr().cast(), src.address, src.bytes())
        };
        self.driver.check("cuMemcpyDtoH", code)
    }

    fn zero(&self, dst: Region) -> Result<()> {
        self.bind()?;
        if dst.len == 0 {
            return Ok(());
        }
        // SAFETY: memory of this device by the contract of `Lane`.
        let code = unsafe {
            (self.driver.table.memset)(dst.address, 0, dst.bytes(), self.stream as Object)
        };
        self.driver.check("cuMemsetD8Async", code)
    }

    fn sum(&self, total: Region, parts: &[u64]) -> Result<()> {
        let what = || format!("the kernel {SUM_KERNEL} is not loaded");
        let kernel = self.handles.sum.ok_or_else(|| Error::Argument { op: "sum", what: what() })?;
        if total.len == 0 {
            return Ok(());
        }
        if parts.is_empty() {
            return self.zero(total);
        }
        self.bind()?;
        for (i, parts) in parts.chunks(SUM_PARTS).enumerate() {
            self.launch_sum(kernel, total, parts, i > 0)?;
        }
        Ok(())
    }
}

impl Drop for CudaLane {
    fn drop(&mut self) {
        if self.bind().is_ok() {
            let t = &self.driver.table;
            // SAFETY: made in `new`, used by nothing after this; the driver ends the stream's work first, without waiting here.
            unsafe {
                if self.event != 0 {
                    let _ = (t.event_destroy)(self.event as Object);
                }
                if self.stream != 0 {
                    let _ = (t.stream_destroy)(self.stream as Object);
                }
            }
        }
    }
}

fn same(op: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::Argument { op, what: format!("{got} values, the region has {expected}") })
}
