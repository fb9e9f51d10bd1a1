//! The lists of sites that the adapters of one pack have, numbered.

use super::{Error, SiteEntry, SiteList, Target};
use crate::model::sites::Layout;
use crate::model::spec::BaseSpec;

/// Distinct site lists of one base, in the order they were met, each with its layout for the model's passes.
///
/// An adapter holds the sites of its own list and no other, numbered by that list: its bytes do not depend on which
/// other lists there are.
#[derive(Debug, Clone)]
pub struct SiteLists {
    spec: BaseSpec,
    lists: Vec<SiteList>,
    layouts: Vec<Layout>,
}

impl SiteLists {
    /// No list yet.
    pub fn new(spec: &BaseSpec) -> Self {
        Self { spec: spec.clone(), lists: Vec::new(), layouts: Vec::new() }
    }

    /// The lists of these sets of targets, each in every block.
    ///
    /// # Errors
    /// As [`SiteList::of_base`].
    pub fn of_targets<'t>(
        spec: &BaseSpec,
        sets: impl IntoIterator<Item = &'t [Target]>,
    ) -> Result<Self, Error> {
        let mut lists = Self::new(spec);
        for targets in sets {
            lists.add(&SiteList::of_base(spec, targets)?)?;
        }
        Ok(lists)
    }

    /// The number of a list, which is added if it is new.
    ///
    /// # Errors
    /// [`Error::NotOfBase`] when the base has not such a site.
    pub fn add(&mut self, sites: &SiteList) -> Result<usize, Error> {
        if let Some(number) = self.lists.iter().position(|list| list == sites) {
            return Ok(number);
        }
        // A list of whole tensors alone has no site to look for.
        if !sites.entries().is_empty() {
            let all = SiteList::of_base(&self.spec, &sites.targets())?;
            let foreign = |e: &&SiteEntry| all.entries().iter().all(|own| own.spec != e.spec);
            if let Some(entry) = sites.entries().iter().find(foreign) {
                return Err(Error::NotOfBase { path: entry.spec.module_path() });
            }
        }
        self.layouts.push(Layout::new(&self.spec, &sites.by_layer(self.spec.layers)));
        self.lists.push(sites.clone());
        Ok(self.lists.len() - 1)
    }

    /// Number and sites of the list that has exactly these targets (rising) in every block.
    ///
    /// # Errors
    /// [`Error::UnknownTargets`].
    pub fn find(&self, targets: &[Target]) -> Result<(usize, &SiteList), Error> {
        let layers = self.spec.layers;
        let has = |list: &&SiteList| {
            list.targets() == targets && list.entries().len() == targets.len() * layers
        };
        let number = self.lists.iter().position(|list| has(&list));
        match number {
            Some(number) => Ok((number, &self.lists[number])),
            None => Err(Error::UnknownTargets { targets: Target::names(targets).join(", ") }),
        }
    }

    /// The lists by their numbers.
    pub fn lists(&self) -> &[SiteList] {
        &self.lists
    }

    /// Their layouts, as the model's passes take them.
    pub fn layouts(&self) -> &[Layout] {
        &self.layouts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::SiteSpec;
    use crate::model::config_json;
    use std::path::Path;

    fn base() -> BaseSpec {
        let json = br#"{"model_type": "llama", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "hidden_act": "silu", "tie_word_embeddings": true}"#;
        config_json::parse(Path::new("config.json"), json).unwrap()
    }

    #[test]
    fn each_list_once_under_its_own_numbers() {
        let (few, more) = ([Target::Q, Target::V], [Target::Q, Target::V, Target::Down]);
        let sets = [few.as_slice(), &more, &few];
        let lists = SiteLists::of_targets(&base(), sets).unwrap();
        assert_eq!((lists.lists().len(), lists.layouts().len()), (2, 2));
        let (number, own) = lists.find(&few).unwrap();
        assert_eq!((number, own), (0, &SiteList::of_base(&base(), &few).unwrap()));
        let (number, wide) = lists.find(&more).unwrap();
        assert_eq!((number, wide.entries().len()), (1, 6));
        // The same product has a number and an offset in each list of its own.
        let at = |list: &SiteList| list.find(1, Target::V).unwrap();
        assert_ne!((at(own).id, at(own).unit_offset), (at(wide).id, at(wide).unit_offset));
        for unknown in [&[Target::Q][..], &[], &[Target::V, Target::Q]] {
            assert!(
                matches!(lists.find(unknown), Err(Error::UnknownTargets { .. })),
                "{unknown:?}"
            );
        }
    }

    #[test]
    fn a_list_of_some_layers_is_another_list() {
        let mut lists = SiteLists::of_targets(&base(), [&[Target::Q][..]]).unwrap();
        let top: Vec<SiteSpec> = lists.lists()[0].entries()[1..].iter().map(|e| e.spec).collect();
        let top = SiteList::new(top).unwrap();
        assert_eq!((lists.add(&top), lists.add(&top)), (Ok(1), Ok(1)));
        // The targets alone mean every layer.
        assert_eq!(lists.find(&[Target::Q]).unwrap().0, 0);
    }

    #[test]
    fn sites_of_another_base_are_refused() {
        let mut lists = SiteLists::new(&base());
        let site = |layer, target, in_dim| SiteSpec { layer, target, in_dim, out_dim: 32 };
        for foreign in [site(2, Target::Q, 32), site(0, Target::Q, 31)] {
            let foreign = SiteList::new(vec![foreign]).unwrap();
            assert!(matches!(lists.add(&foreign), Err(Error::NotOfBase { .. })));
        }
        let gpt2 = SiteList::new(vec![site(0, Target::CFc, 32)]).unwrap();
        assert!(matches!(lists.add(&gpt2), Err(Error::WrongFamily { .. })));
        assert!(lists.lists().is_empty() && lists.layouts().is_empty());
    }
}
