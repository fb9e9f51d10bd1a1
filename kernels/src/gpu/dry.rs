//! A device that counts memory and computes nothing: what a run would take of a GPU, asked of the very code that
//! would take it.
//!
//! `Gpu<DryRun>` allocates, launches and multiplies as every other backend; launches, products, writes and copies do
//! nothing, reads give zeros. What [`crate::cuda`] takes for itself is counted as well: the library's workspace, and
//! the padded copies of invariant products. Not counted is what the driver takes without being asked: the context,
//! loaded modules, the library's own kernels. Start at [`DryRun::tally`].

use super::{Device, Launch, Product};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Pieces from this size on lie in blocks of the driver's of their own.
const LARGE: usize = 1 << 20;
/// Size of such a block: the granularity that CUDA's virtual memory interface reports for these devices.
const BLOCK: usize = 2 << 20;
/// Distance of smaller pieces, which share blocks.
const SMALL_STEP: usize = 512;
/// More than any device has; sums of such pieces do not overflow.
const ABSURD: usize = 1 << 50;
/// Where addresses begin; none is zero, and all are aligned as a device's.
const FIRST_ADDRESS: u64 = 1 << 40;

/// Memory as a device gives it out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Pieces.
    pub pieces: usize,
    /// Bytes asked for.
    pub asked: usize,
    /// Bytes given out for them, [`granted`] piece by piece.
    pub held: usize,
}

impl Usage {
    fn add(&mut self, bytes: usize) {
        self.pieces += 1;
        self.asked += bytes;
        self.held += granted(bytes);
    }

    fn remove(&mut self, bytes: usize) {
        self.pieces -= 1;
        self.asked -= bytes;
        self.held -= granted(bytes);
    }
}

/// What is allocated, and what was at most.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Now.
    pub current: Usage,
    /// When most was held.
    pub peak: Usage,
    /// Now, by the scope in which it was allocated.
    pub scopes: BTreeMap<&'static str, Usage>,
}

/// Bytes that the driver takes for a piece of `bytes`: blocks of 2 MiB from 1 MiB on, below it multiples of 512. NVIDIA
/// documents neither, and no GPU has confirmed them here; the estimate of what stays unseen has to cover the rest,
/// such as the last block of small pieces.
pub fn granted(bytes: usize) -> usize {
    let step = if bytes < LARGE { SMALL_STEP } else { BLOCK };
    bytes.checked_next_multiple_of(step).unwrap_or(usize::MAX)
}

/// Counts what is asked of it.
#[derive(Debug)]
pub struct DryRun {
    books: Arc<Mutex<Books>>,
    library: Mutex<Library>,
}

/// The tally, and what the next piece gets.
#[derive(Debug)]
struct Books {
    tally: Tally,
    scope: &'static str,
    address: u64,
}

/// What the device's library of products holds.
#[derive(Debug)]
struct Library {
    _workspace: DryMemory,
    padded: [Option<DryMemory>; 2],
}

/// Memory on paper; off the tally when dropped.
#[derive(Debug)]
pub struct DryMemory {
    address: u64,
    bytes: usize,
    scope: &'static str,
    books: Arc<Mutex<Books>>,
}

/// A name for what is allocated until this is dropped; the name before comes back then.
#[derive(Debug)]
pub struct Scope<'a> {
    device: &'a DryRun,
    before: &'static str,
}

/// No count is left half made: a thread that died while holding the books has not changed them.
fn open(books: &Mutex<Books>) -> MutexGuard<'_, Books> {
    books.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for DryRun {
    fn default() -> Self {
        Self::new()
    }
}

impl DryRun {
    /// Scope of what the device takes when it is opened, and while products run.
    pub const DEVICE: &'static str = "device";

    /// An opened device: the library of products has its workspace.
    pub fn new() -> Self {
        let books = Books { tally: Tally::default(), scope: Self::DEVICE, address: FIRST_ADDRESS };
        let books = Arc::new(Mutex::new(books));
        let workspace = DryMemory::new(&books, Product::LIBRARY_BYTES, Self::DEVICE);
        let library = Mutex::new(Library { _workspace: workspace, padded: [None, None] });
        Self { books, library }
    }

