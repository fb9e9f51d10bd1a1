//! A resumed run is the same run, or refused key by key.

use serde_json::json;
use trainer::store::manifest::{FORMAT_VERSION, Manifest};

fn manifest() -> Manifest {
    Manifest {
        format_version: FORMAT_VERSION,
        run_id: "r".into(),
        config_hash: "c1".into(),
        config: json!({"train": {"learning_rate": 1e-4, "steps": 3}, "seed": 1}),
        base_hash: "b".into(),
        merged_hash: None,
        data_fingerprint: "d".into(),
        tokenizer_hash: "t".into(),
        environment: [("ranks".to_owned(), "2".to_owned())].into(),
    }
}

#[test]
fn there_and_back() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Manifest::load(dir.path()).unwrap(), None);
    manifest().save(dir.path()).unwrap();
    assert_eq!(Manifest::load(dir.path()).unwrap(), Some(manifest()));
    let path = dir.path().join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    for bad in [
        text.replace("\"format_version\": 1", "\"format_version\": 2"),
        text.replace("run_id", "run"),
        text[..text.len() / 2].to_owned(),
        String::new(),
        "[".repeat(100_000),
    ] {
        trainer::store::write_atomic(&path, bad.as_bytes()).unwrap();
        let error = Manifest::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("manifest"), "{error}");
    }
}

#[test]
fn refusal_names_the_keys() {
    let dir = std::path::Path::new("run");
    let mut now = manifest();
    now.config_hash = "c2".into();
    now.config = json!({"train": {"learning_rate": 3e-5}, "seed": 1, "clip": 0.3});
    let error = manifest().check_resume(&now, dir).unwrap_err().to_string();
    for line in [
        "config_hash: \"c1\" -> \"c2\"",
        "config.train.learning_rate: 0.0001 -> 0.00003",
        "config.train.steps: 3 -> null",
        "config.clip: null -> 0.3",
    ] {
        assert!(
            error.contains(line) || error.replace("3e-5", "0.00003").contains(line),
            "{line}: {error}"
        );
    }
    assert!(!error.contains("seed"), "{error}");
    for change in [
        |m: &mut Manifest| m.base_hash.push('x'),
        |m: &mut Manifest| m.data_fingerprint.push('x'),
        |m: &mut Manifest| m.tokenizer_hash.push('x'),
        |m: &mut Manifest| m.config["seed"] = json!(2),
    ] {
        let mut now = manifest();
        change(&mut now);
        assert!(manifest().check_resume(&now, dir).is_err());
    }
}

#[test]
fn environment_may_change_and_is_reported() {
    let dir = std::path::Path::new("run");
    assert_eq!(manifest().check_resume(&manifest(), dir).unwrap(), []);
    let mut now = manifest();
    now.environment =
        [("ranks".to_owned(), "4".to_owned()), ("cpu".to_owned(), "avx2".to_owned())].into();
    now.merged_hash = Some("m".into());
    let notes = manifest().check_resume(&now, dir).unwrap();
    let notes: Vec<String> = notes.iter().map(ToString::to_string).collect();
    assert_eq!(notes, ["environment.cpu: null -> \"avx2\"", "environment.ranks: \"2\" -> \"4\""]);
    let mut other = now.clone();
    other.merged_hash = Some("n".into());
    assert!(now.check_resume(&other, dir).is_err());
    other.merged_hash = None;
    assert!(now.check_resume(&other, dir).is_ok());
}
