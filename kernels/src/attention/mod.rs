//! Causal attention of variable-length sequences with grouped heads and shared prefixes.
//!
//! A *group* is what may share keys: the sequences of one user in one pack. Each sequence has query rows,
//! its own key rows, and optionally the key rows of a prefix that the group stores once: a query sees the
//! whole prefix, then its own keys up to its limit. The prefix itself is a sequence without prefix.
//! Running softmax in key tiles: no `t x t` matrix; the log-sum-exp is kept for the backward.
//! With keys in a cache and one query row a sequence, the forward is the decode form.
//!
//! Order: query rows and key rows of the sequences ascend without overlap, and a prefix lies before the
//! own keys of what attends to it; in the decode form, which has no backward, keys may lie anywhere.
//! Rows that no sequence covers become zero.
//!
//! Solo equivalence: a group's result depends on that group's rows alone; `dK`, `dV` of a prefix are
//! summed over its sequences in their order.

use crate::backend::{Backend, Buffer, Mat, MatMut};
use crate::error::{Error, Result, check_eq, check_len};

pub mod cpu;
pub mod flash;
mod gpu;

/// One sequence of queries and what they attend to; rows count from the windows' first row.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Sequence {
    /// First query row.
    pub q_start: u32,
    /// Query rows; may be zero.
    pub q_len: u32,
    /// First own key row.
    pub k_start: u32,
    /// Own key rows.
    pub k_len: u32,
    /// First key row of the prefix.
    pub p_start: u32,
    /// Key rows of the prefix; zero for none.
    pub p_len: u32,
}

/// Head counts and widths: `q [t, h·e]`, `k, v [t', g·e]`, `h` a multiple of `g`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Query heads `h`.
    pub heads: usize,
    /// Key/value heads `g`.
    pub kv_heads: usize,
    /// Head width `e`.
    pub head_dim: usize,
    /// Factor on the scores, `1/sqrt(e)`.
    pub scale: f32,
}

/// Routing of one pack, on the device.
#[derive(Debug)]
pub struct Routing<'a, B: Backend + ?Sized> {
    /// Sequences, those of a group side by side, a prefix before the sequences that attend to it.
    pub sequences: &'a B::Buf<Sequence>,
    /// Number of sequences.
    pub num_sequences: usize,
    /// `groups[i]..groups[i+1]` are the sequences of group `i`; `num_groups + 1` entries.
    pub groups: &'a B::Buf<u32>,
    /// Number of groups.
    pub num_groups: usize,
    /// For each query row how many of its sequence's own keys it sees (`index + 1` in a full sequence);
    /// does not decrease within a sequence; at least one key (own or prefix) is seen.
    pub limits: &'a B::Buf<u32>,
}

impl<B: Backend + ?Sized> Clone for Routing<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend + ?Sized> Copy for Routing<'_, B> {}

/// `O = softmax(scale · Q Kᵀ + mask) V` and the log-sum-exp.
#[derive(Debug)]
pub struct Forward<'a, B: Backend + ?Sized> {
    /// Head counts.
    pub heads: Heads,
    /// Routing.
    pub routing: Routing<'a, B>,
    /// `Q [q_rows, h·e]`, already rotated.
    pub q: Mat<'a, B::Buf<B::Act>>,
    /// `K [k_rows, g·e]`, already rotated.
    pub k: Mat<'a, B::Buf<B::Act>>,
    /// `V [k_rows, g·e]`.
    pub v: Mat<'a, B::Buf<B::Act>>,
    /// `O [q_rows, h·e]`, written `=`.
    pub out: MatMut<'a, B::Buf<B::Act>>,
    /// Log-sum-exp of the scaled scores, `[q_rows, h]`, written `=`.
    pub lse: &'a mut B::Buf<f32>,
    /// Query rows.
    pub q_rows: usize,
    /// Key rows (of the pack, or of the cache).
    pub k_rows: usize,
}

