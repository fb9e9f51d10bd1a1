//! Grouped LoRA: exact on whole numbers at every edge shape, within derived bounds on real ones, the same bits alone
//! and in any pack.

use crate::harness::{Emulated, PLACES, Subject, caught, checked, own, within_bf16};
use crate::lora_pack::{Draw, Pack, Rows};
use crate::naive::{Naive, numbers};
use crate::tolerance::{EPS, same_bits, within};
use emulator::Mode;
use half::bf16;
use kernels::Error;
use kernels::lora::{Lora, Site, SiteOutput};
use kernels::random::Dropout;
use std::sync::OnceLock;

fn fast() -> &'static Emulated {
    static DEVICE: OnceLock<Emulated> = OnceLock::new();
    DEVICE.get_or_init(own)
}

/// One rounding to `bf16`, in roundings of `f32`.
const BF16_ROUNDING: f64 = 1.0 / 256.0 / EPS;

fn as_act(v: &[f32]) -> Vec<f32> {
    v.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&v| f64::from(v)).collect()
}

/// On whole numbers every sum is exact in `f32` and every `S'` and `dS'` in `bf16`: nothing may differ.
fn exact<B: Lora + Subject>(b: &B, pack: &Pack) {
    same_bits("y", &pack.forward(b).unwrap(), &as_act(&pack.forward(&Naive).unwrap()));
    let ((dx, grads), (dx_want, grads_want)) =
        (pack.backward(b).unwrap(), pack.backward(&Naive).unwrap());
    same_bits("dx", &dx, &as_act(&dx_want));
    same_bits("grads", &grads, &grads_want);
}

/// A result is off by the one rounding of `S'` or `dS'` to `bf16` and the roundings of the `f32` chains, all times
/// the sum of the sizes of its terms; `Y` and `dX` by their own rounding too. Parameters are rounded before.
fn close<B: Lora + Subject>(b: &B, pack: &Pack) {
    let reference = Pack { params: as_act(&pack.params), ..pack.clone() };
    let (sizes, k) = (reference.sizes(), BF16_ROUNDING + pack.chain());
    let scale = |size: &[f32], before: &[f32]| -> Vec<f64> {
        // What was there is rounded once or twice in f32.
        let before = before.iter().map(|v| f64::from(v.abs()) * 2.0 / k);
        wide(size).into_iter().zip(before).map(|(s, b)| s + b).collect()
    };
    let (y, want) = (pack.forward(b).unwrap(), reference.forward(&Naive).unwrap());
    let y_scale = scale(&sizes.forward(&Naive).unwrap(), &pack.y);
    within_bf16("y", k, &y, &want, &y_scale);
    let (dx, grads) = pack.backward(b).unwrap();
    let (dx_want, grads_want) = reference.backward(&Naive).unwrap();
    let (dx_size, grads_size) = sizes.backward(&Naive).unwrap();
    within_bf16("dx", k, &dx, &dx_want, &scale(&dx_size, &pack.dx));
    within("grads", k, &grads, &wide(&grads_want), &scale(&grads_size, &pack.grads));
}

/// Lengths around every tile height and ranks around every class; `p` of 0.5 and 0.75 keeps sums exact.
fn edges() -> Vec<Rows> {
    let rows = [0, 1, 15, 16, 17, 63, 64, 65, 0, 33];
    let ranks = [4, 1, 3, 8, 16, 33, 64, 9, 8, 32];
    let dropout = [0.5, 0.0, 0.5, 0.0, 0.75, 0.5, 0.0, 0.0, 0.0, 0.75];
    (0..10).map(|i| (rows[i], ranks[i], dropout[i])).collect()
}

#[test]
fn whole_numbers_are_exact_at_every_edge() {
    for (d, ns, place) in [
        (40, [41, 29, 8].as_slice(), PLACES[2]),
        (64, &[64, 128, 16], PLACES[0]),
        (72, &[300, 264], PLACES[1]),
        (129, &[257], PLACES[2]),
        (136, &[24], PLACES[0]),
        (1, &[1, 3], PLACES[2]),
    ] {
        exact(fast(), &Pack::new(Draw::Whole, (d, ns), place, &edges()));
    }
    // Wide rows; one row and nothing else; a pack without rows.
    exact(fast(), &Pack::new(Draw::Whole, (600, &[700]), PLACES[1], &[(3, 8, 0.0), (20, 5, 0.5)]));
    exact(fast(), &Pack::new(Draw::Whole, (32, &[32, 32]), PLACES[0], &[(1, 8, 0.5)]));
    exact(fast(), &Pack::new(Draw::Whole, (32, &[32]), PLACES[0], &[(0, 8, 0.5), (0, 4, 0.0)]));
}

