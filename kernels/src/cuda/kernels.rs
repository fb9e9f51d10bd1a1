//! Loaded modules and the launch of their entries.

use super::compile::Compiler;
use super::{Queue, capability, driver};
use crate::error::{Error, Result};
use crate::gpu::{Launch, MAX_ARGS, source};
use cudarc::driver::{CudaStream, result, sys};
use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, PoisonError};

/// Dynamic shared memory that a kernel has without asking.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;

/// The modules, each loaded at first use.
#[derive(Debug)]
pub(super) struct Kernels {
    compiler: Compiler,
    capability: (u32, u32),
    modules: Mutex<BTreeMap<&'static str, Module>>,
}

/// A module of the driver, unloaded when dropped.
#[derive(Debug)]
struct Module {
    handle: sys::CUmodule,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    handle: sys::CUfunction,
    /// Dynamic shared memory asked for so far.
    shared: u32,
}

// SAFETY: handles of modules and functions are valid on every thread on which their context is current, which
// every use here makes sure of first.
unsafe impl Send for Module {}

impl Kernels {
    pub(super) fn new(queue: &Queue, compiler: Compiler) -> Result<Self> {
        let capability = capability(queue)?;
        Ok(Self { compiler, capability, modules: Mutex::default() })
    }

    /// Loads a module now.
    pub(super) fn load(&self, module: &'static str) -> Result<()> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        self.module(&mut modules, module).map(|_| ())
    }

    /// The address of an entry (a `CUfunction`), valid as long as this device.
    pub(super) fn function(&self, module: &'static str, kernel: &str) -> Result<u64> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let (grid, block) = ([1; 3], [1; 3]);
        let launch = Launch { module, kernel, grid, block, shared: 0, args: &[] };
        Ok(self.module(&mut modules, module)?.entry(&launch)?.handle as u64)
    }

    fn module<'m>(
        &self,
        modules: &'m mut BTreeMap<&'static str, Module>,
        name: &'static str,
    ) -> Result<&'m mut Module> {
        use std::collections::btree_map::Entry::{Occupied, Vacant};
        match modules.entry(name) {
            Occupied(there) => Ok(there.into_mut()),
            Vacant(free) => {
                let source = source::module(name).ok_or_else(|| Error::Backend {
                    op: "load",
                    what: format!("there is no module {name}"),
                })?;
                let image = self.compiler.image(source, self.capability)?;
                Ok(free.insert(Module::load(name, &image)?))
            }
        }
    }

    /// Queues a kernel on a stream.
    pub(super) fn launch(&self, launch: &Launch<'_>, stream: &CudaStream) -> Result<()> {
        let entry = {
            let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
            self.module(&mut modules, launch.module)?.entry(launch)?
        };
        // The driver copies each parameter's bytes from where its pointer says.
        let mut words = [0u64; MAX_ARGS];
        let mut params = [std::ptr::null_mut::<c_void>(); MAX_ARGS];
        let slots = words.iter_mut().zip(&mut params).zip(launch.args);
        for ((word, param), arg) in slots {
            *word = arg.bits();
            *param = std::ptr::from_mut(word).cast();
        }
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        // SAFETY: the function belongs to a module that lives as long as this device. The parameters are as many
        // and as wide as the entry's, which the operation's launcher and the entry state side by side and the tests
        // on the emulator hold together; the words outlive the call. The memory they point at is kept by buffers
        // whose drop waits for the stream.
        unsafe {
            result::launch_kernel(
                entry.handle,
                (gx, gy, gz),
                (bx, by, bz),
                launch.shared,
                stream.cu_stream(),
                &mut params[..launch.args.len()],
            )
        }
        .map_err(|error| Error::Backend {
            op: launch.module,
            what: format!("{}: CUDA driver: {error:?}", launch.kernel),
        })
    }
}

impl Module {
    fn load(name: &'static str, image: &[u8]) -> Result<Self> {
        // SAFETY: the image is a whole cubin, or PTX that ends in zero, from the compiler or a checked file; the
        // driver copies it.
        let handle = unsafe { result::module::load_data(image.as_ptr().cast()) }
            .map_err(|error| Error::Backend { op: name, what: format!("load: {error:?}") })?;
        Ok(Self { handle, entries: BTreeMap::new() })
    }

    /// The entry of a launch, allowed the shared memory that the launch wants.
    fn entry(&mut self, launch: &Launch<'_>) -> Result<Entry> {
        if !self.entries.contains_key(launch.kernel) {
            let unknown = |error: &dyn std::fmt::Debug| Error::Backend {
                op: launch.module,
                what: format!("there is no kernel {}: {error:?}", launch.kernel),
            };
            let name = CString::new(launch.kernel).map_err(|error| unknown(&error))?;
            // SAFETY: the module is loaded and is unloaded by `drop` alone.
            let handle = unsafe { result::module::get_function(self.handle, name) }
                .map_err(|error| unknown(&error))?;
            let entry = Entry { handle, shared: SHARED_WITHOUT_ASKING };
            self.entries.insert(launch.kernel.to_owned(), entry);
        }
        let Some(entry) = self.entries.get_mut(launch.kernel) else {
            return Err(Error::Backend { op: launch.module, what: launch.kernel.to_owned() });
        };
        if launch.shared > entry.shared {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let attribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to this loaded module.
            unsafe {
                let bytes = launch.shared.cast_signed();
                result::function::set_function_attribute(entry.handle, attribute, bytes)
            }
            .map_err(driver("shared memory"))?;
            entry.shared = launch.shared;
        }
        Ok(*entry)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the module is unloaded once, here; the device has waited for its work before dropping it.
        let _ = unsafe { result::module::unload(self.handle) };
    }
}
