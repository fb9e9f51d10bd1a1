//! Answers to a user's queries depend on that user's adapter, prompts and random counters alone.

use crate::users::{MAX_LORA_RANK, draw, lora, shuffled, tokens};
use crate::world::{BASES, RULES, World, sets, threads};
use std::collections::BTreeMap;
use trainer::ids::UserId;
use trainer::lora::{AdapterSpec, SiteList, initialise};
use trainer::stage::individual::PackRules;
use trainer::stage::predict::{Asker, Oracle, Own};
use trainer::stage::sample::Sampling;

const LABELS: [u32; 5] = [3, 10, 11, 50, 96];
const ASKERS: u32 = 12;
const GREEDY: Sampling =
    Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, max_new_tokens: 6, seed: 4 };
const SAMPLED: Sampling = Sampling { temperature: 1.5, top_k: 40, top_p: 0.95, ..GREEDY };

/// An adapter of all targets far from its beginning: both halves drawn.
pub(crate) fn adapter(world: &World, i: u32, lora_rank: u32) -> Vec<f32> {
    drawn(&world.sites, i, lora_rank)
}

fn drawn(sites: &SiteList, i: u32, lora_rank: u32) -> Vec<f32> {
    let mut params = vec![0.0; sites.params(lora_rank as usize)];
    initialise(sites, lora_rank as usize, [i, 9], &mut params).unwrap();
    let value = |k: u32| (f32::from(u16::try_from(draw(i, k, 2001)).unwrap()) - 1000.0) * 1e-4;
    for (k, p) in (0..).zip(&mut params) {
        if p.to_bits() == 0 {
            *p = value(k);
        }
    }
    params
}

/// The adapter of user `i`: all targets, or some; one user's in the upper block alone, as an import may be.
fn own(world: &World, i: u32, lora_rank: u32) -> Own {
    let lora = AdapterSpec {
        targets: sets(&world.targets)[i as usize % 4].clone(),
        ..lora(world, lora_rank)
    };
    let mut sites = SiteList::of_base(world.base.spec(), &lora.targets).unwrap();
    if i == 6 {
        let upper = sites.entries().iter().map(|e| e.spec).filter(|s| s.layer == 1).collect();
        sites = SiteList::new(upper).unwrap();
    }
    Own { params: drawn(&sites, i, lora_rank), lora, sites }
}

/// User `i` with a profile before every prompt; every fifth asks the bare base.
fn asker(world: &World, i: u32) -> Asker {
    let lora_rank = 1 + draw(i, 0, u32::try_from(MAX_LORA_RANK).unwrap());
    let profile = tokens(i, 999, draw(i, 1, 14));
    let prompt = |q| {
        let mut all = profile.clone();
        all.extend(tokens(i, q, 1 + draw(i, 10 + q, 12)));
        all
    };
    Asker {
        user: UserId::new(&format!("asker {i}")),
        adapter: (i % 5 != 4).then(|| own(world, i, lora_rank)),
        prompts: (0..1 + draw(i, 2, 7)).map(prompt).collect(),
    }
}

/// Everything a user gets: probabilities' bits, greedy answers, sampled answers.
type Answers = (Vec<Vec<u32>>, Vec<Vec<u32>>, Vec<Vec<u32>>);

#[derive(Debug, Clone, Copy)]
struct Batching {
    rows: usize,
    cache_rows: usize,
    slots: u32,
    threads: usize,
    share_prefixes: bool,
}

const WIDE: Batching =
    Batching { rows: 2048, cache_rows: 4096, slots: 64, threads: 2, share_prefixes: true };
const NARROW: Batching = Batching { rows: 40, cache_rows: 90, slots: 1, threads: 1, ..WIDE };

fn probabilities(world: &World, askers: &[Asker], b: Batching) -> Vec<Vec<Vec<f32>>> {
    let rules = PackRules { share_prefixes: b.share_prefixes, ..RULES };
    // No cache is needed to score.
    let mut oracle = Oracle::new(&world.net, (b.rows, 0), b.slots, rules).unwrap();
    oracle.branch_probabilities(askers, &[&LABELS]).unwrap()
}

