//! The intention attention head: against `f64` loops within derived bounds, and bit for bit where the contract says so.

mod bounds;

use crate::device::TestDevice;
use crate::harness::{Emulated, PLACES, Subject, Window, caught, checked, fast, own, rounded};
use crate::intent_case::{Case, GAP, Gradients, shape};
use crate::naive::{download, numbers, upload};
use crate::tolerance::{EPS, same_bits};
use bounds::Bounds;
use emulator::Mode;
use half::bf16;
use kernels::Error;
use kernels::backend::Backend;
use kernels::gpu::GpuBuf;
use kernels::intent::{Backward, Forward, Head, Intent, Offsets, Product, Segment, Shape};

const BOTH: [Product; 2] = [Product::Elementwise, Product::Outer];

/// A case whose history is what bf16 holds.
fn case(shape: Shape, users: &[u32], bias: bool) -> Case {
    let case = Case::new(shape, users, bias);
    Case { h: rounded(&case.h), ..case }
}

/// The same with every table at a multiple of four elements, where its rows allow it.
fn aligned(mut case: Case) -> Case {
    let (size, from) = (case.shape.delta_len().next_multiple_of(4), case.shape.delta_len() + GAP);
    let moved = |at: u64| match at {
        Segment::NONE => at,
        _ => ((at as usize - GAP) / from * size) as u64,
    };
    for s in &mut case.segments {
        s.delta_offset = moved(s.delta_offset);
        s.delta_grad_offset = moved(s.delta_grad_offset);
    }
    case.offsets = Offsets::dense(case.shape, case.offsets.bias.is_some(), 4);
    let slab = case.segments.len() * size;
    case.deltas = numbers(8, slab).iter().map(|v| 0.3 * v).collect();
    case.delta_grads = numbers(9, slab);
    case
}

/// The inputs of a case on the device.
struct Loaded {
    params: GpuBuf<TestDevice, f32>,
    deltas: GpuBuf<TestDevice, f32>,
    segments: GpuBuf<TestDevice, Segment>,
    h: GpuBuf<TestDevice, bf16>,
    work: GpuBuf<TestDevice, f32>,
    window: Window,
}

impl Loaded {
    fn new(b: &Emulated, case: &Case, place: (usize, usize)) -> Self {
        let d = case.shape.dim;
        let window = Window::new(case.rows, d, place);
        let h: Vec<f32> = case.h.chunks(d + GAP).flat_map(|h| h[..d].to_vec()).collect();
        let len = b.intent_workspace(case.rows, case.segments.len(), case.shape);
        Self {
            params: upload(b, &case.params),
            deltas: upload(b, &case.deltas),
            segments: upload(b, &case.segments),
            h: window.input(b, &h),
            work: poisoned(b, len),
            window,
        }
    }

    fn head<'a>(&'a self, case: &Case) -> Head<'a, Emulated> {
        Head {
            shape: case.shape,
            offsets: case.offsets,
            params: &self.params,
            segments: &self.segments,
            num_segments: case.segments.len(),
            deltas: &self.deltas,
        }
    }
}

fn poisoned(b: &Emulated, len: usize) -> GpuBuf<TestDevice, f32> {
    let mut buf = b.alloc(len).unwrap();
    b.poison(&mut buf, 0, len);
    buf
}

fn forward(b: &Emulated, case: &Case, place: (usize, usize)) -> Result<Vec<f32>, Error> {
    let mut on = Loaded::new(b, case, place);
    let mut logits = poisoned(b, case.rows * case.shape.intents);
    let mut work = std::mem::replace(&mut on.work, poisoned(b, 0));
    b.intent_forward(Forward {
        head: on.head(case),
        h: on.window.mat(&on.h),
        logits: &mut logits,
        work: &mut work,
        rows: case.rows,
    })?;
    b.check_refusal()?;
    Ok(download(b, &logits))
}

