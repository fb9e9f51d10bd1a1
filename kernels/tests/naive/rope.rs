//! Rotary positions, one pair at a time.

use super::Naive;
use kernels::backend::Buffer;
use kernels::error::{Error, Result};
use kernels::rope::{Rope, Rotate};

impl Rope for Naive {
    fn rope(&self, a: Rotate<'_, Self>) -> Result<()> {
        a.check()?;
        let half = a.head_dim / 2;
        for i in 0..a.rows {
            let position = a.positions.get(i) as usize;
            if (position + 1) * a.head_dim > a.table.len() {
                return Err(Error::Routing { op: "rope", what: format!("row {i}") });
            }
            for head in 0..a.heads {
                for c in 0..half {
                    let cos = a.table.at(position * a.head_dim + c);
                    let sin = a.table.at(position * a.head_dim + half + c);
                    let sin = if a.inverse { -sin } else { sin };
                    let low = a.x.start + i * a.x.stride + head * a.head_dim + c;
                    let (x, y) = (a.x.buf.at(low), a.x.buf.at(low + half));
                    a.x.buf.put(low, x * cos - y * sin);
                    a.x.buf.put(low + half, y * cos + x * sin);
                }
            }
        }
        Ok(())
    }
}
