//! One rank's communicator: made, polled, closed or aborted.
//!
//! Communicators are non-blocking: a call returns at once and its outcome is polled, here every [`PATIENCE`], against a
//! time limit. Whatever goes wrong ends in `ncclCommAbort`, which also frees kernels that wait on the device for ranks
//! that will never come; the group then refuses everything. Nothing in this file can wait for ever.
#![expect(unsafe_code, reason = "foreign functions of NCCL")]

use super::error::{Error, Place, Result};
use super::lane::{Lane, Region};
use super::library::{Comm, Config, FLOAT32, IN_PROGRESS, Nccl, SUCCESS, SUM};
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pauses between two looks: 0 for the first looks of a wait, then a little longer each time, up to this.
const PATIENCE: Duration = Duration::from_micros(500);

/// How long an aborted group waits for what its lane was given; NCCL's kernels end within milliseconds of an abort.
const DRAIN: Duration = Duration::from_secs(5);

/// `ncclUniqueId`: how the ranks of a group find each other.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UniqueId([u8; 128]);

impl Default for UniqueId {
    fn default() -> Self {
        Self([0; 128])
    }
}

impl UniqueId {
    /// As it travels between ranks.
    pub fn bytes(&self) -> [u8; 128] {
        self.0
    }

    /// From the bytes that came; `None` if there are not 128.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// The address of an `ncclComm_t`; 0 once it is gone. Behind the lock because NCCL's communicators serve one thread.
#[derive(Debug)]
struct Handle(u64);

impl Handle {
    fn comm(&self) -> Comm {
        self.0 as Comm
    }
}

/// A rank's place among GPUs that talk.
///
/// Collectives are enqueued on the stream of the [`Lane`] and return before they run; [`Group::wait`] waits for them.
/// Every rank must make the same calls with the same lengths in the same order. Dropped without [`Group::close`], it is
/// aborted: an error path never waits for ranks that may wait for us.
#[derive(Debug)]
pub struct Group {
    nccl: Arc<Nccl>,
    lane: Arc<dyn Lane>,
    place: Place,
    limit: Duration,
    handle: Mutex<Handle>,
}

impl Group {
    /// Joins the group of `id`: returns when every rank of it has. `limit` bounds this and every later wait.
    ///
    /// # Errors
    /// What NCCL says; [`Error::TimedOut`] when a rank does not come.
    pub fn join(
        nccl: Arc<Nccl>,
        lane: Arc<dyn Lane>,
        id: UniqueId,
        place: Place,
        limit: Duration,
    ) -> Result<Self> {
        lane.bind()?;
        let (size, rank) = (int(place.size)?, int(place.rank)?);
        let mut config = Config::non_blocking();
        let mut comm: Comm = std::ptr::null_mut();
        // SAFETY: `comm` and `config` live through the call; NCCL copies the configuration.
        let code = unsafe {
            let make = nccl.table.comm_init_rank_config;
            make(&raw mut comm, size, id, rank, &raw mut config)
        };
        let handle = Mutex::new(Handle(comm as u64));
        let group = Self { nccl, lane, place, limit, handle };
        let mut handle = group.lock();
        group.settle("init", &mut handle, code)?;
        drop(handle);
        Ok(group)
    }

    /// Who this is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The stream of the collectives, and memory beside it.
    pub fn lane(&self) -> &Arc<dyn Lane> {
        &self.lane
    }

    /// to[r·n .. (r+1)·n] = from of rank r, for `n = from.len`; `to` holds size·n. `from` may be this rank's part of `to`.
    ///
    /// # Errors
    /// Lengths that do not fit; what NCCL says.
    pub fn all_gather(&self, from: Region, to: Region) -> Result<()> {
        let op = "all_gather";
        self.fits(op, from.len * self.place.size, to.len)?;
        self.call(op, |t, comm, stream| {
            // SAFETY: regions are memory of the lane's device by the contract of `Lane`, and as long as checked.
            unsafe { (t.all_gather)(from.pointer(), to.pointer(), from.len, FLOAT32, comm, stream) }
        })
    }

