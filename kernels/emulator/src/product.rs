//! Dense products, which a GPU takes from its library.
//!
//! Every element is `((a_0 b_0 + a_1 b_1) + a_2 b_2) + ...` in `f32`, in ascending `k`, whatever the shape: one
//! of the orders that the device's contract allows, not the library's.

use crate::emulator::Emulator;
use crate::error::{Error, Result};
use half::bf16;
use kernels::gpu::{Operand, OutputType, Product};
use rayon::prelude::*;

/// What `emulator_read` and `emulator_write` say of a range.
const OUTSIDE: i32 = 1;
const UNWRITTEN: i32 = 2;

impl Emulator {
    /// `D = A · B (+ C)`.
    pub(crate) fn multiply(&self, product: &Product) -> Result<()> {
        let Product { m, n, k, a, b, out, accumulate, .. } = *product;
        // Rows of A and rows of B, both along the sum's index in memory order of B: [m, k] and [k, n].
        let a = self.operand("A", a, m, k)?;
        let b = self.operand("B", b, k, n)?;
        let size = out.element.size();
        let row_bytes = n * size;
        let at = |i: usize| element(out.address, i * out.stride, size);
        let c = product.addend();
        let mut old = vec![0_u8; if accumulate { m * row_bytes } else { 0 }];
        for (i, row) in old.chunks_exact_mut(row_bytes).enumerate() {
            self.fetch("C", element(c.address, i * c.stride, size), row)?;
        }
        let rows: Vec<Vec<u8>> = (0..m)
            .into_par_iter()
            .map(|i| {
                let mut sums = vec![0.0_f32; n];
                for (&x, row) in a[i * k..][..k].iter().zip(b.chunks_exact(n)) {
                    sums.iter_mut().zip(row).for_each(|(sum, &y)| *sum += x * y);
                }
                if accumulate {
                    let old = &old[i * row_bytes..][..row_bytes];
                    let old = old.chunks_exact(size).map(|bytes| decode(bytes, out.element));
                    sums.iter_mut().zip(old).for_each(|(sum, before)| *sum += before);
                }
                sums.iter().flat_map(|&sum| encode(sum, out.element)).collect()
            })
            .collect();
        rows.iter().enumerate().try_for_each(|(i, row)| self.store(at(i), row))
    }

    /// The operand in `f32`, `rows` x `columns` as the product sees it.
    fn operand(
        &self,
        name: &str,
        operand: Operand,
        rows: usize,
        columns: usize,
    ) -> Result<Vec<f32>> {
        let (lines, length) = if operand.transposed { (columns, rows) } else { (rows, columns) };
        let mut bytes = vec![0_u8; 2 * length];
        let mut values = vec![0.0; rows * columns];
        for line in 0..lines {
            self.fetch(name, element(operand.address, line * operand.stride, 2), &mut bytes)?;
            let elements = bytes.chunks_exact(2).map(|pair| decode(pair, OutputType::Bf16));
            for (i, value) in elements.enumerate() {
                let (row, column) = if operand.transposed { (i, line) } else { (line, i) };
                values[row * columns + column] = value;
            }
        }
        Ok(values)
    }

    pub(crate) fn fetch(&self, name: &str, address: usize, into: &mut [u8]) -> Result<()> {
        let from = std::ptr::with_exposed_provenance(address);
        // SAFETY: the runtime looks the range up and reads nothing outside a live allocation.
        let said = unsafe { (self.runtime.read)(into.as_mut_ptr(), from, into.len(), 1) };
        match said {
            OUTSIDE => Err(Error::Product(format!("{name} leaves its allocation"))),
            UNWRITTEN => Err(Error::Product(format!("{name} was never written"))),
            _ => Ok(()),
        }
    }

    pub(crate) fn store(&self, address: usize, bytes: &[u8]) -> Result<()> {
        let to = std::ptr::with_exposed_provenance_mut(address);
        // SAFETY: the runtime looks the range up and writes nothing outside a live allocation.
        match unsafe { (self.runtime.write)(to, bytes.as_ptr(), bytes.len()) } {
            OUTSIDE => Err(Error::Product("D leaves its allocation".into())),
            _ => Ok(()),
        }
    }
}

/// Address of element `index`; null, which lies in no allocation, if that is beyond all addresses.
pub(crate) fn element(address: u64, index: usize, size: usize) -> usize {
    let offset = index.checked_mul(size);
    usize::try_from(address).ok().zip(offset).and_then(|(a, o)| a.checked_add(o)).unwrap_or(0)
}

fn decode(bytes: &[u8], element: OutputType) -> f32 {
    match (element, bytes) {
        (OutputType::Bf16, &[low, high]) => bf16::from_le_bytes([low, high]).to_f32(),
        (OutputType::F32, &[b0, b1, b2, b3]) => f32::from_le_bytes([b0, b1, b2, b3]),
        _ => f32::NAN,
    }
}

fn encode(value: f32, element: OutputType) -> impl Iterator<Item = u8> {
    let (bytes, size) = match element {
        OutputType::Bf16 => {
            let [low, high] = bf16::from_f32(value).to_le_bytes();
            ([low, high, 0, 0], 2)
        }
        OutputType::F32 => (value.to_le_bytes(), 4),
    };
    bytes.into_iter().take(size)
}
