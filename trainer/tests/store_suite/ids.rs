//! User ids are data: no id becomes a path, two ids never share a record, and a forgotten one is gone.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use trainer::store::peft::{ExportOptions, Naming, export};
use trainer::store::{Error, forget_in};

fn hostile() -> Vec<String> {
    let mut all: Vec<String> = [
        "",
        ".",
        "..",
        "../../x",
        "/abs",
        "a/b",
        "a\\b",
        "CON",
        "default",
        "index.myr",
        "rank-0000",
        "lock",
        "\0",
        "a\0",
        "a\0b",
        "\n",
        "a\r\nb",
        "\u{202e}abc",
        "e\u{301}",
        "\u{e9}",
        "USER",
        "user",
        "User",
        "seg-000001.myr",
        "<script>",
        "\"",
        "{}",
        "%00",
        "~",
        "$(id)",
        " a",
        "a ",
        "a",
    ]
    .map(str::to_owned)
    .to_vec();
    all.push("x".repeat(4096));
    all.push("x".repeat(4095));
    all
}

/// Files are only those the formats name.
fn assert_only_ours<'a>(paths: impl Iterator<Item = &'a Path>, root: &Path) {
    for path in paths {
        let inside = path.strip_prefix(root).unwrap_or_else(|_| panic!("{path:?} outside"));
        let parts: Vec<&str> = inside.iter().map(|p| p.to_str().unwrap()).collect();
        let digits = |text: &str, n| text.len() == n && text.bytes().all(|b| b.is_ascii_digit());
        let [rank, file] = parts[..] else { panic!("{path:?}") };
        assert!(rank.strip_prefix("rank-").is_some_and(|n| digits(n, 4)), "{path:?}");
        let segment = file.strip_prefix("seg-").and_then(|f| f.strip_suffix(".myr"));
        let known = segment.is_some_and(|n| digits(n, 6)) || file == "lock" || file == "index.myr";
        assert!(known, "{path:?}");
    }
}

fn check(ids: &BTreeSet<String>) {
    let fs = CrashFs::default();
    let mut w = writer(&fs, 0).unwrap();
    let users: Vec<(&str, u64)> = ids.iter().map(|id| (id.as_str(), 1)).collect();
    for batch in users.chunks(3) {
        commit_adapter(&mut w, batch).unwrap();
    }
    w.close().unwrap();
    let store = open(&fs).unwrap();
    assert_eq!(store.done().len(), ids.len(), "two ids share a record");
    // `content` compares each adapter with its own id's.
    content(&store).unwrap();
    for id in ids {
        assert_eq!(store.users()[&key(id)].user.as_ref().unwrap().as_str(), id);
    }
    let files = fs.files();
    assert_only_ours(files.keys().map(PathBuf::as_path), &dir());
}

#[test]
fn hostile_ids_on_a_real_disk() {
    let temporary = tempfile::tempdir().unwrap();
    let store_dir = temporary.path().join("run/store");
    let mut w = Writer::open(&store_dir, 0).unwrap();
    let ids = hostile();
    let users: Vec<(&str, u64)> = ids.iter().map(|id| (id.as_str(), 1)).collect();
    commit_adapter(&mut w, &users).unwrap();
    w.close().unwrap();
    let store = Store::open(&store_dir).unwrap();
    assert_eq!(content(&store).unwrap().len(), ids.len());
    let out = temporary.path().join("run/peft");
    let options =
        ExportOptions { base_name_or_path: "b".into(), num_layers: 1, naming: Naming::Key };
    let exported = export(&store, None, &out, &options).unwrap();
    let names: BTreeSet<&str> = exported.iter().map(|e| e.folder.as_str()).collect();
    assert_eq!(names.len(), ids.len());
    assert!(names.iter().all(|n| n.len() == 16 && n.bytes().all(|b| b.is_ascii_hexdigit())));
    // users.json gives every id back, whatever it holds.
    let json = std::fs::read(out.join("users.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let listed: BTreeSet<&str> =
        json["users"].as_array().unwrap().iter().map(|u| u["id"].as_str().unwrap()).collect();
    assert_eq!(listed, ids.iter().map(String::as_str).collect());
    // Nothing else appeared anywhere.
    let mut paths = Vec::new();
    walk(temporary.path(), &mut paths);
    let (exported, stored): (Vec<_>, Vec<_>) = paths.iter().partition(|p| p.starts_with(&out));
    assert_only_ours(stored.into_iter().map(PathBuf::as_path), &store_dir);
    assert_eq!(exported.len(), 2 * ids.len() + 1);
}

fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, out) } else { out.push(path) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_ids(ids in prop::collection::btree_set(".{0,12}|[./a]{1,6}|[aAeE\u{301}\u{e9}]{1,4}", 1..12)) {
        check(&ids);
    }

    #[test]
    fn hostile_ids_in_any_company(chosen in prop::sample::subsequence(hostile(), 2..20)) {
        check(&chosen.into_iter().collect());
    }
}

#[test]
fn forgetting_leaves_nothing_of_the_user() {
    let fs = CrashFs::default();
    let secret = "user-with-a-name";
    // In two ranks and two generations, one of them a quarantine whose reason says something.
    let mut w = writer(&fs, 0).unwrap();
    commit_adapter(&mut w, &[("a", 1), (secret, 1), ("b", 1)]).unwrap();
    quarantine(&mut w, secret, 2, "a private reason").unwrap();
    w.close().unwrap();
    let mut w = writer(&fs, 1).unwrap();
    commit_adapter(&mut w, &[(secret, 3), ("c", 1)]).unwrap();
    drop(w);
    let weights: Vec<u8> = params(secret).iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(found_in(&fs, &weights).len(), 2);
    let before = content(&open(&fs).unwrap()).unwrap();

    let shared: Arc<dyn Fs> = Arc::new(fs.clone());
    let result = forget_in(&shared, &dir(), &key(secret), small()).unwrap();
    assert_eq!(result.num_ranks, 2);
    assert!(result.bytes > 0);
    for needle in
        [secret.as_bytes(), &weights[..], b"a private reason", key(secret).hex().as_bytes()]
    {
        assert_eq!(found_in(&fs, needle), Vec::<PathBuf>::new());
    }
    let store = open(&fs).unwrap();
    let entry = &store.users()[&key(secret)];
    assert_eq!((&entry.status, &entry.user, entry.generation), (&Status::Forgotten, &None, 4));
    assert!(matches!(store.get(&key(secret)), Err(Error::UnknownUser { .. })));
    let mut others = content(&store).unwrap();
    others.remove(&key(secret));
    let mut expected = before;
    expected.remove(&key(secret));
    assert_eq!(others, expected);

    // Exact: the store equals one that never saw the user.
    let without = CrashFs::default();
    commit_adapter(&mut writer(&without, 0).unwrap(), &[("a", 1), ("b", 1), ("c", 1)]).unwrap();
    assert_eq!(open(&without).unwrap().content_hash(), store.content_hash());

    // Again is a no-op, a stranger is an error, and the user may come back.
    assert_eq!(forget_in(&shared, &dir(), &key(secret), small()).unwrap().num_ranks, 0);
    let stranger = forget_in(&shared, &dir(), &key("z"), small());
    assert!(matches!(stranger, Err(Error::UnknownUser { .. })));
    let generation = store.next_generation(&key(secret));
    commit_adapter(&mut writer(&fs, 0).unwrap(), &[(secret, generation)]).unwrap();
    assert_eq!(open(&fs).unwrap().done().len(), 4);
}
