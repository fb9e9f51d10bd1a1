//! The sites of an adapter in their one fixed order, and where each lies in the flat parameter vector.

use super::{Error, Family, Target};
use kernels::lora::Site;
use std::collections::BTreeSet;
use std::ops::Range;

/// Largest width of a site; far above any model, low enough that sums cannot overflow.
const MAX_WIDTH: usize = 1 << 28;

/// One product to adapt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SiteSpec {
    /// Block number.
    pub layer: u32,
    /// Which product of the block.
    pub target: Target,
    /// Input width.
    pub in_dim: usize,
    /// Output width.
    pub out_dim: usize,
}

/// Which of a site's two matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Half {
    /// `A [r, in]`, PEFT's `lora_A`.
    A,
    /// `B [out, r]`, PEFT's `lora_B`.
    B,
}

impl SiteSpec {
    /// Path in the Hugging Face model.
    pub fn module_path(&self) -> String {
        self.target.module_path(self.layer)
    }

    /// Key of a matrix in PEFT's files, e.g. `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub fn peft_key(&self, half: Half) -> String {
        let half = match half {
            Half::A => "lora_A",
            Half::B => "lora_B",
        };
        format!("base_model.model.{}.{half}.weight", self.module_path())
    }

    /// Inverse of [`Self::peft_key`]; the adapter name PEFT may leave in the key (`lora_A.default.weight`) is taken too.
    ///
    /// # Errors
    /// [`Error::UnknownPath`].
    pub fn parse_peft_key(key: &str) -> Result<(u32, Target, Half), Error> {
        let unknown = || Error::UnknownPath { path: key.to_owned() };
        let path = key.strip_prefix("base_model.model.").ok_or_else(unknown)?;
        let path = path.strip_suffix(".weight").ok_or_else(unknown)?;
        let path = path.strip_suffix(".default").unwrap_or(path);
        let (path, half) = path
            .strip_suffix(".lora_A")
            .map(|p| (p, Half::A))
            .or_else(|| path.strip_suffix(".lora_B").map(|p| (p, Half::B)))
            .ok_or_else(unknown)?;
        let (layer, target) = Target::parse_module_path(path).map_err(|_| unknown())?;
        Ok((layer, target, half))
    }

    /// Shape `[rows, columns]` of a matrix at a LoRA rank.
    pub fn shape(&self, half: Half, lora_rank: usize) -> [usize; 2] {
        match half {
            Half::A => [lora_rank, self.in_dim],
            Half::B => [self.out_dim, lora_rank],
        }
    }
}

/// A site of a list: what it is, and the kernel's view of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiteEntry {
    /// What it adapts.
    pub spec: SiteSpec,
    /// Widths, unit offset and number, as the kernels take them.
    pub site: Site,
}

/// Where a site's matrices lie in an adapter's flat parameter vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteRange {
    /// `A [r, in]`, row-major.
    pub a: Range<usize>,
    /// `B [out, r]`, row-major, right after `A`.
    pub b: Range<usize>,
}

/// A tensor that a user has whole, beside the matrices of the sites: rows of an event model's head, or with
/// full-parameter tuning all of a small model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeTensor {
    /// Its name, of letters, digits, `.` and `_`.
    pub name: String,
    /// Row-major dimensions.
    pub dims: Vec<usize>,
}

impl WholeTensor {
    /// Elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Key in an adapter's file.
    pub fn key(&self) -> String {
        format!("{WHOLE}{}", self.name)
    }

    /// Inverse of [`Self::key`]; `None` for other keys.
    pub fn parse_key(key: &str) -> Option<&str> {
        key.strip_prefix(WHOLE)
    }
}

/// What the keys of whole tensors begin with.
const WHOLE: &str = "myriad.whole.";

/// The sites of an adapter, layer by layer, within a layer in the order of [`Target`], then its whole tensors.
///
/// Site `k` of an adapter of rank `r` begins at element `r · unit_offset(k)`; the whole tensors follow the last site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteList {
    entries: Vec<SiteEntry>,
    units: usize,
    whole: Vec<WholeTensor>,
}

