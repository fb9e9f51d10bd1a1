//! The emulator: memory, modules built when first used, launches.

use crate::compile::{self, Builder};
use crate::copies::{self, Copies};
use crate::error::{Error, Result};
use crate::finding;
use crate::log;
use crate::runtime::{Module, RawLaunch, Runtime};
use kernels::gpu::{Launch, Work};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Dynamic shared memory that one block can have (sm_90; sm_80 has 163 KiB).
const MAX_SHARED: u32 = 227 << 10;
const MAX_THREADS: u64 = 1024;
/// Findings are at most 64 lines.
const TEXT_BYTES: usize = 64 << 10;

/// How a kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// For results: finds divergence, deadlock and what poison shows.
    Fast,
    /// Several times slower: every load and store is looked at.
    Checked,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Checked => "checked",
        }
    }
}

/// The kernels of a folder on the CPU.
///
/// Launches of all emulators in a process run one after another, and each is done when its call returns.
#[derive(Debug)]
pub struct Emulator {
    pub(crate) runtime: Runtime,
    builder: Builder,
    runtime_path: PathBuf,
    modules: Mutex<BTreeMap<String, Module>>,
    order: AtomicU32,
    /// Calls of attention kernels that the device is said to bring along.
    pub(crate) flash: Option<AtomicU32>,
    pub(crate) copies: copies::Queue,
    pub(crate) graphs: Mutex<BTreeMap<u64, Vec<Work>>>,
    /// Where it is written what ran.
    log: Option<PathBuf>,
}

/// Bytes of an emulator, freed when dropped and no copy of them is on its way.
#[derive(Debug)]
pub struct Memory(pub(crate) Arc<Allocation>);

/// What a [`Memory`] is.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) runtime: Runtime,
    address: usize,
    bytes: usize,
}

impl Emulator {
    /// The kernels of `kernels/cu`, compiled with `-DFAULT_<NAME>` for each fault.
    ///
    /// # Errors
    /// [`Error::NoCompiler`], [`Error::Compile`], [`Error::UnknownFault`], [`Error::Library`], [`Error::File`].
    pub fn open(mode: Mode, faults: &[&str]) -> Result<Self> {
        Self::open_in(Path::new(compile::DEVICE_CODE), &compile::default_cache(), mode, faults)
    }

    /// The kernels of another folder (headers of `kernels/cu` are found from there too), with the libraries in `cache`.
    ///
    /// # Errors
    /// As [`Emulator::open`].
    pub fn open_in(sources: &Path, cache: &Path, mode: Mode, faults: &[&str]) -> Result<Self> {
        let faults = faults.iter().map(ToString::to_string).collect();
        let builder = Builder { mode, sources: sources.into(), cache: cache.into(), faults };
        builder.check_faults()?;
        let runtime_path = builder.runtime()?;
        let runtime = Runtime::open(&runtime_path)?;
        let (modules, order) = (Mutex::default(), AtomicU32::new(0));
        let (copies, graphs) = (copies::Queue::default(), Mutex::default());
        Ok(Self {
            runtime,
            builder,
            runtime_path,
            modules,
            order,
            flash: None,
            copies,
            graphs,
            log: None,
        })
    }

