//! Merging writes beside the base, and the merged base answers as base and adapter do; the base never changes.

use crate::predictions::adapter;
use crate::users::{jobs, lora, tokens};
use crate::world::{BASES, Composition, World, network};
use kernels::Cpu;
use kernels::cpu::CpuBuf;
use kernels::lora::Segment;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trainer::lora::{AdapterSpec, Merge};
use trainer::model::Adapters;
use trainer::model::decode::Predictor;
use trainer::model::network::Network;
use trainer::model::overlay::merge;
use trainer::pack::{Packer, Piece, Share};

/// Logits of every position of three prompts.
fn logits(world: &World, net: &Network<Cpu>, adapter: Option<(Segment, &[f32])>) -> Vec<f32> {
    let prompts: Vec<Vec<u32>> = (0..3).map(|k| tokens(300, k, 9 + 7 * k)).collect();
    let piece = |rows| Piece { rows, first_output: 0, targets: &[], loss: None, only: None };
    let pieces: Vec<Piece<'_>> = prompts.iter().map(|p| piece(p.as_slice())).collect();
    let mut packer = Packer::new(false);
    let segment = adapter.map(|(segment, _)| segment);
    packer.add(&Share {
        adapter: segment,
        layout: 0,
        pieces: &pieces,
        weight: 0.0,
        first_token: 0,
    });
    let params = CpuBuf::from(adapter.map_or(Vec::new(), |(_, params)| params.to_vec()));
    let mut out = Vec::new();
    let mut keep = |_: usize, row: &[f32]| out.extend_from_slice(row);
    let mut predictor = Predictor::new(net, 64, 0).unwrap();
    let adapters = Adapters { layouts: world.lists.layouts(), params: &params };
    predictor.prefill(net, (packer.batch(), &[]), adapters, &mut keep).unwrap();
    out
}

/// An adapter's segment, `row_start` and `rows` left open.
fn segment(lora: &AdapterSpec) -> Segment {
    Segment {
        row_start: 0,
        rows: 0,
        param_offset: 0,
        grad_offset: 0,
        lora_rank: lora.lora_rank,
        scale: lora.scale(),
        dropout: 0.0,
        step: 0,
        key: [0; 2],
    }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let apart = |x: f32, y: f32| if (x - y).is_nan() { f32::INFINITY } else { (x - y).abs() };
    a.iter().zip(b).fold(0.0, |m, (&x, &y)| m.max(apart(x, y)))
}

#[test]
fn the_merged_base_gives_the_logits_of_base_and_adapter() {
    for name in BASES {
        let world = World::open(name);
        let spec = lora(&world, 4);
        let params = adapter(&world, 21, 4);
        let (bare, adapted) = (
            logits(&world, &world.net, None),
            logits(&world, &world.net, Some((segment(&spec), &params))),
        );
        let overlay = world.folder.path().join("merged.overlay");
        let changes = Merge::new(world.base.spec(), &world.sites, &spec, &params).unwrap();
        let hash = merge(&Cpu, &world.base, changes.deltas(), &overlay).unwrap();
        let merged = world.base.with_overlay(&overlay).unwrap();
        assert_eq!(merged.hash(), hash);
        assert_ne!(merged.hash(), world.base.hash());
        let ours = logits(&world, &network(&merged), None);
        let (difference, effect) =
            (largest_difference(&ours, &adapted), largest_difference(&ours, &bare));
        // As for the golden logits; each third of GPT-2's c_attn alone moves them by more than this.
        assert!(difference < 2e-5, "{name}: {difference}");
        assert!(effect > 0.05, "{name}: the adapter moves no logit: {effect}");
        // Nothing is left in the base that was merged.
        assert_eq!(largest_difference(&logits(&world, &world.net, None), &bare).to_bits(), 0);
    }
}

/// Every site's own part of the merge: an adapter of one site at a time.
#[test]
fn every_site_is_merged_into_its_own_weight() {
    for name in BASES {
        let world = World::open(name);
        let (spec, whole) = (lora(&world, 2), adapter(&world, 22, 2));
        let bare = logits(&world, &world.net, None);
        for e in world.sites.entries() {
            let mut params = vec![0.0; whole.len()];
            let range = world.sites.range(&e.site, 2);
            params[range.a.clone()].copy_from_slice(&whole[range.a]);
            params[range.b.clone()].copy_from_slice(&whole[range.b]);
            let adapted = logits(&world, &world.net, Some((segment(&spec), &params)));
            let overlay = world.folder.path().join("one.overlay");
            let changes = Merge::new(world.base.spec(), &world.sites, &spec, &params).unwrap();
            merge(&Cpu, &world.base, changes.deltas(), &overlay).unwrap();
            let merged = world.base.with_overlay(&overlay).unwrap();
            let ours = logits(&world, &network(&merged), None);
            let (difference, effect) =
                (largest_difference(&ours, &adapted), largest_difference(&adapted, &bare));
            let path = format!("{name}, layer {} {:?}", e.spec.layer, e.spec.target);
            assert!(difference < 2e-5, "{path}: {difference}");
            assert!(effect > 20.0 * difference.max(1e-6), "{path}: {effect} against {difference}");
        }
    }
}

/// Hash of every file under a folder.
fn files(folder: &Path) -> BTreeMap<PathBuf, blake3::Hash> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), blake3::hash(&std::fs::read(&path).unwrap()));
        }
    }
    found
}

#[test]
fn training_leaves_the_base_as_it_was() {
    for name in BASES {
        let world = World::open(name);
        let before = files(world.folder.path());
        assert!(before.len() >= 3, "{before:?}");
        let hash = world.base.hash();
        assert_eq!(world.base.recompute_hash(&Cpu).unwrap(), hash);
        let bare = logits(&world, &world.net, None);
        let mut all = jobs(&world, 10);
        all[3].recipe.learning_rate = 1e30;
        world.train(&all, &Composition { ranks: 2, ..Composition::WIDE });
        world.base.verify().unwrap();
        assert_eq!(world.base.recompute_hash(&Cpu).unwrap(), hash);
        assert_eq!(files(world.folder.path()), before, "{name}");
        assert_eq!(largest_difference(&logits(&world, &world.net, None), &bare).to_bits(), 0);
    }
}
