//! An adapter as a record's payload: one safetensors file, written byte by byte here so that it is a pure function
//! of (user, base, config), and read back only if it is exactly what would be written.

use super::error::{Error, Result};
use super::tensors::{Header, MAX_HEADER, Tensor, parse};
use crate::ids::UserKey;
use crate::lora::{AdapterSpec, Half, SiteList, SiteSpec, WholeTensor};
use std::collections::BTreeMap;
use std::path::Path;

/// Where the metadata say which base an adapter belongs to.
pub(crate) const BASE_KEY: &str = "myriad.base";

/// Where an adapter comes from; it travels in the file's metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct Provenance {
    /// Hash of the base it belongs to (after any merge).
    pub base_hash: String,
    /// Hash of the resolved config.
    pub config_hash: String,
    /// Optimiser steps taken.
    pub steps: u32,
    /// Training loss of the last step; `None` if none was taken.
    pub final_loss: Option<f32>,
}

/// An adapter to be stored, borrowed from whoever trained it.
#[derive(Debug, Clone, Copy)]
pub struct AdapterRef<'a> {
    /// Recipe.
    pub spec: &'a AdapterSpec,
    /// Its sites.
    pub sites: &'a SiteList,
    /// The flat parameter vector, `sites.params(lora_rank)` values.
    pub params: &'a [f32],
    /// Where it comes from.
    pub provenance: &'a Provenance,
}

/// An adapter out of the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// Whose it is.
    pub key: UserKey,
    /// Recipe.
    pub spec: AdapterSpec,
    /// Its sites.
    pub sites: SiteList,
    /// The flat parameter vector.
    pub params: Vec<f32>,
    /// Where it comes from.
    pub provenance: Provenance,
}

impl AdapterRef<'_> {
    /// Checks the recipe, the number of parameters, and that all are finite.
    ///
    /// # Errors
    /// [`Error::Lora`] or [`Error::NotFinite`] naming the tensor.
    pub fn check(&self) -> Result<()> {
        self.spec.check()?;
        let (r, got) = (self.spec.lora_rank as usize, self.params.len());
        let expected = self.sites.params(r);
        if got != expected {
            return Err(crate::lora::Error::Length { what: "adapter", expected, got }.into());
        }
        if self.spec.targets != self.sites.targets() {
            let field = "targets";
            let got = format!("{:?}", self.spec.targets);
            let expected = "the targets of the adapter's sites";
            return Err(crate::lora::Error::Range { field, got, expected }.into());
        }
        for (site, half, range) in self.sites.tensors(r) {
            if !self.params[range].iter().all(|v| v.is_finite()) {
                return Err(Error::NotFinite { tensor: site.peft_key(half) });
            }
        }
        for (tensor, range) in self.sites.whole_ranges(r) {
            if !self.params[range].iter().all(|v| v.is_finite()) {
                return Err(Error::NotFinite { tensor: tensor.key() });
            }
        }
        if self.provenance.final_loss.is_some_and(|loss| !loss.is_finite()) {
            return Err(Error::NotFinite { tensor: "the final loss".to_owned() });
        }
        Ok(())
    }

    /// The payload: a safetensors file, f32, keys as PEFT writes them (whole tensors under keys of our own), in the order
    /// of the flat vector.
    ///
    /// # Errors
    /// As [`Self::check`]; [`Error::TooLong`] for a header above 1 MiB.
    pub fn encode(&self, key: &UserKey) -> Result<Vec<u8>> {
        self.check()?;
        let r = self.spec.lora_rank as usize;
        let mut header = Header::new(&self.metadata(key));
        for (site, half, range) in self.sites.tensors(r) {
            header.add(&site.peft_key(half), &site.shape(half, r), range);
        }
        for (whole, range) in self.sites.whole_ranges(r) {
            header.add(&whole.key(), &whole.dims, range);
        }
        let out = header.with(self.params);
        if out.header > MAX_HEADER {
            let (what, got) = ("an adapter's header", out.header);
            return Err(Error::TooLong { what, got, max: MAX_HEADER });
        }
        Ok(out.bytes)
    }

    fn metadata(&self, key: &UserKey) -> Vec<(&'static str, String)> {
        let Provenance { base_hash, config_hash, steps, final_loss } = self.provenance;
        let mut all = vec![
            ("format", "pt".to_owned()),
            ("myriad.version", "1".to_owned()),
            ("myriad.user", key.hex()),
            (BASE_KEY, base_hash.clone()),
            ("myriad.config", config_hash.clone()),
            ("myriad.steps", steps.to_string()),
            ("myriad.lora_alpha", self.spec.alpha.to_string()),
            ("myriad.rslora", self.spec.rslora.to_string()),
            ("myriad.dropout", self.spec.dropout.to_string()),
        ];
        all.extend(final_loss.map(|loss| ("myriad.final_loss", loss.to_string())));
        all
    }
}

