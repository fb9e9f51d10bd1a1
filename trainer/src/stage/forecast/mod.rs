//! What a GPU's memory would go to: the code that trains and predicts, run once on a device that only counts.
//!
//! Nothing is estimated here: the network, the engine and the largest packs are made as in a run, on
//! [`kernels::gpu::dry::DryRun`], and what they allocate is read off its tally. The largest packs are those whose
//! operations ask for most scratch memory: every row a sequence of its own and an output. Not counted is what the
//! driver takes by itself. Start reading at [`training`]; event models are in [`events`].

mod events;

pub use events::{answers, tuning, whole, whole_sums};

use super::Result;
use super::buckets::buckets;
use super::engine::Engine;
use super::sums::BUCKET_BYTES;
use crate::comm::nccl::NcclOptions;
use crate::ids::Slot;
use crate::lora::{SiteList, SiteLists};
use crate::model::Adapters;
use crate::model::activations::StepSize;
use crate::model::batch::{Batch, DeviceBatch};
use crate::model::decode::Predictor;
use crate::model::network::Network;
use crate::model::spec::BaseSpec;
use crate::model::step::Stepper;
use crate::pack::{Packer, Piece, Share};
use kernels::Backend;
use kernels::gpu::Gpu;
use kernels::gpu::dry::{DryRun, granted};
use kernels::lora::Segment;
use kernels::optim::Update;

/// Bytes of device memory by purpose, as the driver gives them out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forecast {
    /// Frozen weights, norms and position tables; of an event model all its parameters, and their forms for products.
    pub base: usize,
    /// Activations and their gradients; of prediction also keys and values.
    pub activations: usize,
    /// Parameters of the adapters in flight, and their gradients; of a model that trains whole its gradient.
    pub adapters: usize,
    /// Their moments, and the table of due updates.
    pub optimiser: usize,
    /// Scratch memory of operations, and what the library of products takes.
    pub workspace: usize,
    /// Tables of a pack: ids, positions, segments, sequences.
    pub tables: usize,
    /// Gradients of other ranks' shards, gathered by a sum between GPUs ([`gathered`]); of a model that trains whole also
    /// those of its own shards ([`whole_sums`]).
    pub sums: usize,
}

impl Forecast {
    /// All of it.
    pub fn total(&self) -> usize {
        let Self { base, activations, adapters, optimiser, workspace, tables, sums } = self;
        base + activations + adapters + optimiser + workspace + tables + sums
    }
}

/// A device that counts, and what it had taken when opened.
struct Paper {
    gpu: Gpu<DryRun>,
    opened: usize,
}

impl Paper {
    fn new() -> Result<Self> {
        let gpu = Gpu::new(DryRun::new())?;
        let opened = gpu.device().tally().current.held;
        Ok(Self { gpu, opened })
    }

    fn held(&self) -> usize {
        self.gpu.device().tally().current.held
    }

    /// Bytes of a batch's tables: before the first pack, and after this one.
    fn tables(&self, rows: usize, batch: &Batch) -> Result<(usize, usize)> {
        let before = self.held();
        let mut tables = DeviceBatch::alloc(&self.gpu, rows)?;
        let empty = self.held() - before;
        tables.upload(&self.gpu, batch)?;
        Ok((empty, self.held() - before))
    }

    /// What was held at most beyond what is held now: nothing, unless memory grew while something was still there.
    fn beyond(&self) -> usize {
        let tally = self.gpu.device().tally();
        tally.peak.held - tally.current.held
    }
}

/// Memory of training with `slots` adapters of at most `adapter_params` parameters in packs of `size`, on a base with
/// positions up to `max_positions`.
///
/// # Errors
/// What the engine refuses: no slot, an adapter too small for its sites.
pub fn training(
    (spec, max_positions): (&BaseSpec, usize),
    lists: &SiteLists,
    size: StepSize,
    (slots, adapter_params): (u32, usize),
) -> Result<Forecast> {
    let paper = Paper::new()?;
    let net = Network::outline(paper.gpu.clone(), spec, max_positions)?;
    let before = paper.held();
    let stepper = {
        let _buffers = Stepper::new(&net, size)?;
        paper.held() - before
    };
    let mut engine = Engine::new(&net, lists, size, (slots, adapter_params))?;
    let slabs = paper.held() - before - stepper;
    let segment = engine.segment(Slot(0), Slot(0));
    let updates: Vec<Update> =
        (0..slots).map(|slot| update(engine.slabs.offset(Slot(slot)), adapter_params)).collect();
    let mut tables = (0, 0);
    for rows in pack_rows(size.rows) {
        let packer = pack(lists, Some(segment), rows, &Piece::supervised(&[0, 0], 1));
        if rows == size.rows {
            tables = paper.tables(rows, packer.batch())?;
        }
        engine.train(&packer)?;
    }
    engine.update(&updates, &mut vec![0.0; updates.len()])?;
    let (empty, filled) = tables;
    let adapters = 2 * granted(engine.slabs.slab_len() * size_of::<f32>());
    Ok(Forecast {
        base: before - paper.opened,
        activations: stepper - empty,
        adapters,
        optimiser: slabs.saturating_sub(adapters),
        workspace: paper.held() - before - stepper - slabs - (filled - empty)
            + paper.opened
            + paper.beyond(),
        tables: filled,
        sums: 0,
    })
}

