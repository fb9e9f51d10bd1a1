//! AdamW against the CPU's, bit for bit: both do the same operations in the same order after the norm.

use crate::harness::{Emulated, caught, checked, fast, own};
use crate::naive::{download, numbers, upload};
use crate::tolerance::same_bits;
use emulator::Mode;
use kernels::optim::{AdamW, Optim, Update};
use kernels::{Cpu, Error};

#[derive(Clone)]
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

    fn same(&self, other: &Self) {
        same_bits("norms", &self.norms, &other.norms);
        same_bits("params", &self.params, &other.params);
        same_bits("grads", &self.grads, &other.grads);
        same_bits("m", &self.m, &other.m);
        same_bits("v", &self.v, &other.v);
    }
}

fn run<B: Optim>(b: &B, updates: &[Update], slabs: &Slabs) -> Result<Slabs, Error> {
    run_and(b, updates, slabs, || Ok(()))
}

/// Calls `then` before it reads the results.
fn run_and<B: Optim>(
    b: &B,
    updates: &[Update],
    slabs: &Slabs,
    then: impl FnOnce() -> Result<(), Error>,
) -> Result<Slabs, Error> {
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
    then()?;
    let down = |x| download(b, x);
    let [params, grads] = [down(&params), down(&grads)];
    Ok(Slabs { params, grads, m: down(&m), v: down(&v), norms: down(&norms) })
}

/// Slot `i`, whose numbers differ from its neighbours'.
fn update(i: usize, offset: usize, len: usize) -> Update {
    let i = i as f32;
    Update {
        offset: offset as u64,
        len: len as u32,
        step: 1 + i as u32 * 7 % 100,
        learning_rate: 2e-3 / (1.0 + i % 5.0),
        beta1: 0.9,
        beta2: 0.999 - 0.01 * (i % 3.0),
        eps: 1e-8,
        weight_decay: 0.01 * (i % 4.0),
        clip_norm: [0.3, 0.0, 1e6][i as usize % 3],
    }
}

/// Slots of these lengths with `gap` elements before each.
fn updates(lens: &[usize], gap: usize) -> (Vec<Update>, usize) {
    let mut end = 0;
    let mut place = |(i, &len): (usize, &usize)| {
        let offset = end + gap;
        end = offset + len;
        update(i, offset, len)
    };
    let updates = lens.iter().enumerate().map(&mut place).collect();
    (updates, end + gap)
}

fn compare(b: &Emulated, lens: &[usize], gap: usize) {
    let (updates, slab) = updates(lens, gap);
    let slabs = Slabs::new(slab, lens.len());
    run(b, &updates, &slabs).unwrap().same(&run(&Cpu, &updates, &slabs).unwrap());
}

/// Around a piece, around a group of four, empty, several pieces.
const LENS: [usize; 9] = [1, 0, 4096, 3, 4097, 4, 4095, 12_289, 5];

#[test]
fn a_step_has_the_bits_of_the_cpu() {
    for gap in [0, 1, 4] {
        compare(fast(), &LENS, gap);
    }
    compare(fast(), &[], 0);
    compare(fast(), &[0], 0);
    compare(fast(), &[1 << 20], 3);
}

#[test]
fn there_may_be_more_slots_than_threads_and_more_pieces_than_blocks() {
    let lens: Vec<usize> = (0..5000).map(|i| i % 4).collect();
    compare(fast(), &lens, 0);
}

#[test]
fn a_slot_does_not_depend_on_its_place_nor_on_the_others() {
    let (many, slab) = updates(&LENS, 1);
    let slabs = Slabs::new(slab, LENS.len());
    let all = run(fast(), &many, &slabs).unwrap();
    for (i, u) in many.iter().enumerate() {
        let range = u.offset as usize..u.offset as usize + u.len as usize;
        let cut = |x: &[f32]| x[range.clone()].to_vec();
        let part = |s: &Slabs| Slabs {
            params: cut(&s.params),
            grads: cut(&s.grads),
            m: cut(&s.m),
            v: cut(&s.v),
            norms: vec![s.norms[i]],
        };
        let alone = run(fast(), &[Update { offset: 0, ..*u }], &part(&slabs)).unwrap();
        alone.same(&part(&all));
    }
}

#[test]
fn the_order_of_warps_changes_nothing() {
    let (b, (updates, slab)) = (own(), updates(&LENS, 1));
    let slabs = Slabs::new(slab, LENS.len());
    let plain = run(&b, &updates, &slabs).unwrap();
    for seed in [1, 2, 3] {
        b.device().set_order(seed);
        run(&b, &updates, &slabs).unwrap().same(&plain);
    }
}

#[test]
fn a_gradient_that_is_not_finite_leaves_its_slot_alone() {
    let (updates, slab) = updates(&[9000, 5000, 70, 8], 2);
    for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
        let mut slabs = Slabs::new(slab, 4);
        // Two of the largest: the sum of squares is finite in f64, the norm is not in f32.
        slabs.grads[9100] = bad;
        slabs.grads[9101] = bad;
        slabs.grads[14_020] = bad;
        slabs.grads[14_021] = bad;
        let (ours, theirs) =
            (run(fast(), &updates, &slabs).unwrap(), run(&Cpu, &updates, &slabs).unwrap());
        assert!(!ours.norms[1].is_finite() && !ours.norms[2].is_finite());
        assert_eq!(ours.norms.map_nan(), theirs.norms.map_nan());
        Slabs { norms: vec![], ..ours }.same(&Slabs { norms: vec![], ..theirs });
    }
}

/// NaN as a number of its own, whose bits are not promised.
trait MapNan {
    fn map_nan(&self) -> Vec<String>;
}

impl MapNan for Vec<f32> {
    fn map_nan(&self) -> Vec<String> {
        self.iter().map(|v| format!("{v:e}")).collect()
    }
}

#[test]
fn wrong_updates_are_refused_by_the_next_read_and_change_nothing() {
    let b = own();
    let slabs = Slabs::new(100, 2);
    let good = update(0, 10, 20);
    for (second, at) in [
        (update(1, 29, 5), 29),
        (update(1, 90, 11), 90),
        (update(1, 101, 0), 101),
        (Update { step: 0, ..update(1, 40, 5) }, 40),
    ] {
        assert!(run(&Cpu, &[good, second], &slabs).is_err());
        let then = || {
            let wanted = format!("adamw: row 1: update at offset {at} is out of range");
            assert_eq!(b.check_refusal().map_err(|error| error.to_string()), Err(wanted));
            Ok(())
        };
        run_and(&b, &[good, second], &slabs, then).unwrap().same(&slabs);
    }
}

#[test]
fn every_access_is_checked() {
    compare(checked(), &LENS, 1);
    compare(checked(), &[8, 4096, 40], 4);
    compare(checked(), &[3; 1100], 0);
}

#[test]
fn seeded_faults_are_caught() {
    // A slot that ends with its slab, in the middle of a group of four: the access leaves the buffer.
    caught(Mode::Checked, "OPTIM_TAIL", |b| compare(b, &[13], 0));
    caught(Mode::Checked, "OPTIM_SYNC", |b| compare(b, &[3; 1100], 0));
    caught(Mode::Fast, "OPTIM_FINITE", |b| {
        let mut slabs = Slabs::new(8, 1);
        slabs.grads[3] = f32::INFINITY;
        let updates = [update(0, 0, 8)];
        let theirs = run(&Cpu, &updates, &slabs).unwrap();
        run(b, &updates, &slabs).unwrap().same(&theirs);
    });
}
