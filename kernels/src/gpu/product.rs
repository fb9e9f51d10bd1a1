//! Dense products, which a device takes from its library.

/// `D [m, n] = A [m, k] · B [k, n] (+ C [m, n])`: `bf16` operands, sums in `f32`, everything row-major.
///
/// On CUDA the order of a sum is the library's; with [`Product::invariant`] it is the same for every row
/// of every call with the same `n`, `k`, operand kinds, strides and alignments, whatever `m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Product {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// `A`.
    pub a: Operand,
    /// `B`.
    pub b: Operand,
    /// `D`.
    pub out: Output,
    /// Whether `C` is added, in `f32` and before the one rounding.
    pub accumulate: bool,
    /// `C`, where it is not what `D` holds; without [`Product::accumulate`] it is not read.
    pub c: Option<Addend>,
    /// The bits of a result row depend on its row of `A` and on `B` alone.
    pub invariant: bool,
}

/// A `bf16` matrix that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Device address of its first element.
    pub address: u64,
    /// Elements from one stored row to the next.
    pub stride: usize,
    /// Stored transposed: `A` as `[k, m]`, `B` as `[n, k]`.
    pub transposed: bool,
}

/// A matrix of the result's elements that is added to a product; it does not overlap the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Addend {
    /// Device address of its first element.
    pub address: u64,
    /// Elements from one row to the next.
    pub stride: usize,
}

/// The matrix that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Output {
    /// Device address of its first element.
    pub address: u64,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Type of its elements.
    pub element: OutputType,
}

/// Element of a product's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutputType {
    /// Rounded to nearest, ties to even.
    Bf16,
    /// The sum itself.
    F32,
}

impl Product {
    /// Address and stride of what is added: `C`, else `D` itself.
    pub fn addend(&self) -> Addend {
        self.c.unwrap_or(Addend { address: self.out.address, stride: self.out.stride })
    }
}

impl OutputType {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

impl Product {
    /// Bytes that the library may use while it runs; NVIDIA's recommendation for Hopper.
    pub const LIBRARY_BYTES: usize = 32 << 20;
    /// Rows of an invariant product's calls of the library: a multiple of this; the last rows go through padded copies
    /// of so many.
    pub const BUCKET: usize = 128;

    /// Bytes of a row of the padded copies of `A` and of the result.
    pub fn padded_rows(&self) -> [usize; 2] {
        [2 * self.k.next_multiple_of(8), self.out.element.size() * self.n.next_multiple_of(8)]
    }

    /// Bytes of both padded copies; none for a product that does without.
    pub fn padding(&self) -> Option<[usize; 2]> {
        let padded = self.invariant && !self.m.is_multiple_of(Self::BUCKET);
        padded.then(|| self.padded_rows().map(|bytes| Self::BUCKET * bytes))
    }
}
