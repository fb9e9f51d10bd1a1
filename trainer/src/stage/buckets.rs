//! In which ranges a gradient is summed while the backward that makes it still runs, and how far that sum is.
//!
//! Owns how a flat vector is cut ([`buckets`] for an adapter's, [`whole_buckets`] for a model's) and one step's sum over
//! those cuts ([`Sum`]).

use super::sums::{Part, ShardSums};
use super::{Error, Result};
use crate::comm::{Communicator, LocalShards};
use crate::lora::SiteList;
use crate::model::event::Places;
use kernels::Backend;
use std::ops::Range;

/// A range of a flat vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Which parameters.
    pub(super) range: Range<usize>,
    /// The lowest layer that has some of them: the range is complete when a backward has passed it.
    pub(super) layer: usize,
}

/// A vector of `len` cut into buckets, in the order in which a backward completes them.
///
/// `layers` are first elements and numbers, from the last layer to the first; what follows a layer's first element and is
/// no other layer's belongs to it. A bucket is whole layers, the fewest that hold `bytes`; what is left for the last one
/// may be smaller.
fn cut(len: usize, layers: impl Iterator<Item = (usize, usize)>, bytes: usize) -> Vec<Bucket> {
    let (mut buckets, mut end) = (Vec::new(), len);
    let mut layers = layers.peekable();
    while let Some((start, layer)) = layers.next() {
        if layers.peek().is_none() || (end - start) * size_of::<f32>() >= bytes {
            buckets.push(Bucket { range: start..end, layer });
            end = start;
        }
    }
    if buckets.is_empty() {
        buckets.push(Bucket { range: 0..end, layer: 0 });
    }
    buckets
}

/// The flat vector of an adapter in buckets; a layer is a block.
///
/// Blocks lie in the vector in rising order ([`SiteList`]), so buckets run from its end to its beginning; whole tensors,
/// which follow the last site, are in the first. Depends on the adapter's shape alone: the same on every rank.
pub(super) fn buckets(sites: &SiteList, lora_rank: usize, bytes: usize) -> Vec<Bucket> {
    // Of each block the first site, which is the last one met from behind.
    let mut layers: Vec<(usize, usize)> = Vec::new();
    for entry in sites.entries().iter().rev() {
        let start = sites.range(&entry.site, lora_rank).a.start;
        let block = entry.spec.layer as usize;
        match layers.last_mut() {
            Some(last) if last.1 == block => last.0 = start,
            _ => layers.push((start, block)),
        }
    }
    cut(sites.params(lora_rank), layers.into_iter(), bytes)
}

/// The parameters of an event model that train in buckets; layer `i + 1` is block `i`, layer 0 what lies below the blocks.
///
/// Heads and norms above the blocks, which a backward meets first, are in the first bucket with the last block.
pub(super) fn whole_buckets(places: &Places, bytes: usize) -> Vec<Bucket> {
    let mut layers: Vec<(usize, usize)> =
        places.block_starts().map(|(start, block)| (start, block + 1)).collect();
    if layers.first().is_none_or(|&(start, _)| start > 0) {
        layers.insert(0, (0, 0));
    }
    cut(places.trained(), layers.into_iter().rev(), bytes)
}

/// The sum of the gradients of all ranks' shards: begun bucket by bucket, ended once a step.
pub(super) struct Sum<'a, B: Backend> {
    pub(super) comm: &'a dyn Communicator,
    sums: &'a mut dyn ShardSums<B>,
    buckets: Vec<Bucket>,
    /// First elements of the shards' gradients and of their sum.
    shards: Vec<usize>,
    total: usize,
    /// Buckets begun in this step; the same buckets in the same order on every rank, whatever it computes.
    begun: usize,
    /// Why the rest of them was not.
    failed: Option<Error>,
}

impl<'a, B: Backend> Sum<'a, B> {
    /// A sum that has begun nothing: of gradients at the first elements `shards`, as agreed before, into `total`.
    pub(super) fn new(
        (comm, sums): (&'a dyn Communicator, &'a mut dyn ShardSums<B>),
        buckets: Vec<Bucket>,
        (shards, total): (Vec<usize>, usize),
    ) -> Self {
        Self { comm, sums, buckets, shards, total, begun: 0, failed: None }
    }

    /// Whether buckets should begin before the backward has ended.
    pub(super) fn overlaps(&self) -> bool {
        self.sums.bucket_bytes().is_some()
    }

    /// Begins the buckets that are complete once a backward has passed `layer`. An error ends the sum, and waits for
    /// [`Sum::end`]: a backward is not left half way.
    pub(super) fn begin_down_to(&mut self, layer: usize, (backend, slab): (&B, &mut B::Buf<f32>)) {
        while let Some(bucket) = self.buckets.get(self.begun)
            && bucket.layer >= layer
            && self.failed.is_none()
        {
            let at = |&first: &usize| first + bucket.range.start;
            let shards: Vec<usize> = self.shards.iter().map(at).collect();
            let (total, len) = (at(&self.total), bucket.range.len());
            let part = Part { shards: &shards, total, len };
            self.failed = self.sums.begin(self.comm, (backend, &mut *slab), part).err();
            self.begun += 1;
        }
    }

