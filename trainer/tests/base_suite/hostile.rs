//! Mutated files: an error or a base, never a panic, not even one that is caught.

use crate::fixtures::{
    Random, gguf_metadata, llama_config, llama_gguf, llama_hf, parse, safetensors_bytes, values,
    write_file, write_folder, write_gguf,
};
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use safetensors::tensor::Dtype;
use serde_json::json;
use std::cell::Cell;
use std::path::Path;
use std::sync::Once;
use trainer::model::Error;
use trainer::model::spec::BaseSpec;
use trainer::model::tokenizer::Tokenizer;
use trainer::model::weights::open;

thread_local! {
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// Counts panics of this thread, caught ones too.
fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
}

fn mutate(good: &[u8], random: &mut Random) -> Vec<u8> {
    const EXTREMES: [u64; 8] =
        [0, 1, u64::MAX, 1 << 31, 1 << 32, 1 << 61, (1 << 63) - 1, 0x8000_0000_0000_0000];
    let mut bytes = good.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(8) {
            0 => bytes.truncate(at.max(1)),
            1 => {
                let word = EXTREMES[random.below(EXTREMES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&word[..width]);
            }
            2 => {
                let copy = bytes[at..(at + 40).min(bytes.len())].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            3 => bytes[at] = b"0129-[]{}\",:e."[random.below(14)],
            _ => bytes[at] ^= 1 << random.below(8),
        }
    }
    bytes
}

/// Reads everything a file offers; gives whether it was accepted.
fn read_all(path: &Path) -> bool {
    let Ok(base) = open(path) else { return false };
    let read =
        base.spec().tensors().iter().all(|t| base.read(t).is_ok_and(|v| v.len() == t.kind.len()));
    if path.is_file()
        && let Ok(tokenizer) = Tokenizer::open(path, base.spec())
    {
        let _ = tokenizer.encode("ab 12!").and_then(|ids| tokenizer.decode(&ids, true));
    }
    read
}

fn small() -> (BaseSpec, Vec<crate::fixtures::Named>) {
    let mut config = llama_config();
    config["num_hidden_layers"] = json!(1);
    config["attention_bias"] = json!(false);
    let spec = parse(&config).unwrap();
    let tensors = llama_gguf(&spec, &values(&spec, 40));
    (spec, tensors)
}

#[test]
fn mutated_gguf_files() {
    count_panics();
    let dir = tempfile::tempdir_in(shared_memory()).unwrap();
    let path = dir.path().join("base.gguf");
    let (spec, tensors) = small();
    // candle divides by the alignment and multiplies all dimensions: without our walk this test counts its panics.
    let mut metadata = vec![("general.alignment", Value::U32(32))];
    metadata.extend(gguf_metadata(&spec));
    let mut tensors = tensors;
    tensors.push(("rope_freqs.weight".to_owned(), vec![2], vec![1.0, 4.0]));
    write_gguf(&path, &metadata, &tensors, GgmlDType::F32);
    assert!(read_all(&path));
    let good = std::fs::read(&path).unwrap();
    let header =
        good.len() - tensors.iter().map(|t| (t.2.len() * 4).next_multiple_of(32)).sum::<usize>();
    let mut random = Random(41);
    let mut accepted = 0;
    for round in 0..30_000 {
        // Two thirds of the rounds damage the header only.
        let mut bytes = mutate(if round % 3 == 0 { &good } else { &good[..header] }, &mut random);
        if round % 3 != 0 {
            bytes.extend_from_slice(&good[header..]);
        }
        write_file(&path, &bytes);
        accepted += usize::from(read_all(&path));
    }
    assert_eq!(PANICS.get(), 0);
    assert!(
        (1000..29_000).contains(&accepted),
        "{accepted} accepted: the mutations are too mild or too wild"
    );
}

#[test]
fn crafted_gguf_headers() {
    count_panics();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.gguf");
    let head = |tensors: u64, entries: u64| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(entries.to_le_bytes());
        bytes
    };
    let text = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
    let tensor = |dims: &[u64], offset: u64| {
        let mut bytes = text("t");
        bytes.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| bytes.extend(d.to_le_bytes()));
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes
    };
    let alignment = |n: u32| {
        [text("general.alignment"), 4u32.to_le_bytes().to_vec(), n.to_le_bytes().to_vec()].concat()
    };
    let nested = |depth: usize| {
        let mut bytes = [text("k"), 9u32.to_le_bytes().to_vec()].concat();
        (0..depth).for_each(|_| {
            bytes.extend(9u32.to_le_bytes());
            bytes.extend(1u64.to_le_bytes());
        });
        bytes
    };
    let array = [
        text("k"),
        9u32.to_le_bytes().to_vec(),
        0u32.to_le_bytes().to_vec(),
        (5u64 << 20).to_le_bytes().to_vec(),
        vec![0; 5 << 20],
    ]
    .concat();
    let cases = [
        b"GGUF".to_vec(),
        b"FUGG\x03\0\0\0".to_vec(),
        b"GGUF\x09\0\0\0".to_vec(),
        head(u64::MAX, 0),
        head(0, u64::MAX),
        [head(0, 1), u64::MAX.to_le_bytes().to_vec()].concat(),
        [head(1, 0), tensor(&[1 << 32, 1 << 32], 0)].concat(),
        [head(1, 0), tensor(&[u64::MAX, 2], 0)].concat(),
        [head(1, 0), tensor(&[0, 1 << 40], 0)].concat(),
        [head(1, 0), tensor(&[1 << 46], 0)].concat(),
        [head(1, 0), tensor(&[1], u64::MAX - 31)].concat(),
        [head(1, 0), tensor(&[1, 1, 1, 1, 1], 0)].concat(),
        [head(1, 0), tensor(&[], 0)].concat(),
        [head(2, 0), tensor(&[1], 0), tensor(&[1], 0), vec![0; 64]].concat(),
        [head(0, 1), alignment(0)].concat(),
        [head(0, 1), alignment(3)].concat(),
        [head(0, 2), alignment(32), alignment(32)].concat(),
        [head(0, 1), nested(2)].concat(),
        [head(0, 1), nested(60_000)].concat(),
        [head(0, 1), array].concat(),
    ];
    for (i, case) in cases.iter().enumerate() {
        write_file(&path, case);
        assert!(
            matches!(open(&path), Err(Error::Format { .. })),
            "case {i}: {:?}",
            open(&path).err()
        );
    }
    // A whole file with a second, conflicting claim.
    let (spec, tensors) = small();
    let mut metadata = gguf_metadata(&spec);
    metadata.push(("tokenizer.ggml.bos_token_id", Value::U32(5)));
    write_gguf(&path, &metadata, &tensors, GgmlDType::F32);
    assert!(matches!(open(&path), Err(Error::Format { .. })));
    assert_eq!(PANICS.get(), 0);
}

