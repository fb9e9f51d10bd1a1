//! Golden cases made by transformers and PEFT (`scripts/golden/make.py`): logits, loss, every adapter
//! gradient, ten AdamW steps with clipping and schedule, greedy continuations.
//!
//! Tolerances are those that f32 itself allows, as each case's README measures them (padded batches
//! against one example at a time in torch: gradients 2e-6 of the largest, losses 1e-6, adapters 1.4e-6),
//! times four for another order of additions.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod case;

use case::{Case, largest_difference};
use kernels::Cpu;
use std::sync::atomic::AtomicBool;
use trainer::config::Recipe;
use trainer::ids::{Slot, UserId};
use trainer::model::Adapters;
use trainer::model::activations::StepSize;
use trainer::model::decode::Predictor;
use trainer::model::network::Network;
use trainer::pack::{Packer, Piece, Share};
use trainer::stage::engine::Engine;
use trainer::stage::individual::PackRules;
use trainer::stage::predict::{Asker, Oracle, Own};
use trainer::stage::sample::Sampling;

const CASES: [&str; 3] = ["llama_tied", "llama_untied", "gpt2"];

/// Every way of laying out the same step.
const LAYOUTS: [(bool, usize); 4] = [(false, 99), (true, 99), (true, 0), (true, 1)];

fn size(stored_blocks: usize) -> StepSize {
    StepSize { rows: 256, stored_blocks, backward: true }
}

fn logits(
    case: &Case,
    net: &Network<Cpu>,
    with_adapter: bool,
    share_prefixes: bool,
) -> Vec<Vec<f32>> {
    let mut engine = Engine::new(net, &case.lists, size(0), (1, case.adapter.len())).unwrap();
    engine.slabs.take().unwrap();
    engine.load(Slot(0), &case.adapter).unwrap();
    let mut params = vec![0.0; case.adapter.len()];
    engine.read(Slot(0), &mut params).unwrap();
    let params = kernels::cpu::CpuBuf::from(params);
    let adapters = Adapters { layouts: case.lists.layouts(), params: &params };
    let segment = case.segment(engine.segment(Slot(0), Slot(0)));
    let pieces: Vec<Piece<'_>> = case
        .examples
        .iter()
        .map(|e| Piece { rows: &e.tokens, first_output: 0, targets: &[], loss: None, only: None })
        .collect();
    let mut packer = Packer::new(share_prefixes);
    packer.add(&Share {
        adapter: with_adapter.then_some(segment),
        layout: 0,
        pieces: &pieces,
        weight: 0.0,
        first_token: 0,
    });
    packer.batch().check(net.spec().vocab, net.max_positions()).unwrap();
    let mut predictor = Predictor::new(net, 256, 0).unwrap();
    let mut rows = Vec::new();
    predictor
        .prefill(net, (packer.batch(), &[]), adapters, &mut |_, l| rows.push(l.to_vec()))
        .unwrap();
    let mut rows = rows.into_iter();
    case.examples.iter().map(|e| rows.by_ref().take(e.tokens.len()).flatten().collect()).collect()
}

#[test]
fn logits_with_and_without_adapter() {
    for name in CASES {
        let case = Case::open(name);
        let net = case.network();
        for with_adapter in [false, true] {
            let ours = logits(&case, &net, with_adapter, true);
            for (i, ours) in ours.iter().enumerate() {
                let key = format!("{}logits.{i}", if with_adapter { "" } else { "base_" });
                let difference = largest_difference(ours, &case.expected(&key));
                assert!(difference < 2e-5, "{name} {key}: {difference}");
            }
        }
    }
}

#[test]
fn both_spellings_of_the_config_are_one_model() {
    for name in CASES {
        let case = Case::open(name);
        let v4 = Case::open_spelled(name, "base_v4");
        let (ours, theirs) = (
            logits(&case, &case.network(), false, false),
            logits(&case, &v4.network(), false, false),
        );
        assert_eq!(ours, theirs, "{name}");
    }
}

