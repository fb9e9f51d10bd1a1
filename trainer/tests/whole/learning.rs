//! What a step is, and what many of them come to.

use crate::world::{Log, ONE, Setting, attempt, bits, fresh, recipe, spec, task, train};
use kernels::classify::Row;
use kernels::cpu::CpuBuf;
use kernels::optim::{AdamW, Optim, Update};
use kernels::random::uniform_f32;
use kernels::{Backend, Cpu};
use trainer::comm::{HostSync, Solo};
use trainer::config::{Recipe, ScheduleKind};
use trainer::model::activations::StepSize;
use trainer::model::event::{
    EventNetwork, EventSpec, EventStepper, Goal, History, MASKED, Prediction,
};
use trainer::optim::Order;
use trainer::pack::{ClassLoss, Packer, Piece, Share};
use trainer::stage::individual::End;
use trainer::stage::whole::{Reconstruction, WholeTask, WholeTrainer};

/// A step is AdamW with the gradient of the batch's mean loss plus lambda times the mean over its hidden events.
#[test]
fn a_step_is_what_it_says() {
    let spec = spec();
    let log = Log::new(&spec, 45, 1);
    let recipe = plain();
    let task = WholeTask { num_shards: 1, ..task(&log, &recipe) };
    let from = fresh(&spec);
    let trained = train((&spec, &log.table, &task), &ONE, (&from, 0, Some((0, 1))));
    let (grads, expected) = gradient((&spec, &log), &task, (&from.params, 0));
    let loss = f64::from(trained.losses()[0]);
    assert!((loss - expected).abs() <= f64::from(f32::EPSILON) * loss, "{loss}");
    let [params, m, v, norm] = adamw(0, [&from.params, &grads, &from.m, &from.v]);
    assert_eq!(trained.state.params, params);
    assert_eq!((trained.state.m, trained.state.v), (m, v));
    assert_eq!(trained.told.steps[0].1, norm[0].to_bits());
}

/// One epoch at one rate.
pub(crate) fn plain() -> Recipe {
    Recipe { schedule: ScheduleKind::Constant, warmup_ratio: 0.0, epochs: 1, ..recipe() }
}

/// The gradient of every parameter on the batch of a step of the first epoch, and that batch's loss.
pub(crate) fn gradient(
    (spec, log): (&EventSpec, &Log),
    task: &WholeTask<'_>,
    (params, step): (&[f32], u32),
) -> (Vec<f32>, f64) {
    let count = u32::try_from(log.windows.len()).unwrap();
    let order = Order::new(count, task.recipe.batch_size, 0, task.key);
    let batch = order.batch(step);
    let windows: Vec<&[u32]> =
        batch.iter().map(|&i| log.windows[i as usize].tokens.as_slice()).collect();
    let mut net = EventNetwork::new(Cpu, spec.clone()).unwrap();
    net.load(params).unwrap();
    let size = StepSize { rows: 1000, stored_blocks: 2, backward: true };
    let mut stepper = EventStepper::new(&net, size).unwrap();
    let mut grads = CpuBuf::from(vec![0.0; params.len()]);
    let mut run = |pieces: &[Piece<'_>], weight: f32, goal| {
        let mut packer = Packer::new(false);
        packer.add(&Share { adapter: None, layout: 0, pieces, weight, first_token: 0 });
        let pack = (packer.batch(), &log.table);
        let losses = stepper.train_whole(&net, pack, goal, &mut grads).unwrap();
        losses.iter().map(|&l| f64::from(l)).sum::<f64>() * f64::from(weight)
    };
    let pieces = windows.iter().map(|w| Piece::supervised(w, w.len() - 1));
    let first = |p: &Piece<'_>| if spec.history == History::Mean { 0 } else { p.first_output };
    let pieces: Vec<Piece<'_>> = pieces.map(|p| Piece { first_output: first(&p), ..p }).collect();
    let intents = run(&pieces, 1.0 / f32::from(u16::try_from(batch.len()).unwrap()), Goal::Intents);

    let hidden = batch.iter().zip(&windows).map(|(&i, w)| {
        let places = 0..u32::try_from(w.len() - 1).unwrap();
        let is = |p: &u32| f64::from(uniform_f32(task.key, [i, 0, *p, 0x4d41_534b])) < 0.3;
        let only: Vec<u32> = places.filter(is).collect();
        let mut rows = w[..w.len() - 1].to_vec();
        let event = |&p: &u32| log.table.row(w[p as usize]).unwrap()[2];
        let targets: Vec<u32> = only.iter().map(event).collect();
        only.iter().for_each(|&p| rows[p as usize] |= MASKED);
        (rows, only, targets)
    });
    let hidden: Vec<_> = hidden.filter(|h| !h.1.is_empty()).collect();
    let count: u16 = hidden.iter().map(|h| u16::try_from(h.1.len()).unwrap()).sum();
    assert!(count > 5, "{count} events hidden");
    let pieces: Vec<Piece<'_>> = (hidden.iter())
        .map(|(rows, only, targets)| Piece {
            rows,
            first_output: 0,
            targets,
            loss: None,
            only: Some(only),
        })
        .collect();
    let events = run(&pieces, 1.0 / f32::from(count) * 0.5, Goal::Events);
    let mut values = vec![0.0; params.len()];
    Cpu.read(&grads, 0, &mut values).unwrap();
    (values, intents + events)
}

