//! Attention of the device code on the emulator: every output against the `f64` reference, the same bits in any
//! company and order, nothing read or written beside the windows, and seeded faults that must be seen.

mod bounds;
mod flash;
mod run;

use crate::attention_case::{self, Case, Group, Output, heads};
use crate::harness::{Emulated, caught, checked, fast};
use crate::naive::{Naive, numbers};
use crate::tolerance::same_bits;
use bounds::{Off, bounds};
use emulator::Mode;
use kernels::attention::Sequence;
use kernels::error::Error;
use run::{Layout, PLAIN, forward, rounded, run};

const APART: Layout = Layout { apart: true, odd: false };
const ODD: Layout = Layout { apart: false, odd: true };

/// What is wrong with an output, if something is: an element further from the truth than it may be, or all
/// together (root mean square) further than twice what independent roundings give.
fn wrong(what: &str, ours: &[f32], truth: &[f32], allowed: &[Off]) -> Option<String> {
    assert!(ours.len() == truth.len() && ours.len() == allowed.len(), "{what}: lengths");
    let (mut square, mut variance) = (0.0, 0.0);
    for (i, ((got, want), bound)) in ours.iter().zip(truth).zip(allowed).enumerate() {
        let off = (f64::from(*got) - f64::from(*want)).abs();
        let exact = f64::from(want.abs()) * f64::from(f32::EPSILON);
        if off.is_nan() || off > bound.most + exact {
            return Some(format!(
                "{what}[{i}]: {got} for {want}: off by {off:e}, allowed {bound:?}"
            ));
        }
        square += off.powi(2);
        variance += bound.variance + exact.powi(2);
    }
    (square > 4.0 * variance).then(|| format!("{what}: off by {square:e}, variance {variance:e}"))
}

/// The first output that is wrong.
fn mistake(case: &Case, ours: &Output) -> Option<String> {
    let (truth, allowed) = (attention_case::run(&Naive, case, true), bounds(case));
    let allowed = [&allowed.out, &allowed.lse, &allowed.dq, &allowed.dk, &allowed.dv];
    let parts = ours.parts().into_iter().zip(truth.parts()).zip(allowed);
    parts.into_iter().find_map(|(((what, a), (_, b)), c)| wrong(what, a, b, c))
}

fn judge(gpu: &Emulated, case: Case, layout: Layout, label: &str) {
    let case = rounded(case);
    let ours = run(gpu, &case, layout).unwrap();
    if let Some(mistake) = mistake(&case, &ours) {
        panic!("{label}, {layout:?}: {mistake}");
    }
}

/// The case without the sequences of some groups, whose rows stay: gaps, and groups without sequences.
fn without(mut case: Case, groups: &[usize]) -> Case {
    let mut sequences = Vec::new();
    let mut starts = vec![0];
    for (i, range) in case.groups.windows(2).enumerate() {
        if !groups.contains(&i) {
            sequences.extend_from_slice(&case.sequences[range[0] as usize..range[1] as usize]);
        }
        starts.push(u32::try_from(sequences.len()).unwrap());
    }
    (case.sequences, case.groups) = (sequences, starts);
    case
}

/// One query a sequence against a cache in which keys lie anywhere, two of them with a common prefix.
fn decoding(h: usize, g: usize, e: usize, keys: &[u32]) -> Case {
    let heads = heads(h, g, e);
    let mut end: u32 = 70 + keys.iter().sum::<u32>();
    let k_rows = end as usize;
    let mut sequences = Vec::new();
    for (i, &k_len) in keys.iter().enumerate() {
        end -= k_len;
        let (p_start, p_len) = if i % 2 == 1 { (3, 67) } else { (0, 0) };
        let q_start = u32::try_from(i).unwrap();
        sequences.push(Sequence { q_start, q_len: 1, k_start: end, k_len, p_start, p_len });
    }
    let groups = (0..=u32::try_from(keys.len()).unwrap()).collect();
    let random = |seed, rows: usize, width| numbers(seed, rows * width);
    Case {
        heads,
        sequences,
        groups,
        limits: keys.to_vec(),
        q: random(21, keys.len(), heads.q_dim()).iter().map(|x| 4.0 * x).collect(),
        k: random(22, k_rows, heads.kv_dim()),
        v: random(23, k_rows, heads.kv_dim()),
        dout: random(24, keys.len(), heads.q_dim()),
    }
}