/// So many segments that tiles of 32 or of 64 rows are chosen, with lengths around theirs.
fn tall(tile: usize) -> Vec<Rows> {
    let lengths: &[usize] =
        if tile == 32 { &[31, 0, 32, 1, 33, 17, 16, 34] } else { &[63, 1, 64, 0, 65, 128, 33, 48] };
    let (ranks, dropout) = ([4, 1, 8, 3, 16, 64, 2, 33, 9], [0.0, 0.5, 0.0, 0.0, 0.75]);
    (0..184).map(|i| (lengths[i % 8], ranks[i % 9], dropout[i % 5])).collect()
}

#[test]
fn tall_tiles_are_exact_and_have_the_bits_of_low_ones() {
    for tile in [32, 64] {
        for (d, ns, place) in [
            (40, [41, 29, 8].as_slice(), PLACES[2]),
            (64, &[64, 16], PLACES[0]),
            (129, &[70], PLACES[1]),
        ] {
            exact(fast(), &Pack::new(Draw::Whole, (d, ns), place, &tall(tile)));
        }
        let odd: Vec<Rows> =
            tall(tile).into_iter().map(|(n, r, p)| (n, r, if p > 0.0 { 0.3 } else { p })).collect();
        close(fast(), &Pack::new(Draw::Real, (72, &[40, 33]), PLACES[0], &odd));
        // Alone every segment has tiles of 16 rows.
        same_alone(&Pack::new(Draw::Real, (24, &[16, 24]), PLACES[0], &odd));
    }
}

#[test]
fn real_numbers_are_within_the_roundings() {
    let odd: Vec<Rows> =
        edges().into_iter().map(|(rows, r, p)| (rows, r, if p > 0.0 { 0.3 } else { p })).collect();
    close(fast(), &Pack::new(Draw::Real, (136, &[88, 60, 33]), PLACES[0], &odd));
    close(fast(), &Pack::new(Draw::Real, (77, &[290]), PLACES[2], &odd));
}

#[test]
fn a_site_may_take_several_ranges_and_a_call_many_sites() {
    let site = |k: usize| Site { in_dim: 48, out_dim: 50, unit_offset: 98 * k, id: k as u32 };
    let output = |k: usize, out_begin: usize, out_len: usize, y_start: usize| SiteOutput {
        site: site(k),
        out_begin,
        out_len,
        y_start,
    };
    let sites = vec![
        output(0, 0, 20, 3),
        output(0, 30, 20, 23),
        output(1, 0, 50, 50),
        output(2, 7, 0, 100),
        output(2, 7, 20, 100),
        output(3, 0, 50, 120),
        output(1, 0, 50, 170),
    ];
    let rows = [(20, 4, 0.5), (0, 8, 0.0), (17, 3, 0.0)];
    exact(fast(), &Pack::of_sites(Draw::Whole, (sites, 222), PLACES[1], &rows));
}

#[test]
fn masks_are_those_of_the_cpu() {
    // With A and B of ones, rank 1 and one output, dX is the mask; dA the number of kept rows.
    for p in [0.05, 0.3, 0.9] {
        let mut pack = Pack::new(Draw::Whole, (70, &[1]), PLACES[2], &[(21, 1, p), (3, 1, 0.0)]);
        for v in [&mut pack.params, &mut pack.x, &mut pack.dy] {
            v.fill(1.0);
        }
        pack.dx.fill(0.0);
        pack.grads.fill(0.0);
        let (dx, grads) = pack.backward(fast()).unwrap();
        let s = pack.segments[0];
        let dropout = Dropout::new(s.key, s.step, pack.sites[0].site.id, p);
        let mut kept = [0.0f32; 70];
        for row in 0..21 {
            for c in 0..70 {
                let keep = dropout.keep(pack.row_token[row], c as u32);
                assert_eq!(dx[row * 70 + c] != 0.0, keep, "p {p} row {row} column {c}");
                kept[c] += f32::from(u8::from(keep));
            }
        }
        let scale = bf16::from_f32(s.scale * (1.0 / (1.0 - p))).to_f32();
        let start = s.grad_offset as usize + pack.sites[0].site.unit_offset;
        same_bits("dA", &grads[start..start + 70], &kept.map(|n| n * scale));
    }
}

/// Rows of each of `users` when `rows` rows are drawn by popularity, as in punica's tests.
fn popularity(kind: &str, rows: usize, users: usize) -> Vec<usize> {
    let weight = |u: usize| match kind {
        "zipf" => (u as f64 + 1.0).powf(-1.5),
        "identical" => f64::from(u32::from(u == users / 2)),
        "skewed" => 0.5f64.powi(u as i32),
        _ => 1.0,
    };
    let mut counts = vec![0; users];
    if kind == "distinct" {
        counts.fill(rows / users);
        return counts;
    }
    let total: f64 = (0..users).map(weight).sum();
    for draw in numbers(users as u64, rows) {
        let mut left = (f64::from(draw) + 1.0) / 2.0 * total;
        let user = (0..users).position(|u| {
            left -= weight(u);
            left < 0.0
        });
        counts[user.unwrap_or(users - 1)] += 1;
    }
    counts
}