impl Adapter {
    /// The adapter as it would be stored.
    pub fn view(&self) -> AdapterRef<'_> {
        let Self { spec, sites, params, provenance, .. } = self;
        AdapterRef { spec, sites, params, provenance }
    }

    /// Reads a payload. Accepted is exactly what [`AdapterRef::encode`] writes for some adapter of this user: complete
    /// pairs of matrices, their shapes, finite values, no other key.
    ///
    /// # Errors
    /// What is wrong, as a text; the caller knows file and offset.
    pub(crate) fn decode(key: &UserKey, payload: &[u8]) -> std::result::Result<Self, String> {
        let file = parse(payload, Path::new("")).map_err(|e| e.to_string())?;
        let metadata: BTreeMap<&str, &str> =
            file.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let text =
            |name| metadata.get(name).copied().ok_or_else(|| format!("no {name} in the metadata"));
        fn number<T: std::str::FromStr>(name: &str, text: &str) -> std::result::Result<T, String> {
            text.parse().map_err(|_| format!("{name} is {text:?}"))
        }
        let (lora_rank, sites) = sites_of(&file.tensors)?;
        let spec = AdapterSpec {
            lora_rank: lora_rank.max(1),
            alpha: number("alpha", text("myriad.lora_alpha")?)?,
            rslora: number("rslora", text("myriad.rslora")?)?,
            dropout: number("dropout", text("myriad.dropout")?)?,
            targets: sites.targets(),
        };
        let final_loss = metadata.get("myriad.final_loss").copied();
        let provenance = Provenance {
            base_hash: text(BASE_KEY)?.to_owned(),
            config_hash: text("myriad.config")?.to_owned(),
            steps: number("steps", text("myriad.steps")?)?,
            final_loss: final_loss.map(|t| number("final_loss", t)).transpose()?,
        };
        let data = payload.len() - 4 * sites.params(lora_rank as usize).min(payload.len() / 4);
        let value = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let params = payload[data..].chunks_exact(4).map(value).collect();
        let adapter = Self { key: *key, spec, sites, params, provenance };
        match adapter.view().encode(key) {
            Ok(again) if again == payload => Ok(adapter),
            Ok(_) => Err("the adapter is not written as this user's adapter is written".to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }
}

/// The rank and sites of which the tensors are the matrices; shapes are only used, the caller compares them all.
fn sites_of(
    tensors: &BTreeMap<String, Tensor<'_>>,
) -> std::result::Result<(u32, SiteList), String> {
    let mut widths = BTreeMap::new();
    let mut lora_rank = None;
    let mut whole = Vec::new();
    for (name, tensor) in tensors {
        if let Some(own) = WholeTensor::parse_key(name) {
            // Their order is that of their data, which the tiling of the file makes unique.
            let place = tensor.data.as_ptr() as usize;
            whole.push((place, WholeTensor { name: own.to_owned(), dims: tensor.shape.clone() }));
            continue;
        }
        let (layer, target, half) = SiteSpec::parse_peft_key(name).map_err(|e| e.to_string())?;
        let &[rows, columns] = tensor.shape.as_slice() else {
            return Err(format!("{name} has shape {:?}", tensor.shape));
        };
        let (in_dim, out_dim) = widths.entry((layer, target)).or_insert((0, 0));
        match half {
            Half::A => *in_dim = columns,
            Half::B => *out_dim = rows,
        }
        let r = if half == Half::A { rows } else { columns };
        if *lora_rank.get_or_insert(r) != r {
            return Err(format!("{name} is of another rank than the tensors before it"));
        }
    }
    let specs = widths.into_iter().map(|((layer, target), (in_dim, out_dim))| SiteSpec {
        layer,
        target,
        in_dim,
        out_dim,
    });
    whole.sort_by_key(|(place, _)| *place);
    let whole: Vec<WholeTensor> = whole.into_iter().map(|(_, tensor)| tensor).collect();
    let specs: Vec<SiteSpec> = specs.collect();
    let sites = match specs.is_empty() {
        true => SiteList::whole_only(whole),
        false => SiteList::new(specs).map(|sites| sites.with_whole(whole)),
    };
    let sites = sites.map_err(|e| e.to_string())?;
    let lora_rank = lora_rank.and_then(|r| u32::try_from(r).ok()).unwrap_or(0);
    Ok((lora_rank, sites))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UserId;
    use crate::lora::Target;
    use safetensors::{Dtype, SafeTensors};

    fn adapter() -> Adapter {
        let site = |target, out_dim| SiteSpec { layer: 0, target, in_dim: 3, out_dim };
        let sites = SiteList::new(vec![site(Target::Q, 4), site(Target::V, 2)]).unwrap();
        let targets = sites.targets();
        let spec = AdapterSpec { lora_rank: 2, alpha: 0.1, rslora: true, dropout: 0.05, targets };
        let params = (0..24u8).map(|i| f32::from(i) - 12.5).collect();
        let (base_hash, config_hash) = ("b\"\\".to_owned(), "c".to_owned());
        let provenance = Provenance { base_hash, config_hash, steps: 7, final_loss: Some(0.1) };
        Adapter { key: UserId::new("u").key(), spec, sites, params, provenance }
    }

    #[test]
    fn there_and_back_and_readable_by_the_crate() {
        let a = adapter();
        let payload = a.view().encode(&a.key).unwrap();
        assert_eq!(Adapter::decode(&a.key, &payload), Ok(a.clone()));
        let file = SafeTensors::deserialize(&payload).unwrap();
        let name = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight";
        let b = file.tensor(name).unwrap();
        assert_eq!((b.dtype(), b.shape()), (Dtype::F32, [2, 2].as_slice()));
        let expected: Vec<u8> = a.params[20..].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(b.data(), expected);
        assert_eq!(payload.len() % 4, 0);
        // Another user's payload is refused even though every byte is sound.
        assert!(Adapter::decode(&UserId::new("w").key(), &payload).is_err());
    }

    #[test]
    fn whole_tensors_go_there_and_back_in_their_order() {
        let whole =
            |name: &str, dims: &[usize]| WholeTensor { name: name.to_owned(), dims: dims.to_vec() };
        // In the order of the list, which is not the order of the names.
        let list = vec![whole("z.table", &[3, 2]), whole("a.bias", &[3])];
        let mut a = adapter();
        a.sites = a.sites.with_whole(list.clone());
        a.params.extend((0..9u8).map(f32::from));
        let payload = a.view().encode(&a.key).unwrap();
        assert_eq!(Adapter::decode(&a.key, &payload), Ok(a.clone()));
        a.params[24 + 8] = f32::NAN;
        let error = a.view().encode(&a.key).unwrap_err().to_string();
        assert!(error.contains("a.bias"), "{error}");
        let mut alone = adapter();
        alone.sites = SiteList::whole_only(list).unwrap();
        alone.spec = AdapterSpec { lora_rank: 1, targets: Vec::new(), ..alone.spec };
        alone.params = vec![0.5; 9];
        let payload = alone.view().encode(&alone.key).unwrap();
        assert_eq!(Adapter::decode(&alone.key, &payload), Ok(alone));
    }

    #[test]
    fn what_is_not_finite_or_whole_is_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut a = adapter();
            a.params[15] = bad;
            let error = a.view().encode(&a.key).unwrap_err().to_string();
            assert!(error.contains("v_proj.lora_A"), "{error}");
        }
        let mut short = adapter();
        short.params.pop();
        assert!(short.view().encode(&short.key).is_err());
        let mut other = adapter();
        other.spec.targets = vec![Target::Q];
        assert!(other.view().encode(&other.key).is_err());
    }

    #[test]
    fn every_flipped_header_byte_and_every_cut_is_seen_or_harmless() {
        let a = adapter();
        let payload = a.view().encode(&a.key).unwrap();
        for cut in 0..payload.len() {
            assert!(Adapter::decode(&a.key, &payload[..cut]).is_err(), "{cut}");
        }
        for at in 0..payload.len() - 4 * a.params.len() {
            for bit in 0..8 {
                let mut bad = payload.clone();
                bad[at] ^= 1 << bit;
                // What still decodes says something else, in its own canonical bytes: the record's checksum is there
                // for that. Nothing decodes to the adapter it is not.
                if let Ok(read) = Adapter::decode(&a.key, &bad) {
                    assert_eq!(read.view().encode(&a.key).unwrap(), bad);
                }
            }
        }
    }
}
