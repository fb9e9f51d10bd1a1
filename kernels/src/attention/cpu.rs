//! Attention by tiles: [`COLUMNS`] query columns against [`KEYS`] keys, scores kept transposed.
//!
//! A *column* is one query row of one of the heads that share a key/value head: column `c` of a
//! sequence is row `c / p`, head `c % p`, `p = h/g`. Scores lie as `[keys][columns]`, so that the lanes
//! are columns: the softmax needs no sum over lanes, keys and values are read where they lie, and a
//! column's bits depend on its own row and its sequence's keys alone. All sums over keys run in key
//! order in tiles counted from the sequence's (or prefix's) first key.
//!
//! `forward.rs` and `backward.rs` split the work, `tile.rs` packs columns and holds the two softmax
//! kernels; the products are [`crate::product`].

mod backward;
mod forward;
mod tile;

use super::{Attention, Backward, Forward, Grads, Heads, QueryGrads, Sequence};
use crate::backend::Mat;
use crate::cpu::{Cpu, CpuBuf};
use crate::error::{Error, Result};
use crate::product::Rows;

/// Columns of a tile: three vectors, the query heads of one key/value head in Llama-like bases.
const COLUMNS: usize = 48;
/// Keys of a tile: with 48 columns the scores take 12 KiB, so all of a tile stays in the first-level cache.
const KEYS: usize = 64;

impl Attention for Cpu {
    fn attention_forward(&self, args: Forward<'_, Self>) -> Result<()> {
        args.check()?;
        forward::run(args)
    }

    fn attention_backward(&self, args: Backward<'_, Self>) -> Result<()> {
        args.check()?;
        backward::run(args)
    }
}

/// What a task reads of one key/value head.
#[derive(Clone, Copy)]
struct Head<'a> {
    heads: Heads,
    q: Mat<'a, CpuBuf<f32>>,
    k: Mat<'a, CpuBuf<f32>>,
    v: Mat<'a, CpuBuf<f32>>,
    limits: &'a [u32],
    kv_head: usize,
}

impl<'a> Head<'a> {
    /// Query heads of this key/value head: columns of one row.
    fn per_row(&self) -> usize {
        self.heads.heads / self.heads.kv_heads
    }

    /// Head width.
    fn width(&self) -> usize {
        self.heads.head_dim
    }

    /// First column of `Q` and `O` of this key/value head's query heads.
    fn q_offset(&self) -> usize {
        self.kv_head * self.per_row() * self.width()
    }

    /// Keys (or values) from `row` on.
    fn rows(&self, of: Mat<'a, CpuBuf<f32>>, row: usize) -> Rows<'a> {
        let first = of.start + row * of.stride + self.kv_head * self.width();
        Rows { data: &of.buf[first..], stride: of.stride }
    }
}

/// A run of keys that a sequence sees: its prefix, or its own.
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    len: usize,
    /// Its keys are counted against the rows' limits.
    own: bool,
}

impl Span {
    /// Prefix and own keys up to `seen`.
    fn of(s: &Sequence, seen: usize) -> [Self; 2] {
        [
            Self { start: s.p_start as usize, len: s.p_len as usize, own: false },
            Self { start: s.k_start as usize, len: (s.k_len as usize).min(seen), own: true },
        ]
    }
}

/// Refuses sequences whose rows are not in order; empty ones do not count.
fn check_order(
    op: &'static str,
    sequences: &[Sequence],
    range: impl Fn(&Sequence) -> (u32, u32),
    rows: usize,
) -> Result<()> {
    let mut end = 0;
    for (index, (start, len)) in sequences.iter().map(range).enumerate() {
        if len > 0 && ((start as usize) < end || start as usize + len as usize > rows) {
            let what = format!("sequence {index}: its rows are out of order or outside");
            return Err(Error::Routing { op, what });
        }
        if len > 0 {
            end = start as usize + len as usize;
        }
    }
    Ok(())
}
