//! A tiny base, ways to train on it, and what the store then holds.

use crate::users::{MAX_LORA_RANK, jobs};
use kernels::Cpu;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use trainer::ids::{UserId, UserKey};
use trainer::lora::{SiteList, SiteLists, Target};
use trainer::model::activations::StepSize;
use trainer::model::cache::MappedBase;
use trainer::model::network::Network;
use trainer::shard::{CostModel, plan};
use trainer::stage::engine::Engine;
use trainer::stage::individual::{End, PackRules, Watch, run};
use trainer::stage::trainee::{Job, Outcome, Trainee};
use trainer::store::{AdapterRef, Commit, Outcome as Committed, Provenance, Status, Store, Writer};

pub(crate) const BASES: [&str; 2] = ["llama_tied", "gpt2"];

/// Rows of a chunk, part of the arithmetic; user A's micro-batches take more, no single example does.
pub(crate) const RULES: PackRules = PackRules { chunk_rows: 40, share_prefixes: true };

/// Users of the large runs.
pub(crate) const EVERYBODY: u32 = 64;

pub(crate) struct World {
    pub(crate) base: MappedBase,
    pub(crate) targets: Vec<Target>,
    /// Sites of everything adapted.
    pub(crate) sites: SiteList,
    /// Those, and those of fewer targets.
    pub(crate) lists: SiteLists,
    pub(crate) net: Network<Cpu>,
    /// Folder of the base's own files and, beside it, of the prepared ones.
    pub(crate) folder: tempfile::TempDir,
}

impl World {
    /// A golden base with every product adapted, by some users fewer.
    pub(crate) fn open(name: &'static str) -> Self {
        let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("base");
        std::fs::create_dir(&own).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(golden.join("base").join(file), own.join(file)).unwrap();
        }
        let source = trainer::model::weights::open(&own).unwrap();
        let base =
            MappedBase::load(&Cpu, source.as_ref(), &folder.path().join("prepared")).unwrap();
        let names: &[&str] = if name == "gpt2" {
            &["c_attn", "c_proj", "c_fc"]
        } else {
            &["q", "k", "v", "o", "gate", "up", "down"]
        };
        let targets = Target::parse_all(names).unwrap();
        let sites = SiteList::of_base(base.spec(), &targets).unwrap();
        let net = network(&base);
        let lists = SiteLists::of_targets(base.spec(), sets(&targets).iter().map(Vec::as_slice));
        Self { lists: lists.unwrap(), base, targets, sites, net, folder }
    }

    pub(crate) fn engine(&self, c: &Composition) -> Engine<'_, Cpu> {
        let size = StepSize { rows: c.rows, stored_blocks: c.stored_blocks, backward: true };
        let most = self.sites.params(MAX_LORA_RANK);
        Engine::new(&self.net, &self.lists, size, (c.slots, most)).unwrap()
    }

    /// The rank's part of the individual stage.
    pub(crate) fn outcomes(&self, jobs: Vec<Job>, c: &Composition) -> Vec<Outcome> {
        let (end, left) = self.stage(jobs, c, usize::MAX);
        assert_eq!(end, End::Complete);
        left.outcomes
    }

    /// The same with a stop asked for when `stop_after` users have left; who left until then.
    pub(crate) fn stopped(
        &self,
        jobs: Vec<Job>,
        c: &Composition,
        stop_after: usize,
    ) -> Vec<Outcome> {
        let (end, left) = self.stage(jobs, c, stop_after);
        assert_eq!(end, End::Stopped);
        left.outcomes
    }

    /// Optimiser steps that a user makes.
    pub(crate) fn steps(&self, job: Job, c: &Composition) -> usize {
        self.stage(vec![job], c, usize::MAX).1.steps
    }

    fn stage(&self, jobs: Vec<Job>, c: &Composition, stop_after: usize) -> (End, Left) {
        let mut left = Left { stop_after, ..Left::default() };
        let stop = Arc::clone(&left.stop);
        let end = threads(c.threads).install(|| {
            let mut engine = self.engine(c);
            let end = run(&mut engine, RULES, &mut jobs.into_iter(), &mut left, &stop).unwrap();
            let all_free = engine.slabs.num_free() == c.slots as usize;
            assert!(all_free || end == End::Stopped, "a slot was not given back");
            end
        });
        (end, left)
    }

    /// The individual stage as the launcher runs it, `c.ranks` ranks one after another.
    pub(crate) fn train(&self, jobs: &[Job], c: &Composition) -> Records {
        let model = CostModel { per_token: 40_000, per_pair: 768 };
        let cost = |j: &Job| model.user(j.examples.iter().map(|e| e.tokens.len()), j.recipe.epochs);
        let costs: Vec<(UserKey, u64)> = jobs.iter().map(|j| (j.user.key(), cost(j))).collect();
        // One rank takes the users as they come, so that their order is the test's.
        let shards = match c.ranks {
            1 => vec![(0..jobs.len()).collect()],
            ranks => plan(&costs, ranks).unwrap().by_rank,
        };
        let of = |shard: &Vec<usize>| shard.iter().map(|&i| jobs[i].clone()).collect();
        let ranks: Vec<_> = shards.iter().map(|shard| self.outcomes(of(shard), c)).collect();
        self.store(&ranks)
    }

    /// Commits what left on each rank, then reads the ranks' archives as one store.
    pub(crate) fn store(&self, ranks: &[Vec<Outcome>]) -> Records {
        let folder = tempfile::tempdir().unwrap();
        let mut users = Vec::new();
        for (rank, outcomes) in (0..).zip(ranks) {
            let mut writer = Writer::open(folder.path(), rank).unwrap();
            let provenances: Vec<Provenance> =
                outcomes.iter().map(|o| self.provenance(o)).collect();
            let commits: Vec<Commit<'_>> = outcomes
                .iter()
                .zip(&provenances)
                .map(|(outcome, provenance)| self.commit(outcome, provenance))
                .collect();
            if !commits.is_empty() {
                writer.commit_batch(&commits).unwrap();
            }
            users.extend(commits.iter().map(|c| c.user.clone()));
            writer.close().unwrap();
        }
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.users().len(), users.len(), "a user left twice");
        users.into_iter().map(|user| (user.clone(), Record::read(&store, &user))).collect()
    }

    fn provenance(&self, outcome: &Outcome) -> Provenance {
        let (steps, final_loss) = match outcome {
            Outcome::Trained { steps, final_loss, .. } => (*steps, Some(*final_loss)),
            Outcome::Quarantined { steps, .. } => (*steps, None),
        };
        let base_hash = self.base.hash().to_string();
        Provenance { base_hash, config_hash: "solo".into(), steps, final_loss }
    }

    fn commit<'a>(&'a self, outcome: &'a Outcome, provenance: &'a Provenance) -> Commit<'a> {
        let (user, outcome) = match outcome {
            Outcome::Trained { user, lora, params, .. } => {
                let (_, sites) = self.lists.find(&lora.targets).unwrap();
                (user, Committed::Adapter(AdapterRef { spec: lora, sites, params, provenance }))
            }
            Outcome::Quarantined { user, reason, .. } => (user, Committed::Quarantined { reason }),
        };
        Commit { user, generation: 1, outcome }
    }
}

