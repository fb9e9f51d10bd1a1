//! The intention attention head on every backend, against naive, finite differences and candle's
//! autograd; then what the CPU promises bit for bit.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test stops at what it did not expect; its numbers are small"
)]

mod intent_case;
mod naive;
mod tolerance;

use candle_core::{DType, Device, Tensor, Var};
use intent_case::{Case, GAP, shape, written};
use kernels::intent::{Intent, Offsets, Product, Segment, Shape};
use kernels::{Cpu, Error};
use naive::Naive;
use naive::intent::Input;
use naive::real::wide;
use tolerance::{differences, no_worse, on_threads, same_bits};

const BOTH: [Product; 2] = [Product::Elementwise, Product::Outer];

/// `after - before`, where both are of the size of one.
fn grown(after: &[f32], before: &[f32]) -> Vec<f32> {
    after.iter().zip(before).map(|(a, b)| a - b).collect()
}

fn agree<B: Intent<Act = f32>>(b: &B, case: &Case, truth: &Truth) {
    let label = format!("{:?}, {} rows", case.shape, case.rows);
    let plain = case.input::<f32>();
    let da = &case.da;
    no_worse(&format!("{label}: logits"), 2.0, &case.forward(b), &plain.forward(), &truth.logits);
    // The buffers begin at zero here: what they held before is another test's matter.
    let mut empty = case.clone();
    empty.grads.fill(0.0);
    empty.delta_grads.fill(0.0);
    let (ours, plain) = (empty.backward(b), plain.backward(da, case.delta_grads.len()));
    let d = case.shape.dim;
    no_worse(&format!("{label}: dh"), 3.0, &written(&ours.dh, d), &plain.dh, &truth.dh);
    no_worse(&format!("{label}: head"), 3.0, &ours.grads, &plain.params, &truth.params);
    let deltas = &ours.delta_grads;
    no_worse(&format!("{label}: deltas"), 3.0, deltas, &plain.deltas, &truth.deltas);
    // Each parameter by itself: a small one's error does not hide behind a large one's.
    for (name, at, len) in case.offsets.parts(case.shape) {
        let of = |x: &[f32]| x[at..at + len].to_vec();
        let want = &truth.params[at..at + len];
        no_worse(&format!("{label}: {name}"), 5.0, &of(&ours.grads), &of(&plain.params), want);
    }
}

struct Truth {
    logits: Vec<f64>,
    dh: Vec<f64>,
    params: Vec<f64>,
    deltas: Vec<f64>,
}

impl Truth {
    fn new(case: &Case) -> Self {
        let input = case.input::<f64>();
        let g = input.backward(&wide::<f64>(&case.da), case.delta_grads.len());
        Self { logits: input.forward(), dh: g.dh, params: g.params, deltas: g.deltas }
    }
}

#[test]
fn cpu_is_as_exact_as_plain_loops() {
    use Product::{Elementwise, Outer};
    for (case_shape, users) in [
        (shape(1, 1, 1, Elementwise), &[1][..]),
        (shape(1, 1, 1, Outer), &[1, 2]),
        (shape(18, 64, 32, Elementwise), &[5, 0, 9, 3]),
        (shape(7, 20, 5, Elementwise), &[1, 1, 1, 1, 1, 4]),
        (shape(33, 48, 16, Elementwise), &[12]),
        (shape(300, 24, 40, Elementwise), &[3, 2]),
        (shape(5, 16, 250, Elementwise), &[8, 8, 8]),
        (shape(3, 8, 4, Outer), &[2, 3, 17]),
        (shape(17, 16, 24, Outer), &[5, 20]),
        (shape(4, 37, 9, Outer), &[3, 1, 2]),
        (shape(2, 3, 2, Elementwise), &[]),
    ] {
        for bias in [false, true] {
            let case = Case::new(case_shape, users, bias);
            agree(&Cpu, &case, &Truth::new(&case));
        }
    }
}

