//! Buffers of a step, planned once for a number of rows and reused by every step.
//!
//! Per block are kept: its input, `[q|k|v]` (rotated, adapted), attention output and log-sum-exp, the
//! stream after attention, and the MLP's input products. Norm outputs and the MLP's hidden rows are
//! recomputed in the backward. Blocks that are not stored keep their input alone and are run again. Blocks that no
//! backward reaches keep nothing: they take turns in two streams and share one set of buffers.

use super::Result;
use super::network::Dims;
use super::spec::BaseSpec;
use kernels::loss::Loss;
use kernels::{Backend, Ops};

/// How many rows a step may have, and how many blocks keep their activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSize {
    /// Rows of a pack.
    pub rows: usize,
    /// The first so many blocks that a backward reaches are stored, the others recomputed. Zero for forward-only steps.
    pub stored_blocks: usize,
    /// Whether a backward will run; without it one set of buffers serves all blocks.
    pub backward: bool,
}

/// What one block keeps.
#[derive(Debug)]
pub(super) struct BlockActs<B: Backend> {
    pub(super) qkv: B::Buf<B::Act>,
    pub(super) attention: B::Buf<B::Act>,
    pub(super) lse: B::Buf<f32>,
    pub(super) middle: B::Buf<B::Act>,
    pub(super) mlp_in: B::Buf<B::Act>,
}

/// What the last block keeps: keys and values of all rows, the rest of the output rows alone.
#[derive(Debug)]
pub(super) struct LastActs<B: Backend> {
    pub(super) qkv: B::Buf<B::Act>,
    pub(super) q: B::Buf<B::Act>,
    pub(super) input: B::Buf<B::Act>,
    pub(super) acts: BlockActs<B>,
    pub(super) output: B::Buf<B::Act>,
}

/// Rows that no block keeps.
#[derive(Debug)]
pub(super) struct Scratch<B: Backend> {
    pub(super) normed: B::Buf<B::Act>,
    pub(super) gathered: B::Buf<B::Act>,
    pub(super) hidden: B::Buf<B::Act>,
    pub(super) losses: B::Buf<f32>,
    pub(super) head_work: B::Buf<f32>,
}

/// Gradients of activations.
#[derive(Debug)]
pub(super) struct Gradients<B: Backend> {
    pub(super) stream: B::Buf<B::Act>,
    pub(super) stream_outputs: B::Buf<B::Act>,
    pub(super) normed: B::Buf<B::Act>,
    pub(super) normed_outputs: B::Buf<B::Act>,
    /// `[dQ | dK | dV]`, where adapters of all three read it at once; in the last block without `dQ`.
    pub(super) qkv: B::Buf<B::Act>,
    /// `dQ` of the output rows, which alone have queries in the last block.
    pub(super) q_outputs: B::Buf<B::Act>,
    pub(super) attention: B::Buf<B::Act>,
    pub(super) mlp_in: B::Buf<B::Act>,
    pub(super) hidden: B::Buf<B::Act>,
}

/// All buffers of a step.
#[derive(Debug)]
pub struct Activations<B: Backend> {
    pub(super) plan: Plan,
    pub(super) inputs: Vec<B::Buf<B::Act>>,
    pub(super) blocks: Vec<BlockActs<B>>,
    pub(super) last: LastActs<B>,
    pub(super) scratch: Scratch<B>,
    pub(super) gradients: Option<Gradients<B>>,
}

impl<B: Ops> Activations<B> {
    /// Allocates what [`Activations::bytes`] says.
    ///
    /// # Errors
    /// When the backend has no memory.
    pub(super) fn alloc(backend: &B, spec: &BaseSpec, plan: Plan) -> Result<Self> {
        let (size, d, heads) = (plan.size, Dims::new(spec), spec.heads);
        let t = size.rows;
        let act = |n: usize| backend.alloc::<B::Act>(t * n);
        let block = || -> Result<BlockActs<B>> {
            Ok(BlockActs {
                qkv: act(d.qkv)?,
                attention: act(d.q)?,
                lse: backend.alloc(t * heads)?,
                middle: act(d.hidden)?,
                mlp_in: act(d.mlp_in)?,
            })
        };
        let last = BlockActs {
            qkv: backend.alloc(0)?,
            attention: act(d.q)?,
            lse: backend.alloc(t * heads)?,
            middle: act(d.hidden)?,
            mlp_in: act(d.mlp_in)?,
        };
        let gradients = if size.backward {
            Some(Gradients {
                stream: act(d.hidden)?,
                stream_outputs: act(d.hidden)?,
                normed: act(d.hidden)?,
                normed_outputs: act(d.hidden)?,
                qkv: act(d.qkv)?,
                q_outputs: act(d.q)?,
                attention: act(d.q)?,
                mlp_in: act(d.mlp_in)?,
                hidden: act(d.mlp)?,
            })
        } else {
            None
        };
        Ok(Self {
            plan,
            inputs: (0..plan.num_inputs())
                .map(|_| act(d.hidden))
                .collect::<kernels::Result<_>>()?,
            blocks: (0..plan.num_block_sets()).map(|_| block()).collect::<Result<_>>()?,
            last: LastActs {
                qkv: act(d.qkv)?,
                q: act(d.q)?,
                input: act(d.hidden)?,
                acts: last,
                output: act(d.hidden)?,
            },
            scratch: Scratch {
                normed: act(d.hidden)?,
                gathered: act(d.hidden)?,
                hidden: act(d.mlp)?,
                losses: backend.alloc(t)?,
                head_work: backend.alloc(backend.head_loss_workspace(t, d.hidden, d.vocab))?,
            },
            gradients,
        })
    }