fn ask(world: &World, askers: &[Asker], b: Batching) -> BTreeMap<UserId, Answers> {
    threads(b.threads).install(|| {
        let scores = probabilities(world, askers, b);
        let rules = PackRules { share_prefixes: b.share_prefixes, ..RULES };
        let mut oracle = Oracle::new(&world.net, (b.rows, b.cache_rows), b.slots, rules).unwrap();
        let greedy = oracle.generate(askers, &GREEDY, &[2]).unwrap();
        let sampled = oracle.generate(askers, &SAMPLED, &[2, 7, 30]).unwrap();
        let bits = |p: &Vec<f32>| p.iter().map(|x| x.to_bits()).collect();
        let of = |i: usize| -> Answers {
            (scores[i].iter().map(bits).collect(), greedy[i].clone(), sampled[i].clone())
        };
        askers.iter().enumerate().map(|(i, a)| (a.user.clone(), of(i))).collect()
    })
}

#[test]
fn a_users_answers_are_the_same_alone_and_among_others() {
    for name in BASES {
        let world = World::open(name);
        let all: Vec<Asker> = (0..ASKERS).map(|i| asker(&world, i)).collect();
        let mut alone = BTreeMap::new();
        for asker in &all {
            alone.extend(ask(&world, std::slice::from_ref(asker), NARROW));
        }
        let shuffled: Vec<Asker> =
            shuffled(all.len(), 3).into_iter().map(|i| all[i].clone()).collect();
        let batchings = [
            WIDE,
            NARROW,
            Batching { threads: 1, ..WIDE },
            Batching { threads: 4, ..WIDE },
            Batching { slots: 3, ..WIDE },
            Batching { rows: 57, cache_rows: 200, slots: 2, ..WIDE },
            Batching { rows: 200, cache_rows: 333, threads: 4, ..WIDE },
        ];
        for batching in batchings {
            for askers in [&all, &shuffled] {
                let together = ask(&world, askers, batching);
                for (user, answers) in &together {
                    assert!(alone[user] == *answers, "{name}, {user}, {batching:?}");
                }
                assert_eq!(together.len(), alone.len());
            }
        }
        let pair = ask(&world, &all[..2], WIDE);
        assert!(pair.iter().all(|(user, answers)| alone[user] == *answers), "{name}: two askers");
    }
}

#[test]
fn answers_depend_on_adapter_and_counters() {
    let world = World::open("llama_tied");
    let one = asker(&world, 1);
    let answers = |a: &Asker| ask(&world, std::slice::from_ref(a), NARROW)[&a.user].clone();
    let own = answers(&one);
    let bare = answers(&Asker { adapter: None, ..one.clone() });
    assert_ne!(own.0, bare.0, "the adapter does not matter");
    let namesake = answers(&Asker { user: UserId::new("namesake"), ..one });
    assert_eq!((&own.0, &own.1), (&namesake.0, &namesake.1), "the name decides a score");
    assert_ne!(own.2, namesake.2, "two users draw from one stream");
}

#[test]
fn shared_prefixes_change_rounding_alone() {
    for name in BASES {
        let world = World::open(name);
        let all: Vec<Asker> = (0..ASKERS).map(|i| asker(&world, i)).collect();
        let shared = probabilities(&world, &all, WIDE);
        let plain = probabilities(&world, &all, Batching { share_prefixes: false, ..WIDE });
        let difference = shared
            .iter()
            .flatten()
            .flatten()
            .zip(plain.iter().flatten().flatten())
            .fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        // A probability below one; logits agree to 2e-5 in the golden cases.
        assert!(difference < 1e-5, "{name}: {difference}");
        let sum: f32 = shared[0][0].iter().sum();
        assert!((sum - 1.0).abs() < 1e-5);
    }
}
