//! The CPU backend: `f32` activations in plain vectors, rayon inside a rank.
//!
//! Every operation's result is independent of the number of threads: work is split into tasks whose
//! outputs do not overlap, and each output element has one fixed order of additions.

use crate::backend::{Backend, Buffer, Element};
use crate::error::{Error, Result, check_len};
use std::ops::{Deref, DerefMut};

/// The host's processors and memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu;

/// Host memory of `T`.
#[derive(Debug, Clone)]
pub struct CpuBuf<T>(Vec<T>);

impl<T> Deref for CpuBuf<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for CpuBuf<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T> From<Vec<T>> for CpuBuf<T> {
    fn from(v: Vec<T>) -> Self {
        Self(v)
    }
}

impl<T: Element> Buffer for CpuBuf<T> {
    fn len(&self) -> usize {
        self.0.len()
    }
}

impl Backend for Cpu {
    type Act = f32;
    type Buf<T: Element> = CpuBuf<T>;

    fn alloc<T: Element>(&self, len: usize) -> Result<CpuBuf<T>> {
        let mut v: Vec<T> = Vec::new();
        v.try_reserve_exact(len).map_err(|e| Error::Backend {
            op: "alloc",
            what: format!("{len} elements of {} bytes: {e}", size_of::<T>()),
        })?;
        v.resize(len, T::zeroed());
        Ok(CpuBuf(v))
    }

    fn write<T: Element>(&self, dst: &mut CpuBuf<T>, offset: usize, src: &[T]) -> Result<()> {
        check_len("write", "dst", offset + src.len(), dst.len())?;
        dst[offset..offset + src.len()].copy_from_slice(src);
        Ok(())
    }

    fn read<T: Element>(&self, src: &CpuBuf<T>, offset: usize, dst: &mut [T]) -> Result<()> {
        check_len("read", "src", offset + dst.len(), src.len())?;
        dst.copy_from_slice(&src[offset..offset + dst.len()]);
        Ok(())
    }

    fn zero<T: Element>(&self, dst: &mut CpuBuf<T>, offset: usize, len: usize) -> Result<()> {
        check_len("zero", "dst", offset + len, dst.len())?;
        dst[offset..offset + len].fill(T::zeroed());
        Ok(())
    }
}

/// Rows of one task of a row-wise operation: enough to outweigh the cost of a task.
pub(crate) const ROWS_PER_TASK: usize = 16;

/// The `rows` rows of a window in parallel pieces of [`ROWS_PER_TASK`] rows; the last row of all may be
/// shorter than the stride, but not than the operation's width.
pub(crate) fn rows_mut(
    buf: &mut [f32],
    (start, stride): (usize, usize),
    rows: usize,
) -> impl rayon::iter::IndexedParallelIterator<Item = &mut [f32]> {
    use rayon::slice::ParallelSliceMut;
    let window = if rows == 0 {
        &mut []
    } else {
        let end = buf.len().min(start + rows * stride);
        &mut buf[start..end]
    };
    window.par_chunks_mut((ROWS_PER_TASK * stride).max(1))
}

/// The vector instructions the operations use on this machine; results do not depend on them.
pub fn vector_instructions() -> &'static str {
    match pulp::Arch::new() {
        pulp::Arch::V4(_) => "AVX-512",
        pulp::Arch::V3(_) => "AVX2 and FMA",
        _ => "portable",
    }
}