/// Parameters, moments and the gradient's norm after step `done` of [`plain`], of parameters, gradient and moments.
pub(crate) fn adamw(done: u32, [params, grads, m, v]: [&[f32]; 4]) -> [Vec<f32>; 4] {
    let len = params.len();
    let update = Update {
        offset: 0,
        len: u32::try_from(len).unwrap(),
        step: done + 1,
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        clip_norm: 1.0,
    };
    let [mut params, mut grads, mut m, mut v] =
        [params, grads, m, v].map(|x| CpuBuf::from(x.to_vec()));
    let mut norms = CpuBuf::from(vec![0.0]);
    Cpu.adamw(AdamW {
        updates: &CpuBuf::from(vec![update]),
        num_updates: 1,
        params: &mut params,
        grads: &mut grads,
        m: &mut m,
        v: &mut v,
        norms: &mut norms,
    })
    .unwrap();
    let read = |buffer: &CpuBuf<f32>, n: usize| {
        let mut values = vec![0.0; n];
        Cpu.read(buffer, 0, &mut values).unwrap();
        values
    };
    [read(&params, len), read(&m, len), read(&v, len), read(&norms, 1)]
}

/// Mean loss of windows under parameters.
fn mean_loss(spec: &EventSpec, params: &[f32], log: &Log) -> f64 {
    let recipe = recipe();
    let mut net = EventNetwork::new(Cpu, spec.clone()).unwrap();
    net.load(params).unwrap();
    let task = task(log, &recipe);
    let mut trainer = WholeTrainer::new(&mut net, &log.table, 64).unwrap();
    trainer.mean_loss((&Solo::new(), &HostSync::new(8)), (&task, &log.windows)).unwrap()
}

#[test]
fn a_rule_is_learned_to_nearly_nothing() {
    // A prediction layer begins near nothing, so what is below it begins to learn later.
    let cases = [(History::Last, Prediction::Scalar, 60), (History::Mean, Prediction::Linear, 200)];
    for (history, prediction, epochs) in cases {
        let spec = EventSpec { history, prediction, ..spec() };
        let log = Log::new(&spec, 60, 3);
        let mut recipe = recipe();
        (recipe.epochs, recipe.batch_size, recipe.weight_decay) = (epochs, 20, 0.0);
        let task = WholeTask { reconstruction: None, ..task(&log, &recipe) };
        let trained = train((&spec, &log.table, &task), &ONE, (&fresh(&spec), 0, None));
        let losses = trained.losses();
        assert!((losses[0] - 6f32.ln()).abs() < 0.5, "at first about ln 6: {}", losses[0]);
        let left = mean_loss(&spec, &trained.state.params, &log);
        assert!(left < 0.02, "{history:?}: {left} left, from {losses:?}");
    }
}

/// With the auxiliary objective events are named again by what is left of them and their neighbours.
#[test]
fn hidden_events_are_found() {
    let spec = spec();
    let log = Log::new(&spec, 60, 3);
    let mut recipe = recipe();
    (recipe.epochs, recipe.batch_size) = (30, 20);
    let reconstruction = Some(Reconstruction { mask_ratio: 0.5, lambda: 1.0 });
    let task = WholeTask { reconstruction, ..task(&log, &recipe) };
    let trained = train((&spec, &log.table, &task), &ONE, (&fresh(&spec), 0, None));
    let losses = trained.losses();
    let first = 6f32.ln() + 12f32.ln();
    assert!((losses[0] - first).abs() < 0.5, "about {first}: {}", losses[0]);
    // The time column says which three of twelve events it may have been: ln 3 remains of ln 12.
    let last = losses[losses.len() - 3..].iter().sum::<f32>() / 3.0;
    assert!(last < 3f32.ln() + 0.6, "{last}, from {losses:?}");
}

