//! Users on a frozen model: adapters and changes of the intent table, tuned and unlearned in one pack.

use crate::bound;
use crate::device::skipped_on_gpu;
use crate::step_bound::{ROUNDING, distance, norm};
use crate::world::{Emulated, Measured, World, bits, emulated, gradients, measure, specs, upload};
use emulator::Mode;
use kernels::classify::{ClassLoss, Classify, Row};
use kernels::optim::Update;
use kernels::{Backend, Cpu};
use std::ops::Range;
use trainer::ids::Slot;
use trainer::lora::Target;
use trainer::model::event::{EventNetwork, History};
use trainer::stage::foresee::{Asker, Form, Own, run as foresee};

/// What cancels in the gradients of queries and keys, as in `gpu_step`.
fn cancelled(target: Target) -> f64 {
    if target == Target::CAttn { ROUNDING } else { 0.0 }
}

/// The gradients of each user's windows one by one, on the CPU: what holds on and what is led away may all but cancel in
/// their sum, and roundings are those of the terms.
fn terms(world: &World, net: &EventNetwork<Cpu>) -> Vec<Vec<Vec<f32>>> {
    let of = |i: usize| {
        let one = |window: usize| {
            let mut engine = world.engine(net, 2);
            let packer = world.pack_some(&engine, &[i], (0.0, 3), Some(window));
            engine.train(&packer).unwrap();
            gradients(&engine).swap_remove(i)
        };
        (0..world.users[i].samples.len()).map(one).collect()
    };
    (0..world.users.len()).map(of).collect()
}

/// How far the gradient of a user's logits is off, relative to its norm, by the logits' own roundings: where the model is
/// all but certain, or all but agrees with its teacher, what is left is a small difference of probabilities.
fn conditioning(world: &World, i: usize, ours: &[f32], theirs: &[f32]) -> f64 {
    let (samples, classes) = (&world.users[i].samples, world.model.spec.intents);
    let rows = samples.len();
    let (table, teacher): (Vec<Row>, Vec<Vec<f32>>) =
        samples.iter().map(|s| s.row(classes)).unzip();
    let mut entries = Cpu.alloc(rows).unwrap();
    Cpu.write(&mut entries, 0, &table).unwrap();
    let teacher = upload(&Cpu, &teacher.concat());
    let gradient = |logits: &[f32]| {
        let (mut losses, mut out) = (Cpu.alloc(rows).unwrap(), Cpu.alloc(logits.len()).unwrap());
        Cpu.class_loss(ClassLoss {
            logits: &upload(&Cpu, logits),
            teacher: Some(&teacher),
            table: &entries,
            losses: &mut losses,
            dlogits: Some(&mut out),
            rows,
            classes,
        })
        .unwrap();
        let mut values = vec![f32::NAN; logits.len()];
        Cpu.read(&out, 0, &mut values).unwrap();
        values
    };
    let (a, b) = (gradient(ours), gradient(theirs));
    distance(&a, &b) / norm(&b)
}

/// Root of the sum of squares over all terms.
fn joint(terms: &[Vec<f32>], range: Range<usize>) -> f64 {
    terms.iter().map(|g| norm(&g[range.clone()]).powi(2)).sum::<f64>().sqrt()
}

/// What is further from the CPU's step than allowed, or not zero where nothing is trained.
fn differing(
    world: &World,
    (terms, conditioning): (&[Vec<Vec<f32>>], &[f64]),
    ours: &Measured,
    theirs: &Measured,
) -> Vec<String> {
    let (spec, mut out) = (&world.model.spec, Vec::new());
    for (i, user) in world.users.iter().enumerate() {
        let lora_rank = user.lora.lora_rank as usize;
        let (a, b) = (&ours.gradients[i], &theirs.gradients[i]);
        let whole = joint(&terms[i], 0..user.params.len());
        let sites = world.sites(i);
        let matrices = sites
            .tensors(lora_rank)
            .map(|(site, half, range)| (site.peft_key(half), range, cancelled(site.target)));
        let tensors = sites.whole_ranges(lora_rank).map(|(t, range)| (t.name.clone(), range, 0.0));
        for (name, range, cancelled) in matrices.chain(tensors) {
            let norm = joint(&terms[i], range.clone());
            let off = distance(&a[range.clone()], &b[range]);
            let allowed = (bound::gradient(spec) + conditioning[i]) * norm + cancelled * whole;
            if off.is_nan() || off > allowed {
                out.push(format!("user {i}, {name}: off by {off:e}, allowed {allowed:e}"));
            }
        }
    }
    for (i, (a, b)) in ours.gradients.iter().zip(&theirs.gradients).enumerate() {
        let trained = world.users.get(i).map_or(0, |user| user.params.len());
        if [a, b].iter().any(|x| x[trained..].iter().any(|&v| v != 0.0)) {
            out.push(format!("slot {i}: not zero where nothing is trained"));
        }
    }
    out
}

