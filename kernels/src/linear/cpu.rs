//! Frozen products on the host's processors.
//!
//! Owns the prepared form of a weight: panels of [`PANEL`] columns, once along the outputs for the
//! forward, once along the inputs for the backward, the last panel of each padded with zeros. The
//! arithmetic is in `tile.rs`, the blocking and the threads in `product.rs`. Never copies a weight: it is
//! read where the storage has it, which may be a mapped file. Start at the `impl Linear for Cpu`.
//!
//! The value of an element is, bit for bit, on every processor and for any number of rows or threads:
//! forward, the chain `s = fma(x[k], w[k, o], s)` from `s = 0` over `k = 0..d` ascending, then
//! `(s + bias[o]) + residual[o]`; backward, the same chain over the outputs, from `0` or from what `dX`
//! holds. So `+=` of two backward products equals one product with the weights side by side.

use super::operand::{Left, Right, Rows};
use super::product::Product;
use super::tile::PANEL;
use super::{Backward, Forward, HostStorage, Layout, Linear, Shape, check_prepare};
use crate::cpu::Cpu;
use crate::error::{Error, Result, check_len};
use pulp::Arch;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// A prepared weight: inside a host storage, or in memory of its own where it trains.
#[derive(Clone)]
pub struct CpuWeight {
    shape: Shape,
    memory: Memory,
}

#[derive(Clone)]
enum Memory {
    /// From this element of a storage on.
    Storage(HostStorage, usize),
    /// This weight's alone.
    Own(Lines),
}

impl std::fmt::Debug for CpuWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("CpuWeight");
        f.field("shape", &self.shape);
        if let Memory::Storage(_, offset) = &self.memory {
            f.field("offset", offset);
        }
        f.finish_non_exhaustive()
    }
}

/// Elements of the panels of a matrix of `k` rows and `columns` columns.
const fn panels_len(k: usize, columns: usize) -> usize {
    columns.div_ceil(PANEL) * PANEL * k
}

impl CpuWeight {
    /// The forward panels and the backward panels.
    fn panels(&self, op: &'static str) -> Result<[&[[f32; PANEL]]; 2]> {
        let Shape { in_dim: d, out_dim: n } = self.shape;
        let (all, offset) = match &self.memory {
            Memory::Storage(storage, offset) => ((**storage).as_ref(), *offset),
            Memory::Own(lines) => (lines.as_ref(), 0),
        };
        let (forward, backward) = (panels_len(d, n), panels_len(n, d));
        let expected = offset + forward + backward;
        let too_short = || Error::Length { op, what: "storage", expected, got: all.len() };
        let mine = all.get(offset..expected).ok_or_else(too_short)?;
        let (forward, backward) = mine.split_at(forward);
        Ok([forward.as_chunks().0, backward.as_chunks().0])
    }
}

/// Owned host memory of `len` elements, filled by `fill`, whose first element lies on a cache line.
///
/// Products read a prepared weight fastest when its first element lies so: keep offsets in a storage
/// or a file multiples of 16 elements.
pub fn aligned_storage(len: usize, fill: impl FnOnce(&mut [f32])) -> HostStorage {
    let mut lines = Lines { lines: vec![Line([0.0; 16]); len.div_ceil(16)], len };
    fill(lines.as_mut());
    Arc::new(lines)
}

/// A cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([f32; 16]);

#[derive(Clone)]
struct Lines {
    lines: Vec<Line>,
    len: usize,
}

impl Lines {
    /// `len` zeros.
    fn zeros(op: &'static str, len: usize) -> Result<Self> {
        let mut lines = Vec::new();
        lines
            .try_reserve_exact(len.div_ceil(16))
            .map_err(|e| Error::Backend { op, what: format!("{len} elements of 4 bytes: {e}") })?;
        lines.resize(len.div_ceil(16), Line([0.0; 16]));
        Ok(Self { lines, len })
    }
}