impl SiteList {
    /// Puts the sites in order and numbers them; the order given does not matter.
    ///
    /// # Errors
    /// No site, one given twice, two families in one list, a width out of bounds.
    pub fn new(mut specs: Vec<SiteSpec>) -> Result<Self, Error> {
        specs.sort_unstable();
        let family = specs.first().ok_or(Error::NoSites)?.target.family();
        let mut entries: Vec<SiteEntry> = Vec::with_capacity(specs.len());
        let mut units = 0usize;
        for (id, spec) in (0u32..).zip(specs) {
            let path = || spec.module_path();
            if let Some(last) = entries.last()
                && (last.spec.layer, last.spec.target) == (spec.layer, spec.target)
            {
                return Err(Error::DuplicateSite { path: path() });
            }
            if spec.target.family() != family {
                return Err(Error::MixedFamilies { path: path() });
            }
            let SiteSpec { in_dim, out_dim, .. } = spec;
            let width = 1..=MAX_WIDTH;
            if !width.contains(&in_dim) || !width.contains(&out_dim) || id >= 1 << 24 {
                return Err(Error::Width { path: path(), in_dim, out_dim });
            }
            entries
                .push(SiteEntry { spec, site: Site { in_dim, out_dim, unit_offset: units, id } });
            units += in_dim + out_dim;
        }
        Ok(Self { entries, units, whole: Vec::new() })
    }

    /// These whole tensors and no site: nothing is of low rank.
    ///
    /// # Errors
    /// [`Error::NoSites`] when there is none.
    pub fn whole_only(whole: Vec<WholeTensor>) -> Result<Self, Error> {
        if whole.is_empty() {
            return Err(Error::NoSites);
        }
        Ok(Self { entries: Vec::new(), units: 0, whole })
    }

    /// The same sites, followed by whole tensors.
    #[must_use]
    pub fn with_whole(self, whole: Vec<WholeTensor>) -> Self {
        Self { whole, ..self }
    }

    /// The whole tensors in order.
    pub fn whole(&self) -> &[WholeTensor] {
        &self.whole
    }

