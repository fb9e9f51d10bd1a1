//! What grouped LoRA is compared with: dense products one after another, adapter by adapter and site by site.
//!
//! In favour of the comparison: both halves of an adapter lie ready in the form that the products want (`bf16` on a GPU,
//! packed and B transposed on processors), which after each step of an optimiser would have to be made anew.

use super::lora::Case;
use super::{Run, Subject, table};
use crate::bench::kernels::sizes::Sizes;
use kernels::Result;
use kernels::backend::{Backend, Buffer, Mat, MatMut};
use kernels::gpu::{Device, Gpu, GpuBuf, Operand, Output, OutputType, Product};
use kernels::linear::{self, Shape, WeightGradient};
use kernels::lora::{Segment, SiteOutput};

/// Where a site's halves lie in the slab: `A [r, d]`, then `B [n, r]`.
fn halves(segment: &Segment, site: &SiteOutput) -> (usize, usize) {
    let r = segment.lora_rank as usize;
    let a = usize::try_from(segment.param_offset).unwrap_or(usize::MAX) + r * site.site.unit_offset;
    (a, a + r * site.site.in_dim)
}

/// On a GPU: products of the device's library on windows of the pack, adapters rounded to `bf16` beforehand.
#[derive(Debug)]
pub(super) struct Products<D: Device> {
    pub(super) case: Case<Gpu<D>>,
    rounded: GpuBuf<D, <Gpu<D> as Backend>::Act>,
    s: GpuBuf<D, <Gpu<D> as Backend>::Act>,
    ds: GpuBuf<D, <Gpu<D> as Backend>::Act>,
}

impl<D: Device> Products<D> {
    pub(super) fn new(b: &Gpu<D>, sizes: &Sizes) -> Result<Self> {
        Self::of(Case::new(b, sizes)?)
    }

    pub(super) fn of(case: Case<Gpu<D>>) -> Result<Self> {
        let (b, inner) = (&case.b, case.rows * case.lora_rank);
        let mut params = vec![0.0; case.params.len()];
        b.read(&case.params, 0, &mut params)?;
        let params: Vec<_> = params.into_iter().map(Gpu::<D>::act).collect();
        Ok(Self { rounded: table(b, &params)?, s: b.alloc(inner)?, ds: b.alloc(inner)?, case })
    }

    pub(super) fn run(mut self, backward: bool) -> Run {
        Box::new(move || if backward { self.backward() } else { self.forward() })
    }

    /// `D [m, n] (=|+=) A [m, k] · B [k, n]`.
    fn product(
        &self,
        (m, n, k): (usize, usize, usize),
        (a, b): (Operand, Operand),
        (out, accumulate): (Output, bool),
    ) -> Result<()> {
        let invariant = false;
        self.case.b.product(&Product { m, n, k, a, b, out, accumulate, c: None, invariant })
    }

    /// `S = X Aᵀ`.
    fn shrink(&self, rows: usize, at: &Places) -> Result<()> {
        let (d, r) = (self.case.d, self.case.lora_rank);
        self.product((rows, r, d), (at.x, read(at.a, d, true)), (write(at.s, r), false))
    }

    /// `Y += S Bᵀ`.
    pub(super) fn forward(&mut self) -> Result<()> {
        let (r, width) = (self.case.lora_rank, self.case.width);
        for segment in self.case.segments.iter().filter(|segment| segment.rows > 0) {
            let rows = segment.rows as usize;
            for site in &self.case.sites {
                let (at, n) = (self.places(segment, site), site.out_len);
                self.shrink(rows, &at)?;
                let out = (write(at.y, width), true);
                self.product((rows, n, r), (read(at.s, r, false), read(at.b, r, true)), out)?;
            }
        }
        Ok(())
    }

    /// `S = X Aᵀ`, `dS = dY B`, `dB += dYᵀ S`, `dA += dSᵀ X`, `dX += dS A`.
    pub(super) fn backward(&mut self) -> Result<()> {
        let (d, r, width) = (self.case.d, self.case.lora_rank, self.case.width);
        for segment in self.case.segments.iter().filter(|segment| segment.rows > 0) {
            let rows = segment.rows as usize;
            for site in &self.case.sites {
                let (at, n) = (self.places(segment, site), site.out_len);
                let sum =
                    |address, stride| (Output { address, stride, element: OutputType::F32 }, true);
                let (x, dy) = (at.x, read(at.dy, width, false));
                let (across, rows_of) =
                    (read(at.dy, width, true), |address| read(address, r, false));
                self.shrink(rows, &at)?;
                let out = (write(at.ds, r), false);
                self.product((rows, r, n), (dy, rows_of(at.b)), out)?;
                self.product((n, r, rows), (across, rows_of(at.s)), sum(at.grad_b, r))?;
                self.product((r, d, rows), (read(at.ds, r, true), x), sum(at.grad_a, d))?;
                let out = (write(at.dx, d), true);
                self.product((rows, d, r), (rows_of(at.ds), read(at.a, d, false)), out)?;
            }
        }
        Ok(())
    }

