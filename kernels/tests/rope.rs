//! Rotary positions on every backend, against naive, the inverse and candle.
#![expect(clippy::unwrap_used, reason = "a test panics when wrong; its data is small and exact")]

mod naive;
mod tolerance;

use candle_core::{DType, Device, Tensor, Var};
use kernels::backend::{Backend, MatMut};
use kernels::rope::{Rope, Rotate, table};
use kernels::{Cpu, Error};
use naive::{Naive, download, numbers, upload};
use tolerance::{on_threads, same_bits, within};

fn frequencies(head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|i| naive::round(1e4f64.powf(-2.0 * i as f64 / head_dim as f64)))
        .collect()
}

/// Rotates `x [rows, heads·e]`; rows lie three elements apart.
fn run<B: Rope + Backend<Act = f32>>(
    b: &B,
    x: &[f32],
    (heads, head_dim): (usize, usize),
    (positions, inverse): (&[u32], bool),
) -> Vec<f32> {
    let width = heads * head_dim;
    let spread: Vec<f32> = x.chunks(width).flat_map(|r| [r, &[7.0; 3]].concat()).collect();
    let mut buf = upload(b, &spread);
    let table = upload(b, &table(&frequencies(head_dim), 70));
    b.rope(Rotate {
        x: MatMut::new(&mut buf, width + 3),
        positions: &upload(b, positions),
        table: &table,
        heads,
        head_dim,
        inverse,
        rows: positions.len(),
    })
    .unwrap();
    let out = download(b, &buf);
    assert!(out.chunks(width + 3).all(|r| r[width..] == [7.0; 3]), "wrote beside");
    out.chunks(width + 3).flat_map(|r| r[..width].to_vec()).collect()
}

fn positions(rows: usize) -> Vec<u32> {
    (0..rows).map(|i| u32::try_from(i * 37 % 70).unwrap()).collect()
}

/// `|x cos| + |y sin|` is at most `|x| + |y|`.
fn scale(x: &[f32], head_dim: usize) -> Vec<f64> {
    let pair = |i: usize| {
        let half = head_dim / 2;
        if i % head_dim < half { i + half } else { i - half }
    };
    (0..x.len()).map(|i| f64::from(x[i].abs()) + f64::from(x[pair(i)].abs())).collect()
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

#[test]
fn cpu_is_within_two_roundings_of_naive_and_the_inverse_undoes_it() {
    for (rows, heads, e) in [(0, 1, 4), (1, 1, 2), (33, 9, 64), (17, 3, 6), (40, 2, 80)] {
        let (x, p) = (numbers(1, rows * heads * e), positions(rows));
        let turned = run(&Cpu, &x, (heads, e), (&p, false));
        for inverse in [false, true] {
            let ours = run(&Cpu, &x, (heads, e), (&p, inverse));
            let theirs = run(&Naive, &x, (heads, e), (&p, inverse));
            // One product rounded, one fused: two roundings of half a unit; naive rounds once more.
            within("x", 1.5, &ours, &widen(&theirs), &scale(&x, e));
        }
        // Twice the above, and cos² + sin² of the rounded table is within two units of 1.
        let back = run(&Cpu, &turned, (heads, e), (&p, true));
        let double: Vec<f64> = scale(&x, e).iter().map(|s| 2.0 * s).collect();
        within("back", 4.0, &back, &widen(&x), &double);
    }
}

#[test]
fn position_zero_changes_nothing_and_rows_do_not_see_each_other() {
    let (rows, heads, e) = (50, 3, 16);
    let (mut x, p) = (numbers(1, rows * heads * e), positions(rows));
    same_bits("zero", &run(&Cpu, &x, (heads, e), (&vec![0; rows], false)), &x);
    let all = on_threads(|| run(&Cpu, &x, (heads, e), (&p, false)));
    same_bits("2 threads", &all[0], &all[1]);
    same_bits("4 threads", &all[0], &all[2]);
    let width = heads * e;
    x[30 * width + 1] = f32::NAN;
    let poisoned = run(&Cpu, &x, (heads, e), (&p, false));
    assert!(poisoned[30 * width + 1].is_nan() && poisoned[30 * width + 9].is_nan());
    for i in (0..rows).filter(|i| *i != 30) {
        let at = i * width..(i + 1) * width;
        let alone = run(&Cpu, &x[at.clone()], (heads, e), (&p[i..=i], false));
        same_bits("alone", &alone, &all[0][at.clone()]);
        same_bits("beside NaN", &alone, &poisoned[at]);
    }
}

#[test]
fn candle_agrees_in_both_directions() {
    let (rows, heads, e) = (20, 3, 8);
    let (x, dy) = (numbers(1, rows * heads * e), numbers(2, rows * heads * e));
    let p: Vec<u32> = (0..20).collect();
    let table = table(&frequencies(e), rows);
    let dev = Device::Cpu;
    let tensor = |v: &[f32]| {
        let t = Tensor::new(v, &dev).unwrap().to_dtype(DType::F64).unwrap();
        t.reshape((1, rows, heads, e)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap()
    };
    let angles = |start: usize| {
        let rows: Vec<f32> =
            table.chunks(e).flat_map(|row| row[start..start + e / 2].to_vec()).collect();
        Tensor::from_vec(rows, (20, e / 2), &dev).unwrap().to_dtype(DType::F64).unwrap()
    };
    let at = Var::from_tensor(&tensor(&x)).unwrap();
    // Not `rope`: it drops the gradient without a word.
    let y = candle_nn::rotary_emb::rope_slow(&at, &angles(0), &angles(e / 2)).unwrap();
    let grads = (&y * tensor(&dy)).unwrap().sum_all().unwrap().backward().unwrap();
    let flat = |t: &Tensor| {
        let t = t.transpose(1, 2).unwrap().contiguous().unwrap().flatten_all().unwrap();
        t.to_vec1::<f64>().unwrap()
    };
    within("y", 1.5, &run(&Cpu, &x, (heads, e), (&p, false)), &flat(&y), &scale(&x, e));
    let dx = run(&Cpu, &dy, (heads, e), (&p, true));
    within("dx", 1.5, &dx, &flat(grads.get(&at).unwrap()), &scale(&dy, e));
}

#[test]
fn a_position_outside_the_table_is_refused_and_nothing_is_written() {
    fn refused<B: Rope + Backend<Act = f32>>(b: &B) {
        let mut x = upload(b, &[1.0f32; 8]);
        let table = upload(b, &table(&frequencies(4), 5));
        let positions = upload(b, &[4u32, 5]);
        let to = MatMut::new(&mut x, 4);
        let args = Rotate {
            x: to,
            positions: &positions,
            table: &table,
            heads: 1,
            head_dim: 4,
            inverse: false,
            rows: 2,
        };
        assert!(matches!(b.rope(args), Err(Error::Routing { .. })));
    }
    refused(&Cpu);
    refused(&Naive);
}