/// The formula with candle's tensors, all rows at once: `(logits, what to differentiate by)`.
fn by_candle(case: &Case) -> Truth {
    let Shape { intents, dim: d, hidden: k, product } = case.shape;
    let at = case.offsets;
    let var = |from: &[f32], start: usize, size: &[usize]| {
        let len = size.iter().product::<usize>();
        let t = Tensor::new(&from[start..start + len], &Device::Cpu).unwrap();
        Var::from_tensor(&t.to_dtype(DType::F64).unwrap().reshape(size).unwrap()).unwrap()
    };
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let table = var(&case.params, at.table, &[intents, d]);
    let w1 = var(&case.params, at.w1, &[k, case.shape.columns()]);
    let [b1, slope, w2] = [at.b1, at.slope, at.w2].map(|at| var(&case.params, at, &[k]));
    let b2 = var(&case.params, at.b2, &[1]);
    let bias = at.bias.map(|at| var(&case.params, at, &[intents]));
    let mut truth = Truth {
        logits: vec![],
        dh: vec![],
        params: vec![0.0; case.params.len()],
        deltas: vec![0.0; case.delta_grads.len()],
    };
    for row in 0..case.rows {
        let owner = case
            .segments
            .iter()
            .find(|s| (s.row_start..s.row_start + s.rows).contains(&(row as u32)))
            .copied();
        let delta = match owner.filter(|s| s.delta_offset != Segment::NONE) {
            Some(s) => var(&case.deltas, s.delta_offset as usize, &[case.shape.delta_len()]),
            None => var(&vec![0.0; case.shape.delta_len()], 0, &[case.shape.delta_len()]),
        };
        let own = delta.narrow(0, 0, intents * d).unwrap().reshape((intents, d)).unwrap();
        let v = (table.as_tensor() + own).unwrap();
        let h = var(&case.h, row * (d + GAP), &[1, d]);
        let wide_h = h.broadcast_as((intents, d)).unwrap();
        let p = match product {
            Product::Elementwise => (&v * &wide_h).unwrap(),
            Product::Outer => {
                let outer =
                    v.unsqueeze(2).unwrap().broadcast_mul(&h.unsqueeze(0).unwrap()).unwrap();
                outer.reshape((intents, d * d)).unwrap()
            }
        };
        let x = Tensor::cat(&[&v, &p, &wide_h], 1).unwrap();
        let z = x.matmul(&w1.t().unwrap()).unwrap().broadcast_add(&b1).unwrap();
        let below = z.neg().unwrap().relu().unwrap().broadcast_mul(&slope).unwrap();
        let y = (z.relu().unwrap() - below).unwrap();
        let mut a = y.broadcast_mul(&w2).unwrap().sum(1).unwrap().broadcast_add(&b2).unwrap();
        if let Some(bias) = &bias {
            a = (a + bias.as_tensor()).unwrap();
        }
        a = (a + delta.narrow(0, intents * d, intents).unwrap()).unwrap();
        let da = var(&case.da, row * intents, &[intents]);
        let grads = (&a * da.as_tensor().detach()).unwrap().sum_all().unwrap().backward().unwrap();
        truth.logits.extend(values(&a));
        truth.dh.extend(values(grads.get(&h).unwrap()));
        let of_head = [(&table, at.table), (&w1, at.w1), (&b1, at.b1), (&slope, at.slope)];
        let rest = [(&w2, at.w2), (&b2, at.b2)];
        let bias = bias.iter().zip(at.bias);
        for (var, at) in of_head.into_iter().chain(rest).chain(bias) {
            let grad = values(grads.get(var).unwrap());
            grad.iter().enumerate().for_each(|(i, g)| truth.params[at + i] += g);
        }
        if let Some(s) = owner.filter(|s| s.delta_grad_offset != Segment::NONE) {
            let (at, grad) = (s.delta_grad_offset as usize, values(grads.get(&delta).unwrap()));
            grad.iter().enumerate().for_each(|(i, g)| truth.deltas[at + i] += g);
        }
    }
    truth
}

#[test]
fn every_backend_agrees_with_candle() {
    for product in BOTH {
        for bias in [false, true] {
            let case = Case::new(shape(6, 10, 7, product), &[3, 0, 1, 4, 2], bias);
            let truth = by_candle(&case);
            agree(&Cpu, &case, &truth);
            agree(&Naive, &case, &truth);
        }
    }
}

/// `f64` logits of a case with one of its inputs replaced, times `da`.
fn total(case: &Case, change: impl Fn(&mut Input<f64>)) -> f64 {
    let mut input = case.input::<f64>();
    change(&mut input);
    input.forward().iter().zip(&case.da).map(|(a, da)| a * f64::from(*da)).sum()
}

