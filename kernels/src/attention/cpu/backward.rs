//! Backward: units in parallel, and the key/value heads of a unit; every key has one owner.
//!
//! A *unit* is a run of sequences that share no key with the others: a prefix and all that attend to
//! it, or one sequence alone. A task owns one key/value head of a unit and takes the unit's sequences
//! in order, so `dK`, `dV` of a prefix have one fixed order of additions. Gradients gather in dense
//! scratch, one block for each unit and key/value head, and are copied to their rows by the unit.

use super::tile::{Columns, Line, Recomputed, Scratch, floats, whole_vectors};
use super::{Backward, COLUMNS, Grads, Head, KEYS, QueryGrads, Sequence, Span, check_order};
use crate::backend::{Mat, MatMut};
use crate::cpu::{Cpu, CpuBuf};
use crate::error::{Error, Result};
use crate::lanes::{self, Kernel, LANES};
use crate::product::{Left, Product, Rows};
use pulp::Simd;
use std::cell::RefCell;

const OP: &str = "attention_backward";

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// Units and dense gradients of a whole call, kept by the calling thread.
    static CALL: RefCell<(Vec<Unit>, Vec<Line>)> = RefCell::default();
}

pub(super) fn run(args: Backward<'_, Cpu>) -> Result<()> {
    let Backward { heads, routing, q, k, v, out, lse, dout, grads, q_rows, k_rows } = args;
    let sequences = &routing.sequences[..routing.num_sequences];
    check_order(OP, sequences, |s| (s.q_start, s.q_len), q_rows)?;
    check_order(OP, sequences, |s| (s.k_start, s.k_len), k_rows)?;
    let head = Head { heads, q, k, v, limits: &routing.limits[..q_rows], kv_head: 0 };
    let kept = Kept { head, out, dout, lse: &lse[..q_rows * heads.heads] };
    if matches!(grads.dq, QueryGrads::Beside(_)) {
        check_same_rows(sequences)?;
    }
    // Taken out, not borrowed: while this call waits, its thread may run a task of another call.
    let (mut units, mut lines) = CALL.take();
    let result = Unit::list(sequences, (q_rows, k_rows), &mut units);
    if result.is_ok() {
        let dense = floats(&mut lines, dense_len(&head, (q_rows, k_rows)));
        each_unit(&kept, sequences, &units, Owned::new(grads, dense));
    }
    CALL.replace((units, lines));
    result
}

/// Refuses sequences whose queries are other rows than their keys; empty ones do not count.
fn check_same_rows(sequences: &[Sequence]) -> Result<()> {
    let other = |s: &Sequence| s.q_len != s.k_len || s.q_len > 0 && s.q_start != s.k_start;
    match sequences.iter().position(other) {
        Some(index) => {
            let what = format!("sequence {index}: dQ beside dK, but its queries are other rows");
            Err(Error::Routing { op: OP, what })
        }
        None => Ok(()),
    }
}

/// What a task reads.
#[derive(Clone, Copy)]
struct Kept<'a> {
    head: Head<'a>,
    out: Mat<'a, CpuBuf<f32>>,
    dout: Mat<'a, CpuBuf<f32>>,
    lse: &'a [f32],
}

/// A run of sequences, and the rows from its first to the next unit's first.
#[derive(Debug, Clone, Copy)]
struct Unit {
    sequences: (usize, usize),
    q: (usize, usize),
    k: (usize, usize),
}

impl Unit {
    /// Cuts the sequences wherever no later prefix lies before the cut; the units cover all rows.
    fn list(
        sequences: &[Sequence],
        (q_rows, k_rows): (usize, usize),
        units: &mut Vec<Self>,
    ) -> Result<()> {
        units.clear();
        let mut lowest_prefix = u32::MAX;
        let (mut end, mut q_end, mut k_end) = (sequences.len(), q_rows, k_rows);
        let (mut q_first, mut k_first) = (q_rows, k_rows);
        for (index, s) in sequences.iter().enumerate().rev() {
            if s.p_len > 0 {
                lowest_prefix = lowest_prefix.min(s.p_start);
            }
            q_first = if s.q_len > 0 { s.q_start as usize } else { q_first };
            k_first = if s.k_len > 0 { s.k_start as usize } else { k_first };
            if index == 0 || s.k_len > 0 && s.k_start <= lowest_prefix {
                let (q, k) = if index == 0 { (0, 0) } else { (q_first, k_first) };
                units.push(Self { sequences: (index, end), q: (q, q_end), k: (k, k_end) });
                (end, q_end, k_end) = (index, q, k);
            }
            let prefix_end = s.p_start as usize + s.p_len as usize;
            if s.p_len > 0 && prefix_end > k_first {
                let what = format!("sequence {index}: its prefix does not lie before its own keys");
                return Err(Error::Routing { op: OP, what });
            }
        }
        units.reverse();
        Ok(())
    }
}

