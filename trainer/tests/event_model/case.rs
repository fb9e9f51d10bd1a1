//! Event models, windows and users made of counter-based random numbers, for the engine and for the oracle alike.

use crate::oracle::{Oracle, Window};
use candle_core::DType;
use kernels::classify::Row;
use kernels::cpu::CpuBuf;
use kernels::lora::Segment;
use kernels::random::philox;
use kernels::{Backend, Cpu};
use trainer::lora::{AdapterSpec, SiteList, SiteLists, Target, WholeTensor};
use trainer::model::event::{
    Combine, EventNetwork, EventSpec, EventTable, History, MASKED, Places, Prediction, Product,
};
use trainer::pack::{ClassLoss, Packer, Piece, Share};

/// Number `i` of a stream, in `0..n`.
pub(crate) fn draw(stream: u32, i: usize, n: usize) -> u32 {
    let word = philox([stream, 0x0E7E], [u32::try_from(i).unwrap(), 0, 0, 0])[0];
    word % u32::try_from(n).unwrap()
}

/// Numbers in `-size..size`, whose low bits an `f32` holds.
pub(crate) fn noise(stream: u32, n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|i| (draw(stream, i, 1 << 16) as f32 / 32_768.0 - 1.0) * size).collect()
}

pub(crate) fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// The smallest of everything; each test's models differ from it.
pub(crate) fn plain() -> EventSpec {
    EventSpec {
        columns: vec![6, 7, 11],
        intents: 5,
        window: 8,
        hidden: 16,
        layers: 1,
        heads: 2,
        intermediate: 24,
        combine: Combine::Concat,
        history: History::Last,
        product: Product::Elementwise,
        head_hidden: 9,
        prediction: Prediction::Scalar,
        norm_eps: 1e-5,
    }
}

/// Every option both ways, one and three blocks, windows of one event and of eight and more, three and five columns.
pub(crate) fn specs() -> Vec<(&'static str, EventSpec)> {
    let plain = plain();
    let five = vec![6, 7, 11, 4, 3];
    vec![
        ("plain", plain.clone()),
        ("three blocks", EventSpec { layers: 3, ..plain.clone() }),
        ("one event", EventSpec { window: 1, layers: 3, ..plain.clone() }),
        (
            "one event, mean, sum",
            EventSpec { window: 1, history: History::Mean, combine: Combine::Sum, ..plain.clone() },
        ),
        (
            "five columns of unequal width, mean",
            EventSpec {
                columns: five.clone(),
                hidden: 22,
                history: History::Mean,
                layers: 2,
                ..plain.clone()
            },
        ),
        (
            "five columns summed, outer product",
            EventSpec {
                columns: five.clone(),
                combine: Combine::Sum,
                product: Product::Outer,
                ..plain.clone()
            },
        ),
        (
            "prediction layer",
            EventSpec { prediction: Prediction::Linear, layers: 3, ..plain.clone() },
        ),
        (
            "everything, long windows",
            EventSpec {
                columns: five,
                window: 20,
                layers: 3,
                combine: Combine::Sum,
                history: History::Mean,
                product: Product::Outer,
                prediction: Prediction::Linear,
                ..plain.clone()
            },
        ),
        (
            "more intents than events, one head",
            EventSpec {
                intents: 19,
                columns: vec![3, 2, 4],
                heads: 1,
                layers: 3,
                window: 20,
                ..plain
            },
        ),
    ]
}