    fn places(&self, segment: &Segment, site: &SiteOutput) -> Places {
        let (case, first) = (&self.case, segment.row_start as usize);
        let ((a, b), r) = (halves(segment, site), case.lora_rank);
        let output = first * case.width + site.y_start;
        Places {
            x: read(case.x.address_at(first * case.d), case.d, false),
            a: self.rounded.address_at(a),
            b: self.rounded.address_at(b),
            s: self.s.address_at(first * r),
            ds: self.ds.address_at(first * r),
            y: case.y.address_at(output),
            dy: case.dy.address_at(output),
            dx: case.dx.address_at(first * case.d),
            grad_a: case.grads.address_at(a),
            grad_b: case.grads.address_at(b),
        }
    }
}

/// Addresses of a segment's rows and a site's halves.
struct Places {
    x: Operand,
    a: u64,
    b: u64,
    s: u64,
    ds: u64,
    y: u64,
    dy: u64,
    dx: u64,
    grad_a: u64,
    grad_b: u64,
}

fn read(address: u64, stride: usize, transposed: bool) -> Operand {
    Operand { address, stride, transposed }
}

fn write(address: u64, stride: usize) -> Output {
    Output { address, stride, element: OutputType::Bf16 }
}

/// On processors: our own dense products, since they are the fastest that we know there (`cargo bench -p kernels --bench
/// linear` has them beside the `gemm` crate's).
#[derive(Debug)]
pub(super) struct Linears<B: Subject> {
    pub(super) case: Case<B>,
    /// `A` and, transposed, `B` of each segment and site.
    weights: Vec<[B::Weight; 2]>,
    s: B::Buf<B::Act>,
    ds: B::Buf<B::Act>,
}

impl<B: Subject> Linears<B> {
    pub(super) fn new(b: &B, sizes: &Sizes) -> Result<Self> {
        Self::of(Case::new(b, sizes)?)
    }

    pub(super) fn of(case: Case<B>) -> Result<Self> {
        let (b, d, r) = (&case.b, case.d, case.lora_rank);
        let mut weights = Vec::new();
        for segment in case.segments.iter().filter(|segment| segment.rows > 0) {
            for site in &case.sites {
                let ((a_at, b_at), n) = (halves(segment, site), site.out_len);
                let mut a = b.trainable(Shape { in_dim: d, out_dim: r })?;
                b.refresh(&mut a, &case.params, a_at)?;
                let (mut half, mut across) = (vec![0.0; n * r], vec![0.0; n * r]);
                b.read(&case.params, b_at, &mut half)?;
                for (i, value) in half.into_iter().enumerate() {
                    across[i % r * n + i / r] = value;
                }
                let across = table(b, &across)?;
                let mut transposed = b.trainable(Shape { in_dim: n, out_dim: r })?;
                b.refresh(&mut transposed, &across, 0)?;
                weights.push([a, transposed]);
            }
        }
        let inner = case.rows * r;
        Ok(Self { weights, s: b.alloc(inner)?, ds: b.alloc(inner)?, case })
    }

    pub(super) fn run(mut self, backward: bool) -> Run {
        Box::new(move || if backward { self.backward() } else { self.forward() })
    }

    /// `S = X Aᵀ`, `Y += S Bᵀ`.
    pub(super) fn forward(&mut self) -> Result<()> {
        let Self { case, weights, s, .. } = self;
        let (d, r, stride) = (case.d, case.lora_rank, case.width);
        let busy = case.segments.iter().filter(|segment| segment.rows > 0);
        let calls = busy.flat_map(|segment| case.sites.iter().map(move |site| (segment, site)));
        for ((segment, site), [a, across]) in calls.zip(weights.iter()) {
            let (first, rows) = (segment.row_start as usize, segment.rows as usize);
            let x = Mat::at(&case.x, first * d, d);
            product(&case.b, x, a, (MatMut::new(s, r), rows))?;
            // Bᵀ [r, n] is the weight n -> r; its backward is the product with Bᵀ that adds.
            case.b.linear_backward(linear::Backward {
                dy: Mat::new(s, r),
                weight: across,
                dx: MatMut::at(&mut case.y, first * stride + site.y_start, stride),
                accumulate: true,
                rows,
            })?;
        }
        Ok(())
    }