/// Dense scratch of some rows: `dK`, `dV` padded to vectors, `dQ` not.
fn dense_len(head: &Head<'_>, (q_rows, k_rows): (usize, usize)) -> usize {
    let padded = head.width().next_multiple_of(LANES);
    2 * k_rows * head.heads.kv_heads * padded + q_rows * head.heads.q_dim()
}

/// How the gradients lie in their rows.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Elements from one row of keys to the next.
    stride: usize,
    /// The same of the rows of `dQ`, where they are apart.
    dq_stride: usize,
    /// First column of `dQ` where it lies beside the others.
    dq: Option<usize>,
    dk: usize,
    dv: usize,
}

/// What a task writes: gradients of its units' rows, and its part of the dense scratch.
struct Owned<'a> {
    layout: Layout,
    /// Rows of keys.
    rows: &'a mut [f32],
    /// Rows of queries; empty where `dQ` lies beside the others.
    dq: &'a mut [f32],
    dense: &'a mut [f32],
}

impl<'a> Owned<'a> {
    fn new(Grads { rows, dq, dk, dv }: Grads<'a, Cpu>, dense: &'a mut [f32]) -> Self {
        let cut = |window: MatMut<'a, CpuBuf<f32>>| {
            let start = window.start.min(window.buf.len());
            (&mut window.buf[start..], window.stride)
        };
        let (column, (dq, dq_stride)) = match dq {
            QueryGrads::Beside(column) => (Some(column), Default::default()),
            QueryGrads::Apart(window) => (None, cut(window)),
        };
        let (rows, stride) = cut(rows);
        Self { layout: Layout { stride, dq_stride, dq: column, dk, dv }, rows, dq, dense }
    }

    fn split_at(self, (q_rows, k_rows): (usize, usize), dense: usize) -> (Self, Self) {
        let cut = |x: &'a mut [f32], at: usize| {
            let at = at.min(x.len());
            x.split_at_mut(at)
        };
        let layout = self.layout;
        let (a, b) = cut(self.rows, k_rows * layout.stride);
        let (c, d) = cut(self.dq, q_rows * layout.dq_stride);
        let (e, f) = cut(self.dense, dense);
        (Self { layout, rows: a, dq: c, dense: e }, Self { layout, rows: b, dq: d, dense: f })
    }
}

/// Halves the units down to one.
fn each_unit(kept: &Kept<'_>, sequences: &[Sequence], units: &[Unit], owned: Owned<'_>) {
    if let [unit] = units {
        return one_unit(kept, sequences, unit, owned);
    }
    if units.is_empty() {
        return;
    }
    let (left, right) = units.split_at(units.len() / 2);
    let rows = (right[0].q.0 - left[0].q.0, right[0].k.0 - left[0].k.0);
    let (a, b) = owned.split_at(rows, dense_len(&kept.head, rows));
    rayon::join(|| each_unit(kept, sequences, left, a), || each_unit(kept, sequences, right, b));
}

/// The key/value heads of a unit in parallel, then their copy to the rows.
fn one_unit(kept: &Kept<'_>, sequences: &[Sequence], unit: &Unit, owned: Owned<'_>) {
    let (q_rows, k_rows) = (unit.q.1 - unit.q.0, unit.k.1 - unit.k.0);
    let kv_heads = kept.head.heads.kv_heads;
    let block = dense_len(&kept.head, (q_rows, k_rows)) / kv_heads.max(1);
    let Owned { layout, rows, dq, dense } = owned;
    let sequences = &sequences[unit.sequences.0..unit.sequences.1];
    each_head(kept, (sequences, unit), (0, kv_heads), &mut dense[..block * kv_heads]);
    let (width, per_row) = (kept.head.width(), kept.head.per_row());
    let padded = width.next_multiple_of(LANES);
    if block == 0 {
        return;
    }
    for (kv_head, dense) in dense.chunks_exact(block).enumerate() {
        let (keys, queries) = dense.split_at(2 * k_rows * padded);
        let (dk, dv) = keys.split_at(k_rows * padded);
        let column = kv_head * width;
        put(rows, (layout.stride, layout.dk + column), dk, (padded, width));
        put(rows, (layout.stride, layout.dv + column), dv, (padded, width));
        let (of_row, column) = (per_row * width, kv_head * per_row * width);
        match layout.dq {
            Some(dq) => put(rows, (layout.stride, dq + column), queries, (of_row, of_row)),
            None => put(dq, (layout.dq_stride, column), queries, (of_row, of_row)),
        }
    }
}

