//! The adaptable products of the two model families, under the names Hugging Face gives them.

use super::{Error, Family};
use serde::{Deserialize, Serialize};

/// One adaptable product of a block; the order of the variants is the order of sites within a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Llama `self_attn.q_proj`.
    Q,
    /// Llama `self_attn.k_proj`.
    K,
    /// Llama `self_attn.v_proj`.
    V,
    /// Llama `self_attn.o_proj`.
    O,
    /// Llama `mlp.gate_proj`.
    Gate,
    /// Llama `mlp.up_proj`.
    Up,
    /// Llama `mlp.down_proj`.
    Down,
    /// GPT-2 `attn.c_attn`: q, k and v in one product.
    CAttn,
    /// GPT-2 `attn.c_proj`.
    AttnCProj,
    /// GPT-2 `mlp.c_fc`.
    CFc,
    /// GPT-2 `mlp.c_proj`.
    MlpCProj,
}

impl Target {
    /// All targets in order.
    pub const ALL: [Self; 11] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::CAttn,
        Self::AttnCProj,
        Self::CFc,
        Self::MlpCProj,
    ];

    /// The family that has this product.
    pub fn family(self) -> Family {
        match self {
            Self::CAttn | Self::AttnCProj | Self::CFc | Self::MlpCProj => Family::Gpt2,
            _ => Family::Llama,
        }
    }

    /// Path of the product inside its block, e.g. `self_attn.q_proj`.
    pub fn block_path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
            Self::CAttn => "attn.c_attn",
            Self::AttnCProj => "attn.c_proj",
            Self::CFc => "mlp.c_fc",
            Self::MlpCProj => "mlp.c_proj",
        }
    }

    /// The module's own name, e.g. `q_proj`; both GPT-2 `c_proj` share theirs.
    pub fn leaf(self) -> &'static str {
        self.block_path().rsplit('.').next().unwrap_or_default()
    }

    /// Path in the Hugging Face model, e.g. `model.layers.3.self_attn.q_proj`.
    pub fn module_path(self, layer: u32) -> String {
        let blocks = match self.family() {
            Family::Llama => "model.layers",
            Family::Gpt2 => "transformer.h",
        };
        format!("{blocks}.{layer}.{}", self.block_path())
    }

    /// Inverse of [`Self::module_path`]; layer numbers only in their one plain spelling.
    ///
    /// # Errors
    /// [`Error::UnknownPath`].
    pub fn parse_module_path(path: &str) -> Result<(u32, Self), Error> {
        let unknown = || Error::UnknownPath { path: path.to_owned() };
        let (family, rest) = path
            .strip_prefix("model.layers.")
            .map(|rest| (Family::Llama, rest))
            .or_else(|| path.strip_prefix("transformer.h.").map(|rest| (Family::Gpt2, rest)))
            .ok_or_else(unknown)?;
        let (layer, block) = rest.split_once('.').ok_or_else(unknown)?;
        let number: u32 = layer.parse().map_err(|_| unknown())?;
        let target = Self::ALL
            .into_iter()
            .find(|t| t.family() == family && t.block_path() == block)
            .ok_or_else(unknown)?;
        if number.to_string() != layer {
            return Err(unknown());
        }
        Ok((number, target))
    }

    /// The targets a user means by a name, as PEFT reads it: `q_proj`, `c_attn`, `self_attn.q_proj`;
    /// `c_proj` means both products of that name. Llama's products also go without `_proj`: `q`; GPT-2's two `c_proj`
    /// also as configs write them: `attn_c_proj`, `mlp_c_proj`.
    ///
    /// # Errors
    /// [`Error::UnknownTarget`] naming all that exist.
    pub fn parse(name: &str) -> Result<Vec<Self>, Error> {
        let found = Self::ALL.into_iter().filter(|t| {
            let short = t.family() == Family::Llama && t.leaf().strip_suffix("_proj") == Some(name);
            let whole = t.block_path() == name || t.block_path().replace('.', "_") == name;
            whole || t.leaf() == name || short
        });
        let found: Vec<Self> = found.collect();
        if found.is_empty() {
            let mut names: Vec<&str> = Self::ALL.iter().map(|t| t.leaf()).collect();
            names.dedup();
            return Err(Error::UnknownTarget { name: name.to_owned(), expected: names.join(", ") });
        }
        Ok(found)
    }

    /// The targets meant by several names, in order and without repetition.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_all<S: AsRef<str>>(names: &[S]) -> Result<Vec<Self>, Error> {
        let mut all = Vec::new();
        for name in names {
            all.extend(Self::parse(name.as_ref())?);
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// The shortest names that mean exactly these targets to PEFT: leaf names, except that one of GPT-2's two
    /// `c_proj` alone is written with its parent.
    pub fn names(targets: &[Self]) -> Vec<String> {
        let mut sorted = targets.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let mut names: Vec<String> = sorted
            .iter()
            .map(|t| {
                let alone = Self::ALL.iter().any(|o| o.leaf() == t.leaf() && !sorted.contains(o));
                if alone { t.block_path() } else { t.leaf() }.to_owned()
            })
            .collect();
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_users_write_them() {
        assert_eq!(Target::parse("q_proj"), Ok(vec![Target::Q]));
        assert_eq!(Target::parse("mlp.c_proj"), Ok(vec![Target::MlpCProj]));
        assert_eq!(Target::parse("attn_c_proj"), Ok(vec![Target::AttnCProj]));
        assert_eq!(Target::parse("mlp_c_proj"), Ok(vec![Target::MlpCProj]));
        assert_eq!(Target::parse("c_proj"), Ok(vec![Target::AttnCProj, Target::MlpCProj]));
        for wrong in ["", "Q_proj", "proj", "lm_head", ".q_proj", "q_proj "] {
            assert!(Target::parse(wrong).is_err(), "{wrong:?}");
        }
        let all = Target::parse_all(&["v_proj", "q_proj", "v_proj"]).unwrap();
        assert_eq!(all, [Target::Q, Target::V]);
        assert_eq!(Target::names(&all), ["q_proj", "v_proj"]);
    }

    #[test]
    fn c_proj_alone_keeps_its_parent() {
        use Target::{AttnCProj, CAttn, MlpCProj};
        assert_eq!(Target::names(&[AttnCProj, CAttn]), ["c_attn", "attn.c_proj"]);
        assert_eq!(Target::names(&[MlpCProj, CAttn, AttnCProj]), ["c_attn", "c_proj"]);
    }

    #[test]
    fn every_name_means_its_targets_again() {
        for mask in 1u32..1 << 11 {
            let set: Vec<Target> = Target::ALL
                .into_iter()
                .enumerate()
                .filter(|(i, _)| mask >> i & 1 == 1)
                .map(|(_, t)| t)
                .collect();
            assert_eq!(Target::parse_all(&Target::names(&set)), Ok(set));
        }
    }

    #[test]
    fn module_paths_go_there_and_back() {
        assert_eq!(Target::Q.module_path(3), "model.layers.3.self_attn.q_proj");
        assert_eq!(Target::MlpCProj.module_path(0), "transformer.h.0.mlp.c_proj");
        for t in Target::ALL {
            for layer in [0, 7, 10, u32::MAX] {
                assert_eq!(Target::parse_module_path(&t.module_path(layer)), Ok((layer, t)));
            }
        }
        for wrong in [
            "model.layers.03.self_attn.q_proj",
            "model.layers.+3.self_attn.q_proj",
            "model.layers.4294967296.self_attn.q_proj",
            "transformer.h.0.self_attn.q_proj",
            "model.layers.0.attn.c_attn",
            "model.layers.0",
            "model.layers..self_attn.q_proj",
        ] {
            assert!(Target::parse_module_path(wrong).is_err(), "{wrong}");
        }
    }
}
