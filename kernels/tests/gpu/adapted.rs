//! Products with their adapters, which come first on a GPU: every element written, rows outside the segments, several
//! layouts in one pack, and the same bits alone and in any pack.

use crate::adapted_world::{Over, Shape, User, World};
use crate::harness::{Emulated, HALF_ULP, PLACES, Subject, caught, checked, own, within_rounding};
use crate::lora_pack::Draw;
use crate::naive::Naive;
use crate::tolerance::{EPS, same_bits};
use emulator::Mode;
use half::bf16;
use kernels::Error;
use std::sync::OnceLock;

fn fast() -> &'static Emulated {
    static DEVICE: OnceLock<Emulated> = OnceLock::new();
    DEVICE.get_or_init(own)
}

fn as_act(v: &[f32]) -> Vec<f32> {
    v.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
}

/// On whole numbers all sums are exact: what differs from the reference's are the roundings named in the contract, one
/// of what comes before the products and one after each product.
fn exact<B: kernels::adapted::Adapted + Subject>(b: &B, world: &World) {
    let add = |to: &mut Vec<f32>, of: Vec<f32>| {
        to.iter_mut().zip(of).for_each(|(to, v)| *to = bf16::from_f32(*to + v).to_f32());
    };
    let (before, bare) = (world.without_products(), world.without_adapters());
    let mut y = as_act(&before.forward(&Naive).unwrap());
    add(&mut y, bare.forward(&Naive).unwrap());
    same_bits("y", &world.forward(b).unwrap(), &y);
    let (dx, grads) = before.backward(&Naive).unwrap();
    let mut dx = as_act(&dx);
    for i in 0..world.products.len() {
        add(&mut dx, bare.of_product(i).backward(&Naive).unwrap().0);
    }
    let (ours, our_grads) = world.backward(b).unwrap();
    same_bits("dx", &ours, &dx);
    same_bits("grads", &our_grads, &grads);
    same_bits("grads without dx", &world.gradients(b).unwrap(), &grads);
}

/// `Y` is off by the adapters' roundings, which `lora.rs` derives, and by one rounding of all that comes before the
/// products; `dX` by one more after each product but the last. Then both by their own.
fn close<B: kernels::adapted::Adapted + Subject>(b: &B, world: &World) {
    let reference = World { params: as_act(&world.params), ..world.clone() };
    let sizes = reference.sizes();
    let (parts, whole) = (sizes.without_products(), sizes.forward(&Naive).unwrap());
    let error = |before: &[f32], all: &[f32], lora: &[f32], (chain, roundings): (f64, f64)| {
        let one = |((before, all), lora): ((&f32, &f32), &f32)| {
            let (before, all, lora) = (f64::from(*before), f64::from(*all), f64::from(*lora));
            let first = HALF_ULP * lora + (world.chain() + 4.0) * EPS * before;
            let rounded = HALF_ULP * (before + first) + (roundings - 1.0) * HALF_ULP * all;
            first + rounded + (chain + 4.0) * EPS * all
        };
        before.iter().zip(all).zip(lora).map(one).collect::<Vec<f64>>()
    };
    let lora = World { residual: None, ..parts.clone() }.without_biases();
    let (before, of_lora) = (parts.forward(&Naive).unwrap(), lora.forward(&Naive).unwrap());
    let d = world.x.width as f64;
    let bound = error(&before, &whole, &of_lora, (d, 1.0));
    let want = reference.forward(&Naive).unwrap();
    within_rounding("y", &world.forward(b).unwrap(), &want, &bound);
    let (whole, before) = (sizes.backward(&Naive).unwrap().0, lora.backward(&Naive).unwrap().0);
    let (n, products) = (world.y.width as f64, world.products.len() as f64);
    let bound = error(&before, &whole, &before, (n, products));
    let want = reference.backward(&Naive).unwrap().0;
    within_rounding("dx", &world.backward(b).unwrap().0, &want, &bound);
}

/// One layout; three of which each lacks products that others have; one site over all products.
const ALL: &[&Over] = &[&[(0, 1), (1, 1), (2, 1)]];
const MIXED: &[&Over] = &[&[(0, 1), (2, 1)], &[(2, 1)], &[(0, 1), (1, 1), (2, 1)]];
const JOINT: &[&Over] = &[&[(0, 3)]];
const SINGLE: &[&Over] = &[&[(0, 1)]];
const ONE: &[&Over] = &[&[(0, 1)], &[], &[(0, 1)]];

/// Rows of the base alone before, between and behind segments, lengths around the tiles, ranks around the classes.
fn users(layouts: usize) -> Vec<User> {
    let rows = [3, 0, 1, 15, 17, 40, 16, 0, 33, 70, 2, 64, 5];
    let ranks = [0, 4, 1, 3, 0, 8, 16, 33, 64, 0, 9, 32, 0];
    let dropout = [0.0, 0.5, 0.0, 0.5, 0.0, 0.75, 0.0, 0.5, 0.0, 0.0, 0.5, 0.0, 0.0];
    let user = |i: usize| (i % layouts, rows[i], ranks[i], dropout[i]);
    (0..rows.len()).map(user).collect()
}

