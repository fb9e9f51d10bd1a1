//! The forecast of a GPU's memory: what the code allocates on a device that counts, against the formulas and against
//! packs of all kinds.
#![expect(clippy::unwrap_used, reason = "test code")]

mod events;

use kernels::gpu::Gpu;
use kernels::gpu::dry::{DryRun, Usage, granted};
use kernels::lora::Segment;
use kernels::random::philox;
use std::path::{Path, PathBuf};
use trainer::comm::nccl::NcclOptions;
use trainer::ids::Slot;
use trainer::lora::{SiteList, SiteLists, Target};
use trainer::model::activations::StepSize;
use trainer::model::batch::DeviceBatch;
use trainer::model::cache::MappedBase;
use trainer::model::network::Network;
use trainer::model::spec::BaseSpec;
use trainer::model::step::Stepper;
use trainer::model::weights::WeightSource;
use trainer::pack::{Packer, Piece, Share};
use trainer::stage::engine::Engine;
use trainer::stage::forecast::{Forecast, gathered, prediction, training};

type Paper = Gpu<DryRun>;
/// The bases have at least so many.
const POSITIONS: usize = 64;

fn source(name: &str) -> Box<dyn WeightSource> {
    let golden: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    trainer::model::weights::open(&golden.join(name).join("base")).unwrap()
}

fn paper() -> Paper {
    Gpu::new(DryRun::new()).unwrap()
}

fn current(gpu: &Paper) -> Usage {
    gpu.device().tally().current
}

/// One list of sites, or two that differ.
fn lists(spec: &BaseSpec, layouts: usize) -> SiteLists {
    let names: [&[&str]; 2] = match spec.rope {
        Some(_) => [&["q", "v"], &["q", "k", "v", "o", "gate", "up", "down"]],
        None => [&["c_attn"], &["c_attn", "c_proj", "c_fc"]],
    };
    let targets = names.map(|names| Target::parse_all(names).unwrap());
    SiteLists::of_targets(spec, targets[2 - layouts..].iter().map(Vec::as_slice)).unwrap()
}

fn params(lists: &SiteLists) -> usize {
    lists.lists().iter().map(|sites: &SiteList| sites.params(3)).max().unwrap()
}

#[test]
fn an_outline_takes_what_the_base_takes() {
    for name in ["llama_tied", "llama_untied", "gpt2"] {
        let (source, folder) = (source(name), tempfile::tempdir().unwrap());
        let (whole, outline) = (paper(), paper());
        let base = MappedBase::load(&whole, source.as_ref(), folder.path()).unwrap();
        let _net = Network::new(whole.clone(), &base, POSITIONS).unwrap();
        let spec = source.spec();
        let _outline = Network::outline(outline.clone(), spec, POSITIONS).unwrap();
        assert_eq!(whole.device().tally(), outline.device().tally(), "{name}");
        let sketch = MappedBase::outline(&outline, spec);
        assert_eq!(sketch.mapped_bytes(), base.mapped_bytes(), "{name}");
        assert_eq!((sketch.describe(), sketch.form()), (base.describe(), ""));
        assert!(Network::new(outline, &sketch, POSITIONS).is_err(), "it has no numbers");
        assert!(sketch.recompute_hash(&whole).is_err() && sketch.verify().is_ok());
    }
}