    /// Begins what is left, all of it on a rank that computed nothing, and waits for the sum.
    pub(super) fn end(&mut self, of: (&B, &mut B::Buf<f32>)) -> Result<()> {
        self.begin_down_to(0, of);
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.begun = 0;
        self.sums.finish()
    }

    /// The shards' scalars added.
    pub(super) fn scalars(&self, values: &[f64]) -> Result<f64> {
        self.sums.scalars(self.comm, values)
    }

    /// `total` of these shards over host memory; untouched where the sum is not by the host.
    pub(super) fn by_host(&self, (ids, values): (&[u32], &[f32]), total: &mut [f32]) -> Result<()> {
        match self.sums.by_host() {
            Some(sync) => Ok(sync.reduce_shards(self.comm, LocalShards { ids, values }, total)?),
            None => Ok(()),
        }
    }

    /// Copies the gradient at `from` to `to`, see [`ShardSums::copy`].
    pub(super) fn copy(
        &self,
        of: (&B, &mut B::Buf<f32>),
        (from, to): (usize, usize),
        len: usize,
    ) -> Result<()> {
        self.sums.copy(of, (from, to), len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::{SiteSpec, Target, WholeTensor};
    use crate::model::event::{Combine, EventSpec, History, Prediction, Product};

    /// Blocks 0, 2 and 3 of 13, 4 and 9 parameters a unit of LoRA rank.
    fn sites() -> SiteList {
        let site = |layer, target, in_dim, out_dim| SiteSpec { layer, target, in_dim, out_dim };
        let specs = vec![
            site(0, Target::Q, 4, 3),
            site(0, Target::V, 4, 2),
            site(2, Target::V, 1, 3),
            site(3, Target::Q, 4, 5),
        ];
        SiteList::new(specs).unwrap()
    }

    fn cut_of(lora_rank: usize, bytes: usize) -> Vec<(Range<usize>, usize)> {
        buckets(&sites(), lora_rank, bytes).into_iter().map(|b| (b.range, b.layer)).collect()
    }

    #[test]
    fn whole_blocks_from_the_last_to_the_first() {
        assert_eq!(cut_of(2, 0), [(34..52, 3), (26..34, 2), (0..26, 0)]);
        assert_eq!(cut_of(2, 18 * 4), [(34..52, 3), (0..34, 0)]);
        assert_eq!(cut_of(2, 18 * 4 + 1), [(26..52, 2), (0..26, 0)]);
        assert_eq!(cut_of(2, usize::MAX), [(0..52, 0)]);
        assert_eq!(cut_of(0, 1), [(0..0, 0)]);
    }

    #[test]
    fn whole_tensors_come_first() {
        let head = WholeTensor { name: "head".into(), dims: vec![2, 5] };
        let with = sites().with_whole(vec![head.clone()]);
        let cut = buckets(&with, 1, 0);
        assert_eq!((cut[0].range.clone(), cut[0].layer, cut.len()), (17..36, 3, 3));
        let alone = SiteList::whole_only(vec![head]).unwrap();
        assert_eq!(buckets(&alone, 1, 0), [Bucket { range: 0..10, layer: 0 }]);
    }

    #[test]
    fn a_model_is_cut_at_its_blocks() {
        let spec = EventSpec {
            columns: vec![4, 7, 12],
            intents: 6,
            window: 6,
            hidden: 24,
            layers: 3,
            heads: 2,
            intermediate: 48,
            combine: Combine::Concat,
            history: History::Last,
            product: Product::Elementwise,
            head_hidden: 12,
            prediction: Prediction::Scalar,
            norm_eps: 1e-5,
        };
        let cut = |frozen, bytes| -> Vec<(Range<usize>, usize)> {
            let cut = whole_buckets(&Places::partly(&spec, frozen), bytes);
            cut.into_iter().map(|b| (b.range, b.layer)).collect()
        };
        let places = Places::new(&spec);
        let first = |name: &str| {
            let named = places.tensors().iter().find(|p| p.name.starts_with(name));
            named.map(|p| p.offset).unwrap()
        };
        let name = |layer| crate::model::spec::layer_tensor(layer, "norm1");
        let [a, b, c] = [0, 1, 2].map(|layer| first(&name(layer)));
        let (n, block) = (places.len(), b - a);
        assert_eq!(cut(0, 0), [(c..n, 3), (b..c, 2), (a..b, 1), (0..a, 0)]);
        assert_eq!(cut(0, usize::MAX), [(0..n, 0)]);
        // The first has the heads too, so it is large enough with its block alone; the others need two.
        assert_eq!(cut(0, 4 * (block + 1)), [(c..n, 3), (a..c, 1), (0..a, 0)]);
        // Nothing below the lowest block that trains.
        assert_eq!(cut(1, 0), [(c - b..n - b, 3), (0..c - b, 2)]);
        assert_eq!(cut(3, 0), [(0..Places::partly(&spec, 3).trained(), 0)]);
    }
}