/// Prefixes with no, one, two and three sequences, short and long, beside sequences without.
const MIXED: &[Group<'_>] = &[
    (70, &[]),
    (0, &[(1, 1)]),
    (5, &[(63, 3)]),
    (64, &[(1, 1), (65, 5)]),
    (66, &[(20, 3), (0, 0), (9, 9)]),
];

#[test]
fn lengths_at_the_edges_of_tiles() {
    let gpu = fast();
    for len in [0, 1, 63, 64, 65, 130] {
        let case = Case::new(heads(3, 3, 64), &[(0, &[(len, len)])], false);
        judge(gpu, case, PLAIN, &format!("{len}"));
    }
    let nothing = Case::new(heads(2, 1, 16), &[], false);
    judge(gpu, nothing, PLAIN, "no rows");
}

#[test]
fn prefixes_grouped_heads_and_every_width() {
    let gpu = fast();
    for (h, g, e) in [(3, 1, 16), (2, 2, 64), (3, 1, 80), (2, 1, 96), (3, 1, 128), (6, 2, 32)] {
        for (last, layout) in [(false, PLAIN), (true, APART)] {
            judge(gpu, Case::new(heads(h, g, e), MIXED, last), layout, &format!("{h} {g} {e}"));
        }
    }
    for e in [5, 24, 40] {
        judge(gpu, Case::new(heads(3, 1, e), MIXED, false), PLAIN, &format!("width {e}"));
    }
}

#[test]
fn windows_without_alignment() {
    let gpu = fast();
    for e in [16, 80] {
        judge(gpu, Case::new(heads(2, 1, e), MIXED, false), ODD, &format!("odd {e}"));
    }
}

#[test]
fn queries_that_see_less_than_their_past() {
    let gpu = fast();
    let mut case =
        Case::new(heads(3, 1, 16), &[(40, &[(130, 1), (20, 20)]), (0, &[(80, 1)])], false);
    for s in case.sequences.clone() {
        for i in 0..s.q_len {
            // Blocks of seven queries see as much as their first; with a prefix the first block sees only that.
            let first = if s.p_len > 0 { 0 } else { 1 };
            case.limits[(s.q_start + i) as usize] = i / 7 * 7 + first;
        }
    }
    judge(gpu, case, PLAIN, "limits");
}

#[test]
fn more_sequences_than_a_block_has_threads() {
    let many: Vec<(u32, u32)> = (0..75).map(|i| (i * 7 % 4, i * 5 % 3 % (i * 7 % 4 + 1))).collect();
    let groups: Vec<Group<'_>> =
        (0..4).map(|i| (if i == 2 { 0 } else { 3 }, many.as_slice())).collect();
    for last in [false, true] {
        let case = Case::new(heads(1, 1, 16), &groups, last);
        assert!(case.sequences.len() > 256, "one block's threads");
        judge(fast(), case, APART, "many");
    }
}

#[test]
fn rows_of_no_sequence_become_zero() {
    let gpu = fast();
    let groups: &[Group<'_>] = &[
        (0, &[(70, 1)]),
        (9, &[(30, 1), (66, 1)]),
        (0, &[(5, 5)]),
        (0, &[(2, 2)]),
        (0, &[(129, 1)]),
    ];
    for last in [false, true] {
        let case = without(Case::new(heads(2, 1, 16), groups, last), &[0, 2, 4]);
        judge(gpu, case, PLAIN, "gaps");
        let case = without(Case::new(heads(2, 1, 16), groups, last), &[0, 1, 2, 3, 4]);
        judge(gpu, case, APART, "no sequence");
    }
}

#[test]
fn decoding_over_a_cache() {
    let gpu = fast();
    for (h, g, e) in [(3, 1, 64), (2, 2, 16), (8, 1, 128)] {
        let case = rounded(decoding(h, g, e, &[1, 700, 64, 257, 130]));
        let truth = attention_case::run(&Naive, &case, true);
        let allowed = bounds(&case);
        for layout in [PLAIN, ODD] {
            let (out, lse) = forward(gpu, &case, layout).unwrap();
            let found = wrong("out", &out, &truth.out, &allowed.out)
                .or_else(|| wrong("lse", &lse, &truth.lse, &allowed.lse));
            assert_eq!(found, None, "{h} {g} {e} {layout:?}");
        }
    }
}

