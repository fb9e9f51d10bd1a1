//! Forward: sequences in parallel, and blocks of rows of a sequence; every row has one owner.

use super::tile::{Columns, Running, Scratch, floats, whole_vectors};
use super::{COLUMNS, Forward, Head, KEYS, Sequence, Span, check_order};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::lanes::{self, LANES};
use crate::product::{Left, Product, Rows};
use std::cell::RefCell;

/// Rows of a task: a whole number of column tiles for any number of heads that share keys.
const BLOCK_ROWS: usize = COLUMNS;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

pub(super) fn run(args: Forward<'_, Cpu>) -> Result<()> {
    let Forward { heads, routing, q, k, v, out, lse, q_rows, k_rows: _ } = args;
    let sequences = &routing.sequences[..routing.num_sequences];
    check_order("attention_forward", sequences, |s| (s.q_start, s.q_len), q_rows)?;
    let head = Head { heads, q, k, v, limits: &routing.limits[..q_rows], kv_head: 0 };
    let (start, stride) = (out.start, out.stride);
    let out = if q_rows == 0 { &mut [] } else { &mut out.buf[start..] };
    let rows =
        OutRows { first: 0, end: q_rows, stride, out, lse: &mut lse[..q_rows * heads.heads] };
    each_sequence(&head, sequences, rows);
    Ok(())
}

/// Rows of the result that one task owns.
struct OutRows<'a> {
    first: usize,
    end: usize,
    stride: usize,
    out: &'a mut [f32],
    lse: &'a mut [f32],
}

impl<'a> OutRows<'a> {
    fn split_at(self, row: usize, heads: usize) -> (Self, Self) {
        let row = row.clamp(self.first, self.end);
        let count = row - self.first;
        let (a, b) = self.out.split_at_mut((count * self.stride).min(self.out.len()));
        let (c, d) = self.lse.split_at_mut(count * heads);
        (
            Self { first: self.first, end: row, stride: self.stride, out: a, lse: c },
            Self { first: row, end: self.end, stride: self.stride, out: b, lse: d },
        )
    }

    /// Rows that no sequence covers.
    fn clear(self, width: usize) {
        let rows = self.end - self.first;
        for row in self.out.chunks_mut(self.stride.max(1)).take(rows) {
            row[..width].fill(0.0);
        }
        self.lse.fill(0.0);
    }
}

/// Halves the sequences down to one; `rows` reach to the next sequence's first row.
fn each_sequence(head: &Head<'_>, sequences: &[Sequence], rows: OutRows<'_>) {
    let heads = head.heads.heads;
    match sequences {
        [] => rows.clear(head.heads.q_dim()),
        [s] => {
            let start = if s.q_len == 0 { rows.first } else { s.q_start as usize };
            let (before, rows) = rows.split_at(start, heads);
            let (rows, after) = rows.split_at(start + s.q_len as usize, heads);
            before.clear(head.heads.q_dim());
            after.clear(head.heads.q_dim());
            each_block(head, s, rows);
        }
        _ => {
            let (left, right) = sequences.split_at(sequences.len() / 2);
            let cut = right.iter().find(|s| s.q_len > 0).map_or(rows.end, |s| s.q_start as usize);
            let (a, b) = rows.split_at(cut, heads);
            rayon::join(|| each_sequence(head, left, a), || each_sequence(head, right, b));
        }
    }
}

/// Halves the rows of a sequence down to blocks.
fn each_block(head: &Head<'_>, s: &Sequence, rows: OutRows<'_>) {
    let count = rows.end - rows.first;
    if count <= BLOCK_ROWS {
        if count > 0 {
            SCRATCH.with_borrow_mut(|scratch| block(head, s, rows, scratch));
        }
        return;
    }
    let cut = rows.first + count.div_ceil(BLOCK_ROWS) / 2 * BLOCK_ROWS;
    let (a, b) = rows.split_at(cut, head.heads.heads);
    rayon::join(|| each_block(head, s, a), || each_block(head, s, b));
}