/// A model with its table of events.
pub(crate) struct Model {
    pub(crate) spec: EventSpec,
    pub(crate) net: EventNetwork<Cpu>,
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
                (true, _) => (1.0, 0.3),
                (_, "intent.slope") => (0.25, 0.2),
                // Uniform of a variance of one over the inputs; tables and vectors of 0.5.
                _ if place.dims.len() == 2 && !place.name.starts_with("columns") => {
                    (0.0, (3.0 / place.dims[1] as f32).sqrt())
                }
                _ => (0.0, 0.5),
            };
            let values = noise(i, place.range().len(), size);
            for (to, x) in params[place.range()].iter_mut().zip(values) {
                *to = middle + x;
            }
        }
        let mut net = EventNetwork::new(Cpu, spec.clone()).unwrap();
        net.load(&params).unwrap();
        let mut table = EventTable::new(spec.columns.len());
        let rows = (0..40).flat_map(|i| {
            let value = move |(c, &n): (usize, &u32)| draw(seed + 7, i * 8 + c, n as usize);
            spec.columns.iter().enumerate().map(value).collect::<Vec<u32>>()
        });
        assert_eq!(table.add(&rows.collect::<Vec<u32>>()), Some(0));
        Self { spec: spec.clone(), net, params, table }
    }

    pub(crate) fn oracle(&self, dtype: DType) -> Oracle {
        self.oracle_at(&widen(&self.params), dtype)
    }

    pub(crate) fn oracle_at(&self, params: &[f64], dtype: DType) -> Oracle {
        Oracle::new(&self.spec, self.net.places().tensors(), params, dtype)
    }

    /// The events of a window as the oracle takes them.
    fn events(&self, rows: &[u32]) -> Vec<Vec<u32>> {
        let event = |&row: &u32| {
            let mut event = self.table.row(row).unwrap().to_vec();
            if row & MASKED != 0 {
                event[2] = self.spec.columns[2];
            }
            event
        };
        rows.iter().map(event).collect()
    }
}

/// One window of a case.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) rows: Vec<u32>,
    /// Rows whose event is asked for, and what it is.
    pub(crate) hidden: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    pub(crate) loss: Option<ClassLoss>,
}

impl Sample {
    /// A window of `len` events and the intent that follows.
    pub(crate) fn intent(model: &Model, seed: u32, len: usize) -> Self {
        let rows = (0..len).map(|i| draw(seed, i, model.table.len())).collect();
        let targets = vec![draw(seed, 1000, model.spec.intents)];
        Self { rows, hidden: Vec::new(), targets, loss: None }
    }

    /// A window some of whose events are hidden; `None` where chance hides none.
    pub(crate) fn events(model: &Model, seed: u32, len: usize) -> Option<Self> {
        let mut sample = Self::intent(model, seed, len);
        let chosen = |i: &u32| draw(seed, 2000 + *i as usize, 3) == 0;
        sample.hidden = (0..u32::try_from(len).unwrap()).filter(chosen).collect();
        let event = |&i: &u32| model.table.row(sample.rows[i as usize]).unwrap()[2];
        sample.targets = sample.hidden.iter().map(event).collect();
        for &i in &sample.hidden {
            sample.rows[i as usize] |= MASKED;
        }
        (!sample.hidden.is_empty()).then_some(sample)
    }

    pub(crate) fn with_loss(self, row: Row, teacher: Vec<f32>) -> Self {
        Self { loss: Some(ClassLoss { row, teacher }), ..self }
    }

    pub(crate) fn piece(&self, spec: &EventSpec) -> Piece<'_> {
        let all = spec.history == History::Mean || !self.hidden.is_empty();
        Piece {
            rows: &self.rows,
            first_output: if all { 0 } else { self.rows.len() - 1 },
            targets: &self.targets,
            loss: self.loss.as_ref(),
            only: (!self.hidden.is_empty()).then_some(self.hidden.as_slice()),
        }
    }

    pub(crate) fn window(&self, model: &Model, weight: f32, user: Option<usize>) -> Window {
        let plain = |&target: &u32| Row::hard(target, weight);
        let losses = match &self.loss {
            Some(loss) => vec![Row { weight, ..loss.row }],
            None => self.targets.iter().map(plain).collect(),
        };
        Window {
            events: model.events(&self.rows),
            hidden: self.hidden.clone(),
            losses,
            teacher: self.loss.as_ref().map_or_else(Vec::new, |l| l.teacher.clone()),
            user,
        }
    }
}

