//! Overlays: arithmetic, identity, refusals.

use crate::fixtures::{
    Random, Reversed, Values, gpt2_config, gpt2_hf, llama_config, llama_hf, parse, values,
    write_folder,
};
use std::path::Path;
use trainer::model::Error;
use trainer::model::cache::MappedBase;
use trainer::model::overlay::{Delta, merge};
use trainer::model::weights::open;

fn base(dir: &Path, gpt2: bool) -> (MappedBase, Values) {
    let config = if gpt2 { gpt2_config() } else { llama_config() };
    let spec = parse(&config).unwrap();
    let values = values(&spec, 30);
    let tensors = if gpt2 { gpt2_hf(&spec, &values, "") } else { llama_hf(&spec, &values) };
    write_folder(&dir.join("base"), &config, &tensors);
    let source = open(&dir.join("base")).unwrap();
    (MappedBase::load(&Reversed, &*source, &dir.join("cache")).unwrap(), values)
}

fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut random = Random(seed);
    (0..len).map(|_| random.float()).collect()
}

#[test]
fn merged_weights_are_the_sum_in_both_layouts() {
    for gpt2 in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (base, values) = base(dir.path(), gpt2);
        let (name, d, n, r) = if gpt2 {
            ("layers.1.fc.weight", 8, 32, 3)
        } else {
            ("layers.1.gate.weight", 8, 12, 3)
        };
        let (a, b) = (random(1, r * d), random(2, n * r));
        let delta = Delta { name, in_dim: d, out_dim: n, lora_rank: r, a: &a, b: &b, scale: 0.5 };
        let path = dir.path().join("task.myriad");
        let before = std::fs::read_dir(dir.path().join("cache")).unwrap().count();
        let hash = merge(&Reversed, &base, [delta], &path).unwrap();
        let merged = base.with_overlay(&path).unwrap();
        assert_eq!(merged.hash(), hash);
        assert_ne!(hash, base.hash());
        let got = merged.canonical(&Reversed, name).unwrap();
        for o in 0..n {
            for i in 0..d {
                let at = if gpt2 { i * n + o } else { o * d + i };
                let terms = (0..r).map(|k| f64::from(b[o * r + k]) * f64::from(a[k * d + i]));
                let expected = f64::from(values[name][at]) + 0.5 * terms.sum::<f64>();
                // Three products and sums, a scale and a sum, each of magnitude below 3, rounded to f32.
                assert!(
                    (f64::from(got[at]) - expected).abs() < 8.0 * 3.0 * f64::from(f32::EPSILON)
                );
                let mut sum = 0.0f32;
                (0..r).for_each(|k| sum += b[o * r + k] * a[k * d + i]);
                assert_eq!(got[at].to_bits(), (values[name][at] + 0.5 * sum).to_bits());
            }
        }
        // Everything else is the base's, and the base is as it was.
        for tensor in base.spec().tensors().iter().filter(|t| t.name != name) {
            assert_eq!(merged.canonical(&Reversed, &tensor.name).unwrap(), values[&tensor.name]);
        }
        assert_eq!(base.recompute_hash(&Reversed).unwrap(), base.hash());
        assert_eq!(merged.recompute_hash(&Reversed).unwrap(), base.hash());
        assert_eq!(std::fs::read_dir(dir.path().join("cache")).unwrap().count(), before);
        merged.verify().unwrap();
        assert!(merged.mapped_bytes() > base.mapped_bytes());
    }
}

#[test]
fn order_and_threads_change_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (base, _) = base(dir.path(), false);
    let (a, b) = (random(3, 2 * 8), random(4, 8 * 2));
    let deltas = ["layers.0.q.weight", "layers.1.q.weight", "layers.1.o.weight"]
        .map(|name| Delta { name, in_dim: 8, out_dim: 8, lora_rank: 2, a: &a, b: &b, scale: 2.0 });
    let mut files = Vec::new();
    for threads in [1, 4] {
        for reverse in [false, true] {
            let mut deltas = deltas.to_vec();
            if reverse {
                deltas.reverse();
            }
            let path = dir.path().join("task.myriad");
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| merge(&Reversed, &base, deltas, &path)).unwrap();
            files.push(std::fs::read(path).unwrap());
        }
    }
    assert!(files.iter().all(|f| *f == files[0]));
}

#[test]
fn overlays_stack_and_belong_to_their_parent() {
    let dir = tempfile::tempdir().unwrap();
    let (base, values) = base(dir.path(), false);
    let (a, b) = (vec![1.0; 8], vec![2.0; 8]);
    let delta =
        |name| Delta { name, in_dim: 8, out_dim: 8, lora_rank: 1, a: &a, b: &b, scale: 1.0 };
    let (one, two) = (dir.path().join("1.myriad"), dir.path().join("2.myriad"));
    merge(&Reversed, &base, [delta("layers.0.q.weight")], &one).unwrap();
    let first = base.with_overlay(&one).unwrap();
    merge(&Reversed, &first, [delta("layers.0.q.weight"), delta("layers.0.o.weight")], &two)
        .unwrap();
    let second = first.with_overlay(&two).unwrap();
    let q = second.canonical(&Reversed, "layers.0.q.weight").unwrap();
    assert!(q.iter().zip(&values["layers.0.q.weight"]).all(|(w, v)| (w - v - 4.0).abs() < 1e-5));
    assert!(matches!(base.with_overlay(&two), Err(Error::Mismatch { what: "parent", .. })));
    assert!(matches!(MappedBase::open(&one), Err(Error::Mismatch { what: "role", .. })));
    let file = std::fs::read_dir(dir.path().join("cache")).unwrap().flatten().map(|e| e.path());
    let file = file.filter(|p| p.extension().is_some_and(|e| e == "myriad")).max().unwrap();
    assert!(matches!(base.with_overlay(&file), Err(Error::Mismatch { what: "role", .. })));
}

#[test]
fn what_cannot_be_merged_is_refused_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (base, _) = base(dir.path(), false);
    let (a, b) = (vec![1.0; 8], vec![2.0; 8]);
    let good = Delta {
        name: "layers.0.q.weight",
        in_dim: 8,
        out_dim: 8,
        lora_rank: 1,
        a: &a,
        b: &b,
        scale: 1.0,
    };
    let path = dir.path().join("task.myriad");
    let bad = [
        vec![good, good],
        vec![Delta { name: "layers.7.q.weight", ..good }],
        vec![Delta { name: "layers.0.norm1.weight", ..good }],
        vec![Delta { name: "head", out_dim: 11, ..good }],
        vec![Delta { out_dim: 4, ..good }],
        vec![Delta { lora_rank: 2, ..good }],
        vec![Delta { lora_rank: 0, a: &[], b: &[], ..good }],
        vec![Delta { b: &b[..7], ..good }],
    ];
    for deltas in bad {
        assert!(matches!(merge(&Reversed, &base, deltas, &path), Err(Error::Delta { .. })));
    }
    let overflow = Delta { scale: f32::MAX, ..good };
    assert!(matches!(merge(&Reversed, &base, [overflow], &path), Err(Error::NonFinite { .. })));
    assert!(!path.exists());
}
