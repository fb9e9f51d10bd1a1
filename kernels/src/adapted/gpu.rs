//! Adapters first: on a GPU they begin the output, and the dense product adds to it (beta one).
//!
//! Adapters write `Y = bias + residual + S'·Bᵀ` and `dX = undrop(dS'·A)` without reading them, for all rows of the pack;
//! what the product then reads of them, it reads beside its arithmetic. A row's order is that of its own layout: the
//! layout whose call begins a range of columns writes the rows outside its segments too, without adapters; every later
//! one writes its own rows anew, whole. So no row meets a rounding that it would not meet alone. Columns of a product
//! that no layout adapts are the product's own from the beginning, with the same bits: what is added there is zero,
//! or rounded likewise.

use super::{Adapted, Backward, Forward, Part, Product};
use crate::error::{Error, Result};
use crate::gpu::{Device, Gpu};
use crate::linear::Linear;
use crate::lora::SiteOutput;
use crate::lora::gpu::first::{Begins, Start};

/// Which adapters begin what.
struct Plan {
    /// For each part the `y_start` of the outputs that earlier parts have begun; `None` where it has nothing to do.
    parts: Vec<Option<Vec<usize>>>,
    /// For each product, whether adapters begin its columns.
    begun: Vec<bool>,
}

fn range(start: usize, len: usize) -> (usize, usize) {
    (start, start.saturating_add(len))
}

fn overlap((a, a_end): (usize, usize), (b, b_end): (usize, usize)) -> bool {
    a < b_end && b < a_end
}

/// Whether a part's call does anything.
fn acts<D: Device>(part: &Part<'_, Gpu<D>>, rows: usize) -> bool {
    let some = |s: &SiteOutput| s.out_len > 0 && s.site.in_dim > 0;
    rows > 0 && part.num_segments > 0 && part.sites.iter().any(some)
}

impl Plan {
    fn new<D: Device>(
        op: &'static str,
        products: &[Product<'_, Gpu<D>>],
        parts: &[Part<'_, Gpu<D>>],
        rows: usize,
    ) -> Result<Self> {
        let columns: Vec<_> =
            products.iter().map(|p| range(p.y_start, p.weight.shape().out_dim)).collect();
        let mut plan = Self { parts: Vec::new(), begun: vec![false; columns.len()] };
        let mut before: Vec<(usize, usize)> = Vec::new();
        for part in parts {
            let outputs: Vec<_> = part
                .sites
                .iter()
                .filter(|s| s.out_len > 0)
                .map(|s| range(s.y_start, s.out_len))
                .collect();
            if !acts(part, rows) {
                plan.parts.push(None);
                continue;
            }
            for &output in &outputs {
                let mut covered = 0;
                for (&column, begun) in columns.iter().zip(&mut plan.begun) {
                    if column.0 >= output.0 && column.1 <= output.1 {
                        covered += column.1 - column.0;
                        *begun = true;
                    }
                }
                let apart = |&other: &(usize, usize)| other == output || !overlap(other, output);
                if covered != output.1 - output.0 || !before.iter().all(apart) {
                    let what = format!("columns {output:?} are not those of whole products");
                    return Err(Error::Routing { op, what });
                }
            }
            plan.parts.push(Some(before.iter().map(|output| output.0).collect()));
            before.extend(outputs);
        }
        Ok(plan)
    }
}

impl<D: Device> Adapted for Gpu<D> {
    /// Order: the adapters layout by layout, with bias and residual and rounded once, then the products.
    fn adapted_forward(&self, mut args: Forward<'_, Self>) -> Result<()> {
        args.check()?;
        for product in args.products {
            args.linear(product).check(product.weight.shape())?;
        }
        let plan = Plan::new("adapted_forward", args.products, args.adapters.parts, args.rows)?;
        let at = args.products.first().map_or(0, |p| p.y_start);
        let start = Start {
            biases: args.products.iter().map(|p| (p.y_start, p.bias)).collect(),
            residual: args.residual.map(|residual| (residual, at)),
        };
        for (part, begun) in args.adapters.parts.iter().zip(&plan.parts) {
            let Some(begun) = begun else { continue };
            self.lora_forward_first(args.lora(part), &start, begun)?;
        }
        for (product, &begun) in args.products.iter().zip(&plan.begun) {
            let product = args.linear(product);
            if begun { self.linear_onto(product)? } else { self.linear_forward(product)? }
        }
        Ok(())
    }

    /// Order: the adapters layout by layout, rounded once, then the products.
    fn adapted_backward(&self, mut args: Backward<'_, Self>) -> Result<()> {
        let mut begins = Begins::AllRows;
        for part in args.adapters.parts {
            if acts(part, args.rows) {
                self.lora_backward_first(args.lora(part), begins)?;
                begins = Begins::OwnRows;
            }
        }
        args.products_back(self, begins == Begins::OwnRows)
    }
}
