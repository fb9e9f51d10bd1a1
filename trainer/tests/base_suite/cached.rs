//! Converted weights: mapped values, one conversion for many, damaged files.

use crate::fixtures::{
    Reversed, Values, gguf_metadata, gpt2_config, gpt2_hf, llama_config, llama_gguf, llama_hf,
    parse, values, write_file, write_folder, write_gguf,
};
use candle_core::quantized::GgmlDType;
use kernels::linear::{Layout, Linear};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use trainer::model::cache::MappedBase;
use trainer::model::spec::{BaseSpec, Kind, TensorSpec};
use trainer::model::weights::{WeightSource, open};
use trainer::model::{Error, Result};

fn llama_folder(seed: u64) -> (tempfile::TempDir, BaseSpec, Values) {
    let spec = parse(&llama_config()).unwrap();
    let values = values(&spec, seed);
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("base"), &llama_config(), &llama_hf(&spec, &values));
    (dir, spec, values)
}

fn load(dir: &Path) -> Result<MappedBase> {
    MappedBase::load(&Reversed, &*open(&dir.join("base")).unwrap(), &dir.join("cache"))
}

fn cached_file(dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(dir.join("cache")).unwrap().flatten().map(|e| e.path());
    files.filter(|p| p.extension().is_some_and(|e| e == "myriad")).max().unwrap()
}

fn check_values(base: &MappedBase, values: &Values) {
    for tensor in base.spec().tensors() {
        assert_eq!(
            base.canonical(&Reversed, &tensor.name).unwrap(),
            values[&tensor.name],
            "{}",
            tensor.name
        );
        match tensor.kind {
            Kind::Matrix { shape, layout } => {
                let mut prepared = vec![0.0; Reversed.prepared_len(shape)];
                Reversed.prepare(shape, layout, &values[&tensor.name], &mut prepared).unwrap();
                let weight = base.weight(&Reversed, &tensor.name).unwrap();
                assert_eq!((weight.shape, weight.data), (shape, prepared));
                assert!(matches!(base.vector(&tensor.name), Err(Error::NoSuchTensor { .. })));
            }
            Kind::Vector { .. } | Kind::Table { .. } => {
                assert_eq!(base.vector(&tensor.name).unwrap(), values[&tensor.name]);
                assert!(matches!(
                    base.weight(&Reversed, &tensor.name),
                    Err(Error::NoSuchTensor { .. })
                ));
            }
        }
    }
}

#[test]
fn mapped_weights_are_the_prepared_ones() {
    let (dir, _, values) = llama_folder(20);
    let base = load(dir.path()).unwrap();
    check_values(&base, &values);
    base.verify().unwrap();
    assert_eq!(base.recompute_hash(&Reversed).unwrap(), base.hash());
    assert!(base.vector("layers.9.norm1.weight").is_err() && base.vector("positions").is_err());
    // GPT-2: other layout, a table, a tied head that is also the embedding.
    let spec = parse(&gpt2_config()).unwrap();
    let values = crate::fixtures::values(&spec, 21);
    write_folder(&dir.path().join("base"), &gpt2_config(), &gpt2_hf(&spec, &values, ""));
    let base = load(dir.path()).unwrap();
    check_values(&base, &values);
    assert_eq!(base.spec().layout(), Layout::InOut);
    assert_eq!(base.vector("positions").unwrap().len(), 16 * 8);
    let (head, embedding) =
        (base.weight(&Reversed, "head").unwrap(), base.weight(&Reversed, "embedding").unwrap());
    assert_eq!(head.data, embedding.data);
}

#[test]
fn the_hash_depends_on_the_weights_and_not_on_the_file() {
    let (dir, spec, mut values) = llama_folder(22);
    let base = load(dir.path()).unwrap();
    let gguf = dir.path().join("base.gguf");
    write_gguf(&gguf, &gguf_metadata(&spec), &llama_gguf(&spec, &values), GgmlDType::F32);
    let source = open(&gguf).unwrap();
    let same = MappedBase::load(&Reversed, &*source, &dir.path().join("cache")).unwrap();
    assert_eq!(same.hash(), base.hash());
    // Each keeps its own end tokens though they share a file.
    assert_eq!((base.spec().eos.as_slice(), same.spec().eos.as_slice()), (&[2, 3][..], &[1][..]));
    values.get_mut("layers.1.down.weight").unwrap()[5] += 1e-6;
    write_folder(&dir.path().join("base"), &llama_config(), &llama_hf(&spec, &values));
    let changed = load(dir.path()).unwrap();
    assert_ne!(changed.hash(), base.hash());
    check_values(&changed, &values);
    let mut config = llama_config();
    config["rope_theta"] = serde_json::json!(20000.0);
    write_folder(&dir.path().join("base"), &config, &llama_hf(&spec, &values));
    assert_ne!(load(dir.path()).unwrap().hash(), changed.hash());
}

