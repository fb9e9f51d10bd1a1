//! Grouped LoRA: one body on every backend against candle's autograd and finite differences, then what
//! only the CPU promises: solo equivalence, bit for bit.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test stops at what it did not expect; its numbers are small"
)]

mod lora_case;
mod naive;

use candle_core::{DType, Device, Tensor, Var};
use kernels::backend::Backend;
use kernels::lora::Lora;
use kernels::random::Dropout;
use kernels::{Cpu, Error};
use lora_case::{Case, GAP, bits, mixed};
use naive::{Naive, download, numbers, upload};

/// `|got - want| <= chain · eps · size`.
fn assert_close(got: &[f32], want: &[f64], sizes: &[f32], chain: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let bound = chain * f64::from(f32::EPSILON) * f64::from(sizes[i]);
        let off = (f64::from(got) - want).abs();
        assert!(off <= bound, "{what}: element {i}: {got} for {want} ± {bound}");
    }
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn cpu_agrees_with_naive() {
    for case in [mixed(), Case::new(800, &[7, 5], &[(3, 800, 0.1), (2, 769, 0.0)])] {
        let (sizes, chain) = (case.sizes(), case.chain());
        let y = case.forward(&Cpu);
        assert_close(&y, &wide(&case.forward(&Naive)), &sizes.forward(&Naive), chain, "y");
        let (dx, grads) = case.backward(&Cpu);
        let (dx_naive, grads_naive) = case.backward(&Naive);
        let (dx_sizes, grads_sizes) = sizes.backward(&Naive);
        assert_close(&dx, &wide(&dx_naive), &dx_sizes, chain, "dx");
        assert_close(&grads, &wide(&grads_naive), &grads_sizes, chain, "grads");
        assert_ne!(bits(&y), bits(&case.y));
    }
}