impl AsRef<[f32]> for Lines {
    fn as_ref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl AsMut<[f32]> for Lines {
    fn as_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

/// Writes the panels of a matrix of `k` rows whose element (row, column) is `at(row, column)`.
fn pack(dst: &mut [f32], k: usize, columns: usize, at: impl Fn(usize, usize) -> f32 + Sync) {
    let (rows, _) = dst.as_chunks_mut::<PANEL>();
    rows.par_chunks_mut(k.max(1)).enumerate().for_each(|(panel, rows)| {
        for (row, values) in rows.iter_mut().enumerate() {
            for (column, value) in (panel * PANEL..).zip(values) {
                *value = if column < columns { at(row, column) } else { 0.0 };
            }
        }
    });
}

impl Linear for Cpu {
    type Weight = CpuWeight;

    fn prepared_form(&self) -> &'static str {
        "f32-panels32-both"
    }

    fn prepared_len(&self, Shape { in_dim: d, out_dim: n }: Shape) -> usize {
        panels_len(d, n) + panels_len(n, d)
    }

    fn prepare(&self, shape: Shape, layout: Layout, src: &[f32], dst: &mut [f32]) -> Result<()> {
        let Shape { in_dim: d, out_dim: n } = shape;
        check_prepare("prepare", (d * n, src.len()), (self.prepared_len(shape), dst.len()))?;
        let (forward, backward) = dst.split_at_mut(panels_len(d, n));
        let backward = &mut backward[..panels_len(n, d)];
        match layout {
            Layout::OutIn => {
                pack(forward, d, n, |i, o| src[o * d + i]);
                pack(backward, n, d, |o, i| src[o * d + i]);
            }
            Layout::InOut => {
                pack(forward, d, n, |i, o| src[i * n + o]);
                pack(backward, n, d, |o, i| src[i * n + o]);
            }
        }
        Ok(())
    }

    fn unprepare(&self, shape: Shape, layout: Layout, src: &[f32], dst: &mut [f32]) -> Result<()> {
        let Shape { in_dim: d, out_dim: n } = shape;
        check_prepare("unprepare", (d * n, dst.len()), (self.prepared_len(shape), src.len()))?;
        let at = |i: usize, o: usize| src[(o / PANEL * d + i) * PANEL + o % PANEL];
        let (width, by_output) = match layout {
            Layout::OutIn => (d, true),
            Layout::InOut => (n, false),
        };
        dst.par_chunks_mut(width.max(1)).enumerate().for_each(|(row, values)| {
            for (column, value) in values.iter_mut().enumerate() {
                *value = if by_output { at(column, row) } else { at(row, column) };
            }
        });
        Ok(())
    }

    fn weight(&self, shape: Shape, storage: &HostStorage, offset: usize) -> Result<CpuWeight> {
        let end = offset.saturating_add(self.prepared_len(shape));
        check_len("weight", "storage", end, (**storage).as_ref().len())?;
        Ok(CpuWeight { shape, memory: Memory::Storage(storage.clone(), offset) })
    }

    fn shape(&self, weight: &CpuWeight) -> Shape {
        weight.shape
    }

    fn linear_forward(&self, args: Forward<'_, Self>) -> Result<()> {
        let Shape { in_dim: d, out_dim: n } = args.weight.shape;
        args.check(args.weight.shape)?;
        let [w, _] = args.weight.panels("linear_forward")?;
        let product = Product {
            x: Left::AsIs(Rows { data: args.x.buf, start: args.x.start, stride: args.x.stride }),
            w: Right::Panels { w, pitch: d },
            rows: args.rows,
            k: d,
            n,
            accumulate: false,
            bias: args.bias.map(|b| &b[..]),
            residual: args.residual.map(|r| Rows { data: r.buf, start: r.start, stride: r.stride }),
        };
        if args.rows > 0 {
            product.run(Arch::new(), &mut args.y.buf[args.y.start..], args.y.stride);
        }
        Ok(())
    }

    fn linear_backward(&self, args: Backward<'_, Self>) -> Result<()> {
        let Shape { in_dim: d, out_dim: n } = args.weight.shape;
        args.check(args.weight.shape)?;
        let [_, w] = args.weight.panels("linear_backward")?;
        let product = Product {
            x: Left::AsIs(Rows { data: args.dy.buf, start: args.dy.start, stride: args.dy.stride }),
            w: Right::Panels { w, pitch: n },
            rows: args.rows,
            k: n,
            n: d,
            accumulate: args.accumulate,
            bias: None,
            residual: None,
        };
        if args.rows > 0 {
            product.run(Arch::new(), &mut args.dx.buf[args.dx.start..], args.dx.stride);
        }
        Ok(())
    }
}

impl CpuWeight {
    /// Zeros in memory of its own.
    pub(super) fn own(op: &'static str, shape: Shape) -> Result<Self> {
        let lines = Lines::zeros(op, Cpu.prepared_len(shape))?;
        Ok(Self { shape, memory: Memory::Own(lines) })
    }

