//! The forecast of event models: formulas against what is allocated, and no step above what was said.

use super::{Paper, current, paper};
use kernels::classify::Row;
use kernels::gpu::dry::granted;
use kernels::lora::Segment;
use kernels::optim::Update;
use kernels::random::philox;
use std::sync::atomic::AtomicBool;
use trainer::comm::{HostSync, Solo};
use trainer::config::{EarlyStop, Recipe, ScheduleKind};
use trainer::ids::Slot;
use trainer::lora::{SiteList, SiteLists, Target, WholeTensor};
use trainer::model::activations::StepSize;
use trainer::model::event::{
    Combine, EventNetwork, EventSpec, EventStepper, EventTable, History, Prediction, Product,
};
use trainer::pack::{ClassLoss, Packer, Piece, Share};
use trainer::prompt::Example;
use trainer::stage::engine::Engine;
use trainer::stage::events::Events;
use trainer::stage::forecast::{answers, tuning, whole, whole_sums};
use trainer::stage::population::PopulationStep;
use trainer::stage::sums::{ByHost, OnGpu, ShardSums};
use trainer::stage::whole::{Keep, Reconstruction, WholeTask, WholeTrainer};
use trainer::store::State;

const WINDOW: usize = 8;

/// The default's options, and all others with widths that no 16-byte access divides.
fn specs() -> [EventSpec; 2] {
    let plain = EventSpec {
        columns: vec![6, 7, 11],
        intents: 6,
        window: WINDOW,
        hidden: 24,
        layers: 3,
        heads: 3,
        intermediate: 48,
        combine: Combine::Concat,
        history: History::Last,
        product: Product::Elementwise,
        head_hidden: 16,
        prediction: Prediction::Scalar,
        norm_eps: 1e-5,
    };
    let odd = EventSpec {
        columns: vec![6, 7, 13, 4, 3],
        intents: 19,
        hidden: 30,
        intermediate: 37,
        combine: Combine::Sum,
        history: History::Mean,
        product: Product::Outer,
        head_hidden: 9,
        prediction: Prediction::Linear,
        ..plain.clone()
    };
    [plain, odd]
}

/// Sites of people's own parts, with changes of the intent table in the first specification.
fn lists(spec: &EventSpec) -> SiteLists {
    let trunk = spec.trunk();
    let targets = Target::parse_all(&["c_attn", "c_fc"]).unwrap();
    let mut sites = SiteList::of_base(&trunk, &targets).unwrap();
    if spec.history == History::Last {
        let (n, d) = (spec.intents, spec.hidden);
        let tensor =
            |name: &str, dims: &[usize]| WholeTensor { name: name.into(), dims: dims.into() };
        sites = sites.with_whole(vec![tensor("table", &[n, d]), tensor("bias", &[n])]);
    }
    let mut lists = SiteLists::new(&trunk);
    lists.add(&sites).unwrap();
    lists
}

fn params(lists: &SiteLists) -> usize {
    lists.lists()[0].params(3)
}

fn table(spec: &EventSpec) -> EventTable {
    let mut table = EventTable::new(spec.columns.len());
    assert_eq!(table.add(&vec![1; 5 * spec.columns.len()]), Some(0));
    table
}

fn recipe() -> Recipe {
    Recipe {
        lora_rank: 3,
        alpha: 3.0,
        rslora: false,
        dropout: 0.0,
        targets: Vec::new(),
        learning_rate: 1e-3,
        weight_decay: 0.0,
        betas: [0.9, 0.999],
        eps: 1e-8,
        clip_norm: 1.0,
        schedule: ScheduleKind::Constant,
        warmup_ratio: 0.0,
        epochs: 2,
        batch_size: 1500,
        max_length: 0,
        early_stop: EarlyStop { enabled: true, held_out: 0.1, patience: 5 },
    }
}

fn net(gpu: &Paper, spec: &EventSpec, frozen: usize) -> EventNetwork<Paper> {
    EventNetwork::partly(gpu.clone(), spec.clone(), frozen).unwrap()
}

