//! Attention of passes without backward by kernels that the device brings along, where the sequences allow it.
//!
//! Such a kernel ([`Flash`]; on CUDA candle-flash-attn's, feature `flash-attn`) takes causal sequences that lie side by
//! side and knows no prefixes. [`Tables`] cut a pack's routing, on the host, into runs of sequences that it takes and the
//! rest, which stays with the kernels of this crate; [`forward`] runs both. Start reading at [`Cut::new`].
//!
//! Solo equivalence: what takes a group is a matter of the group's own sequences, never of the pack, and a flash
//! kernel's block works on one sequence and head. The two kernels differ in rounding.

use super::{Attention, Forward, Routing, Sequence};
use crate::backend::{Backend, MatMut};
use crate::error::{Result, check_eq, check_len};
use crate::gpu::{Device, Flash, Gpu, extent};

/// Neighbouring sequences that one call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Entry of its first sequence in both tables of starts.
    pub first: usize,
    /// Sequences; the tables hold one entry more.
    pub sequences: usize,
    /// Most queries of one.
    pub longest_q: u32,
    /// Most keys of one.
    pub longest_k: u32,
}

/// A pack's sequences, cut into what a flash kernel takes and the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cut {
    /// Calls of the flash kernel, none for nothing to take.
    pub runs: Vec<Run>,
    /// First query row of each sequence of a run, then its end; run after run.
    pub q_starts: Vec<u32>,
    /// First key row of each, as [`Cut::q_starts`].
    pub k_starts: Vec<u32>,
    /// All sequences, those of runs without queries.
    pub rest: Vec<Sequence>,
    /// The rest has work: a sequence with queries, or rows of no sequence, which become zero.
    pub has_rest: bool,
}

impl Cut {
    /// Cuts a checked routing ([`Sequence::check_all`]) of `limits.len()` query rows. A group is taken when none of its
    /// sequences has a prefix and each query sees all own keys but those of the queries after it.
    pub fn new(sequences: &[Sequence], groups: &[u32], limits: &[u32]) -> Self {
        let mut cut = Self { rest: sequences.to_vec(), ..Self::default() };
        let mut covered = 0;
        // Where the next sequence of the last run would begin.
        let mut end = None;
        for group in groups.windows(2).map(|w| w[0] as usize..w[1] as usize) {
            let taken = sequences[group.clone()].iter().all(|s| is_causal(s, limits));
            for index in group.filter(|&index| sequences[index].q_len > 0) {
                let s = &sequences[index];
                covered += s.q_len as usize;
                if taken {
                    cut.take(s, end);
                    end = Some((s.q_start + s.q_len, s.k_start + s.k_len));
                    cut.rest[index].q_len = 0;
                } else {
                    cut.has_rest = true;
                }
            }
        }
        cut.has_rest |= covered < limits.len();
        cut
    }

    /// Appends a sequence to the last run when it lies where that ends, else to a run of its own.
    fn take(&mut self, s: &Sequence, end: Option<(u32, u32)>) {
        let next = end == Some((s.q_start, s.k_start));
        match self.runs.last_mut().filter(|run| next && run.sequences < Flash::MAX_SEQUENCES) {
            Some(run) => {
                run.sequences += 1;
                run.longest_q = run.longest_q.max(s.q_len);
                run.longest_k = run.longest_k.max(s.k_len);
            }
            None => {
                let first = self.q_starts.len();
                let (longest_q, longest_k) = (s.q_len, s.k_len);
                self.runs.push(Run { first, sequences: 1, longest_q, longest_k });
                self.q_starts.push(s.q_start);
                self.k_starts.push(s.k_start);
            }
        }
        self.q_starts.push(s.q_start + s.q_len);
        self.k_starts.push(s.k_start + s.k_len);
    }
}

/// No prefix, and the mask that a flash kernel has: the last query sees all keys, each one before a key less.
fn is_causal(s: &Sequence, limits: &[u32]) -> bool {
    let own = &limits[s.q_start as usize..][..s.q_len as usize];
    s.p_len == 0 && own.iter().rev().zip(0..).all(|(&limit, after)| limit + after == s.k_len)
}

/// A pack's [`Cut`], on the host and on the device.
#[derive(Debug)]
pub struct Tables<B: Backend + ?Sized> {
    cut: Cut,
    q_starts: B::Buf<u32>,
    k_starts: B::Buf<u32>,
    rest: B::Buf<Sequence>,
}

