//! The CUDA device on cudarc, which loads every library at run time and links to none.
//!
//! Owns the libraries' presence ([`libraries`], [`Cuda::open`] looks before it calls: cudarc panics on a missing
//! one), memory (`memory.rs`), copies to and from the host (`transfer.rs`), compilation of the device code
//! (`compile.rs`), kernels (`kernels.rs`), dense products (`product.rs`) and graphs (`graph.rs`). One context, one
//! stream that computes, and one beside it that copies what has left ([`Device::evict`]); calls may come from any
//! thread.
//!
//! Compiled in every build. It has never run: no machine of the project has a GPU.
#![expect(unsafe_code, reason = "the driver's interface")]

use crate::backend::Coming;
use crate::error::{Error, Result};
use crate::gpu::{Device, Gpu, Launch, Product, Work};
use crate::nccl::{Handles, SUM_KERNEL};
use cudarc::driver::{CudaContext, CudaStream};
use std::path::PathBuf;
use std::sync::Arc;

pub mod compile;
#[cfg(feature = "flash-attn")]
mod flash;
mod graph;
mod kernels;
mod memory;
mod product;
mod transfer;

pub use memory::Memory;

/// The oldest CUDA whose drivers take the code compiled here, as [`usable`] takes it: 13.0, release 580.
const OLDEST_CUDA: i32 = 13_000;
/// The least compute capability: `bf16` on tensor cores and asynchronous copies.
const LEAST_CAPABILITY: (u32, u32) = (8, 0);

/// The backend of NVIDIA GPUs.
pub type CudaBackend = Gpu<Cuda>;

/// Libraries that can be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Libraries {
    /// The driver, libcuda.
    pub driver: bool,
    /// The run-time compiler.
    pub nvrtc: bool,
    /// Collectives between GPUs.
    pub nccl: bool,
    /// Dense products.
    pub cublaslt: bool,
}

/// Looks for the libraries without calling them: cudarc panics when a missing one is called.
#[cfg(not(feature = "flash-attn"))]
pub fn libraries() -> Libraries {
    // SAFETY: each call only opens the library, as any later use would, and calls nothing in it; cudarc
    // asks that no other thread unload it meanwhile, and nothing here ever unloads one.
    unsafe {
        Libraries {
            driver: cudarc::driver::sys::is_culib_present(),
            nvrtc: cudarc::nvrtc::sys::is_culib_present(),
            nccl: cudarc::nccl::sys::is_culib_present(),
            cublaslt: cudarc::cublaslt::sys::is_culib_present(),
        }
    }
}

/// All are there: candle's CUDA backend, which comes with the feature, links them, and without one of them no program
/// of this build starts.
#[cfg(feature = "flash-attn")]
pub fn libraries() -> Libraries {
    Libraries { driver: true, nvrtc: true, nccl: true, cublaslt: true }
}

/// Which device, and where compiled kernels lie.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The device, counted as the driver counts.
    pub ordinal: usize,
    /// Folder of kernels compiled at an earlier first use; made when missing. Without one, nothing is kept.
    pub cache: Option<PathBuf>,
    /// Folder of cubins built beforehand, [`compile::cubin_name`]; then the run-time compiler is not needed for them.
    pub cubins: Option<PathBuf>,
}

/// What a device says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Marketing name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub total_memory: usize,
    /// Bytes that are free now.
    pub free_memory: usize,
    /// Multiprocessors.
    pub multiprocessors: u32,
}

/// One NVIDIA GPU.
#[derive(Debug)]
pub struct Cuda {
    // Dropped in this order: what lives in the context before the context's last owner.
    graphs: graph::Graphs,
    products: product::Products,
    kernels: kernels::Kernels,
    staging: transfer::Staging,
    downloads: transfer::Downloads,
    queue: Queue,
}

/// The context and its streams, shared by everything that lives in them.
#[derive(Debug, Clone)]
struct Queue {
    context: Arc<CudaContext>,
    /// Computes, in the order of the calls.
    stream: Arc<CudaStream>,
    /// Copies what has left to the host.
    copies: Arc<CudaStream>,
}

impl Queue {
    /// Makes the context current on this thread, as every call of the driver needs.
    fn enter(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(driver("context"))
    }

    /// Waits for all work on the computing stream.
    fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(driver("synchronize"))
    }
}