/// A window of a slab as a variable of candle.
fn var(slab: &[f32], start: usize, shape: (usize, usize)) -> Var {
    let v = Tensor::new(&slab[start..start + shape.0 * shape.1], &Device::Cpu).unwrap();
    Var::from_tensor(&v.to_dtype(DType::F64).unwrap().reshape(shape).unwrap()).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// PEFT's formula on dense rows, differentiated by candle: `result + B(A(dropout(x))) · scaling`.
fn agrees_with_candle<B: Lora<Act = f32>>(b: &B) {
    let case = mixed();
    let (chain, sizes) = (case.chain(), case.sizes());
    let (y, (dx, grads)) = (case.forward(b), case.backward(b));
    let (y_sizes, (dx_sizes, grads_sizes)) = (sizes.forward(&Naive), sizes.backward(&Naive));
    let (mut y_want, mut dx_want, mut grads_want) =
        (wide(&case.y), wide(&case.dx), wide(&case.grads));
    for s in case.segments.iter().filter(|s| s.rows > 0) {
        let (first, rows, r) = (s.row_start as usize, s.rows as usize, s.lora_rank as usize);
        let x = var(&case.x, first * case.d, (rows, case.d));
        for out in &case.sites {
            let keep = 1.0 / (1.0 - s.dropout);
            let dropout = Dropout::new(s.key, s.step, out.site.id, s.dropout);
            let mask: Vec<f64> = (0..rows * case.d)
                .map(|i| (case.row_token[first + i / case.d], (i % case.d) as u32))
                .map(|(t, c)| if dropout.keep(t, c) { f64::from(keep) } else { 0.0 })
                .collect();
            let mask = Tensor::from_vec(mask, (rows, case.d), &Device::Cpu).unwrap();
            let at = r * out.site.unit_offset;
            let b_at = at + r * (case.d + out.out_begin);
            let a = var(&case.params, s.param_offset as usize + at, (r, case.d));
            let b = var(&case.params, s.param_offset as usize + b_at, (out.out_len, r));
            let dropped = (x.as_tensor() * mask).unwrap();
            let s_down = dropped.matmul(&a.t().unwrap()).unwrap();
            let up = s_down.matmul(&b.t().unwrap()).unwrap();
            let up = (up * f64::from(s.scale)).unwrap();
            let dy: Vec<f64> = (0..rows * out.out_len)
                .map(|i| (first + i / out.out_len) * case.y_stride + out.y_start + i % out.out_len)
                .map(|i| f64::from(case.dy[i]))
                .collect();
            let dy = Tensor::from_vec(dy, (rows, out.out_len), &Device::Cpu).unwrap();
            let back = (&up * dy).unwrap().sum_all().unwrap().backward().unwrap();
            for (i, v) in values(&up).into_iter().enumerate() {
                let row = first + i / out.out_len;
                y_want[row * case.y_stride + out.y_start + i % out.out_len] += v;
            }
            for (i, v) in values(back.get(&x).unwrap()).into_iter().enumerate() {
                dx_want[first * case.d + i] += v;
            }
            for (var, at) in [(&a, at), (&b, b_at)] {
                for (i, v) in values(back.get(var).unwrap()).into_iter().enumerate() {
                    grads_want[s.grad_offset as usize + at + i] += v;
                }
            }
        }
    }
    assert_close(&y, &y_want, &y_sizes, chain, "y");
    assert_close(&dx, &dx_want, &dx_sizes, chain, "dx");
    assert_close(&grads, &grads_want, &grads_sizes, chain, "grads");
}

#[test]
fn every_backend_agrees_with_candle() {
    agrees_with_candle(&Naive);
    agrees_with_candle(&Cpu);
}

/// `Σ dY·Y` is linear in each element of `X` and of the parameters, so a central difference of step 1
/// is its derivative but for roundings.
fn agrees_with_differences<B: Lora<Act = f32>>(b: &B) {
    let mut case = Case::new(9, &[6, 8], &[(2, 2, 0.0), (3, 5, 0.4), (1, 1, 0.2)]);
    case.y.fill(0.0);
    case.dx.fill(0.0);
    case.grads.fill(0.0);
    let loss = |case: &Case| -> f64 {
        case.forward(b).iter().zip(&case.dy).map(|(&y, &dy)| f64::from(y) * f64::from(dy)).sum()
    };
    let (dx, grads) = case.backward(b);
    // Each of the outputs is rounded to f32 after sums of some 20 terms of size at most about 20.
    let bound = 64.0 * 20.0 * f64::from(f32::EPSILON) * case.dy.len() as f64;
    let difference = |set: &dyn Fn(&mut Case, f32)| {
        let (mut up, mut down) = (case.clone(), case.clone());
        set(&mut up, 1.0);
        set(&mut down, -1.0);
        (loss(&up) - loss(&down)) / 2.0
    };
    for (i, &dx) in dx.iter().enumerate() {
        let want = difference(&|case, h| case.x[i] += h);
        assert!((f64::from(dx) - want).abs() < bound, "x {i}: {dx} for {want}");
    }
    let mut nonzero = 0;
    for s in &case.segments {
        for i in 0..s.lora_rank as usize * (5 + 2 * case.d + 6 + 8) {
            let got = f64::from(grads[s.grad_offset as usize + i]);
            let want = difference(&|case, h| case.params[s.param_offset as usize + i] += h);
            assert!((got - want).abs() < bound, "parameter {i}: {got} for {want}");
            nonzero += usize::from(got.abs() > bound);
        }
    }
    assert!(nonzero > 100, "only {nonzero} gradients to speak of");
}

#[test]
fn every_backend_agrees_with_differences() {
    agrees_with_differences(&Naive);
    agrees_with_differences(&Cpu);
}

/// Rows of each of `users` when `rows` rows are drawn by popularity, as in punica's tests.
fn popularity(kind: &str, rows: usize, users: usize) -> Vec<usize> {
    let weight = |u: usize| match kind {
        "zipf" => (u as f64 + 1.0).powf(-1.5),
        "identical" => f64::from(u32::from(u == users / 2)),
        "skewed" => 0.5f64.powi(u as i32),
        _ => 1.0,
    };
    let mut counts = vec![0; users];
    if kind == "distinct" {
        counts.fill(rows / users);
        return counts;
    }
    let total: f64 = (0..users).map(weight).sum();
    for draw in numbers(users as u64, rows) {
        let mut left = (f64::from(draw) + 1.0) / 2.0 * total;
        let user = (0..users).position(|u| {
            left -= weight(u);
            left < 0.0
        });
        counts[user.unwrap_or(users - 1)] += 1;
    }
    counts
}

#[test]
fn a_segment_is_the_same_alone_and_in_any_pack() {
    for kind in ["distinct", "uniform", "zipf", "identical", "skewed"] {
        let ranks = [8, 4, 16, 1, 8, 64, 3, 32];
        let segments: Vec<(usize, usize, f32)> = popularity(kind, 900, 20)
            .into_iter()
            .enumerate()
            .map(|(i, rows)| (rows, ranks[i % 8], if i % 3 == 0 { 0.05 } else { 0.0 }))
            .collect();
        let case = Case::new(65, &[33, 70], &segments);
        let pack = case.outcome();
        let mut touched: Vec<u32> = bits(&case.grads);
        for (i, s) in case.segments.iter().enumerate() {
            let alone = case.alone(i).outcome();
            let rows = s.row_start as usize..(s.row_start + s.rows) as usize;
            let part = |v: &[u32], w: usize| v[rows.start * w..rows.end * w].to_vec();
            assert!(alone.y == part(&pack.y, case.y_stride), "{kind}: y of segment {i}");
            assert!(alone.dx == part(&pack.dx, case.d), "{kind}: dx of segment {i}");
            for (k, &v) in alone.grads.iter().enumerate() {
                if v != case.grads[k].to_bits() {
                    touched[k] = v;
                }
            }
        }
        assert!(touched == pack.grads, "{kind}: gradients");
    }
}

#[test]
fn threads_change_no_bit() {
    // Many segments, and one long segment that several threads share.
    for segments in [vec![(7, 8, 0.1); 40], vec![(900, 8, 0.05)], vec![(800, 20, 0.0), (3, 4, 0.0)]]
    {
        let case = Case::new(96, &[64, 50], &segments);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| case.outcome())
        };
        let one = run(1);
        for threads in [2, 4, 5] {
            assert!(run(threads) == one, "{threads} threads");
        }
    }
}

