//! Copies between the host and the device, through page-locked memory.
//!
//! To the device they go on the computing stream through [`Staging`], which the host leaves at once. From it a
//! caller may wait at once ([`Staging::read`]) or later ([`Downloads`]), for its own copy alone.

use super::{Queue, driver};
use crate::backend::Coming;
use crate::error::{Result, check_eq};
use cudarc::driver::{CudaEvent, CudaStream, result};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of one staging buffer, and most of them: what may be on its way before a write waits for the device.
const PIECE: usize = 4 << 20;
const PIECES: usize = 16;
/// Least bytes of a download's buffer, and most bytes of unused ones that are kept.
const SMALLEST: usize = 4096;
const KEPT: usize = 256 << 20;

/// Page-locked memory, freed when dropped, when no copy uses it any more.
#[derive(Debug)]
struct Pinned {
    bytes: *mut u8,
    len: usize,
    queue: Queue,
}

// SAFETY: the pointer is to memory that this value alone owns; page-locked memory belongs to no thread.
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(queue: &Queue, len: usize) -> Result<Self> {
        queue.enter()?;
        // SAFETY: every byte is written below before it is read; the memory is freed once, by `drop`.
        let bytes = unsafe { result::malloc_host(len, 0) }.map_err(driver("pinned memory"))?;
        // SAFETY: the memory has just been given, with this length.
        unsafe { std::ptr::write_bytes(bytes.cast::<u8>(), 0, len) };
        Ok(Self { bytes: bytes.cast(), len, queue: queue.clone() })
    }

    /// The first `len` bytes. The device must be done with them, or be about to fill them.
    fn slice(&mut self, len: usize) -> &mut [u8] {
        // SAFETY: the memory has `self.len` initialised bytes and this value owns it.
        unsafe { std::slice::from_raw_parts_mut(self.bytes, len.min(self.len)) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.queue.enter().is_ok() {
            // SAFETY: the memory came from `malloc_host` and is freed once; whoever drops it has waited.
            let _ = unsafe { result::free_host(self.bytes.cast()) };
        }
    }
}

/// Page-locked buffers through which writes and reads go in turns; more of them while the device is behind.
#[derive(Debug)]
pub(super) struct Staging {
    queue: Queue,
    /// Longest in use first.
    pieces: Mutex<VecDeque<Piece>>,
}

/// One buffer of [`PIECE`] bytes.
#[derive(Debug)]
struct Piece {
    /// None once the device may use it for ever: then it is never freed.
    pinned: Option<Pinned>,
    /// The device is done with the buffer.
    done: CudaEvent,
}

impl Piece {
    fn new(queue: &Queue) -> Result<Self> {
        let done = queue.context.new_event(None).map_err(driver("event"))?;
        Ok(Self { pinned: Some(Pinned::new(queue, PIECE)?), done })
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if self.done.synchronize().is_err() {
            std::mem::forget(self.pinned.take());
        }
    }
}

impl Staging {
    pub(super) fn new(queue: &Queue) -> Self {
        Self { queue: queue.clone(), pieces: Mutex::default() }
    }

    /// Queues `src` to `address` on; returns when `src` has been taken over.
    pub(super) fn write(&self, address: u64, src: &[u8]) -> Result<()> {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        for (i, from) in src.chunks(PIECE).enumerate() {
            let piece = self.turn(&mut pieces)?;
            let Some(pinned) = &mut piece.pinned else { continue };
            let staged = pinned.slice(from.len());
            staged.copy_from_slice(from);
            let at = address + (i * PIECE) as u64;
            // SAFETY: the destination lies in live device memory (checked by `Memory::range_mut`); the source is
            // page-locked and not touched again before `done`, recorded next, has passed.
            unsafe { result::memcpy_htod_async(at, staged, self.queue.stream.cu_stream()) }
                .map_err(driver("write"))?;
            piece.done.record(&self.queue.stream).map_err(driver("event"))?;
        }
        Ok(())
    }

