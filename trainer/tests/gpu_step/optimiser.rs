//! One step of the optimiser, and twenty steps of training.

use crate::bound;
use crate::world::{BASES, Emulated, User, World, emulated, everybody, gradients, split};
use emulator::Mode;
use kernels::Ops;
use kernels::optim::Update;
use trainer::ids::Slot;
use trainer::model::network::Network;
use trainer::stage::engine::Engine;

/// Roundings to `f32` of a parameter, a moment or a norm in one step, `2^-24` each, doubled.
const OPTIMISER: f64 = 2.0 * 12.0 / 16_777_216.0;

/// The updates of those who train, each with rates of its own.
pub(crate) fn updates(world: &World, engine: &Engine<'_, impl Ops>, step: u32) -> Vec<Update> {
    let one = |(i, user): (u8, &User)| Update {
        offset: engine.slabs.offset(Slot(u32::from(i))) as u64,
        len: u32::try_from(user.params.len()).unwrap(),
        step: step + 1,
        learning_rate: 0.01 + 0.001 * f32::from(i),
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01 * f32::from(i),
        // Some are clipped, some are not, some have no clip norm.
        clip_norm: [0.05, 1e3, 0.0][usize::from(i) % 3],
    };
    let users = (0..).zip(&world.users).filter(|(_, user)| !user.bare());
    users.map(one).collect()
}

/// Parameters, first and second moments of a slot, its whole capacity.
fn state(engine: &Engine<'_, impl Ops>, slot: u32) -> [Vec<f32>; 3] {
    let empty = || vec![f32::NAN; engine.slabs.capacity()];
    let (mut p, mut m, mut v) = (empty(), empty(), empty());
    engine.read(Slot(slot), &mut p).unwrap();
    engine.read_moments(Slot(slot), (&mut m, &mut v)).unwrap();
    [p, m, v]
}

fn close(what: &str, ours: &[f32], theirs: &[f32], allowed: f64) {
    let off = bound::distance(ours, theirs);
    let allowed = allowed * bound::norm(theirs);
    assert!(off <= allowed, "{what}: off by {off:e}, allowed {allowed:e}");
}

/// From the device's own gradients, the CPU's step; from its own, a step as far away as gradients are.
#[test]
fn one_step_of_the_optimiser_is_that_of_the_cpu() {
    let device: Emulated = emulated(Mode::Fast, &[]);
    for name in BASES {
        let world = World::open(name);
        let (cpu, gpu) = (world.cpu(), world.gpu(&device));
        let allowed = bound::gradient(world.base.spec());
        let who = everybody(&world);
        let (mut ours, mut same, mut theirs) =
            (world.engine(&gpu, 0), world.engine(&cpu, 0), world.engine(&cpu, 0));
        let packer = world.pack(&ours, &who, (0.0, 0));
        ours.train(&packer).unwrap();
        theirs.train(&packer).unwrap();
        for (gradient, slot) in gradients(&ours).iter().zip((0..).map(Slot)) {
            same.write_gradient(slot, gradient).unwrap();
        }
        let updates = updates(&world, &ours, 0);
        let mut norms = [(); 3].map(|()| vec![f32::NAN; updates.len()]);
        ours.update(&updates, &mut norms[0]).unwrap();
        same.update(&updates, &mut norms[1]).unwrap();
        theirs.update(&updates, &mut norms[2]).unwrap();
        close(&format!("{name}, norms"), &norms[0], &norms[1], OPTIMISER);
        for (i, (a, b)) in norms[0].iter().zip(&norms[2]).enumerate() {
            close(&format!("{name}, norm {i}"), &[*a], &[*b], allowed);
        }
        for (i, slot) in (0..).zip(0..ours.slabs.num_slots()) {
            let at = |what| format!("{name}, slot {slot}, {what}");
            let (a, b, c) = (state(&ours, slot), state(&same, slot), state(&theirs, slot));
            for (k, what) in ["parameters", "m", "v"].into_iter().enumerate() {
                close(&at(what), &a[k], &b[k], OPTIMISER);
            }
            // Gradient and clip factor each off by that much; squared in v.
            close(&at("own m"), &a[1], &c[1], 2.0 * allowed);
            close(&at("own v"), &a[2], &c[2], 4.0 * allowed);
            if world.users.get(i).is_none_or(User::bare) {
                assert!([&a[1], &a[2]].iter().all(|x| x.iter().all(|&v| v == 0.0)), "{slot}");
            }
        }
        // Due slots begin again from zero; the spare slot is as it was loaded.
        assert!(gradients(&ours).concat().iter().all(|&g| g == 0.0), "{name}");
        let spare = state(&ours, ours.slabs.num_slots() - 1);
        assert!(spare[0].iter().all(|&p| p.to_bits() == 1.0_f32.to_bits()), "{name}");
    }
}

/// The mean loss of each user at each step.
fn curve<B: Ops>(world: &World, net: &Network<B>, who: &[usize]) -> Vec<Vec<f64>> {
    let mut engine = world.engine(net, 0);
    let mut updates = updates(world, &engine, 0);
    updates.retain(|u| who.iter().any(|&i| engine.slabs.offset(slot(i)) as u64 == u.offset));
    let mut norms = vec![0.0; updates.len()];
    let mut curve = Vec::new();
    for step in 0..20 {
        let packer = world.pack(&engine, who, (0.1, step));
        let losses = split(&packer, engine.train(&packer).unwrap());
        updates.iter_mut().for_each(|u| u.step = step + 1);
        engine.update(&updates, &mut norms).unwrap();
        let mean = |l: &Vec<f32>| {
            l.iter().map(|&v| f64::from(v)).sum::<f64>()
                / f64::from(u16::try_from(l.len()).unwrap())
        };
        curve.push(losses.iter().map(mean).collect());
    }
    curve
}

fn slot(i: usize) -> Slot {
    Slot(u32::try_from(i).unwrap())
}

/// A loss is off by its own roundings, and by those of the gradients that led there: what was descended so far is a
/// sum of gradient times step, and each of them is off by as much as a gradient.
#[test]
fn the_loss_falls_as_on_the_cpu() {
    let device: Emulated = emulated(Mode::Fast, &[]);
    for name in BASES {
        let world = World::open(name);
        let (cpu, gpu) = (world.cpu(), world.gpu(&device));
        let (spec, who) = (world.base.spec(), [1, 3]);
        let (ours, theirs) = (curve(&world, &gpu, &who), curve(&world, &cpu, &who));
        let equal = f64::from(u16::try_from(spec.vocab).unwrap()).ln();
        for share in 0..who.len() {
            let (first, last) = (ours[0][share], ours[19][share]);
            // Logits are as large as the furthest loss from that of equal logits says.
            let logits = theirs.iter().map(|l| (l[share] - equal).abs()).fold(0.0, f64::max);
            for (step, (a, b)) in ours.iter().zip(&theirs).enumerate() {
                let descended = (theirs[0][share] - b[share]).abs();
                let allowed = bound::loss(spec) * logits + bound::gradient(spec) * descended;
                let off = (a[share] - b[share]).abs();
                assert!(
                    off <= allowed,
                    "{name}, user {}, step {step}: {} and {}, allowed {allowed}",
                    who[share],
                    a[share],
                    b[share]
                );
            }
            assert!(last < first - 0.5, "{name}, user {}: {first} to {last}", who[share]);
        }
    }
}
