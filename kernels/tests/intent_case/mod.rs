//! Heads with users, and what backends make of them.
#![allow(dead_code, reason = "each test binary uses what it needs")]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test stops at what it did not expect; its numbers are small"
)]
#![allow(unreachable_pub, missing_docs, reason = "shared by test binaries, exported by none")]

use crate::naive::intent::Input;
use crate::naive::real::{Real, wide};
use crate::naive::{download, numbers, upload};
use kernels::Error;
use kernels::backend::{Mat, MatMut};
use kernels::intent::{Backward, Forward, Head, Intent, Offsets, Product, Segment, Shape};

/// Elements between the windows of `H` and `dH`, and around the deltas.
pub const GAP: usize = 3;

#[derive(Debug, Clone)]
pub struct Case {
    pub shape: Shape,
    pub offsets: Offsets,
    pub params: Vec<f32>,
    pub segments: Vec<Segment>,
    pub deltas: Vec<f32>,
    /// `[t, d]` in rows of `d + GAP`.
    pub h: Vec<f32>,
    pub da: Vec<f32>,
    /// What the gradient buffers hold before.
    pub grads: Vec<f32>,
    pub delta_grads: Vec<f32>,
    pub rows: usize,
}

/// What a backward wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    pub dh: Vec<f32>,
    pub grads: Vec<f32>,
    pub delta_grads: Vec<f32>,
}

pub fn shape(intents: usize, dim: usize, hidden: usize, product: Product) -> Shape {
    Shape { intents, dim, hidden, product }
}

impl Case {
    /// Users of the given numbers of rows: every third has no delta, every fourth wants no gradient; the
    /// slabs hold them in different orders, and some rows at the end are nobody's.
    pub fn new(shape: Shape, users: &[u32], bias: bool) -> Self {
        let (size, count) = (shape.delta_len() + GAP, users.len());
        let mut row_start = 0;
        let segments: Vec<Segment> = users
            .iter()
            .enumerate()
            .map(|(u, &rows)| {
                let place = |order: usize| (GAP + order * size) as u64;
                let segment = Segment {
                    row_start,
                    rows,
                    delta_offset: if u % 3 == 2 { Segment::NONE } else { place((u + 1) % count) },
                    delta_grad_offset: if u % 4 == 3 {
                        Segment::NONE
                    } else {
                        place(count - 1 - u)
                    },
                };
                row_start += rows;
                segment
            })
            .collect();
        let rows = row_start as usize + usize::from(bias) * 2;
        let scaled = |seed, len, by: f32| -> Vec<f32> {
            numbers(seed, len).into_iter().map(|x| x * by).collect()
        };
        let params = GAP + shape.param_len(bias) + GAP;
        let slab = GAP + count * size;
        Self {
            shape,
            offsets: Offsets::dense(shape, bias, GAP),
            params: scaled(1, params, 0.7),
            segments,
            deltas: scaled(2, slab, 0.3),
            h: scaled(3, rows * (shape.dim + GAP), 1.5),
            da: numbers(4, rows * shape.intents),
            grads: numbers(5, params),
            delta_grads: numbers(6, slab),
            rows,
        }
    }

    /// Rows `from..to` with their segments, cut where they must be.
    pub fn cut(&self, from: usize, to: usize) -> Self {
        let (d, n) = (self.shape.dim + GAP, self.shape.intents);
        let own = self.segments.iter().filter_map(|s| {
            let start = (s.row_start as usize).max(from);
            let end = (s.row_start as usize + s.rows as usize).min(to);
            let rows = end.checked_sub(start).filter(|rows| *rows > 0)?;
            Some(Segment { row_start: (start - from) as u32, rows: rows as u32, ..*s })
        });
        Self {
            segments: own.collect(),
            h: self.h[from * d..to * d].to_vec(),
            da: self.da[from * n..to * n].to_vec(),
            rows: to - from,
            ..self.clone()
        }
    }