/// Counts reads; fails at one tensor.
#[derive(Debug)]
struct Watched {
    inner: Box<dyn WeightSource>,
    reads: AtomicUsize,
    fail_at: usize,
}

impl WeightSource for Watched {
    fn spec(&self) -> &BaseSpec {
        self.inner.spec()
    }
    fn path(&self) -> &Path {
        self.inner.path()
    }
    fn files(&self) -> Vec<PathBuf> {
        self.inner.files()
    }
    fn read(&self, tensor: &TensorSpec) -> Result<Vec<f32>> {
        let n = self.reads.fetch_add(1, Ordering::SeqCst);
        let mut values = self.inner.read(tensor)?;
        if n == self.fail_at {
            values[0] = f32::NAN;
        }
        Ok(values)
    }
}

fn watched(dir: &Path, fail_at: usize) -> Watched {
    Watched { inner: open(&dir.join("base")).unwrap(), reads: AtomicUsize::new(0), fail_at }
}

#[test]
fn of_many_who_load_one_converts() {
    let (dir, spec, values) = llama_folder(23);
    let sources: Vec<Watched> = (0..6).map(|_| watched(dir.path(), usize::MAX)).collect();
    let cache = dir.path().join("cache");
    std::fs::create_dir(&cache).unwrap();
    write_file(&cache.join(".unfinished-left-by-a-kill"), b"x");
    let bases: Vec<MappedBase> = std::thread::scope(|scope| {
        let load = |source| {
            let cache = &cache;
            scope.spawn(move || {
                let source: &Watched = source;
                MappedBase::load(&Reversed, source, cache).unwrap()
            })
        };
        let threads: Vec<_> = sources.iter().map(load).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let reads: usize = sources.iter().map(|s| s.reads.load(Ordering::SeqCst)).sum();
    assert_eq!(reads, spec.tensors().len());
    bases.iter().for_each(|b| check_values(b, &values));
    let left = std::fs::read_dir(&cache)
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(".unfinished-"));
    assert_eq!(left.count(), 0);
}

#[test]
fn a_failed_conversion_leaves_nothing_and_names_the_tensor() {
    let (dir, spec, values) = llama_folder(24);
    let bad = watched(dir.path(), 4);
    let error = MappedBase::load(&Reversed, &bad, &dir.path().join("cache")).unwrap_err();
    assert!(
        matches!(error, Error::NonFinite { ref name, index: 0, .. } if *name == spec.tensors()[4].name)
    );
    let files: Vec<_> = std::fs::read_dir(dir.path().join("cache")).unwrap().flatten().collect();
    assert_eq!(files.len(), 1, "only the lock: {files:?}");
    check_values(&load(dir.path()).unwrap(), &values);
}

#[test]
fn every_damage_is_seen_and_repaired() {
    let (dir, _, values) = llama_folder(25);
    let base = load(dir.path()).unwrap();
    let path = cached_file(dir.path());
    let good = std::fs::read(&path).unwrap();
    let copy = dir.path().join("copy.myriad");
    let data_start = good.len() - base.mapped_bytes();
    let json_end = 88 + u32::from_le_bytes(good[12..16].try_into().unwrap()) as usize;
    assert_eq!(data_start % 64, 0);
    for at in 0..good.len() {
        // Every byte of the header, and one in 16 of the data.
        if at > data_start && at % 16 != 5 || (json_end..data_start).contains(&at) {
            continue;
        }
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        write_file(&copy, &bytes);
        let opened = MappedBase::open(&copy);
        if at < data_start {
            assert!(matches!(opened, Err(Error::Format { .. })), "byte {at}");
        } else {
            assert!(matches!(opened.unwrap().verify(), Err(Error::Format { .. })), "byte {at}");
        }
    }
    for len in
        [0, 1, 87, 88, 89, json_end, data_start, data_start + 4, good.len() - 1, good.len() + 1]
    {
        let mut bytes = good.clone();
        bytes.resize(len, 0);
        write_file(&copy, &bytes);
        assert!(matches!(MappedBase::open(&copy), Err(Error::Format { .. })), "{len} bytes");
    }
    // A cut file in the cache is converted again.
    std::fs::remove_file(&path).unwrap();
    write_file(&path, &good[..good.len() - 64]);
    check_values(&load(dir.path()).unwrap(), &values);
    assert_eq!(std::fs::read(&path).unwrap(), good);
}