    /// Each whole tensor with its range in the flat vector of an adapter of that rank.
    pub fn whole_ranges(
        &self,
        lora_rank: usize,
    ) -> impl Iterator<Item = (&WholeTensor, Range<usize>)> + '_ {
        let mut end = lora_rank.saturating_mul(self.units);
        self.whole.iter().map(move |tensor| {
            let start = end;
            end += tensor.len();
            (tensor, start..end)
        })
    }

    /// The sites in order.
    pub fn entries(&self) -> &[SiteEntry] {
        &self.entries
    }

    /// The kernel's site of a product, if the adapter has it.
    pub fn find(&self, layer: u32, target: Target) -> Option<Site> {
        let at =
            self.entries.binary_search_by_key(&(layer, target), |e| (e.spec.layer, e.spec.target));
        Some(self.entries[at.ok()?].site)
    }

    /// Sum of `in + out` over all sites: parameters per unit of LoRA rank.
    pub fn units(&self) -> usize {
        self.units
    }

    /// Parameters of an adapter: `lora_rank · units`, and the whole tensors.
    pub fn params(&self, lora_rank: usize) -> usize {
        let whole: usize = self.whole.iter().map(WholeTensor::len).sum();
        lora_rank.saturating_mul(self.units).saturating_add(whole)
    }

    /// Where a site of this list lies in the flat vector of an adapter of that rank.
    pub fn range(&self, site: &Site, lora_rank: usize) -> SiteRange {
        let start = lora_rank * site.unit_offset;
        let middle = start + lora_rank * site.in_dim;
        SiteRange { a: start..middle, b: middle..middle + lora_rank * site.out_dim }
    }

    /// Each matrix in the order of the flat vector, with its range: site 0's `A`, its `B`, site 1's `A`, …
    pub fn tensors(
        &self,
        lora_rank: usize,
    ) -> impl Iterator<Item = (SiteSpec, Half, Range<usize>)> + '_ {
        self.entries.iter().flat_map(move |e| {
            let range = self.range(&e.site, lora_rank);
            [(e.spec, Half::A, range.a), (e.spec, Half::B, range.b)]
        })
    }

    /// The family of all sites; whole tensors alone are of the event model, whose blocks are GPT-2's.
    pub fn family(&self) -> Family {
        self.entries.first().map_or(Family::Gpt2, |e| e.spec.target.family())
    }

    /// The targets used, in order.
    pub fn targets(&self) -> Vec<Target> {
        let set: BTreeSet<Target> = self.entries.iter().map(|e| e.spec.target).collect();
        set.into_iter().collect()
    }

    /// The layers used, in order.
    pub fn layers(&self) -> Vec<u32> {
        let set: BTreeSet<u32> = self.entries.iter().map(|e| e.spec.layer).collect();
        set.into_iter().collect()
    }

    /// Whether every layer used has every target used.
    pub fn is_rectangular(&self) -> bool {
        self.entries.len() == self.targets().len() * self.layers().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(layer: u32, target: Target, in_dim: usize, out_dim: usize) -> SiteSpec {
        SiteSpec { layer, target, in_dim, out_dim }
    }

    #[test]
    fn order_numbers_and_ranges() {
        let list = SiteList::new(vec![
            spec(1, Target::Q, 8, 8),
            spec(0, Target::V, 8, 4),
            spec(0, Target::Q, 8, 8),
            spec(1, Target::V, 8, 4),
        ])
        .unwrap();
        let got: Vec<_> = list
            .entries()
            .iter()
            .map(|e| (e.spec.layer, e.spec.target, e.site.id, e.site.unit_offset))
            .collect();
        assert_eq!(
            got,
            [
                (0, Target::Q, 0, 0),
                (0, Target::V, 1, 16),
                (1, Target::Q, 2, 28),
                (1, Target::V, 3, 44)
            ]
        );
        assert_eq!((list.units(), list.params(3)), (56, 168));
        assert_eq!(list.range(&list.entries()[1].site, 3), SiteRange { a: 48..72, b: 72..84 });
        assert_eq!(list.find(1, Target::V), Some(list.entries()[3].site));
        assert_eq!(list.find(1, Target::K), None);
        assert!(list.is_rectangular());
    }

    #[test]
    fn tensors_tile_the_vector() {
        let list = SiteList::new(vec![
            spec(0, Target::CAttn, 5, 15),
            spec(2, Target::MlpCProj, 20, 5),
            spec(2, Target::CAttn, 5, 15),
        ])
        .unwrap();
        for r in [1, 2, 7] {
            let mut end = 0;
            for (s, half, range) in list.tensors(r) {
                assert_eq!(range.start, end);
                let [rows, columns] = s.shape(half, r);
                assert_eq!(range.len(), rows * columns);
                end = range.end;
            }
            assert_eq!(end, list.params(r));
        }
        assert!(!list.is_rectangular());
    }

    #[test]
    fn refuses_what_has_no_place() {
        assert_eq!(SiteList::new(vec![]), Err(Error::NoSites));
        let twice = SiteList::new(vec![spec(0, Target::Q, 8, 8), spec(0, Target::Q, 8, 4)]);
        assert!(matches!(twice, Err(Error::DuplicateSite { .. })));
        let mixed = SiteList::new(vec![spec(0, Target::Q, 8, 8), spec(0, Target::CFc, 8, 4)]);
        assert!(matches!(mixed, Err(Error::MixedFamilies { .. })));
        for (i, o) in [(0, 8), (8, 0), (usize::MAX, 8)] {
            assert!(matches!(
                SiteList::new(vec![spec(0, Target::Q, i, o)]),
                Err(Error::Width { .. })
            ));
        }
    }

    #[test]
    fn peft_keys() {
        let q = spec(11, Target::Q, 8, 8);
        let key = q.peft_key(Half::A);
        assert_eq!(key, "base_model.model.model.layers.11.self_attn.q_proj.lora_A.weight");
        assert_eq!(SiteSpec::parse_peft_key(&key), Ok((11, Target::Q, Half::A)));
        let c = spec(0, Target::CAttn, 8, 24).peft_key(Half::B);
        assert_eq!(c, "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight");
        let named = c.replace(".weight", ".default.weight");
        assert_eq!(SiteSpec::parse_peft_key(&named), Ok((0, Target::CAttn, Half::B)));
        for wrong in [
            "model.layers.11.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.11.self_attn.q_proj.lora_A.other.weight",
            "base_model.model.model.layers.11.self_attn.q_proj.weight",
            "base_model.model.lm_head.lora_A.weight",
            "",
        ] {
            assert!(SiteSpec::parse_peft_key(wrong).is_err(), "{wrong}");
        }
    }
}