/// A student that has only its teacher's answers ends where the teacher is.
#[test]
fn a_student_comes_near_its_teacher() {
    let spec = spec();
    let log = Log::new(&spec, 60, 3);
    let teacher =
        |i: u32| (0..6).map(|n| crate::world::draw(77, i % 3 * 6 + n, 5) as f32).collect();
    let row = Row::distill(0, 1.0, 1.0, 2.0);
    let losses: Vec<ClassLoss> = (0..60)
        .map(|i| ClassLoss { row, teacher: teacher(log.windows[i as usize].tokens[0]) })
        .collect();
    let mut recipe = recipe();
    (recipe.epochs, recipe.batch_size, recipe.weight_decay) = (60, 20, 0.0);
    let task = WholeTask { losses: &losses, reconstruction: None, ..task(&log, &recipe) };
    let of = (&spec, &log.table, &task);
    let trained = train(of, &ONE, (&fresh(&spec), 0, None));
    let told = trained.losses();
    assert!(told[0] > 0.5 && told[told.len() - 1] < 0.02, "{told:?}");
    let four = train(of, &Setting { ranks: 4, pack_rows: 9, threads: 2 }, (&fresh(&spec), 0, None));
    assert_eq!(bits(&four.state), bits(&trained.state));
}

#[test]
fn divergence_is_an_error() {
    let spec = spec();
    let log = Log::new(&spec, 45, 1);
    let two = Setting { ranks: 2, ..ONE };
    let told = |learning_rate: f64, broken: bool| {
        let mut recipe = recipe();
        (recipe.learning_rate, recipe.clip_norm, recipe.epochs) = (learning_rate, 0.0, 20);
        let mut from = fresh(&spec);
        if broken {
            from.params[5] = f32::NAN;
        }
        let task = task(&log, &recipe);
        let ranks = attempt((&spec, &log.table, &task), &two, (&from, 0, None));
        let told: Vec<String> = ranks.into_iter().map(|r| r.unwrap_err().to_string()).collect();
        assert_eq!(told[0], told[1], "the ranks agree");
        told[0].clone()
    };
    assert!(told(1e30, false).contains("diverged"));
    assert!(told(0.01, true).contains("step 1 diverged"));
}

/// The model is the best epoch's, and the stage ends when enough epochs brought nothing better.
#[test]
fn early_stopping_keeps_the_best_epoch() {
    let spec = spec();
    let log = Log::new(&spec, 30, 3);
    // Another rule: what is learned of the first helps at first, then hurts.
    let mut other = Log::new(&spec, 30, 4);
    for window in other.windows.iter_mut().step_by(2) {
        let intent = window.tokens.last_mut().unwrap();
        *intent = (*intent + 1) % 6;
    }
    let mut recipe = recipe();
    (recipe.epochs, recipe.batch_size) = (40, 10);
    (recipe.early_stop.enabled, recipe.early_stop.patience) = (true, 3);
    let task = WholeTask { validation: &other.windows, ..task(&log, &recipe) };
    let of = (&spec, &log.table, &task);
    let trained = train(of, &ONE, (&fresh(&spec), 0, None));
    let losses: Vec<f64> = trained.told.epochs.iter().map(|e| e.1.unwrap()).collect();
    let numbers: Vec<u32> = trained.told.epochs.iter().map(|e| e.0).collect();
    let smallest = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let at = losses.iter().position(|l| l.to_bits() == smallest.to_bits()).unwrap();
    assert!((1..36).contains(&at), "the best epoch is neither the first nor the last: {losses:?}");
    assert_eq!(losses.len(), at + 4, "three more epochs");
    assert_eq!(numbers, (1..=u32::try_from(at + 4).unwrap()).collect::<Vec<_>>());
    assert_eq!(trained.end, End::Complete);
    let best = trained.state.best.as_ref().unwrap();
    assert_eq!((best.loss.to_bits(), best.epochs_since), (smallest.to_bits(), 3));
    assert_eq!(trained.model, best.params);
    assert_ne!(trained.state.params, best.params, "the state goes on from the last step");
    assert_eq!(mean_loss(&spec, &best.params, &other).to_bits(), smallest.to_bits());
    // In another world, on another way there, and continued when all is over: the same.
    let two = Setting { ranks: 2, pack_rows: 11, threads: 2 };
    let first = train(of, &two, (&fresh(&spec), 0, Some((0, 3 * u32::try_from(at).unwrap() + 4))));
    let rest = train(of, &two, (&first.state, 0, None));
    assert_eq!(bits(&rest.state), bits(&trained.state));
    let again = train(of, &ONE, (&trained.state, 0, None));
    assert_eq!((again.end, again.told.steps.len()), (End::Complete, 0));
    assert_eq!((bits(&again.state), again.model), (bits(&trained.state), trained.model));
    let params = trained.state.best.as_ref().unwrap().params.clone();
    assert_eq!(trained.state.into_params(), params);
}
