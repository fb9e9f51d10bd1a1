//! Packs for the tests of grouped LoRA: segments of any length, rank and dropout, adapters in the slab
//! in another order than the rows, sites side by side in `Y`.
//!
//! Owns [`Case`], which runs both directions on any backend. Start at [`Case::new`], then [`mixed`].
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test stops at what it did not expect; its numbers are small"
)]
#![allow(unreachable_pub, reason = "seen by one test binary, exported by none")]

use crate::naive::{download, numbers, upload};
use kernels::lora::{Backward, Forward, Lora, Segment, Site, SiteOutput};
use kernels::{Cpu, Error, Mat, MatMut};

/// Elements between the adapters of a slab, to see that nothing is written there.
pub const GAP: usize = 3;

/// A pack, its adapters and the gradient that comes back.
#[derive(Clone)]
pub struct Case {
    pub rows: usize,
    pub d: usize,
    pub sites: Vec<SiteOutput>,
    pub y_stride: usize,
    pub segments: Vec<Segment>,
    pub row_token: Vec<u32>,
    pub params: Vec<f32>,
    pub x: Vec<f32>,
    pub y: Vec<f32>,
    pub dy: Vec<f32>,
    pub dx: Vec<f32>,
    pub grads: Vec<f32>,
}

/// What the two directions wrote.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub y: Vec<u32>,
    pub dx: Vec<u32>,
    pub grads: Vec<u32>,
}

/// Sites of the widths `ns`, side by side in a row of `Y`; the slab holds another site before them, and
/// the second takes only a middle part of its outputs.
pub fn sites(d: usize, ns: &[usize]) -> (Vec<SiteOutput>, usize) {
    let (mut unit_offset, mut y_start) = (5, 1);
    let mut sites = Vec::new();
    for (k, &n) in ns.iter().enumerate() {
        let site = Site { in_dim: d, out_dim: n, unit_offset, id: 40 + k as u32 };
        let (out_begin, out_len) = if k == 1 { (n / 3, n - n / 3 - n / 4) } else { (0, n) };
        sites.push(SiteOutput { site, out_begin, out_len, y_start });
        unit_offset += d + n;
        y_start += out_len + 2;
    }
    (sites, y_start)
}

impl Case {
    /// Segments of `(rows, lora_rank, dropout)`; their adapters lie in the slab in reverse order.
    pub fn new(d: usize, ns: &[usize], segments: &[(usize, usize, f32)]) -> Self {
        let (sites, y_stride) = sites(d, ns);
        let units = sites.iter().map(|s| s.site.unit_offset + d + s.site.out_dim).max().unwrap();
        let mut list = Vec::new();
        let (mut row, mut slab) = (0, GAP);
        for (i, &(rows, r, dropout)) in segments.iter().enumerate() {
            list.push(Segment {
                row_start: row as u32,
                rows: rows as u32,
                param_offset: slab as u64,
                grad_offset: 0,
                lora_rank: r as u32,
                scale: 2.0 / r as f32,
                dropout,
                step: 3 + i as u32,
                key: [17, i as u32],
            });
            row += rows;
            slab += r * units + GAP;
        }
        let mut end = slab;
        for s in &mut list {
            end -= s.lora_rank as usize * units + GAP;
            s.grad_offset = (end + GAP - 1) as u64;
        }
        let seed = (row * 31 + d) as u64;
        let tokens = list.iter().flat_map(|s| (0..s.rows).map(|t| 2 * t + s.row_start % 2));
        Self {
            rows: row,
            d,
            y_stride,
            row_token: tokens.collect(),
            params: numbers(seed, slab),
            x: numbers(seed + 1, row * d),
            y: numbers(seed + 2, row * y_stride),
            dy: numbers(seed + 3, row * y_stride),
            dx: numbers(seed + 4, row * d),
            grads: numbers(seed + 5, slab),
            segments: list,
            sites,
        }
    }