pub(crate) fn network(base: &MappedBase) -> Network<Cpu> {
    Network::new(Cpu, base, 64).unwrap()
}

/// Sets of targets that users have: all, and some parts, one of them above attention alone.
pub(crate) fn sets(all: &[Target]) -> Vec<Vec<Target>> {
    let part = |keep: &[usize]| keep.iter().filter_map(|&i| all.get(i).copied()).collect();
    vec![all.to_vec(), part(&[0, 2]), part(&[all.len() - 1]), part(&[1, 3])]
}

pub(crate) fn threads(n: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap()
}

/// Everything that must not matter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Composition {
    pub(crate) slots: u32,
    /// Rows of a pack, at least those of a chunk.
    pub(crate) rows: usize,
    /// Blocks whose activations are kept, of two.
    pub(crate) stored_blocks: usize,
    pub(crate) threads: usize,
    pub(crate) ranks: usize,
}

impl Composition {
    /// Everybody in one pack.
    pub(crate) const WIDE: Self =
        Self { slots: 64, rows: 4096, stored_blocks: 2, threads: 2, ranks: 1 };
    /// One user at a time in the smallest pack.
    pub(crate) const NARROW: Self =
        Self { slots: 1, rows: 40, stored_blocks: 0, threads: 1, ranks: 1 };
}

/// A user's record in the store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Record {
    /// The payload: an adapter as a safetensors file.
    Done(Vec<u8>),
    Aside(String),
}

impl Record {
    fn read(store: &Store, user: &UserId) -> Self {
        match &store.users()[&user.key()].status {
            Status::Done => Self::Done(store.payload(&user.key()).unwrap()),
            Status::Quarantined { reason, .. } => Self::Aside(reason.clone()),
            Status::Forgotten => panic!("{user} forgotten"),
        }
    }
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Done(bytes) => write!(f, "{}", &blake3::hash(bytes).to_hex()[..16]),
            Self::Aside(reason) => write!(f, "put aside: {reason}"),
        }
    }
}

pub(crate) type Records = BTreeMap<UserId, Record>;

/// The comparison of this suite: users of `records` whose record in `reference` has other bytes, or none.
pub(crate) fn differing(records: &Records, reference: &Records) -> Vec<UserId> {
    assert!(!records.is_empty());
    let differs = |(user, record): &(&UserId, &Record)| reference.get(user) != Some(*record);
    records.iter().filter(differs).map(|(user, _)| user.clone()).collect()
}

/// Every user's record when trained alone, with nobody else in the process.
pub(crate) fn alone(name: &'static str) -> &'static Records {
    static ALONE: [OnceLock<Records>; 2] = [const { OnceLock::new() }; 2];
    let at = BASES.iter().position(|&b| b == name).unwrap();
    ALONE[at].get_or_init(|| {
        let world = World::open(name);
        alone_in(&world, &jobs(&world, EVERYBODY))
    })
}

/// The records of some users, each trained alone.
pub(crate) fn alone_in(world: &World, jobs: &[Job]) -> Records {
    let one = |job: &Job| world.outcomes(vec![job.clone()], &Composition::NARROW);
    world.store(&[jobs.iter().flat_map(one).collect()])
}

/// Keeps who left and counts steps; asks to stop.
#[derive(Default)]
struct Left {
    outcomes: Vec<Outcome>,
    steps: usize,
    stop_after: usize,
    stop: Arc<AtomicBool>,
}

impl Watch for Left {
    fn pack(&mut self, _: usize, _: usize, _: usize) {}
    fn step(&mut self, _: &Trainee, _: f32, _: f32) {
        self.steps += 1;
    }
    fn left(&mut self, outcome: Outcome) -> trainer::stage::Result<()> {
        self.outcomes.push(outcome);
        self.stop.store(self.outcomes.len() >= self.stop_after, Ordering::Relaxed);
        Ok(())
    }
}
