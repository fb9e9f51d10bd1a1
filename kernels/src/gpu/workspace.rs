//! Scratch memory that the operations share, one at a time.

use super::{Arg, Device, Gpu};
use crate::backend::Backend;
use crate::error::{Error, Result};
use std::sync::{MutexGuard, PoisonError};

/// Alignment of each piece.
const ALIGN: usize = 256;

/// Scratch memory in `N` pieces; given back when dropped, which may be before the queued work has run:
/// the stream keeps the order.
#[derive(Debug)]
pub struct Workspace<'a, D: Device, const N: usize> {
    addresses: [u64; N],
    /// Keeps other calls out.
    _held: MutexGuard<'a, Option<(D::Memory, usize)>>,
}

impl<'a, D: Device, const N: usize> Workspace<'a, D, N> {
    pub(super) fn take(gpu: &'a Gpu<D>, bytes: [usize; N]) -> Result<Self> {
        let (device, scratch) = (&gpu.0.device, &gpu.0.scratch);
        let mut offsets = [0; N];
        let mut total = 0usize;
        for (offset, bytes) in offsets.iter_mut().zip(bytes) {
            *offset = total;
            total = bytes
                .checked_next_multiple_of(ALIGN)
                .and_then(|bytes| total.checked_add(bytes))
                .ok_or_else(|| Error::Backend {
                    op: "workspace",
                    what: format!("{bytes} bytes"),
                })?;
        }
        // A thread that died while holding it left no state behind: the content is undefined anyway.
        let mut held = scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if total > 0 && held.as_ref().is_none_or(|(_, there)| *there < total) {
            gpu.flush()?; // what is held back still uses the old memory
            *held = None; // frees it before the new is taken
            *held = Some((device.alloc(total)?, total));
        }
        let base = held.as_ref().map_or(0, |(memory, _)| device.address(memory));
        let addresses = offsets.map(|offset| base + offset as u64);
        Ok(Self { addresses, _held: held })
    }

    /// Device addresses of the pieces.
    pub fn addresses(&self) -> [u64; N] {
        self.addresses
    }

    /// The argument that points at piece `i`.
    pub fn arg(&self, i: usize) -> Arg {
        Arg::Pointer(self.addresses[i])
    }
}
