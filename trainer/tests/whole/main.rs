//! Training every parameter of an event model: one result in any world, on any way there; it learns, and it says when
//! it does not. Users of the individual stage on an event model: one result in any company.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod frozen;
mod individual;
mod learning;
mod world;

use std::collections::BTreeSet;
use trainer::model::event::{EventSpec, History};
use trainer::stage::individual::End;
use world::{Log, ONE, SHARDS, Setting, attempt, bits, fresh, recipe, spec, task, train};

/// Both histories; the last batch of an epoch has fewer windows than there are shards.
fn cases() -> Vec<(EventSpec, Log)> {
    [History::Last, History::Mean]
        .into_iter()
        .map(|history| EventSpec { history, ..spec() })
        .map(|spec| (spec.clone(), Log::new(&spec, 45, 1)))
        .collect()
}

#[test]
fn any_number_of_ranks_any_threads_and_any_packs_give_the_same_bytes() {
    for (spec, log) in cases() {
        let recipe = recipe();
        let task = task(&log, &recipe);
        let settings = [
            ONE,
            Setting { threads: 4, ..ONE },
            Setting { pack_rows: 1, ..ONE },
            Setting { pack_rows: 17, threads: 2, ..ONE },
            Setting { ranks: 2, ..ONE },
            Setting { ranks: 3, pack_rows: 30, ..ONE },
            Setting { ranks: 4, threads: 2, pack_rows: 12 },
            Setting { ranks: 8, ..ONE },
        ];
        let mut distinct = BTreeSet::new();
        for setting in &settings {
            let trained = train((&spec, &log.table, &task), setting, (&fresh(&spec), 0, None));
            assert_eq!((trained.end, trained.told.steps.len()), (End::Complete, 8));
            assert_eq!(trained.told.epochs, [(1, None), (2, None)]);
            assert_eq!(trained.model, trained.state.params);
            distinct.insert((bits(&trained.state), trained.told.steps));
        }
        assert_eq!(distinct.len(), 1, "{:?}", spec.history);
        let other = trainer::stage::whole::WholeTask { key: [5, 6], ..task };
        let other = train((&spec, &log.table, &other), &ONE, (&fresh(&spec), 0, None));
        assert!(!distinct.contains(&(bits(&other.state), other.told.steps)), "the key matters");
    }
}

#[test]
fn a_run_that_stops_goes_on_to_the_same_bytes() {
    let (spec, log) = cases().remove(1);
    let mut recipe = recipe();
    recipe.epochs = 3;
    recipe.early_stop.enabled = true;
    recipe.early_stop.patience = 9;
    let validation = Log::new(&spec, 20, 99).windows;
    let task = trainer::stage::whole::WholeTask { validation: &validation, ..task(&log, &recipe) };
    let of = (&spec, &log.table, &task);
    let whole = train(of, &ONE, (&fresh(&spec), 0, None));
    assert_eq!((whole.told.steps.len(), whole.told.kept.len()), (12, 0));
    for at in 1..12 {
        // Some other rank than the first is asked, and other ranks go on.
        let two = Setting { ranks: 2, ..ONE };
        let first = train(of, &two, (&fresh(&spec), 0, Some((1, at))));
        assert_eq!((first.end, first.told.steps.len()), (End::Stopped, at as usize));
        assert_eq!(first.told.kept, std::slice::from_ref(&first.state), "a stop keeps the state");
        let rest = train(of, &Setting { ranks: 4, ..ONE }, (&first.state, 0, None));
        assert_eq!(bits(&rest.state), bits(&whole.state), "stopped after step {at}");
        assert_eq!([first.told.steps, rest.told.steps].concat(), whole.told.steps);
        assert_eq!([first.told.epochs, rest.told.epochs].concat(), whole.told.epochs);
        assert_eq!(rest.model, whole.model);
    }
}

#[test]
fn checkpoints_are_what_one_can_go_on_from() {
    let (spec, log) = cases().remove(0);
    let recipe = recipe();
    let task = task(&log, &recipe);
    let of = (&spec, &log.table, &task);
    let whole = train(of, &ONE, (&fresh(&spec), 3, None));
    let steps: Vec<u32> = whole.told.kept.iter().map(|s| s.step).collect();
    assert_eq!(steps, [3, 6]);
    for state in &whole.told.kept {
        let rest = train(of, &Setting { ranks: 2, ..ONE }, (state, 0, None));
        assert_eq!(bits(&rest.state), bits(&whole.state));
    }
    // The end is a state as well: nothing is left to do.
    let again = train(of, &ONE, (&whole.state, 1, None));
    assert_eq!((again.end, again.told.steps.len()), (End::Complete, 0));
    assert_eq!(bits(&again.state), bits(&whole.state));
}

#[test]
fn odd_sizes() {
    let (spec, log) = cases().remove(0);
    // Fewer windows than shards, one window, a batch beyond all windows, batches of one.
    for (count, batch) in [(3, 13), (1, 1), (45, 1000), (5, 1)] {
        let mut recipe = recipe();
        recipe.batch_size = batch;
        let windows = &log.windows[..count];
        let task = trainer::stage::whole::WholeTask { windows, ..task(&log, &recipe) };
        let of = (&spec, &log.table, &task);
        let one = train(of, &ONE, (&fresh(&spec), 0, None));
        let four = train(of, &Setting { ranks: 4, pack_rows: 7, ..ONE }, (&fresh(&spec), 0, None));
        assert_eq!((bits(&one.state), &one.told.steps), (bits(&four.state), &four.told.steps));
        assert_eq!(one.told.steps.len(), 2 * count.div_ceil(batch as usize));
        assert!(one.losses().iter().all(|loss| loss.is_finite()));
    }
    let recipe = recipe();
    let none = trainer::stage::whole::WholeTask { windows: &[], ..task(&log, &recipe) };
    for ended in attempt((&spec, &log.table, &none), &ONE, (&fresh(&spec), 0, None)) {
        assert!(ended.unwrap_err().to_string().contains("no usable example"));
    }
    assert_eq!(SHARDS, 8, "a batch of 13 is ragged over them");
}

#[test]
fn what_does_not_fit_is_an_error_on_every_rank() {
    let (spec, log) = cases().remove(0);
    let recipe = recipe();
    let two = Setting { ranks: 2, ..ONE };
    let short = trainer::stage::whole::State::new(vec![0.0; 7]);
    for ended in attempt((&spec, &log.table, &task(&log, &recipe)), &two, (&short, 0, None)) {
        assert!(ended.unwrap_err().to_string().contains("7 parameters"));
    }
    // A window beyond the positions, an intent that is none, an event that is none.
    for change in [vec![1, 2, 3, 4, 5, 6, 7, 0], vec![1, 2, 6], vec![1, 60, 0]] {
        let mut log = Log::new(&spec, 45, 1);
        let prompt_len = change.len() - 1;
        log.windows.fill(trainer::prompt::Example { tokens: change, prompt_len });
        let task = task(&log, &recipe);
        for ended in attempt((&spec, &log.table, &task), &two, (&fresh(&spec), 0, None)) {
            ended.unwrap_err();
        }
    }
}
