//! Gradients of a table's rows, by several threads.
//!
//! Rows of `dX` are sorted by id, then the table is halved between ids, and a row that many ids name is
//! halved between columns; so no two tasks write the same element, each of which takes its terms in the
//! order of the rows of `dX`. Start at [`add_gradient`].

use crate::linear::operand::Rows;
use std::cell::Cell;

/// Additions below which another task costs more than it brings.
const TASK_WORK: usize = 1 << 14;

/// Fewest columns of a task: a few cache lines.
const TASK_COLUMNS: usize = 64;

thread_local! {
    /// Id and row of each row of `dX`, sorted, taken out while a gradient runs; grows once.
    static ORDER: Cell<Vec<(usize, usize)>> = const { Cell::new(Vec::new()) };
}

/// `table[id(i)] += dX[i]` for `i` in `0..rows` ascending; every id is below the table's rows of `dim`.
pub(super) fn add_gradient(
    dx: Rows<'_>,
    (rows, dim): (usize, usize),
    id: impl Fn(usize) -> usize,
    table: &mut [f32],
) {
    let pass = Pass { dx, dim };
    if rayon::current_num_threads() == 1 || rows * dim <= TASK_WORK {
        for row in 0..rows {
            pass.add(row, 0, &mut table[id(row) * dim..][..dim]);
        }
        return;
    }
    let mut order = ORDER.take();
    order.clear();
    order.extend((0..rows).map(|row| (id(row), row)));
    order.sort_unstable();
    pass.split(&order, table, 0);
    ORDER.set(order);
}

/// What every task reads.
#[derive(Clone, Copy)]
struct Pass<'a> {
    dx: Rows<'a>,
    dim: usize,
}

impl Pass<'_> {
    /// Adds row `row` from column `first` on.
    fn add(&self, row: usize, first: usize, to: &mut [f32]) {
        let from = self.dx.row(row, first..first + to.len());
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    }

    /// Halves the ids, and the table between them; `table` begins at its row `begin`.
    fn split(&self, order: &[(usize, usize)], table: &mut [f32], begin: usize) {
        let at = |id: usize| (id - begin) * self.dim;
        if order.len() * self.dim <= TASK_WORK {
            for &(id, row) in order {
                self.add(row, 0, &mut table[at(id)..][..self.dim]);
            }
            return;
        }
        let middle = order[order.len() / 2].0;
        let cut = match order.partition_point(|&(id, _)| id < middle) {
            0 => order.partition_point(|&(id, _)| id <= middle),
            cut => cut,
        };
        let Some(&(id, _)) = order.get(cut) else {
            return self.columns(order, 0, &mut table[at(middle)..][..self.dim]);
        };
        let ((left, right), (low, high)) = (order.split_at(cut), table.split_at_mut(at(id)));
        rayon::join(|| self.split(left, low, begin), || self.split(right, high, id));
    }

    /// Adds rows of one id; `to` begins at column `first` of its row of the table.
    fn columns(&self, order: &[(usize, usize)], first: usize, to: &mut [f32]) {
        if order.len() * to.len() <= TASK_WORK || to.len() < 2 * TASK_COLUMNS {
            for &(_, row) in order {
                self.add(row, first, to);
            }
            return;
        }
        let half = to.len() / 2;
        let (left, right) = to.split_at_mut(half);
        rayon::join(
            || self.columns(order, first, left),
            || self.columns(order, first + half, right),
        );
    }
}
