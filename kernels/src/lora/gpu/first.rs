//! Adapters before the product that is added to them: what begins `Y` and `dX`, and which rows a call begins.
//!
//! Owns the launches of `lora_expand_first_*` and `lora_input_first_*`, which write their output and do not read it.
//! Who calls what first is [`crate::adapted`]'s.

use super::plan::{EXPAND_FIRST, INPUT_FIRST, by_height, per_output, tile_rows};
use super::{Call, EXPAND_COLUMNS, EXPAND_THREADS, Group, PANEL_BYTES};
use crate::backend::{Mat, MatMut};
use crate::error::{Error, Result};
use crate::gpu::{Arg, Device, Gpu, GpuBuf, blocks, extent, window, window_mut};
use crate::lora::{Backward, Forward};
use half::bf16;

/// Ranges of columns with a bias of their own that one launch takes.
const MAX_BIASES: usize = 3;

/// Which rows a call begins: all, those outside its segments without adapters; or its segments' alone, where another
/// call has begun the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begins {
    AllRows,
    OwnRows,
}

/// What `Y` begins with beside the adapters' part; positions are elements of row 0 of `Y`.
#[derive(Debug)]
pub(crate) struct Start<'a, D: Device> {
    /// Neighbouring ranges by where they begin, and their biases.
    pub(crate) biases: Vec<(usize, Option<&'a GpuBuf<D, f32>>)>,
    /// The residual, and where its first column is added.
    pub(crate) residual: Option<(Mat<'a, GpuBuf<D, bf16>>, usize)>,
}

impl<D: Device> Start<'_, D> {
    /// The parameters after `whole`.
    fn args(&self, op: &'static str) -> Result<[Arg; 3 + 2 * MAX_BIASES]> {
        let mut args = [Arg::Pointer(0); 3 + 2 * MAX_BIASES];
        (args[1], args[2]) = (Arg::U32(0), Arg::U32(0));
        if let Some((residual, at)) = &self.residual {
            args[0] = window(residual);
            args[1] = extent(op, "residual stride", residual.stride)?.into();
            args[2] = extent(op, "y start", *at)?.into();
        }
        let mut biases: Vec<_> = self.biases.iter().collect();
        biases.sort_by_key(|(at, _)| *at);
        if biases.len() > MAX_BIASES {
            let what = format!("{} products of one input, {MAX_BIASES} are taken", biases.len());
            return Err(Error::Routing { op, what });
        }
        let (of, at) = args[3..].split_at_mut(MAX_BIASES);
        at.fill(Arg::U32(u32::MAX));
        for ((of, at), (begin, bias)) in of.iter_mut().zip(at).zip(biases) {
            *of = bias.map_or(Arg::Pointer(0), GpuBuf::arg);
            *at = extent(op, "y start", *begin)?.into();
        }
        Ok(args)
    }
}

impl<D: Device> Call<'_, D> {
    /// `Y = bias + residual + S'·Bᵀ`; `begun` are the `y_start` of the outputs whose other rows are there already.
    fn expand_first(
        &self,
        group: &Group,
        sums: Arg,
        y: (Arg, usize),
        (start, begun): (&Start<'_, D>, &[usize]),
    ) -> Result<()> {
        let pack = &self.pack;
        let height = tile_rows(pack.rows, pack.num_segments, 64);
        let there = |k: &u32| begun.contains(&(group.y_start[*k as usize] as usize));
        let whole = (0..group.len).filter(|k| !there(k)).fold(0u32, |bits, k| bits | 1 << k);
        let args = self
            .head
            .with(&[sums, group.len.into(), pack.params.arg()])
            .with(&per_output(group.b_unit))
            .with(&per_output(group.out_len))
            .with(&per_output(group.y_start))
            .with(&[y.0, self.stride("y stride", y.1)?, whole.into()])
            .with(&start.args(self.op)?);
        let grid = [self.slots(height)? + 1, blocks(group.longest(), EXPAND_COLUMNS), group.len];
        let kernel = ("lora_expand", by_height(height, EXPAND_FIRST));
        self.launch(kernel, grid, (EXPAND_THREADS, 0), args)
    }

    /// `dX = undrop(dS'·A)`.
    pub(super) fn input_first(
        &self,
        group: &Group,
        (masks, ds): (Arg, Arg),
        dx: &MatMut<'_, GpuBuf<D, bf16>>,
        begins: Begins,
    ) -> Result<()> {
        let pack = &self.pack;
        let height = tile_rows(pack.rows, pack.num_segments, 32);
        let args = self
            .head
            .with(&[ds, group.len.into(), pack.params.arg()])
            .with(&per_output(group.a_unit))
            .with(&[masks, self.words().into(), self.d.into()])
            .with(&[window_mut(dx), self.stride("dx stride", dx.stride)?])
            .with(&[(begins == Begins::AllRows).into()]);
        let grid = [self.slots(height)? + 1, blocks(self.d, EXPAND_COLUMNS), 1];
        let kernel = ("lora_expand", by_height(height, INPUT_FIRST));
        self.launch(kernel, grid, (EXPAND_THREADS, 0), args)
    }
}

impl<D: Device> Gpu<D> {
    /// `Y = bias + residual + scale · drop(X)·Aᵀ·B[outs]ᵀ` in the columns of the sites, rounded once; rows outside the
    /// segments `Y = bias + residual`, except in columns that `begun` says were begun (by the `y_start` of an output).
    pub(crate) fn lora_forward_first(
        &self,
        args: Forward<'_, Self>,
        start: &Start<'_, D>,
        begun: &[usize],
    ) -> Result<()> {
        self.lora_forward_by(args, |call, group, sums, y| {
            call.expand_first(group, sums, y, (start, begun))
        })
    }

    /// [`crate::lora::Lora::lora_backward`] with `dX` written `=` in the rows that it begins, zero outside the segments.
    pub(crate) fn lora_backward_first(
        &self,
        args: Backward<'_, Self>,
        begins: Begins,
    ) -> Result<()> {
        self.lora_backward_by(args, PANEL_BYTES, Some(begins))
    }
}