    /// Bytes of all buffers, before anything is allocated.
    pub(super) fn bytes(backend: &impl Loss, spec: &BaseSpec, plan: Plan) -> usize {
        let size = plan.size;
        let (d, f32s, act) = (Dims::new(spec), size_of::<f32>(), size_of::<B::Act>());
        let block = (d.qkv + d.q + d.hidden + d.mlp_in) * act + spec.heads * f32s;
        let last = (d.qkv + 2 * d.q + 3 * d.hidden + d.mlp_in) * act + spec.heads * f32s;
        let scratch = (2 * d.hidden + d.mlp) * act + f32s;
        let gradients = (4 * d.hidden + d.qkv + 2 * d.q + d.mlp_in + d.mlp) * act;
        let per_row = plan.num_inputs() * d.hidden * act
            + plan.num_block_sets() * block
            + last
            + scratch
            + if size.backward { gradients } else { 0 };
        size.rows * per_row + backend.head_loss_workspace(size.rows, d.hidden, d.vocab) * f32s
    }
}

/// Which buffers each block uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) size: StepSize,
    /// Blocks.
    pub(super) layers: usize,
    /// The lowest so many are reached by no backward.
    pub(super) frozen: usize,
}

impl Plan {
    /// Streams that take turns below the lowest block that a backward reaches.
    fn turns(self) -> usize {
        self.frozen.min(2)
    }

    /// Streams kept: the input of every block that a backward reaches, and two taking turns for the others.
    fn num_inputs(self) -> usize {
        if self.size.backward { self.layers - self.frozen + self.turns() } else { 2 }
    }

    /// Sets of block buffers: the stored blocks, and one more for those that are run again or never looked at.
    fn num_block_sets(self) -> usize {
        let before_last = self.layers - 1;
        let reached = before_last.saturating_sub(self.frozen);
        let stored = if self.size.backward { self.size.stored_blocks.min(reached) } else { 0 };
        (stored + usize::from(stored < reached)).max(usize::from(before_last > 0))
    }

    /// Which input buffer block `layer` reads.
    pub(super) fn input(self, layer: usize) -> usize {
        match layer.checked_sub(self.frozen) {
            Some(above) if self.size.backward => self.turns() + above,
            _ => layer % 2,
        }
    }

    /// Which set of buffers block `layer` uses; those below have done with it when the lowest that a backward reaches
    /// takes it.
    pub(super) fn block_set(self, layer: usize) -> usize {
        let above = layer.saturating_sub(self.frozen);
        if self.size.backward { above.min(self.size.stored_blocks) } else { 0 }
    }

    /// Whether block `layer` must be run again before its backward.
    pub(super) fn recomputed(self, layer: usize) -> bool {
        layer.saturating_sub(self.frozen) >= self.size.stored_blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows a forward and a backward: what a backward reads is what the forward wrote last.
    #[test]
    fn no_buffer_is_taken_while_it_is_needed() {
        for (layers, frozen) in (1..7).flat_map(|l| (0..=l).map(move |f| (l, f))) {
            for stored_blocks in 0..=layers {
                let size = StepSize { rows: 1, stored_blocks, backward: true };
                let plan = Plan { size, layers, frozen };
                let mut inputs = vec![None; plan.num_inputs()];
                let mut sets = vec![None; plan.num_block_sets()];
                inputs[plan.input(0)] = Some(0);
                for layer in 0..layers - 1 {
                    assert_eq!(inputs[plan.input(layer)], Some(layer));
                    assert_ne!(plan.input(layer), plan.input(layer + 1));
                    inputs[plan.input(layer + 1)] = Some(layer + 1);
                    sets[plan.block_set(layer)] = Some(layer);
                }
                for layer in (frozen..layers).rev() {
                    assert_eq!(inputs[plan.input(layer)], Some(layer), "{plan:?}");
                    if layer + 1 == layers {
                        continue;
                    }
                    if plan.recomputed(layer) && layer + 2 < layers {
                        sets[plan.block_set(layer)] = Some(layer);
                    }
                    assert_eq!(sets[plan.block_set(layer)], Some(layer), "{plan:?}");
                }
                let reached = (layers - 1).saturating_sub(frozen);
                let kept = reached.min(stored_blocks + 1).max(usize::from(layers > 1));
                let streams = layers - frozen + frozen.min(2);
                assert_eq!((inputs.len(), sets.len()), (streams, kept), "{plan:?}");
            }
        }
    }
}
