//! Device memory, and page-locked host memory on the way to it.

use super::{Queue, driver};
use crate::error::{Error, Result, check_len};
use cudarc::driver::{CudaEvent, result, sys};
use std::sync::{Mutex, PoisonError};

/// Bytes of device memory, freed when dropped.
#[derive(Debug)]
pub struct Memory {
    address: u64,
    bytes: usize,
    queue: Queue,
}

impl Memory {
    /// Memory of undefined content.
    pub(super) fn new(queue: &Queue, bytes: usize) -> Result<Self> {
        // SAFETY: the content is not read before the caller zeroes it.
        let address = unsafe { result::malloc_sync(bytes) }.map_err(|error| Error::Backend {
            op: "alloc",
            what: format!("{bytes} bytes on the device: {error:?}"),
        })?;
        Ok(Self { address, bytes, queue: queue.clone() })
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
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Queued work may still use it. After a failed wait the context is lost and with it the memory.
        if self.queue.enter().and_then(|()| self.queue.wait()).is_ok() {
            // SAFETY: the address came from `malloc_sync`, is freed once, and no queued work is left.
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
    queue: &Queue,
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
    unsafe { sys::cuMemcpy2DAsync_v2(&raw const what, queue.stream.cu_stream()) }
        .result()
        .map_err(driver("copy"))
}

/// Bytes of one staging buffer.
const PIECE: usize = 4 << 20;

/// Two page-locked buffers through which writes and reads go in turns: one is filled while the device
/// still copies the other.
#[derive(Debug)]
pub(super) struct Staging {
    queue: Queue,
    buffers: Mutex<Turns>,
}

#[derive(Debug)]
struct Turns {
    pieces: [Piece; 2],
    next: usize,
}

/// One page-locked buffer of [`PIECE`] bytes.
#[derive(Debug)]
struct Piece {
    bytes: *mut u8,
    /// The device is done with the buffer.
    done: CudaEvent,
}

// SAFETY: the pointer is to memory that this value alone owns; page-locked memory belongs to no thread.
unsafe impl Send for Piece {}

impl Piece {
    fn new(queue: &Queue) -> Result<Self> {
        let done = queue.context.new_event(None).map_err(driver("event"))?;
        // SAFETY: the memory is written before it is read; it is freed once, by `drop`.
        let bytes = unsafe { result::malloc_host(PIECE, 0) }.map_err(driver("pinned memory"))?;
        Ok(Self { bytes: bytes.cast(), done })
    }

    /// The first `len <= PIECE` bytes, after the device is done with them.
    fn take(&mut self, len: usize) -> Result<&mut [u8]> {
        self.done.synchronize().map_err(driver("event"))?;
        // SAFETY: the buffer has PIECE initialised or never-read bytes, this value owns it, and the device, which
        // was the only other user, has passed the event recorded after its last copy.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.bytes, len.min(PIECE)) })
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if self.done.synchronize().is_ok() {
            // SAFETY: the memory came from `malloc_host`, is freed once, and the device is done with it.
            let _ = unsafe { result::free_host(self.bytes.cast()) };
        }
    }
}

impl Staging {
    pub(super) fn new(queue: &Queue) -> Result<Self> {
        let pieces = [Piece::new(queue)?, Piece::new(queue)?];
        Ok(Self { queue: queue.clone(), buffers: Mutex::new(Turns { pieces, next: 0 }) })
    }

    /// Queues `src` to `address` on; returns when `src` has been taken over.
    pub(super) fn write(&self, address: u64, src: &[u8]) -> Result<()> {
        let mut turns = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        for (i, from) in src.chunks(PIECE).enumerate() {
            let piece = turns.turn();
            let staged = piece.take(from.len())?;
            staged.copy_from_slice(from);
            let at = address + (i * PIECE) as u64;
            // SAFETY: the destination lies in live device memory (checked by `Memory::range`); the source is
            // page-locked and not touched again before `done`, recorded next, has passed.
            unsafe { result::memcpy_htod_async(at, staged, self.queue.stream.cu_stream()) }
                .map_err(driver("write"))?;
            piece.done.record(&self.queue.stream).map_err(driver("event"))?;
        }
        Ok(())
    }

    /// `dst` from `address` on; waits.
    pub(super) fn read(&self, address: u64, dst: &mut [u8]) -> Result<()> {
        let mut turns = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        for (i, to) in dst.chunks_mut(PIECE).enumerate() {
            let piece = turns.turn();
            let staged = piece.take(to.len())?;
            let at = address + (i * PIECE) as u64;
            // SAFETY: the source lies in live device memory (checked by `Memory::range`); the destination is
            // page-locked, this call's alone, and read only after the wait below.
            unsafe { result::memcpy_dtoh_async(staged, at, self.queue.stream.cu_stream()) }
                .map_err(driver("read"))?;
            self.queue.wait()?;
            to.copy_from_slice(staged);
        }
        Ok(())
    }
}

impl Turns {
    fn turn(&mut self) -> &mut Piece {
        self.next = (self.next + 1) % self.pieces.len();
        &mut self.pieces[self.next]
    }
}
