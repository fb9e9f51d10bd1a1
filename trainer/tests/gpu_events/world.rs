//! Small event models on two backends, windows with every kind of loss, and users of all kinds.

use crate::device::TestDevice;
use emulator::Mode;
use half::bf16;
use kernels::classify::Row;
use kernels::gpu::Gpu;
use kernels::lora::Segment;
use kernels::random::philox;
use kernels::{Backend, Cpu, Ops};
use std::ops::Range;
use trainer::ids::{Slot, UserId};
use trainer::lora::{AdapterSpec, SiteList, SiteLists, Target, WholeTensor};
use trainer::model::activations::StepSize;
use trainer::model::event::{
    Combine, EventNetwork, EventSpec, EventTable, History, MASKED, Places, Prediction, Product,
};
use trainer::pack::{ClassLoss, Packer, Piece, Share};
use trainer::prompt::Example;
use trainer::stage::engine::Engine;
use trainer::stage::events::Events;

/// The emulator, or a GPU with `MYRIAD_TEST_DEVICE=cuda`.
pub(crate) type Emulated = Gpu<TestDevice>;

pub(crate) fn emulated(mode: Mode, faults: &[&str]) -> Emulated {
    Gpu::new(TestDevice::open(mode, faults)).unwrap()
}

/// Rows that any pack of these tests has room for.
pub(crate) const ROWS: usize = 192;

/// Number `i` of a stream, in `0..n`.
pub(crate) fn draw(stream: u32, i: usize, n: usize) -> u32 {
    let word = philox([stream, 0x60_e7], [u32::try_from(i).unwrap(), 0, 0, 0])[0];
    word % u32::try_from(n).unwrap()
}

/// Numbers in `-size..size` that `bf16` holds.
pub(crate) fn noise(stream: u32, n: usize, size: f32) -> Vec<f32> {
    let unit = |i| f32::from(u16::try_from(draw(stream, i, 1 << 12)).unwrap()) / 2048.0 - 1.0;
    (0..n).map(|i| bf16::from_f32(size * unit(i)).to_f32()).collect()
}

fn width(n: usize) -> f32 {
    f32::from(u16::try_from(n).unwrap())
}

/// The default's options, and all others with widths that no 16-byte access divides.
pub(crate) fn specs() -> [(&'static str, EventSpec); 2] {
    let plain = EventSpec {
        columns: vec![6, 7, 11],
        intents: 6,
        window: 8,
        hidden: 24,
        layers: 2,
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
        window: 7,
        hidden: 30,
        intermediate: 37,
        combine: Combine::Sum,
        history: History::Mean,
        product: Product::Outer,
        head_hidden: 9,
        prediction: Prediction::Linear,
        ..plain.clone()
    };
    [("plain", plain), ("odd", odd)]
}

/// Parameters of a model, and the events that its packs name.
pub(crate) struct Model {
    pub(crate) spec: EventSpec,
    pub(crate) params: Vec<f32>,
    pub(crate) table: EventTable,
}

impl Model {
    /// Parameters wide enough that every part of the model matters, none of them at its start.
    pub(crate) fn new(spec: &EventSpec, seed: u32) -> Self {
        let places = Places::new(spec);
        let mut params = vec![f32::NAN; places.len()];
        for (i, place) in (seed * 100..).zip(places.tensors()) {
            let one = place.name.contains("norm") && place.name.ends_with("weight");
            let (middle, size) = match (one, place.name.as_str()) {
                (true, _) => (1.0, 0.25),
                // Near one: where a unit's input lies within its error of the bend, both sides are nearly alike.
                (_, "intent.slope") => (0.875, 0.0625),
                // As wide as histories: what all intents have in common cancels in the gradient of a history.
                (_, "intent.table") => (0.0, 1.75),
                _ if place.dims.len() == 2 && !place.name.starts_with("columns") => {
                    (0.0, (3.0 / width(place.dims[1])).sqrt())
                }
                _ => (0.0, 0.5),
            };
            for (to, x) in params[place.range()].iter_mut().zip(noise(i, place.range().len(), size))
            {
                *to = bf16::from_f32(middle + x).to_f32();
            }
        }
        let mut table = EventTable::new(spec.columns.len());
        let rows = (0..40).flat_map(|i| {
            let value = move |(c, &n): (usize, &u32)| draw(seed + 7, i * 8 + c, n as usize);
            spec.columns.iter().enumerate().map(value).collect::<Vec<u32>>()
        });
        assert_eq!(table.add(&rows.collect::<Vec<u32>>()), Some(0));
        Self { spec: spec.clone(), params, table }
    }

    pub(crate) fn net<B: Ops>(&self, backend: B) -> EventNetwork<B> {
        self.partly(backend, 0)
    }

    pub(crate) fn partly<B: Ops>(&self, backend: B, frozen: usize) -> EventNetwork<B> {
        let mut net = EventNetwork::partly(backend, self.spec.clone(), frozen).unwrap();
        net.load(&self.params).unwrap();
        net
    }

    /// Two windows, to ask several people about.
    pub(crate) fn same_windows(&self) -> Vec<Sample> {
        Sample::intents(self, 900, 2)
    }

    pub(crate) fn cpu(&self) -> EventNetwork<Cpu> {
        self.net(Cpu)
    }
}

/// One window.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    rows: Vec<u32>,
    /// Rows whose event is asked for.
    hidden: Vec<u32>,
    targets: Vec<u32>,
    loss: Option<ClassLoss>,
}