/// `dQ`, `dK`, `dV` from `dO`, with the scores recomputed from the log-sum-exp.
#[derive(Debug)]
pub struct Backward<'a, B: Backend + ?Sized> {
    /// Head counts.
    pub heads: Heads,
    /// Routing of the forward.
    pub routing: Routing<'a, B>,
    /// `Q` of the forward.
    pub q: Mat<'a, B::Buf<B::Act>>,
    /// `K` of the forward.
    pub k: Mat<'a, B::Buf<B::Act>>,
    /// `V` of the forward.
    pub v: Mat<'a, B::Buf<B::Act>>,
    /// `O` of the forward.
    pub out: Mat<'a, B::Buf<B::Act>>,
    /// Log-sum-exp of the forward.
    pub lse: &'a B::Buf<f32>,
    /// `dO [q_rows, h·e]`.
    pub dout: Mat<'a, B::Buf<B::Act>>,
    /// Where `dQ`, `dK`, `dV` go.
    pub grads: Grads<'a, B>,
    /// Query rows.
    pub q_rows: usize,
    /// Key rows.
    pub k_rows: usize,
}

/// Where the gradients go, all written `=`; rows that no sequence covers become zero.
///
/// `dK`, `dV` and, where queries and keys are the same rows, `dQ` are columns of one buffer's rows, as
/// what reads them together wants them; other columns are left alone.
#[derive(Debug)]
pub struct Grads<'a, B: Backend + ?Sized> {
    /// One row a key, wide enough for the columns below.
    pub rows: MatMut<'a, B::Buf<B::Act>>,
    /// `dQ [q_rows, h·e]`.
    pub dq: QueryGrads<'a, B>,
    /// First column of `dK [k_rows, g·e]`.
    pub dk: usize,
    /// First column of `dV [k_rows, g·e]`.
    pub dv: usize,
}

/// Where `dQ` goes.
#[derive(Debug)]
pub enum QueryGrads<'a, B: Backend + ?Sized> {
    /// Beside `dK` and `dV`, from this column on: every sequence's query rows are its key rows.
    Beside(usize),
    /// In a buffer of its own, one row a query.
    Apart(MatMut<'a, B::Buf<B::Act>>),
}

