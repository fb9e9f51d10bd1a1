//! The ordered sum of gradients that lie in one slab, on the computing stream: what a rank alone needs of
//! [`crate::nccl`].

use super::{Arg, Device, Gpu, GpuBuf, Launch};
use crate::backend::Buffer;
use crate::error::{Error, Result, check_len};
use crate::nccl::{SUM_KERNEL, SUM_PARTS};

const OP: &str = "sum_shards";
/// Threads of a block, and elements that a thread takes at a time.
const BLOCK: u32 = 256;
const EACH: u64 = 4;
/// Most blocks of a launch; each then takes several pieces.
const MAX_BLOCKS: u64 = 1 << 16;

impl<D: Device> Gpu<D> {
    /// `slab[total + i] = ((slab[s₀ + i] + slab[s₁ + i]) + slab[s₂ + i]) + …` for `i < len`, in f32 and in the order of
    /// `shards`, which are first elements; without shards zero. *Writes* `=`.
    ///
    /// # Errors
    /// [`Error::Length`] when a range leaves the slab, [`Error::Routing`] when a shard overlaps the sum.
    pub fn sum_shards(
        &self,
        slab: &mut GpuBuf<D, f32>,
        total: usize,
        shards: &[usize],
        len: usize,
    ) -> Result<()> {
        check_len(OP, "total", total.saturating_add(len), slab.len())?;
        for (i, &shard) in shards.iter().enumerate() {
            check_len(OP, "a shard", shard.saturating_add(len), slab.len())?;
            if shard.abs_diff(total) < len {
                let what = format!("shard {i} at {shard} overlaps the sum at {total}");
                return Err(Error::Routing { op: OP, what });
            }
        }
        if len == 0 || shards.is_empty() {
            return crate::Backend::zero(self, slab, total, len);
        }
        let blocks = (len as u64).div_ceil(u64::from(BLOCK) * EACH).clamp(1, MAX_BLOCKS);
        let grid = [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1];
        for (piece, shards) in shards.chunks(SUM_PARTS).enumerate() {
            let num_parts = u32::try_from(shards.len()).unwrap_or(u32::MAX);
            let mut args = vec![
                slab.arg_at(total),
                Arg::U32(num_parts),
                Arg::from(piece > 0),
                Arg::U64(len as u64),
            ];
            args.extend(shards.iter().map(|&shard| slab.arg_at(shard)));
            args.resize(4 + SUM_PARTS, Arg::Pointer(0));
            self.launch(Launch {
                module: "shards",
                kernel: SUM_KERNEL,
                grid,
                block: [BLOCK, 1, 1],
                shared: 0,
                args: &args,
            })?;
        }
        Ok(())
    }
}