impl Sample {
    fn new(model: &Model, seed: u32) -> Self {
        let window = model.spec.window;
        let len = if seed.is_multiple_of(3) { window } else { 1 + draw(seed, 99, window) as usize };
        let rows = (0..len).map(|i| draw(seed, i, model.table.len())).collect();
        let targets = vec![draw(seed, 1000, model.spec.intents)];
        Self { rows, hidden: Vec::new(), targets, loss: None }
    }

    /// The kinds of loss in turn: of tuning, of distilling, and of unlearning.
    fn intent(model: &Model, seed: u32) -> Self {
        let (sample, n) = (Self::new(model, seed), model.spec.intents);
        let (came, teacher) = (sample.targets[0], noise(seed + 10_000, n, 3.0));
        let (row, teacher) = match seed % 6 {
            1 => (Row::focal(came, 1.0, 2.0), Vec::new()),
            2 => (Row::distill(came, 1.0, 0.5, 2.0), teacher),
            3 => (Row::retain(None, 1.0), teacher),
            4 => (Row::forget(None, 1.0, 0.75, 9.0), teacher),
            5 => (Row::forget(Some(came), 1.0, 1.5, f32::INFINITY), Vec::new()),
            _ => return sample,
        };
        Self { loss: Some(ClassLoss { row, teacher }), ..sample }
    }

    /// The first of the window's events is hidden, and every third.
    fn events(model: &Model, seed: u32) -> Self {
        let mut sample = Self::new(model, seed);
        sample.hidden = (0..u32::try_from(sample.rows.len()).unwrap()).step_by(3).collect();
        let event = |&i: &u32| model.table.row(sample.rows[i as usize]).unwrap()[2];
        sample.targets = sample.hidden.iter().map(event).collect();
        for &i in &sample.hidden {
            sample.rows[i as usize] |= MASKED;
        }
        sample
    }

    pub(crate) fn intents(model: &Model, seed: u32, count: u32) -> Vec<Self> {
        (seed..seed + count).map(|i| Self::intent(model, i)).collect()
    }

    pub(crate) fn hidden(model: &Model, seed: u32, count: u32) -> Vec<Self> {
        (seed..seed + count).map(|i| Self::events(model, i)).collect()
    }

