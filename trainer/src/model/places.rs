//! Where the parameters of a base that trains lie in one flat vector, and how they begin.
//!
//! Products lie `[out, in]`. Owns the places of a stack of GPT-2 blocks ([`TrunkPlaces`]) and the list by which a model
//! lays out what it has beside them ([`Layout`]). Where the lowest blocks do not train, the vector has two parts, cut
//! above them; a place is counted from the beginning of its part. Knows no values. Start reading at [`Layout`].

use super::spec::layer_tensor;
use kernels::linear::Shape;
use kernels::random::philox;
use std::ops::Range;

/// How a tensor begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Start {
    /// Normal with mean zero and this standard deviation.
    Normal(f64),
    /// One number everywhere.
    Constant(f32),
}

/// One tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Its name in files.
    pub name: String,
    /// First element.
    pub offset: usize,
    /// Row-major dimensions; products are `[out, in]`.
    pub dims: Vec<usize>,
    /// How it begins.
    pub start: Start,
}

/// A norm's weight and bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NormPlace {
    pub(super) weight: usize,
    pub(super) bias: usize,
}

/// A product's weight and bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProductPlace {
    pub(super) weight: usize,
    pub(super) bias: usize,
    pub(super) shape: Shape,
}

/// One block's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockPlaces {
    pub(super) norm1: NormPlace,
    pub(super) q: ProductPlace,
    pub(super) k: ProductPlace,
    pub(super) v: ProductPlace,
    pub(super) o: ProductPlace,
    pub(super) norm2: NormPlace,
    pub(super) fc: ProductPlace,
    pub(super) proj: ProductPlace,
}

/// The places of GPT-2 blocks and of the norm above them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TrunkPlaces {
    pub(super) blocks: Vec<BlockPlaces>,
    /// The lowest so many blocks do not train: their places are in the part below the cut.
    pub(super) frozen: usize,
    pub(super) norm: NormPlace,
}

/// GPT-2's standard deviation.
pub(super) const STD: f64 = 0.02;

/// Tensors one after another.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Layout {
    pub(super) tensors: Vec<Place>,
    pub(super) len: usize,
    /// Elements below the part that trains.
    pub(super) cut: usize,
}

impl Layout {
    /// Appends a tensor; its first element in its part of the vector.
    pub(super) fn add(&mut self, name: &str, dims: &[usize], start: Start) -> usize {
        let offset = self.len;
        self.tensors.push(Place { name: name.to_owned(), offset, dims: dims.to_vec(), start });
        self.len += dims.iter().product::<usize>();
        offset - self.cut
    }

    /// A weight of ones and a bias.
    fn norm(&mut self, name: &str, dim: usize) -> NormPlace {
        NormPlace {
            weight: self.add(&format!("{name}.weight"), &[dim], Start::Constant(1.0)),
            bias: self.add(&format!("{name}.bias"), &[dim], Start::Constant(0.0)),
        }
    }

    /// A weight `[out, in]` and a bias.
    pub(super) fn product(&mut self, name: &str, shape: Shape, std: f64) -> ProductPlace {
        let dims = [shape.out_dim, shape.in_dim];
        ProductPlace {
            weight: self.add(&format!("{name}.weight"), &dims, Start::Normal(std)),
            bias: self.add(&format!("{name}.bias"), &[shape.out_dim], Start::Constant(0.0)),
            shape,
        }
    }

    fn block(&mut self, layer: usize, (d, f): (usize, usize), residual: f64) -> BlockPlaces {
        let shape = |in_dim, out_dim| Shape { in_dim, out_dim };
        let name = |part: &str| layer_tensor(layer, part);
        BlockPlaces {
            norm1: self.norm(&name("norm1"), d),
            q: self.product(&name("q"), shape(d, d), STD),
            k: self.product(&name("k"), shape(d, d), STD),
            v: self.product(&name("v"), shape(d, d), STD),
            o: self.product(&name("o"), shape(d, d), residual),
            norm2: self.norm(&name("norm2"), d),
            fc: self.product(&name("fc"), shape(d, f), STD),
            proj: self.product(&name("proj"), shape(f, d), residual),
        }
    }

    /// All blocks and the final norm of a GPT-2 of width `d` and MLP width `f`; above the lowest `frozen` blocks, if any,
    /// the vector is cut.
    pub(super) fn trunk(
        &mut self,
        (layers, frozen): (usize, usize),
        (d, f): (usize, usize),
    ) -> TrunkPlaces {
        // GPT-2 scales what is added to the stream by the number of additions.
        #[expect(clippy::cast_precision_loss, reason = "a number of blocks")]
        let residual = STD / (2.0 * layers as f64).sqrt();
        let mut below: Vec<BlockPlaces> =
            (0..frozen).map(|layer| self.block(layer, (d, f), residual)).collect();
        self.cut = if frozen > 0 { self.len } else { 0 };
        let above = (frozen..layers).map(|layer| self.block(layer, (d, f), residual));
        below.extend(above);
        TrunkPlaces { blocks: below, frozen, norm: self.norm("norm", d) }
    }

    /// Fills `params` as a new model begins: tensor `i`'s element `j` is a function of (key, i, j) alone.
    ///
    /// Normal numbers are Box and Muller's, in f64, of the words of `philox(key, [j / 2, i, "EVNT", 0])`, rounded once.
    pub(super) fn initialise(&self, key: [u32; 2], params: &mut [f32]) {
        for (i, place) in (0u32..).zip(&self.tensors) {
            let values = &mut params[place.range()];
            match place.start {
                Start::Constant(c) => values.fill(c),
                Start::Normal(std) => {
                    for (block, pair) in (0u32..).zip(values.chunks_mut(2)) {
                        let two = normals(philox(key, [block, i, PURPOSE, 0]));
                        for (value, normal) in pair.iter_mut().zip(two) {
                            *value = round(std * normal);
                        }
                    }
                }
            }
        }
    }
}

impl Place {
    /// Its elements in the flat vector.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.dims.iter().product::<usize>()
    }
}

/// "EVNT".
const PURPOSE: u32 = 0x4556_4e54;

/// Two independent normal numbers of four random words.
fn normals(words: [u32; 4]) -> [f64; 2] {
    let unit = |high: u32, low: u32| {
        // In (0, 1]: the logarithm is finite.
        (f64::from(high) * 4_294_967_296.0 + f64::from(low) + 1.0) / 18_446_744_073_709_551_616.0
    };
    let radius = (-2.0 * unit(words[0], words[1]).ln()).sqrt();
    let angle = std::f64::consts::TAU * unit(words[2], words[3]);
    [radius * angle.cos(), radius * angle.sin()]
}

#[expect(clippy::cast_possible_truncation, reason = "the one rounding to f32")]
fn round(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_normal_numbers() {
        let all: Vec<f64> =
            (0..20_000).flat_map(|i| normals(philox([1, 2], [i, 0, 0, 0]))).collect();
        let n = f64::from(40_000);
        let mean = all.iter().sum::<f64>() / n;
        let var = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let fourth = all.iter().map(|x| (x - mean).powi(4)).sum::<f64>() / n;
        assert!(mean.abs() < 5.0 / n.sqrt(), "{mean}");
        assert!((var - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "{var}");
        assert!((fourth - 3.0).abs() < 5.0 * (96.0 / n).sqrt(), "{fourth}");
    }
}
