//! Training above frozen blocks: what is frozen keeps its bits, what trains goes the way it goes when the frozen
//! gradient is computed and dropped; in any world, and on any way there.

use crate::learning::{adamw, gradient, plain};
use crate::world::{
    Log, ONE, Setting, attempt, bits, fresh, partly_fresh, recipe, spec, task, train,
};
use kernels::Cpu;
use std::collections::BTreeSet;
use trainer::model::event::{EventNetwork, EventSpec, History, Places, Prediction};
use trainer::stage::individual::End;
use trainer::stage::whole::{WholeTask, WholeTrainer};
use trainer::store::{load_checkpoint, save_checkpoint};

fn same(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let at = got.iter().zip(want).position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!(at, None, "{what}");
}

/// The reference computes every gradient, drops what is frozen, and gives the rest to AdamW: so neither norm nor decay
/// knows of it.
#[test]
fn the_rest_trains_as_if_the_frozen_gradient_were_dropped() {
    for (history, prediction) in
        [(History::Last, Prediction::Scalar), (History::Mean, Prediction::Linear)]
    {
        let spec = EventSpec { history, prediction, ..spec() };
        let (log, recipe) = (Log::new(&spec, 45, 1), plain());
        let task = WholeTask { num_shards: 1, ..task(&log, &recipe) };
        let mut norms = BTreeSet::new();
        for frozen in 0..=spec.layers {
            let what = format!("{history:?}, {frozen} frozen");
            let from = partly_fresh(&spec, frozen);
            let trained = train((&spec, &log.table, &task), &ONE, (&from, 0, None));
            let first = Places::partly(&spec, frozen).frozen();
            assert_eq!(first > 0, frozen > 0);
            let (mut params, mut m, mut v) = (from.params.clone(), from.m, from.v);
            for step in 0..4 {
                let (all, _) = gradient((&spec, &log), &task, (&params, step));
                let [p, next_m, next_v, norm] =
                    adamw(step, [&params[first..], &all[first..], &m, &v]);
                params.splice(first.., p);
                (m, v) = (next_m, next_v);
                assert_eq!(trained.told.steps[step as usize].1, norm[0].to_bits(), "{what}");
            }
            assert_eq!(trained.told.steps.len(), 4);
            same(&format!("{what}, parameters"), &trained.state.params, &params);
            same(&format!("{what}, first moments"), &trained.state.m, &m);
            same(&format!("{what}, second moments"), &trained.state.v, &v);
            same(&format!("{what}, frozen"), &params[..first], &from.params[..first]);
            norms.insert(trained.told.steps[0].1);
        }
        assert_eq!(norms.len(), spec.layers + 1, "the norm is of what trains");
    }
}

/// The tensors that a training moves, by name.
fn moved(spec: &EventSpec, frozen: usize) -> BTreeSet<String> {
    let (log, recipe) = (Log::new(spec, 45, 1), recipe());
    let from = partly_fresh(spec, frozen);
    let of = (spec, &log.table, &task(&log, &recipe));
    let after = train(of, &ONE, (&from, 0, None)).state.params;
    let places = Places::new(spec);
    let moves = places.tensors().iter().filter(|p| after[p.range()] != from.params[p.range()]);
    moves.map(|p| p.name.clone()).collect()
}

#[test]
fn with_all_blocks_frozen_the_heads_alone_train() {
    let spec = EventSpec { prediction: Prediction::Linear, ..spec() };
    let names: Vec<String> = Places::new(&spec).tensors().iter().map(|p| p.name.clone()).collect();
    let all: BTreeSet<String> = names.iter().cloned().collect();
    assert_eq!(moved(&spec, 0), all, "everything trains");
    let of = |starts: &[&str]| -> BTreeSet<String> {
        names.iter().filter(|n| starts.iter().any(|s| n.starts_with(s))).cloned().collect()
    };
    let heads = ["norm.", "reconstruction.", "intent.", "prediction."];
    assert_eq!(moved(&spec, 2), of(&heads));
    assert_eq!(moved(&spec, 1), of(&[&heads[..], &["layers.1."]].concat()));
}