/// `Engine::bytes` says to the byte what is allocated: on the device, and the host's losses.
#[test]
fn formulas_are_the_tally() {
    let mut checked = 0;
    for name in ["llama_tied", "llama_untied", "gpt2"] {
        let (gpu, source) = (paper(), source(name));
        let spec = source.spec();
        let net = Network::outline(gpu.clone(), spec, POSITIONS).unwrap();
        for (rows, layouts) in [(1, 1), (7, 2), (160, 1), (2049, 2)] {
            for stored_blocks in 0..=spec.layers {
                let (lists, slots) = (lists(spec, layouts), 1 + rows % 5);
                let most = params(&lists);
                let size = StepSize { rows, stored_blocks, backward: true };
                let formula = Engine::bytes(&net, size, (slots, most), layouts);
                let before = current(&gpu).asked;
                let slots = u32::try_from(slots).unwrap();
                let engine = Engine::new(&net, &lists, size, (slots, most)).unwrap();
                let made = current(&gpu).asked - before;
                // Segments come with the first pack.
                let segments = 2 * layouts * rows * size_of::<Segment>();
                let host = Stepper::<Paper>::host_bytes(size);
                assert_eq!(made + segments + host, formula, "{name}, {size:?}, {layouts} layouts");
                drop(engine);
                assert_eq!(current(&gpu).asked, before, "everything is given back");
                checked += 1;
            }
            let forward = StepSize { rows, stored_blocks: 0, backward: false };
            let before = current(&gpu).asked;
            let _stepper = Stepper::new(&net, forward).unwrap();
            let formula = Stepper::bytes(&net, forward, 0);
            let made = current(&gpu).asked - before;
            assert_eq!(
                made + Stepper::<Paper>::host_bytes(forward),
                formula,
                "{name}, {forward:?}"
            );
        }
    }
    assert!(checked >= 30, "{checked}");
}

/// Pieces of up to `longest` tokens in a pack of at most `rows` rows, some with a shared prefix, users of all layouts.
fn some_pack(seed: u32, engine: &Engine<'_, Paper>, rows: usize) -> Packer {
    let draw = |i: u32, below: usize| philox([seed, 1], [i, 0, 0, 0])[0] as usize % below;
    let (tokens, layouts) = (vec![0u32; POSITIONS], engine.lists.lists().len());
    let mut packer = Packer::new(seed.is_multiple_of(2));
    packer.clear();
    for user in 0.. {
        let longest = 2 + draw(2 * user, POSITIONS - 2);
        let len = |i: u32| 2 + draw(1000 * user + i, longest);
        let pieces: Vec<Piece<'_>> = (0..1 + u32::try_from(draw(2 * user + 1, 9)).unwrap())
            .map(|i| Piece::supervised(&tokens[..len(i).min(POSITIONS)], 1 + draw(i, len(i) - 1)))
            .collect();
        let own: usize = pieces.iter().map(|piece| piece.rows.len()).sum();
        if packer.rows() + own > rows {
            return packer;
        }
        let slot = Slot(user % engine.slabs.num_slots());
        packer.add(&Share {
            adapter: Some(engine.segment(slot, slot)),
            layout: user as usize % layouts,
            pieces: &pieces,
            weight: 1.0,
            first_token: 0,
        });
    }
    packer
}

#[test]
fn no_pack_takes_more_than_the_forecast() {
    for (name, layouts) in [("llama_tied", 1), ("llama_untied", 2), ("gpt2", 2)] {
        let source = source(name);
        let (spec, lists) = (source.spec(), lists(source.spec(), layouts));
        let (most, slots, mut packs) = (params(&lists), 5, 0);
        for rows in [64, 640, 1500] {
            let size = StepSize { rows, stored_blocks: 1, backward: true };
            let forecast = training((spec, POSITIONS), &lists, size, (slots, most)).unwrap();
            let gpu = paper();
            let net = Network::outline(gpu.clone(), spec, POSITIONS).unwrap();
            let mut engine = Engine::new(&net, &lists, size, (slots, most)).unwrap();
            for seed in 0..20 {
                let packer = some_pack(seed, &engine, rows);
                if packer.rows() > 0 {
                    engine.train(&packer).unwrap();
                    packs += 1;
                }
                let held = gpu.device().tally().peak.held;
                let said = forecast.total();
                assert!(held <= said, "{name}, {rows} rows: {held} of {said}");
            }
            let slab = granted(slots as usize * most * 4);
            assert_eq!(forecast.adapters, 2 * slab);
            assert!((2 * slab..2 * slab + 4096).contains(&forecast.optimiser), "{forecast:?}");
        }
        assert!(packs >= 40, "{packs}");
    }
}