#[test]
fn every_backend_agrees_with_differences() {
    fn agrees<B: Intent<Act = f32>>(b: &B, product: Product) {
        let mut case = Case::new(shape(3, 4, 3, product), &[2, 3, 1, 1], true);
        // The difference is of f64 logits; gradients that begin at zero are rounded once.
        case.grads.fill(0.0);
        case.delta_grads.fill(0.0);
        let ours = case.backward(b);
        let h = written(&case.h, 4);
        differences("dh", &written(&ours.dh, 4), &h, |h| {
            total(&case, |input| input.h.copy_from_slice(h))
        });
        differences("head", &ours.grads, &case.params, |params| {
            total(&case, |input| input.params.copy_from_slice(params))
        });
        for s in case.segments.iter().filter(|s| s.delta_grad_offset != Segment::NONE) {
            let (from, to) = (s.delta_offset as usize, s.delta_grad_offset as usize);
            let len = case.shape.delta_len();
            if s.delta_offset != Segment::NONE {
                differences(
                    "delta",
                    &ours.delta_grads[to..to + len],
                    &case.deltas[from..from + len],
                    |x| total(&case, |input| input.deltas[from..from + len].copy_from_slice(x)),
                );
            }
        }
    }
    for product in BOTH {
        agrees(&Cpu, product);
        agrees(&Naive, product);
    }
}

fn same(what: &str, a: &intent_case::Gradients, b: &intent_case::Gradients) {
    same_bits(&format!("{what}: dh"), &a.dh, &b.dh);
    same_bits(&format!("{what}: head"), &a.grads, &b.grads);
    same_bits(&format!("{what}: deltas"), &a.delta_grads, &b.delta_grads);
}

/// More rows than a block of either product, segments across the cuts of blocks and tiles.
fn long(product: Product) -> Case {
    Case::new(shape(5, 19, 18, product), &[1, 40, 0, 7, 13, 513, 2, 64, 5, 90], true)
}

#[test]
fn threads_and_pack_mates_change_no_bit() {
    for product in BOTH {
        let case = long(product);
        let [one, two, four] = on_threads(|| (case.forward(&Cpu), case.backward(&Cpu)));
        for other in [two, four] {
            same_bits("logits", &one.0, &other.0);
            same("threads", &one.1, &other.1);
        }
        let (n, stride) = (case.shape.intents, case.shape.dim + GAP);
        for (i, s) in case.segments.iter().enumerate().filter(|(_, s)| s.rows > 0) {
            let solo = case.solo(i);
            assert_eq!(solo.segments.len(), 1);
            let (first, rows) = (s.row_start as usize, s.rows as usize);
            same_bits("solo logits", &one.0[first * n..][..rows * n], &solo.forward(&Cpu));
            let own = solo.backward(&Cpu);
            let d = case.shape.dim;
            let beside = written(&one.1.dh[first * stride..][..rows * stride], d);
            same_bits("solo dh", &beside, &written(&own.dh, d));
            if s.delta_grad_offset != Segment::NONE {
                let place = s.delta_grad_offset as usize..;
                let len = case.shape.delta_len();
                let (a, b) =
                    (&one.1.delta_grads[place.clone()][..len], &own.delta_grads[place][..len]);
                same_bits("solo delta", a, b);
            }
        }
    }
}

#[test]
fn rows_cut_into_calls_give_the_same_bits() {
    for product in BOTH {
        let case = long(product);
        let whole = case.backward(&Cpu);
        for cuts in [vec![1, 8, 300], vec![512], vec![33, 34, 35, 700]] {
            let mut parts = case.clone();
            let mut from = 0;
            for to in cuts.into_iter().chain([case.rows]) {
                let part = parts.cut(from, to).backward(&Cpu);
                (parts.grads, parts.delta_grads) = (part.grads, part.delta_grads);
                from = to;
            }
            same_bits("head", &whole.grads, &parts.grads);
            same_bits("deltas", &whole.delta_grads, &parts.delta_grads);
        }
    }
}

#[test]
fn a_users_nan_stays_with_the_user() {
    for product in BOTH {
        let mut case = Case::new(shape(4, 17, 20, product), &[6, 5, 9, 7, 3], false);
        let (logits, clean) = (case.forward(&Cpu), case.backward(&Cpu));
        let (n, d) = (case.shape.intents, case.shape.dim);
        case.deltas[case.segments[1].delta_offset as usize + 2] = f32::NAN;
        case.h[13 * (d + GAP) + 4] = f32::INFINITY;
        let (sick, sick_back) = (case.forward(&Cpu), case.backward(&Cpu));
        assert!(sick[6 * n].is_nan() && !sick[13 * n].is_finite());
        for row in (0..6).chain(11..13).chain(14..30) {
            same_bits("logits", &logits[row * n..][..n], &sick[row * n..][..n]);
            let at = row * (d + GAP)..row * (d + GAP) + d;
            same_bits("dh", &clean.dh[at.clone()], &sick_back.dh[at]);
        }
        for s in [0, 4] {
            let at = case.segments[s].delta_grad_offset as usize..;
            let len = case.shape.delta_len();
            let of = |g: &intent_case::Gradients| g.delta_grads[at.clone()][..len].to_vec();
            same_bits("delta", &of(&clean), &of(&sick_back));
        }
    }
}