/// Copies the first `width` elements of each dense row of `pitch` to `column` of the rows of `to`.
fn put(
    to: &mut [f32],
    (stride, column): (usize, usize),
    from: &[f32],
    (pitch, width): (usize, usize),
) {
    if from.is_empty() {
        return; // no row, and perhaps no stride
    }
    for (to, from) in to.chunks_mut(stride).zip(from.chunks_exact(pitch)) {
        to[column..][..width].copy_from_slice(&from[..width]);
    }
}

/// Halves the key/value heads of a unit down to one.
fn each_head(
    kept: &Kept<'_>,
    unit: (&[Sequence], &Unit),
    (begin, end): (usize, usize),
    dense: &mut [f32],
) {
    if end - begin > 1 {
        let mid = begin + (end - begin) / 2;
        let (a, b) = dense.split_at_mut(dense.len() / (end - begin) * (mid - begin));
        rayon::join(
            || each_head(kept, unit, (begin, mid), a),
            || each_head(kept, unit, (mid, end), b),
        );
        return;
    }
    let kept = Kept { head: Head { kv_head: begin, ..kept.head }, ..*kept };
    let (sequences, unit) = unit;
    let padded = kept.head.width().next_multiple_of(LANES);
    let k_rows = unit.k.1 - unit.k.0;
    dense.fill(0.0);
    let (dk, rest) = dense.split_at_mut(k_rows * padded);
    let (dv, dq) = rest.split_at_mut(k_rows * padded);
    let mut gradients = Gradients { first_key: unit.k.0, first_query: unit.q.0, dq, dk, dv };
    SCRATCH.with_borrow_mut(|scratch| {
        for s in sequences {
            let end = s.q_len as usize * kept.head.per_row();
            for first in (0..end).step_by(COLUMNS) {
                let count = COLUMNS.min(end - first);
                let columns = Columns { q_start: s.q_start as usize, first, count };
                batch(&kept, s, columns, &mut gradients, scratch);
            }
        }
    });
}

/// Dense gradients of one key/value head of a unit.
struct Gradients<'a> {
    first_key: usize,
    first_query: usize,
    /// `[columns][e]`.
    dq: &'a mut [f32],
    /// `[keys][padded e]`.
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

/// Some columns with all that the tiles of keys need of them.
struct Batch<'a> {
    head: &'a Head<'a>,
    columns: Columns,
    /// `Qᵀ` and `Q`, scaled; `dOᵀ` and `dO`.
    q: (&'a [f32], &'a [f32]),
    dout: (&'a [f32], &'a [f32]),
    lse: [f32; COLUMNS],
    delta: [f32; COLUMNS],
    limits: [u32; COLUMNS],
}

/// Scratch of a tile of keys.
struct Tile<'a> {
    scores: &'a mut [f32],
    dscores: &'a mut [f32],
    /// `dQ / scale` of the columns, `[columns][padded e]`.
    sums: &'a mut [f32],
    padded: &'a mut Vec<Line>,
}

