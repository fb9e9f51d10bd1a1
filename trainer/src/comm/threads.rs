//! R ranks as R threads of one process: the test double of MPI, and ranks without MPI on one machine.

use super::contain::message;
use super::header::{self, Header, check, fold, header};
use super::{Communicator, Error, Op, Reduce, Result, check_all, check_root};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What one rank brings to a meeting.
#[derive(Debug)]
struct Deposit {
    header: Header,
    bytes: Vec<u8>,
}

/// Why no further meeting can take place.
#[derive(Debug, Clone, Copy)]
enum End {
    Left { gone: usize },
    Aborted { rank: usize, code: i32 },
}

/// A meeting in progress and the result of the last one.
#[derive(Debug)]
struct Meeting {
    generation: u64,
    deposits: Vec<Option<Deposit>>,
    arrived: usize,
    last: Arc<Vec<Deposit>>,
    end: Option<End>,
}

#[derive(Debug)]
struct World {
    size: usize,
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

/// One rank of a world of threads.
///
/// Every collective is one meeting: each rank leaves (op, sequence number, root, length, bytes), the last to arrive
/// closes it, all read the same list. A rank that is dropped, also by a panic, fails the others' meetings.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    world: Arc<World>,
    sequence: Mutex<u64>,
}

impl Threads {
    /// The ranks of a new world, in rank order; give each to its own thread.
    ///
    /// # Errors
    /// No ranks asked for.
    pub fn world(ranks: usize) -> Result<Vec<Threads>> {
        if ranks == 0 {
            return Err(Error::NoRanks);
        }
        let meeting = Meeting {
            generation: 0,
            deposits: (0..ranks).map(|_| None).collect(),
            arrived: 0,
            last: Arc::default(),
            end: None,
        };
        let world =
            Arc::new(World { size: ranks, meeting: Mutex::new(meeting), changed: Condvar::new() });
        let rank = |rank| Threads { rank, world: Arc::clone(&world), sequence: Mutex::new(0) };
        Ok((0..ranks).map(rank).collect())
    }

    /// Runs `body` once per rank, each on a thread of its own, and returns what each made of it, in rank order;
    /// a panic comes back as [`Error::Panicked`] of its rank.
    ///
    /// # Errors
    /// No ranks asked for.
    pub fn run<T: Send>(
        ranks: usize,
        body: impl Fn(&Threads) -> Result<T> + Sync,
    ) -> Result<Vec<Result<T>>> {
        let world = Threads::world(ranks)?;
        let one = |comm: Threads| {
            let rank = comm.rank;
            // AssertUnwindSafe: the world of a rank that panicked is ended by its drop, nothing of it is used again.
            let caught = catch_unwind(AssertUnwindSafe(|| body(&comm)));
            drop(comm);
            caught.unwrap_or_else(|panic| {
                Err(Error::Panicked { rank, message: message(panic.as_ref()) })
            })
        };
        Ok(std::thread::scope(|scope| {
            let threads: Vec<_> = world.into_iter().map(|comm| scope.spawn(|| one(comm))).collect();
            let joined = threads.into_iter().enumerate().map(|(rank, thread)| {
                thread.join().unwrap_or_else(|panic| {
                    Err(Error::Panicked { rank, message: message(panic.as_ref()) })
                })
            });
            joined.collect()
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Meeting> {
        // A poisoned lock only says that a rank panicked; the meeting itself is consistent at every unlock.
        self.world.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One meeting: leaves this rank's part, returns everyone's once the calls are known to agree.
    fn meet(
        &self,
        op: Op,
        root: Option<usize>,
        elements: usize,
        value: u64,
        bytes: Vec<u8>,
    ) -> Result<Arc<Vec<Deposit>>> {
        let mut sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        let header = header(op, *sequence, root, elements, value);
        let mut meeting = self.lock();
        self.open(&meeting, op)?;
        *sequence += 1;
        meeting.deposits[self.rank] = Some(Deposit { header, bytes });
        meeting.arrived += 1;
        if meeting.arrived == self.world.size {
            let all: Vec<Deposit> = meeting.deposits.iter_mut().filter_map(Option::take).collect();
            meeting.last = Arc::new(all);
            meeting.arrived = 0;
            meeting.generation += 1;
            self.world.changed.notify_all();
        } else {
            let mine = meeting.generation;
            while meeting.generation == mine {
                self.open(&meeting, op)?;
                meeting = self.world.changed.wait(meeting).unwrap_or_else(PoisonError::into_inner);
            }
        }
        // The next meeting cannot close without this rank, so `last` is still the one it took part in.
        let last = Arc::clone(&meeting.last);
        drop(meeting);
        check(&last.iter().map(|d| d.header).collect::<Vec<_>>())?;
        Ok(last)
    }

    fn open(&self, meeting: &Meeting, op: Op) -> Result<()> {
        match meeting.end {
            None => Ok(()),
            Some(End::Left { gone }) => Err(Error::RankLeft { op, rank: self.rank, gone }),
            Some(End::Aborted { rank, code }) => Err(Error::Aborted { rank, code }),
        }
    }

    fn end(&self, end: End) {
        self.lock().end.get_or_insert(end);
        self.world.changed.notify_all();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.end(End::Left { gone: self.rank });
    }
}

impl Communicator for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.world.size
    }

    fn barrier(&self) -> Result<()> {
        self.meet(Op::Barrier, None, 0, 0, Vec::new()).map(drop)
    }

    fn broadcast_bytes(&self, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        check_root(Op::BroadcastBytes, root, self)?;
        let brought = if self.rank == root { bytes.clone() } else { Vec::new() };
        let all = self.meet(Op::BroadcastBytes, Some(root), brought.len(), 0, brought)?;
        if self.rank != root {
            bytes.clone_from(&all[root].bytes);
        }
        Ok(())
    }

    fn all_gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let all = self.meet(Op::AllGatherBytes, None, mine.len(), 0, mine.to_vec())?;
        Ok(all.iter().map(|d| d.bytes.clone()).collect())
    }

    fn all_gather_f32(&self, mine: &[f32], all: &mut [f32]) -> Result<()> {
        check_all(mine.len(), all.len(), self)?;
        let brought = bytemuck::cast_slice(mine).to_vec();
        let met = self.meet(Op::AllGatherF32, None, mine.len(), 0, brought)?;
        for (part, deposit) in all.chunks_exact_mut(mine.len().max(1)).zip(met.iter()) {
            bytemuck::cast_slice_mut(part).copy_from_slice(&deposit.bytes);
        }
        Ok(())
    }

    fn gather_bytes(&self, root: usize, mine: &[u8]) -> Result<Option<Vec<Vec<u8>>>> {
        check_root(Op::GatherBytes, root, self)?;
        let all = self.meet(Op::GatherBytes, Some(root), mine.len(), 0, mine.to_vec())?;
        let parts = || all.iter().map(|d| d.bytes.clone()).collect();
        Ok((self.rank == root).then(parts))
    }

    fn all_reduce_u64(&self, reduce: Reduce, value: u64) -> Result<u64> {
        let all = self.meet(reduce.into(), None, 0, value, Vec::new())?;
        let headers: Vec<header::Header> = all.iter().map(|d| d.header).collect();
        fold(reduce, &headers, self.rank)
    }

    fn abort(&self, code: i32) -> Error {
        self.end(End::Aborted { rank: self.rank, code });
        Error::Aborted { rank: self.rank, code }
    }
}
