//! Rows in parallel, in place.

use super::{Rope, Rotate};
use crate::cpu::{Cpu, ROWS_PER_TASK, rows_mut};
use crate::error::{Error, Result};
use crate::lanes::{self, Kernel};
use pulp::Simd;
use rayon::prelude::*;

impl Rope for Cpu {
    fn rope(&self, args: Rotate<'_, Self>) -> Result<()> {
        args.check()?;
        let Rotate { x, positions, table, heads, head_dim, inverse, rows } = args;
        if heads * head_dim == 0 {
            return Ok(());
        }
        let known = table.len() / head_dim;
        let positions = &positions[..rows];
        if let Some(row) = positions.iter().position(|&p| p as usize >= known) {
            let what = format!("row {row}: position {} of {known}", positions[row]);
            return Err(Error::Routing { op: "rope", what });
        }
        rows_mut(x.buf, (x.start, x.stride), rows).enumerate().for_each(|(task, x_rows)| {
            let x_rows = x_rows.chunks_mut(x.stride);
            for (x, &position) in x_rows.zip(&positions[task * ROWS_PER_TASK..]) {
                let angles = &table[position as usize * head_dim..][..head_dim];
                let x = &mut x[..heads * head_dim];
                lanes::run(Row { x, angles, inverse });
            }
        });
        Ok(())
    }
}

struct Row<'a> {
    x: &'a mut [f32],
    /// `cos` then `sin`.
    angles: &'a [f32],
    inverse: bool,
}

impl Kernel for Row<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let half = self.angles.len() / 2;
        let (cos, sin) = self.angles.split_at(half);
        let sign = if self.inverse { -1.0 } else { 1.0 };
        for head in self.x.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for (((low, high), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let (a, b, s) = (*low, *high, sign * s);
                *low = a.mul_add(*c, -(b * s));
                *high = b.mul_add(*c, a * s);
            }
        }
    }
}
