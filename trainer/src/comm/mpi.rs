//! Ranks as MPI processes (rsmpi). No foreign call of our own: everything goes through rsmpi's safe functions.
//!
//! Three measured facts shape this file (Open MPI 4.1.4, rsmpi 0.8.2). A panic that unwinds past the `Universe` runs
//! MPI_Finalize, which waits for ranks that wait for us: so the panic hook calls MPI_Abort before unwinding, and the
//! `Universe` is never dropped but by [`Mpi::finish`]. An early MPI_Finalize on an error path hangs the same way: so
//! errors end in [`Communicator::abort`]. MPI's counts are 32-bit: so large payloads go in rounds.
//! MPI's own errors (a lost link) keep MPI's default handler, which ends the job.

use super::contain::contained;
use super::header::{self, Header, WORDS, check, fold, header};
use super::{Communicator, Error, Op, Reduce, Result, check_all, check_root};
use mpi::Threading;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, CommunicatorCollectives as _, Root as _};
use std::mem::ManuallyDrop;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The exit code of a job in which a rank panicked.
pub const PANIC_CODE: i32 = 101;

/// Bytes of one MPI message, well under the 2³¹ − 1 elements its counts can say.
const MESSAGE_BYTES: usize = 1 << 30;

/// What a rank with nothing to send points at. The pointer of an empty `Vec<u8>` is 1, which Open MPI reads as MPI_IN_PLACE.
static NOTHING: [u8; 1] = [0];

/// The world of all ranks that the job's MPI launcher started; a world of one if there was none.
pub struct Mpi {
    rank: usize,
    size: usize,
    message_bytes: usize,
    /// Collectives made so far; its lock also keeps MPI calls of several threads apart.
    sequence: Mutex<u64>,
    /// Kept from dropping: its drop is MPI_Finalize, which must happen in `finish` or not at all.
    universe: ManuallyDrop<Universe>,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mpi")
            .field("rank", &self.rank)
            .field("size", &self.size)
            .field("message_bytes", &self.message_bytes)
            .finish_non_exhaustive()
    }
}

impl Mpi {
    /// Initialises MPI for use from threads and installs a panic hook that, after the hooks before it, ends the whole
    /// job with code [`PANIC_CODE`] unless [`super::contain_panic`] will catch the panic. Call once, before other threads start.
    ///
    /// # Errors
    /// MPI initialised before; an MPI library without MPI_THREAD_SERIALIZED (then MPI is finalised again).
    pub fn init() -> Result<Self> {
        // MULTIPLE so that the panic hook may abort while another thread waits inside a collective; SERIALIZED is
        // enough for all else.
        let (universe, provided) =
            mpi::initialize_with_threading(Threading::Multiple).ok_or(Error::AlreadyInitialised)?;
        let name = match provided {
            Threading::Single => Some("MPI_THREAD_SINGLE"),
            Threading::Funneled => Some("MPI_THREAD_FUNNELED"),
            Threading::Serialized | Threading::Multiple => None,
        };
        if let Some(provided) = name {
            return Err(Error::Threading { provided });
        }
        let world = universe.world();
        let (rank, size) = (place(world.rank()), place(world.size()));
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            before(info);
            if !contained() && !mpi::is_finalized() {
                SimpleCommunicator::world().abort(PANIC_CODE);
            }
        }));
        Ok(Self {
            rank,
            size,
            message_bytes: MESSAGE_BYTES,
            sequence: Mutex::new(0),
            universe: ManuallyDrop::new(universe),
        })
    }

    /// The same world with messages of at most `bytes` (at least one element per rank travels all the same); must be
    /// equal on all ranks. For tests of the rounds, and for networks that dislike large messages.
    #[must_use]
    pub fn with_message_bytes(mut self, bytes: usize) -> Self {
        self.message_bytes = bytes.min(MESSAGE_BYTES);
        self
    }

    /// Ends MPI (MPI_Finalize, collective): call on every rank at the end of a good run, never on an error path.
    pub fn finish(self) {
        drop(ManuallyDrop::into_inner(self.universe));
    }

    /// Starts a collective: takes the lock, exchanges headers, checks that all ranks are in the same call.
    fn begin(
        &self,
        op: Op,
        root: Option<usize>,
        elements: usize,
        value: u64,
    ) -> Result<(MutexGuard<'_, u64>, Vec<Header>)> {
        let mut sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = header(op, *sequence, root, elements, value);
        *sequence += 1;
        let mut all = vec![0u64; WORDS * self.size];
        self.universe.world().all_gather_into(&mine[..], &mut all[..]);
        let (headers, _) = all.as_chunks::<WORDS>();
        let headers = headers.to_vec();
        check(&headers)?;
        Ok((sequence, headers))
    }

    /// Bytes of each rank that fit one round.
    fn round_bytes(&self) -> usize {
        (self.message_bytes / self.size).max(1)
    }

    /// Gathers byte strings of the lengths in `headers`, in rounds; on `root` only if given.
    fn gather(&self, root: Option<usize>, mine: &[u8], headers: &[Header]) -> Vec<Vec<u8>> {
        let receives = root.is_none_or(|root| root == self.rank);
        let world = self.universe.world();
        let lens: Vec<usize> = headers.iter().map(header::len).collect();
        let longest = lens.iter().copied().max().unwrap_or(0);
        let step = self.round_bytes();
        let mut parts: Vec<Vec<u8>> = vec![Vec::new(); if receives { self.size } else { 0 }];
        let mut buffer = Vec::new();
        for start in (0..longest).step_by(step) {
            let part = |len: usize| len.saturating_sub(start).min(step);
            let counts: Vec<i32> = lens.iter().map(|&len| count(part(len))).collect();
            let places: Vec<i32> = counts
                .iter()
                .scan(0, |at, n| {
                    *at += n;
                    Some(*at - n)
                })
                .collect();
            let send = match part(mine.len()) {
                0 => &NOTHING[..0],
                n => &mine[start..][..n],
            };
            buffer.resize(if receives { lens.iter().map(|&l| part(l)).sum() } else { 0 }, 0u8);
            match root {
                None => {
                    let mut into = PartitionMut::new(&mut buffer[..], &counts[..], &places[..]);
                    world.all_gather_varcount_into(send, &mut into);
                }
                Some(root) if root == self.rank => {
                    let mut into = PartitionMut::new(&mut buffer[..], &counts[..], &places[..]);
                    world.process_at_rank(count(root)).gather_varcount_into_root(send, &mut into);
                }
                Some(root) => world.process_at_rank(count(root)).gather_varcount_into(send),
            }
            let mut rest = &buffer[..];
            for (whole, &len) in parts.iter_mut().zip(&lens) {
                let (head, tail) = rest.split_at(part(len));
                whole.extend_from_slice(head);
                rest = tail;
            }
        }
        parts
    }
}

