//! Small dense products in register tiles, for operations that multiply two activations.
//!
//! Every element is one chain `c = fma(a, b, c)` in ascending `l`, whatever the tile, the other rows or
//! columns and the instruction set. Knows no operation. Start at [`Product`].

use crate::lanes::{self, Kernel, LANES};
use pulp::Simd;

/// Rows of `f32`: row `i` begins at `i * stride`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
}

/// How the left factor lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// `A(i, l) = data[i * stride + l]`.
    AsIs,
    /// `A(i, l) = data[l * stride + i]`.
    Transposed,
}

/// `C[i][j] (=|+=) Σ_l A(i, l) · B[l][j]` for `i < rows`, `l < depth`, `j < 16 · vectors`; `depth >= 1`.
#[derive(Debug)]
pub(crate) struct Product<'a> {
    pub(crate) left: Left,
    pub(crate) a: Rows<'a>,
    pub(crate) b: Rows<'a>,
    pub(crate) c: &'a mut [f32],
    pub(crate) c_stride: usize,
    pub(crate) rows: usize,
    pub(crate) vectors: usize,
    pub(crate) depth: usize,
    /// `+=`: the chains begin at what `C` holds.
    pub(crate) accumulate: bool,
}

impl Product<'_> {
    pub(crate) fn run(self) {
        match self.left {
            Left::AsIs => lanes::run(Tiles::<false>(self)),
            Left::Transposed => lanes::run(Tiles::<true>(self)),
        }
    }
}

/// A product whose left factor is transposed or not.
struct Tiles<'a, const TRANSPOSED: bool>(Product<'a>);

impl<const TRANSPOSED: bool> Kernel for Tiles<'_, TRANSPOSED> {
    type Output = ();
    /// Strips of up to four vectors, or two where registers are few; tiles that fill the registers.
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let many = S::REGISTER_COUNT >= 32;
        let mut j = 0;
        while j < self.0.vectors {
            let left = self.0.vectors - j;
            j += match left {
                1 => self.strip::<S, 1>(simd, j, 8),
                2 => self.strip::<S, 2>(simd, j, if many { 8 } else { 4 }),
                _ if !many => self.strip::<S, 2>(simd, j, 4),
                3 => self.strip::<S, 3>(simd, j, 8),
                _ => self.strip::<S, 4>(simd, j, 6),
            };
        }
    }
}

impl<const TRANSPOSED: bool> Tiles<'_, TRANSPOSED> {
    /// All rows of `N` vectors from vector `j` on; returns `N`.
    #[inline(always)]
    fn strip<S: Simd, const N: usize>(&mut self, simd: S, j: usize, largest: usize) -> usize {
        let mut i = 0;
        while i < self.0.rows {
            let left = (self.0.rows - i).min(largest);
            i += match left {
                8.. => self.tile::<S, 8, N>(simd, i, j),
                6.. => self.tile::<S, 6, N>(simd, i, j),
                4.. => self.tile::<S, 4, N>(simd, i, j),
                2.. => self.tile::<S, 2, N>(simd, i, j),
                _ => self.tile::<S, 1, N>(simd, i, j),
            };
        }
        N
    }

    /// `M` rows by `N` vectors; returns `M`.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        i: usize,
        j: usize,
    ) -> usize {
        let Product { a, b, c_stride, depth, accumulate, .. } = self.0;
        let c = &mut self.0.c[i * c_stride + j * LANES..];
        let mut acc = [[simd.splat_f32s(0.0); N]; M];
        if accumulate {
            for (acc, c) in acc.iter_mut().zip(c.chunks(c_stride)) {
                for (acc, c) in acc.iter_mut().zip(c.as_chunks::<LANES>().0) {
                    *acc = lanes::load(simd, c);
                }
            }
        }
        let b = b.data[j * LANES..].chunks(b.stride).take(depth);
        if TRANSPOSED {
            for (a, b) in a.data[i..].chunks(a.stride).zip(b) {
                if let (Some(a), Some(b)) = (a.first_chunk::<M>(), b.as_chunks().0.first_chunk()) {
                    step(simd, a, b, &mut acc);
                }
            }
        } else {
            let rows: [&[f32]; M] = std::array::from_fn(|m| &a.data[(i + m) * a.stride..][..depth]);
            for (l, b) in b.enumerate() {
                if l < depth
                    && let Some(b) = b.as_chunks().0.first_chunk()
                {
                    step(simd, &std::array::from_fn::<f32, M, _>(|m| rows[m][l]), b, &mut acc);
                }
            }
        }
        for (acc, c) in acc.iter().zip(c.chunks_mut(c_stride)) {
            for (acc, c) in acc.iter().zip(c.as_chunks_mut::<LANES>().0) {
                lanes::store(simd, c, *acc);
            }
        }
        M
    }
}

/// `acc[i][j] = fma(a[i], b[j], acc[i][j])`.
#[inline(always)]
fn step<S: Simd, const M: usize, const N: usize>(
    simd: S,
    a: &[f32; M],
    b: &[[f32; LANES]; N],
    acc: &mut [[S::f32s; N]; M],
) {
    for i in 0..M {
        let a = simd.splat_f32s(a[i]);
        for j in 0..N {
            acc[i][j] = simd.mul_add_f32s(a, lanes::load(simd, &b[j]), acc[i][j]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Whole(Vec<f32>, Vec<f32>, [usize; 3]);
    impl Kernel for Whole {
        type Output = [Vec<f32>; 2];
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let [rows, vectors, depth] = self.2;
            let n = vectors * LANES;
            let b = Rows { data: &self.1, stride: n + 3 };
            [false, true].map(|transposed| {
                let mut c = vec![0.5; rows * (n + 1)];
                let data = if transposed {
                    (0..rows * depth).map(|x| self.0[x % rows * depth + x / rows]).collect()
                } else {
                    self.0.clone()
                };
                let stride = if transposed { rows } else { depth };
                let product = Product {
                    left: Left::AsIs,
                    a: Rows { data: &data, stride },
                    b,
                    c: &mut c,
                    c_stride: n + 1,
                    rows,
                    vectors,
                    depth,
                    accumulate: true,
                };
                if transposed {
                    Tiles::<true>(product).run(simd);
                } else {
                    Tiles::<false>(product).run(simd);
                }
                c
            })
        }
    }

    #[test]
    fn every_element_is_one_chain_on_every_instruction_set() {
        for (rows, vectors, depth) in [(1, 1, 1), (7, 3, 5), (23, 4, 17), (9, 7, 2), (6, 2, 1)] {
            let n = vectors * LANES;
            let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 503.0 - 1.0;
            let a: Vec<f32> = (0..rows * depth).map(value).collect();
            let b: Vec<f32> = (0..depth * (n + 3)).map(|i| value(i + 77)).collect();
            for outputs in lanes::run_each(Whole(a.clone(), b.clone(), [rows, vectors, depth])) {
                for c in outputs {
                    for (i, c) in c.chunks(n + 1).enumerate() {
                        assert_eq!(c[n].to_bits(), 0.5f32.to_bits(), "written beside the window");
                        for (j, c) in c[..n].iter().enumerate() {
                            let chain = (0..depth).fold(0.5f32, |acc, l| {
                                a[i * depth + l].mul_add(b[l * (n + 3) + j], acc)
                            });
                            assert_eq!(
                                chain.to_bits(),
                                c.to_bits(),
                                "{rows} {vectors} {depth} {i} {j}"
                            );
                        }
                    }
                }
            }
        }
    }
}
