//! Device memory, and copies within it.

use super::{Queue, driver};
use crate::error::{Error, Result, check_len};
use cudarc::driver::{CudaEvent, CudaStream, result, sys};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of device memory, freed when dropped.
#[derive(Debug)]
pub struct Memory {
    address: u64,
    bytes: usize,
    queue: Queue,
    /// Ranges that the copying stream still reads, each until its event.
    leaving: Mutex<Vec<(Range<usize>, Arc<CudaEvent>)>>,
}

impl Memory {
    /// Memory of undefined content.
    pub(super) fn new(queue: &Queue, bytes: usize) -> Result<Self> {
        // SAFETY: the content is not read before the caller zeroes it.
        let address = unsafe { result::malloc_sync(bytes) }.map_err(|error| Error::Backend {
            op: "alloc",
            what: format!("{bytes} bytes on the device: {error:?}"),
        })?;
        Ok(Self { address, bytes, queue: queue.clone(), leaving: Mutex::default() })
    }

    /// Address of the first byte.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Address of a range, which lies in this memory.
    pub(super) fn range(&self, offset: usize, len: usize) -> Result<u64> {
        check_len("device memory", "range", offset.saturating_add(len), self.bytes)?;
        Ok(self.address + offset as u64)
    }

    /// As [`Memory::range`], to be overwritten: the computing stream first waits for copies that still read it.
    pub(super) fn range_mut(&self, offset: usize, len: usize) -> Result<u64> {
        let address = self.range(offset, len)?;
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        let overlaps = |range: &Range<usize>| range.start < offset + len && offset < range.end;
        for (_, done) in leaving.iter().filter(|(range, _)| overlaps(range)) {
            self.queue.stream.wait(done).map_err(driver("wait"))?;
        }
        leaving.retain(|(range, done)| !overlaps(range) && !done.is_complete());
        Ok(address)
    }

    /// The copying stream reads a range until `done`.
    pub(super) fn leaves(&self, range: Range<usize>, done: Arc<CudaEvent>) {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner).push((range, done));
    }

    /// Waits until the copying stream reads nothing here.
    fn left(&mut self) -> Result<()> {
        let leaving = self.leaving.get_mut().unwrap_or_else(PoisonError::into_inner);
        leaving.drain(..).try_for_each(|(_, done)| done.synchronize().map_err(driver("event")))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Queued work may still use it. After a failed wait the context is lost and with it the memory.
        let idle = self.queue.enter().and_then(|()| self.queue.wait()).and_then(|()| self.left());
        if idle.is_ok() {
            // SAFETY: the address came from `malloc_sync`, is freed once, and no queued work or copy is left.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// `len` bytes at `address` become zero; the caller has checked the range.
pub(super) fn zero(queue: &Queue, address: u64, len: usize) -> Result<()> {
    // SAFETY: the range lies in live device memory (checked by `Memory::range`) whose drop waits for the stream.
    unsafe { result::memset_d8_async(address, 0, len, queue.stream.cu_stream()) }
        .map_err(driver("zero"))
}

/// `len` bytes from `src` to `dst`; the caller has checked both ranges.
pub(super) fn copy(queue: &Queue, dst: u64, src: u64, len: usize) -> Result<()> {
    // SAFETY: both ranges lie in live device memory (checked by `Memory::range`) whose drop waits for the stream.
    unsafe { result::memcpy_dtod_async(dst, src, len, queue.stream.cu_stream()) }
        .map_err(driver("copy"))
}

/// Rows of device memory: the first one's address, and bytes from one to the next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pitch {
    pub(super) address: u64,
    pub(super) bytes: usize,
}

impl Pitch {
    /// The rows from `first` on.
    pub(super) fn row(self, first: usize) -> Self {
        Self { address: self.address + (first * self.bytes) as u64, ..self }
    }
}

/// `rows` rows of `width` bytes from `src` to `dst`; the caller has checked both windows.
pub(super) fn copy_rows(
    stream: &CudaStream,
    dst: Pitch,
    src: Pitch,
    (width, rows): (usize, usize),
) -> Result<()> {
    let device = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
    let what = sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: device,
        srcHost: std::ptr::null(),
        srcDevice: src.address,
        srcArray: std::ptr::null_mut(),
        srcPitch: src.bytes,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: device,
        dstHost: std::ptr::null_mut(),
        dstDevice: dst.address,
        dstArray: std::ptr::null_mut(),
        dstPitch: dst.bytes,
        WidthInBytes: width,
        Height: rows,
    };
    // SAFETY: the description is read before the call returns; both windows lie in live device memory, checked by
    // the operation that asked, whose drop waits for the stream.
    unsafe { sys::cuMemcpy2DAsync_v2(&raw const what, stream.cu_stream()) }
        .result()
        .map_err(driver("copy"))
}
