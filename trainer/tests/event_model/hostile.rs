//! Packs that do not fit the model are refused, whatever they hold.

use crate::case::{Model, Sample, pack, plain, samples};
use crate::{bare, stepper};
use kernels::classify::Row;
use kernels::cpu::CpuBuf;
use trainer::model::event::{EventSpec, EventTable, Goal, History, MASKED, Prediction};
use trainer::pack::Packer;

fn refused(model: &Model, packer: &Packer, goal: Goal) -> String {
    let mut grads = CpuBuf::from(vec![0.0; model.params.len()]);
    let pack = (packer.batch(), &model.table);
    let got = stepper(model, 64, 9).train_whole(&model.net, pack, goal, &mut grads).unwrap_err();
    let left = crate::read(&grads);
    assert!(left.iter().all(|g| g.to_bits() == 0), "a gradient of what was refused");
    got.to_string()
}

fn changed(model: &Model, change: impl FnOnce(&mut Sample)) -> Packer {
    let mut sample = Sample::intent(model, 1, 5);
    change(&mut sample);
    pack(model, &[Sample::intent(model, 2, 3), sample, Sample::intent(model, 3, 4)], 1.0)
}

#[test]
fn packs_that_do_not_fit() {
    let model = Model::new(&plain(), 1);
    let intents =
        |change: fn(&mut Sample)| refused(&model, &changed(&model, change), Goal::Intents);
    assert!(intents(|s| s.rows[2] = 40).contains("event 40 of 40"));
    assert!(intents(|s| s.rows[2] = MASKED | 41).contains("event 41 of 40"));
    assert!(intents(|s| s.rows[2] = u32::MAX).contains("event 2147483647 of 40"));
    assert!(intents(|s| s.rows.resize(9, 0)).contains("position 8"));
    assert!(intents(|s| s.targets = vec![5]).contains("not a class"));
    assert!(intents(|s| s.targets = Vec::new()).contains("targets"));
    let unlike = |s: &mut Sample| *s = s.clone().with_loss(Row::retain(None, 1.0), vec![0.0; 4]);
    assert!(intents(unlike).contains("teacher"));
    let without = |s: &mut Sample| *s = s.clone().with_loss(Row::retain(None, 1.0), Vec::new());
    assert!(intents(without).contains("teacher"));
    let nameless = |s: &mut Sample| (s.hidden, s.targets) = (vec![1], vec![11]);
    assert!(refused(&model, &changed(&model, nameless), Goal::Events).contains("class"));
    let several = |s: &mut Sample| (s.hidden, s.targets) = (vec![1, 3], vec![1, 1]);
    assert!(intents(several).contains("several outputs"));
    let many = pack(&model, &samples(&model, 1, 40, false), 1.0);
    assert!(many.rows() > 64 && refused(&model, &many, Goal::Intents).contains("room for 64"));
}

#[test]
fn tables_and_models_that_do_not_fit() {
    let mut model = Model::new(&plain(), 1);
    let packer = changed(&model, |_| {});
    model.table = EventTable::new(4);
    assert!(refused(&model, &packer, Goal::Intents).contains("4 columns, the model has 3"));
    // A value that its column's table has no row for, also in a column before another's.
    for column in 0..3 {
        let mut event = [0; 3];
        event[column] = plain().columns[column] + u32::from(column == 2);
        model.table = EventTable::new(3);
        model.table.add(&event.repeat(40)).unwrap();
        refused(&model, &packer, Goal::Intents);
    }
    let len = model.params.len();
    for wrong in [0, len - 1, len + 1] {
        let got = model.net.load(&vec![0.0; wrong]).unwrap_err().to_string();
        assert!(got.contains(&format!("{wrong} parameters, the model has {len}")), "{got}");
    }
}

#[test]
fn nothing_to_do() {
    for history in [History::Last, History::Mean] {
        for prediction in [Prediction::Scalar, Prediction::Linear] {
            let model = Model::new(&EventSpec { history, prediction, ..plain() }, 1);
            let packer = pack(&model, &[], 1.0);
            let mut stepper = stepper(&model, 8, 1);
            let batch = (packer.batch(), &model.table);
            assert_eq!(stepper.logits(&model.net, batch, bare(&model)).unwrap(), [0.0f32; 0]);
            let mut grads = CpuBuf::from(vec![0.0; model.params.len()]);
            for goal in [Goal::Intents, Goal::Events] {
                let losses = stepper.train_whole(&model.net, batch, goal, &mut grads).unwrap();
                assert_eq!(losses, [0.0f32; 0]);
            }
            assert!(crate::read(&grads).iter().all(|g| g.to_bits() == 0));
        }
    }
}
