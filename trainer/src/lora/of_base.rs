//! The sites of an adapter on a given base, and a trained adapter as changes of the base's weights.

use super::{AdapterSpec, Error, SiteList, SiteSpec, Target};
use crate::model::overlay::Delta;
use crate::model::sites::LayerSites;
use crate::model::spec::{BaseSpec, layer_tensor};
use std::ops::Range;

impl SiteList {
    /// The sites of `targets` in every block of a base.
    ///
    /// # Errors
    /// [`Error::WrongFamily`] when a target is of another model family; otherwise as [`SiteList::new`].
    pub fn of_base(spec: &BaseSpec, targets: &[Target]) -> Result<Self, Error> {
        if let Some(target) = targets.iter().find(|t| t.family() != spec.family) {
            return Err(Error::WrongFamily { target: target.block_path(), base: spec.family });
        }
        let layers = u32::try_from(spec.layers).map_err(|_| Error::NoSites)?;
        let site = |layer, target| {
            let (in_dim, out_dim) = widths(spec, target);
            SiteSpec { layer, target, in_dim, out_dim }
        };
        Self::new((0..layers).flat_map(|l| targets.iter().map(move |&t| site(l, t))).collect())
    }

    /// The sites by block, as the model's step takes them.
    pub fn by_layer(&self, num_layers: usize) -> Vec<LayerSites> {
        let mut layers = vec![LayerSites::default(); num_layers];
        for e in self.entries() {
            let Some(sites) = layers.get_mut(e.spec.layer as usize) else { continue };
            let place = match e.spec.target {
                Target::Q => &mut sites.q,
                Target::K => &mut sites.k,
                Target::V => &mut sites.v,
                Target::CAttn => &mut sites.c_attn,
                Target::O | Target::AttnCProj => &mut sites.o,
                Target::Gate | Target::CFc => &mut sites.gate,
                Target::Up => &mut sites.up,
                Target::Down | Target::MlpCProj => &mut sites.down,
            };
            *place = Some(e.site);
        }
        layers
    }
}

/// Input and output width of a target.
fn widths(spec: &BaseSpec, target: Target) -> (usize, usize) {
    let (d, f) = (spec.hidden, spec.intermediate);
    let (q, kv) = (spec.query_dim(), spec.kv_dim());
    match target {
        Target::Q => (d, q),
        Target::K | Target::V => (d, kv),
        Target::CAttn => (d, q + 2 * kv),
        Target::O | Target::AttnCProj => (q, d),
        Target::Gate | Target::Up | Target::CFc => (d, f),
        Target::Down | Target::MlpCProj => (f, d),
    }
}

/// An adapter's changes, owned names beside borrowed matrices.
#[derive(Debug)]
pub struct Merge<'a> {
    changes: Vec<(String, Change<'a>)>,
    lora_rank: usize,
    scale: f32,
}

#[derive(Debug)]
struct Change<'a> {
    in_dim: usize,
    out_dim: usize,
    a: &'a [f32],
    b: &'a [f32],
}

impl<'a> Merge<'a> {
    /// The changes `scale · B·A` of each adapted weight; GPT-2's `c_attn` is one change each of q, k and v.
    ///
    /// # Errors
    /// [`Error::Length`] when `params` is not an adapter of that shape.
    pub fn new(
        spec: &BaseSpec,
        sites: &SiteList,
        lora: &AdapterSpec,
        params: &'a [f32],
    ) -> Result<Self, Error> {
        let lora_rank = lora.lora_rank as usize;
        if params.len() != sites.params(lora_rank) {
            return Err(Error::Length {
                what: "adapter to merge",
                expected: sites.params(lora_rank),
                got: params.len(),
            });
        }
        let (q, kv) = (spec.query_dim(), spec.kv_dim());
        let mut changes = Vec::new();
        for e in sites.entries() {
            let range = sites.range(&e.site, lora_rank);
            let (a, b) = (&params[range.a], &params[range.b]);
            let (in_dim, n) = (e.site.in_dim, e.site.out_dim);
            let mut part = |part: &str, rows: Range<usize>| {
                let name = format!("{}.weight", layer_tensor(e.spec.layer as usize, part));
                let b = &b[rows.start * lora_rank..rows.end * lora_rank];
                changes.push((name, Change { in_dim, out_dim: rows.len(), a, b }));
            };
            match e.spec.target {
                Target::Q => part("q", 0..n),
                Target::K => part("k", 0..n),
                Target::V => part("v", 0..n),
                Target::O | Target::AttnCProj => part("o", 0..n),
                Target::Gate => part("gate", 0..n),
                Target::Up => part("up", 0..n),
                Target::Down => part("down", 0..n),
                Target::CFc => part("fc", 0..n),
                Target::MlpCProj => part("proj", 0..n),
                Target::CAttn => {
                    part("q", 0..q);
                    part("k", q..q + kv);
                    part("v", q + kv..q + 2 * kv);
                }
            }
        }
        Ok(Self { changes, lora_rank, scale: lora.scale() })
    }

    /// What [`crate::model::overlay::merge`] takes.
    pub fn deltas(&self) -> impl Iterator<Item = Delta<'_>> {
        self.changes.iter().map(|(name, c)| Delta {
            name,
            in_dim: c.in_dim,
            out_dim: c.out_dim,
            lora_rank: self.lora_rank,
            a: c.a,
            b: c.b,
            scale: self.scale,
        })
    }
}
