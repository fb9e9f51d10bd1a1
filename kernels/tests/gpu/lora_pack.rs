//! Packs for the tests of grouped LoRA on a GPU.
//!
//! Owns [`Pack`]: segments, adapters in the slab in another order than the rows with marks between them, windows
//! of `X` and `dX` anywhere in their buffers, the outputs of several sites beside one another in `Y`. It runs both
//! directions on any backend. Start at [`Pack::new`].

use crate::harness::{Subject, Window, rounded};
use crate::naive::{download, numbers, upload};
use kernels::Error;
use kernels::backend::{Mat, MatMut};
use kernels::lora::{Backward, Forward, Lora, Segment, Site, SiteOutput};

/// Elements between the adapters of a slab, to see that nothing is written there; odd, so that adapters begin
/// anywhere.
const GAP: usize = 3;

/// How numbers are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Draw {
    /// `-1`, `0` and `1`, scales and `1 / (1 - p)` powers of two: every sum is exact, whatever its order.
    Whole,
    /// Uniform in `[-1, 1)`.
    Real,
}

/// A segment as `(rows, lora_rank, dropout)`.
pub(crate) type Rows = (usize, usize, f32);

#[derive(Debug, Clone)]
pub(crate) struct Pack {
    pub(crate) x_window: Window,
    pub(crate) sites: Vec<SiteOutput>,
    pub(crate) y_stride: usize,
    pub(crate) segments: Vec<Segment>,
    pub(crate) row_token: Vec<u32>,
    pub(crate) params: Vec<f32>,
    pub(crate) x: Vec<f32>,
    pub(crate) y: Vec<f32>,
    pub(crate) dy: Vec<f32>,
    pub(crate) dx: Vec<f32>,
    pub(crate) grads: Vec<f32>,
}

/// Sites of the widths `ns`, side by side in a row of `Y` from column `from` on, `gap` columns between them; the
/// second takes only a middle part of its outputs.
fn sites(d: usize, ns: &[usize], (from, gap): (usize, usize)) -> (Vec<SiteOutput>, usize) {
    let (mut unit_offset, mut y_start) = (4 + from, from);
    let mut sites = Vec::new();
    for (k, &n) in ns.iter().enumerate() {
        let site = Site { in_dim: d, out_dim: n, unit_offset, id: 40 + k as u32 };
        let (out_begin, out_len) = if k == 1 { (n / 3, n - n / 3 - n / 4) } else { (0, n) };
        sites.push(SiteOutput { site, out_begin, out_len, y_start });
        unit_offset += d + n;
        y_start += out_len + gap;
    }
    (sites, y_start)
}

impl Pack {
    pub(crate) fn new(
        draw: Draw,
        (d, ns): (usize, &[usize]),
        place: (usize, usize),
        rows: &[Rows],
    ) -> Self {
        let (sites, y_stride) = sites(d, ns, place);
        Self::of_sites(draw, (sites, y_stride), place, rows)
    }

    pub(crate) fn of_sites(
        draw: Draw,
        (sites, y_stride): (Vec<SiteOutput>, usize),
        place: (usize, usize),
        rows: &[Rows],
    ) -> Self {
        let d = sites[0].site.in_dim;
        let units = sites.iter().map(|s| s.site.unit_offset + d + s.site.out_dim).max().unwrap();
        let mut segments = Vec::new();
        let (mut row, mut slab) = (0, GAP);
        for (i, &(rows, r, dropout)) in rows.iter().enumerate() {
            segments.push(Segment {
                row_start: row as u32,
                rows: rows as u32,
                param_offset: slab as u64,
                grad_offset: 0,
                lora_rank: r as u32,
                scale: if draw == Draw::Whole { 0.5 } else { 2.0 / r as f32 },
                dropout,
                step: 3 + i as u32,
                key: [17, i as u32],
            });
            row += rows;
            slab += r * units + GAP;
        }
        let mut end = slab;
        for s in &mut segments {
            end -= s.lora_rank as usize * units + GAP;
            s.grad_offset = (end + GAP - 1) as u64;
        }
        let seed = (row * 31 + d) as u64;
        let some = |seed_of: u64, len: usize| -> Vec<f32> {
            let drawn = numbers(seed + seed_of, len).into_iter();
            match draw {
                // No negative zeros: which of the two a sum of zeros is depends on its order.
                Draw::Whole => drawn.map(|v| (v * 1.5).round() + 0.0).collect(),
                Draw::Real => rounded(&drawn.collect::<Vec<_>>()),
            }
        };
        let tokens = segments.iter().flat_map(|s| (0..s.rows).map(|t| 2 * t + s.row_start % 2));
        Self {
            x_window: Window::new(row, d, place),
            y_stride,
            row_token: tokens.collect(),
            params: some(0, slab),
            x: some(1, row * d),
            y: some(2, row * y_stride),
            dy: some(3, row * y_stride),
            dx: some(4, row * d),
            grads: some(5, slab),
            segments,
            sites,
        }
    }

