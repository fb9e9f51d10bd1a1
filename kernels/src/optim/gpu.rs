//! AdamW on a GPU: four launches over all due slots, planned by the device itself. Device code: `cu/optim.cu`; figures:
//! `docs/kernels/optim.md`. Updates that are out of order or outside the slabs are refused by the next read
//! ([`crate::gpu::refusal`]); such a call changes nothing.

use super::{AdamW, Optim};
use crate::backend::Buffer;
use crate::error::Result;
use crate::gpu::{Arg, Device, Gpu, Launch, extent};

/// Elements of a piece, the unit of the norm's order and of a block's work (`cu/optim.cu`).
const PIECE: usize = 4096;
/// Most blocks of the launches that walk the pieces; enough to fill any device several times over.
const MAX_BLOCKS: usize = 4096;
/// Bytes of the numbers of a slot's step on the device.
const FACTORS: usize = 32;

impl<D: Device> Optim for Gpu<D> {
    fn adamw(&self, args: AdamW<'_, Self>) -> Result<()> {
        args.check()?;
        let (op, AdamW { updates, num_updates, params, grads, m, v, norms }) = ("adamw", args);
        if num_updates == 0 {
            return Ok(());
        }
        // The slots do not overlap: each adds at most one piece that is not full.
        let pieces = params.len() / PIECE + num_updates;
        extent(op, "pieces", pieces)?;
        let slots = extent(op, "updates", num_updates)?;
        let work = self.workspace([
            (num_updates + 2) * size_of::<u32>(),
            num_updates * FACTORS,
            pieces * size_of::<f64>(),
        ])?;
        let [begins, factors, sums] = [0, 1, 2].map(|piece| work.arg(piece));
        let step = |kernel: &str, blocks: u32, threads: u32, args: &[Arg]| {
            let (grid, block) = ([blocks, 1, 1], [threads, 1, 1]);
            self.launch(Launch { module: "optim", kernel, grid, block, shared: 0, args })
        };
        let (updates, slots_arg) = (updates.arg(), Arg::from(slots));
        let walkers = extent(op, "blocks", pieces.min(MAX_BLOCKS))?;
        let slab = Arg::from(params.len() as u64);
        step("optim_plan", 1, 1024, &[updates, slots_arg, slab, begins, self.refusal()])?;
        step("optim_squares", walkers, 256, &[updates, slots_arg, begins, grads.arg(), sums])?;
        let norms = norms.arg();
        step("optim_norms", slots, 128, &[updates, slots_arg, begins, sums, norms, factors])?;
        let slabs = [params.arg(), grads.arg(), m.arg(), v.arg()];
        let [params, grads, m, v] = slabs;
        let args = [updates, slots_arg, begins, factors, norms, params, grads, m, v];
        step("optim_update", walkers, 256, &args)
    }
}
