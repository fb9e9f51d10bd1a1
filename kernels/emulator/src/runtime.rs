//! The runtime's and the modules' libraries through their C interface (`runtime/launch.cpp`, `machine.h`).

use crate::error::{Error, Result};
use libloading::Library;
use std::ffi::{c_int, c_uint, c_void};
use std::path::Path;

/// `cpu::Entry`.
#[repr(C)]
pub(crate) struct Entry {
    run: extern "C" fn(*mut *mut c_void),
    count: c_uint,
    sizes: *const c_uint,
}

// SAFETY: an entry is constant data of a library that is never closed.
unsafe impl Send for Entry {}
// SAFETY: as above; nothing writes it.
unsafe impl Sync for Entry {}

impl Entry {
    /// Bytes of each parameter.
    pub(crate) fn sizes(&self) -> &[c_uint] {
        // SAFETY: the library's table has `count` entries and is never unloaded.
        unsafe { std::slice::from_raw_parts(self.sizes, self.count as usize) }
    }
}

/// `EmulatorLaunch`.
#[repr(C)]
pub(crate) struct RawLaunch {
    pub(crate) entry: *const Entry,
    pub(crate) statics: *mut u8,
    pub(crate) statics_end: *mut u8,
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared: usize,
    pub(crate) arguments: *mut *mut c_void,
    pub(crate) seed: u32,
}

/// Opens a library for good: fibers, stacks and tables of a runtime cannot be unloaded, nor can what points to them.
fn open(path: &Path) -> Result<&'static Library> {
    // SAFETY: the library was built from this project's sources; its initialisers only register tables.
    let library = unsafe { Library::new(path) };
    let library = library.map_err(|error| Error::Library { path: path.into(), error })?;
    Ok(Box::leak(Box::new(library)))
}

fn symbol<T: Copy>(library: &'static Library, path: &Path, name: &str) -> Result<T> {
    // SAFETY: every caller names the type that the C++ sources give the symbol.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    Ok(*found.map_err(|error| Error::Library { path: path.into(), error })?)
}

/// The functions of one runtime.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Runtime {
    pub(crate) launch: unsafe extern "C" fn(*const RawLaunch, *mut u8, usize) -> usize,
    pub(crate) allocate: unsafe extern "C" fn(usize) -> *mut u8,
    pub(crate) release: unsafe extern "C" fn(*mut u8) -> c_int,
    pub(crate) write: unsafe extern "C" fn(*mut u8, *const u8, usize) -> c_int,
    pub(crate) read: unsafe extern "C" fn(*mut u8, *const u8, usize, c_int) -> c_int,
    pub(crate) poison: unsafe extern "C" fn(*mut u8, usize),
}

impl Runtime {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let library = open(path)?;
        Ok(Self {
            launch: symbol(library, path, "emulator_launch")?,
            allocate: symbol(library, path, "emulator_allocate")?,
            release: symbol(library, path, "emulator_release")?,
            write: symbol(library, path, "emulator_write")?,
            read: symbol(library, path, "emulator_read")?,
            poison: symbol(library, path, "emulator_poison")?,
        })
    }
}

/// One compiled module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Module {
    library: &'static Library,
    /// Ends of its static shared memory, as addresses.
    pub(crate) statics: (usize, usize),
}

impl Module {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let library = open(path)?;
        let statics: *const [*mut u8; 2] = symbol(library, path, "emulator_statics")?;
        // SAFETY: the symbol is a constant pair of addresses in a library that is never closed.
        let [begin, end] = unsafe { *statics };
        Ok(Self { library, statics: (begin.addr(), end.addr()) })
    }

    /// The entry of that name.
    pub(crate) fn entry(&self, kernel: &str) -> Option<&'static Entry> {
        let name = format!("emulator_entry_{kernel}");
        // SAFETY: `ENTRY` defines symbols of this name as constant entries.
        let found = unsafe { self.library.get::<*const Entry>(name.as_bytes()) }.ok()?;
        // SAFETY: the symbol's address is that of an entry in a library that is never closed.
        unsafe { (*found).as_ref() }
    }
}