/// Backward with `(dh, grads, delta_grads)` wanted or not.
fn backward(
    b: &Emulated,
    case: &Case,
    place: (usize, usize),
    (history, head, personal): (bool, bool, bool),
) -> Result<Gradients, Error> {
    let mut on = Loaded::new(b, case, place);
    let mut dh = on.window.output(b);
    let (mut grads, mut delta_grads) = (upload(b, &case.grads), upload(b, &case.delta_grads));
    let mut work = std::mem::replace(&mut on.work, poisoned(b, 0));
    b.intent_backward(Backward {
        head: on.head(case),
        h: on.window.mat(&on.h),
        dlogits: &upload(b, &case.da),
        dh: history.then(|| on.window.mat_mut(&mut dh)),
        grads: head.then_some(&mut grads),
        delta_grads: personal.then_some(&mut delta_grads),
        work: &mut work,
        rows: case.rows,
    })?;
    b.check_refusal()?;
    Ok(Gradients {
        dh: if history { on.window.result(b, &dh) } else { vec![] },
        grads: download(b, &grads),
        delta_grads: download(b, &delta_grads),
    })
}

const ALL: (bool, bool, bool) = (true, true, true);

fn near(what: &str, got: &[f32], want: impl Iterator<Item = f64>, bounds: &[f64]) {
    assert_eq!(got.len(), bounds.len(), "{what}: lengths");
    for (i, ((g, w), bound)) in got.iter().zip(want).zip(bounds).enumerate() {
        let error = (f64::from(*g) - w).abs();
        assert!(error <= *bound, "{what}[{i}]: {g} for {w}: off by {error:e}, allowed {bound:e}");
    }
}

/// `before` and the truth on top of it, within the bounds and those of the chains; the rest untouched.
fn near_chains(
    what: &str,
    got: &[f32],
    (before, truth): (&[f32], &[f64]),
    bounds: &[f64],
    (rows, places): (usize, &[(usize, usize)]),
) {
    let mut all = vec![0.0; got.len()];
    for &(start, len) in places {
        for i in start..start + len {
            // A chain's partial sums stay below the sum of its terms' sizes; eight times the sum's covers these draws.
            let size = f64::from(before[i].abs()) + 8.0 * truth[i].abs() + bounds[i] + rows as f64;
            all[i] = bounds[i] + (rows + 1) as f64 * EPS * size;
        }
    }
    near(what, got, before.iter().zip(truth).map(|(b, t)| f64::from(*b) + t), &all);
}

fn compare(b: &Emulated, case: &Case, place: (usize, usize)) {
    let what = format!("{:?}, {} rows, at {place:?}", case.shape, case.rows);
    let (truth, bounds) = (case.input::<f64>(), Bounds::new(case));
    let logits = forward(b, case, place).unwrap();
    near(&format!("{what}: logits"), &logits, truth.forward().into_iter(), &bounds.logits);
    let da: Vec<f64> = case.da.iter().map(|&v| f64::from(v)).collect();
    let truth = truth.backward(&da, case.delta_grads.len());
    let ours = backward(b, case, place, ALL).unwrap();
    let to_bf16 = |(w, bound): (&f64, &f64)| bound + (w.abs() + bound) / 256.0 + 1e-37;
    let of_dh: Vec<f64> = truth.dh.iter().zip(&bounds.dh).map(to_bf16).collect();
    near(&format!("{what}: dh"), &ours.dh, truth.dh.iter().copied(), &of_dh);
    for (name, at, len) in case.offsets.parts(case.shape) {
        let of = |x: &[f64]| x[at..at + len].to_vec();
        let before = &case.grads[at..at + len];
        let (truth, bounds) = (of(&truth.params), of(&bounds.params));
        let got = &ours.grads[at..at + len];
        let places = [(0, len)];
        near_chains(
            &format!("{what}: {name}"),
            got,
            (before, &truth),
            &bounds,
            (case.rows, &places),
        );
    }
    let wanted = case.segments.iter().filter(|s| s.delta_grad_offset != Segment::NONE);
    let places: Vec<(usize, usize)> =
        wanted.map(|s| (s.delta_grad_offset as usize, case.shape.delta_len())).collect();
    let from = (case.delta_grads.as_slice(), truth.deltas.as_slice());
    let rows = (case.rows, places.as_slice());
    near_chains(&format!("{what}: deltas"), &ours.delta_grads, from, &bounds.deltas, rows);
    let parts = case.offsets.parts(case.shape);
    let inside = |i: usize| parts.iter().any(|(_, at, len)| (*at..at + len).contains(&i));
    let outside = |x: &[f32]| -> Vec<f32> {
        x.iter().enumerate().filter(|(i, _)| !inside(*i)).map(|(_, v)| *v).collect()
    };
    same_bits("beside the parameters", &outside(&ours.grads), &outside(&case.grads));
}

