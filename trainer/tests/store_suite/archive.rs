//! What is committed is found again, by any number of ranks, once.

use super::*;
use trainer::store::{Error, verify_in};

#[test]
fn committed_users_are_found_again() {
    let fs = CrashFs::default();
    assert!(open(&fs).unwrap().users().is_empty(), "no folder is an empty store");
    let mut w = writer(&fs, 3).unwrap();
    commit_adapter(&mut w, &[("a", 1)]).unwrap();
    commit_adapter(&mut w, &[("b", 1), ("c", 1)]).unwrap();
    quarantine(&mut w, "d", 1, "loss is NaN at step 7").unwrap();
    // Before close, with the index behind.
    let before = content(&open(&fs).unwrap()).unwrap();
    w.close().unwrap();
    let store = open(&fs).unwrap();
    assert_eq!(content(&store).unwrap(), before);
    assert_eq!(store.users().len(), 4);
    assert_eq!(store.done().len(), 3);
    assert_eq!(store.next_generation(&key("a")), 2);
    assert_eq!(store.next_generation(&key("z")), 1);
    let reason = "loss is NaN at step 7".to_owned();
    assert_eq!(store.users()[&key("d")].status, Status::Quarantined { reason });
    assert!(matches!(store.get(&key("d")), Err(Error::UnknownUser { .. })));
    assert!(matches!(store.get(&key("z")), Err(Error::UnknownUser { .. })));
    let adapter = store.get(&key("b")).unwrap();
    assert_eq!((adapter.spec, adapter.sites, adapter.provenance.steps), (spec(), sites(), 3));
    let report = verify_in(&fs, &dir()).unwrap();
    assert_eq!((report.num_done, report.num_quarantined, report.num_forgotten), (3, 1, 0));
    assert_eq!((report.problems, report.notes), (vec![], vec![]));
}

/// Records and the content hash are a function of the users alone.
#[test]
fn ranks_batches_and_order_leave_no_trace() {
    let users = ["a", "b", "c", "d", "e", "f", "g"];
    let one = CrashFs::default();
    let mut w = writer(&one, 0).unwrap();
    commit_adapter(&mut w, &users.map(|u| (u, 1))).unwrap();
    let many = CrashFs::default();
    for (rank, chosen) in [(2, &users[5..]), (0, &users[..2]), (11, &users[2..5])] {
        let mut w = writer(&many, rank).unwrap();
        for u in chosen.iter().rev() {
            commit_adapter(&mut w, &[(u, 1)]).unwrap();
        }
    }
    let (one, many) = (open(&one).unwrap(), open(&many).unwrap());
    assert_eq!(one.content_hash(), many.content_hash());
    assert_eq!(content(&one).unwrap(), content(&many).unwrap());
    let fewer = CrashFs::default();
    commit_adapter(
        &mut writer(&fewer, 0).unwrap(),
        &users[1..].iter().map(|u| (*u, 1)).collect::<Vec<_>>(),
    )
    .unwrap();
    assert_ne!(open(&fewer).unwrap().content_hash(), one.content_hash());
}

#[test]
fn the_highest_generation_counts_across_ranks() {
    let fs = CrashFs::default();
    quarantine(&mut writer(&fs, 0).unwrap(), "a", 1, "first try").unwrap();
    commit_adapter(&mut writer(&fs, 1).unwrap(), &[("a", 2)]).unwrap();
    let store = open(&fs).unwrap();
    assert_eq!(store.users()[&key("a")].status, Status::Done);
    assert_eq!(store.next_generation(&key("a")), 3);
}

#[test]
fn equal_records_of_two_ranks_agree_different_ones_conflict() {
    let fs = CrashFs::default();
    for rank in [0, 1] {
        commit_adapter(&mut writer(&fs, rank).unwrap(), &[("a", 1)]).unwrap();
    }
    assert_eq!(open(&fs).unwrap().done().len(), 1);
    quarantine(&mut writer(&fs, 2).unwrap(), "a", 1, "no").unwrap();
    assert!(matches!(open(&fs), Err(Error::Conflict { generation: 1, .. })));
    assert_eq!(verify_in(&fs, &dir()).unwrap().problems.len(), 1);
}

#[test]
fn what_cannot_be_committed_leaves_the_archive_usable() {
    let fs = CrashFs::default();
    let mut w = writer(&fs, 0).unwrap();
    commit_adapter(&mut w, &[("a", 1)]).unwrap();
    let stale = commit_adapter(&mut w, &[("b", 1), ("a", 1)]);
    assert!(matches!(stale, Err(Error::Generation { newest: 1, got: 1, .. })));
    let twice = commit_adapter(&mut w, &[("b", 1), ("b", 1)]);
    assert!(matches!(twice, Err(Error::Generation { .. })));
    let long = "x".repeat((1 << 20) + 1);
    assert!(matches!(quarantine(&mut w, &long, 1, ""), Err(Error::TooLong { .. })));
    assert!(matches!(
        quarantine(&mut w, "b", 1, &long[..(1 << 16) + 1]),
        Err(Error::TooLong { .. })
    ));
    let nan = vec![f32::NAN; sites().params(1)];
    let (sites, spec) = (sites(), spec());
    let provenance = Provenance {
        base_hash: String::new(),
        config_hash: String::new(),
        steps: 0,
        final_loss: None,
    };
    let adapter = AdapterRef { spec: &spec, sites: &sites, params: &nan, provenance: &provenance };
    let user = UserId::new("b");
    let commit = Commit { user: &user, generation: 1, outcome: Outcome::Adapter(adapter) };
    assert!(matches!(w.commit(commit), Err(Error::NotFinite { .. })));
    w.commit_batch(&[]).unwrap();
    assert_eq!(open(&fs).unwrap().users().len(), 1);
    commit_adapter(&mut w, &[("b", 1)]).unwrap();
    assert_eq!(open(&fs).unwrap().users().len(), 2);
}

#[test]
fn two_openers() {
    let temporary = tempfile::tempdir().unwrap();
    let store = temporary.path().join("store");
    let mut w = Writer::open(&store, 0).unwrap();
    assert!(matches!(Writer::open(&store, 0), Err(Error::Locked { .. })));
    assert!(trainer::store::forget(&store, &key("a")).is_err());
    Writer::open(&store, 1).unwrap();
    commit_adapter(&mut w, &[("a", 1)]).unwrap();
    // A reader needs no lock.
    assert_eq!(Store::open(&store).unwrap().done().len(), 1);
    drop(w);
    let w = Writer::open(&store, 0).unwrap();
    assert_eq!(w.users().len(), 1);
}

#[test]
fn a_lost_index_is_rebuilt() {
    let fs = CrashFs::default();
    let mut w = writer(&fs, 0).unwrap();
    for u in ["a", "b", "c", "d", "e"] {
        commit_adapter(&mut w, &[(u, 1)]).unwrap();
    }
    w.close().unwrap();
    let (before, path) = (open(&fs).unwrap(), dir().join("rank-0000/index.myr"));
    let bytes = read(&fs, &path);
    fs.remove(&path).unwrap();
    assert_eq!(open(&fs).unwrap().users(), before.users());
    writer(&fs, 0).unwrap();
    assert_eq!(read(&fs, &path), bytes);
    assert!(fs.files().len() > 3, "several segments");
}
