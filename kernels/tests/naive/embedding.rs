//! Rows by index, one element at a time.

use super::Naive;
use kernels::backend::Buffer;
use kernels::embedding::{Embed, Embedding, Gather, Lookup, LookupGradient, Scatter};
use kernels::error::{Error, Result, check_len};
use kernels::linear::Linear;

fn outside(op: &'static str, row: usize) -> Result<()> {
    Err(Error::Routing { op, what: format!("row {row}") })
}

impl Embedding for Naive {
    fn embed(&self, a: Embed<'_, Self>) -> Result<()> {
        let shape = self.shape(a.table);
        a.check(shape.in_dim)?;
        for row in 0..a.rows {
            let id = a.ids.get(row) as usize;
            if id >= shape.out_dim {
                return outside("embed", row);
            }
            for c in 0..shape.in_dim {
                let mut x = a.table.at(c, id);
                if let Some((p, at)) = a.positions {
                    let i = at.get(row) as usize * shape.in_dim + c;
                    if i >= p.len() {
                        return outside("embed", row);
                    }
                    x += p.at(i);
                }
                a.x.buf.put(a.x.start + row * a.x.stride + c, x);
            }
        }
        Ok(())
    }

    fn gather(&self, a: Gather<'_, Self>) -> Result<()> {
        a.check()?;
        for row in 0..a.rows {
            let from = a.x.start + a.index.get(row) as usize * a.x.stride;
            check_len("gather", "indexed rows", from + a.dim, a.x.buf.len())?;
            for c in 0..a.dim {
                a.y.buf.set(a.y.start + row * a.y.stride + c, a.x.buf.get(from + c));
            }
        }
        Ok(())
    }

    fn scatter(&self, a: Scatter<'_, Self>) -> Result<()> {
        a.check()?;
        for row in 0..a.rows {
            let to = a.y.start + a.index.get(row) as usize * a.y.stride;
            check_len("scatter", "indexed rows", to + a.dim, a.y.buf.len())?;
            for c in 0..a.dim {
                let x = a.x.buf.at(a.x.start + row * a.x.stride + c);
                a.y.buf.put(to + c, if a.accumulate { a.y.buf.at(to + c) + x } else { x });
            }
        }
        Ok(())
    }

    fn lookup(&self, a: Lookup<'_, Self>) -> Result<()> {
        a.check()?;
        let id = |row| a.ids.buf.get(a.ids.start + row * a.ids.stride) as usize;
        if let Some(row) = (0..a.rows).find(|&row| id(row) >= a.values) {
            return outside("lookup", row);
        }
        for row in 0..a.rows {
            for c in 0..a.dim {
                let (e, to) =
                    (a.params.at(a.offset + id(row) * a.dim + c), a.x.start + row * a.x.stride + c);
                a.x.buf.put(to, if a.accumulate { a.x.buf.at(to) + e } else { e });
            }
        }
        Ok(())
    }

    fn lookup_gradient(&self, a: LookupGradient<'_, Self>) -> Result<()> {
        a.check()?;
        let id = |row| a.ids.buf.get(a.ids.start + row * a.ids.stride) as usize;
        if let Some(row) = (0..a.rows).find(|&row| id(row) >= a.values) {
            return outside("lookup_gradient", row);
        }
        for row in 0..a.rows {
            for c in 0..a.dim {
                let dx = a.dx.buf.at(a.dx.start + row * a.dx.stride + c);
                a.grads.add(a.offset + id(row) * a.dim + c, dx);
            }
        }
        Ok(())
    }
}
