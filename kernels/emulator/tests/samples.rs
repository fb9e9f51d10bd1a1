//! Sample kernels give right results, in both modes and in any order, and clean ones give no finding.

use crate::harness::{Bench, Shape, numbers, pointer};
use emulator::{Error, Mode};
use half::bf16;
use kernels::gpu::{Addend, Arg, Device, Operand, Output, OutputType, Product};

/// Row sums against f64 within the rounding of 300 additions.
fn row_sums(bench: &Bench) -> Vec<f32> {
    let (rows, columns) = (5, 300);
    let x = numbers(rows * columns, 1);
    let (dx, y, positive) = (bench.floats(&x), bench.poisoned(rows), bench.poisoned(rows));
    let args = [pointer(&dx), pointer(&y), pointer(&positive), Arg::I32(columns as i32)];
    let shape = Shape { grid: [rows as u32, 1, 1], threads: 128, shared: 0 };
    bench.run(("rows", "row_sums"), &shape, &args).unwrap();
    let (sums, counts) = (bench.read(&y), bench.read(&positive));
    for (i, row) in x.chunks_exact(columns).enumerate() {
        let want: f64 = row.iter().map(|&v| f64::from(v)).sum();
        let size: f64 = row.iter().map(|&v| f64::from(v.abs())).sum();
        let bound = columns as f64 * f64::from(f32::EPSILON) * size;
        assert!((f64::from(sums[i]) - want).abs() <= bound, "row {i}: {} {want}", sums[i]);
        assert_eq!(counts[i] as usize, row.iter().filter(|&&v| v > 0.0).count());
    }
    sums
}

/// A tiled product against f64: the bf16 products are exact, so `k` roundings of the sum bound the error.
fn tile_product(bench: &Bench, m: usize, n: usize, k: usize) -> Vec<f32> {
    let rounded = |seed, count| -> Vec<bf16> {
        numbers(count, seed).into_iter().map(bf16::from_f32).collect()
    };
    let (a, b) = (rounded(2, m * k), rounded(3, n * k));
    let bytes = |v: &[bf16]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (da, db, d) = (bench.upload(&bytes(&a)), bench.upload(&bytes(&b)), bench.poisoned(m * n));
    let size = |v: usize| Arg::I32(v as i32);
    let args = [pointer(&da), pointer(&db), pointer(&d), size(m), size(n), size(k)];
    let grid = [n.div_ceil(32) as u32, m.div_ceil(32) as u32, 1];
    let shape = Shape { grid, threads: 128, shared: 3 * 2 * 32 * 40 * 2 };
    bench.run(("tile", "tile_product"), &shape, &args).unwrap();
    let got = bench.read(&d);
    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
        let terms = (0..k).map(|l| a[i * k + l].to_f64() * b[j * k + l].to_f64());
        let (want, size) = terms.fold((0.0, 0.0), |(s, t), x| (s + x, t + x.abs()));
        let bound = k as f64 * f64::from(f32::EPSILON) * size;
        let value = f64::from(got[i * n + j]);
        assert!((value - want).abs() <= bound, "({i}, {j}): {value} {want}");
    }
    got
}

#[test]
fn fast_and_checked_agree_bit_for_bit() {
    let (fast, checked) = (Bench::new(Mode::Fast, &[]), Bench::new(Mode::Checked, &[]));
    assert_eq!(row_sums(&fast), row_sums(&checked));
    // Less than a tile, more stages than steps, partial tiles, one row, exact tiles.
    for (m, n, k) in [(1, 8, 8), (33, 40, 72), (70, 24, 200), (32, 32, 64)] {
        assert_eq!(tile_product(&fast, m, n, k), tile_product(&checked, m, n, k));
    }
}

#[test]
fn clean_kernels_have_no_finding_in_any_order() {
    let bench = Bench::new(Mode::Checked, &[]);
    let (rows, tile) = (row_sums(&bench), tile_product(&bench, 33, 40, 72));
    for seed in 1..=20 {
        bench.emulator.set_order(seed);
        assert_eq!(row_sums(&bench), rows, "order {seed}");
        assert_eq!(tile_product(&bench, 33, 40, 72), tile, "order {seed}");
    }
}

/// Modules are opened, too, while launches of other threads run.
#[test]
fn launches_from_several_threads_do_not_disturb_each_other() {
    for mode in [Mode::Fast, Mode::Checked] {
        let alone = tile_product(&Bench::new(mode, &[]), 33, 40, 72);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let bench = Bench::new(mode, &[]);
                    row_sums(&bench);
                    assert_eq!(tile_product(&bench, 33, 40, 72), alone);
                });
            }
        });
    }
}