#[test]
fn heads_are_within_the_derived_bounds() {
    use Product::{Elementwise, Outer};
    for (of, users) in [
        (shape(1, 1, 1, Elementwise), &[1][..]),
        (shape(1, 1, 1, Outer), &[1, 2]),
        (shape(18, 64, 32, Elementwise), &[5, 0, 9, 3]),
        (shape(7, 20, 5, Elementwise), &[1, 1, 1, 1, 1, 4]),
        (shape(24, 80, 64, Elementwise), &[4, 4]),
        (shape(60, 24, 80, Elementwise), &[3, 2]),
        (shape(5, 16, 150, Elementwise), &[8, 6]),
        (shape(25, 145, 17, Elementwise), &[2, 20]),
        (shape(3, 8, 4, Outer), &[2, 3, 17]),
        (shape(26, 12, 72, Outer), &[5, 2]),
        (shape(4, 37, 9, Outer), &[3, 1, 2]),
        (shape(2, 3, 2, Elementwise), &[]),
    ] {
        compare(fast(), &case(of, users, true), PLACES[2]);
        compare(fast(), &aligned(case(of, users, false)), PLACES[1]);
    }
}

/// Seventy rows are two blocks: what passes between the kernels of a row is as large as a block may be.
#[test]
fn blocks_of_rows_go_on_where_the_last_ended() {
    let of = shape(2048, 1, 32, Product::Elementwise);
    assert!(fast().intent_workspace(70, 0, of) < 70 * 65_536, "one block holds all rows");
    compare(fast(), &case(of, &[30, 38], true), PLACES[0]);
}

#[test]
fn a_user_does_not_see_the_others() {
    for product in BOTH {
        let pack = aligned(case(shape(26, 20, 18, product), &[3, 0, 9, 2, 1, 6], true));
        let (logits, whole) = (forward(fast(), &pack, PLACES[1]).unwrap(), ALL);
        let whole = backward(fast(), &pack, PLACES[1], whole).unwrap();
        for (index, s) in pack.segments.iter().enumerate().filter(|(_, s)| s.rows > 0) {
            let solo = pack.solo(index);
            let (from, to) = (s.row_start as usize, (s.row_start + s.rows) as usize);
            let of = |x: &[f32], width: usize| x[from * width..to * width].to_vec();
            let own = forward(fast(), &solo, PLACES[0]).unwrap();
            same_bits("logits", &own, &of(&logits, 26));
            let own = backward(fast(), &solo, PLACES[0], ALL).unwrap();
            same_bits("dh", &own.dh, &of(&whole.dh, 20));
            if s.delta_grad_offset != Segment::NONE {
                let at = s.delta_grad_offset as usize;
                let of = |x: &[f32]| x[at..at + pack.shape.delta_len()].to_vec();
                same_bits("delta", &of(&own.delta_grads), &of(&whole.delta_grads));
            }
        }
    }
}

#[test]
fn rows_cut_into_calls_give_the_same_bits() {
    for product in BOTH {
        let pack = case(shape(10, 18, 20, product), &[3, 4, 6, 2], true);
        let (logits, whole) =
            (forward(fast(), &pack, PLACES[0]).unwrap(), backward(fast(), &pack, PLACES[0], ALL));
        let whole = whole.unwrap();
        for cut in [1, 3, 8, 12] {
            let (first, mut second) = (pack.cut(0, cut), pack.cut(cut, pack.rows));
            let parts = [&first, &second].map(|c| forward(fast(), c, PLACES[0]).unwrap());
            same_bits("logits", &parts.concat(), &logits);
            let before = backward(fast(), &first, PLACES[0], ALL).unwrap();
            (second.grads, second.delta_grads) = (before.grads, before.delta_grads);
            let after = backward(fast(), &second, PLACES[0], ALL).unwrap();
            same_bits("dh", &[before.dh, after.dh].concat(), &whole.dh);
            same_bits("head", &after.grads, &whole.grads);
            same_bits("deltas", &after.delta_grads, &whole.delta_grads);
        }
    }
}

