//! The intention attention head as it is written down: one hidden vector for each row and intent.

use super::real::{Real, wide};
use super::{Naive, NaiveBuf, round};
use kernels::backend::{Buffer, Element};
use kernels::error::Result;
use kernels::intent::{Backward, Forward, Head, Intent, Offsets, Product, Segment, Shape};

/// Everything a head reads.
#[derive(Debug, Clone)]
pub struct Input<F> {
    pub shape: Shape,
    pub offsets: Offsets,
    pub params: Vec<F>,
    pub segments: Vec<Segment>,
    pub deltas: Vec<F>,
    /// `[t, d]`.
    pub h: Vec<F>,
}

/// Gradients, each from zero.
#[derive(Debug, Clone)]
pub struct Gradients<F> {
    pub dh: Vec<F>,
    pub params: Vec<F>,
    /// Laid out as the slab of gradients, `len` elements.
    pub deltas: Vec<F>,
}

impl<F: Real> Input<F> {
    fn rows(&self) -> usize {
        self.h.len() / self.shape.dim
    }

    fn segment(&self, row: usize) -> Option<&Segment> {
        let holds = |s: &&Segment| {
            row >= s.row_start as usize && row - (s.row_start as usize) < s.rows as usize
        };
        self.segments.iter().find(holds)
    }

    fn delta(&self, row: usize) -> Option<&[F]> {
        let at = self.segment(row)?.delta_offset;
        (at != Segment::NONE).then(|| &self.deltas[at as usize..])
    }

    /// `v_n` of a row's segment.
    fn embedding(&self, row: usize, n: usize) -> Vec<F> {
        let d = self.shape.dim;
        (0..d)
            .map(|i| {
                let v = self.params[self.offsets.table + n * d + i];
                self.delta(row).map_or(v, |delta| v + delta[n * d + i])
            })
            .collect()
    }

    /// `[v ; v (x) h ; h]`.
    fn input(&self, v: &[F], h: &[F]) -> Vec<F> {
        let mut x = v.to_vec();
        match self.shape.product {
            Product::Elementwise => x.extend(v.iter().zip(h).map(|(v, h)| *v * *h)),
            Product::Outer => x.extend(v.iter().flat_map(|v| h.iter().map(|h| *v * *h))),
        }
        x.extend_from_slice(h);
        x
    }

    fn hidden(&self, x: &[F]) -> Vec<F> {
        (0..self.shape.hidden)
            .map(|k| {
                let w = &self.params[self.offsets.w1 + k * x.len()..][..x.len()];
                w.iter().zip(x).map(|(w, x)| *w * *x).sum::<F>() + self.params[self.offsets.b1 + k]
            })
            .collect()
    }

    /// Logits `[t, N]`.
    pub fn forward(&self) -> Vec<F> {
        let at = self.offsets;
        let mut logits = vec![];
        for (row, h) in self.h.chunks(self.shape.dim).enumerate() {
            for n in 0..self.shape.intents {
                let z = self.hidden(&self.input(&self.embedding(row, n), h));
                let mut a = F::default();
                for (k, z) in z.into_iter().enumerate() {
                    let y = if z > F::default() { z } else { self.params[at.slope + k] * z };
                    a += self.params[at.w2 + k] * y;
                }
                a += self.params[at.b2];
                if let Some(c) = at.bias {
                    a += self.params[c + n];
                }
                if let Some(delta) = self.delta(row) {
                    a += delta[self.shape.intents * self.shape.dim + n];
                }
                logits.push(a);
            }
        }
        logits
    }

    /// Gradients of `Σ da · a`; the slab of the deltas' gradients has `len` elements.
    pub fn backward(&self, da: &[F], len: usize) -> Gradients<F> {
        let (at, d) = (self.offsets, self.shape.dim);
        let zeros = |len| vec![F::default(); len];
        let mut g = Gradients {
            dh: zeros(self.h.len()),
            params: zeros(self.params.len()),
            deltas: zeros(len),
        };
        for (i, &da) in da.iter().enumerate().take(self.rows() * self.shape.intents) {
            let (row, n) = (i / self.shape.intents, i % self.shape.intents);
            let h = &self.h[row * d..][..d];
            let v = self.embedding(row, n);
            let x = self.input(&v, h);
            let columns = x.len();
            let mut dx = zeros(columns);
            for (k, z) in self.hidden(&x).into_iter().enumerate() {
                let (slope, w2) = (self.params[at.slope + k], self.params[at.w2 + k]);
                let (y, dz) = if z > F::default() {
                    (z, da * w2)
                } else {
                    g.params[at.slope + k] += da * w2 * z;
                    (slope * z, da * w2 * slope)
                };
                g.params[at.w2 + k] += da * y;
                g.params[at.b1 + k] += dz;
                for (c, x) in x.iter().enumerate() {
                    g.params[at.w1 + k * columns + c] += dz * *x;
                    dx[c] += dz * self.params[at.w1 + k * columns + c];
                }
            }
            let dv = self.through(&dx, &v, h, &mut g.dh[row * d..][..d]);
            g.params[at.b2] += da;
            if let Some(c) = at.bias {
                g.params[c + n] += da;
            }
            dv.iter().enumerate().for_each(|(i, dv)| g.params[at.table + n * d + i] += *dv);
            let wanted = self.segment(row).filter(|s| s.delta_grad_offset != Segment::NONE);
            if let Some(s) = wanted {
                let own = &mut g.deltas[s.delta_grad_offset as usize..];
                dv.iter().enumerate().for_each(|(i, dv)| own[n * d + i] += *dv);
                own[self.shape.intents * d + n] += da;
            }
        }
        g
    }