#[test]
fn sites_have_the_same_bits_together_and_one_by_one() {
    // Ranks whose sites end inside a panel, beside one, and that are too many to share a product.
    let segments =
        [(7, 8, 0.0), (70, 13, 0.0), (900, 3, 0.0), (5, 8, 0.1), (40, 30, 0.0), (1, 1, 0.0)];
    for case in [mixed(), Case::new(70, &[64, 40, 33], &segments)] {
        assert!(case.sites.len() > 1);
        let together = case.outcome();
        let mut one = case.clone();
        for site in &case.sites {
            one.sites = vec![*site];
            one.y = one.forward(&Cpu);
            (one.dx, one.grads) = one.backward(&Cpu);
        }
        let (y, dx, grads) = (bits(&one.y), bits(&one.dx), bits(&one.grads));
        assert!(together.y == y, "Y");
        assert!(together.dx == dx, "dX");
        assert!(together.grads == grads, "gradients");
    }
}

#[test]
fn scratch_carries_nothing_over() {
    let clean = mixed();
    let run = |first: Option<&Case>| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| {
            if let Some(first) = first {
                first.outcome();
            }
            clean.outcome()
        })
    };
    let mut spoiled = Case::new(90, &[50, 60, 70], &[(200, 40, 0.0), (3, 8, 0.5)]);
    for v in [&mut spoiled.x, &mut spoiled.params, &mut spoiled.dy] {
        v.fill(f32::NAN);
    }
    assert!(run(None) == run(Some(&spoiled)));
}

#[test]
fn one_bad_adapter_spoils_no_other() {
    let clean = mixed();
    let mut bad = clean.clone();
    let s = clean.segments[3];
    let adapter = s.param_offset as usize..clean.segments[4].param_offset as usize - GAP;
    bad.params[adapter].fill(f32::NAN);
    let (clean_out, bad_out) = (clean.outcome(), bad.outcome());
    let rows = s.row_start as usize..(s.row_start + s.rows) as usize;
    let stride = clean.y_stride;
    for row in 0..clean.rows {
        let same = clean_out.y[row * stride..][..stride] == bad_out.y[row * stride..][..stride];
        assert_eq!(same, !rows.contains(&row), "row {row}");
    }
    let units = 5 + 3 * clean.d + 41 + 29 + 8;
    let grads = s.grad_offset as usize..s.grad_offset as usize + 3 * units;
    for i in 0..clean.grads.len() {
        assert!(clean_out.grads[i] == bad_out.grads[i] || grads.contains(&i), "gradient {i}");
    }
}

