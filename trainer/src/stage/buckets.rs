//! In which ranges a gradient is summed while the backward that makes it still runs.

use crate::lora::SiteList;
use std::ops::Range;

/// A range of an adapter's flat vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Which parameters.
    pub(super) range: Range<usize>,
    /// The lowest block that has some of them: the range is complete when a backward has passed it.
    pub(super) block: usize,
}

/// The flat vector of an adapter cut into buckets, in the order in which a backward completes them.
///
/// A bucket is whole blocks, the fewest that hold `bytes`; what is left for the last one may be smaller. Blocks lie in
/// the vector in rising order ([`SiteList`]), so buckets run from its end to its beginning; whole tensors, which follow
/// the last site, are in the first. Depends on the adapter's shape alone: the same on every rank.
pub(super) fn buckets(sites: &SiteList, lora_rank: usize, bytes: usize) -> Vec<Bucket> {
    let mut buckets = Vec::new();
    let mut end = sites.params(lora_rank);
    let mut entries = sites.entries().iter().rev().peekable();
    while let Some(entry) = entries.next() {
        let block = entry.spec.layer;
        let start = sites.range(&entry.site, lora_rank).a.start;
        let (whole, last) = match entries.peek() {
            Some(next) => (next.spec.layer != block, false),
            None => (true, true),
        };
        if last || whole && (end - start) * size_of::<f32>() >= bytes {
            buckets.push(Bucket { range: start..end, block: block as usize });
            end = start;
        }
    }
    if buckets.is_empty() {
        buckets.push(Bucket { range: 0..end, block: 0 });
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::{SiteSpec, Target, WholeTensor};

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

    fn cut(lora_rank: usize, bytes: usize) -> Vec<(Range<usize>, usize)> {
        buckets(&sites(), lora_rank, bytes).into_iter().map(|b| (b.range, b.block)).collect()
    }

    #[test]
    fn whole_blocks_from_the_last_to_the_first() {
        assert_eq!(cut(2, 0), [(34..52, 3), (26..34, 2), (0..26, 0)]);
        assert_eq!(cut(2, 18 * 4), [(34..52, 3), (0..34, 0)]);
        assert_eq!(cut(2, 18 * 4 + 1), [(26..52, 2), (0..26, 0)]);
        assert_eq!(cut(2, usize::MAX), [(0..52, 0)]);
        assert_eq!(cut(0, 1), [(0..0, 0)]);
    }

    #[test]
    fn whole_tensors_come_first() {
        let head = WholeTensor { name: "head".into(), dims: vec![2, 5] };
        let with = sites().with_whole(vec![head.clone()]);
        let cut = buckets(&with, 1, 0);
        assert_eq!((cut[0].range.clone(), cut[0].block, cut.len()), (17..36, 3, 3));
        let alone = SiteList::whole_only(vec![head]).unwrap();
        assert_eq!(buckets(&alone, 1, 0), [Bucket { range: 0..10, block: 0 }]);
    }
}