    /// `S = X Aᵀ`, `dS = dY B`, `dB += dYᵀ S`, `dA += dSᵀ X`, `dX += dS A`.
    pub(super) fn backward(&mut self) -> Result<()> {
        let Self { case, weights, s, ds } = self;
        let (d, r, stride) = (case.d, case.lora_rank, case.width);
        let busy = case.segments.iter().filter(|segment| segment.rows > 0);
        let calls = busy.flat_map(|segment| case.sites.iter().map(move |site| (segment, site)));
        for ((segment, site), [a, across]) in calls.zip(weights.iter()) {
            let (first, rows) = (segment.row_start as usize, segment.rows as usize);
            let ((a_at, b_at), n) = (halves(segment, site), site.out_len);
            let x = Mat::at(&case.x, first * d, d);
            let dy = Mat::at(&case.dy, first * stride + site.y_start, stride);
            product(&case.b, x, a, (MatMut::new(s, r), rows))?;
            product(&case.b, dy, across, (MatMut::new(ds, r), rows))?;
            let sums = [
                (Shape { in_dim: r, out_dim: n }, Mat::new(&*s, r), dy, b_at),
                (Shape { in_dim: d, out_dim: r }, x, Mat::new(&*ds, r), a_at),
            ];
            for (shape, x, dy, weight_offset) in sums {
                let (grads, bias_offset) = (&mut case.grads, None);
                case.b.linear_weight_gradient(WeightGradient {
                    shape,
                    x,
                    dy,
                    rows,
                    grads,
                    weight_offset,
                    bias_offset,
                })?;
            }
            case.b.linear_backward(linear::Backward {
                dy: Mat::new(ds, r),
                weight: a,
                dx: MatMut::at(&mut case.dx, first * d, d),
                accumulate: true,
                rows,
            })?;
        }
        Ok(())
    }
}

fn product<B: Subject>(
    b: &B,
    x: Mat<'_, B::Buf<B::Act>>,
    weight: &B::Weight,
    (y, rows): (MatMut<'_, B::Buf<B::Act>>, usize),
) -> Result<()> {
    b.linear_forward(linear::Forward { x, weight, bias: None, residual: None, y, rows })
}

#[cfg(test)]
mod tests {
    //! With whole numbers every sum is exact in `bf16` too, so the others must give what grouped LoRA gives.

    use super::*;
    use emulator::{Emulator, Mode};
    use kernels::Cpu;

    const SIZES: &str = "rows=24,d=16,n=24,kv=8,adapters=4,lora_rank=4,skew=1,dropout=0";

    fn whole<B: Subject>(b: &B) -> Case<B> {
        let mut case = Case::new(b, &Sizes::parse(SIZES).unwrap()).unwrap();
        assert!(case.segments.iter().filter(|s| s.rows > 1).count() > 1, "{:?}", case.segments);
        let draw = |seed: u32, i: usize| {
            let number = u32::try_from(i).unwrap();
            (kernels::random::uniform_f32([seed, 3], [number, 0, 0, 0]) * 3.0).floor() - 1.0
        };
        let act = |seed, len| (0..len).map(|i| B::act(draw(seed, i))).collect::<Vec<_>>();
        b.write(&mut case.x, 0, &act(1, case.rows * case.d)).unwrap();
        b.write(&mut case.dy, 0, &act(2, case.rows * case.width)).unwrap();
        let params: Vec<f32> = (0..case.params.len()).map(|i| draw(3, i)).collect();
        b.write(&mut case.params, 0, &params).unwrap();
        case
    }

    /// `Y`, `dX` and the gradients.
    fn results<B: Subject>(case: &Case<B>) -> [Vec<f32>; 3] {
        let act = |buf: &B::Buf<B::Act>| {
            let mut got = vec![B::act(0.0); buf.len()];
            case.b.read(buf, 0, &mut got).unwrap();
            got.into_iter().map(Into::into).collect()
        };
        let mut grads = vec![0.0; case.grads.len()];
        case.b.read(&case.grads, 0, &mut grads).unwrap();
        [act(&case.y), act(&case.dx), grads]
    }

    fn grouped<B: Subject>(b: &B) -> [Vec<f32>; 3] {
        let mut case = whole(b);
        case.forward().unwrap();
        case.backward().unwrap();
        let results = results(&case);
        for result in &results {
            assert!(result.iter().filter(|value| **value != 0.0).count() > result.len() / 4);
        }
        results
    }

    #[test]
    fn products_one_after_another_are_grouped_lora() {
        let mut linears = Linears::of(whole(&Cpu)).unwrap();
        linears.forward().unwrap();
        linears.backward().unwrap();
        assert!(results(&linears.case) == grouped(&Cpu), "on processors");
        let gpu = Gpu::new(Emulator::open(Mode::Fast, &[]).unwrap()).unwrap();
        let mut products = Products::of(whole(&gpu)).unwrap();
        products.forward().unwrap();
        products.backward().unwrap();
        assert!(results(&products.case) == grouped(&gpu), "on the emulator");
        assert!(results(&products.case) == grouped(&Cpu), "in bf16");
    }
}
