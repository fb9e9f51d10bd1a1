//! Users on a frozen event model: adapters, changes of the intent table, losses of their own; the bytes of each do not
//! depend on the company.

use crate::world::{Log, draw, fresh, recipe, spec};
use kernels::Cpu;
use kernels::classify::Row;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use trainer::ids::UserId;
use trainer::lora::{AdapterSpec, SiteList, SiteLists, Target, WholeTensor};
use trainer::model::activations::StepSize;
use trainer::model::event::{EventNetwork, EventSpec, EventTable, History};
use trainer::pack::ClassLoss;
use trainer::stage;
use trainer::stage::engine::Engine;
use trainer::stage::events::Events;
use trainer::stage::individual::{End, PackRules, Watch, run};
use trainer::stage::trainee::{Job, Outcome, Trainee};

const USERS: u32 = 24;
/// Rows of a chunk, part of the arithmetic.
const RULES: PackRules = PackRules { chunk_rows: 20, share_prefixes: true };

fn kinds(spec: &EventSpec) -> [SiteList; 3] {
    let whole = |name: &str, dims: &[usize]| WholeTensor { name: name.into(), dims: dims.into() };
    let head = || {
        let table = whole("intent.table", &[spec.intents, spec.hidden]);
        vec![table, whole("intent.bias", &[spec.intents])]
    };
    let of = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
        SiteList::of_base(&spec.trunk(), &Target::parse_all(&names).unwrap()).unwrap()
    };
    [
        of(&["c_attn", "mlp_c_proj"]).with_whole(head()),
        SiteList::whole_only(head()).unwrap(),
        of(&["c_fc"]),
    ]
}

fn job(spec: &EventSpec, i: u32) -> Job {
    let examples = Log::new(spec, 3 + draw(9, i, 9), 100 + i).windows;
    let list = &kinds(spec)[i as usize % 3];
    let lora_rank = 1 + draw(10, i, 4);
    let lora =
        AdapterSpec { lora_rank, alpha: 2.0, rslora: false, dropout: 0.1, targets: list.targets() };
    let teacher = |k: u32| (0..6).map(|n| draw(11 + i, 6 * k + n, 4) as f32).collect();
    let loss = |k: u32| match k % 3 {
        0 => ClassLoss::new(Row::hard(0, 1.0), &[]),
        1 => ClassLoss { row: Row::retain(None, 1.0), teacher: teacher(k) },
        _ => ClassLoss { row: Row::forget(None, 1.0, 0.5, 4.0), teacher: teacher(k) },
    };
    let losses = match i % 4 {
        1 => (0..).zip(&examples).map(|(k, _)| loss(k)).collect(),
        _ => Vec::new(),
    };
    let mut recipe = recipe();
    (recipe.epochs, recipe.batch_size, recipe.dropout) = (3, 4, 0.1);
    recipe.early_stop.enabled = i % 5 == 3;
    recipe.early_stop.held_out = 0.3;
    Job {
        user: UserId::new(&format!("user {i}")),
        examples,
        losses,
        of_mean: spec.history == History::Mean,
        lora,
        unusable: None,
        recipe,
        seed: 3,
        start: None,
    }
}

#[derive(Default)]
struct Left(BTreeMap<UserId, std::result::Result<(Vec<u32>, u32), String>>);

impl Watch for Left {
    fn pack(&mut self, _: usize, _: usize, _: usize) {}
    fn step(&mut self, _: &Trainee, _: f32, _: f32) {}
    fn left(&mut self, outcome: Outcome) -> stage::Result<()> {
        let (user, what) = match outcome {
            Outcome::Trained { user, params, final_loss, .. } => {
                let bits = params.iter().map(|p| p.to_bits()).collect();
                (user, Ok((bits, final_loss.to_bits())))
            }
            Outcome::Quarantined { user, reason, .. } => (user, Err(reason)),
        };
        assert!(self.0.insert(user, what).is_none(), "a user left twice");
        Ok(())
    }
}

struct World {
    spec: EventSpec,
    net: EventNetwork<Cpu>,
    table: EventTable,
    lists: SiteLists,
}

impl World {
    fn new(history: History) -> Self {
        let spec = EventSpec { history, ..spec() };
        let mut net = EventNetwork::new(Cpu, spec.clone()).unwrap();
        net.load(&fresh(&spec).params).unwrap();
        let mut lists = SiteLists::new(&spec.trunk());
        for list in kinds(&spec) {
            lists.add(&list).unwrap();
        }
        let table = Log::new(&spec, 1, 1).table;
        Self { spec, net, table, lists }
    }

