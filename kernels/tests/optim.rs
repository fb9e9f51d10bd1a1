//! AdamW on every backend, against naive and candle.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    reason = "a test panics when wrong; its data is small and exact"
)]

mod naive;
mod tolerance;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Optimizer;
use kernels::optim::{AdamW, Optim, Update};
use kernels::{Cpu, Error};
use naive::{Naive, download, numbers, upload};
use tolerance::{on_threads, same_bits, within};

#[derive(Clone, Debug)]
struct Slabs {
    params: Vec<f32>,
    grads: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
    norms: Vec<f32>,
}

impl Slabs {
    fn new(len: usize, slots: usize) -> Self {
        Self {
            params: numbers(1, len),
            grads: numbers(2, len),
            m: numbers(3, len).iter().map(|x| 0.1 * x).collect(),
            v: numbers(4, len).iter().map(|x| 0.01 * x * x).collect(),
            norms: vec![f32::NAN; slots],
        }
    }

    fn parts(&self) -> [(&'static str, &[f32]); 4] {
        [("params", &self.params), ("grads", &self.grads), ("m", &self.m), ("v", &self.v)]
    }
}

fn run<B: Optim>(b: &B, updates: &[Update], slabs: &Slabs) -> Result<Slabs, Error> {
    let up = |x: &[f32]| upload(b, x);
    let (mut params, mut grads) = (up(&slabs.params), up(&slabs.grads));
    let (mut m, mut v, mut norms) = (up(&slabs.m), up(&slabs.v), up(&slabs.norms));
    b.adamw(AdamW {
        updates: &upload(b, updates),
        num_updates: updates.len(),
        params: &mut params,
        grads: &mut grads,
        m: &mut m,
        v: &mut v,
        norms: &mut norms,
    })?;
    let down = |x| download(b, x);
    Ok(Slabs {
        params: down(&params),
        grads: down(&grads),
        m: down(&m),
        v: down(&v),
        norms: down(&norms),
    })
}

fn update(offset: u64, len: u32) -> Update {
    Update {
        offset,
        len,
        step: 3,
        learning_rate: 2e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        clip_norm: 0.3,
    }
}

/// Five slots of their own step, rate, decay and clip, with gaps; two longer than a piece of the sum.
fn slots() -> (Vec<Update>, Slabs) {
    let updates = vec![
        Update { step: 1, ..update(2, 1) },
        Update { clip_norm: 0.0, weight_decay: 0.0, ..update(3, 40_000) },
        update(40_005, 0),
        Update { step: 1000, learning_rate: 1e-4, clip_norm: 1e6, ..update(40_010, 16_384) },
        Update { beta1: 0.8, beta2: 0.95, eps: 1e-6, ..update(60_000, 33_000) },
    ];
    let slabs = Slabs::new(93_007, updates.len());
    (updates, slabs)
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

#[test]
fn cpu_is_within_the_derived_bound_of_naive() {
    let (updates, before) = slots();
    let (ours, theirs) =
        (run(&Cpu, &updates, &before).unwrap(), run(&Naive, &updates, &before).unwrap());
    // A sum in f64, a root, one rounding to f32.
    within("norms", 1.0, &ours.norms, &widen(&theirs.norms), &widen(&theirs.norms));
    for u in &updates {
        let at = u.offset as usize..u.offset as usize + u.len as usize;
        assert!(ours.grads[at.clone()].iter().all(|g| *g == 0.0));
        let (mut m, mut p) = (Vec::new(), Vec::new());
        for i in at.clone() {
            let size =
                f64::from(before.m[i].abs()) + f64::from((1.0 - u.beta1) * before.grads[i].abs());
            let correction = 1.0 - f64::from(u.beta2).powf(f64::from(u.step));
            let denominator = (f64::from(theirs.v[i]) / correction).sqrt() + f64::from(u.eps);
            let rate =
                f64::from(u.learning_rate) / (1.0 - f64::from(u.beta1).powf(f64::from(u.step)));
            m.push(size);
            p.push(f64::from(before.params[i].abs()) + rate * size / denominator);
        }
        // Gradient: clip within 2 units, a product. Moments: 3 roundings on top; the step: 6 more.
        within("m", 6.0, &ours.m[at.clone()], &widen(&theirs.m[at.clone()]), &m);
        let v = widen(&theirs.v[at.clone()]);
        within("v", 8.0, &ours.v[at.clone()], &v, &v);
        within("params", 12.0, &ours.params[at.clone()], &widen(&theirs.params[at]), &p);
    }
}

#[test]
fn slots_do_not_see_each_other_nor_the_threads_and_gaps_stay() {
    let (updates, before) = slots();
    let all = on_threads(|| run(&Cpu, &updates, &before).unwrap());
    for other in &all[1..] {
        for ((what, a), (_, b)) in all[0].parts().into_iter().zip(other.parts()) {
            same_bits(what, a, b);
        }
        same_bits("norms", &all[0].norms, &other.norms);
    }
    let mut touched = vec![false; before.params.len()];
    for (i, u) in updates.iter().enumerate() {
        let at = u.offset as usize..u.offset as usize + u.len as usize;
        touched[at.clone()].fill(true);
        // Alone, and at another place in the slab.
        let cut = |x: &[f32]| [&[9.0; 5], &x[at.clone()]].concat();
        let alone = Slabs {
            params: cut(&before.params),
            grads: cut(&before.grads),
            m: cut(&before.m),
            v: cut(&before.v),
            norms: vec![f32::NAN],
        };
        let alone = run(&Cpu, &[Update { offset: 5, ..*u }], &alone).unwrap();
        assert_eq!(alone.norms[0].to_bits(), all[0].norms[i].to_bits());
        for ((what, a), (_, b)) in all[0].parts().into_iter().zip(alone.parts()) {
            same_bits(what, &a[at.clone()], &b[5..]);
            assert!(b[..5].iter().all(|x| *x == 9.0));
        }
    }
    for ((what, a), (_, b)) in all[0].parts().into_iter().zip(before.parts()) {
        let outside = (0..touched.len()).filter(|i| !touched[*i]);
        assert!(outside.into_iter().all(|i| a[i].to_bits() == b[i].to_bits()), "{what} in a gap");
    }
}

#[test]
fn a_norm_that_is_not_finite_leaves_the_slot_and_only_it() {
    let (updates, before) = slots();
    let clean = run(&Cpu, &updates, &before).unwrap();
    for bad in [f32::NAN, f32::INFINITY, 3e38] {
        let mut poisoned = before.clone();
        // Two large ones: their norm overflows f32 where neither does.
        poisoned.grads[20_000] = bad;
        poisoned.grads[20_001] = bad;
        let after = run(&Cpu, &updates, &poisoned).unwrap();
        assert!(!after.norms[1].is_finite());
        assert!(after.grads[3..40_003].iter().all(|g| *g == 0.0), "the gradient is cleared");
        for ((what, a), (_, b)) in after.parts().into_iter().zip(before.parts()) {
            if what != "grads" {
                same_bits(what, &a[3..40_003], &b[3..40_003]);
            }
        }
        for ((what, a), (_, c)) in after.parts().into_iter().zip(clean.parts()) {
            same_bits(what, &a[..3], &c[..3]);
            same_bits(what, &a[40_003..], &c[40_003..]);
        }
    }
}

#[test]
fn small_integers_are_exact() {
    // g = (3, 4): the norm is exactly 5. Clip 5 does not clip. First step from zero moments, eps 0:
    // m/(1-b1) over sqrt(v/(1-b2)) is the sign of g up to rounding; with b1 = b2 = 0.5 it is exact.
    let u = Update {
        step: 1,
        learning_rate: 0.5,
        beta1: 0.5,
        beta2: 0.5,
        eps: 0.0,
        weight_decay: 0.5,
        clip_norm: 0.0,
        ..update(0, 2)
    };
    let slabs = Slabs {
        params: vec![8.0, -8.0],
        grads: vec![3.0, 4.0],
        m: vec![0.0; 2],
        v: vec![0.0; 2],
        norms: vec![0.0],
    };
    let after = run(&Cpu, &[u], &slabs).unwrap();
    assert_eq!(after.norms, [5.0]);
    assert_eq!((after.m, after.v), (vec![1.5, 2.0], vec![4.5, 8.0]));
    // 8·0.75 - 0.5, -8·0.75 - 0.5, up to the rounding of sqrt(v) / sqrt(1/2).
    let scale: Vec<f64> = vec![6.0, 6.0];
    within("params", 2.0, &after.params, &[5.5, -6.5], &scale);
}

#[test]
fn candle_agrees_over_ten_steps() {
    let (len, steps) = (300, 10u32);
    let u = Update { clip_norm: 0.0, ..update(0, 300) };
    let f = f64::from;
    let to64 = |x: &[f32]| Tensor::new(x, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    let start = numbers(1, len);
    let var = Var::from_tensor(&to64(&start)).unwrap();
    let params = candle_nn::ParamsAdamW {
        lr: f(u.learning_rate),
        beta1: f(u.beta1),
        beta2: f(u.beta2),
        eps: f(u.eps),
        weight_decay: f(u.weight_decay),
    };
    let mut oracle = candle_nn::AdamW::new(vec![var.clone()], params).unwrap();
    let mut slabs = Slabs {
        params: start.clone(),
        grads: Vec::new(),
        m: vec![0.0; len],
        v: vec![0.0; len],
        norms: vec![0.0],
    };
    for step in 1..=steps {
        slabs.grads = numbers(u64::from(step) + 50, len);
        let loss = (var.as_tensor() * to64(&slabs.grads)).unwrap().sum_all().unwrap();
        oracle.backward_step(&loss).unwrap();
        slabs = run(&Cpu, &[Update { step, ..u }], &slabs).unwrap();
    }
    let want = var.to_vec1::<f64>().unwrap();
    // Each step adds its bound of 12 units on a size of |p| + lr · |m| / sqrt(v) (at most ~3 lr here).
    let scale: Vec<f64> = want.iter().map(|p| p.abs() + 4.0 * f(u.learning_rate)).collect();
    within("params", 12.0 * f64::from(steps), &slabs.params, &want, &scale);
}

#[test]
fn slots_outside_or_out_of_order_are_refused() {
    let slabs = Slabs::new(100, 2);
    let refused = |updates: &[Update]| {
        assert!(matches!(run(&Cpu, updates, &slabs), Err(Error::Routing { op: "adamw", .. })));
    };
    refused(&[update(90, 11)]);
    refused(&[update(u64::MAX - 1, 1)]);
    refused(&[update(50, 10), update(0, 10)]);
    refused(&[update(0, 10), update(9, 10)]);
    refused(&[Update { step: 0, ..update(0, 10) }]);
    assert!(run(&Cpu, &[update(90, 10)], &slabs).is_ok());
}
