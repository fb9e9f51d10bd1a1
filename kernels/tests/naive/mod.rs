//! The second backend of the tests: opaque buffers, naive loops, sums in `f64`.
//!
//! Owns [`Naive`] and the little that every op test needs to move numbers. It proves the seam: a test
//! body generic over the op's trait that passes here uses nothing but the contract, because
//! [`NaiveBuf`] gives no slice away. It must never share code with a backend of the crate. One file
//! per op family; start at [`Naive`], then `linear.rs`.
#![allow(dead_code, reason = "each test binary uses the ops it tests")]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test stops at what it did not expect; its numbers are small"
)]
#![allow(unreachable_pub, missing_docs, reason = "shared by every test binary, exported by none")]

mod activation;
mod attention;
pub mod classify;
mod embedding;
pub mod intent;
mod linear;
mod lora;
mod loss;
mod norm;
mod optim;
mod pool;
pub mod real;
mod rope;

use kernels::backend::{Backend, Buffer, Element};
use kernels::error::{Result, check_len};

/// A device that is slow and obviously right.
#[derive(Debug, Clone, Copy, Default)]
pub struct Naive;

/// Memory of [`Naive`]: elements come and go one at a time, through methods only.
#[derive(Debug, Clone)]
pub struct NaiveBuf<T> {
    elements: Vec<T>,
}

impl<T: Element> NaiveBuf<T> {
    /// Element `i`.
    pub fn get(&self, i: usize) -> T {
        self.elements[i]
    }

    /// Element `i` becomes `v`.
    pub fn set(&mut self, i: usize, v: T) {
        self.elements[i] = v;
    }
}

impl NaiveBuf<f32> {
    /// Element `i`, widened.
    pub fn at(&self, i: usize) -> f64 {
        f64::from(self.elements[i])
    }

    /// Element `i` becomes `v`, rounded once.
    pub fn put(&mut self, i: usize, v: f64) {
        self.elements[i] = round(v);
    }

    /// Element `i` grows by `v`, rounded once.
    pub fn add(&mut self, i: usize, v: f64) {
        self.put(i, self.at(i) + v);
    }
}

impl<T: Element> Buffer for NaiveBuf<T> {
    fn len(&self) -> usize {
        self.elements.len()
    }
}

impl Backend for Naive {
    type Act = f32;
    type Buf<T: Element> = NaiveBuf<T>;

    fn alloc<T: Element>(&self, len: usize) -> Result<NaiveBuf<T>> {
        Ok(NaiveBuf { elements: vec![T::zeroed(); len] })
    }

    fn write<T: Element>(&self, dst: &mut NaiveBuf<T>, offset: usize, src: &[T]) -> Result<()> {
        check_len("write", "dst", offset + src.len(), dst.len())?;
        for (i, &v) in src.iter().enumerate() {
            dst.set(offset + i, v);
        }
        Ok(())
    }

    fn read<T: Element>(&self, src: &NaiveBuf<T>, offset: usize, dst: &mut [T]) -> Result<()> {
        check_len("read", "src", offset + dst.len(), src.len())?;
        for (i, v) in dst.iter_mut().enumerate() {
            *v = src.get(offset + i);
        }
        Ok(())
    }

    fn zero<T: Element>(&self, dst: &mut NaiveBuf<T>, offset: usize, len: usize) -> Result<()> {
        check_len("zero", "dst", offset + len, dst.len())?;
        for i in offset..offset + len {
            dst.set(i, T::zeroed());
        }
        Ok(())
    }
}

/// The nearest `f32`.
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is what it is for")]
pub fn round(v: f64) -> f32 {
    v as f32
}

/// A buffer of backend `b` that holds `src`.
pub fn upload<B: Backend, T: Element>(b: &B, src: &[T]) -> B::Buf<T> {
    let mut buf = b.alloc(src.len()).unwrap();
    b.write(&mut buf, 0, src).unwrap();
    buf
}

/// What a buffer of backend `b` holds.
pub fn download<B: Backend, T: Element>(b: &B, src: &B::Buf<T>) -> Vec<T> {
    let mut dst = vec![T::zeroed(); src.len()];
    b.read(src, 0, &mut dst).unwrap();
    dst
}

/// Numbers that look random, uniform in `[-1, 1)`, the same in every run: a 64-bit LCG from `seed`.
pub fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            round((state >> 40) as f64 / f64::from(1u32 << 23) - 1.0)
        })
        .collect()
}
