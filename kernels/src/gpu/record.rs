//! A device that also writes each launch to a file: name, geometry, arguments, and every buffer that an argument
//! points into, before and after. [`Recording::replay`] repeats it on any device, so that what a GPU computed can be
//! held against the emulator, and the other way round. For finding bugs: it copies whole buffers and waits.

use super::{Arg, Device, Launch, Product, source};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

mod format;

/// Wraps a device; each launch becomes `<number>-<kernel>.launch` in a folder.
#[derive(Debug)]
pub struct Recorder<D: Device> {
    inner: D,
    folder: PathBuf,
    state: Arc<Mutex<State<D>>>,
}

#[derive(Debug)]
struct State<D: Device> {
    /// Live memory by its address.
    live: BTreeMap<u64, Weak<Allocation<D>>>,
    launches: u64,
}

#[derive(Debug)]
struct Allocation<D: Device> {
    memory: D::Memory,
    bytes: usize,
}

/// Memory of the wrapped device that the recorder knows of.
#[derive(Debug)]
pub struct Recorded<D: Device> {
    allocation: Arc<Allocation<D>>,
    address: u64,
    state: Arc<Mutex<State<D>>>,
}

impl<D: Device> Drop for Recorded<D> {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.live.remove(&self.address);
    }
}

/// One launch as it was.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// Name of the module.
    pub module: String,
    /// Name of the entry.
    pub kernel: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Arguments; an address is the one of the recording device.
    pub args: Vec<Argument>,
    /// The buffers.
    pub buffers: Vec<Snapshot>,
}

/// One argument of a recording.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Argument {
    /// As it was passed.
    pub arg: Arg,
    /// For a pointer into a buffer, which one and the byte in it.
    pub target: Option<(usize, u64)>,
}

/// One buffer of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its bytes before the launch.
    pub before: Vec<u8>,
    /// And after it.
    pub after: Vec<u8>,
}

impl<D: Device> Recorder<D> {
    /// Records the launches on `inner` into a folder, which is made.
    ///
    /// # Errors
    /// [`Error::Backend`] when the folder cannot be made.
    pub fn new(inner: D, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
        let state = Mutex::new(State { live: BTreeMap::new(), launches: 0 });
        Ok(Self { inner, folder: folder.into(), state: Arc::new(state) })
    }

    /// The arguments of a launch, and the buffers that they point into.
    fn targets(&self, args: &[Arg]) -> (Vec<Argument>, Vec<Arc<Allocation<D>>>, u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut found, mut bases) = (Vec::new(), Vec::new());
        let target = |arg: &Arg| {
            let Arg::Pointer(address) = *arg else { return None };
            let (&base, weak) = state.live.range(..=address).next_back()?;
            let allocation = weak.upgrade()?;
            // One past the end is where a window without rows may begin.
            if address > base + allocation.bytes as u64 {
                return None;
            }
            let which = bases.iter().position(|&b| b == base).unwrap_or_else(|| {
                bases.push(base);
                found.push(allocation);
                bases.len() - 1
            });
            Some((which, address - base))
        };
        let mut target = target;
        let args = args.iter().map(|arg| Argument { arg: *arg, target: target(arg) }).collect();
        state.launches += 1;
        (args, found, state.launches - 1)
    }

    fn contents(&self, allocations: &[Arc<Allocation<D>>]) -> Result<Vec<Vec<u8>>> {
        let read = |allocation: &Arc<Allocation<D>>| {
            let mut bytes = vec![0; allocation.bytes];
            self.inner.read(&allocation.memory, 0, &mut bytes).map(|()| bytes)
        };
        allocations.iter().map(read).collect()
    }
}

impl<D: Device> Device for Recorder<D> {
    type Memory = Recorded<D>;

    fn alloc(&self, bytes: usize) -> Result<Recorded<D>> {
        let memory = self.inner.alloc(bytes)?;
        let address = self.inner.address(&memory);
        let (allocation, state) = (Arc::new(Allocation { memory, bytes }), self.state.clone());
        let weak = Arc::downgrade(&allocation);
        state.lock().unwrap_or_else(PoisonError::into_inner).live.insert(address, weak);
        Ok(Recorded { allocation, address, state })
    }

    fn address(&self, memory: &Recorded<D>) -> u64 {
        memory.address
    }

    fn write(&self, dst: &Recorded<D>, offset: usize, src: &[u8]) -> Result<()> {
        self.inner.write(&dst.allocation.memory, offset, src)
    }

    fn read(&self, src: &Recorded<D>, offset: usize, dst: &mut [u8]) -> Result<()> {
        self.inner.read(&src.allocation.memory, offset, dst)
    }

    fn zero(&self, dst: &Recorded<D>, offset: usize, len: usize) -> Result<()> {
        self.inner.zero(&dst.allocation.memory, offset, len)
    }

    fn copy(
        &self,
        (dst, dst_offset): (&Recorded<D>, usize),
        (src, src_offset): (&Recorded<D>, usize),
        len: usize,
    ) -> Result<()> {
        let (to, from) = (&dst.allocation.memory, &src.allocation.memory);
        self.inner.copy((to, dst_offset), (from, src_offset), len)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let (args, allocations, number) = self.targets(launch.args);
        let before = self.contents(&allocations)?;
        self.inner.launch(launch)?;
        let after = self.contents(&allocations)?;
        let snapshots = before.into_iter().zip(after);
        let recording = Recording {
            module: launch.module.into(),
            kernel: launch.kernel.into(),
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared,
            args,
            buffers: snapshots.map(|(before, after)| Snapshot { before, after }).collect(),
        };
        recording.write(&self.folder.join(format!("{number:06}-{}.launch", launch.kernel)))
    }

    fn product(&self, product: &Product) -> Result<()> {
        self.inner.product(product)
    }
}

impl Recording {
    /// Runs the launch on a device from the recorded buffers; returns what they hold then, to be held against
    /// [`Snapshot::after`].
    ///
    /// # Errors
    /// [`Error::Backend`] when this binary has no such module, and all errors of the device.
    pub fn replay<D: Device>(&self, device: &D) -> Result<Vec<Vec<u8>>> {
        let module = source::module(&self.module).ok_or_else(|| Error::Backend {
            op: "replay",
            what: format!("there is no module {}", self.module),
        })?;
        let upload = |buffer: &Snapshot| {
            let memory = device.alloc(buffer.before.len())?;
            device.write(&memory, 0, &buffer.before)?;
            Ok(memory)
        };
        let buffers = self.buffers.iter().map(upload).collect::<Result<Vec<_>>>()?;
        let argument = |a: &Argument| match a.target.and_then(|(i, at)| Some((buffers.get(i)?, at)))
        {
            Some((buffer, at)) => Arg::Pointer(device.address(buffer) + at),
            None => a.arg,
        };
        let args: Vec<Arg> = self.args.iter().map(argument).collect();
        let Self { grid, block, shared, .. } = *self;
        let (module, kernel) = (module.name, self.kernel.as_str());
        device.launch(&Launch { module, kernel, grid, block, shared, args: &args })?;
        let download = |(memory, buffer): (&D::Memory, &Snapshot)| {
            let mut bytes = vec![0; buffer.before.len()];
            device.read(memory, 0, &mut bytes).map(|()| bytes)
        };
        buffers.iter().zip(&self.buffers).map(download).collect()
    }
}

fn failed(path: &Path, what: &dyn std::fmt::Display) -> Error {
    Error::Backend { op: "record", what: format!("{}: {what}", path.display()) }
}
