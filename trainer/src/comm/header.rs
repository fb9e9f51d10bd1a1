//! What every collective says first: which call it is, the how-manieth, and how much it carries.
//!
//! Every collective of every implementation begins with the same exchange, an all-gather of one fixed-size header per
//! rank. Ranks in different collectives therefore still meet in it, see that they differ, and all return the same
//! error; without it a rank in a barrier and a rank in a broadcast wait for each other for ever. The reductions of one
//! integer ride in the header itself and need no second message.

use super::{Error, Reduce, Result};
use std::fmt;

/// A kind of collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// [`super::Communicator::barrier`].
    Barrier,
    /// [`super::Communicator::broadcast_bytes`].
    BroadcastBytes,
    /// [`super::Communicator::all_gather_bytes`].
    AllGatherBytes,
    /// [`super::Communicator::all_gather_f32`].
    AllGatherF32,
    /// [`super::Communicator::gather_bytes`].
    GatherBytes,
    /// [`super::Communicator::all_reduce_u64`] with [`Reduce::Max`].
    ReduceMax,
    /// [`super::Communicator::all_reduce_u64`] with [`Reduce::Min`].
    ReduceMin,
    /// [`super::Communicator::all_reduce_u64`] with [`Reduce::Sum`].
    ReduceSum,
}

const OPS: [Op; 8] = [
    Op::Barrier,
    Op::BroadcastBytes,
    Op::AllGatherBytes,
    Op::AllGatherF32,
    Op::GatherBytes,
    Op::ReduceMax,
    Op::ReduceMin,
    Op::ReduceSum,
];

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Barrier => "barrier",
            Op::BroadcastBytes => "broadcast_bytes",
            Op::AllGatherBytes => "all_gather_bytes",
            Op::AllGatherF32 => "all_gather_f32",
            Op::GatherBytes => "gather_bytes",
            Op::ReduceMax => "all_reduce_u64(max)",
            Op::ReduceMin => "all_reduce_u64(min)",
            Op::ReduceSum => "all_reduce_u64(sum)",
        })
    }
}

impl From<Reduce> for Op {
    fn from(reduce: Reduce) -> Self {
        match reduce {
            Reduce::Max => Op::ReduceMax,
            Reduce::Min => Op::ReduceMin,
            Reduce::Sum => Op::ReduceSum,
        }
    }
}

/// One rank's call: what ranks must agree on, and how much it brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// The collective; `None` if the other side sent a code this build does not know.
    pub op: Option<Op>,
    /// Calls this rank made before this one.
    pub sequence: u64,
    /// The root, where the collective has one.
    pub root: Option<usize>,
    /// Elements this rank brings (bytes, or f32 values).
    pub len: usize,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.op {
            Some(op) => write!(f, "{op}")?,
            None => f.write_str("an unknown collective")?,
        }
        write!(f, " (call {}, {} elements", self.sequence, self.len)?;
        match self.root {
            Some(root) => write!(f, ", root {root})"),
            None => f.write_str(")"),
        }
    }
}

/// Words of a header: op, sequence, root + 1 or 0, length, value.
pub(super) const WORDS: usize = 5;

/// The header as it travels.
pub(super) type Header = [u64; WORDS];

/// The header of a call, with the integer that a reduction carries (0 elsewhere).
pub(super) fn header(op: Op, sequence: u64, root: Option<usize>, len: usize, value: u64) -> Header {
    [op as u64, sequence, root.map_or(0, |r| r as u64 + 1), len as u64, value]
}

fn call(header: &Header) -> Call {
    let word = |i: usize| usize::try_from(header[i]).unwrap_or(usize::MAX);
    Call {
        op: OPS.get(word(0)).copied(),
        sequence: header[1],
        root: word(2).checked_sub(1),
        len: word(3),
    }
}

/// Refuses headers (one per rank) that are not the same call. Lengths must agree for the f32 gather only.
pub(super) fn check(headers: &[Header]) -> Result<()> {
    let Some(first) = headers.first() else { return Ok(()) };
    let lengths_agree = first[0] == Op::AllGatherF32 as u64;
    let agreed = |h: &Header| (h[0], h[1], h[2], if lengths_agree { h[3] } else { 0 });
    match headers.iter().position(|h| agreed(h) != agreed(first)) {
        None => Ok(()),
        Some(other) => Err(Error::Mismatch {
            rank: 0,
            call: call(first),
            other,
            other_call: call(&headers[other]),
        }),
    }
}

/// The payload length of one rank, in elements.
#[cfg(feature = "mpi")]
pub(super) fn len(header: &Header) -> usize {
    usize::try_from(header[3]).unwrap_or(usize::MAX)
}

/// Combines the values that ride in the headers, in rank order.
pub(super) fn fold(reduce: Reduce, headers: &[Header], rank: usize) -> Result<u64> {
    let mut values = headers.iter().map(|h| h[4]);
    let first = values.next().unwrap_or(0);
    let folded = match reduce {
        Reduce::Max => Some(values.fold(first, u64::max)),
        Reduce::Min => Some(values.fold(first, u64::min)),
        Reduce::Sum => values.try_fold(first, u64::checked_add),
    };
    folded.ok_or(Error::Overflow { op: reduce.into(), rank })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn op_codes_round_trip() {
        for op in OPS {
            let sent = header(op, 7, Some(2), 9, 0);
            let expected = Call { op: Some(op), sequence: 7, root: Some(2), len: 9 };
            assert_eq!(call(&sent), expected);
        }
        assert_eq!(call(&[99, 0, 0, 0, 0]).op, None);
    }

    #[test]
    fn names_both_ranks() {
        let a = header(Op::Barrier, 4, None, 0, 0);
        let b = header(Op::BroadcastBytes, 4, Some(0), 12, 0);
        let text = check(&[a, a, b]).unwrap_err().to_string();
        assert!(text.contains("rank 0 is in barrier (call 4"), "{text}");
        assert!(
            text.contains("rank 2 is in broadcast_bytes (call 4, 12 elements, root 0"),
            "{text}"
        );
    }

    #[test]
    fn lengths_matter_for_f32_only() {
        let bytes = |n| header(Op::AllGatherBytes, 0, None, n, 0);
        let floats = |n| header(Op::AllGatherF32, 0, None, n, 0);
        assert!(check(&[bytes(1), bytes(2)]).is_ok());
        assert!(check(&[floats(1), floats(2)]).is_err());
        assert!(check(&[floats(2), floats(2)]).is_ok());
    }
}
