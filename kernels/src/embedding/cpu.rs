//! Rows copied in parallel; gradients of a table in `table.rs`.

use super::table::add_gradient;
use super::{Embed, Embedding, Gather, Lookup, LookupGradient, Scatter};
use crate::backend::Mat;
use crate::cpu::{Cpu, CpuBuf, ROWS_PER_TASK, rows_mut};
use crate::error::{Error, Result, check_len};
use crate::linear::Linear;
use crate::linear::operand::Rows;
use rayon::prelude::*;

impl Embedding for Cpu {
    fn embed(&self, args: Embed<'_, Self>) -> Result<()> {
        let shape = self.shape(args.table);
        args.check(shape.in_dim)?;
        let Embed { table, ids, positions, x, rows } = args;
        let (dim, table) = (shape.in_dim, table.outputs("embed")?);
        check_below("embed", "id", &ids[..rows], shape.out_dim)?;
        let positions = positions.map(|(p, at)| (&p[..], &at[..rows]));
        if let Some((p, at)) = positions {
            check_below("embed", "position", at, p.len() / dim.max(1))?;
        }
        rows_mut(x.buf, (x.start, x.stride), rows).enumerate().for_each(|(task, x_rows)| {
            let first = task * ROWS_PER_TASK;
            for (row, x) in (first..rows).zip(x_rows.chunks_mut(x.stride)) {
                let mut to = &mut x[..dim];
                for piece in table.column(ids[row] as usize) {
                    let (now, later) = to.split_at_mut(piece.len());
                    now.copy_from_slice(piece);
                    to = later;
                }
                if let Some((p, at)) = positions {
                    let p = &p[at[row] as usize * dim..];
                    x.iter_mut().zip(&p[..dim]).for_each(|(x, p)| *x += p);
                }
            }
        });
        Ok(())
    }

    fn gather(&self, args: Gather<'_, Self>) -> Result<()> {
        args.check()?;
        let Gather { x, index, y, rows, dim } = args;
        let index = &index[..rows];
        check_rows("gather", index, (x.start, x.stride, dim), x.buf.len())?;
        rows_mut(y.buf, (y.start, y.stride), rows).enumerate().for_each(|(task, y_rows)| {
            let index = &index[task * ROWS_PER_TASK..];
            for (&from, y) in index.iter().zip(y_rows.chunks_mut(y.stride)) {
                let from = x.start + from as usize * x.stride;
                y[..dim].copy_from_slice(&x.buf[from..from + dim]);
            }
        });
        Ok(())
    }

    fn scatter(&self, args: Scatter<'_, Self>) -> Result<()> {
        args.check()?;
        let Scatter { x, index, y, accumulate, rows, dim } = args;
        let index = &index[..rows];
        check_rows("scatter", index, (y.start, y.stride, dim), y.buf.len())?;
        // On one thread: the rows written lie anywhere, and a copy is bound by memory.
        for (row, &to) in index.iter().enumerate() {
            let from = &x.buf[x.start + row * x.stride..][..dim];
            let to = &mut y.buf[y.start + to as usize * y.stride..][..dim];
            if accumulate {
                to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
            } else {
                to.copy_from_slice(from);
            }
        }
        Ok(())
    }

    fn lookup(&self, args: Lookup<'_, Self>) -> Result<()> {
        args.check()?;
        let Lookup { params, offset, values, dim, ids, x, accumulate, rows } = args;
        let ids = Column { ids, rows };
        ids.check_below("lookup", values)?;
        let table = &params[offset..offset + values * dim];
        rows_mut(x.buf, (x.start, x.stride), rows).enumerate().for_each(|(task, x_rows)| {
            let first = task * ROWS_PER_TASK;
            for (row, x) in (first..rows).zip(x_rows.chunks_mut(x.stride)) {
                let (x, from) = (&mut x[..dim], &table[ids.at(row) * dim..][..dim]);
                if accumulate {
                    x.iter_mut().zip(from).for_each(|(x, from)| *x += from);
                } else {
                    x.copy_from_slice(from);
                }
            }
        });
        Ok(())
    }

    fn lookup_gradient(&self, args: LookupGradient<'_, Self>) -> Result<()> {
        args.check()?;
        let LookupGradient { dx, ids, grads, offset, values, dim, rows } = args;
        let ids = Column { ids, rows };
        ids.check_below("lookup_gradient", values)?;
        let dx = Rows { data: dx.buf, start: dx.start, stride: dx.stride };
        let table = &mut grads[offset..offset + values * dim];
        add_gradient(dx, (rows, dim), |row| ids.at(row), table);
        Ok(())
    }
}

/// A column of ids.
#[derive(Clone, Copy)]
struct Column<'a> {
    ids: Mat<'a, CpuBuf<u32>>,
    rows: usize,
}

impl Column<'_> {
    fn at(&self, row: usize) -> usize {
        self.ids.buf[self.ids.start + row * self.ids.stride] as usize
    }

    /// Refuses ids that are not below `end`.
    fn check_below(&self, op: &'static str, end: usize) -> Result<()> {
        match (0..self.rows).find(|&row| self.at(row) >= end) {
            None => Ok(()),
            Some(row) => {
                let what = format!("row {row}: id {} of {end}", self.at(row));
                Err(Error::Routing { op, what })
            }
        }
    }
}

/// Refuses indices that are not below `end`.
fn check_below(op: &'static str, what: &str, index: &[u32], end: usize) -> Result<()> {
    match index.iter().position(|&i| i as usize >= end) {
        None => Ok(()),
        Some(row) => {
            let what = format!("row {row}: {what} {} of {end}", index[row]);
            Err(Error::Routing { op, what })
        }
    }
}

/// Refuses rows that leave a window of rows of width `dim`.
fn check_rows(
    op: &'static str,
    index: &[u32],
    (start, stride, dim): (usize, usize, usize),
    len: usize,
) -> Result<()> {
    let Some(&last) = index.iter().max() else { return Ok(()) };
    check_len(op, "indexed rows", start + last as usize * stride + dim, len)
}
