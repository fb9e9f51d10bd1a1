//! The GPU backend, written once for CUDA and for the emulator that runs the same device code on the CPU.
//!
//! Owns the seam below the operations: [`Device`] (memory, copies, launches, dense products) and [`Gpu`],
//! the [`Backend`] on top of any device. Each operation family has a `gpu.rs` that checks shapes through
//! its contract and builds a [`Launch`]. Activations are `bf16`; sums, parameters, gradients and moments
//! are `f32`. Knows no library of CUDA: that is [`crate::cuda`]. Nothing here has run on real hardware yet.
//!
//! A step never waits for the device: what a contract lets an operation refuse only after seeing the values
//! of a table (ids, positions, ranges) is noted by the device and refused by the next [`Backend::read`], or by
//! the end of one that was begun ([`refusal`]).

use crate::backend::{Backend, Coming, Element, Pending};
use crate::error::{Error, Result, check_len};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

mod buf;
pub mod dry;
mod flash;
mod graph;
mod launch;
mod product;
pub mod record;
pub mod refusal;
mod shards;
pub mod source;
mod workspace;

pub use buf::GpuBuf;
pub use flash::Flash;
pub use graph::{GraphCounts, Work};
pub use launch::{Arg, Launch, MAX_ARGS, blocks, extent, window, window_mut};
pub use product::{Addend, Operand, Output, OutputType, Product};
pub use workspace::Workspace;

/// One device: memory, copies and work on its single stream, in the order of the calls.
///
/// A device checks nothing of the shapes; whoever calls it has done so.
pub trait Device: Send + Sync + Debug + 'static {
    /// Memory of the device, freed when dropped, after the work that uses it.
    type Memory: Send + Sync + Debug + 'static;

    /// `bytes > 0` zeroed bytes, aligned to 256.
    ///
    /// # Errors
    /// [`Error::Backend`] when there is not enough memory.
    fn alloc(&self, bytes: usize) -> Result<Self::Memory>;

    /// Device address of the first byte.
    fn address(&self, memory: &Self::Memory) -> u64;

    /// `dst[offset..offset + src.len()] = src`, after the work queued before; `src` may change as soon as this returns.
    ///
    /// # Errors
    /// [`Error::Backend`] with the device's own words.
    fn write(&self, dst: &Self::Memory, offset: usize, src: &[u8]) -> Result<()>;

    /// `dst = src[offset..offset + dst.len()]`; waits for all work queued before.
    ///
    /// # Errors
    /// [`Error::Backend`] with the device's own words, also for earlier asynchronous work that failed.
    fn read(&self, src: &Self::Memory, offset: usize, dst: &mut [u8]) -> Result<()>;

    /// `dst[offset..offset + len] = 0`.
    ///
    /// # Errors
    /// [`Error::Backend`] with the device's own words.
    fn zero(&self, dst: &Self::Memory, offset: usize, len: usize) -> Result<()>;

    /// `dst[dst_offset..][..len] = src[src_offset..][..len]`, both `(memory, offset)`; the ranges do not overlap.
    ///
    /// # Errors
    /// [`Error::Backend`] with the device's own words.
    fn copy(
        &self,
        dst: (&Self::Memory, usize),
        src: (&Self::Memory, usize),
        len: usize,
    ) -> Result<()>;

    /// Queues a kernel.
    ///
    /// # Errors
    /// [`Error::Backend`] when the module does not compile, the kernel is unknown or the launch is refused.
    fn launch(&self, launch: &Launch<'_>) -> Result<()>;

    /// Queues a dense product, see [`Product`]; `m`, `n` and `k` are at least one.
    ///
    /// # Errors
    /// [`Error::Backend`] with the device's own words.
    fn product(&self, product: &Product) -> Result<()>;

    /// Whether the device brings attention kernels along, [`Device::flash`].
    fn has_flash(&self) -> bool {
        false
    }

    /// Queues attention, see [`Flash`].
    ///
    /// # Errors
    /// [`Error::Backend`] with the device's own words, or when it brings no such kernels.
    fn flash(&self, call: &Flash) -> Result<()> {
        let what = format!("the device has no kernels for {} sequences", call.sequences);
        Err(Error::Backend { op: "attention_flash", what })
    }

    /// Begins a copy of `src[offset..offset + len]`, as the work queued so far leaves it, to the host; work queued
    /// later may overwrite the range. A device without copies of its own reads at once.
    ///
    /// # Errors
    /// As [`Device::read`].
    fn begin_read(&self, src: &Self::Memory, offset: usize, len: usize) -> Result<Box<dyn Coming>> {
        let mut bytes = vec![0; len];
        self.read(src, offset, &mut bytes)?;
        Ok(Box::new(bytes))
    }

    /// As [`Device::begin_read`], beside the work queued later: no kernel may touch the range until [`Device::write`],
    /// [`Device::zero`] or [`Device::copy`] has overwritten it, which the device puts after the copy.
    ///
    /// # Errors
    /// As [`Device::read`].
    fn evict(&self, src: &Self::Memory, offset: usize, len: usize) -> Result<Box<dyn Coming>> {
        self.begin_read(src, offset, len)
    }

    /// Makes a graph of that number from a list that was queued before; runs nothing. False where it cannot: then
    /// the list is queued instead.
    ///
    /// # Errors
    /// [`Error::Backend`] with the device's own words.
    fn capture(&self, _number: u64, _list: &[Work]) -> Result<bool> {
        Ok(false)
    }

    /// Queues all the work of a graph.
    ///
    /// # Errors
    /// As [`Device::launch`]; [`Error::Backend`] when there is no graph of that number.
    fn replay(&self, number: u64) -> Result<()> {
        Err(Error::Backend { op: "replay", what: format!("there is no graph {number}") })
    }

    /// Gives a graph up.
    ///
    /// # Errors
    /// [`Error::Backend`] with the device's own words.
    fn forget(&self, _number: u64) -> Result<()> {
        Ok(())
    }
}