#[test]
fn the_same_bits_alone_among_others_and_in_any_order() {
    let gpu = fast();
    // The long sequence with one query is split over blocks, here and alone.
    let groups: &[Group<'_>] =
        &[(0, &[(40, 4)]), (33, &[(20, 3), (17, 17), (70, 5)]), (0, &[(400, 1)])];
    for (last, layout) in [(false, PLAIN), (false, APART), (true, ODD)] {
        let case = rounded(Case::new(heads(6, 2, 16), groups, last));
        let all = run(gpu, &case, layout).unwrap();
        gpu.device().set_order(7);
        let shuffled = run(gpu, &case, APART).unwrap();
        gpu.device().set_order(0);
        for ((what, a), (_, b)) in all.parts().into_iter().zip(shuffled.parts()) {
            same_bits(what, a, b);
        }
        for group in 0..groups.len() {
            let (alone, q, k) = case.only(group);
            let alone = run(gpu, &alone, layout).unwrap();
            for ((what, a), (_, b)) in all.parts().into_iter().zip(alone.parts()) {
                let (range, width) = match what {
                    "dk" | "dv" => (&k, case.heads.kv_dim()),
                    "lse" => (&q, case.heads.heads),
                    _ => (&q, case.heads.q_dim()),
                };
                same_bits(what, &a[range.start * width..range.end * width], b);
            }
        }
    }
}

#[test]
fn the_checker_finds_nothing() {
    let gpu = checked();
    gpu.device().set_order(3);
    let small: &[Group<'_>] = &[(0, &[(9, 1)]), (66, &[(20, 3), (70, 2)]), (0, &[(3, 3)])];
    let gaps = without(Case::new(heads(3, 1, 16), small, false), &[0, 2]);
    judge(gpu, gaps, PLAIN, "checked, gaps");
    judge(gpu, Case::new(heads(2, 1, 64), small, true), ODD, "checked, odd");
    judge(gpu, Case::new(heads(1, 1, 80), small, false), APART, "checked, 80");
    judge(gpu, Case::new(heads(2, 1, 128), &[(65, &[(3, 1)])], false), PLAIN, "checked, 128");
    for e in [16, 32, 64, 80, 96, 128] {
        let label = |what: &str| format!("checked, {e}, {what}");
        judge(gpu, Case::new(heads(1, 1, e), &[(3, &[(5, 1)])], false), PLAIN, &label("few"));
        judge(gpu, Case::new(heads(2, 1, e), &[(0, &[(18, 2)])], true), ODD, &label("odd"));
        judge(gpu, Case::new(heads(3, 1, e), &[(66, &[(20, 1)])], false), APART, &label("apart"));
    }
    forward(gpu, &rounded(decoding(2, 1, 16, &[300, 2])), PLAIN).unwrap();
}

#[test]
fn seeded_faults_are_seen() {
    let groups: &[Group<'_>] = &[(5, &[(70, 1), (9, 9)]), (0, &[(300, 1)]), (0, &[(3, 1)])];
    for (fault, mode, last) in [
        ("ATTENTION_RAGGED", Mode::Fast, false),
        ("ATTENTION_MASK", Mode::Fast, false),
        ("ATTENTION_SUFFIX", Mode::Fast, false),
        ("ATTENTION_COMBINE", Mode::Fast, true),
        ("ATTENTION_WAIT", Mode::Fast, false),
        ("ATTENTION_BARRIER", Mode::Checked, false),
    ] {
        let case = rounded(Case::new(heads(2, 1, 16), groups, last));
        caught(mode, fault, |gpu| {
            let ours = run(gpu, &case, PLAIN).unwrap();
            assert_eq!(mistake(&case, &ours), None);
        });
    }
}

#[test]
fn heads_that_no_kernel_takes_are_refused() {
    let gpu = fast();
    for (h, g, e) in [(1, 1, 129), (129, 1, 1)] {
        let case = rounded(Case::new(heads(h, g, e), &[(0, &[(2, 1)])], false));
        assert!(matches!(run(gpu, &case, PLAIN), Err(Error::Shape { .. })), "{h} {g} {e}");
    }
}