    /// `dst` from `address` on; waits.
    pub(super) fn read(&self, address: u64, dst: &mut [u8]) -> Result<()> {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        for (i, to) in dst.chunks_mut(PIECE).enumerate() {
            let piece = self.turn(&mut pieces)?;
            let Some(pinned) = &mut piece.pinned else { continue };
            let staged = pinned.slice(to.len());
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

    /// A buffer that the device is done with, now the last in line: the longest in use if it is free, else a new one
    /// while there may be more, else the longest in use after a wait.
    fn turn<'p>(&self, pieces: &'p mut VecDeque<Piece>) -> Result<&'p mut Piece> {
        let free = match pieces.front() {
            None => false,
            Some(piece) => piece.done.try_is_complete().map_err(driver("event"))?,
        };
        if !free && pieces.len() < PIECES {
            pieces.push_front(Piece::new(&self.queue)?);
        } else if let Some(piece) = pieces.front().filter(|_| !free) {
            piece.done.synchronize().map_err(driver("event"))?;
        }
        pieces.rotate_left(1);
        let last = pieces.len() - 1;
        Ok(&mut pieces[last])
    }
}

/// Copies to the host that are waited for later, each in a buffer of its own until then.
#[derive(Debug)]
pub(super) struct Downloads {
    queue: Queue,
    unused: Unused,
}

/// Buffers that no copy uses.
type Unused = Arc<Mutex<Vec<Pinned>>>;

/// A copy on its way.
#[derive(Debug)]
pub(super) struct Download {
    /// Taken by `drop` alone.
    pinned: Option<Pinned>,
    len: usize,
    done: Arc<CudaEvent>,
    unused: Unused,
}

impl Downloads {
    pub(super) fn new(queue: &Queue) -> Self {
        Self { queue: queue.clone(), unused: Arc::default() }
    }

    /// Queues a copy of `len` bytes from `address` on a stream; the caller has checked the range.
    pub(super) fn begin(
        &self,
        stream: &CudaStream,
        (address, len): (u64, usize),
    ) -> Result<Download> {
        let done = Arc::new(self.queue.context.new_event(None).map_err(driver("event"))?);
        let mut pinned = self.buffer(len)?;
        // SAFETY: the source lies in live device memory (checked by `Memory::range`), whose drop waits for the
        // stream; the destination is page-locked, this download's alone, and read only after `done`.
        unsafe { result::memcpy_dtoh_async(pinned.slice(len), address, stream.cu_stream()) }
            .map_err(driver("read"))?;
        if let Err(error) = done.record(stream) {
            std::mem::forget(pinned); // the copy may still fill it, and nothing says when
            return Err(driver("event")(error));
        }
        Ok(Download { pinned: Some(pinned), len, done, unused: Arc::clone(&self.unused) })
    }

    /// The smallest unused buffer that has `len` bytes, or a new one.
    fn buffer(&self, len: usize) -> Result<Pinned> {
        let mut unused = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = unused.iter().enumerate().filter(|(_, pinned)| pinned.len >= len);
        match fitting.min_by_key(|(_, pinned)| pinned.len).map(|(at, _)| at) {
            Some(at) => Ok(unused.swap_remove(at)),
            None => Pinned::new(&self.queue, len.next_multiple_of(SMALLEST).max(SMALLEST)),
        }
    }
}

impl Download {
    /// The event after the copy.
    pub(super) fn done(&self) -> Arc<CudaEvent> {
        Arc::clone(&self.done)
    }
}

impl Coming for Download {
    fn finish(mut self: Box<Self>, dst: &mut [u8]) -> Result<()> {
        check_eq("read", "bytes", self.len, dst.len())?;
        self.done.synchronize().map_err(driver("read"))?;
        if let Some(pinned) = &mut self.pinned {
            dst.copy_from_slice(pinned.slice(dst.len()));
        }
        Ok(())
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        let Some(pinned) = self.pinned.take() else { return };
        if self.done.synchronize().is_err() {
            std::mem::forget(pinned); // the context is lost, and nothing says when the copy ends
            return;
        }
        let mut unused = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
        if unused.iter().map(|pinned| pinned.len).sum::<usize>() + pinned.len <= KEPT {
            unused.push(pinned);
        }
    }
}
