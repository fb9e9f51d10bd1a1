//! The ordered sum of shards' gradients against a plain loop in f32, bit for bit.

use crate::harness::{Emulated, Subject, caught, checked, fast, own};
use crate::naive::{download, numbers, upload};
use crate::tolerance::same_bits;
use emulator::Mode;
use kernels::Error;

/// Written around the sum.
const AROUND: f32 = 7.0;
/// Elements around the sum that nothing may touch; a multiple of a 16-byte access.
const GAP: usize = 8;

/// Shards of magnitudes from 1e-4 to 1e5, so that another order has other bits; some are zeros, one is −0 everywhere.
fn values(shard: usize, len: usize) -> Vec<f32> {
    let sizes = [1e-4, 1e5, 1.0, 1e-2, 3e3];
    let of = |(i, v): (usize, f32)| match (shard + i) % 11 {
        0 => -0.0,
        k => v * sizes[(k + shard) % 5],
    };
    let values = numbers(shard as u64 + 1, len).into_iter().enumerate().map(of);
    if shard == 0 { values.map(|v| v.min(-0.0)).collect() } else { values.collect() }
}

/// `((s₀ + s₁) + s₂) + …`
fn in_order(shards: &[Vec<f32>], len: usize) -> Vec<f32> {
    let Some((first, rest)) = shards.split_first() else { return vec![0.0; len] };
    let add = |mut sum: Vec<f32>, x: &Vec<f32>| {
        sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
        sum
    };
    rest.iter().fold(first.clone(), add)
}

/// Sums `count` shards of `len` values, the slab beginning `start` elements into an aligned buffer, `apart` elements
/// between gradients; the sum is the slab's end if `last`, else its beginning.
fn run(b: &Emulated, (count, len): (usize, usize), (start, apart): (usize, usize), last: bool) {
    let shards: Vec<Vec<f32>> = (0..count).map(|shard| values(shard, len)).collect();
    let (room, own) = (start + (len + GAP).next_multiple_of(4), len + apart);
    let first = if last { start } else { room };
    // Shards lie in the slab in falling order: the order of the sum is the arguments'.
    let places: Vec<usize> = (0..count).map(|i| first + (count - 1 - i) * own).collect();
    let (total, whole) = if last {
        (start + count * own + GAP, start + count * own + GAP + len)
    } else {
        (start, room + count * own)
    };
    let mut slab = upload(b, &vec![AROUND; whole]);
    if apart > 0 {
        places.iter().for_each(|&place| b.poison(&mut slab, place + len, apart));
    }
    for (&place, values) in places.iter().zip(&shards) {
        kernels::Backend::write(b, &mut slab, place, values).unwrap();
    }
    b.poison(&mut slab, total, len);
    b.sum_shards(&mut slab, total, &places, len).unwrap();
    let mut sum = vec![f32::NAN; len];
    kernels::Backend::read(b, &slab, total, &mut sum).unwrap();
    let what = format!("{count} shards of {len}, from {start}, {apart} apart");
    same_bits(&what, &sum, &in_order(&shards, len));
    let around = if last { [(total - GAP, total); 2] } else { [(0, start), (len + start, room)] };
    for (from, to) in around {
        let mut around = vec![0.0; to - from];
        kernels::Backend::read(b, &slab, from, &mut around).unwrap();
        assert!(around.iter().all(|&v| v == AROUND), "{what}: around the sum {around:?}");
    }
    for (&place, values) in places.iter().zip(&shards) {
        let mut kept = vec![f32::NAN; len];
        kernels::Backend::read(b, &slab, place, &mut kept).unwrap();
        same_bits(&format!("{what}: the shard at {place}"), &kept, values);
    }
}

/// Around one launch's shards, and around two.
const COUNTS: [usize; 9] = [0, 1, 2, 3, 8, 15, 16, 17, 33];
/// Around a group of four, a block's piece, and more than one of it.
const LENS: [usize; 8] = [0, 1, 3, 4, 5, 1023, 1025, 4099];

#[test]
fn the_bits_are_those_of_an_ordered_sum() {
    for count in COUNTS {
        for len in LENS {
            run(fast(), (count, len), (0, 4 - len % 4), false);
        }
    }
    // Alone at the end of its slab; neither the sum nor any shard on a boundary of 16 bytes.
    for len in LENS {
        run(fast(), (8, len), (0, 0), true);
        run(fast(), (8, len), (3, 1), false);
        run(fast(), (17, len), (1, 2), true);
    }
    run(fast(), (3, 1 << 18), (0, 0), false);
}

#[test]
fn the_order_of_warps_changes_nothing() {
    let b = own();
    for seed in [1, 2, 3] {
        b.device().set_order(seed);
        run(&b, (17, 4099), (0, 1), false);
    }
}

#[test]
fn the_order_of_the_shards_is_seen() {
    let len = 1000;
    let shards: Vec<Vec<f32>> = (0..8).map(|shard| values(shard, len)).collect();
    let mut turned = shards.clone();
    turned.swap(2, 5);
    let (sum, other) = (in_order(&shards, len), in_order(&turned, len));
    let differ = sum.iter().zip(&other).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    // If they did not differ, these tests could not fail.
    assert!(differ > len / 10, "{differ}");
    let minus = in_order(&shards[..1], len).iter().filter(|v| v.to_bits() == 1 << 31).count();
    assert!(minus > len / 10, "{minus} of −0, which a sum from 0 would lose");
}

#[test]
fn every_access_is_checked() {
    for (count, len) in [(0, 9), (1, 4), (3, 13), (16, 1030), (17, 1029), (33, 70)] {
        run(checked(), (count, len), (0, 4 - len % 4), false);
        run(checked(), (count, len), (3, 1), false);
        run(checked(), (count, len), (0, 4 - len % 4), true);
    }
}

#[test]
fn what_does_not_lie_in_the_slab_is_refused() {
    let b = fast();
    let mut slab = upload(b, &[1.0; 40]);
    for (total, shards, len) in [(31, [0, 10], 10), (20, [0, 31], 10), (usize::MAX, [0, 10], 10)] {
        let refused = b.sum_shards(&mut slab, total, &shards, len);
        assert!(matches!(refused, Err(Error::Length { .. })), "{refused:?}");
    }
    for shards in [[0, 11], [29, 0], [20, 0]] {
        let refused = b.sum_shards(&mut slab, 20, &shards, 10);
        assert!(matches!(refused, Err(Error::Routing { .. })), "{shards:?}: {refused:?}");
    }
    assert_eq!(download(b, &slab), [1.0; 40]);
    b.sum_shards(&mut slab, 20, &[0, 10], 10).unwrap();
    b.sum_shards(&mut slab, 40, &[0, 10], 0).unwrap();
}

#[test]
fn seeded_faults_are_caught() {
    caught(Mode::Fast, "SHARDS_ORDER", |b| run(b, (8, 40), (0, 0), false));
    caught(Mode::Fast, "SHARDS_ADD", |b| run(b, (17, 5), (3, 0), false));
    caught(Mode::Checked, "SHARDS_TAIL", |b| run(b, (1, 13), (0, 3), false));
}
