//! Passes without backward by attention kernels that the device brings along: which sequences they take, and that these
//! and the rest come out as the reference has them. On the emulator their place is taken by plain ones that refuse calls
//! against the contract; on a GPU, and built with feature `flash-attn`, candle-flash-attn's own run.

use super::bounds::bounds;
use super::run::{self, PLAIN, flash, flash_by, rounded};
use super::{MIXED, ODD, decoding, without, wrong};
use crate::attention_case::{self, Case, Group, heads};
use crate::device::TestDevice;
use crate::harness::{Emulated, fast};
use crate::naive::{Naive, numbers};
use crate::tolerance::same_bits;
use kernels::attention::flash::{Cut, Run, Tables};
use kernels::attention::{Attention, Sequence};
use kernels::error::Error;
use kernels::gpu::Gpu;
use std::sync::OnceLock;

fn device() -> &'static Emulated {
    static DEVICE: OnceLock<Emulated> = OnceLock::new();
    DEVICE.get_or_init(|| Gpu::new(TestDevice::open_flash()).unwrap())
}

fn cut(case: &Case) -> Cut {
    Cut::new(&case.sequences, &case.groups, &case.limits)
}

/// The output against the reference, and whose bits are those of the kernels of this crate: the rest's and no others'.
fn judge(case: Case, label: &str) {
    let case = rounded(case);
    let got = flash(device(), &case, PLAIN).unwrap();
    let truth = attention_case::run(&Naive, &case, true);
    assert_eq!(wrong("out", &got, &truth.out, &bounds(&case).out), None, "{label}");
    let (ours, _) = run::forward(device(), &case, PLAIN).unwrap();
    let (width, cut) = (case.heads.q_dim(), cut(&case));
    for s in &cut.rest {
        let rows = s.q_start as usize * width..(s.q_start + s.q_len) as usize * width;
        same_bits(label, &got[rows.clone()], &ours[rows]);
    }
}