/// Every segment's rows and gradients have the bits that they have alone.
fn same_alone(pack: &Pack) {
    let b = fast();
    let (y, (dx, grads)) = (pack.forward(b).unwrap(), pack.backward(b).unwrap());
    let mut touched = pack.grads.clone();
    for i in (0..pack.segments.len()).filter(|&i| pack.segments[i].rows > 0) {
        let (rows, alone) = (pack.rows_of(i), pack.alone(i));
        let part = |v: &[f32], w: usize| v[rows.start * w..rows.end * w].to_vec();
        same_bits("y", &alone.forward(b).unwrap(), &part(&y, pack.y_stride));
        let (dx_alone, grads_alone) = alone.backward(b).unwrap();
        same_bits("dx", &dx_alone, &part(&dx, pack.x_window.width));
        for (k, v) in grads_alone.into_iter().enumerate() {
            if v.to_bits() != pack.grads[k].to_bits() {
                touched[k] = v;
            }
        }
    }
    same_bits("grads", &touched, &grads);
}

#[test]
fn a_segment_is_the_same_alone_and_in_any_pack() {
    for kind in ["distinct", "uniform", "zipf", "identical", "skewed"] {
        let ranks = [8, 4, 16, 1, 8, 64, 3, 32];
        let segments: Vec<Rows> = popularity(kind, 300, 10)
            .into_iter()
            .enumerate()
            .map(|(i, rows)| (rows, ranks[i % 8], if i % 3 == 0 { 0.05 } else { 0.0 }))
            .collect();
        same_alone(&Pack::new(Draw::Real, (72, &[40, 72]), PLACES[0], &segments));
    }
}

#[test]
fn long_segments_are_exact_and_the_same_alone_and_in_any_panels() {
    // One chunk of 1023 rows, two of 512 and more, three.
    let rows = [(70, 8, 0.0), (1023, 4, 0.5), (1024, 9, 0.0), (5, 3, 0.0), (1700, 2, 0.5)];
    exact(fast(), &Pack::new(Draw::Whole, (24, &[16, 32]), PLACES[1], &rows));
    let rows = rows.map(|(n, r, _)| (n, r, 0.0));
    let pack = Pack::new(Draw::Real, (24, &[32]), PLACES[0], &rows);
    same_alone(&pack);
    let (dx, grads) = pack.backward(fast()).unwrap();
    for bytes in [0, 1 << 20] {
        let run = |b: &Emulated, args: kernels::lora::Backward<'_, _>| {
            b.lora_backward_within(args, bytes)
        };
        let (dx_panels, grads_panels) = pack.backward_by(fast(), run).unwrap();
        same_bits("dx", &dx_panels, &dx);
        same_bits("grads", &grads_panels, &grads);
    }
}

#[test]
fn tiles_beyond_16_bits_are_legal() {
    // Empty segments have a tile each.
    let mut rows = vec![(0, 1, 0.0); 66_000];
    for (i, n) in [(0, 3), (40_000, 20), (65_999, 2)] {
        rows[i] = (n, 2, 0.0);
    }
    let pack = Pack::new(Draw::Whole, (8, &[8]), PLACES[0], &rows);
    same_bits("y", &pack.forward(fast()).unwrap(), &as_act(&pack.forward(&Naive).unwrap()));
}

#[test]
fn scratch_carries_nothing_over() {
    let clean = Pack::new(Draw::Whole, (72, &[40, 30]), PLACES[0], &edges());
    let mut spoiled = Pack::new(Draw::Whole, (90, &[50, 60, 70]), PLACES[0], &[(400, 40, 0.5)]);
    for v in [&mut spoiled.x, &mut spoiled.params, &mut spoiled.dy] {
        v.fill(f32::NAN);
    }
    spoiled.backward(fast()).unwrap();
    exact(fast(), &clean);
}

#[test]
fn without_dx_the_gradients_are_the_same() {
    let pack = Pack::new(Draw::Real, (40, &[24]), PLACES[0], &edges());
    let grads = pack.gradients(fast(), |b, args| b.lora_backward(args)).unwrap();
    same_bits("grads", &grads, &pack.backward(fast()).unwrap().1);
}