fn shape<'a>(d: usize, widths: &'a [usize], biased: bool, residual: bool) -> Shape<'a> {
    Shape { d, widths, biased, residual }
}

#[test]
fn whole_numbers_are_exact_at_every_edge() {
    for (shape, place, layouts) in [
        (shape(40, &[41, 29, 8], true, false), PLACES[2], ALL),
        (shape(64, &[64, 32, 32], false, false), PLACES[0], MIXED),
        (shape(37, &[30, 10, 10], true, false), PLACES[1], MIXED),
        (shape(24, &[24, 24, 24], true, false), PLACES[0], JOINT),
        (shape(23, &[21, 5, 19], true, false), PLACES[2], JOINT),
        (shape(16, &[300], false, true), PLACES[1], ONE),
        (shape(129, &[70], true, true), PLACES[2], ONE),
        (shape(1, &[1], true, true), PLACES[0], ONE),
    ] {
        exact(fast(), &World::new(Draw::Whole, shape, (place, layouts), &users(layouts.len())));
    }
}

/// So many users that tiles of 32 or of 64 rows are chosen, with lengths around theirs and rows of the base between.
fn tall(tile: usize, layouts: usize) -> Vec<User> {
    let lengths: &[usize] =
        if tile == 32 { &[31, 0, 32, 1, 33, 17, 16, 34] } else { &[63, 1, 64, 0, 65, 128, 33, 48] };
    let (ranks, dropout) = ([4, 1, 8, 3, 16, 64, 2, 33, 9], [0.0, 0.5, 0.0, 0.0, 0.75]);
    // Each layout is a call of its own, and has to fill the device by itself.
    let user = |i: usize| (i % layouts, lengths[i / layouts % 8], ranks[i % 9], dropout[i % 5]);
    let mut users: Vec<User> = (0..184 * layouts).map(user).collect();
    (users[5].2, users[90].2) = (0, 0);
    users
}

#[test]
fn tall_tiles_are_exact() {
    for tile in [32, 64] {
        for (shape, place, layouts) in [
            (shape(40, &[41, 29, 8], true, false), PLACES[2], ALL),
            (shape(37, &[15, 10, 10], true, false), PLACES[1], MIXED),
            (shape(23, &[21, 5, 19], true, false), PLACES[2], JOINT),
        ] {
            let users = tall(tile, layouts.len());
            exact(fast(), &World::new(Draw::Whole, shape, (place, layouts), &users));
        }
        let shape = shape(50, &[72], true, true);
        close(fast(), &World::new(Draw::Real, shape, (PLACES[1], SINGLE), &tall(tile, 1)));
    }
}

#[test]
fn packs_without_some_of_the_rows_are_exact() {
    let shape = shape(24, &[16, 8, 8], true, false);
    let bare = |rows: usize| (0, rows, 0, 0.0);
    let of = |layout: usize, rows: usize| (layout, rows, 8, 0.5);
    for users in [
        vec![],
        vec![bare(20)],
        vec![of(2, 0)],
        vec![of(1, 0), bare(1)],
        vec![bare(65), of(0, 1)],
        vec![of(0, 1), bare(65)],
        vec![of(1, 16), of(1, 16), of(0, 16)],
        vec![bare(15), of(2, 0), of(0, 0), of(2, 1), of(1, 0), bare(1)],
    ] {
        exact(fast(), &World::new(Draw::Whole, shape, (PLACES[1], MIXED), &users));
    }
    // More tiles than 16 bits count: empty segments have one each.
    let mut many = vec![of(0, 0); 66_000];
    (many[0], many[40_000], many[65_999]) = (bare(3), (0, 20, 2, 0.0), bare(2));
    let pack = World::new(Draw::Whole, shape, (PLACES[0], MIXED), &many);
    same_bits("y", &pack.forward(fast()).unwrap(), &pack.exact_forward());
}

#[test]
fn real_numbers_are_within_the_roundings() {
    for (shape, place, layouts) in [
        (shape(136, &[88, 60, 33], true, false), PLACES[0], MIXED),
        (shape(77, &[40, 41, 42], true, false), PLACES[2], JOINT),
        (shape(50, &[290], true, true), PLACES[1], ONE),
        (shape(64, &[72], false, true), PLACES[0], ONE),
    ] {
        close(fast(), &World::new(Draw::Real, shape, (place, layouts), &users(layouts.len())));
    }
}