/// The backend on a device; clones are the same device.
#[derive(Debug)]
pub struct Gpu<D: Device>(Arc<Parts<D>>);

impl<D: Device> Clone for Gpu<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Parts<D: Device> {
    device: D,
    /// The word in which kernels note what they refuse.
    refused: D::Memory,
    /// Scratch memory of the operations, shared by all, grown while planning.
    scratch: Mutex<Option<(D::Memory, usize)>>,
    /// Work that is held back, where graphs are made of it.
    graphs: Option<Mutex<graph::Graphs>>,
}

impl<D: Device> Gpu<D> {
    /// The backend on `device`.
    ///
    /// # Errors
    /// [`Error::Backend`] when the device has no memory left.
    pub fn new(device: D) -> Result<Self> {
        Self::with_graphs(device, 0)
    }

    /// The backend on `device`, with up to `kept` graphs of work that repeats ([`Work`]): launches and products are
    /// held back until something else is asked for, and then given to the device together, where their errors are
    /// told. Without any, everything is queued at once.
    ///
    /// # Errors
    /// [`Error::Backend`] when the device has no memory left.
    pub fn with_graphs(device: D, kept: usize) -> Result<Self> {
        let refused = device.alloc(size_of::<u64>())?;
        let graphs = (kept > 0).then(|| Mutex::new(graph::Graphs::new(kept)));
        Ok(Self(Arc::new(Parts { device, refused, scratch: Mutex::new(None), graphs })))
    }

    /// The device below, after everything held back: what the caller queues on it comes later.
    pub fn device(&self) -> &D {
        self.flush_later_told();
        &self.0.device
    }

    /// What has become of work that was held back.
    pub fn graph_counts(&self) -> GraphCounts {
        self.graphs().map_or_else(GraphCounts::default, |graphs| graphs.counts())
    }

