//! Losses and every adapter's gradient of one step.

use crate::bound;
use crate::device::skipped_on_gpu;
use crate::optimiser::updates;
use crate::world::{
    BASES, Emulated, Measured, World, emulated, everybody, gradients, measure, split,
};
use emulator::Mode;
use trainer::ids::Slot;
use trainer::lora::{Half, SiteSpec, Target};

/// What cancels in the gradients of queries and keys: softmax's is `P (dP - dO·O)`, and `O` has been rounded once. Of a
/// row with few keys both terms may be far larger than their difference (with one key it is zero), and no larger than
/// what makes the rest of the user's gradient.
///
/// Likewise in the gradients of `A` of one supervised row: `dS = dY·B` is as many numbers as the adapter's rank, each a
/// sum over all outputs, and all may be far smaller than their terms, whose roundings they keep. (Seen with rank 3: off by
/// 9 % of a norm that is 3 % of the whole gradient's, which is 0.3 % of the whole, as much as other tensors are off.)
fn cancelled(site: &SiteSpec, half: Half, supervised: usize) -> f64 {
    match (site.target, half) {
        (Target::Q | Target::K | Target::CAttn, _) => bound::ROUNDING,
        (_, Half::A) if supervised == 1 => bound::ROUNDING,
        _ => 0.0,
    }
}

/// What is further from the CPU's step than allowed, or not zero where nothing is trained.
fn differing(world: &World, ours: &Measured, theirs: &Measured) -> Vec<String> {
    let mut out = Vec::new();
    let spec = world.base.spec();
    let equal = f64::from(u16::try_from(spec.vocab).unwrap()).ln();
    let from_equal =
        |losses: &[f32]| losses.iter().map(|&l| (f64::from(l) - equal).powi(2)).sum::<f64>().sqrt();
    let (a, b) = (ours.losses.concat(), theirs.losses.concat());
    let (distance, allowed) = (bound::distance(&a, &b), bound::loss(spec) * from_equal(&b));
    let near = distance <= allowed;
    if !near {
        out.push(format!("losses off by {distance}, allowed {allowed}"));
    }
    for (i, user) in world.users.iter().enumerate() {
        let (a, b) = (&ours.gradients[i], &theirs.gradients[i]);
        let whole = bound::norm(b);
        for (site, half, range) in user.sites.tensors(user.lora.lora_rank as usize) {
            let (a, b) = (&a[range.clone()], &b[range]);
            let (distance, norm) = (bound::distance(a, b), bound::norm(b));
            let near = distance
                <= bound::gradient(spec) * norm + cancelled(&site, half, user.supervised()) * whole;
            if !near {
                let tensor = site.peft_key(half);
                out.push(format!(
                    "user {i}, {tensor}: off by {distance:e} of {norm:e}, {whole:e} in all"
                ));
            }
        }
    }
    for (i, (a, b)) in ours.gradients.iter().zip(&theirs.gradients).enumerate() {
        let user = world.users.get(i).filter(|user| user.supervised() > 0);
        let trained = user.map_or(0, |user| user.params.len());
        if [a, b].iter().any(|x| x[trained..].iter().any(|&v| v != 0.0)) {
            out.push(format!("slot {i}: not zero where nothing is trained"));
        }
    }
    out
}

#[test]
fn one_step_is_that_of_the_cpu() {
    let device: Emulated = emulated(Mode::Fast, &[]);
    for name in BASES {
        let world = World::open(name);
        let (cpu, gpu) = (world.cpu(), world.gpu(&device));
        for how in [(0.0, 99), (0.25, 0)] {
            let who = everybody(&world);
            let theirs = measure(&world, &cpu, &who, how).unwrap();
            let ours = measure(&world, &gpu, &who, how).unwrap();
            assert_eq!(differing(&world, &ours, &theirs), Vec::<String>::new(), "{name}, {how:?}");
        }
    }
}

/// Suffixes of a shared prefix add to its keys and values, the last chunk of a segment's rows is ragged, positions turn
/// one way, the adapters of one layout leave the rows of the others alone: a device that gets one of these wrong is found
/// out, and only where it is wrong.
#[test]
fn seeded_faults_are_seen() {
    if skipped_on_gpu("seeded faults") {
        return;
    }
    let world = World::open("llama_tied");
    let who = everybody(&world);
    let theirs = measure(&world, &world.cpu(), &who, (0.0, 0)).unwrap();
    let found = |fault| {
        let device = emulated(Mode::Fast, &[fault]);
        let ours = measure(&world, &world.gpu(&device), &who, (0.0, 0)).unwrap();
        let found = differing(&world, &ours, &theirs);
        assert!(!found.is_empty(), "{fault}");
        found
    };
    // User 0 alone has a shared prefix.
    let suffix = found("ATTENTION_SUFFIX");
    assert!(suffix.iter().all(|f| f.starts_with("user 0, ")), "{suffix:?}");
    let ragged = found("LORA_RAGGED_CHUNK");
    assert!(ragged.iter().all(|f| f.starts_with("user ")), "{ragged:?}");
    let turned = found("ROPE_SIGN");
    assert!(turned.iter().any(|f| f.starts_with("losses ")), "{turned:?}");
    let others = found("LORA_FIRST_OTHERS");
    assert!(others.iter().any(|f| f.starts_with("user ")), "{others:?}");
}

/// Every access of a small step looked at, and the same bits as without.
#[test]
fn checked_mode_finds_nothing() {
    if skipped_on_gpu("checked mode") {
        return;
    }
    let (fast, checked) = (emulated(Mode::Fast, &[]), emulated(Mode::Checked, &[]));
    for name in BASES {
        let world = World::open(name);
        let (plain, looked) = (world.gpu(&fast), world.gpu(&checked));
        let mut engines = [world.engine(&plain, 0), world.engine(&looked, 0)];
        let ran = engines.each_mut().map(|engine| {
            let packer = world.pack(engine, &[0, 1, 4, 5, 7], (0.25, 0));
            let losses = split(&packer, engine.train(&packer).unwrap());
            let gradients = gradients(engine);
            let updates = updates(&world, engine, 0);
            let mut norms = vec![0.0; updates.len()];
            engine.update(&updates, &mut norms).unwrap();
            let mut params = vec![0.0; engine.slabs.capacity()];
            engine.read(Slot(1), &mut params).unwrap();
            (losses, gradients, norms, params)
        });
        assert_eq!(ran[0], ran[1], "{name}");
    }
}
