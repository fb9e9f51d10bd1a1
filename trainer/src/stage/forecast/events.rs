//! The same of event models: training one whole, tuning people on one, asking one.

use super::super::Result;
use super::super::buckets::whole_buckets;
use super::super::engine::Engine;
use super::super::events::Events;
use super::super::sums::BUCKET_BYTES;
use super::super::whole::WholeTrainer;
use super::{Forecast, Paper, pack, pack_rows, update};
use crate::comm::nccl::NcclOptions;
use crate::config::Recipe;
use crate::ids::Slot;
use crate::lora::SiteLists;
use crate::model::activations::StepSize;
use crate::model::event::{EventNetwork, EventSpec, EventStepper, EventTable, Places};
use crate::pack::Piece;
use kernels::gpu::Gpu;
use kernels::gpu::dry::{DryRun, granted};
use kernels::optim::Update;

/// Memory of training a model whole, with its lowest `frozen` blocks as they are, in packs of `rows` rows; `hidden`:
/// events are hidden from it; without sums of several shards' gradients, see [`whole_sums`].
///
/// # Errors
/// What the model refuses.
pub fn whole(
    (spec, frozen): (&EventSpec, usize),
    recipe: &Recipe,
    (rows, hidden): (usize, bool),
) -> Result<Forecast> {
    let mut sheet = Sheet::new(spec, frozen, (rows, true))?;
    let (size, table) = (sheet.size, one_event(spec)?);
    let gradient = granted(sheet.net.places().trained() * size_of::<f32>());
    let packer = pack(&SiteLists::new(sheet.net.trunk().spec()), None, size.rows, &WINDOW);
    let tables = Paper::new()?.tables(size.rows, packer.batch())?;
    let mut trainer = WholeTrainer::new(&mut sheet.net, &table, size.rows)?;
    let made = sheet.paper.held();
    for rows in pack_rows(size.rows) {
        trainer.rehearse(recipe, (rows, hidden))?;
    }
    Ok(sheet.filled(gradient, made, tables))
}

/// Bytes that gradients of the shards take beside [`whole`]'s one where GPUs sum them, `num_shards` on `ranks` ranks:
/// side by side with their sum, and between GPUs those of others, gathered bucket by bucket.
pub fn whole_sums((spec, frozen): (&EventSpec, usize), (num_shards, ranks): (u32, usize)) -> usize {
    let places = Places::partly(spec, frozen);
    let (len, own) = (places.trained(), (num_shards as usize).div_ceil(ranks.max(1)));
    if ranks <= 1 && own <= 1 {
        return 0;
    }
    let bytes = |gradients: usize| granted(gradients * len * size_of::<f32>());
    let beside = bytes(own + 1) - bytes(1);
    if ranks <= 1 {
        return beside;
    }
    let buckets = whole_buckets(&places, BUCKET_BYTES);
    let largest = buckets.iter().map(|bucket| bucket.range.len()).max().unwrap_or(0);
    beside + granted(NcclOptions::new(num_shards).gathered_bytes((own, ranks), largest))
}

/// Memory of tuning people on a model in packs of `rows` rows, `slots` people with at most `adapter_params` parameters
/// at once.
///
/// # Errors
/// What the engine refuses: no slot, an own part too small for its sites.
pub fn tuning(
    spec: &EventSpec,
    lists: &SiteLists,
    rows: usize,
    (slots, adapter_params): (u32, usize),
) -> Result<Forecast> {
    adapted((spec, lists), (rows, true), (slots, adapter_params))
}

/// Memory of asking a model in packs of `rows` rows, with own parts of `slots` people.
///
/// # Errors
/// As [`tuning`].
pub fn answers(
    spec: &EventSpec,
    lists: &SiteLists,
    rows: usize,
    (slots, adapter_params): (u32, usize),
) -> Result<Forecast> {
    adapted((spec, lists), (rows, false), (slots, adapter_params))
}

/// A window of one event: every row is a sequence of its own and an output.
const WINDOW: Piece<'_> =
    Piece { rows: &[0], first_output: 0, targets: &[0], loss: None, only: None };

fn adapted(
    (spec, lists): (&EventSpec, &SiteLists),
    (rows, backward): (usize, bool),
    (slots, adapter_params): (u32, usize),
) -> Result<Forecast> {
    let sheet = Sheet::new(spec, 0, (rows, backward))?;
    let (size, table) = (sheet.size, one_event(spec)?);
    let events = Events::new((&sheet.net, &table), lists, size)?;
    let mut engine = Engine::of(events, lists, (slots, adapter_params))?;
    let made = sheet.paper.held();
    let segment = engine.segment(Slot(0), Slot(0));
    let adapter = (!lists.lists().is_empty()).then_some(segment);
    let mut tables = (0, 0);
    for rows in pack_rows(size.rows) {
        let packer = pack(lists, adapter, rows, &WINDOW);
        if rows == size.rows {
            tables = Paper::new()?.tables(rows, packer.batch())?;
        }
        if backward {
            engine.train(&packer)?;
        } else {
            engine.probabilities(&packer)?;
        }
    }
    if backward {
        let updates: Vec<Update> =
            (0..slots).map(|s| update(engine.slabs.offset(Slot(s)), adapter_params)).collect();
        engine.update(&updates, &mut vec![0.0; updates.len()])?;
    }
    let adapters = 2 * granted(engine.slabs.slab_len() * size_of::<f32>());
    Ok(sheet.filled(adapters, made, tables))
}

/// A model on a device that counts.
struct Sheet {
    paper: Paper,
    net: EventNetwork<Gpu<DryRun>>,
    size: StepSize,
    /// Held with the model alone.
    before: usize,
    /// Of the buffers of its steps.
    buffers: usize,
}

impl Sheet {
    fn new(spec: &EventSpec, frozen: usize, (rows, backward): (usize, bool)) -> Result<Self> {
        let paper = Paper::new()?;
        let mut net = EventNetwork::partly(paper.gpu.clone(), spec.clone(), frozen)?;
        // Nobody writes to these zeros, so that they take no memory.
        net.load(&vec![0.0; net.places().len()])?;
        let before = paper.held();
        let stored_blocks = if backward { spec.layers } else { 0 };
        let size = StepSize { rows: rows.max(spec.window), stored_blocks, backward };
        let buffers = {
            let _buffers = EventStepper::new(&net, size)?;
            paper.held() - before
        };
        Ok(Self { paper, net, size, before, buffers })
    }

    /// What is held now by purpose: of `adapters` bytes of parameters and gradients, of what was held when all was
    /// `made`, of a pack's tables before it and with it.
    fn filled(&self, adapters: usize, made: usize, (empty, filled): (usize, usize)) -> Forecast {
        let slabs = made - self.before - self.buffers;
        Forecast {
            base: self.before - self.paper.opened,
            activations: self.buffers - empty,
            adapters,
            optimiser: slabs.saturating_sub(adapters),
            workspace: self.paper.held() - made - (filled - empty)
                + self.paper.opened
                + self.paper.beyond(),
            tables: filled,
            sums: 0,
        }
    }
}

/// A table of one event.
fn one_event(spec: &EventSpec) -> Result<EventTable> {
    let mut table = EventTable::new(spec.columns.len());
    match table.add(&vec![0; spec.columns.len()]) {
        Some(_) => Ok(table),
        None => Err(crate::model::Error::Batch { what: "no event".into() }.into()),
    }
}