/// Windows of all lengths up to the model's, each kind of loss among them if `kinds`.
pub(crate) fn samples(model: &Model, seed: u32, count: usize, kinds: bool) -> Vec<Sample> {
    let n = model.spec.intents;
    let one = |i: usize| {
        let at = seed + 50 + u32::try_from(i).unwrap();
        let longest = i.is_multiple_of(3);
        let window = model.spec.window;
        let len = if longest { window } else { 1 + draw(at, 3000, window) as usize };
        let sample = Sample::intent(model, at, len);
        let teacher = noise(at + 10_000, n, 3.0);
        let (label, came) = (draw(at, 4000, n), sample.targets[0]);
        match if kinds { i % 9 } else { 0 } {
            1 => sample.with_loss(Row::focal(came, 1.0, 2.0), Vec::new()),
            2 => sample.with_loss(Row::distill(came, 1.0, 0.4, 2.0), teacher),
            3 => sample.with_loss(Row::retain(None, 1.0), teacher),
            4 => sample.with_loss(Row::forget(None, 1.0, 0.7, 9.0), teacher),
            5 => sample.with_loss(Row::forget(None, 1.0, 1.3, 0.01), teacher),
            6 => sample.with_loss(Row::retain(Some(label), 1.0), Vec::new()),
            7 => sample.with_loss(Row::forget(Some(label), 1.0, 0.5, f32::INFINITY), Vec::new()),
            _ => sample,
        }
    };
    (0..count).map(one).collect()
}

/// A pack of windows of nobody.
pub(crate) fn pack(model: &Model, samples: &[Sample], weight: f32) -> Packer {
    let pieces: Vec<Piece<'_>> = samples.iter().map(|s| s.piece(&model.spec)).collect();
    let mut packer = Packer::new(false);
    packer.add(&Share { adapter: None, layout: 0, pieces: &pieces, weight, first_token: 0 });
    packer
}

/// A user of a pack.
pub(crate) struct Person {
    pub(crate) layout: usize,
    pub(crate) lora_rank: u32,
    pub(crate) samples: Vec<Sample>,
    pub(crate) own: Vec<f32>,
    pub(crate) weight: f32,
}

/// Users of every kind of list on a model, their parameters in one slab.
pub(crate) struct People {
    pub(crate) lists: SiteLists,
    pub(crate) head_after: Vec<Option<usize>>,
    pub(crate) people: Vec<Person>,
}

/// Elements between two users in the slab, which nobody may touch.
const GAP: usize = 32;
const SCALE: f32 = 1.5;

fn head(spec: &EventSpec) -> Vec<WholeTensor> {
    let whole = |name: &str, dims: &[usize]| WholeTensor { name: name.into(), dims: dims.into() };
    vec![whole("intent.table", &[spec.intents, spec.hidden]), whole("intent.bias", &[spec.intents])]
}

