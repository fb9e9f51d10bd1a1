//! SmolLM2-135M from its GGUF against transformers: the 16 largest logits and the log-sum-exp of every
//! position of six texts (`tests/golden/smollm2`, made by `scripts/golden/make.py --case smollm2`).
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use kernels::Cpu;
use safetensors::SafeTensors;
use std::path::PathBuf;
use trainer::model::cache::MappedBase;
use trainer::model::decode::Predictor;
use trainer::model::network::Network;
use trainer::model::tokenizer::Tokenizer;
use trainer::pack::{Packer, Piece, Share};

/// Twice the largest difference measured (3.7e-4, AVX-512, 2026-11-22; logits of up to 25): thirty blocks
/// of f32 sums in another order than torch's.
const TOLERANCE: f32 = 7.4e-4;

fn cache() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    std::env::var_os("MYRIAD_CACHE").map_or_else(|| home.join(".cache/myriad"), PathBuf::from)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn logits_of_six_texts() {
    let path = cache().join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "{} is missing: run scripts/setup", path.display());
    let source = trainer::model::weights::open(&path).unwrap();
    let base = MappedBase::load(&Cpu, source.as_ref(), &cache().join("prepared")).unwrap();
    let tokenizer = Tokenizer::open(&path, base.spec()).unwrap();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/smollm2");
    let input: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("input.json")).unwrap()).unwrap();
    let expected = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let net = Network::new(Cpu, &base, 128).unwrap();
    let mut predictor = Predictor::new(&net, 256, 0).unwrap();
    let texts: Vec<Vec<u32>> = input["texts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| {
            let ids: Vec<u32> = serde_json::from_value(t["tokens"].clone()).unwrap();
            assert_eq!(tokenizer.encode_markup(t["text"].as_str().unwrap()).unwrap(), ids);
            ids
        })
        .collect();
    let pieces: Vec<Piece<'_>> = texts
        .iter()
        .map(|ids| Piece { rows: ids, first_output: 0, targets: &[], loss: None, only: None })
        .collect();
    let mut packer = Packer::new(false);
    packer.add(&Share { adapter: None, layout: 0, pieces: &pieces, weight: 0.0, first_token: 0 });
    let mut rows = Vec::new();
    let mut keep = |_: usize, logits: &[f32]| rows.push(logits.to_vec());
    predictor.prefill(&net, (packer.batch(), &[]), net.bare(), &mut keep).unwrap();
    let mut rows = rows.iter();
    let mut largest = 0f32;
    for (i, ids) in texts.iter().enumerate() {
        let tensor = |name: &str| expected.tensor(&format!("{name}.{i}")).unwrap().data().to_vec();
        let (values, sums) = (floats(&tensor("top_values")), floats(&tensor("logsumexp")));
        let top: Vec<usize> = tensor("top_ids")
            .chunks_exact(4)
            .map(|b| usize::try_from(i32::from_le_bytes(b.try_into().unwrap())).unwrap())
            .collect();
        assert_eq!(sums.len(), ids.len());
        for (position, expected_sum) in sums.iter().enumerate() {
            let ours = rows.next().unwrap();
            for k in 16 * position..16 * (position + 1) {
                largest = largest.max((ours[top[k]] - values[k]).abs());
            }
            let sum = ours.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            let difference = (sum - f64::from(*expected_sum)).abs();
            assert!(
                difference < f64::from(TOLERANCE),
                "text {i}, position {position}: {difference}"
            );
        }
    }
    assert!(largest < TOLERANCE, "largest difference of a logit: {largest}");
}