    /// Writes into `folder` which kernels run at which shapes, for `scripts/check-launches`.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn logged(self, folder: &Path) -> Result<Self> {
        self.builder.faults.iter().try_for_each(|name| log::seeded(folder, name))?;
        Ok(Self { log: Some(folder.into()), ..self })
    }

    /// As if the device brought attention kernels along, [`kernels::gpu::Flash`]: a plain one in their place.
    #[must_use]
    pub fn with_flash(self) -> Self {
        Self { flash: Some(AtomicU32::new(0)), ..self }
    }

    /// Calls of these kernels so far.
    pub fn flash_calls(&self) -> u32 {
        self.flash.as_ref().map_or(0, |calls| calls.load(Ordering::Relaxed))
    }

    /// Sets the order in which blocks, warps and lanes run from the next launch on; 0 is the plain one.
    pub fn set_order(&self, seed: u32) {
        self.order.store(seed, Ordering::Relaxed);
    }

    /// Sets when what leaves ([`kernels::gpu::Device::evict`]) is copied, from the next call on.
    pub fn set_copies(&self, copies: Copies) {
        self.copies.set(copies);
    }

    /// Builds and opens a module ahead of its first launch.
    ///
    /// # Errors
    /// [`Error::File`] when there is no such source, [`Error::Compile`], [`Error::Library`].
    pub fn load(&self, module: &str) -> Result<()> {
        self.module(module).map(|_| ())
    }

    fn module(&self, name: &str) -> Result<Module> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(name) {
            return Ok(*module);
        }
        let module = Module::open(&self.builder.module(name, &self.runtime_path)?)?;
        modules.insert(name.to_owned(), module);
        Ok(module)
    }

    /// `bytes` poisoned bytes (0xff, NaN in every float format) that count as never written.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn alloc_poisoned(&self, bytes: usize) -> Result<Memory> {
        // SAFETY: any size may be asked for.
        let data = unsafe { (self.runtime.allocate)(bytes) };
        if data.is_null() {
            return Err(Error::Memory(bytes));
        }
        let (runtime, address) = (self.runtime, data.expose_provenance());
        Ok(Memory(Arc::new(Allocation { runtime, address, bytes })))
    }

    /// Makes a range as if it had never been written.
    ///
    /// # Errors
    /// [`Error::Range`].
    pub fn poison(&self, memory: &Memory, offset: usize, len: usize) -> Result<()> {
        let data = memory.range("poison", offset, len)?;
        // SAFETY: the range lies in a live allocation.
        unsafe { (self.runtime.poison)(data, len) };
        Ok(())
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// [`Error::Findings`] with what it did wrong; [`Error::UnknownKernel`], [`Error::Arguments`] and
    /// [`Error::Geometry`] for a launch that no device would take, and all errors of [`Emulator::load`].
    pub fn run(&self, launch: &Launch<'_>) -> Result<()> {
        let module = self.module(launch.module)?;
        let kernel = launch.kernel.to_owned();
        let entry = module.entry(&kernel).ok_or_else(|| Error::UnknownKernel {
            module: launch.module.to_owned(),
            kernel: kernel.clone(),
        })?;
        check_geometry(launch)?;
        check_arguments(launch, entry.sizes())?;
        let mut values: Vec<u64> = launch.args.iter().map(|arg| arg.bits()).collect();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let raw = RawLaunch {
            entry,
            statics: std::ptr::with_exposed_provenance_mut(module.statics.0),
            statics_end: std::ptr::with_exposed_provenance_mut(module.statics.1),
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared as usize,
            arguments: pointers.as_mut_ptr(),
            seed: self.order.load(Ordering::Relaxed),
        };
        let mut text = vec![0_u8; TEXT_BYTES];
        // SAFETY: count and sizes of the arguments are those of the entry, which belongs to an open module; the
        // text's length is given. What the kernel does with the addresses is what a launch is for: a wild one
        // ends a test process, as it would end a CUDA context.
        let count = unsafe { (self.runtime.launch)(&raw const raw, text.as_mut_ptr(), text.len()) };
        if count == 0 {
            return match &self.log {
                // A launch with a seeded bug shows nothing, found or not.
                Some(folder) if self.builder.faults.is_empty() => {
                    log::launched(folder, self.builder.mode, launch)
                }
                _ => Ok(()),
            };
        }
        let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
        let findings = finding::parse(&String::from_utf8_lossy(&text[..end]));
        Err(Error::Findings { kernel, count, findings })
    }
}

fn check_geometry(launch: &Launch<'_>) -> Result<()> {
    let threads: u64 = launch.block.iter().map(|&n| u64::from(n)).product();
    let fits = (1..=MAX_THREADS).contains(&threads)
        && launch.block[2] <= 64
        && !launch.grid.contains(&0)
        && launch.grid[1..].iter().all(|&n| n <= 65_535)
        && launch.shared <= MAX_SHARED;
    if fits {
        return Ok(());
    }
    Err(Error::Geometry {
        kernel: launch.kernel.to_owned(),
        grid: launch.grid,
        block: launch.block,
        shared: launch.shared,
        limit: MAX_SHARED,
    })
}

fn check_arguments(launch: &Launch<'_>, sizes: &[u32]) -> Result<()> {
    let refuse = |what| Err(Error::Arguments { kernel: launch.kernel.to_owned(), what });
    if sizes.len() != launch.args.len() {
        return refuse(format!("{} parameters, {} arguments", sizes.len(), launch.args.len()));
    }
    let differs = launch.args.iter().zip(sizes).position(|(arg, &n)| arg.size() != n as usize);
    match differs {
        Some(i) => refuse(format!("parameter {i} has {} bytes, {:?}", sizes[i], launch.args[i])),
        None => Ok(()),
    }
}

impl Memory {
    /// Device address of the first byte.
    pub fn address(&self) -> u64 {
        self.0.address as u64
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// The first byte of a range that lies inside.
    pub(crate) fn range(&self, op: &'static str, offset: usize, len: usize) -> Result<*mut u8> {
        self.0.range(op, offset, len)
    }
}

impl Allocation {
    pub(crate) fn range(&self, op: &'static str, offset: usize, len: usize) -> Result<*mut u8> {
        if offset.checked_add(len).is_none_or(|end| end > self.bytes) {
            return Err(Error::Range { op, offset, len, bytes: self.bytes });
        }
        Ok(std::ptr::with_exposed_provenance_mut(self.address + offset))
    }
}

impl Allocation {
    /// The bytes of a checked range.
    pub(crate) fn contents(&self, range: &Range<usize>) -> Vec<u8> {
        let mut bytes = vec![0; range.len()];
        let from = std::ptr::with_exposed_provenance(self.address + range.start);
        // SAFETY: the runtime looks the range up and reads nothing outside a live allocation.
        unsafe { (self.runtime.read)(bytes.as_mut_ptr(), from, bytes.len(), 0) };
        bytes
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: the address came from `allocate` of this runtime and is released once.
        unsafe { (self.runtime.release)(std::ptr::with_exposed_provenance_mut(self.address)) };
    }
}
