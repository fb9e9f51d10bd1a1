//! Frozen q, k and v with the adapters on them, as a block calls them.

use super::super::model::{Unit, Work};
use super::super::sizes::Sizes;
use super::lora::{Case, PRESETS, terms};
use super::{Op, Run, Subject, real, weight};
use kernels::Result;
use kernels::adapted::{Adapters, Backward, Forward, Part, Product};
use kernels::backend::{Mat, MatMut};
use kernels::linear;

pub(super) fn ops<B: Subject>() -> Vec<Op<B>> {
    let op = |name, work, build, rivals| Op {
        name,
        family: "adapted",
        presets: PRESETS,
        work,
        build,
        rivals,
    };
    vec![
        op("adapted_forward", forward_work, forward, |b, sizes| rivals(b, sizes, false)),
        op("adapted_backward", backward_work, backward, |b, sizes| rivals(b, sizes, true)),
    ]
}

/// `X`, weights and adapters read, `Y` written; the products' operations and the adapters'.
fn forward_work(sizes: &Sizes, act: f64) -> Work {
    let ([rows, r, inputs, outs, params], d) = (terms(sizes), real(sizes.count("d")));
    let bytes = act * (rows * (d + outs) + d * outs) + 4.0 * params;
    let flop = 2.0 * rows * d * outs + 2.0 * rows * r * (inputs + outs);
    Work { bytes, flop, unit: Unit::Bf16 }
}

/// `X`, `dY`, weights and adapters read, `dX` written, gradients read and written.
fn backward_work(sizes: &Sizes, act: f64) -> Work {
    let ([rows, r, inputs, outs, params], d) = (terms(sizes), real(sizes.count("d")));
    let bytes = act * (rows * (2.0 * d + outs) + d * outs) + 12.0 * params;
    let flop = 2.0 * rows * d * outs + 2.0 * rows * r * (3.0 * inputs + 2.0 * outs);
    Work { bytes, flop, unit: Unit::Bf16 }
}

fn forward<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let mut block = Block::new(b, sizes)?;
    Ok(Box::new(move || block.forward()))
}

fn backward<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let mut block = Block::new(b, sizes)?;
    Ok(Box::new(move || block.backward()))
}

/// The products first and the adapters added to them; on a CPU that is the operation itself.
fn rivals<B: Subject>(b: &B, sizes: &Sizes, backward: bool) -> Result<Vec<(&'static str, Run)>> {
    if !B::QUEUES {
        return Ok(Vec::new());
    }
    let mut block = Block::new(b, sizes)?;
    let run: Run = if backward {
        Box::new(move || block.product_first_back())
    } else {
        Box::new(move || block.product_first())
    };
    Ok(vec![("product_first", run)])
}

/// A pack with its adapters, and the weights below.
#[derive(Debug)]
struct Block<B: Subject> {
    case: Case<B>,
    weights: Vec<B::Weight>,
}

impl<B: Subject> Block<B> {
    fn new(b: &B, sizes: &Sizes) -> Result<Self> {
        let case = Case::new(b, sizes)?;
        let weights = case.sites.iter().map(|at| weight(b, case.d, at.out_len));
        Ok(Self { weights: weights.collect::<Result<_>>()?, case })
    }

    fn forward(&mut self) -> Result<()> {
        let Self { case, weights } = self;
        case.b.adapted_forward(Forward {
            x: Mat::new(&case.x, case.d),
            products: &products(case, weights),
            residual: None,
            y: MatMut::new(&mut case.y, case.width),
            adapters: Adapters {
                parts: &[Part {
                    sites: &case.sites,
                    segments: &case.segments_there,
                    num_segments: case.segments.len(),
                }],
                row_token: &case.row_token,
                params: &case.params,
            },
            rows: case.rows,
        })
    }

    fn backward(&mut self) -> Result<()> {
        let Self { case, weights } = self;
        case.b.adapted_backward(Backward {
            x: Mat::new(&case.x, case.d),
            products: &products(case, weights),
            dy: Mat::new(&case.dy, case.width),
            adapters: Adapters {
                parts: &[Part {
                    sites: &case.sites,
                    segments: &case.segments_there,
                    num_segments: case.segments.len(),
                }],
                row_token: &case.row_token,
                params: &case.params,
            },
            grads: &mut case.grads,
            dx: Some(MatMut::new(&mut case.dx, case.d)),
            rows: case.rows,
        })
    }

    fn product_first(&mut self) -> Result<()> {
        let Self { case, weights } = self;
        for (at, weight) in case.sites.iter().zip(weights) {
            case.b.linear_forward(linear::Forward {
                x: Mat::new(&case.x, case.d),
                weight,
                bias: None,
                residual: None,
                y: MatMut::at(&mut case.y, at.y_start, case.width),
                rows: case.rows,
            })?;
        }
        case.forward()
    }

    fn product_first_back(&mut self) -> Result<()> {
        let Self { case, weights } = self;
        for (i, (at, weight)) in case.sites.iter().zip(weights).enumerate() {
            case.b.linear_backward(linear::Backward {
                dy: Mat::at(&case.dy, at.y_start, case.width),
                weight,
                dx: MatMut::new(&mut case.dx, case.d),
                accumulate: i > 0,
                rows: case.rows,
            })?;
        }
        case.backward()
    }
}

/// The products below the sites.
fn products<'a, B: Subject>(case: &Case<B>, weights: &'a [B::Weight]) -> Vec<Product<'a, B>> {
    let sites = case.sites.iter().zip(weights);
    sites.map(|(at, weight)| Product { weight, bias: None, y_start: at.y_start }).collect()
}
