//! [`Device`] on the emulator.

use crate::emulator::{Emulator, Memory};
use crate::error;
use kernels::backend::Coming;
use kernels::gpu::{Device, Flash, Launch, Product, Work};
use kernels::{Error, Result};
use std::sync::PoisonError;

fn refused(error: error::Error) -> Error {
    Error::Backend { op: "emulator", what: error.to_string() }
}

impl Device for Emulator {
    type Memory = Memory;

    fn alloc(&self, bytes: usize) -> Result<Memory> {
        let memory = self.alloc_poisoned(bytes).map_err(refused)?;
        self.zero(&memory, 0, bytes)?;
        Ok(memory)
    }

    fn address(&self, memory: &Memory) -> u64 {
        memory.address()
    }

    fn write(&self, dst: &Memory, offset: usize, src: &[u8]) -> Result<()> {
        let to = dst.range("write", offset, src.len()).map_err(refused)?;
        self.copies.overwritten(dst, offset..offset + src.len());
        // SAFETY: both ranges are valid for the length.
        unsafe { (self.runtime.write)(to, src.as_ptr(), src.len()) };
        Ok(())
    }

    fn read(&self, src: &Memory, offset: usize, dst: &mut [u8]) -> Result<()> {
        let from = src.range("read", offset, dst.len()).map_err(refused)?;
        // SAFETY: both ranges are valid for the length.
        unsafe { (self.runtime.read)(dst.as_mut_ptr(), from, dst.len(), 0) };
        Ok(())
    }

    fn zero(&self, dst: &Memory, offset: usize, len: usize) -> Result<()> {
        let to = dst.range("zero", offset, len).map_err(refused)?;
        self.copies.overwritten(dst, offset..offset + len);
        // SAFETY: the range lies in a live allocation; a null source means zeros.
        unsafe { (self.runtime.write)(to, std::ptr::null(), len) };
        Ok(())
    }

    fn copy(&self, dst: (&Memory, usize), src: (&Memory, usize), len: usize) -> Result<()> {
        let to = dst.0.range("copy", dst.1, len).map_err(refused)?;
        let from = src.0.range("copy", src.1, len).map_err(refused)?;
        self.copies.overwritten(dst.0, dst.1..dst.1 + len);
        // SAFETY: both ranges lie in live allocations.
        unsafe { (self.runtime.write)(to, from, len) };
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.run(launch).map_err(refused)
    }

    fn product(&self, product: &Product) -> Result<()> {
        self.multiply(product).map_err(refused)
    }

    fn has_flash(&self) -> bool {
        self.flash.is_some()
    }

    fn flash(&self, call: &Flash) -> Result<()> {
        self.attend(call).map_err(refused)
    }

    fn evict(&self, src: &Memory, offset: usize, len: usize) -> Result<Box<dyn Coming>> {
        src.range("evict", offset, len).map_err(refused)?;
        Ok(self.copies.begin(src, offset..offset + len))
    }

    fn capture(&self, number: u64, list: &[Work]) -> Result<bool> {
        let mut graphs = self.graphs.lock().unwrap_or_else(PoisonError::into_inner);
        graphs.insert(number, list.to_vec());
        Ok(true)
    }

    /// The list again, as it was when it was captured.
    fn replay(&self, number: u64) -> Result<()> {
        let graphs = self.graphs.lock().unwrap_or_else(PoisonError::into_inner);
        let list = graphs.get(&number).ok_or_else(|| Error::Backend {
            op: "replay",
            what: format!("there is no graph {number}"),
        })?;
        list.iter().try_for_each(|work| work.queue(self))
    }

    fn forget(&self, number: u64) -> Result<()> {
        self.graphs.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        Ok(())
    }
}