/// Attention.
pub trait Attention: Backend {
    /// See [`Forward`].
    ///
    /// # Errors
    /// [`Error`] when shapes disagree.
    fn attention_forward(&self, args: Forward<'_, Self>) -> Result<()>;

    /// See [`Backward`].
    ///
    /// # Errors
    /// [`Error`] when shapes disagree.
    fn attention_backward(&self, args: Backward<'_, Self>) -> Result<()>;

    /// Whether [`Attention::attention_flash`] is more than [`Attention::attention_forward`]; otherwise nobody needs tables.
    fn takes_flash(&self) -> bool {
        false
    }

    /// See [`Forward`], for passes without backward: what `tables`, cut from this routing, name is left to kernels that
    /// the device brings along. `O` differs by rounding; of the log-sum-exp nothing is said afterwards.
    ///
    /// # Errors
    /// [`Error`] when shapes disagree or the tables are another routing's.
    fn attention_flash(&self, args: Forward<'_, Self>, tables: &flash::Tables<Self>) -> Result<()> {
        let _ = tables;
        self.attention_forward(args)
    }
}

impl Sequence {
    /// Checks, once per pack on the host, that every row is inside and every query sees a key.
    ///
    /// # Errors
    /// [`Error::Routing`] naming the sequence.
    pub fn check_all(
        sequences: &[Self],
        groups: &[u32],
        limits: &[u32],
        (q_rows, k_rows): (usize, usize),
    ) -> Result<()> {
        let wrong = |index: usize, what: &str| {
            Err(Error::Routing { op: "attention", what: format!("sequence {index}: {what}") })
        };
        let ordered = groups.windows(2).all(|w| w[0] <= w[1]);
        if groups.first() != Some(&0)
            || groups.last() != Some(&u32::try_from(sequences.len()).unwrap_or(u32::MAX))
            || !ordered
        {
            return Err(Error::Routing {
                op: "attention",
                what: "groups do not cover the sequences".into(),
            });
        }
        check_len("attention", "limits", q_rows, limits.len())?;
        let mut last_query = 0;
        for (index, s) in sequences.iter().enumerate() {
            let end = |a: u32, b: u32| a as usize + b as usize;
            if end(s.q_start, s.q_len) > q_rows {
                return wrong(index, "its queries leave the pack");
            }
            if s.q_len > 0 && (s.q_start as usize) < last_query {
                return wrong(index, "its queries are out of order");
            }
            if s.q_len > 0 {
                last_query = end(s.q_start, s.q_len);
            }
            if end(s.k_start, s.k_len) > k_rows || end(s.p_start, s.p_len) > k_rows {
                return wrong(index, "its keys leave the pack");
            }
            let own = &limits[s.q_start as usize..end(s.q_start, s.q_len)];
            if own.windows(2).any(|w| w[0] > w[1]) || own.iter().any(|&l| l > s.k_len) {
                return wrong(index, "its limits decrease or exceed its keys");
            }
            if own.iter().any(|&l| l == 0 && s.p_len == 0) {
                return wrong(index, "a query sees no key");
            }
        }
        Ok(())
    }
}

impl Heads {
    /// Columns of `Q` and `O`: `h·e`.
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of `K` and of `V`: `g·e`.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

impl<B: Backend + ?Sized> Forward<'_, B> {
    /// Checks every shape once.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let op = "attention_forward";
        let (q, kv) = (self.heads.q_dim(), self.heads.kv_dim());
        self.q.check(op, "q", self.q_rows, q)?;
        self.k.check(op, "k", self.k_rows, kv)?;
        self.v.check(op, "v", self.k_rows, kv)?;
        self.out.check(op, "out", self.q_rows, q)?;
        check_len(op, "lse", self.q_rows * self.heads.heads, self.lse.len())?;
        self.routing.check(op, self.q_rows, self.heads)
    }
}

impl<B: Backend + ?Sized> Backward<'_, B> {
    /// Checks every shape once.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let op = "attention_backward";
        let (q, kv) = (self.heads.q_dim(), self.heads.kv_dim());
        self.q.check(op, "q", self.q_rows, q)?;
        self.k.check(op, "k", self.k_rows, kv)?;
        self.v.check(op, "v", self.k_rows, kv)?;
        self.out.check(op, "out", self.q_rows, q)?;
        self.dout.check(op, "dout", self.q_rows, q)?;
        check_len(op, "lse", self.q_rows * self.heads.heads, self.lse.len())?;
        self.grads.check(op, (self.q_rows, q), (self.k_rows, kv))?;
        self.routing.check(op, self.q_rows, self.heads)
    }
}

impl<B: Backend + ?Sized> Grads<'_, B> {
    /// Checks that every column is inside its row and no other's.
    fn check(
        &self,
        op: &'static str,
        (q_rows, q): (usize, usize),
        (k_rows, kv): (usize, usize),
    ) -> Result<()> {
        let mut columns = [("dk", self.dk, kv), ("dv", self.dv, kv), ("dq", 0, 0)];
        match &self.dq {
            QueryGrads::Beside(column) => {
                check_eq(op, "query rows beside key rows", k_rows, q_rows)?;
                columns[2] = ("dq", *column, q);
            }
            QueryGrads::Apart(dq) => dq.check(op, "dq", q_rows, q)?,
        }
        columns.sort_unstable_by_key(|&(_, column, width)| (column, width));
        let mut end = 0;
        for (what, column, width) in columns {
            if column < end {
                return Err(Error::Shape { op, what, expected: end, got: column });
            }
            end = column.saturating_add(width);
        }
        self.rows.check(op, "gradients", k_rows, end)
    }
}

impl<B: Backend + ?Sized> Routing<'_, B> {
    fn check(&self, op: &'static str, q_rows: usize, heads: Heads) -> Result<()> {
        check_len(op, "sequences", self.num_sequences, self.sequences.len())?;
        check_len(op, "groups", self.num_groups + 1, self.groups.len())?;
        check_len(op, "limits", q_rows, self.limits.len())?;
        check_eq(op, "heads modulo kv_heads", 0, heads.heads % heads.kv_heads.max(1))
    }
}