    /// `Y`, with all that lies between the outputs.
    pub(crate) fn forward<B: Lora + Subject>(&self, b: &B) -> Result<Vec<f32>, Error> {
        let acts = |v: &[f32]| upload(b, &v.iter().map(|&v| B::act(v)).collect::<Vec<_>>());
        let mut y = acts(&self.y);
        b.lora_forward(Forward {
            x: self.x_window.mat(&self.x_window.input(b, &self.x)),
            sites: &self.sites,
            segments: &upload(b, &self.segments),
            num_segments: self.segments.len(),
            row_token: &upload(b, &self.row_token),
            params: &upload(b, &self.params),
            y: MatMut::new(&mut y, self.y_stride),
            rows: self.x_window.rows,
        })?;
        let mut got = vec![B::act(0.0); self.y.len()];
        b.read(&y, 0, &mut got)?;
        Ok(got.into_iter().map(Into::into).collect())
    }

    /// `dX` and the gradient slab.
    pub(crate) fn backward<B: Lora + Subject>(&self, b: &B) -> Result<(Vec<f32>, Vec<f32>), Error> {
        self.backward_by(b, |b, args| b.lora_backward(args))
    }

    /// As [`Pack::backward`] through `run`.
    pub(crate) fn backward_by<B: Lora + Subject>(
        &self,
        b: &B,
        run: impl FnOnce(&B, Backward<'_, B>) -> Result<(), Error>,
    ) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let mut dx = self.x_window.updated(b, &self.dx);
        let grads = self.gradients(b, |b, args| {
            let dx = Some(self.x_window.mat_mut(&mut dx));
            run(b, Backward { dx, ..args })
        })?;
        Ok((self.x_window.result(b, &dx), grads))
    }

    /// The gradient slab after `run`, which is called without `dX`.
    pub(crate) fn gradients<B: Lora + Subject>(
        &self,
        b: &B,
        run: impl FnOnce(&B, Backward<'_, B>) -> Result<(), Error>,
    ) -> Result<Vec<f32>, Error> {
        let mut grads = upload(b, &self.grads);
        let dy = upload(b, &self.dy.iter().map(|&v| B::act(v)).collect::<Vec<_>>());
        let x = self.x_window.input(b, &self.x);
        let args = Backward {
            x: self.x_window.mat(&x),
            sites: &self.sites,
            segments: &upload(b, &self.segments),
            num_segments: self.segments.len(),
            row_token: &upload(b, &self.row_token),
            params: &upload(b, &self.params),
            dy: Mat::new(&dy, self.y_stride),
            grads: &mut grads,
            dx: None,
            rows: self.x_window.rows,
        };
        run(b, args)?;
        b.read(&grads, 0, &mut [])?;
        Ok(download(b, &grads))
    }

    /// The rows of segment `i` in the pack.
    pub(crate) fn rows_of(&self, i: usize) -> std::ops::Range<usize> {
        let s = self.segments[i];
        s.row_start as usize..(s.row_start + s.rows) as usize
    }

    /// Segment `i` with its own rows only, first in a pack of its own.
    pub(crate) fn alone(&self, i: usize) -> Self {
        let rows = self.rows_of(i);
        let cut = |v: &[f32], width: usize| v[rows.start * width..rows.end * width].to_vec();
        let d = self.x_window.width;
        Self {
            x_window: Window { rows: rows.len(), ..self.x_window },
            segments: vec![Segment { row_start: 0, ..self.segments[i] }],
            row_token: self.row_token[rows.clone()].to_vec(),
            x: cut(&self.x, d),
            y: cut(&self.y, self.y_stride),
            dy: cut(&self.dy, self.y_stride),
            dx: cut(&self.dx, d),
            ..self.clone()
        }
    }

    /// The pack of the absolute values, nothing there before: its results are the sums of the sizes of the terms.
    pub(crate) fn sizes(&self) -> Self {
        let abs = |v: &[f32]| v.iter().map(|v| v.abs()).collect();
        Self {
            params: abs(&self.params),
            x: abs(&self.x),
            dy: abs(&self.dy),
            y: vec![0.0; self.y.len()],
            dx: vec![0.0; self.dx.len()],
            grads: vec![0.0; self.grads.len()],
            ..self.clone()
        }
    }

    /// Additions on the longest way into one result.
    pub(crate) fn chain(&self) -> f64 {
        let outs: usize = self.sites.iter().map(|s| s.out_len).sum();
        let most = |of: fn(&Segment) -> u32| self.segments.iter().map(of).max().unwrap_or(0);
        (self.x_window.width + outs + 16) as f64
            + f64::from(most(|s| s.rows) + most(|s| s.lora_rank))
    }
}