#[test]
fn what_is_not_wanted_is_not_touched() {
    for product in BOTH {
        let case = Case::new(shape(6, 18, 7, product), &[9, 2, 0, 30, 4], true);
        let all = case.backward(&Cpu);
        for mask in 0..8 {
            let wanted = (mask & 1 != 0, mask & 2 != 0, mask & 4 != 0);
            let some = case.try_backward(&Cpu, wanted).unwrap();
            let or = |on: bool, x: &[f32], y: &[f32]| if on { x.to_vec() } else { y.to_vec() };
            let nan = vec![f32::NAN; case.h.len()];
            same_bits("dh", &some.dh, &or(wanted.0, &all.dh, &nan));
            same_bits("head", &some.grads, &or(wanted.1, &all.grads, &case.grads));
            let deltas = or(wanted.2, &all.delta_grads, &case.delta_grads);
            same_bits("deltas", &some.delta_grads, &deltas);
        }
        // Elements between windows and parameters keep what they held.
        let d = case.shape.dim;
        assert!(all.dh.chunks(d + GAP).all(|dh| dh[d..].iter().all(|x| x.is_nan())));
        let (end, last) = (case.grads.len(), case.grads.len() - GAP);
        same_bits("before", &all.grads[..GAP], &case.grads[..GAP]);
        same_bits("after", &all.grads[last..end], &case.grads[last..end]);
        let owned: Vec<_> = case
            .segments
            .iter()
            .filter(|s| s.rows > 0 && s.delta_grad_offset != Segment::NONE)
            .map(|s| {
                s.delta_grad_offset as usize..s.delta_grad_offset as usize + case.shape.delta_len()
            })
            .collect();
        for (i, (a, b)) in all.delta_grads.iter().zip(&case.delta_grads).enumerate() {
            let moved = a.to_bits() != b.to_bits();
            assert_eq!(moved, owned.iter().any(|o| o.contains(&i)), "element {i}");
        }
        // `+=`: from zero the growth is the same but for the rounding of the sum.
        let mut empty = case.clone();
        empty.grads.fill(0.0);
        let from_zero = wide::<f64>(&empty.backward(&Cpu).grads);
        let scale: Vec<f64> = from_zero
            .iter()
            .zip(&case.grads)
            .map(|(g, b)| 40.0 + g.abs() + f64::from(b.abs()))
            .collect();
        let growth = grown(&all.grads, &case.grads);
        tolerance::within("growth", case.rows as f64 + 2.0, &growth, &from_zero, &scale);
    }
}

#[test]
fn a_delta_of_zero_is_no_delta() {
    for product in BOTH {
        let mut with = Case::new(shape(5, 12, 9, product), &[4, 7, 3], false);
        with.deltas.fill(0.0);
        let mut without = with.clone();
        without.segments.iter_mut().for_each(|s| s.delta_offset = Segment::NONE);
        without.deltas.clear();
        same_bits("logits", &with.forward(&Cpu), &without.forward(&Cpu));
        same("gradients", &with.backward(&Cpu), &without.backward(&Cpu));
        // And with no segments at all the head's own gradients are the same.
        let mut nobody = without.clone();
        nobody.segments.clear();
        same_bits("logits", &with.forward(&Cpu), &nobody.forward(&Cpu));
        same_bits("head", &with.backward(&Cpu).grads, &nobody.backward(&Cpu).grads);
    }
}

#[test]
fn the_outer_product_holds_the_elementwise_one_on_its_diagonal() {
    let small = Case::new(shape(4, 6, 5, Product::Elementwise), &[3, 2], false);
    let mut outer = Case::new(shape(4, 6, 5, Product::Outer), &[3, 2], false);
    let (from, to) = (small.offsets, outer.offsets);
    let (few, many) = (small.shape.columns(), outer.shape.columns());
    outer.params.fill(0.0);
    outer.params[to.table..to.table + 24]
        .copy_from_slice(&small.params[from.table..from.table + 24]);
    for unit in 0..5 {
        let row = &small.params[from.w1 + unit * few..][..few];
        let wide = &mut outer.params[to.w1 + unit * many..][..many];
        wide[..6].copy_from_slice(&row[..6]);
        wide[many - 6..].copy_from_slice(&row[12..]);
        (0..6).for_each(|i| wide[6 + i * 6 + i] = row[6 + i]);
    }
    let rest = small.params.len() - from.b1;
    outer.params[to.b1..][..rest].copy_from_slice(&small.params[from.b1..]);
    outer.h.clone_from(&small.h);
    outer.deltas.clone_from(&small.deltas);
    // The other products are zero, and adding zero changes nothing.
    same_bits("logits", &small.forward(&Cpu), &outer.forward(&Cpu));
}

