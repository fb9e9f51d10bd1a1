//! Dense products by cuBLASLt.
//!
//! The library is column-major: what is stored row-major as `M` is its `Mᵀ`. So the row-major `D = A·B` is asked
//! for as `Dᵀ = Bᵀ·Aᵀ`: the library's first operand is our `B`, its second our `A`, its rows our columns.
//!
//! An algorithm is picked once per shape by the library's heuristic and remembered. An invariant product pins one
//! algorithm for any number of rows, without split sums, and calls it for multiples of [`BUCKET`] rows alone: the
//! last rows go through a padded copy. One algorithm serves a product with and without `C`: the heuristic asks for the
//! layouts of `C` and `D` and for no beta, and `C` has `D`'s layout where there is none of its own. That rows then have the same bits at every place is the library's habit,
//! not its promise: `tests/gpu` must hold it on real hardware.

use super::Queue;
use super::memory::{self, Memory, Pitch};
use crate::error::{Error, Result};
use crate::gpu::{Operand, Output, OutputType, Product};
use cudarc::cublaslt::{result, sys};
use cudarc::driver::CudaStream;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

/// Rows of an invariant product's calls: a multiple of this.
const BUCKET: usize = Product::BUCKET;
/// Rows for which an invariant product's algorithm is picked.
const TYPICAL_ROWS: usize = 2048;
/// Bytes the library may use while it runs.
const WORKSPACE: usize = Product::LIBRARY_BYTES;
/// Alignment beyond which the library gains nothing.
const ALIGNMENT: u32 = 16;
/// Remembered algorithms, after which all are forgotten: packs of ever new sizes must not fill the memory.
const REMEMBERED: usize = 4096;

/// What decides an algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// Zero for an invariant product.
    m: usize,
    n: usize,
    k: usize,
    a: (usize, bool, u32),
    b: (usize, bool, u32),
    c: (usize, u32),
    out: (usize, OutputType, u32),
}

/// The library's handle, its workspace, the remembered algorithms and the padded copies.
#[derive(Debug)]
pub(super) struct Products {
    queue: Queue,
    handle: Handle,
    workspace: Memory,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    algorithms: BTreeMap<Key, sys::cublasLtMatmulAlgo_t>,
    /// Padded rows of `A` and of the result.
    padded: Padded,
    padded_bytes: [usize; 2],
}

/// Padded copies; a graph shares those that it was made with, so a larger one does not free them.
pub(super) type Padded = [Option<Arc<Memory>>; 2];

/// Destroyed when dropped.
#[derive(Debug)]
struct Handle(sys::cublasLtHandle_t);

// SAFETY: NVIDIA documents a handle as usable from several threads; its workspace here is used on one stream.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle was created and is destroyed once, here.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

impl Products {
    pub(super) fn new(queue: &Queue) -> Result<Self> {
        queue.enter()?;
        let handle = Handle(result::create_handle().map_err(failed)?);
        let workspace = Memory::new(queue, WORKSPACE)?;
        Ok(Self { queue: queue.clone(), handle, workspace, state: Mutex::default() })
    }

