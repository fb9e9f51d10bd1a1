//! Users in one pack: adapters of several lists and changes of the intent table, on a frozen model.

use crate::case::{Model, People, specs, widen};
use crate::tolerance::{no_worse, on_threads, same_bits};
use crate::{PART, narrow, parts, stepper, whole};
use candle_core::DType;
use kernels::backend::Buffer as _;
use kernels::cpu::CpuBuf;
use trainer::model::Adapters;
use trainer::model::event::{Adapted, EventSpec, Goal, History};

/// Losses and each user's gradient, of a pack of the users `who`.
fn train(
    model: &Model,
    people: &People,
    who: &[usize],
    (share_prefixes, stored_blocks): (bool, usize),
) -> (Vec<f32>, Vec<Vec<f32>>) {
    let packer = people.pack(model, who, share_prefixes);
    let slab = people.slab(who);
    let adapters = Adapters { layouts: people.lists.layouts(), params: &slab };
    let adapted = Adapted { adapters, head_after: &people.head_after };
    let mut grads = CpuBuf::from(vec![0.0; slab.len()]);
    let mut stepper = stepper(model, packer.rows(), stored_blocks);
    let pack = (packer.batch(), &model.table);
    let losses = stepper.train(&model.net, pack, adapted, &mut grads).unwrap().to_vec();
    let alone = stepper.losses(&model.net, pack, adapted).unwrap();
    same_bits("losses without a backward", alone, &losses);
    (losses, people.split(&grads, who))
}

#[test]
fn losses_and_the_gradients_of_what_users_have() {
    for (name, spec) in specs() {
        let model = Model::new(&spec, 5);
        let people = People::new(&model, 9);
        let everybody: Vec<usize> = (0..9).collect();
        let windows = people.windows(&model);
        let [(want_losses, _, want), (naive_losses, _, naive)] =
            [DType::F64, DType::F32].map(|dtype| {
                let mut oracle = model.oracle(dtype);
                people.join(&mut oracle);
                oracle.gradient(&windows)
            });
        for shape in [(false, spec.layers), (false, 0), (true, spec.layers)] {
            let what = format!("{name}, {shape:?}");
            let (losses, gradients) = train(&model, &people, &everybody, shape);
            no_worse(
                &format!("{what}, losses"),
                PART,
                &losses,
                &narrow(&naive_losses),
                &want_losses,
            );
            for (i, gradient) in gradients.iter().enumerate() {
                let person = &people.people[i];
                let (sites, r) = (&people.lists.lists()[person.layout], person.lora_rank as usize);
                let matrices = sites.tensors(r).map(|(s, half, range)| (s.peft_key(half), range));
                let whole = sites.whole_ranges(r).map(|(t, range)| (t.name.clone(), range));
                let tensors: Vec<_> = matrices.chain(whole).collect();
                let what = format!("{what}, user {i}");
                parts(&what, &tensors, [&widen(gradient), &naive[i], &want[i]]);
            }
        }
    }
}

#[test]
fn a_user_has_the_same_bits_alone_and_among_others() {
    for (name, spec) in specs() {
        let model = Model::new(&spec, 6);
        let people = People::new(&model, 9);
        let stored = spec.layers;
        let alone: Vec<Vec<f32>> =
            (0..9).map(|i| train(&model, &people, &[i], (false, stored)).1.remove(0)).collect();
        for who in [vec![0, 1, 2, 3, 4, 5, 6, 7, 8], vec![8, 3, 5, 1, 0], vec![2, 6], vec![6, 1]] {
            let together = on_threads(|| train(&model, &people, &who, (false, 0)).1);
            for (gradients, threads) in together.iter().zip([1, 2, 4]) {
                for (&i, gradient) in who.iter().zip(gradients) {
                    let what = format!("{name}, user {i} of {who:?}, {threads} threads");
                    same_bits(&what, gradient, &alone[i]);
                }
            }
        }
    }
}

/// A user who has changed nothing yet is answered as the model answers, and learns of the table what the model would.
#[test]
fn a_fresh_user_is_the_model() {
    for history in [History::Last, History::Mean] {
        let model = Model::new(&EventSpec { layers: 2, history, ..crate::plain() }, 7);
        let mut people = People::new(&model, 9);
        for person in &mut people.people {
            person.own.fill(0.0);
        }
        let spec = &model.spec;
        let (table, bias) = (spec.intents * spec.hidden, spec.intents);
        for i in 0..9 {
            let person = &people.people[i];
            let packer = crate::pack(&model, &person.samples, person.weight);
            let (losses, gradient) = whole(&model, &packer, Goal::Intents, 2);
            let (own_losses, own) = train(&model, &people, &[i], (false, 2));
            same_bits("losses", &own_losses, &losses);
            if people.head_after[person.layout].is_some() {
                let places = model.net.places().tensors();
                let find = |name: &str| places.iter().find(|p| p.name == name).unwrap().range();
                let head = &own[0][own[0].len() - table - bias..];
                same_bits("intent table", &head[..table], &gradient[find("intent.table")]);
                same_bits("intent bias", &head[table..], &gradient[find("intent.bias")]);
            }
        }
    }
}