/// `EventStepper::bytes` and `WholeTrainer::bytes` say to the byte what is allocated: on the device, and the host's.
#[test]
fn formulas_are_the_tally() {
    for spec in specs() {
        let gpu = paper();
        for frozen in [0, 2] {
            let mut net = net(&gpu, &spec, frozen);
            for (rows, backward) in [(8, true), (160, false), (2049, true)] {
                let stored_blocks = if backward { spec.layers } else { 0 };
                let size = StepSize { rows, stored_blocks, backward };
                let host = EventStepper::host_bytes(&net, size);
                let formula = EventStepper::bytes(&net, size, 1);
                let before = current(&gpu).asked;
                let stepper = EventStepper::new(&net, size).unwrap();
                let made = current(&gpu).asked - before;
                // Segments come with the first pack.
                let segments = 2 * rows * size_of::<Segment>();
                assert_eq!(made + segments + host, formula, "{size:?}, {frozen} frozen");
                drop(stepper);
                assert_eq!(current(&gpu).asked, before, "everything is given back");
                if backward {
                    let formula = WholeTrainer::bytes(&net, rows, 3);
                    // The sum and three shards' gradients are the host's.
                    let host = host + 4 * net.places().trained() * size_of::<f32>();
                    let table = table(&spec);
                    let trainer = WholeTrainer::new(&mut net, &table, rows).unwrap();
                    let made = current(&gpu).asked - before;
                    let step = size_of::<Update>() + size_of::<f32>();
                    assert_eq!(made + host, formula + step, "{size:?}, {frozen} frozen");
                    drop(trainer);
                }
            }
        }
    }
}

struct Silent;

impl Keep for Silent {
    fn step(&mut self, _: PopulationStep) {}

    fn epoch(&mut self, _: u32, _: Option<f64>) {}

    fn every(&self) -> u32 {
        1
    }

    fn checkpoint(&mut self, _: &State) -> trainer::stage::Result<()> {
        Ok(())
    }
}

fn draw(stream: u32, i: u32, below: usize) -> usize {
    philox([stream, 77], [i, 0, 0, 0])[0] as usize % below
}

/// Windows of one to [`WINDOW`] events.
fn windows(stream: u32, n: u32) -> Vec<Example> {
    let of = |i| {
        let len = if stream == 0 { 1 } else { 1 + draw(stream, i, WINDOW) };
        Example { tokens: vec![0; len + 1], prompt_len: len }
    };
    (0..n).map(of).collect()
}

/// What a run of the stage takes, step after step with validation, is never more than was said, and not far below.
#[test]
fn no_step_of_a_whole_model_takes_more() {
    for (spec, frozen) in specs().iter().flat_map(|spec| [(spec, 0), (spec, 2)]) {
        for rows in [64, 1500] {
            let forecast = whole((spec, frozen), &recipe(), (rows, true)).unwrap();
            let mut most = 0;
            for stream in 0..4 {
                let gpu = paper();
                let mut net = net(&gpu, spec, frozen);
                let trained = net.places().trained();
                let all = vec![0.0; net.places().len()];
                let state = State::partly(all, net.places().frozen());
                let table = table(spec);
                let mut trainer = WholeTrainer::new(&mut net, &table, rows).unwrap();
                let windows = windows(stream, 1500);
                let taught = ClassLoss {
                    row: Row::distill(0, 1.0, 0.5, 2.0),
                    teacher: vec![0.5; spec.intents],
                };
                let losses = vec![taught; if stream == 1 { windows.len() } else { 0 }];
                let reconstruction = Some(Reconstruction { mask_ratio: 0.9, lambda: 0.5 });
                let task = WholeTask {
                    windows: &windows,
                    losses: &losses,
                    validation: &windows[..99],
                    recipe: &recipe(),
                    reconstruction: reconstruction.filter(|_| stream != 1),
                    key: [stream, 5],
                    num_shards: 1 + stream,
                };
                let (comm, stop) = (Solo::new(), AtomicBool::new(false));
                let on_device = stream == 3;
                let mut sums: Box<dyn ShardSums<Paper>> = if on_device {
                    Box::new(OnGpu::new(1 + stream))
                } else {
                    Box::new(ByHost::new(HostSync::new(1 + stream)))
                };
                trainer.run((&comm, &mut *sums), &task, state, &mut Silent, &stop).unwrap();
                let beside =
                    if on_device { whole_sums((spec, frozen), (1 + stream, 1)) } else { 0 };
                assert_eq!(beside > 0, on_device);
                most = most.max(gpu.device().tally().peak.held - beside);
                assert_eq!(forecast.adapters, granted(trained * size_of::<f32>()));
            }
            let said = forecast.total();
            assert!(most <= said, "{rows} rows, {frozen} frozen: {most} of {said}");
            assert!(most + (1 << 20) > said, "{rows} rows, {frozen} frozen: {most} of {said}");
        }
    }
}