#[test]
fn what_is_not_wanted_is_not_written_and_changes_nothing() {
    for product in BOTH {
        let pack = case(shape(6, 9, 7, product), &[3, 4, 2], true);
        let all = backward(fast(), &pack, PLACES[1], ALL).unwrap();
        for wanted in [(true, false, false), (false, true, false), (false, false, true)] {
            let some = backward(fast(), &pack, PLACES[1], wanted).unwrap();
            if wanted.0 {
                same_bits("dh", &some.dh, &all.dh);
            }
            let want = if wanted.1 { &all.grads } else { &pack.grads };
            same_bits("head", &some.grads, want);
            let want = if wanted.2 { &all.delta_grads } else { &pack.delta_grads };
            same_bits("deltas", &some.delta_grads, want);
        }
    }
}

#[test]
fn wrong_segments_are_refused_by_the_next_read() {
    let right = case(shape(3, 4, 2, Product::Elementwise), &[2, 3, 1], false);
    let device = own();
    let refused = |change: &dyn Fn(&mut Vec<Segment>)| {
        let mut wrong = right.clone();
        change(&mut wrong.segments);
        let result = backward(&device, &wrong, PLACES[0], ALL).map(|_| ());
        result.unwrap_err().to_string()
    };
    let slab = right.deltas.len() as u64;
    for (text, change) in [
        (
            "row 1: segment that overlaps the one before: its start 1",
            &(|s: &mut Vec<Segment>| s[1].row_start = 1) as &dyn Fn(&mut Vec<Segment>),
        ),
        ("row 2: segment whose end 7", &|s| s[2].rows = 2),
        ("row 0: segment whose end 4294967294", &|s| {
            s[0] = Segment { row_start: u32::MAX, rows: u32::MAX, ..s[0] };
            s.truncate(1);
        }),
        ("row 0: segment whose delta, from element 43", &|s| s[0].delta_offset = slab - 14),
        ("row 0: segment whose delta, from element 4294967294", &|s| {
            s[0].delta_offset = Segment::NONE - 1;
        }),
        ("row 1: segment whose gradient, from element 43", &|s| {
            s[1].delta_grad_offset = slab - 14;
        }),
        ("row 2: segment whose gradient overlaps another's: it, from element", &|s| {
            s[2].delta_grad_offset = s[0].delta_grad_offset + 1;
        }),
    ] {
        let told = refused(change);
        assert!(told.starts_with(&format!("intent: {text}")), "{told} for {text}");
    }
    assert!(forward(&device, &right, PLACES[0]).is_ok(), "a refusal is told once");
}

#[test]
fn every_access_is_checked() {
    for product in BOTH {
        compare(checked(), &case(shape(3, 5, 2, product), &[2, 0, 9], true), PLACES[2]);
        compare(checked(), &aligned(case(shape(25, 20, 18, product), &[3, 2], true)), PLACES[1]);
        compare(checked(), &case(shape(2, 33, 9, product), &[1, 4], false), PLACES[0]);
    }
    compare(checked(), &case(shape(4, 70, 68, Product::Elementwise), &[2, 3], true), PLACES[0]);
}

#[test]
fn seeded_faults_are_caught() {
    let small = case(shape(26, 9, 5, Product::Elementwise), &[3, 9], true);
    for fault in ["INTENT_DELTA", "INTENT_PASSES", "INTENT_CHAIN"] {
        caught(Mode::Fast, fault, |b| compare(b, &small, PLACES[0]));
    }
    caught(Mode::Checked, "INTENT_SYNC", |b| compare(b, &small, PLACES[0]));
}