    /// The padded copies that products use now.
    pub(super) fn padded_copies(&self) -> Padded {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).padded.clone()
    }

    /// Queues a product on a stream: the computing one, or one that is captured to run there.
    pub(super) fn run(&self, p: &Product, stream: &CudaStream) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let algorithm = self.algorithm(&mut state, p)?;
        if !p.invariant {
            return self.call(p, &algorithm, stream);
        }
        let whole = p.m / BUCKET * BUCKET;
        if whole > 0 {
            self.call(&Product { m: whole, ..*p }, &algorithm, stream)?;
        }
        if whole == p.m {
            return Ok(());
        }
        self.last_rows(&mut state, (p, whole), &algorithm, stream)
    }

    /// The rows from `first` on, fewer than [`BUCKET`], through padded copies. What lies in the padding is finite
    /// or not, but no other row's result reads it.
    fn last_rows(
        &self,
        state: &mut State,
        (p, first): (&Product, usize),
        algorithm: &sys::cublasLtMatmulAlgo_t,
        stream: &CudaStream,
    ) -> Result<()> {
        let rows = p.m - first;
        let [a_bytes, out_bytes] = p.padded_rows();
        let (a_stride, out_stride) = (a_bytes / 2, out_bytes / p.out.element.size());
        let a_row = Pitch { address: p.a.address, bytes: 2 * p.a.stride }.row(first);
        let size = p.out.element.size();
        let out_row = Pitch { address: p.out.address, bytes: size * p.out.stride }.row(first);
        let a_pad = Pitch { address: self.padded(state, 0, BUCKET * a_bytes)?, bytes: a_bytes };
        let out_pad =
            Pitch { address: self.padded(state, 1, BUCKET * out_bytes)?, bytes: out_bytes };
        memory::copy_rows(stream, a_pad, a_row, (2 * p.k, rows))?;
        if p.accumulate {
            let c = p.addend();
            let c_row = Pitch { address: c.address, bytes: size * c.stride }.row(first);
            memory::copy_rows(stream, out_pad, c_row, (size * p.n, rows))?;
        }
        let padded = Product {
            m: BUCKET,
            c: None,
            a: Operand { address: a_pad.address, stride: a_stride, ..p.a },
            out: Output { address: out_pad.address, stride: out_stride, ..p.out },
            ..*p
        };
        self.call(&padded, algorithm, stream)?;
        memory::copy_rows(stream, out_row, out_pad, (size * p.n, rows))
    }

    /// Address of a padded copy of at least `bytes`, zeroed when it grows.
    fn padded(&self, state: &mut State, which: usize, bytes: usize) -> Result<u64> {
        if state.padded_bytes[which] < bytes {
            state.padded[which] = None;
            state.padded_bytes[which] = 0;
            let memory = Memory::new(&self.queue, bytes)?;
            memory::zero(&self.queue, memory.address(), bytes)?;
            state.padded[which] = Some(Arc::new(memory));
            state.padded_bytes[which] = bytes;
        }
        Ok(state.padded[which].as_ref().map_or(0, |memory| memory.address()))
    }

    /// The remembered algorithm of a product, or the heuristic's first choice.
    fn algorithm(&self, state: &mut State, p: &Product) -> Result<sys::cublasLtMatmulAlgo_t> {
        if p.invariant && p.a.transposed {
            let what = "an invariant product takes its rows from an untransposed A";
            return Err(Error::Backend { op: "product", what: what.into() });
        }
        let key = key(p);
        if let Some(there) = state.algorithms.get(&key) {
            return Ok(*there);
        }
        let typical = Product { m: if p.invariant { TYPICAL_ROWS } else { p.m }, ..*p };
        let plan = Plan::new(&typical)?;
        let preference = Preference::new(&key, p.invariant)?;
        // SAFETY: handle, descriptions and preference are alive; the library reads them and allocates nothing.
        let found = unsafe {
            let [first, second, c, out] = plan.layouts.each_ref().map(|layout| layout.0);
            let (handle, what) = (self.handle.0, plan.operation.0);
            result::get_matmul_algo_heuristic(handle, what, first, second, c, out, preference.0)
        }
        .map_err(failed)?;
        if state.algorithms.len() >= REMEMBERED {
            state.algorithms.clear();
        }
        state.algorithms.insert(key, found.algo);
        Ok(found.algo)
    }

    fn call(
        &self,
        p: &Product,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        stream: &CudaStream,
    ) -> Result<()> {
        let plan = Plan::new(p)?;
        let (alpha, beta) = (1.0f32, if p.accumulate { 1.0f32 } else { 0.0 });
        let [first, second, c, out] = plan.layouts.each_ref().map(|layout| layout.0);
        let at = |address: u64| address as *mut c_void;
        // SAFETY: all descriptions are alive; scalars are read before the call returns (host pointer mode); the
        // operation has checked that the windows lie in live buffers, whose drop waits for the stream, and that the
        // output overlaps no operand and no `C` but itself; the workspace belongs to this handle's one stream.
        unsafe {
            result::matmul(
                self.handle.0,
                plan.operation.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                at(p.b.address),
                first,
                at(p.a.address),
                second,
                at(p.addend().address),
                c,
                at(p.out.address),
                out,
                algorithm,
                at(self.workspace.address()),
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        }
        .map_err(failed)
    }
}

/// What an algorithm is remembered by.
fn key(p: &Product) -> Key {
    let align = |address: u64, stride: usize, size: usize| {
        let bits = address | (stride * size) as u64 | u64::from(ALIGNMENT);
        1u32 << bits.trailing_zeros().min(ALIGNMENT.trailing_zeros())
    };
    let operand = |o: &Operand| (o.stride, o.transposed, align(o.address, o.stride, 2));
    let (c, size) = (p.addend(), p.out.element.size());
    let out_align = align(p.out.address, p.out.stride, size);
    Key {
        m: if p.invariant { 0 } else { p.m },
        n: p.n,
        k: p.k,
        a: operand(&p.a),
        b: operand(&p.b),
        c: (c.stride, align(c.address, c.stride, size)),
        out: (p.out.stride, p.out.element, out_align),
    }
}

/// Descriptions of a product for the library: first operand (our `B`), second (our `A`), `C`, result.
struct Plan {
    operation: Operation,
    layouts: [Layout; 4],
}

impl Plan {
    fn new(p: &Product) -> Result<Self> {
        use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
        let stored = |o: &Operand, rows: usize, cols: usize| {
            // Row-major [rows, cols] is column-major [cols, rows].
            let (rows, cols) = if o.transposed { (cols, rows) } else { (rows, cols) };
            Layout::new(CUDA_R_16BF, (cols, rows), o.stride)
        };
        let out = match p.out.element {
            OutputType::Bf16 => CUDA_R_16BF,
            OutputType::F32 => CUDA_R_32F,
        };
        Ok(Self {
            operation: Operation::new(p.b.transposed, p.a.transposed)?,
            layouts: [
                stored(&p.b, p.k, p.n)?,
                stored(&p.a, p.m, p.k)?,
                Layout::new(out, (p.n, p.m), p.addend().stride)?,
                Layout::new(out, (p.n, p.m), p.out.stride)?,
            ],
        })
    }
}