#[test]
fn mutated_folders() {
    count_panics();
    let dir = tempfile::tempdir_in(shared_memory()).unwrap();
    let folder = dir.path();
    let spec = parse(&llama_config()).unwrap();
    let tensors = llama_hf(&spec, &values(&spec, 42));
    write_folder(folder, &llama_config(), &tensors);
    let (config, weights) = (folder.join("config.json"), folder.join("model.safetensors"));
    let (good_config, good_weights) =
        (std::fs::read(&config).unwrap(), std::fs::read(&weights).unwrap());
    let header = 8 + u64::from_le_bytes(good_weights[..8].try_into().unwrap()) as usize;
    let mut random = Random(43);
    let mut accepted = 0;
    for _ in 0..15_000 {
        let mut bytes = mutate(&good_weights[..header], &mut random);
        bytes.extend_from_slice(&good_weights[header..]);
        // A new file each time: nobody may cut a mapped one.
        std::fs::remove_file(&weights).unwrap();
        write_file(&weights, &bytes);
        accepted += usize::from(read_all(folder));
    }
    std::fs::remove_file(&weights).unwrap();
    write_file(&weights, &good_weights);
    for _ in 0..10_000 {
        write_file(&config, &mutate(&good_config, &mut random));
        accepted += usize::from(read_all(folder));
    }
    write_file(&config, &good_config);
    std::fs::remove_file(&weights).unwrap();
    write_file(&folder.join("a.safetensors"), &safetensors_bytes(&tensors, Dtype::F32));
    let map: serde_json::Map<_, _> =
        tensors.iter().map(|t| (t.0.clone(), json!("a.safetensors"))).collect();
    let index = serde_json::to_vec(&json!({"metadata": {}, "weight_map": map})).unwrap();
    for _ in 0..5_000 {
        write_file(&folder.join("model.safetensors.index.json"), &mutate(&index, &mut random));
        accepted += usize::from(read_all(folder));
    }
    assert_eq!(PANICS.get(), 0);
    assert!(accepted > 100, "{accepted}");
}

/// A folder in memory where there is one: 60,000 files are written.
fn shared_memory() -> std::path::PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() }
}
