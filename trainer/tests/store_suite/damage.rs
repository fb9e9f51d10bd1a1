//! Damage from outside is found and named; nothing but what was committed ever comes out.

use super::*;
use trainer::store::{Error, verify_in};

/// Two segments, an index, a superseded generation, a quarantine.
fn sound(closed: bool) -> CrashFs {
    let fs = CrashFs::default();
    let mut w = Writer::open_in(
        Arc::new(fs.clone()),
        &dir(),
        0,
        Options { segment_bytes: 1500, index_every: if closed { 64 } else { usize::MAX } },
    )
    .unwrap();
    commit_adapter(&mut w, &[("a", 1), ("b", 1)]).unwrap();
    quarantine(&mut w, "c", 1, "once").unwrap();
    quarantine(&mut w, "c", 2, "twice").unwrap();
    if closed {
        w.close().unwrap();
    }
    fs
}

/// Every way to read a damaged store: an error, or exactly what is in `states`.
fn check(fs: &CrashFs, states: &[Content], place: &str) {
    let Ok(store) = open(fs) else { return };
    for key in store.done().keys() {
        if let Ok(payload) = store.payload(key) {
            let known =
                states.iter().any(|s| s.get(key).is_some_and(|(_, p)| *p == Some(payload.clone())));
            assert!(known, "{place}: a payload nobody committed");
        }
    }
    let status = |s: &Content| s.iter().map(|(k, (st, _))| (*k, st.clone())).collect::<Vec<_>>();
    let found: Vec<_> = store.users().iter().map(|(k, e)| (*k, e.status.clone())).collect();
    assert!(
        states.iter().any(|s| status(s) == found),
        "{place}: users nobody committed: {found:?}"
    );
}

#[test]
fn every_flipped_byte_is_reported() {
    let fs = sound(true);
    let states = [content(&open(&fs).unwrap()).unwrap()];
    let mut num_flips = 0;
    for (path, bytes) in fs.files().into_iter().filter(|(p, _)| !p.ends_with("lock")) {
        for at in 0..bytes.len() {
            for mask in [1 << (at % 8), 0xff] {
                let mut bad = bytes.clone();
                bad[at] ^= mask;
                fs.put(&path, &bad);
                let place = format!("{} byte {at}", path.display());
                let report = verify_in(&fs, &dir()).unwrap();
                assert!(!report.problems.is_empty(), "{place} not reported");
                assert!(
                    report.problems.iter().any(|p| p.path == path),
                    "{place}: other file blamed"
                );
                check(&fs, &states, &place);
                num_flips += 1;
            }
        }
        fs.put(&path, &bytes);
    }
    assert!(num_flips > 5000, "{num_flips}");
    assert_eq!(verify_in(&fs, &dir()).unwrap().problems, []);
}

#[test]
fn a_flipped_weight_names_its_user_and_spares_the_others() {
    let fs = sound(true);
    let path = dir().join("rank-0000/seg-000001.myr");
    let mut bytes = read(&fs, &path);
    let weights: Vec<u8> = params("b").iter().flat_map(|v| v.to_le_bytes()).collect();
    let at = bytes.windows(weights.len()).position(|w| w == weights).unwrap();
    bytes[at] ^= 1;
    fs.put(&path, &bytes);
    let store = open(&fs).unwrap();
    assert!(store.get(&key("a")).is_ok());
    let error = store.get(&key("b")).unwrap_err().to_string();
    assert!(error.contains(&key("b").hex()) && error.contains("seg-000001"), "{error}");
    let problems = verify_in(&fs, &dir()).unwrap().problems;
    assert!(problems.iter().any(|p| p.user == Some(key("b"))), "{problems:?}");
    assert!(problems.iter().all(|p| p.user != Some(key("a"))), "{problems:?}");
}

/// Without an index nothing vouches for the last group, which may then be taken for a commit that did not happen; but
/// groups before it may not, and nothing else may come out.
#[test]
fn every_flipped_byte_without_an_index() {
    let fs = sound(false);
    let full = content(&open(&fs).unwrap()).unwrap();
    let path = dir().join("rank-0000/seg-000001.myr");
    fs.remove(&dir().join("rank-0000/index.myr")).unwrap();
    let bytes = read(&fs, &path);
    let last = fs.files().into_keys().rfind(|p| p.to_string_lossy().contains("seg-")).unwrap();
    assert_ne!(last, path, "two segments");
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 8);
        fs.put(&path, &bad);
        assert!(open(&fs).is_err(), "byte {at} of a segment that is not the last");
    }
    fs.put(&path, &bytes);
    let bytes = read(&fs, &last);
    let states = prefixes(&fs, &last, &full);
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 8);
        fs.put(&last, &bad);
        check(&fs, &states[states.len().saturating_sub(2)..], &format!("byte {at}"));
    }
}

