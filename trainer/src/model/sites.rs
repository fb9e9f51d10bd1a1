//! Which products of a block are adapted, and where their outputs lie in the block's buffers.
//!
//! The buffer of queries, keys and values holds `[q | k | v]` side by side, that of the MLP `[gate | up]`
//! (or GPT-2's `fc`). In the last block only output rows have queries, so there a site that covers
//! queries and keys (GPT-2's `c_attn`) is applied in two ranges.

use super::spec::BaseSpec;
use kernels::lora::{Site, SiteOutput};

/// The adapted products of one block; `None` where there is no adapter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerSites {
    /// Query projection.
    pub q: Option<Site>,
    /// Key projection.
    pub k: Option<Site>,
    /// Value projection.
    pub v: Option<Site>,
    /// GPT-2's joint projection `[q | k | v]`.
    pub c_attn: Option<Site>,
    /// Attention's output projection.
    pub o: Option<Site>,
    /// SwiGLU's gate, or GPT-2's first MLP product.
    pub gate: Option<Site>,
    /// SwiGLU's second input.
    pub up: Option<Site>,
    /// MLP's output product.
    pub down: Option<Site>,
}

/// Part of a block, in forward order; the lowest adapted part is where the backward ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Queries, keys, values.
    Qkv,
    /// Attention's output product.
    O,
    /// The MLP's input products.
    MlpIn,
    /// The MLP's output product.
    Down,
}

/// The site outputs of one block, ready for the kernels.
#[derive(Debug, Clone, Default)]
pub(super) struct BlockSites {
    pub(super) qkv: Vec<SiteOutput>,
    pub(super) q: Vec<SiteOutput>,
    pub(super) kv: Vec<SiteOutput>,
    pub(super) o: Vec<SiteOutput>,
    pub(super) mlp_in: Vec<SiteOutput>,
    pub(super) down: Vec<SiteOutput>,
}

impl BlockSites {
    pub(super) fn new(spec: &BaseSpec, sites: &LayerSites) -> Self {
        let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let whole = |site: Option<Site>, y_start| {
            site.map(|site| SiteOutput { site, out_begin: 0, out_len: site.out_dim, y_start })
        };
        let range = |site: Option<Site>, out_begin, out_len, y_start| {
            site.map(|site| SiteOutput { site, out_begin, out_len, y_start })
        };
        let list = |items: &[Option<SiteOutput>]| items.iter().copied().flatten().collect();
        Self {
            qkv: list(&[
                whole(sites.q, 0),
                whole(sites.k, q),
                whole(sites.v, q + kv),
                whole(sites.c_attn, 0),
            ]),
            q: list(&[whole(sites.q, 0), range(sites.c_attn, 0, q, 0)]),
            kv: list(&[
                whole(sites.k, q),
                whole(sites.v, q + kv),
                range(sites.c_attn, q, 2 * kv, q),
            ]),
            o: list(&[whole(sites.o, 0)]),
            mlp_in: list(&[whole(sites.gate, 0), whole(sites.up, spec.intermediate)]),
            down: list(&[whole(sites.down, 0)]),
        }
    }

    fn lowest(&self) -> Option<Part> {
        [
            (Part::Qkv, &self.qkv),
            (Part::O, &self.o),
            (Part::MlpIn, &self.mlp_in),
            (Part::Down, &self.down),
        ]
        .into_iter()
        .find(|(_, sites)| !sites.is_empty())
        .map(|(part, _)| part)
    }
}

/// Where the adapters of one list of sites lie in every block: what a pass needs to know of them.
///
/// Adapters of one pack may be of several layouts; a segment is seen at its own layout's sites alone.
#[derive(Debug, Clone)]
pub struct Layout {
    blocks: Vec<BlockSites>,
    /// The lowest adapted place: these adapters need no gradient below it.
    pub(super) lowest: Option<(usize, Part)>,
}

impl Layout {
    /// The layout of sites by block; blocks beyond the list have none.
    pub fn new(spec: &BaseSpec, sites: &[LayerSites]) -> Self {
        let of = |layer: usize| sites.get(layer).copied().unwrap_or_default();
        let blocks: Vec<BlockSites> =
            (0..spec.layers).map(|layer| BlockSites::new(spec, &of(layer))).collect();
        let lowest = blocks
            .iter()
            .enumerate()
            .find_map(|(layer, block)| block.lowest().map(|part| (layer, part)));
        Self { blocks, lowest }
    }

    /// The outputs of the sites of one product (or of those that share their input) in one block.
    pub(super) fn sites(&self, layer: usize, pick: Pick) -> &[SiteOutput] {
        self.blocks.get(layer).map_or(&[], pick)
    }
}

/// Chooses the sites that one call of the kernels takes.
pub(super) type Pick = fn(&BlockSites) -> &[SiteOutput];