    fn piece(&self, spec: &EventSpec) -> Piece<'_> {
        let all = spec.history == History::Mean || !self.hidden.is_empty();
        Piece {
            rows: &self.rows,
            first_output: if all { 0 } else { self.rows.len() - 1 },
            targets: &self.targets,
            loss: self.loss.as_ref(),
            only: (!self.hidden.is_empty()).then_some(self.hidden.as_slice()),
        }
    }

    /// The window's loss, and its teacher's logits, zeros where it has none.
    pub(crate) fn row(&self, intents: usize) -> (Row, Vec<f32>) {
        let Some(ClassLoss { row, teacher }) = &self.loss else {
            return (Row::hard(self.targets[0], 1.0), vec![0.0; intents]);
        };
        let teacher = if teacher.is_empty() { vec![0.0; intents] } else { teacher.clone() };
        (Row { target: if row.soft == 0 { row.target } else { 0 }, ..*row }, teacher)
    }

    pub(crate) fn example(&self) -> Example {
        let tokens = self.rows.iter().chain(&self.targets).copied().collect();
        Example { tokens, prompt_len: self.rows.len() }
    }
}

/// A pack of windows of nobody.
pub(crate) fn pack(model: &Model, samples: &[Sample]) -> Packer {
    let pieces: Vec<Piece<'_>> = samples.iter().map(|s| s.piece(&model.spec)).collect();
    let weight = width(samples.len()).recip();
    let mut packer = Packer::new(false);
    packer.add(&Share { adapter: None, layout: 0, pieces: &pieces, weight, first_token: 0 });
    packer
}

/// Somebody with an adapter, changes of the intent table, or both.
pub(crate) struct User {
    pub(crate) name: UserId,
    pub(crate) lora: AdapterSpec,
    pub(crate) layout: usize,
    pub(crate) params: Vec<f32>,
    pub(crate) samples: Vec<Sample>,
}

pub(crate) struct World {
    pub(crate) model: Model,
    pub(crate) lists: SiteLists,
    pub(crate) users: Vec<User>,
}

fn kinds(spec: &EventSpec) -> [SiteList; 3] {
    let whole = |name: &str, dims: &[usize]| WholeTensor { name: name.into(), dims: dims.into() };
    let head = || {
        let table = whole("intent.table.change", &[spec.intents, spec.hidden]);
        vec![table, whole("intent.bias.change", &[spec.intents])]
    };
    let of = |names: &[&str]| {
        SiteList::of_base(&spec.trunk(), &Target::parse_all(names).unwrap()).unwrap()
    };
    [
        of(&["c_attn", "c_proj", "c_fc"]).with_whole(head()),
        SiteList::whole_only(head()).unwrap(),
        of(&["c_fc", "mlp_c_proj"]),
    ]
}

impl World {
    /// Seven users: each kind of own part twice and more, LoRA ranks 1 to 7, one to five windows.
    pub(crate) fn new(spec: &EventSpec) -> Self {
        let (model, kinds) = (Model::new(spec, 3), kinds(spec));
        let mut lists = SiteLists::new(&spec.trunk());
        let layouts = kinds.each_ref().map(|list| lists.add(list).unwrap());
        let user = |i: u32| {
            let kind = i as usize % kinds.len();
            let lora_rank = 1 + draw(40, i as usize, 7);
            let alpha = 1.5 * f64::from(lora_rank);
            let targets = kinds[kind].targets();
            User {
                name: UserId::new(&format!("user {i}")),
                lora: AdapterSpec { lora_rank, alpha, rslora: false, dropout: 0.0, targets },
                layout: layouts[kind],
                params: noise(50 + i, kinds[kind].params(lora_rank as usize), 0.3),
                samples: Sample::intents(&model, 60 + 7 * i, 1 + (i + 2) % 5),
            }
        };
        let users = (0..7).map(user).collect();
        Self { model, lists, users }
    }

    pub(crate) fn everybody(&self) -> Vec<usize> {
        (0..self.users.len()).collect()
    }

