//! Answers through the key/value cache.

use crate::bound;
use crate::device::{TestDevice, skipped_on_gpu};
use crate::world::{BASES, Emulated, World, emulated};
use emulator::Mode;
use kernels::Ops;
use kernels::gpu::Gpu;
use trainer::ids::UserId;
use trainer::model::decode::Predictor;
use trainer::model::network::Network;
use trainer::stage::individual::PackRules;
use trainer::stage::predict::{Asker, Oracle, Own};
use trainer::stage::sample::Sampling;

pub(crate) const GREEDY: Sampling =
    Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, max_new_tokens: 5, seed: 0 };

/// With a cache to decode, without one to score.
pub(crate) fn oracle<B: Ops>(net: &Network<B>, cache_rows: usize) -> Oracle<'_, B> {
    let rules = PackRules { chunk_rows: 64, share_prefixes: true };
    Oracle::new(net, (96, cache_rows), 3, rules).unwrap()
}

/// Users 0, 3 and 6 (the base alone) with two prompts each, the first two of which share a prefix.
pub(crate) fn askers(world: &World) -> Vec<Asker> {
    let prompt = |i: usize| {
        let e = &world.examples[i];
        e.tokens[..e.prompt_len].to_vec()
    };
    let one = |(user, prompts): (usize, [usize; 2])| {
        let of = &world.users[user];
        let own =
            || Own { lora: of.lora.clone(), sites: of.sites.clone(), params: of.params.clone() };
        Asker {
            user: UserId::new(&format!("user {user}")),
            adapter: (!of.bare()).then(own),
            prompts: prompts.map(prompt).to_vec(),
        }
    };
    [(0, [0, 1]), (3, [10, 8]), (6, [5, 6])].map(one).to_vec()
}

/// Where an answer leaves the CPU's, the CPU itself must hold both tokens for nearly as likely: by no more than two
/// logits may be off.
fn answers_are_those_of_the_cpu(device: &Emulated, bases: &[&str]) {
    for &name in bases {
        let world = World::open(name);
        let (cpu, gpu) = (world.cpu(), world.gpu(device));
        let vocab: Vec<u32> = (0..u32::try_from(world.base.spec().vocab).unwrap()).collect();
        let askers = askers(&world);
        let theirs = oracle(&cpu, 192).generate(&askers, &GREEDY, &[]).unwrap();
        let ours = oracle(&gpu, 192).generate(&askers, &GREEDY, &[]).unwrap();
        let mut equal = 0;
        for (i, asker) in askers.iter().enumerate() {
            for (k, prompt) in asker.prompts.iter().enumerate() {
                let (a, b) = (&ours[i][k], &theirs[i][k]);
                assert_eq!((a.len(), b.len()), (5, 5));
                let Some(at) = a.iter().zip(b).position(|(a, b)| a != b) else {
                    equal += 1;
                    continue;
                };
                let prompts = vec![prompt.iter().chain(&b[..at]).copied().collect()];
                let asker = Asker { prompts, ..asker.clone() };
                let p = oracle(&cpu, 0).branch_probabilities(&[asker], &[&vocab]).unwrap();
                let logits: Vec<f32> = p[0][0].iter().map(|p| p.ln()).collect();
                let mean = logits.iter().sum::<f32>() / logits.len() as f32;
                let centred: Vec<f32> = logits.iter().map(|l| l - mean).collect();
                let deviation = bound::norm(&centred) / (logits.len() as f64).sqrt();
                let gap = f64::from(logits[b[at] as usize] - logits[a[at] as usize]);
                let allowed = 2.0 * bound::loss(world.base.spec()) * deviation;
                assert!(gap <= allowed, "{name}, {i}.{k}: {a:?}, {b:?}: {gap} over {allowed}");
            }
        }
        assert!(equal >= 3, "{name}: {equal} answers of 6 equal");
    }
}

#[test]
fn answers_of_every_base() {
    answers_are_those_of_the_cpu(&emulated(Mode::Fast, &[]), &BASES);
}

/// The prompts of user 0 share a prefix and stay with our kernels, those of the others are taken, in both blocks.
#[test]
fn answers_by_attention_kernels_that_the_device_brings_along() {
    if skipped_on_gpu("counted calls of attention") {
        return;
    }
    let device = Gpu::new(TestDevice::open_flash()).unwrap();
    let calls = || match device.device() {
        TestDevice::Emulator(emulator) => emulator.flash_calls(),
        TestDevice::Cuda(_) => 0,
    };
    answers_are_those_of_the_cpu(&device, &["llama_untied", "gpt2"]);
    assert!(calls() >= 4, "{} calls", calls());
    let world = World::open("llama_untied");
    let gpu = world.gpu(&device);
    let (before, room) = (calls(), Predictor::bytes(&gpu, 96, 192));
    assert!(room > Predictor::bytes(&world.gpu(&emulated(Mode::Fast, &[])), 96, 192));
    let scored = oracle(&gpu, 0).branch_probabilities(&askers(&world)[1..2], &[&[1, 2]]).unwrap();
    assert!(scored[0].iter().flatten().all(|p| p.is_finite()));
    assert!(calls() > before, "scoring alone");
}