impl People {
    /// `count` users in turn with: all products and the head; attention alone; the head alone; the MLP and the head.
    pub(crate) fn new(model: &Model, count: usize) -> Self {
        let (spec, trunk) = (&model.spec, model.spec.trunk());
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
            SiteList::of_base(&trunk, &Target::parse_all(&names).unwrap()).unwrap()
        };
        let kinds = [
            of(&["c_attn", "c_proj", "c_fc"]).with_whole(head(spec)),
            of(&["c_attn"]),
            SiteList::whole_only(head(spec)).unwrap(),
            of(&["c_fc", "mlp_c_proj"]).with_whole(head(spec)),
        ];
        let mut lists = SiteLists::new(&trunk);
        for (number, list) in kinds.iter().enumerate() {
            assert_eq!(lists.add(list).unwrap(), number);
        }
        let person = |i: usize| {
            let (seed, layout) = (500 * u32::try_from(i + 1).unwrap(), i % kinds.len());
            let lora_rank = 1 + draw(seed, 0, 4);
            let own = noise(seed + 1, kinds[layout].params(lora_rank as usize), 0.4);
            let samples = samples(model, seed, 1 + i % 4, i % 3 < 2);
            let weight = 1.0 / samples.len() as f32;
            Person { layout, lora_rank, samples, own, weight }
        };
        let head_after = kinds.iter().map(|l| (!l.whole().is_empty()).then(|| l.units()));
        Self { head_after: head_after.collect(), people: (0..count).map(person).collect(), lists }
    }

    pub(crate) fn spec(lora_rank: u32) -> AdapterSpec {
        let alpha = f64::from(SCALE) * f64::from(lora_rank);
        AdapterSpec { lora_rank, alpha, rslora: false, dropout: 0.0, targets: Vec::new() }
    }

    fn offsets(&self) -> Vec<usize> {
        let step = |at: &mut usize, p: &Person| {
            let offset = *at;
            *at += p.own.len() + GAP;
            Some(offset)
        };
        self.people.iter().scan(GAP, step).collect()
    }

    /// The slab with those of `who`; NaN where nobody is, and where those are who are not in the pack.
    pub(crate) fn slab(&self, who: &[usize]) -> CpuBuf<f32> {
        let offsets = self.offsets();
        let len = offsets.last().unwrap() + self.people.last().unwrap().own.len() + GAP;
        let mut slab = vec![f32::NAN; len];
        for &i in who {
            let own = &self.people[i].own;
            slab[offsets[i]..offsets[i] + own.len()].copy_from_slice(own);
        }
        CpuBuf::from(slab)
    }

    /// A pack of the users `who`, in that order.
    pub(crate) fn pack(&self, model: &Model, who: &[usize], share_prefixes: bool) -> Packer {
        let offsets = self.offsets();
        let mut packer = Packer::new(share_prefixes);
        for &i in who {
            let person = &self.people[i];
            let pieces: Vec<Piece<'_>> =
                person.samples.iter().map(|s| s.piece(&model.spec)).collect();
            let segment = Segment {
                row_start: 0,
                rows: 0,
                param_offset: offsets[i] as u64,
                grad_offset: offsets[i] as u64,
                lora_rank: person.lora_rank,
                scale: Self::spec(person.lora_rank).scale(),
                dropout: 0.0,
                step: 0,
                key: [0; 2],
            };
            packer.add(&Share {
                adapter: Some(segment),
                layout: person.layout,
                pieces: &pieces,
                weight: person.weight,
                first_token: 0,
            });
        }
        packer
    }

    /// The gradients of `who` from the slab, after a look at what must not have been written.
    pub(crate) fn split(&self, slab: &CpuBuf<f32>, who: &[usize]) -> Vec<Vec<f32>> {
        let mut all = vec![0.0; slab.len()];
        Cpu.read(slab, 0, &mut all).unwrap();
        let offsets = self.offsets();
        let own = |&i: &usize| {
            let range = offsets[i]..offsets[i] + self.people[i].own.len();
            let gradient = all[range.clone()].to_vec();
            all[range].fill(0.0);
            gradient
        };
        let split = who.iter().map(own).collect();
        assert!(all.iter().all(|x| x.to_bits() == 0), "written where nobody of the pack is");
        split
    }

    /// All users' windows, for an oracle that gets all users.
    pub(crate) fn windows(&self, model: &Model) -> Vec<Window> {
        let of = |(i, p): (usize, &Person)| {
            let window = move |s: &Sample| s.window(model, p.weight, Some(i));
            p.samples.iter().map(window).collect::<Vec<_>>()
        };
        self.people.iter().enumerate().flat_map(of).collect()
    }

    pub(crate) fn join(&self, oracle: &mut Oracle) {
        for p in &self.people {
            let sites = &self.lists.lists()[p.layout];
            let scale = Self::spec(p.lora_rank).scale();
            oracle.user(sites, p.lora_rank as usize, scale, &widen(&p.own));
        }
    }
}