#[test]
fn one_bad_adapter_spoils_no_other() {
    let clean = Pack::new(Draw::Whole, (40, &[24, 30]), PLACES[0], &edges());
    let mut bad = clean.clone();
    let (s, next) = (clean.segments[5], clean.segments[6]);
    bad.params[s.param_offset as usize..next.param_offset as usize].fill(f32::NAN);
    let (y, y_bad) = (clean.forward(fast()).unwrap(), bad.forward(fast()).unwrap());
    let ((dx, grads), (dx_bad, grads_bad)) =
        (clean.backward(fast()).unwrap(), bad.backward(fast()).unwrap());
    let rows = clean.rows_of(5);
    let others =
        |v: &[f32], width: usize| [&v[..rows.start * width], &v[rows.end * width..]].concat();
    same_bits("y", &others(&y, clean.y_stride), &others(&y_bad, clean.y_stride));
    same_bits("dx", &others(&dx, 40), &others(&dx_bad, 40));
    assert!(y_bad[rows.start * clean.y_stride].is_nan());
    let start = s.grad_offset as usize;
    let own = start..start + 33 * (4 + 40 + 24 + 40 + 30);
    for (i, (got, bad)) in grads.iter().zip(&grads_bad).enumerate() {
        let own = own.contains(&i);
        assert!(own || got.to_bits() == bad.to_bits(), "gradient {i}");
    }
}

#[test]
fn what_only_the_device_sees_is_refused_by_the_next_read() {
    let pack =
        Pack::new(Draw::Whole, (16, &[16]), PLACES[0], &[(5, 4, 0.0), (9, 4, 0.0), (3, 4, 0.0)]);
    let device = own();
    let refused = |change: &dyn Fn(&mut Pack)| {
        let mut pack = pack.clone();
        change(&mut pack);
        let errors = [pack.forward(&device).unwrap_err(), pack.backward(&device).unwrap_err()];
        for error in &errors {
            assert!(matches!(error, Error::Routing { op: "lora", .. }), "{error}");
        }
        errors[0].to_string()
    };
    let rank = refused(&|p| p.segments[1].lora_rank = 65);
    assert_eq!(rank, "lora: row 1: segment of that number: its rank 65 is out of range");
    refused(&|p| p.segments[0].lora_rank = 0);
    refused(&|p| p.segments[2].rows = 4);
    refused(&|p| p.segments[2].row_start = u32::MAX);
    refused(&|p| p.segments[1].row_start = 4);
    refused(&|p| p.segments[1].param_offset = u64::MAX);
    refused(&|p| p.segments[2].param_offset = p.params.len() as u64 - 10);
    refused(&|p| p.segments[1].dropout = 1.0);
    refused(&|p| p.segments[1].dropout = f32::NAN);
    let mut pack = pack;
    pack.segments[1].grad_offset = pack.grads.len() as u64;
    assert!(pack.backward(&device).is_err());
}

/// A little of everything, for the slow mode.
fn small() -> [Pack; 3] {
    let whole = |d: usize, ns: &[usize], place: usize, rows: &[Rows]| {
        Pack::new(Draw::Whole, (d, ns), PLACES[place], rows)
    };
    [
        whole(72, &[40, 24, 8], 0, &[(17, 8, 0.5), (0, 4, 0.0), (1, 16, 0.0), (33, 3, 0.0)]),
        whole(37, &[41, 29], 2, &[(5, 33, 0.5), (18, 1, 0.0)]),
        whole(136, &[264], 1, &[(34, 64, 0.0), (2, 20, 0.5)]),
    ]
}

#[test]
fn every_access_is_checked() {
    for (seed, pack) in (0..).zip(small()) {
        // Blocks, warps and lanes in another order each time.
        checked().device().set_order(seed);
        exact(checked(), &pack);
    }
    checked().device().set_order(0);
    for (long, r) in [(1100, 2), (1024, 5), (1537, 1)] {
        let rows = [(3, 2, 0.0), (long, r, 0.0)];
        exact(checked(), &Pack::new(Draw::Whole, (8, &[8]), PLACES[0], &rows));
    }
    for (tile, d, ns, place) in [
        (32, 8, [8].as_slice(), PLACES[0]),
        (32, 17, &[9, 5], PLACES[2]),
        (32, 40, &[24], PLACES[1]),
        (64, 8, &[8], PLACES[0]),
        (64, 17, &[9, 5], PLACES[2]),
        (64, 40, &[24], PLACES[1]),
    ] {
        exact(checked(), &Pack::new(Draw::Whole, (d, ns), place, &tall(tile)));
    }
}

#[test]
fn seeded_faults_are_caught() {
    let pack =
        || Pack::new(Draw::Whole, (200, &[40, 24]), PLACES[0], &[(20, 8, 0.0), (17, 3, 0.5)]);
    for fault in ["LORA_WAIT", "LORA_RAGGED_CHUNK", "LORA_RANK"] {
        caught(Mode::Fast, fault, |b| exact(b, &pack()));
    }
    for fault in ["LORA_SYNC", "LORA_RAGGED_ROW"] {
        caught(Mode::Checked, fault, |b| exact(b, &pack()));
    }
}