#[test]
fn every_truncation() {
    for closed in [true, false] {
        let fs = sound(closed);
        if !closed {
            fs.remove(&dir().join("rank-0000/index.myr")).unwrap();
        }
        let full = content(&open(&fs).unwrap()).unwrap();
        for (path, bytes) in fs.files().into_iter().filter(|(p, _)| !p.ends_with("lock")) {
            let states = prefixes(&fs, &path, &full);
            for len in 0..bytes.len() {
                fs.put(&path, &bytes[..len]);
                let place = format!("{} cut to {len}", path.display());
                if closed {
                    assert!(open(&fs).is_err(), "{place} accepted");
                    assert!(
                        !verify_in(&fs, &dir()).unwrap().problems.is_empty(),
                        "{place} not reported"
                    );
                    let opened = writer(&fs, 0);
                    assert!(
                        matches!(opened, Err(Error::Corrupt { .. })),
                        "{place} opened for writing"
                    );
                } else {
                    check(&fs, &states, &place);
                }
            }
            fs.put(&path, &bytes);
        }
    }
}

/// The contents at each whole-group prefix of a segment: what a torn tail may fall back to.
fn prefixes(fs: &CrashFs, path: &Path, full: &Content) -> Vec<Content> {
    let bytes = read(fs, path);
    let mut states: Vec<Content> = Vec::new();
    for len in 0..=bytes.len() {
        fs.put(path, &bytes[..len]);
        let Ok(found) = open(fs).and_then(|s| content(&s)) else { continue };
        if states.last() != Some(&found) {
            states.push(found);
        }
    }
    fs.put(path, &bytes);
    assert_eq!(states.last(), Some(full));
    // Users join in whole groups only: "a" never without "b".
    assert!(states.iter().all(|s| s.contains_key(&key("a")) == s.contains_key(&key("b"))));
    states
}

#[test]
fn swapped_missing_and_rolled_back_files() {
    let fs = CrashFs::default();
    let mut w = writer(&fs, 0).unwrap();
    commit_adapter(&mut w, &[("a", 1)]).unwrap();
    let (index, segment) =
        (dir().join("rank-0000/index.myr"), dir().join("rank-0000/seg-000001.myr"));
    let older_segment = read(&fs, &segment);
    commit_adapter(&mut w, &[("b", 1)]).unwrap();
    let older_index = read(&fs, &index);
    commit_adapter(&mut w, &[("c", 1)]).unwrap();
    commit_adapter(&mut w, &[("d", 1)]).unwrap();
    w.close().unwrap();
    let (whole, sound) = (fs.files(), content(&open(&fs).unwrap()).unwrap());
    let restore = || whole.iter().for_each(|(p, b)| fs.put(p, b));

    // An old index knows less, and the segments say the rest.
    fs.put(&index, &older_index);
    assert_eq!(content(&open(&fs).unwrap()).unwrap(), sound);
    restore();
    fs.put(&segment, &older_segment);
    assert!(matches!(open(&fs), Err(Error::Corrupt { .. })));
    restore();
    // The records of a and b have equal lengths: put each in the other's place.
    let bytes = &whole[&segment];
    let at = |user: &str| {
        let hex = key(user).0;
        bytes.windows(32).position(|w| w == hex).unwrap() - 32
    };
    let (a, b) = (at("a"), at("b"));
    let len = 68 + 1 + open(&fs).unwrap().payload(&key("a")).unwrap().len();
    let mut swapped = bytes.clone();
    swapped[a..a + len].copy_from_slice(&bytes[b..b + len]);
    swapped[b..b + len].copy_from_slice(&bytes[a..a + len]);
    fs.put(&segment, &swapped);
    let store = open(&fs).unwrap();
    for user in ["a", "b"] {
        assert!(matches!(store.get(&key(user)), Err(Error::Corrupt { .. })), "{user}");
    }
    assert!(!verify_in(&fs, &dir()).unwrap().problems.is_empty());
    restore();
    // One segment under another's name, and a segment gone.
    let second = dir().join("rank-0000/seg-000002.myr");
    fs.put(&second, bytes);
    assert!(open(&fs).is_err());
    restore();
    fs.remove(&segment).unwrap();
    assert!(matches!(open(&fs), Err(Error::Corrupt { .. })));
    assert!(!verify_in(&fs, &dir()).unwrap().problems.is_empty());
    fs.remove(&index).unwrap();
    assert!(matches!(open(&fs), Err(Error::Corrupt { .. })), "a gap shows without the index too");
}

/// Random bytes as a store: errors, no panic, no large allocation.
#[test]
fn garbage_is_refused() {
    let fs = sound(true);
    let files: Vec<_> = fs.files().into_iter().filter(|(p, _)| !p.ends_with("lock")).collect();
    let mut state = 1u64;
    let mut next = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    for _ in 0..3000 {
        let (path, bytes) = &files[next(files.len())];
        let mut bad = bytes.clone();
        for _ in 0..=next(4) {
            let at = next(bad.len() - 8);
            match next(3) {
                0 => bad[at..at + 8].fill(0xff),
                1 => bad.truncate(at + 1 + 8),
                _ => bad[at] = next(256).try_into().unwrap(),
            }
        }
        fs.put(path, &bad);
        let report = verify_in(&fs, &dir()).unwrap();
        assert!(bad == *bytes || !report.problems.is_empty() || !report.notes.is_empty());
        if let Ok(store) = open(&fs) {
            for key in store.done().keys() {
                let _ = store.get(key);
            }
        }
        fs.put(path, bytes);
    }
}