    /// to = this rank's n values of Σ_r from of rank r, for `n = to.len`; `from` holds size·n. The order of the sum is NCCL's.
    ///
    /// # Errors
    /// Lengths that do not fit; what NCCL says.
    pub fn reduce_scatter(&self, from: Region, to: Region) -> Result<()> {
        let op = "reduce_scatter";
        self.fits(op, to.len * self.place.size, from.len)?;
        self.call(op, |t, comm, stream| {
            // SAFETY: as in `all_gather`.
            unsafe {
                let (from, count) = (from.pointer(), to.len);
                (t.reduce_scatter)(from, to.pointer(), count, FLOAT32, SUM, comm, stream)
            }
        })
    }

    /// to = Σ_r from of rank r; `from` may be `to`. The order of the sum, so its bytes, is NCCL's and changes with the ranks.
    ///
    /// # Errors
    /// Lengths that do not fit; what NCCL says.
    pub fn all_reduce(&self, from: Region, to: Region) -> Result<()> {
        let op = "all_reduce";
        self.fits(op, from.len, to.len)?;
        self.call(op, |t, comm, stream| {
            // SAFETY: as in `all_gather`.
            unsafe {
                (t.all_reduce)(from.pointer(), to.pointer(), from.len, FLOAT32, SUM, comm, stream)
            }
        })
    }

    /// Gathers several regions in one launch: each pair as in [`Group::all_gather`].
    ///
    /// # Errors
    /// As [`Group::all_gather`].
    pub fn all_gather_each(&self, pairs: &[(Region, Region)]) -> Result<()> {
        let op = "all_gather";
        if let [(from, to)] = pairs {
            return self.all_gather(*from, *to);
        }
        for (from, to) in pairs {
            self.fits(op, from.len * self.place.size, to.len)?;
        }
        if pairs.is_empty() {
            return Ok(());
        }
        self.call(op, |t, comm, stream| {
            // SAFETY: as in `all_gather`; the group of calls is closed whatever they return.
            unsafe {
                let mut worst = (t.group_start)();
                for (from, to) in pairs {
                    if matches!(worst, SUCCESS | IN_PROGRESS) {
                        let (out, count) = (to.pointer(), from.len);
                        worst = (t.all_gather)(from.pointer(), out, count, FLOAT32, comm, stream);
                    }
                }
                let ended = (t.group_end)();
                if matches!(worst, SUCCESS | IN_PROGRESS) { ended } else { worst }
            }
        })
    }

    /// Waits until the lane has done all it was given, the collectives among it.
    ///
    /// # Errors
    /// An asynchronous error of NCCL or of the device; [`Error::TimedOut`]; the group is then aborted.
    pub fn wait(&self, op: &'static str) -> Result<()> {
        let mut handle = self.open(op)?;
        let mut pause = Pause::new(self.limit);
        loop {
            let done = match self.lane.done() {
                Ok(done) => done,
                Err(error) => {
                    self.abort_now(&mut handle);
                    return Err(error);
                }
            };
            // Looked at also when all is done: a kernel that gives up ends like one that succeeded.
            match self.state(&handle) {
                SUCCESS if done => return Ok(()),
                SUCCESS | IN_PROGRESS => {}
                code => return Err(self.fail(op, &mut handle, code)),
            }
            if pause.over() {
                return Err(self.late(op, &mut handle));
            }
            pause.rest();
        }
    }

    /// Leaves in good order (ncclCommFinalize, ncclCommDestroy); every rank must.
    ///
    /// # Errors
    /// What NCCL says; [`Error::TimedOut`] when a rank does not come; the group is then aborted.
    pub fn close(self) -> Result<()> {
        let op = "close";
        self.wait(op)?;
        let mut handle = self.open(op)?;
        let comm = handle.comm();
        // SAFETY: the communicator lives and is idle.
        let code = unsafe { (self.nccl.table.comm_finalize)(comm) };
        self.settle(op, &mut handle, code)?;
        handle.0 = 0;
        // SAFETY: finalised above; the handle is forgotten, so nothing uses it again.
        let code = unsafe { (self.nccl.table.comm_destroy)(comm) };
        if code == SUCCESS { Ok(()) } else { Err(self.error(op, code, std::ptr::null_mut())) }
    }

