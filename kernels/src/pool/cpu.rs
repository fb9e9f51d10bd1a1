//! Ranges in parallel forwards, rows in parallel backwards.

use super::{Mean, MeanBackward, Pool, Range, check_ranges};
use crate::cpu::{Cpu, ROWS_PER_TASK, rows_mut};
use crate::error::Result;
use rayon::prelude::*;

impl Pool for Cpu {
    fn pool_mean(&self, args: Mean<'_, Self>) -> Result<()> {
        args.check()?;
        let Mean { x, ranges, y, num_ranges, rows, dim } = args;
        let ranges = &ranges[..num_ranges];
        check_ranges("pool_mean", ranges, rows, false)?;
        // One range a task: a history is long.
        rows_mut(y.buf, (y.start, y.stride), num_ranges).enumerate().for_each(|(task, y_rows)| {
            let ranges = &ranges[task * ROWS_PER_TASK..];
            ranges.par_iter().zip(y_rows.par_chunks_mut(y.stride)).for_each(|(range, y)| {
                let y = &mut y[..dim];
                y.fill(0.0);
                for row in range.rows() {
                    let x = &x.buf[x.start + row * x.stride..][..dim];
                    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
                }
                if range.len > 0 {
                    let len = count(*range);
                    y.iter_mut().for_each(|y| *y /= len);
                }
            });
        });
        Ok(())
    }

    fn pool_mean_backward(&self, args: MeanBackward<'_, Self>) -> Result<()> {
        args.check()?;
        let MeanBackward { dy, ranges, dx, accumulate, num_ranges, rows, dim } = args;
        let ranges = &ranges[..num_ranges];
        check_ranges("pool_mean_backward", ranges, rows, true)?;
        rows_mut(dx.buf, (dx.start, dx.stride), rows).enumerate().for_each(|(task, dx_rows)| {
            let first = task * ROWS_PER_TASK;
            let end = rows.min(first + ROWS_PER_TASK);
            let past = ranges.partition_point(|range| range.rows().end <= first);
            for (j, range) in ranges.iter().enumerate().skip(past) {
                let mine = range.rows().start.max(first)..range.rows().end.min(end);
                if range.rows().start >= end {
                    break;
                }
                let (len, dy) = (count(*range), &dy.buf[dy.start + j * dy.stride..][..dim]);
                for row in mine {
                    let dx = &mut dx_rows[(row - first) * dx.stride..][..dim];
                    for (dx, dy) in dx.iter_mut().zip(dy) {
                        let v = dy / len;
                        *dx = if accumulate { *dx + v } else { v };
                    }
                }
            }
        });
        Ok(())
    }
}

/// The number of rows of a range.
#[expect(clippy::cast_precision_loss, reason = "ranges are far below 2^24 rows")]
fn count(range: Range) -> f32 {
    range.len as f32
}