fn window(example: &Example) -> Piece<'_> {
    Piece::supervised(&example.tokens, example.prompt_len)
}

/// A pack of some people's windows of at most `rows` rows.
fn some_pack(
    stream: u32,
    (engine, of_mean): (&Engine<'_, Paper, Events<'_, Paper>>, bool),
    rows: usize,
) -> Packer {
    let mut packer = Packer::new(false);
    packer.clear();
    for user in 0.. {
        let windows = windows(1 + 31 * stream + user, 1 + user % 9);
        let of = |w| {
            let piece = window(w);
            Piece { first_output: if of_mean { 0 } else { piece.first_output }, ..piece }
        };
        let pieces: Vec<Piece<'_>> = windows.iter().map(of).collect();
        let own: usize = pieces.iter().map(|piece| piece.rows.len()).sum();
        if packer.rows() + own > rows {
            return packer;
        }
        let slot = Slot(user % engine.slabs.num_slots());
        let adapter = Some(engine.segment(slot, slot));
        let (layout, weight, first_token) = (0, 1.0, 0);
        packer.add(&Share { adapter, layout, pieces: &pieces, weight, first_token });
    }
    packer
}

#[test]
fn no_pack_of_people_takes_more() {
    for spec in specs() {
        let lists = lists(&spec);
        let (most, slots) = (params(&lists), 5);
        for (rows, backward) in [(64, true), (1500, true), (1500, false)] {
            let said = match backward {
                true => tuning(&spec, &lists, rows, (slots, most)).unwrap(),
                false => answers(&spec, &lists, rows, (slots, most)).unwrap(),
            };
            let gpu = paper();
            let net = net(&gpu, &spec, 0);
            let stored_blocks = if backward { spec.layers } else { 0 };
            let size = StepSize { rows, stored_blocks, backward };
            let table = table(&spec);
            let events = Events::new((&net, &table), &lists, size).unwrap();
            let mut engine = Engine::of(events, &lists, (slots, most)).unwrap();
            let of_mean = spec.history == History::Mean;
            for stream in 0..20 {
                let packer = some_pack(stream, (&engine, of_mean), rows);
                assert!(packer.rows() > 0);
                if backward {
                    engine.train(&packer).unwrap();
                } else {
                    engine.probabilities(&packer).unwrap();
                    engine.logits(&packer).unwrap();
                }
            }
            let held = gpu.device().tally().peak.held;
            let total = said.total();
            assert!(held <= total, "{rows} rows: {held} of {total}");
            assert!(held + (3 << 20) > total, "{rows} rows: {held} of {total}");
            let slab = granted(slots as usize * most * 4);
            assert_eq!(said.adapters, 2 * slab);
            assert!((2 * slab..2 * slab + 4096).contains(&said.optimiser), "{said:?}");
        }
    }
}

#[test]
fn sections_are_what_they_say() {
    let [spec, _] = specs();
    let of = |frozen, rows| whole((&spec, frozen), &recipe(), (rows, false)).unwrap();
    let all = of(0, 2048);
    let part = of(2, 2048);
    // Frozen blocks have no gradient, no moments and no stored activations; their parameters stay.
    assert!(part.adapters < all.adapters && part.optimiser < all.optimiser);
    assert!(part.activations < all.activations, "{part:?} {all:?}");
    assert!(all.base >= net(&paper(), &spec, 0).places().len() * size_of::<f32>());
    let more = of(0, 8192);
    assert_eq!((more.base, more.adapters, more.optimiser), (all.base, all.adapters, all.optimiser));
    assert!(more.activations > 3 * all.activations && more.tables > all.tables);
    let (lists, bare) = (lists(&spec), SiteLists::new(&spec.trunk()));
    let asked = answers(&spec, &bare, 2048, (1, 1)).unwrap();
    let own = answers(&spec, &lists, 2048, (258, params(&lists))).unwrap();
    assert!(own.adapters > asked.adapters && own.tables > asked.tables);
    assert_eq!((own.base, own.activations), (asked.base, asked.activations));
    assert!(asked.activations < all.activations);
    assert!(tuning(&spec, &lists, 2048, (0, params(&lists))).is_err(), "no slot");
}