    /// What is allocated now, and what was at most.
    pub fn tally(&self) -> Tally {
        open(&self.books).tally.clone()
    }

    /// Names what is allocated until the result is dropped, by any thread.
    pub fn scope(&self, name: &'static str) -> Scope<'_> {
        let before = std::mem::replace(&mut open(&self.books).scope, name);
        Scope { device: self, before }
    }
}

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        open(&self.device.books).scope = self.before;
    }
}

impl DryMemory {
    fn new(books: &Arc<Mutex<Books>>, bytes: usize, scope: &'static str) -> Self {
        let mut open = open(books);
        let address = open.address;
        open.address += granted(bytes) as u64;
        let tally = &mut open.tally;
        tally.current.add(bytes);
        tally.scopes.entry(scope).or_default().add(bytes);
        if tally.current.held > tally.peak.held {
            tally.peak = tally.current;
        }
        Self { address, bytes, scope, books: Arc::clone(books) }
    }
}

impl Drop for DryMemory {
    fn drop(&mut self) {
        let tally = &mut open(&self.books).tally;
        tally.current.remove(self.bytes);
        if let Some(scope) = tally.scopes.get_mut(self.scope) {
            scope.remove(self.bytes);
        }
    }
}

impl Device for DryRun {
    type Memory = DryMemory;

    fn alloc(&self, bytes: usize) -> Result<DryMemory> {
        if bytes > ABSURD {
            let what = format!("{bytes} bytes: no device has so many");
            return Err(Error::Backend { op: "alloc", what });
        }
        let scope = open(&self.books).scope;
        Ok(DryMemory::new(&self.books, bytes, scope))
    }

    fn address(&self, memory: &DryMemory) -> u64 {
        memory.address
    }