/// Users of one sequence side by side, with a gap in the rows, beside groups that share a prefix.
const PACK: &[Group<'_>] =
    &[(0, &[(70, 1)]), (0, &[(3, 2)]), (9, &[(5, 1), (20, 3)]), (0, &[(130, 1)]), (0, &[(1, 1)])];

#[test]
fn runs_are_neighbours_and_the_rest_keeps_its_queries() {
    for last in [false, true] {
        let case = Case::new(heads(1, 1, 16), PACK, last);
        let cut = cut(&case);
        let (of, keys): (&dyn Fn(&Sequence) -> u32, _) =
            (&|s| s.q_len, |s: &Sequence| s.k_start + s.k_len);
        // Each group of `Case` begins with its prefix, here of no rows but for the third.
        let taken = [1, 3, 8, 10].map(|i| case.sequences[i]);
        let run = |first, a: &Sequence, b: &Sequence| Run {
            first,
            sequences: 2,
            longest_q: of(a).max(of(b)),
            longest_k: a.k_len.max(b.k_len),
        };
        assert_eq!(
            cut.runs,
            [run(0, &taken[0], &taken[1]), run(3, &taken[2], &taken[3])],
            "{last}"
        );
        let ends: Vec<u32> = [0, 1, 1, 2, 3, 3]
            .iter()
            .zip([false, false, true, false, false, true])
            .map(|(&i, end)| if end { keys(&taken[i]) } else { taken[i].k_start })
            .collect();
        assert_eq!(cut.k_starts, ends, "{last}");
        let left: Vec<u32> = cut.rest.iter().map(of).collect();
        let mut wanted: Vec<u32> = case.sequences.iter().map(of).collect();
        [1, 3, 8, 10].iter().for_each(|&i| wanted[i] = 0);
        assert_eq!(left, wanted, "{last}");
        assert!(cut.has_rest);
    }
}

/// Every cut of many packs, by what it promises: each query is once in a run or in the rest, and a run's tables say where
/// its sequences lie.
#[test]
fn every_query_is_taken_once() {
    let draw = |seed, n: u32| (numbers(seed, 1)[0].abs() * 1e4) as u32 % n;
    for seed in 0..300 {
        let mut groups: Vec<(u32, Vec<(u32, u32)>)> = Vec::new();
        for i in 0..1 + draw(seed * 100, 6) {
            let prefix = if draw(seed * 100 + 10 + i as u64, 3) == 0 { 4 } else { 0 };
            let members = (0..1 + draw(seed * 100 + 20 + i as u64, 3)).map(|k| {
                let keys = 1 + draw(seed * 100 + 30 + u64::from(9 * i + k), 7);
                (keys, draw(seed * 100 + 90 + u64::from(i + k), keys + 1))
            });
            groups.push((prefix, members.collect()));
        }
        let groups: Vec<Group<'_>> = groups.iter().map(|(p, m)| (*p, m.as_slice())).collect();
        let mut case = Case::new(heads(1, 1, 8), &groups, seed % 2 == 0);
        let rows = case.rows();
        if let Some(limit) = case.limits.first_mut().filter(|_| seed % 3 == 0) {
            *limit = 1;
        }
        Sequence::check_all(&case.sequences, &case.groups, &case.limits, rows).unwrap();
        let cut = cut(&case);
        let mut seen = vec![0; rows.0];
        let queries = |s: &Sequence| s.q_start as usize..(s.q_start + s.q_len) as usize;
        cut.rest.iter().flat_map(queries).for_each(|row| seen[row] += 1);
        for run in &cut.runs {
            for i in run.first..run.first + run.sequences {
                let (q, k) = (&cut.q_starts[i..i + 2], &cut.k_starts[i..i + 2]);
                let is = |s: &&Sequence| (s.q_start, s.k_start, s.q_len > 0) == (q[0], k[0], true);
                let s = case.sequences.iter().find(is).unwrap();
                assert_eq!((s.q_len, s.k_len, s.p_len), (q[1] - q[0], k[1] - k[0], 0));
                assert!(s.q_len <= run.longest_q && s.k_len <= run.longest_k);
                for row in queries(s) {
                    seen[row] += 1;
                    assert_eq!(
                        case.limits[row] as usize + queries(s).end - row - 1,
                        s.k_len as usize
                    );
                }
            }
        }
        assert!(seen.iter().all(|&n| n == 1), "{seed}: {seen:?}");
        assert_eq!(cut.has_rest, cut.rest.iter().any(|s| s.q_len > 0), "{seed}");
    }
}

#[test]
fn all_outputs_are_right() {
    if !device().takes_flash() {
        eprintln!("SKIPPED: built without feature flash-attn");
        return;
    }
    for (h, g, e) in [(3, 1, 16), (4, 2, 64), (2, 2, 80), (2, 1, 128)] {
        for last in [false, true] {
            judge(Case::new(heads(h, g, e), PACK, last), &format!("{h} {g} {e} {last}"));
            judge(Case::new(heads(h, g, e), MIXED, last), &format!("mixed {h} {g} {e} {last}"));
        }
    }
    let whole: &[Group<'_>] = &[(0, &[(65, 1)]), (0, &[(64, 64)]), (0, &[(2, 1)])];
    judge(Case::new(heads(3, 1, 64), whole, false), "nothing left");
    assert!(!cut(&Case::new(heads(1, 1, 8), whole, false)).has_rest);
    // Rows of no sequence become zero, also where all sequences are taken.
    let gaps = without(Case::new(heads(2, 1, 16), whole, false), &[1]);
    assert!(cut(&gaps).has_rest && cut(&gaps).runs.len() == 2);
    judge(gaps, "gaps");
    // Keys that lie anywhere, and masks that are not causal.
    judge(decoding(2, 1, 16, &[1, 70, 64, 30]), "decoding");
    let mut blocks = Case::new(heads(2, 1, 16), &[(0, &[(30, 1)]), (0, &[(9, 1)])], false);
    (0..30).for_each(|i| blocks.limits[i] = u32::try_from(i / 7 * 7).unwrap().max(1));
    assert_eq!(cut(&blocks).runs.len(), 1);
    judge(blocks, "blocks");
}

#[test]
fn a_group_has_the_same_bits_alone() {
    if !device().takes_flash() {
        eprintln!("SKIPPED: built without feature flash-attn");
        return;
    }
    let case = rounded(Case::new(heads(4, 2, 16), PACK, false));
    let all = flash(device(), &case, PLAIN).unwrap();
    for group in 0..PACK.len() {
        let (alone, q, _) = case.only(group);
        let alone = flash(device(), &alone, PLAIN).unwrap();
        let width = case.heads.q_dim();
        same_bits("group", &all[q.start * width..q.end * width], &alone);
    }
}

#[test]
fn what_the_kernels_do_not_take_stays_here() {
    let same = |gpu: &Emulated, case: &Case, layout, label| {
        let (ours, _) = run::forward(gpu, case, layout).unwrap();
        same_bits(label, &flash(gpu, case, layout).unwrap(), &ours);
    };
    let case = |e| rounded(Case::new(heads(2, 1, e), PACK, false));
    same(fast(), &case(16), PLAIN, "a device without such kernels");
    same(device(), &case(12), PLAIN, "heads that allow no 16-byte access");
    same(device(), &case(16), ODD, "windows that allow no 16-byte access");
}

#[test]
fn tables_of_another_pack_and_too_small_ones_are_refused() {
    if !device().takes_flash() {
        eprintln!("SKIPPED: built without feature flash-attn");
        return;
    }
    let case = |groups| rounded(Case::new(heads(2, 1, 16), groups, false));
    let (one, other) = (case(PACK), case(&PACK[..2]));
    let mut tables = Tables::alloc(device(), one.sequences.len()).unwrap();
    tables.write(device(), &one.sequences, &one.groups, &one.limits).unwrap();
    let refused = flash_by(device(), &other, PLAIN, &tables);
    assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
    tables.clear();
    assert!(flash_by(device(), &other, PLAIN, &tables).is_ok(), "nothing is taken");
    let mut small = Tables::alloc(device(), 2).unwrap();
    let refused = small.write(device(), &one.sequences, &one.groups, &one.limits);
    assert!(matches!(refused, Err(Error::Length { .. })) && small.cut().runs.is_empty());
}