#[test]
fn loss_and_every_gradient_in_every_layout() {
    for name in CASES {
        let case = Case::open(name);
        let net = case.network();
        for (share_prefixes, stored_blocks) in LAYOUTS {
            let at = format!("{name}, shared prefixes {share_prefixes}, {stored_blocks} stored");
            let mut engine =
                Engine::new(&net, &case.lists, size(stored_blocks), (1, case.adapter.len()))
                    .unwrap();
            let slot = engine.slabs.take().unwrap();
            engine.load(slot, &case.adapter).unwrap();
            let pieces = case.pieces(0);
            let supervised: usize = pieces.iter().map(|p| p.targets.len()).sum();
            let mut packer = Packer::new(share_prefixes);
            let adapter = Some(case.segment(engine.segment(slot, slot)));
            #[expect(clippy::cast_precision_loss, reason = "a small count")]
            let weight = 1.0 / supervised as f32;
            packer.add(&Share { adapter, layout: 0, pieces: &pieces, weight, first_token: 0 });
            let losses = engine.train(&packer).unwrap();
            let loss: f64 = losses.iter().map(|&l| f64::from(l)).sum::<f64>()
                / f64::from(u32::try_from(supervised).unwrap());
            let expected = f64::from(case.expected("loss")[0]);
            assert!((loss - expected).abs() < 4e-6, "{at}: loss {loss}, expected {expected}");
            let mut gradient = vec![0.0; case.adapter.len()];
            engine.read_gradient(slot, &mut gradient).unwrap();
            case.for_each_tensor(|key, range| {
                let theirs = case.expected(&format!("grad.{key}"));
                let scale = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
                let difference = largest_difference(&gradient[range], &theirs) / scale;
                assert!(
                    difference < 1e-5,
                    "{at}: gradient of {key} off by {difference} of its largest"
                );
            });
        }
    }
}

#[test]
fn ten_steps_of_adamw() {
    for name in CASES {
        let case = Case::open(name);
        let net = case.network();
        for (share_prefixes, stored_blocks) in LAYOUTS {
            let mut engine =
                Engine::new(&net, &case.lists, size(stored_blocks), (1, case.adapter.len()))
                    .unwrap();
            let (losses, norms, adapter) = case.train(&mut engine, share_prefixes);
            let at = format!("{name}, shared prefixes {share_prefixes}, {stored_blocks} stored");
            assert!(
                largest_difference(&losses, &case.expected("losses")) < 1e-5,
                "{at}: losses {losses:?}"
            );
            assert!(
                largest_difference(&norms, &case.expected("grad_norms")) < 5e-5,
                "{at}: norms {norms:?}"
            );
            case.for_each_tensor(|key, range| {
                let difference =
                    largest_difference(&adapter[range], &case.expected(&format!("adapter.{key}")));
                assert!(difference < 1e-5, "{at}: {key} off by {difference} after ten steps");
            });
        }
    }
}

#[test]
fn greedy_continuations_through_the_cache() {
    for name in CASES {
        let case = Case::open(name);
        let net = case.network();
        let rules = PackRules { chunk_rows: 64, share_prefixes: true };
        let mut oracle = Oracle::new(&net, (64, 400), 2, rules).unwrap();
        let asker = Asker {
            user: UserId::new("golden"),
            adapter: Some(Own {
                lora: case.lora.clone(),
                sites: case.sites.clone(),
                params: case.adapter.clone(),
            }),
            prompts: case.examples.iter().map(|e| e.tokens[..e.prompt_len].to_vec()).collect(),
        };
        let sampling =
            Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, max_new_tokens: 8, seed: 0 };
        let answers = oracle.generate(&[asker], &sampling, &[]).unwrap();
        for (i, answer) in answers[0].iter().enumerate() {
            let expected: Vec<u32> = case.expected_ids(&format!("greedy.{i}"));
            assert_eq!(answer, &expected, "{name}, example {i}");
        }
    }
}

#[test]
fn the_individual_stage_makes_the_same_adapter() {
    // The stage shuffles; one batch of all items makes its order irrelevant to what is checked here:
    // that seat, schedule, clipping and commit lead where the plain loop above leads.
    for name in CASES {
        let case = Case::open(name);
        let net = case.network();
        let recipe = Recipe {
            lora_rank: case.lora.lora_rank,
            alpha: case.lora.alpha,
            dropout: 0.0,
            targets: Vec::new(),
            learning_rate: 0.01,
            epochs: 10,
            batch_size: 64,
            ..Recipe::named("oppu-code").unwrap()
        };
        let plain = case.train_whole(&net, &recipe);
        let mut engine = Engine::new(&net, &case.lists, size(0), (3, case.adapter.len())).unwrap();
        let staged = case.train_staged(&mut engine, &recipe, &AtomicBool::new(false));
        assert!(largest_difference(&plain, &staged) < 1e-5, "{name}");
    }
}
