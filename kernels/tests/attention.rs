//! Attention on every backend, against naive, finite differences and candle.
#![expect(clippy::unwrap_used, reason = "a test panics when wrong; its data is small and exact")]

mod attention_case;
mod naive;
mod tolerance;

use attention_case::{Case, Group, heads, judge, rounded_naive, run, widen};
use candle_core::{D, DType, Device, Tensor, Var};
use kernels::attention::{Attention, Backward, Forward, Grads, QueryGrads, Routing, Sequence};
use kernels::backend::{Mat, MatMut};
use kernels::{Cpu, Error};
use naive::{Naive, upload};
use tolerance::{differences, no_worse, on_threads, same_bits};
/// Lengths of 12 sequences as users draw them.
fn popularity(kind: &str) -> Vec<(u32, u32)> {
    (1u32..=12)
        .map(|i| match kind {
            "distinct" => 5 + 7 * i,
            "uniform" => 1 + i * 7919 % 60,
            "zipf" => (120 / i).max(1),
            "identical" => 33,
            _ => {
                if i == 1 {
                    150
                } else {
                    1
                }
            }
        })
        .map(|len| (len, 1 + len / 9))
        .collect()
}

#[test]
fn cpu_is_as_exact_as_plain_loops() {
    for (h, g, e) in
        [(9, 3, 64), (4, 4, 8), (2, 1, 16), (3, 3, 80), (2, 2, 96), (4, 1, 128), (2, 2, 5)]
    {
        for last in [false, true] {
            let groups: &[Group<'_>] = &[
                (0, &[(1, 1)]),
                (70, &[(20, 3), (1, 1), (0, 0), (67, 5)]),
                (0, &[(130, 2), (3, 3)]),
            ];
            judge(&Case::new(heads(h, g, e), groups, last), &format!("{h} {g} {e} {last}"));
        }
    }
    for kind in ["distinct", "uniform", "zipf", "identical", "skewed"] {
        let lens = popularity(kind);
        let groups: Vec<Group<'_>> =
            lens.chunks(3).enumerate().map(|(i, c)| (if i % 2 == 0 { 0 } else { 40 }, c)).collect();
        judge(&Case::new(heads(6, 2, 16), &groups, false), kind);
    }
}

#[test]
fn long_sequences() {
    judge(&Case::new(heads(1, 1, 8), &[(0, &[(1500, 1)])], false), "long");
}

#[test]
fn a_group_does_not_see_its_neighbours_nor_the_threads() {
    for last in [false, true] {
        let groups: &[Group<'_>] = &[
            (0, &[(40, 4)]),
            (33, &[(20, 3), (17, 17), (70, 5)]),
            (0, &[(50, 1), (1, 1)]),
            (5, &[(0, 0), (9, 2)]),
        ];
        let case = Case::new(heads(6, 3, 16), groups, last);
        let [one, two, four] = on_threads(|| run(&Cpu, &case, false));
        for other in [&two, &four] {
            for ((what, a), (_, b)) in one.parts().into_iter().zip(other.parts()) {
                same_bits(what, a, b);
            }
        }
        for group in 0..groups.len() {
            let (alone, q, k) = case.only(group);
            let alone = run(&Cpu, &alone, false);
            for ((what, a), (_, b)) in one.parts().into_iter().zip(alone.parts()) {
                let (range, width) = match what {
                    "dk" | "dv" => (&k, case.heads.kv_dim()),
                    "lse" => (&q, case.heads.heads),
                    _ => (&q, case.heads.q_dim()),
                };
                same_bits(what, &a[range.start * width..range.end * width], b);
            }
            let mut poisoned = case.clone();
            poisoned.k[k.start * case.heads.kv_dim()] = f32::NAN;
            poisoned.v[k.start * case.heads.kv_dim() + 1] = f32::NAN;
            let poisoned = run(&Cpu, &poisoned, false);
            let mut nans = 0;
            for ((what, a), (_, b)) in one.parts().into_iter().zip(poisoned.parts()) {
                let (range, width) = match what {
                    "dk" | "dv" => (&k, case.heads.kv_dim()),
                    "lse" => (&q, case.heads.heads),
                    _ => (&q, case.heads.q_dim()),
                };
                let (begin, end) = (range.start * width, range.end * width);
                same_bits(what, &a[..begin], &b[..begin]);
                same_bits(what, &a[end..], &b[end..]);
                nans += b[begin..end].iter().filter(|x| x.is_nan()).count();
            }
            assert!(nans > 0, "the NaN of group {group} vanished");
        }
    }
}

