//! A's record, and everybody's, in many compositions: one hash.

use crate::users::{MAX_LORA_RANK, draw, examples, job, jobs, lora, shuffled};
use crate::world::{BASES, Composition, EVERYBODY, RULES, Record, World, alone, differing};
use std::collections::BTreeSet;
use trainer::ids::UserId;
use trainer::pack::{Piece, chunks};
use trainer::stage::trainee::Job;

fn pick(jobs: &[Job], indices: &[usize]) -> Vec<Job> {
    indices.iter().map(|&i| jobs[i].clone()).collect()
}

/// Who takes part, in which order, and how: the list, one thing changed at a time, then mixtures.
fn compositions(all: &[Job]) -> Vec<(Vec<Job>, Composition)> {
    let wide = Composition::WIDE;
    let mut list: Vec<(Vec<Job>, Composition)> = vec![
        (pick(all, &[0]), wide),
        (pick(all, &[0]), Composition { threads: 4, stored_blocks: 1, ..Composition::NARROW }),
        (pick(all, &[0, 1]), wide),
        (pick(all, &[2, 0]), Composition { slots: 2, rows: RULES.chunk_rows, ..wide }),
        (all.to_vec(), wide),
        (all.iter().rev().cloned().collect(), wide),
        (pick(all, &shuffled(all.len(), 1)), wide),
    ];
    let everybody = [
        Composition::NARROW,
        Composition { slots: 4, rows: RULES.chunk_rows, ..wide },
        Composition { slots: 4, rows: 100, threads: 1, ..wide },
        Composition { rows: RULES.chunk_rows, ..wide },
        Composition { stored_blocks: 0, ..wide },
        Composition { stored_blocks: 1, ..wide },
        Composition { threads: 1, ..wide },
        Composition { threads: 4, ..wide },
        Composition { ranks: 2, ..wide },
        Composition { ranks: 3, slots: 4, ..wide },
        Composition { ranks: 4, rows: 64, threads: 1, ..wide },
    ];
    list.extend(everybody.map(|c| (all.to_vec(), c)));
    for seed in 0..8 {
        let mut order = shuffled(all.len(), 100 + seed);
        order.retain(|&i| i == 0 || draw(seed, u32::try_from(i).unwrap(), 3) == 0);
        let c = Composition {
            slots: 1 + draw(seed, 1000, 9),
            rows: RULES.chunk_rows + draw(seed, 1001, 300) as usize,
            stored_blocks: draw(seed, 1002, 3) as usize,
            threads: 1 + draw(seed, 1003, 4) as usize,
            ranks: 1 + draw(seed, 1004, 4) as usize,
        };
        list.push((pick(all, &order), c));
    }
    list
}

fn everybody_alike(name: &'static str) {
    let (world, reference) = (World::open(name), alone(name));
    let list = compositions(&jobs(&world, EVERYBODY));
    let (a, mut hashes) =
        (UserId::new("A"), BTreeSet::from([reference[&UserId::new("A")].clone()]));
    for (jobs, c) in &list {
        let records = world.train(jobs, c);
        assert_eq!(records.len(), jobs.len());
        let others = differing(&records, reference);
        assert!(others.is_empty(), "{name}: {} users, {c:?}: {others:?} differ", jobs.len());
        hashes.insert(records[&a].clone());
    }
    assert_eq!(hashes.len(), 1, "{name}: A in {} compositions: {hashes:?}", list.len());
    assert!(list.len() >= 26, "{}", list.len());
}

#[test]
fn llama_users_get_the_same_bytes_in_every_composition() {
    everybody_alike("llama_tied");
}

#[test]
fn gpt2_users_get_the_same_bytes_in_every_composition() {
    everybody_alike("gpt2");
}

#[test]
fn the_data_of_others_does_not_matter() {
    for name in BASES {
        let (world, reference) = (World::open(name), alone(name));
        for round in 1..4u32 {
            let mut jobs = jobs(&world, 12);
            for (i, other) in (0..).zip(&mut jobs).skip(1) {
                // Other tokens, other numbers of items, other adapters.
                let at = round * 1000 + i;
                other.examples = examples(at, 1 + draw(at, 0, 9), draw(at, 1, 15));
                other.lora = lora(&world, 1 + draw(at, 2, u32::try_from(MAX_LORA_RANK).unwrap()));
                other.recipe.epochs = 1 + draw(at, 3, 3);
            }
            jobs.rotate_left(round as usize * 4);
            let mut records =
                world.train(&jobs, &Composition { slots: 5, rows: 200, ..Composition::WIDE });
            let others: Vec<_> = differing(&records, reference);
            assert_eq!(others.len(), 11, "{name}: the others' data were to change");
            records.retain(|user, _| user.as_str() == "A");
            assert_eq!(differing(&records, reference), [], "{name}, round {round}");
        }
    }
}

#[test]
fn the_suite_tests_what_it_says() {
    for name in BASES {
        let (world, reference) = (World::open(name), alone(name));
        let a = job(&world, 0);
        let batch = &a.examples[..a.recipe.batch_size as usize];
        let pieces: Vec<_> =
            batch.iter().map(|e| Piece::supervised(&e.tokens, e.prompt_len)).collect();
        assert!(chunks(&pieces, RULES.chunk_rows, true).len() > 2, "A has no long micro-batch");
        let shares = |share| trainer::pack::rows_of(&pieces, share);
        assert!(shares(true) < shares(false), "A has no prefix to share");
        assert!(reference.values().all(|r| matches!(r, Record::Done(_))), "{name}: {reference:?}");
        let distinct: BTreeSet<_> = reference.values().collect();
        assert_eq!(distinct.len(), EVERYBODY as usize, "{name}: two users have the same adapter");
        let early = jobs(&world, EVERYBODY).iter().filter(|j| j.recipe.early_stop.enabled).count();
        assert!(early > 5, "{early} users stop early");
    }
}

#[test]
fn seed_and_id_matter() {
    let (world, reference) = (World::open("llama_tied"), alone("llama_tied"));
    let mut jobs = jobs(&world, 4);
    jobs[0].seed += 1;
    jobs[1].user = UserId::new("somebody else");
    let records = world.train(&jobs, &Composition::WIDE);
    let differ: Vec<_> = differing(&records, reference);
    assert_eq!(differ, [UserId::new("A"), UserId::new("somebody else")]);
}

/// Stopped after some users, the rest trained by another run with other sizes: nobody's bytes tell.
#[test]
fn a_stop_and_a_second_run_do_not_matter() {
    for name in BASES {
        let (world, reference) = (World::open(name), alone(name));
        let all = jobs(&world, 16);
        for stop_after in [1, 5, 11] {
            let first = world.stopped(
                all.clone(),
                &Composition { slots: 4, ..Composition::WIDE },
                stop_after,
            );
            assert!((stop_after..16).contains(&first.len()), "{}", first.len());
            let names: BTreeSet<UserId> =
                world.store(std::slice::from_ref(&first)).into_keys().collect();
            let rest: Vec<Job> = all.iter().filter(|j| !names.contains(&j.user)).cloned().collect();
            let second =
                world.outcomes(rest, &Composition { slots: 3, rows: 90, ..Composition::WIDE });
            let records = world.store(&[first, second]);
            assert_eq!(records.len(), all.len());
            assert_eq!(differing(&records, reference), [], "{name}, stopped after {stop_after}");
        }
    }
}