#[test]
fn a_user_is_the_same_alone_and_beside_other_layouts() {
    for (shape, layouts) in [
        (shape(72, &[40, 16, 24], true, false), MIXED),
        (shape(40, &[48], true, true), ONE),
        (shape(40, &[48], false, true), ONE),
    ] {
        let world = World::new(Draw::Real, shape, (PLACES[0], layouts), &users(layouts.len()));
        let (y, (dx, grads)) = (world.forward(fast()).unwrap(), world.backward(fast()).unwrap());
        let mut touched = world.grads.clone();
        for i in 0..world.users.len() {
            let (rows, alone) = (world.rows_of(i), world.alone(i));
            let part = |v: &[f32], width: usize| v[rows.start * width..rows.end * width].to_vec();
            same_bits("y", &alone.forward(fast()).unwrap(), &part(&y, world.y.width));
            let (dx_alone, grads_alone) = alone.backward(fast()).unwrap();
            same_bits("dx", &dx_alone, &part(&dx, world.x.width));
            for (k, v) in grads_alone.into_iter().enumerate() {
                if v.to_bits() != world.grads[k].to_bits() {
                    touched[k] = v;
                }
            }
        }
        same_bits("grads", &touched, &grads);
        let turned = world.layouts_turned();
        same_bits("y, layouts turned", &turned.forward(fast()).unwrap(), &y);
        same_bits("dx, layouts turned", &turned.backward(fast()).unwrap().0, &dx);
    }
}

#[test]
fn a_refused_segment_takes_no_rows_along() {
    let device = own();
    let (layouts, users) = (ALL, [(0, 20, 4, 0.0), (0, 17, 4, 0.0), (0, 5, 4, 0.0)]);
    let shape = shape(16, &[8, 8, 8], false, false);
    let mut world = World::new(Draw::Whole, shape, (PLACES[0], layouts), &users);
    world.parts[0].segments[1].lora_rank = 65;
    for error in [world.forward(&device).unwrap_err(), world.backward(&device).unwrap_err()] {
        assert!(matches!(error, Error::Routing { op: "lora", .. }), "{error}");
    }
    // Its rows are the base's alone in what the next read brings; the read before has told of it.
    let (rows, width) = (world.rows_of(1), world.y.width);
    let y = world.forward_unread(&device);
    let bare = world.without_adapters().exact_forward();
    let of = |v: &[f32]| v[rows.start * width..rows.end * width].to_vec();
    same_bits("refused rows", &of(&y), &of(&bare));
}

#[test]
fn what_no_layout_of_a_base_has_is_refused() {
    let refused = |residual: bool, layouts: &[&Over], change: fn(&mut World)| {
        let users = [(0, 3, 2, 0.0), (layouts.len() - 1, 4, 2, 0.0)];
        let shape = shape(8, &[8, 8, 8], true, residual);
        let mut world = World::new(Draw::Whole, shape, (PLACES[0], layouts), &users);
        change(&mut world);
        let error = world.forward(fast()).unwrap_err();
        assert!(matches!(error, Error::Routing { op: "adapted_forward", .. }), "{error}");
    };
    // A site over half a product; sites of two layouts over other columns; a residual of three products.
    refused(false, ALL, |world| world.parts[0].sites[1].out_len = 4);
    refused(false, &[&[(0, 1)], &[(0, 2)]], |_| ());
    refused(true, ALL, |_| ());
}

/// A little of everything, for the slow mode.
fn small() -> [World; 3] {
    let users = [(0, 2, 0, 0.0), (0, 17, 8, 0.5), (1, 1, 3, 0.0), (2, 18, 33, 0.0), (0, 0, 4, 0.0)];
    let more = [(0, 3, 20, 0.0), (0, 16, 0, 0.0), (2, 9, 64, 0.5), (0, 1, 0, 0.0)];
    let one = |shape, place: usize, layouts, users: &[User]| {
        World::new(Draw::Whole, shape, (PLACES[place], layouts), users)
    };
    [
        one(shape(24, &[16, 8, 8], false, false), 0, MIXED, &users),
        one(shape(13, &[11, 3, 5], true, false), 2, JOINT, &more.map(|u| (0, u.1, u.2, u.3))),
        one(shape(16, &[264], true, true), 1, ONE, &more),
    ]
}

#[test]
fn every_access_is_checked() {
    for (seed, world) in (0..).zip(small()) {
        checked().device().set_order(seed);
        exact(checked(), &world);
    }
    checked().device().set_order(0);
    for (tile, shape, place) in [
        (32, shape(8, &[8], true, true), PLACES[0]),
        (32, shape(17, &[9], false, false), PLACES[2]),
        (32, shape(24, &[40], true, false), PLACES[1]),
        (64, shape(8, &[8], true, true), PLACES[0]),
        (64, shape(17, &[9], false, false), PLACES[2]),
        (64, shape(24, &[40], true, false), PLACES[1]),
    ] {
        exact(checked(), &World::new(Draw::Whole, shape, (place, SINGLE), &tall(tile, 1)));
    }
}

#[test]
fn seeded_faults_are_caught() {
    for fault in ["LORA_FIRST_GAP", "LORA_FIRST_OTHERS"] {
        caught(Mode::Fast, fault, |b| exact(b, &small()[0]));
    }
    caught(Mode::Fast, "LORA_FIRST_BIAS", |b| exact(b, &small()[1]));
    caught(Mode::Checked, "LORA_RAGGED_ROW", |b| exact(b, &small()[2]));
}