#[test]
fn gradients_are_the_same_bits_wherever_they_lie() {
    let groups: &[Group<'_>] =
        &[(0, &[(40, 4)]), (33, &[(20, 3), (0, 0), (70, 5)]), (0, &[(1, 1)])];
    for (h, g, e) in [(9, 3, 64), (6, 3, 5)] {
        let case = Case::new(heads(h, g, e), groups, false);
        assert!(case.queries_are_keys());
        let (beside, apart) = (run(&Cpu, &case, false), run(&Cpu, &case, true));
        for ((what, a), (_, b)) in beside.parts().into_iter().zip(apart.parts()) {
            same_bits(what, a, b);
        }
    }
}

#[test]
fn gradients_that_overlap_or_do_not_fit_are_refused() {
    let heads = heads(2, 1, 4);
    let whole = Case::new(heads, &[(3, &[(4, 1), (2, 1)])], false);
    let last = Case::new(heads, &[(3, &[(4, 4), (2, 2)])], true);
    let mut moved = whole.clone();
    moved.sequences[2] = Sequence { q_start: 8, q_len: 1, ..moved.sequences[2] };
    // Columns of dQ (8 wide), dK and dV (4 wide), the stride, and rows that the buffer lacks.
    let check = |case: &Case,
                 (dq, dk, dv): (usize, usize, usize),
                 stride: usize,
                 missing: usize| {
        let (q_rows, k_rows) = case.rows();
        let x = upload(&Cpu, &vec![0.0; 9 * 8]);
        let (sequences, groups, limits) =
            (upload(&Cpu, &case.sequences), upload(&Cpu, &case.groups), upload(&Cpu, &case.limits));
        let mut rows = upload(&Cpu, &vec![0.0; (k_rows - missing) * stride]);
        Cpu.attention_backward(Backward {
            heads,
            routing: Routing {
                sequences: &sequences,
                num_sequences: case.sequences.len(),
                groups: &groups,
                num_groups: case.groups.len() - 1,
                limits: &limits,
            },
            q: Mat::new(&x, 8),
            k: Mat::new(&x, 4),
            v: Mat::new(&x, 4),
            out: Mat::new(&x, 8),
            lse: &upload(&Cpu, &[0.0; 18]),
            dout: Mat::new(&x, 8),
            grads: Grads {
                rows: MatMut::new(&mut rows, stride),
                dq: QueryGrads::Beside(dq),
                dk,
                dv,
            },
            q_rows,
            k_rows,
        })
    };
    assert_eq!(check(&whole, (0, 8, 12), 16, 0), Ok(()));
    assert_eq!(check(&whole, (4, 0, 12), 16, 0), Ok(()));
    assert!(matches!(check(&whole, (0, 7, 12), 16, 0), Err(Error::Shape { what: "dk", .. })));
    assert!(matches!(check(&whole, (0, 8, 10), 16, 0), Err(Error::Shape { what: "dv", .. })));
    assert!(matches!(check(&whole, (3, 0, 12), 16, 0), Err(Error::Shape { what: "dq", .. })));
    assert!(matches!(check(&whole, (0, 8, 12), 15, 0), Err(Error::Shape { .. })));
    assert!(matches!(check(&whole, (0, 8, usize::MAX), 16, 0), Err(Error::Shape { .. })));
    assert!(matches!(check(&whole, (0, 8, 12), 16, 1), Err(Error::Length { .. })));
    assert!(matches!(check(&last, (0, 8, 12), 16, 0), Err(Error::Shape { .. })));
    assert!(matches!(check(&moved, (0, 8, 12), 16, 0), Err(Error::Routing { .. })));
}

#[test]
fn rows_do_not_depend_on_which_queries_are_there() {
    let groups: &[Group<'_>] = &[(21, &[(100, 7), (3, 1)])];
    let all = Case::new(heads(6, 2, 16), groups, false);
    let mut last = Case::new(heads(6, 2, 16), groups, true);
    let qd = all.heads.q_dim();
    let mut from = Vec::new();
    for (a, b) in all.sequences.iter().zip(&last.sequences) {
        from.extend((a.q_start + a.q_len - b.q_len..a.q_start + a.q_len).map(|r| r as usize));
    }
    last.q = from.iter().flat_map(|r| all.q[r * qd..][..qd].to_vec()).collect();
    let (all, last) = (run(&Cpu, &all, false), run(&Cpu, &last, false));
    for (i, row) in from.iter().enumerate() {
        same_bits("out", &all.out[row * qd..][..qd], &last.out[i * qd..][..qd]);
        same_bits("lse", &all.lse[row * 6..][..6], &last.lse[i * 6..][..6]);
    }
}

#[test]
fn decoding_equals_the_forward_of_the_whole_sequence() {
    let whole = Case::new(heads(6, 2, 16), &[(0, &[(77, 1)]), (0, &[(130, 1)])], true);
    // Row `i` of the decode form: one query against a cache; here the pack's own keys serve as cache.
    let full = run(&Cpu, &whole, false);
    let mut swapped = whole.clone();
    swapped.sequences.swap(1, 3);
    for (i, s) in swapped.sequences.iter_mut().enumerate() {
        s.q_start = if i < 2 { 0 } else { 1 };
    }
    let qd = whole.heads.q_dim();
    swapped.q = [&whole.q[qd..2 * qd], &whole.q[..qd]].concat();
    swapped.limits = vec![130, 77];
    let (rows, b) = (swapped.rows(), Cpu);
    let (q, k, v) = (upload(&b, &swapped.q), upload(&b, &swapped.k), upload(&b, &swapped.v));
    let (sequences, groups, limits) =
        (upload(&b, &swapped.sequences), upload(&b, &swapped.groups), upload(&b, &swapped.limits));
    let (mut out, mut lse) = (upload(&b, &vec![f32::NAN; 2 * qd]), upload(&b, &[f32::NAN; 12]));
    b.attention_forward(Forward {
        heads: swapped.heads,
        routing: Routing {
            sequences: &sequences,
            num_sequences: 4,
            groups: &groups,
            num_groups: 2,
            limits: &limits,
        },
        q: Mat::new(&q, qd),
        k: Mat::new(&k, swapped.heads.kv_dim()),
        v: Mat::new(&v, swapped.heads.kv_dim()),
        out: MatMut::new(&mut out, qd),
        lse: &mut lse,
        q_rows: rows.0,
        k_rows: rows.1,
    })
    .unwrap();
    same_bits("first", &out[..qd], &full.out[qd..]);
    same_bits("second", &out[qd..], &full.out[..qd]);
}

#[test]
fn a_shared_prefix_gives_the_gradients_of_the_unshared_sequences() {
    let heads = heads(6, 2, 16);
    let (prefix, own) = (37usize, [(20u32, 0u32), (5, 0), (44, 0)]);
    let mut shared = Case::new(heads, &[(37, &own)], false);
    // Only the own rows are supervised: in the unshared form each has its own copy of the prefix rows.
    shared.dout[..prefix * heads.q_dim()].fill(0.0);
    let lens: Vec<(u32, u32)> = own.iter().map(|(len, _)| (37 + len, 0)).collect();
    let mut apart = Case::new(heads, &[(0, &lens)], false);
    let (qd, kd) = (heads.q_dim(), heads.kv_dim());
    let mut rows = Vec::new();
    let mut start = prefix;
    for (len, _) in own {
        rows.extend(0..prefix);
        rows.extend(start..start + len as usize);
        start += len as usize;
    }
    let take = |x: &[f32], w: usize| -> Vec<f32> {
        rows.iter().flat_map(|r| x[r * w..][..w].to_vec()).collect()
    };
    apart.q = take(&shared.q, qd);
    apart.k = take(&shared.k, kd);
    apart.v = take(&shared.v, kd);
    apart.dout = take(&shared.dout, qd);
    let (a, b, truth) =
        (run(&Cpu, &shared, false), run(&Cpu, &apart, false), run(&Naive, &shared, false));
    for (what, x, y, exact, w) in [
        ("dq", &a.dq, &b.dq, &truth.dq, qd),
        ("dk", &a.dk, &b.dk, &truth.dk, kd),
        ("dv", &a.dv, &b.dv, &truth.dv, kd),
    ] {
        let mut sum = vec![0.0f32; x.len()];
        for (i, r) in rows.iter().enumerate() {
            for c in 0..w {
                sum[r * w + c] += y[i * w + c];
            }
        }
        no_worse(what, 2.0, x, &sum, &widen(exact));
        no_worse(what, 2.0, &sum, x, &widen(exact));
    }
}

/// `Σ dO · O` in `f64` as a function of `Q`, `K`, `V` one after the other.
fn objective(case: &Case, x: &[f64]) -> f64 {
    let (qd, kd, e) = (case.heads.q_dim(), case.heads.kv_dim(), case.heads.head_dim);
    let per = case.heads.heads / case.heads.kv_heads;
    let (q, rest) = x.split_at(case.q.len());
    let (k, v) = rest.split_at(case.k.len());
    let mut sum = 0.0;
    for s in &case.sequences {
        for row in s.q_start as usize..(s.q_start + s.q_len) as usize {
            for head in 0..case.heads.heads {
                let prefix = s.p_start..s.p_start + s.p_len;
                let keys = prefix.chain(s.k_start..s.k_start + case.limits[row]);
                let (mut total, mut value) = (0.0, 0.0);
                for key in keys {
                    let at = |c: usize| key as usize * kd + head / per * e + c;
                    let q_at = row * qd + head * e;
                    let score: f64 = (0..e).map(|c| q[q_at + c] * k[at(c)]).sum();
                    let p = (f64::from(case.heads.scale) * score).exp();
                    total += p;
                    value +=
                        p * (0..e).map(|c| f64::from(case.dout[q_at + c]) * v[at(c)]).sum::<f64>();
                }
                sum += value / total;
            }
        }
    }
    sum
}

#[test]
fn naive_gradient_agrees_with_differences() {
    let case = Case::new(heads(4, 2, 3), &[(2, &[(3, 1), (1, 1)]), (0, &[(4, 2)])], false);
    let out = run(&Naive, &case, false);
    let gradient = [out.dq.as_slice(), &out.dk, &out.dv].concat();
    let x = [case.q.as_slice(), &case.k, &case.v].concat();
    differences("attention", &gradient, &x, |x| objective(&case, x));
}

#[test]
fn candle_agrees() {
    let (len, h, g, e) = (50usize, 6usize, 2usize, 16usize);
    let case = Case::new(heads(h, g, e), &[(0, &[(50, 1)])], false);
    let dev = Device::Cpu;
    let tensor = |x: &[f32], n: usize| {
        let t = Tensor::new(x, &dev).unwrap().to_dtype(DType::F64).unwrap();
        t.reshape((len, n, e)).unwrap().transpose(0, 1).unwrap().contiguous().unwrap()
    };
    let var = |x: &[f32], n: usize| Var::from_tensor(&tensor(x, n)).unwrap();
    let (q, k, v) = (var(&case.q, h), var(&case.k, g), var(&case.v, g));
    let repeat = |x: &Var| {
        let x = x.unsqueeze(1).unwrap().broadcast_as((g, h / g, len, e)).unwrap();
        x.contiguous().unwrap().reshape((h, len, e)).unwrap()
    };
    let mask: Vec<f64> =
        (0..len * len).map(|i| if i % len > i / len { f64::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(mask, (len, len), &dev).unwrap();
    let scores = q.matmul(&repeat(&k).t().unwrap()).unwrap();
    let scores = (scores * f64::from(case.heads.scale)).unwrap().broadcast_add(&mask).unwrap();
    // Not `softmax_last_dim`: it drops the gradient without a word.
    let p = candle_nn::ops::softmax(&scores, D::Minus1).unwrap();
    let out = p.matmul(&repeat(&v)).unwrap();
    let loss = (&out * tensor(&case.dout, h)).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    let flat = |t: &Tensor| {
        let t = t.transpose(0, 1).unwrap().flatten_all().unwrap();
        t.to_vec1::<f64>().unwrap()
    };
    let (ours, plain) = (run(&Cpu, &case, false), rounded_naive(&case));
    no_worse("out", 2.0, &ours.out, &plain.out, &flat(&out));
    no_worse("dq", 3.0, &ours.dq, &plain.dq, &flat(grads.get(&q).unwrap()));
    no_worse("dk", 3.0, &ours.dk, &plain.dk, &flat(grads.get(&k).unwrap()));
    no_worse("dv", 3.0, &ours.dv, &plain.dv, &flat(grads.get(&v).unwrap()));
}

#[test]
fn routing_out_of_order_or_outside_is_refused() {
    let good = Case::new(heads(2, 1, 4), &[(3, &[(4, 1), (2, 1)])], false);
    let check = |case: &Case, wrong: &dyn Fn(&mut Vec<Sequence>)| {
        let mut sequences = case.sequences.clone();
        wrong(&mut sequences);
        Sequence::check_all(&sequences, &case.groups, &case.limits, case.rows())
    };
    assert!(check(&good, &|_| {}).is_ok());
    assert!(matches!(check(&good, &|s| s[1].q_start += 9), Err(Error::Routing { .. })));
    assert!(matches!(check(&good, &|s| s[1].p_start = 20), Err(Error::Routing { .. })));
    assert!(matches!(check(&good, &|s| s[2].k_len = 1), Err(Error::Routing { .. })));
    assert!(matches!(check(&good, &|s| s.swap(1, 2)), Err(Error::Routing { .. })));
    let mut blind = good.clone();
    blind.limits[0] = 0;
    assert!(matches!(check(&blind, &|_| {}), Err(Error::Routing { .. })));
}