#[test]
fn sections_are_what_they_say() {
    let spec = BaseSpec { layers: 6, ..source("llama_tied").spec().clone() };
    let lists = lists(&spec, 2);
    let of = |stored_blocks, rows, slots| -> Forecast {
        let size = StepSize { rows, stored_blocks, backward: true };
        training((&spec, POSITIONS), &lists, size, (slots, params(&lists))).unwrap()
    };
    let none = of(0, 1500, 4);
    let mut before = none;
    // A block stored instead of recomputed changes the activations alone, the more the more are stored.
    for stored in 1..spec.layers {
        let now = of(stored, 1500, 4);
        assert_eq!(Forecast { activations: none.activations, ..now }, none);
        // The last block is kept anyway, and the last but one needs no second set.
        let same = stored + 1 == spec.layers;
        assert_eq!(now.activations > before.activations, !same, "{stored}");
        before = now;
    }
    let more = of(0, 1500, 400);
    assert_eq!(
        (more.base, more.activations, more.tables),
        (none.base, none.activations, none.tables)
    );
    assert!(more.adapters > none.adapters && more.optimiser > none.optimiser);
    let gpu = paper();
    let mut tables = DeviceBatch::alloc(&gpu, 1500).unwrap();
    let empty = current(&gpu).held;
    tables.upload(&gpu, Packer::new(false).batch()).unwrap();
    assert_eq!(current(&gpu).held, empty, "a pack without adapters has no segments");
    assert!(none.tables > empty - paper_opened(), "{none:?}");
    assert!(none.workspace > 32 << 20, "the library's is among it");
}

fn paper_opened() -> usize {
    current(&paper()).held
}

#[test]
fn prediction_has_its_cache_and_its_shelf() {
    let source = source("llama_untied");
    let (spec, lists) = (source.spec(), lists(source.spec(), 1));
    let of = |rows, cache, slots| -> Forecast {
        prediction((spec, POSITIONS), &lists, (rows, cache), (slots, params(&lists))).unwrap()
    };
    let scores = of(256, 0, 16);
    let writes = of(256, 4096, 16);
    let cache = spec.layers * granted(4096 * 2 * spec.kv_heads * spec.head_dim * 2);
    assert_eq!(writes.activations - scores.activations, cache);
    assert_eq!((scores.optimiser, scores.adapters), (0, granted(16 * params(&lists) * 4)));
    assert_eq!(of(256, 0, 0).adapters, 0);
    assert!(of(1, 0, 1).total() < scores.total());
}

#[test]
fn sums_between_gpus_have_their_buffer() {
    let options = NcclOptions::new(8);
    assert_eq!(options.gathered_bytes((4, 2), 1000), 8 * 1000 * 4);
    assert_eq!(options.gathered_bytes((4, 2), 0), 8 * 4, "a value of each is always gathered");
    // A bucket that is larger goes in pieces.
    assert_eq!(options.gathered_bytes((4, 2), 1 << 30), 64 << 20);
    assert_eq!(options.gathered_bytes((5, 3), 1 << 30), (64 << 20) / 60 * 60);
    let source = source("llama_untied");
    let lists = lists(source.spec(), 1);
    let of = |lora_rank, ranks| gathered((&lists.lists()[0], lora_rank), (8, ranks));
    // Below 1 MiB an adapter is one bucket; of 8 shards a rank of three has three.
    let len = lists.lists()[0].params(3);
    assert!(len * size_of::<f32>() < 1 << 20);
    assert_eq!(of(3, 2), granted(8 * len * size_of::<f32>()));
    assert_eq!(of(3, 3), granted(9 * len * size_of::<f32>()));
    assert_eq!(of(20_000, 2), 64 << 20, "blocks of more than the buffer holds at once");
}