/// Description of a matrix, destroyed when dropped.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(of: sys::cudaDataType_t, (rows, cols): (usize, usize), stride: usize) -> Result<Self> {
        let stride = i64::try_from(stride).unwrap_or(i64::MAX);
        result::create_matrix_layout(of, rows as u64, cols as u64, stride).map(Self).map_err(failed)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once, here.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// Description of the operation, destroyed when dropped.
struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    fn new(first_transposed: bool, second_transposed: bool) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t::{
            CUBLASLT_MATMUL_DESC_TRANSA as FIRST, CUBLASLT_MATMUL_DESC_TRANSB as SECOND,
        };
        let (sums, scale) =
            (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F);
        let operation = Self(result::create_matmul_desc(sums, scale).map_err(failed)?);
        for (attribute, transposed) in [(FIRST, first_transposed), (SECOND, second_transposed)] {
            let value = i32::from(transposed); // CUBLAS_OP_N, CUBLAS_OP_T
            // SAFETY: the description is alive; the attribute is a 32-bit enumeration, copied by the call.
            unsafe {
                let value = (&raw const value).cast();
                result::set_matmul_desc_attribute(operation.0, attribute, value, size_of::<i32>())
            }
            .map_err(failed)?;
        }
        Ok(operation)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once, here.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// What the heuristic may choose from, destroyed when dropped.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(key: &Key, invariant: bool) -> Result<Self> {
        use sys::cublasLtMatmulPreferenceAttributes_t::{
            CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as WORKSPACE_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES as FIRST,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES as SECOND,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES as ADDED,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES as WRITTEN,
            CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK as REDUCTION,
        };
        let preference = Self(result::create_matmul_pref().map_err(failed)?);
        preference.set(WORKSPACE_BYTES, &(WORKSPACE as u64))?;
        let alignments = [(FIRST, key.b.2), (SECOND, key.a.2), (ADDED, key.c.1)];
        for (attribute, bytes) in alignments.into_iter().chain([(WRITTEN, key.out.2)]) {
            preference.set(attribute, &bytes)?;
        }
        if invariant {
            let none = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
            preference.set(REDUCTION, &none)?;
        }
        Ok(preference)
    }

    fn set<T: bytemuck::Pod>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<()> {
        let value = std::ptr::from_ref(value).cast();
        // SAFETY: the preference is alive; the value has the attribute's documented type and is copied by the call.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, value, size_of::<T>()) }
            .map_err(failed)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once, here.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn failed(error: result::CublasError) -> Error {
    Error::Backend { op: "product", what: format!("cuBLASLt: {:?}", error.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Addend;

    fn product() -> Product {
        Product {
            m: 100,
            n: 48,
            k: 64,
            a: Operand { address: 0x1000, stride: 64, transposed: false },
            b: Operand { address: 0x2000, stride: 64, transposed: true },
            out: Output { address: 0x3000, stride: 48, element: OutputType::Bf16 },
            accumulate: false,
            c: None,
            invariant: false,
        }
    }

    #[test]
    fn an_algorithm_is_remembered_by_all_that_decides_it() {
        let p = product();
        assert_eq!(key(&p), key(&Product { a: Operand { address: 0x5000, ..p.a }, ..p }));
        for other in [
            Product { m: 101, ..p },
            Product { k: 32, ..p },
            Product { c: Some(Addend { address: 0x4000, stride: 64 }), ..p },
            Product { c: Some(Addend { address: 0x4002, stride: 48 }), ..p },
            Product { a: Operand { address: 0x1002, ..p.a }, ..p },
            Product { a: Operand { stride: 65, ..p.a }, ..p },
            Product { b: Operand { transposed: false, ..p.b }, ..p },
            Product { out: Output { element: OutputType::F32, ..p.out }, ..p },
        ] {
            assert_ne!(key(&p), key(&other), "{other:?}");
        }
        // What is added has no say where it lies as the result does: rows with and without it get the same sums.
        let like = Some(Addend { address: 0x4000, stride: 48 });
        for same in [Product { accumulate: true, ..p }, Product { accumulate: true, c: like, ..p }]
        {
            assert_eq!(key(&p), key(&same), "{same:?}");
        }
        let of = |m| key(&Product { m, invariant: true, ..p });
        assert_eq!(
            of(1),
            of(4097),
            "an invariant product has one algorithm for any number of rows"
        );
    }

    #[test]
    fn alignment_is_that_of_address_and_rows() {
        let p = product();
        let of = |address, stride| key(&Product { a: Operand { address, stride, ..p.a }, ..p }).a.2;
        assert_eq!((of(0x1000, 64), of(0x1008, 64), of(0x1004, 64)), (16, 8, 4));
        assert_eq!((of(0x1002, 64), of(0x1000, 66), of(0x1000, 65)), (2, 4, 2));
    }
}