    /// What becomes of users in so many slots, packs of so many rows, on so many threads.
    fn train(&self, jobs: Vec<Job>, (slots, rows, threads): (u32, usize, usize)) -> Left {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let size = StepSize { rows, stored_blocks: threads % 3, backward: true };
            let model = Events::new((&self.net, &self.table), &self.lists, size).unwrap();
            let most = self.lists.lists().iter().map(|l| l.params(4)).max().unwrap();
            let mut engine = Engine::of(model, &self.lists, (slots, most)).unwrap();
            let (mut left, stop) = (Left::default(), AtomicBool::new(false));
            let end = run(&mut engine, RULES, &mut jobs.into_iter(), &mut left, &stop).unwrap();
            assert_eq!(end, End::Complete);
            left
        })
    }
}

#[test]
fn a_user_has_the_same_bytes_alone_and_among_others() {
    for history in [History::Last, History::Mean] {
        let world = World::new(history);
        let jobs: Vec<Job> = (0..USERS).map(|i| job(&world.spec, i)).collect();
        let mut alone = Left::default();
        for job in &jobs {
            alone.0.extend(world.train(vec![job.clone()], (1, 20, 1)).0);
        }
        assert!(alone.0.values().all(|outcome| outcome.is_ok()), "everybody is trained");
        for setting in [(USERS, 4096, 1), (USERS, 4096, 4), (7, 60, 2), (1, 20, 2)] {
            assert!(world.train(jobs.clone(), setting).0 == alone.0, "{history:?}, {setting:?}");
            let mut reversed = jobs.clone();
            reversed.reverse();
            assert!(world.train(reversed, setting).0 == alone.0, "{history:?}, {setting:?}");
        }
        // Where the first epoch is one step of rate zero, early stopping may well choose that.
        for job in jobs.iter().filter(|job| !job.recipe.early_stop.enabled) {
            let (params, _) = alone.0[&job.user].as_ref().unwrap();
            let zeros = params.iter().filter(|&&bits| bits == 0).count();
            assert!(zeros < params.len() / 100, "{}: all of it was trained", job.user);
        }
    }
}

/// A user whose windows do not fit the model is put aside; the others have the bytes they have without.
#[test]
fn a_user_who_does_not_fit_is_put_aside_alone() {
    let world = World::new(History::Last);
    let jobs: Vec<Job> = (0..6).map(|i| job(&world.spec, i)).collect();
    let without = world.train(jobs.clone(), (6, 4096, 2));
    type Spoil = (&'static str, fn(&mut Job));
    let spoil: [Spoil; 9] = [
        ("an event that is none", |j| j.examples[1].tokens[0] = 60),
        ("an intent that is none", |j| *j.examples[1].tokens.last_mut().unwrap() = 6),
        ("a window too long", |j| {
            j.examples[1] = trainer::prompt::Example { tokens: vec![0; 8], prompt_len: 7 };
        }),
        ("no event", |j| {
            j.examples[1] = trainer::prompt::Example { tokens: vec![1], prompt_len: 0 };
        }),
        ("several intents", |j| j.examples[1].prompt_len = 1.min(j.examples[1].prompt_len - 1)),
        ("fewer losses than windows", |j| j.losses = vec![ClassLoss::new(Row::hard(0, 1.0), &[])]),
        ("a loss that is none", |j| {
            let row = Row::forget(Some(1), 1.0, -1.0, 1.0);
            j.losses = vec![ClassLoss { row, teacher: Vec::new() }; j.examples.len()];
        }),
        ("a teacher too short", |j| {
            let row = Row::retain(None, 1.0);
            j.losses = vec![ClassLoss { row, teacher: vec![0.0; 5] }; j.examples.len()];
        }),
        ("no teacher", |j| {
            let row = Row::retain(None, 1.0);
            j.losses = vec![ClassLoss { row, teacher: Vec::new() }; j.examples.len()];
        }),
    ];
    for (what, spoil) in spoil {
        let mut bad = job(&world.spec, 7);
        spoil(&mut bad);
        let mut with = jobs.clone();
        with.insert(3, bad.clone());
        let mut left = world.train(with, (4, 4096, 2));
        let reason = left.0.remove(&bad.user).unwrap();
        assert!(reason.is_err(), "{what}");
        assert!(left.0 == without.0, "{what}");
    }
}