/// Losses move with logits by no more than [`bound::SLOPE`].
fn losses_differ(ours: &Measured, theirs: &Measured, logits: f64) -> Option<String> {
    let (a, b) = (ours.losses.concat(), theirs.losses.concat());
    let (off, allowed) = (distance(&a, &b), bound::SLOPE * logits + 1e-5 * norm(&b));
    (off.is_nan() || off > allowed).then(|| format!("losses off by {off}, allowed {allowed}"))
}

/// Everybody's numbers of all windows, in their order.
pub(crate) fn answers<B: kernels::Ops>(
    world: &World,
    net: &EventNetwork<B>,
    (who, form): (&[usize], Form),
) -> Vec<Vec<f32>> {
    let mut engine = world.engine(net, 0);
    let asker = |&i: &usize| {
        let user = &world.users[i];
        Asker {
            user: user.name.clone(),
            own: Some(Own { lora: user.lora.clone(), params: user.params.clone() }),
            windows: user.samples.iter().map(super::world::Sample::example).collect(),
        }
    };
    let askers: Vec<Asker> = who.iter().map(asker).collect();
    let mut all = vec![Vec::new(); who.len()];
    let of_mean = world.model.spec.history == History::Mean;
    foresee(&mut engine, &askers, (form, of_mean), &mut |asker, _, row| {
        all[asker].extend_from_slice(row);
    })
    .unwrap();
    all
}

#[test]
fn one_step_is_that_of_the_cpu() {
    let device: Emulated = emulated(Mode::Fast, &[]);
    for (name, spec) in specs() {
        let world = World::new(&spec);
        let (cpu, gpu) = (world.model.cpu(), world.model.net(device.clone()));
        let who = world.everybody();
        let a = answers(&world, &gpu, (&who, Form::Logits));
        let b = answers(&world, &cpu, (&who, Form::Logits));
        let off: Vec<f64> = who.iter().map(|&i| conditioning(&world, i, &a[i], &b[i])).collect();
        assert!(off.iter().all(|off| *off < 0.5), "{name}: {off:?}");
        let terms = terms(&world, &cpu);
        let theirs = measure(&world, &cpu, &who, (0.0, 2)).unwrap();
        for stored in [2, 0] {
            let ours = measure(&world, &gpu, &who, (0.0, stored)).unwrap();
            let mut found = differing(&world, (&terms, &off), &ours, &theirs);
            found.extend(losses_differ(&ours, &theirs, distance(&a.concat(), &b.concat())));
            assert_eq!(found, Vec::<String>::new(), "{name}, {stored} stored: {off:?}");
        }
    }
}

/// Users whose losses or gradient have other bits than alone.
fn others(alone: &[Measured], who: &[usize], together: &Measured) -> Vec<usize> {
    let differs = |&(share, i): &(usize, usize)| {
        bits(&alone[i].losses[0]) != bits(&together.losses[share])
            || bits(&alone[i].gradients[i]) != bits(&together.gradients[i])
    };
    who.iter().copied().enumerate().filter(differs).map(|(_, i)| i).collect()
}