/// Memory of prediction in packs of `rows` rows with a cache of `cache_rows` rows and `slots` adapters of at most
/// `adapter_params` parameters.
///
/// # Errors
/// What the predictor refuses.
pub fn prediction(
    (spec, max_positions): (&BaseSpec, usize),
    lists: &SiteLists,
    (rows, cache_rows): (usize, usize),
    (slots, adapter_params): (u32, usize),
) -> Result<Forecast> {
    let paper = Paper::new()?;
    let net = Network::outline(paper.gpu.clone(), spec, max_positions)?;
    let before = paper.held();
    let mut predictor = Predictor::new(&net, rows, cache_rows)?;
    let buffers = paper.held() - before;
    let params = paper.gpu.alloc::<f32>(slots as usize * adapter_params)?;
    let adapters = paper.held() - before - buffers;
    let mut tables = (0, 0);
    for some in pack_rows(rows) {
        // The head takes a few rows at a time, however many there are.
        let silent = Piece { only: Some(&[]), ..Piece::prompt(&[0]) };
        let mut packer = pack(lists, Some(BARE), some - 1, &silent);
        packer.add(&share(Some(BARE), 0, &[Piece::prompt(&[0])]));
        if some == rows {
            tables = paper.tables(rows, packer.batch())?;
        }
        let to_cache = vec![0; if cache_rows > 0 { packer.rows() } else { 0 }];
        let adapters = Adapters { layouts: lists.layouts(), params: &params };
        predictor.prefill(&net, (packer.batch(), &to_cache), adapters, &mut |_, _| {})?;
    }
    let (empty, filled) = tables;
    Ok(Forecast {
        base: before - paper.opened,
        activations: buffers - empty,
        adapters,
        optimiser: 0,
        workspace: paper.held() - before - buffers - adapters - (filled - empty)
            + paper.opened
            + paper.beyond(),
        tables: filled,
        sums: 0,
    })
}

/// Bytes that sums between the GPUs of `ranks` ranks gather at a time of an adapter's gradients, `num_shards` in the
/// whole job, as the driver gives them out; what NCCL takes for itself is not among them.
pub fn gathered(
    (sites, lora_rank): (&SiteList, usize),
    (num_shards, ranks): (u32, usize),
) -> usize {
    let cut = buckets(sites, lora_rank, BUCKET_BYTES);
    let largest = cut.iter().map(|bucket| bucket.range.len()).max().unwrap_or(0);
    let per_rank = (num_shards as usize).div_ceil(ranks.max(1));
    granted(NcclOptions::new(num_shards).gathered_bytes((per_rank, ranks), largest))
}

/// A segment of an adapter that exists on paper.
const BARE: Segment = Segment {
    row_start: 0,
    rows: 0,
    param_offset: 0,
    grad_offset: 0,
    lora_rank: 1,
    scale: 1.0,
    dropout: 0.0,
    step: 0,
    key: [0; 2],
};

/// Rows of packs among which is the one that takes most scratch memory: all rows; one row less, which fills no bucket
/// of the library; and the most at which LoRA's gradients are not yet cut into chunks.
fn pack_rows(most: usize) -> impl Iterator<Item = usize> {
    let fewer = [most.saturating_sub(1), 1023];
    std::iter::once(most).chain(fewer.into_iter().filter(move |&rows| rows > 0 && rows < most))
}

/// Copies of a piece of one row, `rows` of them, spread over adapters of all layouts.
fn pack(lists: &SiteLists, adapter: Option<Segment>, rows: usize, piece: &Piece<'_>) -> Packer {
    let mut packer = Packer::new(false);
    packer.clear();
    let pieces = vec![*piece; rows];
    let layouts = lists.lists().len().max(1);
    for (layout, pieces) in pieces.chunks(rows.div_ceil(layouts).max(1)).enumerate() {
        packer.add(&share(adapter, layout, pieces));
    }
    packer
}

fn share<'a>(adapter: Option<Segment>, layout: usize, pieces: &'a [Piece<'a>]) -> Share<'a> {
    Share { adapter, layout, pieces, weight: 1.0, first_token: 0 }
}

/// A slot's update, due.
fn update(offset: usize, len: usize) -> Update {
    Update {
        offset: offset as u64,
        len: u32::try_from(len).unwrap_or(u32::MAX),
        step: 1,
        learning_rate: 0.0,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        clip_norm: 0.0,
    }
}