/// Fewer parameters learn less of a rule that looks two events back, but they learn.
#[test]
fn a_part_learns() {
    let (spec, mut recipe) = (spec(), recipe());
    let log = Log::new(&spec, 60, 3);
    (recipe.epochs, recipe.batch_size, recipe.weight_decay) = (60, 20, 0.0);
    let task = WholeTask { reconstruction: None, ..task(&log, &recipe) };
    let last = |frozen: usize| {
        let from = partly_fresh(&spec, frozen);
        let losses = train((&spec, &log.table, &task), &ONE, (&from, 0, None)).losses();
        (losses[0], losses[losses.len() - 1])
    };
    let [(first, whole), (_, one), (_, none)] = [0, 1, 2].map(last);
    assert!((first - 6f32.ln()).abs() < 0.5, "{first}");
    assert!(
        whole < 0.02 && whole < one && one < none && none < first - 0.2,
        "{whole} {one} {none}"
    );
}

#[test]
fn any_world_and_any_way_there() {
    for (history, frozen) in [(History::Last, 1), (History::Mean, 1), (History::Last, 2)] {
        let spec = EventSpec { history, ..spec() };
        let (log, validation) = (Log::new(&spec, 45, 1), Log::new(&spec, 20, 99).windows);
        let mut recipe = recipe();
        (recipe.early_stop.enabled, recipe.early_stop.patience) = (true, 9);
        let task = WholeTask { validation: &validation, ..task(&log, &recipe) };
        let (of, from) = ((&spec, &log.table, &task), partly_fresh(&spec, frozen));
        let one = train(of, &ONE, (&from, 3, None));
        assert_eq!((one.end, one.told.steps.len(), one.told.kept.len()), (End::Complete, 8, 2));
        for setting in [
            Setting { threads: 4, pack_rows: 17, ..ONE },
            Setting { ranks: 2, ..ONE },
            Setting { ranks: 3, pack_rows: 30, ..ONE },
            Setting { ranks: 8, threads: 2, pack_rows: 12 },
        ] {
            let other = train(of, &setting, (&from, 0, None));
            assert_eq!(bits(&other.state), bits(&one.state), "{setting:?}");
            assert_eq!(
                (other.told.steps, other.model),
                (one.told.steps.clone(), one.model.clone())
            );
        }
        // Stopped, kept on disk and continued by other ranks.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint.safetensors");
        for at in [1, 4, 5] {
            let first = train(of, &Setting { ranks: 2, ..ONE }, (&from, 0, Some((1, at))));
            assert_eq!(first.end, End::Stopped);
            save_checkpoint(&path, &first.state, "of this run").unwrap();
            let kept = load_checkpoint(&path, "of this run").unwrap().unwrap();
            assert_eq!(bits(&kept), bits(&first.state));
            let trains = Places::partly(&spec, frozen).trained();
            assert_eq!((kept.m.len(), kept.v.len()), (trains, trains), "no moments of the rest");
            let rest = train(of, &Setting { ranks: 4, ..ONE }, (&kept, 0, None));
            assert_eq!(bits(&rest.state), bits(&one.state), "stopped after step {at}");
            assert_eq!(rest.model, one.model);
        }
    }
}

#[test]
fn less_memory_and_no_other_trainings_moments() {
    let (spec, recipe) = (EventSpec { layers: 4, ..spec() }, recipe());
    let log = Log::new(&spec, 45, 1);
    let net = |frozen| EventNetwork::partly(Cpu, spec.clone(), frozen).unwrap();
    let bytes: Vec<usize> = (0..=4).map(|n| WholeTrainer::bytes(&net(n), 64, 2)).collect();
    assert!(bytes.windows(2).all(|w| w[1] < w[0]), "{bytes:?}");
    // A state of a training with two blocks frozen; then one frozen and none.
    let state = partly_fresh(&spec, 2);
    for frozen in [0, 1] {
        let mut state = partly_fresh(&spec, frozen);
        state.v = partly_fresh(&spec, 2).v;
        let of = (&spec, &log.table, &task(&log, &recipe));
        for ended in attempt(of, &Setting { ranks: 2, ..ONE }, (&state, 0, None)) {
            assert!(ended.unwrap_err().to_string().contains("moments"));
        }
    }
    let whole = fresh(&spec);
    assert_eq!((whole.m.len(), state.params.len()), (whole.params.len(), whole.params.len()));
    assert!(state.m.len() < whole.m.len());
}