    fn graphs(&self) -> Option<MutexGuard<'_, graph::Graphs>> {
        // Whoever died while holding it left a list without its end: the error of that thread is told elsewhere.
        Some(self.0.graphs.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// As [`Backend::flush`] where nobody can be told.
    fn flush_later_told(&self) {
        if let Some(mut graphs) = self.graphs() {
            graphs.flush_later_told(&self.0.device);
        }
    }

    /// Queues a kernel; a grid without blocks is nothing to do.
    ///
    /// # Errors
    /// As [`Device::launch`]; [`Error::Backend`] when the grid or the arguments exceed what CUDA takes.
    pub fn launch(&self, launch: Launch<'_>) -> Result<()> {
        launch.check()?;
        match self.graphs() {
            _ if launch.grid.contains(&0) => Ok(()),
            None => self.0.device.launch(&launch),
            Some(mut graphs) => graphs.push(&self.0.device, Work::from(&launch)),
        }
    }

    /// Queues a product; one without rows or columns is nothing to do.
    ///
    /// # Errors
    /// As [`Device::product`]; [`Error::Shape`] for a chain of length zero.
    pub fn product(&self, product: &Product) -> Result<()> {
        if product.m == 0 || product.n == 0 {
            return Ok(());
        }
        if product.k == 0 {
            return Err(Error::Shape { op: "product", what: "k", expected: 1, got: 0 });
        }
        match self.graphs() {
            None => self.0.device.product(product),
            Some(mut graphs) => graphs.push(&self.0.device, Work::Product(*product)),
        }
    }

    /// `dst[dst_offset..][..len] = src[src_offset..][..len]` on the device, in elements.
    ///
    /// # Errors
    /// [`Error::Length`] when a range leaves its buffer.
    pub fn copy<T: Element>(
        &self,
        (dst, dst_offset): (&mut GpuBuf<D, T>, usize),
        (src, src_offset): (&GpuBuf<D, T>, usize),
        len: usize,
    ) -> Result<()> {
        check_len("copy", "dst", dst_offset.saturating_add(len), dst.length())?;
        check_len("copy", "src", src_offset.saturating_add(len), src.length())?;
        match (dst.memory(), src.memory()) {
            (Some(to), Some(from)) if len > 0 => {
                let size = size_of::<T>();
                let (to, from) = ((to, dst_offset * size), (from, src_offset * size));
                self.flush()?;
                self.0.device.copy(to, from, len * size)
            }
            _ => Ok(()),
        }
    }

    /// The argument through which a kernel notes a refusal ([`refusal`]).
    pub fn refusal(&self) -> Arg {
        Arg::Pointer(self.0.device.address(&self.0.refused))
    }

    /// Scratch memory in `N` pieces of the given bytes, each aligned to 256, of undefined content; held by this
    /// call until the result is dropped. Grows rarely: the old memory is freed, which waits for the device.
    ///
    /// # Errors
    /// [`Error::Backend`] when there is not enough memory.
    pub fn workspace<const N: usize>(&self, bytes: [usize; N]) -> Result<Workspace<'_, D, N>> {
        Workspace::take(self, bytes)
    }

    /// Refuses what kernels have noted since the last call; waits for the device.
    ///
    /// # Errors
    /// [`Error::Routing`] naming operation, row and value.
    pub fn check_refusal(&self) -> Result<()> {
        self.flush()?;
        let mut word = [0; size_of::<u64>()];
        self.0.device.read(&self.0.refused, 0, &mut word)?;
        self.refuse(word)
    }

    /// The error in the word of refusals, which becomes zero again.
    fn refuse(&self, word: [u8; size_of::<u64>()]) -> Result<()> {
        match refusal::decode(u64::from_le_bytes(word)) {
            None => Ok(()),
            Some(error) => {
                self.0.device.zero(&self.0.refused, 0, size_of::<u64>())?;
                Err(error)
            }
        }
    }
}

