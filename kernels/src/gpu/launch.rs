//! What a device is asked to run.

use super::{Device, GpuBuf};
use crate::backend::{Element, Mat, MatMut};
use crate::error::{Error, Result};
use std::hash::{Hash, Hasher};

/// Most arguments of a kernel.
pub const MAX_ARGS: usize = 32;
/// Most threads of a block.
const MAX_THREADS: u64 = 1024;
/// Most blocks in the second and third direction.
const MAX_BLOCKS_YZ: u32 = 65_535;

/// One argument of a kernel, by value; equal when the bytes are.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// A device address; zero is the null pointer.
    Pointer(u64),
    /// `int`.
    I32(i32),
    /// `unsigned`.
    U32(u32),
    /// `float`.
    F32(f32),
    /// `unsigned long long`.
    U64(u64),
}

/// A kernel with geometry and arguments, all of its state: a recorded launch can be repeated elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Name of the source, `kernels/cu/<module>.cu`.
    pub module: &'static str,
    /// Name of the `extern "C"` entry.
    pub kernel: &'a str,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Arguments in the order of the entry's parameters.
    pub args: &'a [Arg],
}

impl Arg {
    /// Bytes of the parameter.
    pub fn size(self) -> usize {
        match self {
            Self::Pointer(_) | Self::U64(_) => 8,
            Self::I32(_) | Self::U32(_) | Self::F32(_) => 4,
        }
    }

    /// The parameter's bytes in the low end of a word; in little-endian memory the word's address is
    /// the parameter's.
    pub fn bits(self) -> u64 {
        match self {
            Self::Pointer(v) | Self::U64(v) => v,
            Self::I32(v) => u64::from(v.cast_unsigned()),
            Self::U32(v) => u64::from(v),
            Self::F32(v) => u64::from(v.to_bits()),
        }
    }
}

impl PartialEq for Arg {
    fn eq(&self, other: &Self) -> bool {
        let kind = std::mem::discriminant::<Self>;
        (kind(self), self.bits()) == (kind(other), other.bits())
    }
}

impl Eq for Arg {}

impl Hash for Arg {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        self.bits().hash(state);
    }
}

impl From<i32> for Arg {
    fn from(v: i32) -> Self {
        Self::I32(v)
    }
}

impl From<u32> for Arg {
    fn from(v: u32) -> Self {
        Self::U32(v)
    }
}

impl From<f32> for Arg {
    fn from(v: f32) -> Self {
        Self::F32(v)
    }
}

impl From<u64> for Arg {
    fn from(v: u64) -> Self {
        Self::U64(v)
    }
}

impl From<bool> for Arg {
    /// As `unsigned` 0 or 1.
    fn from(v: bool) -> Self {
        Self::U32(v.into())
    }
}

impl Launch<'_> {
    /// Refuses a geometry or arguments that no CUDA device takes.
    pub(super) fn check(&self) -> Result<()> {
        let threads: u64 = self.block.iter().map(|&n| u64::from(n)).product();
        let fits = (1..=MAX_THREADS).contains(&threads)
            && self.grid[0] <= i32::MAX.cast_unsigned()
            && self.grid[1..].iter().all(|&n| n <= MAX_BLOCKS_YZ)
            && self.args.len() <= MAX_ARGS;
        if fits {
            return Ok(());
        }
        let (grid, block, count) = (self.grid, self.block, self.args.len());
        let what = format!("{}: grid {grid:?}, block {block:?}, {count} arguments", self.kernel);
        Err(Error::Backend { op: self.module, what })
    }
}

/// The argument that points at a window's first element; its stride is an argument of its own.
pub fn window<D: Device, T: Element>(mat: &Mat<'_, GpuBuf<D, T>>) -> Arg {
    mat.buf.arg_at(mat.start)
}

/// As [`window`], of a window that is written.
pub fn window_mut<D: Device, T: Element>(mat: &MatMut<'_, GpuBuf<D, T>>) -> Arg {
    mat.buf.arg_at(mat.start)
}

/// A count (rows, width, stride) as the kernels take it: 31 bits, so that device code may use `int`.
///
/// # Errors
/// [`Error::Backend`] when it is larger.
pub fn extent(op: &'static str, what: &'static str, n: usize) -> Result<u32> {
    match u32::try_from(n) {
        Ok(n) if i32::try_from(n).is_ok() => Ok(n),
        _ => Err(Error::Backend { op, what: format!("{what} {n} exceeds the device's 31 bits") }),
    }
}

/// Blocks that cover `n` with `per_block` each.
pub fn blocks(n: u32, per_block: u32) -> u32 {
    n.div_ceil(per_block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_is_its_bytes() {
        let bytes = |arg: Arg| arg.bits().to_le_bytes()[..arg.size()].to_vec();
        assert_eq!(bytes(Arg::from(-2i32)), (-2i32).to_le_bytes());
        assert_eq!(bytes(Arg::from(7u32)), 7u32.to_le_bytes());
        assert_eq!(bytes(Arg::from(-0.5f32)), (-0.5f32).to_le_bytes());
        assert_eq!(bytes(Arg::Pointer(1 << 40)), (1u64 << 40).to_le_bytes());
        assert_eq!(bytes(Arg::from(u64::MAX)), u64::MAX.to_le_bytes());
        assert_eq!(bytes(Arg::from(true)), 1u32.to_le_bytes());
    }

    #[test]
    fn what_no_device_takes_is_refused() {
        let ok = Launch {
            module: "norm",
            kernel: "k",
            grid: [1, 1, 1],
            block: [256, 1, 1],
            shared: 0,
            args: &[],
        };
        assert_eq!(ok.check(), Ok(()));
        let args = [Arg::U32(0); MAX_ARGS + 1];
        for bad in [
            Launch { block: [1025, 1, 1], ..ok },
            Launch { block: [32, 0, 1], ..ok },
            Launch { block: [u32::MAX, u32::MAX, 1], ..ok },
            Launch { grid: [1 << 31, 1, 1], ..ok },
            Launch { grid: [1, 65_536, 1], ..ok },
            Launch { args: &args, ..ok },
        ] {
            assert!(matches!(bad.check(), Err(Error::Backend { op: "norm", .. })), "{bad:?}");
        }
        assert_eq!(extent("op", "rows", (1 << 31) - 1), Ok((1 << 31) - 1));
        assert!(extent("op", "rows", 1 << 31).is_err());
    }
}