    /// From the gradient of `[v ; v (x) h ; h]` to that of `v`, returned, and of `h`, `+=`.
    fn through(&self, dx: &[F], v: &[F], h: &[F], dh: &mut [F]) -> Vec<F> {
        let d = v.len();
        let mut dv = dx[..d].to_vec();
        for i in 0..d {
            dh[i] += dx[dx.len() - d + i];
            match self.shape.product {
                Product::Elementwise => {
                    dv[i] += dx[d + i] * h[i];
                    dh[i] += dx[d + i] * v[i];
                }
                Product::Outer => {
                    for j in 0..d {
                        dv[i] += dx[d + i * d + j] * h[j];
                        dh[j] += dx[d + i * d + j] * v[i];
                    }
                }
            }
        }
        dv
    }
}

/// Everything in a buffer.
pub(super) fn all<T: Element>(buf: &NaiveBuf<T>) -> Vec<T> {
    (0..buf.len()).map(|i| buf.get(i)).collect()
}

fn input(head: &Head<'_, Naive>, h: Vec<f32>) -> Input<f64> {
    Input {
        shape: head.shape,
        offsets: head.offsets,
        params: wide(&all(head.params)),
        segments: (0..head.num_segments).map(|i| head.segments.get(i)).collect(),
        deltas: wide(&all(head.deltas)),
        h: wide(&h),
    }
}

impl Intent for Naive {
    fn intent_workspace(&self, _rows: usize, _segments: usize, _shape: Shape) -> usize {
        0
    }

    fn intent_forward(&self, a: Forward<'_, Self>) -> Result<()> {
        a.check(0)?;
        let d = a.head.shape.dim;
        let place = |i: usize| a.h.start + i / d * a.h.stride + i % d;
        let input = input(&a.head, (0..a.rows * d).map(|i| a.h.buf.get(place(i))).collect());
        Segment::check_all(&input.segments, a.rows, a.head.shape, (a.head.deltas.len(), None))?;
        input.forward().into_iter().enumerate().for_each(|(i, logit)| a.logits.put(i, logit));
        Ok(())
    }

    fn intent_backward(&self, a: Backward<'_, Self>) -> Result<()> {
        a.check(0)?;
        let d = a.head.shape.dim;
        let place = |i: usize| a.h.start + i / d * a.h.stride + i % d;
        let input = input(&a.head, (0..a.rows * d).map(|i| a.h.buf.get(place(i))).collect());
        let slab = a.delta_grads.as_ref().map_or(0, |slab| slab.len());
        let lens = (a.head.deltas.len(), a.delta_grads.as_ref().map(|_| slab));
        Segment::check_all(&input.segments, a.rows, a.head.shape, lens)?;
        let widest = input.segments.iter().filter(|s| s.delta_grad_offset != Segment::NONE);
        let widest = widest.map(|s| s.delta_grad_offset as usize + a.head.shape.delta_len()).max();
        let g = input.backward(&wide::<f64>(&all(a.dlogits)), widest.unwrap_or(0).max(slab));
        if let Some(dh) = a.dh {
            for (i, v) in g.dh.iter().enumerate() {
                dh.buf.set(dh.start + i / d * dh.stride + i % d, round(*v));
            }
        }
        if let Some(grads) = a.grads {
            g.params.iter().enumerate().for_each(|(i, v)| grads.add(i, *v));
        }
        if let Some(slab) = a.delta_grads {
            g.deltas.iter().enumerate().take(slab.len()).for_each(|(i, v)| slab.add(i, *v));
        }
        Ok(())
    }
}