impl<D: Device> Backend for Gpu<D> {
    type Act = half::bf16;
    type Buf<T: Element> = GpuBuf<D, T>;

    fn alloc<T: Element>(&self, len: usize) -> Result<GpuBuf<D, T>> {
        GpuBuf::alloc(self, len)
    }

    fn write<T: Element>(&self, dst: &mut GpuBuf<D, T>, offset: usize, src: &[T]) -> Result<()> {
        check_len("write", "dst", offset.saturating_add(src.len()), dst.length())?;
        match dst.memory() {
            Some(to) if !src.is_empty() => {
                self.flush()?;
                self.0.device.write(to, offset * size_of::<T>(), bytemuck::cast_slice(src))
            }
            _ => Ok(()),
        }
    }

    fn read<T: Element>(&self, src: &GpuBuf<D, T>, offset: usize, dst: &mut [T]) -> Result<()> {
        check_len("read", "src", offset.saturating_add(dst.len()), src.length())?;
        if let Some(from) = src.memory()
            && !dst.is_empty()
        {
            let to = bytemuck::cast_slice_mut(dst);
            self.flush()?;
            self.0.device.read(from, offset * size_of::<T>(), to)?;
        }
        self.check_refusal()
    }

    fn zero<T: Element>(&self, dst: &mut GpuBuf<D, T>, offset: usize, len: usize) -> Result<()> {
        check_len("zero", "dst", offset.saturating_add(len), dst.length())?;
        match dst.memory() {
            Some(to) if len > 0 => {
                self.flush()?;
                self.0.device.zero(to, offset * size_of::<T>(), len * size_of::<T>())
            }
            _ => Ok(()),
        }
    }

    fn begin_read<T: Element>(
        &self,
        src: &GpuBuf<D, T>,
        offset: usize,
        len: usize,
    ) -> Result<Pending<T>> {
        check_len("begin_read", "src", offset.saturating_add(len), src.length())?;
        self.begin(src, (offset, len), D::begin_read)
    }

    fn evict<T: Element>(
        &self,
        src: &mut GpuBuf<D, T>,
        offset: usize,
        len: usize,
    ) -> Result<Pending<T>> {
        check_len("evict", "src", offset.saturating_add(len), src.length())?;
        self.begin(src, (offset, len), D::evict)
    }

    fn flush(&self) -> Result<()> {
        self.graphs().map_or(Ok(()), |mut graphs| graphs.flush(&self.0.device))
    }
}

/// [`Device::begin_read`] or [`Device::evict`].
type Begin<D> = fn(&D, &<D as Device>::Memory, usize, usize) -> Result<Box<dyn Coming>>;

impl<D: Device> Gpu<D> {
    /// Begins a read of a checked range and, after it, of the word of refusals.
    fn begin<T: Element>(
        &self,
        src: &GpuBuf<D, T>,
        (offset, len): (usize, usize),
        how: Begin<D>,
    ) -> Result<Pending<T>> {
        self.flush()?;
        let (size, parts) = (size_of::<T>(), &self.0);
        let bytes = match src.memory() {
            Some(from) if len > 0 => how(&parts.device, from, offset * size, len * size)?,
            _ => Box::new(Vec::new()),
        };
        let refused = parts.device.begin_read(&parts.refused, 0, size_of::<u64>())?;
        Ok(Pending::coming(len, Box::new(Download { bytes, refused, gpu: self.clone() })))
    }
}

/// Bytes on their way, and what kernels had refused by then.
#[derive(Debug)]
struct Download<D: Device> {
    bytes: Box<dyn Coming>,
    refused: Box<dyn Coming>,
    gpu: Gpu<D>,
}

impl<D: Device> Coming for Download<D> {
    fn finish(self: Box<Self>, dst: &mut [u8]) -> Result<()> {
        let mut word = [0; size_of::<u64>()];
        self.bytes.finish(dst)?;
        self.refused.finish(&mut word)?;
        self.gpu.refuse(word)
    }
}
