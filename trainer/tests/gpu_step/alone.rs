//! Solo equivalence on the device: a user's losses and gradient have the same bits alone and beside others.

use crate::world::{BASES, Emulated, Measured, World, emulated, everybody, measure};
use emulator::Mode;
use kernels::random::philox;

/// Order of users by random numbers.
fn shuffled(n: usize, seed: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|&i| philox([seed, 0xa1], [u32::try_from(i).unwrap(), 0, 0, 0]));
    order
}

/// Users whose losses or gradient have other bits than alone.
fn differing(alone: &[Measured], who: &[usize], together: &Measured) -> Vec<usize> {
    let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
    let differs = |&(share, i): &(usize, usize)| {
        bits(&alone[i].losses[0]) != bits(&together.losses[share])
            || bits(&alone[i].gradients[i]) != bits(&together.gradients[i])
    };
    who.iter().copied().enumerate().filter(differs).map(|(_, i)| i).collect()
}

#[test]
fn nobodys_bits_depend_on_others() {
    let device: Emulated = emulated(Mode::Fast, &[]);
    for name in BASES {
        let world = World::open(name);
        let net = world.gpu(&device);
        let all = everybody(&world);
        let one = |&i: &usize| measure(&world, &net, &[i], (0.25, 99)).unwrap();
        let alone: Vec<Measured> = all.iter().map(one).collect();
        for (i, measured) in alone.iter().enumerate() {
            let trained = |g: &Vec<f32>| g.iter().any(|&v| v != 0.0);
            let others = measured.gradients.iter().enumerate().filter(|&(slot, _)| slot != i);
            assert!(
                !others.into_iter().any(|(_, g)| trained(g)),
                "{name}: user {i} trained others"
            );
        }
        let backwards: Vec<usize> = all.iter().rev().copied().collect();
        let packs = [
            (all.clone(), 0, 0),
            (backwards, 99, 7),
            (shuffled(all.len(), 1), 1, 8),
            (shuffled(all.len(), 2)[..5].to_vec(), 0, 9),
        ];
        for (who, stored, order) in packs {
            device.device().set_order(order);
            let together = measure(&world, &net, &who, (0.25, stored)).unwrap();
            device.device().set_order(0);
            assert_eq!(differing(&alone, &who, &together), Vec::<usize>::new(), "{name}, {who:?}");
            // The comparison can fail: other masks are another gradient for everybody who trains on a row.
            if order == 0 {
                let other = measure(&world, &net, &who, (0.2, stored)).unwrap();
                let training =
                    |i: &usize| !world.users[*i].bare() && world.users[*i].supervised() > 0;
                let training: Vec<usize> = who.iter().copied().filter(training).collect();
                assert_eq!(differing(&alone, &who, &other), training, "{name}");
            }
        }
    }
}
