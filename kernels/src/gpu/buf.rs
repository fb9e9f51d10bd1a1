//! Buffers of a device.

use super::{Arg, Device, Gpu};
use crate::backend::{Buffer, Element};
use crate::error::{Error, Result};
use std::fmt;
use std::marker::PhantomData;

/// `len` elements of `T` on a device; a buffer without elements has no memory and the address zero.
pub struct GpuBuf<D: Device, T> {
    memory: Option<D::Memory>,
    gpu: Gpu<D>,
    address: u64,
    len: usize,
    element: PhantomData<fn() -> T>,
}

impl<D: Device, T: Element> GpuBuf<D, T> {
    /// Zeroed memory for `len` elements.
    pub(super) fn alloc(gpu: &Gpu<D>, len: usize) -> Result<Self> {
        let device = &gpu.0.device;
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| Error::Backend {
            op: "alloc",
            what: format!("{len} elements of {} bytes", size_of::<T>()),
        })?;
        let memory = if bytes == 0 { None } else { Some(device.alloc(bytes)?) };
        let address = memory.as_ref().map_or(0, |memory| device.address(memory));
        Ok(Self { memory, gpu: gpu.clone(), address, len, element: PhantomData })
    }

    /// The argument that points at the first element.
    pub fn arg(&self) -> Arg {
        Arg::Pointer(self.address)
    }

    /// The argument that points at element `at`.
    pub fn arg_at(&self, at: usize) -> Arg {
        Arg::Pointer(self.address_at(at))
    }

    /// Device address of element `at`, which may be one past the end.
    pub fn address_at(&self, at: usize) -> u64 {
        self.address + (at * size_of::<T>()) as u64
    }

    /// The memory; none for an empty buffer.
    pub fn memory(&self) -> Option<&D::Memory> {
        self.memory.as_ref()
    }

    pub(super) fn length(&self) -> usize {
        self.len
    }
}

impl<D: Device, T> fmt::Debug for GpuBuf<D, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuBuf").field("memory", &self.memory).field("len", &self.len).finish()
    }
}

impl<D: Device, T> Drop for GpuBuf<D, T> {
    fn drop(&mut self) {
        if self.memory.is_some() {
            // Held-back work may name this memory.
            self.gpu.flush_later_told();
        }
    }
}

impl<D: Device, T: Element> Buffer for GpuBuf<D, T> {
    fn len(&self) -> usize {
        self.len
    }
}
