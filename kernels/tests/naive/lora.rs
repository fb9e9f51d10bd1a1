//! Grouped LoRA, one element at a time, nothing rounded but what is stored in the end.

use super::Naive;
use kernels::backend::Buffer;
use kernels::error::Result;
use kernels::lora::{Backward, Forward, Lora, Segment, SiteOutput};
use kernels::random::Dropout;

/// One adapter at one site: its place in the slab, and its dropout.
struct Adapter<'a> {
    segment: Segment,
    output: &'a SiteOutput,
}

impl Adapter<'_> {
    fn r(&self) -> usize {
        self.segment.lora_rank as usize
    }

    /// Distance of `A[j, c]` from the adapter's first element.
    fn a(&self, j: usize, c: usize) -> usize {
        self.r() * self.output.site.unit_offset + j * self.output.site.in_dim + c
    }

    /// Distance of `B[out_begin + o, j]` from the adapter's first element.
    fn b(&self, o: usize, j: usize) -> usize {
        let site = &self.output.site;
        self.r() * (site.unit_offset + site.in_dim + self.output.out_begin + o) + j
    }

    /// `0` or `1 / (1 - p)`.
    fn factor(&self, token: u32, c: usize) -> f64 {
        let Segment { key, step, dropout: p, .. } = self.segment;
        if p == 0.0 {
            return 1.0;
        }
        let keep = Dropout::new(key, step, self.output.site.id, p).keep(token, c as u32);
        if keep { f64::from(1.0 / (1.0 - p)) } else { 0.0 }
    }

    fn rows(&self) -> std::ops::Range<usize> {
        let start = self.segment.row_start as usize;
        start..start + self.segment.rows as usize
    }
}

impl Lora for Naive {
    fn lora_forward(&self, args: Forward<'_, Self>) -> Result<()> {
        for index in 0..args.num_segments {
            for output in args.sites {
                let ad = Adapter { segment: args.segments.get(index), output };
                let param = |i: usize| args.params.at(ad.segment.param_offset as usize + i);
                for row in ad.rows() {
                    let token = args.row_token.get(row);
                    let x = |c: usize| {
                        args.x.buf.at(args.x.start + row * args.x.stride + c) * ad.factor(token, c)
                    };
                    let d = output.site.in_dim;
                    let s: Vec<f64> = (0..ad.r())
                        .map(|j| (0..d).map(|c| x(c) * param(ad.a(j, c))).sum())
                        .collect();
                    for o in 0..output.out_len {
                        let y: f64 = (0..ad.r()).map(|j| s[j] * param(ad.b(o, j))).sum();
                        let at = output.y_start + row * args.y.stride + o;
                        args.y.buf.add(at, f64::from(ad.segment.scale) * y);
                    }
                }
            }
        }
        Ok(())
    }

    fn lora_backward(&self, args: Backward<'_, Self>) -> Result<()> {
        let mut dx = args.dx;
        let mut grads = vec![0.0; args.grads.len()];
        let mut dx_sums = vec![0.0; dx.as_ref().map_or(0, |dx| dx.buf.len())];
        for index in 0..args.num_segments {
            for output in args.sites {
                let ad = Adapter { segment: args.segments.get(index), output };
                let scale = f64::from(ad.segment.scale);
                let param = |i: usize| args.params.at(ad.segment.param_offset as usize + i);
                let grad = ad.segment.grad_offset as usize;
                let d = output.site.in_dim;
                for row in ad.rows() {
                    let token = args.row_token.get(row);
                    let x = |c: usize| {
                        args.x.buf.at(args.x.start + row * args.x.stride + c) * ad.factor(token, c)
                    };
                    let dy = |o: usize| args.dy.buf.at(output.y_start + row * args.dy.stride + o);
                    for j in 0..ad.r() {
                        let s: f64 = (0..d).map(|c| x(c) * param(ad.a(j, c))).sum();
                        let ds: f64 =
                            (0..output.out_len).map(|o| scale * dy(o) * param(ad.b(o, j))).sum();
                        for o in 0..output.out_len {
                            grads[grad + ad.b(o, j)] += scale * dy(o) * s;
                        }
                        for c in 0..d {
                            grads[grad + ad.a(j, c)] += ds * x(c);
                            if let Some(dx) = &dx {
                                dx_sums[dx.start + row * dx.stride + c] +=
                                    ds * param(ad.a(j, c)) * ad.factor(token, c);
                            }
                        }
                    }
                }
            }
        }
        for (i, v) in grads.into_iter().enumerate() {
            args.grads.add(i, v);
        }
        if let Some(dx) = &mut dx {
            for (i, v) in dx_sums.into_iter().enumerate() {
                dx.buf.add(i, v);
            }
        }
        Ok(())
    }
}