#[test]
fn without_dx_the_gradients_are_the_same() {
    let case = mixed();
    let mut grads = upload(&Cpu, &case.grads);
    case.try_backward(&Cpu, &mut grads, None).unwrap();
    assert_eq!(bits(&download(&Cpu, &grads)), bits(&case.backward(&Cpu).1));
}

#[test]
fn dropout_keeps_its_mask_between_the_directions() {
    // With B and A of ones, rank 1 and X of ones, dX is the mask and Y the sum of the mask.
    let mut case = Case::new(64, &[4], &[(6, 1, 0.5)]);
    case.params.fill(1.0);
    case.x.fill(1.0);
    case.dy.fill(0.25);
    case.y.fill(0.0);
    case.dx.fill(0.0);
    let (y, (dx, _)) = (case.forward(&Cpu), case.backward(&Cpu));
    let s = case.segments[0];
    let dropout = Dropout::new(s.key, s.step, case.sites[0].site.id, 0.5);
    for row in 0..6 {
        let kept: Vec<f32> =
            (0..64).map(|c| if dropout.keep(case.row_token[row], c) { 2.0 } else { 0.0 }).collect();
        let scaled: Vec<f32> = kept.iter().map(|k| k * s.scale).collect();
        assert_eq!(dx[row * 64..(row + 1) * 64], scaled);
        let sum: f32 = kept.iter().sum();
        assert_eq!(y[row * case.y_stride + 1].to_bits(), (sum * s.scale).to_bits());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let case = mixed();
    let refused = |change: &dyn Fn(&mut Case)| {
        let mut case = case.clone();
        change(&mut case);
        let before = case.grads.clone();
        let mut grads = upload(&Cpu, &case.grads);
        let error = case.try_backward(&Cpu, &mut grads, None).unwrap_err();
        assert_eq!(bits(&download(&Cpu, &grads)), bits(&before), "written before {error}");
        error
    };
    let routing = |change: &dyn Fn(&mut Case)| {
        let error = refused(change);
        assert!(matches!(error, Error::Routing { .. }), "{error}");
    };
    routing(&|c| c.segments[2].lora_rank = 0);
    routing(&|c| c.segments[2].row_start = 4);
    routing(&|c| c.segments[7].rows = 1000);
    routing(&|c| c.segments[7].row_start = u32::MAX);
    routing(&|c| c.segments[0].param_offset = u64::MAX);
    routing(&|c| c.segments[0].grad_offset = c.grads.len() as u64);
    routing(&|c| c.segments[0].lora_rank = u32::MAX);
    routing(&|c| c.segments[0].dropout = 1.0);
    routing(&|c| c.segments[0].dropout = f32::NAN);
    routing(&|c| c.segments[0].dropout = -0.1);
    routing(&|c| c.segments[2].grad_offset = c.segments[0].grad_offset);
    for change in [
        &(|c: &mut Case| c.sites[0].out_begin = 1) as &dyn Fn(&mut Case),
        &|c| c.sites[2].y_start += 20,
        &|c| c.row_token.truncate(1),
        &|c| c.x.truncate(1),
        &|c| c.dy.truncate(1),
    ] {
        let error = refused(change);
        assert!(matches!(error, Error::Length { .. }), "{error}");
    }
    let error = refused(&|c| c.sites[1].site.in_dim = 36);
    assert!(matches!(error, Error::Shape { .. }), "{error}");
}

#[test]
fn nothing_to_do_is_legal() {
    let case = Case::new(5, &[4], &[(0, 8, 0.1), (0, 4, 0.0)]);
    assert_eq!(case.rows, 0);
    let outcome = case.outcome();
    assert_eq!(outcome.grads, bits(&case.grads));
    let mut no_sites = mixed();
    no_sites.sites.clear();
    assert_eq!(no_sites.outcome().y, bits(&no_sites.y));
    let buf = Cpu.alloc::<f32>(0).unwrap();
    assert!(buf.is_empty());
}