    pub(crate) fn sites(&self, user: usize) -> &SiteList {
        &self.lists.lists()[self.users[user].layout]
    }

    pub(crate) fn most(&self) -> usize {
        self.users.iter().map(|u| u.params.len()).max().unwrap()
    }

    pub(crate) fn engine<'a, B: Ops>(
        &'a self,
        net: &'a EventNetwork<B>,
        stored_blocks: usize,
    ) -> Engine<'a, B, Events<'a, B>> {
        let size = StepSize { rows: ROWS, stored_blocks, backward: true };
        let events = Events::new((net, &self.model.table), &self.lists, size).unwrap();
        // One slot more than users, which nobody trains.
        let slots = u32::try_from(self.users.len()).unwrap() + 1;
        let mut engine = Engine::of(events, &self.lists, (slots, self.most())).unwrap();
        for (user, slot) in self.users.iter().zip((0..).map(Slot)) {
            engine.load(slot, &user.params).unwrap();
        }
        engine
    }

    /// These users in this order.
    pub(crate) fn pack<B: Ops>(
        &self,
        engine: &Engine<'_, B, Events<'_, B>>,
        who: &[usize],
        (dropout, step): (f32, u32),
    ) -> Packer {
        self.pack_some(engine, who, (dropout, step), None)
    }

    /// The same with window `only` of each alone, its weight as among the others.
    pub(crate) fn pack_some<B: Ops>(
        &self,
        engine: &Engine<'_, B, Events<'_, B>>,
        who: &[usize],
        (dropout, step): (f32, u32),
        only: Option<usize>,
    ) -> Packer {
        let mut packer = Packer::new(false);
        for &i in who {
            let (user, number) = (&self.users[i], u32::try_from(i).unwrap());
            let asked = only.map_or(0..user.samples.len(), |at| at..at + 1);
            let pieces: Vec<Piece<'_>> =
                user.samples[asked].iter().map(|s| s.piece(&self.model.spec)).collect();
            let segment = Segment {
                lora_rank: user.lora.lora_rank,
                scale: user.lora.scale(),
                dropout,
                step,
                key: [number, 0x0d0d],
                ..engine.segment(Slot(number), Slot(number))
            };
            packer.add(&Share {
                adapter: Some(segment),
                layout: user.layout,
                pieces: &pieces,
                weight: width(user.samples.len()).recip(),
                first_token: 0,
            });
        }
        packer
    }
}

/// Losses of each user in a pack, in its order, and every slot's gradient, its whole capacity.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Measured {
    pub(crate) losses: Vec<Vec<f32>>,
    pub(crate) gradients: Vec<Vec<f32>>,
}

pub(crate) fn gradients<B: Ops>(engine: &Engine<'_, B, Events<'_, B>>) -> Vec<Vec<f32>> {
    let read = |slot| {
        let mut gradient = vec![f32::NAN; engine.slabs.capacity()];
        engine.read_gradient(slot, &mut gradient).unwrap();
        gradient
    };
    (0..engine.slabs.num_slots()).map(Slot).map(read).collect()
}

/// One forward and backward from fresh slots.
pub(crate) fn measure<B: Ops>(
    world: &World,
    net: &EventNetwork<B>,
    who: &[usize],
    (dropout, stored_blocks): (f32, usize),
) -> trainer::stage::Result<Measured> {
    let mut engine = world.engine(net, stored_blocks);
    let packer = world.pack(&engine, who, (dropout, 3));
    let losses = engine.train(&packer)?;
    let of = |range: Range<usize>| losses[range].to_vec();
    let losses = (0..packer.num_shares()).map(|share| of(packer.targets(share))).collect();
    Ok(Measured { losses, gradients: gradients(&engine) })
}

pub(crate) fn upload<B: Backend>(backend: &B, values: &[f32]) -> B::Buf<f32> {
    let mut buf = backend.alloc(values.len()).unwrap();
    backend.write(&mut buf, 0, values).unwrap();
    buf
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}