/// An MPI rank or size as an index; MPI gives none below 0.
fn place(rank: i32) -> usize {
    usize::try_from(rank).unwrap_or(0)
}

/// A count or rank for MPI; callers keep it under [`MESSAGE_BYTES`].
fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn barrier(&self) -> Result<()> {
        // The exchange of headers is itself a barrier: no rank has all of them before the last one called.
        self.begin(Op::Barrier, None, 0, 0).map(drop)
    }

    fn broadcast_bytes(&self, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        check_root(Op::BroadcastBytes, root, self)?;
        let brings = if self.rank == root { bytes.len() } else { 0 };
        let (_turn, headers) = self.begin(Op::BroadcastBytes, Some(root), brings, 0)?;
        bytes.resize(header::len(&headers[root]), 0);
        let world = self.universe.world();
        for part in bytes.chunks_mut(self.message_bytes.max(1)) {
            world.process_at_rank(count(root)).broadcast_into(part);
        }
        Ok(())
    }

    fn all_gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (_turn, headers) = self.begin(Op::AllGatherBytes, None, mine.len(), 0)?;
        Ok(self.gather(None, mine, &headers))
    }

    fn all_gather_f32(&self, mine: &[f32], all: &mut [f32]) -> Result<()> {
        check_all(mine.len(), all.len(), self)?;
        let (_turn, _) = self.begin(Op::AllGatherF32, None, mine.len(), 0)?;
        let world = self.universe.world();
        let step = (self.round_bytes() / size_of::<f32>()).max(1);
        if mine.len() <= step {
            if !mine.is_empty() {
                world.all_gather_into(mine, all);
            }
            return Ok(());
        }
        let mut round = Vec::new();
        for (start, part) in (0..).step_by(step).zip(mine.chunks(step)) {
            round.resize(part.len() * self.size, 0.0f32);
            world.all_gather_into(part, &mut round[..]);
            let whole = all.chunks_exact_mut(mine.len());
            for (into, from) in whole.zip(round.chunks_exact(part.len())) {
                into[start..start + from.len()].copy_from_slice(from);
            }
        }
        Ok(())
    }

    fn gather_bytes(&self, root: usize, mine: &[u8]) -> Result<Option<Vec<Vec<u8>>>> {
        check_root(Op::GatherBytes, root, self)?;
        let (_turn, headers) = self.begin(Op::GatherBytes, Some(root), mine.len(), 0)?;
        let parts = self.gather(Some(root), mine, &headers);
        Ok((self.rank == root).then_some(parts))
    }

    fn all_reduce_u64(&self, reduce: Reduce, value: u64) -> Result<u64> {
        let (_turn, headers) = self.begin(reduce.into(), None, 0, value)?;
        fold(reduce, &headers, self.rank)
    }

    fn abort(&self, code: i32) -> Error {
        SimpleCommunicator::world().abort(code)
    }
}
