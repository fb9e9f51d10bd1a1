//! The fragments of mma and ldmatrix lie as CuTe says (`golden/layouts.txt`), and inline PTX stands in one file.

use crate::harness::{Bench, Shape, numbers, pointer};
use emulator::Mode;
use half::bf16;
use std::collections::BTreeMap;
use std::path::Path;

const WARP: Shape = Shape { grid: [1, 1, 1], threads: 32, shared: 0 };

/// Name -> lane -> the two coordinates of each of its values.
fn golden() -> BTreeMap<&'static str, Vec<Vec<(usize, usize)>>> {
    let mut table: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for line in include_str!("golden/layouts.txt").lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split(' ');
        let (name, lane) = (words.next().unwrap(), words.next().unwrap());
        let coordinates = words.map(|word| {
            let (row, column) = word.split_once(':').unwrap();
            (row.parse().unwrap(), column.parse().unwrap())
        });
        let lanes = table.entry(name).or_default();
        assert_eq!(lane, lanes.len().to_string());
        lanes.push(coordinates.collect());
    }
    table
}

/// Integers of few bits, not symmetric in any way.
fn integers(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
    numbers(rows * columns, seed).into_iter().map(|v| (v * 8.0).round()).collect()
}

/// Dealt out by CuTe's layouts, multiplied by the emulator and gathered again, a product of integers is exact.
#[test]
fn products_lie_as_in_cute() {
    let (table, bench) = (golden(), Bench::new(Mode::Fast, &[]));
    for (name, kernel, k) in
        [("mma_bf16_16816", "product_bf16", 16), ("mma_tf32_1688", "product_tf32", 8)]
    {
        let layout = |operand: &str| &table[format!("{name}.{operand}").as_str()];
        let (a, bt, c) = (integers(16, k, 1), integers(8, k, 2), integers(16, 8, 3));
        let deal = |values: &[f32], columns: usize, operand: &str| -> Vec<u8> {
            let lanes = layout(operand).iter().flatten();
            let held = lanes.map(|&(row, column)| values[row * columns + column]);
            match k {
                16 if operand != "d" => {
                    held.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect()
                }
                _ => held.flat_map(f32::to_le_bytes).collect(),
            }
        };
        let (da, db) = (bench.upload(&deal(&a, k, "a")), bench.upload(&deal(&bt, k, "bt")));
        let d = bench.upload(&deal(&c, 8, "d"));
        assert_eq!((da.bytes(), db.bytes(), d.bytes()), (512, 256, 512), "{name}");
        bench.run(("layouts", kernel), &WARP, &[pointer(&da), pointer(&db), pointer(&d)]).unwrap();
        let got = bench.read(&d);
        for (value, &(i, j)) in layout("d").iter().flatten().enumerate() {
            let sum: f32 = (0..k).map(|l| a[i * k + l] * bt[j * k + l]).sum();
            assert_eq!(got[value], c[i * 8 + j] + sum, "{name} ({i}, {j})");
        }
    }
}

#[test]
fn matrices_lie_as_in_cute() {
    let (table, bench) = (golden(), Bench::new(Mode::Fast, &[]));
    let out = bench.poisoned(6 * 128);
    bench.run(("layouts", "matrices"), &WARP, &[pointer(&out)]).unwrap();
    let got = bench.read(&out);
    for (form, name) in ["x1", "x1_trans", "x2", "x2_trans", "x4", "x4_trans"].iter().enumerate() {
        for (lane, values) in table[format!("ldmatrix_{name}").as_str()].iter().enumerate() {
            for (value, &(row, element)) in values.iter().enumerate() {
                let word = got[128 * form + 4 * lane + value / 2].to_bits();
                let half = (word >> (16 * (value % 2))) & 0xffff;
                assert_eq!(half, (8 * row + element) as u32, "{name}, lane {lane}, value {value}");
            }
        }
    }
}

/// What no other compiler can check stays in the one file whose twins are tested here.
#[test]
fn inline_ptx_and_cuda_cpu_stand_in_ptx_cuh_alone() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../cu"));
    let mut read = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("ptx.cuh") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            let mut words = code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let forbidden = words.find(|word| ["asm", "__asm__", "CUDA_CPU"].contains(word));
            assert_eq!(forbidden, None, "{}:{}", path.display(), number + 1);
        }
        read += 1;
    }
    assert!(read > 0, "no device code in {}", folder.display());
}