    /// Ends the group at once, on this rank (ncclCommAbort): work on the device that waits for others is freed. Then the
    /// lane is let run out, for at most five seconds, so that nothing uses memory that is freed afterwards.
    pub fn abort(&self) {
        self.abort_now(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Handle> {
        // A poisoned lock says that a thread panicked between calls; the handle is right at every unlock.
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The handle, if the group still is.
    fn open(&self, op: &'static str) -> Result<MutexGuard<'_, Handle>> {
        let handle = self.lock();
        if handle.0 == 0 {
            return Err(Error::Gone { op, place: Box::new(self.place.clone()) });
        }
        self.lane.bind()?;
        Ok(handle)
    }

    fn fits(&self, op: &'static str, expected: usize, got: usize) -> Result<()> {
        if expected == got {
            return Ok(());
        }
        let what = format!("{}: {got} values, expected {expected}", self.place);
        Err(Error::Argument { op, what })
    }

    /// Makes a call and waits until NCCL has taken it up (not until it has run).
    fn call(
        &self,
        op: &'static str,
        make: impl FnOnce(&super::library::Table, Comm, *mut c_void) -> c_int,
    ) -> Result<()> {
        let mut handle = self.open(op)?;
        let code = make(&self.nccl.table, handle.comm(), self.lane.stream() as *mut c_void);
        self.settle(op, &mut handle, code)
    }

    /// Polls until a call that returned `code` is over: NCCL takes no other before.
    fn settle(&self, op: &'static str, handle: &mut Handle, code: c_int) -> Result<()> {
        let (mut code, mut pause) = (code, Pause::new(self.limit));
        loop {
            match code {
                SUCCESS => return Ok(()),
                IN_PROGRESS if pause.over() => return Err(self.late(op, handle)),
                IN_PROGRESS => pause.rest(),
                code => return Err(self.fail(op, handle, code)),
            }
            code = self.state(handle);
        }
    }

    /// The communicator's state: success, in progress, or an asynchronous error.
    fn state(&self, handle: &Handle) -> c_int {
        let mut state = SUCCESS;
        // SAFETY: the communicator lives; writes one int, which lives.
        let code = unsafe { (self.nccl.table.comm_get_async_error)(handle.comm(), &raw mut state) };
        if code == SUCCESS { state } else { code }
    }

    fn error(&self, op: &'static str, code: c_int, comm: Comm) -> Error {
        let (what, last) = self.nccl.words(code, comm);
        Error::Nccl { op, place: Box::new(self.place.clone()), code, what, last }
    }

    fn fail(&self, op: &'static str, handle: &mut Handle, code: c_int) -> Error {
        let error = self.error(op, code, handle.comm());
        self.abort_now(handle);
        error
    }

    fn late(&self, op: &'static str, handle: &mut Handle) -> Error {
        self.abort_now(handle);
        Error::TimedOut { op, place: Box::new(self.place.clone()), limit: self.limit }
    }

    fn abort_now(&self, handle: &mut Handle) {
        let comm = handle.comm();
        handle.0 = 0;
        if !comm.is_null() && self.lane.bind().is_ok() {
            // SAFETY: the communicator lived until here and is forgotten before this.
            let _ = unsafe { (self.nccl.table.comm_abort)(comm) };
            // What was queued behind the collectives runs on, over memory that its owner may free next.
            let mut pause = Pause::new(DRAIN);
            while matches!(self.lane.done(), Ok(false)) && !pause.over() {
                pause.rest();
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.abort();
    }
}

/// Looks that come thick at first and then every [`PATIENCE`], until a limit.
struct Pause {
    started: Instant,
    limit: Duration,
    looks: u32,
}

impl Pause {
    fn new(limit: Duration) -> Self {
        Self { started: Instant::now(), limit, looks: 0 }
    }

    fn over(&self) -> bool {
        self.started.elapsed() >= self.limit
    }

    fn rest(&mut self) {
        self.looks = self.looks.saturating_add(1);
        match self.looks {
            0..64 => std::thread::yield_now(),
            looks => std::thread::sleep(PATIENCE.min(Duration::from_micros(u64::from(looks)))),
        }
    }
}

fn int(n: usize) -> Result<c_int> {
    c_int::try_from(n).map_err(|_| Error::Argument { op: "init", what: format!("{n} ranks") })
}