impl Cuda {
    /// Opens a device.
    ///
    /// # Errors
    /// [`Error::Backend`] naming the library, driver or device that is missing.
    pub fn open(options: Options) -> Result<Self> {
        let there = libraries();
        present(there.driver, "libcuda.so.1", "is the NVIDIA driver installed?")?;
        // Said first: whoever has too old a driver most likely lacks the libraries too.
        usable(version()?, LEAST_CAPABILITY)?;
        present(there.cublaslt, "libcublasLt.so.13", "install cuBLAS of CUDA 13")?;
        let count = CudaContext::device_count().map_err(driver("device count"))?;
        let Options { ordinal, cache, cubins } = options;
        if usize::try_from(count).is_ok_and(|count| ordinal >= count) {
            let what = format!("there is no device {ordinal}: the driver has {count}");
            return Err(Error::Backend { op: "open", what });
        }
        let context = CudaContext::new(ordinal).map_err(driver("context"))?;
        let stream = context.new_stream().map_err(driver("stream"))?;
        let copies = context.new_stream().map_err(driver("stream"))?;
        let queue = Queue { context, stream, copies };
        usable(OLDEST_CUDA, capability(&queue)?)?;
        let compiler = compile::Compiler { cache, cubins };
        Ok(Self {
            graphs: graph::Graphs::new(&queue)?,
            products: product::Products::new(&queue)?,
            kernels: kernels::Kernels::new(&queue, compiler)?,
            staging: transfer::Staging::new(&queue),
            downloads: transfer::Downloads::new(&queue),
            queue,
        })
    }

    /// Name, capability and memory.
    ///
    /// # Errors
    /// [`Error::Backend`] with the driver's words.
    pub fn describe(&self) -> Result<Description> {
        use cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let context = &self.queue.context;
        let multiprocessors = context.attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        let (free_memory, total_memory) = self.memory_info()?;
        Ok(Description {
            name: context.name().map_err(driver("name"))?,
            capability: capability(&self.queue)?,
            total_memory,
            free_memory,
            multiprocessors: multiprocessors.map_err(driver("attribute"))?.cast_unsigned(),
        })
    }

    /// Free and total bytes.
    ///
    /// # Errors
    /// [`Error::Backend`] with the driver's words.
    pub fn memory_info(&self) -> Result<(usize, usize)> {
        self.queue.context.mem_get_info().map_err(driver("memory info"))
    }

    /// What collectives beside this device's work need of it; the objects live as long as the device.
    ///
    /// # Errors
    /// As [`Device::launch`], of the module that adds gradients.
    pub fn handles(&self) -> Result<Handles> {
        self.queue.enter()?;
        Ok(Handles {
            context: self.queue.context.cu_ctx() as u64,
            compute: self.queue.stream.cu_stream() as u64,
            sum: Some(self.kernels.function("shards", SUM_KERNEL)?),
        })
    }

    /// Compiles or loads every module, which otherwise happens at first use.
    ///
    /// # Errors
    /// As [`Device::launch`].
    pub fn load_all(&self) -> Result<()> {
        self.queue.enter()?;
        crate::gpu::source::MODULES.iter().try_for_each(|module| self.kernels.load(module.name))
    }
}

impl Device for Cuda {
    type Memory = Memory;

    fn alloc(&self, bytes: usize) -> Result<Memory> {
        self.queue.enter()?;
        let memory = Memory::new(&self.queue, bytes)?;
        self.zero(&memory, 0, bytes)?;
        Ok(memory)
    }

    fn address(&self, memory: &Memory) -> u64 {
        memory.address()
    }

    fn write(&self, dst: &Memory, offset: usize, src: &[u8]) -> Result<()> {
        self.queue.enter()?;
        self.staging.write(dst.range_mut(offset, src.len())?, src)
    }

    fn read(&self, src: &Memory, offset: usize, dst: &mut [u8]) -> Result<()> {
        self.queue.enter()?;
        self.staging.read(src.range(offset, dst.len())?, dst)
    }

    fn zero(&self, dst: &Memory, offset: usize, len: usize) -> Result<()> {
        self.queue.enter()?;
        memory::zero(&self.queue, dst.range_mut(offset, len)?, len)
    }

    fn copy(
        &self,
        (dst, dst_offset): (&Memory, usize),
        (src, src_offset): (&Memory, usize),
        len: usize,
    ) -> Result<()> {
        self.queue.enter()?;
        let (to, from) = (dst.range_mut(dst_offset, len)?, src.range(src_offset, len)?);
        memory::copy(&self.queue, to, from, len)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.queue.enter()?;
        self.kernels.launch(launch, &self.queue.stream)
    }

    fn product(&self, product: &Product) -> Result<()> {
        self.queue.enter()?;
        self.products.run(product, &self.queue.stream)
    }

    fn begin_read(&self, src: &Memory, offset: usize, len: usize) -> Result<Box<dyn Coming>> {
        self.queue.enter()?;
        let download = self.downloads.begin(&self.queue.stream, (src.range(offset, len)?, len))?;
        Ok(Box::new(download))
    }