    /// Its own memory, forward panels, then backward panels; nothing for one inside a storage.
    pub(super) fn own_panels(&mut self) -> Option<(Shape, [&mut [[f32; PANEL]]; 2])> {
        let Memory::Own(lines) = &mut self.memory else { return None };
        let Shape { in_dim: d, out_dim: n } = self.shape;
        let (forward, backward) = lines.as_mut().split_at_mut(panels_len(d, n));
        Some((self.shape, [forward.as_chunks_mut().0, backward.as_chunks_mut().0]))
    }
}

/// A weight opened for the head and the embedding, which take some of its outputs at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outputs<'a> {
    shape: Shape,
    forward: &'a [[f32; PANEL]],
    backward: &'a [[f32; PANEL]],
}

impl CpuWeight {
    /// Opens it.
    pub(crate) fn outputs(&self, op: &'static str) -> Result<Outputs<'_>> {
        let [forward, backward] = self.panels(op)?;
        Ok(Outputs { shape: self.shape, forward, backward })
    }
}

impl Outputs<'_> {
    /// `Y [rows, columns] = X·W[.., columns]` on this thread; `columns` begin at a panel.
    pub(crate) fn forward(
        &self,
        x: Rows<'_>,
        (rows, columns): (usize, Range<usize>),
        (y, stride): (&mut [f32], usize),
    ) {
        let (k, n) = (self.shape.in_dim, columns.len());
        let (x, w) = (Left::AsIs(x), &self.forward[columns.start / PANEL * k..]);
        let w = Right::Panels { w, pitch: k };
        let product = Product { x, w, rows, k, n, accumulate: false, bias: None, residual: None };
        product.run_here(Arch::new(), y, stride);
    }

    /// `dX [rows, d] += dY [rows, columns]·W[.., columns]ᵀ` on this thread.
    pub(crate) fn backward(
        &self,
        dy: Rows<'_>,
        (rows, columns): (usize, Range<usize>),
        (dx, stride): (&mut [f32], usize),
    ) {
        let product = Product {
            x: Left::AsIs(dy),
            w: Right::Panels { w: &self.backward[columns.start..], pitch: self.shape.out_dim },
            rows,
            k: columns.len(),
            n: self.shape.in_dim,
            accumulate: true,
            bias: None,
            residual: None,
        };
        product.run_here(Arch::new(), dx, stride);
    }

    /// Pieces of column `output` of `W`, in the order of the inputs; all but the last are whole panels.
    pub(crate) fn column(&self, output: usize) -> impl Iterator<Item = &[f32]> {
        let Shape { in_dim, out_dim } = self.shape;
        (0..in_dim)
            .step_by(PANEL)
            .map(move |i| &self.backward[i / PANEL * out_dim + output][..PANEL.min(in_dim - i)])
    }
}
