//! Attention by kernels that a device brings along.

/// Causal attention of sequences that lie side by side, `bf16` with sums in `f32`; addresses are the device's, strides
/// count elements.
///
/// Sequence `i` has the queries `q_starts[i]..q_starts[i + 1]` and the keys `k_starts[i]..k_starts[i + 1]`, rows of the
/// windows; it has no fewer keys than queries, and its last query sees its last key, each one before a key less.
/// `O` is written `=` for these queries alone. Windows allow 16-byte accesses: addresses are multiples of 16, strides
/// and head width of 8.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flash {
    /// `Q [rows, h·e]`.
    pub q: u64,
    /// `K [rows, g·e]`.
    pub k: u64,
    /// `V [rows, g·e]`.
    pub v: u64,
    /// `O [rows, h·e]`.
    pub out: u64,
    /// Room for `h · q_rows` values of `f32`, of which nothing is said afterwards.
    pub scratch: u64,
    /// `u32 [sequences + 1]`, below 2^31.
    pub q_starts: u64,
    /// `u32 [sequences + 1]`, below 2^31.
    pub k_starts: u64,
    /// From a row of `Q` to the next.
    pub q_stride: u32,
    /// Of `K`.
    pub k_stride: u32,
    /// Of `V`.
    pub v_stride: u32,
    /// Of `O`.
    pub out_stride: u32,
    /// Sequences, at most [`Flash::MAX_SEQUENCES`].
    pub sequences: u32,
    /// Most queries of a sequence.
    pub longest_q: u32,
    /// Most keys of a sequence.
    pub longest_k: u32,
    /// Rows of `Q`, those of other sequences too.
    pub q_rows: u32,
    /// Query heads `h`.
    pub heads: u32,
    /// Key/value heads `g`.
    pub kv_heads: u32,
    /// Head width `e`, at most [`Flash::MAX_WIDTH`].
    pub head_dim: u32,
    /// Factor on the scores.
    pub scale: f32,
}

impl Flash {
    /// Most sequences of a call: blocks in a grid's second direction.
    pub const MAX_SEQUENCES: usize = 65_535;
    /// Widest head.
    pub const MAX_WIDTH: usize = 512;
    /// Elements of a 16-byte access.
    pub const CHUNK: usize = 8;

    /// Whether the windows allow the accesses.
    pub fn is_aligned(&self) -> bool {
        let chunk = u32::try_from(Self::CHUNK).unwrap_or(u32::MAX);
        [self.q, self.k, self.v, self.out].iter().all(|address| address.is_multiple_of(16))
            && [self.q_stride, self.k_stride, self.v_stride, self.out_stride, self.head_dim]
                .iter()
                .all(|elements| elements.is_multiple_of(chunk))
    }
}