    pub fn forward<B: Lora<Act = f32>>(&self, b: &B) -> Vec<f32> {
        let mut y = upload(b, &self.y);
        b.lora_forward(Forward {
            x: Mat::new(&upload(b, &self.x), self.d),
            sites: &self.sites,
            segments: &upload(b, &self.segments),
            num_segments: self.segments.len(),
            row_token: &upload(b, &self.row_token),
            params: &upload(b, &self.params),
            y: MatMut::new(&mut y, self.y_stride),
            rows: self.rows,
        })
        .unwrap();
        download(b, &y)
    }

    /// `dX` and the gradient slab.
    pub fn backward<B: Lora<Act = f32>>(&self, b: &B) -> (Vec<f32>, Vec<f32>) {
        let (mut dx, mut grads) = (upload(b, &self.dx), upload(b, &self.grads));
        self.try_backward(b, &mut grads, Some(&mut dx)).unwrap();
        (download(b, &dx), download(b, &grads))
    }

    pub fn try_backward<B: Lora<Act = f32>>(
        &self,
        b: &B,
        grads: &mut B::Buf<f32>,
        dx: Option<&mut B::Buf<f32>>,
    ) -> Result<(), Error> {
        b.lora_backward(Backward {
            x: Mat::new(&upload(b, &self.x), self.d),
            sites: &self.sites,
            segments: &upload(b, &self.segments),
            num_segments: self.segments.len(),
            row_token: &upload(b, &self.row_token),
            params: &upload(b, &self.params),
            dy: Mat::new(&upload(b, &self.dy), self.y_stride),
            grads,
            dx: dx.map(|dx| MatMut::new(dx, self.d)),
            rows: self.rows,
        })
    }

    pub fn outcome(&self) -> Outcome {
        let y = self.forward(&Cpu);
        let (dx, grads) = self.backward(&Cpu);
        Outcome { y: bits(&y), dx: bits(&dx), grads: bits(&grads) }
    }

    /// Segment `i` with its own rows only, first in a pack of its own.
    pub fn alone(&self, i: usize) -> Self {
        let s = self.segments[i];
        let rows = s.row_start as usize..(s.row_start + s.rows) as usize;
        let cut = |v: &[f32], width: usize| v[rows.start * width..rows.end * width].to_vec();
        Self {
            rows: rows.len(),
            segments: vec![Segment { row_start: 0, ..s }],
            row_token: self.row_token[rows.clone()].to_vec(),
            x: cut(&self.x, self.d),
            y: cut(&self.y, self.y_stride),
            dy: cut(&self.dy, self.y_stride),
            dx: cut(&self.dx, self.d),
            ..self.clone()
        }
    }

    /// The case of the absolute values: its results are the sums of the sizes of the terms.
    pub fn sizes(&self) -> Self {
        let abs = |v: &[f32]| v.iter().map(|v| v.abs()).collect();
        Self {
            params: abs(&self.params),
            x: abs(&self.x),
            y: abs(&self.y),
            dy: abs(&self.dy),
            dx: abs(&self.dx),
            grads: abs(&self.grads),
            ..self.clone()
        }
    }

    /// Additions and roundings on the longest way into one result.
    pub fn chain(&self) -> f64 {
        let outs: usize = self.sites.iter().map(|s| s.out_len).sum();
        let rows = self.segments.iter().map(|s| s.rows).max().unwrap_or(0);
        let r = self.segments.iter().map(|s| s.lora_rank).max().unwrap_or(0);
        (self.d + outs + 8) as f64 + f64::from(rows + r)
    }
}

pub fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

/// Mixed ranks, empty, one-row and long segments, with and without dropout.
pub fn mixed() -> Case {
    let segments = [
        (5, 8, 0.0),
        (0, 4, 0.5),
        (1, 16, 0.3),
        (70, 3, 0.05),
        (1, 1, 0.0),
        (13, 33, 0.25),
        (0, 8, 0.0),
        (9, 64, 0.0),
    ];
    Case::new(37, &[41, 29, 8], &segments)
}