/// Some columns against all keys they see.
fn batch(
    kept: &Kept<'_>,
    s: &Sequence,
    columns: Columns,
    gradients: &mut Gradients<'_>,
    scratch: &mut Scratch,
) {
    let head = &kept.head;
    let (width, padded) = (head.width(), head.width().next_multiple_of(LANES));
    let stride = columns.vectors() * LANES;
    let q = Rows { data: &head.q.buf[head.q.start..], stride: head.q.stride };
    let dout = Rows { data: &kept.dout.buf[kept.dout.start..], stride: kept.dout.stride };
    let q_columns = floats(&mut scratch.q_columns, width * stride);
    columns.transpose(head, q, head.heads.scale, q_columns);
    let q_rows = floats(&mut scratch.q_rows, COLUMNS * padded);
    columns.gather(head, q, head.heads.scale, q_rows);
    let dout_columns = floats(&mut scratch.dout_columns, width * stride);
    columns.transpose(head, dout, 1.0, dout_columns);
    let dout_rows = floats(&mut scratch.dout_rows, COLUMNS * padded);
    columns.gather(head, dout, 1.0, dout_rows);
    let (lse, delta) = statistics(kept, columns, dout);
    let limits = columns.limits(head);
    let batch = Batch {
        head,
        columns,
        q: (q_columns, q_rows),
        dout: (dout_columns, dout_rows),
        lse,
        delta,
        limits,
    };
    let mut tile = Tile {
        scores: floats(&mut scratch.scores, KEYS * stride),
        dscores: floats(&mut scratch.dscores, KEYS * stride),
        sums: floats(&mut scratch.sums, COLUMNS * padded),
        padded: &mut scratch.padded,
    };
    tile.sums.fill(0.0);
    for span in Span::of(s, limits[COLUMNS - 1] as usize) {
        for first in (0..span.len).step_by(KEYS) {
            batch.keys(span, first, &mut tile, gradients);
        }
    }
    let first = (columns.q_start - gradients.first_query) * head.per_row() + columns.first;
    let dq = gradients.dq[first * width..].chunks_exact_mut(width);
    for (dq, sums) in dq.zip(tile.sums.chunks_exact(padded)).take(columns.count) {
        for (dq, sum) in dq.iter_mut().zip(sums) {
            *dq = sum * head.heads.scale;
        }
    }
}

impl Batch<'_> {
    /// One tile of keys, from key `first` of the span on.
    fn keys(&self, span: Span, first: usize, tile: &mut Tile<'_>, to: &mut Gradients<'_>) {
        let head = self.head;
        let (vectors, stride) = (self.columns.vectors(), self.columns.vectors() * LANES);
        let padded = head.width().next_multiple_of(LANES);
        let keys = KEYS.min(span.len - first);
        let key_rows = head.rows(head.k, span.start + first);
        let value_rows = head.rows(head.v, span.start + first);
        let scores = &mut tile.scores[..keys * stride];
        let dscores = &mut tile.dscores[..keys * stride];
        for (a, data, c) in
            [(key_rows, self.q.0, &mut *scores), (value_rows, self.dout.0, &mut *dscores)]
        {
            Product {
                left: Left::AsIs,
                a,
                b: Rows { data, stride },
                c,
                c_stride: stride,
                rows: keys,
                vectors,
                depth: head.width(),
                accumulate: false,
            }
            .run();
        }
        let masked = span.own && first + keys > self.limits[0] as usize;
        lanes::run(Recomputed {
            vectors,
            scores,
            dscores,
            limits: masked.then_some((first, &self.limits)),
            lse: &self.lse,
            delta: &self.delta,
        });
        let at = (span.start + first - to.first_key) * padded;
        let (dk, dv) = (&mut to.dk[at..], &mut to.dv[at..]);
        for (data, b, c) in [(&*scores, self.dout.1, dv), (&*dscores, self.q.1, dk)] {
            Product {
                left: Left::AsIs,
                a: Rows { data, stride },
                b: Rows { data: b, stride: padded },
                c,
                c_stride: padded,
                rows: keys,
                vectors: padded / LANES,
                depth: self.columns.count,
                accumulate: true,
            }
            .run();
        }
        Product {
            left: Left::Transposed,
            a: Rows { data: dscores, stride },
            b: whole_vectors(key_rows, head.width(), keys, tile.padded),
            c: tile.sums,
            c_stride: padded,
            rows: self.columns.count,
            vectors: padded / LANES,
            depth: keys,
            accumulate: true,
        }
        .run();
    }
}

/// Log-sum-exp and `D = Σ dO · O` of some columns; missing columns get an infinite log-sum-exp.
fn statistics(
    kept: &Kept<'_>,
    columns: Columns,
    dout: Rows<'_>,
) -> ([f32; COLUMNS], [f32; COLUMNS]) {
    let head = &kept.head;
    let out = Rows { data: &kept.out.buf[kept.out.start..], stride: kept.out.stride };
    let (mut lse, mut delta) = ([f32::INFINITY; COLUMNS], [0.0; COLUMNS]);
    for c in 0..columns.count {
        let query_head = head.kv_head * head.per_row() + (columns.first + c) % head.per_row();
        lse[c] = kept.lse[columns.row(head, c) * head.heads.heads + query_head];
        delta[c] = lanes::run(Dot(columns.slice(head, dout, c), columns.slice(head, out, c)));
    }
    (lse, delta)
}

struct Dot<'a>(&'a [f32], &'a [f32]);

impl Kernel for Dot<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        lanes::dot(simd, self.0, self.1)
    }
}
