//! Products, one element at a time; a prepared weight is the plain `[d, n]` matrix.

use super::{Naive, NaiveBuf};
use kernels::backend::Buffer;
use kernels::error::{Error, Result, check_eq, check_len};
use kernels::linear::{
    Backward, Forward, HostStorage, Layout, Linear, Shape, Trainable, WeightGradient,
};
use std::sync::Arc;

/// A plain weight inside a host storage, or on its own where it trains.
pub struct NaiveWeight {
    shape: Shape,
    storage: HostStorage,
    offset: usize,
    own: Option<Vec<f32>>,
}

impl std::fmt::Debug for NaiveWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NaiveWeight").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl NaiveWeight {
    /// Element (input `i`, output `o`), widened.
    pub(super) fn at(&self, i: usize, o: usize) -> f64 {
        let all = self.own.as_deref().unwrap_or((*self.storage).as_ref());
        f64::from(all[self.offset + i * self.shape.out_dim + o])
    }
}

/// Where element (input `i`, output `o`) lies in a file.
fn plain_index(shape: Shape, layout: Layout, i: usize, o: usize) -> usize {
    match layout {
        Layout::OutIn => o * shape.in_dim + i,
        Layout::InOut => i * shape.out_dim + o,
    }
}

impl Linear for Naive {
    type Weight = NaiveWeight;

    fn prepared_form(&self) -> &'static str {
        "naive-dn"
    }

    fn prepared_len(&self, shape: Shape) -> usize {
        shape.in_dim * shape.out_dim
    }

    fn prepare(&self, shape: Shape, layout: Layout, src: &[f32], dst: &mut [f32]) -> Result<()> {
        let (d, n) = (shape.in_dim, shape.out_dim);
        check_eq("prepare", "plain weight", d * n, src.len())?;
        check_eq("prepare", "prepared weight", d * n, dst.len())?;
        for i in 0..d {
            for o in 0..n {
                dst[i * n + o] = src[plain_index(shape, layout, i, o)];
            }
        }
        Ok(())
    }

    fn unprepare(&self, shape: Shape, layout: Layout, src: &[f32], dst: &mut [f32]) -> Result<()> {
        let (d, n) = (shape.in_dim, shape.out_dim);
        check_eq("unprepare", "prepared weight", d * n, src.len())?;
        check_eq("unprepare", "plain weight", d * n, dst.len())?;
        for i in 0..d {
            for o in 0..n {
                dst[plain_index(shape, layout, i, o)] = src[i * n + o];
            }
        }
        Ok(())
    }

    fn weight(&self, shape: Shape, storage: &HostStorage, offset: usize) -> Result<NaiveWeight> {
        let len = (**storage).as_ref().len();
        check_len("weight", "storage", offset.saturating_add(self.prepared_len(shape)), len)?;
        Ok(NaiveWeight { shape, storage: storage.clone(), offset, own: None })
    }

    fn shape(&self, weight: &NaiveWeight) -> Shape {
        weight.shape
    }

    fn linear_forward(&self, args: Forward<'_, Self>) -> Result<()> {
        let w = args.weight;
        args.check(w.shape)?;
        for row in 0..args.rows {
            for o in 0..w.shape.out_dim {
                let x = args.x.start + row * args.x.stride;
                let mut sum: f64 =
                    (0..w.shape.in_dim).map(|i| args.x.buf.at(x + i) * w.at(i, o)).sum();
                sum += args.bias.map_or(0.0, |b| b.at(o));
                sum += args.residual.map_or(0.0, |r| r.buf.at(r.start + row * r.stride + o));
                args.y.buf.put(args.y.start + row * args.y.stride + o, sum);
            }
        }
        Ok(())
    }

    fn linear_backward(&self, args: Backward<'_, Self>) -> Result<()> {
        let w = args.weight;
        args.check(w.shape)?;
        for row in 0..args.rows {
            for i in 0..w.shape.in_dim {
                let dy = args.dy.start + row * args.dy.stride;
                let sum: f64 =
                    (0..w.shape.out_dim).map(|o| args.dy.buf.at(dy + o) * w.at(i, o)).sum();
                let dx = args.dx.start + row * args.dx.stride + i;
                args.dx.buf.put(dx, if args.accumulate { args.dx.buf.at(dx) + sum } else { sum });
            }
        }
        Ok(())
    }
}

impl Trainable for Naive {
    fn trainable(&self, shape: Shape) -> Result<NaiveWeight> {
        let own = Some(vec![0.0; shape.in_dim * shape.out_dim]);
        Ok(NaiveWeight { shape, storage: Arc::new(Vec::new()), offset: 0, own })
    }

    fn refresh(&self, w: &mut NaiveWeight, src: &NaiveBuf<f32>, offset: usize) -> Result<()> {
        let Shape { in_dim: d, out_dim: n } = w.shape;
        let Some(own) = &mut w.own else {
            return Err(Error::Routing { op: "refresh", what: "not its own".to_owned() });
        };
        check_len("refresh", "src", offset.saturating_add(n * d), src.len())?;
        for i in 0..d {
            for o in 0..n {
                own[i * n + o] = src.get(offset + o * d + i);
            }
        }
        Ok(())
    }

    fn refresh_vector(
        &self,
        dst: &mut NaiveBuf<f32>,
        src: &NaiveBuf<f32>,
        offset: usize,
    ) -> Result<()> {
        check_len("refresh_vector", "src", offset.saturating_add(dst.len()), src.len())?;
        (0..dst.len()).for_each(|i| dst.set(i, src.get(offset + i)));
        Ok(())
    }

    fn linear_weight_gradient(&self, a: WeightGradient<'_, Self>) -> Result<()> {
        a.check()?;
        for o in 0..a.shape.out_dim {
            let dy = |t| a.dy.buf.at(a.dy.start + t * a.dy.stride + o);
            for i in 0..a.shape.in_dim {
                let x = |t| a.x.buf.at(a.x.start + t * a.x.stride + i);
                let sum = (0..a.rows).map(|t| dy(t) * x(t)).sum();
                a.grads.add(a.weight_offset + o * a.shape.in_dim + i, sum);
            }
            if let Some(at) = a.bias_offset {
                a.grads.add(at + o, (0..a.rows).map(dy).sum());
            }
        }
        Ok(())
    }
}