impl<B: Backend> Tables<B> {
    /// Room for `sequences` sequences; cut for none, so that nothing is taken.
    ///
    /// # Errors
    /// When the backend has no memory.
    pub fn alloc(backend: &B, sequences: usize) -> Result<Self> {
        // Each sequence may be a run, with an end of its own.
        Ok(Self {
            cut: Cut::default(),
            q_starts: backend.alloc(2 * sequences)?,
            k_starts: backend.alloc(2 * sequences)?,
            rest: backend.alloc(sequences)?,
        })
    }

    /// Bytes of [`Tables::alloc`].
    pub fn bytes(sequences: usize) -> usize {
        sequences * (4 * size_of::<u32>() + size_of::<Sequence>())
    }

    /// Takes nothing from now on.
    pub fn clear(&mut self) {
        self.cut = Cut::default();
    }

    /// Cuts a pack, see [`Cut::new`], and writes what the device needs.
    ///
    /// # Errors
    /// [`crate::Error::Length`] when there are more sequences than there is room for; then nothing is taken.
    pub fn write(
        &mut self,
        backend: &B,
        sequences: &[Sequence],
        groups: &[u32],
        limits: &[u32],
    ) -> Result<()> {
        self.clear();
        let cut = Cut::new(sequences, groups, limits);
        if !cut.runs.is_empty() {
            backend.write(&mut self.q_starts, 0, &cut.q_starts)?;
            backend.write(&mut self.k_starts, 0, &cut.k_starts)?;
            if cut.has_rest {
                backend.write(&mut self.rest, 0, &cut.rest)?;
            }
        }
        self.cut = cut;
        Ok(())
    }

    /// What was cut.
    pub fn cut(&self) -> &Cut {
        &self.cut
    }
}

/// [`Attention::attention_flash`] on a GPU: the rest by [`Attention::attention_forward`], then run after run; without
/// runs, and for heads or windows that the flash kernel does not take, all by [`Attention::attention_forward`].
///
/// # Errors
/// [`crate::Error`] when shapes disagree or the tables are another pack's; what the device says.
pub fn forward<D: Device>(
    gpu: &Gpu<D>,
    args: Forward<'_, Gpu<D>>,
    tables: &Tables<Gpu<D>>,
) -> Result<()> {
    args.check()?;
    let cut = &tables.cut;
    if cut.runs.is_empty() || !gpu.takes_flash() {
        return gpu.attention_forward(args);
    }
    let op = "attention_flash";
    check_eq(op, "sequences of the tables", args.routing.num_sequences, cut.rest.len())?;
    let entries = cut.runs.iter().map(|run| run.first + run.sequences + 1).max().unwrap_or(0);
    check_len(op, "starts", entries, cut.q_starts.len())?;
    let calls: Vec<Flash> =
        cut.runs.iter().map(|run| call(&args, tables, run)).collect::<Result<_>>()?;
    let fits = args.heads.head_dim <= Flash::MAX_WIDTH && calls.iter().all(Flash::is_aligned);
    if !fits {
        return gpu.attention_forward(args);
    }
    if cut.has_rest {
        // Writes zeros where the runs' queries are; they come after it.
        gpu.attention_forward(Forward {
            routing: Routing { sequences: &tables.rest, ..args.routing },
            out: MatMut { buf: args.out.buf, start: args.out.start, stride: args.out.stride },
            ..args
        })?;
    }
    calls.iter().try_for_each(|call| gpu.device().flash(call))
}

/// The call for one run.
fn call<D: Device>(
    args: &Forward<'_, Gpu<D>>,
    tables: &Tables<Gpu<D>>,
    run: &Run,
) -> Result<Flash> {
    let op = "attention_flash";
    let heads = args.heads;
    Ok(Flash {
        q: args.q.buf.address_at(args.q.start),
        k: args.k.buf.address_at(args.k.start),
        v: args.v.buf.address_at(args.v.start),
        out: args.out.buf.address_at(args.out.start),
        scratch: args.lse.address_at(0),
        q_starts: tables.q_starts.address_at(run.first),
        k_starts: tables.k_starts.address_at(run.first),
        q_stride: extent(op, "stride", args.q.stride)?,
        k_stride: extent(op, "stride", args.k.stride)?,
        v_stride: extent(op, "stride", args.v.stride)?,
        out_stride: extent(op, "stride", args.out.stride)?,
        sequences: extent(op, "sequences", run.sequences)?,
        longest_q: run.longest_q,
        longest_k: run.longest_k,
        q_rows: extent(op, "query rows", args.q_rows)?,
        heads: extent(op, "heads", heads.heads)?,
        kv_heads: extent(op, "heads", heads.kv_heads)?,
        head_dim: extent(op, "head width", heads.head_dim)?,
        scale: heads.scale,
    })
}