/// One block of rows, all heads.
fn block(head: &Head<'_>, s: &Sequence, mut rows: OutRows<'_>, scratch: &mut Scratch) {
    let begin = rows.first - s.q_start as usize;
    for kv_head in 0..head.heads.kv_heads {
        let head = Head { kv_head, ..*head };
        let end = (begin + rows.end - rows.first) * head.per_row();
        for first in (begin * head.per_row()..end).step_by(COLUMNS) {
            let q_start = s.q_start as usize;
            let columns = Columns { q_start, first, count: COLUMNS.min(end - first) };
            tile(&head, s, columns, &mut rows, scratch);
        }
    }
}

/// Some columns against all keys they see.
fn tile(
    head: &Head<'_>,
    s: &Sequence,
    columns: Columns,
    rows: &mut OutRows<'_>,
    scratch: &mut Scratch,
) {
    let (width, padded) = (head.width(), head.width().next_multiple_of(LANES));
    let (vectors, stride) = (columns.vectors(), columns.vectors() * LANES);
    let Scratch { q_columns, scores, sums, padded: padded_values, .. } = scratch;
    let q_columns = floats(q_columns, width * stride);
    let scores = floats(scores, KEYS * stride);
    let sums = floats(sums, COLUMNS * padded);
    let q = Rows { data: &head.q.buf[head.q.start..], stride: head.q.stride };
    columns.transpose(head, q, head.heads.scale, q_columns);
    let limits = columns.limits(head);
    let (least, most) = (limits[0] as usize, limits[COLUMNS - 1] as usize);
    let mut maximum = [f32::NEG_INFINITY; COLUMNS];
    let (mut total, mut factor) = ([0.0; COLUMNS], [0.0; COLUMNS]);
    let mut fresh = true;
    for span in Span::of(s, most) {
        for first in (0..span.len).step_by(KEYS) {
            let keys = KEYS.min(span.len - first);
            let scores = &mut scores[..keys * stride];
            Product {
                left: Left::AsIs,
                a: head.rows(head.k, span.start + first),
                b: Rows { data: q_columns, stride },
                c: scores,
                c_stride: stride,
                rows: keys,
                vectors,
                depth: width,
                accumulate: false,
            }
            .run();
            lanes::run(Running {
                vectors,
                scores,
                limits: (span.own && first + keys > least).then_some((first, &limits)),
                maximum: &mut maximum,
                total: &mut total,
                factor: &mut factor,
            });
            if !fresh {
                rescale(sums, padded, &factor[..columns.count]);
            }
            let values = head.rows(head.v, span.start + first);
            Product {
                left: Left::Transposed,
                a: Rows { data: scores, stride },
                b: whole_vectors(values, width, keys, padded_values),
                c: sums,
                c_stride: padded,
                rows: columns.count,
                vectors: padded / LANES,
                depth: keys,
                accumulate: !fresh,
            }
            .run();
            fresh = false;
        }
    }
    for c in 0..columns.count {
        let row = columns.row(head, c) - rows.first;
        let query_head = (columns.first + c) % head.per_row();
        let inverse = 1.0 / total[c];
        let at = row * rows.stride + head.q_offset() + query_head * width;
        for (out, sum) in rows.out[at..][..width].iter_mut().zip(&sums[c * padded..]) {
            *out = sum * inverse;
        }
        rows.lse[row * head.heads.heads + head.kv_head * head.per_row() + query_head] =
            maximum[c] + total[c].ln();
    }
}

/// Multiplies each column's sum by its factor; most factors are 1 after the first tile.
fn rescale(sums: &mut [f32], stride: usize, factors: &[f32]) {
    for (sums, factor) in sums.chunks_exact_mut(stride).zip(factors) {
        if factor.to_bits() != 1.0f32.to_bits() {
            sums.iter_mut().for_each(|sum| *sum *= factor);
        }
    }
}
