//! A crash, or a failed call, at every call that changes something: old state or new, never a mix.

use super::*;
use trainer::store::crash::{Bytes, Fault, Names};
use trainer::store::{forget_in, verify_in};

/// One step of a run; each is atomic for whoever opens the store afterwards.
#[derive(Debug, Clone, Copy)]
enum Step {
    Commit(u32, &'static [&'static str]),
    Quarantine(u32, &'static str),
    Close(u32),
    Forget(&'static str),
}

const RUN: [Step; 11] = [
    Step::Commit(0, &["a"]),
    Step::Commit(0, &["b", "c"]),
    Step::Close(0),
    Step::Quarantine(0, "d"),
    Step::Commit(1, &["e", "f"]),
    Step::Close(0),
    Step::Commit(0, &["g"]),
    Step::Forget("b"),
    Step::Commit(0, &["h"]),
    Step::Forget("e"),
    Step::Close(1),
];

/// Runs one step if the store does not show it done; a program that is started again does no more.
fn run(fs: &CrashFs, step: Step, writers: &mut BTreeMap<u32, Writer>) -> Result<()> {
    if done(&open(fs)?, step) && !matches!(step, Step::Close(_)) {
        return Ok(());
    }
    let mut take = |rank| match writers.remove(&rank) {
        Some(w) => Ok(w),
        None => writer(fs, rank),
    };
    match step {
        Step::Commit(rank, users) => {
            let mut w = take(rank)?;
            let users: Vec<(&str, u64)> = users.iter().map(|u| (*u, 1)).collect();
            commit_adapter(&mut w, &users)?;
            writers.insert(rank, w);
        }
        Step::Quarantine(rank, user) => {
            let mut w = take(rank)?;
            quarantine(&mut w, user, 1, "gave up")?;
            writers.insert(rank, w);
        }
        Step::Close(rank) => take(rank)?.close()?,
        Step::Forget(user) => {
            writers.clear();
            let fs: Arc<dyn Fs> = Arc::new(fs.clone());
            forget_in(&fs, &dir(), &key(user), small())?;
        }
    }
    Ok(())
}

fn done(store: &Store, step: Step) -> bool {
    let status = |u: &str| store.users().get(&key(u)).map(|e| &e.status);
    match step {
        Step::Commit(_, users) => users.iter().all(|u| status(u).is_some()),
        Step::Quarantine(_, user) => status(user).is_some(),
        Step::Close(_) => true,
        Step::Forget(user) => status(user) == Some(&Status::Forgotten),
    }
}

/// The states after each step of an undisturbed run, the first being the empty store; and the number of calls.
fn undisturbed() -> (Vec<Content>, u64, [u8; 32]) {
    let fs = CrashFs::default();
    let (mut states, mut writers) = (vec![Content::new()], BTreeMap::new());
    for step in RUN {
        run(&fs, step, &mut writers).unwrap();
        states.push(content(&open(&fs).unwrap()).unwrap());
    }
    (states, fs.calls(), open(&fs).unwrap().content_hash())
}

/// Finishes the run in a new process and checks the end.
fn finish(fs: &CrashFs, expected: &Content, hash: [u8; 32], place: &str) {
    let mut writers = BTreeMap::new();
    for step in RUN {
        run(fs, step, &mut writers).unwrap_or_else(|e| panic!("{place}: {step:?}: {e}"));
    }
    writers.clear();
    let store = open(fs).unwrap();
    assert!(content(&store).unwrap() == *expected, "{place}: another end");
    assert_eq!(store.content_hash(), hash, "{place}");
    // Opening the archives finishes what was begun: then no byte of the forgotten is left, and all is sound.
    for rank in [0, 1] {
        writer(fs, rank).unwrap().close().unwrap();
    }
    for user in ["b", "e"] {
        let bytes: Vec<u8> = params(user).iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(found_in(fs, &bytes), Vec::<PathBuf>::new(), "{place}: weights of {user}");
    }
    let report = verify_in(fs, &dir()).unwrap();
    assert_eq!((report.problems, report.notes), (vec![], vec![]), "{place}");
}

#[test]
fn a_crash_at_every_call_leaves_old_or_new() {
    let (states, calls, hash) = undisturbed();
    let mut num_images = 0;
    for k in 1..=calls {
        let fs = CrashFs::default();
        fs.set_fault(Fault::StopAt(k));
        let (mut writers, mut passed) = (BTreeMap::new(), 0);
        while passed < RUN.len() && run(&fs, RUN[passed], &mut writers).is_ok() {
            passed += 1;
        }
        assert!(passed < RUN.len(), "call {k} stops the run");
        for names in [Names::Synced, Names::All] {
            for bytes in Bytes::EACH {
                let place =
                    format!("call {k} of {calls}, in {:?}, {names:?} {bytes:?}", RUN[passed]);
                let after = fs.crash(names, bytes);
                let store = open(&after).unwrap_or_else(|e| panic!("{place}: {e}"));
                let found = content(&store).unwrap_or_else(|e| panic!("{place}: {e}"));
                assert!(found == states[passed] || found == states[passed + 1], "{place}: a mix");
                finish(&after, &states[RUN.len()], hash, &place);
                num_images += 1;
            }
        }
    }
    assert!(calls > 80 && num_images == 10 * calls, "{calls} calls");
}

/// An I/O error or a full disk at any one call: the step fails, the program opens the store again and goes on.
#[test]
fn a_failed_call_loses_nothing_that_was_acknowledged() {
    let (states, calls, hash) = undisturbed();
    let mut failures = 0;
    for k in 1..=calls {
        let fs = CrashFs::default();
        fs.set_fault(Fault::FailAt(k));
        let mut writers = BTreeMap::new();
        for (i, step) in RUN.into_iter().enumerate() {
            if run(&fs, step, &mut writers).is_err() {
                failures += 1;
                writers.clear();
                let found = content(&open(&fs).unwrap()).unwrap();
                assert!(found == states[i] || found == states[i + 1], "call {k}: a mix");
                run(&fs, step, &mut writers).unwrap_or_else(|e| panic!("call {k}: {step:?}: {e}"));
            }
            // The power fails now: what was acknowledged is there.
            let after = open(&fs.crash(Names::Synced, Bytes::Synced)).unwrap();
            assert!(content(&after).unwrap() == states[i + 1], "call {k}, {step:?}: lost");
        }
        writers.clear();
        finish(&fs, &states[RUN.len()], hash, &format!("failed call {k}"));
    }
    // Only best-effort clean-up may fail unseen, and there is none in an undisturbed run.
    assert_eq!(failures, calls);
}

#[test]
fn a_writer_takes_nothing_after_a_failure() {
    let fs = CrashFs::default();
    let mut w = writer(&fs, 0).unwrap();
    commit_adapter(&mut w, &[("a", 1)]).unwrap();
    fs.set_fault(Fault::FailAt(2));
    assert!(commit_adapter(&mut w, &[("b", 1)]).is_err());
    let again = commit_adapter(&mut w, &[("b", 1)]);
    assert!(matches!(again, Err(trainer::store::Error::Failed { rank: 0 })));
    assert!(w.close().is_err());
    assert_eq!(open(&fs).unwrap().users().len(), 1);
}