    /// One segment alone.
    pub fn solo(&self, index: usize) -> Self {
        let s = self.segments[index];
        let mut solo = self.cut(s.row_start as usize, s.row_start as usize + s.rows as usize);
        solo.segments.retain(|own| own.delta_grad_offset == s.delta_grad_offset);
        solo
    }

    pub fn input<F: Real>(&self) -> Input<F> {
        let h: Vec<f32> = self
            .h
            .chunks(self.shape.dim + GAP)
            .flat_map(|h| &h[..self.shape.dim])
            .copied()
            .collect();
        Input {
            shape: self.shape,
            offsets: self.offsets,
            params: wide(&self.params),
            segments: self.segments.clone(),
            deltas: wide(&self.deltas),
            h: wide(&h),
        }
    }

    pub fn try_forward<B: Intent<Act = f32>>(&self, b: &B) -> Result<Vec<f32>, Error> {
        let (params, deltas) = (upload(b, &self.params), upload(b, &self.deltas));
        let (segments, h) = (upload(b, &self.segments), upload(b, &self.h));
        let elements = self.rows.min(1 << 20) * self.shape.intents;
        let mut logits = upload(b, &vec![f32::NAN; elements]);
        let num_segments = self.segments.len();
        let len = b.intent_workspace(self.rows.min(1 << 20), num_segments, self.shape);
        b.intent_forward(Forward {
            head: Head {
                shape: self.shape,
                offsets: self.offsets,
                params: &params,
                segments: &segments,
                num_segments,
                deltas: &deltas,
            },
            h: Mat::new(&h, self.shape.dim + GAP),
            logits: &mut logits,
            work: &mut upload(b, &vec![f32::NAN; len]),
            rows: self.rows,
        })?;
        Ok(download(b, &logits))
    }

    pub fn forward<B: Intent<Act = f32>>(&self, b: &B) -> Vec<f32> {
        self.try_forward(b).unwrap()
    }

    /// Backward with `(dh, grads, delta_grads)` wanted or not; `dh` begins as NaN.
    pub fn try_backward<B: Intent<Act = f32>>(
        &self,
        b: &B,
        (dh_wanted, head, personal): (bool, bool, bool),
    ) -> Result<Gradients, Error> {
        let (params, deltas) = (upload(b, &self.params), upload(b, &self.deltas));
        let (segments, h) = (upload(b, &self.segments), upload(b, &self.h));
        let mut dh = upload(b, &vec![f32::NAN; self.h.len()]);
        let (mut grads, mut delta_grads) = (upload(b, &self.grads), upload(b, &self.delta_grads));
        let num_segments = self.segments.len();
        let len = b.intent_workspace(self.rows.min(1 << 20), num_segments, self.shape);
        b.intent_backward(Backward {
            head: Head {
                shape: self.shape,
                offsets: self.offsets,
                params: &params,
                segments: &segments,
                num_segments,
                deltas: &deltas,
            },
            h: Mat::new(&h, self.shape.dim + GAP),
            dlogits: &upload(b, &self.da),
            dh: dh_wanted.then(|| MatMut::new(&mut dh, self.shape.dim + GAP)),
            grads: head.then_some(&mut grads),
            delta_grads: personal.then_some(&mut delta_grads),
            work: &mut upload(b, &vec![f32::NAN; len]),
            rows: self.rows,
        })?;
        Ok(Gradients {
            dh: download(b, &dh),
            grads: download(b, &grads),
            delta_grads: download(b, &delta_grads),
        })
    }

    pub fn backward<B: Intent<Act = f32>>(&self, b: &B) -> Gradients {
        self.try_backward(b, (true, true, true)).unwrap()
    }
}

/// The columns of `dh` that are written.
pub fn written(dh: &[f32], dim: usize) -> Vec<f32> {
    dh.chunks(dim + GAP).flat_map(|dh| &dh[..dim]).copied().collect()
}