#[test]
fn launches_that_no_device_takes_are_refused() {
    let bench = Bench::new(Mode::Fast, &[]);
    let (x, y) = (bench.floats(&[0.0; 128]), bench.poisoned(128));
    let args = [pointer(&x), pointer(&y)];
    let shape = |threads, shared| Shape { grid: [1, 1, 1], threads, shared };
    let run = |name, shape: &Shape, args: &[Arg]| bench.run(("bugs", name), shape, args);
    assert!(matches!(run("nothing", &shape(1, 0), &args), Err(Error::UnknownKernel { .. })));
    assert!(matches!(run("pairs", &shape(1, 0), &args[..1]), Err(Error::Arguments { .. })));
    let wrong = [pointer(&x), Arg::I32(0)];
    assert!(matches!(run("pairs", &shape(1, 0), &wrong), Err(Error::Arguments { .. })));
    assert!(matches!(run("pairs", &shape(1025, 0), &args), Err(Error::Geometry { .. })));
    assert!(matches!(run("pairs", &shape(0, 0), &args), Err(Error::Geometry { .. })));
    assert!(matches!(run("pairs", &shape(1, 1 << 20), &args), Err(Error::Geometry { .. })));
    assert!(run("pairs", &shape(64, 0), &args).is_ok());
}

/// Every transposition, strides wider than the rows, both outputs, `=`, `+=` and what lies elsewhere, on small integers: exact.
#[test]
fn products_are_exact_on_small_integers() {
    let bench = Bench::new(Mode::Checked, &[]);
    let (m, n, k) = (5, 6, 7);
    for case in 0..16 {
        let [ta, tb, f32_out, accumulate] = [1, 2, 4, 8].map(|bit| case & bit != 0);
        let value = |i: usize, j: usize, salt: usize| ((i * 5 + j * 3 + salt) % 7) as f32 - 3.0;
        let stored = |rows: usize, columns: usize, transposed: bool, salt: usize| {
            let (lines, length) = if transposed { (columns, rows) } else { (rows, columns) };
            let stride = length + 3;
            let mut bytes = vec![0xff; 2 * lines * stride];
            for (line, i) in (0..lines).flat_map(|line| (0..length).map(move |i| (line, i))) {
                let v = if transposed { value(i, line, salt) } else { value(line, i, salt) };
                bytes[2 * (line * stride + i)..][..2]
                    .copy_from_slice(&bf16::from_f32(v).to_le_bytes());
            }
            (bench.upload(&bytes), stride)
        };
        let ((a, a_stride), (b, b_stride)) = (stored(m, k, ta, 1), stored(k, n, tb, 2));
        let element = if f32_out { OutputType::F32 } else { OutputType::Bf16 };
        let (size, stride) = (element.size(), n + 2);
        let before = if f32_out {
            2.0_f32.to_le_bytes().to_vec()
        } else {
            bf16::from_f32(2.0).to_le_bytes().to_vec()
        };
        let d = bench.upload(&before.repeat(m * stride));
        let product = Product {
            m,
            n,
            k,
            a: Operand { address: a.address(), stride: a_stride, transposed: ta },
            b: Operand { address: b.address(), stride: b_stride, transposed: tb },
            out: Output { address: d.address(), stride, element },
            accumulate,
            c: None,
            invariant: false,
        };
        bench.emulator.product(&product).unwrap();
        let mut bytes = vec![0; m * stride * size];
        bench.emulator.read(&d, 0, &mut bytes).unwrap();
        for (at, got) in bytes.chunks_exact(size).enumerate() {
            let (i, j) = (at / stride, at % stride);
            let sum: f32 = (0..k).map(|l| value(i, l, 1) * value(l, j, 2)).sum();
            let want = if j >= n {
                2.0
            } else if accumulate {
                sum + 2.0
            } else {
                sum
            };
            let want = if f32_out {
                want.to_le_bytes().to_vec()
            } else {
                bf16::from_f32(want).to_le_bytes().to_vec()
            };
            assert_eq!(got, want, "case {case}, element ({i}, {j})");
        }
        // Added from another matrix, of another stride; only where something is added at all.
        let wide = n + 5;
        let element_of = |v: f32| match element {
            OutputType::F32 => v.to_le_bytes().to_vec(),
            OutputType::Bf16 => bf16::from_f32(v).to_le_bytes().to_vec(),
        };
        let c: Vec<u8> = (0..m * wide).flat_map(|at| element_of((at % 11) as f32)).collect();
        let c = bench.upload(&c);
        let beside = Product { c: Some(Addend { address: c.address(), stride: wide }), ..product };
        bench.emulator.product(&beside).unwrap();
        bench.emulator.read(&d, 0, &mut bytes).unwrap();
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let sum: f32 = (0..k).map(|l| value(i, l, 1) * value(l, j, 2)).sum();
            let added = if accumulate { ((i * wide + j) % 11) as f32 } else { 0.0 };
            let got = &bytes[(i * stride + j) * size..][..size];
            assert_eq!(got, element_of(sum + added), "case {case}, element ({i}, {j}) beside C");
        }
        let far_c = Addend { address: c.address(), stride: wide + 2 };
        let leaves = bench.emulator.product(&Product { c: Some(far_c), ..product }).is_err();
        assert_eq!(leaves, accumulate, "case {case}: C leaves its memory");
        let far = Product { m: m + 1, ..product };
        assert!(bench.emulator.product(&far).is_err(), "case {case} leaves its memory");
    }
}