    fn write(&self, _: &DryMemory, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn read(&self, _: &DryMemory, _: usize, dst: &mut [u8]) -> Result<()> {
        dst.fill(0);
        Ok(())
    }

    fn zero(&self, _: &DryMemory, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn copy(&self, _: (&DryMemory, usize), _: (&DryMemory, usize), _: usize) -> Result<()> {
        Ok(())
    }

    fn launch(&self, _: &Launch<'_>) -> Result<()> {
        Ok(())
    }

    /// Keeps the padded copies that the library would need.
    fn product(&self, product: &Product) -> Result<()> {
        let Some(sizes) = product.padding() else { return Ok(()) };
        let mut library = self.library.lock().unwrap_or_else(PoisonError::into_inner);
        for (padded, bytes) in library.padded.iter_mut().zip(sizes) {
            if padded.as_ref().is_none_or(|there| there.bytes < bytes) {
                *padded = None; // frees the old copy before the new is taken
                *padded = Some(DryMemory::new(&self.books, bytes, Self::DEVICE));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, Buffer};
    use crate::gpu::{Gpu, Operand, Output, OutputType};

    #[test]
    fn pieces_take_what_the_driver_gives_out() {
        assert_eq!([1, 512, 513].map(granted), [512, 512, 1024]);
        assert_eq!(granted(LARGE - 1), LARGE);
        assert_eq!([LARGE, BLOCK, BLOCK + 1].map(granted), [BLOCK, BLOCK, 2 * BLOCK]);
        assert_eq!(granted(usize::MAX), usize::MAX);
    }

    #[test]
    fn memory_is_counted_until_it_is_dropped() {
        let device = DryRun::new();
        let start = device.tally();
        let library = Usage { pieces: 1, asked: 32 << 20, held: 32 << 20 };
        assert_eq!((start.current, start.peak), (library, library));
        let first = device.alloc(100).unwrap();
        let second = device.alloc(BLOCK + 1).unwrap();
        assert!(device.alloc(ABSURD + 1).is_err());
        assert!(device.address(&first) > 0);
        assert_eq!(device.address(&second) % 256, 0);
        assert!(device.address(&second) >= device.address(&first) + 100);
        let both = device.tally().current;
        let asked = library.asked + 100 + BLOCK + 1;
        let held = library.held + 512 + 2 * BLOCK;
        assert_eq!(both, Usage { pieces: 3, asked, held });
        drop(second);
        let third = device.alloc(1).unwrap();
        let tally = device.tally();
        assert_eq!(tally.peak, both);
        assert_eq!((tally.current.pieces, tally.current.held), (3, library.held + 1024));
        drop((first, third));
        assert_eq!(device.tally().current, library);
        assert_eq!(device.tally().peak, both);
    }

    #[test]
    fn scopes_name_what_is_allocated_in_them() {
        let device = DryRun::new();
        let outer = device.scope("outer");
        let a = device.alloc(10).unwrap();
        let b = {
            let _inner = device.scope("inner");
            device.alloc(20).unwrap()
        };
        let c = device.alloc(30).unwrap();
        drop(outer);
        let asked = |name| device.tally().scopes[name].asked;
        assert_eq!((asked("outer"), asked("inner"), asked(DryRun::DEVICE)), (40, 20, 32 << 20));
        drop(a);
        drop(b);
        assert_eq!((asked("outer"), asked("inner")), (30, 0));
        drop(c);
        let scopes: usize = device.tally().scopes.values().map(|usage| usage.held).sum();
        assert_eq!(scopes, device.tally().current.held);
    }

    #[test]
    fn the_backend_goes_through_it() {
        let gpu = Gpu::new(DryRun::new()).unwrap();
        let before = gpu.device().tally().current;
        let mut buf = gpu.alloc::<f32>(1000).unwrap();
        gpu.write(&mut buf, 0, &[1.0; 1000]).unwrap();
        let mut read = [7.0f32; 1000];
        gpu.read(&buf, 0, &mut read).unwrap();
        assert_eq!((read, buf.len()), ([0.0; 1000], 1000));
        assert!(gpu.read(&buf, 1, &mut read).is_err(), "the range is checked all the same");
        let nothing = gpu.alloc::<f32>(0).unwrap();
        assert_eq!(gpu.device().tally().current.asked, before.asked + 4000);
        drop((buf, nothing));
        // The shared scratch memory frees the old before it takes the new, and is kept.
        drop(gpu.workspace([100, 1 << 20]).unwrap());
        let small = gpu.device().tally().current.asked;
        drop(gpu.workspace([3 << 20]).unwrap());
        drop(gpu.workspace([1]).unwrap());
        let tally = gpu.device().tally();
        assert_eq!(small, before.asked + 256 + (1 << 20));
        assert_eq!(tally.current.asked, before.asked + (3 << 20));
        assert_eq!(tally.peak, tally.current);
    }

    #[test]
    fn invariant_products_keep_padded_copies() {
        let gpu = Gpu::new(DryRun::new()).unwrap();
        let before = gpu.device().tally().current.asked;
        let buf = gpu.alloc::<half::bf16>(1 << 20).unwrap();
        let operand = Operand { address: buf.address_at(0), stride: 100, transposed: false };
        let out = Output { address: buf.address_at(0), stride: 60, element: OutputType::F32 };
        let p = Product {
            m: 256,
            n: 60,
            k: 100,
            a: operand,
            b: operand,
            out,
            accumulate: false,
            c: None,
            invariant: true,
        };
        let more = |p: &Product| {
            gpu.product(p).unwrap();
            gpu.device().tally().current.asked - before - (2 << 20)
        };
        assert_eq!(more(&p), 0, "rows that fill their buckets go without");
        assert_eq!(more(&Product { m: 257, invariant: false, ..p }), 0);
        let kept = 128 * (2 * 104 + 4 * 64);
        assert_eq!(more(&Product { m: 257, ..p }), kept);
        assert_eq!(more(&Product { m: 1, k: 8, ..p }), kept, "smaller ones fit in");
        assert_eq!(more(&Product { m: 1, n: 65, ..p }), kept + 128 * 4 * 8);
    }
}