    fn evict(&self, src: &Memory, offset: usize, len: usize) -> Result<Box<dyn Coming>> {
        self.queue.enter()?;
        let address = src.range(offset, len)?;
        self.queue.copies.join(&self.queue.stream).map_err(driver("event"))?;
        let download = self.downloads.begin(&self.queue.copies, (address, len))?;
        src.leaves(offset..offset + len, download.done());
        Ok(Box::new(download))
    }

    fn capture(&self, number: u64, list: &[Work]) -> Result<bool> {
        self.queue.enter()?;
        let record = |stream: &CudaStream| {
            list.iter().try_for_each(|work| {
                let product = |product: &Product| self.products.run(product, stream);
                work.give(|launch| self.kernels.launch(launch, stream), product)
            })
        };
        Ok(self.graphs.capture(number, record, || self.products.padded_copies()))
    }

    fn replay(&self, number: u64) -> Result<()> {
        self.queue.enter()?;
        self.graphs.replay(number)
    }

    fn forget(&self, number: u64) -> Result<()> {
        self.queue.enter()?;
        self.graphs.forget(number)
    }

    #[cfg(feature = "flash-attn")]
    fn has_flash(&self) -> bool {
        true
    }

    #[cfg(feature = "flash-attn")]
    fn flash(&self, call: &crate::gpu::Flash) -> Result<()> {
        self.queue.enter()?;
        flash::run(&self.queue, call)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Nothing may be freed under running work; an error here has been or will be told by a read.
        let _ = self.queue.enter().and_then(|()| self.queue.wait());
        let _ = self.queue.copies.synchronize();
    }
}

/// Major and minor compute capability.
fn capability(queue: &Queue) -> Result<(u32, u32)> {
    let (major, minor) = queue.context.compute_capability().map_err(driver("capability"))?;
    Ok((major.cast_unsigned(), minor.cast_unsigned()))
}

/// Refuses a driver or a device that cannot run the device code: `cuda` is the newest CUDA that the driver serves, a
/// thousand times the major plus ten times the minor version.
///
/// # Errors
/// [`Error::Backend`] with what there is and what is needed.
pub fn usable(cuda: i32, capability: (u32, u32)) -> Result<()> {
    let says = |cuda: i32| format!("{}.{}", cuda / 1000, cuda % 1000 / 10);
    let what = if cuda < OLDEST_CUDA {
        let (there, needed) = (says(cuda), says(OLDEST_CUDA));
        format!("the driver serves CUDA {there}: {needed} is needed, release 580 or newer")
    } else if capability < LEAST_CAPABILITY {
        let ((major, minor), least) = (capability, LEAST_CAPABILITY);
        format!("compute capability {major}.{minor}: {}.{} or newer is needed", least.0, least.1)
    } else {
        return Ok(());
    };
    Err(Error::Backend { op: "open", what })
}

/// The newest CUDA that the driver serves.
fn version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: the driver is there, its caller has looked; the call writes one int, which lives.
    let code = unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut version) };
    code.result().map_err(driver("version"))?;
    Ok(version)
}

/// Refuses a missing library.
fn present(there: bool, library: &str, hint: &str) -> Result<()> {
    if there {
        return Ok(());
    }
    Err(Error::Backend { op: "open", what: format!("{library} not found: {hint}") })
}

/// A driver's error under the name of the call.
fn driver(op: &'static str) -> impl Fn(cudarc::driver::DriverError) -> Error {
    move |error| Error::Backend { op, what: format!("CUDA driver: {error:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_driver_and_an_old_device_are_refused_by_their_numbers() {
        assert_eq!(usable(13_000, (8, 0)), Ok(()));
        assert_eq!(usable(13_020, (12, 0)), Ok(()));
        let says = |cuda, capability| usable(cuda, capability).unwrap_err().to_string();
        assert_eq!(
            says(12_040, (9, 0)),
            "open: the driver serves CUDA 12.4: 13.0 is needed, release 580 or newer"
        );
        assert_eq!(says(13_000, (7, 5)), "open: compute capability 7.5: 8.0 or newer is needed");
    }

    #[test]
    fn a_machine_without_a_driver_is_told_what_is_missing() {
        let there = libraries();
        if there.driver {
            eprintln!("SKIPPED: this machine has a driver");
            return;
        }
        let error = Cuda::open(Options::default()).expect_err("there is no driver");
        let text = "open: libcuda.so.1 not found: is the NVIDIA driver installed?";
        assert_eq!(error.to_string(), text);
    }
}