#[test]
fn nobodys_bits_depend_on_others() {
    let device: Emulated = emulated(Mode::Fast, &[]);
    for (name, spec) in specs() {
        let world = World::new(&spec);
        let (net, all) = (world.model.net(device.clone()), world.everybody());
        let one = |&i: &usize| measure(&world, &net, &[i], (0.25, 2)).unwrap();
        let alone: Vec<Measured> = all.iter().map(one).collect();
        let backwards: Vec<usize> = all.iter().rev().copied().collect();
        for (who, stored, order) in [(all.clone(), 0, 0), (backwards, 2, 7), (vec![5, 1, 6], 2, 8)]
        {
            device.device().set_order(order);
            let together = measure(&world, &net, &who, (0.25, stored)).unwrap();
            device.device().set_order(0);
            assert_eq!(others(&alone, &who, &together), Vec::<usize>::new(), "{name}, {who:?}");
            // The comparison can fail: other masks are another gradient for whoever has an adapter.
            if order == 0 {
                let other = measure(&world, &net, &who, (0.2, stored)).unwrap();
                let adapted = |i: &usize| world.users[*i].layout != world.users[1].layout;
                let adapted: Vec<usize> = who.iter().copied().filter(adapted).collect();
                assert_eq!(others(&alone, &who, &other), adapted, "{name}");
            }
        }
    }
}

/// From the device's own gradients, the CPU's step.
#[test]
fn one_step_of_the_optimiser_is_that_of_the_cpu() {
    let device: Emulated = emulated(Mode::Fast, &[]);
    let (_, spec) = specs()[1].clone();
    let world = World::new(&spec);
    let (cpu, gpu) = (world.model.cpu(), world.model.net(device));
    let (mut ours, mut theirs) = (world.engine(&gpu, 2), world.engine(&cpu, 2));
    let packer = world.pack(&ours, &world.everybody(), (0.0, 0));
    ours.train(&packer).unwrap();
    for (slot, gradient) in (0..).map(Slot).zip(gradients(&ours)) {
        theirs.write_gradient(slot, &gradient).unwrap();
    }
    let one = |(i, user): (u32, &crate::world::User)| Update {
        offset: ours.slabs.offset(Slot(i)) as u64,
        len: u32::try_from(user.params.len()).unwrap(),
        step: 1,
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        clip_norm: [0.05, 1e3, 0.0][i as usize % 3],
    };
    let updates: Vec<Update> = (0..).zip(&world.users).map(one).collect();
    let mut norms = [(); 2].map(|()| vec![f32::NAN; updates.len()]);
    ours.update(&updates, &mut norms[0]).unwrap();
    theirs.update(&updates, &mut norms[1]).unwrap();
    let allowed = 2.0 * 12.0 / 16_777_216.0;
    assert!(distance(&norms[0], &norms[1]) <= allowed * norm(&norms[1]), "{norms:?}");
    for (i, user) in (0..).zip(&world.users) {
        let mut after = [(); 2].map(|()| vec![f32::NAN; user.params.len()]);
        ours.read(Slot(i), &mut after[0]).unwrap();
        theirs.read(Slot(i), &mut after[1]).unwrap();
        let (off, size) = (distance(&after[0], &after[1]), norm(&after[1]));
        assert!(off <= allowed * size, "user {i}: off by {off:e} of {size:e}");
        assert_ne!(bits(&after[0]), bits(&user.params), "user {i} was trained");
    }
}

/// A device that leaves people's changes of the intent table out is found out, and only where there are any.
#[test]
fn seeded_faults_are_seen() {
    if skipped_on_gpu("seeded faults") {
        return;
    }
    let (_, spec) = specs()[0].clone();
    let world = World::new(&spec);
    let who = world.everybody();
    let cpu = world.model.cpu();
    let theirs = measure(&world, &cpu, &who, (0.0, 2)).unwrap();
    let device = emulated(Mode::Fast, &["INTENT_DELTA"]);
    let ours = measure(&world, &world.model.net(device), &who, (0.0, 2)).unwrap();
    let [a, b] = [
        answers(&world, &world.model.net(emulated(Mode::Fast, &[])), (&who, Form::Logits)),
        answers(&world, &cpu, (&who, Form::Logits)),
    ];
    let off: Vec<f64> = who.iter().map(|&i| conditioning(&world, i, &a[i], &b[i])).collect();
    let found = differing(&world, (&terms(&world, &cpu), &off), &ours, &theirs);
    assert!(!found.is_empty());
    // Users 2 and 5 have adapters alone.
    let adapted = |f: &String| f.starts_with("user 2,") || f.starts_with("user 5,");
    assert!(!found.iter().any(adapted), "{found:?}");
}