#[test]
fn hostile_lengths_and_segments_are_refused() {
    fn refused<B: Intent<Act = f32>>(b: &B) {
        let good = Case::new(shape(3, 5, 4, Product::Elementwise), &[2, 3, 4], true);
        let wrong = |change: &dyn Fn(&mut Case)| {
            let mut case = good.clone();
            change(&mut case);
            let forward = case.try_forward(b).err();
            (forward, case.try_backward(b, (true, true, true)).unwrap_err())
        };
        let both = |change: &dyn Fn(&mut Case)| {
            let (forward, backward) = wrong(change);
            assert!(forward.is_some(), "forward takes what backward refuses: {backward}");
            backward
        };
        let length = |error: Error, of: &str| {
            let Error::Length { what, .. } = error else { panic!("{error}") };
            assert_eq!(what, of);
        };
        length(both(&|case| case.params.truncate(GAP + case.shape.param_len(true) - 1)), "bias");
        length(both(&|case| case.h.truncate(case.h.len() - GAP - 1)), "h");
        length(wrong(&|case| case.grads.truncate(20)).1, "w1");
        length(wrong(&|case| case.da.truncate(10)).1, "dlogits");
        length(both(&|case| case.offsets.w1 = usize::MAX), "w1");
        for rows in [usize::MAX, usize::MAX / 2, 1 << 40] {
            both(&|case| case.rows = rows);
        }
        let routing = |error: Error, words: &str| {
            let Error::Routing { what, .. } = error else { panic!("{error}") };
            assert!(what.contains(words), "{what}");
        };
        routing(both(&|case| case.offsets.b1 = case.offsets.w2 - 1), "overlap");
        routing(both(&|case| case.segments.swap(0, 1)), "segment 1: it overlaps");
        routing(both(&|case| case.segments[2].rows = 7), "segment 2: it leaves the pack");
        routing(both(&|case| case.segments[2].rows = u32::MAX), "segment 2: it leaves");
        for at in [good.deltas.len() as u64, u64::MAX - 1] {
            routing(both(&|case| case.segments[1].delta_offset = at), "segment 1: its delta");
            let (_, error) = wrong(&|case| case.segments[1].delta_grad_offset = at);
            routing(error, "segment 1: its gradient");
        }
        for shape in [shape(0, 5, 4, Product::Outer), shape(3, 0, 4, Product::Outer)] {
            let error = both(&|case| case.shape = shape);
            assert!(matches!(error, Error::Shape { expected: 1, got: 0, .. }), "{error}");
        }
    }
    refused(&Cpu);
    refused(&Naive);
    let mut twins = Case::new(shape(3, 5, 4, Product::Elementwise), &[2, 3], false);
    twins.segments[1].delta_grad_offset = twins.segments[0].delta_grad_offset + 1;
    let error = twins.try_backward(&Cpu, (true, true, true)).unwrap_err();
    assert!(error.to_string().contains("segments 0 and 1 overlap"), "{error}");
    // Without gradients of deltas, or without rows, there is nothing to overlap.
    assert!(twins.try_backward(&Cpu, (true, true, false)).is_ok());
    let huge = shape(usize::MAX, usize::MAX, usize::MAX, Product::Outer);
    assert_eq!(huge.param_len(true), usize::MAX);
    assert_eq!(Cpu.intent_workspace(usize::MAX, 0, huge), usize::MAX);
    assert_eq!(Offsets::dense(huge, true, 1).b2, usize::MAX);
}

#[test]
fn a_short_workspace_is_refused() {
    let case = Case::new(shape(3, 5, 4, Product::Elementwise), &[2], false);
    let len = Cpu.intent_workspace(case.rows, 1, case.shape);
    let run = |len: usize| {
        Cpu.intent_forward(kernels::intent::Forward {
            head: kernels::intent::Head {
                shape: case.shape,
                offsets: case.offsets,
                params: &case.params.clone().into(),
                segments: &case.segments.clone().into(),
                num_segments: 1,
                deltas: &case.deltas.clone().into(),
            },
            h: kernels::Mat::new(&case.h.clone().into(), case.shape.dim + GAP),
            logits: &mut vec![0.0; 6].into(),
            work: &mut vec![0.0; len].into(),
            rows: 2,
        })
    };
    assert!(run(len).is_ok());
    assert!(matches!(run(len - 1), Err(Error::Length { what: "work", .. })));
}
